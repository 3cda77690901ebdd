//! What the kernel knows of this host, mirrored over rtnetlink: links, addresses and neighbours.
//!
//! The engine never asks the kernel anything; it is given what it must know with a snapshot. This is where that comes
//! from: one dump at start, then every change as the kernel reports it. Never from `/sys/class/net`, which shows the
//! namespace that sysfs was mounted in, not the one this process lives in.

mod netlink;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use sluice_state::Mac;

pub use netlink::{HostError, Monitor, Neighbours};

/// kube-proxy in IPVS mode puts every service address on this interface; they are not addresses of the node.
const KUBE_IPVS: &str = "kube-ipvs0";

/// The host's links, addresses and neighbours at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    links: BTreeMap<u32, Link>,
    /// Index by name.
    names: BTreeMap<String, u32>,
    addresses: BTreeMap<(u32, Ipv4Addr), ()>,
    neighbours: BTreeMap<(u32, Ipv4Addr), Mac>,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; all zero for one without.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its kind as the kernel names it (`veth`, `tun`); empty for hardware.
    pub kind: String,
}

impl Host {
    /// Asks the kernel for everything.
    ///
    /// # Errors
    /// The netlink socket failed.
    pub fn dump() -> Result<Self, HostError> {
        let mut host = Self::default();
        for message in netlink::dump()? {
            host.apply(&message);
        }
        Ok(host)
    }

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.get(self.names.get(name)?)
    }

    /// The link of this index.
    #[must_use]
    pub fn link_at(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// Every link in the order of the indices.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Every IPv4 address that the kernel takes packets for, save those of services on `kube-ipvs0`. Sorted, once each.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<Ipv4Addr> {
        let ipvs = self.link(KUBE_IPVS).map(|link| link.ifindex);
        let own = self.addresses.keys().filter(|(ifindex, _)| Some(*ifindex) != ipvs);
        let mut addresses: Vec<Ipv4Addr> = own.map(|(_, address)| *address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Every neighbour whose Ethernet address is known: interface index, address, Ethernet address.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, Ipv4Addr, Mac)> {
        self.neighbours.iter().map(|((ifindex, ip), mac)| (*ifindex, *ip, *mac))
    }

    /// The Ethernet address of one neighbour.
    #[must_use]
    pub fn neighbour(&self, ifindex: u32, address: Ipv4Addr) -> Option<Mac> {
        self.neighbours.get(&(ifindex, address)).copied()
    }

    /// Brings one message of the kernel's in; true when it changed anything that is kept.
    fn apply(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let netlink_packet_core::NetlinkPayload::InnerMessage(message) = &message.payload else {
            return false;
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => self.delete_link(link.header.index),
            RouteNetlinkMessage::NewAddress(address) => {
                ipv4_of(address).is_some_and(|key| self.addresses.insert(key, ()).is_none())
            }
            RouteNetlinkMessage::DelAddress(address) => {
                ipv4_of(address).is_some_and(|key| self.addresses.remove(&key).is_some())
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.new_neighbour(neighbour),
            RouteNetlinkMessage::DelNeighbour(neighbour) => {
                neighbour_key(neighbour).is_some_and(|key| self.neighbours.remove(&key).is_some())
            }
            _ => false,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> bool {
        // Bridges report their ports by messages of their own family without most attributes.
        let mut name = None;
        let mut link = Link {
            ifindex: message.header.index,
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            kind: String::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).map(Mac).unwrap_or_default();
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind_name(kind);
                        }
                    }
                }
                _ => {}
            }
        }
        let Some(name) = name.filter(|_| link.mtu > 0) else { return false };
        link.name = name;
        let before = self.links.insert(link.ifindex, link.clone());
        if before.as_ref() == Some(&link) {
            return false;
        }
        if let Some(before) = before {
            self.forget_name(&before);
        }
        self.names.insert(link.name, link.ifindex);
        true
    }

    fn delete_link(&mut self, ifindex: u32) -> bool {
        self.addresses.retain(|(i, _), ()| *i != ifindex);
        self.neighbours.retain(|(i, _), _| *i != ifindex);
        let gone = self.links.remove(&ifindex);
        gone.inspect(|link| self.forget_name(link)).is_some()
    }

    /// Two links may have swapped names, and the other one's message came first.
    fn forget_name(&mut self, link: &Link) {
        if self.names.get(&link.name) == Some(&link.ifindex) {
            self.names.remove(&link.name);
        }
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let Some(key) = neighbour_key(message) else { return false };
        let usable = matches!(
            message.header.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLocalAddress(bytes) => {
                <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac)
            }
            _ => None,
        });
        match mac.filter(|_| usable) {
            Some(mac) => self.neighbours.insert(key, mac) != Some(mac),
            None => self.neighbours.remove(&key).is_some(),
        }
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Veth => "veth".into(),
        InfoKind::Tun => "tun".into(),
        InfoKind::Vlan => "vlan".into(),
        InfoKind::Dummy => "dummy".into(),
        InfoKind::Other(name) => name.clone(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn ipv4_of(message: &AddressMessage) -> Option<(u32, Ipv4Addr)> {
    // IFA_LOCAL is the interface's own address; IFA_ADDRESS is the peer's on a point-to-point link.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    };
    message.attributes.iter().find_map(own).map(|ip| (message.header.index, ip))
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, Ipv4Addr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((message.header.ifindex, *ip)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
