//! Disjoint intervals of addresses, searched by cache lines.
//!
//! A thousand CIDRs make two thousand interval starts. A binary search over them touches a new cache line at nearly each
//! of its eleven steps, and the memory of many pods' policies does not stay in a cache. So the starts lie in lines of sixteen,
//! above them every sixteenth start, and so on: three lines for two thousand starts, four for sixty thousand, wherever
//! the addresses lie.
//!
//! ```text
//!  level 0    [0 . . . . . . . . . . . . . . .]              one line: the first start of each line below
//!  level 1    [0 . . .] [. . . .] ...                        likewise
//!  level 2    [0 a b c] [d e f g] [h i j k] ...              all starts
//! ```

/// Keys of a line: 64 bytes.
const WAYS: usize = 16;

/// Levels that are enough for every address to begin an interval of its own.
const LEVELS: usize = 8;

/// Sixteen addresses, ascending, with the top bit turned: vectors are compared as signed numbers.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([i32; WAYS]);

#[inline]
const fn turned(address: u32) -> i32 {
    (address ^ 0x8000_0000) as i32
}

impl Line {
    /// A line of these keys; keys that are missing are above every other.
    fn new(keys: &[u32]) -> Self {
        let mut line = [i32::MAX; WAYS];
        for (place, key) in line.iter_mut().zip(keys) {
            *place = turned(*key);
        }
        Self(line)
    }

    /// How many of its keys are not above `key`.
    #[inline]
    fn rank(&self, key: i32) -> u32 {
        self.0.iter().map(|start| u32::from(*start <= key)).sum()
    }
}

/// Which interval an address lies in.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// All levels, the top first.
    lines: Vec<Line>,
    /// Where the lines of each level begin, and where the last one ends.
    levels: [u32; LEVELS + 1],
    depth: u32,
    len: u32,
}

impl Intervals {
    /// The intervals that begin at `starts`: ascending, the first one 0. None at all is possible.
    pub(super) fn new(starts: &[u32]) -> Self {
        let mut levels: Vec<Vec<Line>> = Vec::new();
        let mut keys = starts.to_vec();
        while !keys.is_empty() {
            let lines: Vec<Line> = keys.chunks(WAYS).map(Line::new).collect();
            keys = if lines.len() > 1 { keys.iter().step_by(WAYS).copied().collect() } else { Vec::new() };
            levels.push(lines);
        }
        let mut intervals = Self { depth: levels.len() as u32, len: starts.len() as u32, ..Self::default() };
        for (begin, level) in intervals.levels.iter_mut().zip(levels.into_iter().rev()) {
            *begin = intervals.lines.len() as u32;
            intervals.lines.extend(level);
        }
        let end = intervals.lines.len() as u32;
        intervals.levels[intervals.depth as usize..].fill(end);
        intervals
    }

    /// The number of the interval with this address; none when there are no intervals.
    #[inline]
    pub(super) fn find(&self, address: u32) -> Option<usize> {
        let (key, mut at) = (turned(address), 0);
        for level in self.levels.windows(2).take(self.depth as usize) {
            // Padding counts for the highest address alone: what lies behind a level's end is its last line.
            let line = self.lines.get((level[0] + at).min(level[1] - 1) as usize)?;
            at = at * WAYS as u32 + line.rank(key).saturating_sub(1);
        }
        self.len.checked_sub(1).map(|last| at.min(last) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Intervals;

    proptest! {
        #[test]
        fn a_search_by_lines_finds_what_a_search_by_halves_finds(
            mut starts in prop::collection::btree_set(prop_oneof![any::<u32>(), 0_u32..600, Just(u32::MAX)], 0..700),
            addresses in prop::collection::vec(prop_oneof![any::<u32>(), 0_u32..600, Just(u32::MAX)], 64),
        ) {
            starts.insert(0);
            let starts: Vec<u32> = starts.into_iter().collect();
            let intervals = Intervals::new(&starts);
            for address in addresses.into_iter().chain(starts.iter().copied()) {
                prop_assert_eq!(intervals.find(address), Some(starts.partition_point(|s| *s <= address) - 1));
            }
        }
    }

    #[test]
    fn nothing_is_in_none() {
        assert_eq!(Intervals::new(&[]).find(7), None);
    }
}
