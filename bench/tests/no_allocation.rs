//! The engine allocates nothing after its start: not for a packet, not for a new flow, not for expiry.
//!
//! It is asserted here because here is the load that would show it: every flow new, then known, then expired.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_bench::memory::run::expire;
use sluice_bench::memory::stream::{Order, Stream};
use sluice_bench::memory::world;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FLOWS: u32 = 20_000;

#[test]
fn the_engine_allocates_nothing_after_its_start() {
    let mut engine = world::engine(FLOWS).expect("the bench's state is valid");
    let mut stream = Stream::new(0..FLOWS, Order::Shuffled, 64);
    // The bench's own frames are made once.
    stream.prepare();
    stream.carry(&mut engine);
    stream.recycle();

    for round in 0..3 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let mut lost = 0;
        for _ in 0..2 * u64::from(FLOWS) / Stream::chunk() {
            stream.prepare();
            stream.carry(&mut engine);
            lost += stream.recycle();
        }
        assert_eq!(engine.live(), FLOWS, "round {round}");
        let (_, end) = expire(&mut engine, stream.now()).expect("every flow expires");
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(lost, 0, "round {round}");
        assert_eq!(engine.live(), 0, "round {round}");
        assert_eq!(allocations, 0, "round {round}: {FLOWS} flows opened, carried and expired");
        stream.advance(Duration::from_nanos(end - stream.now()));
    }
}
