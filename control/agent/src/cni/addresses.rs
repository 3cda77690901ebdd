//! Addresses for pods, whatever they come from: the pool, on a runtime of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_ec2::checkpoint::FileStorage;
use sluice_ec2::cloud::{Cloud, EniId, IdError, Metadata};
use sluice_ec2::fixed::{Fixed, FixedInterface};
use sluice_ec2::moment::Clock;
use sluice_ec2::pool::{AssignError, Parts, Pool};
use sluice_ec2::settings::Settings;
use sluice_ec2::store::{Assigned, Eni, Lease, LeaseKey, Pod};
use sluice_ec2::variables::Refused;
use tokio::runtime::Runtime;

use super::Before;
use crate::inventory::Inventory;

/// Where a boot has its name.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum AddressesError {
    /// A variable that concerns addresses.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The checkpoint.
    #[error("leases cannot be kept in {}: {source}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that is no id.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// Addresses for pods: one that is leased is nobody else's, over restarts too. Calls block.
pub trait Addresses: Send + Sync {
    /// An address for an attachment; the same one when asked again. Waits up to `patience` while there is none.
    ///
    /// # Errors
    /// There is none, or the lease cannot be written down.
    fn assign(&self, key: LeaseKey, pod: Pod, patience: Duration) -> Result<Assigned, AssignError>;

    /// Ends a lease; its address cools down.
    ///
    /// # Errors
    /// It cannot be written down: the lease goes on.
    fn release(&self, key: &LeaseKey) -> io::Result<Option<Lease>>;

    /// Every lease.
    fn leases(&self) -> Vec<Lease>;

    /// The name of the link of the ENI that carries a lease's address.
    fn link(&self, lease: &Lease) -> Option<String>;

    /// The ENIs.
    fn enis(&self) -> Vec<Eni>;

    /// The name of an ENI's link on this node, once it is there.
    fn link_of(&self, eni: &Eni) -> Option<String>;

    /// What there is, and what keeps it from becoming more.
    fn reserve(&self) -> Reserve;

    /// Why no pod could get an address at all, if so.
    fn unusable(&self) -> Option<String>;
}

/// What there is for pods, and how far that is from what is aimed at.
#[derive(Debug, Clone, Default)]
pub struct Reserve {
    /// Addresses that serve pods.
    pub total: u32,
    /// Those that are leased.
    pub assigned: u32,
    /// Those that cool down.
    pub cooling: u32,
    /// How many are missing to the target.
    pub short: u32,
    /// Prefixes of 16 addresses that serve pods.
    pub prefixes: u32,
    /// ENIs that are attached, and how many may be.
    pub enis: u32,
    /// ENIs at most.
    pub max_enis: u32,
    /// Pods at most.
    pub max_pods: u32,
    /// What keeps the pool from growing, in sentences.
    pub troubles: Vec<String>,
}

/// Tells the name of an ENI's link on this node, if it has one.
type Links = dyn Fn(&Eni) -> Option<String> + Send + Sync;

/// The pool, and the threads that its background work runs on.
pub struct Pooled<C, M> {
    pool: Arc<Pool<C, M>>,
    runtime: Runtime,
    links: Box<Links>,
}

impl<C: Cloud, M: Metadata> Pooled<C, M> {
    /// Runs a pool. `links` tells the name of an ENI's link on this node.
    ///
    /// # Errors
    /// No threads can be had.
    pub fn start(
        runtime: Runtime,
        pool: Arc<Pool<C, M>>,
        links: impl Fn(&Eni) -> Option<String> + Send + Sync + 'static,
    ) -> Result<Self, AddressesError> {
        let background = Arc::clone(&pool);
        // What there is, is known before the first ADD.
        runtime.block_on(pool.step());
        runtime.spawn(async move { background.run().await });
        Ok(Self { pool, runtime, links: Box::new(links) })
    }
}

/// Threads for a pool and what goes on around it.
///
/// # Errors
/// None can be had.
pub(crate) fn runtime() -> Result<Runtime, AddressesError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("sluice-pool")
        .enable_all()
        .build()
        .map_err(|source| AddressesError::System { what: "threads for the pool", source })
}

