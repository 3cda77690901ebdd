//! One queue of one device as a [`Port`].
//!
//! The port keeps a set of the chunks that the kernel has from it. It is what turns a descriptor out of a ring back into
//! an owned frame (an address that was never handed in is refused), and what brings every chunk home when the port closes.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use sluice_engine::{Drop as Reason, Frame, GsoKind, Ingress, Offload, Packet, Verdict};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue};

use super::error::{XskError, open_remedy};
use super::umem::{Ledger, MAX_PIECES, PIECE_CAPACITY, Piece, Umem, UmemFrame};
use crate::segment::{self, Cut};
use crate::{IoFrame, Port, PortStats};

/// Descriptors handled at once.
const BATCH: usize = 64;
/// Kicks without progress after which the rest waits for the next flush.
const FUTILE_KICKS: u32 = 8;
/// More descriptors follow for this packet (`XDP_PKT_CONTD`).
const CONTINUED: u32 = 1;
/// How long the kernel may take to release the queue of a socket that was closed.
const RELEASE_TIME: Duration = Duration::from_millis(300);
/// `XDP_MAX_TX_SKB_BUDGET` of kernel 6.17: descriptors that one copy-mode `sendto` moves.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
/// Ethernet header bytes.
const ETHERNET: usize = 14;

/// How packets cross between device and UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The device writes the UMEM itself. Refused by drivers that cannot.
    ZeroCopy,
    /// The kernel copies; works with every driver, natively or with generic XDP as the program was attached.
    Copy,
}

impl Mode {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }
}

/// Preferred busy polling (kernel >= 5.11): the worker drives the device's NAPI from its own receive calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds that one call may spin in the kernel (`SO_BUSY_POLL`).
    pub microseconds: u32,
    /// Packets of one NAPI run (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// What to ask of an AF_XDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XskOptions {
    /// Copy or zero-copy; never guessed, so that a report can say which was got.
    pub mode: Mode,
    /// Chains of chunks for frames above [`PIECE_CAPACITY`] (`XDP_USE_SG`, kernel >= 6.6).
    pub multi_buffer: bool,
    /// The interface's MTU in bytes: what is larger is cut, or refused when it may not be.
    pub mtu: u32,
    /// Off unless asked for.
    pub busy_poll: Option<BusyPoll>,
}

struct Queues {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

/// The chunks that the kernel has from this port.
struct InKernel {
    umem: Umem,
    ledger: Arc<Ledger>,
    set: Box<[u64]>,
    fill: usize,
    tx: usize,
    /// The chunks stay the kernel's until the UMEM ends: with the UMEM's own socket, which libxdp closes only then, and in
    /// zero-copy mode, where the driver lets go of them some time after the socket is closed.
    keep: bool,
}

/// An AF_XDP socket on one queue of one device.
pub struct XskPort {
    // Dropped in this order: the socket closes, then its chunks come home, then the UMEM may go.
    queues: Queues,
    chain: Option<UmemFrame>,
    kernel: InKernel,
    fd: RawFd,
    ifindex: u32,
    options: XskOptions,
    zero_copy: bool,
    ring: usize,
    scratch: Box<[FrameDesc; BATCH]>,
    linear: Vec<u8>,
    pending: Vec<FrameDesc>,
    discarding: bool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    rx_packets: u64,
    rx_bytes: u64,
    rx_foreign: u64,
    rx_chain_too_long: u64,
    tx_packets: u64,
    tx_bytes: u64,
    tx_full: u64,
    tx_error: u64,
    tx_no_frame: u64,
    tx_copied: u64,
    segments: u64,
    fragments: u64,
    completions: u64,
    sends: u64,
    send_errors: u64,
    rx_wakeups: u64,
    fill_short: u64,
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
        let region = umem.region();
        let ring = region.ring;
        check_mtu(interface, queue, options)?;
        if region.free() < ring as usize {
            let (free, needed) = (region.free(), ring as usize);
            return Err(XskError::Pool { interface: interface.into(), queue, free, needed });
        }
        let mut bound = region.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = (options.mode, options.multi_buffer);
        if let Some(first) = bound.filter(|first| *first != asked) {
            let (first, asked) = (binding(first), binding(asked));
            return Err(XskError::ModeOfUmem { interface: interface.into(), queue, first, asked });
        }
        let failed = |what: String, source: std::io::Error| XskError::Open {
            interface: interface.into(),
            queue,
            mode: options.mode.name(),
            what,
            remedy: open_remedy(source.raw_os_error()),
            source,
        };
        let invalid = |what: String| failed(what, std::io::Error::from_raw_os_error(libc::EINVAL));
        let size = QueueSize::new(ring).map_err(|e| invalid(e.to_string()))?;
        let name: Interface = interface.parse().map_err(|_| invalid("interface name".into()))?;
        let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
        flags |= match options.mode {
            Mode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            Mode::Copy => BindFlags::XDP_COPY,
        };
        if options.multi_buffer {
            flags |= BindFlags::XDP_USE_SG;
        }
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let (tx, rx, rings) =
            bind(config, &region.xsk, &name, queue).map_err(|(what, source)| failed(what, source))?;
        let Some((fill, completion)) = rings else {
            let taken = std::io::Error::from_raw_os_error(libc::EBUSY);
            return Err(failed("this UMEM has a socket on the queue already".into(), taken));
        };
        let first = bound.is_none();
        *bound = Some(asked);
        drop(bound);
        let fd = tx.fd().as_raw_fd();
        let mut port = Self {
            queues: Queues { rx, tx, fill, completion },
            kernel: InKernel {
                umem: umem.clone(),
                ledger: region.ledger(),
                set: vec![0; region.total().div_ceil(64)].into_boxed_slice(),
                fill: 0,
                tx: 0,
                keep: first || options.mode == Mode::ZeroCopy,
            },
            fd,
            ifindex,
            options: *options,
            zero_copy: options.mode == Mode::ZeroCopy,
            ring: ring as usize,
            scratch: Box::new([FrameDesc::default(); BATCH]),
            linear: Vec::with_capacity(65_536 + 256),
            pending: Vec::with_capacity(ring as usize),
            chain: None,
            discarding: false,
            counters: Counters::default(),
        };
        port.tune();
        port.refill();
        Ok(port)
    }

