//! A worker: packets in, packets out, nothing else.
//!
//! One worker runs on one thread. It shares the flow table with the others and owns everything else: the packets that
//! wait for a first fragment or a next hop, its counters, its random numbers. A batch goes through in stages, so that the
//! memory that a flow lies in is on its way from far caches while the packets before it are worked on:
//!
//! ```text
//! parse all, hash all ── prefetch buckets ── prefetch flows ── each: match ─ known ── rewrite ─ out
//!                                                                     └─ unknown ─ open ─┘
//! ```
//!
//! A packet stays where it is while it is worked on; what is passed around is how it ends ([`End`]), and only then
//! does its frame move: to the output, or into a waiting room.

mod errors;
mod fast;
mod finish;
mod forward;
mod fragments;
mod import;
mod open;
mod recheck;
mod serve;
mod target;
mod waiting;

use std::sync::Arc;

pub use self::import::{Imports, Known, Left};

use self::finish::IcmpBudget;
use self::fragments::{Fragment, Piece};
use self::recheck::Recheck;
use self::target::{Target, ttl_between};
use self::waiting::WaitingRoom;
use crate::counters::{Counters, Event};
use crate::flow::{Aged, Dir, Flow, FlowId, FlowTable, Local, TableError, TcpSegment, TcpVerdict};
use crate::frag::{self, FragTable, FragmentIds};
use crate::frame::{Frame, Ingress, Offload, Packet};
use crate::nat::PortChooser;
use crate::random::Random;
use crate::snapshot::Snapshot;
use crate::trace::Trace;
use crate::verdict::{Drop, Verdict};
use crate::wire::{self, ETHERNET_LEN, Kind, Parsed, Report, Ttl};

/// How often a worker that sees no packet ages its flows, in nanoseconds.
const AGEING_NS: u64 = 250_000_000;

/// How many packets ahead headers are fetched.
const AHEAD: usize = 8;

/// The largest batch that a worker is meant for. More work in one step, prefetched less well.
pub const BATCH: usize = 64;

/// One packet on its way out, or dropped: the caller gets every frame back.
#[derive(Debug)]
pub struct Output<F> {
    /// Its memory.
    pub frame: F,
    /// Where it goes; the Ethernet header is written.
    pub verdict: Verdict,
    /// What is left of the kernel's promises.
    pub offload: Offload,
    /// Where it entered, which a worker that it is handed to must know.
    pub ingress: Ingress,
}

/// What a worker needs to know for life.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Its number, from 0.
    pub id: u16,
    /// How many workers there are.
    pub workers: u16,
    /// Entropy, the same for all workers: they must agree on whose a datagram's fragments are.
    pub seed: u64,
    /// Fragments that may wait, over all workers.
    pub fragments: u32,
    /// How long one waits for its first fragment, in nanoseconds.
    pub fragment_timeout: u64,
}

/// A worker.
pub struct Worker<F> {
    setup: Setup,
    table: Arc<FlowTable>,
    local: Local,
    counters: Arc<Counters>,
    random: Random,
    ports: PortChooser,
    waiting: WaitingRoom<F>,
    fragments: FragTable<Fragment<F>, Piece>,
    fragment_ids: FragmentIds,
    wanted: Vec<(u32, u32)>,
    icmp: IcmpBudget,
    staged: Vec<Staged>,
    last_step: u64,
    /// Tests switch the fast tier off to compare.
    #[cfg(test)]
    general_only: bool,
}

/// A packet after the first stage.
#[derive(Debug, Clone, Copy)]
struct Staged {
    parsed: Parsed,
    hash: u64,
    candidate: Option<(FlowId, Dir)>,
    refused: Option<Drop>,
}

impl Staged {
    const NOTHING: Self = Self { parsed: Parsed::NOTHING, hash: 0, candidate: None, refused: None };
}

/// The moment that a step works at.
#[derive(Debug, Clone, Copy)]
struct Moment<'s> {
    now: u64,
    snapshot: &'s Snapshot,
}

/// Where a step puts what ends.
struct Sinks<'a, F, T> {
    out: &'a mut Vec<Output<F>>,
    trace: &'a mut T,
}

/// The flow that a packet was matched to.
#[derive(Debug, Clone, Copy)]
struct Matched {
    id: FlowId,
    dir: Dir,
    opened: bool,
}

