//! What tests against the kernel share: a network namespace of the test's own thread, a veth pair in it, and a packet
//! socket as the far end's eyes.
#![allow(dead_code, unreachable_pub, clippy::undocumented_unsafe_blocks)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Moves this thread into a new network namespace, which is gone when the thread is; the test runs only if that worked.
///
/// False when the tests run without root on a person's machine; in CI that is a failure.
pub fn own_namespace() -> bool {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").is_err(), "this test needs root: CI must run it as root");
        eprintln!("NOT RUN: this test needs root");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (CAP_SYS_ADMIN)");
    ip("link set lo up");
    true
}

/// Runs `ip` with the words of `arguments`.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip (iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A veth pair, both ends up and without IPv6 noise, each with `queues` queues.
pub fn veth(left: &str, right: &str, mtu: u32, queues: u32) {
    ip(&format!(
        "link add {left} numrxqueues {queues} numtxqueues {queues} type veth peer name {right} \
         numrxqueues {queues} numtxqueues {queues}"
    ));
    for name in [left, right] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        ip(&format!("link set {name} mtu {mtu} up"));
    }
}

/// Index of an interface.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("interface")
}

/// A packet socket on one interface.
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Sees what `name` receives and can send by it.
    pub fn on(name: &str) -> Self {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, None)
            .expect("packet socket");
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex(name) as i32;
        let size = std::mem::size_of_val(&address) as u32;
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
        let bytes = 64 << 20;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &bytes)
            .expect("receive buffer");
        Self { socket }
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        let sent =
            nix::sys::socket::send(self.socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// The frames that arrive until there are `count` of them or two seconds have passed.
    pub fn frames(&self, count: usize) -> Vec<Vec<u8>> {
        let (end, mut all, mut buffer) =
            (Instant::now() + Duration::from_secs(2), Vec::new(), vec![0; 70_000]);
        while all.len() < count && Instant::now() < end {
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(len) => all.push(buffer[..len].to_vec()),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        all
    }
}

/// A UDP packet of `payload` bytes with right checksums.
pub fn udp(payload: usize, sport: u16) -> Vec<u8> {
    let bytes: Vec<u8> = (0..payload).map(|i| (i * 7) as u8).collect();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(sport, 4242)
        .write(&mut frame, &bytes)
        .expect("a packet");
    frame
}
