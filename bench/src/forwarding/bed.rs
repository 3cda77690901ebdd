//! One measurement in a lab: a load through the node in one direction, a sink at its end, everybody's CPU time.
//!
//! ```text
//!  up    pod eth0 --> pod's host veth [ceiling's sink] --> node --> ENI --> fabric's end [sink]
//!  down  fabric's end --> ENI [ceiling's sink] --> node --> pod eth0 [sink]
//! ```
//!
//! The *ceiling* is the generator with nothing behind it: its packets are counted and dropped at the first interface of
//! the node. Flat out it shows what the generator can do; at the measuring rate its CPU time per packet (pacing, system
//! call, veth transmit, the softirq that takes the packet off) is what is taken off every path. What stays in every path
//! alike is the last sink: a veth's receive and a drop.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::lab::{Dataplane, Eni, Host, Lab, Pod};
use crate::cpus;
use crate::load::frame::{Checksums, Endpoints};
use crate::load::generator::{Generator, Load};
use crate::load::learn::{Learned, learn};
use crate::load::sink::Sink;
use crate::meter::cpu::{Cast, Snapshot, Spent};

/// Which way the load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Pod to wire.
    Up,
    /// Wire to pod.
    Down,
}

impl Direction {
    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "pod -> wire",
            Self::Down => "wire -> pod",
        }
    }
}

/// One window of load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Window {
    /// Which way.
    pub direction: Direction,
    /// Length of the frames in bytes.
    pub length: usize,
    /// Number of flows.
    pub flows: u32,
    /// Packets per second that were asked for; `None` is flat out.
    pub rate: Option<f64>,
    /// Length of the window in seconds.
    pub seconds: f64,
    /// Packets that the generator sent.
    pub sent: u64,
    /// Packets that were refused to the generator at once.
    pub refused: u64,
    /// Packets that arrived as they should.
    pub delivered: u64,
    /// Packets that arrived with a source address that they should not have.
    pub leaked: u64,
    /// CPU time.
    pub cpu: Spent,
}

impl Window {
    /// Packets per second that the generator offered.
    #[must_use]
    pub fn offered_pps(&self) -> f64 {
        (self.sent + self.refused) as f64 / self.seconds
    }

    /// Packets per second that arrived.
    #[must_use]
    pub fn delivered_pps(&self) -> f64 {
        self.delivered as f64 / self.seconds
    }

    /// Share of what was offered that did not arrive, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        1.0 - (self.delivered as f64 / (self.sent + self.refused).max(1) as f64).min(1.0)
    }

    /// CPU nanoseconds per packet sent, generator included.
    #[must_use]
    pub fn gross_ns(&self) -> f64 {
        self.cpu.path() as f64 / (self.sent + self.refused).max(1) as f64
    }

    /// CPUs that were busy with something that is no part of the path.
    #[must_use]
    pub fn cpus_elsewhere(&self) -> f64 {
        self.cpu.elsewhere as f64 / 1e9 / self.seconds
    }
}

/// What one window is to be.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Length of the frames in bytes.
    pub length: usize,
    /// Packets per second; `None` is flat out.
    pub rate: Option<f64>,
    /// Before counting begins.
    pub warm_up: Duration,
    /// While it counts.
    pub window: Duration,
}

/// A lab, ready to be measured in.
#[derive(Debug)]
pub struct Bed<'a> {
    lab: &'a Lab,
    pod: &'a Pod,
    veth: &'a str,
    eni: &'a Eni,
    host: &'a Host,
    checksums: Checksums,
    cast: Cast,
    generator_cpus: Vec<usize>,
}

