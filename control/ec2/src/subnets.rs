//! In which subnet an interface is made, by the VPC CNI's tags.
//!
//! Without custom networking an operator gives nodes more addresses by tagging subnets. Which of the zone's subnets
//! qualify is decided here; the one with the most free addresses comes first, the others follow for when it is full.

use crate::cloud::{Subnet, SubnetId};
use crate::moment::Moment;
use crate::tags;
use std::collections::BTreeMap;

/// The subnets in which an interface may be made now, best first. `exhausted` rest until their time.
///
/// VPC CNI: the primary interface's subnet counts unless `kubernetes.io/role/cni` is 0, another one only where that tag
/// is there and not 0; a subnet with tags `cni.networking.k8s.aws/cluster/NAME` counts only for those clusters.
pub fn eligible(
    subnets: &[Subnet],
    primary: &SubnetId,
    cluster: Option<&str>,
    exhausted: &BTreeMap<SubnetId, Moment>,
    now: Moment,
) -> Vec<SubnetId> {
    let role = |subnet: &Subnet| match subnet.tags.get(tags::SUBNET_ROLE).map(String::as_str) {
        Some(value) => value != "0",
        None => subnet.id == *primary,
    };
    let ours = |subnet: &Subnet| {
        let mut clusters = subnet.tags.keys().filter_map(|k| k.strip_prefix(tags::SUBNET_CLUSTER)).peekable();
        clusters.peek().is_none() || clusters.any(|name| Some(name) == cluster)
    };
    let rested = |subnet: &Subnet| exhausted.get(&subnet.id).is_none_or(|until| *until <= now);
    let mut found: Vec<_> =
        subnets.iter().filter(|s| role(s) && ours(s) && rested(s) && s.free > 0).collect();
    found.sort_by_key(|subnet| (std::cmp::Reverse(subnet.free), subnet.id.clone()));
    found.into_iter().map(|subnet| subnet.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn subnet(id: &str, free: u32, tags: &[(&str, &str)]) -> Subnet {
        Subnet {
            id: id.parse().unwrap(),
            vpc: "vpc-1".parse().unwrap(),
            zone: "a".into(),
            cidr: "10.0.0.0/20".parse().unwrap(),
            free,
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn of(subnets: &[Subnet], cluster: Option<&str>) -> Vec<String> {
        let primary = "subnet-0".parse().unwrap();
        let found = eligible(subnets, &primary, cluster, &BTreeMap::new(), Moment(0));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tags_choose_and_free_addresses_order() {
        let role = tags::SUBNET_ROLE;
        let all = [
            subnet("subnet-0", 10, &[]),
            subnet("subnet-1", 20, &[(role, "1")]),
            subnet("subnet-2", 90, &[]),
            subnet("subnet-3", 90, &[(role, "0")]),
            subnet("subnet-4", 0, &[(role, "1")]),
            subnet("subnet-5", 5, &[(role, "1"), ("cni.networking.k8s.aws/cluster/blue", "shared")]),
        ];
        assert_eq!(of(&all, None), ["subnet-1", "subnet-0"]);
        assert_eq!(of(&all, Some("blue")), ["subnet-1", "subnet-0", "subnet-5"]);
        assert_eq!(of(&all, Some("green")), ["subnet-1", "subnet-0"]);
        assert_eq!(of(&[subnet("subnet-0", 10, &[(role, "0")])], None), Vec::<String>::new());
    }

    #[test]
    fn a_full_subnet_rests() {
        let (primary, now): (SubnetId, _) = ("subnet-0".parse().unwrap(), Moment(1_000));
        let exhausted = [(primary.clone(), now.after(Duration::from_secs(1)))].into();
        let all = [subnet("subnet-0", 10, &[])];
        assert_eq!(eligible(&all, &primary, None, &exhausted, now), []);
        assert_eq!(eligible(&all, &primary, None, &exhausted, Moment(2_000)), [primary]);
    }
}
