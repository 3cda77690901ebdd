//! Round-trip times: one small UDP datagram from a pod to an outside host and back, one at a time.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::netns;

/// Port on which the far end answers.
const PORT: u16 = 7007;

/// A datagram that is not back by then is lost.
const PATIENCE: Duration = Duration::from_millis(200);

/// Round-trip times.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RoundTrips {
    /// Datagrams that came back.
    pub count: u64,
    /// Datagrams that did not within 200 ms.
    pub lost: u64,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 are at most this, in microseconds.
    pub p99_us: f64,
    /// 999 of 1000 are at most this, in microseconds.
    pub p999_us: f64,
    /// The longest, in microseconds.
    pub max_us: f64,
}

/// Bounces datagrams between the two namespaces for `length` of time. The first tenth is warm-up and not counted.
///
/// # Errors
/// A namespace or an address is not there, or not one datagram came back.
pub fn measure(from: &str, to: &str, address: Ipv4Addr, length: Duration) -> Result<RoundTrips> {
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let socket = netns::inside(to, move || {
            let socket = UdpSocket::bind(SocketAddrV4::new(address, PORT))
                .with_context(|| format!("cannot answer on {address}:{PORT}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        let stop = Arc::clone(&stop);
        netns::spawn(to, "rtt-server", move || answer(&socket, &stop))?
    };
    let result = netns::inside(from, move || ask(SocketAddrV4::new(address, PORT), length));
    stop.store(true, Ordering::Relaxed);
    netns::join(server)?;
    result
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).ok();
        }
    }
    Ok(())
}

fn ask(to: SocketAddrV4, length: Duration) -> Result<RoundTrips> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut times = Histogram::<u64>::new_with_bounds(100, 1_000_000_000, 3)?;
    let (start, mut lost, mut number) = (Instant::now(), 0, 0_u64);
    while start.elapsed() < length {
        number += 1;
        let counts = start.elapsed() > length / 10;
        let sent = Instant::now();
        let came_back = socket.send(&number.to_be_bytes()).is_ok() && wait_for(&socket, number);
        match (came_back, counts) {
            (true, true) => times.saturating_record(sent.elapsed().as_nanos() as u64),
            (false, true) => lost += 1,
            (_, false) => {}
        }
    }
    ensure!(!times.is_empty(), "not one datagram came back from {to}: {lost} were lost");
    let us = |ns: u64| ns as f64 / 1e3;
    Ok(RoundTrips {
        count: times.len(),
        lost,
        p50_us: us(times.value_at_quantile(0.5)),
        p99_us: us(times.value_at_quantile(0.99)),
        p999_us: us(times.value_at_quantile(0.999)),
        max_us: us(times.max()),
    })
}

/// Waits for this very datagram; a late one of an earlier round is skipped.
fn wait_for(socket: &UdpSocket, number: u64) -> bool {
    let mut buffer = [0; 64];
    while let Ok(length) = socket.recv(&mut buffer) {
        if buffer[..length] == number.to_be_bytes() {
            return true;
        }
    }
    false
}
