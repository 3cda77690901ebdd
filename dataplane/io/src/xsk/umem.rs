//! The UMEM, its pool of free chunks, and the frame type that owns chunks while the program has them.
//!
//! A frame may be dropped by another worker than received it (handoff, a waiting room), so freeing must be possible from
//! anywhere and cost little where it is frequent. Each thread keeps a small stack of free chunks and exchanges batches
//! with one shared queue:
//!
//! ```text
//!   thread A: stack of <= 512 --- spill 256 --> shared queue (lock-free) --- refill 256 --> thread B: stack
//! ```
//! Frames carry a bare pointer to the region instead of a reference count, which all workers would fight over. That is
//! sound because the region is only freed when every chunk is home, and otherwise deliberately left allocated.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use super::error::{XskError, umem_remedy};
use super::frame::{Piece, UmemFrame};
use crate::IoFrame;

/// Bytes of a chunk.
pub const CHUNK_SIZE: u32 = 4096;
/// Bytes of a packet that one chunk carries: the kernel keeps XDP's headroom of 256 in front.
pub const PIECE_CAPACITY: usize = CHUNK_SIZE as usize - HEADROOM;
/// Where the kernel puts received data in a chunk, and where we put data to send.
pub(super) const HEADROOM: usize = 256;
/// Free chunks a thread keeps to itself at most, and how many it exchanges at once.
const LOCAL: usize = 512;
const EXCHANGE: usize = 256;

/// Memory shared with the kernel, for all ports. Clones are the same UMEM.
///
/// It must outlive its frames. When the last clone goes while frames are alive, the memory is kept for good (and a debug
/// build panics), because a frame must never point to memory that is gone.
#[derive(Debug, Clone)]
pub struct Umem(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    region: ManuallyDrop<Arc<Region>>,
}

/// Where every chunk of a UMEM is at this moment. Exact when no other thread moves frames meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmemAccount {
    /// All chunks.
    pub total: usize,
    /// In the pool, threads' stacks included.
    pub free: usize,
    /// In the kernel's hands to receive into, or received and not yet read.
    pub fill: usize,
    /// In the kernel's hands to transmit.
    pub tx: usize,
    /// With a closed socket that was the UMEM's first or zero-copy: the kernel gives these back only with the UMEM itself.
    pub kept: usize,
}

impl UmemAccount {
    /// Chunks that live frames own.
    #[must_use]
    pub fn in_frames(&self) -> usize {
        self.total.saturating_sub(self.free + self.fill + self.tx + self.kept)
    }
}

impl Umem {
    /// Allocates and registers `chunks` chunks of [`CHUNK_SIZE`] bytes, with fill and completion rings of `ring` entries.
    ///
    /// A port needs `ring` chunks for its fill ring and up to as many in transmission; a thread keeps up to 512 free ones.
    ///
    /// # Errors
    /// [`XskError::Umem`] when the kernel refuses, with the limit that it ran into.
    pub fn new(chunks: u32, ring: u32, huge_pages: bool) -> Result<Self, XskError> {
        let failed = |source: std::io::Error| XskError::Umem {
            chunks,
            chunk_size: CHUNK_SIZE,
            remedy: umem_remedy(source.raw_os_error()),
            source,
        };
        let invalid = |what: String| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
        let ring = QueueSize::new(ring).map_err(|e| invalid(e.to_string()))?;
        let count = NonZeroU32::new(chunks).ok_or_else(|| invalid("no chunk at all".into()))?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(CHUNK_SIZE).map_err(|e| invalid(e.to_string()))?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(|e| invalid(e.to_string()))?;
        let (xsk, home) = xsk_rs::Umem::new(config, count, huge_pages).map_err(|e| {
            let io = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<std::io::Error>());
            let errno = io.and_then(std::io::Error::raw_os_error);
            failed(
                errno.map_or_else(|| std::io::Error::other(e.to_string()), std::io::Error::from_raw_os_error),
            )
        })?;
        let region =
            Region::new(xsk, home, ring.get()).ok_or_else(|| invalid("chunks are not laid out".into()))?;
        Ok(Self(Arc::new(Owner { region: ManuallyDrop::new(Arc::new(region)) })))
    }

    /// A frame of length 0 with one chunk of the pool, `None` when the pool is empty.
    #[must_use]
    pub fn frame(&self) -> Option<IoFrame> {
        self.empty().map(IoFrame::Umem)
    }

    /// Bytes of memory that it takes, for as long as it lives.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.account().total as u64 * u64::from(CHUNK_SIZE)
    }

    /// Where every chunk is.
    #[must_use]
    pub fn account(&self) -> UmemAccount {
        self.region().account()
    }

    pub(super) fn empty(&self) -> Option<UmemFrame> {
        let index = self.region().take()?;
        Some(UmemFrame::from_program(self.region(), Piece { index, offset: HEADROOM as u16, len: 0 }))
    }

    pub(super) fn region(&self) -> &Region {
        &self.0.region
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let account = self.region.account();
        if account.in_frames() == 0 {
            // SAFETY: the field is not used after this, since `self` is being dropped. No frame points into the region,
            // because every chunk is accounted for elsewhere and a frame owns at least one.
            unsafe { ManuallyDrop::drop(&mut self.region) };
        } else {
            debug_assert!(std::thread::panicking(), "UMEM dropped while frames are alive: {account:?}");
        }
    }
}

