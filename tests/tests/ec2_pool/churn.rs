//! Random churn of pods with failing calls, lost answers, throttling, full disks and kills at every step.
//!
//! What must hold all the time: no address is in two containers, none is in a container without being on an attached
//! interface of the node, none comes back before it cooled down, and no limit is exceeded. What must hold when the
//! noise ends: the pool is at its targets, and EC2 has nothing that the pool does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sluice_ec2::backoff::Dice;
use sluice_ec2::cloud::Limits;
use sluice_ec2::pool::{Opened, Parts, Pool};
use sluice_ec2::settings::{Settings, Target};
use sluice_ec2::store::{Lease, LeaseKey, Pod, addresses};
use sluice_tests::fakes::ec2::faults::{Bucket, Buckets};
use sluice_tests::fakes::ec2::{Delays, Effect, Rule, World};

use crate::direct::Direct;

pub(crate) type Node = Pool<Direct, Direct>;

/// Begins late enough that nothing is before the epoch.
pub(crate) const START: Duration = Duration::from_secs(1_000_000);

pub(crate) fn world(instance_type: &str) -> Direct {
    let (mut world, place) = World::with_node(START, instance_type).unwrap();
    world.delays = Delays {
        attach: Duration::from_millis(1_500),
        detach: Duration::from_secs(3),
        describe: Duration::from_secs(2),
        imds: Duration::from_secs(6),
        imds_addresses: Duration::from_secs(4),
        call: Duration::ZERO,
    };
    Direct::new(world, START, &place.instance)
}

/// Starts the agent's pool as after a kill.
pub(crate) fn open(direct: &Direct, settings: &Settings, live: &[Lease]) -> (Node, Opened) {
    let identity = direct.node().identity();
    let shape = direct.node().world.instances()[identity.instance.as_str()].shape;
    let limits: Limits = sluice_ec2::limits::from_table(shape.name).unwrap();
    assert_eq!((limits.interfaces, limits.addresses), (shape.interfaces, shape.addresses));
    let parts = Parts {
        max_pods: 110,
        identity,
        limits,
        settings: settings.clone(),
        boot: "boot".to_owned(),
        seed: 7,
        storage: Arc::new(direct.clone()),
    };
    Pool::open(direct.clone(), direct.clone(), direct.clock(), parts, live).unwrap()
}

/// Runs a round; `None` where the process died in it. Nothing in a round waits but for a call.
pub(crate) fn round(pool: &Node) -> Option<Duration> {
    let step = pin!(pool.step());
    match step.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(due) => Some(Duration::from_millis(due.0)),
        Poll::Pending => None,
    }
}

/// Lets time pass with rounds when they are due.
pub(crate) fn pass(direct: &Direct, pool: &Node, time: Duration) {
    let end = direct.node().now + time;
    while direct.node().now < end {
        let due = round(pool).expect("nobody kills it");
        let mut node = direct.node();
        node.now =
            due.clamp(node.now + Duration::from_millis(50), end.max(node.now + Duration::from_millis(50)));
    }
}

pub(crate) fn key(container: &str) -> LeaseKey {
    LeaseKey { network: "pods".into(), container: container.into(), interface: "eth0".into() }
}

pub(crate) fn pod(name: &str) -> Pod {
    Pod { namespace: "default".into(), name: name.into(), uid: name.into() }
}

struct Churn {
    direct: Direct,
    settings: Settings,
    pool: Node,
    dice: Dice,
    /// What containers were told.
    held: BTreeMap<LeaseKey, Lease>,
    /// DELs that were asked for and not answered.
    ending: BTreeSet<LeaseKey>,
    ended: BTreeMap<Ipv4Addr, Duration>,
    made: u32,
    kills: u32,
    given: u32,
}

impl Churn {
    fn new(settings: Settings, instance_type: &str, seed: u64) -> Self {
        let direct = world(instance_type);
        let (pool, opened) = open(&direct, &settings, &[]);
        assert_eq!(opened, Opened::Fresh { restored: 0 });
        let (held, ending, ended) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let mut dice = Dice::new(seed);
        dice.roll();
        Self { direct, settings, pool, dice, held, ending, ended, made: 0, kills: 0, given: 0 }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.dice.roll() >> 16 & 0xffff_ffff < 0x1_0000_0000 / n
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from((self.dice.roll() >> 20) % u64::try_from(n).unwrap()).unwrap()
    }

