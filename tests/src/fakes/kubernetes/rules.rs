//! What the server adds to an object that a client did not write, and what it refuses in one.
//!
//! Every kind has its own defaults and demands; what they share (names, labels, ports, CIDRs) is in [`names`]. All that is
//! wrong with an object is told at once, in the order in which the real server looks.

pub mod names;
mod objects;
mod pod;
mod policy;
mod service;

use serde_json::{Value, json};

use super::kinds::Resource;
use super::status::Cause;

/// Sets a member that is absent.
fn default(object: &mut Value, member: &str, value: Value) {
    if object[member].is_null() {
        object[member] = value;
    }
}

/// The items of a list, none if there is no list.
fn items<'a>(object: &'a Value, member: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    object[member].as_array().into_iter().flatten().enumerate()
}

fn items_mut<'a>(object: &'a mut Value, member: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(member).and_then(Value::as_array_mut).into_iter().flatten()
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member].as_str().unwrap_or_default()
}

/// Removes a member.
fn drop_member(object: &mut Value, member: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(member);
    }
}

/// Defaults of a new object, and of one that is written again (`old`).
pub fn defaults(resource: &Resource, object: &mut Value, old: Option<&Value>) {
    match resource.kind {
        "Namespace" => objects::namespace(object, old),
        "Node" => objects::node(object, old),
        "Pod" => pod::defaults(object, old),
        "Service" => service::defaults(object, old),
        "NetworkPolicy" => policy::defaults(object),
        "EndpointSlice" => objects::slice(object),
        "ClusterRoleBinding" | "RoleBinding" => objects::binding(object),
        _ => {}
    }
}

/// What is wrong with an object, and what its writer is to be warned of.
#[must_use]
pub fn validate(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Vec<Cause> {
    let mut causes = Vec::new();
    metadata(resource, object, old, &mut causes);
    match resource.kind {
        "Node" => objects::check_node(object, old, &mut causes),
        "Pod" => pod::check(object, old, &mut causes),
        "Service" => service::check(object, old, &mut causes, warnings),
        "NetworkPolicy" => policy::check(object, &mut causes, warnings),
        "EndpointSlice" => objects::check_slice(object, old, &mut causes, warnings),
        "Lease" => objects::check_lease(object, &mut causes),
        "Event" => objects::check_event(object, old, &mut causes),
        _ => {}
    }
    causes
}

/// What is wrong with the status alone.
#[must_use]
pub fn validate_status(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if resource.kind == "Pod" {
        for (i, ip) in items(&object["status"], "podIPs") {
            names::ip(&format!("status.podIPs[{i}]"), &ip["ip"], &mut causes);
        }
    }
    causes
}

fn metadata(resource: &Resource, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    let name = text(metadata, "name");
    if old.is_none() {
        let generated = text(metadata, "generateName");
        if name.is_empty() && generated.is_empty() {
            causes.push(Cause::required("metadata.name", "name or generateName is required"));
        } else if !name.is_empty() {
            match resource.kind {
                "Namespace" | "Service" => names::label_name("metadata.name", name, causes),
                _ if resource.group == "rbac.authorization.k8s.io" => {}
                _ => names::subdomain("metadata.name", name, causes),
            }
        }
    }
    let before = causes.len();
    names::labels("metadata.labels", &metadata["labels"], causes);
    if old.is_some() && resource.kind == "Pod" {
        // An update of a pod has its labels looked at twice.
        let again = causes[before..].to_vec();
        causes.extend(again);
    }
    for (i, owner) in items(metadata, "ownerReferences") {
        for member in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, member).is_empty() {
                let at = format!("metadata.ownerReferences[{i}].{member}");
                causes.push(Cause::invalid(at, &json!(""), "must not be empty"));
            }
        }
    }
}
