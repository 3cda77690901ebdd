//! The trunk's own buffers: 64 KiB and room in front for the virtio header, pooled per queue.
//!
//! Buffers come back from whichever worker drops them. They are handed out again in that order before fresh ones are, so
//! only as many are ever touched as are in use at once.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::vnet;

/// Where the frame begins in a buffer: on a cache line, with the virtio header right before it.
const START: usize = 64;
/// Bytes of a frame: an IP packet of 65,535 bytes and its Ethernet header, and as much again as an ICMP error may add.
const FRAME: usize = 65_535 + 14 + 128;

/// Free buffers of one queue.
#[derive(Debug)]
pub(super) struct BufferPool {
    free: ArrayQueue<Vec<u8>>,
}

impl BufferPool {
    /// A pool of `count` buffers, whose memory is only reserved.
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: ArrayQueue::new(count.max(1)) })
    }

    /// A buffer that came back.
    pub(super) fn recycled(&self) -> Option<Vec<u8>> {
        self.free.pop()
    }

    pub(super) fn capacity(&self) -> usize {
        self.free.capacity()
    }
}

/// New memory for a buffer.
pub(super) fn allocate() -> Vec<u8> {
    vec![0; START + FRAME]
}

/// A packet in a buffer of the trunk. Dropping it gives the buffer back.
#[derive(Debug)]
pub struct TrunkBuffer {
    memory: Vec<u8>,
    len: u32,
    pool: Arc<BufferPool>,
}

impl TrunkBuffer {
    /// An empty buffer over memory of the pool.
    pub(super) fn new(memory: Vec<u8>, pool: &Arc<BufferPool>) -> Self {
        Self { memory, len: 0, pool: Arc::clone(pool) }
    }

    /// The virtio header's place and the frame's after it, to be read into.
    pub(super) fn landing(&mut self) -> &mut [u8] {
        &mut self.memory[START - vnet::HEADER..]
    }

    /// The virtio header that was read.
    pub(super) fn header(&self) -> [u8; vnet::HEADER] {
        let mut header = [0; vnet::HEADER];
        header.copy_from_slice(&self.memory[START - vnet::HEADER..START]);
        header
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[START..START + self.len as usize]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[START..START + self.len as usize]
    }

    pub(crate) fn capacity(&self) -> usize {
        self.memory.len() - START
    }

    pub(crate) fn resize(&mut self, len: usize) {
        self.len = len.min(self.capacity()) as u32;
    }
}

impl Drop for TrunkBuffer {
    fn drop(&mut self) {
        // The pool has room for every buffer of its queue; after the queue is gone the memory just goes with the pool.
        let _ = self.pool.free.push(std::mem::take(&mut self.memory));
    }
}
