//! Coalescing TCP segments towards a pod: what arrived in order in one flush goes over as one super-packet.
//!
//! The rules are those of Linux's own GRO (net/ipv4/tcp_offload.c, `tcp_gro_receive`), because the pod's stack must not
//! be able to tell: same addresses, ports, acknowledgement, window, options, TTL, TOS and DF; consecutive sequence; equal
//! sizes, a shorter one ends it; PSH and FIN end it. A segment joins only after its checksum was found right, since the
//! super-packet's checksum is made anew by the kernel and would otherwise vouch for corrupt data.
//!
//! Payloads stay where they are: an aggregate is a list of frames, written by one `writev`.

use sluice_engine::wire::checksum::{add, pseudo, sum};
use sluice_engine::{Drop as Reason, Frame, GsoKind, Offload};

use super::queue::Wire;
use crate::IoFrame;

/// Buffers of one aggregate at most.
pub(super) const MAX_PIECES: usize = 64;
/// Bytes of one aggregate at most; an IP packet ends at 65,535.
const MAX_BYTES: usize = 65_000;
/// Flows coalesced at once; more take turns.
const SLOTS: usize = 8;
/// Ethernet and an IPv4 header without options; a packet with options is not coalesced.
const L4: usize = 34;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What coalescing needs to know of a TCP packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Addresses and ports as they stand in the packet.
    flow: [u8; 12],
    sequence: u32,
    headers: usize,
    payload: usize,
    flags: u8,
}

impl Segment {
    /// The segment in a frame with an ordinary IPv4 header, cut to its IP length; `None` for anything but TCP.
    pub(super) fn parse(frame: &mut IoFrame) -> Option<Self> {
        let whole = frame.len();
        let bytes = frame.bytes();
        let is_tcp = bytes.len() >= L4 + 20
            && bytes[12..15] == [0x08, 0x00, 0x45]
            && bytes[23] == 6
            && u16::from_be_bytes([bytes[20], bytes[21]]) & 0x3FFF == 0;
        if !is_tcp {
            return None;
        }
        let total = 14 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let headers = L4 + usize::from(bytes[L4 + 12] >> 4) * 4;
        if headers < L4 + 20 || headers > total || headers > bytes.len() || total > whole {
            return None;
        }
        if total < whole {
            // Ethernet padding; it would end up in the middle of a super-packet.
            if bytes.len() < whole {
                return None;
            }
            frame.resize(total);
        }
        let bytes = frame.bytes();
        let mut flow = [0; 12];
        flow.copy_from_slice(&bytes[26..38]);
        Some(Self {
            flow,
            sequence: u32::from_be_bytes([bytes[38], bytes[39], bytes[40], bytes[41]]),
            headers,
            payload: total - headers,
            flags: bytes[47],
        })
    }

    /// True for a segment that may begin or continue an aggregate, its checksum aside.
    fn is_plain_data(&self) -> bool {
        self.payload > 0 && self.flags & ACK != 0 && self.flags & !(ACK | PSH | FIN) == 0
    }

    fn ends(&self) -> bool {
        self.flags & (PSH | FIN) != 0
    }
}

/// Frames of one flow that will leave as one packet.
#[derive(Debug, Default)]
pub(super) struct Aggregate {
    frames: Vec<IoFrame>,
    flow: [u8; 12],
    /// The tag in the Ethernet source address, and the destination before it.
    ethernet: [u8; 12],
    next: u32,
    headers: usize,
    /// Payload bytes of each segment but the last.
    size: usize,
    len: usize,
    pieces: usize,
}

impl Aggregate {
    fn is_open(&self) -> bool {
        !self.frames.is_empty()
    }

