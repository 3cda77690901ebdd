//! What a large cluster costs: 300 pods of this node, 500 policies, 100,000 pods in all.
//!
//! `cargo run --release -p sluice-policy --example scale`

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_policy::{
    Change, ContainerPort, EnforcingMode, Labels, Namespace, Object, Phase, Pod, Settings, World,
    policy_from_json,
};
use sluice_state::{Op, Protocol};

const PODS: u32 = 100_000;
const LOCAL: u32 = 300;
const POLICIES: u32 = 500;
const NAMESPACES: u32 = 100;
/// Pods of one workload have equal labels, except for every tenth workload, a `StatefulSet`.
const WORKLOAD: u32 = 20;

fn main() -> Result<(), String> {
    let before = memory();
    let namespaces: Vec<Change> = (0..NAMESPACES).map(namespace).collect();
    let policies: Vec<Change> = (0..POLICIES).map(|n| policy(n, 0)).collect::<Result<_, _>>()?;
    let pods: Vec<Change> = (0..PODS).map(|n| upsert(pod(n))).collect();
    let mut world = World::new(Settings {
        node: "node-0".into(),
        mode: EnforcingMode::Standard,
        on_change: sluice_state::OnPolicyChange::Recheck,
        masqueraded_node_traffic: sluice_state::MasqueradedNodeTraffic::Allow,
        service_cidrs: Vec::new(),
    });
    let (started, busy) = (Instant::now(), on_cpu());
    for change in namespaces.into_iter().chain(policies).chain(pods) {
        apply(&mut world, change)?;
    }
    let (applied, applied_busy) = (started.elapsed(), on_cpu() - busy);
    let update = world.update();
    let (whole, whole_busy) = (started.elapsed(), on_cpu() - busy);
    drop(update);
    let compiled = world.policy();
    println!("{PODS} pods, {LOCAL} of them on this node, {POLICIES} policies, {NAMESPACES} namespaces");
    println!(
        "tables {applied:.1?} ({applied_busy:.1?} on the CPU), compile {:.1?} ({:.1?}); {} identities, {} sets of rules, {} isolated pods",
        whole - applied,
        whole_busy - applied_busy,
        compiled.identities.len(),
        compiled.rules.len(),
        compiled.pods.len()
    );
    drop(compiled);
    println!("memory: {} MiB resident, {} MiB of that before the first object", memory() >> 10, before >> 10);

    measure("a pod's labels", 2000, &mut world, |n| {
        let mut pod = pod(n * 37 % PODS);
        let mut labels = (*pod.labels).clone();
        labels.insert("version".into(), (n % 7).to_string().into());
        pod.labels = Arc::new(labels);
        Ok(upsert(pod))
    })?;
    measure("a pod's address", 2000, &mut world, |n| {
        let mut pod = pod(n * 41 % PODS);
        pod.ip = Some(Ipv4Addr::from(0x0b00_0000 + n));
        Ok(upsert(pod))
    })?;
    measure("a local pod's labels", 300, &mut world, |n| {
        let mut pod = pod(n * (PODS / LOCAL));
        pod.labels = labels(&[("app", &format!("app-{}", n % 50)), ("tier", "web")]);
        Ok(upsert(pod))
    })?;
    measure("a policy", 1000, &mut world, |n| policy(n % POLICIES, n / POLICIES + 1))?;
    measure("a policy of the old form back", 500, &mut world, |n| policy(n, 0))?;
    measure("a namespace's labels", 100, &mut world, |n| {
        let labels = labels(&[("team", &format!("team-{}", (n + 1) % 10))]);
        Ok(Change::Upsert(Object::Namespace(Namespace { name: format!("ns-{n}").into(), labels })))
    })?;
    println!("memory: {} MiB resident", memory() >> 10);
    Ok(())
}

/// Applies changes one by one, each with its update, and prints how long that takes.
fn measure(
    what: &str,
    times: u32,
    world: &mut World,
    change: impl Fn(u32) -> Result<Change, String>,
) -> Result<(), String> {
    let (mut taken, mut addresses, mut ops): (Vec<Duration>, usize, usize) = (Vec::new(), 0, 0);
    for n in 0..times {
        let change = change(n)?;
        let started = Instant::now();
        apply(world, change)?;
        let update = world.update();
        taken.push(started.elapsed());
        ops += update.ops.len();
        addresses += update
            .ops
            .iter()
            .map(|op| if let Op::UpsertAddresses(list) = op { list.len() } else { 0 })
            .sum::<usize>();
    }
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
    println!(
        "{what}: p50 {:.1?}, p99 {:.1?}, max {:.1?}; {:.1} operations and {:.1} addresses each",
        at(50),
        at(99),
        at(100),
        ops as f64 / f64::from(times),
        addresses as f64 / f64::from(times),
    );
    Ok(())
}

