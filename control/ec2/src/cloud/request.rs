//! What the allocator sends: requests as values, so that one can stand in the checkpoint and be sent again unchanged.

use super::id::{EniId, GroupId, InstanceId, SubnetId, VpcId};
use super::interface::Tags;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// How much is asked of EC2 at once: EC2 takes addresses or prefixes, never both in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// `SecondaryPrivateIpAddressCount`.
    Addresses(u32),
    /// `Ipv4PrefixCount`: this many /28.
    Prefixes(u32),
}

/// Addresses and prefixes on an interface, as one call adds or removes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Secondary addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// /28 prefixes.
    pub prefixes: Vec<Ipv4Net>,
}

/// `CreateNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInterface {
    /// `ClientToken`, at most 64 ASCII characters: makes a repeated call find what the first one made.
    pub token: String,
    /// Where.
    pub subnet: SubnetId,
    /// Its groups; never empty.
    pub groups: Vec<GroupId>,
    /// `Description`.
    pub description: String,
    /// Tags at creation (`TagSpecification` for `network-interface`).
    pub tags: Tags,
    /// What it carries from the beginning beside its primary address; a count of 0 asks for nothing.
    pub amount: Amount,
}

/// `AttachNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachInterface {
    /// What.
    pub eni: EniId,
    /// To which instance.
    pub instance: InstanceId,
    /// At which device index of the card.
    pub device_index: u32,
    /// On which network card.
    pub network_card: u32,
}

/// Which interfaces to describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceFilter {
    /// These ids (`NetworkInterfaceId.N`); one that does not exist makes the call fail with `Gone`.
    Ids(Vec<EniId>),
    /// `attachment.instance-id`: all that are attached to the instance.
    AttachedTo(InstanceId),
    /// `status=available`, `vpc-id`, `tag:KEY=VALUE` for each given value and `tag-key=KEY` where the value is `None`.
    Available {
        /// `vpc-id`.
        vpc: VpcId,
        /// Tags that must be there.
        tags: Vec<(String, Option<String>)>,
    },
}

/// Which subnets to describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubnetFilter {
    /// These ids (`SubnetId.N`); one that does not exist makes the call fail with `Gone`.
    Ids(Vec<SubnetId>),
    /// `vpc-id` and `availability-zone`.
    Zone {
        /// `vpc-id`.
        vpc: VpcId,
        /// `availability-zone`.
        zone: String,
    },
}
