//! A flow that was judged before something changed is judged again, at its next packet.

use super::{Matched, Moment, Worker, open, serve};
use crate::counters::Event;
use crate::flow::{Dir, Origin, Phase};
use crate::frame::Frame;
use crate::wire::Parsed;

/// What became of a flow that was judged before something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recheck {
    /// It goes on.
    Stays,
    /// Policy forbids it now.
    Revoked,
    /// It would go elsewhere now, or begins anew: the packet is judged as if there had been no flow.
    Moved,
}

impl<F: Frame> Worker<F> {
    /// Asks services and policy again.
    #[cold]
    pub(super) fn recheck(&mut self, moment: Moment<'_>, matched: Matched, parsed: &Parsed) -> Recheck {
        let Moment { now, snapshot } = moment;
        let flow = self.table.flow(matched.id);
        let revoked = flow.phase() == Phase::Revoked;
        if revoked && open::stance(parsed) == open::Stance::Opens {
            // The same ports, but another connection.
            return Recheck::Moved;
        }
        if !revoked {
            self.counters.add(Event::FlowsRechecked, 1);
        }
        let (original, translated) = (flow.original(), flow.translated());
        let holds = flow.origin() != Origin::Pod || serve::still_holds(snapshot, &original, &translated);
        if !holds && matched.dir == Dir::Forward {
            return Recheck::Moved;
        }
        let judged = open::judged(&original, &translated);
        if !snapshot.policy.rechecks() || snapshot.judge(&judged, flow.origin()).is_ok() {
            if revoked {
                // Allowed again: it is picked up where it is now.
                return Recheck::Moved;
            }
            // What an endpoint that is gone still answers is not lost; the client's next packet goes to another one.
            if holds {
                flow.set_policy_generation(snapshot.policy.generation());
            }
            return Recheck::Stays;
        }
        if !revoked {
            self.counters.add(Event::FlowsRevoked, 1);
        }
        if open::may_be_under_way(parsed) {
            // Zero is no generation: every packet of it is asked about.
            flow.set_policy_generation(0);
            self.table.revoke(matched.id, matched.dir, now);
        } else {
            self.local.remove(&self.table, matched.id);
        }
        Recheck::Revoked
    }
}
