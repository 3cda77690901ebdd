//! What following a large cluster costs: how long the first look takes, what is resident, how busy a core is while the cluster
//! changes.
//!
//! ```sh
//! cargo run --release -p sluice-tests -- fakes kubernetes --listen 127.0.0.1:8001 --pods 100000 --nodes 5000 --changes 100 &
//! cargo run --release -p sluice-agent --example watch_scale -- http://127.0.0.1:8001 30
//! ```

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use sluice_agent::{Inventory, Model, Settings};
use sluice_kube::cluster::{Cluster, Options, Server, WATCH_SECONDS};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const INVENTORY: &str = "version = 1\nnode.name = \"node-0\"\nnat.vpc_cidrs = [\"10.0.0.0/8\"]\n\
    [[eni]]\nname = \"eth0\"\nprimary = true\naddress = \"10.0.9.5\"\nsubnet = \"10.0.9.0/24\"\ngateway = \"10.0.9.1\"\n";

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: watch_scale URL [SECONDS]")?;
    let seconds = args.next().map_or(Ok(30), |text| text.parse())?;
    let mut model = Model::of_cluster(Inventory::parse(INVENTORY)?, &Settings::default());
    let (tell, news) = channel();
    let options = Options {
        server: Server::Url(url),
        endpoint: None,
        node: "node-0".into(),
        instance: "watch-scale".into(),
        watch_seconds: WATCH_SECONDS,
    };
    let begun = Instant::now();
    let _cluster = Cluster::start(&options, move |news| tell.send(news).is_ok())?;
    let mut objects = 0;
    while !model.is_known() {
        let told = news.recv()?;
        told.findings.iter().flatten().for_each(|finding| eprintln!("{finding}"));
        objects += told.changes.len();
        model.hear(told);
    }
    let state = model.state();
    let addresses = state.policy.identities.len();
    drop(state);
    println!(
        "first look: {objects} objects in {:.1} s, {} MB read, {addresses} identities; {} MB resident, {} MB at most",
        begun.elapsed().as_secs_f64(),
        read()? >> 20,
        memory("VmRSS:")? >> 10,
        memory("VmHWM:")? >> 10,
    );
    let (busy, bytes, since) = (cpu()?, read()?, Instant::now());
    let (mut changes, mut ops) = (0, 0);
    let until = since + Duration::from_secs(seconds);
    loop {
        match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(told) => {
                changes += told.changes.len();
                ops += model.hear(told).len();
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return Err("the watches have ended".into()),
        }
    }
    let took = since.elapsed().as_secs_f64();
    println!(
        "{:.0} changes a second, {ops} of them matter here: {:.1} % of a core, {} bytes each; {} MB resident, {} MB at most",
        changes as f64 / took,
        (cpu()? - busy) as f64 / took / 1e7,
        (read()? - bytes) / (changes as u64).max(1),
        memory("VmRSS:")? >> 10,
        memory("VmHWM:")? >> 10,
    );
    Ok(())
}

/// KiB, of `/proc/self/status`.
fn memory(field: &str) -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Bytes that have come in over IP so far on this machine, which had better do nothing else.
fn read() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/net/netstat")?;
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("IpExt:"))
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let [names, values] = &lines[..] else { return Err("no IpExt".into()) };
    let place = names.iter().position(|name| *name == "InOctets").ok_or("no InOctets")?;
    Ok(values.get(place).ok_or("no value")?.parse()?)
}

/// Nanoseconds that every thread has run.
fn cpu() -> Outcome<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_ascii_whitespace().next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
}
