//! One rtnetlink conversation at a time: dumps, single questions, changes.
//!
//! The agent, the CNI plugin and whoever else asks the kernel of links, routes and rules need the same four things: a
//! dump that is whole, a question with one answer, something made that must not be there yet, something removed. What
//! waits for notifications is another matter and not here.
#![forbid(unsafe_code)]

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// How often a dump is asked for.
const ATTEMPTS: u32 = 5;
/// `NLM_F_DUMP_INTR` of `linux/netlink.h`: what is dumped has changed meanwhile.
const INTERRUPTED: u16 = 0x10;

/// A socket of the network namespace that the thread was in that opened it, whichever uses it.
#[derive(Debug)]
pub struct Netlink(Socket);

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// Everything of a kind. What changes under a dump makes it worth nothing: then it is asked for again.
    ///
    /// # Errors
    /// The kernel refuses, or what is dumped changes all the time.
    pub fn dump(&self, question: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            self.send(question.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(found) = self.answers()? {
                return Ok(found);
            }
        }
        Err(io::Error::other(format!("what is dumped changed {ATTEMPTS} times meanwhile: try again")))
    }

    /// One question, one answer.
    ///
    /// # Errors
    /// The kernel's: `NotFound` where there is no such thing, for links `ENODEV`.
    pub fn ask(&self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(question, NLM_F_REQUEST | NLM_F_ACK)?;
        Ok(self.answers()?.unwrap_or_default())
    }

    /// Makes something that must not be there yet.
    ///
    /// # Errors
    /// The kernel's; `AlreadyExists` where it is there.
    pub fn create(&self, what: RouteNetlinkMessage) -> io::Result<()> {
        self.send(what, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
        self.answers().map(drop)
    }

    /// Makes something, or makes it as it must be where it is there already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn replace(&self, what: RouteNetlinkMessage) -> io::Result<()> {
        self.send(what, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        self.answers().map(drop)
    }

    /// Changes or removes something that is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&self, what: RouteNetlinkMessage) -> io::Result<()> {
        self.send(what, NLM_F_REQUEST | NLM_F_ACK)?;
        self.answers().map(drop)
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Reads until the kernel says that this was all, or that it failed; nothing where a dump was interrupted.
    fn answers(&self) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < 16 || length > rest.len() {
                    let why = format!("the kernel's message says {length} bytes of {}", rest.len());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                // A kernel newer than the package may say what the package does not read; that is none of ours.
                whole &= u16::from_ne_bytes([rest[6], rest[7]]) & INTERRUPTED == 0;
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]).map(|m| m.payload) {
                    Ok(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(error.to_io()),
                    Ok(NetlinkPayload::Done(_) | NetlinkPayload::Error(_)) => {
                        return Ok(whole.then_some(found));
                    }
                    Ok(NetlinkPayload::InnerMessage(message)) => found.push(message),
                    Ok(_) | Err(_) => {}
                }
                rest = &rest[rest.len().min(length.next_multiple_of(4))..];
            }
        }
    }
}
