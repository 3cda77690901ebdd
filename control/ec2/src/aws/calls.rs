//! Calls, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cloud::Action;

/// The calls that a client has made, by action. A call that is sent again is one call.
#[derive(Debug, Default)]
pub struct Calls([Counters; Action::ALL.len()]);

#[derive(Debug, Default)]
struct Counters {
    made: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

/// The calls of one action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called {
    /// Which.
    pub action: Action,
    /// How many.
    pub made: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How long all of them took.
    pub took: Duration,
}

impl Calls {
    pub(super) fn made(&self, action: Action, well: bool, took: Duration) {
        let at = Action::ALL.iter().position(|known| *known == action);
        let Some(counters) = at.and_then(|at| self.0.get(at)) else { return };
        counters.made.fetch_add(1, Ordering::Relaxed);
        counters.failed.fetch_add(u64::from(!well), Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Every action that was called.
    pub fn all(&self) -> impl Iterator<Item = Called> + '_ {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let called = Action::ALL.iter().zip(&self.0).map(move |(action, counters)| Called {
            action: *action,
            made: load(&counters.made),
            failed: load(&counters.failed),
            took: Duration::from_nanos(load(&counters.nanoseconds)),
        });
        called.filter(|called| called.made > 0)
    }
}
