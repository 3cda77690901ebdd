//! Disjoint blocks of addresses with the port class of each, searched by cache lines.
//!
//! The memory of many pods' policies does not stay in a cache: what a search costs is the lines that it touches and how
//! many of them there are. So ten blocks lie in one line, each with its start, its size and its class, in six bytes; above
//! them every tenth start in lines of sixteen, and so on: three lines for a thousand blocks, of which the upper two are few
//! enough to stay near, and the answer is in the last one. What lies between the blocks takes no memory.
//!
//! ```text
//!  top        [a . . . . . . . . . . . . . . .]                       the first start of each line below
//!  inner      [a . . .] [. . . .] ...                                 likewise
//!  leaves     [a b c | sizes | classes] [d e | sizes | classes] ...   all blocks
//! ```

/// Keys of an inner line: 64 bytes.
const WAYS: usize = 16;

/// Blocks of a leaf: 60 bytes.
const LEAF: usize = 10;

/// Inner levels that are enough for every address to be a block of its own.
const LEVELS: usize = 8;

/// In a leaf, a class that takes more than a byte: it is looked up elsewhere.
const WIDE: u8 = u8::MAX;

/// Addresses, ascending, with the top bit turned: vectors are compared as signed numbers.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([i32; WAYS]);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Leaf {
    starts: [i32; LEAF],
    /// How many low bits are free in each block.
    sizes: [u8; LEAF],
    classes: [u8; LEAF],
}

/// Addresses of one prefix that have one class: `1 << size` of them, from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: u32,
    pub(super) size: u8,
    pub(super) class: u32,
}

impl Block {
    const fn last(self) -> u32 {
        self.start | ((1_u64 << self.size) - 1) as u32
    }

    /// The blocks that a range is made of, first and last address included.
    pub(super) fn of_range(first: u32, last: u32, class: u32) -> impl Iterator<Item = Self> {
        let mut next = (first <= last).then_some(first);
        std::iter::from_fn(move || {
            let start = next?;
            let left = u64::from(last - start) + 1;
            // As large as the alignment of its start and what is left of the range allow.
            let size = start.trailing_zeros().min(left.ilog2());
            let end = u64::from(start) + (1 << size);
            next = u32::try_from(end).ok().filter(|end| *end <= last);
            Some(Self { start, size: size as u8, class })
        })
    }
}

#[inline]
const fn turned(address: u32) -> i32 {
    (address ^ 0x8000_0000) as i32
}

/// These keys; those that are missing are above every other.
fn keys<const N: usize>(starts: impl Iterator<Item = u32>) -> [i32; N] {
    let mut keys = [i32::MAX; N];
    for (place, start) in keys.iter_mut().zip(starts) {
        *place = turned(start);
    }
    keys
}

/// How many of the keys are not above `key`.
#[inline]
fn rank<const N: usize>(keys: &[i32; N], key: i32) -> usize {
    keys.iter().map(|start| u32::from(*start <= key)).sum::<u32>() as usize
}

impl Leaf {
    fn new(blocks: &[Block]) -> Self {
        // Only the highest address is not below the keys that are missing.
        let highest = blocks.last().filter(|block| block.last() == u32::MAX).map_or(0, |block| block.class);
        let mut leaf = Self {
            starts: keys(blocks.iter().map(|block| block.start)),
            sizes: [0; LEAF],
            classes: [narrow(highest); LEAF],
        };
        for (place, block) in blocks.iter().enumerate() {
            (leaf.sizes[place], leaf.classes[place]) = (block.size, narrow(block.class));
        }
        leaf
    }
}

fn narrow(class: u32) -> u8 {
    u8::try_from(class).unwrap_or(WIDE)
}

/// The class of every address.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    /// All inner levels, the top first.
    lines: Vec<Line>,
    /// Where the lines of each level begin, and where the last one ends.
    levels: [u32; LEVELS + 1],
    depth: u32,
    leaves: Vec<Leaf>,
    /// The class of every block, where one of them takes more than a byte.
    wide: Vec<u32>,
}

