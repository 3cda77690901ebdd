//! One round: look, carry on, plan, and the two chores (security groups, leaked interfaces).

use super::Pool;
use super::sequence::Outcome;
use super::state::State;
use crate::backoff::REST;
use crate::cloud::{
    Action, Amount, Attachment, Cloud, CreateInterface, EniId, ErrorKind, GroupId, Interface,
    InterfaceFilter, InterfaceKind, InterfaceStatus, Metadata, MetadataInterface, Placed, SubnetFilter,
    SubnetId, Tags,
};
use crate::journal::{Freeing, Making, Sequence, Work};
use crate::moment::Moment;
use crate::plan::Plan;
use crate::store::{Belief, Change};
use crate::{subnets, tags};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often IMDS is read (VPC CNI reads security groups and VPC blocks every 30 s).
const LOOK: Duration = Duration::from_secs(30);

/// EC2 is asked at most this often because IMDS differs (VPC CNI: 60 s).
const DESCRIBE: Duration = Duration::from_secs(60);

/// Something that is undecided is looked at again after this long.
const AGAIN: Duration = Duration::from_secs(10);

/// The planner is asked at least this often (VPC CNI: 5 s).
const ROUND: Duration = Duration::from_secs(5);

/// How often leaked interfaces are looked for, and how old one must be (VPC CNI: an hour, five minutes).
const SWEEP: Duration = Duration::from_secs(3_600);
const LEAKED: Duration = Duration::from_secs(300);

impl<C: Cloud, M: Metadata> Pool<C, M> {
    pub(super) async fn turn(&self) -> Moment {
        let now = self.clock.now();
        self.look(now).await;
        let mut moved = self.carry_on(now).await;
        let plan = self.state().plan(now);
        if let Some(plan) = plan {
            tracing::info!(?plan, "addresses");
            moved |= self.follow(plan, now).await;
            // A sequence that was just begun takes its first steps at once.
            self.carry_on(now).await;
        }
        self.sweep(now).await;
        let state = self.state();
        let sequences = state.journal.iter().filter(|s| state.may_advance(s)).map(|s| s.due);
        let looks = [Some(state.next_look), state.unsure, state.undecided].into_iter().flatten();
        let due = sequences.chain(looks).min().unwrap_or(now).min(now.after(ROUND));
        if moved { now } else { due.max(now) }
    }

    /// Reads IMDS, and asks EC2 where there is a reason to.
    async fn look(&self, now: Moment) {
        let (asked, provision, instance) = {
            let state = self.state();
            let doubts = [state.unsure, state.undecided].into_iter().flatten().any(|at| at <= now);
            if state.next_look > now && !doubts {
                return;
            }
            let asked = !state.inventoried || doubts;
            (asked, state.settings.provision, state.identity.instance.clone())
        };
        let told = match self.metadata.interfaces().await {
            Ok(told) => Some(told),
            Err(error) => {
                tracing::warn!(%error, "IMDS");
                None
            }
        };
        let mut ask = asked;
        {
            let mut state = self.state();
            // Without an inventory nothing works: IMDS is asked again soon.
            state.next_look = now.after(if state.inventoried { LOOK } else { ROUND });
            if let Some(told) = &told {
                state.vpc = told.first().map(|i| i.vpc.clone()).or(state.vpc.take());
                ask |= state.next_describe <= now && !agree(&state, told);
            }
        }
        if ask && provision {
            let holds = self.state().holds.of(Action::DescribeNetworkInterfaces, now);
            if holds.is_none() {
                self.ask(InterfaceFilter::AttachedTo(instance), told.as_deref(), now).await;
            }
        } else if let Some(told) = told.as_deref().filter(|_| !provision) {
            let found: Vec<_> = told.iter().filter_map(|i| interface_of(i, &instance)).collect();
            self.believe(&found, Some(told), true, now);
        }
        if let Some(told) = &told {
            self.refresh_groups(told, now).await;
        }
    }