    fn step(&mut self) {
        match self.below(10) {
            0..=2 => self.add(),
            3..=4 => self.remove(),
            _ => {}
        }
        if self.one_in(12) {
            self.fault();
        }
        if self.one_in(15) {
            let after = self.one_in(2);
            let calls = u32::try_from(1 + self.below(6)).unwrap();
            self.direct.node().fuse.get_or_insert((calls, after));
        }
        if self.one_in(200) {
            let full = self.one_in(2);
            self.direct.node().disk_full = full;
        }
        if self.one_in(300) {
            let slow = self.one_in(2);
            let bucket = Bucket { capacity: 3.0, refill: 0.3 };
            self.direct.node().world.buckets = if slow { Buckets::all(bucket) } else { Buckets::default() };
        }
        let millis = [20, 300, 2_000, 9_000, 45_000][self.below(5)];
        self.direct.node().now += Duration::from_millis(millis);
        let _ = round(&self.pool);
        if self.direct.node().dead {
            self.restart();
        }
        self.check();
    }

    fn add(&mut self) {
        // Sometimes the sandbox of a pod is made again: the old one is dead by then, and its DEL comes late.
        let again = self.one_in(8).then(|| self.held.values().next().cloned()).flatten();
        let again = again.inspect(|old| {
            self.held.remove(&old.key);
            self.ending.insert(old.key.clone());
        });
        self.made += 1;
        let pod = again.map_or_else(|| pod(&format!("p{}", self.made)), |old| old.pod);
        let key = key(&format!("c{}", self.made));
        let now = self.direct.node().now;
        let assigned = match self.pool.try_assign(key.clone(), pod) {
            Ok(Ok(assigned)) if !self.direct.node().dead => assigned,
            Ok(Err(_)) => return,
            // The plugin got no answer or an error: kubelet tears the sandbox down, with a DEL.
            _ => {
                self.ending.insert(key);
                return;
            }
        };
        let address = assigned.lease.address;
        if let Some(ended) = self.ended.get(&address) {
            assert!(now - *ended >= self.settings.cooldown, "{address} came back after {:?}", now - *ended);
        }
        if let Some(old) = assigned.superseded {
            assert!(self.ending.remove(&old.key), "{old:?}");
            self.ended.insert(old.address, now);
        }
        assert!(self.held.values().all(|l| l.address != address), "{address} is in two containers");
        self.given += 1;
        self.held.insert(key, assigned.lease);
    }

    fn remove(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let n = self.below(self.held.len());
        let key = self.held.keys().nth(n).cloned().unwrap();
        // From here on nobody uses the address, whether the DEL is answered or not.
        self.held.remove(&key);
        self.ending.insert(key);
        self.retry_endings();
    }

    fn retry_endings(&mut self) {
        let now = self.direct.node().now;
        for key in std::mem::take(&mut self.ending) {
            match self.pool.release(&key) {
                Ok(_) if self.direct.node().dead => drop(self.ending.insert(key)),
                Ok(Some(lease)) => drop(self.ended.insert(lease.address, now)),
                Ok(None) => {}
                Err(_) => drop(self.ending.insert(key)),
            }
        }
    }

    fn fault(&mut self) {
        let actions = [
            "CreateNetworkInterface",
            "AttachNetworkInterface",
            "ModifyNetworkInterfaceAttribute",
            "AssignPrivateIpAddresses",
            "UnassignPrivateIpAddresses",
            "DetachNetworkInterface",
            "DeleteNetworkInterface",
            "DescribeNetworkInterfaces",
            "DescribeSubnets",
            "*",
        ];
        let codes = [
            "InternalError",
            "RequestLimitExceeded",
            "UnauthorizedOperation",
            "InsufficientFreeAddressesInSubnet",
            "InsufficientCidrBlocks",
            "IncorrectState",
            "RequestExpired",
            "InvalidParameterValue",
            "AttachmentLimitExceeded",
            "PrivateIpAddressLimitExceeded",
        ];
        let action = actions[self.below(actions.len())];
        let effect = match self.below(4) {
            0 => Effect::LoseAnswer,
            1 => Effect::Cut,
            _ => Effect::Refuse { code: codes[self.below(codes.len())].to_owned(), message: String::new() },
        };
        self.direct.node().world.script.push(Rule::next(action, effect));
    }

