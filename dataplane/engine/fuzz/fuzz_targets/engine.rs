//! Any sequence of packets, honest or not, through several workers: no panic, no frame lost, no mapping given out twice.
//!
//! The input is a program of small commands: a frame of given bytes, a built frame with some bytes changed, the reply to
//! what came out last, a step of one worker, a jump of the clock, another snapshot.
#![no_main]

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, LazyLock};

use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::{HostFacts, HostLink, Neighbour, Snapshot};
use sluice_engine::testing::{FrameBuilder, echo_reply, echo_request, icmp_error, raw, sctp, tcp, udp};
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::{Setup, Worker};
use sluice_engine::{GsoKind, Ingress, Offload, Packet, Verdict};
use sluice_state::{Mac, PortRange, PortSet, State};

const STATE: &str = r#"
version = 1
eni = [
    { name = "eni0", primary = true, address = "10.0.9.5", subnet = "10.0.9.0/24", gateway = "10.0.9.1" },
    { name = "eni1", address = "10.0.10.5", subnet = "10.0.10.0/24", gateway = "10.0.10.1" },
]
pod = [
    { namespace = "d", name = "a", ip = "10.0.1.10", eni = "eni0", interface = "a", mac = "02:00:00:00:01:0a" },
    { namespace = "d", name = "b", ip = "10.0.1.11", eni = "eni0", interface = "b", mac = "02:00:00:00:01:0b" },
    { namespace = "d", name = "c", ip = "10.0.2.20", eni = "eni1", interface = "c", mac = "02:00:00:00:02:14" },
]
[nat]
vpc_cidrs = ["10.0.0.0/16"]
[services]
cidrs = ["10.96.0.0/16"]
[[services.service]]
name = "d/tcp"
protocol = "TCP"
affinity = 30
frontend = [{ address = "10.96.0.10", port = 53 }, { port = 1024, over_local = true }]
endpoint = [
    { ip = "10.0.1.10", port = 53 },
    { ip = "10.0.2.20", port = 1024 },
    { ip = "10.0.9.5", port = 53 },
    { ip = "203.0.113.9", port = 53 },
]
[[services.service]]
name = "d/udp"
protocol = "UDP"
frontend = [{ address = "10.96.0.10", port = 53 }]
endpoint = [{ ip = "10.0.1.11", port = 53 }, { ip = "10.0.77.7", port = 1025 }]
[[services.service]]
name = "d/sctp"
protocol = "SCTP"
frontend = [{ address = "10.96.0.10", port = 53 }]
endpoint = [{ ip = "10.0.1.11", port = 1025 }]
"#;

const WORKERS: u16 = 2;
const INGRESSES: [Ingress; 9] = [
    Ingress::Pod(10),
    Ingress::Pod(11),
    Ingress::Pod(12),
    Ingress::Eni(2),
    Ingress::Eni(3),
    Ingress::Host(2),
    Ingress::ToPod(12),
    Ingress::FromNode(12),
    Ingress::Pod(77),
];

/// The same node: whole, with an unknown next hop and a small ENI, with pod A on another interface, random ports and
/// services that have lost an endpoint.
static SNAPSHOTS: LazyLock<[Snapshot; 3]> = LazyLock::new(|| {
    let first = snapshot(0, None);
    let second = snapshot(1, Some(&first));
    let third = snapshot(2, Some(&second));
    [first, second, third]
});

fn snapshot(number: u64, previous: Option<&Snapshot>) -> Snapshot {
    let mut state = State::from_toml(STATE).expect("the state is right");
    if number < 2 {
        state.nat.randomize = sluice_state::RandomizeSnat::None;
    }
    if number == 2 {
        for service in &mut state.services.services {
            Arc::make_mut(service).endpoints.remove(0);
        }
    }
    let link = |name: &str, ifindex: u32, mtu| HostLink {
        name: name.into(),
        ifindex,
        mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
        mtu,
    };
    let gateway =
        |ifindex, address: [u8; 4]| Neighbour { ifindex, address: address.into(), mac: Mac([2; 6]) };
    let mut neighbours = vec![gateway(2, [10, 0, 9, 1])];
    if number != 1 {
        neighbours.push(gateway(3, [10, 0, 10, 1]));
    }
    let mut set = PortSet::default();
    set.insert_range(PortRange { first: 1024, last: 1031 });
    let host = HostFacts {
        enis: vec![link("eni0", 2, if number == 1 { 600 } else { 1500 }), link("eni1", 3, 1500)],
        links: vec![
            link("a", if number == 2 { 13 } else { 10 }, 1500),
            link("b", 11, 1500),
            link("c", 12, 1500),
        ],
        neighbours,
        local: Vec::new(),
        tcp: set.clone(),
        udp: set.clone(),
        icmp: set,
    };
    Snapshot::compile_after(&state, &host, number + 1, previous).expect("the state fits the host").0
}

