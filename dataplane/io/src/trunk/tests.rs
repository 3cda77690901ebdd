//! Coalescing and headers without a device: the "TAP" is one end of a pair of datagram sockets.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use etherparse::{PacketBuilder, TcpOptionElement};
use proptest::prelude::*;
use sluice_bpf::shared::{
    TAG_ENI, TAG_ENI_OUT, TAG_FROM_NODE, TAG_FROM_POD, TAG_HOST, TAG_KERNEL_ENI, TAG_KERNEL_POD, TAG_POD,
    TAG_TO_POD,
};
use sluice_engine::wire::checksum::{add, pseudo, sum};
use sluice_engine::{Drop as Reason, GsoKind, Ingress, Offload, Verdict};

use super::*;
use crate::Port;
use crate::segment::Cut;

const POD: Verdict = Verdict::Pod { ifindex: 9 };
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;

fn queue() -> (TrunkQueue, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (
        TrunkQueue::new(
            File::from(OwnedFd::from(ours)),
            &TrunkOptions { buffers: 4, ..TrunkOptions::default() },
        ),
        theirs,
    )
}

#[derive(Debug, Clone)]
struct Tcp {
    sport: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    timestamp: Option<u32>,
    len: usize,
}

const SEGMENT: Tcp = Tcp { sport: 80, seq: 1000, ack: 5, flags: ACK, window: 512, timestamp: None, len: 100 };

fn frame(tcp: &Tcp) -> Vec<u8> {
    let data: Vec<u8> = (0..tcp.len).map(|i| (tcp.seq as usize + i) as u8).collect();
    let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(tcp.sport, 443, tcp.seq, tcp.window)
        .ack(tcp.ack);
    if let Some(value) = tcp.timestamp {
        builder = builder.options(&[TcpOptionElement::Timestamp(value, 1)]).unwrap();
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &data).unwrap();
    bytes[47] = tcp.flags;
    bytes[50..52].fill(0);
    let value = !add(pseudo(0x0A00_0001, 0x0A00_0002, 6, (bytes.len() - 34) as u16), sum(&bytes[34..]));
    bytes[50..52].copy_from_slice(&value.to_be_bytes());
    // What the queue is going to write there, so that frames can be compared whole.
    bytes[6..12].copy_from_slice(&[2, tag::DELIVER_POD, 0, 0, 0, 9]);
    bytes
}

fn push(queue: &mut TrunkQueue, tcp: &Tcp) {
    queue.send(frame(tcp).into(), POD, Offload::default()).unwrap();
}

/// What was written: each frame with what its header said.
fn written(far: &UnixDatagram) -> Vec<(Offload, Vec<u8>)> {
    let mut buffer = vec![0; 70_000];
    std::iter::from_fn(|| far.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec()))
        .map(|all| {
            let (header, frame) = all.split_at(vnet::HEADER);
            (vnet::parse(header.try_into().unwrap()).unwrap(), frame.to_vec())
        })
        .collect()
}

/// Sizes and kinds of what comes out for a sequence of segments in one flush.
fn shapes(segments: &[Tcp]) -> Vec<(usize, GsoKind)> {
    let (mut queue, far) = queue();
    for tcp in segments {
        push(&mut queue, tcp);
    }
    queue.flush();
    written(&far).into_iter().map(|(offload, frame)| (frame.len() - 54, offload.gso)).collect()
}

fn following(count: u32) -> Vec<Tcp> {
    (0..count).map(|i| Tcp { seq: 1000 + i * 100, ..SEGMENT }).collect()
}

