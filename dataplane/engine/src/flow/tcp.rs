//! TCP: nf_conntrack's states without its window tracking.
//!
//! Data are never judged. A segment that would *close* a connection is: a RST or FIN must lie within what its receiver has
//! acknowledged plus the largest window it ever offered (RFC 5961 §3, with the tracker in the receiver's place), or else
//! anybody who guesses ports could cut connections. Each direction's line holds what that needs, so that a segment of an
//! established connection reads and writes its own line only, and the line of the other direction, which may belong to
//! another worker, only when the state changes.

use super::phase::{FIN, FIN_ACKED, Phase, REPLIED, SYN, SYN_ACKED, State};
use super::slot::{Meter, Slot};
use super::sync::Ordering;
use super::table::{Dir, FlowId, FlowTable};
use super::view::Flow;

/// What the tracker needs of a segment. Its flags are those of a sane one: the caller has dropped SYN+FIN and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpSegment {
    /// The flags as they stand in the header: 1 FIN, 2 SYN, 4 RST, 8 PSH, 16 ACK.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, valid with ACK.
    pub ack: u32,
    /// Window as it stands in the header.
    pub window: u16,
    /// Bytes of payload, of all segments of a super-packet.
    pub payload_len: u32,
    /// Window scale option, only looked at in a SYN; above 14 counts as 14 (RFC 7323 §2.3).
    pub wscale: Option<u8>,
}

impl TcpSegment {
    /// The FIN flag.
    pub const FIN: u8 = 1;
    /// The SYN flag.
    pub const SYN: u8 = 2;
    /// The RST flag.
    pub const RST: u8 = 4;
    /// The ACK flag.
    pub const ACK: u8 = 16;

    /// A segment that opens a connection: SYN without ACK.
    #[inline]
    #[must_use]
    pub const fn is_syn(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }

    #[inline]
    const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// The sequence number behind it.
    #[inline]
    const fn end(&self) -> u32 {
        let phantom = (self.flags & Self::FIN != 0) as u32 + (self.flags & Self::SYN != 0) as u32;
        self.seq.wrapping_add(self.payload_len).wrapping_add(phantom)
    }
}

/// What a segment did to its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpVerdict {
    /// It belongs to the connection: forward it.
    Accepted,
    /// A SYN of the flow's opener after the connection was closed: forward it. State and meters have started over.
    Reopened,
    /// A RST or FIN that its receiver would not believe: forward it, it has closed nothing.
    Implausible,
    /// A SYN of the other end on a closed flow: it is a connection of its own. Treat it as a packet without a flow.
    Unsolicited,
}

// Lower half of `Meter::window`.
const SCALE: u64 = 0xF;
const OFFERED: u64 = 1 << 4;
const SEQ_KNOWN: u64 = 1 << 5;
const ACK_KNOWN: u64 = 1 << 6;
const MAX_SCALE: u8 = 14;

impl FlowTable {
    /// Moves the TCP state of a flow for a segment of `dir`. Before [`FlowTable::touch`], which then counts the segment as
    /// the first one of a reopened connection.
    #[inline]
    pub fn tcp(&self, id: FlowId, dir: Dir, now: u64, segment: &TcpSegment) -> TcpVerdict {
        self.tcp_of(self.flow(id), dir, now, segment)
    }

    /// [`FlowTable::tcp`] of a flow at hand.
    #[inline(always)]
    pub(crate) fn tcp_of(&self, flow: Flow<'_>, dir: Dir, now: u64, segment: &TcpSegment) -> TcpVerdict {
        let slot = flow.slot();
        let state = slot.load_state();
        if state.phase_index() == Phase::Established as usize
            && !segment.has(TcpSegment::SYN | TcpSegment::FIN | TcpSegment::RST)
            && (dir == Dir::Forward || state.is(REPLIED))
        {
            follow(slot.meter(dir), segment);
            return TcpVerdict::Accepted;
        }
        transition(slot, dir, now, segment, state)
    }
}

/// Notes the segment that a flow is opened with.
pub(super) fn first(slot: &Slot, segment: &TcpSegment) {
    if segment.is_syn() {
        note_syn(slot, Dir::Forward, false, segment);
        return;
    }
    unseen(slot);
    follow(slot.meter(Dir::Forward), segment);
}

/// Nothing was seen of the connection, not its SYNs either: believe in the largest scale, so that no honest RST is taken for
/// a forged one.
pub(super) fn unseen(slot: &Slot) {
    for dir in [Dir::Forward, Dir::Reply] {
        slot.meter(dir).window.store(u64::from(MAX_SCALE), Ordering::Relaxed);
    }
}

/// What to remember of a segment.
enum Note {
    Nothing,
    Segment,
    Syn,
}

