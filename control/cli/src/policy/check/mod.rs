//! What in a directory of manifests does not do what its author thinks, with the file, the line and the reason.
//!
//! Errors are what is not in force: an object that the API server would refuse, a file that does not parse. Warnings are in
//! force and most likely a slip: a selector that selects nothing, a rule that another one makes pointless, a port's name that
//! nobody has, a key that looks like another one.

mod covers;
mod selector;

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_kube::manifests::{Finding, Severity};
use sluice_policy::{Namespace, Pod};

use self::covers::covers;
use self::selector::{keys, matches, similar};
use super::load::{Cluster, Placed};
use crate::output::{self, Format};

/// A rule of either direction.
#[derive(Clone, Copy)]
struct Rule<'p> {
    peers: &'p [NetworkPolicyPeer],
    ports: &'p [NetworkPolicyPort],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn field(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn type_name(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    const fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// Prints what is found, and says whether an error is among it.
pub(super) fn print(cluster: &Cluster, strict: bool, format: Format) -> Result<bool> {
    let findings = findings(cluster);
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match format {
        Format::Json => output::print_json(&findings)?,
        Format::Table => {
            for finding in &findings {
                output::print(&finding.to_string())?;
            }
            let policies = cluster.policies.len();
            output::print(&format!("{policies} policies in force: {errors} errors, {warnings} warnings"))?;
        }
    }
    Ok(errors > 0 || strict && warnings > 0)
}

/// Everything that is found, in order of place.
pub(super) fn findings(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = cluster.findings.clone();
    for placed in &cluster.policies {
        let mut lint = Lint { cluster, placed, findings: Vec::new() };
        lint.policy();
        findings.append(&mut lint.findings);
    }
    findings.sort();
    findings.dedup();
    findings
}

/// One policy under the glass.
struct Lint<'c> {
    cluster: &'c Cluster,
    placed: &'c Placed,
    findings: Vec<Finding>,
}

impl<'c> Lint<'c> {
    fn policy(&mut self) {
        let policy = &self.placed.policy;
        let Some(spec) = &policy.spec else { return };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or("default");
        if !self.cluster.namespaces().any(|n| &*n.name == namespace) {
            self.warn(
                "metadata.namespace",
                &format!("there is no namespace `{namespace}` in these manifests"),
            );
        }
        let all = LabelSelector::default();
        let selector = spec.pod_selector.as_ref().unwrap_or(&all);
        let own = |pod: &&Pod| &*pod.namespace == namespace;
        let selected: Vec<&Pod> =
            self.cluster.all_pods().filter(own).filter(|p| matches(selector, &p.labels)).collect();
        if selected.is_empty() {
            let hint = self.pod_hint(selector, |pod| own(&pod));
            self.warn(
                "spec.podSelector",
                &format!("selects no pod of namespace `{namespace}`: the policy isolates nobody{hint}"),
            );
        }
        for direction in Direction::BOTH {
            self.direction(spec, direction, namespace, &selected);
        }
    }

    fn direction(
        &mut self,
        spec: &NetworkPolicySpec,
        direction: Direction,
        namespace: &str,
        selected: &[&Pod],
    ) {
        let rules = rules(spec, direction);
        let field = direction.field();
        if !applies(spec, direction) {
            if !rules.is_empty() {
                let types = spec.policy_types.as_deref().unwrap_or_default().join(", ");
                let name = direction.type_name();
                self.warn(
                    &format!("spec.{field}"),
                    &format!("is never looked at: policyTypes is [{types}]; add {name}, or remove the rules"),
                );
            }
            return;
        }
        for (i, rule) in rules.iter().enumerate() {
            let place = format!("spec.{field}[{i}]");
            let mut reachable = rule.peers.is_empty();
            let mut peers: Vec<&Pod> = Vec::new();
            for (j, peer) in rule.peers.iter().enumerate() {
                let found = self.peer(&format!("{place}.{}[{j}]", direction.peers()), peer, namespace);
                reachable |= found.is_some();
                peers.extend(found.into_iter().flatten());
            }
            if !reachable {
                self.warn(&place, "allows nobody: none of its peers is anything");
            }
            let everybody: Vec<&Pod>;
            let targets: &[&Pod] = match direction {
                Direction::Ingress => selected,
                Direction::Egress
                    if rule.peers.iter().all(|p| p.ip_block.is_none()) && !rule.peers.is_empty() =>
                {
                    &peers
                }
                Direction::Egress => {
                    everybody = self.cluster.all_pods().collect();
                    &everybody
                }
            };
            self.named_ports(&place, rule, targets);
            self.shadow(&place, direction, i, *rule);
        }
    }

