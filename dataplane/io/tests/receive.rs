//! AF_XDP reception with the real XDP program, and whole paths: veth, UMEM, trunk, real sockets.

mod support;

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use sluice_bpf::{Config, Link, LinkKind, Options, Programs, XdpMode};
use sluice_engine::{Frame, GsoKind, Ingress, Offload, Packet, Verdict};
use sluice_io::trunk::{Trunk, TrunkOptions, TrunkQueue};
use sluice_io::xsk::{BusyPoll, Mode, PIECE_CAPACITY, Umem, XskOptions, XskPort};
use sluice_io::{IoFrame, Port};
use support::{Tap, ifindex, ip, own_namespace, udp, veth};

const COPY: XskOptions = XskOptions { mode: Mode::Copy, multi_buffer: false, mtu: 1500, busy_poll: None };

/// A port on queue 0 of `name` with the XDP program before it, in the program's slot `slot`.
fn eni(programs: &mut Programs, umem: &Umem, name: &str, slot: u16, options: &XskOptions) -> (u32, XskPort) {
    eni_in(XdpMode::Native, programs, umem, name, slot, options)
}

fn eni_in(
    mode: XdpMode,
    programs: &mut Programs,
    umem: &Umem,
    name: &str,
    slot: u16,
    options: &XskOptions,
) -> (u32, XskPort) {
    let index = ifindex(name);
    let port = XskPort::open(umem, name, index, 0, options).expect("xsk port");
    let link = Link {
        kind: LinkKind::Eni { slot },
        mac: [2, 0, 0, 0, 0, 1],
        peer_mac: [2, 0, 0, 0, 0, 2],
        ip: Ipv4Addr::new(10, 0, 9, 5),
    };
    programs.upsert_link(index, &link).expect("link");
    programs.set_xsk(slot, 0, port.fd().expect("a descriptor")).expect("XSKMAP");
    programs.attach_xdp(index, mode).expect("XDP on veth");
    (index, port)
}

fn programs(frags: bool, pods: &[[u8; 4]]) -> Programs {
    let programs = Programs::load(&Options { frags, ..Options::default() }).expect("programs");
    let nat_ip = Ipv4Addr::new(10, 0, 9, 5);
    programs.set_config(&Config { nat_ip, trunk_ifindex: 0, on_failure_kernel: false }).expect("config");
    for pod in pods {
        programs.upsert_pod(Ipv4Addr::from(*pod), 1).expect("pod");
    }
    programs
}

/// What arrives within two seconds, until there are `count` packets.
fn receive(port: &mut dyn Port, count: usize) -> Vec<Packet<IoFrame>> {
    let (end, mut packets) = (Instant::now() + Duration::from_secs(2), Vec::new());
    while packets.len() < count && Instant::now() < end {
        port.receive(64, &mut packets);
    }
    packets
}

