//! Dependencies run in one direction: a reader must be able to understand the packet path without the control plane.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// For each crate, the crates of ours that it may name (outside its tests).
const ALLOWED: &[(&str, &[&str])] = &[
    ("sluice-state", &[]),
    ("sluice-engine", &["sluice-state"]),
    ("sluice-io", &["sluice-engine"]),
    ("sluice-bpf", &[]),
    ("sluice-netlink", &[]),
    ("sluiced", &["sluice-bpf", "sluice-engine", "sluice-io", "sluice-state"]),
    ("sluice-ec2", &[]),
    ("sluice-policy", &["sluice-state"]),
    ("sluice-kube", &["sluice-policy", "sluice-state"]),
    ("sluice-cni", &["sluice-netlink", "sluice-state"]),
    (
        "sluice-agent",
        &["sluice-cni", "sluice-ec2", "sluice-kube", "sluice-netlink", "sluice-policy", "sluice-state"],
    ),
    ("sluice", &["sluice-cni", "sluice-engine", "sluice-io", "sluice-kube", "sluice-policy", "sluice-state"]),
    ("sluice-star", &[]),
    ("sluice-bench", &["sluice-bpf", "sluice-engine", "sluice-io", "sluice-state"]),
    ("sluice-tests", &["sluice-bpf", "sluice-engine", "sluice-io", "sluice-policy", "sluice-state"]),
];

#[test]
fn every_arrow_points_the_allowed_way() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs in the workspace");
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is in no row of ALLOWED", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            if ours.contains(dependency.name.as_str()) && !may.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_packet_path_names_no_runtime_no_tls_and_no_cloud() {
    let metadata = MetadataCommand::new().exec().expect("cargo metadata runs in the workspace");
    let resolve = metadata.resolve.expect("a resolved graph");
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (p.id.clone(), p.name.to_string())).collect();
    let root =
        metadata.packages.iter().find(|p| p.name.as_str() == "sluiced").expect("the daemon").id.clone();
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|n| (n.id.clone(), n)).collect();
    let mut seen = BTreeSet::new();
    let mut queue = vec![root];
    while let Some(id) = queue.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let normal =
            nodes[&id].deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        queue.extend(normal.map(|d| d.pkg.clone()));
    }
    for name in seen.iter().map(|id| &names[id]) {
        let banned = ["tokio", "rustls", "openssl", "hyper", "kube"].contains(&name.as_str())
            || name.starts_with("aws");
        assert!(!banned, "sluiced depends on {name}");
    }
}