struct Node {
    table: Arc<FlowTable>,
    workers: Vec<Worker<Vec<u8>>>,
    queues: Vec<VecDeque<Packet<Vec<u8>>>>,
    snapshot: &'static Snapshot,
    now: u64,
    entered: usize,
    left: usize,
    last: Option<(Verdict, Vec<u8>)>,
}

impl Node {
    fn new() -> Self {
        let table = Arc::new(FlowTable::new(64, usize::from(WORKERS), 1));
        let setup =
            |id| Setup { id, workers: WORKERS, seed: 1, fragments: 8, fragment_timeout: 30_000_000_000 };
        Self {
            workers: (0..WORKERS)
                .map(|id| Worker::new(setup(id), Arc::clone(&table)).expect("free"))
                .collect(),
            queues: (0..WORKERS).map(|_| VecDeque::new()).collect(),
            table,
            snapshot: &SNAPSHOTS[0],
            now: 1_000_000_000,
            entered: 0,
            left: 0,
            last: None,
        }
    }

    fn put(&mut self, at: u8, ingress: Ingress, frame: Vec<u8>, offload: Offload) {
        self.entered += 1;
        let at = usize::from(at) % self.queues.len();
        self.queues[at].push_back(Packet { frame, ingress, offload });
    }

    fn step(&mut self, at: usize) {
        let mut input: Vec<_> = self.queues[at].drain(..).collect();
        let mut out = Vec::new();
        self.workers[at].step(self.now, self.snapshot, &mut input, &mut out, &mut NoTrace);
        assert!(input.is_empty());
        let totals = self.workers[at].counters().totals();
        assert!(totals.conserved(), "{totals:?}");
        for packet in out {
            if let Verdict::Handoff { worker } = packet.verdict {
                let (frame, ingress, offload) = (packet.frame, packet.ingress, packet.offload);
                self.queues[usize::from(worker)].push_back(Packet { frame, ingress, offload });
            } else {
                self.left += 1;
                self.last = Some((packet.verdict, packet.frame));
            }
        }
    }

    /// What came out last, answered: addresses and ports exchanged, from where it went.
    fn reply(&self) -> Option<(Ingress, Vec<u8>)> {
        let (verdict, frame) = self.last.as_ref()?;
        let ingress = match *verdict {
            Verdict::Pod { ifindex } => Ingress::Pod(ifindex),
            Verdict::KernelPod { ifindex } => Ingress::FromNode(ifindex),
            Verdict::Eni { ifindex } => Ingress::Eni(ifindex),
            Verdict::KernelEni { ifindex } => Ingress::Host(ifindex),
            Verdict::Drop(_) | Verdict::Handoff { .. } => return None,
        };
        let mut frame = frame.clone();
        let words = frame.get_mut(26..38)?;
        words[..8].rotate_left(4);
        match frame[23] {
            // An exchange of words changes no sum.
            6 | 17 => frame[34..38].rotate_left(2),
            1 => frame[34] ^= 8,
            _ => {}
        }
        Some((ingress, frame))
    }

    fn finish(mut self) {
        let mut keys = HashSet::new();
        for flow in self.table.flows(self.now) {
            let (forward, reply) = (flow.original, flow.translated.reversed());
            assert!(keys.insert(forward) && (forward == reply || keys.insert(reply)), "twice: {flow:?}");
        }
        while self.queues.iter().any(|queue| !queue.is_empty()) {
            (0..self.queues.len()).for_each(|at| self.step(at));
        }
        for worker in &mut self.workers {
            let mut out = Vec::new();
            worker.drain(self.now, &mut out, &mut NoTrace);
            self.left += out.len();
            let totals = worker.counters().totals();
            assert!(totals.conserved() && totals.held == 0, "{totals:?}");
        }
        assert_eq!(self.entered, self.left, "frames in and out");
    }
}