impl Intervals {
    /// `blocks`: disjoint, ascending; none at all is possible. An address in none of them has class 0.
    pub(super) fn new(blocks: &[Block]) -> Self {
        let mut firsts: Vec<u32> = blocks.iter().step_by(LEAF).map(|block| block.start).collect();
        let mut levels: Vec<Vec<Line>> = Vec::new();
        while firsts.len() > 1 {
            levels.push(firsts.chunks(WAYS).map(|chunk| Line(keys(chunk.iter().copied()))).collect());
            firsts = firsts.into_iter().step_by(WAYS).collect();
        }
        let is_wide = blocks.iter().any(|block| narrow(block.class) == WIDE);
        let mut intervals = Self {
            depth: levels.len() as u32,
            leaves: blocks.chunks(LEAF).map(Leaf::new).collect(),
            wide: if is_wide { blocks.iter().map(|block| block.class).collect() } else { Vec::new() },
            ..Self::default()
        };
        for (begin, level) in intervals.levels.iter_mut().zip(levels.into_iter().rev()) {
            *begin = intervals.lines.len() as u32;
            intervals.lines.extend(level);
        }
        let end = intervals.lines.len() as u32;
        intervals.levels[intervals.depth as usize..].fill(end);
        intervals
    }

    /// The class of this address.
    #[inline]
    pub(super) fn class(&self, address: u32) -> u32 {
        let (key, mut at) = (turned(address), 0);
        for level in self.levels.windows(2).take(self.depth as usize) {
            // Padding counts for the highest address alone: what lies behind a level's end is its last line.
            let Some(line) = self.lines.get((level[0] as usize + at).min(level[1] as usize - 1)) else {
                return 0;
            };
            at = at * WAYS + rank(&line.0, key).saturating_sub(1);
        }
        at = at.min(self.leaves.len().saturating_sub(1));
        let Some(leaf) = self.leaves.get(at) else { return 0 };
        let Some(place) = rank(&leaf.starts, key).checked_sub(1) else { return 0 };
        let free = u64::from((leaf.starts[place] ^ key) as u32) >> leaf.sizes[place];
        match leaf.classes[place] {
            _ if free != 0 => 0,
            WIDE => self.wide.get(at * LEAF + place).or(self.wide.last()).copied().unwrap_or(0),
            class => class.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Block, Intervals};

    proptest! {
        #[test]
        fn a_search_by_lines_finds_what_a_search_by_halves_finds(
            mut starts in prop::collection::btree_set(prop_oneof![any::<u32>(), 0_u32..600, Just(u32::MAX)], 0..700),
            addresses in prop::collection::vec(prop_oneof![any::<u32>(), 0_u32..600, Just(u32::MAX)], 64),
            wide in any::<bool>(),
            gaps in any::<bool>(),
        ) {
            starts.insert(0);
            let starts: Vec<u32> = starts.into_iter().collect();
            let class = |n: usize| match n as u32 {
                n if gaps && n.is_multiple_of(2) => 0,
                n if wide => n * 3,
                n => n % 5,
            };
            let last = |n: usize| starts.get(n + 1).map_or(u32::MAX, |next| next - 1);
            let ranges = (0..starts.len()).filter(|n| class(*n) != 0);
            let blocks: Vec<Block> = ranges.flat_map(|n| Block::of_range(starts[n], last(n), class(n))).collect();
            let intervals = Intervals::new(&blocks);
            for address in addresses.into_iter().chain((0..starts.len()).flat_map(|n| [starts[n], last(n)])) {
                let interval = starts.partition_point(|start| *start <= address) - 1;
                prop_assert_eq!(intervals.class(address), class(interval));
            }
        }
    }

    #[test]
    fn nothing_is_in_none() {
        assert_eq!(Intervals::new(&[]).class(7), 0);
    }

    #[test]
    fn a_range_is_made_of_as_few_blocks_as_can_be() {
        let of = |first, last| {
            Block::of_range(first, last, 1).map(|block| (block.start, block.size)).collect::<Vec<_>>()
        };
        assert_eq!(of(0, u32::MAX), [(0, 32)]);
        assert_eq!(of(u32::MAX, u32::MAX), [(u32::MAX, 0)]);
        assert_eq!(of(1, 6), [(1, 0), (2, 1), (4, 1), (6, 0)]);
        assert_eq!(of(5, 4), []);
    }
}
