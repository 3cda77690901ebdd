//! `sluice-bench cni`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use sluice_bench::forwarding::lab::{Dataplane, Lab, sluice_command};
use sluice_bench::host::Host;
use sluice_bench::netns;
use sluice_bench::progress::Progress;

use super::{Output, deliver};

/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The lab's name.
const NAME: &str = "sbcni";

/// Measures CNI ADD and DEL: sluice-cni with agent and daemon, beside the reference plugin ptp with host-local, in turn.
///
/// Both are called as a runtime calls them, in the lab node's namespace, each pod with a namespace of its own. An ADD of
/// sluice-cni ends when the daemon has acknowledged path and policy; one of ptp when its veth is laid. Needs root, and the
/// package containernetworking-plugins.
#[derive(Args)]
#[command(after_help = "Example:
  sluice-bench cni --output json")]
pub(crate) struct Arguments {
    /// Pods of a round, each added and deleted
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=150))]
    pods: u16,
    /// Rounds of both in turn
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// The `sluice` command [default: beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    sluice: Option<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Also writes the JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    host: Host,
    pods: u16,
    rounds: u16,
    sluice: Figures,
    ptp: Figures,
    /// Of the medians of ADD, and of its 99th percentiles.
    ratio: [f64; 2],
}

/// Milliseconds.
#[derive(Serialize)]
struct Figures {
    add: Quantiles,
    del: Quantiles,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
    max: f64,
}

/// A plugin, as it is called.
struct Plugin {
    program: PathBuf,
    configuration: Value,
    add: Histogram<u64>,
    del: Histogram<u64>,
}

impl Plugin {
    fn new(program: PathBuf, configuration: Value) -> Result<Self> {
        ensure!(program.is_file(), "{} is not there", program.display());
        Ok(Self { program, configuration, add: Histogram::new(3)?, del: Histogram::new(3)? })
    }

    fn call(&mut self, node: &str, command: &'static str, pod: u16) -> Result<()> {
        let (program, text) = (self.program.clone(), self.configuration.to_string());
        let took = netns::spawn(node, "call", move || call(&program, command, pod, &text))?
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that calls has panicked"))??;
        let times = if command == "ADD" { &mut self.add } else { &mut self.del };
        times.record(u64::try_from(took.as_micros())?)?;
        Ok(())
    }

    fn figures(&self) -> Figures {
        let quantiles = |times: &Histogram<u64>| Quantiles {
            p50: times.value_at_quantile(0.5) as f64 / 1e3,
            p99: times.value_at_quantile(0.99) as f64 / 1e3,
            max: times.max() as f64 / 1e3,
        };
        Figures { add: quantiles(&self.add), del: quantiles(&self.del) }
    }
}

fn sandbox(pod: u16) -> String {
    format!("{NAME}-c{pod}")
}

fn call(program: &Path, command: &str, pod: u16, configuration: &str) -> Result<Duration> {
    let mut child = Command::new(program);
    child
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("c{pod}"))
        .env("CNI_NETNS", netns::path(&sandbox(pod)))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=p{pod}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = child.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    child.stdin.take().context("no pipe")?.write_all(configuration.as_bytes())?;
    let output = child.wait_with_output()?;
    let took = begun.elapsed();
    ensure!(
        output.status.success(),
        "{} {command} of pod {pod}: {}{}",
        program.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).status().context("cannot run ip (iproute2)")?;
    ensure!(done.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}

/// Namespaces of pods; they go with this.
struct Sandboxes(u16);

impl Drop for Sandboxes {
    fn drop(&mut self) {
        for pod in 0..self.0 {
            // One that was never made is gone already.
            let _ = Command::new("ip").args(["netns", "del", &sandbox(pod)]).stderr(Stdio::null()).status();
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let progress = Progress::new(u64::from(arguments.rounds) * 2 + 1)?;
    let files = std::env::temp_dir().join(format!("{NAME}-{}", std::process::id()));
    let done = measure(arguments, &files, &progress);
    // What is left of it is a few kilobytes of manifests.
    let _ = std::fs::remove_dir_all(&files);
    progress.finish();
    let report = done?;
    deliver(&report, arguments.output, table, arguments.json.as_deref())
}

fn measure(arguments: &Arguments, files: &Path, progress: &Progress) -> Result<Report> {
    let manifests = files.join("manifests");
    std::fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
    let pods: String = (0..arguments.pods)
        .map(|pod| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: p{pod}, labels: {{app: a{}}}}}\n\
                 spec: {{containers: [{{name: c, image: i}}]}}\n---\n",
                pod % 5
            )
        })
        .collect();
    std::fs::write(manifests.join("pods.yaml"), pods)?;
    let sluice = sluice_command(arguments.sluice.as_deref());
    progress.step("a lab with an agent that answers the plugin", "")?;
    let spare = arguments.pods.div_ceil(2).max(1) + 2;
    let line = [
        "--pods".to_owned(),
        "0".to_owned(),
        "--spare-addresses".to_owned(),
        (spare * 2).min(200).to_string(),
        "--manifests".to_owned(),
        manifests.display().to_string(),
    ];
    let lab = Lab::up(&sluice, NAME, Dataplane::Sluice, &line)?;
    let node = lab.topology.node.namespace.clone();
    let _sandboxes = Sandboxes(arguments.pods);
    for pod in 0..arguments.pods {
        ip(&["netns", "add", &sandbox(pod)])?;
    }
    let socket = format!("/run/sluice-lab/{NAME}/cni/agent.sock");
    let ours = json!({ "cniVersion": "1.0.0", "name": "sluice", "type": "sluice-cni", "socket": socket });
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "ptp", "ipMasq": false, "mtu": 1500,
        "ipam": { "type": "host-local", "subnet": "10.199.0.0/16", "dataDir": files.join("ptp") },
    });
    let ptp = Path::new(PLUGINS).join("ptp");
    let mut ours = Plugin::new(sluice.with_file_name("sluice-cni"), ours)?;
    let mut theirs = Plugin::new(ptp, theirs).context("install containernetworking-plugins")?;
    for round in 1..=arguments.rounds {
        for (name, plugin) in [("sluice-cni", &mut ours), ("ptp", &mut theirs)] {
            progress.step(&format!("round {round} of {}", arguments.rounds), name)?;
            for command in ["ADD", "DEL"] {
                for pod in 0..arguments.pods {
                    plugin.call(&node, command, pod)?;
                }
            }
        }
    }
    let ratio = [
        ours.add.value_at_quantile(0.5) as f64 / theirs.add.value_at_quantile(0.5) as f64,
        ours.add.value_at_quantile(0.99) as f64 / theirs.add.value_at_quantile(0.99) as f64,
    ];
    Ok(Report {
        host: Host::this(),
        pods: arguments.pods,
        rounds: arguments.rounds,
        sluice: ours.figures(),
        ptp: theirs.figures(),
        ratio,
    })
}

fn table(report: &Report) -> String {
    let row = |name: &str, q: &Quantiles| format!("{name:16} {:>8.1} {:>8.1} {:>8.1}\n", q.p50, q.p99, q.max);
    let mut text = format!("{:16} {:>8} {:>8} {:>8}   ms\n", "", "p50", "p99", "max");
    text += &row("sluice-cni ADD", &report.sluice.add);
    text += &row("ptp ADD", &report.ptp.add);
    text += &row("sluice-cni DEL", &report.sluice.del);
    text += &row("ptp DEL", &report.ptp.del);
    text + &format!(
        "ADD, Sluice over ptp: {:.2}x at the median, {:.2}x at p99",
        report.ratio[0], report.ratio[1]
    )
}
