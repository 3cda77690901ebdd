//! Looking at the node, and taking it over step by step.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_state::query::{Answer, Client, PodStatus, Query};

use super::host::{Host, HostError, Rule, remove_rule};
use super::ipam::{Leases, LeasesError};
use super::plan::{Plan, plan};
use super::record::{Record, RecordError};
use super::tables::{self, Ours, TablesError};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a node is not taken over, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The leases cannot be had.
    #[error(transparent)]
    Leases(#[from] LeasesError),
    /// The kernel cannot be asked or changed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// iptables or nftables cannot be read or changed.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The leases' file cannot be put aside.
    #[error("{} cannot be put aside: {source}", path.display())]
    Aside {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Nobody says which pods the daemon has.
    #[error(
        "no daemon answers at {}: {why}. Nothing was removed: without a daemon the VPC CNI's rules are all that these pods have. \
         Start sluiced and the agent, or name another place with --query-socket PATH",
        socket.display()
    )]
    Daemon {
        /// Its query socket.
        socket: PathBuf,
        /// Why not.
        why: String,
    },
    /// The daemon does not have every pod.
    #[error(
        "the daemon does not have {} of {} pod(s) in force yet: {}. Nothing was removed; wait for the agent (--wait SECONDS), \
         and see `sluice-agent adopt --dry-run` for what it must know",
        missing.len(), of, missing.join(", ")
    )]
    NotInForce {
        /// Which, and what is wrong.
        missing: Vec<String>,
        /// Of how many.
        of: usize,
    },
}

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) leases: PathBuf,
    pub(crate) record: PathBuf,
    pub(crate) query: PathBuf,
    pub(crate) prefix: String,
}

/// What there is.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) plan: Plan,
    /// Whether the VPC CNI's file of leases is there.
    pub(crate) leases: bool,
    record: Option<Record>,
    tables: Vec<Ours>,
    nft: bool,
    /// The daemon's pods, or why it does not tell.
    pub(crate) daemon: Result<Vec<PodStatus>, String>,
}

/// One step. Each is done or not, and found done by the next survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write down what comes over.
    Record(Record),
    /// A rule goes.
    Rule(Rule),
    /// What is the VPC CNI's in a table goes.
    Table(Ours),
    /// Its table of nftables goes.
    NftTable,
    /// Its leases go aside: from now on they are Sluice's.
    Aside,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(record) => write!(f, "write down {} lease(s)", record.allocations.len()),
            Self::Rule(rule) => write!(f, "ip rule del {rule}"),
            Self::Table(Ours { backend, table, rules, chains, held }) => {
                write!(
                    f,
                    "{backend}, table {table}: {} rule(s), chain(s) {}",
                    rules.len(),
                    if chains.is_empty() { "none".into() } else { chains.join(", ") }
                )?;
                held.iter().try_for_each(|(chain, rule)| write!(f, "; {chain} stays, empty, for `{rule}`"))
            }
            Self::NftTable => write!(f, "nft delete table ip aws-cni"),
            Self::Aside => write!(f, "put the VPC CNI's leases aside"),
        }
    }
}

impl Survey {
    /// Looks. Nothing is changed.
    pub(crate) fn look(files: &Files) -> Result<Self, TakeoverError> {
        let leases = Leases::read(&files.leases)?;
        let record = Record::read(&files.record)?;
        let host = Host::read()?;
        let daemon = pods(&files.query);
        let served: BTreeSet<String> =
            daemon.iter().flatten().filter(|pod| pod.attached).map(|pod| pod.interface.clone()).collect();
        // The VPC CNI's word is newer than what an earlier run wrote down.
        let there = leases.is_some();
        let Leases { mut allocations, refused } = leases.unwrap_or_default();
        allocations.extend(record.iter().flat_map(|record| record.allocations.clone()));
        let recorded = record.as_ref().map_or(&[][..], |record| &record.rules);
        let mut plan = plan(&allocations, &refused, recorded, &host, &files.prefix, &served);
        let mut tables = tables::read()?;
        let mut nft = tables::nft_table()?;
        if !there && record.is_none() && plan.taken.is_empty() {
            // Nothing here was ever the VPC CNI's, as far as anybody knows: a rule of its number is somebody else's.
            plan.shared.clear();
        }
        if !plan.takes_all() {
            tables.clear();
            nft = false;
        }
        Ok(Self { plan, leases: there, record, tables, nft, daemon })
    }

