//! Sets of ports: what a rule opens, what two halves of a connection leave of it.

use std::fmt;

use sluice_state::{PortMatch, Protocol};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Ports of every protocol that has some, and whether the protocols without ports are in, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Ports {
    /// TCP, UDP, SCTP: disjoint ranges that do not touch, ascending.
    ranges: [Vec<(u16, u16)>; 3],
    /// ICMP and whatever else has no ports: only a rule without ports opens it.
    others: bool,
}

impl Ports {
    /// Everything.
    pub(super) fn all() -> Self {
        Self { ranges: std::array::from_fn(|_| vec![(0, u16::MAX)]), others: true }
    }

    /// Nothing.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// What a rule's list opens.
    pub(super) fn of(list: Option<&[PortMatch]>) -> Self {
        let Some(list) = list else { return Self::all() };
        let mut ports = Self::none();
        for (protocol, ranges) in PROTOCOLS.iter().zip(&mut ports.ranges) {
            let own = list.iter().filter(|p| p.protocol == *protocol).map(|p| (p.first, p.last));
            *ranges = merge(own.collect());
        }
        ports
    }

    /// True when nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        !self.others && self.ranges.iter().all(Vec::is_empty)
    }

    /// True when everything is in it.
    pub(super) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// What is in either.
    pub(super) fn or(mut self, other: &Self) -> Self {
        for (own, more) in self.ranges.iter_mut().zip(&other.ranges) {
            own.extend_from_slice(more);
            *own = merge(std::mem::take(own));
        }
        self.others |= other.others;
        self
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let ranges = std::array::from_fn(|i| {
            let pairs = self.ranges[i].iter().flat_map(|a| other.ranges[i].iter().map(move |b| (a, b)));
            let common = pairs.map(|(a, b)| (a.0.max(b.0), a.1.min(b.1)));
            merge(common.filter(|(first, last)| first <= last).collect())
        });
        Self { ranges, others: self.others && other.others }
    }

    /// Its parts as text, `80/TCP`, `1-1023/UDP`, `every TCP port`.
    pub(super) fn texts(&self) -> Vec<String> {
        if self.is_all() {
            return vec!["everything".into()];
        }
        let mut texts = Vec::new();
        for (protocol, ranges) in PROTOCOLS.iter().zip(&self.ranges) {
            texts.extend(ranges.iter().map(|range| match *range {
                (0, u16::MAX) => format!("every {protocol} port"),
                (first, last) if first == last => format!("{first}/{protocol}"),
                (first, last) => format!("{first}-{last}/{protocol}"),
            }));
        }
        if self.others {
            texts.push("protocols without ports".into());
        }
        texts
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("nothing") } else { f.write_str(&self.texts().join(", ")) }
    }
}

fn merge(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(ranges: &[(u16, u16)]) -> Ports {
        let list: Vec<_> = ranges
            .iter()
            .map(|(first, last)| PortMatch { protocol: Protocol::Tcp, first: *first, last: *last })
            .collect();
        Ports::of(Some(&list))
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(tcp(&[(81, 90), (80, 80), (100, 100)]).to_string(), "80-90/TCP, 100/TCP");
        assert_eq!(tcp(&[(0, 65_534), (65_535, 65_535)]).to_string(), "every TCP port");
        assert_eq!(tcp(&[]).to_string(), "nothing");
    }

    #[test]
    fn a_rule_without_ports_opens_what_has_none() {
        assert_eq!(Ports::all().and(&tcp(&[(80, 80)])), tcp(&[(80, 80)]));
        assert_eq!(tcp(&[(80, 80)]).or(&Ports::all()).to_string(), "everything");
        assert!(Ports::of(None).is_all());
        assert_eq!(tcp(&[(1, 10), (20, 30)]).and(&tcp(&[(10, 25)])).to_string(), "10/TCP, 20-25/TCP");
        assert!(tcp(&[(1, 10)]).and(&tcp(&[(11, 12)])).is_empty());
    }
}
