//! Ground for the tests: private namespaces that vanish with the thread, frames as bytes, and exact counter deltas.
//!
//! Nothing has a name outside the test: network and mount namespaces are anonymous, so that even a killed test run leaves
//! nothing behind.

#![allow(dead_code, unreachable_pub)] // each test binary uses its own part, and none has an outside

pub mod bench;
pub mod frames;
pub mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use sluice_bpf::Programs;

/// Moves this thread into network and mount namespaces of its own.
///
/// # Panics
/// Without root: these tests cannot say anything then, and must not pretend to.
pub fn enter_private_node() {
    assert!(nix::unistd::geteuid().is_root(), "the BPF tests need root: run them with sudo");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("private namespaces");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private mounts");
    ip("link set lo up");
    silence();
}

/// No IPv6 on the interfaces to come: the kernel would speak of itself and move counters.
fn silence() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
}

/// A network namespace without a name.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip("link set lo up");
            silence();
            Self(File::open("/proc/thread-self/ns/net").expect("its descriptor"))
        })
        .join()
        .expect("the thread ends well")
    }

    /// Runs `action` inside.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                action()
            };
            scope.spawn(inside).join().expect("the thread ends well")
        })
    }

    /// A path by which `ip link set X netns PATH` finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` with these words in the calling thread's namespaces.
pub fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Index of an interface of the calling thread's namespace.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface exists")
}

/// Every counter that is not zero.
pub fn counters(programs: &Programs) -> BTreeMap<&'static str, u64> {
    programs.counters().expect("counters").into_iter().filter(|&(_, value)| value != 0).collect()
}

/// What moved between two readings.
pub fn moved(
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
) -> Vec<(&'static str, u64)> {
    after
        .iter()
        .map(|(&name, &value)| (name, value - before.get(name).copied().unwrap_or(0)))
        .filter(|&(_, delta)| delta != 0)
        .collect()
}

/// An AF_XDP socket that is bound to nothing: enough for a slot of the map.
pub struct XdpSocket(std::os::fd::OwnedFd);

impl XdpSocket {
    pub fn new() -> Self {
        Self(sys::xdp_socket().expect("an AF_XDP socket"))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A set of ports, as the maps want it.
pub fn bitmap(values: &[u16]) -> [u64; 1024] {
    let mut words = [0; 1024];
    for &value in values {
        words[usize::from(value / 64)] |= 1 << (value % 64);
    }
    words
}