    /// True if the device itself writes the UMEM.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Socket options that help where the kernel has them; without one the port works, only slower.
    fn tune(&self) {
        // In copy mode every packet under way is charged to the socket's send buffer, 212 KiB by default.
        let _ = set_option(self.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 26);
        let _ = set_option(self.fd, libc::SOL_XDP, MAX_TX_SKB_BUDGET, 1024);
        if let Some(busy) = self.options.busy_poll {
            let _ = set_option(self.fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1);
            let _ =
                set_option(self.fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, busy.microseconds as libc::c_int);
            let _ = set_option(self.fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, busy.budget as libc::c_int);
        }
    }

    /// Keeps the fill ring full: an empty one loses packets before anybody can count them by name.
    fn refill(&mut self) {
        let mut want = self.ring - self.kernel.fill;
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

    /// Has the kernel transmit what is in the ring. A copy-mode `sendto` moves at most 32 descriptors (or the budget that
    /// was set), and stops early when the device's queue is full, so it is repeated as long as it moves something.
    fn kick(&mut self) {
        let mut futile = 0;
        while self.kernel.tx > 0 && self.queues.tx.needs_wakeup() {
            let before = self.queues.tx.nb_free_exact();
            if before as usize == self.ring {
                break;
            }
            self.counters.sends += 1;
            let result = nix::sys::socket::send(self.fd, &[], MsgFlags::MSG_DONTWAIT);
            self.reap();
            match result {
                Ok(_) => break,
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS) => {
                    futile = if self.queues.tx.nb_free_exact() == before { futile + 1 } else { 0 };
                    if futile > FUTILE_KICKS {
                        break;
                    }
                }
                Err(_) => {
                    self.counters.send_errors += 1;
                    break;
                }
            }
        }
    }