/// How a packet's way through the worker ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It leaves, or is dropped.
    Done(Verdict, Option<Matched>),
    /// It is finished but for the Ethernet address of its next hop.
    Wait { target: Target, destination: u32, next: u32, matched: Option<Matched> },
    /// It is dropped, and its sender is told why.
    Tell { reason: Drop, report: Report, matched: Option<Matched> },
}

impl End {
    const fn drop(reason: Drop) -> Self {
        Self::Done(Verdict::Drop(reason), None)
    }
}

impl<F: Frame> Worker<F> {
    /// A worker with all its memory.
    ///
    /// # Errors
    /// The table was made for fewer workers, or a worker of this number exists.
    pub fn new(setup: Setup, table: Arc<FlowTable>) -> Result<Self, TableError> {
        let local = table.local(usize::from(setup.id))?;
        Ok(Self::resume(setup, table, local))
    }

    /// A worker that goes on with a part of the table: one of those that [`FlowTable::adopt`] makes of all parts when the
    /// number of workers changes.
    #[must_use]
    pub fn resume(setup: Setup, table: Arc<FlowTable>, local: Local) -> Self {
        let held = setup.fragments / u32::from(setup.workers.max(1));
        let limits =
            frag::Limits { held: held.max(16), timeout: setup.fragment_timeout, ..Default::default() };
        Self {
            local,
            counters: Arc::new(Counters::default()),
            random: Random::new(setup.seed ^ u64::from(setup.id).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            ports: PortChooser::new(),
            waiting: WaitingRoom::new(),
            fragments: FragTable::new(limits, setup.seed),
            fragment_ids: FragmentIds::new(setup.id, setup.workers, setup.seed),
            wanted: Vec::with_capacity(waiting::ROOM),
            icmp: IcmpBudget::default(),
            staged: Vec::with_capacity(2 * BATCH),
            last_step: 0,
            #[cfg(test)]
            general_only: false,
            setup,
            table,
        }
    }

    /// Ends the worker and gives its part of the table, for [`FlowTable::adopt`]. What still waits inside is dropped
    /// uncounted: [`Worker::drain`] it before.
    #[must_use]
    pub fn retire(self) -> Local {
        self.local
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.setup.id
    }

    /// The counters, for other threads to read.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Takes every packet of `input`, and puts every packet that ends now into `out`.
    ///
    /// `now` never goes back. Call it with an empty input at [`Worker::next_timer`], too: flows age and waiting packets
    /// come due here.
    #[inline(never)]
    pub fn step<T: Trace>(
        &mut self,
        now: u64,
        snapshot: &Snapshot,
        input: &mut Vec<Packet<F>>,
        out: &mut Vec<Output<F>>,
        trace: &mut T,
    ) {
        let moment = Moment { now, snapshot };
        let mut sinks = Sinks { out, trace };
        self.last_step = now;
        let aged = self.local.begin_step(&self.table, now, &snapshot.timeouts);
        if aged != Aged::default() {
            self.counters.add(Event::FlowsExpired, u64::from(aged.expired));
            self.counters.add(Event::FlowsEvicted, u64::from(aged.evicted));
        }
        self.retry_waiting(moment, &mut sinks);
        self.expire_fragments(moment, &mut sinks);

        let mut staged = std::mem::take(&mut self.staged);
        self.stage(input, &mut staged);
        sinks.out.reserve(input.len());
        for (slot, (mut packet, stage)) in input.drain(..).zip(&staged).enumerate() {
            if T::ON {
                sinks.trace.input(now, slot, packet.ingress, packet.frame.bytes(), packet.frame.len());
            }
            if let Some(reason) = stage.refused {
                self.end(now, &mut sinks, packet, Some(slot), None, Verdict::Drop(reason));
            } else if let Some((verdict, matched)) = self.fast(moment, &mut packet, stage) {
                self.end(now, &mut sinks, packet, Some(slot), Some(matched), verdict);
            } else if stage.parsed.is_fragment() {
                self.fragment(moment, &mut sinks, packet, stage, slot);
            } else {
                let end = self.packet(moment, &mut packet, stage);
                self.finish(moment, &mut sinks, packet, &stage.parsed, slot, end);
            }
        }
        self.staged = staged;
        self.counters.set_held(self.waiting.len() as u64 + u64::from(self.fragments.held()));
    }

    /// When the next call of [`Worker::step`] is due even without a packet; absent when nothing waits.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        let ageing = (self.table.live() > 0).then(|| self.last_step + AGEING_NS);
        [ageing, self.waiting.next_due(), self.fragments.next_deadline()].into_iter().flatten().min()
    }

