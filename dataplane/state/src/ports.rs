//! Port ranges and the set of ports that Sluice owns on the node's address.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An inclusive range of ports, `1024-29999` as text; a single port as `80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is not a port range: FIRST-LAST or PORT, each 1 to 65535, FIRST <= LAST");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |part: &str| part.trim().parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(refuse);
        let (first, last) = (parse(first)?, parse(last)?);
        (first <= last).then_some(Self { first, last }).ok_or_else(refuse)
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// The ports that Sluice may use as a source on the node's address, before conflicts with the host are taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnatPorts {
    /// Ranges that Sluice owns.
    pub ranges: Vec<PortRange>,
    /// Ranges taken out of those: NodePorts, hostPorts, what the operator keeps.
    pub exclude: Vec<PortRange>,
}

impl Default for SnatPorts {
    fn default() -> Self {
        Self {
            ranges: vec![PortRange { first: 1024, last: 29_999 }, PortRange { first: 61_000, last: 65_535 }],
            exclude: Vec::new(),
        }
    }
}

impl SnatPorts {
    /// The set that the ranges without the exclusions make.
    #[must_use]
    pub fn set(&self) -> PortSet {
        let mut set = PortSet::default();
        for range in &self.ranges {
            set.insert_range(*range);
        }
        for range in &self.exclude {
            set.remove_range(*range);
        }
        set
    }
}

/// A set of ports: one bit for each of 65,536.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; 1024]>,
}

impl Default for PortSet {
    fn default() -> Self {
        Self { words: Box::new([0; 1024]) }
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges().iter().map(ToString::to_string)).finish()
    }
}

impl PortSet {
    /// Whether the port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }

    /// Adds one port.
    pub fn insert(&mut self, port: u16) {
        self.words[usize::from(port >> 6)] |= 1 << (port & 63);
    }

    /// Takes one port away.
    pub fn remove(&mut self, port: u16) {
        self.words[usize::from(port >> 6)] &= !(1 << (port & 63));
    }

    /// Adds every port of a range.
    pub fn insert_range(&mut self, range: PortRange) {
        (range.first..=range.last).for_each(|port| self.insert(port));
    }

    /// Takes every port of a range away.
    pub fn remove_range(&mut self, range: PortRange) {
        (range.first..=range.last).for_each(|port| self.remove(port));
    }

    /// Number of ports in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// True when no port is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The bits, 64 ports a word, port 0 in the lowest bit of the first: the layout of the BPF map.
    #[must_use]
    pub fn words(&self) -> &[u64; 1024] {
        &self.words
    }

    /// Every port of the set in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }

    /// The set as the fewest ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        // By runs of bits: it is asked for with every change of anything.
        for (start, word) in (0_u16..=u16::MAX).step_by(64).zip(self.words.iter()) {
            let (mut rest, mut port) = (*word, u32::from(start));
            while rest != 0 {
                let gap = rest.trailing_zeros();
                let run = (rest >> gap).trailing_ones();
                let ends =
                    [port + gap, port + gap + run - 1].map(|end| u16::try_from(end).unwrap_or(u16::MAX));
                let [first, last] = ends;
                match ranges.last_mut() {
                    Some(before) if before.last.checked_add(1) == Some(first) => before.last = last,
                    _ => ranges.push(PortRange { first, last }),
                }
                port += gap + run;
                rest = (rest >> gap).checked_shr(run).unwrap_or(0);
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_its_ranges_wherever_they_begin_and_end() {
        for text in
            ["1-65535", "63", "64", "63-64", "1-62,64-127,129-65535", "65535", "1,3,5,7,64-128,192-255,257"]
        {
            let mut set = PortSet::default();
            text.split(',').for_each(|range| set.insert_range(range.parse().unwrap()));
            let shown: Vec<_> = set.ranges().iter().map(ToString::to_string).collect();
            assert_eq!(shown.join(","), text);
            assert_eq!(set.iter().count(), set.len() as usize);
        }
        assert!(PortSet::default().ranges().is_empty());
    }
}
