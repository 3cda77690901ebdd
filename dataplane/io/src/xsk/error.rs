//! Why AF_XDP could not be had, each with what would help.

use std::io;

/// An error of the UMEM or of an AF_XDP socket.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The UMEM could not be created.
    #[error("UMEM of {chunks} chunks of {chunk_size} bytes: {source}; {remedy}")]
    Umem {
        /// Chunks asked for.
        chunks: u32,
        /// Bytes of each.
        chunk_size: u32,
        /// What the kernel said.
        source: io::Error,
        /// What would help.
        remedy: &'static str,
    },
    /// The socket could not be created or bound.
    #[error("AF_XDP on {interface} queue {queue} ({mode}): {source} ({what}); {remedy}")]
    Open {
        /// Interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// Mode asked for.
        mode: &'static str,
        /// Which step failed.
        what: String,
        /// What the kernel said.
        source: io::Error,
        /// What would help.
        remedy: &'static str,
    },
    /// The kernel takes mode and multi-buffer from the first socket of a UMEM for all that follow.
    #[error(
        "AF_XDP on {interface} queue {queue}: this UMEM's first socket was bound {first}, it cannot be bound {asked}; \
         use one UMEM for each mode"
    )]
    ModeOfUmem {
        /// Interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// Mode of the first socket.
        first: String,
        /// Mode asked for.
        asked: String,
    },
    /// The MTU does not fit a frame.
    #[error(
        "AF_XDP on {interface} queue {queue}: MTU {mtu} needs frames of {needed} bytes, {room} is the most {how}; \
         lower the MTU, allow multi-buffer (kernel >= 6.6), or use --eni-port=tap"
    )]
    Mtu {
        /// Interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// MTU in bytes.
        mtu: u32,
        /// Bytes of a frame of that MTU.
        needed: usize,
        /// Bytes that fit.
        room: usize,
        /// Under which setting.
        how: &'static str,
    },
    /// The pool cannot fill the queue's fill ring.
    #[error(
        "AF_XDP on {interface} queue {queue}: the UMEM has {free} free chunks, the fill ring needs {needed}; \
         create it with more chunks"
    )]
    Pool {
        /// Interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// Chunks free.
        free: usize,
        /// Chunks needed.
        needed: usize,
    },
}

/// What a person can do about `errno` from creating a UMEM.
pub(super) fn umem_remedy(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "locked memory is limited: grant CAP_IPC_LOCK, raise `ulimit -l`, or ask for fewer chunks"
        }
        Some(libc::EPERM) => "the process needs CAP_NET_RAW (and CAP_IPC_LOCK for the memory)",
        Some(libc::EAFNOSUPPORT) => "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS); use --eni-port=tap",
        Some(libc::EINVAL) => "chunk size or ring size is not accepted by this kernel",
        _ => "see the kernel log",
    }
}

/// What a person can do about `errno` from opening a socket.
pub(super) fn open_remedy(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EBUSY) => {
            "the queue is taken by another AF_XDP socket: stop its owner (`ss --xdp -p`) or choose another queue"
        }
        Some(libc::EOPNOTSUPP) => {
            "the driver cannot do this mode: try copy mode, then --eni-port=tap; multi-buffer needs kernel >= 6.6"
        }
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "no memory for rings: grant CAP_IPC_LOCK, raise `ulimit -l`, or use fewer queues"
        }
        Some(libc::EPERM | libc::EACCES) => "the process needs CAP_NET_RAW and CAP_NET_ADMIN",
        Some(libc::ENODEV | libc::ENXIO) => "no such interface in this network namespace",
        Some(libc::EINVAL) => {
            "no such queue on the interface (see `ethtool -l`), a bind flag the kernel does not know, or the interface \
             has a pool of another mode"
        }
        Some(libc::ENETDOWN) => "the interface is down: bring it up",
        _ => "see the kernel log",
    }
}
