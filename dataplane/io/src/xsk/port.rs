//! One queue of one device as a [`Port`].
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use sluice_engine::{Drop as Reason, Frame, GsoKind, Ingress, Offload, Packet, Verdict};
use xsk_rs::FrameDesc;

use super::counters::{self, Counters};
use super::error::XskError;
use super::frame::{MAX_PIECES, UmemFrame};
use super::kernel::InKernel;
use super::open::{ETHERNET, Queues, XskOptions, queues};
use super::umem::{PIECE_CAPACITY, Umem};
use crate::segment::{self, Cut};
use crate::{IoFrame, Port, PortStats};

/// Descriptors handled at once.
const BATCH: usize = 64;
/// Descriptors that copy mode may have in the device at once. The kernel takes more than the device's queue holds and
/// drops the rest without a word (a veth has room for 256), so that a burst of super-packets would lose its tail.
const IN_FLIGHT: usize = 224;
/// Kicks without progress after which the rest waits for the next flush.
const FUTILE_KICKS: u32 = 8;
/// More descriptors follow for this packet (`XDP_PKT_CONTD`).
const CONTINUED: u32 = 1;

/// An AF_XDP socket on one queue of one device.
pub struct XskPort {
    // Dropped in this order: the socket closes, then its chunks come home, then the UMEM may go.
    queues: Queues,
    chain: Option<UmemFrame>,
    /// Empty frames for the pieces of one packet; empty between packets.
    heads: Vec<UmemFrame>,
    kernel: InKernel,
    fd: RawFd,
    ifindex: u32,
    options: XskOptions,
    zero_copy: bool,
    ring: usize,
    scratch: Box<[FrameDesc; BATCH]>,
    linear: Vec<u8>,
    pending: VecDeque<FrameDesc>,
    discarding: bool,
    stalled: bool,
    counters: Counters,
}

impl XskPort {
    /// Opens and binds a socket on `queue` of `interface` (whose index is `ifindex`) and fills its fill ring. The caller
    /// then puts [`Port::fd`] into the XSKMAP.
    ///
    /// The kernel applies the mode and multi-buffer of a UMEM's first socket to all that follow on it. The first socket
    /// also stays bound until the UMEM itself is dropped, which is libxdp's doing.
    ///
    /// # Errors
    /// [`XskError`], naming interface, queue, what the kernel said and what would help.
    pub fn open(
        umem: &Umem,
        interface: &str,
        ifindex: u32,
        queue: u32,
        options: &XskOptions,
    ) -> Result<Self, XskError> {
        let (queues, keep) = queues(umem, interface, queue, options)?;
        let ring = umem.region().ring as usize;
        let fd = queues.tx.fd().as_raw_fd();
        let mut port = Self {
            queues,
            kernel: InKernel::new(umem, keep),
            fd,
            ifindex,
            options: *options,
            zero_copy: options.mode == super::Mode::ZeroCopy,
            ring,
            scratch: Box::new([FrameDesc::default(); BATCH]),
            linear: Vec::with_capacity(65_536 + 256),
            pending: VecDeque::with_capacity(ring),
            chain: None,
            heads: Vec::with_capacity(ring),
            discarding: false,
            stalled: false,
            counters: Counters::default(),
        };
        port.refill();
        Ok(port)
    }

