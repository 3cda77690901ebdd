//! From a command line to running workers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use crossbeam::channel::{Sender, bounded};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use sluice_bpf::{BpfError, Programs};
use sluice_engine::flow::{FlowTable, TableError};
use sluice_engine::snapshot::{HostFacts, Snapshot};
use sluice_engine::worker::{Setup, Worker};
use sluice_io::trunk::{Trunk, TrunkError, TrunkOptions, TrunkQueue};
use sluice_io::xsk::{PIECE_CAPACITY, Umem};
use sluice_state::query::{Extent, Finding, Memory, Report, TrunkReport, WorkerReport};
use sluice_state::{Invalid, State, StateError};

use super::reach::{Places, Reach};
use super::{Control, Event};
use crate::clock;
use crate::host::{Host, HostError, Monitor, Neighbours};
use crate::lock::{LockError, RunDir};
use crate::plane::{Plane, Seat};
use crate::ports::{Contract, HostPorts};
use crate::privilege::{self, PrivilegeError};
use crate::settings::{EniPort, Import, Settings};
use crate::socket::Server;
use crate::sys::{self, Ethtool};
use crate::view::View;
use crate::worker::Loop;
use crate::{push, query};

/// Events that wait for the control thread at most.
const EVENTS: usize = 4096;
/// Free chunks that each worker's thread may keep to itself.
const CHUNKS_PER_WORKER: u32 = 1024;
/// Chunks for frames in the engine's waiting rooms and between workers.
const CHUNKS_BETWEEN: u32 = 4096;
const ETHERNET: u32 = 14;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state does not fit this host.
    #[error("the state does not fit this host, {} finding(s):\n  {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Host(Vec<Invalid>),
    /// A capability is missing.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// Another daemon runs, or the run directory cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel's view of the host could not be had.
    #[error(transparent)]
    Netlink(#[from] HostError),
    /// The BPF programs could not be loaded or attached.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The trunk could not be had.
    #[error(transparent)]
    Trunk(#[from] TrunkError),
    /// The flow table could not be shared out.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Anything else of the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::System { what, source }
}

/// Starts everything. Returns the control thread's data, to be run, and the way to send it events.
///
/// # Errors
/// What stood in the way, with the remedy; nothing is left running or attached that was not before.
pub fn start(settings: Settings) -> Result<(Control, Sender<Event>), StartError> {
    let (started, started_ns) = (Instant::now(), clock::unix());
    let state = settings.state.as_deref().map_or_else(|| Ok(State::default()), State::from_file)?;
    privilege::check()?;
    let run_dir = RunDir::take(&settings.run_dir)?;
    let (sender, events) = bounded(EVENTS);
    let host_events = sender.clone();
    let (host, monitor) = Monitor::start(move |host| {
        // The control thread has ended; so will this one.
        let _ = host_events.send(Event::Host(Box::new(host.clone())));
    })?;
    let ethtool = Ethtool::open().map_err(system("opening a socket for ethtool"))?;
    let address = state.primary_eni().map(|eni| eni.address);
    let ports = HostPorts::read().map_err(system("reading the node's sockets from /proc"))?;
    let contract = Contract::new(address, &state.snat_ports, settings.node_ports, &[], &ports, started_ns);

    let plan = Plan::of(&state, &host, &ethtool, &settings)?;
    let frags = plan.largest_mtu + ETHERNET > PIECE_CAPACITY as u32;
    let pin_dir = Some(settings.bpffs.clone());
    let mut programs =
        Programs::load(&sluice_bpf::Options { pin_dir, frags, force_clsact: settings.force_clsact })?;
    let may_be_live = settings.import_conntrack == Import::Auto && programs.links()?.is_empty();
    let cpus = allowed_cpus()?;
    let workers = plan.workers(&settings, cpus.len());
    let options = TrunkOptions { mtu: plan.trunk_mtu, ..TrunkOptions::default() };
    let (trunk, queues) = Trunk::open(&settings.trunk, usize::from(workers), &options)?;
    programs.attach_trunk(trunk.ifindex())?;
    let ring = settings.xdp_ring.unwrap_or(if plan.queues <= 4 { 4096 } else { 2048 });
    let mut findings = plan.findings(workers, cpus.len(), &settings);
    let umem = plan.umem(ring, workers, &settings, &mut findings);

    let seed = sys::entropy().map_err(system("reading entropy"))?;
    let table = Arc::new(FlowTable::new(state.limits.flows, usize::from(workers), seed));
    let setup = |id| Setup {
        id,
        workers,
        seed: seed.rotate_left(32),
        fragments: state.limits.fragments,
        fragment_timeout: state.timeouts.fragment().nanos(),
    };
    let mut engines = Vec::with_capacity(usize::from(workers));
    for id in 0..workers {
        engines.push(Worker::new(setup(id), Arc::clone(&table))?);
    }
    let seats = engines
        .iter()
        .map(|engine| Seat::new(engine.counters()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(system("making an eventfd"))?;
    let memory = Memory { flow_table: table.bytes(), umem: umem.as_ref().map_or(0, Umem::bytes) };
    let plane = Arc::new(Plane::new(nothing(), table, seats));

    let trunk = TrunkReport { name: trunk.name().to_owned(), ifindex: trunk.ifindex(), queues: workers };
    let mut control = Control {
        settings,
        events,
        started,
        started_ns,
        startup_ms: 0,
        state: State::default(),
        generation: 0,
        published: 0,
        local: host.local_addresses(),
        host,
        facts: Arc::default(),
        reach: Reach::default(),
        places: Places::default(),
        contract,
        steered: std::array::from_fn(|_| sluice_state::PortSet::default()),
        may_be_live,
        imported: None,
        plane: Arc::clone(&plane),
        view: Arc::new(ArcSwap::from_pointee(View::new(empty_report(&trunk), Vec::new()))),
        programs: Arc::new(Mutex::new(programs)),
        ethtool,
        neighbours: Neighbours::open()?,
        asked: HashMap::new(),
        umem,
        anchor: None,
        frags,
        enis: BTreeMap::new(),
        pods: HashMap::new(),
        pod_problems: HashMap::new(),
        trunk,
        memory,
        workers: Vec::new(),
        findings,
        threads: Vec::new(),
        servers: Vec::new(),
        monitor: Some(monitor),
        run_dir,
    };
    control.spawn(engines, queues, &cpus, &sender)?;
    if let Err(findings) = control.begin(state) {
        control.abandon();
        return Err(StartError::Host(findings));
    }
    if let Err(source) = control.listen(&sender) {
        control.abandon();
        return Err(StartError::System { what: "listening on the sockets".into(), source });
    }
    control.startup_ms = u64::try_from(control.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    control.show();
    Ok((control, sender))
}

/// What the state and the host say about sizes.
#[derive(Debug, Default)]
struct Plan {
    /// Queues of all ENIs.
    queues: u32,
    /// Queues of the ENI with most.
    widest: u32,
    largest_mtu: u32,
    trunk_mtu: u32,
    enis: u32,
}

impl Plan {
    fn of(state: &State, host: &Host, ethtool: &Ethtool, settings: &Settings) -> Result<Self, StartError> {
        let mut plan = Self { trunk_mtu: 1500, ..Self::default() };
        for (i, eni) in state.enis.iter().enumerate() {
            let Some(link) = host.link(&eni.name) else {
                let there = host.links().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
                let reason = format!("is no interface of this network namespace: there are [{there}]");
                let finding = Invalid { field: format!("eni[{i}].name"), value: eni.name.clone(), reason };
                return Err(StartError::Host(vec![finding]));
            };
            let queues = ethtool.channels(&eni.name).map_or(1, |c| c.rx).max(1);
            plan.enis += 1;
            plan.queues += queues;
            plan.widest = plan.widest.max(queues);
            plan.largest_mtu = plan.largest_mtu.max(link.mtu);
        }
        let pods = state.pods.iter().filter_map(|pod| host.link(&pod.interface)).map(|link| link.mtu).max();
        // A pod may come later with the largest MTU that there is; what a TAP's MTU costs is nothing.
        plan.trunk_mtu = plan.trunk_mtu.max(plan.largest_mtu).max(pods.unwrap_or(0)).max(9001);
        if settings.eni_port == EniPort::Tap {
            plan.queues = 0;
        }
        Ok(plan)
    }

    fn workers(&self, settings: &Settings, cpus: usize) -> u16 {
        let cpus = u16::try_from(cpus).unwrap_or(u16::MAX).max(1);
        let queues = u16::try_from(self.widest).unwrap_or(u16::MAX);
        let wanted = settings.workers.unwrap_or(if queues == 0 { cpus } else { queues });
        wanted.clamp(1, cpus)
    }

    fn findings(&self, workers: u16, cpus: usize, settings: &Settings) -> Vec<Finding> {
        let mut findings = Vec::new();
        if settings.workers.is_some_and(|wanted| wanted > workers) {
            findings.push(Finding {
                subject: "workers".into(),
                what: format!(
                    "{workers} workers instead of {}: {cpus} CPUs are allowed",
                    settings.workers.unwrap_or(0)
                ),
                remedy: "allow more CPUs (cpuset, taskset), or ask for fewer workers".into(),
            });
        } else if self.widest > u32::from(workers) {
            findings.push(Finding {
                subject: "workers".into(),
                what: format!("{workers} workers for {} queues: some own several", self.widest),
                remedy: "allow more CPUs, or lower the queues (ethtool -L)".into(),
            });
        }
        findings
    }

    /// One UMEM for all: what is here now, one ENI more, and the anchor.
    fn umem(
        &self,
        ring: u32,
        workers: u16,
        settings: &Settings,
        findings: &mut Vec<Finding>,
    ) -> Option<Umem> {
        if settings.eni_port == EniPort::Tap {
            return None;
        }
        let sockets = self.queues + self.widest.max(1) + 1;
        let chunks = sockets * (ring + ring / 2) + u32::from(workers) * CHUNKS_PER_WORKER + CHUNKS_BETWEEN;
        match Umem::new(chunks, ring, false) {
            Ok(umem) => Some(umem),
            Err(error) => {
                findings.push(Finding {
                    subject: "umem".into(),
                    what: format!("no AF_XDP on any ENI: {error}"),
                    remedy: "lower --xdp-ring, or raise the memory that may be locked".into(),
                });
                None
            }
        }
    }
}

impl Control {
    fn spawn(
        &mut self,
        engines: Vec<Worker<sluice_io::IoFrame>>,
        queues: Vec<TrunkQueue>,
        cpus: &[usize],
        control: &Sender<Event>,
    ) -> Result<(), StartError> {
        let spin = u64::try_from(self.settings.spin().as_nanos()).unwrap_or(u64::MAX);
        for ((id, engine), queue) in (0u16..).zip(engines).zip(queues) {
            let worker =
                Loop::new(id, Arc::clone(&self.plane), engine, Box::new(queue), spin, control.clone())
                    .map_err(system("making an epoll instance"))?;
            // There are at most as many workers as CPUs.
            let cpu = cpus[usize::from(id) % cpus.len()];
            let umem = self.umem.clone();
            let nice = self.settings.worker_nice;
            self.threads
                .push(thread(id, cpu, nice, worker, umem).map_err(system("starting a worker's thread"))?);
            let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
            self.workers.push(WorkerReport { id, cpu, queues: Vec::new() });
        }
        Ok(())
    }

    /// Brings the first state into force, over whatever an earlier daemon left.
    fn begin(&mut self, state: State) -> Result<(), Vec<Invalid>> {
        let number = u64::from(self.settings.state.is_some());
        let warnings = self.bring_into_force(state, number)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.forget_strangers();
        Ok(())
    }

    fn listen(&mut self, control: &Sender<Event>) -> io::Result<()> {
        let control = control.clone();
        let state =
            Server::start(&self.run_dir.file("state.sock"), push::CLIENTS, push::RATE, move |connection| {
                push::serve(connection, &control);
            })?;
        let sources = self.sources();
        let query = Server::start(
            &self.run_dir.file("query.sock"),
            query::CLIENTS,
            query::RATE,
            move |connection| query::serve(connection, &sources),
        )?;
        self.servers = vec![state, query];
        Ok(())
    }
}

fn thread(id: u16, cpu: usize, nice: i8, worker: Loop, umem: Option<Umem>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("sluice-worker-{id}")).spawn(move || {
        let mut set = CpuSet::new();
        if let Err(error) = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
            tracing::warn!(worker = id, cpu, %error, "it could not be pinned");
        }
        if let Err(error) = sys::set_thread_nice(nice) {
            tracing::warn!(
                worker = id,
                nice,
                %error,
                "it keeps its niceness and may lose packets on a busy CPU: grant CAP_SYS_NICE, or set --worker-nice 0"
            );
        }
        if let Some(umem) = &umem {
            umem.adopt_thread();
        }
        worker.run();
    })
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Result<Vec<usize>, StartError> {
    let set =
        sched_getaffinity(Pid::from_raw(0)).map_err(|e| system("asking for the allowed CPUs")(e.into()))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    if cpus.is_empty() {
        return Err(system("asking for the allowed CPUs")(io::Error::from(io::ErrorKind::NotFound)));
    }
    Ok(cpus)
}

/// A snapshot without anything in it: every packet is dropped as from an unknown interface.
fn nothing() -> Snapshot {
    match Snapshot::compile(&State::default(), &HostFacts::default(), 0) {
        Ok((snapshot, _)) => snapshot,
        // Findings are about ENIs and pods, and there is none.
        Err(findings) => unreachable!("the empty state has findings: {findings:?}"),
    }
}

fn empty_report(trunk: &TrunkReport) -> Report {
    Report {
        daemon: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        node: String::new(),
        kernel: String::new(),
        started_ns: clock::unix(),
        startup_ms: 0,
        generation: 0,
        tc: String::new(),
        on_failure: String::new(),
        snat_address: None,
        trunk: trunk.clone(),
        workers: Vec::new(),
        enis: Vec::new(),
        ports: Contract::new(
            None,
            &sluice_state::SnatPorts::default(),
            crate::ports::NODE_PORTS,
            &[],
            &HostPorts::default(),
            0,
        )
        .report,
        extent: Extent::default(),
        imported: None,
        memory: Memory::default(),
        findings: Vec::new(),
    }
}
