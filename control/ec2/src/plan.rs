//! What to do next about the pool: the arithmetic of the VPC CNI as a pure function.
//!
//! One call gives at most one action, and the caller asks again when that is done. So the planner never has to think
//! about what is on its way, beyond the one interface that is being made and the one that is being freed.
//!
//! Two things go further than the VPC CNI: an interface that carries nothing is freed even with prefix delegation
//! (there it would stay for ever, as the spare addresses never reach an interface's worth), and a subnet without
//! free addresses rests alone, where the VPC CNI rests altogether.

use crate::cloud::{Amount, EniId, InterfaceKind, Limits, Placed, SubnetId};
use crate::moment::Moment;
use crate::settings::{Settings, Target};
use crate::store::{Eni, Store, Usage, addresses, placed};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an interface is left alone before it may be freed (VPC CNI: one minute).
pub const MINIMUM_AGE: Duration = Duration::from_secs(60);

/// Addresses of a delegated prefix.
const PER_PREFIX: u32 = 16;

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Assign so many to an interface.
    Assign {
        /// To which.
        eni: EniId,
        /// How many.
        amount: Amount,
    },
    /// Make an interface and attach it.
    Create {
        /// What it carries from the beginning.
        amount: Amount,
        /// At which device index of the default card.
        device_index: u32,
    },
    /// Give back.
    Unassign {
        /// Of which interface.
        eni: EniId,
        /// What.
        what: Placed,
    },
    /// Detach and delete.
    Free {
        /// Which.
        eni: EniId,
    },
}

/// Everything that the plan depends on, beside the store.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What an operator set.
    pub settings: &'a Settings,
    /// What the instance type takes.
    pub limits: &'a Limits,
    /// How many pods the node takes: above that the pool never grows.
    pub max_pods: u32,
    /// Subnets that had no free address, with until when they rest.
    pub exhausted: &'a BTreeMap<SubnetId, Moment>,
    /// Device indexes of the default card that are taken although no interface of the store has them.
    pub reserved: &'a [u32],
    /// Whether an interface may be made now: none is being made, and there is a subnet for it.
    pub may_create: bool,
    /// Whether anything may be given back now.
    pub may_shrink: bool,
    /// Whether an interface may be freed now.
    pub may_free: bool,
    /// Now.
    pub now: Moment,
}

/// How many addresses are missing; 0 means that the pool is full enough.
pub fn shortage(usage: Usage, settings: &Settings, limits: &Limits, max_pods: u32) -> u32 {
    if usage.total >= max_pods {
        return 0;
    }
    let wanted = match settings.target {
        Target::Addresses { warm, minimum } => {
            let warm = warm.saturating_sub(usage.available);
            return warm.max(minimum.saturating_sub(usage.total));
        }
        Target::Interfaces(n) => n.saturating_mul(per_interface(settings, limits)),
        Target::Prefixes(n) => n.saturating_mul(PER_PREFIX),
    };
    // With a target of 0 one address is still held in reserve.
    wanted.max(1).saturating_sub(usage.available)
}

/// Addresses that one interface can give to pods.
fn per_interface(settings: &Settings, limits: &Limits) -> u32 {
    slots(limits).saturating_mul(if settings.prefixes { PER_PREFIX } else { 1 })
}

fn slots(limits: &Limits) -> u32 {
    limits.addresses.saturating_sub(1)
}

/// How much one interface takes of a shortage, given its free slots. 0 slots is nothing.
fn portion(short: u32, free: u32, settings: &Settings) -> Amount {
    match settings.target {
        // An interface's worth is what the target counts in, so an interface is filled whole.
        Target::Interfaces(_) if settings.prefixes => Amount::Prefixes(free),
        Target::Interfaces(_) => Amount::Addresses(free),
        _ if settings.prefixes => Amount::Prefixes(short.div_ceil(PER_PREFIX).min(free)),
        _ => Amount::Addresses(short.min(free)),
    }
}

/// The next action, if anything is to be done.
pub fn next(store: &Store, situation: Situation<'_>) -> Option<Plan> {
    let Situation { settings, limits, max_pods, .. } = situation;
    let usage = store.usage();
    let short = shortage(usage, settings, limits, max_pods);
    if short > 0 {
        return fill(store, short, situation).or_else(|| create(store, short, situation));
    }
    let free = || situation.may_free.then(|| spare(store, usage, situation)).flatten();
    let shrink = || situation.may_shrink.then(|| surplus(store, usage, situation)).flatten();
    free().or_else(shrink)
}

fn fill(store: &Store, short: u32, situation: Situation<'_>) -> Option<Plan> {
    let resting =
        |eni: &&Eni| situation.exhausted.get(&eni.subnet).is_none_or(|until| *until <= situation.now);
    let mut enis: Vec<_> = store.enis().values().filter(|e| e.serves()).filter(resting).collect();
    enis.sort_by_key(|eni| eni.device_index);
    enis.into_iter().find_map(|eni| {
        let used = u32::try_from(eni.blocks.len()).unwrap_or(u32::MAX);
        let free = slots(situation.limits).saturating_sub(used);
        let amount = portion(short, free, situation.settings);
        (free > 0).then(|| Plan::Assign { eni: eni.id.clone(), amount })
    })
}

