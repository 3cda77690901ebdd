//! A flow that was judged before something changed is judged again, at its next packet.

use super::{Matched, Moment, Worker, open, serve};
use crate::counters::Event;
use crate::flow::{Dir, Origin};
use crate::frame::Frame;

/// What became of a flow that was judged before something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recheck {
    /// It goes on.
    Stays,
    /// Policy forbids it now; it is gone.
    Revoked,
    /// It would go elsewhere now.
    Moved,
}

impl<F: Frame> Worker<F> {
    /// Asks services and policy again.
    #[cold]
    pub(super) fn recheck(&mut self, moment: Moment<'_>, matched: Matched) -> Recheck {
        let Moment { snapshot, .. } = moment;
        let flow = self.table.flow(matched.id);
        self.counters.add(Event::FlowsRechecked, 1);
        let (original, translated) = (flow.original(), flow.translated());
        let holds = flow.origin() != Origin::Pod || serve::still_holds(snapshot, &original, &translated);
        if !holds && matched.dir == Dir::Forward {
            return Recheck::Moved;
        }
        let judged = open::judged(&original, &translated);
        if !snapshot.policy.rechecks() || snapshot.judge(&judged, flow.origin()).is_ok() {
            // What an endpoint that is gone still answers is not lost; the client's next packet goes to another one.
            if holds {
                flow.set_policy_generation(snapshot.policy.generation());
            }
            return Recheck::Stays;
        }
        self.local.remove(&self.table, matched.id);
        self.counters.add(Event::FlowsRevoked, 1);
        Recheck::Revoked
    }
}
