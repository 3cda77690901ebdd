//! TCP throughput: one connection that a pod opens, one direction at a time, as fast as it goes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns;

/// Port on which the far end listens.
const PORT: u16 = 7008;

/// Bytes of one write and one read.
const CHUNK: usize = 128 << 10;

/// How long nothing may move before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The pod.
    Up,
    /// The far end.
    Down,
}

/// Sends for `length` of time and gives the receiver's rate in Gbit/s of payload, its first fifth (slow start) left out.
///
/// # Errors
/// No connection within 3 s, or nothing moves for as long.
pub fn measure(pod: &str, far: &str, address: Ipv4Addr, way: Way, length: Duration) -> Result<f64> {
    let listener = netns::inside(far, move || {
        TcpListener::bind(SocketAddrV4::new(address, PORT))
            .with_context(|| format!("cannot listen on {address}:{PORT}"))
    })?;
    listener.set_nonblocking(true)?;
    let server = netns::spawn(far, "tcp-server", move || {
        let stream = accept(&listener)?;
        match way {
            Way::Up => receive(stream, length).map(Some),
            Way::Down => send(stream, length).map(|()| None),
        }
    })?;
    let client = netns::spawn(pod, "tcp-client", move || {
        let stream = TcpStream::connect_timeout(&SocketAddrV4::new(address, PORT).into(), PATIENCE)
            .with_context(|| format!("no TCP connection to {address}:{PORT}"))?;
        match way {
            Way::Up => send(stream, length).map(|()| None),
            Way::Down => receive(stream, length).map(Some),
        }
    })?;
    let client = netns::join(client);
    let server = netns::join(server);
    let rate = match (client?, server?) {
        (Some(rate), _) | (_, Some(rate)) => rate,
        (None, None) => 0.0,
    };
    Ok(rate)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e).context("no TCP connection arrived"),
        }
    }
}

fn send(mut stream: TcpStream, length: Duration) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let (start, chunk) = (Instant::now(), vec![0x5a; CHUNK]);
    while start.elapsed() < length {
        match stream.write_all(&chunk) {
            Ok(()) => {}
            // The receiver has seen enough.
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => return Ok(()),
            Err(e) => return Err(e).context("TCP stopped moving"),
        }
    }
    stream.shutdown(Shutdown::Write).ok();
    Ok(())
}

fn receive(mut stream: TcpStream, length: Duration) -> Result<f64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (start, mut chunk) = (Instant::now(), vec![0; CHUNK]);
    let mut counting: Option<(Instant, u64)> = None;
    let mut rate = 0.0;
    loop {
        let read = stream.read(&mut chunk).context("TCP stopped moving")? as u64;
        match &mut counting {
            Some((since, bytes)) => {
                *bytes += read;
                rate = *bytes as f64 * 8.0 / since.elapsed().as_secs_f64() / 1e9;
            }
            None if start.elapsed() > length / 5 => counting = Some((Instant::now(), 0)),
            None => {}
        }
        if read == 0 || start.elapsed() > length {
            return Ok(rate);
        }
    }
}