    async fn ask(&self, filter: InterfaceFilter, told: Option<&[MetadataInterface]>, now: Moment) {
        match self.cloud.describe_interfaces(&filter).await {
            Ok(found) => {
                self.state().holds.succeeded(Action::DescribeNetworkInterfaces);
                self.believe(&found, told, true, now);
            }
            Err(error) => {
                tracing::warn!(%error, "EC2 does not say which interfaces there are");
                let instance = {
                    let state = &mut *self.state();
                    let until = state.failed(&error, now);
                    state.next_look = if state.inventoried { state.next_look.max(until) } else { until };
                    state.unsure = state.unsure.map(|at| at.max(until));
                    state.undecided = state.undecided.map(|at| at.max(until));
                    state.identity.instance.clone()
                };
                // A role that may not ask still gets what IMDS shows; but nothing is dropped because of IMDS alone.
                if let Some(told) = told.filter(|_| error.kind == ErrorKind::Denied) {
                    let found: Vec<_> = told.iter().filter_map(|i| interface_of(i, &instance)).collect();
                    self.believe(&found, Some(told), false, now);
                }
            }
        }
    }

    fn believe(&self, found: &[Interface], told: Option<&[MetadataInterface]>, whole: bool, now: Moment) {
        let cidrs: BTreeMap<EniId, _> =
            told.into_iter().flatten().map(|i| (i.id.clone(), i.subnet_cidr)).collect();
        let mut state = self.state();
        let before = state.store.clone();
        let changes = state.believe(found, &cidrs, whole, now);
        let mut undecided = false;
        for change in &changes {
            match change {
                Change::Undecided(_) => undecided = true,
                change => tracing::info!(?change, "what EC2 says differs"),
            }
        }
        state.vpc = found.first().map(|i| i.vpc.clone()).or(state.vpc.take());
        state.undecided = undecided.then(|| now.after(AGAIN));
        state.unsure = state.unsure.filter(|at| *at > now);
        state.inventoried = true;
        state.next_describe = now.after(DESCRIBE);
        state.note(now);
        let differs = before != state.store;
        drop(state);
        if differs {
            self.changed();
        }
    }

    /// Steps of sequences that are due, each sequence until it has to wait. Tells whether anything moved.
    async fn carry_on(&self, now: Moment) -> bool {
        let (mut index, mut moved) = (0, false);
        loop {
            // Only this function takes sequences out and changes them, and there is one round at a time.
            let sequence = {
                let state = self.state();
                match state.journal.get(index) {
                    None => return moved,
                    Some(sequence) if sequence.due <= now && state.may_advance(sequence) => sequence.clone(),
                    Some(_) => {
                        index += 1;
                        continue;
                    }
                }
            };
            moved = true;
            let outcome = self.advance(sequence, now).await;
            let mut state = self.state();
            match outcome {
                Outcome::Next(next) => {
                    let waits = next.due > now;
                    if let Some(place) = state.journal.get_mut(index) {
                        *place = next;
                    }
                    index += usize::from(waits);
                }
                Outcome::Attached(interface, shown) => {
                    let done = state.journal.remove(index);
                    state.arrive(&interface, shown.as_deref(), &done, now);
                }
                Outcome::Deleted(eni) => {
                    state.journal.remove(index);
                    state.store.bury(&eni, now);
                }
                Outcome::Over => {
                    state.journal.remove(index);
                }
            }
            // The next call must not be made before the answer to this one is written down.
            state.note(now);
            drop(state);
            self.changed();
        }
    }

    /// Does what the planner wants. Tells whether the planner should be asked again at once.
    async fn follow(&self, plan: Plan, now: Moment) -> bool {
        match plan {
            Plan::Assign { eni, amount } => self.fill(eni, amount, now).await,
            Plan::Unassign { eni, what } => self.unassign(eni, &what, now).await,
            Plan::Create { amount, device_index } => self.begin_creation(amount, device_index, now).await,
            Plan::Free { eni } => {
                let state = &mut *self.state();
                if !state.store.drain(&eni) {
                    return false;
                }
                let work = Work::Free { eni: eni.clone(), freeing: Freeing::Detach };
                state.journal.push(Sequence::new(work, now));
                if let Err(error) = state.save(now) {
                    tracing::error!(%error, "the checkpoint cannot be written; no interface is freed");
                    state.journal.pop();
                    state.store.undrain(&eni);
                    return false;
                }
                true
            }
        }
    }

