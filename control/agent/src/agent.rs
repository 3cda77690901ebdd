//! The loop: what happens to files, signals and the daemon, one after the other.
//!
//! At most one generation is under way. What changes meanwhile is gathered and goes with the next one, so that a storm of
//! changes costs as many generations as the daemon can take. Whatever breaks the conversation ends in the same way: the next
//! generation is everything.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use serde::Serialize;
use sluice_kube::cluster::{News, Standing, Unready};
use sluice_kube::manifests::{Finding, Severity, Touched};
use sluice_state::push::PushReply;
use sluice_state::{Invalid, Op, Pod};

use crate::allocations::{Store, write};
use crate::daemon::{Daemon, DaemonError};
use crate::inventory::Inventory;
use crate::model::Model;
use crate::node::Steer;
use crate::settings::Settings;
use crate::standing::{NodeNews, unready};
use crate::waiting::Waiter;
pub use crate::waiting::{Attached, NotAttached};
use crate::web::Snapshot;

/// The wait before a connection is tried again, from and to.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// What the loop hears of.
#[derive(Debug)]
pub enum Event {
    /// Manifests have changed.
    Touched(Touched),
    /// An API server has told something.
    News(News),
    /// What is to be said of the node's interfaces and addresses is something else now.
    Node(NodeNews),
    /// The node's ENIs are others now.
    Inventory(Box<Inventory>),
    /// Say how it stands.
    Ask(SyncSender<Snapshot>),
    /// Read the inventory and the whole directory again.
    Rescan,
    /// End.
    Stop,
    /// The daemon has answered on the connection of this number; none: it is gone.
    Answer(u64, Option<PushReply>),
    /// A container runtime has added a pod. What becomes of it is told once the daemon has answered.
    Attach {
        /// The pod, with the veth that was laid for it.
        pod: Pod,
        /// Its UID, empty where the runtime gave none.
        uid: String,
        /// Where to tell.
        reply: SyncSender<Attached>,
    },
    /// A pod that a container runtime had added is gone.
    Detach(Ipv4Addr),
}

/// Where the agent looks and whom it tells.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The directory of manifests; absent: an API server tells.
    pub manifests: Option<PathBuf>,
    /// The file that says what the node is; absent: EC2 says it.
    pub inventory: Option<PathBuf>,
    /// Where what was given out is kept.
    pub allocations: PathBuf,
    pub socket: PathBuf,
    pub status: Option<PathBuf>,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    places: Places,
    settings: Settings,
    model: Model,
    store: Store,
    events: Receiver<Event>,
    sender: Sender<Event>,
    link: Link,
    /// What the daemon does not know yet.
    pending: Vec<Op>,
    accepted: Option<u64>,
    said: BTreeSet<Finding>,
    connections: u64,
    /// Generations that were accepted, and refused.
    generations: [u64; 2],
    once: bool,
    /// Who waits for the path of a pod.
    waiters: Vec<Waiter>,
    /// Called once the daemon has taken everything for the first time.
    on_ready: Option<OnReady>,
    /// Who makes the node's interfaces.
    steer: Option<Steer>,
    /// What is said of the node's interfaces and addresses.
    node: NodeNews,
    /// Why the daemon refuses everything, if it does.
    refusal: Option<String>,
    /// Who tells the cluster.
    announce: Option<Announce>,
}

/// Tells the cluster what operators must know.
struct Announce(Box<dyn Fn(Standing) + Send>);

impl std::fmt::Debug for Announce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announce")
    }
}

/// What is done once an agent is ready.
struct OnReady(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Steer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steer")
    }
}

impl std::fmt::Debug for OnReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnReady")
    }
}

/// How it stands with the daemon.
#[derive(Debug)]
enum Link {
    /// There is none; tried again then.
    Down { at: Instant, wait: Duration, said: String },
    /// There is one. What is under way was sent then; `whole` when it was everything.
    Up { daemon: Daemon, sent: Option<Sent>, refused: bool },
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    number: u64,
    ops: usize,
    whole: bool,
}

/// What `--status` writes.
#[derive(Debug, Serialize)]
struct Status<'a> {
    connected: bool,
    generation: Option<u64>,
    node: &'a str,
    pods: Vec<PathOf>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct PathOf {
    pod: String,
    ip: std::net::Ipv4Addr,
    interface: String,
}

/// How it ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// With `--once`: the daemon refused everything.
    #[error("the daemon refuses: {reason}{}", findings.iter().map(|f| format!("\n  {f}")).collect::<String>())]
    Refused {
        /// Why, in one sentence.
        reason: String,
        /// Its findings.
        findings: Vec<Invalid>,
    },
}

