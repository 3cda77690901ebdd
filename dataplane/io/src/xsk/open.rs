//! Asking the kernel for an AF_XDP socket: what is asked, and what a refusal means.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::error::{XskError, open_remedy};
use super::frame::MAX_PIECES;
use super::umem::{PIECE_CAPACITY, Umem};

/// How long the kernel may take to release the queue of a socket that was closed.
const RELEASE_TIME: Duration = Duration::from_millis(300);
/// `XDP_MAX_TX_SKB_BUDGET` of kernel 6.17: descriptors that one copy-mode `sendto` moves.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
/// Ethernet header bytes.
pub(super) const ETHERNET: usize = 14;

/// How packets cross between device and UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The device writes the UMEM itself. Refused by drivers that cannot.
    ZeroCopy,
    /// The kernel copies; works with every driver, natively or with generic XDP as the program was attached.
    Copy,
}

impl Mode {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }
}

/// Preferred busy polling (kernel >= 5.11): the worker drives the device's NAPI from its own receive calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds that one call may spin in the kernel (`SO_BUSY_POLL`).
    pub microseconds: u32,
    /// Packets of one NAPI run (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// What to ask of an AF_XDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XskOptions {
    /// Copy or zero-copy; never guessed, so that a report can say which was got.
    pub mode: Mode,
    /// Chains of chunks for frames above [`PIECE_CAPACITY`] (`XDP_USE_SG`, kernel >= 6.6).
    pub multi_buffer: bool,
    /// The interface's MTU in bytes: what is larger is cut, or refused when it may not be.
    pub mtu: u32,
    /// Off unless asked for.
    pub busy_poll: Option<BusyPoll>,
}

/// The four rings of one socket. Dropping them closes it.
pub(super) struct Queues {
    pub(super) rx: RxQueue,
    pub(super) tx: TxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
}

/// The rings of a new socket, and whether the kernel keeps their chunks when it closes.
pub(super) fn queues(
    umem: &Umem,
    interface: &str,
    queue: u32,
    options: &XskOptions,
) -> Result<(Queues, bool), XskError> {
    let region = umem.region();
    let ring = region.ring;
    check_mtu(interface, queue, options)?;
    if region.free() < ring as usize {
        let (free, needed) = (region.free(), ring as usize);
        return Err(XskError::Pool { interface: interface.into(), queue, free, needed });
    }
    let mut bound = region.bound.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = (options.mode, options.multi_buffer);
    if let Some(first) = bound.filter(|first| *first != asked) {
        let (first, asked) = (binding(first), binding(asked));
        return Err(XskError::ModeOfUmem { interface: interface.into(), queue, first, asked });
    }
    let failed = |what: String, source: std::io::Error| XskError::Open {
        interface: interface.into(),
        queue,
        mode: options.mode.name(),
        what,
        remedy: open_remedy(source.raw_os_error()),
        source,
    };
    let invalid = |what: String| failed(what, std::io::Error::from_raw_os_error(libc::EINVAL));
    let size = QueueSize::new(ring).map_err(|e| invalid(e.to_string()))?;
    let name: Interface = interface.parse().map_err(|_| invalid("interface name".into()))?;
    let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
    flags |= match options.mode {
        Mode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        Mode::Copy => BindFlags::XDP_COPY,
    };
    if options.multi_buffer {
        flags |= BindFlags::XDP_USE_SG;
    }
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build();
    let (tx, rx, rings) =
        bind(config, &region.xsk, &name, queue).map_err(|(what, source)| failed(what, source))?;
    let Some((fill, completion)) = rings else {
        let taken = std::io::Error::from_raw_os_error(libc::EBUSY);
        return Err(failed("this UMEM has a socket on the queue already".into(), taken));
    };
    let first = bound.is_none();
    *bound = Some(asked);
    drop(bound);
    let queues = Queues { rx, tx, fill, completion };
    tune(queues.tx.fd().as_raw_fd(), options);
    Ok((queues, first || options.mode == Mode::ZeroCopy))
}

/// Socket options that help where the kernel has them; without one the port works, only slower.
fn tune(fd: RawFd, options: &XskOptions) {
    // In copy mode every packet under way is charged to the socket's send buffer, 212 KiB by default.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 26);
    let _ = set_option(fd, libc::SOL_XDP, MAX_TX_SKB_BUDGET, 1024);
    if let Some(busy) = options.busy_poll {
        let _ = set_option(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1);
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, busy.microseconds as libc::c_int);
        let _ = set_option(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, busy.budget as libc::c_int);
    }
}

type Opened = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

/// Creates and binds the socket. A queue whose socket was closed a moment ago is still busy until a kernel worker has
/// released it, so that answer is only believed after [`RELEASE_TIME`].
fn bind(
    config: SocketConfig,
    umem: &xsk_rs::Umem,
    name: &Interface,
    queue: u32,
) -> Result<Opened, (String, std::io::Error)> {
    let begin = Instant::now();
    loop {
        // SAFETY: the one condition is that program loading is inhibited, which `open` has the configuration say.
        let error = match unsafe { Socket::new(config, umem, name, queue) } {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let io = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<std::io::Error>());
        let errno = io.and_then(std::io::Error::raw_os_error);
        if errno == Some(libc::EBUSY) && begin.elapsed() < RELEASE_TIME {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let source =
            errno.map_or_else(|| std::io::Error::other("no errno"), std::io::Error::from_raw_os_error);
        return Err((error.to_string(), source));
    }
}

fn check_mtu(interface: &str, queue: u32, options: &XskOptions) -> Result<(), XskError> {
    let needed = options.mtu as usize + ETHERNET;
    let (room, how) = if options.multi_buffer {
        (PIECE_CAPACITY * MAX_PIECES, "with multi-buffer")
    } else {
        (PIECE_CAPACITY, "without multi-buffer")
    };
    if needed <= room {
        return Ok(());
    }
    Err(XskError::Mtu { interface: interface.into(), queue, mtu: options.mtu, needed, room, how })
}

fn binding((mode, multi_buffer): (Mode, bool)) -> String {
    format!("{}{}", mode.name(), if multi_buffer { " with multi-buffer" } else { " without multi-buffer" })
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    // SAFETY: the kernel reads an int, whose address and size are given.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            std::mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