    /// The next hops that packets wait for, as interface index and address; each is named once per packet.
    pub fn neighbours_wanted(&mut self) -> std::vec::Drain<'_, (u32, u32)> {
        self.wanted.drain(..)
    }

    /// Says that this worker will not look at the table until [`Worker::wake`]; flows can then be reused without it.
    pub fn sleep(&mut self) {
        self.local.sleep(&self.table);
    }

    /// Ends [`Worker::sleep`].
    pub fn wake(&mut self) {
        self.local.wake(&self.table);
    }

    /// Gives back every packet that still waits, as dropped at shutdown.
    pub fn drain<T: Trace>(&mut self, now: u64, out: &mut Vec<Output<F>>, trace: &mut T) {
        let mut sinks = Sinks { out, trace };
        while let Some(waiting) = self.waiting.pop() {
            self.end_held(now, &mut sinks, waiting.packet, waiting.flow, Verdict::Drop(Drop::Shutdown));
        }
        self.drain_fragments(now, &mut sinks);
        self.counters.set_held(0);
    }

    /// Parses and hashes a batch, and sends for what it will need.
    fn stage(&self, input: &[Packet<F>], staged: &mut Vec<Staged>) {
        if staged.len() < input.len() {
            staged.resize(input.len(), Staged::NOTHING);
        }
        let mut bytes = 0;
        input.iter().take(AHEAD).for_each(fetch);
        for (i, (packet, stage)) in input.iter().zip(staged.iter_mut()).enumerate() {
            if let Some(later) = input.get(i + AHEAD) {
                fetch(later);
            }
            let len = packet.frame.len();
            stage.refused = wire::parse_into(packet.frame.bytes(), len, &mut stage.parsed).err();
            stage.hash = self.table.hash(&stage.parsed.key);
            self.table.prefetch(stage.hash);
            bytes += len as u64;
        }
        for stage in staged.iter_mut().take(input.len()) {
            stage.candidate = self.table.candidate(stage.hash);
            match stage.candidate {
                Some((id, dir)) => self.table.prefetch_flow(id, dir),
                // Most likely new: before it is opened its other bucket is looked at, too.
                None => self.table.prefetch_both(stage.hash),
            }
        }
        self.counters.add(Event::In, input.len() as u64);
        self.counters.add(Event::InBytes, bytes);
    }

    #[inline]
    fn packet(&mut self, moment: Moment<'_>, packet: &mut Packet<F>, stage: &Staged) -> End {
        let parsed = &stage.parsed;
        match parsed.kind {
            Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } | Kind::IcmpQuery { .. } | Kind::Other(_) => {}
            Kind::IcmpError => return self.icmp_error(moment, packet, parsed),
            Kind::IcmpOther if matches!(packet.ingress, Ingress::FromNode(_)) => {
                return self.open(moment, packet, parsed);
            }
            Kind::IcmpOther => return End::drop(Drop::IcmpType),
            // Never without its first fragment's decision.
            Kind::LaterFragment => return End::drop(Drop::FragmentTimeout),
        }
        let found = self.table.lookup_with(stage.candidate, &parsed.key, stage.hash, moment.now);
        if let Some((id, dir)) = found {
            self.known(moment, packet, parsed, Matched { id, dir, opened: false })
        } else {
            self.open(moment, packet, parsed)
        }
    }

    /// A packet of a flow that the table has.
    #[inline]
    fn known(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        parsed: &Parsed,
        matched: Matched,
    ) -> End {
        let flow = self.table.flow(matched.id);
        if !Target::from_word(flow.egress(matched.dir.opposite())).admits(packet.ingress) {
            return self.misplaced(moment, packet, parsed, matched);
        }
        if flow.policy_generation() != moment.snapshot.policy.generation() {
            match self.recheck(moment, matched, parsed) {
                Recheck::Stays => {}
                Recheck::Revoked => return End::Done(Verdict::Drop(Drop::Revoked), Some(matched)),
                Recheck::Moved => return self.orphaned(moment, packet, parsed, matched),
            }
        }
        self.carry(moment, packet, parsed, matched)
    }

    /// Moves the flow's state and sends the packet on.
    #[inline]
    fn carry(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        parsed: &Parsed,
        matched: Matched,
    ) -> End {
        let flow = self.table.flow(matched.id);
        let rewrite = flow.rewrite(matched.dir);
        let exit = Target::from_word(flow.egress(matched.dir)).exit(moment.snapshot);
        let Some(exit) = exit.filter(|exit| exit.suits(rewrite.src(), rewrite.dst())) else {
            return self.orphaned(moment, packet, parsed, matched);
        };
        let ttl = ttl_of(flow);
        match parsed.kind {
            Kind::Tcp { .. } => {
                if !self.tcp(moment.now, packet, parsed, matched) {
                    // A connection of its own: the other end's on a closed one, or the next one to a service.
                    self.local.remove(&self.table, matched.id);
                    return self.open(moment, packet, parsed);
                }
            }
            _ => self.table.datagram(matched.id, matched.dir),
        }
        self.table.touch(matched.id, matched.dir, moment.now, packet.frame.len() as u64);
        self.forward(moment, packet, parsed, &rewrite, exit, ttl, Some(matched))
    }

    /// Moves a connection's state; false: the segment is none of its.
    #[inline]
    fn tcp(&self, now: u64, packet: &Packet<F>, parsed: &Parsed, matched: Matched) -> bool {
        let Some(segment) = segment(packet.frame.bytes(), parsed) else { return true };
        match self.table.tcp(matched.id, matched.dir, now, &segment) {
            TcpVerdict::Accepted => {}
            TcpVerdict::Reopened => {
                let flow = self.table.flow(matched.id);
                // To a service it may go to another endpoint, and must where that one is gone.
                if serve::is_served(&flow.original(), &flow.translated()) {
                    self.counters.add(Event::FlowsOrphaned, 1);
                    return false;
                }
                self.counters.add(Event::FlowsReopened, 1);
            }
            TcpVerdict::Implausible => self.counters.add(Event::ImplausibleClose, 1),
            TcpVerdict::Unsolicited => return false,
        }
        true
    }

    /// A packet that matches a flow but came from where the flow does not come from.
    #[cold]
    fn misplaced(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        parsed: &Parsed,
        matched: Matched,
    ) -> End {
        if matches!(packet.ingress, Ingress::FromNode(_)) {
            return self.open(moment, packet, parsed);
        }
        let came = Target::from_word(self.table.flow(matched.id).egress(matched.dir.opposite()));
        let key = parsed.key;
        let current = came.exit(moment.snapshot).is_some_and(|exit| exit.suits(key.dst(), key.src()));
        if current && !came.yields_to(packet.ingress, open::stance(parsed) == open::Stance::Opens) {
            return End::Done(Verdict::Drop(Drop::Spoof), Some(matched));
        }
        self.orphaned(moment, packet, parsed, matched)
    }

    /// The flow's interface is gone or belongs to another pod: the flow goes, the packet is judged as if it were new.
    #[cold]
    fn orphaned(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        parsed: &Parsed,
        matched: Matched,
    ) -> End {
        self.local.remove(&self.table, matched.id);
        self.counters.add(Event::FlowsOrphaned, 1);
        self.open(moment, packet, parsed)
    }
}

/// Fetches a packet's headers.
#[inline]
fn fetch<F: Frame>(packet: &Packet<F>) {
    if let Some(first) = packet.frame.bytes().get(ETHERNET_LEN) {
        crate::flow::prefetch::read(first);
    }
}

/// What happens to the TTL of a flow's packets.
#[inline]
fn ttl_of(flow: Flow<'_>) -> Ttl {
    let target = |dir| Target::from_word(flow.egress(dir));
    ttl_between(target(Dir::Forward), target(Dir::Reply))
}

/// What the TCP state machine looks at; none for another protocol.
#[inline]
fn segment(bytes: &[u8], parsed: &Parsed) -> Option<TcpSegment> {
    let header = parsed.tcp(bytes)?;
    let wscale = if header.flags.syn() { wire::tcp_options(bytes, parsed).window_scale } else { None };
    Some(TcpSegment {
        flags: header.flags.0,
        seq: header.seq,
        ack: header.ack,
        window: header.window,
        payload_len: u32::from(parsed.payload_len()),
        wscale,
    })
}

#[cfg(test)]
mod tests;
