//! The loop: what happens to files, signals and the daemon, one after the other.
//!
//! At most one generation is under way. What changes meanwhile is gathered and goes with the next one, so that a storm of
//! changes costs as many generations as the daemon can take. Whatever breaks the conversation ends in the same way: the next
//! generation is everything.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;
use sluice_kube::manifests::{Finding, Severity, Touched};
use sluice_state::push::PushReply;
use sluice_state::{Invalid, Op};

use crate::allocations::{Store, write};
use crate::daemon::{Daemon, DaemonError};
use crate::inventory::Inventory;
use crate::model::Model;
use crate::settings::Settings;

/// The wait before a connection is tried again, from and to.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// What the loop hears of.
#[derive(Debug)]
pub enum Event {
    /// Manifests have changed.
    Touched(Touched),
    /// Read the inventory and the whole directory again.
    Rescan,
    /// End.
    Stop,
    /// The daemon has answered on the connection of this number; none: it is gone.
    Answer(u64, Option<PushReply>),
}

/// Where the agent looks and whom it tells.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub manifests: PathBuf,
    pub inventory: PathBuf,
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
    once: bool,
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
        let store = Store::open(settings.allocations_of(&places.inventory));
        let mut model = Model::new(inventory, &places.manifests, &settings, store.kept());
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
            once,
        };
        agent.settle();
        agent
    }

    /// Runs until it is told to stop or, with `--once`, until the daemon has answered.
    ///
    /// # Errors
    /// With `--once`, the daemon's refusal.
    pub fn run(mut self) -> Result<(), Ended> {
        loop {
            self.tend();
            let wait = match &self.link {
                Link::Down { at, .. } => at.saturating_duration_since(Instant::now()),
                Link::Up { .. } => Duration::from_secs(3600),
            };
            match self.events.recv_timeout(wait) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Touched(touched)) => {
                    let ops = self.model.refresh(&touched);
                    self.changed(ops);
                }
                Ok(Event::Rescan) => self.rescan(),
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
        let inventory = match self.settings.inventory(&self.places.inventory) {
            Ok(inventory) => inventory,
            Err(error) => {
                tracing::error!(%error, "the inventory is refused: the last good one stays in force");
                self.model.inventory().clone()
            }
        };
        if inventory == *self.model.inventory() {
            let ops = self.model.scan();
            return self.changed(ops);
        }
        tracing::info!("the inventory has changed: everything is told anew");
        let (manifests, settings) = (&self.places.manifests, &self.settings);
        self.model = Model::new(inventory, manifests, settings, &self.model.allocations());
        self.model.scan();
        self.changed(self.whole());
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
        let now: BTreeSet<Finding> = self.model.findings().into_iter().collect();
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
                    return;
                }
            }
        }
        let Link::Up { daemon, sent, .. } = &mut self.link else { return };
        if sent.is_some() || self.pending.is_empty() {
            return;
        }
        let ops = std::mem::take(&mut self.pending);
        let under_way =
            Sent { at: Instant::now(), ops: ops.len(), whole: matches!(ops.first(), Some(Op::Replace(_))) };
        match daemon.send(ops) {
            Ok(_) => *sent = Some(under_way),
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
        self.report();
    }

    fn answered(&mut self, answer: Option<PushReply>) -> Result<(), Ended> {
        let Link::Up { sent, refused, .. } = &mut self.link else { return Ok(()) };
        match answer {
            Some(PushReply::Accepted { generation, warnings, .. }) => {
                let (ops, took) =
                    sent.take().map_or((0, Duration::ZERO), |sent| (sent.ops, sent.at.elapsed()));
                *refused = false;
                self.accepted = Some(generation);
                tracing::info!(generation, ops, took_us = took.as_micros(), "in force");
                for warning in warnings {
                    tracing::warn!("the daemon: {warning}");
                }
                self.tend();
                self.report();
            }
            Some(PushReply::Refused { generation, reason, findings }) => {
                let whole = sent.take().is_none_or(|sent| sent.whole);
                tracing::error!(stays = generation, "the daemon refuses a generation: {reason}");
                for finding in &findings {
                    tracing::error!("the daemon: {finding}");
                }
                if self.once {
                    return Err(Ended::Refused { reason, findings });
                }
                // Changes that were refused may have been made of what it does not have: then everything is the remedy.
                // Everything that was refused waits for the next change.
                self.pending = if whole { Vec::new() } else { self.whole() };
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

    /// Writes the status file, where there is to be one.
    fn report(&self) {
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
}
