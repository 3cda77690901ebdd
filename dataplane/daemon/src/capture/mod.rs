//! Captures: packets copied out of the workers while somebody watches.
//!
//! ```text
//!  worker 0 --\  one bounded queue per worker and capture      session's thread
//!  worker 1 ---> [filter] -> push, or count as lost ----------> names, text, JSON -> query.sock
//! ```
//! A worker pays one atomic load per step while nobody watches. While somebody does it copies the packets that the filter
//! lets through and never waits: what finds the queue full is counted as lost.

mod filter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use sluice_engine::snapshot::{Link, Snapshot};
use sluice_engine::trace::{Note, Trace};
use sluice_engine::{Ingress, Verdict};

pub use filter::Filter;
pub(crate) use filter::same_pod;

/// Records that wait for a capture's thread, for each worker.
const QUEUE: usize = 4096;
/// Captures that run at once at most.
pub const MAX_CAPTURES: usize = 4;

/// A copied packet, before it is put into words.
#[derive(Debug)]
pub struct Raw {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// The worker.
    pub worker: u16,
    /// On its way in (true) or out.
    pub inbound: bool,
    /// Interface that it came from or goes to; absent for a drop.
    pub ifindex: Option<u32>,
    /// Bytes of the whole packet.
    pub len: usize,
    /// The copied bytes.
    pub bytes: Box<[u8]>,
    /// What became of it; absent for one that still waits.
    pub note: Option<Note>,
}

/// One capture that runs.
#[derive(Debug)]
pub struct Session {
    filter: Filter,
    queues: Vec<ArrayQueue<Raw>>,
    lost: AtomicU64,
}

impl Session {
    /// The next record of any worker, oldest first within a worker.
    pub fn next(&self) -> Option<Raw> {
        self.queues.iter().find_map(ArrayQueue::pop)
    }

    /// Records that found the queue full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn offer(&self, raw: Raw) {
        let queue = &self.queues[usize::from(raw.worker)];
        if queue.push(raw).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All captures that run.
#[derive(Debug)]
pub struct Hub {
    active: AtomicBool,
    sessions: ArcSwap<Vec<Arc<Session>>>,
    workers: usize,
}

impl Hub {
    /// No capture, for so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { active: AtomicBool::new(false), sessions: ArcSwap::default(), workers }
    }

    /// Whether any capture runs.
    #[inline]
    #[must_use]
    pub fn active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Starts a capture; none when [`MAX_CAPTURES`] run already.
    #[must_use]
    pub fn start(&self, filter: Filter) -> Option<Arc<Session>> {
        let queues = (0..self.workers).map(|_| ArrayQueue::new(QUEUE)).collect();
        let session = Arc::new(Session { filter, queues, lost: AtomicU64::new(0) });
        let mut taken = false;
        self.sessions.rcu(|sessions| {
            let mut sessions = Vec::clone(sessions);
            taken = sessions.len() < MAX_CAPTURES;
            if taken {
                sessions.push(Arc::clone(&session));
            }
            sessions
        });
        self.active.store(true, Ordering::Relaxed);
        taken.then_some(session)
    }

    /// Ends a capture.
    pub fn stop(&self, session: &Arc<Session>) {
        self.sessions.rcu(|sessions| {
            sessions.iter().filter(|s| !Arc::ptr_eq(s, session)).map(Arc::clone).collect::<Vec<_>>()
        });
        self.active.store(!self.sessions.load().is_empty(), Ordering::Relaxed);
    }
}

/// What came in during one step and has not ended yet.
#[derive(Debug)]
struct Pending {
    ingress: Ingress,
    len: usize,
    bytes: Box<[u8]>,
}

/// Copies what one step does.
#[derive(Debug)]
pub struct CaptureTrace<'a> {
    sessions: arc_swap::Guard<Arc<Vec<Arc<Session>>>>,
    snapshot: &'a Snapshot,
    worker: u16,
    snaplen: usize,
    now: u64,
    pending: Vec<Option<Pending>>,
}