/// Interfaces at most: those of the default network card, or `MAX_ENI`.
pub fn most_interfaces(settings: &Settings, limits: &Limits) -> u32 {
    let card = limits.cards.iter().find(|c| c.index == limits.default_card);
    let room = card.map_or(limits.interfaces, |c| c.interfaces.min(limits.interfaces));
    settings.max_interfaces.map_or(room, |most| room.min(most))
}

fn create(store: &Store, short: u32, situation: Situation<'_>) -> Option<Plan> {
    let Situation { settings, limits, reserved, .. } = situation;
    let room = most_interfaces(settings, limits);
    let taken: Vec<u32> = store
        .enis()
        .values()
        .filter(|eni| eni.network_card == limits.default_card)
        .map(|eni| eni.device_index)
        .chain(reserved.iter().copied())
        .collect();
    let count = u32::try_from(taken.len()).unwrap_or(u32::MAX);
    if !situation.may_create || count >= room || slots(limits) == 0 {
        return None;
    }
    let device_index = (1..).find(|index| !taken.contains(index))?;
    Some(Plan::Create { amount: portion(short, slots(limits), settings), device_index })
}

/// An interface that is not needed.
fn spare(store: &Store, usage: Usage, situation: Situation<'_>) -> Option<Plan> {
    let Situation { settings, limits, now, .. } = situation;
    let enough = match settings.target {
        Target::Addresses { .. } => true,
        Target::Interfaces(n) | Target::Prefixes(n) => {
            usage.available >= (n + 1).saturating_mul(per_interface(settings, limits))
        }
    };
    let deletable = |eni: &&Eni| {
        let idle = eni.blocks.keys().all(|b| store.leased_in(*b) == 0 && store.cooling_in(*b) == 0);
        let old = now.since(eni.since) >= MINIMUM_AGE;
        eni.ours && eni.serves() && !eni.is_primary() && eni.kind == InterfaceKind::Standard && old && idle
    };
    let needed = |eni: &&Eni| {
        let others = store.usage_without(Some(&eni.id));
        match settings.target {
            Target::Addresses { warm, minimum } => others.available < warm || others.total < minimum,
            Target::Prefixes(n) => others.free_prefixes < n,
            Target::Interfaces(_) => shortage(others, settings, limits, situation.max_pods) > 0,
        }
    };
    let mut enis: Vec<_> = store
        .enis()
        .values()
        .filter(deletable)
        .filter(|eni| enough || eni.blocks.is_empty())
        .filter(|eni| eni.blocks.is_empty() || !needed(eni))
        .collect();
    enis.sort_by_key(|eni| std::cmp::Reverse(eni.device_index));
    enis.first().map(|eni| Plan::Free { eni: eni.id.clone() })
}

/// Blocks of one interface that are not needed. Only targets that count in addresses or prefixes give them back.
fn surplus(store: &Store, usage: Usage, situation: Situation<'_>) -> Option<Plan> {
    let settings = situation.settings;
    // Addresses above the targets; a block goes only if it fits into that whole.
    let mut over = match settings.target {
        Target::Addresses { warm, minimum } => {
            usage.available.saturating_sub(warm).min(usage.total.saturating_sub(minimum))
        }
        Target::Prefixes(n) => usage.free_prefixes.saturating_sub(n).saturating_mul(PER_PREFIX),
        Target::Interfaces(_) => return None,
    };
    let mut enis: Vec<_> = store.enis().values().filter(|e| e.serves()).collect();
    enis.sort_by_key(|eni| std::cmp::Reverse(eni.device_index));
    enis.into_iter().find_map(|eni| {
        // EC2 takes addresses or prefixes in one call: the kind that the mode does not use goes first.
        [if settings.prefixes { 32 } else { 28 }, if settings.prefixes { 28 } else { 32 }]
            .into_iter()
            .map(|length| {
                let mut blocks = Vec::new();
                for block in eni.blocks.iter().rev().filter(|(_, leaving)| !**leaving).map(|(b, _)| *b) {
                    let size = u32::try_from(addresses(block).count()).unwrap_or(u32::MAX);
                    let idle = store.leased_in(block) == 0 && store.cooling_in(block) == 0;
                    if block.prefix_len() == length && idle && size <= over {
                        over -= size;
                        blocks.push(block);
                    }
                }
                blocks
            })
            .find(|blocks| !blocks.is_empty())
            .map(|blocks| Plan::Unassign { eni: eni.id.clone(), what: placed(blocks) })
    })
}

#[cfg(test)]
mod tests;
