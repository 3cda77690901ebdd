//! One queue of the trunk as a [`Port`].

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use sluice_engine::{Drop as Reason, Frame, GsoKind, Offload, Packet, Verdict};

use super::buffer::{self, BufferPool, TrunkBuffer};
use super::counters::{RxCounters, TxCounters};
use super::gro::{Aggregate, Gro, MAX_PIECES, Segment};
use super::{TrunkOptions, tag, vnet};
use crate::{IoFrame, Port, PortStats};

/// Bytes that one `receive` takes at most, so that a batch of super-packets stays in the cache between read and send.
const BATCH_BYTES: usize = 512 * 1024;
const ETHERNET: usize = 14;

/// A queue of the trunk, for one worker.
pub struct TrunkQueue {
    wire: Wire,
    pool: Arc<BufferPool>,
    allocated: usize,
    spare: Option<TrunkBuffer>,
    gro: Gro,
    rx: RxCounters,
}

/// The file and what writing to it cost; apart from the rest so that coalescing can write while it is borrowed itself.
pub(super) struct Wire {
    file: File,
    counters: TxCounters,
}

impl TrunkQueue {
    pub(super) fn new(file: File, options: &TrunkOptions) -> Self {
        Self {
            wire: Wire { file, counters: TxCounters::default() },
            pool: BufferPool::new(options.buffers),
            allocated: 0,
            spare: None,
            gro: Gro::default(),
            rx: RxCounters::default(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.wire.file
    }

    fn buffer(&mut self) -> Option<TrunkBuffer> {
        if let Some(spare) = self.spare.take() {
            return Some(spare);
        }
        let memory = match self.pool.recycled() {
            Some(memory) => memory,
            None if self.allocated < self.pool.capacity() => {
                self.allocated += 1;
                buffer::allocate()
            }
            None => {
                self.rx.no_buffer += 1;
                return None;
            }
        };
        Some(TrunkBuffer::new(memory, &self.pool))
    }

    /// The packet in a buffer of which `read` bytes were read; `None` for one that is none of ours.
    fn packet(&mut self, mut frame: TrunkBuffer, read: usize) -> Option<Packet<IoFrame>> {
        frame.resize(read.saturating_sub(vnet::HEADER));
        let source = frame.bytes().get(6..12).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        let Some(ingress) = source.and_then(tag::ingress) else {
            self.rx.untagged += 1;
            self.spare = Some(frame);
            return None;
        };
        let Some(offload) = vnet::parse(frame.header()) else {
            self.rx.unknown_gso += 1;
            self.spare = Some(frame);
            return None;
        };
        self.rx.packets += 1;
        self.rx.bytes += frame.bytes().len() as u64;
        self.rx.super_packets += u64::from(offload.gso != GsoKind::None);
        Some(Packet { frame: IoFrame::Trunk(frame), ingress, offload })
    }
}

impl Port for TrunkQueue {
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize {
        let (before, mut bytes) = (into.len(), 0);
        while into.len() - before < budget && bytes < BATCH_BYTES {
            let Some(mut frame) = self.buffer() else { break };
            match nix::unistd::read(&self.wire.file, frame.landing()) {
                Ok(read) => {
                    bytes += read;
                    into.extend(self.packet(frame, read));
                }
                Err(errno) => {
                    self.spare = Some(frame);
                    if errno != Errno::EAGAIN {
                        self.rx.errors += 1;
                    }
                    break;
                }
            }
        }
        into.len() - before
    }

    fn send(
        &mut self,
        mut frame: IoFrame,
        verdict: Verdict,
        offload: Offload,
    ) -> Result<(), (IoFrame, Reason)> {
        let Some(source) = tag::egress(verdict).filter(|_| frame.bytes().len() >= ETHERNET) else {
            self.wire.counters.error += 1;
            return Err((frame, Reason::TxError));
        };
        frame.bytes_mut()[6..12].copy_from_slice(&source);
        let segment = if offload == Offload::default() { Segment::parse(&mut frame) } else { None };
        let Some(segment) = segment else {
            return self.wire.write_frame(frame, offload, false);
        };
        self.gro.push(frame, segment, &mut self.wire)
    }

    fn flush(&mut self) {
        self.gro.flush(&mut self.wire);
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.wire.file.as_raw_fd())
    }

    fn stats(&self) -> PortStats {
        let mut stats = PortStats::default();
        self.rx.report(&mut stats);
        self.wire.counters.report(&mut stats);
        stats
    }
}

impl Wire {
    /// Writes one frame as it is.
    pub(super) fn write_frame(
        &mut self,
        frame: IoFrame,
        offload: Offload,
        verified: bool,
    ) -> Result<(), (IoFrame, Reason)> {
        let header = vnet::build(offload, header_bytes(frame.bytes(), offload), verified);
        let mut slices = [IoSlice::new(&[]); 5];
        slices[0] = IoSlice::new(&header);
        let mut used = 1;
        for piece in frame.pieces() {
            slices[used] = IoSlice::new(piece);
            used += 1;
        }
        match self.write(&slices[..used]) {
            Ok(()) => {
                self.counters.packets += 1;
                self.counters.bytes += frame.len() as u64;
                Ok(())
            }
            Err(reason) => {
                self.failed(reason, 1);
                Err((frame, reason))
            }
        }
    }

    /// Writes what was coalesced as one super-packet, or as the plain packet that it still is.
    pub(super) fn write_aggregate(&mut self, aggregate: &mut Aggregate) {
        let frames = aggregate.frames() as u64;
        let offload = aggregate.seal();
        let header = vnet::build(offload, aggregate.header_bytes(), true);
        let mut slices = [IoSlice::new(&[]); MAX_PIECES + 1];
        slices[0] = IoSlice::new(&header);
        let mut used = 1;
        for piece in aggregate.pieces() {
            slices[used] = IoSlice::new(piece);
            used += 1;
        }
        match self.write(&slices[..used]) {
            Ok(()) => {
                self.counters.packets += frames;
                self.counters.bytes += aggregate.len() as u64;
                if frames > 1 {
                    self.counters.gro_super_packets += 1;
                    self.counters.gro_merged += frames - 1;
                }
            }
            Err(reason) => self.failed(reason, frames),
        }
        aggregate.clear();
    }

    pub(super) fn bad_checksum(&mut self) {
        self.counters.gro_bad_checksum += 1;
    }

    fn failed(&mut self, reason: Reason, frames: u64) {
        match reason {
            Reason::TxFull => self.counters.full += frames,
            _ => self.counters.error += frames,
        }
    }

    /// One system call, timed: it runs the receiving pod's whole stack, and a slow pod must be visible.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> Result<(), Reason> {
        let start = Instant::now();
        let result = nix::sys::uio::writev(&self.file, slices);
        let spent = start.elapsed().as_nanos() as u64;
        self.counters.writes += 1;
        self.counters.write_ns += spent;
        self.counters.write_ns_max = self.counters.write_ns_max.max(spent);
        match result {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => Err(Reason::TxFull),
            Err(_) => Err(Reason::TxError),
        }
    }
}

/// Bytes of all headers of a super-packet.
fn header_bytes(bytes: &[u8], offload: Offload) -> u16 {
    let l4 = ETHERNET + bytes.get(ETHERNET).map_or(0, |first| usize::from(first & 0x0F) * 4);
    let header = match offload.gso {
        GsoKind::None => 0,
        GsoKind::Tcp4 => l4 + bytes.get(l4 + 12).map_or(0, |offset| usize::from(offset >> 4) * 4),
        GsoKind::Udp4 => l4 + 8,
    };
    header as u16
}
