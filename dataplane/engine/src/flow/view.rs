//! Reading a flow: by a worker in its step, and by anybody who wants a list.

use crate::wire::Rewrite;

use super::key::FlowKey;
use super::phase::{Phase, State};
use super::slot::{Origin, Slot};
use super::sync::{Ordering, fence};
use super::table::{Dir, FlowId, FlowTable};

/// A flow as a worker sees it within a step.
#[derive(Clone, Copy)]
pub struct Flow<'a> {
    slot: &'a Slot,
}

impl<'a> Flow<'a> {
    #[inline]
    pub(super) const fn new(slot: &'a Slot) -> Self {
        Self { slot }
    }

    #[inline]
    pub(super) const fn slot(&self) -> &'a Slot {
        self.slot
    }

    /// Key of the packets that opened it, as they came in.
    #[inline]
    #[must_use]
    pub fn original(&self) -> FlowKey {
        self.slot.key(Dir::Forward)
    }

    /// Key of these packets as they go out.
    #[inline]
    #[must_use]
    pub fn translated(&self) -> FlowKey {
        self.slot.key(Dir::Reply).reversed()
    }

    /// Key that packets of `dir` come in with.
    #[inline]
    #[must_use]
    pub fn key(&self, dir: Dir) -> FlowKey {
        self.slot.key(dir)
    }

    /// What packets of `dir` get. Nothing is computed: the deltas were, when the flow was opened.
    #[inline]
    #[must_use]
    pub fn rewrite(&self, dir: Dir) -> Rewrite {
        self.slot.rewrite(dir)
    }

    /// Who opened it.
    #[inline]
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.slot.origin()
    }

    /// The word that was given for packets of `dir` when the flow was opened.
    #[inline]
    #[must_use]
    pub fn egress(&self, dir: Dir) -> u32 {
        self.slot.egress(dir)
    }

    /// The policy generation under which the flow was last allowed.
    #[inline]
    #[must_use]
    pub fn policy_generation(&self) -> u32 {
        self.slot.policy_generation().load(Ordering::Relaxed) as u32
    }

    /// Notes that the flow is allowed under `generation`.
    #[inline]
    pub fn set_policy_generation(&self, generation: u32) {
        self.slot.policy_generation().store(u64::from(generation), Ordering::Relaxed);
    }

    /// Where its protocol is.
    #[inline]
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.slot.load_state().phase()
    }

    /// Whether it can still be found: false once it was removed, also by another worker.
    #[inline]
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.slot.load_state().is_live()
    }

    /// Whether no packet of `dir` was counted yet.
    #[must_use]
    pub(crate) fn is_unused(&self, dir: Dir) -> bool {
        self.slot.meter(dir).packets.load(Ordering::Relaxed) == 0
    }

    /// The slot's generation, which tells two flows with one number apart in reports.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.load_state().generation()
    }
}

/// A flow at one moment, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its number.
    pub id: FlowId,
    /// Tells two flows with one number apart.
    pub generation: u32,
    /// Key of the packets that opened it, as they came in.
    pub original: FlowKey,
    /// Key of these packets as they go out.
    pub translated: FlowKey,
    /// Who opened it.
    pub origin: Origin,
    /// Where its protocol is.
    pub phase: Phase,
    /// Both directions were seen.
    pub replied: bool,
    /// The words that were given for the two directions.
    pub egress: [u32; 2],
    /// The policy generation under which it was last allowed.
    pub policy_generation: u32,
    /// Since it was opened or reopened, ns.
    pub age: u64,
    /// Until it expires unless a packet comes, ns.
    pub expires_in: u64,
    /// The direction of the packets that opened it.
    pub forward: DirectionRecord,
    /// The way back.
    pub reply: DirectionRecord,
}

/// One direction of a [`FlowRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectionRecord {
    /// Packets since the flow was opened or reopened.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since its last packet, ns.
    pub idle: u64,
}

impl FlowTable {
    /// Every flow that is alive at `now`. Any thread may ask while workers run: a flow that is removed meanwhile is left
    /// out, never shown half.
    pub fn flows(&self, now: u64) -> impl Iterator<Item = FlowRecord> + '_ {
        (1..self.slots.len() as u32).filter_map(move |index| self.record(index, now))
    }

    fn record(&self, index: u32, now: u64) -> Option<FlowRecord> {
        let slot = self.slot(index);
        let state = slot.load_state();
        let deadline = self.deadline(slot, state);
        if !state.is_live() || deadline <= now {
            return None;
        }
        let flow = Flow::new(slot);
        let opened = slot.meter(Dir::Forward).opened.load(Ordering::Relaxed);
        let direction = |dir| {
            let meter = slot.meter(dir);
            DirectionRecord {
                packets: meter.packets.load(Ordering::Relaxed),
                bytes: meter.bytes.load(Ordering::Relaxed),
                idle: now.saturating_sub(meter.last_seen.load(Ordering::Relaxed)),
            }
        };
        let record = FlowRecord {
            id: FlowId(index),
            generation: state.generation(),
            original: flow.original(),
            translated: flow.translated(),
            origin: flow.origin(),
            phase: state.phase(),
            replied: state.is(super::phase::REPLIED),
            egress: [flow.egress(Dir::Forward), flow.egress(Dir::Reply)],
            policy_generation: flow.policy_generation(),
            age: now.saturating_sub(opened),
            expires_in: deadline - now,
            forward: direction(Dir::Forward),
            reply: direction(Dir::Reply),
        };
        // Anything read above that a later user of the slot wrote was written after that user's state word.
        fence(Ordering::Acquire);
        let after = State(slot.state().load(Ordering::Relaxed));
        (after.is_live() && after.generation() == state.generation()).then_some(record)
    }
}
