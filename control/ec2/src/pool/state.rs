//! What the pool knows, behind one lock, and how it gets into the checkpoint.
//!
//! Nothing here waits for EC2. A change that somebody relies on (a lease, a call about to be made) is written down
//! first and undone if that fails; a change that EC2 can be asked about again is written down with the next one.

use super::{Opened, Parts, Targets};
use crate::backoff::{Dice, Holds};
use crate::checkpoint::{Checkpoint, Storage, VERSION};
use crate::cloud::{Action, CloudError, EniId, GroupId, Identity, Limits, SubnetId, VpcId};
use crate::journal::{Sequence, Work};
use crate::moment::Moment;
use crate::plan::{self, Plan, Situation};
use crate::settings::Settings;
use crate::store::{Assigned, Belief, Empty, Lease, LeaseKey, Pod, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Addresses and prefixes are given back at most this often (VPC CNI: 30 s).
const SHRINK: Duration = Duration::from_secs(30);

/// Where interfaces are made and with which groups, under custom networking: an ENIConfig that was found valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The ENIConfig's name, for messages.
    pub name: String,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its groups; empty means those of the primary interface.
    pub groups: Vec<GroupId>,
}

pub(super) struct State {
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) settings: Settings,
    max_pods: u32,
    boot: String,
    storage: Arc<dyn Storage>,
    pub(super) store: Store,
    pub(super) journal: Vec<Sequence>,
    pub(super) dice: Dice,
    pub(super) holds: Holds,
    pub(super) exhausted: BTreeMap<SubnetId, Moment>,
    pub(super) network: Option<Network>,
    pub(super) vpc: Option<VpcId>,
    /// The node is cordoned: interfaces stay as they are, unless the settings say otherwise.
    pub(super) cordoned: bool,
    /// The process ends: nothing changes any more but leases.
    pub(super) terminating: bool,
    /// Whether EC2, or IMDS in its place, was asked at all.
    pub(super) inventoried: bool,
    /// A call may or may not have happened: no planning before EC2 was asked at or after this time.
    pub(super) unsure: Option<Moment>,
    /// Something is listed that should not be, or the other way round: to be asked again, without haste.
    pub(super) undecided: Option<Moment>,
    pub(super) cool_until: Option<Moment>,
    pub(super) next_look: Moment,
    pub(super) next_describe: Moment,
    pub(super) next_sweep: Moment,
    pub(super) last_shrink: Moment,
}

impl State {
    /// Reads the checkpoint. `live` are the leases that the node's veths show, for when there is none to read.
    pub(super) fn open(parts: Parts, live: &[Lease], now: Moment) -> io::Result<(Self, Opened)> {
        let Parts { identity, limits, settings, max_pods, boot, seed, storage } = parts;
        let mut dice = Dice::new(seed ^ now.0);
        let read = storage.read()?.map(|text| {
            let checkpoint = Checkpoint::decode(&text)?;
            if checkpoint.instance != identity.instance {
                return Err(format!("it is of instance {}", checkpoint.instance));
            }
            let store = Store::load(checkpoint.store)?;
            Ok((checkpoint.boot, store, checkpoint.journal))
        });
        let (mut cool_until, mut store, mut journal) = (None, Store::default(), Vec::new());
        let opened = match read {
            Some(Ok((of, told, sequences))) => {
                (store, journal) = (told, sequences);
                if of == boot { Opened::Resumed } else { Opened::Rebooted { voided: store.reboot() } }
            }
            lost => {
                let restored = live.iter().filter(|lease| store.restore(lease)).count();
                // Who had which address before is told by the veths alone, and cool-downs by nobody. A node where there
                // is neither a checkpoint nor a veth is new: its first pods need not wait.
                if restored > 0 || matches!(lost, Some(Err(_))) {
                    cool_until = Some(now.after(settings.cooldown));
                }
                match lost {
                    Some(Err(why)) => Opened::Rebuilt { aside: storage.set_aside(now)?, why, restored },
                    _ => Opened::Fresh { restored },
                }
            }
        };
        // Nodes that start together do not sweep together (VPC CNI: 0 to 300 s).
        let next_sweep = now.after(Duration::from_secs(dice.roll() % 301));
        let state = Self {
            identity,
            limits,
            settings,
            max_pods,
            boot,
            storage,
            store,
            journal,
            dice,
            holds: Holds::default(),
            exhausted: BTreeMap::new(),
            network: None,
            vpc: None,
            cordoned: false,
            terminating: false,
            inventoried: false,
            unsure: None,
            undecided: None,
            cool_until,
            next_look: now,
            next_describe: now,
            next_sweep,
            last_shrink: Moment(0),
        };
        state.save(now)?;
        Ok((state, opened))
    }

    /// Writes the checkpoint. Blocks until it is on the disk.
    pub(super) fn save(&self, now: Moment) -> io::Result<()> {
        let checkpoint = Checkpoint {
            version: VERSION.to_owned(),
            boot: self.boot.clone(),
            instance: self.identity.instance.clone(),
            written: now,
            store: self.store.save(),
            journal: self.journal.clone(),
        };
        blocking(|| self.storage.write(&checkpoint.encode()))
    }

    /// Writes the checkpoint where nobody relies on it: what is lost with it, EC2 tells again.
    pub(super) fn note(&self, now: Moment) {
        if let Err(error) = self.save(now) {
            tracing::error!(%error, "the checkpoint of addresses cannot be written");
        }
    }

    pub(super) fn assign(
        &mut self,
        key: LeaseKey,
        pod: Pod,
        now: Moment,
    ) -> io::Result<Result<Assigned, Empty>> {
        let assigned = match self.store.assign(key, pod, now, self.settings.cooldown) {
            Ok(assigned) => assigned,
            Err(empty) => return Ok(Err(empty)),
        };
        if assigned.fresh
            && let Err(error) = self.save(now)
        {
            self.store.undo(&assigned);
            return Err(error);
        }
        Ok(Ok(assigned))
    }