#[cold]
fn transition(slot: &Slot, dir: Dir, now: u64, segment: &TcpSegment, mut state: State) -> TcpVerdict {
    loop {
        let (next, verdict, note) = decide(slot, dir, segment, state);
        if next != state && !slot.move_state(state, next) {
            state = slot.load_state();
            continue;
        }
        if verdict == TcpVerdict::Reopened {
            for dir in [Dir::Forward, Dir::Reply] {
                slot.meter(dir).reset(now);
            }
            slot.meter(Dir::Forward).opened.store(now, Ordering::Relaxed);
        }
        match note {
            Note::Nothing => {}
            Note::Segment => follow(slot.meter(dir), segment),
            Note::Syn => note_syn(slot, dir, next.is(SYN << dir.opposite() as u32), segment),
        }
        return verdict;
    }
}

/// The next state, what to tell the caller, what to remember. Changes nothing itself.
fn decide(slot: &Slot, dir: Dir, segment: &TcpSegment, state: State) -> (State, TcpVerdict, Note) {
    use TcpVerdict::{Accepted, Implausible, Reopened, Unsolicited};
    let seen = if dir == Dir::Reply { state.with(REPLIED) } else { state };
    if segment.has(TcpSegment::RST) {
        return match state.phase() {
            Phase::Close => (seen, Accepted, Note::Nothing),
            _ if rst_is_plausible(slot, dir, segment, state) => {
                (seen.with_phase(Phase::Close), Accepted, Note::Nothing)
            }
            _ => (state, Implausible, Note::Nothing),
        };
    }
    if segment.is_syn() {
        return match (state.phase(), dir) {
            (Phase::SynSent, Dir::Forward) | (Phase::SynSent2, _) => (seen, Accepted, Note::Syn),
            (Phase::SynSent, Dir::Reply) => {
                (seen.with_phase(Phase::SynSent2).with(SYN << 1), Accepted, Note::Syn)
            }
            (Phase::LastAck | Phase::TimeWait | Phase::Close, Dir::Forward) => {
                (state.without_flags().with_phase(Phase::SynSent).with(SYN), Reopened, Note::Syn)
            }
            (Phase::TimeWait | Phase::Close, Dir::Reply) => (state, Unsolicited, Note::Nothing),
            // nf_conntrack ignores it too: the other end answers it, and that answer tells.
            _ => (state, Accepted, Note::Nothing),
        };
    }
    if segment.has(TcpSegment::SYN) {
        let opening = matches!(state.phase(), Phase::SynSent | Phase::SynSent2 | Phase::SynReceived);
        let backwards = state.phase() == Phase::SynSent && dir == Dir::Forward;
        return if opening && !backwards && acknowledges_syn(slot, dir, segment) {
            (open_further(seen.with(SYN << dir as u32), dir), Accepted, Note::Syn)
        } else {
            (seen, Accepted, Note::Nothing)
        };
    }
    match state.phase() {
        Phase::SynReceived
        | Phase::Established
        | Phase::FinWait
        | Phase::CloseWait
        | Phase::LastAck
        | Phase::TimeWait => {}
        // A bare ACK to a SYN (a half-open connection of before) changes nothing, nor does anything after a RST.
        _ => return (seen, Accepted, Note::Nothing),
    }
    let mut next = seen;
    if next.phase() == Phase::SynReceived
        && segment.has(TcpSegment::ACK)
        && acknowledges_syn(slot, dir, segment)
    {
        next = open_further(next, dir);
    }
    if segment.has(TcpSegment::FIN) && !next.is(FIN << dir as u32) {
        if !fin_is_plausible(slot, dir, segment) {
            return (state, Implausible, Note::Nothing);
        }
        next = next.with(FIN << dir as u32);
    }
    let other = dir.opposite();
    if segment.has(TcpSegment::ACK) && next.is(FIN << other as u32) {
        let theirs = Tracked::of(slot.meter(other));
        if theirs.end.is_none_or(|end| !is_before(segment.ack, end)) {
            next = next.with(FIN_ACKED << other as u32);
        }
    }
    (close_further(next), Accepted, Note::Segment)
}

/// The phase after a SYN of the direction opposite to `dir` was acknowledged.
fn open_further(state: State, dir: Dir) -> State {
    let state = state.with(SYN_ACKED << dir.opposite() as u32);
    let both = SYN_ACKED | SYN_ACKED << 1;
    state.with_phase(if state.is(both) { Phase::Established } else { Phase::SynReceived })
}

/// The phase that the FINs seen and acknowledged amount to.
fn close_further(state: State) -> State {
    match (state.is(FIN), state.is(FIN << 1)) {
        (false, false) => state,
        (true, true) if state.is(FIN_ACKED | FIN_ACKED << 1) => state.with_phase(Phase::TimeWait),
        (true, true) => state.with_phase(Phase::LastAck),
        (forward, _) if state.is(FIN_ACKED << u32::from(!forward)) => state.with_phase(Phase::CloseWait),
        _ => state.with_phase(Phase::FinWait),
    }
}

