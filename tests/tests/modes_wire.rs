//! What a frame is on the wire: jumbo frames, super-packets cut and joined, checksums complete whatever the pod's stack
//! left open, order within a flow.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use sluice_tests::lab::{
    ECHO, IMDS, Lab, NODE, PATIENCE, PEER, Seen, connect, tcp_peer, udp_exchange, udp_peer, within,
};
use sluice_tests::node::by_queue;

/// Bytes of a bulk transfer in one direction.
const BULK: usize = 24 << 20;

#[test]
fn jumbo_frames_pass_whole_both_ways() {
    let lab = Lab::up("j", &["--mtu", "9001", "--sluiced-arg=--eni-port=xdp"]);
    let sniffer = lab.sniff();
    let before = lab.stats();
    let inside = lab.address("host-v");
    // 8973 bytes of payload are 9001 with the headers; the answer is as long. What is translated goes to IMDS: the way to
    // the hosts outside the VPC carries 1500, as on EC2.
    for size in [8_973, 8_000, 4_100, 3_900, 100] {
        assert_eq!(*lab.within("pod-a", || udp_peer(None, IMDS, size)).ip(), NODE, "{size} bytes");
        let seen = lab.within("host-v", || udp_peer(None, lab.address("pod-c"), size));
        assert_eq!(*seen.ip(), inside, "{size} bytes, from a host of the VPC");
    }
    let stream = lab
        .within("pod-c", || connect(None, SocketAddrV4::new(inside, ECHO), PATIENCE).expect("a connection"));
    echo_in_bulk(&stream, 4 << 20);
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert_at_least(&[("eni0.rx_packets", 5), ("eni1.rx_packets", 5), ("eni0.tx_packets", 5)]);
    let frames = sniffer.all();
    assert!(frames.iter().all(|f| !f.fragment), "nothing of it is a fragment");
    // Datagrams only: the fabric's own TCP is seen before it is cut.
    let datagrams = || frames.iter().filter(|f| f.protocol == 17);
    let largest = |left: bool| datagrams().filter(|f| f.left_the_node() == left).map(|f| f.len).max();
    assert_eq!((largest(true), largest(false)), (Some(9_001), Some(9_001)));
    assert!(frames.iter().all(|f| !f.left_the_node() || f.len <= 9_001));
    frames.iter().filter(|f| f.left_the_node()).for_each(assert_complete);
}

#[test]
fn bulk_tcp_is_cut_and_joined_and_arrives_as_it_was_sent() {
    let lab = Lab::up("b", &["--queues", "2"]);
    let before = lab.stats();
    let outside = SocketAddrV4::new(lab.address("host-x"), ECHO);
    let stream = lab.within("pod-a", || connect(None, outside, PATIENCE).expect("a connection"));
    echo_in_bulk(&stream, BULK);
    let delta = lab.since(&before);
    // Super-packets come from the pod whole, leave as segments of the MTU, and the echo's segments are joined again.
    delta.assert_at_least(&[
        ("trunk.rx_super_packets", 300),
        ("eni0.tx_segments", 10_000),
        ("trunk.gro_super_packets", 300),
        ("trunk.gro_merged", 3_000),
    ]);
    let from_trunk = delta.of("trunk.rx_packets");
    let to_wire = delta.of("eni0.tx_packets");
    assert!(to_wire > 3 * from_trunk, "{from_trunk} packets from the pod became {to_wire} on the wire");
    delta.assert(&[("trunk.gro_bad_checksum", 0), ("engine.flows_opened", 1)]);
}

/// Sends so many bytes, of 64 KiB a multiple, to an echo and reads them back at the same time: both directions at once, every byte compared.
fn echo_in_bulk(stream: &TcpStream, len: usize) {
    let byte = |i: usize| u8::try_from((i ^ (i >> 8) ^ (i >> 16)) & 0xff).expect("a byte");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut stream = stream;
            for chunk in (0..len).step_by(65_536) {
                let bytes: Vec<u8> = (chunk..chunk + 65_536).map(byte).collect();
                stream.write_all(&bytes).expect("the connection takes it");
            }
        });
        let mut reader = stream;
        let mut buffer = vec![0; 65_536];
        for chunk in (0..len).step_by(65_536) {
            reader.read_exact(&mut buffer).expect("the echo comes back");
            let same = buffer.iter().enumerate().all(|(i, found)| *found == byte(chunk + i));
            assert!(same, "the echo differs within {chunk}..{}", chunk + 65_536);
        }
        sender.join().expect("the sender ends well");
    });
}

#[test]
fn every_frame_on_the_wire_has_its_checksums() {
    let lab = Lab::up("k", &[]);
    let sniffer = lab.sniff();
    let before = lab.stats();
    let outside = lab.address("host-x");
    for pod in ["pod-a", "pod-c"] {
        lab.within(pod, || {
            tcp_peer(None, outside, PEER);
            tcp_peer(None, lab.address("host-v"), PEER);
            for size in [33, 100, 1_472] {
                udp_peer(None, outside, size);
            }
        });
        lab.within("host-x", || tcp_peer(None, lab.address(pod), PEER));
        lab.sh(pod, &format!("ping -q -c 1 -s 400 -W 2 {outside}"));
    }
    // A megabyte, so that super-packets are cut.
    let mut stream = lab
        .within("pod-a", || connect(None, SocketAddrV4::new(outside, ECHO), PATIENCE).expect("a connection"));
    let mut back = vec![0; 1 << 16];
    for _ in 0..16 {
        stream.write_all(&back).expect("the connection takes it");
        stream.read_exact(&mut back).expect("the echo");
    }
    lab.since(&before).assert_at_least(&[("eni0.tx_segments", 500)]);
    let frames: Vec<_> =
        sniffer.all().into_iter().filter(|f| f.left_the_node() && f.ethertype == 0x0800).collect();
    assert!(frames.len() > 500, "only {} frames", frames.len());
    frames.iter().for_each(assert_complete);
    for protocol in [1, 6, 17] {
        assert!(frames.iter().any(|f| f.protocol == protocol), "nothing of protocol {protocol}");
    }
    assert!(frames.iter().all(|f| f.len <= 1_500), "no frame above the MTU");
}