    /// True if the device itself writes the UMEM.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Keeps the fill ring full: an empty one loses packets before anybody can count them by name.
    fn refill(&mut self) {
        let mut want = self.ring - self.kernel.fill;
        if want == 0 && self.options.busy_poll.is_none() {
            return;
        }
        while want > 0 {
            let mut batch = 0;
            while batch < want.min(BATCH) {
                let Some(frame) = self.kernel.umem.empty() else { break };
                let (pieces, _) = frame.into_pieces();
                self.scratch[batch] = self.kernel.umem.region().descriptor(pieces[0]);
                self.kernel.hand_over(pieces[0].index);
                batch += 1;
            }
            if batch == 0 {
                self.counters.fill_short += 1;
                return;
            }
            // SAFETY: the chunks are of this UMEM and were just taken out of the program's hands.
            let produced = unsafe { self.queues.fill.produce(&self.scratch[..batch]) };
            debug_assert_eq!(produced, batch, "the fill ring has room for what it was accounted for");
            self.kernel.fill += batch;
            self.kernel.publish();
            want -= batch;
        }
        if self.queues.fill.needs_wakeup() || self.options.busy_poll.is_some() {
            self.counters.rx_wakeups += 1;
            let _ = nix::sys::socket::recv(self.fd, &mut [], MsgFlags::MSG_DONTWAIT);
        }
    }

    /// Takes back what the kernel has transmitted.
    fn reap(&mut self) {
        loop {
            // SAFETY: the ring is this port's own and descriptors are only read from it.
            let done = unsafe { self.queues.completion.consume(&mut self.scratch[..]) };
            for i in 0..done {
                if let Some(frame) = self.kernel.take_back(&self.scratch[i]) {
                    self.kernel.tx -= 1;
                    self.counters.completions += 1;
                    drop(frame);
                } else {
                    self.counters.rx_foreign += 1;
                }
            }
            if done < BATCH {
                break;
            }
        }
        self.kernel.publish();
    }