/// This boot's name, which leases are kept under.
pub(crate) fn boot() -> Result<String, AddressesError> {
    let text = std::fs::read_to_string(BOOT_ID);
    text.map(|text| text.trim().to_owned()).map_err(|source| AddressesError::System { what: BOOT_ID, source })
}

/// Something that differs between nodes and runs.
pub(crate) fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    u64::from(now) ^ u64::from(std::process::id()) << 32
}

impl<C: Cloud, M: Metadata> Addresses for Pooled<C, M> {
    fn assign(&self, key: LeaseKey, pod: Pod, patience: Duration) -> Result<Assigned, AssignError> {
        self.runtime.handle().block_on(self.pool.assign(key, pod, patience))
    }

    fn release(&self, key: &LeaseKey) -> io::Result<Option<Lease>> {
        self.pool.release(key)
    }

    fn leases(&self) -> Vec<Lease> {
        self.pool.leases()
    }

    fn link(&self, lease: &Lease) -> Option<String> {
        let enis = self.pool.enis();
        enis.iter().find(|eni| eni.id == lease.eni).and_then(|eni| (self.links)(eni))
    }

    fn enis(&self) -> Vec<Eni> {
        self.pool.enis()
    }

    fn link_of(&self, eni: &Eni) -> Option<String> {
        (self.links)(eni)
    }

    fn reserve(&self) -> Reserve {
        let (targets, enis) = (self.pool.targets(), self.pool.enis());
        let serving = enis.iter().filter(|eni| eni.serves());
        let prefixes =
            serving.flat_map(|eni| eni.blocks.keys()).filter(|block| block.prefix_len() < 32).count();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Reserve {
            total: targets.usage.total,
            assigned: targets.usage.assigned,
            cooling: targets.usage.cooling,
            short: targets.short,
            prefixes: number(prefixes),
            enis: number(enis.len()),
            max_enis: targets.max_enis,
            max_pods: targets.max_pods,
            troubles: self.pool.troubles().iter().map(ToString::to_string).collect(),
        }
    }

    fn unusable(&self) -> Option<String> {
        if self.pool.enis().iter().any(Eni::serves) {
            return None;
        }
        let why = self.pool.troubles().first().map(ToString::to_string);
        Some(why.unwrap_or_else(|| "no ENI gives addresses to pods yet".to_owned()))
    }
}

/// A pool that knows, before it does anything, who has addresses already.
///
/// # Errors
/// The checkpoint can be neither read nor written.
pub(crate) fn open<C: Cloud, M: Metadata>(
    cloud: C,
    metadata: M,
    parts: Parts,
    before: &Before,
) -> io::Result<Pool<C, M>> {
    let (pool, _) = Pool::open(cloud, metadata, Clock::system(), parts, &before.live)?;
    for lease in &before.adopted {
        pool.adopt(lease)?;
    }
    Ok(pool)
}

/// The addresses that an inventory has for pods.
pub(crate) fn of_inventory(
    inventory: &Inventory,
    settings: Settings,
    checkpoint: &Path,
    before: &Before,
) -> Result<Pooled<Fixed, Fixed>, AddressesError> {
    let mut links: BTreeMap<EniId, String> = BTreeMap::new();
    let mut interfaces = Vec::new();
    for eni in &inventory.state.enis {
        let given = inventory.addresses.get(&eni.name).cloned().unwrap_or_default();
        let interface = FixedInterface {
            primary: eni.address,
            is_first: eni.primary,
            subnet: eni.subnet,
            addresses: given.addresses,
            prefixes: given.prefixes,
        };
        links.insert(interface.id()?, eni.name.clone());
        interfaces.push(interface);
    }
    let fixed = Fixed::new(&interfaces)?;
    let parts = Parts {
        identity: Fixed::identity()?,
        limits: Fixed::limits(),
        settings: Fixed::settings(settings),
        max_pods: u32::from(u16::MAX),
        boot: boot()?,
        seed: seed(),
        storage: Arc::new(FileStorage::new(checkpoint)),
    };
    let pool = open(fixed.clone(), fixed, parts, before)
        .map_err(|source| AddressesError::Checkpoint { path: checkpoint.to_owned(), source })?;
    Pooled::start(runtime()?, Arc::new(pool), move |eni| links.get(&eni.id).cloned())
}
