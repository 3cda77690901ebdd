//! The demo's manifests, in the program itself, so that it needs no checkout; and how their containers are run where
//! there is no kubelet.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_json::Value;

use super::expect::Policy;

macro_rules! manifests {
    ($($name:literal => $path:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../deploy/stars/", $path)))),*]
    };
}

/// Everything but the policies: file name and text.
const WORKLOADS: &[(&str, &str)] = manifests! {
    "namespaces.yaml" => "base/namespaces.yaml",
    "frontend.yaml" => "base/frontend.yaml",
    "backend.yaml" => "base/backend.yaml",
    "client.yaml" => "base/client.yaml",
    "management-ui.yaml" => "base/management-ui.yaml",
    "dns.yaml" => "lab/dns.yaml",
    "visitor.yaml" => "lab/visitor.yaml",
};

/// A policy's file name and text.
pub(super) const fn policy(policy: Policy) -> (&'static str, &'static str) {
    const TEXTS: &[(&str, &str)] = manifests! {
        "s1-default-deny.yaml" => "policies/s1-default-deny.yaml",
        "s2-allow-ui.yaml" => "policies/s2-allow-ui.yaml",
        "s3-backend-policy.yaml" => "policies/s3-backend-policy.yaml",
        "s4-frontend-policy.yaml" => "policies/s4-frontend-policy.yaml",
    };
    TEXTS[policy as usize]
}

/// Writes the workloads into a directory.
///
/// # Errors
/// The file system refuses.
pub(super) fn write(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, text) in WORKLOADS {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A container that a manifest wants to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// The pod's namespace.
    pub(super) namespace: String,
    /// The name of the pod, or of the workload that makes it.
    pub(super) name: String,
    /// What its image is called with.
    pub(super) args: Vec<String>,
}

/// The containers of all workloads.
///
/// # Errors
/// A manifest is not what this program expects of its own.
pub(super) fn containers() -> Result<Vec<Container>> {
    let mut found = Vec::new();
    for (file, text) in WORKLOADS {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let object = Value::deserialize(document).with_context(|| format!("{file} is no YAML"))?;
            let spec = match object["kind"].as_str() {
                Some("Deployment") => &object["spec"]["template"]["spec"],
                Some("Pod") => &object["spec"],
                _ => continue,
            };
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let container = &spec["containers"][0];
            let args = container["args"].as_array().and_then(|args| args.iter().map(text).collect());
            let meta = &object["metadata"];
            found.push(Container {
                namespace: text(&meta["namespace"]).with_context(|| format!("{file}: no namespace"))?,
                name: text(&meta["name"]).with_context(|| format!("{file}: no name"))?,
                args: args.with_context(|| format!("{file}: no args"))?,
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::expect::Who;
    use super::*;

    #[test]
    fn the_manifests_are_the_demo_that_is_expected() {
        let containers = containers().unwrap();
        assert_eq!(containers.len(), Who::PODS.len() + 1, "the demo's pods and the name server");
        for who in Who::PODS {
            let found = containers.iter().find(|c| c.name == who.name() && c.namespace == who.namespace());
            let container = found.unwrap_or_else(|| panic!("no manifest of {}", who.name()));
            assert!(container.args.contains(&format!("--port={}", who.port())), "{container:?}");
            let asked: Vec<_> = container.args.iter().filter_map(|a| a.strip_prefix("--probe=")).collect();
            let expected: Vec<_> = who.asks().iter().map(|to| to.url()).collect();
            assert_eq!(asked, expected, "{}", who.name());
        }
    }

    #[test]
    fn every_policy_has_a_file_of_its_own() {
        for one in Policy::ALL {
            let (name, text) = policy(one);
            assert!(
                name.starts_with(&one.name().to_lowercase()) && text.contains(&format!("# {}:", one.name()))
            );
            assert!(text.contains("kind: NetworkPolicy"));
        }
    }
}
