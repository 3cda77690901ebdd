//! Tags and words by which interfaces and subnets are known, as the VPC CNI writes and reads them.

use crate::cloud::{InstanceId, Tags};
use crate::moment::Moment;
use crate::settings::Settings;

/// On an interface: whose it is.
pub const INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
/// On an interface: since when, RFC 3339.
pub const CREATED: &str = "node.k8s.amazonaws.com/createdAt";
/// On an interface: of which cluster.
pub const CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
/// On an interface: made by a CNI plugin. EKS reads it.
pub const OWNER: &str = "eks:eni:owner";
/// On an interface: hands off, where the value is `true`.
pub const NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
/// On a subnet: for pods (any value but 0), or not (0).
pub const SUBNET_ROLE: &str = "kubernetes.io/role/cni";
/// On a subnet: only for the cluster whose name follows.
pub const SUBNET_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";
/// How the description of an interface begins.
pub const DESCRIPTION: &str = "aws-K8S-";

/// The tags of an interface that is made now. An operator's tags never replace ours.
pub fn of_new_interface(instance: &InstanceId, settings: &Settings, now: Moment) -> Tags {
    let mut tags = settings.tags.clone();
    tags.insert(INSTANCE.to_owned(), instance.to_string());
    tags.insert(CREATED.to_owned(), now.to_string());
    tags.insert(OWNER.to_owned(), "amazon-vpc-cni".to_owned());
    if let Some(cluster) = &settings.cluster {
        tags.insert(CLUSTER.to_owned(), cluster.clone());
    }
    tags
}
