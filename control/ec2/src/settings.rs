//! The environment variables of the VPC CNI that concern addresses, read once into types.
//!
//! Names, defaults and meaning are the VPC CNI's, so that `kubectl set env daemonset …` does what the EKS guide says.
//! One thing differs on purpose: where the VPC CNI falls back to a default when a value makes no sense, the whole set
//! is refused, with every variable that is wrong, its value and what would be valid. A silent default is how a node
//! ends with the wrong number of addresses.

use crate::cloud::Tags;
use crate::variables::{Reader, Refused};
use std::collections::BTreeMap;
use std::time::Duration;

/// How many addresses to hold in reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `WARM_ENI_TARGET` interfaces' worth of free addresses (default 1).
    Interfaces(u32),
    /// `WARM_PREFIX_TARGET` free /28 (only with prefix delegation).
    Prefixes(u32),
    /// `WARM_IP_TARGET` free addresses and `MINIMUM_IP_TARGET` in all; each 0 when not set.
    Addresses {
        /// Free addresses wanted.
        warm: u32,
        /// Addresses wanted in all, free or not.
        minimum: u32,
    },
}

/// Which node annotation and label name an ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomKeys {
    /// `ENI_CONFIG_ANNOTATION_DEF`.
    pub annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`.
    pub label: String,
}

/// Everything about addresses that an operator sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The warm target.
    pub target: Target,
    /// `MAX_ENI`: interfaces at most, beside the type's own limit. `None` where it is not set.
    pub max_interfaces: Option<u32>,
    /// `ENABLE_PREFIX_DELEGATION`.
    pub prefixes: bool,
    /// `IP_COOLDOWN_PERIOD`.
    pub cooldown: Duration,
    /// `ENABLE_SUBNET_DISCOVERY`.
    pub discover_subnets: bool,
    /// `ADDITIONAL_ENI_TAGS`.
    pub tags: Tags,
    /// `CLUSTER_NAME`; `None` where it is empty.
    pub cluster: Option<String>,
    /// `DISABLE_LEAKED_ENI_CLEANUP`, turned round.
    pub sweep: bool,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING` and `ENABLE_IMDS_ONLY_MODE`, turned round: whether interfaces and
    /// addresses are asked of EC2 at all. Without it the pool lives on what IMDS shows.
    pub provision: bool,
    /// `MANAGE_UNTAGGED_ENI`: whether interfaces that nobody tagged as the CNI's are used.
    pub manage_untagged: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`: whether a cordoned node's interfaces still change.
    pub manage_cordoned: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`, with the keys that name the ENIConfig.
    pub custom: Option<CustomKeys>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            target: Target::Interfaces(1),
            max_interfaces: None,
            prefixes: false,
            cooldown: Duration::from_secs(30),
            discover_subnets: true,
            tags: Tags::new(),
            cluster: None,
            sweep: true,
            provision: true,
            manage_untagged: true,
            manage_cordoned: false,
            custom: None,
        }
    }
}

impl Settings {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, Refused> {
        Self::read(|variable| std::env::var(variable).ok())
    }

    /// Reads variables through `lookup`. Refuses the whole set when one of them makes no sense.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Refused> {
        let mut reader = Reader::new(lookup);
        let prefixes = reader.flag("ENABLE_PREFIX_DELEGATION").unwrap_or(false);
        let warm = reader.number("WARM_IP_TARGET", 0..=65_535);
        let minimum = reader.number("MINIMUM_IP_TARGET", 0..=65_535);
        let warm_interfaces = reader.number("WARM_ENI_TARGET", 0..=255);
        let warm_prefixes = reader.number("WARM_PREFIX_TARGET", 0..=4_096);
        let target = if warm.unwrap_or(0) > 0 || minimum.unwrap_or(0) > 0 {
            Target::Addresses { warm: warm.unwrap_or(0), minimum: minimum.unwrap_or(0) }
        } else if prefixes {
            // The code's default is 0 and refused; the manifest that everybody installs sets 1.
            match warm_prefixes {
                Some(0) => {
                    let valid = "with ENABLE_PREFIX_DELEGATION at least one of WARM_PREFIX_TARGET, WARM_IP_TARGET \
                                 and MINIMUM_IP_TARGET must be above 0";
                    reader.refuse("WARM_PREFIX_TARGET", "0".to_owned(), valid);
                    Target::Prefixes(1)
                }
                set => Target::Prefixes(set.unwrap_or(1)),
            }
        } else {
            Target::Interfaces(warm_interfaces.unwrap_or(1))
        };
        // The VPC CNI takes values below 1 for "not set".
        let max_interfaces = match reader.text("MAX_ENI").as_deref() {
            Some("-1" | "0") => None,
            _ => reader.number("MAX_ENI", 1..=255),
        };
        let custom = reader.flag("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG").unwrap_or(false).then(|| CustomKeys {
            annotation: reader.text("ENI_CONFIG_ANNOTATION_DEF").unwrap_or_else(default_key),
            label: reader.text("ENI_CONFIG_LABEL_DEF").unwrap_or_else(default_key),
        });
        let settings = Self {
            target,
            max_interfaces,
            prefixes,
            cooldown: Duration::from_secs(u64::from(
                reader.number("IP_COOLDOWN_PERIOD", 0..=86_400).unwrap_or(30),
            )),
            discover_subnets: reader.flag("ENABLE_SUBNET_DISCOVERY").unwrap_or(true),
            tags: tags(&mut reader),
            cluster: reader.text("CLUSTER_NAME"),
            sweep: !reader.flag("DISABLE_LEAKED_ENI_CLEANUP").unwrap_or(false),
            provision: !reader.flag("DISABLE_NETWORK_RESOURCE_PROVISIONING").unwrap_or(false)
                & !reader.flag("ENABLE_IMDS_ONLY_MODE").unwrap_or(false),
            manage_untagged: reader.flag("MANAGE_UNTAGGED_ENI").unwrap_or(true),
            manage_cordoned: reader.flag("AWS_MANAGE_ENIS_NON_SCHEDULABLE").unwrap_or(false),
            custom,
        };
        reader.done(settings)
    }
}

fn tags(reader: &mut Reader<impl Fn(&str) -> Option<String>>) -> Tags {
    const VARIABLE: &str = "ADDITIONAL_ENI_TAGS";
    let Some(value) = reader.text(VARIABLE) else { return Tags::new() };
    let Ok(tags) = serde_json::from_str::<BTreeMap<String, String>>(&value) else {
        reader.refuse(VARIABLE, value, "a JSON object of strings, {\"key\": \"value\"}, is valid");
        return Tags::new();
    };
    let wrong = tags.iter().find_map(|(key, text)| {
        if key.contains("k8s.amazonaws.com") {
            Some(format!("the key {key:?} is the CNI's own; keys without k8s.amazonaws.com are valid"))
        } else if key.starts_with("aws:") || key.is_empty() || key.len() > 128 || text.len() > 256 {
            Some(format!(
                "key {key:?}: EC2 takes keys of 1 to 128 and values of 0 to 256 characters, not aws:…"
            ))
        } else {
            None
        }
    });
    // EC2 takes 50 tags; four are ours.
    let wrong = wrong.or((tags.len() > 46).then(|| format!("{} tags; at most 46 are valid", tags.len())));
    match wrong {
        Some(valid) => {
            reader.refuse(VARIABLE, value, valid);
            Tags::new()
        }
        None => tags,
    }
}

fn default_key() -> String {
    "k8s.amazonaws.com/eniConfig".to_owned()
}

#[cfg(test)]
mod tests;
