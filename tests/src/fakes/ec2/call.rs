//! EC2's calls and answers as types: the query protocol is read into a [`Call`] before the world sees it, and an [`Answer`]
//! is written as XML after it. Names and codes are those of the EC2 API of 2016-11-15.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::objects::{Group, Instance, Interface, Tags, Tracking, Vpc};
use super::shapes::Shape;
use super::world::Subnet;

/// A filter: a name and the values of which one must match; `*` and `?` are wild.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Such as `vpc-id` or `tag:Name`.
    pub name: String,
    /// Alternatives.
    pub values: Vec<String>,
}

/// What every Describe call has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Only these; an unknown one is an error.
    pub ids: Vec<String>,
    /// Only what all of these match.
    pub filters: Vec<Filter>,
    /// Most items of an answer.
    pub max_results: Option<usize>,
    /// Where the last answer ended.
    pub next_token: Option<String>,
}

/// Addresses to add: either a number of them or their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// So many secondary addresses.
    pub count: u32,
    /// These secondary addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// So many /28 prefixes.
    pub prefix_count: u32,
    /// These prefixes.
    pub prefixes: Vec<Ipv4Net>,
}

/// CreateNetworkInterface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Create {
    /// Subnet.
    pub subnet: String,
    /// Security groups; none means the VPC's default group.
    pub groups: Vec<String>,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: Tags,
    /// `interface` unless said otherwise.
    pub kind: Option<String>,
    /// A primary address.
    pub address: Option<Ipv4Addr>,
    /// Secondary addresses and prefixes.
    pub wanted: Wanted,
    /// The same token gives the same ENI.
    pub client_token: Option<String>,
    /// Timeouts of connection tracking.
    pub tracking: Option<Tracking>,
}

/// ModifyNetworkInterfaceAttribute; EC2 takes one attribute a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// Whether the ENI dies with the instance of that attachment.
    DeleteOnTermination(String, bool),
    /// Security groups.
    Groups(Vec<String>),
    /// The check of source and destination.
    SourceDestCheck(bool),
    /// Description.
    Description(String),
    /// Timeouts of connection tracking.
    Tracking(Tracking),
}

/// Everything that the world can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the parameters of the EC2 action of that name")]
pub enum Call {
    DescribeNetworkInterfaces(Query),
    DescribeInstances(Query),
    DescribeInstanceTypes(Query),
    DescribeSubnets(Query),
    DescribeSecurityGroups(Query),
    DescribeVpcs(Query),
    DescribeTags(Query),
    CreateNetworkInterface(Create),
    AttachNetworkInterface { interface: String, instance: String, device: u32, card: u32 },
    DetachNetworkInterface { attachment: String, force: bool },
    DeleteNetworkInterface { interface: String },
    ModifyNetworkInterfaceAttribute { interface: String, attribute: Attribute },
    AssignPrivateIpAddresses { interface: String, wanted: Wanted },
    UnassignPrivateIpAddresses { interface: String, addresses: Vec<Ipv4Addr>, prefixes: Vec<Ipv4Net> },
    CreateTags { resources: Vec<String>, tags: Tags },
}

impl Call {
    /// The action's name, as IAM and the logs have it.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::DescribeNetworkInterfaces(_) => "DescribeNetworkInterfaces",
            Self::DescribeInstances(_) => "DescribeInstances",
            Self::DescribeInstanceTypes(_) => "DescribeInstanceTypes",
            Self::DescribeSubnets(_) => "DescribeSubnets",
            Self::DescribeSecurityGroups(_) => "DescribeSecurityGroups",
            Self::DescribeVpcs(_) => "DescribeVpcs",
            Self::DescribeTags(_) => "DescribeTags",
            Self::CreateNetworkInterface(_) => "CreateNetworkInterface",
            Self::AttachNetworkInterface { .. } => "AttachNetworkInterface",
            Self::DetachNetworkInterface { .. } => "DetachNetworkInterface",
            Self::DeleteNetworkInterface { .. } => "DeleteNetworkInterface",
            Self::ModifyNetworkInterfaceAttribute { .. } => "ModifyNetworkInterfaceAttribute",
            Self::AssignPrivateIpAddresses { .. } => "AssignPrivateIpAddresses",
            Self::UnassignPrivateIpAddresses { .. } => "UnassignPrivateIpAddresses",
            Self::CreateTags { .. } => "CreateTags",
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_describe(&self) -> bool {
        self.action().starts_with("Describe")
    }
}

/// What the world says to a call that it took.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are those of the EC2 answer of that name")]
pub enum Answer {
    Interfaces { items: Vec<Arc<Interface>>, next: Option<String> },
    Instances { items: Vec<Instance>, next: Option<String> },
    InstanceTypes { items: Vec<&'static Shape>, next: Option<String> },
    Subnets { items: Vec<Subnet>, next: Option<String> },
    Groups { items: Vec<Group>, next: Option<String> },
    Vpcs { items: Vec<Vpc>, next: Option<String> },
    Tags { items: Vec<(String, String, String)>, next: Option<String> },
    Created(Arc<Interface>),
    Attached { attachment: String, card: u32 },
    Assigned { interface: String, addresses: Vec<Ipv4Addr>, prefixes: Vec<Ipv4Net> },
    Unassigned,
    Done,
}

/// What the world says to a call that it refused: EC2's code, the HTTP status it comes with, and the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// EC2's code, such as `InsufficientFreeAddressesInSubnet`.
    pub code: String,
    /// HTTP status.
    pub status: u16,
    /// EC2's words.
    pub message: String,
}

impl Refusal {
    /// A refusal with the status that EC2 gives that code.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let status = match code {
            "UnauthorizedOperation" => 403,
            "AuthFailure" => 401,
            "DryRunOperation" => 412,
            "RequestLimitExceeded" | "Unavailable" => 503,
            "InternalError" | "InternalFailure" => 500,
            _ => 400,
        };
        Self { code: code.to_owned(), status, message: message.into() }
    }
}
