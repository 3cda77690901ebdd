//! Port classes: which protocols and ports a rule, or several rules together, allow.

use sluice_state::PortMatch;

/// A set of protocols and ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Ports {
    /// Everything, ICMP and unknown protocols too.
    all: bool,
    /// Disjoint, ascending; protocol above, port below, first and last included.
    ranges: Vec<(u32, u32)>,
}

/// Protocol and port as one number.
#[inline]
const fn point(proto: u8, port: u16) -> u32 {
    (proto as u32) << 16 | port as u32
}

impl Ports {
    /// What a rule with these ports allows; none: everything.
    pub(super) fn new(ports: Option<&[PortMatch]>) -> Self {
        let Some(ports) = ports else { return Self { all: true, ranges: Vec::new() } };
        let range = |p: &PortMatch| (point(p.protocol.number(), p.first), point(p.protocol.number(), p.last));
        Self { all: false, ranges: merged(ports.iter().map(range).collect()) }
    }

    /// What any of the two allows.
    pub(super) fn union(&self, other: &Self) -> Self {
        if self.all || other.all {
            return Self { all: true, ranges: Vec::new() };
        }
        Self { all: false, ranges: merged([self.ranges.as_slice(), &other.ranges].concat()) }
    }

    pub(super) fn is_nothing(&self) -> bool {
        !self.all && self.ranges.is_empty()
    }

    #[inline]
    pub(super) fn contains(&self, proto: u8, port: u16) -> bool {
        let point = point(proto, port);
        if self.all {
            return true;
        }
        match self.ranges.as_slice() {
            // A handful is found faster by looking at each.
            few if few.len() <= 8 => few.iter().any(|(first, last)| (*first..=*last).contains(&point)),
            many => {
                let after = many.partition_point(|(first, _)| *first <= point);
                after > 0 && point <= many[after - 1].1
            }
        }
    }
}

fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            // Ports of two protocols never touch: a protocol's last point and the next one's first may, which is harmless.
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}
