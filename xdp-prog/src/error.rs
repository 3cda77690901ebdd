//! What can go wrong, each with what was asked, what was found and what would work.

use std::io;
use std::path::PathBuf;

use crate::XdpMode;

/// An error of loading, attaching or talking to the BPF programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpfError {
    /// The process lacks a capability.
    #[error("{action} needs {}: run as root, or give the process these capabilities", missing.join(" and "))]
    Capability {
        /// What was attempted.
        action: &'static str,
        /// Names of the capabilities that are not in the effective set.
        missing: Vec<&'static str>,
    },
    /// The kernel's verifier, or libbpf, refused the object. The log is whole.
    #[error("the kernel refused the BPF programs: {source}\n{log}{}", kernel_hint())]
    Load {
        /// What libbpf returned.
        #[source]
        source: libbpf_rs::Error,
        /// Everything that libbpf and the verifier said.
        log: String,
    },
    /// Another XDP program is on the interface.
    #[error(
        "another XDP program is attached to {interface}: \"{name}\" (id {id}); stop its owner, or take it off with \
         `ip link set dev {interface} xdp off` (`bpftool net detach xdp dev {interface}`), or use --eni-port=tap"
    )]
    OtherXdpProgram {
        /// Name of the interface.
        interface: String,
        /// Number of the program.
        id: u32,
        /// Its name, as its author gave it.
        name: String,
    },
    /// The driver cannot run this XDP program.
    #[error("{interface} takes no {mode} XDP program: {source}{}", xdp_remedy(*mode, source))]
    XdpUnsupported {
        /// Name of the interface.
        interface: String,
        /// Mode that was asked for.
        mode: XdpMode,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached, updated or taken off.
    #[error("{action} {interface}: {source}")]
    Attach {
        /// What was attempted.
        action: &'static str,
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No interface has this index.
    #[error("no interface has index {ifindex} in this network namespace")]
    NoInterface {
        /// The index.
        ifindex: u32,
    },
    /// A map could not be read or written.
    #[error("map {map}: {action}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was attempted.
        action: String,
        /// What libbpf returned.
        #[source]
        source: libbpf_rs::Error,
    },
    /// A number is beyond what a map has room for.
    #[error("{what} {value} is beyond the maximum of {maximum}")]
    OutOfRange {
        /// What it is.
        what: &'static str,
        /// The number asked for.
        value: u32,
        /// The greatest that is possible.
        maximum: u32,
    },
    /// The object lacks a program or a map: it was built from other sources.
    #[error("the BPF object has no {kind} named {name}: build xdp-prog again")]
    Missing {
        /// "map" or "program".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A bpffs could not be had or used.
    #[error("{action} {}: {source}", path.display())]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// Path in the bpffs.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory for the pins is on no bpffs.
    #[error("{} is not on a BPF filesystem: mount one with `mount -t bpf bpf {}`", path.display(), path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
}

fn kernel_hint() -> &'static str {
    if std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        ""
    } else {
        "\nthis kernel has no BTF (/sys/kernel/btf/vmlinux is missing): use one built with CONFIG_DEBUG_INFO_BTF, 5.15 or newer"
    }
}

fn xdp_remedy(mode: XdpMode, source: &io::Error) -> &'static str {
    match (mode, source.raw_os_error()) {
        (XdpMode::Native, Some(libc::EOPNOTSUPP)) => {
            "; the driver has no native XDP: use --eni-port=tap, or generic XDP by its flag"
        }
        (XdpMode::Native, Some(libc::EINVAL | libc::ERANGE | libc::EMSGSIZE)) => {
            "; the driver refuses it with this MTU, channel count or LRO setting: lower the MTU, halve the channels \
             (`ethtool -L`), switch LRO off, or use --eni-port=tap"
        }
        (XdpMode::Generic, Some(libc::EINVAL)) => "; is the kernel built without XDP? use --eni-port=tap",
        _ => "",
    }
}
