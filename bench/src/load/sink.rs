//! Counts the load where it arrives, and drops it there.
//!
//! A tc program at the interface's ingress of twenty instructions: it knows the load by the mark in its payload, adds one
//! to a per-CPU counter and drops. Of what was weighed (a socket, a packet socket, an nft counter at netdev ingress, an
//! XDP program) it disturbs least: no wake-up, no copy, no rule evaluation, and no XDP, whose native attach would change
//! how the *other* end of a veth transmits. Everything else, ARP and ping and TCP, passes.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::frame::MARK;
use crate::netns;
use crate::sys::{Counters, Instruction, attach_tcx_ingress};

/// A sink; it ends when it is dropped.
#[derive(Debug)]
pub struct Sink {
    counters: Counters,
    _link: OwnedFd,
}

/// What a sink has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Packets with the source address that was expected.
    pub expected: u64,
    /// Packets with another: where translation is promised, a leak.
    pub other: u64,
}

impl Arrived {
    /// All packets.
    #[must_use]
    pub fn total(self) -> u64 {
        self.expected + self.other
    }
}

impl std::ops::Sub for Arrived {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { expected: self.expected - earlier.expected, other: self.other - earlier.other }
    }
}

impl Sink {
    /// Attaches a sink. Packets whose source is `expected` are counted apart from those with another source.
    ///
    /// # Errors
    /// The interface does not exist, `CAP_BPF` or `CAP_NET_ADMIN` is missing, or the kernel has no tcx (before 6.6).
    pub fn attach(namespace: &str, interface: &str, expected: Ipv4Addr) -> Result<Self> {
        let counters = Counters::new(2).context("cannot make the sink's counters: CAP_BPF is needed")?;
        let program = program(counters.number(), expected.to_bits());
        let (space, name) = (namespace.to_owned(), interface.to_owned());
        let link = netns::inside(namespace, move || {
            attach_tcx_ingress(&program, &name).with_context(|| {
                format!("cannot attach the sink to {name} in {space}: CAP_NET_ADMIN and Linux 6.6 or later are needed")
            })
        })?;
        Ok(Self { counters, _link: link })
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// None that can be expected: the counters are its own.
    pub fn arrived(&self) -> Result<Arrived> {
        Ok(Arrived { expected: self.counters.sum(0)?, other: self.counters.sum(1)? })
    }
}

/// The program, in the kernel's own instructions: small enough to be read here, and no compiler is needed to bench.
fn program(map: i32, expected: u32) -> Vec<Instruction> {
    const LOAD_BYTE: u8 = 0x30;
    const LOAD_HALF: u8 = 0x28;
    const LOAD_WORD: u8 = 0x20;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const JUMP_IF_NOT_EQUAL_32: u8 = 0x56;
    const JUMP_IF_EQUAL_32: u8 = 0x16;
    let i = |code, dst: u8, src: u8, offset, immediate| Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    };
    vec![
        i(0xbf, 6, 1, 0, 0),       //  0 r6 = r1: the packet, where LD_ABS looks for it
        i(LOAD_HALF, 0, 0, 0, 12), //  1 EtherType
        i(JUMP_IF_NOT_EQUAL_32, 0, 0, 20, 0x0800), //  2 -> 23 pass
        i(LOAD_BYTE, 0, 0, 0, 23), //  3 protocol
        i(JUMP_IF_NOT_EQUAL_32, 0, 0, 18, 17), //  4 -> 23
        i(LOAD_WORD, 0, 0, 0, 42), //  5 the mark
        i(JUMP_IF_NOT_EQUAL_32, 0, 0, 16, MARK.cast_signed()), //  6 -> 23
        i(LOAD_WORD, 0, 0, 0, 26), //  7 source address
        i(0xb7, 7, 0, 0, 0),       //  8 r7 = 0: as expected
        i(JUMP_IF_EQUAL_32, 0, 0, 1, expected.cast_signed()), //  9 -> 11
        i(0xb7, 7, 0, 0, 1),       // 10 r7 = 1: another
        i(0x63, 10, 7, -4, 0),     // 11 *(u32 *)(fp - 4) = r7
        i(0x18, 1, 1, 0, map),     // 12 r1 = the map, by descriptor
        i(0, 0, 0, 0, 0),          // 13 ... second half
        i(0xbf, 2, 10, 0, 0),      // 14 r2 = fp
        i(0x07, 2, 0, 0, -4),      // 15 r2 -= 4
        i(0x85, 0, 0, 0, 1),       // 16 bpf_map_lookup_elem
        i(JUMP_IF_EQUAL, 0, 0, 3, 0), // 17 -> 21
        i(0x79, 1, 0, 0, 0),       // 18 r1 = *r0
        i(0x07, 1, 0, 0, 1),       // 19 r1 += 1
        i(0x7b, 0, 1, 0, 0),       // 20 *r0 = r1
        i(0xb7, 0, 0, 0, 2),       // 21 TC_ACT_SHOT
        i(0x95, 0, 0, 0, 0),       // 22
        i(0xb7, 0, 0, 0, -1),      // 23 TCX_NEXT
        i(0x95, 0, 0, 0, 0),       // 24
    ]
}
