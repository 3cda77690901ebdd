//! The two clocks: the monotonic one that the engine lives by, and the wall clock that people read.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic() -> u64 {
    // The call cannot fail: the clock is in every kernel and the pointer is nix's own.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec().unsigned_abs() * 1_000_000_000 + t.tv_nsec().unsigned_abs())
}

/// Nanoseconds since 1970; 0 on a machine whose clock stands before.
#[must_use]
pub fn unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What to add to a monotonic time to have a time since 1970.
#[must_use]
pub fn offset() -> u64 {
    unix().wrapping_sub(monotonic())
}
