//! Opens every flow and learns how the node translated it, so that the load can be sent back.
//!
//! Nothing is assumed of a node: each flow is sent once with its number in the payload, a packet socket at the far end
//! (which sees frames before the sink drops them) reads from which address and port it came, and the reversed ports are
//! what the far end must send to. Flows that were lost are sent again.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::frame;
use super::generator::Load;
use crate::netns;
use crate::sys::PacketSocket;

/// Packets per second at which flows are opened.
const RATE: f64 = 120_000.0;

/// The way back into the flows of a load.
#[derive(Debug, Clone)]
pub struct Learned {
    /// The address that the far end saw, and answers to.
    pub address: Ipv4Addr,
    /// Source and destination port of the answers.
    pub ports: Arc<[(u16, u16)]>,
    /// Flows that stayed lost after every repetition.
    pub missing: usize,
}

/// Opens the flows of `load` (its rate and limit are not looked at) and learns the way back at `interface` of `namespace`.
///
/// # Errors
/// Not one flow arrived, or they arrived from several addresses, or a socket could not be made.
pub fn learn(load: &Load, namespace: &str, interface: &str) -> Result<Learned> {
    let flows = load.ports.len();
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let listener = {
        let (stop, interface) = (Arc::clone(&stop), interface.to_owned());
        netns::spawn(namespace, "learner", move || {
            let socket = PacketSocket::receiver(&interface).with_context(|| {
                format!("cannot listen on {interface}: CAP_NET_RAW and CAP_NET_ADMIN are needed")
            })?;
            ready.send(()).ok();
            listen(&socket, flows, &stop)
        })?
    };
    is_ready.recv().ok();
    let one_round = Load { rate: Some(RATE), limit: Some(flows as u64), ..load.clone() };
    let mut failure = None;
    for _ in 0..3 {
        let sent = one_round.clone().start().and_then(|generator| {
            while !generator.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
            }
            generator.stop()
        });
        if let Err(e) = sent {
            failure = Some(e);
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        if listener.is_finished() {
            break;
        }
    }
    stop.store(true, Ordering::Release);
    let found = netns::join(listener)?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    arrange(&found)
}

/// Flow by flow, the address and ports from which it came and to which it went.
type Found = Vec<Option<frame::Endpoints>>;

fn listen(socket: &PacketSocket, flows: usize, stop: &AtomicBool) -> Result<Found> {
    let mut found: Found = vec![None; flows];
    let (mut missing, mut buffer) = (flows, vec![0; 2048]);
    while missing > 0 {
        // Read first, look at `stop` then: what is queued when the last round ended still counts.
        let stopping = stop.load(Ordering::Acquire);
        match socket.receive(&mut buffer)? {
            Some(bytes) => {
                let Some((number, endpoints)) = frame::read(bytes) else { continue };
                if let Some(slot @ None) = found.get_mut(number as usize) {
                    *slot = Some(endpoints);
                    missing -= 1;
                }
            }
            None if stopping => break,
            None => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    Ok(found)
}

fn arrange(found: &Found) -> Result<Learned> {
    let first =
        found.iter().flatten().next().context("not one packet of the load arrived: the path is broken")?;
    let address = first.source;
    let one_address = found.iter().flatten().all(|e| e.source == address);
    ensure!(one_address, "the load arrived from several source addresses, {address} among them");
    let ports: Arc<[_]> = found.iter().flatten().map(|e| (e.destination_port, e.source_port)).collect();
    Ok(Learned { address, missing: found.len() - ports.len(), ports })
}
