//! What the API server would refuse, in its words, so that a policy means the same wherever it comes from: a directory of
//! manifests, an older API server's store, or a test.
//!
//! There are two readings. [`admit`] refuses what no version stores; [`admit_new`] is what Kubernetes 1.36 asks of a *new*
//! policy, and also refuses CIDRs that older versions stored with a warning at most: bits set beyond the prefix, leading
//! zeros, IPv4 inside of IPv6. Those still arrive in watches and must be enforced, with their bits masked.

use std::fmt::Write as _;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

mod names;
mod parse;
#[cfg(test)]
mod tests;

pub(crate) use parse::{cidr, port_number};
pub use parse::{policy_from_json, unknown_fields};

/// One reason why an object is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refusal {
    /// Path of the field, `spec.ingress[0].ports[0].port`.
    pub field: String,
    /// What stands there, as JSON; empty where something is missing.
    pub value: String,
    /// The API server's message, `Invalid value: 0: must be between 1 and 65535, inclusive`.
    pub reason: String,
    /// The API server's class of it.
    pub kind: RefusalKind,
}

/// The API server's classes of refusals, by the names that its answers have in `details.causes[].reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub enum RefusalKind {
    /// The value cannot be.
    FieldValueInvalid,
    /// A value is missing.
    FieldValueRequired,
    /// No value may be here.
    FieldValueForbidden,
    /// The value is none of a few.
    FieldValueNotSupported,
}

impl Refusal {
    pub(crate) fn invalid(field: impl Into<String>, text: &str, why: impl std::fmt::Display) -> Self {
        Self::raw(field, quoted(text), why)
    }

    fn raw(field: impl Into<String>, value: String, why: impl std::fmt::Display) -> Self {
        let reason = format!("Invalid value: {value}: {why}");
        Self { field: field.into(), value, reason, kind: RefusalKind::FieldValueInvalid }
    }

    pub(crate) fn required(field: impl Into<String>, why: &str) -> Self {
        let reason =
            if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { field: field.into(), value: String::new(), reason, kind: RefusalKind::FieldValueRequired }
    }

    fn forbidden(field: impl Into<String>, why: &str) -> Self {
        let reason = format!("Forbidden: {why}");
        Self { field: field.into(), value: String::new(), reason, kind: RefusalKind::FieldValueForbidden }
    }

    pub(crate) fn unsupported(field: impl Into<String>, text: &str, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ");
        let value = quoted(text);
        let reason = format!("Unsupported value: {value}: supported values: {supported}");
        Self { field: field.into(), value, reason, kind: RefusalKind::FieldValueNotSupported }
    }
}

/// Go's `%q`, as far as fields of a policy need it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Why no API server would have stored this policy; empty if one may have.
#[must_use]
pub fn admit(policy: &NetworkPolicy) -> Vec<Refusal> {
    examine(policy, Strictness::Stored)
}

/// Why Kubernetes 1.36 would not create this policy; empty if it would.
#[must_use]
pub fn admit_new(policy: &NetworkPolicy) -> Vec<Refusal> {
    examine(policy, Strictness::New)
}

/// How CIDRs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    Stored,
    New,
}

