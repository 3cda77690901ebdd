//! The trunk against the kernel: a TAP in a namespace of the test's own, looked at by a packet socket.

mod support;

use sluice_engine::{Frame, Ingress, Offload, Verdict};
use sluice_io::trunk::{Trunk, TrunkOptions, tag};
use sluice_io::{IoFrame, Port};
use support::{Tap, own_namespace, udp};

#[test]
fn tagged_frames_cross_both_ways_and_the_device_persists() {
    if !own_namespace() {
        return;
    }
    let (trunk, mut queues) = Trunk::open("trunk0", 2, &TrunkOptions::default()).expect("trunk");
    assert!(trunk.udp_segmentation(), "this kernel has UDP segmentation for TAPs");
    let eyes = Tap::on("trunk0");
    let mut frame = udp(200, 7);
    queues[0]
        .send(IoFrame::Heap(frame.clone()), Verdict::KernelPod { ifindex: 0x0102_0304 }, Offload::default())
        .expect("written");
    queues[0].flush();
    frame[6..12].copy_from_slice(&[2, tag::KERNEL_POD, 1, 2, 3, 4]);
    assert_eq!(eyes.frames(1), [frame.clone()]);

    // Both queues together get what the kernel sends by the device.
    for index in 0..20u8 {
        frame[6..12].copy_from_slice(&[2, tag::TO_POD, 0, 0, 1, index]);
        eyes.send(&frame);
    }
    let mut packets = Vec::new();
    for queue in &mut queues {
        queue.receive(64, &mut packets);
    }
    let mut indices: Vec<_> = packets.iter().map(|p| p.ingress).collect();
    indices.sort_by_key(|i| i.ifindex());
    assert_eq!(indices, (0..20).map(|i| Ingress::ToPod(256 + i)).collect::<Vec<_>>());
    assert!(packets.iter().all(|p| p.frame.bytes()[12..] == frame[12..] && p.frame.capacity() >= 1024));

    // An untagged frame is nobody's.
    frame[7] = 0x99;
    eyes.send(&frame);
    assert_eq!(queues.iter_mut().map(|q| q.receive(64, &mut packets)).sum::<usize>(), 0);
    assert_eq!(queues.iter().map(|q| q.stats().value("rx_untagged")).sum::<u64>(), 1);

    let ifindex = trunk.ifindex();
    drop(queues);
    let (again, _queues) = Trunk::open("trunk0", 3, &TrunkOptions::default()).expect("taken over");
    assert_eq!(again.ifindex(), ifindex);
    Trunk::remove("trunk0").expect("removed");
    assert!(nix::net::if_::if_nametoindex("trunk0").is_err());
    Trunk::remove("trunk0").expect("already gone is fine");
}

#[test]
fn a_foreign_interface_is_refused_with_a_remedy() {
    if !own_namespace() {
        return;
    }
    support::ip("link add dummy9 type veth peer name dummy8");
    let error = Trunk::open("dummy9", 1, &TrunkOptions::default()).err().expect("not a TAP").to_string();
    assert!(error.contains("dummy9") && error.contains("ip link del"), "{error}");
}
