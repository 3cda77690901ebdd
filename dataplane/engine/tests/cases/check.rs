//! What holds for any packet: which counters move, what a translation may write, when the TTL falls.

use std::collections::BTreeMap;

use sluice_engine::counters::{Event, Totals};
use sluice_engine::testing::{read, show, verify};
use sluice_engine::wire::{Kind, Parsed};
use sluice_engine::worker::Output;
use sluice_engine::{Drop, Ingress, Verdict};

use crate::world::Input;

/// What the engine forwards loses a hop; what the kernel has forwarded or will forward does not.
pub(crate) fn ttl_falls(ingress: Ingress, to: Verdict) -> bool {
    let from_kernel = matches!(ingress, Ingress::ToPod(_) | Ingress::Host(_) | Ingress::FromNode(_));
    let to_kernel = matches!(to, Verdict::KernelPod { .. } | Verdict::KernelEni { .. });
    !from_kernel && !to_kernel
}

pub(crate) fn counts(input: &Input, drop: Option<Drop>, events: &[Event]) -> BTreeMap<&'static str, i64> {
    let mut counts = BTreeMap::from([("in", 1), ("in_bytes", input.frame.len() as i64)]);
    let mut flows = 0;
    for event in events {
        *counts.entry(event.name()).or_insert(0) += 1;
        flows += match event {
            Event::FlowsOpened => 1,
            Event::FlowsExpired | Event::FlowsEvicted | Event::FlowsOrphaned => -1,
            // A connection stays, to be refused.
            Event::FlowsRevoked if !matches!(input.frame[23], 6 | 132) => -1,
            _ => 0,
        };
    }
    if let Some(reason) = drop {
        counts.insert(reason.name(), 1);
    }
    if flows != 0 {
        counts.insert("flows", flows);
    }
    counts
}

pub(crate) fn moved(before: &Totals, after: &Totals, flows: i64) -> BTreeMap<&'static str, i64> {
    let events = Event::ALL.iter().map(|e| (e.name(), before.event(*e), after.event(*e)));
    let drops = Drop::ALL.iter().map(|d| (d.name(), before.dropped(*d), after.dropped(*d)));
    let held = ("held", before.held, after.held);
    let mut moved = events
        .chain(drops)
        .chain([held])
        .map(|(name, before, after)| (name, after as i64 - before as i64))
        .collect::<BTreeMap<_, _>>();
    moved.insert("flows", flows);
    moved.retain(|_, delta| *delta != 0);
    moved
}

/// Only what a translation writes differs: addresses, ports, checksums, TTL. An ICMP error's quotation is its test's to
/// check.
pub(crate) fn assert_only_translated(input: &Input, out: &Output<Vec<u8>>, ttl_falls: bool, mss: bool) {
    let (old, new) = (read(&input.frame), read(&out.frame));
    assert_eq!(old.ttl - u8::from(ttl_falls), new.ttl, "TTL of {}", show(&out.frame));
    assert_eq!(old.key.proto(), new.key.proto());
    let (was, is) = (completed(input), completed(&Input { frame: out.frame.clone(), offload: out.offload }));
    assert_eq!(verify(&was).is_ok(), verify(&is).is_ok(), "{:?} {}", verify(&is), show(&is));
    assert_eq!(input.offload, out.offload);
    if old.kind != Kind::IcmpError {
        // The fragments of a datagram whose source is translated get an identification of ours.
        let id = new.is_fragment() && old.key.src() != new.key.src();
        let masked = |frame: &[u8], parsed: &Parsed| masked(frame, parsed, mss, id);
        assert_eq!(masked(&input.frame, &old), masked(&out.frame, &new), "{}", show(&out.frame));
    }
}

fn masked(frame: &[u8], parsed: &Parsed, mss: bool, id: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].fill(0);
    frame[22] = 0;
    if id {
        frame[18..20].fill(0);
    }
    frame[24..34].fill(0);
    let l4 = usize::from(parsed.l4_offset());
    match parsed.kind {
        Kind::Tcp { .. } => {
            frame[l4..l4 + 4].fill(0);
            frame[l4 + 16..l4 + 18].fill(0);
            if mss {
                frame[l4 + 20..l4 + usize::from(parsed.l4_header_len)].fill(0);
            }
        }
        Kind::Udp => {
            frame[l4..l4 + 4].fill(0);
            frame[l4 + 6..l4 + 8].fill(0);
        }
        Kind::Sctp { .. } => {
            frame[l4..l4 + 4].fill(0);
            frame[l4 + 8..l4 + 12].fill(0);
        }
        Kind::IcmpQuery { .. } => frame[l4 + 2..l4 + 6].fill(0),
        Kind::IcmpError | Kind::IcmpOther | Kind::Other(_) | Kind::LaterFragment => {}
    }
    frame
}

/// The frame after hardware has completed its checksum (virtio 1.2 §5.1.6.2), written down anew.
pub(crate) fn completed(input: &Input) -> Vec<u8> {
    let Input { mut frame, offload } = input.clone();
    if !offload.partial {
        return frame;
    }
    let start = usize::from(offload.csum_start);
    let field = start + usize::from(offload.csum_offset);
    let end = read(&frame).end();
    let mut sum = 0u32;
    for pair in frame[start..end].chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    let sum = match !(sum as u16) {
        0 if offload.csum_offset == 6 => 0xFFFF,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}
