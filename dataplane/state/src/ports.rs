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
        for (word, bits) in words_of(range) {
            self.words[word] |= bits;
        }
    }

    /// Takes every port of a range away.
    pub fn remove_range(&mut self, range: PortRange) {
        for (word, bits) in words_of(range) {
            self.words[word] &= !bits;
        }
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
        for (word, base) in self.words.iter().zip((0u16..=u16::MAX).step_by(64)) {
            let mut rest = *word;
            while rest != 0 {
                // A word has few runs of ones however many ports it stands for.
                let start = rest.trailing_zeros();
                let length = (rest >> start).trailing_ones();
                let first = base + start as u16;
                let last = first + (length - 1) as u16;
                match ranges.last_mut() {
                    Some(before) if before.last.checked_add(1) == Some(first) => before.last = last,
                    _ => ranges.push(PortRange { first, last }),
                }
                rest =
                    rest.checked_shr(start + length).and_then(|r| r.checked_shl(start + length)).unwrap_or(0);
            }
        }
        ranges
    }
}

/// The words that a range has bits in, and which.
fn words_of(range: PortRange) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (usize::from(range.first), usize::from(range.last));
    (first >> 6..=last >> 6).map(move |word| {
        let from = if word == first >> 6 { u64::MAX << (first & 63) } else { u64::MAX };
        let to = if word == last >> 6 { u64::MAX >> (63 - (last & 63)) } else { u64::MAX };
        (word, from & to)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whole_words_are_what_single_ports_are(ranges in proptest::collection::vec((any::<bool>(), any::<u16>(), any::<u16>()), 0..8)) {
            let (mut by_words, mut by_ports) = (PortSet::default(), PortSet::default());
            for (insert, a, b) in ranges {
                let range = PortRange { first: a.min(b), last: a.max(b) };
                if insert {
                    by_words.insert_range(range);
                    (range.first..=range.last).for_each(|port| by_ports.insert(port));
                } else {
                    by_words.remove_range(range);
                    (range.first..=range.last).for_each(|port| by_ports.remove(port));
                }
            }
            prop_assert!(by_words == by_ports);
            let listed: Vec<u16> = by_words.ranges().iter().flat_map(|r| r.first..=r.last).collect();
            prop_assert!(listed == by_words.iter().collect::<Vec<_>>());
            prop_assert!(by_words.ranges().windows(2).all(|w| u32::from(w[0].last) + 1 < u32::from(w[1].first)));
        }
    }
}
