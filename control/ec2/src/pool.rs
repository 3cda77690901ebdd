//! The pool as the agent sees it: leases at once, EC2 in the background.
//!
//! ```text
//!   CNI ADD ─► assign ──► state ◄── step ──► Metadata, Cloud
//!   CNI DEL ─► release ─►   │         ▲
//!                           ▼         │ kick: somebody waits for an address
//!                      checkpoint   run
//! ```
//!
//! There is one lock around the state, never held over a call, and one round at a time: two rounds would make two plans
//! from one shortage. Every round first looks at what there is, then carries sequences on, then follows the planner.

mod sequence;
mod state;
mod step;

pub use state::Network;

use crate::checkpoint::Storage;
use crate::cloud::{Cloud, CloudError, ErrorKind, Identity, Limits, Metadata};
use crate::journal::Sequence;
use crate::limits::{self, UnknownType};
use crate::moment::{Clock, Moment};
use crate::settings::{Settings, Target};
use crate::store::{Assigned, Empty, Eni, Lease, LeaseKey, Pod, Usage};
use state::State;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What a pool is made of, beside the two traits.
pub struct Parts {
    /// The instance, from IMDS.
    pub identity: Identity,
    /// What its type takes, from [`ask_limits`].
    pub limits: Limits,
    /// What an operator set.
    pub settings: Settings,
    /// How many pods the node takes, host-network pods included: the pool never grows beyond.
    pub max_pods: u32,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// For jitter and client tokens.
    pub seed: u64,
    /// Where the checkpoint is.
    pub storage: Arc<dyn Storage>,
}

/// How the checkpoint was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// There was none. Leases come from the live veths.
    Fresh {
        /// How many.
        restored: usize,
    },
    /// It goes on.
    Resumed,
    /// It is of an earlier boot: its leases are void.
    Rebooted {
        /// They were these.
        voided: Vec<Lease>,
    },
    /// It made no sense. Leases come from the live veths, the rest from EC2.
    Rebuilt {
        /// Where it was put.
        aside: String,
        /// What is wrong with it.
        why: String,
        /// How many leases the veths gave.
        restored: usize,
    },
}

/// What the pool aims at and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// What an operator set.
    pub target: Target,
    /// The most pods.
    pub max_pods: u32,
    /// The most interfaces: what the type takes, or `MAX_ENI`.
    pub max_enis: u32,
    /// What there is.
    pub usage: Usage,
    /// How many addresses are missing.
    pub short: u32,
    /// Whether nothing is under way and nothing is to be done.
    pub settled: bool,
}

/// Why a pod gets no address.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// There was none until the deadline. CNI: code 11, the runtime tries again.
    #[error(
        "no free address after {} ms: {} of {} are in use, {} cool down{}",
        .waited.as_millis(), .usage.assigned, .usage.total, .usage.cooling,
        .why.as_ref().map(|e| format!("; {e}")).unwrap_or_default()
    )]
    Empty {
        /// How long was waited.
        waited: Duration,
        /// What there was.
        usage: Usage,
        /// The error that keeps the pool from growing, if one does.
        why: Option<Box<CloudError>>,
    },
    /// The checkpoint cannot be written, so the lease would not survive.
    #[error("the lease cannot be written down: {0}; is the disk full?")]
    Storage(#[from] io::Error),
}

/// What the instance type takes: EC2's answer, or the built-in table where EC2 does not give one (its error comes along).
pub async fn ask_limits<C: Cloud>(
    cloud: &C,
    instance_type: &str,
) -> Result<(Limits, Option<CloudError>), UnknownType> {
    match cloud.describe_instance_type(instance_type).await {
        Ok(limits) => Ok((limits, None)),
        Err(error) => limits::from_table(instance_type).map(|limits| (limits, Some(error))),
    }
}

/// Interfaces, addresses and leases of one node.
pub struct Pool<C, M> {
    cloud: C,
    metadata: M,
    clock: Clock,
    state: Mutex<State>,
    round: tokio::sync::Mutex<()>,
    kick: Notify,
    version: watch::Sender<u64>,
}

impl<C: Cloud, M: Metadata> Pool<C, M> {
    /// Reads the checkpoint; asks nobody. `live` are the leases that the node's veths show: they count where there is
    /// no checkpoint to read. Fails where the checkpoint can be neither read nor written.
    pub fn open(
        cloud: C,
        metadata: M,
        clock: Clock,
        parts: Parts,
        live: &[Lease],
    ) -> io::Result<(Self, Opened)> {
        let (state, opened) = State::open(parts, live, clock.now())?;
        match &opened {
            Opened::Rebuilt { aside, why, restored } => tracing::error!(
                %aside, %why, restored, "the checkpoint of addresses makes no sense and was put aside"
            ),
            other => tracing::info!(opened = ?other, "addresses"),
        }
        let pool = Self {
            cloud,
            metadata,
            clock,
            state: Mutex::new(state),
            round: tokio::sync::Mutex::new(()),
            kick: Notify::new(),
            version: watch::Sender::new(0),
        };
        Ok((pool, opened))
    }