    /// Has the kernel transmit what is pending, as far as the device has room. A copy-mode `sendto` moves at most 32
    /// descriptors (or the budget that was set), and stops early when the device's queue is full, so it is repeated as long
    /// as it moves something.
    fn kick(&mut self) {
        let mut futile = 0;
        self.stalled = false;
        loop {
            let submitted = self.submit();
            let in_ring = self.ring - self.queues.tx.nb_free_exact() as usize;
            if in_ring == 0 && self.pending.is_empty() {
                return;
            }
            if in_ring == 0 || !self.queues.tx.needs_wakeup() {
                // What is pending waits for completions; whoever calls comes again.
                self.stalled = !self.pending.is_empty();
                return;
            }
            self.counters.sends += 1;
            let result = nix::sys::socket::send(self.fd, &[], MsgFlags::MSG_DONTWAIT);
            self.reap();
            let left = self.ring - self.queues.tx.nb_free_exact() as usize;
            match result {
                Ok(_) | Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS) => {
                    futile = if left == in_ring && submitted == 0 { futile + 1 } else { 0 };
                    if futile > FUTILE_KICKS {
                        self.stalled = true;
                        return;
                    }
                }
                Err(_) => {
                    self.counters.send_errors += 1;
                    self.stalled = true;
                    return;
                }
            }
        }
    }

    /// Hands pending descriptors to the ring, whole packets only, as many as may be in the device; how many it was.
    fn submit(&mut self) -> usize {
        let in_kernel = self.kernel.tx - self.pending.len();
        let limit = if self.zero_copy { self.ring } else { IN_FLIGHT.min(self.ring) };
        let mut count = self.pending.len().min(limit.saturating_sub(in_kernel));
        // Usually it is in one piece already.
        let pending = self.pending.make_contiguous();
        while count > 0 && pending[count - 1].has_more_frames() {
            count -= 1;
        }
        if count == 0 {
            return 0;
        }
        // SAFETY: `queue` put only chunks into `pending` that frames of this UMEM were taken apart for.
        let produced = unsafe { self.queues.tx.produce(&pending[..count]) };
        debug_assert_eq!(produced, count, "the tx ring has room for what it was accounted for");
        self.pending.drain(..count);
        count
    }

    /// Room for `chunks` more descriptors, made by transmitting if need be.
    fn room(&mut self, chunks: usize) -> bool {
        // Descriptors count until completed, so that the completion ring always has room for them too.
        if self.kernel.tx + chunks <= self.ring {
            return true;
        }
        self.kick();
        self.reap();
        self.kernel.tx + chunks <= self.ring
    }

    /// Queues a frame whose bytes are final. There must be room.
    fn queue(&mut self, frame: UmemFrame) {
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += frame.len() as u64;
        let (pieces, count) = frame.into_pieces();
        for (i, piece) in pieces[..count].iter().enumerate() {
            let mut desc = self.kernel.umem.region().descriptor(*piece);
            desc.set_options(if i + 1 < count { CONTINUED } else { 0 });
            self.kernel.hand_over(piece.index);
            self.kernel.tx += 1;
            self.pending.push_back(desc);
        }
        self.kernel.publish();
    }

    /// Makes UMEM frames of one frame, cut as `cut` says, and queues them all or none.
    fn transmit_cut(&mut self, bytes: &[u8], cut: &Cut) -> Result<(), Reason> {
        let largest = cut.largest();
        let chunks = cut.count() * largest.div_ceil(PIECE_CAPACITY);
        if largest > PIECE_CAPACITY && !self.options.multi_buffer
            || largest.div_ceil(PIECE_CAPACITY) > MAX_PIECES
            || chunks > self.ring
        {
            return Err(Reason::TxError);
        }
        if !self.room(chunks) {
            return Err(Reason::TxFull);
        }
        if !self.provide(cut.count()) {
            self.reap();
            if !self.provide(cut.count()) {
                self.heads.clear();
                return Err(Reason::NoFrame);
            }
        }
        for index in 0..cut.count() {
            let Some(mut frame) = self.heads.pop() else { break };
            if cut.piece_len(index) <= PIECE_CAPACITY {
                frame.resize(cut.piece_len(index));
                cut.write(bytes, index, frame.bytes_mut());
            } else {
                let mut whole = std::mem::take(&mut self.linear);
                whole.resize(cut.piece_len(index), 0);
                cut.write(bytes, index, &mut whole);
                let chained = chain(&self.kernel.umem, frame, &whole);
                self.linear = whole;
                let Some(chained) = chained else {
                    // Only chains can run out half way: the rest of a jumbo super-packet is lost, as on a wire.
                    self.heads.clear();
                    return Err(Reason::NoFrame);
                };
                frame = chained;
            }
            self.queue(frame);
        }
        self.counters.tx_copied += 1;
        match cut.kind() {
            segment::Kind::Whole => {}
            segment::Kind::Tcp | segment::Kind::Udp => self.counters.segments += cut.count() as u64,
            segment::Kind::Fragments => self.counters.fragments += cut.count() as u64,
        }
        Ok(())
    }

    /// Takes `count` empty frames out of the pool, so that a super-packet is sent whole or not at all.
    fn provide(&mut self, count: usize) -> bool {
        while self.heads.len() < count {
            let Some(frame) = self.kernel.umem.empty() else { return false };
            self.heads.push(frame);
        }
        true
    }

    fn transmit(&mut self, mut frame: IoFrame, offload: Offload) -> Result<(), (IoFrame, Reason)> {
        let mtu = self.options.mtu as usize;
        let whole = offload.gso == GsoKind::None && frame.len() <= ETHERNET + mtu;
        if whole && let IoFrame::Umem(mut umem_frame) = frame {
            if umem_frame.is_of(&self.kernel.umem)
                && (umem_frame.chunks() == 1 || self.options.multi_buffer)
                && umem_frame.straighten()
                && !offload.partial
            {
                if !self.room(umem_frame.chunks()) {
                    return Err((IoFrame::Umem(umem_frame), Reason::TxFull));
                }
                self.queue(umem_frame);
                return Ok(());
            }
            frame = IoFrame::Umem(umem_frame);
        }
        let mut gathered = Vec::new();
        let bytes = if frame.bytes().len() == frame.len() {
            frame.bytes()
        } else {
            // A chain that has to be cut or copied: rare enough (jumbo in, small MTU out) to gather it.
            frame.copy_to(&mut gathered);
            &gathered[..]
        };
        let sent = Cut::plan(bytes, offload, mtu).and_then(|cut| self.transmit_cut(bytes, &cut));
        sent.map_err(|reason| (frame, reason))
    }
}

