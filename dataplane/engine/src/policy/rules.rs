//! The rules of one direction of a pod, compiled for the first packet of a flow.
//!
//! Selectors are a bitmap with a port class for each bit that is set; the few selectors that an identity lists are tested
//! one by one. CIDRs are cut into disjoint blocks, each with the class of all CIDRs that cover it: one search
//! whatever the nesting, where a longest-prefix table would let a narrow block hide the ports of a wide one.

use std::collections::HashMap;
use std::sync::Arc;

use sluice_state::{Peer, Rules};

use super::intervals::{Block, Intervals};
use super::ports::{Classes, Ports};

/// Compiled rules.
#[derive(Debug)]
pub(super) struct Compiled {
    source: Arc<Rules>,
    /// What everybody may.
    everybody: Ports,
    /// Bit n of word n / 64: selector n has a class.
    selectors: Vec<u64>,
    /// For each word, the number of bits in the words before.
    before: Vec<u32>,
    /// The class of each set bit, in order.
    of_selector: Vec<u32>,
    /// The class of what a block allows each address.
    intervals: Intervals,
    /// The classes; the first one is nothing.
    classes: Classes,
}

impl Compiled {
    pub(super) fn new(source: &Arc<Rules>) -> Self {
        let mut interner = Interner::default();
        let mut everybody = Ports::new(Some(&[]));
        let mut selectors: HashMap<u32, Ports> = HashMap::new();
        let mut blocks = Vec::new();
        for rule in &source.rules {
            let ports = Ports::new(rule.ports.as_deref());
            if ports.is_nothing() {
                continue;
            }
            let Some(peers) = &rule.peers else {
                everybody = everybody.union(&ports);
                continue;
            };
            let class = interner.intern(&ports);
            for peer in peers {
                match peer {
                    Peer::Selector(selector) => {
                        let known = selectors.entry(*selector).or_default();
                        *known = known.union(&ports);
                    }
                    Peer::Block { cidr, except } => {
                        for (first, last) in without(cidr, except) {
                            blocks.push((first, last, class));
                        }
                    }
                }
            }
        }
        let intervals = Intervals::new(&cut(&blocks, &mut interner));
        let words = selectors.keys().max().map_or(0, |highest| *highest as usize / 64 + 1);
        let mut bits = vec![0_u64; words];
        let mut listed: Vec<_> = selectors.into_iter().collect();
        listed.sort_unstable_by_key(|(selector, _)| *selector);
        let mut of_selector = Vec::with_capacity(listed.len());
        for (selector, ports) in &listed {
            bits[*selector as usize / 64] |= 1 << (selector % 64);
            of_selector.push(interner.intern(ports));
        }
        let before = bits
            .iter()
            .scan(0, |sum, word| {
                let before = *sum;
                *sum += word.count_ones();
                Some(before)
            })
            .collect();
        Self {
            source: Arc::clone(source),
            everybody,
            selectors: bits,
            before,
            of_selector,
            intervals,
            classes: Classes::new(&interner.classes),
        }
    }

    /// Whether these are the compiled form of `rules`.
    pub(super) fn is_of(&self, rules: &Arc<Rules>) -> bool {
        Arc::ptr_eq(&self.source, rules) || self.source == *rules
    }

    /// Whether an identity can make a difference.
    pub(super) fn asks_identity(&self) -> bool {
        !self.of_selector.is_empty()
    }

    /// Whether a rule matches the other end on this protocol and port. `identity` gives the selectors that the other end's
    /// identity lists; it is asked only where a selector can make a difference.
    #[inline]
    pub(super) fn allows<'i>(
        &self,
        address: u32,
        identity: impl FnOnce() -> Option<&'i [u32]>,
        proto: u8,
        port: u16,
    ) -> bool {
        self.everybody.contains(proto, port)
            || self.block_allows(address, proto, port)
            || self.asks_identity()
                && identity().is_some_and(|selectors| self.selectors_allow(selectors, proto, port))
    }

    #[inline]
    fn selectors_allow(&self, selectors: &[u32], proto: u8, port: u16) -> bool {
        selectors.iter().any(|selector| {
            let (word, bit) = (*selector as usize / 64, selector % 64);
            let Some(bits) = self.selectors.get(word) else { return false };
            if bits >> bit & 1 == 0 {
                return false;
            }
            let rank = self.before[word] + (bits & ((1 << bit) - 1)).count_ones();
            self.classes.contains(self.of_selector[rank as usize], proto, port)
        })
    }

    #[inline]
    fn block_allows(&self, address: u32, proto: u8, port: u16) -> bool {
        let class = self.intervals.class(address);
        class != 0 && self.classes.contains(class, proto, port)
    }
}