    pub(super) fn release(&mut self, key: &LeaseKey, now: Moment) -> io::Result<Option<Lease>> {
        let Some(lease) = self.store.release(key, now, self.settings.cooldown) else { return Ok(None) };
        if let Err(error) = self.save(now) {
            self.store.restore(&lease);
            return Err(error);
        }
        Ok(Some(lease))
    }

    /// Interfaces that sequences are making: EC2 may list them, and they are not the pool's yet.
    fn being_made(&self) -> BTreeSet<EniId> {
        self.journal.iter().filter(|s| s.creates()).filter_map(|s| s.eni().cloned()).collect()
    }

    pub(super) fn believe(
        &mut self,
        found: &[crate::cloud::Interface],
        cidrs: &BTreeMap<EniId, ipnet::Ipv4Net>,
        whole: bool,
        now: Moment,
    ) -> Vec<crate::store::Change> {
        // One that is being freed and not in the store was vanished already; it must not be adopted.
        let freed = self.journal.iter().filter(|s| !s.creates()).filter_map(Sequence::eni);
        let mut busy = self.being_made();
        busy.extend(freed.cloned());
        let belief = Belief {
            instance: &self.identity.instance,
            settings: &self.settings,
            default_card: self.limits.default_card,
            busy: &busy,
            whole,
            cool_until: self.cool_until.filter(|until| *until > now),
            now,
        };
        self.store.believe(found, cidrs, belief)
    }

    /// Whether interfaces may be attached, detached, filled and emptied.
    pub(super) fn may_change(&self) -> bool {
        !self.terminating && (!self.cordoned || self.settings.manage_cordoned)
    }

    /// Whether a sequence goes on while nothing may be attached or detached.
    pub(super) fn may_advance(&self, sequence: &Sequence) -> bool {
        use crate::journal::{Freeing, Making};
        let settles = match &sequence.work {
            Work::Create { making, .. } => matches!(**making, Making::Attached { .. } | Making::Kept { .. }),
            Work::Free { freeing, .. } => *freeing == Freeing::Delete,
        };
        self.settings.provision && !self.terminating && (settles || self.may_change())
    }

    /// What the planner wants next, if it may want anything.
    pub(super) fn plan(&mut self, now: Moment) -> Option<Plan> {
        self.store.settle(now);
        self.exhausted.retain(|_, until| *until > now);
        let ready = self.inventoried && self.unsure.is_none();
        if !ready || !self.settings.provision || !self.may_change() {
            return None;
        }
        let plan = self.wanted(now, now.since(self.last_shrink) >= SHRINK)?;
        let action = match plan {
            Plan::Assign { .. } => Action::AssignPrivateIpAddresses,
            Plan::Create { .. } => Action::CreateNetworkInterface,
            Plan::Unassign { .. } => Action::UnassignPrivateIpAddresses,
            Plan::Free { .. } => Action::DetachNetworkInterface,
        };
        self.holds.of(action, now).is_none().then_some(plan)
    }

    fn wanted(&self, now: Moment, may_shrink: bool) -> Option<Plan> {
        let reserved: Vec<u32> = self
            .journal
            .iter()
            .filter_map(|sequence| match &sequence.work {
                Work::Create { device_index, .. } => Some(*device_index),
                // One that is in the store counts there.
                Work::Free { .. } => None,
            })
            .collect();
        let custom = self.settings.custom.is_some();
        let rests = |n: &Network| self.exhausted.get(&n.subnet).is_some_and(|until| *until > now);
        let somewhere = !custom || self.network.as_ref().is_some_and(|n| !rests(n));
        let situation = Situation {
            settings: &self.settings,
            limits: &self.limits,
            max_pods: self.max_pods,
            exhausted: &self.exhausted,
            reserved: &reserved,
            may_create: somewhere && !self.journal.iter().any(Sequence::creates),
            may_shrink,
            may_free: self.journal.iter().all(Sequence::creates),
            now,
        };
        plan::next(&self.store, situation)
    }

    pub(super) fn targets(&self, now: Moment) -> Targets {
        let usage = self.store.usage();
        let short = plan::shortage(usage, &self.settings, &self.limits, self.max_pods);
        let settled = self.inventoried
            && self.unsure.is_none()
            && self.journal.is_empty()
            && (!self.settings.provision || self.wanted(now, true).is_none());
        Targets {
            target: self.settings.target,
            max_pods: self.max_pods,
            max_enis: plan::most_interfaces(&self.settings, &self.limits),
            usage,
            short,
            settled,
        }
    }

    /// An action failed. Says until when it rests.
    pub(super) fn failed(&mut self, error: &CloudError, now: Moment) -> Moment {
        self.holds.failed(error, now, &mut self.dice)
    }

    /// A call may or may not have happened; EC2 is asked when its answers should show it.
    pub(super) fn doubt(&mut self, now: Moment) {
        self.unsure = Some(now.after(Duration::from_secs(5)));
    }

    /// A client token, or anything else that must not repeat.
    pub(super) fn token(&mut self, now: Moment) -> String {
        format!("sluice-{}-{:x}-{:x}", self.identity.instance, now.0, self.dice.roll() >> 32)
    }

    /// The primary interface's groups and subnet.
    pub(super) fn primary(&self) -> Option<(SubnetId, Vec<GroupId>)> {
        let primary = self.store.enis().values().find(|eni| eni.is_primary())?;
        Some((primary.subnet.clone(), primary.groups.clone()))
    }
}

/// Runs what waits for a disk, on a runtime with other threads without keeping them waiting.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}
