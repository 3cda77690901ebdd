//! A node on paper: pods A and B on the primary ENI, C on a secondary one, hosts X and Y outside, V inside the VPC.
//!
//! A [`World`] has a clock that only a test moves, some workers and one snapshot. Each way of putting a packet in says what
//! must become of it, and checks everything that holds for any packet besides: every counter that is not named stands
//! still, the flow table changes by what the counters say, both checksums verify when they did before, the TTL fell by one
//! exactly where the engine forwards, nothing but what a translation writes has changed, and no frame is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_engine::counters::{Event, Totals};
use sluice_engine::flow::{FlowRecord, FlowTable};
use sluice_engine::snapshot::{HostFacts, HostLink, Link, Neighbour, Snapshot};
use sluice_engine::testing::{FrameBuilder, read, show, udp, verify};
use sluice_engine::worker::{Output, Setup, Worker};
use sluice_engine::{Drop, Ingress, Offload, Packet, Verdict};
use sluice_state::{Mac, State};

use crate::check::{assert_only_translated, counts, moved, ttl_falls};
use crate::recorder::Recorder;

pub(crate) const A: &str = "10.0.1.10";
pub(crate) const B: &str = "10.0.1.11";
pub(crate) const C: &str = "10.0.2.20";
pub(crate) const N: &str = "10.0.9.5";
pub(crate) const X: &str = "203.0.113.9";
pub(crate) const Y: &str = "198.51.100.7";
pub(crate) const V: &str = "10.0.77.7";

pub(crate) const POD_A: Ingress = Ingress::Pod(10);
pub(crate) const POD_B: Ingress = Ingress::Pod(11);
pub(crate) const POD_C: Ingress = Ingress::Pod(12);
pub(crate) const WIRE0: Ingress = Ingress::Eni(2);
pub(crate) const WIRE1: Ingress = Ingress::Eni(3);
pub(crate) const HOST0: Ingress = Ingress::Host(2);
pub(crate) const TO_A: Verdict = Verdict::Pod { ifindex: 10 };
pub(crate) const TO_B: Verdict = Verdict::Pod { ifindex: 11 };
pub(crate) const TO_C: Verdict = Verdict::Pod { ifindex: 12 };
pub(crate) const ENI0: Verdict = Verdict::Eni { ifindex: 2 };
pub(crate) const ENI1: Verdict = Verdict::Eni { ifindex: 3 };
pub(crate) const KERNEL0: Verdict = Verdict::KernelEni { ifindex: 2 };

/// One second of the virtual clock.
pub(crate) const SECOND: u64 = 1_000_000_000;

const STATE: &str = r#"
version = 1
[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
gateway_mac = "02:00:00:00:09:01"
[[eni]]
name = "eni1"
address = "10.0.10.5"
subnet = "10.0.10.0/24"
gateway = "10.0.10.1"
[[pod]]
namespace = "default"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "enia"
mac = "02:00:00:00:01:0a"
[[pod]]
namespace = "default"
name = "b"
ip = "10.0.1.11"
eni = "eni0"
interface = "enib"
mac = "02:00:00:00:01:0b"
[[pod]]
namespace = "default"
name = "c"
ip = "10.0.2.20"
eni = "eni1"
interface = "enic"
mac = "02:00:00:00:02:14"
[nat]
vpc_cidrs = ["10.0.0.0/16", "100.64.0.0/16"]
"#;

/// What a packet is put in as: bytes, and what the kernel promises about them.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) frame: Vec<u8>,
    pub(crate) offload: Offload,
}

impl From<Vec<u8>> for Input {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, offload: Offload::default() }
    }
}

impl From<FrameBuilder> for Input {
    fn from(builder: FrameBuilder) -> Self {
        builder.build().into()
    }
}

impl From<(Vec<u8>, Offload)> for Input {
    fn from((frame, offload): (Vec<u8>, Offload)) -> Self {
        Self { frame, offload }
    }
}

