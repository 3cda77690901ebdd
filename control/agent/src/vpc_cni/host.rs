//! What the node's kernel has: links, the routes that lead to pods, and the rules that choose a table.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};
use sluice_netlink::Netlink;
use sluice_state::Mac;

/// The main table, `RT_TABLE_MAIN`.
pub(crate) const MAIN: u32 = 254;

/// Why the kernel cannot be asked, or does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[error("rtnetlink: {what}: {source}{}", if source.raw_os_error() == Some(1) { " (CAP_NET_ADMIN is needed)" } else { "" })]
pub struct HostError {
    what: String,
    source: io::Error,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError { what: what.into(), source }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The Ethernet address of the other end, where it is a veth whose other end can be asked.
    pub peer_mac: Option<Mac>,
    /// Its own Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
}

/// A rule that chooses a table by source, destination and mark, and by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its place among the rules: lower comes first.
    pub priority: u32,
    /// The source; absent: any.
    pub from: Option<Ipv4Net>,
    /// The destination; absent: any.
    pub to: Option<Ipv4Net>,
    /// Mark and mask; absent: any.
    pub mark: Option<(u32, u32)>,
    /// The table that it chooses.
    pub table: u32,
}

/// As `ip rule` takes it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.priority)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        match self.table {
            MAIN => write!(f, " lookup main"),
            table => write!(f, " lookup {table}"),
        }
    }
}

/// The node, as its kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Every link by its index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses that the main table leads to a link by a route of their own, as it does for pods.
    pub pods: BTreeMap<Ipv4Addr, u32>,
    /// The link of each table's default route.
    pub defaults: BTreeMap<u32, u32>,
    /// The rules that are read here; others concern nobody here.
    pub rules: Vec<Rule>,
}

impl Host {
    /// Asks the kernel, in this thread's network namespace.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn read() -> Result<Self, HostError> {
        let netlink = Netlink::open().map_err(failed("opening a socket"))?;
        let mut host = Self::default();
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        // Links last: a pod whose veth is younger than the routes is left alone.
        for (what, question) in [
            ("listing rules", RouteNetlinkMessage::GetRule(rule)),
            ("listing routes", RouteNetlinkMessage::GetRoute(route)),
            ("listing links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        ] {
            for message in netlink.dump(&question).map_err(failed(what))? {
                match message {
                    RouteNetlinkMessage::NewRule(rule) => host.rules.extend(rule_of(&rule)),
                    RouteNetlinkMessage::NewRoute(route) => host.route(&route),
                    RouteNetlinkMessage::NewLink(link) => host.link(&link),
                    _ => {}
                }
            }
        }
        host.rules.sort_unstable();
        Ok(host)
    }

    /// The link of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The name of the link that a table's default route leaves by.
    #[must_use]
    pub fn default_link(&self, table: u32) -> Option<&str> {
        self.defaults.get(&table).and_then(|ifindex| self.links.get(ifindex)).map(|link| link.name.as_str())
    }

    fn link(&mut self, message: &LinkMessage) {
        let (mut name, mut peer, mut namespace, mut veth) = (None, None, None, false);
        let (mut mac, mut mtu) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
                LinkAttribute::Address(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
                }
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
                LinkAttribute::LinkInfo(infos) => {
                    veth |= infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        let Some(name) = name else { return };
        let peer_mac = match (veth, peer, namespace) {
            (true, Some(peer), Some(namespace)) => mac_of(peer, namespace),
            _ => None,
        };
        let ifindex = message.header.index;
        self.links.insert(ifindex, Link { name, ifindex, peer_mac, mac, mtu });
    }

    fn route(&mut self, message: &RouteMessage) {
        let (mut destination, mut out) = (None, None);
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
                RouteAttribute::Oif(ifindex) => out = Some(*ifindex),
                RouteAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        match (message.header.destination_prefix_length, destination, out) {
            (0, _, Some(out)) => {
                self.defaults.entry(table).or_insert(out);
            }
            (32, Some(address), Some(out)) if table == MAIN => {
                self.pods.insert(address, out);
            }
            _ => {}
        }
    }
}

/// A pod's end, asked in its own namespace by the number that this one knows it by (`IFLA_TARGET_NETNSID`, Linux 4.20): no
/// process of the pod has to be found, and no namespace entered.
fn mac_of(ifindex: u32, namespace: i32) -> Option<Mac> {
    let mut question = LinkMessage::default();
    question.header.index = ifindex;
    question.attributes.push(LinkAttribute::IfNetnsId(namespace));
    let answers = match Netlink::open().and_then(|own| own.ask(RouteNetlinkMessage::GetLink(question))) {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(ifindex, namespace, %error, "the other end of a veth cannot be asked");
            return None;
        }
    };
    answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            _ => None,
        }),
        _ => None,
    })
}

/// A rule of the kind that is read here. One that also looks at anything else is somebody else's.
fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let plain = header.action == RuleAction::ToTable && header.tos == 0 && header.flags.is_empty();
    let mut rule = Rule { priority: 0, from: None, to: None, mark: None, table: u32::from(header.table) };
    let (mut mark, mut mask) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(IpAddr::V4(address)) => {
                rule.from = Some(Ipv4Net::new(*address, header.src_len).ok()?);
            }
            RuleAttribute::Destination(IpAddr::V4(address)) => {
                rule.to = Some(Ipv4Net::new(*address, header.dst_len).ok()?);
            }
            RuleAttribute::FwMark(bits) => mark = Some(*bits),
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            // Who made it, and that no prefix is suppressed.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    rule.mark = mark.map(|mark| (mark, mask.unwrap_or(u32::MAX)));
    plain.then_some(rule)
}

/// Raises a link with this MTU and gives it an address, without the route that the kernel would make of it (VPC CNI: a
/// secondary ENI's). What is so already stays so.
pub(crate) fn furnish(ifindex: u32, mtu: Option<u32>, address: Ipv4Net) -> Result<(), HostError> {
    let netlink = Netlink::open().map_err(failed("opening a socket"))?;
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    if let Some(mtu) = mtu {
        link.attributes.push(LinkAttribute::Mtu(mtu));
        let set = netlink.change(RouteNetlinkMessage::SetLink(link.clone()));
        set.map_err(failed(format!("setting the MTU of link {ifindex} to {mtu} (AWS_VPC_ENI_MTU)")))?;
        link.attributes.clear();
    }
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let raised = netlink.change(RouteNetlinkMessage::SetLink(link));
    raised.map_err(failed(format!("raising link {ifindex}")))?;
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix_len();
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(address.addr())));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(address.addr())));
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    let given = netlink.replace(RouteNetlinkMessage::NewAddress(message));
    given.map_err(failed(format!("giving link {ifindex} the address {address}")))
}

fn message_of(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(IpAddr::V4(from.addr())));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(IpAddr::V4(to.addr())));
    }
    if let Some((mark, mask)) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    message
}

/// Removes a rule, unless it was gone already.
pub(crate) fn remove_rule(rule: Rule) -> Result<(), HostError> {
    let netlink = Netlink::open().map_err(failed("opening a socket"))?;
    match netlink.change(RouteNetlinkMessage::DelRule(message_of(rule))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(failed(format!("removing the rule `{rule}`"))),
    }
}

/// Adds a rule, unless it is there already.
pub(crate) fn add_rule(rule: Rule) -> Result<(), HostError> {
    let netlink = Netlink::open().map_err(failed("opening a socket"))?;
    match netlink.create(RouteNetlinkMessage::NewRule(message_of(rule))) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map_err(failed(format!("adding the rule `{rule}`"))),
    }
}
