//! Opening a flow. Both keys become findable at one moment, or not at all, and no key is ever another live flow's.
//!
//! 1. Take a slot, fill it, state *pending*.
//! 2. Claim a word for each key, then fence.
//! 3. Look at everybody else who claims one of the keys. A live one: give way. A pending one in a lower slot: give way and
//!    try again. A pending one in a higher slot: move it to *aborted*; if it went live before that, give way.
//! 4. Move the own state from pending to live; if somebody has aborted it, clean up and try again.
//!
//! Of two inserts of one key at least one sees the other: each claims, fences, looks. If both see each other, the slot's
//! number decides, and only the lower one can go live. If one sees the other only, it either gives way or has aborted it
//! before going live itself. That is why reply keys can be the arbiter of NAT ports: whoever goes live owns the mapping.

use thiserror::Error;

use super::key::FlowKey;
use super::local::Local;
use super::phase::{Life, Phase, REPLIED, SYN, SYN_ACKED, State};
use super::slot::{Fixed, Origin};
use super::sync::{Ordering, fence};
use super::table::{Dir, FlowId, FlowTable};
use super::tcp::{self, TcpSegment};
use super::wheel::RECHECK;

/// Attempts before an insert that met others gives up.
#[cfg(not(loom))]
const ATTEMPTS: usize = 8;
#[cfg(loom)]
const ATTEMPTS: usize = 2;

/// A flow to be opened.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow {
    /// Key of the packet that opens it, as it came in.
    pub original: FlowKey,
    /// Key of this packet as it goes out. Replies come with this one [reversed](FlowKey::reversed).
    pub translated: FlowKey,
    /// Who opens it.
    pub origin: Origin,
    /// Where its protocol begins.
    pub start: Start,
    /// A word for each direction that the table keeps for the caller.
    pub egress: [u32; 2],
    /// The policy generation under which it was allowed.
    pub policy_generation: u32,
}

/// Where a flow's protocol begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// TCP with this segment: a SYN, or any other for a connection that was open before we saw it.
    Tcp(TcpSegment),
    /// UDP.
    Udp,
    /// An ICMP query.
    Icmp,
    /// A protocol without ports.
    Other,
    /// A connection that another tracker has followed so far: its phase.
    Imported(Phase),
}

/// Why a flow was not opened. Nothing of it is left in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InsertError {
    /// Packets with the original key belong to this flow.
    #[error("the key is that of flow {} already", .0.number())]
    ForwardExists(FlowId, Dir),
    /// Packets with the reply key belong to another flow: choose another port.
    #[error("the reply's key is that of another flow")]
    ReplyExists,
    /// No room, and no flow that may be given up for it.
    #[error("the flow table is full")]
    Full,
    /// Other workers opened flows with the same keys at the same time, again and again.
    #[error("other workers opened the same flow at the same time")]
    Contended,
}

/// One key of a flow to be opened.
#[derive(Clone, Copy)]
struct Claim {
    key: FlowKey,
    hash: u64,
    dir: Dir,
}

impl Claim {
    /// The error when the key is taken by a live flow.
    fn taken(&self, by: FlowId, dir: Dir) -> InsertError {
        match self.dir {
            Dir::Forward => InsertError::ForwardExists(by, dir),
            Dir::Reply => InsertError::ReplyExists,
        }
    }
}

/// What stands in the way of an insert.
enum Obstacle {
    /// It is final.
    Final(InsertError),
    /// Another insert goes first.
    Rival,
}

impl Local {
    /// Opens a flow at `now`, with no packet counted yet: the one that opens it is [touched](FlowTable::touch) as any other.
    ///
    /// # Errors
    /// When a key is taken, there is no room, or other workers are in the way; nothing is left behind then.
    pub fn insert(&mut self, table: &FlowTable, new: &NewFlow, now: u64) -> Result<FlowId, InsertError> {
        let reply = new.translated.reversed();
        let claims = [
            Claim { key: new.original, hash: table.hash(&new.original), dir: Dir::Forward },
            Claim { key: reply, hash: table.hash(&reply), dir: Dir::Reply },
        ];
        // A flow to oneself (same address, same port) has one key, and every packet of it counts as forward.
        let claims = if new.original == reply { &claims[..1] } else { &claims[..] };
        let fixed = Fixed { original: new.original, reply, origin: new.origin, egress: new.egress };

        for _ in 0..ATTEMPTS {
            // Before a slot is spent: who loses the race later cleans up more.
            for claim in claims {
                if let Some(Obstacle::Final(error)) = self.obstacle(table, claim, 0, now) {
                    return Err(error);
                }
            }
            let index = self.allocate(table, now).ok_or(InsertError::Full)?;
            let slot = table.slot(index);
            let state = begin(State(slot.state().load(Ordering::Relaxed)), &new.start);
            slot.state().store(state.0, Ordering::Relaxed);
            // Readers of lists who see what follows must see that the slot has changed hands.
            fence(Ordering::Release);
            slot.fill(&fixed, new.policy_generation);
            for dir in [Dir::Forward, Dir::Reply] {
                slot.meter(dir).reset(now);
            }
            slot.meter(Dir::Forward).opened.store(now, Ordering::Relaxed);
            match &new.start {
                Start::Tcp(segment) => tcp::first(slot, segment),
                Start::Imported(_) => tcp::unseen(slot),
                Start::Udp | Start::Icmp | Start::Other => {}
            }
            match self.publish(table, claims, index, state, now) {
                Ok(()) => return Ok(FlowId(index)),
                Err(Obstacle::Final(error)) => return Err(error),
                Err(Obstacle::Rival) => std::hint::spin_loop(),
            }
        }
        Err(InsertError::Contended)
    }

