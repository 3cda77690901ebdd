//! The veth of a pod, laid as the VPC CNI lays it, over rtnetlink alone: a `/sys` of another namespace lies.
//!
//! ```text
//!   pod's namespace                                   node's namespace
//!   eth0  A/32  ───────────────────────────────────── eni0123456789a
//!   169.254.1.1/32 dev eth0 scope link                A/32 dev eni0123456789a scope link   (main table)
//!   default via 169.254.1.1 dev eth0
//!   169.254.1.1 lladdr MAC-of-the-host's-end PERMANENT
//! ```
//!
//! It is made inside the pod's namespace with its other end put into the node's at once: no moment in which the pod's
//! end is somebody else's to find.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};
use sluice_netlink::Netlink;
use sluice_state::Mac;

use crate::error::{CniError, Code};
use crate::protocol::GATEWAY;

/// The namespace that this process is in.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// `ENODEV`: no such link.
const NO_DEVICE: i32 = 19;

/// What the kernel does not do, or who cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum VethError {
    /// The pod's namespace.
    #[error("the network namespace {} cannot be entered: {source}", path.display())]
    Namespace {
        /// `CNI_NETNS`.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that was asked of rtnetlink.
    #[error("rtnetlink: {what}: {source}")]
    Kernel {
        /// What.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The name is taken in the pod's namespace.
    #[error("{interface} is already in {}: the container has it from somebody else, or was added before", netns.display())]
    Taken {
        /// `CNI_IFNAME`.
        interface: String,
        /// `CNI_NETNS`.
        netns: PathBuf,
    },
}

impl From<VethError> for CniError {
    fn from(error: VethError) -> Self {
        let message = error.to_string();
        match error {
            VethError::Namespace { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(Code::Kernel, message).with("the runtime must run plugins with CAP_SYS_ADMIN")
            }
            VethError::Namespace { .. } | VethError::Taken { .. } => {
                Self::new(Code::InvalidEnvironment, message)
            }
            VethError::Kernel { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(Code::Kernel, message).with("the runtime must run plugins with CAP_NET_ADMIN")
            }
            VethError::Kernel { .. } => Self::new(Code::Kernel, message),
        }
    }
}

fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> VethError {
    move |source| VethError::Kernel { what: what.into(), source }
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// It is one end of a veth.
    pub is_veth: bool,
}

/// What is to be laid.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The pod's end.
    pub interface: &'a str,
    /// The host's end.
    pub host_interface: &'a str,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// Both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Veth {
    /// The pod's.
    pub pod: Link,
    /// The host's.
    pub host: Link,
}

/// The node's namespace.
#[derive(Debug)]
pub struct Node {
    netlink: Netlink,
    namespace: File,
}

/// The pod's namespace beside the node's. No thread of this process stays in the pod's.
#[derive(Debug)]
pub struct Sandbox {
    node: Node,
    netlink: Netlink,
    path: PathBuf,
}

impl Node {
    /// The namespace that this thread is in.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn open() -> Result<Self, VethError> {
        let netlink = Netlink::open().map_err(kernel("opening a socket"))?;
        let namespace = File::open(OWN_NAMESPACE).map_err(kernel(format!("opening {OWN_NAMESPACE}")))?;
        Ok(Self { netlink, namespace })
    }

    /// A link by its name.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link(&self, name: &str) -> Result<Option<Link>, VethError> {
        link(&self.netlink, name)
    }

    /// Removes a veth by the name of its end here; one that is gone already is no error, and what is no veth stays.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, name: &str) -> Result<(), VethError> {
        remove(&self.netlink, name)
    }
}

