//! What EC2 or IMDS say is there, against what the store holds; and the store as it stands in the checkpoint.

use super::block::pairs;
use super::{Eni, Lease, QUARANTINE, Role, Store, blocks_of};
use crate::cloud::{EniId, InstanceId, Interface, InterfaceKind, Placed};
use crate::moment::Moment;
use crate::settings::Settings;
use crate::tags;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// A block that EC2 placed on an interface may be missing from its next answers for a while: that long an answer
/// without it is not believed.
const YOUNG: Duration = Duration::from_secs(30);

/// What a list of interfaces is held against.
#[derive(Debug, Clone, Copy)]
pub struct Belief<'a> {
    /// Whose interfaces.
    pub instance: &'a InstanceId,
    /// What an operator set.
    pub settings: &'a Settings,
    /// The default network card of the type.
    pub default_card: u32,
    /// Interfaces that a sequence is at work on: neither adopted nor dropped.
    pub busy: &'a BTreeSet<EniId>,
    /// Whether what is not listed is gone. A list of IMDS alone, which lags, removes nothing.
    pub whole: bool,
    /// When addresses that nobody knew before are free: set after a lost checkpoint, whose cool-downs are lost too.
    pub cool_until: Option<Moment>,
    /// Now.
    pub now: Moment,
}

/// What [`Store::believe`] changed, for whoever must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface that was not known.
    Adopted(EniId, Role),
    /// An interface that is gone.
    Vanished(EniId),
    /// Blocks that were not known.
    Appeared(EniId, Vec<Ipv4Net>),
    /// Blocks that are gone.
    Disappeared(EniId, Vec<Ipv4Net>),
    /// Blocks that are listed but still in quarantine, or not listed but young: ask again later.
    Undecided(EniId),
}

impl Belief<'_> {
    /// Whether pods get addresses of an interface.
    pub fn role(&self, interface: &Interface) -> Role {
        let (index, card) =
            interface.attachment.as_ref().map_or((u32::MAX, 0), |a| (a.device_index, a.network_card));
        let primary = index == 0 && card == 0;
        if primary {
            return if self.settings.custom.is_some() { Role::CustomNetworking } else { Role::Pods };
        }
        let tag = |key: &str| interface.tags.get(key).map(String::as_str);
        match interface.kind {
            InterfaceKind::Standard | InterfaceKind::Efa => {}
            _ => return Role::Kind,
        }
        if tag(tags::NO_MANAGE) == Some("true") {
            Role::NoManage
        } else if card != self.default_card {
            Role::Card
        } else if !self.settings.manage_untagged && tag(tags::INSTANCE) != Some(self.instance.as_str()) {
            Role::Untagged
        } else {
            Role::Pods
        }
    }

    /// An interface as the store holds it.
    pub fn eni(&self, interface: &Interface, subnet_cidr: Option<Ipv4Net>) -> Eni {
        let what = Placed { addresses: interface.secondary.clone(), prefixes: interface.prefixes.clone() };
        let (device_index, network_card) =
            interface.attachment.as_ref().map_or((u32::MAX, 0), |a| (a.device_index, a.network_card));
        Eni {
            id: interface.id.clone(),
            mac: interface.mac,
            kind: interface.kind,
            device_index,
            network_card,
            subnet: interface.subnet.clone(),
            subnet_cidr,
            groups: interface.groups.clone(),
            primary: interface.primary,
            role: self.role(interface),
            ours: interface.tags.get(tags::INSTANCE).map(String::as_str) == Some(self.instance.as_str()),
            draining: false,
            since: self.now,
            changed: Moment(0),
            blocks: blocks_of(&what).map(|block| (block, false)).collect(),
        }
    }
}

impl Store {
    /// Takes a list of the attached interfaces for the truth. `cidrs` are the subnets' blocks, where IMDS told them.
    pub fn believe(
        &mut self,
        found: &[Interface],
        cidrs: &BTreeMap<EniId, Ipv4Net>,
        belief: Belief<'_>,
    ) -> Vec<Change> {
        self.settle(belief.now);
        let mut changes = Vec::new();
        let buried: BTreeSet<_> = self.buried.keys().cloned().collect();
        let found: Vec<_> =
            found.iter().filter(|i| !belief.busy.contains(&i.id) && !buried.contains(&i.id)).collect();
        for interface in &found {
            let mut told = belief.eni(interface, cidrs.get(&interface.id).copied());
            match self.enis.remove(&interface.id) {
                None => {
                    changes.push(Change::Adopted(told.id.clone(), told.role));
                    let (id, primary) = (told.id.clone(), told.primary);
                    told.blocks.retain(|block, _| {
                        let taken = block.contains(&primary) || self.is_taken(&id, *block);
                        !taken && !self.quarantine.contains_key(block)
                    });
                    self.cool(told.blocks.keys().copied(), belief.cool_until);
                }
                Some(known) => self.merge(&known, &mut told, belief, &mut changes),
            }
            self.enis.insert(told.id.clone(), told);
        }
        let listed: BTreeSet<_> = found.iter().map(|i| &i.id).collect();
        let gone: Vec<_> = self
            .enis
            .values()
            .filter(|eni| !listed.contains(&eni.id) && !belief.busy.contains(&eni.id))
            .map(|eni| (eni.id.clone(), !belief.whole || belief.now.since(eni.changed) < YOUNG))
            .collect();
        for (id, young) in gone {
            if young {
                changes.push(Change::Undecided(id));
            } else {
                self.enis.remove(&id);
                changes.push(Change::Vanished(id));
            }
        }
        self.rehome();
        changes
    }

