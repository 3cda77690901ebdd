//! The control thread: one loop that owns all control data, fed by events.
//!
//! ```text
//!  netlink monitor --\                                   /--> snapshot, acknowledged by every worker
//!  state socket -----> [events] -> Control (this thread) ---> BPF maps, tc and XDP programs
//!  workers (ARP) ----/                                   \--> view for the query socket
//!  signals ---------/
//! ```
//! Nothing here is locked, because nothing is shared: readers get copies, workers get snapshots.

mod enis;
mod import;
mod pods;
mod publish;
mod reach;
mod show;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use sluice_bpf::Programs;
use sluice_engine::snapshot::HostFacts;
use sluice_io::xsk::{Umem, XskPort};
use sluice_state::push::PushReply;
use sluice_state::query::{Finding, Imported, Memory, TrunkReport, WorkerReport};
use sluice_state::{Generation, PortSet, State};

use crate::host::{Host, Monitor, Neighbours};
use crate::lock::RunDir;
use crate::plane::{Order, Plane};
use crate::ports::Contract;
use crate::query::Sources;
use crate::settings::Settings;
use crate::socket::Server;
use crate::sys::Ethtool;
use crate::view::View;

pub use start::{StartError, start};

/// Between two looks at the host's sockets and queues.
const HOST_CHECK: Duration = Duration::from_secs(30);
/// Between two questions for the same next hop.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Between two signs of life for the kernel, and how long each is good for.
const TICK: Duration = Duration::from_millis(500);
const ALIVE: Duration = Duration::from_secs(2);
/// Neighbours whose entries are kept fresh at most: more are left to the packets that need them.
const REFRESHED: usize = 1024;

/// What the control thread reacts to.
#[derive(Debug)]
pub enum Event {
    /// The kernel's view of the host changed.
    Host(Box<Host>),
    /// A worker has a packet for a next hop that is not known: interface index and address.
    Wanted(u32, u32),
    /// The control plane sends a generation.
    Push {
        /// The generation.
        generation: Box<Generation>,
        /// Where the answer goes.
        reply: Sender<PushReply>,
    },
    /// The number of the generation in force is asked for.
    Generation {
        /// Where the answer goes.
        reply: Sender<u64>,
    },
    /// SIGHUP: the state file is to be read again.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
}

/// A running daemon's control data.
pub struct Control {
    settings: Settings,
    events: Receiver<Event>,
    started: Instant,
    started_ns: u64,
    startup_ms: u64,
    state: State,
    generation: u64,
    published: u64,
    host: Host,
    /// The node's own addresses.
    local: Vec<Ipv4Addr>,
    /// What the engine was told of the host.
    facts: Arc<HostFacts>,
    /// The services as far as the node's own addresses are concerned, and what of them tc knows.
    reach: reach::Reach,
    places: reach::Places,
    contract: Contract,
    /// The ports that XDP and tc give to the engine: TCP, UDP, ICMP identifiers.
    steered: [PortSet; 3],
    /// No program was here before: the kernel may have the pods' connections.
    may_be_live: bool,
    imported: Option<Imported>,
    plane: Arc<Plane>,
    view: Arc<ArcSwap<View>>,
    programs: Arc<Mutex<Programs>>,
    ethtool: Ethtool,
    neighbours: Neighbours,
    asked: HashMap<(u32, u32), Instant>,
    umem: Option<Umem>,
    anchor: Option<XskPort>,
    frags: bool,
    enis: BTreeMap<String, enis::OpenEni>,
    pods: HashMap<u32, pods::PodBinding>,
    pod_problems: HashMap<Ipv4Addr, String>,
    trunk: TrunkReport,
    memory: Memory,
    workers: Vec<WorkerReport>,
    findings: Vec<Finding>,
    threads: Vec<JoinHandle<()>>,
    // Dropped in this order at the end: the sockets first, the lock last.
    servers: Vec<Server>,
    monitor: Option<Monitor>,
    run_dir: RunDir,
}

impl Control {
    /// What readers see now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Runs until SIGTERM or SIGINT.
    pub fn run(mut self) {
        let mut checked = Instant::now();
        loop {
            match self.events.recv_timeout(TICK) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.react(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.keep_alive();
            if checked.elapsed() >= HOST_CHECK {
                checked = Instant::now();
                self.check_host();
            }
        }
        self.stop();
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Host(host) => self.host_changed(*host),
            Event::Wanted(ifindex, address) => self.resolve(ifindex, address),
            Event::Push { generation, reply } => {
                let answer = self.push(&generation);
                // A client that has gone has its generation in force all the same.
                let _ = reply.send(answer);
            }
            Event::Generation { reply } => {
                let _ = reply.send(self.generation);
            }
            Event::Reload => self.reload(),
            Event::Stop => {}
        }
    }

    fn push(&mut self, generation: &Generation) -> PushReply {
        let refused = |control: &Self, reason: String, findings| PushReply::Refused {
            generation: control.generation,
            reason,
            findings,
        };
        if generation.number <= self.generation {
            let reason = format!(
                "generation {} is not above {}, which is in force",
                generation.number, self.generation
            );
            return refused(self, reason, Vec::new());
        }
        let next = match self.state.apply(generation) {
            Ok(next) => next,
            Err(sluice_state::StateError::Invalid(findings)) => {
                let reason = format!("{} finding(s) in the state that would result", findings.len());
                return refused(self, reason, findings);
            }
            Err(error) => return refused(self, error.to_string(), Vec::new()),
        };
        match self.bring_into_force(next, generation.number) {
            Ok(warnings) => PushReply::Accepted {
                generation: generation.number,
                warnings,
                without_path: self.pods_without_path(),
            },
            Err(findings) => {
                let reason = format!("{} finding(s) on this host", findings.len());
                refused(self, reason, findings)
            }
        }
    }

