//! The kernel's side of Sluice: the XDP program of the ENIs, the tc programs of pods' host veths, of the trunk and of the
//! ENIs, their maps, and how all of it is attached, survives the process and is taken off again.
//!
//! The programs (`src/bpf/`) only decide whose a packet is and carry it to the engine; docs/architecture.md says what goes
//! where.
//! They are attached by `bpf_link` where the kernel has it (XDP everywhere, tcx from 6.6) and as clsact filters with a fixed
//! handle elsewhere. With a pin directory, maps and links live on without the process: what is ours is then dropped (fail
//! closed), the node's own traffic is untouched, and the next [`Programs::load`] adopts everything.
//!
//! The object is compiled by libbpf-cargo, but loaded by hand instead of through its skeleton: a skeleton borrows from the
//! storage it was opened in, and [`Programs`] has to be one value that owns descriptors and nothing else.

mod attach;
mod error;
mod load;
mod log;
mod maps;
mod pins;
mod sys;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

pub use attach::Role;
pub use error::BpfError;
pub use load::{DryRun, Program, Programs};
pub use maps::{counter_meaning, counter_meanings};
pub use pins::{detach_pinned, ensure_bpffs};

/// Numbers that the programs, this crate and the engine share, out of `src/bpf/sluice.h`.
pub mod shared {
    include!(concat!(env!("OUT_DIR"), "/shared.rs"));
}

/// How the XDP program of an ENI is run. Zero-copy is a property of the socket, not of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the stack, after GRO: for interfaces whose driver has no XDP.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// How a tc program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcHook {
    /// By a `bpf_link` (kernels from 6.6).
    Tcx,
    /// As a direct-action filter of the clsact qdisc, found again by its handle.
    Clsact,
}

impl fmt::Display for TcHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// How to load and attach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Directory on a bpffs where maps and links are pinned, so that they outlive the process; a bpffs is mounted where there
    /// is none ([`ensure_bpffs`]). `None`: everything ends with the process.
    pub pin_dir: Option<PathBuf>,
    /// Load the `xdp.frags` variant (multi-buffer frames, for MTUs above what fits a page; kernels from 5.18).
    pub frags: bool,
    /// Use clsact even where tcx works.
    pub force_clsact: bool,
}

/// What the programs have to know of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The SNAT address: the primary ENI's primary address.
    pub nat_ip: Ipv4Addr,
    /// Interface index of the trunk; 0 while there is none, which drops what is ours.
    pub trunk_ifindex: u32,
    /// Give the kernel what is ours when the engine is not there, instead of dropping it.
    pub on_failure_kernel: bool,
}

/// What kind of interface a [`Link`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The host's end of a pod's veth.
    Pod,
    /// An ENI.
    Eni {
        /// Its place in the map of AF_XDP sockets, below [`shared::MAX_SLOTS`].
        slot: u16,
    },
}

/// An interface that the programs know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Pod or ENI.
    pub kind: LinkKind,
    /// The interface's own Ethernet address: source of what the engine sends by it.
    pub mac: [u8; 6],
    /// The pod's Ethernet address, or the subnet gateway's: source of what is handed back to the kernel on it. (On an ENI
    /// the kernel sees a random address instead, by which the programs know the frame.)
    pub peer_mac: [u8; 6],
    /// The pod's address (anything else from this interface is a spoof), or the ENI's primary one.
    pub ip: Ipv4Addr,
}

/// An address, port and protocol at which something serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address; where it is said so, the unspecified one stands for any address of the node.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}
