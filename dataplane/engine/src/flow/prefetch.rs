//! Asking the processor for a cache line before it is needed: the one thing here that safe Rust has no word for.

/// Brings the line that `target` begins in into the first-level cache, some time.
#[inline(always)]
pub(crate) fn read<T>(target: &T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no architectural effect and never faults, whatever the address; SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast()) };
    }
    #[cfg(all(target_arch = "aarch64", not(loom)))]
    {
        // SAFETY: PRFM is a hint: it never faults and changes neither registers, flags nor memory.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) std::ptr::from_ref(target),
                options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(any(loom, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = target;
}
