//! Moving packets allocates nothing once buffers exist: counted by an allocator of the test's own.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sluice_engine::{GsoKind, Offload, Packet, Verdict};
use sluice_io::trunk::{Trunk, TrunkOptions, tag};
use sluice_io::xsk::{Mode, Umem, XskOptions, XskPort};
use sluice_io::{IoFrame, Port};
use support::{Tap, ifindex, own_namespace, udp, veth};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    act();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn nothing_is_allocated_per_packet() {
    if !own_namespace() {
        return;
    }
    veth("n0", "n1", 1500, 1);
    let umem = Umem::new(8192, 2048, false).expect("umem");
    umem.adopt_thread();
    let eni = ifindex("n0");
    let options = XskOptions { mode: Mode::Copy, multi_buffer: false, mtu: 1500, busy_poll: None };
    let mut port = XskPort::open(&umem, "n0", eni, 0, &options).expect("xsk port");
    let (_trunk, mut queues) = Trunk::open("nt", 1, &TrunkOptions::default()).expect("trunk");
    let eyes = Tap::on("nt");
    let mut packets: Vec<Packet<IoFrame>> = Vec::with_capacity(64);
    let mut tagged = udp(1000, 5);
    tagged[6..12].copy_from_slice(&[2, tag::POD, 0, 0, 0, 1]);
    let gso = Offload {
        partial: true,
        csum_start: 34,
        csum_offset: 6,
        gso: GsoKind::Udp4,
        gso_size: 100,
        ..Offload::default()
    };
    let mut round = || {
        for _ in 0..32 {
            eyes.send(&tagged);
        }
        allocations(|| {
            queues[0].receive(64, &mut packets);
            assert_eq!(packets.len(), 32);
            for (i, packet) in packets.drain(..).enumerate() {
                // By turns: cut into datagrams for the wire, copied to the wire, to another pod.
                let sent = match i % 3 {
                    0 => port.send(packet.frame, Verdict::Eni { ifindex: eni }, gso),
                    1 => port.send(packet.frame, Verdict::Eni { ifindex: eni }, Offload::default()),
                    _ => queues[0].send(packet.frame, Verdict::Pod { ifindex: 1 }, Offload::default()),
                };
                assert!(sent.is_ok());
            }
            port.flush();
            queues[0].flush();
            port.receive(64, &mut packets);
        })
    };
    assert!(round() > 0, "the counter counts: the first round makes buffers");
    round();
    for _ in 0..50 {
        assert_eq!(round(), 0);
    }
}