/// Sizes of a world.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) workers: u16,
    pub(crate) flows: u32,
    pub(crate) fragments: u32,
    pub(crate) seed: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { workers: 1, flows: 4096, fragments: 64, seed: 7 }
    }
}

pub(crate) struct World {
    pub(crate) table: Arc<FlowTable>,
    pub(crate) workers: Vec<Worker<Vec<u8>>>,
    pub(crate) state: State,
    pub(crate) host: HostFacts,
    pub(crate) snapshot: Snapshot,
    pub(crate) now: u64,
    /// The worker that the next packet comes to.
    pub(crate) at: usize,
    pub(crate) trace: Recorder,
    generation: u64,
}

/// What one step did.
pub(crate) struct Step {
    pub(crate) outs: Vec<Output<Vec<u8>>>,
    /// Every counter that moved, by name, and `held` and `flows`.
    pub(crate) moved: BTreeMap<&'static str, i64>,
}

impl World {
    /// The standard node with one worker.
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// The standard node with changes.
    pub(crate) fn with(change: impl FnOnce(&mut State, &mut HostFacts)) -> Self {
        Self::sized(Size::default(), change)
    }

    /// The standard node with changes and of a given size.
    pub(crate) fn sized(size: Size, change: impl FnOnce(&mut State, &mut HostFacts)) -> Self {
        let mut state = State::from_toml(STATE).unwrap();
        let mut host = host(&state);
        change(&mut state, &mut host);
        let table = Arc::new(FlowTable::new(size.flows, usize::from(size.workers), size.seed));
        let worker = |id| {
            let setup = Setup {
                id,
                workers: size.workers,
                seed: size.seed,
                fragments: size.fragments,
                fragment_timeout: 30 * SECOND,
            };
            Worker::new(setup, Arc::clone(&table)).unwrap()
        };
        let workers = (0..size.workers).map(worker).collect();
        let snapshot = Snapshot::compile(&state, &host, 1).unwrap().0;
        let trace = Recorder::default();
        Self { table, workers, state, host, snapshot, now: SECOND, at: 0, trace, generation: 1 }
    }

