//! The atomics of the table, or loom's when the protocol is model-checked.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Indices of free slots that no worker holds in its own cache.
#[cfg(not(loom))]
pub(super) struct FreeQueue(crossbeam::queue::ArrayQueue<u32>);

#[cfg(not(loom))]
impl FreeQueue {
    pub(super) fn new(capacity: usize) -> Self {
        Self(crossbeam::queue::ArrayQueue::new(capacity))
    }

    /// There is room for every slot of the table, and an index is never in two places.
    pub(super) fn push(&self, index: u32) {
        let pushed = self.0.push(index);
        debug_assert!(pushed.is_ok(), "an index was freed twice");
    }

    pub(super) fn pop(&self) -> Option<u32> {
        self.0.pop()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The same under loom, which does not see into crossbeam's queue.
#[cfg(loom)]
pub(super) struct FreeQueue(loom::sync::Mutex<Vec<u32>>);

#[cfg(loom)]
impl FreeQueue {
    pub(super) fn new(capacity: usize) -> Self {
        Self(loom::sync::Mutex::new(Vec::with_capacity(capacity)))
    }

    pub(super) fn push(&self, index: u32) {
        self.0.lock().unwrap().push(index);
    }

    pub(super) fn pop(&self) -> Option<u32> {
        self.0.lock().unwrap().pop()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}
