//! The loop of one worker thread: receive, step, send, and sleep when there is nothing to do.
//!
//! Each worker owns one queue of the trunk and its queues of the ENIs. A turn takes a batch from each, lets the engine
//! judge it and sends what came out. After `spin` without a packet it sleeps in epoll, because an idle node must cost
//! nothing; before that it polls, because a wake-up costs more than everything else on a packet's way.

use std::io;
use std::sync::Arc;

use crossbeam::channel::Sender;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use sluice_engine::snapshot::Snapshot;
use sluice_engine::trace::{NoTrace, Trace};
use sluice_engine::worker::{BATCH, Output, Worker};
use sluice_engine::{Drop as Reason, Offload, Packet, Verdict};
use sluice_io::{IoFrame, Port};
use sluice_state::query::PortCounters;

use crate::capture::CaptureTrace;
use crate::clock;
use crate::control::Event;
use crate::plane::{Order, Parcel, Plane, Route, Seat, Turns};
use crate::sys;

/// Longest sleep: a timer that was missed is met after this at the latest.
const NAP_NS: u64 = 500_000_000;
/// Longest sleep, and longer polling before it, while a device has not taken what was sent: nothing wakes a worker when
/// the device has room again.
const STALLED_NAP_NS: u64 = 1_000_000;
const STALLED_SPIN_NS: u64 = 1_000_000;

/// A queue of an ENI.
struct Queue {
    ifindex: u32,
    label: String,
    port: Box<dyn Port>,
}

/// A worker's thread, before it runs.
pub struct Loop {
    id: u16,
    plane: Arc<Plane>,
    engine: Worker<IoFrame>,
    trunk: Box<dyn Port>,
    queues: Vec<Queue>,
    routes: Vec<(u32, Route)>,
    epoll: Epoll,
    spin_ns: u64,
    control: Sender<Event>,
    batch: Vec<Packet<IoFrame>>,
    outputs: Vec<Output<IoFrame>>,
}

