//! Checks of policy and services: every number that is used stands for something, every range is one.

use std::collections::{HashMap, HashSet};

use ipnet::Ipv4Net;

use super::Findings;
use crate::{Peer, Policy, Rules, Services};

/// Highest number of an identity or a selector: the engine indexes by them.
const HIGHEST: u32 = 1 << 22;

pub(super) fn check_policy(policy: &Policy, findings: &mut Findings) {
    let mut identities = HashSet::with_capacity(policy.identities.len());
    for (i, identity) in policy.identities.iter().enumerate() {
        let field = |name: &str| format!("policy.identity[{i}].{name}");
        if !identities.insert(identity.id) {
            findings.add(field("id"), identity.id, "is the number of another identity: numbers are unique");
        }
        number(findings, field("id"), identity.id);
        if !identity.selectors.is_sorted_by(|a, b| a < b) {
            let list = format!("{:?}", identity.selectors);
            findings.add(field("selectors"), list, "is not ascending: list each selector once, in order");
        }
        if let Some(last) = identity.selectors.last() {
            number(findings, field("selectors"), *last);
        }
    }
    for (address, identity) in policy.addresses.as_slice() {
        if !identities.contains(identity) {
            let field = format!("policy.addresses.\"{address}\"");
            findings.add(field, identity, "is no identity: add it to `policy.identity`");
        }
    }
    let mut numbers = HashSet::new();
    for (i, rules) in policy.rules.iter().enumerate() {
        if !numbers.insert(rules.id) {
            let field = format!("policy.rules[{i}].id");
            findings.add(field, rules.id, "is the number of other rules: numbers are unique");
        }
        check_rules(i, rules, findings);
    }
    let mut pods = HashSet::new();
    for (i, pod) in policy.pods.iter().enumerate() {
        if !pods.insert(pod.ip) {
            findings.add(format!("policy.pod[{i}].ip"), pod.ip, "is also the address of another entry");
        }
        for (name, rules) in [("ingress", pod.ingress), ("egress", pod.egress)] {
            if let Some(rules) = rules.filter(|id| !numbers.contains(id)) {
                findings.add(
                    format!("policy.pod[{i}].{name}"),
                    rules,
                    "are no rules: add them to `policy.rules`",
                );
            }
        }
    }
}

fn check_rules(i: usize, rules: &Rules, findings: &mut Findings) {
    for (j, rule) in rules.rules.iter().enumerate() {
        let field = |name: &str| format!("policy.rules[{i}].rule[{j}].{name}");
        for peer in rule.peers.iter().flatten() {
            match peer {
                Peer::Selector(selector) => number(findings, field("peers"), *selector),
                Peer::Block { cidr, except } => {
                    network(findings, field("peers"), cidr);
                    for part in except {
                        network(findings, field("peers"), part);
                        if !cidr.contains(part) {
                            findings.add(field("peers"), part, format!("is an exception outside of {cidr}"));
                        }
                    }
                }
            }
        }
        for ports in rule.ports.iter().flatten() {
            if ports.first > ports.last {
                let value = format!("{}-{}", ports.first, ports.last);
                findings.add(field("ports"), value, "is no range: the first port is the lower one");
            }
        }
    }
}

pub(super) fn check_services(services: &Services, findings: &mut Findings) {
    for (i, cidr) in services.cidrs.iter().enumerate() {
        network(findings, format!("services.cidrs[{i}]"), cidr);
    }
    let mut names = HashSet::new();
    let mut frontends = HashMap::new();
    for (i, service) in services.services.iter().enumerate() {
        let field = |name: &str| format!("services.service[{i}].{name}");
        if !names.insert(&service.name) {
            findings.add(field("name"), &service.name, "is the name of another service: names are unique");
        }
        if service.affinity == Some(0) {
            findings.add(field("affinity"), 0, "is no time: 1 or more seconds, or leave it out");
        }
        for frontend in &service.frontends {
            let place = (frontend.address, frontend.port, service.protocol);
            let shown = match frontend.address {
                Some(address) => format!("{address}:{}/{}", frontend.port, service.protocol),
                None => format!("node:{}/{}", frontend.port, service.protocol),
            };
            if frontend.port == 0 {
                findings.add(field("frontend"), &shown, "has port 0: 1 to 65535");
            }
            if let Some(other) = frontends.insert(place, &service.name) {
                findings.add(field("frontend"), shown, format!("is also a frontend of {other}"));
            }
        }
        for endpoint in &service.endpoints {
            if endpoint.port == 0 || endpoint.ip.is_unspecified() || endpoint.ip.is_multicast() {
                let value = format!("{}:{}", endpoint.ip, endpoint.port);
                findings.add(field("endpoint"), value, "is no unicast address with a port from 1 to 65535");
            }
        }
    }
}

fn number(findings: &mut Findings, field: String, value: u32) {
    if value > HIGHEST {
        findings.add(field, value, format!("is too high a number: 0 to {HIGHEST}"));
    }
}

fn network(findings: &mut Findings, field: String, cidr: &Ipv4Net) {
    if cidr.addr() != cidr.network() {
        findings.add(field, cidr, format!("has host bits set: write {}", cidr.trunc()));
    }
}
