//! What of the system this crate needs `unsafe` for outside AF_XDP and the TAP.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

/// A descriptor that its port keeps open while the kernel is asked about it.
pub(crate) fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the borrow is used for one system call only. A descriptor that is not open makes that call fail with EBADF;
    // it is never closed or kept through the borrow.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