impl<'a> Bed<'a> {
    /// Looks around in the lab: the first pod on the primary ENI, the outside host, the threads of both sides.
    ///
    /// # Errors
    /// The lab lacks one of these.
    pub fn new(lab: &'a Lab, checksums: Checksums) -> Result<Self> {
        let topology = &lab.topology;
        let eni = topology.node.enis.iter().find(|e| e.primary).context("the lab has no primary ENI")?;
        let pod = topology
            .pods
            .iter()
            .find(|p| p.eni == eni.name)
            .context("the lab has no pod on the primary ENI")?;
        let host =
            topology.hosts.iter().find(|h| h.role == "outside").context("the lab has no outside host")?;
        let cast = Cast { dataplane: lab.daemons(), ..Cast::default() };
        ensure!(
            lab.dataplane != Dataplane::Sluice || !cast.dataplane.is_empty(),
            "`sluice lab status` names no process `sluiced`"
        );
        let veth = topology.host_interface(pod).context("the lab names no host's end of the pod's veth")?;
        let mut bed = Self { lab, pod, veth, eni, host, checksums, cast, generator_cpus: Vec::new() };
        bed.generator_cpus = bed.place()?;
        Ok(bed)
    }

    /// Whether the far end of the ENI receives in a thread of its own, as another machine would, or inside the sender's
    /// call. For TCP it must be the thread, or the remote host's whole stack runs inside the node's transmit call. For the
    /// load it must not: a sink is next to nothing, but waking a thread for it costs the sender more than forwarding does,
    /// and its queue of 256 packets overflows while it waits for a CPU.
    ///
    /// # Errors
    /// The interface is gone. A kernel before 5.12 has no such threads, and that is no error.
    pub fn thread_far_end(&self, threaded: bool) -> Result<()> {
        let file = format!("/sys/class/net/{}/threaded", self.eni.name);
        let script = format!("! test -e {file} || echo {} > {file}", u8::from(threaded));
        // sysfs shows the namespace that it was mounted in; `ip netns exec` mounts the right one.
        let namespace = self.lab.topology.fabric.namespace.as_str();
        let status = Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", &script]).status();
        let status = status.context("cannot run `ip`: install iproute2")?;
        ensure!(status.success(), "cannot set threaded NAPI of {} in {namespace}: {status}", self.eni.name);
        Ok(())
    }

    /// The outside host's namespace and address.
    #[must_use]
    pub fn host(&self) -> (&str, Ipv4Addr) {
        (&self.host.namespace, self.host.address)
    }

