//! The agent of a node on EC2: ENIs and addresses come from the pool, not from a file.
//!
//! ```text
//!  IMDS, EC2 ──► Pool ──enis──► links of this node, by MAC ──► raised, given their address ──► Inventory ──► Agent
//!                 ▲  └──addresses──► Desk (CNI)
//!                 └── cordon, ENIConfig ◄── Steer ◄── node and ENIConfigs as the API server tells them
//! ```
//!
//! An ENI is told to the daemon once its link is there: EC2 says that it is attached some seconds before the kernel has it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use sluice_ec2::aws::{Calls, Ec2, Imds, Settings as Ec2Settings};
use sluice_ec2::checkpoint::FileStorage;
use sluice_ec2::cloud::{EniId, Limits, Metadata as _};
use sluice_ec2::custom::{self, Place, Spec};
use sluice_ec2::pool::{Parts, Pool, ask_limits};
use sluice_ec2::settings::{CustomKeys, Settings as PoolSettings};
use sluice_ec2::store::{Eni, Role};
use sluice_kube::cluster::{EniConfig, EniConfigStanding, News, NodeFacts};
use sluice_state::{Mac, Node, State};
use tokio::sync::Notify;

use crate::agent::Event;
use crate::cni::{self, Addresses, Before, Pooled};
use crate::environment::Environment;
use crate::inventory::{Cluster, Inventory};
use crate::standing::NodeNews;
use crate::vpc_cni::{Host, furnish};

/// How long IMDS and EC2 are waited for at the start; kubelet then starts the agent anew.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(2);
/// ENIs and the ENIConfig are looked at this often, whatever is told.
const LOOK: Duration = Duration::from_secs(30);
/// An ENIConfig that has not changed is checked again this often: a subnet may have run full.
const RECHECK: Duration = Duration::from_secs(30);
/// A link that EC2 has attached and the kernel has not got yet is looked for this often.
const LINK: Duration = Duration::from_millis(500);

/// Pods that EKS allows on a node with prefixes at most, whatever its type would take.
const MAX_PODS: u32 = 250;

/// A node that is running.
pub(crate) struct Started {
    pub addresses: Box<dyn Addresses>,
    pub inventory: Inventory,
    pub steer: Steer,
    /// Calls to EC2: the pool's, and those about ENIConfigs.
    pub calls: Vec<Arc<Calls>>,
}

/// What the API server says of this node, for who makes its interfaces.
#[derive(Clone)]
pub(crate) struct Steer(Arc<Steering>);

struct Steering {
    pool: Arc<Pool<Ec2, Imds>>,
    custom: Option<CustomKeys>,
    /// What is known of both; absent before the API server has told anything.
    known: Mutex<Option<(NodeFacts, Vec<EniConfig>)>>,
    news: Notify,
}

/// An ENIConfig that EC2 was asked about.
struct Checked {
    asked: (String, Option<Spec>),
    at: Instant,
    standing: EniConfigStanding,
}

/// What does not change while the agent runs.
struct Fixed {
    name: String,
    environment: Environment,
    service_cidrs: Vec<Ipv4Net>,
    vpc_cidrs: Vec<Ipv4Net>,
    place: Place,
}

impl Steer {
    /// Takes what is new of the node and of ENIConfigs.
    pub(crate) fn hear(&self, news: &News) {
        if !news.synced {
            return;
        }
        let mut kept = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_some() && news.node.is_none() && news.eni_configs.is_none() {
            return;
        }
        let known = kept.get_or_insert_default();
        if let Some(facts) = &news.node {
            self.0.pool.cordon(facts.unschedulable || facts.terminating);
            known.0 = facts.clone();
        }
        if let Some(configs) = &news.eni_configs {
            known.1.clone_from(configs);
        }
        drop(kept);
        self.0.news.notify_one();
    }

    /// The agent ends: from now on nothing is asked of EC2 but what is under way.
    pub(crate) fn end(&self) {
        self.0.pool.terminate();
    }
}

impl Steering {
    /// Where interfaces are to be made: the node's ENIConfig, if it is usable. Gives what is to be said of it.
    async fn settle(
        &self,
        ec2: &Ec2,
        place: &Place,
        before: &mut Option<Checked>,
    ) -> Option<EniConfigStanding> {
        let keys = self.custom.as_ref()?;
        let asked = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let known = known.as_ref()?;
            let name = custom::name_of(keys, &known.0.labels, &known.0.annotations).to_owned();
            let config = known.1.iter().find(|config| config.name() == name);
            let spec = config.map(|config| Spec {
                subnet: config.spec.subnet.clone(),
                groups: config.spec.security_groups.clone().unwrap_or_default(),
            });
            (name, spec)
        };
        // Pods come and go more often than an ENIConfig changes, and EC2 counts every question.
        let known = before.as_ref().filter(|before| before.asked == asked && before.at.elapsed() < RECHECK);
        if let Some(known) = known {
            return Some(known.standing.clone());
        }
        let (name, spec) = asked.clone();
        let outcome = match spec {
            Some(spec) => custom::check(ec2, &name, &spec, place).await.map_err(|error| error.to_string()),
            None => Err(format!(
                "there is no ENIConfig {name}: with AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG pods have no addresses without it; make \
                 it, or name another one by the label {}, {} or the annotation {}",
                custom::EXTERNAL,
                keys.label,
                keys.annotation
            )),
        };
        let (network, problem) = match outcome {
            Ok(network) => (Some(network), None),
            Err(why) => (None, Some(why)),
        };
        self.pool.set_network(network);
        let standing = EniConfigStanding { name, problem };
        *before = Some(Checked { asked, at: Instant::now(), standing: standing.clone() });
        Some(standing)
    }
}

