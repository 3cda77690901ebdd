//! The chunks that the kernel has from one port.
//!
//! The set is what turns a descriptor out of a ring back into an owned frame (an address that was never handed in is
//! refused), and what brings every chunk home when the port closes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xsk_rs::FrameDesc;

use super::frame::{Piece, UmemFrame};
use super::umem::{Ledger, Umem};

/// The chunks that the kernel has from this port.
pub(super) struct InKernel {
    pub(super) umem: Umem,
    ledger: Arc<Ledger>,
    set: Box<[u64]>,
    pub(super) fill: usize,
    pub(super) tx: usize,
    /// The chunks stay the kernel's until the UMEM ends: with the UMEM's own socket, which libxdp closes only then, and in
    /// zero-copy mode, where the driver lets go of them some time after the socket is closed.
    keep: bool,
}

impl InKernel {
    /// Nothing yet. With `keep`, what the kernel has when the port closes stays accounted to it.
    pub(super) fn new(umem: &Umem, keep: bool) -> Self {
        let region = umem.region();
        let set = vec![0; region.total().div_ceil(64)].into_boxed_slice();
        Self { umem: umem.clone(), ledger: region.ledger(), set, fill: 0, tx: 0, keep }
    }

    /// A chunk goes to the kernel.
    pub(super) fn hand_over(&mut self, index: u32) {
        self.umem.region().hand_to_kernel(index);
        self.set[index as usize / 64] |= 1 << (index % 64);
    }

    /// A chunk comes back from the kernel as a frame; `None` if the kernel did not have it.
    pub(super) fn take_back(&mut self, desc: &FrameDesc) -> Option<UmemFrame> {
        let piece = self.umem.region().piece(desc)?;
        let (word, bit) = (piece.index as usize / 64, 1 << (piece.index % 64));
        if self.set[word] & bit == 0 {
            debug_assert!(false, "the kernel returned chunk {} that it was never given", piece.index);
            return None;
        }
        self.set[word] &= !bit;
        self.umem.region().out_of_kernel(piece.index);
        Some(UmemFrame::from_program(self.umem.region(), piece))
    }

    pub(super) fn publish(&self) {
        self.ledger.fill.store(self.fill, Ordering::Release);
        self.ledger.tx.store(self.tx, Ordering::Release);
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        if self.keep {
            self.umem.region().keep(self.fill + self.tx);
        } else {
            for (word, bits) in self.set.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let index = (word * 64) as u32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    self.umem.region().out_of_kernel(index);
                    drop(UmemFrame::from_program(self.umem.region(), Piece { index, offset: 0, len: 0 }));
                }
            }
        }
        (self.fill, self.tx) = (0, 0);
        self.publish();
    }
}
