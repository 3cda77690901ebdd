//! What a client is told of which groups and resources there are. It is as little as `kubectl get` and generated clients need.

use serde_json::{Value, json};

use super::kinds::{RESOURCES, Resource};

fn groups(custom: bool) -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for resource in RESOURCES.iter().filter(|r| custom || !r.custom) {
        if !resource.group.is_empty() && !groups.contains(&(resource.group, resource.version)) {
            groups.push((resource.group, resource.version));
        }
    }
    groups
}

/// `/api`.
#[must_use]
pub fn core() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "API-SERVER" }],
    })
}

/// `/apis`.
#[must_use]
pub fn all(custom: bool) -> Value {
    let groups: Vec<Value> = groups(custom)
        .into_iter()
        .map(|(group, version)| {
            let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
            json!({ "name": group, "versions": [version], "preferredVersion": version })
        })
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// The resources of a group and version. `custom_status`: has the CRD of `ENIConfig` a status subresource?
#[must_use]
pub fn group(group: &str, version: &str, custom_status: bool) -> Value {
    let ours = RESOURCES.iter().filter(|r| r.group == group && r.version == version);
    let resources: Vec<Value> =
        ours.flat_map(|r| resource(r, r.status && (custom_status || !r.custom))).collect();
    let group_version = if group.is_empty() { version.into() } else { format!("{group}/{version}") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}

fn resource(resource: &Resource, status: bool) -> Vec<Value> {
    const VERBS: [&str; 8] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let entry = |name: String, singular: String, verbs: &[&str]| {
        json!({
            "name": name, "singularName": singular, "namespaced": resource.namespaced, "kind": resource.kind, "verbs": verbs,
        })
    };
    let mut entries = vec![entry(resource.plural.into(), resource.kind.to_lowercase(), &VERBS)];
    if status {
        let status = format!("{}/status", resource.plural);
        entries.push(entry(status, String::new(), &["get", "patch", "update"]));
    }
    entries
}

/// `/version`.
#[must_use]
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": "v1.36.2",
        "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean",
        "buildDate": "2026-08-21T00:00:00Z", "goVersion": "go1.26.6", "compiler": "gc", "platform": "linux/amd64",
    })
}