    fn reload(&mut self) {
        let Some(path) = self.settings.state.clone() else {
            tracing::warn!("SIGHUP: there is no state file to read again (--state)");
            return;
        };
        let number = self.generation + 1;
        match State::from_file(&path) {
            Ok(next) => match self.bring_into_force(next, number) {
                Ok(warnings) => {
                    tracing::info!(generation = number, path = %path.display(), "the state file was read again");
                    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    // Whoever asks for a fresh look means the node's sockets, too.
                    self.check_ports();
                }
                Err(findings) => {
                    let findings = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    tracing::error!(path = %path.display(), "the state stays as it was: {findings}");
                }
            },
            Err(error) => tracing::error!(path = %path.display(), "the state stays as it was: {error}"),
        }
    }

    /// The programs must know when nobody is there any more: then the node's own packets with a port of ours pass them
    /// by, and with on_failure = kernel the pods' as well.
    fn keep_alive(&self) {
        if let Err(error) = lock(&self.programs).keep_alive(ALIVE) {
            tracing::warn!(%error, "the sign of life could not be given");
        }
    }

    /// Asks the kernel for a next hop, unless it was just asked.
    fn resolve(&mut self, ifindex: u32, address: u32) {
        let now = Instant::now();
        if self.asked.len() > 4 * REFRESHED {
            self.asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
        }
        if self.asked.get(&(ifindex, address)).is_some_and(|at| now.duration_since(*at) < ASK_AGAIN) {
            return;
        }
        self.asked.insert((ifindex, address), now);
        let address = Ipv4Addr::from_bits(address);
        if let Err(error) = self.neighbours.resolve(ifindex, address) {
            tracing::warn!(%error, ifindex, %address, "cannot ask the kernel for a neighbour");
        }
    }

    /// On a timer: the port contract, the ENIs' queues, the freshness of next hops.
    fn check_host(&mut self) {
        self.refresh_neighbours();
        self.check_queues();
        self.check_ports();
    }

    /// The kernel confirms only what it uses itself, and our packets do not pass its neighbour table.
    fn refresh_neighbours(&mut self) {
        let gateways: Vec<(u32, u32)> = self
            .state
            .enis
            .iter()
            .filter(|eni| eni.gateway_mac.is_none())
            .filter_map(|eni| Some((self.enis.get(&eni.name)?.ifindex, eni.gateway.to_bits())))
            .collect();
        let known: Vec<(u32, u32)> = self
            .host
            .neighbours()
            .filter(|(ifindex, ..)| self.enis.values().any(|eni| eni.ifindex == *ifindex))
            .map(|(ifindex, address, _)| (ifindex, address.to_bits()))
            .take(REFRESHED)
            .collect();
        for (ifindex, address) in gateways.into_iter().chain(known) {
            self.resolve(ifindex, address);
        }
    }

    /// Ends in order: nobody asks any more, no packet comes any more, what is inside is drained, the count is checked.
    fn stop(mut self) {
        tracing::info!(keep = self.settings.keep_on_exit, "stopping");
        self.monitor = None;
        let sources = self.sources();
        if !self.settings.keep_on_exit {
            self.detach_everything();
        }
        self.stop_workers();
        let c = sources.stats().conservation;
        tracing::info!(
            packets_in = c.packets_in,
            packets_out = c.packets_out,
            dropped = c.dropped,
            held = c.held,
            balanced = c.balanced,
            "conservation"
        );
        if !self.settings.keep_on_exit
            && let Err(error) = sluice_io::trunk::Trunk::remove(&self.trunk.name)
        {
            tracing::error!(%error, "the trunk stays behind");
        }
        self.servers.clear();
        tracing::info!("stopped");
    }

    /// After a start that failed half-way: nothing may run or stay attached. What an earlier daemon left pinned goes, too,
    /// because this one has taken it over already.
    fn abandon(mut self) {
        self.monitor = None;
        self.detach_everything();
        self.stop_workers();
        if let Err(error) = sluice_io::trunk::Trunk::remove(&self.trunk.name) {
            tracing::error!(%error, "the trunk stays behind");
        }
    }

    fn stop_workers(&mut self) {
        self.plane.seats.iter().for_each(|seat| seat.order(Order::Stop));
        for thread in std::mem::take(&mut self.threads) {
            // A worker that panicked has aborted the process.
            let _ = thread.join();
        }
    }

    fn sources(&self) -> Sources {
        let programs = Arc::clone(&self.programs);
        Sources {
            plane: Arc::clone(&self.plane),
            view: Arc::clone(&self.view),
            bpf: Box::new(move || lock(&programs).counters().unwrap_or_default()),
        }
    }
}

/// A panic while the programs were locked has aborted the process, so the lock is never poisoned.
fn lock(programs: &Mutex<Programs>) -> std::sync::MutexGuard<'_, Programs> {
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}
