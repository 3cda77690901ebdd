//! Sees every packet of the lab's fabric: by which ENI it came, by which host's link it went. An unbound packet socket in
//! the fabric's namespace, so that what the node really put on its wires is known, whatever the node says.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Netns;

/// `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;
/// Packets that are remembered at most: far more than the rows of a demo send.
const MEMORY: usize = 200_000;

/// One IPv4 packet on one link of the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Name of the fabric's interface: `eni0`, `host-x`.
    pub(crate) link: String,
    /// That interface leads to an ENI of the node.
    pub(crate) from_eni: bool,
    /// The fabric sent it (true) or received it.
    pub(crate) outgoing: bool,
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    /// IP protocol number.
    pub(crate) protocol: u8,
}

/// The running sniffer; it ends with this value.
#[derive(Debug)]
pub(crate) struct Sniffer {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins to listen in a fabric.
    ///
    /// # Errors
    /// The namespace is gone, or packet sockets need a privilege that is missing.
    pub(crate) fn start(fabric: &str) -> Result<Self> {
        let (socket, names) = Netns::open(fabric)?.within(|| Ok((open()?, interfaces()?)))?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("sniffer".into())
                .spawn(move || listen(&socket, &names, &seen, &stop))
                .context("cannot start a thread")?
        };
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// How much has been seen: the beginning of what [`Sniffer::since`] gives later.
    pub(crate) fn mark(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What has been seen since a mark, once nothing more comes.
    pub(crate) fn since(&self, mark: usize) -> Vec<Seen> {
        self.settle();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(mark..).unwrap_or_default().to_vec()
    }

    /// Waits until the fabric is quiet, so that the end of one connection is not taken for a part of the next.
    pub(crate) fn settle(&self) {
        const QUIET: Duration = Duration::from_millis(25);
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut last = (self.mark(), Instant::now());
        while Instant::now() < deadline && last.1.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.mark();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::EthAll))
            .context("cannot open a packet socket: CAP_NET_RAW is needed")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    Ok(socket)
}

/// Names of the calling thread's interfaces by index.
fn interfaces() -> Result<HashMap<usize, String>> {
    let listed = nix::net::if_::if_nameindex().context("cannot list interfaces")?;
    Ok(listed
        .iter()
        .filter_map(|i| Some((usize::try_from(i.index()).ok()?, i.name().to_string_lossy().into_owned())))
        .collect())
}

fn listen(socket: &OwnedFd, names: &HashMap<usize, String>, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut buffer = vec![0_u8; 65_536 + 64];
    while !stop.load(Ordering::Relaxed) {
        // A time-out only brings the look at `stop`.
        let Ok((len, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let Some(packet) = read(&buffer[..len], &from, names) else { continue };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MEMORY {
            seen.push(packet);
        }
    }
}

fn read(frame: &[u8], from: &LinkAddr, names: &HashMap<usize, String>) -> Option<Seen> {
    let link = names.get(&from.ifindex())?.clone();
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { return None };
    let header = ip.header();
    Some(Seen {
        from_eni: link.starts_with("eni"),
        link,
        outgoing: from.pkttype() == OUTGOING,
        src: header.source_addr(),
        dst: header.destination_addr(),
        protocol: header.protocol().0,
    })
}