impl Port for XskPort {
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize {
        self.reap();
        self.refill();
        if self.stalled {
            self.kick();
        }
        let before = into.len();
        while into.len() - before < budget {
            let want = BATCH.min(budget - (into.len() - before));
            // SAFETY: the ring is this port's own and descriptors are only read from it.
            let got = unsafe { self.queues.rx.consume(&mut self.scratch[..want]) };
            for i in 0..got {
                let desc = self.scratch[i];
                let Some(frame) = self.kernel.take_back(&desc) else {
                    self.counters.rx_foreign += 1;
                    continue;
                };
                self.kernel.fill -= 1;
                if let Some(frame) = self.assemble(frame, &desc) {
                    self.counters.rx_packets += 1;
                    self.counters.rx_bytes += frame.len() as u64;
                    into.push(Packet {
                        frame: IoFrame::Umem(frame),
                        ingress: Ingress::Eni(self.ifindex),
                        offload: Offload::default(),
                    });
                }
            }
            if got < want {
                break;
            }
            self.refill();
        }
        self.kernel.publish();
        into.len() - before
    }

    fn send(&mut self, frame: IoFrame, verdict: Verdict, offload: Offload) -> Result<(), (IoFrame, Reason)> {
        // The kernel skips a descriptor without an Ethernet header and never completes it.
        if verdict != (Verdict::Eni { ifindex: self.ifindex }) || frame.bytes().len() < ETHERNET {
            self.counters.tx_error += 1;
            return Err((frame, Reason::TxError));
        }
        self.transmit(frame, offload).inspect_err(|(_, reason)| match reason {
            Reason::TxFull => self.counters.tx_full += 1,
            Reason::NoFrame => self.counters.tx_no_frame += 1,
            _ => self.counters.tx_error += 1,
        })
    }

    fn flush(&mut self) {
        self.kick();
        self.reap();
    }

    fn stalled(&self) -> bool {
        self.stalled
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.fd)
    }

    fn stats(&self) -> PortStats {
        let mut stats = PortStats::default();
        self.counters.report(&mut stats);
        if let Ok(kernel) = self.queues.tx.fd().xdp_statistics() {
            counters::report_kernel(&kernel, &mut stats);
        }
        stats
    }
}

impl XskPort {
    /// Joins the pieces of a multi-buffer packet; a packet of one piece passes through.
    fn assemble(&mut self, frame: UmemFrame, desc: &FrameDesc) -> Option<UmemFrame> {
        let continued = desc.has_more_frames();
        if self.discarding {
            self.discarding = continued;
            return None;
        }
        let joined = match self.chain.take() {
            None => frame,
            Some(mut head) => {
                if head.chunks() == MAX_PIECES {
                    self.counters.rx_chain_too_long += 1;
                    self.discarding = continued;
                    return None;
                }
                let (pieces, _) = frame.into_pieces();
                let appended = head.append(pieces[0]);
                debug_assert!(appended, "a chain below its maximum takes one more");
                head
            }
        };
        if continued {
            self.chain = Some(joined);
            return None;
        }
        Some(joined)
    }
}

/// A chain that holds `bytes`, its first chunk being `head`; `None` when the pool is empty.
fn chain(umem: &Umem, mut head: UmemFrame, bytes: &[u8]) -> Option<UmemFrame> {
    let mut pieces = bytes.chunks(PIECE_CAPACITY);
    let first = pieces.next()?;
    head.resize(first.len());
    head.bytes_mut().copy_from_slice(first);
    for piece in pieces {
        let mut more = umem.empty()?;
        more.resize(piece.len());
        more.bytes_mut().copy_from_slice(piece);
        let (parts, _) = more.into_pieces();
        let appended = head.append(parts[0]);
        debug_assert!(appended, "the caller checked the length of the chain");
    }
    Some(head)
}