    /// Hands pending descriptors to the ring.
    fn submit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // SAFETY: `queue` put only chunks into `pending` that frames of this UMEM were taken apart for.
        let produced = unsafe { self.queues.tx.produce(&self.pending) };
        debug_assert_eq!(produced, self.pending.len(), "the tx ring has room for what it was accounted for");
        self.pending.clear();
    }

    /// Room for `chunks` more descriptors, made by transmitting if need be.
    fn room(&mut self, chunks: usize) -> bool {
        // Descriptors count until completed, so that the completion ring always has room for them too.
        if self.kernel.tx + chunks <= self.ring {
            return true;
        }
        self.submit();
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
            self.pending.push(desc);
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
        if self.kernel.umem.region().free() < chunks {
            self.reap();
            if self.kernel.umem.region().free() < chunks {
                return Err(Reason::NoFrame);
            }
        }
        for index in 0..cut.count() {
            // Another worker may have emptied the pool since; then the rest of a super-packet is lost, as on a wire.
            let Some(mut frame) = self.kernel.umem.empty() else { return Err(Reason::NoFrame) };
            if cut.piece_len(index) <= PIECE_CAPACITY {
                frame.resize(cut.piece_len(index));
                cut.write(bytes, index, frame.bytes_mut());
            } else {
                let mut whole = std::mem::take(&mut self.linear);
                whole.resize(cut.piece_len(index), 0);
                cut.write(bytes, index, &mut whole);
                let chained = chain(&self.kernel.umem, frame, &whole);
                self.linear = whole;
                frame = chained.ok_or(Reason::NoFrame)?;
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
        if verdict != (Verdict::Eni { ifindex: self.ifindex }) {
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
        self.submit();
        self.kick();
        self.reap();
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.fd)
    }

    fn stats(&self) -> PortStats {
        let c = &self.counters;
        let mut stats: PortStats = [
            ("rx_packets", c.rx_packets),
            ("rx_bytes", c.rx_bytes),
            ("rx_foreign_descs", c.rx_foreign),
            ("rx_chain_too_long", c.rx_chain_too_long),
            ("rx_wakeups", c.rx_wakeups),
            ("rx_fill_short", c.fill_short),
            ("tx_packets", c.tx_packets),
            ("tx_bytes", c.tx_bytes),
            ("tx_completions", c.completions),
            ("tx_copied", c.tx_copied),
            ("tx_segments", c.segments),
            ("tx_fragments", c.fragments),
            ("tx_full", c.tx_full),
            ("tx_error", c.tx_error),
            ("tx_no_frame", c.tx_no_frame),
            ("sends", c.sends),
            ("send_errors", c.send_errors),
        ]
        .into_iter()
        .collect();
        if let Ok(kernel) = self.queues.tx.fd().xdp_statistics() {
            stats.push("rx_dropped", kernel.rx_dropped());
            stats.push("rx_invalid_descs", kernel.rx_invalid_descs());
            stats.push("tx_invalid_descs", kernel.tx_invalid_descs());
            stats.push("rx_ring_full", kernel.rx_ring_full());
            stats.push("rx_fill_ring_empty_descs", kernel.rx_fill_ring_empty_descs());
            stats.push("tx_ring_empty_descs", kernel.tx_ring_empty_descs());
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

impl InKernel {
    /// A chunk goes to the kernel.
    fn hand_over(&mut self, index: u32) {
        self.umem.region().hand_to_kernel(index);
        self.set[index as usize / 64] |= 1 << (index % 64);
    }

    /// A chunk comes back from the kernel as a frame; `None` if the kernel did not have it.
    fn take_back(&mut self, desc: &FrameDesc) -> Option<UmemFrame> {
        let piece = self.umem.region().piece(desc)?;
        let (word, bit) = (piece.index as usize / 64, 1 << (piece.index % 64));
        if self.set[word] & bit == 0 {
            debug_assert!(false, "the kernel returned chunk {} that it was never given", piece.index);
            return None;
        }
        self.set[word] &= !bit;
        self.umem.region().out_of_kernel(piece.index);
        Some(UmemFrame::from_program(self.umem.region(), piece))
    }

    fn publish(&self) {
        self.ledger.fill.store(self.fill, Ordering::Release);
        self.ledger.tx.store(self.tx, Ordering::Release);
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        if self.keep {
            self.umem.region().keep(self.fill + self.tx);
        } else {
            for (word, bits) in self.set.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let index = (word * 64) as u32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    self.umem.region().out_of_kernel(index);
                    drop(UmemFrame::from_program(self.umem.region(), Piece { index, offset: 0, len: 0 }));
                }
            }
        }
        (self.fill, self.tx) = (0, 0);
        self.publish();
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

type Opened = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

/// Creates and binds the socket. A queue whose socket was closed a moment ago is still busy until a kernel worker has
/// released it, so that answer is only believed after [`RELEASE_TIME`].
fn bind(
    config: SocketConfig,
    umem: &xsk_rs::Umem,
    name: &Interface,
    queue: u32,
) -> Result<Opened, (String, std::io::Error)> {
    let begin = Instant::now();
    loop {
        // SAFETY: the one condition is that program loading is inhibited, which `open` has the configuration say.
        let error = match unsafe { Socket::new(config, umem, name, queue) } {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let io = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<std::io::Error>());
        let errno = io.and_then(std::io::Error::raw_os_error);
        if errno == Some(libc::EBUSY) && begin.elapsed() < RELEASE_TIME {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let source =
            errno.map_or_else(|| std::io::Error::other("no errno"), std::io::Error::from_raw_os_error);
        return Err((error.to_string(), source));
    }
}

fn check_mtu(interface: &str, queue: u32, options: &XskOptions) -> Result<(), XskError> {
    let needed = options.mtu as usize + ETHERNET;
    let (room, how) = if options.multi_buffer {
        (PIECE_CAPACITY * MAX_PIECES, "with multi-buffer")
    } else {
        (PIECE_CAPACITY, "without multi-buffer")
    };
    if needed <= room {
        return Ok(());
    }
    Err(XskError::Mtu { interface: interface.into(), queue, mtu: options.mtu, needed, room, how })
}

fn binding((mode, multi_buffer): (Mode, bool)) -> String {
    format!("{}{}", mode.name(), if multi_buffer { " with multi-buffer" } else { " without multi-buffer" })
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    // SAFETY: the kernel reads an int, whose address and size are given.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            std::mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
