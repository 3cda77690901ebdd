//! Clusters that nobody thought of: what the compiler and the engine make of them must be what the API's words mean.
//!
//! Every run has other worlds. Its seed is printed; `SLUICE_SEED=N` plays a run again, `SLUICE_WORLDS=N` another number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sluice_engine::flow::FlowKey;
use sluice_engine::policy::Policy;
use sluice_policy::End;
use sluice_tests::conformance::{Control, Pace};
use sluice_tests::networkpolicy::random::{self, Random};
use sluice_tests::networkpolicy::{Cluster, Endpoint, Halves, Party, Probe, evaluate};

const WORLDS: u64 = 10_000;
const MUTATIONS: usize = 3;
const PROBES: usize = 12;

/// One node of a random world: the compiler, and the engine's policy behind it.
struct Node {
    control: Control,
    policy: Policy,
}

impl Node {
    fn new(cluster: &Cluster) -> Self {
        let local = cluster.local_node().unwrap();
        Self { control: Control::new(&local.name, local.ip).unwrap(), policy: Policy::allow_all() }
    }

    fn follow(&mut self, cluster: &Cluster, pace: Pace) -> Result<(), String> {
        let Self { control, policy } = self;
        control.follow(cluster, pace, |state| {
            *policy = Policy::compile(state, policy, false);
            Ok(())
        })
    }

    /// What the engine says of each half. It is asked for what comes to it only: no pod's packets to itself, none between
    /// a pod and its own node.
    fn halves(&self, cluster: &Cluster, probe: &Probe) -> Option<Halves> {
        let (from, to) = (cluster.party(&probe.from).ok()?, cluster.party(&probe.to).ok()?);
        let (src, dst) = (from.ip?, to.ip?);
        let key = FlowKey::new(src.to_bits(), dst.to_bits(), 40_000, probe.port, probe.protocol.number());
        let own_node = |pod: Party<'_>, node: Party<'_>| {
            node.node.is_some_and(|n| pod.pod.is_some_and(|p| p.node == n.name))
        };
        if src == dst || own_node(from, to) || own_node(to, from) {
            return None;
        }
        Some(Halves { egress: self.policy.egress_allows(&key), ingress: self.policy.ingress_allows(&key) })
    }
}

/// What the local node has to say: its own pods' halves, and nothing of the others'.
fn expected(cluster: &Cluster, probe: &Probe) -> Halves {
    let mut halves = evaluate(cluster, probe).unwrap();
    let local = &cluster.local_node().unwrap().name;
    let here = |party: Party<'_>| party.pod.is_some_and(|p| p.node == *local);
    halves.egress |= !here(cluster.party(&probe.from).unwrap());
    halves.ingress |= !here(cluster.party(&probe.to).unwrap());
    halves
}

fn play(seed: u64, asked: &AtomicU64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut cluster = random::cluster(&mut random);
    let mut node = Node::new(&cluster);
    node.follow(&cluster, Pace::OneByOne)?;
    check(&mut random, &node, &cluster, asked)?;
    for _ in 0..MUTATIONS {
        let mutation = random::mutation(&mut random, &cluster);
        cluster.apply(&mutation).map_err(|e| format!("{mutation:?}: {e}"))?;
        node.follow(&cluster, Pace::OneByOne)?;
        check(&mut random, &node, &cluster, asked).map_err(|e| format!("after {mutation:?}: {e}"))?;
    }
    let mut fresh = Node::new(&cluster);
    fresh.follow(&cluster, Pace::AtOnce)?;
    check(&mut random, &fresh, &cluster, asked).map_err(|e| format!("compiled at once: {e}"))
}

fn check(random: &mut Random, node: &Node, cluster: &Cluster, asked: &AtomicU64) -> Result<(), String> {
    if let Some(address) = node.control.meddles() {
        return Err(format!("{address} is isolated here, but is no pod's of this node, in {cluster:#?}"));
    }
    for _ in 0..PROBES {
        let probe = random::probe(random, cluster);
        explain(node, cluster, &probe)?;
        let Some(found) = node.halves(cluster, &probe) else { continue };
        let expected = expected(cluster, &probe);
        asked.fetch_add(u64::from(!expected.egress) + u64::from(!expected.ingress), Ordering::Relaxed);
        if found != expected {
            return Err(format!("{probe}: found {found:?}, expected {expected:?}, in {cluster:#?}"));
        }
    }
    Ok(())
}

/// What the compiler's explanation says of both halves, whichever node's they are.
fn explain(node: &Node, cluster: &Cluster, probe: &Probe) -> Result<(), String> {
    let end = |end: &Endpoint| match end {
        Endpoint::Pod(namespace, name) => {
            End::Pod { namespace: namespace.as_str().into(), name: name.as_str().into() }
        }
        Endpoint::Ip(ip) => End::Address(*ip),
        Endpoint::Node(name) => End::Node(name.as_str().into()),
    };
    let decision = node.control.world().decide(&sluice_policy::Probe {
        from: end(&probe.from),
        to: end(&probe.to),
        protocol: Some(probe.protocol),
        port: probe.port,
    });
    let told = Halves { egress: decision.egress.allowed, ingress: decision.ingress.allowed };
    let expected = evaluate(cluster, probe).unwrap();
    let own = |party: Result<Party<'_>, _>| party.is_ok_and(|p| p.ip.is_some());
    if told == expected || !own(cluster.party(&probe.from)) || !own(cluster.party(&probe.to)) {
        return Ok(());
    }
    Err(format!("{probe}: explained as {decision:?}, expected {expected:?}, in {cluster:#?}"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn the_compiler_and_the_engine_mean_what_the_api_says() {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let seed = number("SLUICE_SEED").unwrap_or_else(clock);
    let worlds = number("SLUICE_WORLDS").unwrap_or(WORLDS);
    println!("SLUICE_SEED={seed} plays these {worlds} worlds again");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (next, denied) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let world = next.fetch_add(1, Ordering::Relaxed);
                    if world >= worlds {
                        return;
                    }
                    let own = seed.wrapping_mul(1_000_003).wrapping_add(world);
                    if let Err(wrong) = play(own, &denied) {
                        panic!("SLUICE_SEED={seed}, world {world}: {wrong}");
                    }
                }
            });
        }
    });
    // Worlds in which nothing is denied would show nothing.
    let denied = denied.into_inner();
    println!("{denied} halves were denied");
    assert!(denied > worlds, "only {denied} halves of {worlds} worlds were denied");
}