#[test]
fn segments_in_order_leave_as_one() {
    let (mut queue, far) = queue();
    for tcp in following(10) {
        push(&mut queue, &tcp);
    }
    assert!(written(&far).is_empty(), "nothing is written before the flush");
    queue.flush();
    let [(offload, frame)] = &written(&far)[..] else { panic!("not one packet") };
    assert_eq!(
        *offload,
        Offload {
            partial: true,
            csum_start: 34,
            csum_offset: 16,
            gso: GsoKind::Tcp4,
            gso_size: 100,
            ecn: false
        }
    );
    assert_eq!(frame.len(), 54 + 1000);
    assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 1040);
    assert_eq!(sum(&frame[14..34]), 0xFFFF);
    assert_eq!(u16::from_be_bytes([frame[50], frame[51]]), pseudo(0x0A00_0001, 0x0A00_0002, 6, 1020));
    let stats = queue.stats();
    assert_eq!((stats.value("gro_merged"), stats.value("gro_super_packets")), (9, 1));
    assert_eq!((stats.value("tx_packets"), stats.value("tap_writes")), (10, 1));
    assert!(stats.value("tap_write_ns") > 0);
}

#[test]
fn what_the_pod_could_tell_apart_stays_apart() {
    use GsoKind::{None, Tcp4};
    let two = |second: Tcp| shapes(&[SEGMENT, Tcp { seq: 1100, ..second }]);
    assert_eq!(two(SEGMENT), [(200, Tcp4)]);
    let apart = [(100, None), (100, None)];
    assert_eq!(two(Tcp { ack: 6, ..SEGMENT }), apart);
    assert_eq!(two(Tcp { window: 513, ..SEGMENT }), apart);
    assert_eq!(two(Tcp { sport: 81, ..SEGMENT }), apart);
    assert_eq!(shapes(&[SEGMENT, Tcp { seq: 1101, ..SEGMENT }]), apart);
    assert_eq!(shapes(&[SEGMENT, SEGMENT]), apart);
    // A longer segment begins anew, a shorter one ends.
    assert_eq!(two(Tcp { len: 101, ..SEGMENT }), [(100, None), (101, None)]);
    let mut short = following(4);
    short[1].len = 60;
    short[2].seq = 1160;
    short[3].seq = 1260;
    assert_eq!(shapes(&short), [(160, Tcp4), (200, Tcp4)]);
    // Timestamps: 12 bytes of options.
    let with = |value| Tcp { timestamp: Some(value), ..SEGMENT };
    assert_eq!(shapes(&[with(1), Tcp { seq: 1100, ..with(1) }]), [(212, Tcp4)]);
    assert_eq!(shapes(&[with(1), Tcp { seq: 1100, ..with(2) }]), [(112, None), (112, None)]);
}

#[test]
fn flags_end_or_prevent() {
    use GsoKind::{None, Tcp4};
    let flagged = |at: usize, flags| {
        let mut all = following(4);
        all[at].flags = flags;
        shapes(&all)
    };
    assert_eq!(flagged(1, ACK | PSH), [(200, Tcp4), (200, Tcp4)]);
    assert_eq!(flagged(3, ACK | FIN), [(400, Tcp4)]);
    assert_eq!(flagged(0, ACK | PSH), [(100, None), (300, Tcp4)]);
    for other in [ACK | 0x20, ACK | 0x04, ACK | 0x40, ACK | 0x80, SYN, 0] {
        assert_eq!(flagged(2, other), [(200, Tcp4), (100, None), (100, None)], "{other:#x}");
    }
    let (mut queue, far) = queue();
    let mut all = following(3);
    all[2].flags = ACK | PSH | FIN;
    all.iter().for_each(|tcp| push(&mut queue, tcp));
    assert_eq!(written(&far)[0].1[47], ACK | PSH | FIN, "the last segment's flags are the whole's");
}

#[test]
fn a_corrupt_segment_stays_corrupt_and_alone() {
    let (mut queue, far) = queue();
    let mut bad = frame(&Tcp { seq: 1100, ..SEGMENT });
    bad[60] ^= 4;
    push(&mut queue, &SEGMENT);
    queue.send(bad.clone().into(), POD, Offload::default()).unwrap();
    push(&mut queue, &Tcp { seq: 1200, ..SEGMENT });
    queue.flush();
    let all = written(&far);
    assert_eq!(all.len(), 3);
    assert_eq!(all[1], (Offload::default(), bad));
    assert_eq!(queue.stats().value("gro_bad_checksum"), 1);
}

