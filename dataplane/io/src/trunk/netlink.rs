//! The four rtnetlink requests that setting up a TAP takes.
//!
//! Bytes are written by hand: a netlink stack would be many times the size of what it replaced, and none of the replies
//! but the acknowledgement is read.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWQDISC: u16 = 36;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const TCA_KIND: u16 = 1;
const TC_H_ROOT: u32 = 0xFFFF_FFFF;

/// Index of an interface of this network namespace.
pub(super) fn index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// Sets MTU and queue length, and the interface up.
pub(super) fn set_up(ifindex: u32, mtu: u32, queue_len: u32) -> io::Result<()> {
    let up = libc::IFF_UP as u32;
    let mut body = link(ifindex, up, up);
    attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    attribute(&mut body, IFLA_TXQLEN, &queue_len.to_ne_bytes());
    request(RTM_NEWLINK, 0, &body)
}

/// Has packets go straight into the TAP's own queue instead of waiting in a queueing discipline before it.
pub(super) fn no_queueing_discipline(ifindex: u32) -> io::Result<()> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(&TC_H_ROOT.to_ne_bytes());
    body.extend_from_slice(&0u32.to_ne_bytes());
    attribute(&mut body, TCA_KIND, b"noqueue\0");
    request(RTM_NEWQDISC, CREATE | REPLACE, &body)
}

pub(super) fn remove(ifindex: u32) -> io::Result<()> {
    request(RTM_DELLINK, 0, &link(ifindex, 0, 0))
}

/// An `ifinfomsg`.
fn link(ifindex: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Sends one request and waits for its acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(REQUEST | ACK | flags).to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut reply = [0; 4096];
    let len = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    let is_ack = len >= 20 && u16::from_ne_bytes([reply[4], reply[5]]) == NLMSG_ERROR;
    if !is_ack {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "rtnetlink gave no acknowledgement"));
    }
    match i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
