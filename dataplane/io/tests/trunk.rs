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

#[test]
fn a_flow_keeps_its_queue_and_its_order() {
    if !own_namespace() {
        return;
    }
    let (_trunk, mut queues) = Trunk::open("trunk1", 4, &TrunkOptions::default()).expect("trunk");
    let eyes = Tap::on("trunk1");
    let mut queue_of = std::collections::HashMap::new();
    let mut load = [0; 4];
    for round in 0..5u8 {
        for sport in 0..200u16 {
            let mut frame = udp(1 + usize::from(round), 1000 + sport);
            frame[6..12].copy_from_slice(&[2, tag::POD, 0, 0, 0, 1]);
            eyes.send(&frame);
        }
        let mut packets = Vec::new();
        for (number, queue) in queues.iter_mut().enumerate() {
            queue.receive(1000, &mut packets);
            for packet in packets.drain(..) {
                let bytes = packet.frame.bytes();
                let sport = u16::from_be_bytes([bytes[34], bytes[35]]);
                assert_eq!(*queue_of.entry(sport).or_insert(number), number, "flow {sport} hopped");
                assert_eq!(bytes[16..18], frame_length(round), "flow {sport} out of order");
                load[number] += 1;
            }
        }
        // The answer leaves by another queue, from which tun would learn if it were let.
        for sport in 0..200u16 {
            let mut answer = udp(1, 4242);
            answer[26..30].copy_from_slice(&[10, 0, 0, 2]);
            answer[30..34].copy_from_slice(&[10, 0, 0, 1]);
            answer[36..38].copy_from_slice(&(1000 + sport).to_be_bytes());
            let queue = &mut queues[usize::from(sport + u16::from(round)) % 4];
            queue.send(answer.into(), Verdict::Pod { ifindex: 1 }, Offload::default()).expect("written");
        }
    }
    assert_eq!(load.iter().sum::<usize>(), 1000);
    assert!(load.iter().all(|packets| *packets > 100), "uneven: {load:?}");
}

fn frame_length(round: u8) -> [u8; 2] {
    (29 + u16::from(round)).to_be_bytes()
}
