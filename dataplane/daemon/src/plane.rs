//! What the threads share: the snapshot in force, the flow table, and for each worker a seat at which the others reach it.
//!
//! ```text
//!             snapshot (arc-swap) ----------- loaded once per batch by every worker
//!             flow table --------------------- lock-free, all workers
//!  seat 0 .. N-1:  orders   (control -> worker: queues opened and closed, statistics)
//!                  parcels  (worker -> worker: fragments, frames for a queue of another's)
//!                  wake     (eventfd: anybody -> a worker that sleeps)
//!                  generation, counters (worker -> readers)
//! ```
//! Nobody ever waits for a worker with a lock held, and a worker waits for nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::Sender;
use crossbeam::queue::{ArrayQueue, SegQueue};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sluice_engine::counters::Counters;
use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::Snapshot;
use sluice_engine::worker::{Imports, Known};
use sluice_engine::{Offload, Packet};
use sluice_io::{IoFrame, Port};
use sluice_state::query::PortCounters;

use crate::capture::Hub;

/// Parcels that wait for one worker at most.
const PARCELS: usize = 1024;

/// What one worker sends another.
#[derive(Debug)]
pub enum Parcel {
    /// A packet that the other one must judge: a fragment of its datagram.
    Packet(Packet<IoFrame>),
    /// A packet that is judged and leaves by a queue of the other's.
    Transmit {
        /// The packet.
        frame: IoFrame,
        /// The ENI.
        ifindex: u32,
        /// What is left to do about checksums and size.
        offload: Offload,
    },
}

/// How a worker reaches an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// By its own queue of that ENI.
    Own,
    /// By the trunk: an ENI in tap mode.
    Trunk,
    /// By another worker's queue: the ENI has fewer queues than there are workers.
    Worker(u16),
}

/// What the control thread tells a worker.
pub enum Order {
    /// Takes over a queue of an ENI.
    Open {
        /// The ENI.
        ifindex: u32,
        /// What the queue is called in statistics.
        label: String,
        /// The queue.
        port: Box<dyn Port>,
    },
    /// Says how an ENI is reached.
    Route(u32, Route),
    /// Gives up every queue of an ENI and forgets the way to it; the sender is dropped when it is done.
    Close(u32, Sender<()>),
    /// Asks for the counters of all its ports.
    Statistics(Sender<Vec<PortCounters>>),
    /// Takes connections over that the kernel has tracked, and tells what became of them.
    Import(Vec<Known>, Sender<Imports>),
    /// Ends the worker: it drains what it has and returns.
    Stop,
}

/// Where a worker is reached, and what it shows.
#[derive(Debug)]
pub struct Seat {
    /// The engine's counters.
    pub counters: Arc<Counters>,
    /// Packets that a port or another worker refused after the engine's verdict, by reason.
    pub refused: Counters,
    /// The loop's own counters.
    pub turns: Turns,
    /// What other workers send.
    pub parcels: ArrayQueue<Parcel>,
    orders: SegQueue<Order>,
    generation: AtomicU64,
    asleep: AtomicBool,
    wake: EventFd,
}

macro_rules! turns {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal;)*) => {
        /// What a worker's loop counts of itself. One writer.
        #[derive(Debug, Default)]
        pub struct Turns {
            $($(#[doc = $doc])+ pub $field: AtomicU64,)*
        }

        impl Turns {
            /// Every counter's name with what it means, in the order of [`Turns::all`].
            pub const MEANINGS: &'static [(&'static str, &'static str)] =
                &[$(($name, concat!($($doc),+).trim_ascii()),)*];

            /// Every counter by name.
            #[must_use]
            pub fn all(&self) -> [(&'static str, u64); Self::MEANINGS.len()] {
                [$(($name, self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

turns! {
    /// Turns of the loop.
    loops = "loops";
    /// Turns that moved at least one packet.
    busy = "loops_busy";
    /// Times it went to sleep.
    sleeps = "sleeps";
    /// Parcels taken from other workers to be judged.
    parcels_judged = "parcels_judged";
    /// Parcels taken from other workers to be transmitted.
    parcels_sent = "parcels_sent";
    /// Nanoseconds in the engine.
    engine_ns = "engine_ns";
    /// Nanoseconds in sending, the pods' own receive path included: a write to the trunk runs it.
    send_ns = "send_ns";
}

impl Turns {
    /// Adds to one of the counters. Only the worker calls this.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
}

impl Seat {
    /// The seat of a worker that counts in `counters`.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new(counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            counters,
            refused: Counters::default(),
            turns: Turns::default(),
            parcels: ArrayQueue::new(PARCELS),
            orders: SegQueue::new(),
            generation: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// Gives an order and wakes the worker for it.
    pub fn order(&self, order: Order) {
        self.orders.push(order);
        self.rouse();
    }

    /// Wakes the worker whether it sleeps or is about to.
    pub fn rouse(&self) {
        // The counter of an eventfd is full at 2^64 - 2: a write that fails finds the worker signalled already.
        let _ = self.wake.write(1);
    }

    /// Wakes the worker if it sleeps: cheap while it is busy.
    pub fn nudge(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.rouse();
        }
    }

    /// The worker's next order.
    pub(crate) fn next_order(&self) -> Option<Order> {
        self.orders.pop()
    }

    /// What the worker waits on besides its ports.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The worker says that it is about to sleep; false: something came in meanwhile and it must not.
    pub(crate) fn doze(&self, snapshot: u64) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let nothing = self.parcels.is_empty() && self.orders.is_empty();
        let current = self.generation.load(Ordering::Relaxed) == snapshot;
        if !(nothing && current) {
            self.asleep.store(false, Ordering::Relaxed);
        }
        nothing && current
    }

    /// The worker says that it is awake.
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        let _ = self.wake.read();
    }

    /// The worker says which generation it works with from now on.
    pub(crate) fn acknowledge(&self, generation: u64) {
        if self.generation.load(Ordering::Relaxed) != generation {
            self.generation.store(generation, Ordering::Release);
        }
    }
}

/// What all threads share.
pub struct Plane {
    /// The control data in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// All flows.
    pub table: Arc<FlowTable>,
    /// The workers' seats, by number.
    pub seats: Vec<Seat>,
    /// Captures that run.
    pub captures: Hub,
}

impl Plane {
    /// What the threads of a daemon share, with a first snapshot.
    #[must_use]
    pub fn new(snapshot: Snapshot, table: Arc<FlowTable>, seats: Vec<Seat>) -> Self {
        Self { snapshot: ArcSwap::from_pointee(snapshot), table, captures: Hub::new(seats.len()), seats }
    }

    /// Brings a snapshot into force and waits until every worker works with it; false when one did not within `patience`.
    pub fn publish(&self, snapshot: Snapshot, patience: Duration) -> bool {
        let generation = snapshot.generation;
        // Kept until nobody works with it any more: freeing it is not for a worker, between two packets.
        let _before = self.snapshot.swap(Arc::new(snapshot));
        self.seats.iter().for_each(Seat::rouse);
        let deadline = Instant::now() + patience;
        while !self.seats.iter().all(|seat| seat.generation.load(Ordering::Acquire) >= generation) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        true
    }
}
