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
        self.all || covers(&self.ranges, point(proto, port))
    }
}

fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            // The last port of one protocol never touches the first of another one that is known.
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[inline]
fn covers(ranges: &[(u32, u32)], point: u32) -> bool {
    match ranges {
        // A handful is found faster by looking at each.
        few if few.len() <= 8 => few.iter().any(|(first, last)| (*first..=*last).contains(&point)),
        many => {
            let after = many.partition_point(|(first, _)| *first <= point);
            after > 0 && point <= many[after - 1].1
        }
    }
}

/// Port classes by number, in one piece of memory however many there are.
#[derive(Debug)]
pub(super) struct Classes {
    /// First, for each class, where its ranges begin and end, or [`Classes::ALL`] twice: everything. Behind them the ranges.
    words: Vec<(u32, u32)>,
}

impl Classes {
    const ALL: (u32, u32) = (u32::MAX, u32::MAX);

    pub(super) fn new(classes: &[Ports]) -> Self {
        let mut words = vec![(0, 0); classes.len()];
        for (class, ports) in classes.iter().enumerate() {
            let begin = words.len() as u32;
            words.extend_from_slice(&ports.ranges);
            words[class] = if ports.all { Self::ALL } else { (begin, words.len() as u32) };
        }
        Self { words }
    }

    #[inline]
    pub(super) fn contains(&self, class: u32, proto: u8, port: u16) -> bool {
        match self.words.get(class as usize) {
            None => false,
            Some(&Self::ALL) => true,
            Some((begin, end)) => {
                let ranges = self.words.get(*begin as usize..*end as usize).unwrap_or_default();
                covers(ranges, point(proto, port))
            }
        }
    }
}
