//! From what is there to what becomes of it. Pure: the same survey always gives the same plan.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;
use sluice_state::Mac;

use super::host::{Host, MAIN, Rule};
use super::ipam::Allocation;
use super::names::{host_interface, is_host_interface};

/// Priorities of the VPC CNI's rules (VPC CNI: `networkutils/network.go`).
pub(crate) const TO_POD: u32 = 512;
const MARKED: u32 = 1024;
const EXTERNAL_SERVICES: u32 = 1535;
pub(crate) const FROM_POD: u32 = 1536;
pub(crate) const FROM_ENI: u32 = 32_765;
/// How the host's ends of pods on branch ENIs begin.
const BRANCH: &str = "vlan";

/// A pod that comes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Its lease.
    pub allocation: Allocation,
    /// The host's end of its veth.
    pub host_interface: String,
    /// Index of the host's end.
    pub ifindex: u32,
    /// Ethernet address of its own end.
    pub mac: Mac,
    /// Name of the ENI's interface that owns its address.
    pub eni: String,
    /// The VPC CNI's rules for its address: they go.
    pub rules: Vec<Rule>,
}

/// Something that does not come over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
    /// The address that it goes on using, where that is one of the node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

/// What becomes of what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Pods that come over.
    pub taken: Vec<Taken>,
    /// Leases whose pods are gone: dropped, as ipamd does at its start.
    pub dropped: Vec<Left>,
    /// Rules for addresses of dropped leases: they go.
    pub stale: Vec<Rule>,
    /// What stays the VPC CNI's.
    pub left: Vec<Left>,
    /// Rules that all of its pods share. They go with the last pod that is its.
    pub shared: Vec<Rule>,
}

impl Plan {
    /// Whether what all pods of the VPC CNI share goes: no pod is left that needs it.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.left.is_empty()
    }

    /// Rules that send pods' packets to their ENI's table. They go first: without marks, such a rule would send the answers
    /// of node ports out by the wrong ENI.
    pub(crate) fn by_source(&self) -> impl Iterator<Item = Rule> {
        self.rules_at(FROM_POD)
    }

    /// Rules that send packets for pods to the main table, where they get without them.
    pub(crate) fn by_destination(&self) -> impl Iterator<Item = Rule> {
        self.rules_at(TO_POD)
    }

    fn rules_at(&self, priority: u32) -> impl Iterator<Item = Rule> {
        let of_pods = self.taken.iter().flat_map(|taken| &taken.rules);
        of_pods.chain(&self.stale).copied().filter(move |rule| rule.priority == priority)
    }
}

/// Decides. `recorded` are rules that an earlier run has seen, and perhaps removed: they still tell whose an address is.
/// `served` are the veths that the daemon has in force already: they are nobody else's.
#[must_use]
pub fn plan(
    allocations: &[Allocation],
    refused: &[String],
    recorded: &[Rule],
    host: &Host,
    prefix: &str,
    served: &BTreeSet<String>,
) -> Plan {
    let mut plan = Plan::default();
    let (mut seen, mut told) = (BTreeSet::new(), served.clone());
    for allocation in allocations.iter().filter(|allocation| seen.insert(allocation.address)) {
        match take(allocation, recorded, host, prefix) {
            Fate::Taken(taken) => plan.taken.push(taken),
            Fate::Dropped(why) => {
                let what = format!("{} {}", allocation.pod(), allocation.address);
                plan.dropped.push(Left { what, why, address: None });
                // Somebody else may have the address by now.
                if !host.pods.contains_key(&allocation.address) {
                    plan.stale.extend(rules_of(&host.rules, allocation.address));
                }
            }
            Fate::Left(why) => {
                told.insert(host_interface(prefix, &allocation.namespace, &allocation.name));
                plan.left.push(Left { what: allocation.pod(), why, address: Some(allocation.address) });
            }
        }
    }
    plan.left.extend(refused.iter().map(|entry| Left {
        what: "an entry of the VPC CNI's leases".into(),
        why: entry.clone(),
        address: None,
    }));
    let taken: BTreeSet<&str> = plan.taken.iter().map(|taken| taken.host_interface.as_str()).collect();
    for link in host.links.values().filter(|link| !taken.contains(link.name.as_str())) {
        let (what, why) = if is_host_interface(BRANCH, &link.name) {
            (
                format!("the pod of {}", link.name),
                "has a branch ENI (pod security groups), which Sluice does not do",
            )
        } else if is_host_interface(prefix, &link.name) && !told.contains(&link.name) {
            (
                format!("the pod of {}", link.name),
                "has no lease of the VPC CNI's and is not the daemon's: delete it, and its successor is Sluice's",
            )
        } else {
            continue;
        };
        plan.left.push(Left { what, why: why.into(), address: None });
    }
    let shared = |rule: &&Rule| match rule.priority {
        MARKED => {
            rule.mark.is_some_and(|(mark, mask)| mark == mask && mark != 0)
                && rule.from.is_none()
                && rule.to.is_none()
                && rule.table == MAIN
        }
        EXTERNAL_SERVICES => {
            rule.to.is_some() && rule.from.is_none() && rule.mark.is_none() && rule.table == MAIN
        }
        _ => false,
    };
    plan.shared = host.rules.iter().filter(shared).copied().collect();
    plan
}

enum Fate {
    Taken(Taken),
    Dropped(String),
    Left(String),
}

fn take(allocation: &Allocation, recorded: &[Rule], host: &Host, prefix: &str) -> Fate {
    let name = host_interface(prefix, &allocation.namespace, &allocation.name);
    let Some(link) = host.named(&name) else {
        return Fate::Dropped(format!("there is no veth {name}"));
    };
    // A name outlives its pod where a StatefulSet makes the next one: only the route tells whose address it has.
    if host.pods.get(&allocation.address) != Some(&link.ifindex) {
        let has: Vec<_> =
            host.pods.iter().filter(|(_, i)| **i == link.ifindex).map(|(a, _)| a.to_string()).collect();
        let has = if has.is_empty() { "no address".into() } else { has.join(", ") };
        return Fate::Dropped(format!("{name} has {has}: it is a later pod's of this name"));
    }
    let Some(mac) = link.peer_mac else {
        return Fate::Left(format!(
            "the Ethernet address of its end of {name} cannot be asked (Linux 4.20 and CAP_NET_ADMIN can); restart the pod"
        ));
    };
    let rules: Vec<Rule> = rules_of(&host.rules, allocation.address).collect();
    let seen = rules.iter().copied().chain(rules_of(recorded, allocation.address));
    let mut of_eni = seen.filter(|rule| rule.priority == FROM_POD && rule.table != MAIN);
    let table = of_eni.next().map_or(MAIN, |rule| rule.table);
    let Some(eni) = host.default_link(table) else {
        return Fate::Left(format!(
            "its packets go by table {table}, which has no default route: which ENI owns its address is not known; restart the pod"
        ));
    };
    Fate::Taken(Taken {
        allocation: allocation.clone(),
        host_interface: name,
        ifindex: link.ifindex,
        mac,
        eni: eni.to_owned(),
        rules,
    })
}

/// The VPC CNI's rules for one pod's address.
fn rules_of(rules: &[Rule], address: Ipv4Addr) -> impl Iterator<Item = Rule> {
    let only = Some(Ipv4Net::from(address));
    rules.iter().copied().filter(move |rule| {
        rule.mark.is_none()
            && match rule.priority {
                TO_POD => rule.to == only && rule.from.is_none() && rule.table == MAIN,
                FROM_POD => rule.from == only,
                _ => false,
            }
    })
}
