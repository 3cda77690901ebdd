//! The system calls that no package wraps safely: ethtool's ioctls, and epoll on a port's bare descriptor. The only
//! `unsafe` of the daemon.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/ethtool.h
const GDRVINFO: u32 = 0x03;
const GRXCSUM: u32 = 0x14;
const GTXCSUM: u32 = 0x16;
const GSG: u32 = 0x18;
const GTSO: u32 = 0x1e;
const GGSO: u32 = 0x23;
const GFLAGS: u32 = 0x25;
const SFLAGS: u32 = 0x26;
const GGRO: u32 = 0x2b;
const SGRO: u32 = 0x2c;
const GCHANNELS: u32 = 0x3c;
const SCHANNELS: u32 = 0x3d;
const FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_drvinfo`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DrvInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved2: [u8; 12],
    n_priv_flags: u32,
    n_stats: u32,
    testinfo_len: u32,
    eedump_len: u32,
    regdump_len: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    cmd: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawChannels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ifreq` with its pointer member.
#[repr(C)]
struct IfReq {
    name: [u8; 16],
    data: *mut libc::c_void,
    padding: [u8; 16],
}

/// Queues of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues in use.
    pub rx: u32,
    /// Receive queues that there can be.
    pub max_rx: u32,
    /// Pairs of a receive and a transmit queue in use; 0 when the driver counts them apart.
    pub combined: u32,
    /// Pairs that there can be.
    pub max_combined: u32,
}

/// Asks ethtool's questions about interfaces of this network namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    /// Opens the socket that carries the ioctls.
    ///
    /// # Errors
    /// No socket could be opened.
    pub fn open() -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// Name and version of the driver. `virtual` devices answer too (`veth`, `tun`).
    ///
    /// # Errors
    /// The interface is not there, or its driver does not say.
    pub fn driver(&self, name: &str) -> io::Result<(String, String)> {
        let mut drv = DrvInfo {
            cmd: GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            fw_version: [0; 32],
            bus_info: [0; 32],
            erom_version: [0; 32],
            reserved2: [0; 12],
            n_priv_flags: 0,
            n_stats: 0,
            testinfo_len: 0,
            eedump_len: 0,
            regdump_len: 0,
        };
        self.call(name, &mut drv)?;
        Ok((text(&drv.driver), text(&drv.version)))
    }

    /// The interface's queues.
    ///
    /// # Errors
    /// The interface is not there, or its driver has no such notion.
    pub fn channels(&self, name: &str) -> io::Result<Channels> {
        let mut raw = RawChannels { cmd: GCHANNELS, ..RawChannels::default() };
        self.call(name, &mut raw)?;
        Ok(Channels {
            rx: raw.rx + raw.combined,
            max_rx: raw.max_rx.max(raw.max_combined),
            combined: raw.combined,
            max_combined: raw.max_combined,
        })
    }

    /// Sets the number of combined queues.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn set_combined(&self, name: &str, combined: u32) -> io::Result<()> {
        let mut raw = RawChannels { cmd: GCHANNELS, ..RawChannels::default() };
        self.call(name, &mut raw)?;
        raw.cmd = SCHANNELS;
        raw.combined = combined;
        self.call(name, &mut raw)
    }

    /// The offloads that matter here, by the names that `ethtool -k` shows; one that the driver does not know is absent.
    #[must_use]
    pub fn offloads(&self, name: &str) -> BTreeMap<String, bool> {
        let mut offloads = BTreeMap::new();
        for (label, cmd) in [
            ("rx-checksumming", GRXCSUM),
            ("tx-checksumming", GTXCSUM),
            ("scatter-gather", GSG),
            ("tcp-segmentation-offload", GTSO),
            ("generic-segmentation-offload", GGSO),
            ("generic-receive-offload", GGRO),
        ] {
            if let Ok(value) = self.value(name, cmd) {
                offloads.insert(label.to_owned(), value != 0);
            }
        }
        if let Ok(flags) = self.value(name, GFLAGS) {
            offloads.insert("large-receive-offload".to_owned(), flags & FLAG_LRO != 0);
        }
        offloads
    }

    /// Switches generic receive offload.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn set_gro(&self, name: &str, on: bool) -> io::Result<()> {
        self.call(name, &mut Value { cmd: SGRO, data: u32::from(on) })
    }

    /// Switches large receive offload.
    ///
    /// # Errors
    /// The driver refuses or has none.
    pub fn set_lro(&self, name: &str, on: bool) -> io::Result<()> {
        let flags = self.value(name, GFLAGS)?;
        let wanted = if on { flags | FLAG_LRO } else { flags & !FLAG_LRO };
        if wanted == flags {
            return Ok(());
        }
        self.call(name, &mut Value { cmd: SFLAGS, data: wanted })
    }

    fn value(&self, name: &str, cmd: u32) -> io::Result<u32> {
        let mut value = Value { cmd, data: 0 };
        self.call(name, &mut value)?;
        Ok(value.data)
    }

    fn call<T: Copy>(&self, name: &str, argument: &mut T) -> io::Result<()> {
        let mut request =
            IfReq { name: [0; 16], data: std::ptr::from_mut(argument).cast(), padding: [0; 16] };
        if name.len() >= request.name.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the socket is open, `request` is at least as large as the kernel's `struct ifreq`, its name ends in a
        // zero, and its pointer leads to a whole structure of the command in `argument`, which outlives the call.
        let rc = unsafe {
            libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, std::ptr::from_mut(&mut request))
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Eight bytes of the kernel's entropy.
///
/// # Errors
/// There is no `/dev/urandom`.
pub fn entropy() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Sets the niceness of the calling thread, -20 to 19.
///
/// # Errors
/// A value below the present one needs CAP_SYS_NICE.
pub fn set_thread_nice(nice: i8) -> io::Result<()> {
    // SAFETY: the call takes three integers; on Linux 0 names the calling thread.
    let rc = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, libc::c_int::from(nice)) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has an epoll instance report when a port's descriptor can be read.
///
/// # Errors
/// The descriptor cannot be waited on.
pub fn watch(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    // SAFETY: the port that owns the descriptor is the caller's and outlives this call; nothing keeps the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 1))?)
}

/// Undoes [`watch`].
///
/// # Errors
/// The descriptor was not watched.
pub fn unwatch(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    // SAFETY: as in `watch`.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(epoll.delete(fd)?)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<DrvInfo>(), 196);
        assert_eq!(size_of::<RawChannels>(), 36);
        assert_eq!(size_of::<IfReq>(), 40);
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let ethtool = Ethtool::open().unwrap();
        assert!(ethtool.driver("no-such-if").is_err());
        assert!(ethtool.driver("a-name-that-is-too-long").is_err());
        assert!(ethtool.offloads("no-such-if").is_empty());
        assert!(ethtool.offloads("lo").contains_key("generic-receive-offload"));
    }
}