fn settle(umem: &Umem, ports: &mut [&mut XskPort]) {
    for _ in 0..500 {
        ports.iter_mut().for_each(|port| port.flush());
        if umem.account().tx == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let account = umem.account();
    assert_eq!((account.tx, account.in_frames()), (0, 0), "{account:?}");
    assert_eq!(account.free + account.fill, account.total, "{account:?}");
}

#[test]
fn received_chunks_are_sent_on_and_come_home() {
    if !own_namespace() {
        return;
    }
    veth("r0", "r1", 1500, 1);
    let umem = Umem::new(4096, 1024, false).expect("umem");
    umem.adopt_thread();
    let mut programs = programs(false, &[[10, 0, 0, 2]]);
    let (index, mut port) = eni(&mut programs, &umem, "r0", 0, &COPY);
    let eyes = Tap::on("r1");
    for round in 0..20u16 {
        let sent: Vec<_> = (0..100).map(|i| udp(usize::from(i * 13), round * 100 + i)).collect();
        for frame in &sent {
            eyes.send(frame);
        }
        let packets = receive(&mut port, 100);
        assert_eq!(packets.len(), 100, "{:?}", port.stats());
        for (packet, frame) in packets.into_iter().zip(&sent) {
            assert_eq!(packet.frame.bytes(), frame);
            assert_eq!((packet.ingress, packet.offload), (Ingress::Eni(index), Offload::default()));
            port.send(packet.frame, Verdict::Eni { ifindex: index }, Offload::default()).expect("room");
        }
        port.flush();
        assert_eq!(eyes.frames(100), sent);
    }
    settle(&umem, &mut [&mut port]);
    let stats = port.stats();
    for name in
        ["rx_dropped", "rx_ring_full", "rx_invalid_descs", "tx_invalid_descs", "rx_fill_ring_empty_descs"]
    {
        assert_eq!(stats.value(name), 0, "{name}");
    }
    assert_eq!((stats.value("rx_packets"), stats.value("tx_copied")), (2000, 0));
}

#[test]
fn generic_mode_and_busy_polling_carry_the_same() {
    if !own_namespace() {
        return;
    }
    veth("g0", "g1", 1500, 1);
    let umem = Umem::new(2048, 512, false).expect("umem");
    let mut programs = programs(false, &[[10, 0, 0, 2]]);
    let options = XskOptions { busy_poll: Some(BusyPoll { microseconds: 20, budget: 64 }), ..COPY };
    let (index, mut port) = eni_in(XdpMode::Generic, &mut programs, &umem, "g0", 0, &options);
    let eyes = Tap::on("g1");
    let sent: Vec<_> = (0..200).map(|i| udp(usize::from(i), i)).collect();
    sent.iter().for_each(|frame| eyes.send(frame));
    let packets = receive(&mut port, 200);
    assert_eq!(packets.len(), 200, "{:?}", port.stats());
    for packet in packets {
        port.send(packet.frame, Verdict::Eni { ifindex: index }, Offload::default()).expect("room");
    }
    port.flush();
    assert_eq!(eyes.frames(200), sent);
    settle(&umem, &mut [&mut port]);
    assert!(port.stats().value("rx_wakeups") > 0, "busy polling asks the device itself");
}

#[test]
fn frames_dropped_by_another_thread_come_home() {
    if !own_namespace() {
        return;
    }
    veth("h0", "h1", 1500, 1);
    let umem = Umem::new(2048, 512, false).expect("umem");
    umem.adopt_thread();
    let mut programs = programs(false, &[[10, 0, 0, 2]]);
    let (_, mut port) = eni(&mut programs, &umem, "h0", 0, &COPY);
    let eyes = Tap::on("h1");
    let (to, from) = mpsc::channel::<Vec<Packet<IoFrame>>>();
    let other = umem.clone();
    let worker = std::thread::spawn(move || {
        other.adopt_thread();
        from.into_iter().map(|packets| packets.len()).sum::<usize>()
    });
    for round in 0..40 {
        for i in 0..100 {
            eyes.send(&udp(64, round * 100 + i));
        }
        to.send(receive(&mut port, 100)).expect("the worker lives");
    }
    drop(to);
    assert_eq!(worker.join().expect("no panic"), 4000);
    settle(&umem, &mut [&mut port]);
    assert_eq!(port.stats().value("rx_fill_short"), 0);
}

#[test]
fn jumbo_frames_are_chains_both_ways() {
    if !own_namespace() {
        return;
    }
    veth("j0", "j1", 9001, 1);
    let umem = Umem::new(4096, 512, false).expect("umem");
    umem.adopt_thread();
    let mut programs = programs(true, &[[10, 0, 0, 2]]);
    let options = XskOptions { multi_buffer: true, mtu: 9001, ..COPY };
    let (index, mut port) = eni(&mut programs, &umem, "j0", 0, &options);
    let eyes = Tap::on("j1");
    let sizes = [0, 64, 1400, 3798, 3799, 5000, 7600, 8973];
    for (i, size) in sizes.into_iter().enumerate() {
        let sent = udp(size, i as u16);
        eyes.send(&sent);
        let mut packets = receive(&mut port, 1);
        let frame = packets.pop().expect("a packet").frame;
        assert_eq!(frame.len(), sent.len());
        assert_eq!(frame.pieces().count(), sent.len().div_ceil(PIECE_CAPACITY).max(1));
        assert_eq!(frame.to_vec(), sent);
        // Back as it came, then from the heap, which is copied into a chain.
        port.send(frame, Verdict::Eni { ifindex: index }, Offload::default()).expect("room");
        port.send(IoFrame::Heap(sent.clone()), Verdict::Eni { ifindex: index }, Offload::default())
            .expect("room");
        port.flush();
        assert_eq!(eyes.frames(2), [sent.clone(), sent]);
    }
    settle(&umem, &mut [&mut port]);
    assert_eq!(port.stats().value("tx_copied"), sizes.len() as u64);
}

#[test]
fn udp_super_packets_of_a_real_socket_are_cut_for_the_wire() {
    if !own_namespace() {
        return;
    }
    veth("u0", "u1", 1500, 1);
    let umem = Umem::new(4096, 512, false).expect("umem");
    let index = ifindex("u0");
    let mut port = XskPort::open(&umem, "u0", index, 0, &COPY).expect("xsk port");
    let eyes = Tap::on("u1");
    let (_trunk, mut queues) = Trunk::open("ut", 1, &TrunkOptions::default()).expect("trunk");
    // The device's own address is a pod's tag, so that what the stack sends is tagged.
    ip("link set ut address 02:11:00:00:00:07");
    ip("addr add 10.9.0.1/24 dev ut");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:99 dev ut");
    let socket = std::net::UdpSocket::bind("10.9.0.1:0").expect("socket");
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &1200)
        .expect("UDP_SEGMENT");
    let payload: Vec<u8> = (0..25_000u32).map(|i| ((i * i) >> 5) as u8).collect();
    socket.send_to(&payload, "10.9.0.2:4000").expect("sent");
    let packet = receive(&mut queues[0], 1).pop().expect("a packet");
    assert_eq!(packet.ingress, Ingress::Pod(7));
    assert_eq!(
        (packet.offload.gso, packet.offload.gso_size, packet.offload.partial),
        (GsoKind::Udp4, 1200, true)
    );
    port.send(packet.frame, Verdict::Eni { ifindex: index }, packet.offload).expect("room");
    port.flush();
    let frames = eyes.frames(21);
    let mut glued = Vec::new();
    for frame in &frames {
        let sliced = etherparse::SlicedPacket::from_ethernet(frame).expect("well-formed");
        let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
        let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else { panic!("not UDP") };
        let header = udp.to_header();
        let right =
            header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), udp.payload());
        assert_eq!(right, Ok(header.checksum));
        glued.extend_from_slice(udp.payload());
    }
    assert_eq!((frames.len(), glued), (21, payload));
    assert_eq!(port.stats().value("tx_segments"), 21);
}