impl Agent {
    /// An agent that has looked at everything once and told nobody.
    pub(crate) fn new(
        places: Places,
        inventory: Inventory,
        settings: Settings,
        (sender, events): (Sender<Event>, Receiver<Event>),
        once: bool,
    ) -> Self {
        let store = Store::open(places.allocations.clone());
        let mut model = match &places.manifests {
            Some(manifests) => Model::new(inventory, manifests, &settings, store.kept()),
            None => Model::of_cluster(inventory, &settings),
        };
        model.scan();
        let link = Link::Down { at: Instant::now(), wait: BACKOFF[0], said: String::new() };
        let mut agent = Self {
            places,
            settings,
            model,
            store,
            events,
            sender,
            link,
            pending: Vec::new(),
            accepted: None,
            said: BTreeSet::new(),
            connections: 0,
            generations: [0; 2],
            once,
            waiters: Vec::new(),
            on_ready: None,
            steer: None,
            node: NodeNews::default(),
            refusal: None,
            announce: None,
        };
        agent.settle();
        agent
    }

    /// Pods that a container runtime had added before this agent began.
    pub(crate) fn restore(&mut self, pods: impl IntoIterator<Item = Pod>) {
        for pod in pods {
            self.model.attach(pod);
        }
    }

    /// Who hears what the API server says of this node.
    pub(crate) fn steer(&mut self, steer: Steer) {
        self.steer = Some(steer);
    }

    /// Who tells the cluster what operators must know.
    pub(crate) fn announce(&mut self, announce: impl Fn(Standing) + Send + 'static) {
        self.announce = Some(Announce(Box::new(announce)));
    }

    /// What is done once the daemon has taken everything for the first time.
    pub(crate) fn on_ready(&mut self, ready: impl FnOnce() + Send + 'static) {
        self.on_ready = Some(OnReady(Box::new(ready)));
    }