    /// Changes the control data: the next snapshot is in force from the next packet on.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut State, &mut HostFacts)) {
        change(&mut self.state, &mut self.host);
        self.generation += 1;
        let previous = Some(&self.snapshot);
        let next = Snapshot::compile_after(&self.state, &self.host, self.generation, previous);
        self.snapshot = next.unwrap().0;
    }

    /// Moves the clock.
    pub(crate) fn advance(&mut self, ns: u64) {
        self.now += ns;
    }

    /// Sums of all workers' counters.
    pub(crate) fn totals(&self) -> Totals {
        self.workers.iter().fold(Totals::default(), |mut sum, worker| {
            sum += worker.counters().totals();
            sum
        })
    }

    /// One step of the current worker with any packets; checks what holds for every step.
    pub(crate) fn step(&mut self, packets: Vec<(Ingress, Input)>) -> Step {
        let (before, flows) = (self.totals(), self.table.live());
        let mut input = packets
            .into_iter()
            .map(|(ingress, Input { frame, offload })| Packet { frame, ingress, offload })
            .collect::<Vec<_>>();
        let entered = input.len() as i64;
        let mut outs = Vec::new();
        let worker = &mut self.workers[self.at];
        worker.step(self.now, &self.snapshot, &mut input, &mut outs, &mut self.trace);
        assert!(input.is_empty(), "a step takes everything");
        let after = self.totals();
        for worker in &self.workers {
            let totals = worker.counters().totals();
            assert!(totals.conserved(), "worker {}: {totals:?}", worker.id());
        }
        let moved = moved(&before, &after, i64::from(self.table.live()) - i64::from(flows));
        let held = moved.get("held").copied().unwrap_or(0);
        assert_eq!(outs.len() as i64 + held, entered, "every frame comes back or waits: {moved:?}");
        self.trace.check(&outs);
        Step { outs, moved }
    }

    /// A step without a packet.
    pub(crate) fn idle(&mut self) -> Step {
        self.step(Vec::new())
    }

    /// Puts one packet in, which must leave by `to`, and count `events` besides what every packet counts.
    pub(crate) fn pass(
        &mut self,
        ingress: Ingress,
        input: impl Into<Input>,
        to: Verdict,
        events: &[Event],
    ) -> Vec<u8> {
        self.pass_offloaded(ingress, input, to, events).0
    }

    /// [`World::pass`] that gives what is left of the kernel's promises, too.
    pub(crate) fn pass_offloaded(
        &mut self,
        ingress: Ingress,
        input: impl Into<Input>,
        to: Verdict,
        events: &[Event],
    ) -> (Vec<u8>, Offload) {
        let input = input.into();
        let mut step = self.step(vec![(ingress, input.clone())]);
        let out = step.only();
        let said = (show(&input.frame), show(&out.frame));
        assert_eq!(out.verdict, to, "{said:?}, counted {:?}", step.moved);
        let leaving = match to {
            Verdict::Pod { .. } => Event::ToPod,
            Verdict::Eni { .. } => Event::ToEni,
            Verdict::KernelPod { .. } => Event::ToKernelPod,
            Verdict::KernelEni { .. } => Event::ToKernelEni,
            Verdict::Handoff { .. } => Event::HandedOver,
            Verdict::Drop(reason) => panic!("{reason}: use World::dropped"),
        };
        step.assert_counts(&input, None, &[&[leaving], events].concat());
        if !matches!(to, Verdict::Handoff { .. }) {
            self.assert_ethernet(&out.frame, to);
            let clamped = events.contains(&Event::MssClamped);
            assert_only_translated(&input, &out, ttl_falls(ingress, to), clamped);
        }
        (out.frame, out.offload)
    }

    /// Puts one packet in, which must be dropped for `reason`, unchanged, with nobody told.
    pub(crate) fn dropped(
        &mut self,
        ingress: Ingress,
        input: impl Into<Input>,
        reason: Drop,
        events: &[Event],
    ) {
        let input = input.into();
        let mut step = self.step(vec![(ingress, input.clone())]);
        let out = step.only();
        assert_eq!(out.verdict, Verdict::Drop(reason), "{}", show(&input.frame));
        step.assert_counts(&input, Some(reason), events);
    }

    /// Puts one packet in, which must be dropped for `reason`, and its sender must be told by what comes back.
    pub(crate) fn told(
        &mut self,
        ingress: Ingress,
        input: impl Into<Input>,
        reason: Drop,
        back: Verdict,
        events: &[Event],
    ) -> Vec<u8> {
        let input = input.into();
        let mut step = self.step(vec![(ingress, input.clone())]);
        let out = step.only();
        assert_eq!(out.verdict, back, "{}", show(&input.frame));
        let leaving = if matches!(back, Verdict::Pod { .. }) { Event::ToPod } else { Event::ToEni };
        step.assert_counts(&input, Some(reason), &[&[Event::Generated, leaving], events].concat());
        assert_eq!(verify(&out.frame), Ok(()));
        assert_eq!(out.offload, Offload::default());
        self.assert_ethernet(&out.frame, back);
        out.frame
    }

    /// Puts one packet in, which must wait inside the worker.
    pub(crate) fn held(&mut self, ingress: Ingress, input: impl Into<Input>, events: &[Event]) {
        let input = input.into();
        let step = self.step(vec![(ingress, input.clone())]);
        assert!(step.outs.is_empty(), "{:?}", step.outs);
        let mut expected = counts(&input, None, events);
        expected.insert("held", 1);
        assert_eq!(step.moved, expected);
    }

    /// Every live flow.
    pub(crate) fn flows(&self) -> Vec<FlowRecord> {
        self.table.flows(self.now).collect()
    }

    /// The only live flow.
    pub(crate) fn flow(&self) -> FlowRecord {
        let flows = self.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows[0].clone()
    }

    /// Opens a UDP flow from pod A that is translated, and says the port that it got.
    pub(crate) fn udp_out(&mut self, from: &str, to: &str) -> u16 {
        let ingress = pod_of(from);
        let frame = udp(from, to).payload(b"query").build();
        let sent = self.pass(ingress, frame, ENI0, &[Event::FlowsOpened, Event::PortsTaken]);
        let key = read(&sent).key;
        assert_eq!(key.src(), address(N));
        key.sport()
    }

    fn assert_ethernet(&self, frame: &[u8], to: Verdict) {
        let link = |ifindex| self.snapshot.link(ifindex).expect("the way out is there");
        let (dst, src) = (&frame[..6], &frame[6..12]);
        match to {
            Verdict::Pod { ifindex } => match link(ifindex) {
                Link::Pod(pod) => assert_eq!((dst, src), (&pod.mac[..], &pod.host_mac[..])),
                Link::Eni(eni) => panic!("{} is no pod", eni.name),
            },
            Verdict::Eni { ifindex } => match link(ifindex) {
                Link::Eni(eni) => {
                    let next = eni.next_hop(&self.snapshot, read(frame).key.dst()).expect("it has left");
                    assert_eq!((dst, src), (&next[..], &eni.mac[..]));
                }
                Link::Pod(pod) => panic!("{} is no ENI", pod.name),
            },
            Verdict::KernelPod { ifindex } => match link(ifindex) {
                Link::Pod(pod) => assert_eq!((dst, src), (&pod.host_mac[..], &pod.mac[..])),
                Link::Eni(eni) => panic!("{} is no pod", eni.name),
            },
            Verdict::KernelEni { ifindex } => match link(ifindex) {
                Link::Eni(eni) => assert_eq!(dst, &eni.mac[..]),
                Link::Pod(pod) => panic!("{} is no ENI", pod.name),
            },
            Verdict::Handoff { .. } | Verdict::Drop(_) => {}
        }
    }
}