    /// A lease is of the interface that carries its address: one that came from another CNI did not say which.
    fn rehome(&mut self) {
        for lease in self.leases.values_mut() {
            let carries = |eni: &&Eni| eni.holds(lease.address).is_some();
            if let Some(carrier) = self.enis.values().find(carries)
                && carrier.id != lease.eni
            {
                lease.eni = carrier.id.clone();
            }
        }
    }

    fn merge(&mut self, known: &Eni, told: &mut Eni, belief: Belief<'_>, changes: &mut Vec<Change>) {
        (told.since, told.changed, told.draining) = (known.since, known.changed, known.draining);
        told.subnet_cidr = told.subnet_cidr.or(known.subnet_cidr);
        told.ours |= known.ours;
        let young = belief.now.since(known.changed) < YOUNG;
        let (mut appeared, mut disappeared, mut undecided) = (Vec::new(), Vec::new(), false);
        told.blocks.retain(|block, _| {
            let new = !known.blocks.contains_key(block);
            let taken = block.contains(&known.primary) || self.is_taken(&known.id, *block);
            let kept = !new || !taken && !self.quarantine.contains_key(block);
            undecided |= !kept;
            if new && kept {
                appeared.push(*block);
            }
            kept
        });
        for (block, leaving) in &known.blocks {
            if let Some(told) = told.blocks.get_mut(block) {
                // A block that was leaving and is still listed did not leave; the planner decides afresh. Only an
                // answer older than the call could list it wrongly, and then the quarantine has not begun.
                *told = *leaving && young;
                undecided |= *told;
            } else if (young || !belief.whole) && !leaving {
                told.blocks.insert(*block, false);
                undecided = true;
            } else {
                // EC2's next answer may be an older one that lists it again.
                self.quarantine.insert(*block, belief.now.after(QUARANTINE));
                disappeared.push(*block);
            }
        }
        self.cool(appeared.iter().copied(), belief.cool_until);
        let id = || told.id.clone();
        changes.extend((!appeared.is_empty()).then(|| Change::Appeared(id(), appeared)));
        changes.extend((!disappeared.is_empty()).then(|| Change::Disappeared(id(), disappeared)));
        changes.extend(undecided.then(|| Change::Undecided(id())));
    }

    fn cool(&mut self, blocks: impl Iterator<Item = Ipv4Net>, until: Option<Moment>) {
        let Some(until) = until else { return };
        for address in blocks.flat_map(super::addresses) {
            if !self.by_address.contains_key(&address) {
                self.cooling.insert(address, until);
            }
        }
    }

    /// Whether IMDS shows the same blocks on an interface as the store holds; quarantined ones aside.
    pub fn agrees(&self, eni: &EniId, told: &Placed) -> bool {
        let Some(known) = self.enis.get(eni) else { return false };
        let told: BTreeSet<_> =
            blocks_of(told).filter(|block| !self.quarantine.contains_key(block)).collect();
        told.iter().eq(known.blocks.keys())
    }

    /// The store for the checkpoint.
    pub fn save(&self) -> Saved {
        Saved {
            enis: self.enis.values().cloned().collect(),
            leases: self.leases.values().cloned().collect(),
            cooling: self.cooling.clone(),
            quarantine: self.quarantine.clone(),
            buried: self.buried.clone(),
        }
    }

    /// The store of a checkpoint. Two leases on one address, or two of one key, are no store.
    pub fn load(saved: Saved) -> Result<Self, String> {
        let Saved { cooling, quarantine, buried, .. } = saved;
        let mut store = Self { cooling, quarantine, buried, ..Self::default() };
        for eni in saved.enis {
            store.enis.insert(eni.id.clone(), eni);
        }
        for lease in saved.leases {
            let (address, key) = (lease.address, lease.key.clone());
            if !store.restore(&lease) {
                return Err(format!("the lease of {key} on {address} clashes with another one"));
            }
        }
        Ok(store)
    }

    /// Ends what a reboot ended: no container lives on, so no lease and no cool-down does.
    pub fn reboot(&mut self) -> Vec<Lease> {
        self.by_address.clear();
        self.cooling.clear();
        std::mem::take(&mut self.leases).into_values().collect()
    }
}

/// A [`Store`] as lists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    enis: Vec<Eni>,
    leases: Vec<Lease>,
    #[serde(with = "pairs")]
    cooling: BTreeMap<Ipv4Addr, Moment>,
    #[serde(with = "pairs")]
    quarantine: BTreeMap<Ipv4Net, Moment>,
    buried: BTreeMap<EniId, Moment>,
}
