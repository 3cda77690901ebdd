//! What a directory of a large cluster costs: 100,000 pods of other nodes, 300 of this one, 500 policies, 100 services.
//! `cargo run --release -p sluice-agent --example agent_scale`

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_agent::{Inventory, Model, Settings};
use sluice_kube::manifests::{Allocations, Touched};

const PODS: usize = 100_000;
const LOCAL: usize = 300;
const POLICIES: usize = 500;
const SERVICES: usize = 100;
const ROUNDS: usize = 200;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let root = std::env::temp_dir().join(format!("sluice-scale-{}", std::process::id()));
    std::fs::create_dir_all(&root)?;
    let result = measure(&root);
    std::fs::remove_dir_all(&root)?;
    result
}

fn pod(i: usize, node: &str, label: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{namespace: n{}, name: p{i}, labels: {{app: a{label}, tier: t{}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]}}\n---\n",
        i % 50,
        i % 4
    )
}

fn rules() -> Outcome<String> {
    let mut rules = String::new();
    for i in 0..POLICIES {
        write!(
            rules,
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: n{}, name: y{i}}}\n\
             spec: {{podSelector: {{matchLabels: {{tier: t{}}}}}, \
             ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a{i}}}}}}}], ports: [{{port: web}}]}}]}}\n---\n",
            i % 50,
            i % 4
        )?;
    }
    for i in 0..SERVICES {
        write!(
            rules,
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: n{}, name: s{i}}}\n\
             spec: {{selector: {{app: a{i}}}, ports: [{{port: 80, targetPort: web}}]}}\n---\n",
            i % 50
        )?;
    }
    Ok(rules)
}

fn inventory() -> Outcome<Inventory> {
    let mut text = "version = 1\nnode.name = \"here\"\nnat.vpc_cidrs = [\"10.0.0.0/8\"]\n\
                    [[eni]]\nname = \"eth0\"\nprimary = true\naddress = \"10.0.9.5\"\nsubnet = \"10.0.9.0/24\"\n\
                    gateway = \"10.0.9.1\"\n"
        .to_owned();
    for i in 0..LOCAL {
        let (high, low) = (i / 200, i % 200 + 1);
        write!(
            text,
            "[[pod]]\nip = \"10.1.{high}.{low}\"\neni = \"eth0\"\ninterface = \"eni{i}\"\n\
             mac = \"02:00:00:00:{high:02x}:{low:02x}\"\n"
        )?;
    }
    text.push_str("[[cluster.node]]\nname = \"there\"\npod_cidr = \"10.128.0.0/12\"\n");
    Ok(Inventory::parse(&text)?)
}

fn measure(root: &Path) -> Outcome<()> {
    for file in 0..100 {
        let pods = (0..PODS / 100).map(|i| file * (PODS / 100) + i);
        let text: String = pods.map(|i| pod(i, "there", i % 1000)).collect();
        std::fs::write(root.join(format!("cluster-{file}.yaml")), text)?;
    }
    for i in 0..LOCAL {
        std::fs::write(root.join(format!("local-{i}.yaml")), pod(PODS + i, "here", i % 1000))?;
    }
    std::fs::write(root.join("rules.yaml"), rules()?)?;
    let inventory = inventory()?;
    let before = resident()?;
    let (start, busy) = (Instant::now(), on_cpu());
    let (settings, none) = (Settings::default(), Allocations::default());
    let mut model = Model::new(inventory, root, &settings, &none);
    model.scan();
    println!("first look, {PODS} + {LOCAL} pods: {:?} ({:?} on the CPU)", start.elapsed(), on_cpu() - busy);
    println!(
        "resident memory: {} MiB more, {} MiB at the peak",
        (resident()? - before) / 1024,
        memory("VmHWM:")? / 1024
    );
    let start = Instant::now();
    let state = model.state();
    println!("everything for the daemon: {:?}", start.elapsed());
    println!("as JSON: {} bytes", serde_json::to_vec(&state)?.len());
    drop(state);
    change(&mut model, &root.join("local-7.yaml"), "a local pod's label, in a file of its own", |round| {
        pod(PODS + 7, "here", round % 900)
    })?;
    let others: String = (1..1000).map(|i| pod(i, "there", i)).collect();
    change(&mut model, &root.join("cluster-0.yaml"), "a remote pod's label, in a file of 1000", |round| {
        pod(0, "there", round % 400) + &others
    })?;
    let start = Instant::now();
    let findings = model.findings().len();
    println!("{findings} findings: {:?}", start.elapsed());
    println!("resident memory: {} MiB more", (resident()? - before) / 1024);
    Ok(())
}

/// Times what a file's change costs from when it is told until the operations are there.
fn change(model: &mut Model, file: &Path, what: &str, text: impl Fn(usize) -> String) -> Outcome<()> {
    let mut times: Vec<Duration> = Vec::new();
    let mut told = 0;
    for round in 0..ROUNDS {
        std::fs::write(file, text(round))?;
        let start = Instant::now();
        // A label that no policy names costs a look and comes to nothing.
        told += model.refresh(&Touched::Files([file.to_owned()].into())).len();
        times.push(start.elapsed());
    }
    if told == 0 {
        return Err(format!("{what}: no operation in {ROUNDS} rounds").into());
    }
    times.sort_unstable();
    println!("{what}: p50 {:?}, p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    Ok(())
}

/// Time that this thread has spent on a CPU, to some milliseconds: what others do on the machine does not count.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// KiB now.
fn resident() -> Outcome<u64> {
    memory("VmRSS:")
}

/// KiB of a line of the process's status.
fn memory(name: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