/// At a test's end nothing waits unnoticed, and the sums agree.
impl std::ops::Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(self.totals().conserved(), "{:?}", self.totals());
    }
}

impl Step {
    /// The only packet that came out.
    pub(crate) fn only(&mut self) -> Output<Vec<u8>> {
        assert_eq!(self.outs.len(), 1, "{:?}, counted {:?}", self.outs, self.moved);
        self.outs.remove(0)
    }

    fn assert_counts(&self, input: &Input, drop: Option<Drop>, events: &[Event]) {
        assert_eq!(self.moved, counts(input, drop, events), "counters after {}", show(&input.frame));
    }
}

/// The interface index of the pod with an address of the form `address:port` or `address`.
pub(crate) fn pod_of(from: &str) -> Ingress {
    match from.split(':').next() {
        Some(A) => POD_A,
        Some(B) => POD_B,
        Some(C) => POD_C,
        _ => panic!("{from} is no pod"),
    }
}

/// An address as the engine has it.
pub(crate) fn address(text: &str) -> u32 {
    text.parse::<std::net::Ipv4Addr>().unwrap().to_bits()
}

/// What the host of a state looks like: its ENIs are interfaces 2, 3, .., its pods 10, 11, .., all gateways are resolved.
pub(crate) fn host(state: &State) -> HostFacts {
    let link = |name: &str, ifindex: u32| HostLink {
        name: name.into(),
        ifindex,
        mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
    };
    let enis = (2..).zip(&state.enis).map(|(i, eni)| link(&eni.name, i)).collect::<Vec<_>>();
    let links = (10..).zip(&state.pods).map(|(i, pod)| link(&pod.interface, i)).collect();
    let neighbours = state
        .enis
        .iter()
        .zip(&enis)
        .map(|(eni, link)| Neighbour {
            ifindex: link.ifindex,
            address: eni.gateway,
            mac: Mac([2, 0, 0, 1, 0, link.ifindex as u8]),
        })
        .collect();
    let set = state.snat_ports.set();
    HostFacts { enis, links, neighbours, local: Vec::new(), tcp: set.clone(), udp: set.clone(), icmp: set }
}