    /// The pods that a peer means, and whether it means anything: none when it does not.
    fn peer(&mut self, place: &str, peer: &NetworkPolicyPeer, namespace: &str) -> Option<Vec<&'c Pod>> {
        if let Some(block) = &peer.ip_block {
            let except = block.except.as_deref().unwrap_or_default();
            if except.contains(&block.cidr) {
                self.warn(&format!("{place}.ipBlock"), "covers nothing: an exception is all of it");
                return None;
            }
            return Some(Vec::new());
        }
        let inside: BTreeSet<&str> = match &peer.namespace_selector {
            None => BTreeSet::from([namespace]),
            Some(selector) => {
                let found: BTreeSet<&str> = self
                    .cluster
                    .namespaces()
                    .filter(|n| matches(selector, &n.labels))
                    .map(|n| &*n.name)
                    .collect();
                if found.is_empty() {
                    let hint = self.namespace_hint(selector);
                    self.warn(&format!("{place}.namespaceSelector"), &format!("selects no namespace{hint}"));
                    return None;
                }
                found
            }
        };
        let all = LabelSelector::default();
        let selector = peer.pod_selector.as_ref().unwrap_or(&all);
        let candidates = self.cluster.all_pods().filter(|p| inside.contains(&*p.namespace));
        let found: Vec<&Pod> = candidates.filter(|p| matches(selector, &p.labels)).collect();
        if found.is_empty() {
            let hint = self.pod_hint(selector, |pod| inside.contains(&*pod.namespace));
            let names = inside.into_iter().collect::<Vec<_>>().join("`, `");
            let field = if peer.pod_selector.is_some() { "podSelector" } else { "namespaceSelector" };
            self.warn(&format!("{place}.{field}"), &format!("selects no pod of `{names}`{hint}"));
            return None;
        }
        Some(found)
    }

    fn named_ports(&mut self, place: &str, rule: &Rule<'_>, targets: &[&Pod]) {
        for (i, port) in rule.ports.iter().enumerate() {
            let Some(IntOrString::String(name)) = &port.port else { continue };
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let declared = || targets.iter().flat_map(|pod| pod.ports.iter()).filter(|p| p.name.is_some());
            let named = |p: &&sluice_policy::ContainerPort| p.name.as_deref() == Some(name);
            if targets.is_empty() || declared().any(|p| named(&p) && p.protocol.to_string() == protocol) {
                continue;
            }
            let hint = if let Some(other) = declared().find(named) {
                format!(": they have it as {}", other.protocol)
            } else {
                let known: BTreeSet<&str> = declared().filter_map(|p| p.name.as_deref()).collect();
                hint(name, known.into_iter())
            };
            self.warn(
                &format!("{place}.ports[{i}].port"),
                &format!("no pod that this is about has a port named `{name}` for {protocol}{hint}"),
            );
        }
    }

    /// Another rule for the same pods that allows all of what this one does.
    fn shadow(&mut self, place: &str, direction: Direction, index: usize, rule: Rule<'_>) {
        let own = &self.placed.policy;
        let Some(spec) = &own.spec else { return };
        for other in &self.cluster.policies {
            let same_object = std::ptr::eq(other, self.placed);
            let Some(other_spec) = &other.policy.spec else { continue };
            let same_namespace = other.policy.metadata.namespace == own.metadata.namespace;
            if !same_namespace || !applies(other_spec, direction) || !selects_all_of(other_spec, spec) {
                continue;
            }
            for (i, wider) in rules(other_spec, direction).into_iter().enumerate() {
                if (same_object && i == index) || !covers(wider, rule) {
                    continue;
                }
                // Of two that say the same the later one is pointless, by name between two policies.
                let here = (&own.metadata.name, index);
                let there = (&other.policy.metadata.name, i);
                let equal = covers(rule, wider) && (same_object || selects_all_of(spec, other_spec));
                if equal && here < there {
                    continue;
                }
                let field = direction.field();
                let by = if same_object {
                    format!("spec.{field}[{i}]")
                } else {
                    format!("{} spec.{field}[{i}]", name(&other.policy))
                };
                self.warn(place, &format!("changes nothing: {by} allows all of it already"));
                return;
            }
        }
    }

    fn pod_hint(&self, selector: &LabelSelector, inside: impl Fn(&Pod) -> bool) -> String {
        let known = self.cluster.all_pods().filter(|p| inside(p)).flat_map(|p| p.labels.keys());
        label_hint(selector, known.map(|k| &**k).collect())
    }

    fn namespace_hint(&self, selector: &LabelSelector) -> String {
        label_hint(
            selector,
            self.cluster.namespaces().flat_map(|n: &Namespace| n.labels.keys()).map(|k| &**k).collect(),
        )
    }

    fn warn(&mut self, field: &str, message: &str) {
        let message = format!("{} {field}: {message}", name(&self.placed.policy));
        let file = self.placed.file.clone();
        self.findings.push(Finding::at(file, (self.placed.line, 0), Severity::Warning, message));
    }
}

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .map(|r| Rule {
                peers: r.from.as_deref().unwrap_or_default(),
                ports: r.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .map(|r| Rule {
                peers: r.to.as_deref().unwrap_or_default(),
                ports: r.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// Manifests have their defaults when they come here: the types are there.
fn applies(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    spec.policy_types.iter().flatten().any(|t| t == direction.type_name())
}

/// Whether one policy selects every pod that another one does, as far as the words show.
fn selects_all_of(wider: &NetworkPolicySpec, narrower: &NetworkPolicySpec) -> bool {
    let (wide, narrow) = (&wider.pod_selector, &narrower.pod_selector);
    wide.as_ref().is_none_or(|s| keys(s).next().is_none()) || wide == narrow
}

fn name(policy: &NetworkPolicy) -> String {
    let meta = &policy.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    format!("NetworkPolicy {namespace}/{}", meta.name.as_deref().unwrap_or_default())
}

/// What may have been meant by the first key that nothing has.
fn label_hint(selector: &LabelSelector, known: BTreeSet<&str>) -> String {
    let missing = keys(selector).find(|key| !known.contains(*key));
    missing.map(|key| format!("; no label `{key}` there{}", hint(key, known.into_iter()))).unwrap_or_default()
}

fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    similar(name, known).map(|other| format!(": did you mean `{other}`?")).unwrap_or_default()
}
