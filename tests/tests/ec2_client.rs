//! The client of EC2 and IMDS over sockets, against the fake world: every action, each class of error, the three sources of
//! credentials, and the pool on top.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_ec2::aws::{Ec2, Imds, Settings};
use sluice_ec2::checkpoint::FileStorage;
use sluice_ec2::cloud::{
    Amount, AttachInterface, Cloud, CreateInterface, EniId, ErrorKind, InterfaceFilter, InterfaceStatus,
    Metadata as _, Placed, SubnetFilter, Tags,
};
use sluice_ec2::moment::{Clock, Moment};
use sluice_ec2::pool::{Parts, Pool, ask_limits};
use sluice_ec2::settings::Settings as PoolSettings;
use sluice_ec2::store::{Lease, LeaseKey, Pod};
use sluice_tests::fakes::ec2::faults::{Bucket, Policy};
use sluice_tests::fakes::ec2::http::Endpoint;
use sluice_tests::fakes::ec2::metadata::Metadata;
use sluice_tests::fakes::ec2::pod_identity::PodIdentity;
use sluice_tests::fakes::ec2::serve::{Served, Shared, clock, serve};
use sluice_tests::fakes::ec2::{Delays, Effect, Rule, World};
use sluice_tests::lab::program;

/// The world, served.
struct Bed {
    shared: Arc<Shared>,
    place: sluice_tests::fakes::ec2::world::Place,
    ec2: Served,
    imds: Served,
}

impl Bed {
    async fn up(instance_type: &str) -> Self {
        let (mut world, place) = World::with_node(clock(), instance_type).unwrap();
        world.delays = Delays::NONE;
        let policy = Policy::amazon_eks_cni().with("DescribeSecurityGroups");
        world.grant("node", policy.clone());
        world.grant("aws-node", policy);
        let shared = Shared::new(world);
        let any = "127.0.0.1:0".parse().unwrap();
        let ec2 = serve(any, Endpoint::new(shared.clone())).await.unwrap();
        let imds = serve(any, Metadata::new(shared.clone(), &place.instance)).await.unwrap();
        Self { shared, place, ec2, imds }
    }

    fn settings(&self) -> Settings {
        Settings {
            region: "eu-central-1".into(),
            endpoint: Some(self.ec2.url()),
            timeout: Duration::from_secs(5),
        }
    }

    fn client(&self) -> Ec2 {
        Ec2::with_access_key(self.settings(), "AKIATEST", "any").unwrap()
    }

    fn metadata(&self) -> Imds {
        imds_at(&self.imds.url())
    }

    fn script(&self, action: &str, times: u32, effect: Effect) {
        self.shared.world().script.push(Rule { times, ..Rule::next(action, effect) });
    }

    fn count(&self, action: &str) -> usize {
        self.shared.world().counts().get(action).copied().unwrap_or(0)
    }

    fn create(&self, token: &str) -> CreateInterface {
        CreateInterface {
            token: token.into(),
            subnet: self.place.subnet.parse().unwrap(),
            groups: vec![self.place.group.parse().unwrap()],
            description: "aws-K8S-i-1".into(),
            tags: Tags::from([("k&<".to_owned(), "v \u{e4}".to_owned())]),
            amount: Amount::Addresses(2),
        }
    }
}

