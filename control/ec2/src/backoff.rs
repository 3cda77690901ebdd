//! How long to wait after an EC2 call failed, by what the failure means.
//!
//! Every node of a cluster runs this code, and they fail together: what is throttled waits a random part of a growing
//! delay, so that they do not come back together. What only an operator can mend is tried again rarely, not never: a
//! permission that is granted should not need a restart.

use crate::cloud::{Action, CloudError, ErrorKind};
use crate::moment::Moment;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a subnet without free addresses rests, and how long a call rests that was denied (VPC CNI: 120 s).
pub const REST: Duration = Duration::from_secs(120);

/// The longest delay between two tries of one call that may succeed by itself.
pub const LONGEST: Duration = Duration::from_secs(60);

/// How long an error that passes by itself is worth telling when the action was not needed again.
pub const NEWS: Duration = Duration::from_secs(600);

/// Numbers that look random (xorshift64). Enough for jitter and client tokens; nothing secret hangs on them.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// `base` doubled for every earlier try, at most [`LONGEST`], and of that a random part between a half and the whole.
pub fn delay(base: Duration, tries: u32, dice: &mut Dice) -> Duration {
    let whole = base.saturating_mul(1_u32.checked_shl(tries.min(20)).unwrap_or(u32::MAX)).min(LONGEST);
    let half = u64::try_from((whole / 2).as_millis()).unwrap_or(u64::MAX);
    whole / 2 + Duration::from_millis(dice.roll() % (half + 1))
}

/// What is not to be tried before a time, and why.
#[derive(Debug, Clone, Default)]
pub struct Holds {
    held: BTreeMap<Action, (u32, Moment)>,
    troubles: BTreeMap<Action, (CloudError, Moment)>,
}

impl Holds {
    /// Until when an action rests; `None` if it may be tried.
    pub fn of(&self, action: Action, now: Moment) -> Option<Moment> {
        self.held.get(&action).map(|(_, until)| *until).filter(|until| *until > now)
    }

    /// An action failed. Says until when it rests.
    pub fn failed(&mut self, error: &CloudError, now: Moment, dice: &mut Dice) -> Moment {
        let (tries, _) = self.held.get(&error.action).copied().unwrap_or_default();
        let wait = match error.kind {
            // The subnet rests, not the action.
            ErrorKind::Exhausted(_) => Duration::ZERO,
            ErrorKind::Gone | ErrorKind::Limit(_) => delay(Duration::from_secs(5), tries, dice),
            kind if kind.passes() => delay(Duration::from_millis(500), tries, dice),
            _ => REST,
        };
        let until = now.after(wait);
        self.held.insert(error.action, (tries.saturating_add(1), until));
        self.troubles.insert(error.action, (error.clone(), now));
        until
    }

    /// Lets an action rest although it did not fail itself.
    pub fn rest(&mut self, action: Action, until: Moment) {
        let (tries, _) = self.held.get(&action).copied().unwrap_or_default();
        self.held.insert(action, (tries, until));
    }

    /// An action succeeded.
    pub fn succeeded(&mut self, action: Action) {
        self.held.remove(&action);
        self.troubles.remove(&action);
    }

    /// The last error of every action that has not succeeded since. One that passes by itself is news for [`NEWS`].
    pub fn troubles(&self, now: Moment) -> impl Iterator<Item = &CloudError> {
        let told = self.troubles.values().filter(move |(e, at)| !e.kind.passes() || now.since(*at) < NEWS);
        told.map(|(error, _)| error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_differ() {
        let mut dice = Dice::new(7);
        for (tries, whole) in [(0, 500), (1, 1_000), (5, 16_000), (7, 60_000), (40, 60_000)] {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..50 {
                let found = delay(Duration::from_millis(500), tries, &mut dice).as_millis();
                assert!((whole / 2..=whole).contains(&found), "{tries}: {found}");
                seen.insert(found);
            }
            assert!(seen.len() > 20, "{tries}: {seen:?}");
        }
    }

    #[test]
    fn what_an_operator_must_mend_rests_longer_than_what_passes() {
        let (mut holds, mut dice, now) = (Holds::default(), Dice::new(1), Moment(1_000));
        let error = |code: &str| CloudError::answered(Action::CreateNetworkInterface, 400, code, "", None);
        let denied = holds.failed(&error("UnauthorizedOperation"), now, &mut dice);
        assert_eq!(denied, now.after(REST));
        assert_eq!(holds.of(Action::CreateNetworkInterface, now), Some(denied));
        assert_eq!(holds.of(Action::AttachNetworkInterface, now), None);
        assert_eq!(holds.troubles(now).count(), 1);
        holds.succeeded(Action::CreateNetworkInterface);
        assert_eq!((holds.of(Action::CreateNetworkInterface, now), holds.troubles(now).count()), (None, 0));
        let throttled = holds.failed(&error("RequestLimitExceeded"), now, &mut dice);
        assert!(throttled.since(now) <= Duration::from_millis(500));
        assert_eq!((holds.troubles(now).count(), holds.troubles(now.after(NEWS)).count()), (1, 0));
        let full = holds.failed(&error("InsufficientCidrBlocks"), now, &mut dice);
        assert_eq!(full, now);
    }
}