#[test]
fn ethernet_padding_does_not_end_up_in_the_stream() {
    let (mut queue, far) = queue();
    for i in 0..2 {
        let mut short = frame(&Tcp { seq: 1000 + i, len: 1, ..SEGMENT });
        short.resize(60, 0xEE);
        queue.send(short.into(), POD, Offload::default()).unwrap();
    }
    queue.flush();
    let all = written(&far);
    assert_eq!((all.len(), all[0].1.len()), (1, 56));
}

#[test]
fn a_super_packet_never_exceeds_an_ip_packet() {
    let all: Vec<_> = (0..60).map(|i| Tcp { seq: i * 1448, len: 1448, ..SEGMENT }).collect();
    let sizes = shapes(&all);
    assert_eq!(sizes.iter().map(|(len, _)| len).sum::<usize>(), 60 * 1448);
    assert!(sizes.len() == 2 && sizes[0].0 <= 65_000, "{sizes:?}");
}

proptest! {
    /// Cutting what was coalesced gives back each flow's packets, byte for byte but for the IP identification.
    #[test]
    fn coalescing_is_undone_by_cutting(
        steps in proptest::collection::vec((0u16..12, 0usize..4, 0u8..10, any::<bool>(), 0u8..20), 1..150),
    ) {
        let (mut queue, far) = queue();
        let mut next = HashMap::new();
        let mut sent: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
        let mut received: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
        let collect = |received: &mut HashMap<u16, Vec<Vec<u8>>>| {
            for (offload, bytes) in written(&far) {
                let cut = Cut::plan(&bytes, offload, 1500).unwrap();
                for i in 0..cut.count() {
                    let mut piece = vec![0; cut.piece_len(i)];
                    cut.write(&bytes, i, &mut piece);
                    received.entry(u16::from_be_bytes([piece[34], piece[35]])).or_default().push(piece);
                }
            }
        };
        for (sport, size, flags, skip, flush) in steps {
            let seq = next.entry(sport).or_insert(u32::from(sport) * 1000);
            let len = [0, 100, 100, 61][size];
            let flags = [ACK, ACK, ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN, SYN, 0x04][usize::from(flags)];
            let tcp = Tcp { sport, seq: *seq, flags, len, ..SEGMENT };
            *seq += len as u32 + u32::from(skip) * 7 * u32::from(flush < 3);
            sent.entry(sport).or_default().push(frame(&tcp));
            push(&mut queue, &tcp);
            if flush == 0 {
                queue.flush();
            }
            collect(&mut received);
        }
        queue.flush();
        collect(&mut received);
        for packets in sent.values_mut().chain(received.values_mut()).flatten() {
            packets[18..20].fill(0);
            packets[24..26].fill(0);
        }
        prop_assert_eq!(sent, received);
    }
}

#[test]
fn a_queue_that_is_full_or_gone_says_so() {
    let (mut queue, far) = queue();
    let mut refused = 0;
    for _ in 0..10_000 {
        let sent = queue.send(frame(&Tcp { flags: SYN, ..SEGMENT }).into(), POD, Offload::default());
        if let Err((_, reason)) = sent {
            assert_eq!(reason, Reason::TxFull);
            refused += 1;
            break;
        }
    }
    assert_eq!(refused, 1, "a socket nobody reads fills up");
    // What was coalesced is counted frame by frame when its write fails.
    following(3).iter().for_each(|tcp| push(&mut queue, tcp));
    queue.flush();
    assert_eq!(queue.stats().value("tx_full"), 4);
    drop(far);
    let (_, reason) =
        queue.send(frame(&Tcp { flags: SYN, ..SEGMENT }).into(), POD, Offload::default()).unwrap_err();
    assert_eq!(reason, Reason::TxError);
    for verdict in [Verdict::Drop(Reason::Spoof), Verdict::Handoff { worker: 1 }] {
        let (_, reason) = queue.send(frame(&SEGMENT).into(), verdict, Offload::default()).unwrap_err();
        assert_eq!(reason, Reason::TxError);
    }
    assert_eq!(queue.stats().value("tx_error"), 3);
}