fn imds_at(url: &str) -> Imds {
    Imds::from_env(|name| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| url.to_owned())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_does_what_its_name_says() {
    let bed = Bed::up("m5.large").await;
    let (ec2, imds) = (bed.client(), bed.metadata());
    let identity = imds.identity().await.unwrap();
    assert_eq!(
        (identity.instance.as_str(), identity.region.as_str()),
        (bed.place.instance.as_str(), "eu-central-1")
    );
    let instance = ec2.describe_instance(&identity.instance).await.unwrap();
    assert_eq!((instance.instance_type.as_str(), instance.zone == identity.zone), ("m5.large", true));
    let limits = ec2.describe_instance_type("m5.large").await.unwrap();
    assert_eq!((limits.interfaces, limits.addresses, limits.nitro), (3, 10, true));
    let groups = ec2.describe_security_groups(&[bed.place.group.parse().unwrap()]).await.unwrap();
    assert_eq!((groups.len(), &groups[0].vpc), (1, &instance.vpc));
    let zone = SubnetFilter::Zone { vpc: instance.vpc.clone(), zone: identity.zone.clone() };
    let subnets = ec2.describe_subnets(&zone).await.unwrap();
    assert!(
        subnets.iter().any(|subnet| subnet.id.as_str() == bed.place.subnet && subnet.free > 0),
        "{subnets:?}"
    );

    let made = ec2.create_interface(&bed.create("t-1")).await.unwrap();
    assert_eq!(
        (made.status, made.secondary.len(), made.attachment.is_none()),
        (InterfaceStatus::Available, 2, true)
    );
    assert_eq!(made.tags["k&<"], "v \u{e4}");
    let tags = vec![("k&<".to_owned(), None)];
    let available = InterfaceFilter::Available { vpc: made.vpc.clone(), tags };
    assert_eq!(ec2.describe_interfaces(&available).await.unwrap().len(), 1);
    let attach = AttachInterface {
        eni: made.id.clone(),
        instance: identity.instance.clone(),
        device_index: 1,
        network_card: 0,
    };
    let attachment = ec2.attach_interface(&attach).await.unwrap();
    ec2.set_delete_on_termination(&made.id, &attachment, true).await.unwrap();
    ec2.set_groups(&made.id, &[bed.place.pod_group.parse().unwrap()]).await.unwrap();
    let added = ec2.assign(&made.id, Amount::Addresses(1)).await.unwrap();
    assert_eq!((added.addresses.len(), added.prefixes.len()), (1, 0));
    ec2.unassign(&made.id, &added).await.unwrap();
    let prefix = ec2.assign(&made.id, Amount::Prefixes(1)).await.unwrap();
    assert_eq!((prefix.addresses.len(), prefix.prefixes.len()), (0, 1));
    ec2.create_tags(&made.id, &Tags::from([("a".to_owned(), "b".to_owned())])).await.unwrap();
    let mine =
        ec2.describe_interfaces(&InterfaceFilter::AttachedTo(identity.instance.clone())).await.unwrap();
    let there = mine.iter().find(|eni| eni.id == made.id).unwrap();
    assert_eq!(there.prefixes, prefix.prefixes);
    assert_eq!((there.secondary.len(), there.tags["a"].as_str()), (2, "b"));
    assert_eq!(there.groups[0].as_str(), bed.place.pod_group);
    let at = there.attachment.as_ref().unwrap();
    assert!(
        at.delete_on_termination && at.device_index == 1 && at.instance.as_ref() == Some(&identity.instance)
    );
    let shown = imds.interfaces().await.unwrap();
    let shown = shown.iter().find(|eni| eni.id == made.id).unwrap();
    assert_eq!((shown.device_index, shown.addresses.len(), &shown.prefixes), (1, 3, &prefix.prefixes));
    assert!(!shown.vpc_cidrs.is_empty() && imds.primary_mac().await.unwrap() != shown.mac);

    ec2.unassign(&made.id, &Placed { addresses: vec![], prefixes: prefix.prefixes }).await.unwrap();
    let held = ec2.delete_interface(&made.id).await.unwrap_err();
    assert_eq!(held.kind, ErrorKind::InUse, "{held}");
    ec2.detach_interface(&attachment).await.unwrap();
    ec2.delete_interface(&made.id).await.unwrap();
    let gone = ec2.describe_interfaces(&InterfaceFilter::Ids(vec![made.id])).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::Gone, "{gone}");
    let both = Placed {
        addresses: vec!["10.0.0.9".parse().unwrap()],
        prefixes: vec!["10.0.0.16/28".parse().unwrap()],
    };
    assert_eq!(ec2.unassign(&"eni-1".parse().unwrap(), &both).await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_their_class_and_what_helps_is_tried_again() {
    let bed = Bed::up("m5.large").await;
    let ec2 = bed.client();
    let refuse = |code: &str| Effect::Refuse { code: code.to_owned(), message: String::new() };
    // Throttled twice, then served.
    bed.script("CreateNetworkInterface", 2, refuse("RequestLimitExceeded"));
    let made = ec2.create_interface(&bed.create("a")).await.unwrap();
    assert_eq!(bed.count("CreateNetworkInterface"), 3);
    // The answer is lost: the same token finds what was made.
    bed.script("CreateNetworkInterface", 1, Effect::LoseAnswer);
    let second = ec2.create_interface(&bed.create("b")).await.unwrap();
    assert_ne!(made.id, second.id);
    assert_eq!(bed.shared.world().interfaces().len(), 3, "the primary and two");
    // An attachment whose answer is lost may have happened: it is not tried again, and said to be in doubt.
    bed.script("AttachNetworkInterface", 1, Effect::LoseAnswer);
    let attach = AttachInterface {
        eni: made.id.clone(),
        instance: bed.place.instance.parse().unwrap(),
        device_index: 1,
        network_card: 0,
    };
    let lost = ec2.attach_interface(&attach).await.unwrap_err();
    assert!(lost.kind == ErrorKind::Unreachable && lost.kind.leaves_doubt(), "{lost}");
    let taken =
        ec2.attach_interface(&AttachInterface { eni: second.id.clone(), ..attach }).await.unwrap_err();
    assert_eq!(taken.kind, ErrorKind::InUse, "{taken}");
    bed.script("DescribeInstances", 9, refuse("InternalError"));
    let before = bed.count("DescribeInstances");
    let failed = ec2.describe_instance(&bed.place.instance.parse().unwrap()).await.unwrap_err();
    assert_eq!((failed.kind, bed.count("DescribeInstances") - before), (ErrorKind::Server, 4));
    bed.shared.world().script.clear();
    let unknown = ec2.describe_instance_type("m5.gigantic").await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::Invalid, "{unknown}");
    bed.shared.world().grant("node", Policy::amazon_eks_cni().without("AssignPrivateIpAddresses"));
    let denied = ec2.assign(&made.id, Amount::Addresses(1)).await.unwrap_err();
    let said = denied.to_string();
    assert!(denied.kind == ErrorKind::Denied && said.contains("ec2:AssignPrivateIpAddresses"), "{said}");
    let wrong = Ec2::with_access_key(bed.settings(), "AKIAWRONG", "x").unwrap();
    let refused = wrong.describe_instance(&bed.place.instance.parse().unwrap()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Credentials, "{refused}");
    bed.shared.set_ahead(20 * 60 * 1000);
    let skewed = ec2.describe_instance(&bed.place.instance.parse().unwrap()).await.unwrap_err();
    assert!(skewed.kind == ErrorKind::ClockSkew && skewed.message.contains("clock says"), "{skewed}");
    let nowhere = Settings { endpoint: Some("http://127.0.0.1:1".into()), ..bed.settings() };
    let nowhere = Ec2::with_access_key(nowhere, "a", "b").unwrap();
    let away = nowhere.describe_instance(&bed.place.instance.parse().unwrap()).await.unwrap_err();
    assert!(away.kind == ErrorKind::Unreachable && away.message.contains("127.0.0.1:1"), "{away}");
    let odd = Settings { endpoint: Some("no url".into()), ..bed.settings() };
    assert!(Ec2::with_access_key(odd, "a", "b").unwrap_err().to_string().contains("AWS_EC2_ENDPOINT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_followed_and_an_empty_bucket_is_waited_for() {
    let bed = Bed::up("m5.large").await;
    let ec2 = bed.client();
    for n in 0..3 {
        ec2.create_interface(&bed.create(&format!("t{n}"))).await.unwrap();
    }
    let bucket = Bucket { capacity: 1.0, refill: 20.0 };
    bed.shared.world().buckets.set("DescribeNetworkInterfaces", bucket);
    let vpc: sluice_ec2::cloud::VpcId = bed.place.vpc.parse().unwrap();
    for _ in 0..4 {
        let filter = InterfaceFilter::Available { vpc: vpc.clone(), tags: vec![] };
        assert_eq!(ec2.describe_interfaces(&filter).await.unwrap().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn imds_forgets_sessions_and_a_hop_limit_stops_the_token() {
    let bed = Bed::up("m5.large").await;
    let imds = bed.metadata();
    imds.identity().await.unwrap();
    // Another service at the same address knows no token of before.
    let any = "127.0.0.1:0".parse().unwrap();
    let far = Metadata::new(bed.shared.clone(), &bed.place.instance).with_hops(1, 2);
    let far = serve(any, far).await.unwrap();
    let begun = Instant::now();
    let error = imds_at(&far.url()).identity().await.unwrap_err().to_string();
    assert!(error.contains("hop limit") && begun.elapsed() < Duration::from_secs(20), "{error}");
    bed.shared.set_ahead(7 * 3600 * 1000);
    assert_eq!(
        imds.identity().await.unwrap().instance.as_str(),
        bed.place.instance,
        "a session that is over"
    );
    let away = imds_at("http://127.0.0.1:1").identity().await.unwrap_err().to_string();
    assert!(away.contains("127.0.0.1:1"), "{away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pods_on_a_fresh_m5_4xlarge_over_http() {
    let bed = Bed::up("m5.4xlarge").await;
    let folder = tempfile::tempdir().unwrap();
    let (ec2, imds) = (bed.client(), bed.metadata());
    let identity = imds.identity().await.unwrap();
    let (limits, denied) = ask_limits(&ec2, &identity.instance_type).await.unwrap();
    assert!(denied.is_none());
    let parts = Parts {
        identity,
        limits,
        settings: PoolSettings::default(),
        max_pods: 234,
        boot: "b".into(),
        seed: 7,
        storage: Arc::new(FileStorage::new(folder.path().join("ipam.json"))),
    };
    let (pool, _) = Pool::open(ec2, imds, Clock::system(), parts, &[]).unwrap();
    let pool = Arc::new(pool);
    let running = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.run().await }
    });
    let mut pods = tokio::task::JoinSet::new();
    for n in 0..50 {
        let pool = Arc::clone(&pool);
        pods.spawn(async move {
            let key = LeaseKey { network: "n".into(), container: format!("c{n}"), interface: "eth0".into() };
            let pod = Pod { namespace: "n".into(), name: format!("p{n}"), uid: String::new() };
            pool.assign(key, pod, Duration::from_secs(60)).await.unwrap().lease.address
        });
    }
    let mut addresses = pods.join_all().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !pool.targets().settled {
        assert!(Instant::now() < deadline, "{:?} {:?}", pool.targets(), pool.troubles());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.abort();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 50);
    let counts = bed.shared.world().counts();
    let changed: usize = counts.iter().filter(|(a, _)| !a.starts_with("Describe")).map(|(_, n)| n).sum();
    // The primary filled, two more made of three calls each: seven at least.
    assert!((7..=9).contains(&changed), "{counts:?}");
    let asked: usize = counts.iter().filter(|(a, _)| a.starts_with("Describe")).map(|(_, n)| n).sum();
    assert!(asked <= 12, "{counts:?}");
}

/// `sluice-agent cloud` with these variables and no others of AWS.
fn agent(variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(program("sluice-agent"));
    command.args(["cloud", "--output", "json"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    // No profile of who runs the test.
    command.env("HOME", "/nonexistent").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_irsa_from_pod_identity_and_from_the_instances_role() {
    let bed = Bed::up("m5.large").await;
    bed.shared.world().trust("web-identity", "aws-node");
    let files = tempfile::tempdir().unwrap();
    let token = files.path().join("token");
    std::fs::write(&token, "web-identity").unwrap();
    let token = token.to_str().unwrap().to_owned();
    let (ec2, imds) = (bed.ec2.url(), bed.imds.url());
    let base: Vec<(&str, &str)> = vec![
        ("AWS_EC2_ENDPOINT", &ec2),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds),
        // Set to nothing, as a chart does that leaves it out.
        ("AWS_REGION", ""),
    ];
    let with = |more: &[(&str, &str)]| {
        let all: Vec<_> = base.iter().chain(more).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        agent(&all)
    };
    let (ok, said) = with(&[]);
    assert!(ok && said.contains("m5.large"), "the instance's role: {said}");
    // From here on only the other role may ask for interfaces.
    bed.shared.world().grant("node", Policy::amazon_eks_cni().without("DescribeNetworkInterfaces"));
    let (ok, said) = with(&[]);
    assert!(!ok && said.contains("ec2:DescribeNetworkInterfaces"), "{said}");
    let irsa = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/aws-node"),
        ("AWS_ENDPOINT_URL_STS", &ec2),
    ];
    let (ok, said) = with(&irsa);
    assert!(ok, "IRSA: {said}");
    let any = "127.0.0.1:0".parse().unwrap();
    let identity = serve(any, PodIdentity::new(bed.shared.clone())).await.unwrap();
    let uri = format!("{}/v1/credentials", identity.url());
    let pod_identity = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str()),
    ];
    let (ok, said) = with(&pod_identity);
    assert!(ok, "Pod Identity: {said}");
    bed.shared.world().grant("node", Policy::amazon_eks_cni().without("DescribeSubnets"));
    let (ok, said) = with(&[]);
    assert!(!ok && said.contains("ec2:DescribeSubnets") && said.contains("denied"), "{said}");
    let (ok, said) = agent(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")]);
    assert!(!ok && said.contains("instance metadata service"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_pods_that_are_taken_over_never_go_back() {
    let bed = Bed::up("m5.large").await;
    let folder = tempfile::tempdir().unwrap();
    let (ec2, imds) = (bed.client(), bed.metadata());
    let identity = imds.identity().await.unwrap();
    let mine = InterfaceFilter::AttachedTo(identity.instance.clone());
    let primary = ec2.describe_interfaces(&mine).await.unwrap().remove(0);
    // As the VPC CNI leaves a node: more than is asked for here, three of them in use.
    let there = ec2.assign(&primary.id, Amount::Addresses(9)).await.unwrap().addresses;
    let variables = [("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "0")];
    let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    let parts = Parts {
        limits: ask_limits(&ec2, &identity.instance_type).await.unwrap().0,
        identity,
        settings: PoolSettings::read(lookup).unwrap(),
        max_pods: 29,
        boot: "b".into(),
        seed: 7,
        storage: Arc::new(FileStorage::new(folder.path().join("leases.json"))),
    };
    let (pool, _) = Pool::open(ec2, imds, Clock::system(), parts, &[]).unwrap();
    let used: Vec<_> = [8, 3, 5].map(|at| there[at]).into();
    for (n, address) in used.iter().enumerate() {
        let lease = Lease {
            key: LeaseKey { network: "n".into(), container: format!("c{n}"), interface: "eth0".into() },
            pod: Pod { namespace: "n".into(), name: format!("p{n}"), uid: String::new() },
            address: *address,
            eni: EniId::unknown(),
            since: Moment(0),
        };
        assert!(pool.adopt(&lease).unwrap());
        assert!(!pool.adopt(&lease).unwrap(), "once");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while pool.targets().usage.total != 4 {
        assert!(Instant::now() < deadline, "{:?} {:?}", pool.targets(), pool.troubles());
        pool.step().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = bed.client().describe_interfaces(&mine).await.unwrap().remove(0).secondary;
    assert_eq!(left.len(), 4);
    assert!(used.iter().all(|address| left.contains(address)), "{used:?} {left:?}");
    assert!(pool.leases().iter().all(|lease| lease.eni == primary.id) && pool.lost().is_empty());
}