fn examine(policy: &NetworkPolicy, strictness: Strictness) -> Vec<Refusal> {
    let mut check = Check { refusals: Vec::new(), strictness };
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    if !name.is_empty() {
        let whys = names::subdomain(name);
        check.refusals.extend(whys.into_iter().map(|why| Refusal::invalid("metadata.name", name, why)));
    } else if policy.metadata.generate_name.is_none() {
        check.refusals.push(Refusal::required("metadata.name", "name or generateName is required"));
    }
    let Some(spec) = &policy.spec else { return check.refusals };
    if let Some(selector) = &spec.pod_selector {
        check.selector("spec.podSelector", selector);
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        check.ports(&format!("spec.ingress[{i}]"), rule.ports.as_deref());
        check.peers(&format!("spec.ingress[{i}].from"), rule.from.as_deref());
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        check.ports(&format!("spec.egress[{i}]"), rule.ports.as_deref());
        check.peers(&format!("spec.egress[{i}].to"), rule.to.as_deref());
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > 2 {
        let list = types.iter().map(|t| quoted(t)).collect::<Vec<_>>().join(",");
        let why = "may not specify more than two policyTypes";
        check.refusals.push(Refusal::raw("spec.policyTypes", format!("[{list}]"), why));
        return check.refusals;
    }
    for (i, direction) in types.iter().enumerate() {
        if !matches!(direction.as_str(), "Ingress" | "Egress") {
            let field = format!("spec.policyTypes[{i}]");
            check.refusals.push(Refusal::unsupported(field, direction, &["Ingress", "Egress"]));
        }
    }
    check.refusals
}

struct Check {
    refusals: Vec<Refusal>,
    strictness: Strictness,
}

impl Check {
    fn ports(&mut self, rule: &str, ports: Option<&[NetworkPolicyPort]>) {
        for (i, port) in ports.unwrap_or_default().iter().enumerate() {
            let field = |name: &str| format!("{rule}.ports[{i}].{name}");
            if let Some(protocol) = &port.protocol
                && !matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP")
            {
                let known = ["TCP", "UDP", "SCTP"];
                self.refusals.push(Refusal::unsupported(field("protocol"), protocol, &known));
            }
            let end = |value: i32, why| Refusal::raw(field("endPort"), value.to_string(), why);
            match (&port.port, port.end_port) {
                (None, None) => {}
                (None, Some(last)) => {
                    self.refusals.push(end(last, "may not be specified when `port` is not specified"));
                }
                (Some(IntOrString::String(name)), last) => {
                    let whys = names::port(name);
                    self.refusals
                        .extend(whys.into_iter().map(|why| Refusal::invalid(field("port"), name, why)));
                    if let Some(last) = last {
                        self.refusals.push(end(last, "may not be specified when `port` is non-numeric"));
                    }
                }
                (Some(IntOrString::Int(first)), last) => {
                    port_number(&field("port"), *first, &mut self.refusals);
                    if let Some(last) = last {
                        if last < *first {
                            // The API server shows the other value here.
                            self.refusals.push(end(*first, "must be greater than or equal to `port`"));
                        }
                        port_number(&field("endPort"), last, &mut self.refusals);
                    }
                }
            }
        }
    }

    fn peers(&mut self, list: &str, peers: Option<&[NetworkPolicyPeer]>) {
        for (i, peer) in peers.unwrap_or_default().iter().enumerate() {
            let field = format!("{list}[{i}]");
            if let Some(selector) = &peer.pod_selector {
                self.selector(&format!("{field}.podSelector"), selector);
            }
            if let Some(selector) = &peer.namespace_selector {
                self.selector(&format!("{field}.namespaceSelector"), selector);
            }
            if let Some(block) = &peer.ip_block {
                self.block(&format!("{field}.ipBlock"), block);
            }
            let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
            match (selects, &peer.ip_block) {
                (false, None) => self.refusals.push(Refusal::required(field, "must specify a peer")),
                (true, Some(_)) => self
                    .refusals
                    .push(Refusal::forbidden(field, "may not specify both ipBlock and another peer")),
                (false, Some(_)) | (true, None) => {}
            }
        }
    }

    fn block(&mut self, field: &str, block: &IPBlock) {
        let path = format!("{field}.cidr");
        if block.cidr.is_empty() {
            self.refusals.push(Refusal::required(path, ""));
            return;
        }
        let whole = parse::cidr_as(&path, &block.cidr, self.strictness, &mut self.refusals);
        let Some(whole) = whole else { return };
        for (i, text) in block.except.iter().flatten().enumerate() {
            let path = format!("{field}.except[{i}]");
            let part = parse::cidr_as(&path, text, self.strictness, &mut self.refusals);
            if let Some(part) = part
                && !(whole.contains(&part) && part.prefix_len() > whole.prefix_len())
            {
                self.refusals.push(Refusal::invalid(path, text, "must be a strict subset of `cidr`"));
            }
        }
    }

    fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (key, value) in selector.match_labels.iter().flatten() {
            let path = format!("{field}.matchLabels");
            for (text, whys) in [(key, names::label_key(key)), (value, names::label_value(value))] {
                self.refusals.extend(whys.into_iter().map(|why| Refusal::invalid(&path, text, why)));
            }
        }
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let path = |name: &str| format!("{field}.matchExpressions[{i}].{name}");
            let values = expression.values.as_deref().unwrap_or_default();
            match expression.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    self.refusals.push(Refusal::required(path("values"), why));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    self.refusals.push(Refusal::forbidden(path("values"), why));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => {
                    let why = "not a valid selector operator";
                    self.refusals.push(Refusal::invalid(path("operator"), other, why));
                }
            }
            let key = &expression.key;
            let whys = names::label_key(key);
            self.refusals.extend(whys.into_iter().map(|why| Refusal::invalid(path("key"), key, why)));
            for (j, value) in values.iter().enumerate() {
                let path = path(&format!("values[{j}]"));
                let whys = names::label_value(value);
                self.refusals.extend(whys.into_iter().map(|why| Refusal::invalid(&path, value, why)));
            }
        }
    }
}