    fn publish(
        &mut self,
        table: &FlowTable,
        claims: &[Claim],
        index: u32,
        state: State,
        now: u64,
    ) -> Result<(), Obstacle> {
        let slot = table.slot(index);
        for (number, claim) in claims.iter().enumerate() {
            if !table.claim(claim.hash, claim.dir, index) {
                slot.state().store(state.with_life(Life::Dead).0, Ordering::Release);
                for claim in &claims[..number] {
                    table.disclaim(claim.hash, claim.dir, index);
                }
                self.retired.push(table, index);
                return Err(Obstacle::Final(InsertError::Full));
            }
        }
        // Both words before all looks: pairs with the same fence of every other insert. It also orders the state word
        // before the look at the wheel's link below.
        fence(Ordering::SeqCst);
        for claim in claims {
            if let Some(obstacle) = self.obstacle(table, claim, index, now) {
                slot.state().store(state.with_life(Life::Dead).0, Ordering::Release);
                self.unlink(table, index);
                return Err(obstacle);
            }
        }
        if !slot.move_state(state, state.with_life(Life::Live)) {
            self.unlink(table, index);
            return Err(Obstacle::Rival);
        }
        table.workers[self.worker].add_balance(1);
        self.wheel.add(table, index, table.deadline(slot, state).min(now + RECHECK));
        Ok(())
    }

    /// What keeps slot `own` (0: none yet) from claiming the key. Clears expired flows out of the way, and aborts inserts
    /// that have to give way.
    fn obstacle(&mut self, table: &FlowTable, claim: &Claim, own: u32, now: u64) -> Option<Obstacle> {
        loop {
            let mut expired = None;
            let found = table.claimants(&claim.key, claim.hash, own, |index, dir| {
                let slot = table.slot(index);
                let mut state = slot.load_state();
                loop {
                    match state.life() {
                        Life::Live if table.is_fresh(slot, state, dir, now) => {
                            return Some(Obstacle::Final(claim.taken(FlowId(index), dir)));
                        }
                        Life::Live => {
                            expired = Some((index, state));
                            return Some(Obstacle::Rival);
                        }
                        // Before the own words are published a rival is no reason to do anything.
                        Life::Pending if own == 0 => return None,
                        Life::Pending if index < own => return Some(Obstacle::Rival),
                        Life::Pending => {
                            if slot.move_state(state, state.with_life(Life::Aborted)) {
                                return None;
                            }
                            state = slot.load_state();
                        }
                        Life::Free | Life::Dead | Life::Aborted => return None,
                    }
                }
            });
            let Some((index, state)) = expired else { return found };
            if self.kill(table, index, state) {
                self.aged.expired += 1;
            }
        }
    }
}

/// The first state of a flow in a slot whose state was `free`.
fn begin(free: State, start: &Start) -> State {
    let state = free.with_life(Life::Pending);
    match start {
        Start::Tcp(segment) if segment.is_syn() => state.with_phase(Phase::SynSent).with(SYN),
        Start::Tcp(_) => state.with_phase(Phase::Established),
        Start::Udp => state.with_phase(Phase::UdpOneWay),
        Start::Icmp => state.with_phase(Phase::Icmp),
        Start::Other => state.with_phase(Phase::Other),
        Start::Imported(phase) => state.with_phase(*phase).with(match phase {
            Phase::UdpOneWay => 0,
            Phase::SynSent => SYN,
            Phase::SynSent2 => SYN | SYN << 1 | REPLIED,
            Phase::SynReceived => SYN | SYN << 1 | SYN_ACKED | REPLIED,
            _ => REPLIED,
        }),
    }
}
