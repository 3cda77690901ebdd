//! Words of buckets: claiming one for a key, giving it back, and finding who else claims the same key.

use super::key::FlowKey;
use super::sync::Ordering;
use super::table::{Bucket, Dir, FlowTable, WAYS, Word};

/// Words in use from which on the second bucket is considered. Below, a lookup that hits needs one bucket only; from here
/// on the emptier one is taken, so that no bucket overflows at the table's capacity.
const CROWDED: usize = WAYS - WAYS / 4;

impl FlowTable {
    /// Claims a word; false when both buckets are full.
    pub(super) fn claim(&self, hash: u64, dir: Dir, index: u32) -> bool {
        let (first, second) = self.bucket_numbers(hash);
        let (first, second) = (&self.buckets[first], &self.buckets[second]);
        let word = Word::new(hash, dir, index);
        let used = first.used();
        let crowded = used >= CROWDED && used > second.used();
        let (preferred, otherwise) = if crowded { (second, first) } else { (first, second) };
        preferred.put(word) || otherwise.put(word)
    }

    /// Gives a claimed word back.
    pub(super) fn disclaim(&self, hash: u64, dir: Dir, index: u32) {
        let (first, second) = self.bucket_numbers(hash);
        let word = Word::new(hash, dir, index);
        let gone = self.buckets[first].take(word) || self.buckets[second].take(word);
        debug_assert!(gone, "a flow lost its word");
    }

    /// Calls `each` with the index of every slot but `except` whose `dir`ection has this key, whatever its state, until
    /// one returns something.
    #[inline]
    pub(super) fn claimants<R>(
        &self,
        key: &FlowKey,
        hash: u64,
        except: u32,
        mut each: impl FnMut(u32, Dir) -> Option<R>,
    ) -> Option<R> {
        let (first, second) = self.bucket_numbers(hash);
        let words = key.words();
        let tag = super::table::tag_of(hash);
        for bucket in [first, second] {
            for word in &self.buckets[bucket].0 {
                let word = Word(word.load(Ordering::Acquire));
                if word.tag() == tag
                    && word.0 != 0
                    && word.index() != except
                    && self.slot(word.index()).has_key(word.dir(), words)
                    && let Some(result) = each(word.index(), word.dir())
                {
                    return Some(result);
                }
            }
        }
        None
    }
}

impl Bucket {
    fn used(&self) -> usize {
        self.0.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }

    fn put(&self, word: Word) -> bool {
        self.0.iter().any(|place| {
            place.load(Ordering::Relaxed) == 0
                && place.compare_exchange(0, word.0, Ordering::Release, Ordering::Relaxed).is_ok()
        })
    }

    /// Only the one who unlinks a flow clears its words, so that a load and a store are enough.
    fn take(&self, word: Word) -> bool {
        let place = self.0.iter().find(|place| place.load(Ordering::Relaxed) == word.0);
        if let Some(place) = place {
            place.store(0, Ordering::Release);
        }
        place.is_some()
    }
}