impl Loop {
    /// A worker with its queue of the trunk. `spin_ns` is how long it polls without a packet before it sleeps.
    ///
    /// # Errors
    /// No epoll instance could be made.
    pub fn new(
        id: u16,
        plane: Arc<Plane>,
        engine: Worker<IoFrame>,
        trunk: Box<dyn Port>,
        spin_ns: u64,
        control: Sender<Event>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(plane.seats[usize::from(id)].wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        if let Some(fd) = trunk.fd() {
            sys::watch(&epoll, fd)?;
        }
        Ok(Self {
            id,
            plane,
            engine,
            trunk,
            queues: Vec::new(),
            routes: Vec::new(),
            epoll,
            spin_ns,
            control,
            batch: Vec::with_capacity(4 * BATCH),
            outputs: Vec::with_capacity(4 * BATCH),
        })
    }

    /// Runs until [`Order::Stop`].
    pub fn run(mut self) {
        let plane = Arc::clone(&self.plane);
        let seat = &plane.seats[usize::from(self.id)];
        let mut last_work = clock::monotonic();
        loop {
            let snapshot = plane.snapshot.load();
            seat.acknowledge(snapshot.generation);
            while let Some(order) = seat.next_order() {
                if matches!(order, Order::Stop) {
                    self.finish(&snapshot);
                    return;
                }
                self.obey(order, &snapshot);
            }
            let now = clock::monotonic();
            let moved = self.turn(now, &snapshot);
            Turns::add(&seat.turns.loops, 1);
            if moved > 0 {
                Turns::add(&seat.turns.busy, 1);
                last_work = now;
            } else if now.saturating_sub(last_work) >= self.patience() {
                self.sleep(seat, &snapshot, now);
                last_work = clock::monotonic();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One batch from each source; the number of packets that moved.
    fn turn(&mut self, now: u64, snapshot: &Snapshot) -> usize {
        let mut moved = self.take_parcels();
        self.trunk.receive(BATCH, &mut self.batch);
        for i in 0..self.queues.len() {
            if self.batch.len() >= BATCH {
                moved += self.step(now, snapshot);
            }
            self.queues[i].port.receive(BATCH, &mut self.batch);
        }
        // With an empty batch too: timers run in here.
        moved += self.step(now, snapshot);
        self.flush();
        moved
    }

    /// Lets the engine judge the batch and sends what comes out.
    fn step(&mut self, now: u64, snapshot: &Snapshot) -> usize {
        if self.plane.captures.active() {
            let plane = Arc::clone(&self.plane);
            let mut trace = CaptureTrace::new(&plane.captures, self.id, snapshot);
            let moved = self.step_traced(now, snapshot, &mut trace);
            trace.finish();
            return moved;
        }
        self.step_traced(now, snapshot, &mut NoTrace)
    }

    fn step_traced<T: Trace>(&mut self, now: u64, snapshot: &Snapshot, trace: &mut T) -> usize {
        let taken = self.batch.len();
        self.engine.step(now, snapshot, &mut self.batch, &mut self.outputs, trace);
        for wanted in self.engine.neighbours_wanted() {
            // One that finds the queue full is named again by the next packet for it.
            let _ = self.control.try_send(Event::Wanted(wanted.0, wanted.1));
        }
        let moved = taken.max(self.outputs.len());
        if moved > 0 {
            let judged = clock::monotonic();
            self.dispatch();
            let turns = &self.plane.seats[usize::from(self.id)].turns;
            Turns::add(&turns.engine_ns, judged - now);
            Turns::add(&turns.send_ns, clock::monotonic() - judged);
        }
        moved
    }

    fn dispatch(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            let Output { frame, verdict, offload, ingress } = output;
            match verdict {
                Verdict::Drop(_) => drop(frame),
                Verdict::Handoff { worker } => {
                    self.post(worker, Parcel::Packet(Packet { frame, ingress, offload }));
                }
                Verdict::Eni { ifindex } => self.transmit(frame, ifindex, offload),
                Verdict::Pod { .. } | Verdict::KernelPod { .. } | Verdict::KernelEni { .. } => {
                    if let Err((frame, reason)) = self.trunk.send(frame, verdict, offload) {
                        self.refuse(frame, reason);
                    }
                }
            }
        }
        self.outputs = outputs;
    }

    fn transmit(&mut self, frame: IoFrame, ifindex: u32, offload: Offload) {
        let verdict = Verdict::Eni { ifindex };
        let route = self.routes.iter().find(|(i, _)| *i == ifindex).map(|(_, route)| *route);
        let sent = match route {
            Some(Route::Own) => match self.queues.iter_mut().find(|q| q.ifindex == ifindex) {
                Some(queue) => queue.port.send(frame, verdict, offload),
                None => Err((frame, Reason::TxError)),
            },
            Some(Route::Trunk) => self.trunk.send(frame, verdict, offload),
            Some(Route::Worker(worker)) => {
                return self.post(worker, Parcel::Transmit { frame, ifindex, offload });
            }
            None => Err((frame, Reason::TxError)),
        };
        if let Err((frame, reason)) = sent {
            self.refuse(frame, reason);
        }
    }

    fn post(&self, worker: u16, parcel: Parcel) {
        let Some(seat) = self.plane.seats.get(usize::from(worker)) else {
            return self.refuse(parcel, Reason::HandoffFull);
        };
        match seat.parcels.push(parcel) {
            Ok(()) => seat.nudge(),
            Err(parcel) => self.refuse(parcel, Reason::HandoffFull),
        }
    }

    /// A packet that ends after the engine's verdict, by name.
    fn refuse<T>(&self, packet: T, reason: Reason) {
        self.plane.seats[usize::from(self.id)].refused.dropped_one(reason);
        drop(packet);
    }

    fn take_parcels(&mut self) -> usize {
        let plane = Arc::clone(&self.plane);
        let seat = &plane.seats[usize::from(self.id)];
        let mut sent = 0;
        while self.batch.len() < BATCH {
            match seat.parcels.pop() {
                Some(Parcel::Packet(packet)) => {
                    Turns::add(&seat.turns.parcels_judged, 1);
                    self.batch.push(packet);
                }
                Some(Parcel::Transmit { frame, ifindex, offload }) => {
                    Turns::add(&seat.turns.parcels_sent, 1);
                    self.transmit(frame, ifindex, offload);
                    sent += 1;
                }
                None => break,
            }
        }
        sent
    }

    fn flush(&mut self) {
        self.trunk.flush();
        for queue in &mut self.queues {
            // A clean one too: its completions come back by it.
            queue.port.flush();
        }
    }

    /// A device has not taken all that was sent.
    fn stalled(&self) -> bool {
        self.trunk.stalled() || self.queues.iter().any(|queue| queue.port.stalled())
    }

    /// How long to poll without a packet before sleeping.
    fn patience(&self) -> u64 {
        if self.stalled() { self.spin_ns.max(STALLED_SPIN_NS) } else { self.spin_ns }
    }

    fn sleep(&mut self, seat: &Seat, snapshot: &Snapshot, now: u64) {
        let longest = if self.stalled() { STALLED_NAP_NS } else { NAP_NS };
        let due = self.engine.next_timer().map_or(longest, |due| due.saturating_sub(now).min(longest));
        let millis = due.div_ceil(1_000_000);
        if millis == 0 || !seat.doze(snapshot.generation) {
            return;
        }
        // What was published before the seat was marked is seen here; what comes after rings the eventfd.
        if self.plane.snapshot.load().generation == snapshot.generation {
            self.engine.sleep();
            Turns::add(&seat.turns.sleeps, 1);
            let timeout = EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX));
            let mut events = [EpollEvent::empty(); 8];
            // An interrupted wait is a short one.
            let _ = self.epoll.wait(&mut events, timeout);
            self.engine.wake();
        }
        seat.awake();
    }

    fn obey(&mut self, order: Order, snapshot: &Snapshot) {
        match order {
            Order::Open { ifindex, label, port } => {
                if let Some(fd) = port.fd()
                    && let Err(error) = sys::watch(&self.epoll, fd)
                {
                    tracing::error!(worker = self.id, %label, %error, "cannot wait on this queue: it is polled only");
                }
                self.queues.push(Queue { ifindex, label, port });
            }
            Order::Route(ifindex, route) => {
                self.routes.retain(|(i, _)| *i != ifindex);
                self.routes.push((ifindex, route));
            }
            Order::Close(ifindex, done) => {
                self.routes.retain(|(i, _)| *i != ifindex);
                for queue in self.queues.iter().filter(|queue| queue.ifindex == ifindex) {
                    // One that could not be watched cannot be unwatched either, which was said then.
                    let _ = queue.port.fd().map(|fd| sys::unwatch(&self.epoll, fd));
                }
                self.queues.retain(|queue| queue.ifindex != ifindex);
                drop(done);
            }
            Order::Statistics(reply) => {
                // Whoever asked may have given up waiting.
                let _ = reply.send(self.statistics());
            }
            Order::Import(known, reply) => {
                let _ = reply.send(self.engine.import(clock::monotonic(), snapshot, &known));
            }
            Order::Stop => {}
        }
    }

    fn statistics(&self) -> Vec<PortCounters> {
        let own = self.queues.iter().map(|queue| (queue.label.clone(), queue.port.stats()));
        std::iter::once((format!("trunk:{}", self.id), self.trunk.stats()))
            .chain(own)
            .map(|(port, stats)| PortCounters {
                worker: self.id,
                port,
                counters: stats.iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            })
            .collect()
    }

    /// Sends what the engine still holds nowhere: it is dropped by name, and every frame goes home.
    fn finish(&mut self, snapshot: &Snapshot) {
        let now = clock::monotonic();
        while self.take_parcels() > 0 || !self.batch.is_empty() {
            self.step(now, snapshot);
        }
        self.flush();
        self.engine.drain(now, &mut self.outputs, &mut NoTrace);
        self.outputs.clear();
        self.engine.sleep();
    }
}
