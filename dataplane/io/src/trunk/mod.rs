//! The trunk: one persistent multi-queue TAP that carries every pod's packets to and from user space.
//!
//! A super-packet of up to 64 KiB crosses in one system call, and the virtio header in front of it says which checksums
//! are still partial. Which pod or ENI a frame belongs to stands in its Ethernet source address ([`tag`]), written by the
//! tc programs on the way in and by [`TrunkQueue`] on the way out.
//!
//! ```text
//!  pod's veth -- tc --> sluice0 --> read --> IoFrame::Trunk (pooled, 64 KiB) --> engine
//!  pod's veth <- tc --- sluice0 <-- writev <-- [virtio header][frame][more segments, straight from UMEM]
//! ```

mod buffer;
mod counters;
mod gro;
mod netlink;
mod queue;
mod steering;
mod sys;
pub mod tag;
#[cfg(test)]
mod tests;
mod vnet;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

pub use buffer::TrunkBuffer;
pub use counters::meanings;
pub use queue::TrunkQueue;

/// How a trunk is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrunkOptions {
    /// MTU in bytes; that of the pods or larger.
    pub mtu: u32,
    /// Packets that a queue holds. Short, because a TAP takes away the sender's back-pressure: 512 super-packets are 32 MiB.
    pub queue_len: u32,
    /// Buffers of 64 KiB per queue. Memory is only touched as far as packets fill it.
    pub buffers: usize,
}

impl Default for TrunkOptions {
    fn default() -> Self {
        Self { mtu: 9001, queue_len: 512, buffers: 256 }
    }
}

/// The trunk's device as it was got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    name: String,
    ifindex: u32,
    udp_segmentation: bool,
}

/// Why the trunk could not be had.
#[derive(Debug, thiserror::Error)]
#[error("trunk {name}: {what}: {source}; {remedy}")]
pub struct TrunkError {
    name: String,
    what: &'static str,
    source: io::Error,
    remedy: &'static str,
}

impl TrunkError {
    fn new(name: &str, what: &'static str, source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "the process needs CAP_NET_ADMIN, and CAP_BPF for more than one queue"
            }
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the `tun` module and make /dev/net/tun available (in a container: mount it)"
            }
            Some(libc::EBUSY) => "another process holds all its queues: is a second instance running?",
            Some(libc::E2BIG) => "a TAP has at most 256 queues: use fewer workers",
            Some(libc::EINVAL) => {
                "an interface of that name exists that is no multi-queue TAP: remove it (`ip link del`) or choose another \
                 name of at most 15 characters"
            }
            _ => "see the kernel log",
        };
        Self { name: name.into(), what, source, remedy }
    }

    /// What the kernel said.
    #[must_use]
    pub fn source(&self) -> &io::Error {
        &self.source
    }
}

impl Trunk {
    /// Makes the persistent TAP `name`, or takes over the one of an earlier run, opens `queues` queues of it, and sets it
    /// up: offloads, MTU, short queue without a discipline, no IPv6, a fixed hash that keeps each flow on its queue, up.
    ///
    /// # Errors
    /// [`TrunkError`] naming the step and what would help.
    pub fn open(
        name: &str,
        queues: usize,
        options: &TrunkOptions,
    ) -> Result<(Self, Vec<TrunkQueue>), TrunkError> {
        let failed = |what| move |source| TrunkError::new(name, what, source);
        if queues == 0 || queues > 256 {
            return Err(failed("number of queues")(io::Error::from_raw_os_error(libc::E2BIG)));
        }
        let mut files = Vec::with_capacity(queues);
        for _ in 0..queues {
            files.push(sys::open_queue(name).map_err(failed("attach a queue"))?);
        }
        for file in &files {
            sys::header_size(file, vnet::HEADER).map_err(failed("size of the virtio header"))?;
            // Only a limit on what the kernel holds of our writes; the default is too small for one super-packet each.
            sys::send_buffer(file, 1 << 30).map_err(failed("send buffer"))?;
        }
        let udp_segmentation = sys::offloads(&files[0]).map_err(failed("offloads"))?;
        let ifindex = netlink::index(name).map_err(failed("look it up"))?;
        disable_ipv6(name).map_err(failed("disable IPv6"))?;
        netlink::set_up(ifindex, options.mtu, options.queue_len)
            .map_err(failed("set MTU, queue length and up"))?;
        netlink::no_queueing_discipline(ifindex).map_err(failed("set the `noqueue` discipline"))?;
        if queues > 1 {
            let program = steering::program().map_err(failed("load the steering program"))?;
            sys::steering(&files[0], program.as_raw_fd()).map_err(failed("steer flows to queues"))?;
        }
        // Last, so that a trunk that could not be set up leaves nothing behind.
        sys::persist(&files[0]).map_err(failed("make it persistent"))?;
        let trunk = Self { name: name.into(), ifindex, udp_segmentation };
        let queues = files.into_iter().map(|file| TrunkQueue::new(file, options)).collect();
        Ok((trunk, queues))
    }

    /// Removes the device, if there is one.
    ///
    /// # Errors
    /// [`TrunkError`] when the kernel refuses.
    pub fn remove(name: &str) -> Result<(), TrunkError> {
        let Ok(ifindex) = netlink::index(name) else { return Ok(()) };
        netlink::remove(ifindex).map_err(|source| TrunkError::new(name, "remove it", source))
    }

    /// Name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Index of the device.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// True if UDP super-packets cross whole (kernel >= 6.2); without, pods' stacks cut them before the trunk.
    #[must_use]
    pub fn udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }
}

impl TrunkQueue {
    /// Replaces the flow hash that [`Trunk::open`] installed by another program of type `SOCKET_FILTER`, whose result is
    /// taken modulo the number of queues. Applies to the whole device.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn steer(&self, program: RawFd) -> io::Result<()> {
        sys::steering(self.file(), program)
    }
}

fn disable_ipv6(name: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // Without IPv6 the trunk only carries less noise, so a read-only /proc/sys (a container) is no reason to stop.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EROFS | libc::EACCES)) => Ok(()),
        other => other,
    }
}