/// The node's name, as Kubernetes has it.
pub(crate) fn name() -> anyhow::Result<String> {
    let set = std::env::var("MY_NODE_NAME").ok().filter(|name| !name.is_empty());
    set.context("MY_NODE_NAME is not set: without --inventory it says which of the cluster's nodes this is (the chart sets it)")
}

/// Finds out what the node is, and begins to keep its pool.
///
/// # Errors
/// IMDS or EC2 do not tell what the node is within two minutes, or a variable makes no sense.
pub(crate) fn start(
    name: String,
    environment: &Environment,
    service_cidrs: &[Ipv4Net],
    checkpoint: &Path,
    before: &Before,
    tell: Sender<Event>,
) -> anyhow::Result<Started> {
    let runtime = cni::runtime()?;
    let variable = |name: &str| std::env::var(name).ok();
    let settings = PoolSettings::from_env()?;
    let (own, for_pool) = (Imds::from_env(variable)?, Imds::from_env(variable)?);
    let (ec2, checker, parts, vpc_cidrs, vpc) = runtime.block_on(async {
        let identity = patiently("IMDS", || own.identity()).await?;
        tracing::info!(instance = %identity.instance, instance_type = identity.instance_type, zone = identity.zone, "this node");
        let ec2 = Ec2::connect(Ec2Settings::from_env(&identity.region, variable)).await?;
        let checker = Ec2::connect(Ec2Settings::from_env(&identity.region, variable)).await?;
        let (limits, denied) = ask_limits(&ec2, &identity.instance_type).await?;
        if let Some(error) = denied {
            tracing::warn!(%error, "the limits of the instance type are those of the built-in table");
        }
        let told = patiently("IMDS", || own.interfaces()).await?;
        let first = told.iter().find(|eni| eni.device_index == 0).context("IMDS shows no primary interface")?;
        let (vpc_cidrs, vpc) = (first.vpc_cidrs.clone(), first.vpc.clone());
        let parts = Parts {
            max_pods: max_pods(&limits, &settings),
            identity,
            limits,
            settings: settings.clone(),
            boot: cni::boot()?,
            seed: cni::seed(),
            storage: Arc::new(FileStorage::new(checkpoint)),
        };
        anyhow::Ok((ec2, checker, parts, vpc_cidrs, vpc))
    })?;
    let calls = vec![ec2.calls(), checker.calls()];
    let place = Place { vpc, zone: parts.identity.zone.clone() };
    let pool = cni::open(ec2, for_pool, parts, before)
        .with_context(|| format!("leases cannot be kept in {}", checkpoint.display()))?;
    let pool = Arc::new(pool);
    runtime.block_on(known(&pool))?;
    let fixed = Fixed {
        name,
        environment: environment.clone(),
        service_cidrs: service_cidrs.to_vec(),
        vpc_cidrs,
        place,
    };
    let links = Arc::new(RwLock::new(BTreeMap::new()));
    let (inventory, missing) = fixed.look(&pool.enis(), &links)?;
    let steering = Arc::new(Steering {
        pool: Arc::clone(&pool),
        custom: settings.custom,
        known: Mutex::default(),
        news: Notify::new(),
    });
    let (follower, found) = (Arc::clone(&steering), Arc::clone(&links));
    let last = inventory.clone();
    runtime.spawn(async move { follow(follower, checker, fixed, found, (last, missing), tell).await });
    let named = move |eni: &Eni| links.read().unwrap_or_else(PoisonError::into_inner).get(&eni.id).cloned();
    let addresses = Pooled::start(runtime, pool, named)?;
    Ok(Started { addresses: Box::new(addresses), inventory, steer: Steer(steering), calls })
}