/// Computes IP, TCP, UDP and ICMP checksums of a frame from its bytes.
#[track_caller]
fn assert_complete(frame: &Seen) {
    if frame.ethertype != 0x0800 {
        return;
    }
    let ip = &frame.bytes[14..14 + frame.len];
    let header = usize::from(ip[0] & 0xf) * 4;
    assert_eq!(sum(&ip[..header], 0), 0xffff, "IP checksum: {frame:?}");
    if frame.fragment {
        return;
    }
    let payload = &ip[header..];
    let length = u32::try_from(payload.len()).expect("a length");
    let pseudo = match frame.protocol {
        6 | 17 => {
            let addresses = ip[12..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
            addresses.sum::<u32>() + u32::from(frame.protocol) + length
        }
        1 => 0,
        _ => return,
    };
    if frame.protocol == 17 && payload[6..8] == [0, 0] {
        return;
    }
    assert_eq!(sum(payload, pseudo), 0xffff, "checksum of protocol {}: {frame:?}", frame.protocol);
}

/// The one's complement sum (RFC 1071); 0xffff over data that holds its own checksum.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words =
        bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("folded")
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let lab = Lab::up("z", &[]);
    let sniffer = lab.sniff();
    let before = lab.stats();
    let outside = lab.address("host-x");
    let seen = lab.within("pod-a", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        without_checksum(&socket);
        socket.connect((outside, PEER)).expect("a route");
        udp_exchange(&socket, 200).expect("an answer")
    });
    assert_eq!(*seen.ip(), NODE);
    // And back in: a client whose datagram to a pod has none, answered with one.
    let client = lab.within("host-x", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        without_checksum(&socket);
        socket.connect((lab.address("pod-c"), PEER)).expect("a route");
        udp_exchange(&socket, 200).expect("an answer")
    });
    assert_eq!(*client.ip(), outside);
    lab.since(&before).assert_drops(&[]);
    let left: Vec<_> = sniffer.all().into_iter().filter(|f| f.left_the_node() && f.protocol == 17).collect();
    let checksum = |f: &Seen| u16::from_be_bytes([f.bytes[40], f.bytes[41]]);
    let of = |eni: &str| left.iter().find(|f| f.link == eni).map(checksum);
    assert_eq!(of("eni0"), Some(0), "none was sent, and translation invents none: {left:?}");
    assert_ne!(of("eni1").expect("the pod's answer"), 0, "this one the pod's stack did compute");
    left.iter().for_each(assert_complete);
}

/// `SO_NO_CHECK` of socket(7).
fn without_checksum(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).expect("small");
    // SAFETY: the descriptor lives, and the option's value is an int of the length that is given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), len)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn order_within_a_flow_holds_over_four_queues() {
    // Enough that a worker without any is chance of 1 in 32,768.
    const FLOWS: u16 = 32;
    const EACH: u32 = 2_000;
    let lab = Lab::up("o", &["--queues", "4", "--sluiced-arg=--workers=2"]);
    let (before, outside, pod) = (lab.stats(), lab.address("host-x"), lab.address("pod-c"));
    std::thread::scope(|scope| {
        for flow in 0..FLOWS {
            // Half of the flows leave the node, half come in.
            let out = flow % 2 == 0;
            let (from, to, address) =
                if out { ("pod-a", "host-x", outside) } else { ("host-x", "pod-c", pod) };
            let (from, to) = (lab.namespace(from), lab.namespace(to));
            let at = SocketAddrV4::new(address, 20_000 + flow);
            let receiver = within(&to, || UdpSocket::bind(at).expect("the port is free"));
            let sender = within(&from, || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.connect(at).expect("a route");
                socket
            });
            scope.spawn(move || number(&sender, EACH));
            scope.spawn(move || {
                let received = in_order(&receiver, EACH);
                // Gaps are the load's, order is ours; but a test of nothing must not pass.
                assert!(received > EACH / 4, "flow {flow}: only {received} of {EACH} arrived");
            });
        }
    });
    let delta = lab.since(&before);
    delta.assert(&[("engine.flows_opened", i64::from(FLOWS))]);
    let trunk = by_queue(&lab, "trunk", "rx_packets");
    assert!(trunk.values().all(|n| *n > 0), "both workers had flows: {trunk:?}");
}

/// Sends datagrams that carry 0, 1, 2 and so on, in small bursts: all flows together what a busy machine carries, too.
fn number(socket: &UdpSocket, count: u32) {
    for n in 0..count {
        // A refused one (no room, ICMP) is a gap, and gaps are allowed.
        let _ = socket.send(&n.to_be_bytes());
        if n % 8 == 7 {
            std::thread::sleep(Duration::from_millis(4));
        }
    }
}

/// Receives numbered datagrams until the last or until nothing comes for a second; each must be above the one before.
fn in_order(socket: &UdpSocket, count: u32) -> u32 {
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let (mut last, mut received, since) = (None, 0, Instant::now());
    let mut bytes = [0; 4];
    while last != Some(count - 1) && since.elapsed() < Duration::from_secs(20) {
        let Ok(4) = socket.recv(&mut bytes) else { break };
        let now = u32::from_be_bytes(bytes);
        assert!(last.is_none_or(|last| now > last), "{now} came after {last:?}");
        (last, received) = (Some(now), received + 1);
    }
    received
}
