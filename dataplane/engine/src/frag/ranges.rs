//! Which bytes of a datagram were seen: few disjoint ranges in order, merged where they touch, so that fragments in order
//! (or in reverse order) never need more than one.

use crate::verdict::Drop;

/// Disjoint ranges of one datagram that may be known at once. 64 KiB in packets of 1,500 are 45 fragments, at worst every other one.
const MAX_RANGES: usize = 32;

/// The bytes seen of a datagram.
#[derive(Debug, Clone)]
pub(super) struct Ranges {
    /// Start (included) and end (excluded), ascending.
    ranges: [(u16, u16); MAX_RANGES],
    count: u8,
    /// Where the datagram ends, once its last fragment was seen.
    end: Option<u16>,
}

impl Ranges {
    pub(super) const fn new() -> Self {
        Self { ranges: [(0, 0); MAX_RANGES], count: 0, end: None }
    }

    /// Notes `start..end`, which ends the datagram when `last`.
    ///
    /// # Errors
    /// `FragmentOverlap` when any of it was seen before, or lies behind the datagram's end, or another end was seen;
    /// `FragmentQueueFull` when it leaves more gaps than are remembered. Nothing changes then.
    pub(super) fn insert(&mut self, start: u16, end: u16, last: bool) -> Result<(), Drop> {
        let count = usize::from(self.count);
        let seen = &self.ranges[..count];
        let highest = seen.last().map_or(0, |r| r.1);
        if self.end.is_some_and(|known| last || end > known) || (last && end < highest) {
            return Err(Drop::FragmentOverlap);
        }
        let at = seen.partition_point(|r| r.1 <= start);
        if seen.get(at).is_some_and(|r| r.0 < end) {
            return Err(Drop::FragmentOverlap);
        }
        let joins_before = at > 0 && seen[at - 1].1 == start;
        let joins_after = seen.get(at).is_some_and(|r| r.0 == end);
        match (joins_before, joins_after) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.copy_within(at + 1..count, at);
                self.count -= 1;
            }
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = start,
            (false, false) if count == MAX_RANGES => return Err(Drop::FragmentQueueFull),
            (false, false) => {
                self.ranges.copy_within(at..count, at + 1);
                self.ranges[at] = (start, end);
                self.count += 1;
            }
        }
        if last {
            self.end = Some(end);
        }
        Ok(())
    }

    /// Every byte was seen.
    pub(super) fn complete(&self) -> bool {
        self.count == 1 && self.ranges[0].0 == 0 && self.end == Some(self.ranges[0].1)
    }
}
