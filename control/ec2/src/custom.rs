//! Custom networking: which ENIConfig is a node's, and whether interfaces may be made by it.
//!
//! The VPC CNI takes an ENIConfig as it is and leaves it to EC2 to refuse each call that follows. Here it is looked at before
//! it is used: a subnet of another zone or VPC, one without a free address, a group of another VPC are found once, by name.

use std::collections::BTreeMap;
use std::fmt;

use crate::cloud::{Cloud, CloudError, ErrorKind, GroupId, IdError, SubnetFilter, SubnetId, VpcId};
use crate::pool::Network;
use crate::settings::CustomKeys;

/// A label that goes before all others (VPC CNI).
pub const EXTERNAL: &str = "vpc.amazonaws.com/externalEniConfig";
/// The ENIConfig of nodes that name none (VPC CNI).
pub const DEFAULT: &str = "default";

/// The name of a node's ENIConfig: the external label, the annotation, the label, or `default` (VPC CNI:
/// `pkg/eniconfig`). A zone label as key makes it the zone's.
pub fn name_of<'a>(
    keys: &CustomKeys,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
) -> &'a str {
    let found = labels
        .get(EXTERNAL)
        .or_else(|| annotations.get(&keys.annotation))
        .or_else(|| labels.get(&keys.label));
    found.map(String::as_str).filter(|name| !name.is_empty()).unwrap_or(DEFAULT)
}

/// An ENIConfig's `spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// `subnet`.
    pub subnet: Option<String>,
    /// `securityGroups`; empty: the primary interface's.
    pub groups: Vec<String>,
}

/// Where the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its VPC.
    pub vpc: VpcId,
    /// Its zone.
    pub zone: String,
}

/// Something in an ENIConfig by which no interface can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The field.
    pub field: &'static str,
    /// What it says.
    pub value: String,
    /// Why that does not do, and what would.
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} {}", self.field, self.value, self.why)
    }
}

/// Why an ENIConfig is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It says what cannot be.
    #[error("ENIConfig {name} is not used: {}", findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Findings {
        /// Its name.
        name: String,
        /// All that is wrong.
        findings: Vec<Finding>,
    },
    /// EC2 cannot be asked about it now.
    #[error("ENIConfig {name} cannot be checked: {error}")]
    Unknown {
        /// Its name.
        name: String,
        /// The reason.
        error: CloudError,
    },
}

/// Looks at an ENIConfig before it is used.
pub async fn check<C: Cloud>(cloud: &C, name: &str, spec: &Spec, place: &Place) -> Result<Network, Unusable> {
    let mut findings = Vec::new();
    let find = |field, value: &str, why: String| Finding { field, value: value.to_owned(), why };
    let unknown = |error| Unusable::Unknown { name: name.to_owned(), error };
    let mut subnet: Option<SubnetId> = None;
    match spec.subnet.as_deref().unwrap_or_default() {
        "" => {
            findings.push(find("spec.subnet", "", "is missing: name a subnet of the node's zone".to_owned()));
        }
        text => match text.parse::<SubnetId>() {
            Err(error) => findings.push(find("spec.subnet", text, format!("is none: {error}"))),
            Ok(id) => match cloud.describe_subnets(&SubnetFilter::Ids(vec![id.clone()])).await {
                Ok(found) => match found.into_iter().find(|subnet| subnet.id == id) {
                    None => {
                        findings.push(find("spec.subnet", text, "does not exist in this region".to_owned()));
                    }
                    Some(there) => {
                        let say = |why: String| find("spec.subnet", text, why);
                        if there.vpc != place.vpc {
                            findings
                                .push(say(format!("is of {}; the node's VPC is {}", there.vpc, place.vpc)));
                        } else if there.zone != place.zone {
                            let why = format!(
                                "is in {}; the node is in {}, and an interface cannot leave its zone",
                                there.zone, place.zone
                            );
                            findings.push(say(why));
                        } else if there.free == 0 {
                            findings.push(say(format!("has no free address in {}", there.cidr)));
                        }
                        subnet = Some(id);
                    }
                },
                Err(error) if error.kind == ErrorKind::Gone => {
                    findings.push(find("spec.subnet", text, "does not exist in this region".to_owned()));
                }
                // A role that may not ask still makes interfaces, and EC2 says what is wrong with them.
                Err(error) if error.kind == ErrorKind::Denied => subnet = Some(id),
                Err(error) => return Err(unknown(error)),
            },
        },
    }
    let parsed: Vec<Result<GroupId, IdError>> = spec.groups.iter().map(|text| text.parse()).collect();
    let mut groups = Vec::new();
    for (text, parsed) in spec.groups.iter().zip(parsed) {
        match parsed {
            Ok(group) => groups.push(group),
            Err(error) => findings.push(find("spec.securityGroups", text, format!("is none: {error}"))),
        }
    }
    if !groups.is_empty() {
        match cloud.describe_security_groups(&groups).await {
            Ok(found) => {
                for group in &groups {
                    let say = |why: String| find("spec.securityGroups", group.as_str(), why);
                    match found.iter().find(|there| there.id == *group) {
                        None => findings.push(say("does not exist in this region".to_owned())),
                        Some(there) if there.vpc != place.vpc => {
                            findings
                                .push(say(format!("is of {}; the node's VPC is {}", there.vpc, place.vpc)));
                        }
                        Some(_) => {}
                    }
                }
            }
            Err(error) if error.kind == ErrorKind::Gone => {
                findings.push(find("spec.securityGroups", &spec.groups.join(", "), error.message));
            }
            // AmazonEKS_CNI_Policy does not grant it.
            Err(error) if error.kind == ErrorKind::Denied => {}
            Err(error) => return Err(unknown(error)),
        }
    }
    match subnet {
        Some(subnet) if findings.is_empty() => Ok(Network { name: name.to_owned(), subnet, groups }),
        _ => Err(Unusable::Findings { name: name.to_owned(), findings }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_external_label_goes_before_the_annotation_and_that_before_the_label() {
        let keys = CustomKeys { annotation: "k8s.amazonaws.com/eniConfig".into(), label: "zone".into() };
        let labels = map(&[("zone", "eu-1a")]);
        let annotations = map(&[("k8s.amazonaws.com/eniConfig", "mine")]);
        assert_eq!(name_of(&keys, &map(&[]), &map(&[])), "default");
        assert_eq!(name_of(&keys, &labels, &map(&[])), "eu-1a");
        assert_eq!(name_of(&keys, &labels, &annotations), "mine");
        let external = map(&[("zone", "eu-1a"), (EXTERNAL, "theirs")]);
        assert_eq!(name_of(&keys, &external, &annotations), "theirs");
    }
}
