//! Sees every packet of a namespace, with the interface that it came or went by: what the node really put on its wires,
//! whatever the node says. An unbound packet socket and a thread.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::netns;

/// `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;
/// Packets remembered at most.
const MEMORY: usize = 400_000;

/// One packet on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Name of the interface: in the fabric `eni0`, `host-x`.
    pub link: String,
    /// This namespace sent it (true) or received it.
    pub outgoing: bool,
    /// Type field of the Ethernet header.
    pub ethertype: u16,
    /// Source, unspecified when it is not IPv4; likewise below.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Not whole: more fragments follow, or it is not the first.
    pub fragment: bool,
    /// Total length of the IP packet in bytes.
    pub len: usize,
    /// Source port; of TCP and UDP, zero otherwise. Likewise below.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Flags of TCP: FIN 1, SYN 2, RST 4, ACK 16.
    pub flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// The bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl Seen {
    /// The node sent it by an ENI: seen in the fabric.
    #[must_use]
    pub fn left_the_node(&self) -> bool {
        self.link.starts_with("eni") && !self.outgoing
    }
}

/// The running sniffer; it ends with this value.
#[derive(Debug)]
pub struct Sniffer {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    pub(super) fn start(namespace: &str) -> Self {
        let (socket, names) = netns::within(namespace, || (open(), interfaces()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (to, end) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || listen(&socket, &names, &to, &end));
        Self { seen, stop, thread: Some(thread) }
    }

    /// How much has been seen: the beginning of what [`Sniffer::since`] gives later.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What has been seen since a mark, once nothing more comes (for 40 ms, or 1 s at most).
    #[must_use]
    pub fn since(&self, mark: usize) -> Vec<Seen> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut last = (self.mark(), Instant::now());
        while Instant::now() < deadline && last.1.elapsed() < Duration::from_millis(40) {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.mark();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.len() < MEMORY, "more packets than the sniffer remembers");
        seen[mark..].to_vec()
    }

    /// All that has been seen.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        self.since(0)
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

fn open() -> OwnedFd {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::EthAll))
            .expect("a packet socket");
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).expect("a time-out");
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("a large buffer");
    socket
}

fn interfaces() -> HashMap<usize, String> {
    let listed = nix::net::if_::if_nameindex().expect("interfaces");
    let entry = |i: &nix::net::if_::Interface| (i.index() as usize, i.name().to_string_lossy().into_owned());
    listed.iter().map(entry).collect()
}

fn listen(socket: &OwnedFd, names: &HashMap<usize, String>, seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut buffer = vec![0_u8; 65_536 + 64];
    while !stop.load(Ordering::Relaxed) {
        // A time-out only brings the look at `stop`.
        let Ok((len, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let Some(link) = names.get(&from.ifindex()) else { continue };
        let packet = read(&buffer[..len], link.clone(), from.pkttype() == OUTGOING);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MEMORY {
            seen.push(packet);
        }
    }
}

fn read(frame: &[u8], link: String, outgoing: bool) -> Seen {
    let mut seen = Seen {
        link,
        outgoing,
        ethertype: frame.get(12..14).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])),
        src: Ipv4Addr::UNSPECIFIED,
        dst: Ipv4Addr::UNSPECIFIED,
        protocol: 0,
        ttl: 0,
        fragment: false,
        len: 0,
        sport: 0,
        dport: 0,
        flags: 0,
        icmp: None,
        bytes: frame.to_vec(),
    };
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return seen };
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { return seen };
    let header = ip.header();
    seen.src = header.source_addr();
    seen.dst = header.destination_addr();
    seen.protocol = header.protocol().0;
    seen.ttl = header.ttl();
    seen.fragment = header.is_fragmenting_payload();
    seen.len = usize::from(header.total_len());
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (seen.sport, seen.dport) = (tcp.source_port(), tcp.destination_port());
            seen.flags = tcp.slice()[13];
        }
        Some(TransportSlice::Udp(udp)) => {
            (seen.sport, seen.dport) = (udp.source_port(), udp.destination_port());
        }
        Some(TransportSlice::Icmpv4(icmp)) => seen.icmp = Some((icmp.type_u8(), icmp.code_u8())),
        _ => {}
    }
    seen
}
