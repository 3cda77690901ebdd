//! Checks of policy and services: every number that is used stands for something, every range is one.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Findings;
use crate::{Frontend, Identity, Op, Peer, PodPolicy, Policy, Protocol, Rules, Service, Services};

/// Highest number of an identity or a selector: the engine indexes by them.
const HIGHEST: u32 = 1 << 22;

/// From so many changed services on the whole list is checked at once.
const MANY: usize = 4;

pub(super) fn check_policy(policy: &Policy, findings: &mut Findings) {
    let mut identities = HashSet::with_capacity(policy.identities.len());
    for (i, identity) in policy.identities.iter().enumerate() {
        if !identities.insert(identity.id) {
            let field = format!("policy.identity[{i}].id");
            findings.add(field, identity.id, "is the number of another identity: numbers are unique");
        }
        check_identity(i, identity, findings);
    }
    for (address, identity) in policy.addresses.as_slice() {
        if !identities.contains(identity) {
            no_identity(*address, *identity, findings);
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
        check_pod(i, pod, |id| numbers.contains(&id), findings);
    }
}

/// What of policy and services the ops can have made wrong, in a state that was right before. What an upsert left is
/// checked itself, what a delete took away is looked for wherever it may be named.
pub(super) fn check_changes(policy: &Policy, services: &Services, ops: &[Op], findings: &mut Findings) {
    let (mut given, mut gone) = (HashSet::new(), HashSet::new());
    let (mut gone_rules, mut changed) = (HashSet::new(), Vec::new());
    for op in ops {
        match op {
            Op::UpsertAddresses(pairs) => given.extend(pairs.iter().copied()),
            Op::DeleteIdentity(id) => {
                gone.insert(*id);
            }
            Op::UpsertIdentity(identity) => {
                let place = policy.identities.iter().position(|i| i.id == identity.id);
                place.into_iter().for_each(|i| check_identity(i, &policy.identities[i], findings));
            }
            Op::UpsertRules(rules) => {
                let place = policy.rules.iter().position(|r| r.id == rules.id);
                place.into_iter().for_each(|i| check_rules(i, &policy.rules[i], findings));
            }
            Op::DeleteRules(id) => {
                gone_rules.insert(*id);
            }
            Op::UpsertPodPolicy(pod) => {
                let known = |id| policy.rules.iter().any(|r| r.id == id);
                let place = policy.pods.iter().position(|p| p.ip == pod.ip);
                place.into_iter().for_each(|i| check_pod(i, &policy.pods[i], known, findings));
            }
            Op::ServiceCidrs(_) => check_cidrs(services, findings),
            Op::UpsertService(service) => changed.push(service.name.as_str()),
            _ => {}
        }
    }
    check_given(policy, &given, findings);
    gone.retain(|id| !policy.identities.iter().any(|i| i.id == *id));
    if !gone.is_empty() {
        let orphans = policy.addresses.as_slice().iter().filter(|(_, id)| gone.contains(id));
        orphans.for_each(|(address, id)| no_identity(*address, *id, findings));
    }
    gone_rules.retain(|id| !policy.rules.iter().any(|r| r.id == *id));
    if !gone_rules.is_empty() {
        for (i, pod) in policy.pods.iter().enumerate() {
            check_pod(i, pod, |id| !gone_rules.contains(&id), findings);
        }
    }
    if changed.len() > MANY {
        check_services(services, findings);
    } else {
        changed.iter().for_each(|name| check_one_service(services, name, findings));
    }
}

/// Addresses that were given an identity and still have it.
fn check_given(policy: &Policy, given: &HashSet<(Ipv4Addr, u32)>, findings: &mut Findings) {
    let wanted: HashSet<u32> = given.iter().map(|(_, id)| *id).collect();
    let known: HashSet<u32> = if wanted.is_empty() {
        HashSet::new()
    } else {
        policy.identities.iter().map(|i| i.id).filter(|id| wanted.contains(id)).collect()
    };
    for (address, id) in given.iter().filter(|(_, id)| !known.contains(id)) {
        if policy.addresses.identity(*address) == Some(*id) {
            no_identity(*address, *id, findings);
        }
    }
}

fn check_identity(i: usize, identity: &Identity, findings: &mut Findings) {
    let field = |name: &str| format!("policy.identity[{i}].{name}");
    number(findings, || field("id"), identity.id);
    if !identity.selectors.is_sorted_by(|a, b| a < b) {
        let list = format!("{:?}", identity.selectors);
        findings.add(field("selectors"), list, "is not ascending: list each selector once, in order");
    }
    if let Some(last) = identity.selectors.last() {
        number(findings, || field("selectors"), *last);
    }
}

fn no_identity(address: Ipv4Addr, identity: u32, findings: &mut Findings) {
    let field = format!("policy.addresses.\"{address}\"");
    findings.add(field, identity, "is no identity: add it to `policy.identity`");
}

fn check_pod(i: usize, pod: &PodPolicy, known: impl Fn(u32) -> bool, findings: &mut Findings) {
    for (name, rules) in [("ingress", pod.ingress), ("egress", pod.egress)] {
        if let Some(rules) = rules.filter(|id| !known(*id)) {
            let field = format!("policy.pod[{i}].{name}");
            findings.add(field, rules, "are no rules: add them to `policy.rules`");
        }
    }
}

fn check_rules(i: usize, rules: &Rules, findings: &mut Findings) {
    for (j, rule) in rules.rules.iter().enumerate() {
        let field = |name: &str| format!("policy.rules[{i}].rule[{j}].{name}");
        for peer in rule.peers.iter().flatten() {
            match peer {
                Peer::Selector(selector) => number(findings, || field("peers"), *selector),
                Peer::Block { cidr, except } => {
                    network(findings, || field("peers"), cidr);
                    for part in except {
                        network(findings, || field("peers"), part);
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
    check_cidrs(services, findings);
    let mut names = HashSet::new();
    let mut frontends = HashMap::new();
    for (i, service) in services.services.iter().enumerate() {
        if !names.insert(&service.name) {
            let field = format!("services.service[{i}].name");
            findings.add(field, &service.name, "is the name of another service: names are unique");
        }
        check_service(i, service, findings);
        for frontend in &service.frontends {
            let place = (frontend.address, frontend.port, service.protocol);
            if let Some(other) = frontends.insert(place, &service.name) {
                taken(i, frontend, service.protocol, other, findings);
            }
        }
    }
}

fn check_cidrs(services: &Services, findings: &mut Findings) {
    for (i, cidr) in services.cidrs.iter().enumerate() {
        network(findings, || format!("services.cidrs[{i}]"), cidr);
    }
}

/// One service against all others.
fn check_one_service(services: &Services, name: &str, findings: &mut Findings) {
    let Some(i) = services.services.iter().position(|s| s.name == name) else { return };
    let service = &services.services[i];
    check_service(i, service, findings);
    for (j, frontend) in service.frontends.iter().enumerate() {
        let same = |other: &Frontend| (other.address, other.port) == (frontend.address, frontend.port);
        if service.frontends[..j].iter().any(same) {
            taken(i, frontend, service.protocol, name, findings);
        }
    }
    for (j, other) in services.services.iter().enumerate() {
        if j == i || other.protocol != service.protocol {
            continue;
        }
        for frontend in &service.frontends {
            let place = (frontend.address, frontend.port);
            if other.frontends.iter().any(|f| (f.address, f.port) == place) {
                taken(i, frontend, service.protocol, &other.name, findings);
            }
        }
    }
}

/// What is right or wrong about a service by itself.
fn check_service(i: usize, service: &Service, findings: &mut Findings) {
    let field = |name: &str| format!("services.service[{i}].{name}");
    if service.affinity == Some(0) {
        findings.add(field("affinity"), 0, "is no time: 1 or more seconds, or leave it out");
    }
    for frontend in service.frontends.iter().filter(|f| f.port == 0) {
        let shown = place(frontend, service.protocol);
        findings.add(field("frontend"), shown, "has port 0: 1 to 65535");
    }
    for endpoint in &service.endpoints {
        if endpoint.port == 0 || endpoint.ip.is_unspecified() || endpoint.ip.is_multicast() {
            let value = format!("{}:{}", endpoint.ip, endpoint.port);
            findings.add(field("endpoint"), value, "is no unicast address with a port from 1 to 65535");
        }
    }
}

fn taken(i: usize, frontend: &Frontend, protocol: Protocol, other: &str, findings: &mut Findings) {
    let field = format!("services.service[{i}].frontend");
    findings.add(field, place(frontend, protocol), format!("is also a frontend of {other}"));
}

fn place(frontend: &Frontend, protocol: Protocol) -> String {
    match frontend.address {
        Some(address) => format!("{address}:{}/{protocol}", frontend.port),
        None => format!("node:{}/{protocol}", frontend.port),
    }
}

fn number(findings: &mut Findings, field: impl Fn() -> String, value: u32) {
    if value > HIGHEST {
        findings.add(field(), value, format!("is too high a number: 0 to {HIGHEST}"));
    }
}

fn network(findings: &mut Findings, field: impl Fn() -> String, cidr: &Ipv4Net) {
    if cidr.addr() != cidr.network() {
        findings.add(field(), cidr, format!("has host bits set: write {}", cidr.trunc()));
    }
}
