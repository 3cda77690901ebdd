//! The least that a NAT behind the engine's interface can do: fixed offsets, one open-addressing table, one rewrite, every
//! frame moved from the input to the output with its Ethernet header written. The yardstick for the engine.
//!
//! It parses nothing but UDP over IPv4 without options, checks nothing, ages nothing, counts nothing and cannot be
//! shared; but it looks its flows up in a batch with prefetch, as the engine does. What the engine costs beyond it is what
//! correctness costs.

use std::net::Ipv4Addr;

use sluice_engine::worker::{BATCH, Output};
use sluice_engine::{Drop, Packet, Verdict};

use super::path::{Frame, Path};
use super::world::{OUTSIDE, POD};
use crate::load::frame::Endpoints;
use crate::sys::prefetch;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);

/// The gateway's address and the ENI's.
const ETHERNET: [u8; 12] = [2, 0, 0, 0, 9, 1, 2, 0, 0, 0, 0, 2];

/// Addresses, ports and protocol of a packet, as they lie in it.
type Key = (u64, u64);

#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Entry {
    key: Key,
    address: u32,
    port: u16,
    used: bool,
    seen: u32,
}

/// The table and its loop.
#[derive(Debug)]
pub struct Yardstick {
    entries: Vec<Entry>,
    mask: usize,
}

impl Yardstick {
    /// A table that holds the flows `0..flows` of the load, both ways.
    #[must_use]
    pub fn new(flows: u32) -> Self {
        let size = (flows as usize * 4).next_power_of_two();
        let mut table = Self { entries: vec![Entry::default(); size], mask: size - 1 };
        for number in 0..flows {
            let ends = Endpoints::of_flow(number, POD, OUTSIDE);
            table.insert(key_of(ends), NODE.to_bits(), ends.source_port);
            table.insert(
                key_of(Endpoints { source: NODE, ..ends }.reversed()),
                POD.to_bits(),
                ends.source_port,
            );
        }
        table
    }

    fn insert(&mut self, key: Key, address: u32, port: u16) {
        let mut at = hash(key) as usize & self.mask;
        while self.entries[at].used {
            at = (at + 1) & self.mask;
        }
        self.entries[at] = Entry { key, address, port, used: true, seen: 0 };
    }

    #[inline]
    fn find(&mut self, key: Key, hash: u64) -> Option<&mut Entry> {
        let mut at = hash as usize & self.mask;
        loop {
            if !self.entries[at].used {
                return None;
            }
            if self.entries[at].key == key {
                return Some(&mut self.entries[at]);
            }
            at = (at + 1) & self.mask;
        }
    }
}

impl Path for Yardstick {
    #[inline(never)] // a name for callgrind's --toggle-collect
    fn carry(&mut self, now: u64, input: &mut Vec<Packet<Frame>>, out: &mut Vec<Output<Frame>>) {
        let mut staged = [((0, 0), 0); BATCH];
        for (packet, stage) in input.iter().zip(&mut staged) {
            let key = read(&packet.frame);
            *stage = (key, hash(key));
            prefetch(&self.entries[stage.1 as usize & self.mask]);
        }
        for (packet, (key, hash)) in input.drain(..).zip(&staged) {
            let Packet { mut frame, ingress, offload } = packet;
            let verdict = match self.find(*key, *hash) {
                Some(entry) => {
                    entry.seen = now as u32;
                    rewrite(&mut frame, entry.address, entry.port);
                    Verdict::Eni { ifindex: 2 }
                }
                None => Verdict::Drop(Drop::NoFlow),
            };
            out.push(Output { frame, verdict, offload, ingress });
        }
    }
}

#[inline]
fn read(bytes: &[u8]) -> Key {
    let Some(addresses) = bytes.get(26..34).and_then(|b| b.first_chunk::<8>()) else { return (0, 0) };
    let Some(ports) = bytes.get(34..38).and_then(|b| b.first_chunk::<4>()) else { return (0, 0) };
    if bytes[12..15] != [0x08, 0x00, 0x45] {
        return (0, 0);
    }
    (u64::from_ne_bytes(*addresses), u64::from(u32::from_ne_bytes(*ports)) | u64::from(bytes[23]) << 32)
}

fn key_of(ends: Endpoints) -> Key {
    let mut frame = [0; 42];
    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    frame[23] = 17;
    frame[26..30].copy_from_slice(&ends.source.octets());
    frame[30..34].copy_from_slice(&ends.destination.octets());
    frame[34..36].copy_from_slice(&ends.source_port.to_be_bytes());
    frame[36..38].copy_from_slice(&ends.destination_port.to_be_bytes());
    read(&frame)
}

#[inline]
fn hash((a, b): Key) -> u64 {
    let x = (a ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let y = (b ^ (x >> 32)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    let z = x.rotate_left(29) ^ y;
    (z ^ (z >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

/// New source, TTL less one, both checksums kept right (RFC 1624).
#[inline]
fn rewrite(bytes: &mut [u8], address: u32, port: u16) {
    let half = |bytes: &[u8], at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let old_address = half(bytes, 26) + half(bytes, 28);
    let new_address = (address >> 16) + (address & 0xffff);
    let old_port = half(bytes, 34);
    let moved = new_address + (0x1_fffe - old_address);
    let mut put = |at: usize, value: u32| bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
    put(26, address >> 16);
    put(28, address & 0xffff);
    put(34, u32::from(port));
    let l3 = fold((!half(bytes, 24) & 0xffff) + moved + 0xfeff);
    let l4 = fold((!half(bytes, 40) & 0xffff) + moved + u32::from(port) + (0xffff - old_port));
    bytes[..12].copy_from_slice(&ETHERNET);
    bytes[22] = bytes[22].wrapping_sub(1);
    bytes[24..26].copy_from_slice(&(!l3).to_be_bytes());
    bytes[40..42].copy_from_slice(&(!l4).to_be_bytes());
}

#[inline]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::frame::{Checksums, Template};
    use sluice_engine::{Ingress, Offload};

    #[test]
    fn it_translates_for_real() {
        let template = Template::new(64, [2; 6], [4; 6], Checksums::Full).addressed(POD, OUTSIDE);
        let ends = Endpoints::of_flow(7, POD, OUTSIDE);
        let frame = template.frame(ends.source_port, ends.destination_port, 7);
        let mut input = vec![Packet { frame, ingress: Ingress::Pod(1), offload: Offload::default() }];
        let mut out = Vec::new();
        Yardstick::new(1000).carry(1, &mut input, &mut out);
        assert_eq!(out[0].verdict, Verdict::Eni { ifindex: 2 });
        let mut expected = Template::new(64, [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 9, 1], Checksums::Full)
            .addressed(NODE, OUTSIDE)
            .frame(ends.source_port, ends.destination_port, 7);
        expected[22] -= 1;
        // The IP checksum of a TTL less one is 0x0100 more.
        let checksum = u32::from(u16::from_be_bytes([expected[24], expected[25]])) + 0x0100;
        expected[24..26].copy_from_slice(&fold(checksum).to_be_bytes());
        assert_eq!(out[0].frame, expected);
    }
}