impl Sandbox {
    /// The namespace at `path`, which a thread of its own enters.
    ///
    /// # Errors
    /// There is none, or it may not be entered.
    pub fn open(path: &Path) -> Result<Self, VethError> {
        let node = Node::open()?;
        let enter = |source| VethError::Namespace { path: path.to_owned(), source };
        let namespace = File::open(path).map_err(enter)?;
        // A namespace is a thread's, and a socket stays in the one that it was opened in.
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Netlink::open()
        });
        let netlink = thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that enters it has panicked")))
            .map_err(enter)?;
        Ok(Self { node, netlink, path: path.to_owned() })
    }

    /// The node's side.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A link of the pod by its name.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link(&self, name: &str) -> Result<Option<Link>, VethError> {
        link(&self.netlink, name)
    }

    /// Removes the pod's veth by the name of its end here, as [`Node::remove`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, name: &str) -> Result<(), VethError> {
        remove(&self.netlink, name)
    }

    /// Lays a veth. A link of the node that has the host's end's name, of a sandbox before or of an ADD that was killed,
    /// is removed. Whatever fails, nothing of it stays.
    ///
    /// # Errors
    /// The pod has such a link already, or the kernel refuses.
    pub fn lay(&self, plan: &Plan<'_>) -> Result<Veth, VethError> {
        if self.link(plan.interface)?.is_some() {
            return Err(VethError::Taken { interface: plan.interface.to_owned(), netns: self.path.clone() });
        }
        self.create(plan)?;
        self.furnish(plan).inspect_err(|_| {
            // The error that is told is the first one.
            let _ = self.remove(plan.interface);
        })
    }

    fn create(&self, plan: &Plan<'_>) -> Result<(), VethError> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(plan.host_interface.to_owned()));
        peer.attributes.push(LinkAttribute::Mtu(plan.mtu));
        peer.attributes.push(LinkAttribute::NetNsFd(self.node.namespace.as_raw_fd()));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(plan.interface.to_owned()));
        link.attributes.push(LinkAttribute::Mtu(plan.mtu));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let create = || self.netlink.create(RouteNetlinkMessage::NewLink(link.clone()));
        let made = match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.node.remove(plan.host_interface)?;
                create()
            }
            made => made,
        };
        made.map_err(kernel(format!("making the veth {} - {}", plan.interface, plan.host_interface)))
    }

    fn furnish(&self, plan: &Plan<'_>) -> Result<Veth, VethError> {
        let gone = |name: &str| VethError::Kernel {
            what: format!("looking at {name}, which was just made"),
            source: io::ErrorKind::NotFound.into(),
        };
        let pod = self.link(plan.interface)?.ok_or_else(|| gone(plan.interface))?;
        let host = self.node.link(plan.host_interface)?.ok_or_else(|| gone(plan.host_interface))?;
        let (inside, outside) = (&self.netlink, &self.node.netlink);
        let done = |what: &str, result: io::Result<()>| result.map_err(kernel(what));
        done("raising the host's end", outside.change(RouteNetlinkMessage::SetLink(up(host.ifindex))))?;
        done(
            "giving the pod its address",
            inside.create(RouteNetlinkMessage::NewAddress(address(pod.ifindex, plan.address))),
        )?;
        done("raising the pod's end", inside.change(RouteNetlinkMessage::SetLink(up(pod.ifindex))))?;
        let gateway = route(GATEWAY, 32, pod.ifindex, None);
        done("the pod's route to its gateway", inside.replace(RouteNetlinkMessage::NewRoute(gateway)))?;
        let default = route(Ipv4Addr::UNSPECIFIED, 0, pod.ifindex, Some(GATEWAY));
        done("the pod's default route", inside.replace(RouteNetlinkMessage::NewRoute(default)))?;
        let neighbour = neighbour(pod.ifindex, GATEWAY, host.mac);
        done("the pod's gateway", inside.replace(RouteNetlinkMessage::NewNeighbour(neighbour)))?;
        let back = route(plan.address, 32, host.ifindex, None);
        done("the node's route to the pod", outside.replace(RouteNetlinkMessage::NewRoute(back)))?;
        Ok(Veth { pod, host })
    }

    /// What of a veth is not as it was laid; nothing where all is.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn differs(&self, plan: &Plan<'_>) -> Result<Option<String>, VethError> {
        let Some(pod) = self.link(plan.interface)? else {
            return Ok(Some(format!("{} is not in {}", plan.interface, self.path.display())));
        };
        if self.node.link(plan.host_interface)?.is_none() {
            return Ok(Some(format!("the host's end {} is gone", plan.host_interface)));
        }
        let mut question = AddressMessage::default();
        question.header.family = AddressFamily::Inet;
        let addresses = self.netlink.dump(&RouteNetlinkMessage::GetAddress(question));
        let wanted = IpAddr::V4(plan.address);
        let has =
            addresses.map_err(kernel("listing the pod's addresses"))?.iter().any(|message| match message {
                RouteNetlinkMessage::NewAddress(address) => {
                    address.header.index == pod.ifindex
                        && address.attributes.contains(&AddressAttribute::Local(wanted))
                }
                _ => false,
            });
        if !has {
            return Ok(Some(format!("{} does not have the address {}", plan.interface, plan.address)));
        }
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        let routes = self.netlink.dump(&RouteNetlinkMessage::GetRoute(question));
        let leads = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewRoute(route) => {
                route.header.destination_prefix_length == 0
                    && route.attributes.contains(&RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)))
                    && route.attributes.contains(&RouteAttribute::Oif(pod.ifindex))
            }
            _ => false,
        };
        if !routes.map_err(kernel("listing the pod's routes"))?.iter().any(leads) {
            return Ok(Some(format!("the pod's default route via {GATEWAY} is gone")));
        }
        Ok(None)
    }
}

fn link(netlink: &Netlink, name: &str) -> Result<Option<Link>, VethError> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answers = match netlink.ask(RouteNetlinkMessage::GetLink(question)) {
        Ok(answers) => answers,
        Err(error) if error.raw_os_error() == Some(NO_DEVICE) => return Ok(None),
        Err(error) => return Err(kernel(format!("looking for {name}"))(error)),
    };
    Ok(answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
        _ => None,
    }))
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link { ifindex: message.header.index, mac: Mac::default(), is_veth: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).map(Mac).unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                link.is_veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    link
}

fn remove(netlink: &Netlink, name: &str) -> Result<(), VethError> {
    let Some(link) = link(netlink, name)?.filter(|link| link.is_veth) else { return Ok(()) };
    let mut message = LinkMessage::default();
    message.header.index = link.ifindex;
    match netlink.change(RouteNetlinkMessage::DelLink(message)) {
        // Its other end went meanwhile, and it with that.
        Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(()),
        done => done.map_err(kernel(format!("removing {name}"))),
    }
}

fn up(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn address(ifindex: u32, address: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
    message
}

fn route(destination: Ipv4Addr, length: u8, ifindex: u32, via: Option<Ipv4Addr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = length;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if length > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    }
    if let Some(via) = via {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(via)));
    }
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message
}

fn neighbour(ifindex: u32, address: Ipv4Addr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message.attributes.push(NeighbourAttribute::LinkLocalAddress(mac.0.to_vec()));
    message
}
