//! A frame's memory, whichever kind it is, owned.
//!
//! ```text
//!  IoFrame::Umem    one chunk of UMEM, or a chain of up to four for jumbo frames   drop -> the UMEM's pool
//!  IoFrame::Trunk   64 KiB with room in front, one super-packet                    drop -> the trunk queue's pool
//!  IoFrame::Heap    a vector: what tests, files and simulations bring              drop -> the heap
//! ```
//! None of them can be copied, so a frame is sent once or not at all, and none has a way out other than `drop` or a port.

use sluice_engine::Frame;

use crate::trunk::TrunkBuffer;
use crate::xsk::UmemFrame;

/// The memory of one packet. See the module's picture.
#[derive(Debug)]
pub enum IoFrame {
    /// UMEM shared with the kernel's AF_XDP.
    Umem(UmemFrame),
    /// A buffer of a trunk queue.
    Trunk(TrunkBuffer),
    /// Heap memory.
    Heap(Vec<u8>),
}

impl IoFrame {
    /// The frame's buffers in order, the first one included. At most four.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let first = std::iter::once(self.bytes());
        let further = match self {
            Self::Umem(frame) => frame.further(),
            Self::Trunk(_) | Self::Heap(_) => [&[][..]; 3],
        };
        first.chain(further.into_iter().filter(|piece| !piece.is_empty()))
    }

    /// Appends the whole frame to `into`.
    pub fn copy_to(&self, into: &mut Vec<u8>) {
        for piece in self.pieces() {
            into.extend_from_slice(piece);
        }
    }

    /// The whole frame as a vector. For tests, captures and traces; it allocates.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        self.copy_to(&mut all);
        all
    }
}

impl Frame for IoFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Umem(frame) => frame.bytes(),
            Self::Trunk(buffer) => buffer.bytes(),
            Self::Heap(bytes) => bytes,
        }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Umem(frame) => frame.bytes_mut(),
            Self::Trunk(buffer) => buffer.bytes_mut(),
            Self::Heap(bytes) => bytes,
        }
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Umem(frame) => frame.len(),
            Self::Trunk(buffer) => buffer.bytes().len(),
            Self::Heap(bytes) => bytes.len(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Umem(frame) => frame.capacity(),
            Self::Trunk(buffer) => buffer.capacity(),
            Self::Heap(bytes) => Frame::capacity(bytes),
        }
    }

    fn resize(&mut self, len: usize) {
        match self {
            Self::Umem(frame) => frame.resize(len),
            Self::Trunk(buffer) => buffer.resize(len),
            Self::Heap(bytes) => bytes.resize(len.min(Frame::capacity(bytes)), 0),
        }
    }
}

impl From<Vec<u8>> for IoFrame {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Heap(bytes)
    }
}
