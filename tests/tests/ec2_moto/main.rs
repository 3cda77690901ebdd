//! The pool and the client against `moto`, an EC2 that nobody here wrote: a second opinion on the happy path. IMDS is the
//! fake's, bridged to moto's world.
//!
//! What moto does otherwise than EC2, and what the pool makes of it:
//! - its answer to AssignPrivateIpAddresses lists every address of the interface, the primary among them: what is there
//!   already is left alone, and a primary address never goes to a pod;
//! - an attachment's `DeleteOnTermination` is taken and forgotten: nothing depends on it while the instance runs;
//! - it has no limits per type: the pool keeps them by itself;
//! - attach and detach are done at once.
//!
//! A test that finds one of them gone fails and says so, so that this list stays true.

mod bridge;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_ec2::aws::{Ec2, Imds, Settings};
use sluice_ec2::checkpoint::FileStorage;
use sluice_ec2::cloud::{Amount, Cloud as _, InterfaceFilter, InterfaceStatus, Metadata as _, Placed};
use sluice_ec2::moment::Clock;
use sluice_ec2::pool::{Parts, Pool, ask_limits};
use sluice_ec2::settings::Settings as PoolSettings;
use sluice_ec2::store::{LeaseKey, Pod};

use bridge::Bridge;
use server::Moto;
use sluice_tests::fakes::ec2::serve::{Served, serve};

struct Bed {
    moto: Moto,
    imds: Served,
}

impl Bed {
    async fn up(instance_type: &str) -> Self {
        let moto = Moto::start(instance_type);
        let bridge = Bridge::new(client(&moto), &moto).await;
        let imds = serve("127.0.0.1:0".parse().unwrap(), bridge).await.unwrap();
        Self { moto, imds }
    }

    fn imds(&self) -> Imds {
        let url = self.imds.url();
        Imds::from_env(|name| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| url.clone())).unwrap()
    }

    async fn pool(&self, folder: &tempfile::TempDir, variables: &[(&str, &str)]) -> Arc<Pool<Ec2, Imds>> {
        let (ec2, imds) = (client(&self.moto), self.imds());
        let identity = imds.identity().await.unwrap();
        let (limits, _) = ask_limits(&ec2, &identity.instance_type).await.unwrap();
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let parts = Parts {
            identity,
            limits,
            settings: PoolSettings::read(lookup).unwrap(),
            max_pods: 29,
            boot: "b".into(),
            seed: 7,
            storage: Arc::new(FileStorage::new(folder.path().join("leases.json"))),
        };
        Arc::new(Pool::open(ec2, imds, Clock::system(), parts, &[]).unwrap().0)
    }
}

fn client(moto: &Moto) -> Ec2 {
    let endpoint = Some(moto.url());
    let settings = Settings { region: server::REGION.into(), endpoint, timeout: Duration::from_secs(10) };
    Ec2::with_access_key(settings, "AKIATEST", "any").unwrap()
}

fn key(container: &str) -> LeaseKey {
    LeaseKey { network: "sluice".into(), container: container.into(), interface: "eth0".into() }
}

fn pod(name: &str) -> Pod {
    Pod { namespace: "n".into(), name: name.into(), uid: format!("uid-{name}") }
}