fn apply(world: &mut World, change: Change) -> Result<(), String> {
    world.apply(change).map_err(|refusals| refusals.iter().map(|r| format!("{r}\n")).collect())
}

fn namespace(n: u32) -> Change {
    let labels = labels(&[
        ("team", &format!("team-{}", n % 10)),
        ("env", if n.is_multiple_of(3) { "prod" } else { "dev" }),
    ]);
    Change::Upsert(Object::Namespace(Namespace { name: format!("ns-{n}").into(), labels }))
}

/// Every 333rd is on this node; each workload is in one namespace, which has fifty of them.
fn pod(n: u32) -> Pod {
    let workload = n / WORKLOAD;
    let app = format!("app-{}", workload / NAMESPACES % 50);
    let hash = format!("{:x}", workload.wrapping_mul(2_654_435_761));
    let tier = ["web", "api", "db"][workload as usize % 3];
    let mut pairs = vec![("app", &*app), ("tier", tier), ("pod-template-hash", &*hash)];
    let name = format!("{app}-{hash}-{n}");
    if workload % 10 == 9 {
        pairs.push(("statefulset.kubernetes.io/pod-name", &name));
    }
    let number = if workload.is_multiple_of(2) { 8080 } else { 9090 };
    let port = |name: &str, port| ContainerPort {
        name: Some(name.into()),
        protocol: Protocol::Tcp,
        port,
        host_port: None,
        host_ip: None,
    };
    Pod {
        namespace: format!("ns-{}", workload % NAMESPACES).into(),
        name: name.as_str().into(),
        uid: format!("{n:08x}-0000-4000-8000-000000000000").into(),
        labels: labels(&pairs),
        ip: Some(Ipv4Addr::from(0x0a00_0000 + n + 1)),
        node: Some(if n.is_multiple_of(PODS / LOCAL) {
            "node-0".into()
        } else {
            format!("node-{}", 1 + n / 110).into()
        }),
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        created: Some(1_700_000_000 + i64::from(n)),
        ports: Arc::new([port("http", number), port("metrics", 9100)]),
    }
}

fn upsert(pod: Pod) -> Change {
    Change::Upsert(Object::Pod(pod.into()))
}

/// Policies as they are met: who may reach an app on its port by name, monitoring from another namespace, what goes out.
fn policy(n: u32, version: u32) -> Result<Change, String> {
    let namespace = format!("ns-{}", n % NAMESPACES);
    let subject = match n / NAMESPACES {
        0 => json!({}),
        1 => json!({"matchLabels": {"tier": "web"}}),
        2 => json!({"matchLabels": {"tier": "api"}}),
        3 => json!({"matchLabels": {"tier": "db"}}),
        _ => json!({"matchLabels": {"app": format!("app-{}", n % 50)}}),
    };
    let peer = format!("app-{}", (n + 7 * version + 1) % 50);
    let team = format!("team-{}", (n + version) % 10);
    let policy = policy_from_json(json!({
        "metadata": {"namespace": namespace, "name": format!("policy-{n}")},
        "spec": {
            "podSelector": subject,
            "policyTypes": if n.is_multiple_of(2) { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": peer}}}, {"podSelector": {"matchLabels": {"tier": "web"}}}],
                 "ports": [{"port": "http"}, {"port": 443}]},
                {"from": [{"namespaceSelector": {"matchLabels": {"team": team}},
                           "podSelector": {"matchLabels": {"app": format!("app-{}", n % 3)}}}], "ports": [{"port": "metrics"}]},
                {"from": [{"ipBlock": {"cidr": format!("172.16.{}.0/24", n % 256), "except": [format!("172.16.{}.128/25", n % 256)]}}]},
            ],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}], "ports": [{"port": 5432}]},
                {"to": [{"podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["api", "web"]}]}}], "ports": [{"port": "http"}]},
                {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.169.254/32"]}}], "ports": [{"port": 443}]},
            ],
        },
    }))?;
    Ok(Change::Upsert(Object::NetworkPolicy(Box::new(policy))))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Arc::new(pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect())
}

/// Time that this thread has spent on a CPU, to some milliseconds: what others do on the machine does not count.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// Resident memory, KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}