/// A trunk in a namespace of its own with an address, and what runs there once the queue is handed out.
fn host(
    name: &'static str,
    address: [u8; 4],
    peer: [u8; 4],
    run: impl FnOnce() + Send + 'static,
) -> (TrunkQueue, std::thread::JoinHandle<()>) {
    let (to, from) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        assert!(own_namespace());
        let options = TrunkOptions { mtu: 1500, ..TrunkOptions::default() };
        let (_, mut queues) = Trunk::open(name, 1, &options).expect("trunk");
        ip(&format!("link set {name} address 02:11:00:00:00:{:02x}", address[3]));
        ip(&format!("addr add {}/24 dev {name}", Ipv4Addr::from(address)));
        ip(&format!("neigh add {} lladdr 02:00:00:00:00:99 dev {name}", Ipv4Addr::from(peer)));
        to.send(queues.remove(0)).expect("the test waits for it");
        run();
    });
    (from.recv_timeout(Duration::from_secs(10)).expect("the trunk's queue"), thread)
}

const LEFT: [u8; 4] = [10, 9, 0, 1];
const RIGHT: [u8; 4] = [10, 9, 0, 2];
const BYTES: usize = 24 << 20;

/// Two hosts, each behind a trunk of its own, with a TCP transfer of [`BYTES`] between them that checks every byte.
struct Connection {
    near: TrunkQueue,
    far: TrunkQueue,
    done: Arc<AtomicBool>,
    threads: [std::thread::JoinHandle<()>; 2],
}

fn connection(near: &'static str, far: &'static str) -> Connection {
    use std::io::{Read, Write};
    let pattern = |i: usize| (i ^ (i >> 8) ^ (i >> 16)) as u8;
    let done = Arc::new(AtomicBool::new(false));
    let (listening, may_connect) = mpsc::channel();
    let finished = Arc::clone(&done);
    let (far, server) = host(far, RIGHT, LEFT, move || {
        let listener = std::net::TcpListener::bind((Ipv4Addr::from(RIGHT), 5001)).expect("listener");
        listening.send(()).expect("the client waits");
        let (mut stream, peer) = listener.accept().expect("a client");
        assert_eq!(peer.ip(), Ipv4Addr::from(LEFT));
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let (mut buffer, mut read) = (vec![0; 1 << 18], 0);
        while read < BYTES {
            let len = stream.read(&mut buffer).expect("data");
            assert!(len > 0, "the connection ended after {read} bytes");
            assert!(buffer[..len].iter().enumerate().all(|(i, byte)| *byte == pattern(read + i)), "damaged");
            read += len;
        }
        stream.write_all(b"thank you").expect("answer");
    });
    let (near, client) = host(near, LEFT, RIGHT, move || {
        may_connect.recv_timeout(Duration::from_secs(10)).expect("a listener");
        let to = std::net::SocketAddr::from((Ipv4Addr::from(RIGHT), 5001));
        let mut stream =
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("connected");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let data: Vec<u8> = (0..BYTES).map(pattern).collect();
        stream.write_all(&data).expect("written");
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"thank you");
        finished.store(true, Ordering::Release);
    });
    Connection { near, far, done, threads: [client, server] }
}

impl Connection {
    /// Has `step` move packets until the transfer is done.
    fn run(&mut self, mut step: impl FnMut(&mut TrunkQueue, &mut TrunkQueue) -> usize) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.done.load(Ordering::Acquire) && Instant::now() < end {
            if step(&mut self.near, &mut self.far) == 0 {
                std::thread::yield_now();
            }
        }
        let (near, far) = (self.near.stats(), self.far.stats());
        assert!(self.done.load(Ordering::Acquire), "not finished in time: {near:?} {far:?}");
    }

    fn join(self) {
        self.threads.into_iter().for_each(|thread| thread.join().expect("a host"));
    }
}