    fn restart(&mut self) {
        {
            let mut node = self.direct.node();
            (node.dead, node.fuse, node.disk_full) = (false, None, false);
        }
        let live: Vec<_> = self.held.values().cloned().collect();
        let (pool, opened) = open(&self.direct, &self.settings, &live);
        assert_eq!(opened, Opened::Resumed);
        self.pool = pool;
        self.kills += 1;
        self.retry_endings();
    }

    fn check(&self) {
        let leases: BTreeMap<_, _> = self.pool.leases().into_iter().map(|l| (l.key.clone(), l)).collect();
        let mut node = self.direct.node();
        let now = node.now;
        node.world.settle(now);
        let ours: Vec<_> = node.world.interfaces().values().filter(|i| i.is_on(&node.instance)).collect();
        let on_node: BTreeSet<Ipv4Addr> = ours
            .iter()
            .flat_map(|i| i.secondary.iter().copied().chain(i.prefixes.iter().flat_map(|p| addresses(*p))))
            .collect();
        let mut seen = BTreeSet::new();
        for (key, lease) in &self.held {
            assert_eq!(leases.get(key), Some(lease), "the pool forgot {key}");
            assert!(seen.insert(lease.address), "{} is in two containers", lease.address);
            assert!(
                on_node.contains(&lease.address),
                "{key} has {}, which is not on the node",
                lease.address
            );
        }
        let shape = node.world.instances()[&node.instance].shape;
        let most = self.settings.max_interfaces.unwrap_or(shape.interfaces).min(shape.interfaces);
        assert!(ours.len() <= most as usize);
        assert!(ours.iter().all(|i| i.slots() <= shape.addresses));
    }

    /// The noise ends: after two hours everything is as it should be.
    fn rest(&mut self) {
        {
            let mut node = self.direct.node();
            (node.fuse, node.disk_full) = (None, false);
            node.world.script.clear();
            node.world.buckets = Buckets::default();
        }
        self.retry_endings();
        pass(&self.direct, &self.pool, Duration::from_secs(7_200));
        self.check();
        let targets = self.pool.targets();
        assert!(targets.settled, "{targets:?} {:?} {:?}", self.pool.sequences(), self.pool.troubles());
        // What was denied once and not needed since is still told.
        assert!(self.pool.troubles().iter().all(|e| !e.kind.passes()), "{:?}", self.pool.troubles());
        assert_eq!(self.pool.lost(), []);
        assert_eq!(self.pool.leases().len(), self.held.len());
        let node = self.direct.node();
        let known: BTreeMap<_, _> = self.pool.enis().into_iter().map(|e| (e.id.to_string(), e)).collect();
        assert_eq!(
            node.world.interfaces().keys().collect::<Vec<_>>(),
            known.keys().collect::<Vec<_>>(),
            "a leak"
        );
        for (id, interface) in node.world.interfaces() {
            let there =
                interface.secondary.iter().map(|a| (*a).into()).chain(interface.prefixes.iter().copied());
            let there: BTreeSet<ipnet::Ipv4Net> = there.collect();
            assert_eq!(there, known[id].blocks.keys().copied().collect(), "{id}");
            assert!(interface.attachment.as_ref().is_some_and(|a| a.delete_on_termination), "{id}");
        }
    }
}

fn churn(settings: Settings, instance_type: &str, seed: u64, steps: u32) {
    let mut churn = Churn::new(settings, instance_type, seed);
    for n in 0..steps {
        churn.step();
        if n % 500 == 499 {
            churn.rest();
        }
    }
    churn.rest();
    let expected = steps / 40;
    assert!(
        churn.kills > expected && churn.given > expected,
        "{} kills, {} leases",
        churn.kills,
        churn.given
    );
}

fn with(target: Target, prefixes: bool) -> Settings {
    Settings { target, prefixes, ..Settings::default() }
}

#[test]
fn interfaces_as_target() {
    churn(with(Target::Interfaces(1), false), "m5.large", 11, 3_000);
}

#[test]
fn addresses_as_target() {
    churn(with(Target::Addresses { warm: 3, minimum: 8 }, false), "m5.large", 12, 3_000);
}

#[test]
fn prefixes_as_target() {
    churn(with(Target::Prefixes(1), true), "t3.medium", 13, 2_500);
}

#[test]
fn few_interfaces_of_an_operators_choice() {
    let settings =
        Settings { max_interfaces: Some(2), ..with(Target::Addresses { warm: 2, minimum: 0 }, true) };
    churn(settings, "m5.large", 14, 1_500);
}