/// What all handles, ports and frames of one UMEM share.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) xsk: xsk_rs::Umem,
    pub(super) base: NonNull<u8>,
    /// The descriptor of each chunk as it was born, because xsk-rs makes none from an address.
    home: Box<[FrameDesc]>,
    free: ArrayQueue<u32>,
    stacks: Mutex<Vec<Weak<CachePadded<AtomicUsize>>>>,
    ledgers: Mutex<Vec<Weak<Ledger>>>,
    kept: AtomicUsize,
    pub(super) ring: u32,
    /// Mode and multi-buffer of the first socket, which the kernel applies to all.
    pub(super) bound: Mutex<Option<(super::Mode, bool)>>,
    /// Debug builds: who has each chunk.
    place: Box<[AtomicU8]>,
}

// SAFETY: `base` points into the mapping that `xsk` keeps alive. Who may touch which chunk is decided by ownership of
// `UmemFrame`s, never by access to the region.
unsafe impl Send for Region {}
// SAFETY: as above; all other fields are `Sync`, `home` is only read.
unsafe impl Sync for Region {}

const POOL: u8 = 0;
const PROGRAM: u8 = 1;
const KERNEL: u8 = 2;

/// Chunks of one port that the kernel has. Written by the port's worker, read by whoever wants the account.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) fill: AtomicUsize,
    pub(super) tx: AtomicUsize,
}

impl Region {
    fn new(xsk: xsk_rs::Umem, mut home: Vec<FrameDesc>, ring: u32) -> Option<Self> {
        let first = home.first_mut()?;
        let addr = first.addr();
        if addr != HEADROOM {
            return None;
        }
        // SAFETY: the chunk was just created and nobody else has it. The pointer is used for the whole mapping, which
        // xsk-rs makes in one piece and whose first `addr` bytes lie in front of this chunk's data.
        let base = unsafe { xsk.data_mut(first).contents_mut().as_mut_ptr().sub(addr) };
        let free = ArrayQueue::new(home.len());
        for index in 0..home.len() as u32 {
            let _ = free.push(index);
        }
        let places = if cfg!(debug_assertions) { home.len() } else { 0 };
        Some(Self {
            xsk,
            base: NonNull::new(base)?,
            free,
            home: home.into_boxed_slice(),
            stacks: Mutex::new(Vec::new()),
            ledgers: Mutex::new(Vec::new()),
            kept: AtomicUsize::new(0),
            ring,
            bound: Mutex::new(None),
            place: (0..places).map(|_| AtomicU8::new(POOL)).collect(),
        })
    }

    pub(super) fn total(&self) -> usize {
        self.home.len()
    }

    pub(super) fn free(&self) -> usize {
        let stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let local: usize =
            stacks.iter().filter_map(Weak::upgrade).map(|len| len.load(Ordering::Acquire)).sum();
        self.free.len() + local
    }

