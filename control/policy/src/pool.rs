//! Equal values kept once: a hundred thousand pods have some hundred labels and sets of ports between them.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashSet;

use crate::Labels;

/// Fewer values than this are never looked through for those that nobody has any more.
const FEW: usize = 1024;

/// Values of one type, each once.
#[derive(Debug)]
pub struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>, foldhash::fast::RandomState>,
    /// How many hold a value that nobody uses: this pool, and others that values go on to.
    holders: usize,
    /// When there are so many, those that nobody else has are thrown out.
    limit: usize,
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// An empty pool. `holders` is 1, and 1 more for each other pool that its values go on to: a value that only pools
    /// have is thrown out.
    #[must_use]
    pub fn new(holders: usize) -> Self {
        Self { values: HashSet::default(), holders, limit: FEW }
    }

    /// The value that is equal to this one, if there is one.
    #[must_use]
    pub fn known(&self, value: &T) -> Option<Arc<T>> {
        self.values.get(value).cloned()
    }

    /// The first of all values that are equal to this one.
    pub fn keep(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        if self.values.len() >= self.limit {
            let holders = self.holders;
            self.values.retain(|v| Arc::strong_count(v) > holders);
            self.limit = (2 * self.values.len()).max(FEW);
        }
        self.values.insert(value.clone());
        value.clone()
    }
}

/// Labels, each set of them once, and each text in them.
#[derive(Debug)]
pub struct LabelPool {
    texts: Pool<str>,
    labels: Pool<BTreeMap<Arc<str>, Arc<str>>>,
}

impl LabelPool {
    /// An empty pool; `holders` as of [`Pool::new`].
    #[must_use]
    pub fn new(holders: usize) -> Self {
        Self { texts: Pool::new(holders), labels: Pool::new(holders) }
    }

    /// The first of all equal texts.
    pub fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.keep(text)
    }

    /// The first of all equal sets of labels.
    pub fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.known(labels) {
            return known;
        }
        // Labels from another pool stay one with that pool's.
        let mut whole = true;
        let mut keep = |text| {
            let kept = self.texts.keep(text);
            whole &= Arc::ptr_eq(&kept, text);
            kept
        };
        let pairs: BTreeMap<_, _> = labels.iter().map(|(k, v)| (keep(k), keep(v))).collect();
        if whole { self.labels.keep(labels) } else { self.labels.keep(&pairs.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(value: usize) -> Labels {
        Arc::new([(Arc::from("app"), Arc::from(value.to_string()))].into())
    }

    #[test]
    fn labels_of_one_pool_are_the_other_ones_too_and_go_when_only_pools_have_them() {
        let (mut first, mut second) = (LabelPool::new(2), LabelPool::new(1));
        let kept = second.labels(&first.labels(&labels(7)));
        assert!(Arc::ptr_eq(&kept, &first.labels(&labels(7))));
        for i in 0..10 * FEW {
            let _ = second.labels(&first.labels(&labels(i)));
        }
        for pool in [&first, &second] {
            assert!(pool.labels.values.len() < 3 * FEW, "{}", pool.labels.values.len());
            assert!(pool.texts.values.len() < 5 * FEW, "{}", pool.texts.values.len());
        }
        assert!(Arc::ptr_eq(&kept, &second.labels(&labels(7))));
    }
}
