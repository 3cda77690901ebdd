//! The rtnetlink sockets: dump, monitor, and the request to resolve a neighbour.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Host;

/// `RTNLGRP_*` of `linux/rtnetlink.h`.
const GROUP_LINK: u32 = 1;
const GROUP_NEIGHBOUR: u32 = 3;
const GROUP_IPV4_ADDRESS: u32 = 5;
/// Receive buffer of the monitor: a burst of 10,000 pods' links fits.
const MONITOR_BUFFER: usize = 4 << 20;
/// Changes within this time are published together.
const COALESCE: Duration = Duration::from_millis(20);

/// Why the kernel's view of the host could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A netlink call failed.
    #[error("rtnetlink: {what}: {source}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel sent what cannot be read.
    #[error("rtnetlink: a message of the kernel's does not parse: {0}")]
    Parse(String),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Netlink { what, source }
}

fn socket() -> Result<Socket, HostError> {
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("opening a socket"))?;
    socket.bind_auto().map_err(failed("binding a socket"))?;
    Ok(socket)
}

/// Links, IPv4 addresses and neighbours, as the kernel lists them.
pub(super) fn dump() -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, HostError> {
    let socket = socket()?;
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    let mut all = Vec::new();
    for question in [
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        RouteNetlinkMessage::GetAddress(address),
        RouteNetlinkMessage::GetNeighbour(neighbour),
    ] {
        send(&socket, question, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut done = false;
        while !done {
            let (bytes, _) = socket.recv_from_full().map_err(failed("reading a dump"))?;
            for message in parse(&bytes)? {
                match &message.payload {
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) => {
                        return Err(HostError::Netlink { what: "dumping", source: error.to_io() });
                    }
                    _ => all.push(message),
                }
            }
        }
    }
    Ok(all)
}

fn send(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> Result<(), HostError> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(failed("sending a request"))?;
    Ok(())
}

fn parse(mut bytes: &[u8]) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, HostError> {
    let mut messages = Vec::new();
    while bytes.len() >= 16 {
        let len = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if len < 16 || len > bytes.len() {
            return Err(HostError::Parse(format!("a length of {len} in {} bytes", bytes.len())));
        }
        // A kernel newer than the package may send attributes that it refuses; the message is then skipped, as it
        // concerns something that this daemon does not know either.
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..len]) {
            Ok(message) => messages.push(message),
            Err(error) => tracing::debug!(%error, "a netlink message is skipped"),
        }
        bytes = &bytes[bytes.len().min(len.next_multiple_of(4))..];
    }
    Ok(messages)
}

/// The thread that follows the kernel's changes.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Subscribes, dumps, and calls `changed` from a thread of its own with the whole host whenever anything in it
    /// changed. Returns the host as it is now, so that no change is missed in between.
    ///
    /// # Errors
    /// The netlink sockets failed.
    pub fn start(changed: impl FnMut(&Host) + Send + 'static) -> Result<(Host, Self), HostError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("opening a socket"))?;
        socket.bind_auto().map_err(failed("binding a socket"))?;
        for group in [GROUP_LINK, GROUP_NEIGHBOUR, GROUP_IPV4_ADDRESS] {
            socket.add_membership(group).map_err(failed("subscribing"))?;
        }
        // Refused without CAP_NET_ADMIN in the initial namespace; then the default size is what there is.
        let _ = socket.set_rx_buf_sz(MONITOR_BUFFER);
        socket.set_non_blocking(true).map_err(failed("making a socket non-blocking"))?;
        let host = Host::dump()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (host.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("sluice-netlink".into())
            .spawn(move || follow(&socket, seen, &stopped, changed))
            .map_err(failed("starting the monitor's thread"))?;
        Ok((host, Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread ends within its poll's timeout; a panic in it has aborted the process.
            let _ = thread.join();
        }
    }
}

fn follow(socket: &Socket, mut host: Host, stop: &AtomicBool, mut changed: impl FnMut(&Host)) {
    let mut dirty_since: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let timeout =
            dirty_since.map_or(Duration::from_millis(200), |since| COALESCE.saturating_sub(since.elapsed()));
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        if let Err(error) = poll(&mut fds, timeout)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, fd = socket.as_raw_fd(), "the netlink monitor cannot wait: host changes are missed");
            std::thread::sleep(Duration::from_secs(1));
        }
        if drain(socket, &mut host) {
            dirty_since.get_or_insert_with(Instant::now);
        }
        if dirty_since.is_some_and(|since| since.elapsed() >= COALESCE) {
            dirty_since = None;
            changed(&host);
        }
    }
}

/// Reads what there is; true when the host changed.
fn drain(socket: &Socket, host: &mut Host) -> bool {
    let mut changed = false;
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => match parse(&bytes) {
                Ok(messages) => messages.iter().for_each(|message| changed |= host.apply(message)),
                Err(error) => tracing::warn!(%error, "a netlink notification is skipped"),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                // Notifications were lost: the only truth is a new dump.
                match Host::dump() {
                    Ok(fresh) => {
                        changed |= fresh != *host;
                        *host = fresh;
                    }
                    Err(error) => tracing::error!(%error, "notifications were lost and a new dump failed"),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return changed,
        }
    }
}

/// Asks the kernel to resolve neighbours. The answer comes as a notification.
#[derive(Debug)]
pub struct Neighbours {
    socket: Socket,
}

impl Neighbours {
    /// Opens the socket.
    ///
    /// # Errors
    /// The netlink socket failed.
    pub fn open() -> Result<Self, HostError> {
        let socket = socket()?;
        socket.set_non_blocking(true).map_err(failed("making a socket non-blocking"))?;
        Ok(Self { socket })
    }

    /// Makes the kernel treat the neighbour as used just now (`NTF_USE`): it sends an ARP request when it does not know
    /// the address or has not confirmed it lately. Entries that are permanent stay as they are.
    ///
    /// # Errors
    /// The netlink socket failed.
    pub fn resolve(&self, ifindex: u32, address: Ipv4Addr) -> Result<(), HostError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        send(
            &self.socket,
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK,
        )?;
        // The acknowledgement says whether the interface is there and up; nobody waits for it, the socket is emptied.
        while let Ok((bytes, _)) = self.socket.recv_from_full() {
            for message in parse(&bytes)? {
                if let NetlinkPayload::Error(error) = message.payload
                    && error.code.is_some()
                {
                    tracing::debug!(ifindex, %address, error = %error.to_io(), "the kernel does not resolve");
                }
            }
        }
        Ok(())
    }
}
