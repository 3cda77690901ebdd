//! What each worker counts. One writer per worker, any reader: a load and a store, never a locked instruction.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::verdict::{Drop, Verdict};

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)*) => {
        /// What is counted besides drops.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Event {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Event {
            /// Every event, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in metrics and documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

events! {
    /// Packets that came in, those handed over by other workers included.
    In = "in";
    /// Bytes that came in.
    InBytes = "in_bytes";
    /// ICMP errors that the engine made.
    Generated = "generated";
    /// Packets that went to pods.
    ToPod = "to_pod";
    /// Packets that went out by ENIs.
    ToEni = "to_eni";
    /// Packets given back to the kernel on a pod's veth.
    ToKernelPod = "to_kernel_pod";
    /// Packets given back to the kernel on an ENI.
    ToKernelEni = "to_kernel_eni";
    /// Fragments handed to the worker of their datagram.
    HandedOver = "handed_over";
    /// Flows opened.
    FlowsOpened = "flows_opened";
    /// Flows taken over from the kernel's connection tracking.
    FlowsImported = "flows_imported";
    /// Flows reopened by a SYN after they were closed.
    FlowsReopened = "flows_reopened";
    /// Flows closed by age.
    FlowsExpired = "flows_expired";
    /// Flows given up before their time for a new one: not open yet, or closed already.
    FlowsEvicted = "flows_evicted";
    /// Flows removed because an end of theirs is gone, or is another one for who asks anew (a service's endpoint), and
    /// connections that were revoked and come anew.
    FlowsOrphaned = "flows_orphaned";
    /// Flows asked again after a policy change.
    FlowsRechecked = "flows_rechecked";
    /// Flows that policy allowed once and, after a change, forbade.
    FlowsRevoked = "flows_revoked";
    /// Translations made (ports given out).
    PortsTaken = "ports_taken";
    /// Full scans for a free port: a destination near exhaustion.
    PortScans = "port_scans";
    /// RST or FIN segments that were too implausible to close their flow.
    ImplausibleClose = "implausible_close";
    /// ICMP errors not sent because of the rate limit.
    IcmpRateLimited = "icmp_rate_limited";
    /// SYN and SYN/ACK segments whose MSS was lowered.
    MssClamped = "mss_clamped";
}

const EVENTS: usize = Event::ALL.len();
const DROPS: usize = Drop::ALL.len();

/// The counters of one worker.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    events: [AtomicU64; EVENTS],
    drops: [AtomicU64; DROPS],
    held: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            events: std::array::from_fn(|_| AtomicU64::new(0)),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            held: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Adds to an event. Only the worker that owns the counters calls this.
    #[inline]
    pub fn add(&self, event: Event, n: u64) {
        let cell = &self.events[event as usize];
        cell.store(cell.load(Relaxed) + n, Relaxed);
    }

    /// Counts one drop. Only the worker that owns the counters calls this.
    #[inline]
    pub fn dropped_one(&self, reason: Drop) {
        let cell = &self.drops[reason as usize];
        cell.store(cell.load(Relaxed) + 1, Relaxed);
    }

    /// Says how many packets wait inside the worker.
    #[inline]
    pub fn set_held(&self, held: u64) {
        self.held.store(held, Relaxed);
    }

    /// Counts how a packet ended.
    #[inline]
    pub fn verdict(&self, verdict: Verdict) {
        match verdict {
            Verdict::Pod { .. } => self.add(Event::ToPod, 1),
            Verdict::Eni { .. } => self.add(Event::ToEni, 1),
            Verdict::KernelPod { .. } => self.add(Event::ToKernelPod, 1),
            Verdict::KernelEni { .. } => self.add(Event::ToKernelEni, 1),
            Verdict::Handoff { .. } => self.add(Event::HandedOver, 1),
            Verdict::Drop(reason) => self.dropped_one(reason),
        }
    }

    /// The value of an event.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize].load(Relaxed)
    }

    /// How many packets were dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].load(Relaxed)
    }

    /// How many packets wait inside the worker.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// A copy of all values, to be summed over workers and compared.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            events: std::array::from_fn(|i| self.events[i].load(Relaxed)),
            drops: std::array::from_fn(|i| self.drops[i].load(Relaxed)),
            held: self.held(),
        }
    }
}

/// Values of [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    events: [u64; EVENTS],
    drops: [u64; DROPS],
    /// Packets that wait inside workers.
    pub held: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { events: [0; EVENTS], drops: [0; DROPS], held: 0 }
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.events.iter_mut().zip(other.events).for_each(|(a, b)| *a += b);
        self.drops.iter_mut().zip(other.drops).for_each(|(a, b)| *a += b);
        self.held += other.held;
    }
}

impl Totals {
    /// The value of an event.
    #[must_use]
    pub const fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// How many packets were dropped for a reason.
    #[must_use]
    pub const fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize]
    }

    /// All drops.
    #[must_use]
    pub fn all_drops(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Packets that entered: from ports, from other workers, made by the engine.
    #[must_use]
    pub const fn entered(&self) -> u64 {
        self.event(Event::In) + self.event(Event::Generated)
    }

    /// Packets that ended, for ports, for other workers, by a drop, or that still wait.
    #[must_use]
    pub fn ended(&self) -> u64 {
        use Event::{HandedOver, ToEni, ToKernelEni, ToKernelPod, ToPod};
        let out = [ToPod, ToEni, ToKernelPod, ToKernelEni, HandedOver].map(|e| self.event(e));
        out.iter().sum::<u64>() + self.all_drops() + self.held
    }

    /// In = out + dropped + held: the invariant of every test.
    #[must_use]
    pub fn conserved(&self) -> bool {
        self.entered() == self.ended()
    }
}
