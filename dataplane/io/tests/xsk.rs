//! AF_XDP against the kernel: a veth pair in a namespace of the test's own.

mod support;

use sluice_engine::{Drop as Reason, Frame, Offload, Verdict};
use sluice_io::xsk::{Mode, Umem, XskError, XskOptions, XskPort};
use sluice_io::{IoFrame, Port};
use support::{Tap, ifindex, own_namespace, udp, veth};

const COPY: XskOptions = XskOptions { mode: Mode::Copy, multi_buffer: false, mtu: 1500, busy_poll: None };

fn frame_of(umem: &Umem, bytes: &[u8]) -> IoFrame {
    let mut frame = umem.frame().expect("a free chunk");
    frame.resize(bytes.len());
    frame.bytes_mut().copy_from_slice(bytes);
    frame
}

#[test]
fn transmits_and_accounts_for_every_chunk() {
    if !own_namespace() {
        return;
    }
    veth("a0", "a1", 1500, 1);
    let umem = Umem::new(8192, 2048, false).expect("umem");
    umem.adopt_thread();
    let eni = ifindex("a0");
    let mut port = XskPort::open(&umem, "a0", eni, 0, &COPY).expect("xsk port");
    assert_eq!(umem.account().fill, 2048);
    let eyes = Tap::on("a1");
    let mut sent = Vec::new();
    for i in 0..500u16 {
        let bytes = udp(100 + usize::from(i), 1000 + i);
        // Half from UMEM (sent where they lie), half from the heap (copied).
        let frame = if i % 2 == 0 { frame_of(&umem, &bytes) } else { IoFrame::Heap(bytes.clone()) };
        port.send(frame, Verdict::Eni { ifindex: eni }, Offload::default()).expect("room");
        sent.push(bytes);
    }
    port.flush();
    assert_eq!(eyes.frames(500), sent);
    // The kernel completes when the receiver has taken the packet.
    for _ in 0..100 {
        port.flush();
        if umem.account().tx == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let account = umem.account();
    assert_eq!((account.tx, account.in_frames()), (0, 0), "{account:?}");
    assert_eq!(account.free + account.fill, account.total, "{account:?}");
    let stats = port.stats();
    assert_eq!(stats.value("tx_packets"), 500);
    assert_eq!(stats.value("tx_completions"), 500);
    assert_eq!(stats.value("tx_invalid_descs"), 0);
    drop(port);
    let account = umem.account();
    assert_eq!(account.free + account.kept, account.total, "{account:?}");
}

#[test]
fn a_full_ring_gives_the_frame_back() {
    if !own_namespace() {
        return;
    }
    veth("b0", "b1", 1500, 1);
    let umem = Umem::new(1024, 64, false).expect("umem");
    let eni = ifindex("b0");
    let mut port = XskPort::open(&umem, "b0", eni, 0, &COPY).expect("xsk port");
    // With the device down the kernel takes nothing from the ring.
    support::ip("link set b0 down");
    let mut refused = 0;
    for i in 0..100 {
        let frame = frame_of(&umem, &udp(64, i));
        if let Err((frame, reason)) = port.send(frame, Verdict::Eni { ifindex: eni }, Offload::default()) {
            assert_eq!(reason, Reason::TxFull);
            assert_eq!(frame.bytes(), udp(64, i));
            refused += 1;
        }
    }
    assert_eq!(refused, 36);
    assert_eq!(port.stats().value("tx_full"), 36);
    assert_eq!(umem.account().tx, 64);
    assert!(port.stalled());
    assert!(port.stats().value("send_errors") > 0);
    // What was taken leaves as soon as the device is there again, without another flush.
    support::ip("link set b0 up");
    let eyes = Tap::on("b1");
    port.receive(64, &mut Vec::new());
    assert_eq!(eyes.frames(64).len(), 64);
    assert!(!port.stalled());
}

#[test]
fn what_the_kernel_would_never_complete_is_refused() {
    if !own_namespace() {
        return;
    }
    veth("s0", "s1", 1500, 1);
    let umem = Umem::new(1024, 64, false).expect("umem");
    let eni = ifindex("s0");
    let mut port = XskPort::open(&umem, "s0", eni, 0, &COPY).expect("xsk port");
    for (frame, verdict) in [
        (frame_of(&umem, &[0; 13]), Verdict::Eni { ifindex: eni }),
        (IoFrame::Heap(Vec::new()), Verdict::Eni { ifindex: eni }),
        (frame_of(&umem, &udp(10, 1)), Verdict::Eni { ifindex: eni + 1 }),
        (frame_of(&umem, &udp(10, 1)), Verdict::Pod { ifindex: eni }),
    ] {
        let (_, reason) = port.send(frame, verdict, Offload::default()).expect_err("not for this port");
        assert_eq!(reason, Reason::TxError);
    }
    assert_eq!((umem.account().tx, umem.account().in_frames()), (0, 0));
}

#[test]
fn errors_name_the_queue_and_the_remedy() {
    if !own_namespace() {
        return;
    }
    veth("c0", "c1", 1500, 1);
    let umem = Umem::new(4096, 256, false).expect("umem");
    let other = Umem::new(4096, 256, false).expect("umem");
    let eni = ifindex("c0");
    let zero_copy = XskOptions { mode: Mode::ZeroCopy, ..COPY };
    let error =
        XskPort::open(&umem, "c0", eni, 0, &zero_copy).err().expect("veth has no zero-copy").to_string();
    assert!(error.contains("c0 queue 0 (zero-copy)") && error.contains("copy mode"), "{error}");
    // The refusal leaves the UMEM usable.
    let port = XskPort::open(&umem, "c0", eni, 0, &COPY).expect("copy mode");
    let error = XskPort::open(&other, "c0", eni, 0, &COPY).err().expect("the queue is taken").to_string();
    assert!(error.contains("taken by another AF_XDP socket"), "{error}");
    let error = XskPort::open(&umem, "c0", eni, 0, &zero_copy).err().expect("another mode");
    assert!(matches!(error, XskError::ModeOfUmem { .. }), "{error}");
    let error = XskPort::open(&other, "c0", eni, 7, &COPY).err().expect("no such queue").to_string();
    assert!(error.contains("no such queue"), "{error}");
    let error = XskPort::open(&other, "nope0", eni, 0, &COPY).err().expect("no such interface").to_string();
    assert!(error.contains("no such interface"), "{error}");
    let jumbo = XskOptions { mtu: 9001, ..COPY };
    let error = XskPort::open(&other, "c0", eni, 0, &jumbo).err().expect("too large").to_string();
    assert!(error.contains("MTU 9001") && error.contains("--eni-port=tap"), "{error}");
    drop(port);
}

#[test]
fn dropping_the_umem_before_its_frames_panics_in_debug_and_stays_sound() {
    if !own_namespace() {
        return;
    }
    let umem = Umem::new(64, 64, false).expect("umem");
    let mut frame = umem.frame().expect("a chunk");
    frame.resize(100);
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(umem)));
    assert_eq!(dropped.is_err(), cfg!(debug_assertions));
    // The memory is still there.
    frame.bytes_mut().fill(7);
    assert_eq!(frame.bytes(), [7; 100]);
    drop(frame);
}

#[test]
fn a_pool_too_small_for_the_fill_ring_is_refused() {
    if !own_namespace() {
        return;
    }
    veth("p0", "p1", 1500, 1);
    let umem = Umem::new(100, 128, false).expect("umem");
    let error = XskPort::open(&umem, "p0", ifindex("p0"), 0, &COPY).err().expect("too small").to_string();
    assert!(error.contains("100 free chunks") && error.contains("needs 128"), "{error}");
    let error = Umem::new(100, 100, false).expect_err("not a power of two").to_string();
    assert!(error.contains("power of two"), "{error}");
}