    /// The pod's namespace.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod.namespace
    }

    /// Opens `flows` flows through the node and learns the way back into them.
    ///
    /// # Errors
    /// Nothing arrives, or it arrives with an address that this dataplane must not show.
    pub fn open_flows(&self, flows: u32) -> Result<Learned> {
        let _sink = self.sink(Direction::Up)?;
        let load = self.load_up(64, flows);
        let learned = learn(&load, &self.lab.topology.fabric.namespace, &self.eni.name)
            .with_context(|| format!("{flows} flows through {}", self.lab.dataplane.label()))?;
        ensure!(
            learned.address == self.source_on_the_wire(),
            "through {} packets left with the source {} instead of {}",
            self.lab.dataplane.label(),
            learned.address,
            self.source_on_the_wire()
        );
        Ok(learned)
    }

    /// One window of load along the whole path.
    ///
    /// # Errors
    /// A namespace, an interface or a capability is missing.
    pub fn window(&self, direction: Direction, shape: Shape, flows: u32, back: &Learned) -> Result<Window> {
        let sink = self.sink(direction)?;
        let load = match direction {
            Direction::Up => self.load_up(shape.length, flows),
            Direction::Down => self.load_down(shape.length, back),
        };
        self.observe(direction, shape, load, &sink)
    }

    /// The generator with nothing behind it; see the module's head.
    ///
    /// # Errors
    /// As [`Bed::window`].
    pub fn ceiling(&self, direction: Direction, shape: Shape, flows: u32) -> Result<Window> {
        let node = &self.lab.topology.node.namespace;
        let (interface, source, load) = match direction {
            Direction::Up => (self.veth, self.pod.address, self.load_up(shape.length, flows)),
            Direction::Down => {
                let ports = ports(flows).iter().map(|(s, d)| (*d, *s)).collect();
                let back = Learned { address: self.pod.address, ports, missing: 0 };
                (self.eni.name.as_str(), self.host.address, self.load_down(shape.length, &back))
            }
        };
        let sink = Sink::attach(node, interface, source)?;
        self.observe(direction, shape, load, &sink)
    }

    /// A load from the pod that runs until it is dropped, as a background for other measurements.
    ///
    /// # Errors
    /// As [`Bed::window`].
    pub fn background(&self, rate: f64) -> Result<(Generator, Sink)> {
        let sink = self.sink(Direction::Up)?;
        let generator = Load { rate: Some(rate), ..self.load_up(64, 1000) }.start()?;
        Ok((generator, sink))
    }

    fn observe(&self, direction: Direction, shape: Shape, load: Load, sink: &Sink) -> Result<Window> {
        let flows = load.ports.len() as u32;
        let generator = Load { rate: shape.rate, ..load }.start()?;
        std::thread::sleep(shape.warm_up);
        let cast = Cast { generator: generator.thread_id(), ..self.cast.clone() };

        // A snapshot takes some milliseconds. Both ends read in the same order, so the window of each meter is as long.
        let before = Snapshot::take()?;
        let (start, sent, arrived) = (Instant::now(), generator.sent(), sink.arrived()?);
        std::thread::sleep(shape.window);
        let after = Snapshot::take()?;
        let (end, sent_after, arrived_after) = (Instant::now(), generator.sent(), sink.arrived()?);
        generator.stop()?;

        let arrived = arrived_after - arrived;
        Ok(Window {
            direction,
            length: shape.length,
            flows,
            rate: shape.rate,
            seconds: (end - start).as_secs_f64(),
            sent: sent_after.packets - sent.packets,
            refused: sent_after.refused - sent.refused,
            delivered: arrived.expected,
            leaked: arrived.other,
            cpu: after.since(&before, &cast),
        })
    }

    fn sink(&self, direction: Direction) -> Result<Sink> {
        match direction {
            Direction::Up => {
                Sink::attach(&self.lab.topology.fabric.namespace, &self.eni.name, self.source_on_the_wire())
            }
            Direction::Down => Sink::attach(&self.pod.namespace, "eth0", self.host.address),
        }
    }

    fn source_on_the_wire(&self) -> Ipv4Addr {
        if self.lab.dataplane.translates() { self.eni.address } else { self.pod.address }
    }

    fn load_up(&self, length: usize, flows: u32) -> Load {
        Load {
            namespace: self.pod.namespace.clone(),
            interface: "eth0".into(),
            length,
            source_mac: self.pod.mac.0,
            destination_mac: self.pod.gateway_mac.0,
            source: self.pod.address,
            destination: self.host.address,
            ports: ports(flows),
            checksums: self.checksums,
            rate: None,
            limit: None,
            cpus: self.generator_cpus.clone(),
        }
    }

    fn load_down(&self, length: usize, back: &Learned) -> Load {
        Load {
            namespace: self.lab.topology.fabric.namespace.clone(),
            interface: self.eni.name.clone(),
            length,
            source_mac: self.eni.gateway_mac.0,
            destination_mac: self.eni.mac.0,
            source: self.host.address,
            destination: back.address,
            ports: Arc::clone(&back.ports),
            // What comes from a wire carries the whole sum.
            checksums: Checksums::Full,
            rate: None,
            limit: None,
            cpus: self.generator_cpus.clone(),
        }
    }

    /// CPUs for the generator: away from the daemon's pinned workers where that leaves any, as a pod's process would be
    /// by the scheduler's choice in the long run.
    fn place(&self) -> Result<Vec<usize>> {
        let all = cpus::allowed(0)?;
        let workers: Vec<usize> =
            self.cast.dataplane.iter().flat_map(|daemon| cpus::pinned_by(*daemon)).collect();
        let away: Vec<usize> = all.iter().copied().filter(|cpu| !workers.contains(cpu)).collect();
        Ok(if away.is_empty() { all } else { away })
    }
}

/// Ports of the load's flows, as the pod sends them.
fn ports(flows: u32) -> Arc<[(u16, u16)]> {
    (0..flows)
        .map(|number| Endpoints::of_flow(number, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED))
        .map(|e| (e.source_port, e.destination_port))
        .collect()
}
