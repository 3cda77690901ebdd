//! Classes and identities. A class is all pods that no policy can tell apart: equal namespace, labels and named ports. An
//! identity is all classes that the policies there are do not tell apart: one set of selectors.
//!
//! When policies change, an identity whose classes all move to one new set keeps its number and gets the new set, so that
//! a policy about every pod costs a line for each identity and not one for each address.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use sluice_state::Identity;

use super::intern::NamedPort;
use crate::Labels;
use crate::numbers::Numbers;

type Hashing = foldhash::fast::RandomState;

/// What makes a class. Labels and ports are interned: their place stands for their content.
#[derive(Debug, Clone)]
pub(super) struct Traits {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    pub(super) named: Arc<[NamedPort]>,
    /// Selectors with a block that match the pod's address: rare, only egress rules with a block and a port's name.
    pub(super) by_address: Vec<u32>,
}

type Key = (usize, usize, usize, Vec<u32>);

impl Traits {
    fn key(&self) -> Key {
        let labels = Arc::as_ptr(&self.labels).addr();
        (self.namespace.as_ptr().addr(), labels, self.named.as_ptr().addr(), self.by_address.clone())
    }
}

#[derive(Debug)]
pub(super) struct Class {
    pub(super) traits: Traits,
    /// Its pods.
    pub(super) members: Vec<u32>,
    /// Its identity, once it has one.
    pub(super) identity: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Classes {
    keys: HashMap<Key, u32, Hashing>,
    pub(super) all: HashMap<u32, Class, Hashing>,
    numbers: Numbers,
    /// Classes whose selectors may have changed.
    pub(super) dirty: HashSet<u32, Hashing>,
    by_set: HashMap<Vec<u32>, u32, Hashing>,
    identities: HashMap<u32, Known, Hashing>,
    identity_numbers: Numbers,
    /// Identities that came, went or have other selectors.
    changed: HashSet<u32, Hashing>,
}

#[derive(Debug)]
struct Known {
    identity: Arc<Identity>,
    classes: usize,
}

/// What became of a class's number of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It came to be, or is no more.
    Whole,
    /// It grew or shrank.
    Size,
}

impl Classes {
    /// Adds a pod; gives its class, its place among the members, and whether the class is new.
    pub(super) fn join(&mut self, traits: Traits, pod: u32) -> (u32, usize, Turn) {
        let key = traits.key();
        if let Some(id) = self.keys.get(&key)
            && let Some(class) = self.all.get_mut(id)
        {
            class.members.push(pod);
            return (*id, class.members.len() - 1, Turn::Size);
        }
        let id = self.numbers.take();
        self.keys.insert(key, id);
        self.all.insert(id, Class { traits, members: vec![pod], identity: None });
        self.dirty.insert(id);
        (id, 0, Turn::Whole)
    }

    /// Removes the member at a place; gives the pod that has that place now, and the class if it is no more.
    pub(super) fn leave(&mut self, id: u32, place: usize) -> (Option<u32>, Option<Class>) {
        let Some(class) = self.all.get_mut(&id) else { return (None, None) };
        if place < class.members.len() {
            class.members.swap_remove(place);
        }
        let moved = class.members.get(place).copied();
        if !class.members.is_empty() {
            return (moved, None);
        }
        let gone = self.all.remove(&id);
        self.numbers.give(id);
        self.dirty.remove(&id);
        if let Some(class) = &gone {
            self.keys.remove(&class.traits.key());
            if let Some(identity) = class.identity {
                self.detach(identity);
                self.drop_vacant(identity);
            }
        }
        (None, gone)
    }

    /// The identity of a class.
    pub(super) fn identity(&self, class: u32) -> Option<u32> {
        self.all.get(&class)?.identity
    }

    /// Gives all dirty classes their identity. `selectors` says which selectors match a class; `moved` hears of every
    /// class that has another identity than before.
    pub(super) fn settle(&mut self, selectors: impl Fn(&Traits) -> Vec<u32>, mut moved: impl FnMut(&Class)) {
        let mut groups: HashMap<Vec<u32>, Vec<u32>, Hashing> = HashMap::default();
        let mut vacant: HashSet<u32, Hashing> = HashSet::default();
        for id in std::mem::take(&mut self.dirty) {
            let Some(class) = self.all.get(&id) else { continue };
            groups.entry(selectors(&class.traits)).or_default().push(id);
            if let Some(identity) = class.identity {
                self.detach(identity);
                vacant.insert(identity);
            }
        }
        vacant.retain(|id| self.identities.get(id).is_some_and(|known| known.classes == 0));
        // First those whose set exists, so that none of them is given another set.
        let (known, new): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|(set, _)| self.by_set.contains_key(set));
        for (set, members) in known.into_iter().chain(new) {
            let number = match self.by_set.get(&set) {
                Some(number) => *number,
                None => self.name(&set, &members, &vacant),
            };
            vacant.remove(&number);
            if let Some(known) = self.identities.get_mut(&number) {
                known.classes += members.len();
            }
            for id in members {
                if let Some(class) = self.all.get_mut(&id)
                    && class.identity != Some(number)
                {
                    class.identity = Some(number);
                    moved(class);
                }
            }
        }
        for identity in vacant {
            self.drop_vacant(identity);
        }
    }

    /// A number for a new set: the one that most of its pods have, if nobody else has that any more.
    fn name(&mut self, set: &[u32], members: &[u32], vacant: &HashSet<u32, Hashing>) -> u32 {
        let mut pods: HashMap<u32, usize, Hashing> = HashMap::default();
        for class in members.iter().filter_map(|id| self.all.get(id)) {
            if let Some(identity) = class.identity.filter(|i| vacant.contains(i)) {
                *pods.entry(identity).or_default() += class.members.len();
            }
        }
        let kept = pods.into_iter().max_by_key(|(identity, pods)| (*pods, std::cmp::Reverse(*identity)));
        let number = kept.map_or_else(|| self.identity_numbers.take(), |(identity, _)| identity);
        if let Some(old) = self.identities.get(&number) {
            self.by_set.remove(&old.identity.selectors);
        }
        let identity = Arc::new(Identity { id: number, selectors: set.to_vec() });
        self.by_set.insert(set.to_vec(), number);
        self.identities.insert(number, Known { identity, classes: 0 });
        self.changed.insert(number);
        number
    }

    fn detach(&mut self, identity: u32) {
        if let Some(known) = self.identities.get_mut(&identity) {
            known.classes = known.classes.saturating_sub(1);
        }
    }

    fn drop_vacant(&mut self, identity: u32) {
        if self.identities.get(&identity).is_some_and(|known| known.classes == 0)
            && let Some(known) = self.identities.remove(&identity)
        {
            self.by_set.remove(&known.identity.selectors);
            self.identity_numbers.give(identity);
            self.changed.insert(identity);
        }
    }

    /// The identities that came or changed, and those that went, since this was last asked.
    pub(super) fn changed(&mut self) -> (Vec<Arc<Identity>>, Vec<u32>) {
        let mut changed: Vec<u32> = std::mem::take(&mut self.changed).into_iter().collect();
        changed.sort_unstable();
        let gone = changed.iter().filter(|id| !self.identities.contains_key(*id)).copied().collect();
        let there = changed.iter().filter_map(|id| Some(self.identities.get(id)?.identity.clone()));
        (there.collect(), gone)
    }

    /// All identities, by number.
    pub(super) fn identities(&self) -> Vec<Arc<Identity>> {
        let mut all: Vec<Arc<Identity>> = self.identities.values().map(|k| k.identity.clone()).collect();
        all.sort_unstable_by_key(|identity| identity.id);
        all
    }
}