#[test]
fn buffers_are_used_again_and_run_out_by_name() {
    let (mut queue, far) = queue();
    let mut bytes = vec![0; vnet::HEADER];
    bytes.extend_from_slice(&frame(&SEGMENT));
    bytes[vnet::HEADER + 6..vnet::HEADER + 12].copy_from_slice(&[2, tag::POD, 0, 0, 0, 3]);
    let mut packets = Vec::new();
    for _ in 0..20 {
        far.send(&bytes).unwrap();
        far.send(&bytes).unwrap();
        assert_eq!(queue.receive(64, &mut packets), 2);
        assert!(
            packets.iter().all(|p| p.ingress == Ingress::Pod(3) && p.frame.to_vec() == bytes[vnet::HEADER..])
        );
        packets.clear();
    }
    for _ in 0..6 {
        far.send(&bytes).unwrap();
    }
    assert_eq!(queue.receive(64, &mut packets), 4, "there are four buffers");
    assert_eq!(queue.stats().value("rx_no_buffer"), 1);
    packets.clear();
    assert_eq!(queue.receive(64, &mut packets), 2);
    drop(queue);
    drop(packets);
}

#[test]
fn tags_are_the_contract_with_the_programs() {
    for (kind, ingress) in [
        (0x11, Ingress::Pod(0x0102_0304)),
        (0x12, Ingress::ToPod(0x0102_0304)),
        (0x13, Ingress::Host(0x0102_0304)),
        (0x14, Ingress::Eni(0x0102_0304)),
        (0x15, Ingress::FromNode(0x0102_0304)),
    ] {
        assert_eq!(tag::ingress([2, kind, 1, 2, 3, 4]), Some(ingress));
    }
    assert_eq!(tag::ingress([2, 0x21, 1, 2, 3, 4]), None);
    assert_eq!(tag::ingress([0, 0x11, 1, 2, 3, 4]), None);
    let ifindex = 0x0102_0304;
    assert_eq!(tag::egress(Verdict::Pod { ifindex }), Some([2, 0x21, 1, 2, 3, 4]));
    assert_eq!(tag::egress(Verdict::Eni { ifindex }), Some([2, 0x22, 1, 2, 3, 4]));
    assert_eq!(tag::egress(Verdict::KernelPod { ifindex }), Some([2, 0x23, 1, 2, 3, 4]));
    assert_eq!(tag::egress(Verdict::KernelEni { ifindex }), Some([2, 0x24, 1, 2, 3, 4]));
    let ours = [tag::POD, tag::TO_POD, tag::HOST, tag::ENI, tag::FROM_NODE];
    let theirs = [TAG_FROM_POD, TAG_TO_POD, TAG_HOST, TAG_ENI, TAG_FROM_NODE];
    assert_eq!(ours.map(u32::from), theirs);
    let ours = [tag::DELIVER_POD, tag::SEND_ENI, tag::KERNEL_POD, tag::KERNEL_ENI];
    assert_eq!(ours.map(u32::from), [TAG_POD, TAG_ENI_OUT, TAG_KERNEL_POD, TAG_KERNEL_ENI].map(u32::from));
}

#[test]
fn virtio_headers_say_what_they_mean() {
    for gso in [GsoKind::None, GsoKind::Tcp4, GsoKind::Udp4] {
        let size = if gso == GsoKind::None { 0 } else { 1448 };
        let ecn = gso == GsoKind::Tcp4;
        let offload = Offload { partial: true, csum_start: 34, csum_offset: 16, gso, gso_size: size, ecn };
        assert_eq!(vnet::parse(vnet::build(offload, 66, false)), Some(offload));
    }
    assert_eq!(vnet::build(Offload::default(), 0, true)[0], 2, "verified");
    assert_eq!(vnet::parse([0, 4, 0, 0, 0, 0, 0, 0, 0, 0]), None, "TCP over IPv6 was not asked for");
}
