//! One real exchange between two members of the lab, and what the far side says it saw.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, getsockopt, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::server::{HTTP, PEER};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A TCP connection, 8,000 bytes there and back.
    Tcp,
    /// A UDP datagram of this many bytes there and back; above the MTU it travels in fragments.
    Udp(usize),
    /// An HTTP request to IMDS.
    Http,
    /// ICMP echo.
    Ping,
    /// UDP over a way with a smaller MTU: the sender must learn of it.
    PathMtuUdp(u16),
    /// TCP in bulk over a way with a smaller MTU.
    PathMtuTcp(u16),
}

impl Probe {
    /// IP protocol number.
    pub(crate) fn protocol(self) -> u8 {
        match self {
            Self::Tcp | Self::Http | Self::PathMtuTcp(_) => 6,
            Self::Udp(_) | Self::PathMtuUdp(_) => 17,
            Self::Ping => 1,
        }
    }

    /// Runs in the calling thread's namespace. Gives the source that the far side saw, where the exchange can tell.
    ///
    /// # Errors
    /// No answer, or a wrong one.
    pub(crate) fn run(self, from: Option<Ipv4Addr>, to: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
        match self {
            Self::Tcp => tcp(from, to, 8_000, None).map(Some),
            Self::PathMtuTcp(mtu) => tcp(from, to, 200_000, Some(mtu)).map(Some),
            Self::Udp(len) => udp(from, to, len, 3).map(Some),
            Self::PathMtuUdp(mtu) => path_mtu_udp(to, mtu).map(Some),
            Self::Http => http(to).map(Some),
            Self::Ping => ping(to).map(|()| None),
        }
    }
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp(len) if *len > 1400 => write!(f, "udp {len} B"),
            Self::Udp(_) => f.write_str("udp"),
            Self::Http => f.write_str("http"),
            Self::Ping => f.write_str("icmp echo"),
            Self::PathMtuUdp(_) => f.write_str("udp pmtud"),
            Self::PathMtuTcp(_) => f.write_str("tcp pmtud"),
        }
    }
}

fn tcp(from: Option<Ipv4Addr>, to: Ipv4Addr, bytes: usize, mtu: Option<u16>) -> Result<Ipv4Addr> {
    let mut stream = connect(from, SocketAddrV4::new(to, PEER))?;
    let seen = address(&line(&mut stream)?)?;
    let payload: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    let mut back = vec![0; bytes];
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| writer.write_all(&payload));
        stream.read_exact(&mut back).context("the echo did not come back")?;
        sent.join().map_or_else(|_| bail!("the writer panicked"), |r| r.context("cannot send"))
    })?;
    ensure!(back == payload, "the echo differs from what was sent");
    if let Some(mtu) = mtu {
        learned(getsockopt(&stream, sockopt::IpMtu)?, mtu)?;
    }
    Ok(seen)
}

fn connect(from: Option<Ipv4Addr>, to: SocketAddrV4) -> Result<TcpStream> {
    let stream = match from {
        None => TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE).context("no connection")?,
        Some(from) => {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // Bounds connect(2) too.
            setsockopt(&socket, sockopt::SendTimeout, &timeval())?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
            nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to)).context("no connection")?;
            TcpStream::from(socket)
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 {
        stream.read_exact(&mut byte).context("the peer said nothing")?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn address(text: &str) -> Result<Ipv4Addr> {
    let address: SocketAddrV4 = text.trim().parse().with_context(|| format!("the peer said `{text}`"))?;
    Ok(*address.ip())
}

fn udp(from: Option<Ipv4Addr>, to: Ipv4Addr, len: usize, tries: u32) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0))?;
    socket.connect((to, PEER))?;
    exchange(&socket, len, tries)
}

/// Sends a datagram and waits for its answer; a lost one is sent again, as every client of UDP does.
fn exchange(socket: &UdpSocket, len: usize, tries: u32) -> Result<Ipv4Addr> {
    let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
    let mut back = vec![0; 65_536];
    socket.set_read_timeout(Some(PATIENCE / 2))?;
    for _ in 0..tries {
        match socket.send(&payload) {
            Ok(_) => {}
            // The way's MTU was learned meanwhile: the next try goes in pieces that fit.
            Err(e) if e.raw_os_error() == Some(nix::libc::EMSGSIZE) => continue,
            Err(e) => return Err(e).context("cannot send"),
        }
        let Ok(n) = socket.recv(&mut back) else { continue };
        let answer = &back[..n];
        ensure!(n == len, "the answer has {n} bytes, not {len}");
        let end = answer.iter().position(|b| *b == b'\n').context("the answer names no address")?;
        let seen = address(&String::from_utf8_lossy(&answer[..end]))?;
        ensure!(answer[end + 1..] == payload[end + 1..], "the answer's bytes differ from what was sent");
        return Ok(seen);
    }
    bail!("no answer to {tries} datagrams")
}

fn path_mtu_udp(to: Ipv4Addr, mtu: u16) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((to, PEER))?;
    // Larger than the way, smaller than the pod's own MTU: leaves with DF, and is refused on the way.
    let seen = exchange(&socket, usize::from(mtu) + 40, 3)?;
    learned(getsockopt(&socket, sockopt::IpMtu)?, mtu)?;
    Ok(seen)
}

fn learned(found: i32, mtu: u16) -> Result<()> {
    ensure!(found == i32::from(mtu), "the sender believes in an MTU of {found}, the way has {mtu}");
    Ok(())
}

fn http(to: Ipv4Addr) -> Result<Ipv4Addr> {
    let mut stream = connect(None, SocketAddrV4::new(to, HTTP))?;
    stream.write_all(format!("GET /peer HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "the answer is `{}`",
        answer.lines().next().unwrap_or_default()
    );
    address(answer.rsplit("\r\n").next().unwrap_or_default())
}

fn ping(to: Ipv4Addr) -> Result<()> {
    let socket =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::Icmp))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200))?;
    let echo = IcmpEchoHeader { id: 0x5ce7, seq: 1 };
    let payload = [0x55; 56];
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload);
    let message = [&header.to_bytes()[..], &payload].concat();
    sendto(socket.as_raw_fd(), &message, &SockaddrIn::from(SocketAddrV4::new(to, 0)), MsgFlags::empty())
        .context("cannot send")?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let Ok((len, Some(from))) = recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer) else { continue };
        // A raw socket gives the IP header too, and every ICMP message of the namespace.
        let start = usize::from(buffer[0] & 15) * 4;
        let Some(Ok(reply)) = buffer[..len].get(start..).map(Icmpv4Slice::from_slice) else { continue };
        let matches = reply.icmp_type() == Icmpv4Type::EchoReply(echo) && reply.payload() == payload;
        if from.ip() == to && matches {
            return Ok(());
        }
    }
    bail!("no echo reply")
}

fn timeval() -> TimeVal {
    TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).unwrap_or(2))
}