/// A frame of few hosts and ports, so that packets meet each other's flows.
fn built(shape: [u8; 4]) -> FrameBuilder {
    const ENDS: [&str; 8] = [
        "10.0.1.10",
        "10.0.1.11",
        "10.0.2.20",
        "10.0.9.5",
        "203.0.113.9",
        "10.96.0.10",
        "10.0.77.7",
        "10.0.10.5",
    ];
    const PORTS: [u16; 4] = [53, 1024, 1025, 40_000];
    let [ends, ports, kind, more] = shape;
    let (src, dst) = (ENDS[usize::from(ends & 7)], ENDS[usize::from(ends >> 4 & 7)]);
    let (sport, dport) = (PORTS[usize::from(ports & 3)], PORTS[usize::from(ports >> 2 & 3)]);
    let (from, to) = (format!("{src}:{sport}"), format!("{dst}:{dport}"));
    let payload = vec![more; usize::from(ports >> 4) * 8];
    let builder = match kind & 7 {
        0 | 1 => udp(&from, &to).payload(&payload),
        2 | 3 => tcp(&from, &to).flag_bits(more).mss(1460).payload(&payload),
        4 => echo_request(src, dst, sport, 1),
        5 => echo_reply(src, dst, sport, 1),
        6 => icmp_error([3, 11, 5, 12][usize::from(more & 3)], 4, src, dst, &udp(&to, &from).build()),
        _ if more & 1 == 0 => sctp(&from, &to, more >> 4).payload(&payload),
        _ => raw(src, dst, more).payload(&payload),
    };
    match kind >> 3 {
        0..16 => builder,
        16..24 => builder.fragment_field(0x2000 | u16::from(kind >> 3 & 3)),
        24..28 => builder.fragment_field(u16::from(kind >> 3 & 3)),
        28 => builder.ttl(1),
        29 => builder.dont_fragment(),
        30 => builder.padding(usize::from(more)),
        _ => builder.ip_options(&[7, 3, 4, 0]),
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut node = Node::new();
    let mut rest = data;
    while let [op, tail @ ..] = rest {
        rest = tail;
        let (command, at) = (op & 7, op >> 3);
        match (command, rest) {
            (0, [ingress, len, tail @ ..]) => {
                let (bytes, tail) = tail.split_at(usize::from(*len).min(tail.len()));
                rest = tail;
                node.put(at, INGRESSES[usize::from(ingress & 15) % INGRESSES.len()], bytes.to_vec(), Offload::default());
            }
            (1 | 2, [ingress, a, b, c, d, tail @ ..]) => {
                rest = tail;
                let builder = built([*a, *b, *c, *d]);
                // A super-packet where the trunk could deliver one.
                let sums = matches!(c & 7, 0..=3) && c >> 3 < 16;
                let (mut frame, mut offload) = if sums && ingress & 0x40 != 0 {
                    builder.build_partial()
                } else {
                    (builder.build(), Offload::default())
                };
                if offload.partial && ingress & 0x20 != 0 {
                    offload.gso = if c & 7 < 2 { GsoKind::Udp4 } else { GsoKind::Tcp4 };
                    offload.gso_size = 1 + u16::from(*d) * 8;
                }
                if command == 2
                    && let [place, value, tail @ ..] = rest
                {
                    rest = tail;
                    if let Some(byte) = frame.get_mut(usize::from(*place)) {
                        *byte = *value;
                    }
                }
                node.put(at, INGRESSES[usize::from(ingress & 15) % INGRESSES.len()], frame, offload);
            }
            (3, _) => {
                if let Some((ingress, frame)) = node.reply() {
                    node.put(at, ingress, frame, Offload::default());
                }
            }
            (4, [jump, tail @ ..]) => {
                rest = tail;
                node.now += 1 << (jump & 39);
            }
            (5, _) => node.snapshot = &SNAPSHOTS[usize::from(at) % 3],
            (6, _) => {
                let worker = &mut node.workers[usize::from(at) % usize::from(WORKERS)];
                worker.sleep();
                worker.wake();
            }
            _ => node.step(usize::from(at) % usize::from(WORKERS)),
        }
    }
    node.finish();
});
