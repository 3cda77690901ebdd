//! What an instance type takes when EC2 may not be asked.
//!
//! `DescribeInstanceTypes` is the authority. A node whose role lacks that permission still has to start, so a table
//! of every type known when it was generated stands beside the code (`data/limits.txt`, made by
//! `data/generate-limits.py`). A type that is in neither is an error that says so: guessing low wastes a node, and
//! guessing high has EC2 refuse calls for ever.

use crate::cloud::{Card, Limits};

const TABLE: &str = include_str!("../data/limits.txt");

/// A type that the table does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "instance type {instance_type:?} is not among the {known} types of the built-in table; \
     grant ec2:DescribeInstanceTypes, or use a release of Sluice that knows the type"
)]
pub struct UnknownType {
    /// What was asked for.
    pub instance_type: String,
    /// How many types the table has.
    pub known: usize,
}

/// The table's entry of a type.
pub fn from_table(instance_type: &str) -> Result<Limits, UnknownType> {
    rows()
        .find_map(|row| limits(row).filter(|l| l.instance_type == instance_type))
        .ok_or_else(|| UnknownType { instance_type: instance_type.to_owned(), known: rows().count() })
}

fn rows() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn limits(row: &str) -> Option<Limits> {
    let mut columns = row.split(' ');
    let limits = Limits {
        instance_type: columns.next()?.to_owned(),
        interfaces: columns.next()?.parse().ok()?,
        addresses: columns.next()?.parse().ok()?,
        default_card: columns.next()?.parse().ok()?,
        cards: columns
            .next()?
            .split(',')
            .map(|card| {
                let (index, interfaces) = card.split_once(':')?;
                Some(Card { index: index.parse().ok()?, interfaces: interfaces.parse().ok()? })
            })
            .collect::<Option<_>>()?,
        nitro: columns.next()? == "nitro",
    };
    Some(limits)
}

/// How many pods a node of these limits takes, two host-network pods included (VPC CNI: `eni-max-pods.txt`).
///
/// Custom networking takes the primary interface out: `(interfaces - 1) × (addresses - 1) + 2`. With prefixes every
/// slot holds 16 addresses. The answer is what addresses allow; kubelet's own recommendation of at most 110 (250 from
/// 30 vCPUs on) is not applied.
pub fn max_pods(limits: &Limits, custom_networking: bool, prefixes: bool) -> u32 {
    let interfaces = limits.interfaces.saturating_sub(u32::from(custom_networking));
    let slots = interfaces.saturating_mul(limits.addresses.saturating_sub(1));
    slots.saturating_mul(if prefixes { 16 } else { 1 }).saturating_add(2)
}

/// How many interfaces a node needs for so many pods, the primary one included: [`max_pods`] the other way round.
pub fn interfaces_for(limits: &Limits, pods: u32, custom_networking: bool, prefixes: bool) -> u32 {
    let per_interface = limits.addresses.saturating_sub(1).saturating_mul(if prefixes { 16 } else { 1 });
    let needed = pods.saturating_sub(2).div_ceil(per_interface.max(1));
    (needed + u32::from(custom_networking)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read_and_types_are_what_ec2_says() {
        for row in rows() {
            let read = limits(row).unwrap_or_else(|| panic!("{row}"));
            assert!(read.interfaces > 0 && read.addresses > 0 && !read.cards.is_empty(), "{row}");
            assert!(read.cards.iter().any(|c| c.index == read.default_card), "{row}");
        }
        let stated = TABLE.lines().find_map(|l| l.strip_prefix("# ")?.split_once(" types."));
        assert_eq!(stated.map(|(n, _)| n.parse()), Some(Ok(rows().count())));
        let m5 = from_table("m5.4xlarge").unwrap();
        assert_eq!((m5.interfaces, m5.addresses, m5.nitro), (8, 30, true));
        let t2 = from_table("t2.micro").unwrap();
        assert_eq!((t2.interfaces, t2.addresses, t2.nitro), (2, 2, false));
        assert_eq!(from_table("p4d.24xlarge").unwrap().cards.len(), 4);
    }

    #[test]
    fn an_unknown_type_says_so() {
        let error = from_table("m5").unwrap_err().to_string();
        assert!(error.contains("\"m5\"") && error.contains("ec2:DescribeInstanceTypes"), "{error}");
    }

    #[test]
    fn max_pods_are_those_of_the_vpc_cni() {
        for (name, plain, custom) in [("m5.large", 29, 20), ("c6in.32xlarge", 394, 345)] {
            // The VPC CNI's list counts the default card of a type with several cards only.
            let mut limits = from_table(name).unwrap();
            limits.interfaces = limits.cards[0].interfaces;
            assert_eq!(max_pods(&limits, false, false), plain, "{name}");
            assert_eq!(max_pods(&limits, true, false), custom, "{name}");
        }
        let c7gn = from_table("c7gn.16xlarge").unwrap();
        assert_eq!((max_pods(&c7gn, false, false), max_pods(&c7gn, false, true)), (737, 11_762));
    }

    #[test]
    fn interfaces_for_is_max_pods_the_other_way_round() {
        let limits = from_table("m5.large").unwrap();
        for custom in [false, true] {
            for prefixes in [false, true] {
                for interfaces in 1 + u32::from(custom)..=3 {
                    let most = max_pods(&Limits { interfaces, ..limits.clone() }, custom, prefixes);
                    assert_eq!(interfaces_for(&limits, most, custom, prefixes), interfaces);
                    assert_eq!(interfaces_for(&limits, most + 1, custom, prefixes), interfaces + 1);
                }
            }
        }
        assert_eq!(interfaces_for(&limits, 0, false, false), 1);
    }
}
