//! The ioctls of `/dev/net/tun` (linux/if_tun.h), nothing else.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const TUNSETPERSIST: libc::c_ulong = 0x4004_54CB;
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54D4;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54D8;
const TUNSETSTEERINGEBPF: libc::c_ulong = 0x8004_54E0;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
/// The kernel takes USO for IPv4 only together with IPv6 (drivers/net/tun.c, `set_offload`).
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// A new queue of the TAP `name`, which is made if it does not exist. Reads and writes never block.
pub(super) fn open_queue(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `ifreq` is plain old data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    // SAFETY: the kernel reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) })?;
    Ok(file)
}

/// Has the device outlive the process.
pub(super) fn persist(file: &File) -> io::Result<()> {
    // SAFETY: takes an integer by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST as _, 1 as libc::c_ulong) })
}

pub(super) fn header_size(file: &File, bytes: usize) -> io::Result<()> {
    with_int(file, TUNSETVNETHDRSZ, bytes as libc::c_int)
}

pub(super) fn send_buffer(file: &File, bytes: libc::c_int) -> io::Result<()> {
    with_int(file, TUNSETSNDBUF, bytes)
}

/// Accepts super-packets and partial checksums; false where the kernel has no UDP segmentation offload for TAPs.
pub(super) fn offloads(file: &File) -> io::Result<bool> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN;
    // SAFETY: takes flags by value.
    let with_udp = check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, tcp | TUN_F_USO) });
    if with_udp.is_ok() {
        return Ok(true);
    }
    // SAFETY: as above.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, tcp) })?;
    Ok(false)
}

pub(super) fn steering(file: &File, program: RawFd) -> io::Result<()> {
    with_int(file, TUNSETSTEERINGEBPF, program)
}

fn with_int(file: &File, request: libc::c_ulong, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests read one int from the address.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw const value) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
