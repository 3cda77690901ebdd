//! NetworkPolicies.

use serde_json::{Value, json};

use super::super::status::Cause;
use super::{default, items, items_mut, names, text};

const TYPES: [&str; 2] = ["Ingress", "Egress"];

/// A port is of TCP; a policy is for ingress, and for egress if it has a rule for that.
pub(super) fn defaults(policy: &mut Value) {
    let spec = &mut policy["spec"];
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            for port in items_mut(rule, "ports") {
                default(port, "protocol", json!("TCP"));
            }
        }
    }
    let types = if spec["egress"].is_null() { json!(["Ingress"]) } else { json!(TYPES) };
    default(spec, "policyTypes", types);
}

pub(super) fn check(policy: &Value, causes: &mut Vec<Cause>, warnings: &mut Vec<String>) {
    let spec = &policy["spec"];
    names::selector("spec.podSelector", &spec["podSelector"], causes);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(spec, direction) {
            let at = format!("spec.{direction}[{i}]");
            for (j, entry) in items(rule, "ports") {
                port(&format!("{at}.ports[{j}]"), entry, causes);
            }
            for (j, entry) in items(rule, peers) {
                peer(&format!("{at}.{peers}[{j}]"), entry, causes, warnings);
            }
        }
    }
    if spec["policyTypes"].as_array().is_some_and(|types| types.len() > 2) {
        let why = "may not specify more than two policyTypes";
        causes.push(Cause::invalid("spec.policyTypes", &spec["policyTypes"], why));
        return;
    }
    for (i, kind) in items(spec, "policyTypes") {
        names::one_of(&format!("spec.policyTypes[{i}]"), kind, &TYPES, causes);
    }
}

fn port(at: &str, entry: &Value, causes: &mut Vec<Cause>) {
    if !entry["protocol"].is_null() {
        names::one_of(&format!("{at}.protocol"), &entry["protocol"], &["TCP", "UDP", "SCTP"], causes);
    }
    let (number, end) = (&entry["port"], &entry["endPort"]);
    let end_at = format!("{at}.endPort");
    match number {
        Value::Null => {
            if !end.is_null() {
                causes.push(Cause::invalid(end_at, end, "may not be specified when `port` is not specified"));
            }
        }
        Value::String(name) => {
            if !end.is_null() {
                let why = "may not be specified when `port` is non-numeric";
                causes.push(Cause::invalid(end_at, end, why));
            }
            names::port_name(&format!("{at}.port"), name, causes);
        }
        _ => {
            names::port(&format!("{at}.port"), number, causes);
            if !end.is_null() {
                // The real server tells the port as the value of its end.
                if end.as_i64() < number.as_i64() {
                    let why = "must be greater than or equal to `port`";
                    causes.push(Cause::invalid(end_at.as_str(), number, why));
                }
                names::port(&end_at, end, causes);
            }
        }
    }
}

fn peer(at: &str, peer: &Value, causes: &mut Vec<Cause>, warnings: &mut Vec<String>) {
    let selectors = ["podSelector", "namespaceSelector"];
    let selected = selectors.iter().filter(|s| !peer[**s].is_null()).count();
    for selector in selectors {
        if !peer[selector].is_null() {
            names::selector(&format!("{at}.{selector}"), &peer[selector], causes);
        }
    }
    let block = &peer["ipBlock"];
    if !block.is_null() {
        block_of(&format!("{at}.ipBlock"), block, causes, warnings);
    }
    if selected == 0 && block.is_null() {
        causes.push(Cause::required(at, "must specify a peer"));
    } else if selected > 0 && !block.is_null() {
        causes.push(Cause::forbidden(at, "may not specify both ipBlock and another peer"));
    }
}

fn block_of(at: &str, block: &Value, causes: &mut Vec<Cause>, warnings: &mut Vec<String>) {
    if text(block, "cidr").is_empty() {
        causes.push(Cause::required(format!("{at}.cidr"), ""));
        return;
    }
    let Some(whole) = names::cidr(&format!("{at}.cidr"), &block["cidr"], causes, warnings) else { return };
    for (i, except) in items(block, "except") {
        let at = format!("{at}.except[{i}]");
        let part = names::cidr(&at, except, causes, &mut Vec::new());
        if part.is_some_and(|part| !whole.contains(&part) || part.prefix_len() <= whole.prefix_len()) {
            causes.push(Cause::invalid(at, except, "must be a strict subset of `cidr`"));
        }
    }
}
