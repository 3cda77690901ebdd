//! What came of a packet, made comparable: the port that a system chose becomes `p*`, fragments become their datagram, a
//! router's own message loses its identification. Everything else is compared byte for byte, wrong checksums too.

use sluice_engine::testing::{reassemble, show, verify};

/// Where a frame goes in or comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Pod,
    Wire,
}

/// One thing that came of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    Frame(Side, Vec<u8>),
    /// The node's own stack got it.
    Host,
}

/// Stands for the port that was chosen.
pub(crate) const CHOSEN: u16 = 7777;

const NODE: [u8; 4] = [10, 0, 9, 5];

/// The port or identifier with which a frame left by the node's address.
pub(crate) fn chosen_port(seen: &Seen) -> Option<u16> {
    let Seen::Frame(Side::Wire, frame) = seen else { return None };
    let first = u16::from_be_bytes([frame[20], frame[21]]) & 0x1FFF == 0;
    if frame[26..30] != NODE || !first {
        return None;
    }
    let l4 = l4_of(frame, 14);
    match frame[23] {
        6 | 17 => half(frame, l4),
        1 if matches!(frame.get(l4), Some(8 | 13)) => half(frame, l4 + 4),
        _ => None,
    }
}

/// Everything that came of one packet in one form for both systems.
pub(crate) fn canonical(seen: Vec<Seen>, port: Option<u16>) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut pieces: Vec<(Side, Vec<Vec<u8>>)> = Vec::new();
    for one in seen {
        match one {
            Seen::Frame(side, frame) if is_fragment(&frame) => {
                let frame = trimmed(frame);
                match pieces.iter_mut().find(|(at, group)| *at == side && group[0][18..20] == frame[18..20]) {
                    Some((_, group)) => group.push(frame),
                    None => pieces.push((side, vec![frame])),
                }
            }
            other => all.push(other),
        }
    }
    for (side, group) in pieces {
        match reassemble(&group) {
            Ok(mut whole) => {
                set(&mut whole, 18, 0, 24);
                all.push(Seen::Frame(side, whole));
            }
            Err(_) => all.extend(group.into_iter().map(|frame| Seen::Frame(side, frame))),
        }
    }
    let mut all: Vec<_> = all
        .into_iter()
        .map(|one| match one {
            Seen::Frame(side, frame) => Seen::Frame(side, normalised(trimmed(frame), port)),
            Seen::Host => Seen::Host,
        })
        .collect();
    all.sort();
    // The pieces of a datagram that the node got are one datagram to it.
    all.dedup_by(|a, b| *a == Seen::Host && *b == Seen::Host);
    all
}

/// What was seen, for people.
pub(crate) fn describe(seen: &[Seen]) -> String {
    if seen.is_empty() {
        return "dropped".into();
    }
    let one = |seen: &Seen| match seen {
        Seen::Host => "to the node".to_owned(),
        Seen::Frame(side, frame) => {
            let text = match show(frame) {
                refused if refused.starts_with('(') => {
                    let address = |at: usize| {
                        std::net::Ipv4Addr::from([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
                    };
                    format!("{}>{} {refused}", address(26), address(30))
                }
                text => text,
            };
            let text = text.replace(&format!("10.0.9.5:{CHOSEN}"), "10.0.9.5:p*");
            let text = text.replace(&format!("id {CHOSEN}"), "id p*");
            let bad = if verify(frame).is_ok() { "" } else { ", checksum wrong" };
            let side = if *side == Side::Pod { "pod" } else { "wire" };
            format!("{side}: {text}{bad}")
        }
    };
    seen.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn normalised(mut frame: Vec<u8>, port: Option<u16>) -> Vec<u8> {
    let l4 = l4_of(&frame, 14);
    if !matches!(frame[23], 1 | 6 | 17) || half(&frame, l4).is_none() {
        return frame;
    }
    let error = frame[23] == 1 && matches!(frame[l4], 3 | 4 | 5 | 11 | 12);
    if error && frame[26..30] == NODE && frame[22] == 64 {
        // The node's own message: any identification, and Linux sets "don't fragment" as its path MTU discovery has it.
        set(&mut frame, 18, 0, 24);
        set(&mut frame, 20, 0, 24);
    }
    let Some(port) = port else { return frame };
    let sum = l4
        + match frame[23] {
            6 => 16,
            17 => 6,
            _ => 2,
        };
    if !error {
        replace_port(&mut frame, 14, port, &[sum]);
    } else if half(&frame, l4 + 8 + 26).is_some() {
        let inner = l4_of(&frame, l4 + 8);
        let inner_sum = inner
            + match frame[l4 + 8 + 9] {
                6 => 16,
                17 => 6,
                _ => 2,
            };
        let within = inner_sum + 2 <= frame.len();
        let sums = [inner_sum, sum];
        replace_port(&mut frame, l4 + 8, port, if within { &sums } else { &sums[1..] });
    }
    // Two ways to write zero.
    if frame[23] != 17 && half(&frame, sum) == Some(0xFFFF) {
        frame[sum..sum + 2].fill(0);
    }
    frame
}

/// Writes [`CHOSEN`] where the IP packet at `ip` has `port` on the node's address, and updates the checksums at `sums`.
fn replace_port(frame: &mut [u8], ip: usize, port: u16, sums: &[usize]) {
    let l4 = l4_of(frame, ip);
    let from_node = frame[ip + 12..ip + 16] == NODE;
    let to_node = frame[ip + 16..ip + 20] == NODE;
    let at = match frame[ip + 9] {
        6 | 17 if from_node => l4,
        6 | 17 if to_node => l4 + 2,
        1 if from_node || to_node => l4 + 4,
        _ => return,
    };
    if half(frame, at) != Some(port) {
        return;
    }
    frame[at..at + 2].copy_from_slice(&CHOSEN.to_be_bytes());
    let mut changes = vec![(port, CHOSEN)];
    for sum in sums {
        let Some(old) = half(frame, *sum) else { continue };
        let udp = frame[ip + 9] == 17 && *sum == l4 + 6;
        if udp && old == 0 {
            continue;
        }
        let mut new = changes.iter().fold(old, |sum, (old, new)| updated(sum, *old, *new));
        if udp && new == 0 {
            new = 0xFFFF;
        }
        frame[*sum..*sum + 2].copy_from_slice(&new.to_be_bytes());
        changes.push((old, new));
    }
}

/// Writes a word of the IP header and updates the header's checksum at `sum`.
fn set(frame: &mut [u8], at: usize, value: u16, sum: usize) {
    let (Some(old), Some(there)) = (half(frame, at), half(frame, sum)) else { return };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    let new = updated(there, old, value);
    frame[sum..sum + 2].copy_from_slice(&new.to_be_bytes());
}

/// RFC 1624, equation 3, written down anew.
fn updated(sum: u16, old: u16, new: u16) -> u16 {
    let mut acc = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while acc > 0xFFFF {
        acc = (acc & 0xFFFF) + (acc >> 16);
    }
    !(acc as u16)
}

/// Without what lies behind the IP packet's end.
fn trimmed(mut frame: Vec<u8>) -> Vec<u8> {
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    frame.truncate(end);
    frame
}

fn is_fragment(frame: &[u8]) -> bool {
    u16::from_be_bytes([frame[20], frame[21]]) & 0x3FFF != 0
}

fn l4_of(frame: &[u8], ip: usize) -> usize {
    ip + usize::from(frame[ip] & 15) * 4
}

fn half(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}