    async fn fill(&self, eni: EniId, amount: Amount, now: Moment) -> bool {
        let one = match amount {
            Amount::Addresses(_) => Amount::Addresses(1),
            Amount::Prefixes(_) => Amount::Prefixes(1),
        };
        let mut answer = self.cloud.assign(&eni, amount).await;
        if let Err(error) = &answer
            && matches!(error.kind, ErrorKind::Exhausted(_))
            && amount != one
        {
            // VPC CNI: a subnet that has not so many may have one.
            answer = self.cloud.assign(&eni, one).await;
        }
        let error = match answer {
            Ok(placed) => {
                let mut state = self.state();
                state.holds.succeeded(Action::AssignPrivateIpAddresses);
                let taken = state.store.place(&eni, &placed, now);
                if taken != Placed::default() {
                    tracing::warn!(%eni, ?taken, "EC2 says that it assigned addresses that are taken: pods do not get them");
                }
                state.note(now);
                drop(state);
                self.changed();
                return true;
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "EC2");
        let state = &mut *self.state();
        state.failed(&error, now);
        if let ErrorKind::Exhausted(_) = error.kind
            && let Some(eni) = state.store.enis().get(&eni)
        {
            state.exhausted.insert(eni.subnet.clone(), now.after(REST));
        }
        if error.kind.leaves_doubt() {
            state.doubt(now);
        }
        matches!(error.kind, ErrorKind::Exhausted(_))
    }

    async fn unassign(&self, eni: EniId, what: &Placed, now: Moment) -> bool {
        let leaving = {
            let state = &mut *self.state();
            let leaving = state.store.leave(&eni, what, now);
            if leaving == Placed::default() {
                return false;
            }
            if let Err(error) = state.save(now) {
                tracing::error!(%error, "the checkpoint cannot be written; nothing is given back");
                state.store.stay(&eni, &leaving);
                return false;
            }
            state.last_shrink = now;
            leaving
        };
        let answer = self.cloud.unassign(&eni, &leaving).await;
        let state = &mut *self.state();
        match answer {
            Ok(()) => {
                state.holds.succeeded(Action::UnassignPrivateIpAddresses);
                state.store.left(&eni, &leaving, now);
            }
            Err(error) => {
                tracing::warn!(%error, "EC2");
                state.failed(&error, now);
                if error.kind.leaves_doubt() {
                    // Nobody gets what may be gone.
                    state.doubt(now);
                } else {
                    state.store.stay(&eni, &leaving);
                }
            }
        }
        state.note(now);
        self.changed();
        false
    }

    async fn begin_creation(&self, amount: Amount, device_index: u32, now: Moment) -> bool {
        let Some((mut subnets, groups)) = self.place(now).await else { return false };
        let state = &mut *self.state();
        if subnets.is_empty() || groups.is_empty() {
            // Every subnet rests or is full, or the primary interface is not known.
            state.holds.rest(Action::CreateNetworkInterface, now.after(REST));
            return false;
        }
        let request = CreateInterface {
            token: state.token(now),
            subnet: subnets.remove(0),
            groups,
            description: format!("{}{}", tags::DESCRIPTION, state.identity.instance),
            tags: tags::of_new_interface(&state.identity.instance, &state.settings, now),
            amount,
        };
        let work = Work::Create {
            request: Box::new(request),
            others: subnets,
            device_index,
            making: Box::new(Making::Intent),
        };
        state.journal.push(Sequence::new(work, now));
        if let Err(error) = state.save(now) {
            tracing::error!(%error, "the checkpoint cannot be written; no interface is made");
            state.journal.pop();
            return false;
        }
        true
    }

    /// In which subnets an interface may be made, best first, and with which groups. `None`: not to be found out now.
    async fn place(&self, now: Moment) -> Option<(Vec<SubnetId>, Vec<GroupId>)> {
        let (primary, alone, groups, zone, vpc) = {
            let state = self.state();
            let (primary, groups) = state.primary()?;
            if let Some(network) = state.network.as_ref().filter(|_| state.settings.custom.is_some()) {
                let groups = if network.groups.is_empty() { groups } else { network.groups.clone() };
                return Some((vec![network.subnet.clone()], groups));
            }
            let rests = state.exhausted.get(&primary).is_some_and(|until| *until > now);
            let alone = if rests { vec![] } else { vec![primary.clone()] };
            let Some(vpc) = state.vpc.clone().filter(|_| state.settings.discover_subnets) else {
                return Some((alone, groups));
            };
            (primary, alone, groups, state.identity.zone.clone(), vpc)
        };
        let found = self.cloud.describe_subnets(&SubnetFilter::Zone { vpc, zone }).await;
        let state = &mut *self.state();
        match found {
            Ok(found) => {
                state.holds.succeeded(Action::DescribeSubnets);
                let cluster = state.settings.cluster.as_deref();
                Some((subnets::eligible(&found, &primary, cluster, &state.exhausted, now), groups))
            }
            Err(error) => {
                tracing::warn!(%error, "subnets by tag");
                let until = state.failed(&error, now);
                if error.kind == ErrorKind::Denied {
                    return Some((alone, groups));
                }
                state.holds.rest(Action::CreateNetworkInterface, until);
                None
            }
        }
    }

    /// Gives our interfaces the groups of the primary one, which an operator may change at any time (VPC CNI).
    async fn refresh_groups(&self, told: &[MetadataInterface], now: Moment) {
        let Some(groups) =
            told.iter().find(|i| i.device_index == 0 && i.network_card == 0).map(|i| i.groups.clone())
        else {
            return;
        };
        let stale: Vec<EniId> = {
            let state = self.state();
            let wanted: BTreeSet<_> = groups.iter().collect();
            let held = state.holds.of(Action::ModifyNetworkInterfaceAttribute, now).is_some();
            let ours = state.store.enis().values().filter(|e| e.ours && e.serves() && !e.is_primary());
            let stale = ours.filter(|eni| eni.groups.iter().collect::<BTreeSet<_>>() != wanted);
            let off = held || groups.is_empty() || state.terminating || !state.settings.provision;
            if off || state.settings.custom.is_some() {
                return;
            }
            stale.map(|eni| eni.id.clone()).collect()
        };
        for eni in stale {
            let answer = self.cloud.set_groups(&eni, &groups).await;
            let state = &mut *self.state();
            match answer {
                Ok(()) => {
                    state.holds.succeeded(Action::ModifyNetworkInterfaceAttribute);
                    state.store.set_groups(&eni, groups.clone());
                    self.changed();
                }
                Err(error) => {
                    tracing::warn!(%error, "security groups");
                    state.failed(&error, now);
                    return;
                }
            }
        }
    }

    /// Deletes interfaces that a node made, lost and never came back for.
    async fn sweep(&self, now: Moment) {
        let (vpc, cluster) = {
            let mut state = self.state();
            let on = state.settings.sweep && state.settings.provision && state.may_change();
            let Some(vpc) = state.vpc.clone().filter(|_| on && state.next_sweep <= now) else { return };
            state.next_sweep = now.after(SWEEP);
            (vpc, state.settings.cluster.clone())
        };
        let mut wanted = vec![(tags::INSTANCE.to_owned(), None)];
        wanted.extend(cluster.map(|name| (tags::CLUSTER.to_owned(), Some(name))));
        let found =
            match self.cloud.describe_interfaces(&InterfaceFilter::Available { vpc, tags: wanted }).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "leaked interfaces are not looked for");
                    let state = &mut *self.state();
                    let until = state.failed(&error, now);
                    state.next_sweep = until.max(now.after(ROUND));
                    return;
                }
            };
        for interface in found.iter().filter(|i| i.description.starts_with(tags::DESCRIPTION)) {
            // The journal knows what this node is making; an answer may be older than the store.
            let known = {
                let state = self.state();
                let busy = state.journal.iter().any(|s| s.eni() == Some(&interface.id));
                busy || state.store.enis().contains_key(&interface.id)
            };
            if known {
                continue;
            }
            let created = interface.tags.get(tags::CREATED).and_then(|text| Moment::parse(text));
            let answer = match created {
                Some(created) if now.since(created) < LEAKED => continue,
                Some(_) => self.cloud.delete_interface(&interface.id).await,
                // Its age is not known; from now on it is.
                None => {
                    let tag = [(tags::CREATED.to_owned(), now.to_string())].into();
                    self.cloud.create_tags(&interface.id, &tag).await
                }
            };
            match answer {
                Ok(()) => tracing::info!(eni = %interface.id, aged = created.is_some(), "a leaked interface"),
                Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::InUse) => {}
                Err(error) => {
                    tracing::warn!(%error, "leaked interfaces");
                    self.state().failed(&error, now);
                    return;
                }
            }
        }
    }
}

