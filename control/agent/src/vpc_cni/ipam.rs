//! The VPC CNI's leases, as its file has them (version `vpc-cni-ipam/1`): read when a node comes over, written when it goes back.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sluice_ec2::checkpoint::{FileStorage, Storage as _};
use sluice_ec2::cloud::EniId;
use sluice_ec2::moment::Moment;
use sluice_ec2::store::{Lease, LeaseKey, Pod};

/// The version that is read and written.
const VERSION: &str = "vpc-cni-ipam/1";

/// The name of the network in the VPC CNI's conflist, under which its DEL looks for a lease.
pub const NETWORK: &str = "aws-cni";

/// A file of leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// The leases that can be taken.
    pub allocations: Vec<Allocation>,
    /// Entries that cannot, each with its place and why.
    pub refused: Vec<String>,
}

/// A lease of an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Name of the network in the conflist.
    pub network: String,
    /// `CNI_CONTAINERID`: the sandbox.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Since when, in nanoseconds of the Unix epoch; 0 where it is not known.
    pub since_ns: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl Allocation {
    /// As a lease of the pool: `network` is the name in Sluice's conflist, under which DEL will ask for it, and `eni` the
    /// interface that owns the address.
    #[must_use]
    pub fn lease(&self, network: &str, eni: EniId) -> Lease {
        let (container, interface) = (self.container.clone(), self.interface.clone());
        Lease {
            key: LeaseKey { network: network.to_owned(), container, interface },
            // The VPC CNI keeps no UID; the pod's object tells it.
            pod: Pod { namespace: self.namespace.clone(), name: self.name.clone(), uid: String::new() },
            address: self.address,
            eni,
            since: Moment(self.since_ns / 1_000_000),
        }
    }

    /// A lease of the pool as the VPC CNI keeps it. None for a container that is no pod: it could not tell its veth.
    #[must_use]
    pub fn of_lease(lease: &Lease) -> Option<Self> {
        let named = !lease.pod.namespace.is_empty() && !lease.pod.name.is_empty();
        named.then(|| Self {
            network: NETWORK.to_owned(),
            container: lease.key.container.clone(),
            interface: lease.key.interface.clone(),
            address: lease.address,
            since_ns: lease.since.0.saturating_mul(1_000_000),
            namespace: lease.pod.namespace.clone(),
            name: lease.pod.name.clone(),
        })
    }

    /// `namespace/name`.
    #[must_use]
    pub fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Why the VPC CNI's leases cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// The file cannot be read, or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file makes no sense.
    #[error(
        "{} is no file of the VPC CNI's leases: {why}{}. The pods that it told of keep their addresses and the VPC CNI's \
         rules; drain the node, or restart them, to bring them to Sluice",
        path.display(), aside.as_ref().map(|aside| format!("; it was put aside as {}", aside.display())).unwrap_or_default()
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// Where it is now, if it was moved.
        aside: Option<PathBuf>,
    },
}

/// The file, as the VPC CNI writes it. Entries are read one by one: a bad one must not take the others with it.
#[derive(Debug, Deserialize)]
struct Text {
    version: String,
    allocations: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ipv4: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    ipv6: String,
    #[serde(default)]
    allocation_timestamp: i64,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default, rename = "k8sPodNamespace", skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(default, rename = "k8sPodName", skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    interfaces_count: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Leases {
    /// Reads a file; nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense; then it stays where it is.
    pub fn read(path: &Path) -> Result<Option<Self>, LeasesError> {
        let read = FileStorage::new(path).read();
        let Some(text) = read.map_err(|source| LeasesError::File { path: path.to_owned(), source })? else {
            return Ok(None);
        };
        Self::parse(&text).map(Some).map_err(|why| LeasesError::Corrupt {
            path: path.to_owned(),
            why,
            aside: None,
        })
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let file: Text = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if file.version != VERSION {
            return Err(format!("its version is {:?}; {VERSION:?} can be read", file.version));
        }
        let mut leases = Self::default();
        for (i, value) in file.allocations.into_iter().enumerate() {
            match entry(value) {
                Ok(allocation) => leases.allocations.push(allocation),
                Err(why) => leases.refused.push(format!("allocations[{i}] {why}")),
            }
        }
        Ok(leases)
    }

    /// Puts a file that makes no sense aside, so that the next start does not stumble over it.
    pub(crate) fn set_aside(error: LeasesError) -> LeasesError {
        let LeasesError::Corrupt { path, why, aside: None } = error else { return error };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut aside = path.clone().into_os_string();
        aside.push(format!(".corrupt-{seconds}"));
        let aside = PathBuf::from(aside);
        match fs::rename(&path, &aside) {
            Ok(()) => LeasesError::Corrupt { path, why, aside: Some(aside) },
            Err(source) => LeasesError::File { path, source },
        }
    }

    /// The text of a file with these leases.
    #[must_use]
    pub fn encode(allocations: &[Allocation]) -> Vec<u8> {
        let entries: Vec<_> = allocations.iter().map(text_of).collect();
        let mut text = serde_json::json!({ "version": VERSION, "allocations": entries }).to_string();
        text.push('\n');
        text.into_bytes()
    }
}

fn entry(value: serde_json::Value) -> Result<Allocation, String> {
    let entry: Entry = serde_json::from_value(value).map_err(|e| format!("does not parse: {e}"))?;
    if entry.ipv4.is_empty() {
        return Err(format!("has no IPv4 address (ipv6 `{}`): Sluice does IPv4", entry.ipv6));
    }
    let address: Ipv4Addr =
        entry.ipv4.parse().map_err(|_| format!("`ipv4` is `{}`, which is no IPv4 address", entry.ipv4))?;
    if entry.metadata.interfaces_count > 1 {
        return Err(format!(
            "has {} interfaces: Sluice gives a pod one; restart {}/{} after the move",
            entry.metadata.interfaces_count, entry.metadata.namespace, entry.metadata.name
        ));
    }
    for (field, text) in [
        ("networkName", &entry.network_name),
        ("containerID", &entry.container_id),
        ("ifName", &entry.if_name),
        ("metadata.k8sPodNamespace", &entry.metadata.namespace),
        ("metadata.k8sPodName", &entry.metadata.name),
    ] {
        if text.is_empty() {
            return Err(format!("({address}) has no `{field}`: restart the pod of this address"));
        }
    }
    Ok(Allocation {
        network: entry.network_name,
        container: entry.container_id,
        interface: entry.if_name,
        address,
        since_ns: u64::try_from(entry.allocation_timestamp).unwrap_or_default(),
        namespace: entry.metadata.namespace,
        name: entry.metadata.name,
    })
}

fn text_of(allocation: &Allocation) -> Entry {
    Entry {
        network_name: allocation.network.clone(),
        container_id: allocation.container.clone(),
        if_name: allocation.interface.clone(),
        ipv4: allocation.address.to_string(),
        ipv6: String::new(),
        allocation_timestamp: i64::try_from(allocation.since_ns).unwrap_or(i64::MAX),
        metadata: Metadata {
            namespace: allocation.namespace.clone(),
            name: allocation.name.clone(),
            interfaces_count: 1,
        },
    }
}

/// Puts bytes in the place of a file as the pool does with its checkpoint, and makes its folder where there is none.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    FileStorage::new(path).write(bytes)
}