async fn settled(pool: &Pool<Ec2, Imds>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !pool.targets().settled {
        assert!(Instant::now() < deadline, "{:?} {:?}", pool.targets(), pool.troubles());
        pool.step().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_reads_what_moto_says() {
    let bed = Bed::up("m5.large").await;
    let (ec2, imds) = (client(&bed.moto), bed.imds());
    let identity = imds.identity().await.unwrap();
    assert_eq!((identity.instance.as_str(), &*identity.instance_type), (&*bed.moto.instance, "m5.large"));
    let instance = ec2.describe_instance(&identity.instance).await.unwrap();
    assert_eq!((instance.vpc.as_str(), &*instance.zone), (&*bed.moto.vpc, "eu-central-1a"));
    let limits = ec2.describe_instance_type("m5.large").await.unwrap();
    assert_eq!((limits.interfaces, limits.addresses, limits.nitro), (3, 10, true));
    let mine = InterfaceFilter::AttachedTo(identity.instance.clone());
    let primary = ec2.describe_interfaces(&mine).await.unwrap().remove(0);
    assert_eq!(primary.status, InterfaceStatus::InUse);
    assert_eq!(primary.attachment.as_ref().unwrap().device_index, 0);
    let shown = imds.interfaces().await.unwrap();
    assert_eq!((shown.len(), &shown[0].id, shown[0].device_index), (1, &primary.id, 0));
    let groups = ec2.describe_security_groups(&primary.groups).await.unwrap();
    assert_eq!(groups.len(), primary.groups.len());
    // moto's answer has every address of the interface, the primary among them; EC2's has the new ones.
    let told = ec2.assign(&primary.id, Amount::Addresses(2)).await.unwrap().addresses;
    let added: Vec<Ipv4Addr> = told.iter().copied().filter(|address| *address != primary.primary).collect();
    assert_eq!((told.len(), added.len()), (3, 2), "moto answers as EC2 does now: {told:?}");
    ec2.unassign(&primary.id, &Placed { addresses: added, prefixes: vec![] }).await.unwrap();
    assert!(ec2.describe_interfaces(&mine).await.unwrap()[0].secondary.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_go_and_come_again() {
    let bed = Bed::up("m5.large").await;
    let folder = tempfile::tempdir().unwrap();
    let pool = bed.pool(&folder, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "1")]).await;
    let running = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.run().await }
    });
    let mut leased: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
    // More than two ENIs hold.
    for n in 0..20 {
        let name = format!("p{n}");
        let assigned = pool.assign(key(&name), pod(&name), Duration::from_secs(60)).await;
        let assigned = assigned.unwrap_or_else(|error| panic!("{name}: {error}; {:?}", pool.troubles()));
        assert!(
            !leased.values().any(|other| *other == assigned.lease.address),
            "{} twice",
            assigned.lease.address
        );
        leased.insert(name, assigned.lease.address);
    }
    settled(&pool).await;
    let ec2 = client(&bed.moto);
    let mine = InterfaceFilter::AttachedTo(bed.moto.instance.parse().unwrap());
    let there = ec2.describe_interfaces(&mine).await.unwrap();
    assert_eq!(there.len(), 3, "20 pods and 2 in reserve are three ENIs of 9");
    let carried: BTreeSet<Ipv4Addr> = there.iter().flat_map(|eni| eni.secondary.iter().copied()).collect();
    assert!(leased.values().all(|address| carried.contains(address)), "{leased:?} {carried:?}");
    for eni in there.iter().filter(|eni| eni.attachment.as_ref().is_some_and(|at| at.device_index > 0)) {
        assert!(eni.tags.contains_key("node.k8s.amazonaws.com/instance_id"), "{:?}", eni.tags);
        let kept = eni.attachment.as_ref().unwrap().delete_on_termination;
        assert!(!kept, "moto takes ModifyNetworkInterfaceAttribute of an attachment now: expect it");
    }
    assert!(
        there.iter().all(|eni| eni.secondary.len() <= 9),
        "moto would give more: the limit is the pool's own"
    );
    // All but three go, and what is not needed is given back: every 30 s some of it.
    for name in leased.keys().skip(3) {
        assert!(pool.release(&key(name)).unwrap().is_some());
    }
    let before = carried.len();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let there = ec2.describe_interfaces(&mine).await.unwrap();
        let carried: u32 = there.iter().map(|eni| u32::try_from(eni.secondary.len()).unwrap()).sum();
        let usage = pool.targets().usage;
        if usize::try_from(carried).unwrap() < before && usage.total == carried {
            break;
        }
        assert!(Instant::now() < deadline, "{usage:?} {there:?} {:?}", pool.troubles());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    running.abort();
    // The next agent finds the same leases, and asks for nothing new.
    drop(pool);
    let again = bed.pool(&folder, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "1")]).await;
    again.step().await;
    let kept: BTreeMap<String, Ipv4Addr> =
        again.leases().into_iter().map(|lease| (lease.pod.name, lease.address)).collect();
    assert_eq!(kept, leased.into_iter().take(3).collect());
    assert!(again.lost().is_empty());
}