impl State {
    /// A new interface is there: it begins to give addresses.
    fn arrive(
        &mut self,
        interface: &Interface,
        shown: Option<&MetadataInterface>,
        done: &Sequence,
        now: Moment,
    ) {
        let Work::Create { making, device_index, .. } = &done.work else { return };
        let Making::Kept { attachment, .. } = &**making else { return };
        let attached = Interface {
            status: InterfaceStatus::InUse,
            attachment: Some(Attachment {
                id: attachment.clone(),
                instance: Some(self.identity.instance.clone()),
                device_index: *device_index,
                network_card: self.limits.default_card,
                delete_on_termination: true,
            }),
            ..interface.clone()
        };
        let busy = BTreeSet::new();
        let belief = Belief {
            instance: &self.identity.instance,
            settings: &self.settings,
            default_card: self.limits.default_card,
            busy: &busy,
            whole: true,
            cool_until: None,
            now,
        };
        let mut eni = belief.eni(&attached, shown.map(|i| i.subnet_cidr));
        eni.changed = now;
        self.store.insert(eni);
    }
}

/// Whether IMDS shows the interfaces and blocks that the store holds.
fn agree(state: &State, told: &[MetadataInterface]) -> bool {
    let busy: BTreeSet<_> = state.journal.iter().filter_map(Sequence::eni).collect();
    let settled: Vec<_> = told.iter().filter(|i| !busy.contains(&i.id)).collect();
    let known = state.store.enis().keys().filter(|id| !busy.contains(id)).count();
    settled.len() == known && settled.iter().all(|i| state.store.agrees(&i.id, &placed_on(i)))
}

fn placed_on(told: &MetadataInterface) -> Placed {
    Placed { addresses: told.addresses.iter().skip(1).copied().collect(), prefixes: told.prefixes.clone() }
}

/// An interface as far as IMDS tells it: without tags, so it is used and never freed. `None` for one without addresses.
fn interface_of(told: &MetadataInterface, instance: &crate::cloud::InstanceId) -> Option<Interface> {
    let Placed { addresses, prefixes } = placed_on(told);
    Some(Interface {
        id: told.id.clone(),
        mac: told.mac,
        kind: InterfaceKind::Standard,
        status: InterfaceStatus::InUse,
        subnet: told.subnet.clone(),
        vpc: told.vpc.clone(),
        zone: String::new(),
        groups: told.groups.clone(),
        primary: *told.addresses.first()?,
        secondary: addresses,
        prefixes,
        tags: Tags::new(),
        description: String::new(),
        attachment: Some(Attachment {
            // IMDS does not tell it; nothing that came from here is ever detached.
            id: "eni-attach-unknown".parse().ok()?,
            instance: Some(instance.clone()),
            device_index: told.device_index,
            network_card: told.network_card,
            delete_on_termination: true,
        }),
    })
}