    /// Runs until it is told to stop or, with `--once`, until the daemon has answered.
    ///
    /// # Errors
    /// With `--once`, the daemon's refusal.
    pub fn run(mut self) -> Result<(), Ended> {
        loop {
            self.tend();
            let wait = match &self.link {
                Link::Down { at, .. } if self.model.is_known() => {
                    at.saturating_duration_since(Instant::now())
                }
                Link::Down { .. } | Link::Up { .. } => Duration::from_secs(3600),
            };
            match self.events.recv_timeout(wait) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Touched(touched)) => {
                    let ops = self.model.refresh(&touched);
                    self.changed(ops);
                }
                Ok(Event::Inventory(inventory)) => self.replace(*inventory),
                Ok(Event::News(news)) => {
                    if let Some(steer) = &self.steer {
                        steer.hear(&news);
                    }
                    let ops = self.model.hear(news);
                    self.changed(ops);
                }
                Ok(Event::Node(news)) => {
                    self.node = news;
                    self.settle();
                }
                Ok(Event::Ask(reply)) => {
                    // Who asked may have given up.
                    let _ = reply.try_send(self.snapshot());
                }
                Ok(Event::Rescan) => self.rescan(),
                Ok(Event::Attach { pod, uid, reply }) => self.attach(pod, &uid, reply),
                Ok(Event::Detach(ip)) => self.detach(ip),
                Ok(Event::Answer(connection, answer)) if connection == self.connections => {
                    let ended = self.answered(answer);
                    if self.once && (self.accepted.is_some() || ended.is_err()) {
                        self.report();
                        return ended;
                    }
                }
                Ok(Event::Answer(..)) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn rescan(&mut self) {
        let read = self.places.inventory.as_ref().map(|path| self.settings.inventory(path));
        let inventory = match read {
            Some(Ok(inventory)) => inventory,
            None => self.model.inventory().clone(),
            Some(Err(error)) => {
                tracing::error!(%error, "the inventory is refused: the last good one stays in force");
                self.model.inventory().clone()
            }
        };
        if inventory == *self.model.inventory() {
            let ops = self.model.scan();
            return self.changed(ops);
        }
        self.replace(inventory);
    }

    fn replace(&mut self, inventory: Inventory) {
        tracing::info!("the inventory has changed: everything is told anew");
        match &self.places.manifests {
            Some(manifests) => {
                let allocations = self.model.allocations();
                let mut model = Model::new(inventory, manifests, &self.settings, &allocations);
                model.scan();
                for pod in self.model.attached() {
                    model.attach(pod.clone());
                }
                self.model = model;
            }
            None => self.model.relocate(inventory),
        }
        self.changed(self.whole());
    }

    /// A pod that is told to be connected must be one whose policy is known, and whose path the daemon has.
    fn attach(&mut self, pod: Pod, uid: &str, reply: SyncSender<Attached>) {
        let (ip, interface) = (pod.ip, pod.interface.clone());
        let name = format!("{}/{}", pod.namespace, pod.name);
        let known = self.model.knows(&pod.namespace, &pod.name, uid);
        self.waiters.retain(|waiter| waiter.ip != ip);
        let mut ops = self.model.attach(pod.clone());
        let waiter = Waiter { ip, interface, reply, sent: None };
        if !known || self.model.path(ip).is_none() {
            let ops = self.model.detach(ip);
            self.changed(ops);
            return waiter.tell(Err(NotAttached::Unknown(name)));
        }
        if !ops.iter().any(|op| matches!(op, Op::UpsertPod(upserted) if upserted.ip == ip)) {
            // The daemon may have it already; who asks must hear so from the daemon.
            ops.push(Op::UpsertPod(pod));
        }
        self.waiters.push(waiter);
        self.changed(ops);
    }

    fn detach(&mut self, ip: Ipv4Addr) {
        self.waiters.retain(|waiter| waiter.ip != ip);
        let ops = self.model.detach(ip);
        self.changed(ops);
    }

    fn whole(&self) -> Vec<Op> {
        vec![Op::Replace(Box::new(self.model.state()))]
    }

    fn changed(&mut self, ops: Vec<Op>) {
        match &self.link {
            Link::Up { refused: true, .. } => self.pending = self.whole(),
            Link::Up { .. } => self.pending.extend(ops),
            // Everything is told once there is somebody to tell.
            Link::Down { .. } => {}
        }
        // Packets first, words later.
        self.tend();
        self.settle();
    }

    /// Keeps what was given out, and says what is newly found.
    fn settle(&mut self) {
        self.store.keep(self.model.allocations());
        let findings = self.model.findings().into_iter().chain(self.node.findings.iter().cloned());
        let now: BTreeSet<Finding> = findings.collect();
        for finding in now.difference(&self.said) {
            match finding.severity {
                Severity::Error => tracing::error!("{finding}"),
                Severity::Warning => tracing::warn!("{finding}"),
                Severity::Note => tracing::info!("{finding}"),
            }
        }
        for finding in self.said.difference(&now).filter(|f| f.severity != Severity::Note) {
            tracing::info!("no longer: {finding}");
        }
        self.said = now;
        self.report();
    }

    /// Connects when it is time, and sends when there is something to send and nothing under way.
    fn tend(&mut self) {
        // Half of a cluster is another cluster: the daemon keeps what it has.
        if !self.model.is_known() {
            return;
        }
        if let Link::Down { at, wait, said } = &mut self.link {
            if *at > Instant::now() {
                return;
            }
            self.connections += 1;
            let (sender, connection) = (self.sender.clone(), self.connections);
            let tell = move |answer| {
                // A loop that has ended needs no answers.
                let _ = sender.send(Event::Answer(connection, answer));
            };
            match Daemon::connect(&self.places.socket, tell) {
                Ok(daemon) => {
                    self.link = Link::Up { daemon, sent: None, refused: false };
                    self.pending = self.whole();
                }
                Err(error) => {
                    let words = error.to_string();
                    if *said != words {
                        tracing::warn!("{words}");
                        *said = words;
                    }
                    *at = Instant::now() + *wait;
                    *wait = (*wait * 2).min(BACKOFF[1]);
                    self.report();
                    return;
                }
            }
        }
        let Link::Up { daemon, sent, .. } = &mut self.link else { return };
        if sent.is_some() || self.pending.is_empty() {
            return;
        }
        let ops = std::mem::take(&mut self.pending);
        let whole = matches!(ops.first(), Some(Op::Replace(_)));
        let (at, count) = (Instant::now(), ops.len());
        match daemon.send(ops) {
            Ok(number) => {
                *sent = Some(Sent { at, number, ops: count, whole });
                self.waiters.iter_mut().for_each(|waiter| waiter.sent = Some(number));
            }
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, error: &DaemonError) {
        tracing::warn!("{error}");
        self.down();
    }

    fn down(&mut self) {
        self.link = Link::Down { at: Instant::now() + BACKOFF[0], wait: BACKOFF[0] * 2, said: String::new() };
        self.pending.clear();
        self.waiters.iter_mut().for_each(|waiter| waiter.sent = None);
        self.report();
    }

    /// Tells those who wait for this generation what became of their pods.
    fn tell_waiters(&mut self, generation: u64, outcome: impl Fn(&Waiter) -> Attached) {
        let (told, wait) =
            std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.sent == Some(generation));
        self.waiters = wait;
        let told: Vec<Waiter> = told;
        for waiter in told {
            let outcome = outcome(&waiter);
            waiter.tell(outcome);
        }
    }

    fn answered(&mut self, answer: Option<PushReply>) -> Result<(), Ended> {
        let Link::Up { sent, refused, .. } = &mut self.link else { return Ok(()) };
        match answer {
            Some(PushReply::Accepted { generation, warnings, without_path }) => {
                let (ops, took) =
                    sent.take().map_or((0, Duration::ZERO), |sent| (sent.ops, sent.at.elapsed()));
                *refused = false;
                self.refusal = None;
                self.generations[0] += 1;
                self.accepted = Some(generation);
                tracing::info!(generation, ops, took_us = took.as_micros(), "in force");
                for warning in warnings {
                    tracing::warn!("the daemon: {warning}");
                }
                self.tell_waiters(generation, |waiter| match without_path.contains(&waiter.ip) {
                    false => Ok(generation),
                    true => Err(NotAttached::NotInForce(format!(
                        "the daemon does not lead {} to {}: is that interface in the node's network namespace?",
                        waiter.ip, waiter.interface
                    ))),
                });
                self.tend();
                self.report();
                if let Some(OnReady(ready)) = self.on_ready.take()
                    && let Err(error) = std::thread::Builder::new().name("sluice-ready".into()).spawn(ready)
                {
                    tracing::error!(%error, "no thread to make the node ready");
                }
            }
            Some(PushReply::Refused { generation, reason, findings }) => {
                self.generations[1] += 1;
                let (number, whole) = sent.take().map_or((0, true), |sent| (sent.number, sent.whole));
                tracing::error!(stays = generation, "the daemon refuses a generation: {reason}");
                for finding in &findings {
                    tracing::error!("the daemon: {finding}");
                }
                if self.once {
                    return Err(Ended::Refused { reason, findings });
                }
                // Changes that were refused may have been made of what it does not have: then everything is the remedy.
                // Everything that was refused waits for the next change.
                if whole {
                    self.tell_waiters(number, |_| {
                        Err(NotAttached::NotInForce(format!("the daemon refuses the node's state: {reason}")))
                    });
                } else {
                    self.waiters.iter_mut().for_each(|waiter| waiter.sent = None);
                }
                self.pending = if whole { Vec::new() } else { self.whole() };
                if whole {
                    let findings: String = findings.iter().map(|finding| format!("; {finding}")).collect();
                    self.refusal = Some(format!("{reason}{findings}"));
                }
                if let Link::Up { refused, .. } = &mut self.link {
                    *refused = whole;
                }
            }
            Some(PushReply::Hello { .. }) => tracing::warn!("the daemon greets twice"),
            None => {
                tracing::warn!(
                    "the daemon has gone: packets go on under its last state, or as --on-failure says"
                );
                self.down();
            }
        }
        Ok(())
    }

    /// Tells the cluster, and writes the status file where there is to be one.
    fn report(&self) {
        if let Some(Announce(announce)) = &self.announce {
            announce(Standing {
                unready: self.unready(),
                findings: self.said.iter().filter(|finding| finding.topic.is_some()).cloned().collect(),
                eni_config: self.node.eni_config.clone(),
            });
        }
        let Some(path) = &self.places.status else { return };
        let state = self.model.state();
        let pods = state.pods.into_iter();
        let status = Status {
            connected: matches!(self.link, Link::Up { .. }),
            generation: self.accepted,
            node: &self.model.inventory().state.node.name,
            pods: pods
                .map(|p| PathOf {
                    pod: format!("{}/{}", p.namespace, p.name),
                    ip: p.ip,
                    interface: p.interface,
                })
                .collect(),
            findings: self.said.iter().cloned().collect(),
        };
        if let Err(error) = write(path, &status) {
            tracing::warn!(file = %path.display(), %error, "the status cannot be written");
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            node: self.model.inventory().state.node.name.clone(),
            connected: matches!(self.link, Link::Up { .. }),
            generation: self.accepted,
            synced: self.model.is_known(),
            pods: self.model.paths(),
            generations: self.generations,
            unready: self.unready().map(|why| (why.reason, why.message)),
            findings: self.said.iter().cloned().collect(),
            eni_config: self
                .node
                .eni_config
                .as_ref()
                .map(|config| (config.name.clone(), config.problem.clone())),
        }
    }

    /// Why this node's pods may have no network.
    fn unready(&self) -> Option<Unready> {
        let daemon = match &self.link {
            Link::Down { said, .. } => Err(said.as_str()),
            Link::Up { .. } => Ok(self.refusal.as_deref()),
        };
        unready(self.model.is_known(), daemon, &self.node.findings)
    }
}