    // A panic under the lock leaves a state that EC2 and the checkpoint still put right.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Gives `key` an address at once, or says that there is none. Fails where the lease cannot be written down.
    pub fn try_assign(&self, key: LeaseKey, pod: Pod) -> io::Result<Result<Assigned, Empty>> {
        let tried = self.state().assign(key, pod, self.clock.now())?;
        if tried.is_ok() {
            self.changed();
        }
        self.kick.notify_one();
        Ok(tried)
    }

    /// Gives `key` an address. Waits up to `patience` for one while there is none.
    pub async fn assign(&self, key: LeaseKey, pod: Pod, patience: Duration) -> Result<Assigned, AssignError> {
        let start = self.clock.now();
        let mut news = self.version.subscribe();
        let timeout = tokio::time::sleep(patience);
        tokio::pin!(timeout);
        loop {
            news.borrow_and_update();
            let now = self.clock.now();
            let cooled = match self.try_assign(key.clone(), pod.clone())? {
                Ok(assigned) => return Ok(assigned),
                // Nothing announces the end of a cool-down.
                Err(empty) => empty.next.map_or(Duration::from_secs(5), |next| next.since(now)),
            };
            tokio::select! {
                () = &mut timeout => {
                    let state = self.state();
                    let why = state.holds.troubles(self.clock.now()).find(|e| e.kind != ErrorKind::InUse).cloned();
                    return Err(AssignError::Empty {
                        waited: self.clock.now().since(start),
                        usage: state.store.usage(),
                        why: why.map(Box::new),
                    });
                }
                // The pool lives as long as the borrow: its sender cannot be gone.
                _ = news.changed() => {}
                () = tokio::time::sleep(cooled.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// Ends the lease of `key`; `None` where it has none. Fails where that cannot be written down: the lease goes on.
    pub fn release(&self, key: &LeaseKey) -> io::Result<Option<Lease>> {
        let released = self.state().release(key, self.clock.now())?;
        if released.is_some() {
            self.changed();
            self.kick.notify_one();
        }
        Ok(released)
    }

    /// Takes a lease over that another CNI gave. `false` where its key or its address is in a lease already.
    pub fn adopt(&self, lease: &Lease) -> io::Result<bool> {
        let mut state = self.state();
        if !state.store.restore(lease) {
            return Ok(false);
        }
        if let Err(error) = state.save(self.clock.now()) {
            state.store.release(&lease.key, self.clock.now(), Duration::ZERO);
            return Err(error);
        }
        drop(state);
        self.changed();
        Ok(true)
    }

    /// Does what is due; says when it wants to be called again.
    pub async fn step(&self) -> Moment {
        let _one_round_at_a_time = self.round.lock().await;
        self.turn().await
    }

    /// Calls [`Pool::step`] when it is due and when somebody waits for an address, for ever.
    pub async fn run(&self) {
        loop {
            let due = self.step().await;
            let wait = due.since(self.clock.now()).max(Duration::from_millis(10));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.kick.notified() => {}
            }
        }
    }

    /// Tells whether the node is cordoned: its interfaces then stay as they are (`AWS_MANAGE_ENIS_NON_SCHEDULABLE`).
    pub fn cordon(&self, cordoned: bool) {
        self.state().cordoned = cordoned;
        self.kick.notify_one();
    }

    /// Tells that the process ends: from now on only leases change.
    pub fn terminate(&self) {
        self.state().terminating = true;
    }

    /// Where interfaces are made under custom networking; `None` while no ENIConfig is valid: then none is made.
    pub fn set_network(&self, network: Option<Network>) {
        self.state().network = network;
        self.kick.notify_one();
    }

    /// Whether interfaces and addresses are known: EC2 or IMDS was asked since the start.
    pub fn known(&self) -> bool {
        self.state().inventoried
    }

    /// The interfaces, as attached.
    pub fn enis(&self) -> Vec<Eni> {
        self.state().store.enis().values().cloned().collect()
    }

    /// The leases.
    pub fn leases(&self) -> Vec<Lease> {
        self.state().store.leases().values().cloned().collect()
    }

    /// Leases whose address is on no interface any more: their pods have lost the network.
    pub fn lost(&self) -> Vec<Lease> {
        self.state().store.lost().cloned().collect()
    }

    /// Sequences under way.
    pub fn sequences(&self) -> Vec<Sequence> {
        self.state().journal.clone()
    }

    /// What is aimed at, and where the pool is.
    pub fn targets(&self) -> Targets {
        self.state().targets(self.clock.now())
    }

    /// The last error of every EC2 action that has not succeeded since: what an operator must know. Errors that pass by
    /// themselves are told for ten minutes.
    pub fn troubles(&self) -> Vec<CloudError> {
        self.state().holds.troubles(self.clock.now()).cloned().collect()
    }

    /// Counts changes of interfaces, addresses and leases, for those who wait for one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
