//! What the kernel's connection tracking knows, read once over netlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! An entry has two tuples: how the originator sends, and what the answers look like. The second one reversed is the first
//! one after the kernel's NAT.

mod entry;

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use sluice_engine::worker::Known;

/// `NFNL_SUBSYS_CTNETLINK` above, `IPCTNL_MSG_CT_GET` below.
const GET: u16 = 0x0101;
/// `IPCTNL_MSG_CT_NEW`: an entry of a dump.
const ENTRY: u16 = 0x0100;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const HEADER: usize = 16;
/// Behind the netlink header: `struct nfgenmsg`.
const NFGENMSG: usize = 4;
const AF_INET: u8 = 2;
/// How often a dump is repeated that the table moved under.
const AGAIN: usize = 3;

/// What a dump has given.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// The connections that the engine can follow.
    pub(crate) connections: Vec<Known>,
    /// Entries that it cannot: another zone than the default one, or a tuple that is no connection's.
    pub(crate) unreadable: u64,
}

/// Every IPv4 connection that the kernel tracks in this network namespace.
///
/// # Errors
/// The kernel has no ctnetlink, or refuses: `CAP_NET_ADMIN` is needed in the namespace's user namespace.
pub(crate) fn dump() -> io::Result<Dump> {
    let mut again = AGAIN;
    loop {
        let (dump, torn) = dump_once()?;
        if !torn || again == 0 {
            return Ok(dump);
        }
        again -= 1;
    }
}

fn dump_once() -> io::Result<(Dump, bool)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut request = Vec::with_capacity(HEADER + NFGENMSG);
    request.extend_from_slice(&((HEADER + NFGENMSG) as u32).to_ne_bytes());
    request.extend_from_slice(&GET.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[AF_INET, 0, 0, 0]);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let (mut dump, mut torn) = (Dump::default(), false);
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for message in Messages(&bytes) {
            let Message { kind, flags, payload } = message?;
            torn |= flags & NLM_F_DUMP_INTR != 0;
            match kind {
                NLMSG_DONE => return Ok((dump, torn)),
                NLMSG_ERROR => return Err(refusal(payload)),
                ENTRY => match payload.get(NFGENMSG..).and_then(entry::read) {
                    Some(known) => dump.connections.push(known),
                    None => dump.unreadable += 1,
                },
                _ => {}
            }
        }
    }
}

/// The errno of `struct nlmsgerr`, negative as the kernel writes it.
fn refusal(payload: &[u8]) -> io::Error {
    let number = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(number.wrapping_neg())
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [a, b, c, d, e, f, g, h, ..] = *header;
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(payload) = self.0.get(HEADER..len) else {
            let error = format!("ctnetlink: a length of {len} in {} bytes", self.0.len());
            self.0 = &[];
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        };
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok(Message { kind: u16::from_ne_bytes([e, f]), flags: u16::from_ne_bytes([g, h]), payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_and_a_wrong_length_ends_them() {
        let message = |len: u32, kind: u16| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.resize(20, 0);
            bytes
        };
        let two = [message(20, ENTRY), message(20, NLMSG_DONE)].concat();
        let kinds: Vec<_> = Messages(&two).map(|m| m.map(|m| (m.kind, m.payload.len())).unwrap()).collect();
        assert_eq!(kinds, [(ENTRY, 4), (NLMSG_DONE, 4)]);
        for wrong in [0, 15, 21, u32::MAX] {
            let bytes = message(wrong, ENTRY);
            let mut messages = Messages(&bytes);
            assert!(messages.next().unwrap().is_err(), "{wrong}");
            assert!(messages.next().is_none());
        }
        assert_eq!(refusal(&(-1i32).to_ne_bytes()).raw_os_error(), Some(1));
    }
}