    fn account(&self) -> UmemAccount {
        let ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut fill, mut tx) = (0, 0);
        for ledger in ledgers.iter().filter_map(Weak::upgrade) {
            fill += ledger.fill.load(Ordering::Acquire);
            tx += ledger.tx.load(Ordering::Acquire);
        }
        let kept = self.kept.load(Ordering::Acquire);
        UmemAccount { total: self.total(), free: self.free(), fill, tx, kept }
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        let ledger = Arc::new(Ledger::default());
        let mut ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        ledgers.retain(|l| l.strong_count() > 0);
        ledgers.push(Arc::downgrade(&ledger));
        ledger
    }

    /// A descriptor for `piece`, to be given to a ring.
    pub(super) fn descriptor(&self, piece: Piece) -> FrameDesc {
        let mut desc = self.home[piece.index as usize];
        debug_assert_eq!(usize::from(piece.offset), HEADROOM);
        // SAFETY: whoever has a piece owns its chunk; the borrow ends in this statement and only sets a length.
        unsafe { self.xsk.data_mut(&mut desc) }.cursor().set_pos(usize::from(piece.len));
        desc
    }

    /// The piece that a descriptor from a ring names, `None` for an address outside the UMEM.
    pub(super) fn piece(&self, desc: &FrameDesc) -> Option<Piece> {
        let (index, offset) = (desc.addr() / CHUNK_SIZE as usize, desc.addr() % CHUNK_SIZE as usize);
        let len = desc.lengths().data();
        (index < self.total() && offset + len <= CHUNK_SIZE as usize).then_some(Piece {
            index: index as u32,
            offset: offset as u16,
            len: len as u16,
        })
    }

    /// Takes a free chunk.
    pub(super) fn take(&self) -> Option<u32> {
        let index = Stack::with(self, |stack| stack.take(&self.free)).unwrap_or_else(|| self.free.pop())?;
        self.moved(index, POOL, PROGRAM);
        Some(index)
    }

    /// Puts a chunk back that the program has.
    pub(super) fn give(&self, index: u32) {
        self.moved(index, PROGRAM, POOL);
        let done = Stack::with(self, |stack| stack.give(index, &self.free));
        if done.is_none() {
            let _ = self.free.push(index);
        }
    }

    /// Notes that a chunk went to the kernel. Debug builds panic when the program did not have it.
    pub(super) fn hand_to_kernel(&self, index: u32) {
        self.moved(index, PROGRAM, KERNEL);
    }

    /// Notes that a chunk came from the kernel. Debug builds panic when the kernel did not have it.
    pub(super) fn out_of_kernel(&self, index: u32) {
        self.moved(index, KERNEL, PROGRAM);
    }

    pub(super) fn keep(&self, chunks: usize) {
        self.kept.fetch_add(chunks, Ordering::AcqRel);
    }

    fn moved(&self, index: u32, from: u8, to: u8) {
        if cfg!(debug_assertions) {
            let was = self.place[index as usize].swap(to, Ordering::AcqRel);
            assert_eq!(was, from, "chunk {index} was at place {was}, not {from}, on its way to {to}");
        }
    }
}

/// One thread's free chunks of the UMEM that it used first.
struct Stack {
    region: Weak<Region>,
    chunks: Vec<u32>,
    len: Arc<CachePadded<AtomicUsize>>,
}

thread_local! {
    static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
}

impl Stack {
    /// Runs `act` on this thread's stack of `region`; `None` when the stack serves another UMEM or the thread is ending.
    fn with<T>(region: &Region, act: impl FnOnce(&mut Self) -> T) -> Option<T> {
        STACK
            .try_with(|cell| {
                let mut slot = cell.try_borrow_mut().ok()?;
                let stack = slot.as_mut()?;
                // A weak reference keeps the allocation, so an equal address is the same region.
                std::ptr::eq(stack.region.as_ptr(), region).then(|| {
                    let result = act(stack);
                    stack.len.store(stack.chunks.len(), Ordering::Release);
                    result
                })
            })
            .ok()
            .flatten()
    }

    fn take(&mut self, shared: &ArrayQueue<u32>) -> Option<u32> {
        if self.chunks.is_empty() {
            self.chunks.extend(std::iter::from_fn(|| shared.pop()).take(EXCHANGE));
        }
        self.chunks.pop()
    }

    fn give(&mut self, index: u32, shared: &ArrayQueue<u32>) {
        if self.chunks.len() >= LOCAL {
            for spilled in self.chunks.drain(..EXCHANGE) {
                let _ = shared.push(spilled);
            }
        }
        self.chunks.push(index);
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(region) = self.region.upgrade() {
            for index in self.chunks.drain(..) {
                let _ = region.free.push(index);
            }
            self.len.store(0, Ordering::Release);
        }
    }
}

impl Umem {
    /// Gives the calling thread a stack of free chunks of this UMEM of its own. A worker calls it once before its loop;
    /// without it the thread uses the shared queue for every chunk.
    pub fn adopt_thread(&self) {
        let len = Arc::new(CachePadded::new(AtomicUsize::new(0)));
        let region = self.region();
        let mut stacks = region.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        stacks.retain(|l| l.strong_count() > 0);
        stacks.push(Arc::downgrade(&len));
        drop(stacks);
        let stack =
            Stack { region: Arc::downgrade(&self.0.region), chunks: Vec::with_capacity(LOCAL + 1), len };
        STACK.with(|cell| cell.replace(Some(stack)));
    }
}
