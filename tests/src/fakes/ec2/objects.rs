//! What is in a VPC. Plain values: who may change them and when is the world's business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::shapes::Shape;

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// A VPC and its CIDR blocks; the first is the primary one.
#[derive(Debug, Clone)]
pub struct Vpc {
    /// `vpc-...`
    pub id: String,
    /// IPv4 blocks.
    pub cidrs: Vec<Ipv4Net>,
    /// Tags.
    pub tags: Tags,
}

/// A security group: only that it exists, and where.
#[derive(Debug, Clone)]
pub struct Group {
    /// `sg-...`
    pub id: String,
    /// Its name.
    pub name: String,
    /// The VPC it belongs to.
    pub vpc: String,
    /// Tags.
    pub tags: Tags,
}

/// A virtual machine.
#[derive(Debug, Clone)]
pub struct Instance {
    /// `i-...`
    pub id: String,
    /// Its type's limits.
    pub shape: &'static Shape,
    /// The subnet of its primary ENI.
    pub subnet: String,
    /// That subnet's VPC.
    pub vpc: String,
    /// That subnet's zone.
    pub zone: String,
    /// The primary ENI, device 0 on card 0.
    pub primary: String,
    /// Tags.
    pub tags: Tags,
    /// The role of its instance profile.
    pub role: String,
    /// When it was started, since the Unix epoch.
    pub launched: Duration,
    /// Whether it runs: a terminated instance has lost its ENIs.
    pub running: bool,
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// EC2 said yes, the device is not there yet; it will be at that time.
    Attaching(Duration),
    /// The device is there.
    Attached,
    /// The device goes; the ENI is free at that time.
    Detaching(Duration),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attaching(_) => "attaching",
            Self::Attached => "attached",
            Self::Detaching(_) => "detaching",
        })
    }
}

/// An ENI on an instance.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `eni-attach-...`
    pub id: String,
    /// The instance.
    pub instance: String,
    /// Device index on the card.
    pub device: u32,
    /// Network card.
    pub card: u32,
    /// How far it is.
    pub progress: Progress,
    /// Whether the ENI dies with the instance; EC2 sets it only on the ENIs of a launch.
    pub delete_on_termination: bool,
}

/// Idle timeouts of EC2's connection tracking, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Established TCP.
    pub tcp_established: Option<u32>,
    /// UDP streams.
    pub udp_stream: Option<u32>,
    /// UDP with traffic in one direction.
    pub udp: Option<u32>,
}

/// An elastic network interface.
#[derive(Debug, Clone)]
pub struct Interface {
    /// `eni-...`
    pub id: String,
    /// MAC address, lower case with colons.
    pub mac: String,
    /// Subnet.
    pub subnet: String,
    /// VPC.
    pub vpc: String,
    /// Zone.
    pub zone: String,
    /// Security groups.
    pub groups: Vec<String>,
    /// Description.
    pub description: String,
    /// Tags.
    pub tags: Tags,
    /// Primary address.
    pub primary: Ipv4Addr,
    /// Secondary addresses in the order in which they came.
    pub secondary: Vec<Ipv4Addr>,
    /// Delegated /28 prefixes.
    pub prefixes: Vec<Ipv4Net>,
    /// `interface`, `efa`, `trunk` ...
    pub kind: String,
    /// Where it is, if anywhere.
    pub attachment: Option<Attachment>,
    /// Whether EC2 checks that packets carry the ENI's own addresses.
    pub source_dest_check: bool,
    /// Timeouts of connection tracking, where set.
    pub tracking: Option<Tracking>,
    /// When it was made, since the Unix epoch.
    pub created: Duration,
}

impl Interface {
    /// The slots in use: primary, secondaries and prefixes count alike.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(1 + self.secondary.len() + self.prefixes.len()).unwrap_or(u32::MAX)
    }

    /// EC2's `status`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match &self.attachment {
            None => "available",
            Some(a) if matches!(a.progress, Progress::Detaching(_)) => "detaching",
            Some(_) => "in-use",
        }
    }

    /// Whether it is on that instance, coming or going included.
    #[must_use]
    pub fn is_on(&self, instance: &str) -> bool {
        self.attachment.as_ref().is_some_and(|a| a.instance == instance)
    }
}
