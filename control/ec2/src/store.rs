//! Which addresses the node has, and who has them.
//!
//! The store is the only place that decides about an address, and it is pure: no clock, no EC2. Its one promise is
//! that no address is in two hands. It keeps that promise by asking one index (`by_address`) before it gives anything
//! away, whatever EC2 or IMDS say in between.
//!
//! ```text
//!  Eni ── blocks: /32 (an address) or /28 (a prefix), each staying or leaving
//!                    │
//!          address:  free ──assign──► leased ──release──► cooling until t ──t──► free (preferred: "cooled")
//!                    │                                                            │
//!                    └──────────────── leaving ──(EC2 took it)──► quarantined 60 s ┘ (seen again: free)
//! ```
//!
//! A lease whose address EC2 no longer lists stays a lease ("lost"): a pod cannot be moved, and its address must not
//! go to another one.

mod block;
mod inventory;

pub use block::{addresses, blocks_of, placed};
pub use inventory::{Belief, Change, Saved};

use crate::cloud::{EniId, GroupId, InterfaceKind, Mac, Placed, SubnetId};
use crate::moment::Moment;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How long an address that we gave back to EC2 is not believed when it shows up again (VPC CNI: 60 s).
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// What a lease is keyed by, after the CNI specification: one attachment of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseKey {
    /// Name of the network in the conflist.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container, self.interface)
    }
}

/// The pod of a lease; all fields are empty for a container that no kubelet started.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// An address in a container's hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    pub key: LeaseKey,
    /// The pod, for those who look at it.
    pub pod: Pod,
    /// The address.
    pub address: Ipv4Addr,
    /// On which interface it was when it was given.
    pub eni: EniId,
    /// Since when.
    pub since: Moment,
}

/// Whether an interface's addresses go to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// They do.
    Pods,
    /// The primary interface under custom networking.
    CustomNetworking,
    /// Tagged `node.k8s.amazonaws.com/no_manage=true`.
    NoManage,
    /// Not tagged as this node's, and `MANAGE_UNTAGGED_ENI=false`.
    Untagged,
    /// A trunk, a branch, an EFA without addresses, or something that a service made.
    Kind,
    /// On another network card than the default one.
    Card,
}

/// An attached interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its MAC address, by which the device is found on the node.
    pub mac: Mac,
    /// Standard, EFA …
    pub kind: InterfaceKind,
    /// Device index; 0 on card 0 is the primary interface.
    pub device_index: u32,
    /// Network card.
    pub network_card: u32,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The subnet's block, from which the gateway follows; `None` until IMDS told it.
    pub subnet_cidr: Option<Ipv4Net>,
    /// Its security groups.
    pub groups: Vec<GroupId>,
    /// Its primary address, which is never a pod's.
    pub primary: Ipv4Addr,
    /// Whether its addresses go to pods.
    pub role: Role,
    /// Whether it was made by this node or tagged for it. Only such an interface is ever detached and deleted.
    pub ours: bool,
    /// Chosen to be detached: gives no address any more.
    pub draining: bool,
    /// Since when we know it.
    pub since: Moment,
    /// When we last changed its blocks at EC2.
    pub changed: Moment,
    /// Addresses as /32 and prefixes as /28, with whether they are leaving.
    #[serde(with = "block::pairs")]
    pub blocks: BTreeMap<Ipv4Net, bool>,
}

impl Eni {
    /// Whether it is the node's primary interface.
    pub fn is_primary(&self) -> bool {
        self.device_index == 0 && self.network_card == 0
    }

    /// Whether pods get addresses of it.
    pub fn serves(&self) -> bool {
        self.role == Role::Pods && !self.draining
    }

    fn holds(&self, address: Ipv4Addr) -> Option<(Ipv4Net, bool)> {
        [32, 28].into_iter().find_map(|length| {
            let block = Ipv4Net::new(address, length).ok()?.trunc();
            self.blocks.get(&block).map(|leaving| (block, *leaving))
        })
    }
}

/// Counts over the interfaces that serve pods. What is leaving counts nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses in all.
    pub total: u32,
    /// In a lease.
    pub assigned: u32,
    /// `total - assigned`; cooling ones count as available (VPC CNI).
    pub available: u32,
    /// Cooling.
    pub cooling: u32,
    /// /28 without a lease and without a cooling address.
    pub free_prefixes: u32,
}