impl<'a> CaptureTrace<'a> {
    /// A trace for one step of a worker.
    #[must_use]
    pub fn new(hub: &Hub, worker: u16, snapshot: &'a Snapshot) -> Self {
        let sessions = hub.sessions.load();
        let snaplen = sessions.iter().map(|s| s.filter.snaplen()).max().unwrap_or(0);
        Self { sessions, snapshot, worker, snaplen, now: 0, pending: Vec::new() }
    }

    /// After the step: what neither left nor was dropped waits inside the engine.
    pub fn finish(mut self) {
        for pending in std::mem::take(&mut self.pending).into_iter().flatten() {
            self.offer(Some(&pending), None);
        }
    }

    /// Offers a packet to every capture: as it came, as it left, or both.
    fn offer(&self, came: Option<&Pending>, left: Option<(&[u8], usize, &Note)>) {
        let drop = left.is_some_and(|(_, _, note)| matches!(note.verdict, Verdict::Drop(_)));
        let from = came.map(|p| p.ingress.ifindex());
        let to = left.and_then(|(_, _, note)| egress(note.verdict));
        let names = [from, to].map(|ifindex| ifindex.and_then(|i| self.pod_name(i)));
        let note = left.map(|(_, _, note)| *note);
        for session in self.sessions.iter() {
            let filter = &session.filter;
            let sides = [came.map(|p| &*p.bytes), left.map(|(bytes, ..)| bytes)];
            if !filter.accepts(drop, names, sides) {
                continue;
            }
            let cut = |bytes: &[u8]| bytes[..bytes.len().min(filter.snaplen())].into();
            if let Some(came) = came {
                let (ifindex, bytes) = (Some(came.ingress.ifindex()), cut(&came.bytes));
                session.offer(Raw { inbound: true, ifindex, len: came.len, bytes, ..self.blank(note) });
            }
            if let Some((bytes, len, _)) = left {
                session.offer(Raw {
                    inbound: false,
                    ifindex: to,
                    len,
                    bytes: cut(bytes),
                    ..self.blank(note)
                });
            }
        }
    }

    fn blank(&self, note: Option<Note>) -> Raw {
        Raw {
            time: self.now,
            worker: self.worker,
            inbound: true,
            ifindex: None,
            len: 0,
            bytes: Box::default(),
            note,
        }
    }

    fn pod_name(&self, ifindex: u32) -> Option<&str> {
        match self.snapshot.link(ifindex)? {
            Link::Pod(pod) => Some(&pod.name),
            Link::Eni(_) => None,
        }
    }
}

/// The interface that a packet leaves by.
fn egress(verdict: Verdict) -> Option<u32> {
    match verdict {
        Verdict::Pod { ifindex }
        | Verdict::Eni { ifindex }
        | Verdict::KernelPod { ifindex }
        | Verdict::KernelEni { ifindex } => Some(ifindex),
        Verdict::Handoff { .. } | Verdict::Drop(_) => None,
    }
}

impl Trace for CaptureTrace<'_> {
    const ON: bool = true;

    fn input(&mut self, now: u64, slot: usize, ingress: Ingress, bytes: &[u8], len: usize) {
        self.now = now;
        if self.pending.len() <= slot {
            self.pending.resize_with(slot + 1, || None);
        }
        let bytes = bytes[..bytes.len().min(self.snaplen)].into();
        self.pending[slot] = Some(Pending { ingress, len, bytes });
    }

    fn output(&mut self, now: u64, slot: Option<usize>, bytes: &[u8], len: usize, note: &Note) {
        self.now = now;
        let came = slot.and_then(|slot| self.pending.get_mut(slot)).and_then(Option::take);
        if matches!(note.verdict, Verdict::Handoff { .. }) {
            // The other worker shows it.
            return;
        }
        self.offer(came.as_ref(), Some((bytes, len, note)));
    }
}