    pub(super) fn frames(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn header_bytes(&self) -> u16 {
        self.headers as u16
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
    }

    fn start(&mut self, frame: IoFrame, segment: &Segment) {
        self.flow = segment.flow;
        self.ethernet.copy_from_slice(&frame.bytes()[..12]);
        self.next = segment.sequence.wrapping_add(segment.payload as u32);
        self.headers = segment.headers;
        self.size = segment.payload;
        self.len = frame.len();
        self.pieces = frame.pieces().count();
        self.frames.push(frame);
    }

    fn accepts(&self, frame: &IoFrame, segment: &Segment) -> bool {
        let Some(head) = self.frames.first() else { return false };
        let (head, bytes) = (head.bytes(), frame.bytes());
        segment.sequence == self.next
            && segment.headers == self.headers
            && segment.payload <= self.size
            && self.len + segment.payload <= MAX_BYTES
            && self.pieces + frame.pieces().count() <= MAX_PIECES
            && bytes[..12] == self.ethernet
            && bytes[15] == head[15]
            && bytes[20..23] == head[20..23]
            && bytes[42..46] == head[42..46]
            && bytes[48..50] == head[48..50]
            && bytes[54..self.headers] == head[54..self.headers]
    }

    fn append(&mut self, frame: IoFrame, segment: &Segment) {
        self.next = self.next.wrapping_add(segment.payload as u32);
        self.len += segment.payload;
        self.pieces += frame.pieces().count();
        if let Some(head) = self.frames.first_mut() {
            head.bytes_mut()[47] |= segment.flags;
        }
        self.frames.push(frame);
    }

    /// Makes the first frame's headers those of the whole and says what the kernel is to be told of it.
    pub(super) fn seal(&mut self) -> Offload {
        let (count, len, size) = (self.frames.len(), self.len, self.size);
        let Some(head) = self.frames.first_mut().filter(|_| count > 1) else { return Offload::default() };
        let bytes = head.bytes_mut();
        bytes[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
        bytes[24..26].fill(0);
        let checksum = !sum(&bytes[14..L4]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        let partial = pseudo_of(bytes, len - L4);
        bytes[50..52].copy_from_slice(&partial.to_be_bytes());
        Offload {
            partial: true,
            csum_start: L4 as u16,
            csum_offset: 16,
            gso: GsoKind::Tcp4,
            gso_size: size as u16,
            ecn: false,
        }
    }

    /// The bytes of the whole in order: the first frame's all, the further ones' payloads.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let headers = self.headers;
        self.frames.iter().enumerate().flat_map(move |(i, frame)| {
            frame
                .pieces()
                .enumerate()
                .map(move |(k, piece)| if i > 0 && k == 0 { &piece[headers..] } else { piece })
        })
    }
}

/// The aggregates of one queue. Empty after every flush.
#[derive(Debug, Default)]
pub(super) struct Gro {
    slots: [Aggregate; SLOTS],
    turn: usize,
}

impl Gro {
    /// Adds one TCP packet. What cannot be coalesced is written at once, after what its own flow has waiting.
    pub(super) fn push(
        &mut self,
        frame: IoFrame,
        segment: Segment,
        wire: &mut Wire,
    ) -> Result<(), (IoFrame, Reason)> {
        let slot = self.slots.iter_mut().find(|slot| slot.is_open() && slot.flow == segment.flow);
        let mut verified = false;
        if segment.is_plain_data() {
            verified = checksum_holds(&frame);
            if !verified {
                wire.bad_checksum();
            }
        }
        match slot {
            Some(slot) if verified && slot.accepts(&frame, &segment) => {
                let ends = segment.ends() || segment.payload < slot.size;
                slot.append(frame, &segment);
                if ends {
                    wire.write_aggregate(slot);
                }
                return Ok(());
            }
            Some(slot) => {
                wire.write_aggregate(slot);
                if verified && !segment.ends() {
                    slot.start(frame, &segment);
                    return Ok(());
                }
            }
            None if verified && !segment.ends() => {
                let free = self.slots.iter().position(|slot| !slot.is_open());
                let slot = free.unwrap_or_else(|| {
                    self.turn = (self.turn + 1) % SLOTS;
                    self.turn
                });
                if self.slots[slot].is_open() {
                    wire.write_aggregate(&mut self.slots[slot]);
                }
                self.slots[slot].start(frame, &segment);
                return Ok(());
            }
            None => {}
        }
        wire.write_frame(frame, Offload::default(), verified)
    }

    /// Writes everything that waits.
    pub(super) fn flush(&mut self, wire: &mut Wire) {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_open()) {
            wire.write_aggregate(slot);
        }
    }
}

/// True if the TCP checksum over all of the frame's buffers is right.
fn checksum_holds(frame: &IoFrame) -> bool {
    let mut total = pseudo_of(frame.bytes(), frame.len() - L4);
    let mut skip = L4;
    let mut odd = false;
    for piece in frame.pieces() {
        if odd {
            // Summing across an odd boundary would need the bytes swapped; no chunk size of ours is odd.
            return false;
        }
        let piece = &piece[skip..];
        total = add(total, sum(piece));
        odd = piece.len() % 2 == 1;
        skip = 0;
    }
    total == 0xFFFF
}

fn pseudo_of(bytes: &[u8], len: usize) -> u16 {
    let source = u32::from_be_bytes([bytes[26], bytes[27], bytes[28], bytes[29]]);
    let target = u32::from_be_bytes([bytes[30], bytes[31], bytes[32], bytes[33]]);
    pseudo(source, target, 6, len as u16)
}