async fn patiently<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(told) => return Ok(told),
            Err(error) if Instant::now() < deadline => tracing::warn!("{what}: {error}; it is asked again"),
            Err(error) => bail!("{what} has not told what this node is in {} s: {error}", PATIENCE.as_secs()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until the pool knows the node's interfaces.
async fn known(pool: &Pool<Ec2, Imds>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        pool.step().await;
        if pool.known() {
            return Ok(());
        }
        let why = pool.troubles().first().map(ToString::to_string).unwrap_or_default();
        if Instant::now() > deadline {
            bail!("EC2 has not told the node's interfaces in {} s: {why}", PATIENCE.as_secs());
        }
        tracing::warn!("the node's interfaces are not known yet: {why}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Pods that a type takes, those of the host's network among them (EKS: `max-pods-calculator`).
fn max_pods(limits: &Limits, settings: &PoolSettings) -> u32 {
    let interfaces = limits.interfaces - u32::from(settings.custom.is_some());
    let each = limits.addresses.saturating_sub(1) * if settings.prefixes { 16 } else { 1 };
    let all = interfaces * each + 2;
    if settings.prefixes { all.min(MAX_PODS) } else { all }
}

/// Keeps the inventory and the ENIConfig up to date, for ever.
async fn follow(
    steering: Arc<Steering>,
    checker: Ec2,
    fixed: Fixed,
    links: Arc<RwLock<BTreeMap<EniId, String>>>,
    (mut last, mut missing): (Inventory, bool),
    tell: Sender<Event>,
) {
    let mut changes = steering.pool.watch();
    let (mut said, mut checked) = (NodeNews::default(), None);
    loop {
        let eni_config = steering.settle(&checker, &fixed.place, &mut checked).await;
        let (troubles, lost) = (steering.pool.troubles(), steering.pool.lost());
        let news = NodeNews::of(&fixed.name, &troubles, &lost, eni_config);
        if news != said {
            said = news.clone();
            if tell.send(Event::Node(news)).is_err() {
                return;
            }
        }
        tokio::select! {
            // The pool lives as long as this does.
            _ = changes.changed() => {}
            () = steering.news.notified() => {}
            () = tokio::time::sleep(if missing { LINK } else { LOOK }) => {}
        }
        let looked = fixed.look(&steering.pool.enis(), &links);
        match looked {
            Ok((inventory, still)) => {
                missing = still;
                if inventory != last {
                    last = inventory.clone();
                    if tell.send(Event::Inventory(Box::new(inventory))).is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::error!("the node's ENIs stay as they were told: {error:#}"),
        }
    }
}

impl Fixed {
    /// The inventory that these interfaces come to, and whether one of them has no link yet.
    fn look(
        &self,
        enis: &[Eni],
        links: &RwLock<BTreeMap<EniId, String>>,
    ) -> anyhow::Result<(Inventory, bool)> {
        let host = Host::read()?;
        let mut state =
            State { node: Node { name: self.name.clone(), ..Node::default() }, ..State::default() };
        state.nat.vpc_cidrs.clone_from(&self.vpc_cidrs);
        self.environment.translate(&mut state.nat);
        let (mut found, mut missing) = (BTreeMap::new(), false);
        let wanted = enis.iter().filter(|eni| eni.is_primary() || eni.role == Role::Pods);
        for eni in wanted {
            let link = host.links.values().find(|link| link.mac == Some(Mac(eni.mac.0)));
            let (Some(link), Some(subnet)) = (link, eni.subnet_cidr) else {
                missing = true;
                continue;
            };
            if !eni.is_primary() {
                let known = links.read().unwrap_or_else(PoisonError::into_inner).contains_key(&eni.id);
                if !known {
                    let mtu = self.environment.eni_mtu.map(u32::from);
                    let address = Ipv4Net::new(eni.primary, subnet.prefix_len())?;
                    furnish(link.ifindex, mtu, address)?;
                }
            }
            found.insert(eni.id.clone(), link.name.clone());
            state.enis.push(sluice_state::Eni {
                name: link.name.clone(),
                primary: eni.is_primary(),
                address: eni.primary,
                subnet,
                gateway: Ipv4Addr::from_bits(subnet.network().to_bits() + 1),
                gateway_mac: None,
            });
        }
        state.check().context("what EC2 tells of this node contradicts itself")?;
        anyhow::ensure!(
            state.primary_eni().is_some(),
            "the primary ENI has no link in this network namespace: the agent needs hostNetwork"
        );
        *links.write().unwrap_or_else(PoisonError::into_inner) = found;
        let cluster = Cluster { service_cidrs: self.service_cidrs.clone(), ..Cluster::default() };
        Ok((Inventory { state, places: Vec::new(), addresses: BTreeMap::new(), cluster }, missing))
    }
}

/// The cluster's service range where nobody says it: EKS has two, and the service `kubernetes` is in it.
pub(crate) fn service_cidrs() -> Vec<Ipv4Net> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|text| text.parse::<Ipv4Addr>().ok());
    match host {
        Some(host) => Ipv4Net::new(host, 16).map(|net| vec![net.trunc()]).unwrap_or_default(),
        None => Cluster::default().service_cidrs,
    }
}