    /// What is to be done, in its order (`docs/runbooks/migrate.md` says why it is this).
    pub(crate) fn steps(&self) -> Vec<Step> {
        let plan = &self.plan;
        let mut steps = Vec::new();
        let allocations: Vec<_> = plan.taken.iter().map(|taken| taken.allocation.clone()).collect();
        let mut rules: Vec<Rule> = self.record.iter().flat_map(|record| record.rules.clone()).collect();
        rules.extend(plan.taken.iter().flat_map(|taken| taken.rules.clone()));
        rules.retain(|rule| {
            let of = rule.from.or(rule.to).map(|net| net.addr());
            allocations.iter().any(|allocation| Some(allocation.address) == of)
        });
        rules.sort_unstable();
        rules.dedup();
        let record = Record::new(allocations, rules);
        if self.record.as_ref() != Some(&record) && (self.leases || self.record.is_some()) {
            steps.push(Step::Record(record));
        }
        steps.extend(plan.by_source().map(Step::Rule));
        steps.extend(self.tables.iter().cloned().map(Step::Table));
        if self.nft {
            steps.push(Step::NftTable);
        }
        if plan.takes_all() {
            steps.extend(plan.shared.iter().copied().map(Step::Rule));
        }
        steps.extend(plan.by_destination().map(Step::Rule));
        if self.leases {
            steps.push(Step::Aside);
        }
        steps
    }

    /// Whether the daemon has every pod that comes over.
    ///
    /// # Errors
    /// It does not, or does not say.
    pub(crate) fn in_force(&self, socket: &Path) -> Result<(), TakeoverError> {
        let pods = match &self.daemon {
            Ok(pods) => pods,
            Err(why) => {
                return Err(TakeoverError::Daemon { socket: socket.to_owned(), why: why.clone() });
            }
        };
        let mut missing = Vec::new();
        for taken in &self.plan.taken {
            let found = pods.iter().find(|pod| pod.ip == taken.allocation.address);
            let why = match found {
                None => "not told",
                Some(pod) if pod.interface != taken.host_interface => "with another interface",
                Some(pod) if pod.eni != taken.eni => "with another ENI",
                Some(pod) if !pod.attached => "without its program",
                Some(_) => continue,
            };
            missing.push(format!("{} {} ({why})", taken.allocation.pod(), taken.allocation.address));
        }
        let of = self.plan.taken.len();
        if missing.is_empty() { Ok(()) } else { Err(TakeoverError::NotInForce { missing, of }) }
    }
}

impl Step {
    /// Does it.
    ///
    /// # Errors
    /// It cannot be done; what was done before stays, and the next run goes on from there.
    pub(crate) fn run(&self, files: &Files) -> Result<(), TakeoverError> {
        match self {
            Self::Record(record) => record.write(&files.record)?,
            Self::Rule(rule) => remove_rule(*rule)?,
            Self::Table(ours) => ours.remove()?,
            Self::NftTable => tables::remove_nft_table()?,
            Self::Aside => {
                let mut aside = files.leases.clone().into_os_string();
                aside.push(".adopted");
                std::fs::rename(&files.leases, &aside)
                    .map_err(|source| TakeoverError::Aside { path: files.leases.clone(), source })?;
            }
        }
        Ok(())
    }
}

/// The pods that the daemon has, by its query socket.
pub(crate) fn pods(socket: &Path) -> Result<Vec<PodStatus>, String> {
    let client = concat!("sluice-agent ", env!("CARGO_PKG_VERSION"), " adopt");
    let mut daemon = Client::connect(socket, client, PATIENCE).map_err(|e| e.to_string())?;
    match daemon.ask(&Query::Pods).map_err(|e| e.to_string())? {
        Answer::Pods(pods) => Ok(pods),
        Answer::Refused(reason) => Err(reason),
        _ => Err("it answered another question".into()),
    }
}
