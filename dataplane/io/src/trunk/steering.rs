//! Which queue of the trunk a packet takes: a fixed hash of its flow, as a BPF program.
//!
//! Left alone, tun learns from what is written by which queue, and a flow hops when its worker changes; with it go order
//! and cache. The program is a dozen instructions, so it is assembled here, next to the queues that it chooses from; the
//! kernel takes its result modulo the number of queues. Fragments hash by addresses and protocol, all of a datagram alike.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const SOCKET_FILTER: u32 = 1;

const LOAD_WORD: u8 = 0x20;
const LOAD_HALF: u8 = 0x28;
const LOAD_BYTE: u8 = 0x30;
const LOAD_WORD_INDIRECT: u8 = 0x40;
const MOVE: u8 = 0xBF;
const MULTIPLY_IMM: u8 = 0x27;
const OR: u8 = 0x4F;
const AND_IMM: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const XOR: u8 = 0xAF;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// An instruction (Linux, Documentation/bpf/standardization/instruction-set.rst).
const fn op(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | ((source << 4 | target) as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// Odd constants with well spread bits.
const SPREAD: i32 = 0x9E37_79B1_u32 as i32;
const SPREAD_PORTS: i32 = 0x85EB_CA6B_u32 as i32;

/// Loads work relative to the Ethernet header and leave their value in r0; beyond the packet they end the program with 0.
const PROGRAM: [u64; 27] = [
    op(MOVE, 6, 1, 0, 0),
    op(LOAD_HALF, 0, 0, 0, 12),
    op(JUMP_NOT_EQUAL, 0, 0, 23, 0x0800), // not IPv4: first queue
    op(LOAD_WORD, 0, 0, 0, 26),
    op(MOVE, 7, 0, 0, 0),
    op(SHIFT_LEFT, 7, 0, 0, 32),
    op(LOAD_WORD, 0, 0, 0, 30),
    op(OR, 7, 0, 0, 0),
    op(MULTIPLY_IMM, 7, 0, 0, SPREAD), // r7: addresses
    op(LOAD_BYTE, 0, 0, 0, 23),
    op(XOR, 7, 0, 0, 0), // and protocol
    op(MOVE, 8, 0, 0, 0),
    op(LOAD_HALF, 0, 0, 0, 20),
    op(AND_IMM, 0, 0, 0, 0x3FFF),
    op(JUMP_NOT_EQUAL, 0, 0, 8, 0), // a fragment has no ports
    op(JUMP_EQUAL, 8, 0, 1, 6),
    op(JUMP_NOT_EQUAL, 8, 0, 6, 17), // neither TCP nor UDP
    op(LOAD_BYTE, 0, 0, 0, 14),
    op(AND_IMM, 0, 0, 0, 0x0F),
    op(SHIFT_LEFT, 0, 0, 0, 2),
    op(LOAD_WORD_INDIRECT, 0, 0, 0, 14), // the ports, r0 bytes further
    op(MULTIPLY_IMM, 0, 0, 0, SPREAD_PORTS),
    op(XOR, 7, 0, 0, 0),
    op(MULTIPLY_IMM, 7, 0, 0, SPREAD),
    op(SHIFT_RIGHT, 7, 0, 0, 33),
    op(MOVE, 0, 7, 0, 0),
    op(EXIT, 0, 0, 0, 0),
];

/// Loads the program.
pub(super) fn program() -> io::Result<OwnedFd> {
    /// The head of `union bpf_attr` for this command.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: SOCKET_FILTER,
        count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes and what they point to live past the call, their size is given.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, std::mem::size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