/// Classes by what they allow.
struct Interner {
    classes: Vec<Ports>,
    known: HashMap<Ports, u32>,
    unions: HashMap<Vec<u32>, u32>,
}

impl Default for Interner {
    fn default() -> Self {
        let nothing = Ports::new(Some(&[]));
        Self { known: HashMap::from([(nothing.clone(), 0)]), classes: vec![nothing], unions: HashMap::new() }
    }
}

impl Interner {
    fn intern(&mut self, ports: &Ports) -> u32 {
        if let Some(class) = self.known.get(ports) {
            return *class;
        }
        let class = self.classes.len() as u32;
        self.classes.push(ports.clone());
        self.known.insert(ports.clone(), class);
        class
    }

    /// The class of what any of these allows.
    fn union(&mut self, classes: &[u32]) -> u32 {
        match classes {
            [] => 0,
            [one] => *one,
            _ => {
                if let Some(class) = self.unions.get(classes) {
                    return *class;
                }
                let ports =
                    classes.iter().fold(Ports::default(), |sum, c| sum.union(&self.classes[*c as usize]));
                let class = self.intern(&ports);
                self.unions.insert(classes.to_vec(), class);
                class
            }
        }
    }
}

/// The addresses of a CIDR outside of all exceptions, first and last included.
fn without(cidr: &ipnet::Ipv4Net, except: &[ipnet::Ipv4Net]) -> Vec<(u32, u32)> {
    let bounds = |net: &ipnet::Ipv4Net| (net.network().to_bits(), net.broadcast().to_bits());
    let (first, last) = bounds(cidr);
    let mut holes: Vec<_> = except.iter().map(bounds).collect();
    holes.sort_unstable();
    let mut parts = Vec::with_capacity(holes.len() + 1);
    let mut from = Some(first);
    for (hole_first, hole_last) in holes {
        let Some(start) = from else { break };
        if hole_first > start {
            parts.push((start, (hole_first - 1).min(last)));
        }
        from = if hole_last >= last { None } else { Some(start.max(hole_last + 1)) };
    }
    if let Some(start) = from {
        parts.push((start, last));
    }
    parts
}

/// Cuts ranges with their classes into disjoint blocks, each with the class of all ranges that cover it.
fn cut(ranges: &[(u32, u32, u32)], interner: &mut Interner) -> Vec<Block> {
    // A range opens at its first address and closes behind its last; one that ends at the last address never closes.
    let mut edges: Vec<(u32, bool, u32)> = Vec::with_capacity(ranges.len() * 2);
    for (first, last, class) in ranges {
        edges.push((*first, true, *class));
        if let Some(behind) = last.checked_add(1) {
            edges.push((behind, false, *class));
        }
    }
    edges.sort_unstable();
    let mut blocks = Vec::with_capacity(ranges.len());
    // Where the addresses of one class began that are not yet in a block, and the class.
    let (mut since, mut current) = (0, 0);
    // How many open ranges have each class, ascending by class.
    let mut open: Vec<(u32, u32)> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((at, opens, class)) = edges.next() {
        match (open.binary_search_by_key(&class, |(class, _)| *class), opens) {
            (Ok(i), true) => open[i].1 += 1,
            (Err(i), true) => open.insert(i, (class, 1)),
            (Ok(i), false) => {
                open[i].1 -= 1;
                if open[i].1 == 0 {
                    open.remove(i);
                }
            }
            (Err(_), false) => {}
        }
        if edges.peek().is_some_and(|(next, ..)| *next == at) {
            continue;
        }
        let active: Vec<u32> = open.iter().map(|(class, _)| *class).collect();
        let class = interner.union(&active);
        if class == current {
            continue;
        }
        if current != 0 {
            blocks.extend(Block::of_range(since, at - 1, current));
        }
        (since, current) = (at, class);
    }
    if current != 0 {
        blocks.extend(Block::of_range(since, u32::MAX, current));
    }
    blocks
}
