//! Kinds with few rules of their own.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::status::Cause;
use super::{default, items, items_mut, names, text};

/// A namespace is labelled with its name, whatever a client writes, and held until its content is gone.
pub(super) fn namespace(namespace: &mut Value, old: Option<&Value>) {
    let name = namespace["metadata"]["name"].clone();
    default(&mut namespace["metadata"], "labels", json!({}));
    namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    if old.is_none() {
        namespace["spec"]["finalizers"] = json!(["kubernetes"]);
        namespace["status"] = json!({ "phase": "Active" });
    }
}

/// A node's prefix is the first of its prefixes; a new one is not ready until it says so.
pub(super) fn node(node: &mut Value, old: Option<&Value>) {
    let spec = &mut node["spec"];
    let cidr = spec["podCIDR"].clone();
    if !cidr.is_null() && spec["podCIDRs"].get(0) != Some(&cidr) {
        spec["podCIDRs"] = json!([cidr]);
    }
    if old.is_none() {
        default(spec, "taints", json!([]));
        let key = "node.kubernetes.io/not-ready";
        let known = items(spec, "taints").any(|(_, taint)| taint["key"] == key);
        if let (false, Some(taints)) = (known, spec["taints"].as_array_mut()) {
            taints.push(json!({ "key": key, "effect": "NoSchedule" }));
        }
    }
}

pub(super) fn check_node(node: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let before = old.map_or(&Value::Null, |old| &old["spec"]["podCIDRs"]);
    if !before.is_null() && *before != node["spec"]["podCIDRs"] {
        causes.push(Cause::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
}

pub(super) fn slice(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        default(port, "name", json!(""));
        default(port, "protocol", json!("TCP"));
    }
}

pub(super) fn check_slice(
    slice: &Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
    warnings: &mut Vec<String>,
) {
    let kind = text(slice, "addressType");
    if kind.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else {
        names::one_of("addressType", &slice["addressType"], &["FQDN", "IPv4", "IPv6"], causes);
    }
    if old.is_some_and(|old| old["addressType"] != slice["addressType"]) {
        causes.clear();
        causes.push(Cause::invalid("addressType", &slice["addressType"], "field is immutable"));
        return;
    }
    if kind == "FQDN" {
        warnings.push("spec.addressType: FQDN endpoints are deprecated".to_string());
    }
    for (i, endpoint) in items(slice, "endpoints") {
        let at = format!("endpoints[{i}].addresses");
        if endpoint["addresses"].as_array().is_none_or(Vec::is_empty) {
            causes.push(Cause::required(at.as_str(), "must contain at least 1 address"));
        }
        for (j, address) in items(endpoint, "addresses") {
            let parsed = address.as_str().and_then(|a| a.parse::<IpAddr>().ok());
            match (kind, parsed) {
                ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => {
                    special(&format!("{at}[{j}]"), address, parsed, causes);
                }
                ("IPv4" | "IPv6", _) => {
                    causes.push(Cause::invalid(at.as_str(), address, &format!("must be an {kind} address")));
                }
                _ => {}
            }
        }
    }
    let mut seen = Vec::new();
    for (i, port) in items(slice, "ports") {
        let name = text(port, "name");
        if seen.contains(&name) {
            causes.push(Cause::duplicate(format!("ports[{i}].name"), &json!(name)));
        }
        seen.push(name);
        let at = format!("ports[{i}].protocol");
        names::one_of(&at, &port["protocol"], &["SCTP", "TCP", "UDP"], causes);
    }
}

/// Addresses that no endpoint can have.
fn special(at: &str, address: &Value, parsed: Option<IpAddr>, causes: &mut Vec<Cause>) {
    let Some(ip) = parsed else { return };
    let local = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    let why = if ip.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if local.0 {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if local.1 {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    causes.push(Cause::invalid(at, address, why));
}

pub(super) fn check_lease(lease: &Value, causes: &mut Vec<Cause>) {
    let seconds = &lease["spec"]["leaseDurationSeconds"];
    if seconds.as_i64().is_some_and(|s| s <= 0) {
        causes.push(Cause::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
}

pub(super) fn binding(binding: &mut Value) {
    let group = "rbac.authorization.k8s.io";
    default(&mut binding["roleRef"], "apiGroup", json!(group));
    for subject in items_mut(binding, "subjects") {
        if subject["kind"] == "User" || subject["kind"] == "Group" {
            default(subject, "apiGroup", json!(group));
        }
    }
}

/// Events are checked as the server knows them within: `note` is told as `message`, `regarding` as `involvedObject`.
pub(super) fn check_event(event: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let namespace = text(&event["metadata"], "namespace");
    let regarding = text(&event["regarding"], "namespace");
    if regarding.is_empty() && namespace != "default" {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &json!(""), why));
    }
    if event["eventTime"].is_null() {
        causes.push(Cause::required("eventTime", ""));
    }
    let controller = text(event, "reportingController");
    if controller.is_empty() {
        causes.push(Cause::required("reportingController", ""));
    }
    names::qualified("reportingController", controller, causes);
    for member in ["reportingInstance", "action", "reason"] {
        if text(event, member).is_empty() {
            causes.push(Cause::required(member, ""));
        }
    }
    let kind = text(event, "type");
    if kind != "Normal" && kind != "Warning" {
        causes.push(Cause::invalid("type", &json!(""), &format!("has invalid value: {kind}")));
    }
    if text(event, "note").len() > 1024 {
        causes.push(Cause::invalid("message", &json!(""), "can have at most 1024 characters"));
    }
    if let Some(old) = old {
        let fixed =
            [("note", "message"), ("reason", "reason"), ("type", "type"), ("regarding", "involvedObject")];
        for (member, told) in fixed {
            if old[member] != event[member] {
                causes.push(Cause::invalid(told, &event[member], "field is immutable"));
            }
        }
    }
}
