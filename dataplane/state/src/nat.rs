//! What is translated: the VPC CNI's SNAT settings.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Source address translation, with the VPC CNI's meanings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// All CIDRs associated with the VPC; destinations inside are never translated.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// VPC CNI: `AWS_VPC_K8S_CNI_EXTERNALSNAT`. True: nothing is translated, `exclude_cidrs` is ignored.
    pub external_snat: bool,
    /// VPC CNI: `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`. Further destinations that are not translated.
    pub exclude_cidrs: Vec<Ipv4Net>,
    /// VPC CNI: `AWS_VPC_K8S_CNI_RANDOMIZESNAT`. How a source port is chosen.
    pub randomize: RandomizeSnat,
}

impl Nat {
    /// True when a connection that a pod opens to `destination` is translated (VPC CNI: `AWS-SNAT-CHAIN-0`).
    #[must_use]
    pub fn translates(&self, destination: Ipv4Addr) -> bool {
        !self.external_snat
            && !self.vpc_cidrs.iter().chain(&self.exclude_cidrs).any(|cidr| cidr.contains(&destination))
    }
}

/// How the source port of a translated connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RandomizeSnat {
    /// A random free port for every connection (`iptables --random-fully`).
    #[default]
    Prng,
    /// A port derived from a seeded hash of the connection's addresses and ports (`iptables --random`).
    HashRandom,
    /// The pod's own port when it is ours and free, otherwise a random free one.
    None,
}
