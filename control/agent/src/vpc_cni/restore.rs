//! The way back: what aws-node must find so that it takes this node's live pods over again.
//!
//! It lays its chains and marks by itself when it starts. Two things it does not: it takes leases from its own file only,
//! and it lays the rules for a pod's address only when the pod is made.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use sluice_ec2::checkpoint::Checkpoint;
use sluice_ec2::store::Store;

use super::host::{Host, HostError, MAIN, Rule, add_rule};
use super::ipam::{Allocation, Leases, LeasesError, replace};
use super::names::host_interface;
use super::plan::{FROM_ENI, FROM_POD, TO_POD};
use super::record::{Record, RecordError};

/// Why the way back is not open.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The kernel cannot be asked or changed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The VPC CNI's file cannot be written.
    #[error(transparent)]
    Leases(#[from] LeasesError),
    /// The pool's checkpoint makes no sense.
    #[error("{}: {why}; without it the pods that Sluice has made have no lease: restart the agent, which rebuilds it, or leave it out to bring back only what was taken over", path.display())]
    Checkpoint {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is no lease to give back.
    #[error("no lease of a live pod is known: neither {} nor --checkpoint FILE has one. Nothing was written", record.display())]
    Nothing {
        /// The record that was looked at.
        record: PathBuf,
    },
    /// The ENI of some pods is not known.
    #[error("{}. Nothing was written: restart these pods once aws-node runs, or lay the ENI's table and its rule at 32765 first", pods.join("; "))]
    NoTable {
        /// Which, and what is missing.
        pods: Vec<String>,
    },
    /// The VPC CNI has leases of its own already.
    #[error("{} is there: aws-node has run here since, or runs. Nothing was written; move it away if it is an old one", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
}

/// What is given back.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Return {
    /// Leases of live pods.
    pub(crate) allocations: Vec<Allocation>,
    /// Rules to lay, where they are not there.
    pub(crate) rules: Vec<Rule>,
    /// Leases whose pods are gone.
    pub(crate) dropped: Vec<String>,
}

/// A lease, and which ENI owns its address.
type Known = (Allocation, Owner);

/// Which ENI owns an address.
enum Owner {
    /// The one that the record's rules say; without one the primary.
    Recorded,
    /// The primary.
    Primary,
    /// A secondary one with this address of its own.
    Secondary(Ipv4Addr),
    /// The pool has lost it.
    Unknown,
}

impl Return {
    /// Looks. Nothing is changed.
    pub(crate) fn look(record: &Path, checkpoint: Option<&Path>, prefix: &str) -> Result<Self, RestoreError> {
        let written = Record::read(record)?;
        let mut known: Vec<Known> = checkpoint.map(leases_of).transpose()?.unwrap_or_default();
        let rules = written.as_ref().map(|r| r.rules.clone()).unwrap_or_default();
        // What the pool says is newer.
        for allocation in written.into_iter().flat_map(|record| record.allocations) {
            if known.iter().all(|(k, _)| k.address != allocation.address) {
                known.push((allocation, Owner::Recorded));
            }
        }
        let found = Self::of(known, &rules, &Host::read()?, prefix)?;
        if found.allocations.is_empty() {
            return Err(RestoreError::Nothing { record: record.to_owned() });
        }
        Ok(found)
    }

    /// What is given back of these leases, on this host.
    fn of(known: Vec<Known>, recorded: &[Rule], host: &Host, prefix: &str) -> Result<Self, RestoreError> {
        let mut found = Self::default();
        let mut lost = Vec::new();
        for (allocation, owner) in known {
            let address = allocation.address;
            let name = host_interface(prefix, &allocation.namespace, &allocation.name);
            let live = host.named(&name).is_some_and(|link| host.pods.get(&address) == Some(&link.ifindex));
            if !live {
                found.dropped.push(format!("{} {address}", allocation.pod()));
                continue;
            }
            let only = Ipv4Net::from(address);
            let rule = |priority| Rule { priority, from: None, to: None, mark: None, table: MAIN };
            found.rules.push(Rule { to: Some(only), ..rule(TO_POD) });
            let by_record = recorded.iter().find(|r| r.priority == FROM_POD && r.from == Some(only)).copied();
            let of_eni = |own: Ipv4Addr| {
                let own = Some(Ipv4Net::from(own));
                host.rules.iter().find(|r| r.priority == FROM_ENI && r.from == own).map(|r| r.table)
            };
            match (by_record, owner) {
                (Some(rule), _) => found.rules.push(rule),
                (None, Owner::Recorded | Owner::Primary) => {}
                (None, Owner::Secondary(own)) => match of_eni(own) {
                    Some(table) => found.rules.push(Rule { from: Some(only), table, ..rule(FROM_POD) }),
                    None => lost.push(format!(
                        "{} {address} is on the ENI of {own}, which no rule at {FROM_ENI} gives a table",
                        allocation.pod()
                    )),
                },
                (None, Owner::Unknown) => {
                    lost.push(format!("{} {address} is on no ENI that the pool knows", allocation.pod()));
                }
            }
            found.allocations.push(allocation);
        }
        if lost.is_empty() { Ok(found) } else { Err(RestoreError::NoTable { pods: lost }) }
    }

    /// Writes the rules and then the leases: aws-node that starts in between finds none, and drops nothing that it knows.
    pub(crate) fn run(&self, leases: &Path) -> Result<(), RestoreError> {
        if leases.exists() {
            let same = Leases::read(leases)?.is_some_and(|found| found.allocations == self.allocations);
            if !same {
                return Err(RestoreError::Exists { path: leases.to_owned() });
            }
        }
        for rule in &self.rules {
            add_rule(*rule)?;
        }
        replace(leases, &Leases::encode(&self.allocations))
            .map_err(|source| RestoreError::Leases(LeasesError::File { path: leases.to_owned(), source }))
    }
}

/// The leases of the pool's checkpoint.
fn leases_of(path: &Path) -> Result<Vec<Known>, RestoreError> {
    let failed = |why: String| RestoreError::Checkpoint { path: path.to_owned(), why };
    let text = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let checkpoint = Checkpoint::decode(&text).map_err(failed)?;
    let store = Store::load(checkpoint.store).map_err(failed)?;
    let known = store.leases().values().filter_map(|lease| {
        let allocation = Allocation::of_lease(lease)?;
        let owner = match store.enis().get(&lease.eni) {
            None => Owner::Unknown,
            Some(eni) if eni.is_primary() => Owner::Primary,
            Some(eni) => Owner::Secondary(eni.primary),
        };
        Some((allocation, owner))
    });
    Ok(known.collect())
}
