//! What EC2 and IMDS tell about the node: plain values, one struct per thing that an answer describes.

use super::id::{AttachmentId, EniId, GroupId, InstanceId, Mac, SubnetId, VpcId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Tags of a resource, key to value.
pub type Tags = BTreeMap<String, String>;

/// What kind of interface it is (`InterfaceType` of DescribeNetworkInterfaces).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceKind {
    /// `interface`: an ordinary one.
    Standard,
    /// `trunk`: carries branch interfaces; never given pod addresses here.
    Trunk,
    /// `branch`: below a trunk.
    Branch,
    /// `efa`: an Elastic Fabric Adapter with IP addresses.
    Efa,
    /// `efa-only`: an Elastic Fabric Adapter without IP addresses.
    EfaOnly,
    /// Anything else (NAT gateways, load balancers …): never ours.
    Other,
}

impl InterfaceKind {
    /// Reads EC2's word; a word that is not known is [`InterfaceKind::Other`].
    pub fn from_word(word: &str) -> Self {
        match word {
            "interface" => Self::Standard,
            "trunk" => Self::Trunk,
            "branch" => Self::Branch,
            "efa" => Self::Efa,
            "efa-only" => Self::EfaOnly,
            _ => Self::Other,
        }
    }

    /// EC2's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Standard => "interface",
            Self::Trunk => "trunk",
            Self::Branch => "branch",
            Self::Efa => "efa",
            Self::EfaOnly => "efa-only",
            Self::Other => "other",
        }
    }
}

/// `Status` of DescribeNetworkInterfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceStatus {
    /// Being made.
    Pending,
    /// Exists and is attached to nothing.
    Available,
    /// An instance is about to take it (`associated`, `attaching`).
    Attaching,
    /// Attached.
    InUse,
    /// Being taken off its instance.
    Detaching,
}

/// To what an interface is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Names the attachment in detach and modify calls.
    pub id: AttachmentId,
    /// The instance; `None` for attachments that AWS services make.
    pub instance: Option<InstanceId>,
    /// Device index on the network card; 0 on card 0 is the primary interface.
    pub device_index: u32,
    /// Network card; 0 unless the type has several.
    pub network_card: u32,
    /// Whether EC2 deletes the interface with the instance.
    pub delete_on_termination: bool,
}

/// An interface as DescribeNetworkInterfaces and CreateNetworkInterface tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id.
    pub id: EniId,
    /// Its MAC address.
    pub mac: Mac,
    /// Ordinary, trunk, EFA …
    pub kind: InterfaceKind,
    /// Where it is in its life.
    pub status: InterfaceStatus,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Availability zone name, `eu-west-1a`.
    pub zone: String,
    /// Its security groups.
    pub groups: Vec<GroupId>,
    /// The primary private IPv4 address.
    pub primary: Ipv4Addr,
    /// Secondary private IPv4 addresses, without those inside prefixes.
    pub secondary: Vec<Ipv4Addr>,
    /// Delegated /28 prefixes.
    pub prefixes: Vec<Ipv4Net>,
    /// Its tags.
    pub tags: Tags,
    /// Its description.
    pub description: String,
    /// `None` while it is attached to nothing.
    pub attachment: Option<Attachment>,
}

/// An instance as DescribeInstances tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its type, `m5.large`.
    pub instance_type: String,
    /// Subnet of the primary interface.
    pub subnet: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Availability zone name.
    pub zone: String,
    /// Attached interfaces: id, device index, network card.
    pub interfaces: Vec<(EniId, u32, u32)>,
}

/// A subnet as DescribeSubnets tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Availability zone name.
    pub zone: String,
    /// Its IPv4 block.
    pub cidr: Ipv4Net,
    /// `AvailableIpAddressCount`.
    pub free: u32,
    /// Its tags.
    pub tags: Tags,
}

/// A security group as DescribeSecurityGroups tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: GroupId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its name, for messages.
    pub name: String,
}

/// How many interfaces a network card takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// `NetworkCardIndex`.
    pub index: u32,
    /// `MaximumNetworkInterfaces` on this card.
    pub interfaces: u32,
}

/// What an instance type can take, as `NetworkInfo` of DescribeInstanceTypes tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The type, `m5.4xlarge`.
    pub instance_type: String,
    /// `MaximumNetworkInterfaces`, over all cards.
    pub interfaces: u32,
    /// `Ipv4AddressesPerInterface`, the primary address included.
    pub addresses: u32,
    /// `DefaultNetworkCardIndex`.
    pub default_card: u32,
    /// The network cards, by index. Never empty.
    pub cards: Vec<Card>,
    /// Whether /28 prefixes may be delegated: Nitro hypervisor, or bare metal.
    pub nitro: bool,
}

/// The part of the instance identity document that the allocator needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `instanceId`.
    pub instance: InstanceId,
    /// `instanceType`.
    pub instance_type: String,
    /// `availabilityZone`.
    pub zone: String,
    /// `region`.
    pub region: String,
}

/// An interface as IMDS tells it, below `network/interfaces/macs/<mac>/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataInterface {
    /// The folder's name.
    pub mac: Mac,
    /// `interface-id`.
    pub id: EniId,
    /// `device-number`; 0 on card 0 is the primary interface.
    pub device_index: u32,
    /// `network-card`; absent means 0.
    pub network_card: u32,
    /// `subnet-id`.
    pub subnet: SubnetId,
    /// `subnet-ipv4-cidr-block`.
    pub subnet_cidr: Ipv4Net,
    /// `vpc-id`.
    pub vpc: VpcId,
    /// `vpc-ipv4-cidr-blocks`, all of them.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// `security-group-ids`.
    pub groups: Vec<GroupId>,
    /// `local-ipv4s`: the primary address first, then the secondary ones. Empty for `efa-only` interfaces.
    pub addresses: Vec<Ipv4Addr>,
    /// `ipv4-prefix`; absent means none.
    pub prefixes: Vec<Ipv4Net>,
}
