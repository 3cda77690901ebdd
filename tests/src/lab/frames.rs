//! Frames that no well-behaved socket would send: spoofed, tagged, IPv6, with a TTL of one's own.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use super::within;

/// Ethernet type of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// Puts whole frames on an interface of a namespace.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl Sender {
    /// Opens an interface of a namespace, by both names.
    ///
    /// # Panics
    /// There is no such interface.
    #[must_use]
    pub fn open(namespace: &str, interface: &str) -> Self {
        within(namespace, || {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
            let listed = nix::ifaddrs::getifaddrs().expect("interfaces");
            let own = listed
                .filter(|i| i.interface_name == interface)
                .find_map(|i| i.address?.as_link_addr().copied());
            let interface = own.unwrap_or_else(|| panic!("{namespace} has no {interface}"));
            Self { socket: socket.expect("a packet socket"), interface }
        })
    }

    /// Sends one frame, from its Ethernet header on.
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }
}

/// A MAC address from its text.
///
/// # Panics
/// It is none.
#[must_use]
pub fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("a byte in hex")).collect();
    bytes.try_into().expect("six bytes")
}
