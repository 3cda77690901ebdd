//! The environment variables of the VPC CNI: each has a standing here, and those in force are read once into types.
//!
//! An operator who moves over keeps a DaemonSet full of variables. The worst that can happen to one of them is silence: a
//! typo that falls back to a default, or a feature that is asked for and not there. So every variable is in one table with
//! what Sluice does about it, a value that makes no sense is refused by name with all the others that make none, and what
//! is set but not read is said at the start.
//!
//! ```text
//!  environment ──read──> Environment ──over──> Inventory's `nat` ──> state of the daemon
//!       table  ──────────────┘   └──> enforcing mode
//!         └──> `sluice-agent env`, docs/environment.md
//! ```

use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use sluice_ec2::settings::Settings as PoolSettings;
use sluice_ec2::variables::{self, Refused};
use sluice_policy::EnforcingMode;
use sluice_state::{Nat, RandomizeSnat};

use crate::web::Bind;

mod show;
mod table;

pub use show::{Printed, markdown};
pub use table::{Standing, VARIABLES, Variable};

/// What the variables decide; `None` where one is not set, so that the inventory or a default does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NETWORK_POLICY_ENFORCING_MODE`.
    pub enforcing_mode: Option<EnforcingMode>,
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`.
    pub external_snat: Option<bool>,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`, without host bits and without a range inside another.
    pub exclude_cidrs: Option<Vec<Ipv4Net>>,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub randomize: Option<RandomizeSnat>,
    /// `AWS_VPC_ENI_MTU`, in bytes.
    pub eni_mtu: Option<u16>,
    /// `POD_MTU`, in bytes; absent: as the ENIs'.
    pub pod_mtu: Option<u16>,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`.
    pub veth_prefix: Option<String>,
    /// `CLUSTER_ENDPOINT`, a URL.
    pub cluster_endpoint: Option<String>,
    /// `AWS_VPC_K8S_CNI_BACKING_STORE`.
    pub backing_store: Option<PathBuf>,
    /// `INTROSPECTION_BIND_ADDRESS`.
    pub introspection: Option<Bind>,
    /// `DISABLE_INTROSPECTION`.
    pub no_introspection: bool,
    /// `DISABLE_METRICS`.
    pub no_metrics: bool,
    /// What an operator should hear: variables that are set and change nothing, each in a sentence.
    pub notes: Vec<String>,
}

/// MTUs that an ENI can have (VPC CNI: 576 to 9001 bytes).
const MTU: RangeInclusive<u16> = 576..=9001;

impl Environment {
    /// Reads this process's environment.
    ///
    /// # Errors
    /// Every variable whose value makes no sense or asks for what Sluice does not do.
    pub fn from_process() -> Result<Self, Refused> {
        Self::read(|variable| std::env::var(variable).ok())
    }

    /// Reads variables through `lookup`. One that is set to nothing counts as not set, as in the VPC CNI.
    ///
    /// # Errors
    /// As [`Environment::from_process`].
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Refused> {
        // The pool reads its own; here they are refused together with all the others that make no sense.
        let pool = PoolSettings::read(&lookup).err();
        let mut reader = Reader { variables: variables::Reader::new(lookup), notes: Vec::new() };
        for variable in VARIABLES {
            reader.standing(variable);
        }
        let found = Self {
            enforcing_mode: reader.word(
                "NETWORK_POLICY_ENFORCING_MODE",
                &[("standard", EnforcingMode::Standard), ("strict", EnforcingMode::Strict)],
            ),
            external_snat: reader.variables.flag("AWS_VPC_K8S_CNI_EXTERNALSNAT"),
            exclude_cidrs: reader.ranges("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
            randomize: reader.word(
                "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
                &[
                    ("prng", RandomizeSnat::Prng),
                    ("hashrandom", RandomizeSnat::HashRandom),
                    ("none", RandomizeSnat::None),
                ],
            ),
            eni_mtu: reader.mtu("AWS_VPC_ENI_MTU"),
            pod_mtu: reader.mtu("POD_MTU"),
            veth_prefix: reader.veth_prefix("AWS_VPC_K8S_CNI_VETHPREFIX"),
            cluster_endpoint: reader.url("CLUSTER_ENDPOINT"),
            backing_store: reader.file("AWS_VPC_K8S_CNI_BACKING_STORE"),
            introspection: reader.bind("INTROSPECTION_BIND_ADDRESS"),
            no_introspection: reader.variables.flag("DISABLE_INTROSPECTION").unwrap_or(false),
            no_metrics: reader.variables.flag("DISABLE_METRICS").unwrap_or(false),
            notes: Vec::new(),
        };
        // The client of EC2 reads it by itself.
        reader.variables.number("HTTP_TIMEOUT", 1..=600);
        reader.url("AWS_EC2_ENDPOINT");
        if let (Some(eni), Some(pod)) = (found.eni_mtu, found.pod_mtu)
            && pod > eni
        {
            let valid =
                format!("at most AWS_VPC_ENI_MTU, {eni}, is valid: larger frames do not leave the node");
            reader.variables.refuse("POD_MTU", pod.to_string(), valid);
        }
        let own = reader.variables.done(Self { notes: reader.notes, ..found });
        match (own, pool) {
            (own, None) => own,
            (Ok(_), Some(pool)) => Err(pool),
            (Err(Refused(mut all)), Some(Refused(pool))) => {
                all.extend(pool);
                Err(Refused(all))
            }
        }
    }

    /// What is translated, where these variables have the last word over the inventory.
    pub fn translate(&self, nat: &mut Nat) {
        if let Some(external) = self.external_snat {
            nat.external_snat = external;
        }
        if let Some(cidrs) = &self.exclude_cidrs {
            nat.exclude_cidrs.clone_from(cidrs);
        }
        if let Some(randomize) = self.randomize {
            nat.randomize = randomize;
        }
    }
}

struct Reader<F> {
    variables: variables::Reader<F>,
    notes: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// What the table alone decides: refusals of what is not there, notes on what is set for nothing.
    fn standing(&mut self, variable: &'static Variable) {
        let Variable { name, default, standing, does } = *variable;
        let Some(value) = self.variables.text(name) else { return };
        match standing {
            Standing::Refused { only } => {
                if self.variables.flag(name).is_some_and(|set| set != only) {
                    self.variables.refuse(name, value, format!("only {only} is valid. {does}"));
                }
            }
            Standing::Ignored if value != default => {
                self.notes.push(format!("{name}={value} changes nothing. {does}"));
            }
            Standing::Honoured | Standing::Ignored => {}
        }
    }

    fn word<T: Copy>(&mut self, variable: &'static str, words: &[(&str, T)]) -> Option<T> {
        let value = self.variables.text(variable)?;
        let found = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let all = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
            self.variables.refuse(variable, value, format!("one of {} is valid", all.join(", ")));
        }
        found
    }

    fn mtu(&mut self, variable: &'static str) -> Option<u16> {
        let value = self.variables.text(variable)?;
        let found = value.parse().ok().filter(|mtu| MTU.contains(mtu));
        if found.is_none() {
            let valid = format!("a whole number of bytes from {} to {} is valid", MTU.start(), MTU.end());
            self.variables.refuse(variable, value, valid);
        }
        found
    }

    /// Ranges by commas. The VPC CNI skips an item that is none; here it is refused, because the traffic that it was
    /// meant to spare would be translated. IPv6 is skipped in both: none of it is translated.
    fn ranges(&mut self, variable: &'static str) -> Option<Vec<Ipv4Net>> {
        let value = self.variables.text(variable)?;
        let mut found = Vec::new();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse() {
                Ok(IpNet::V4(range)) => found.push(range.trunc()),
                Ok(IpNet::V6(_)) => {
                    self.notes.push(format!("{variable}: {item} changes nothing: IPv6 is never translated"));
                }
                Err(_) => {
                    let valid = format!("`{item}` is no range; 10.20.0.0/16,192.168.1.0/24 is valid");
                    self.variables.refuse(variable, value.clone(), valid);
                }
            }
        }
        // A range inside another says nothing more, and the daemon wants each address in one.
        found.sort_by_key(|range| (range.prefix_len(), range.network()));
        let mut kept: Vec<Ipv4Net> = Vec::new();
        for range in found {
            if !kept.iter().any(|wider| wider.contains(&range)) {
                kept.push(range);
            }
        }
        kept.sort();
        Some(kept)
    }

    fn file(&mut self, variable: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.variables.text(variable)?);
        if path.is_absolute() {
            return Some(path);
        }
        self.variables.refuse(variable, path.display().to_string(), "a path from the root on is valid");
        None
    }

    fn bind(&mut self, variable: &'static str) -> Option<Bind> {
        let value = self.variables.text(variable)?;
        match value.parse() {
            Ok(bind) => Some(bind),
            Err(valid) => {
                let valid: String = valid;
                self.variables.refuse(variable, value, valid);
                None
            }
        }
    }

    fn url(&mut self, variable: &'static str) -> Option<String> {
        let value = self.variables.text(variable)?;
        let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
        if host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace)) {
            return Some(value);
        }
        self.variables.refuse(variable, value, "a URL, https://HOST or https://HOST:PORT, is valid");
        None
    }

    fn veth_prefix(&mut self, variable: &'static str) -> Option<String> {
        let value = self.variables.text(variable)?;
        // The prefix is followed by eleven characters of a hash, and a name has at most fifteen. The reserved ones are
        // the VPC CNI's: they would be taken for the node's own interfaces.
        let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if plain && value.len() <= 4 && !["eth", "vlan", "lo"].contains(&value.as_str()) {
            return Some(value);
        }
        let valid = "1 to 4 letters, digits, - or _ are valid, other than eth, vlan and lo";
        self.variables.refuse(variable, value, valid);
        None
    }
}

#[cfg(test)]
mod tests;
