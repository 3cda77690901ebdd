//! Real conversations through sockets: with the lab's own servers, which tell a client what it is seen as, and with
//! servers of a test.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{Lab, netns};

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// TCP and UDP on every member: what comes goes back.
pub const ECHO: u16 = 7;
/// TCP and UDP on every member: the first line says what the client is seen as, then an echo.
pub const PEER: u16 = 8;

/// Connects, from an address and port when they are given (port 0: any).
///
/// # Errors
/// The connection is refused or not answered in time.
pub fn connect(
    from: Option<SocketAddrV4>,
    to: SocketAddrV4,
    patience: Duration,
) -> std::io::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // Bounds connect(2) too.
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    }
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The address and port that a server of port [`PEER`] sees, after 8,000 bytes were echoed.
///
/// # Errors
/// No connection, or no or a wrong echo.
pub fn try_tcp_peer(from: Option<SocketAddrV4>, to: SocketAddrV4) -> std::io::Result<SocketAddrV4> {
    let mut stream = connect(from, to, PATIENCE)?;
    let seen = greeting(&mut stream)?;
    echo(&mut stream, 8_000)?;
    Ok(seen)
}

/// As [`try_tcp_peer`], and it must succeed.
///
/// # Panics
/// It does not.
#[track_caller]
pub fn tcp_peer(from: Option<SocketAddrV4>, to: Ipv4Addr, port: u16) -> SocketAddrV4 {
    let to = SocketAddrV4::new(to, port);
    try_tcp_peer(from, to).unwrap_or_else(|e| panic!("tcp {from:?} -> {to}: {e}"))
}

/// Whether an open connection still carries bytes both ways (with an echo at the other end).
pub fn is_open(stream: &mut TcpStream) -> bool {
    echo(stream, 100).is_ok()
}

/// The first line of a server of port [`PEER`]: the address and port that the client is seen as.
///
/// # Errors
/// Nothing comes, or something else.
pub fn greeting(stream: &mut TcpStream) -> std::io::Result<SocketAddrV4> {
    line(stream)?.parse().map_err(std::io::Error::other)
}

fn echo(stream: &mut TcpStream, len: usize) -> std::io::Result<()> {
    let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
    stream.write_all(&payload)?;
    let mut back = vec![0; len];
    stream.read_exact(&mut back)?;
    if back == payload { Ok(()) } else { Err(std::io::Error::other("the echo differs from what was sent")) }
}

fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The address and port that a server of port [`PEER`] sees of a datagram of `len` bytes; the answer is checked.
///
/// # Panics
/// No answer, or a wrong one.
#[track_caller]
pub fn udp_peer(from: Option<SocketAddrV4>, to: Ipv4Addr, len: usize) -> SocketAddrV4 {
    let socket =
        UdpSocket::bind(from.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    socket.connect((to, PEER)).expect("a route");
    udp_exchange(&socket, len).unwrap_or_else(|e| panic!("udp {from:?} -> {to}, {len} B: {e}"))
}

/// Sends one datagram to port [`PEER`] and waits for its answer; gives what the server saw.
///
/// # Errors
/// No answer, or a wrong one.
pub fn udp_exchange(socket: &UdpSocket, len: usize) -> std::io::Result<SocketAddrV4> {
    let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
    let mut back = vec![0; 65_536];
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&payload)?;
    let n = socket.recv(&mut back)?;
    let answer = &back[..n];
    let end = answer.iter().position(|b| *b == b'\n').unwrap_or(0);
    if n != len || answer[end + 1..] != payload[end + 1..] {
        return Err(std::io::Error::other("the answer differs from what was sent"));
    }
    String::from_utf8_lossy(&answer[..end]).parse().map_err(std::io::Error::other)
}

/// Datagrams from a member of a lab to the echo of the outside host, one after the other, a millisecond between them.
#[derive(Debug)]
pub struct Echoes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32)>,
}

impl Echoes {
    /// Begins.
    ///
    /// # Panics
    /// The member has no way to the outside.
    #[must_use]
    pub fn start(lab: &Lab, member: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, to) = (Arc::clone(&stop), SocketAddrV4::new(lab.address("host-x"), ECHO));
        let socket = lab.within(member, || UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        socket.connect(to).expect("a way to the outside");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
        let thread = std::thread::spawn(move || {
            let (mut sent, mut answered) = (0, 0);
            while !ends.load(Ordering::Relaxed) {
                socket.send(&u32::to_be_bytes(sent)).expect("it is sent");
                sent += 1;
                answered += u32::from(socket.recv(&mut [0; 16]).is_ok());
                std::thread::sleep(Duration::from_millis(1));
            }
            (sent, answered)
        });
        Self { stop, thread }
    }

    /// Ends: not one of them was lost, and at least `at_least` were sent.
    ///
    /// # Panics
    /// Otherwise.
    #[track_caller]
    pub fn lost_none(self, at_least: u32) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, answered) = self.thread.join().expect("the thread of the datagrams");
        assert!(
            sent >= at_least && sent == answered,
            "{answered} of {sent} datagrams were answered, {at_least} were to be"
        );
    }
}

/// An echo server of a test in some namespace: like port [`PEER`] the first line says what the client is seen as.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on an address and port, TCP.
    ///
    /// # Panics
    /// The port is taken.
    #[must_use]
    pub fn tcp(namespace: &str, at: SocketAddrV4) -> Self {
        let listener =
            netns::within(namespace, || TcpListener::bind(at).unwrap_or_else(|e| panic!("{at}: {e}")));
        listener.set_nonblocking(true).expect("a listener");
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (end, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || answer(stream, peer));
            }
        });
        Self { stop, accepted, thread: Some(thread) }
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, peer: SocketAddr) {
    let mut buffer = [0; 16_384];
    let begun = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(60))))
        .and_then(|()| stream.write_all(format!("{peer}\n").as_bytes()));
    if begun.is_err() {
        return;
    }
    // A client that goes away is its own affair.
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