/// What is known of a direction.
struct Tracked {
    end: Option<u32>,
    ack: Option<u32>,
    window: u32,
}

impl Tracked {
    fn of(meter: &Meter) -> Self {
        let window = meter.window.load(Ordering::Relaxed);
        let sequence = meter.sequence.load(Ordering::Relaxed);
        Self {
            end: (window & SEQ_KNOWN != 0).then_some((sequence >> 32) as u32),
            ack: (window & ACK_KNOWN != 0).then_some(sequence as u32),
            window: (window >> 32) as u32,
        }
    }
}

const fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether the segment acknowledges the other end's SYN, with or without data on it (RFC 7413).
fn acknowledges_syn(slot: &Slot, dir: Dir, segment: &TcpSegment) -> bool {
    let other = Tracked::of(slot.meter(dir.opposite()));
    other.end.is_none_or(|end| end.wrapping_sub(segment.ack) <= 0xFFFF)
}

/// What the receiver of `dir` will accept next and how much of it. Nothing when it has not acknowledged anything yet.
/// An acknowledgement of what was never sent is not the receiver's: the tracker may have been told it by somebody else.
fn acceptable(slot: &Slot, dir: Dir) -> Option<(u32, u32)> {
    let (sender, receiver) = (Tracked::of(slot.meter(dir)), Tracked::of(slot.meter(dir.opposite())));
    let ack = receiver.ack?;
    let next = match sender.end {
        Some(end) if is_before(end, ack) => end,
        _ => ack,
    };
    Some((next, receiver.window))
}

fn rst_is_plausible(slot: &Slot, dir: Dir, segment: &TcpSegment, state: State) -> bool {
    if dir == Dir::Reply && state.phase() == Phase::SynSent {
        // The answer to a SYN to a closed port (RFC 9293 §3.10.7.3).
        return segment.has(TcpSegment::ACK) && acknowledges_syn(slot, dir, segment);
    }
    match acceptable(slot, dir) {
        Some((next, window)) => segment.seq.wrapping_sub(next) <= window,
        // The other end has said nothing: it can only take back what it has sent.
        None => Tracked::of(slot.meter(dir)).end.is_none_or(|end| end.wrapping_sub(segment.seq) <= 0xFFFF),
    }
}

fn fin_is_plausible(slot: &Slot, dir: Dir, segment: &TcpSegment) -> bool {
    acceptable(slot, dir).is_none_or(|(next, window)| {
        // Something new in it, and nothing beyond the window but the FIN itself.
        segment.end().wrapping_sub(next).wrapping_sub(1) <= window
    })
}

/// Follows the sequence, acknowledgement and window of a direction, forwards only.
#[inline]
fn follow(meter: &Meter, segment: &TcpSegment) {
    let (sequence, window) = (meter.sequence.load(Ordering::Relaxed), meter.window.load(Ordering::Relaxed));
    let (mut end, mut ack) = ((sequence >> 32) as u32, sequence as u32);
    let mut flags = window & 0xFFFF_FFFF;
    if flags & SEQ_KNOWN == 0 || is_before(end, segment.end()) {
        end = segment.end();
        flags |= SEQ_KNOWN;
    }
    let mut largest = window >> 32;
    if segment.has(TcpSegment::ACK) {
        if flags & ACK_KNOWN == 0 || is_before(ack, segment.ack) {
            ack = segment.ack;
            flags |= ACK_KNOWN;
        }
        largest = largest.max(u64::from(segment.window) << (flags & SCALE));
    }
    meter.sequence.store(u64::from(end) << 32 | u64::from(ack), Ordering::Relaxed);
    let now = largest << 32 | flags;
    if now != window {
        meter.window.store(now, Ordering::Relaxed);
    }
}

/// Starts to follow a direction at its SYN; `answers` when the other direction's SYN was seen. The scale holds only when
/// both SYNs have one, and not for the windows of the SYNs themselves (RFC 7323 §2.2).
fn note_syn(slot: &Slot, dir: Dir, answers: bool, segment: &TcpSegment) {
    let (meter, other) = (slot.meter(dir), slot.meter(dir.opposite()));
    let mut flags = SEQ_KNOWN;
    if segment.has(TcpSegment::ACK) {
        flags |= ACK_KNOWN;
    }
    if let Some(scale) = segment.wscale {
        flags |= OFFERED | u64::from(scale.min(MAX_SCALE));
    }
    if answers {
        let theirs = other.window.load(Ordering::Relaxed);
        if theirs & OFFERED == 0 {
            flags &= !SCALE;
        } else if flags & OFFERED == 0 {
            other.window.store(theirs & !(SCALE | OFFERED), Ordering::Relaxed);
        }
    }
    meter.sequence.store(u64::from(segment.end()) << 32 | u64::from(segment.ack), Ordering::Relaxed);
    meter.window.store(u64::from(segment.window) << 32 | flags, Ordering::Relaxed);
}
