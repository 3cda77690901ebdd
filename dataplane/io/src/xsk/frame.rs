//! The frame type that owns chunks of a UMEM while the program has them.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::umem::{CHUNK_SIZE, HEADROOM, PIECE_CAPACITY, Region, Umem};

/// Chunks of one frame at most: 9,015 bytes need three.
pub(super) const MAX_PIECES: usize = 4;

/// Data in one chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) index: u32,
    pub(super) offset: u16,
    pub(super) len: u16,
}

/// A packet in UMEM that the program owns: one chunk, or a chain. Dropping it puts its chunks back into the pool.
pub struct UmemFrame {
    region: NonNull<Region>,
    pieces: [Piece; MAX_PIECES],
    count: u8,
}

// SAFETY: a frame is the only owner of its chunks, the region is `Sync`.
unsafe impl Send for UmemFrame {}
// SAFETY: shared access to a frame only reads.
unsafe impl Sync for UmemFrame {}

impl UmemFrame {
    /// The frame for a chunk that the program just took over.
    pub(super) fn from_program(region: &Region, piece: Piece) -> Self {
        let mut pieces = [Piece::default(); MAX_PIECES];
        pieces[0] = piece;
        Self { region: NonNull::from(region), pieces, count: 1 }
    }

    fn region(&self) -> &Region {
        // SAFETY: a region is only freed when no frame owns a chunk of it, see `Owner::drop`.
        unsafe { self.region.as_ref() }
    }

    /// True if the frame is of this UMEM.
    pub(super) fn is_of(&self, umem: &Umem) -> bool {
        std::ptr::eq(self.region.as_ptr(), umem.region())
    }

    /// Lengthens the chain; false (and nothing changed) when it is as long as it may be.
    pub(super) fn append(&mut self, piece: Piece) -> bool {
        let Some(slot) = self.pieces.get_mut(usize::from(self.count)) else { return false };
        *slot = piece;
        self.count += 1;
        true
    }

    /// The chain's pieces; the frame is taken apart and its chunks are the caller's.
    pub(super) fn into_pieces(self) -> ([Piece; MAX_PIECES], usize) {
        let this = ManuallyDrop::new(self);
        (this.pieces, usize::from(this.count))
    }

    pub(super) fn chunks(&self) -> usize {
        usize::from(self.count)
    }

    /// Moves data that an XDP program shifted back to where descriptors of ours point.
    pub(super) fn straighten(&mut self) -> bool {
        for i in 0..usize::from(self.count) {
            let piece = self.pieces[i];
            if usize::from(piece.offset) != HEADROOM {
                if usize::from(piece.len) > PIECE_CAPACITY {
                    return false;
                }
                self.pieces[i].offset = HEADROOM as u16;
                let (from, to) = (self.pointer(piece), self.pointer(self.pieces[i]));
                // SAFETY: both ranges lie in the chunk, which this frame owns; they may overlap, `copy` allows that.
                unsafe { std::ptr::copy(from, to, usize::from(piece.len)) };
            }
        }
        true
    }

    fn pointer(&self, piece: Piece) -> *mut u8 {
        let at = piece.index as usize * CHUNK_SIZE as usize + usize::from(piece.offset);
        // SAFETY: indices below the total and offsets below the chunk size are inside the mapping.
        unsafe { self.region().base.as_ptr().add(at) }
    }

    fn slice(&self, piece: Piece) -> &[u8] {
        // SAFETY: the range lies in a chunk that this frame owns, and memory of the mapping is always initialised.
        unsafe { std::slice::from_raw_parts(self.pointer(piece), usize::from(piece.len)) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.slice(self.pieces[0])
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let (at, len) = (self.pointer(self.pieces[0]), usize::from(self.pieces[0].len));
        // SAFETY: as in `slice`, and `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    pub(crate) fn further(&self) -> [&[u8]; MAX_PIECES - 1] {
        let mut all = [&[][..]; MAX_PIECES - 1];
        for (out, piece) in all.iter_mut().zip(&self.pieces[1..usize::from(self.count)]) {
            *out = self.slice(*piece);
        }
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces[..usize::from(self.count)].iter().map(|p| usize::from(p.len)).sum()
    }

    pub(crate) fn capacity(&self) -> usize {
        CHUNK_SIZE as usize - usize::from(self.pieces[0].offset)
    }

    pub(crate) fn resize(&mut self, len: usize) {
        while self.count > 1 {
            self.count -= 1;
            self.region().give(self.pieces[usize::from(self.count)].index);
        }
        self.pieces[0].len = len.min(self.capacity()) as u16;
    }
}

impl Drop for UmemFrame {
    fn drop(&mut self) {
        for i in 0..usize::from(self.count) {
            self.region().give(self.pieces[i].index);
        }
    }
}

impl std::fmt::Debug for UmemFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UmemFrame").field("pieces", &&self.pieces[..usize::from(self.count)]).finish()
    }
}