/// What [`Store::assign`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The lease.
    pub lease: Lease,
    /// Whether it was made now; `false` where the key had it already.
    pub fresh: bool,
    /// The lease of the pod's earlier sandbox, which ends with this one. Its address cools down.
    pub superseded: Option<Lease>,
}

/// No address to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Empty {
    /// When the next cooling address is free, if one is cooling.
    pub next: Option<Moment>,
}

/// Interfaces, addresses and leases of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    enis: BTreeMap<EniId, Eni>,
    leases: BTreeMap<LeaseKey, Lease>,
    by_address: BTreeMap<Ipv4Addr, LeaseKey>,
    cooling: BTreeMap<Ipv4Addr, Moment>,
    quarantine: BTreeMap<Ipv4Net, Moment>,
    buried: BTreeMap<EniId, Moment>,
}

impl Store {
    /// The interfaces, by id.
    pub fn enis(&self) -> &BTreeMap<EniId, Eni> {
        &self.enis
    }

    /// The leases, by key.
    pub fn leases(&self) -> &BTreeMap<LeaseKey, Lease> {
        &self.leases
    }

    /// Who has an address.
    pub fn holder(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.leases.get(self.by_address.get(&address)?)
    }

    /// The interface that carries an address.
    pub fn carrier(&self, address: Ipv4Addr) -> Option<&Eni> {
        self.enis.values().find(|eni| eni.holds(address).is_some())
    }

