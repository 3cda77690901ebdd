//! The calls that neither the standard library nor nix offers safely: packet sockets with `sendmmsg`, and `bpf(2)`.
//!
//! The only `unsafe` of this crate is here. Every function takes borrowed slices and owned descriptors, checks lengths
//! itself, and keeps no pointer after it returns.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Packets that one [`PacketSocket::send`] hands to the kernel at most.
pub const BATCH: usize = 64;

/// A raw packet socket on one interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// A socket that only sends, past the queueing discipline as a pod's `noqueue` veth would.
    ///
    /// # Errors
    /// The interface does not exist, or the caller lacks `CAP_NET_RAW`.
    pub fn sender(interface: &str) -> io::Result<Self> {
        let socket = Self::open(interface, 0)?;
        socket.option(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        Ok(socket)
    }

    /// A sender whose frames begin with a virtio-net header of 10 bytes, so that they can carry partial checksums.
    ///
    /// # Errors
    /// As [`PacketSocket::sender`].
    pub fn sender_with_offload(interface: &str) -> io::Result<Self> {
        let socket = Self::sender(interface)?;
        socket.option(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        Ok(socket)
    }

    /// A socket that receives every frame that enters by the interface, before tc sees it; never blocks.
    ///
    /// # Errors
    /// As [`PacketSocket::sender`].
    pub fn receiver(interface: &str) -> io::Result<Self> {
        let socket = Self::open(interface, (libc::ETH_P_ALL as u16).to_be())?;
        socket.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        // A burst of 100,000 small frames must fit: each is charged with about 800 bytes.
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 128 << 20)?;
        Ok(socket)
    }

    fn open(interface: &str, protocol: u16) -> io::Result<Self> {
        let index = interface_index(interface)?;
        // SAFETY: socket() takes no pointer; a non-negative result is a descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is valid for the length given and outlives the call.
        check(unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        })?;
        Ok(Self { fd })
    }

    fn option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value is an i32 that outlives the call, and its size is given.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as u32,
            )
        })
        .map(drop)
    }

    /// Sends the frames, `stride` bytes each, of which at most [`BATCH`] are taken. Gives the number that the kernel took.
    ///
    /// # Errors
    /// The kernel took none.
    pub fn send(&self, frames: &[u8], stride: usize) -> io::Result<usize> {
        let count = (frames.len() / stride).min(BATCH);
        // SAFETY: iovec and mmsghdr are integers and pointers, for which all zeroes is a value.
        let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { zeroed() };
        for (i, frame) in frames.chunks_exact(stride).take(count).enumerate() {
            vectors[i] = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: stride };
            messages[i].msg_hdr.msg_iov = &raw mut vectors[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: `count` headers are initialised; each points to one vector that points into `frames`, all of which
        // outlive the call; sending does not write through iov_base.
        let sent =
            check(unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) })?;
        Ok(sent as usize)
    }

    /// Receives one frame, `None` when there is none.
    ///
    /// # Errors
    /// The interface went away.
    pub fn receive<'a>(&self, into: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        // SAFETY: the buffer is writable for the length given.
        let length = unsafe {
            libc::recv(self.fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT)
        };
        match usize::try_from(length) {
            Ok(length) => Ok(into.get(..length)),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(e),
            },
        }
    }
}

/// Index of an interface in the calling thread's network namespace.
///
/// # Errors
/// There is none of that name.
pub fn interface_index(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no interface `{interface}` in this network namespace"),
        )),
        index => Ok(index),
    }
}

/// Lets the calling thread's sleeps end on time: the kernel otherwise adds up to 50 us.
pub fn precise_sleep() {
    // SAFETY: PR_SET_TIMERSLACK takes integers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0_u64, 0_u64, 0_u64) };
}

/// Thread number of the calling thread, as /proc names it.
#[must_use]
pub fn thread_id() -> u32 {
    // SAFETY: gettid takes nothing.
    unsafe { libc::gettid() as u32 }
}

/// Asks for a cache line ahead of its use.
#[inline]
pub fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless, and this one is valid.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(item).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PERCPU_ARRAY: u32 = 6;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;

/// One BPF instruction, as the kernel reads it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source in the high half.
    pub registers: u8,
    /// Offset.
    pub offset: i16,
    /// Immediate.
    pub immediate: i32,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<i64> {
    // SAFETY: every caller passes one of the structures above, whose layout is the kernel's for that command and whose
    // embedded addresses are of memory that the caller keeps alive and large enough; the kernel takes what lies beyond
    // the size as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: only called with the result of a bpf() command that gave a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// A per-CPU array of counters that BPF programs add to.
#[derive(Debug)]
pub struct Counters {
    fd: OwnedFd,
    cpus: usize,
}

impl Counters {
    /// `entries` counters at zero.
    ///
    /// # Errors
    /// The caller lacks `CAP_BPF`.
    pub fn new(entries: u32) -> io::Result<Self> {
        let attributes =
            MapCreate { map_type: PERCPU_ARRAY, key_size: 4, value_size: 8, max_entries: entries };
        Ok(Self { fd: owned(bpf(0, &attributes)?), cpus: possible_cpus()? })
    }

    /// Sum of one counter over all CPUs.
    ///
    /// # Errors
    /// There is no counter of that number.
    pub fn sum(&self, entry: u32) -> io::Result<u64> {
        let mut values = vec![0_u64; self.cpus];
        let attributes = Element {
            map: self.fd.as_raw_fd() as u32,
            key: (&raw const entry) as u64,
            value: values.as_mut_ptr() as u64,
            ..Element::default()
        };
        bpf(1, &attributes)?;
        Ok(values.iter().sum())
    }

    /// The descriptor's number, to be named in a program.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Loads a tc program and attaches it at the interface's ingress, ahead of what is there, until the result is dropped.
///
/// # Errors
/// The verifier refuses the program (its words are in the error), or the kernel has no tcx (before 6.6).
pub fn attach_tcx_ingress(program: &[Instruction], interface: &str) -> io::Result<OwnedFd> {
    /// `BPF_F_BEFORE`: first in the chain.
    const BEFORE: u32 = 1 << 3;
    let index = interface_index(interface)?;
    let mut log = vec![0_u8; 64 << 10];
    let attributes = ProgramLoad {
        program_type: SCHED_CLS,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
    };
    let program = bpf(5, &attributes).map(owned).map_err(|e| {
        let text = String::from_utf8_lossy(&log);
        io::Error::new(
            e.kind(),
            format!("the counting program was refused: {e}: {}", text.trim_end_matches('\0')),
        )
    })?;
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: index,
        attach_type: TCX_INGRESS,
        flags: BEFORE,
    };
    bpf(28, &attributes).map(owned)
}

/// CPUs for which a per-CPU map holds a value: the possible ones, not only those online.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<usize>().ok());
    last.map(|n| n + 1)
        .ok_or_else(|| io::Error::other(format!("cannot read the list of possible CPUs: `{}`", text.trim())))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
