//! Generator, learner, sink and meters over a real pair of veths: what is sent is what is counted.
//!
//! Needs root. Without it the tests fail, clearly; they are never skipped.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sluice_bench::load::frame::{Checksums, Endpoints};
use sluice_bench::load::generator::{Load, Sent};
use sluice_bench::load::learn::learn;
use sluice_bench::load::sink::{Arrived, Sink};
use sluice_bench::meter::cpu::{Cast, Snapshot};
use sluice_bench::meter::rtt;
use sluice_bench::meter::tcp::{self, Way};

const A: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 1);
const B: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);
const A_MAC: [u8; 6] = [2, 0, 0, 0, 7, 1];
const B_MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];

/// Two namespaces and a veth between them; gone when dropped.
struct Pair {
    a: String,
    b: String,
}

impl Pair {
    fn new(test: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let name = |end| format!("slt{}x{test}{end}", std::process::id());
        let pair = Self { a: name("a"), b: name("b") };
        let (a, b) = (&pair.a, &pair.b);
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!(
            "-n {a} link add v address 02:00:00:00:07:01 type veth peer name v address 02:00:00:00:07:02 netns {b}"
        ));
        for (namespace, address) in [(a, A), (b, B)] {
            ip(&format!("-n {namespace} addr add {address}/24 dev v"));
            ip(&format!("-n {namespace} link set v up"));
        }
        pair
    }

    fn load(&self, flows: u32, checksums: Checksums) -> Load {
        let ports =
            (0..flows).map(|n| Endpoints::of_flow(n, A, B)).map(|e| (e.source_port, e.destination_port));
        Load {
            namespace: self.a.clone(),
            interface: "v".into(),
            length: 64,
            source_mac: A_MAC,
            destination_mac: B_MAC,
            source: A,
            destination: B,
            ports: ports.collect::<Arc<[_]>>(),
            checksums,
            rate: Some(50_000.0),
            limit: None,
            cpus: Vec::new(),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.a, &self.b] {
            Command::new("ip").args(["netns", "del", namespace]).status().ok();
        }
    }
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().expect("`ip` (iproute2) is installed");
    assert!(status.success(), "ip {line}: {status}");
}

fn send(load: Load, packets: u64) -> Sent {
    let generator = Load { limit: Some(packets), ..load }.start().unwrap();
    while !generator.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = generator.stop().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    sent
}

#[test]
fn every_packet_sent_is_counted_once_and_by_its_source() {
    let pair = Pair::new("count");
    for checksums in [Checksums::Partial, Checksums::Full] {
        let sink = Sink::attach(&pair.b, "v", A).unwrap();
        let sent = send(pair.load(100, checksums), 5000);
        assert_eq!((sent.packets, sent.refused), (5000, 0));
        assert_eq!(sink.arrived().unwrap(), Arrived { expected: 5000, other: 0 }, "{checksums:?}");
    }
    let sink = Sink::attach(&pair.b, "v", B).unwrap();
    send(pair.load(1, Checksums::Full), 100);
    assert_eq!(sink.arrived().unwrap(), Arrived { expected: 0, other: 100 }, "a source that is not expected");
}

#[test]
fn checksums_are_right_for_a_real_stack() {
    let pair = Pair::new("sum");
    let namespace = pair.b.clone();
    let ends = Endpoints::of_flow(0, A, B);
    let receive = sluice_bench::netns::spawn(&namespace, "receiver", move || {
        let socket = std::net::UdpSocket::bind((B, ends.destination_port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut buffer = [0; 2048];
        Ok(socket.recv_from(&mut buffer)?)
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // On a veth the receiver's stack verifies what is not offloaded: full checksums.
    send(pair.load(1, Checksums::Full), 1);
    let (length, from) = receive.join().unwrap().unwrap();
    assert_eq!((length, from.port()), (64 - 42, ends.source_port));
}

#[test]
fn the_way_back_into_every_flow_is_learned() {
    let pair = Pair::new("learn");
    let _sink = Sink::attach(&pair.b, "v", A).unwrap();
    let load = pair.load(3000, Checksums::Full);
    let learned = learn(&load, &pair.b, "v").unwrap();
    assert_eq!((learned.address, learned.missing), (A, 0));
    let reversed: Vec<_> = load.ports.iter().map(|(source, destination)| (*destination, *source)).collect();
    assert_eq!(learned.ports.to_vec(), reversed);
}

#[test]
fn what_never_arrives_is_an_error_that_says_so() {
    let pair = Pair::new("lost");
    let load = Load { interface: "lo".into(), ..pair.load(10, Checksums::Full) };
    ip(&format!("-n {} link set lo up", pair.a));
    let error = learn(&load, &pair.b, "v").unwrap_err().to_string();
    assert!(error.contains("not one packet"), "{error}");
}

#[test]
fn the_generators_cpu_time_is_found_and_its_rate_kept() {
    let pair = Pair::new("rate");
    let sink = Sink::attach(&pair.b, "v", A).unwrap();
    let generator = pair.load(100, Checksums::Full).start().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let cast = Cast { generator: generator.thread_id(), ..Cast::default() };
    let (before, arrived) = (Snapshot::take().unwrap(), sink.arrived().unwrap());
    std::thread::sleep(Duration::from_millis(400));
    let (after, arrived_after) = (Snapshot::take().unwrap(), sink.arrived().unwrap());
    generator.stop().unwrap();
    let spent = after.since(&before, &cast);
    assert!(spent.generator > 1_000_000, "{spent:?}");
    let arrived = (arrived_after - arrived).total();
    // 20,000 at the rate; a busy machine may make it fewer, never many more.
    assert!((2_000..26_000).contains(&arrived), "{arrived} packets in 0.4 s at 50,000 a second");
}

#[test]
fn round_trips_and_tcp_are_measured() {
    let pair = Pair::new("rtt");
    let times = rtt::measure(&pair.a, &pair.b, B, Duration::from_millis(200)).unwrap();
    assert!(times.count > 100 && times.p50_us > 0.5 && times.p50_us <= times.p99_us, "{times:?}");
    for way in [Way::Up, Way::Down] {
        let rate = tcp::measure(&pair.a, &pair.b, B, way, Duration::from_millis(300)).unwrap();
        assert!(rate > 0.1, "{way:?}: {rate} Gbit/s");
    }
}