    /// Leases whose address is on no interface any more.
    pub fn lost(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|lease| self.carrier(lease.address).is_none())
    }

    /// Counts what serves pods.
    pub fn usage(&self) -> Usage {
        self.usage_without(None)
    }

    /// As [`Store::usage`], as if one interface were not there.
    pub fn usage_without(&self, without: Option<&EniId>) -> Usage {
        let mut usage = Usage::default();
        for eni in self.enis.values().filter(|e| e.serves() && Some(&e.id) != without) {
            for block in eni.blocks.iter().filter(|(_, leaving)| !**leaving).map(|(block, _)| *block) {
                let (assigned, cooling) = (self.leased_in(block), self.cooling_in(block));
                usage.total += u32::try_from(addresses(block).count()).unwrap_or(u32::MAX);
                usage.assigned += assigned;
                usage.cooling += cooling;
                usage.free_prefixes += u32::from(block.prefix_len() == 28 && assigned == 0 && cooling == 0);
            }
        }
        usage.available = usage.total - usage.assigned;
        usage
    }

    /// Leases inside a block.
    pub fn leased_in(&self, block: Ipv4Net) -> u32 {
        let inside = self.by_address.range(block.network()..=block.broadcast()).count();
        u32::try_from(inside).unwrap_or(u32::MAX)
    }

    /// Addresses inside a block that cool down. [`Store::settle`] keeps the list current.
    pub fn cooling_in(&self, block: Ipv4Net) -> u32 {
        let range = self.cooling.range(block.network()..=block.broadcast());
        u32::try_from(range.filter(|(_, until)| **until > Moment(0)).count()).unwrap_or(u32::MAX)
    }

    /// Lets cool-downs and quarantines that are over end.
    pub fn settle(&mut self, now: Moment) {
        // A cooled address stays in the list with the moment 0: assign prefers it.
        for until in self.cooling.values_mut().filter(|until| **until <= now) {
            *until = Moment(0);
        }
        self.quarantine.retain(|_, until| *until > now);
        self.buried.retain(|_, until| *until > now);
        let gone: Vec<_> = self
            .cooling
            .iter()
            .filter(|(address, until)| until.0 == 0 && self.carrier(**address).is_none())
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.cooling.remove(&address);
        }
    }

    /// Gives an address to `key`. The same key again gets what it has; another container of the same pod supersedes
    /// the earlier one, whose address cools down.
    ///
    /// Prefers the interface and the block with the most leases, so that the others become free to be given back; in
    /// a block a cooled address, else the lowest one.
    pub fn assign(
        &mut self,
        key: LeaseKey,
        pod: Pod,
        now: Moment,
        cooldown: Duration,
    ) -> Result<Assigned, Empty> {
        if let Some(lease) = self.leases.get(&key) {
            return Ok(Assigned { lease: lease.clone(), fresh: false, superseded: None });
        }
        self.settle(now);
        let Some((eni, address)) = self.pick() else {
            return Err(Empty { next: self.cooling.values().copied().filter(|until| until.0 > 0).min() });
        };
        let superseded = self.predecessor(&key, &pod).and_then(|old| self.release(&old, now, cooldown));
        let lease = Lease { key: key.clone(), pod, address, eni, since: now };
        self.cooling.remove(&address);
        self.by_address.insert(address, key.clone());
        self.leases.insert(key, lease.clone());
        Ok(Assigned { lease, fresh: true, superseded })
    }

    fn predecessor(&self, key: &LeaseKey, pod: &Pod) -> Option<LeaseKey> {
        let same = |old: &&Lease| {
            old.key.network == key.network
                && old.key.interface == key.interface
                && old.pod.namespace == pod.namespace
                && old.pod.name == pod.name
        };
        self.leases.values().filter(|_| !pod.name.is_empty()).find(same).map(|old| old.key.clone())
    }

    fn pick(&self) -> Option<(EniId, Ipv4Addr)> {
        let mut enis: Vec<_> = self
            .enis
            .values()
            .filter(|e| e.serves())
            .map(|eni| (eni.blocks.keys().map(|block| self.leased_in(*block)).sum::<u32>(), eni))
            .collect();
        enis.sort_by_key(|(leases, eni)| (std::cmp::Reverse(*leases), eni.device_index));
        enis.into_iter().find_map(|(_, eni)| self.pick_of(eni).map(|address| (eni.id.clone(), address)))
    }

    fn pick_of(&self, eni: &Eni) -> Option<Ipv4Addr> {
        let mut blocks: Vec<_> = eni
            .blocks
            .iter()
            .filter(|(_, leaving)| !**leaving)
            .map(|(block, _)| (std::cmp::Reverse(self.leased_in(*block)), *block))
            .collect();
        blocks.sort_unstable();
        let of_block = |block: Ipv4Net| {
            addresses(block)
                .filter(|address| *address != eni.primary && !self.by_address.contains_key(address))
                .filter_map(|address| match self.cooling.get(&address) {
                    Some(Moment(0)) => Some((0, address)),
                    Some(_) => None,
                    None => Some((1, address)),
                })
                .min()
        };
        // Addresses come one to a block: a cooled one anywhere on the interface goes before a fresh one.
        let (prefixes, singles): (Vec<_>, Vec<_>) =
            blocks.into_iter().map(|(_, block)| block).partition(|block| block.prefix_len() < 32);
        prefixes
            .into_iter()
            .find_map(of_block)
            .or_else(|| singles.into_iter().filter_map(of_block).min())
            .map(|(_, address)| address)
    }

    /// Ends a lease; its address cools down. `None` where the key has none: a DEL may come twice, or late.
    pub fn release(&mut self, key: &LeaseKey, now: Moment, cooldown: Duration) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        self.by_address.remove(&lease.address);
        self.cooling.insert(lease.address, now.after(cooldown));
        Some(lease)
    }

    /// Takes an assignment back that was never told to anybody: the earlier sandbox's lease comes back with it.
    pub fn undo(&mut self, assigned: &Assigned) {
        if !assigned.fresh || self.leases.get(&assigned.lease.key) != Some(&assigned.lease) {
            return;
        }
        self.leases.remove(&assigned.lease.key);
        self.by_address.remove(&assigned.lease.address);
        if let Some(old) = &assigned.superseded {
            self.restore(old);
        }
    }

    /// Takes a release back that could not be written down. Refused where somebody has the address by now.
    pub fn restore(&mut self, lease: &Lease) -> bool {
        if self.by_address.contains_key(&lease.address) || self.leases.contains_key(&lease.key) {
            return false;
        }
        self.cooling.remove(&lease.address);
        self.by_address.insert(lease.address, lease.key.clone());
        self.leases.insert(lease.key.clone(), lease.clone());
        true
    }

    /// Marks blocks of an interface as leaving, except those that hold a lease or a cooling address by now. Returns
    /// what really leaves.
    pub fn leave(&mut self, eni: &EniId, what: &Placed, now: Moment) -> Placed {
        let blocks: Vec<_> = blocks_of(what)
            .filter(|block| self.leased_in(*block) == 0 && self.cooling_in(*block) == 0)
            .collect();
        let Some(eni) = self.enis.get_mut(eni) else { return Placed::default() };
        eni.changed = now;
        let leaving = blocks.into_iter().filter(|block| match eni.blocks.get_mut(block) {
            Some(leaving) => {
                *leaving = true;
                true
            }
            None => false,
        });
        placed(leaving.collect::<Vec<_>>())
    }

    /// EC2 took the blocks that were leaving: they go into quarantine.
    pub fn left(&mut self, eni: &EniId, what: &Placed, now: Moment) {
        let Some(eni) = self.enis.get_mut(eni) else { return };
        eni.changed = now;
        for block in blocks_of(what) {
            if eni.blocks.remove(&block).is_some() {
                self.quarantine.insert(block, now.after(QUARANTINE));
            }
        }
    }

    /// EC2 refused to take the blocks: they stay.
    pub fn stay(&mut self, eni: &EniId, what: &Placed) {
        let Some(eni) = self.enis.get_mut(eni) else { return };
        for block in blocks_of(what) {
            if let Some(leaving) = eni.blocks.get_mut(&block) {
                *leaving = false;
            }
        }
    }

    /// EC2 placed blocks on an interface. Returns those that cannot be: pods do not get them.
    pub fn place(&mut self, eni: &EniId, what: &Placed, now: Moment) -> Placed {
        let (taken, new): (Vec<_>, Vec<_>) = blocks_of(what).partition(|block| self.is_taken(eni, *block));
        let Some(eni) = self.enis.get_mut(eni) else { return Placed::default() };
        eni.changed = now;
        for block in new {
            self.quarantine.remove(&block);
            eni.blocks.insert(block, false);
        }
        placed(taken)
    }

    /// Whether a block holds a primary address, or an address that another interface carries: one address is in one place,
    /// and of two answers that say otherwise the first counts.
    fn is_taken(&self, eni: &EniId, block: Ipv4Net) -> bool {
        let overlaps = |other: &Ipv4Net| other.contains(&block) || block.contains(other);
        self.enis.values().any(|other| {
            block.contains(&other.primary) || other.id != *eni && other.blocks.keys().any(overlaps)
        })
    }

    /// Stops an interface from giving addresses, if no lease and no cooling address is on it.
    pub fn drain(&mut self, eni: &EniId) -> bool {
        let Some(found) = self.enis.get(eni) else { return false };
        let busy = found.blocks.keys().any(|b| self.leased_in(*b) > 0 || self.cooling_in(*b) > 0);
        if !busy && let Some(found) = self.enis.get_mut(eni) {
            found.draining = true;
        }
        !busy
    }

    /// Takes a draining interface back into service.
    pub fn undrain(&mut self, eni: &EniId) {
        if let Some(found) = self.enis.get_mut(eni) {
            found.draining = false;
        }
    }

    /// An interface that was attached.
    pub fn insert(&mut self, mut eni: Eni) {
        let (id, primary) = (eni.id.clone(), eni.primary);
        eni.blocks.retain(|block, _| !block.contains(&primary) && !self.is_taken(&id, *block));
        for block in eni.blocks.keys() {
            self.quarantine.remove(block);
        }
        self.enis.insert(eni.id.clone(), eni);
    }

    /// An interface that we deleted. Leases on it stay, lost. EC2 may list it for a while yet: that long neither it nor
    /// its blocks are believed.
    pub fn bury(&mut self, eni: &EniId, now: Moment) {
        self.buried.insert(eni.clone(), now.after(QUARANTINE));
        let blocks = self.enis.remove(eni).map(|eni| eni.blocks).unwrap_or_default();
        self.quarantine.extend(blocks.into_keys().map(|block| (block, now.after(QUARANTINE))));
    }

    /// Sets an interface's security groups after EC2 took them.
    pub fn set_groups(&mut self, eni: &EniId, groups: Vec<GroupId>) {
        if let Some(found) = self.enis.get_mut(eni) {
            found.groups = groups;
        }
    }
}

#[cfg(test)]
mod tests;