#[test]
fn a_real_tcp_connection_crosses_trunk_umem_and_wire() {
    if !own_namespace() {
        return;
    }
    veth("t0", "t1", 1500, 1);
    let umem = Umem::new(16_384, 2048, false).expect("umem");
    umem.adopt_thread();
    let mut programs = programs(false, &[LEFT, RIGHT]);
    let (index0, mut port0) = eni(&mut programs, &umem, "t0", 0, &COPY);
    let (index1, mut port1) = eni(&mut programs, &umem, "t1", 1, &COPY);
    let mut connection = connection("ta", "tb");
    let mut packets = Vec::new();
    connection.run(|near, far| {
        carry(near, &mut port0, Verdict::Eni { ifindex: index0 }, None, &mut packets)
            + carry(&mut port1, far, Verdict::Pod { ifindex: 1 }, Some(RIGHT[3]), &mut packets)
            + carry(far, &mut port1, Verdict::Eni { ifindex: index1 }, None, &mut packets)
            + carry(&mut port0, near, Verdict::Pod { ifindex: 1 }, Some(LEFT[3]), &mut packets)
    });
    settle(&umem, &mut [&mut port0, &mut port1]);
    let (near, far) = (connection.near.stats(), connection.far.stats());
    let report = format!("{near:?}\n{:?}\n{:?}\n{far:?}", port0.stats(), port1.stats());
    assert!(near.value("rx_super_packets") > 100, "{report}");
    assert!(port0.stats().value("tx_segments") > 10_000, "{report}");
    assert!(far.value("gro_merged") > 1000, "{report}");
    for (stats, name) in
        [(port0.stats(), "tx_error"), (port1.stats(), "rx_foreign_descs"), (far, "gro_bad_checksum")]
    {
        assert_eq!(stats.value(name), 0, "{name}: {report}");
    }
    connection.join();
}

#[test]
fn super_packets_cross_whole_from_trunk_to_trunk() {
    if !own_namespace() {
        return;
    }
    let mut connection = connection("wa", "wb");
    let mut packets = Vec::new();
    // Pod to pod by one verdict, an ENI in tap mode by the other.
    let (pod, eni) = (Verdict::Pod { ifindex: 1 }, Verdict::Eni { ifindex: 1 });
    connection.run(|near, far| {
        carry(near, far, eni, Some(RIGHT[3]), &mut packets)
            + carry(far, near, pod, Some(LEFT[3]), &mut packets)
    });
    let (near, far) = (connection.near.stats(), connection.far.stats());
    assert!(near.value("rx_super_packets") > 100, "{near:?}");
    assert_eq!((far.value("tx_error"), near.value("tx_error")), (0, 0), "{near:?} {far:?}");
    assert!(far.value("tx_bytes") / far.value("tap_writes") > 2000, "cut on the way: {far:?}");
    connection.join();
}

/// Moves a batch from one port to another; `mac` is the last byte of the receiving TAP's address.
fn carry(
    from: &mut dyn Port,
    to: &mut dyn Port,
    verdict: Verdict,
    mac: Option<u8>,
    packets: &mut Vec<Packet<IoFrame>>,
) -> usize {
    from.receive(64, packets);
    let count = packets.len();
    for mut packet in packets.drain(..) {
        if let Some(last) = mac {
            packet.frame.bytes_mut()[..6].copy_from_slice(&[2, 0x11, 0, 0, 0, last]);
        }
        // A full way out loses the packet, as any network does; TCP sends it again.
        let _ = to.send(packet.frame, verdict, packet.offload);
    }
    to.flush();
    count
}

#[test]
fn a_closed_port_leaves_nothing_behind() {
    if !own_namespace() {
        return;
    }
    veth("x0", "x1", 1500, 2);
    let umem = Umem::new(4096, 512, false).expect("umem");
    let first = XskPort::open(&umem, "x0", ifindex("x0"), 0, &COPY).expect("queue 0");
    for _ in 0..3 {
        let second = XskPort::open(&umem, "x0", ifindex("x0"), 1, &COPY).expect("queue 1, again and again");
        assert!(second.fd().is_some_and(|fd| fd != first.fd().unwrap_or(-1).as_raw_fd()));
        assert_eq!(umem.account().fill, 1024);
        drop(second);
        assert_eq!(umem.account().free, 4096 - 512);
    }
    drop(first);
    assert_eq!(umem.account().kept, 512);
    drop(umem);
    let again = Umem::new(4096, 512, false).expect("umem");
    XskPort::open(&again, "x0", ifindex("x0"), 0, &COPY).expect("the UMEM's end released queue 0");
}
