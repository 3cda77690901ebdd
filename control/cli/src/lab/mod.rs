//! A virtual EC2 node in network namespaces: real veths, real routing, a fabric that checks what EC2 checks.
//!
//! Everything that real nodes would have is laid out by [`topology`] and [`build`]; what forwards is a choice
//! ([`Dataplane`]), so that Sluice and the kernel meet the same wires. The names and addresses are in `topology`.

mod agent;
mod build;
mod clean;
mod dataplane;
mod options;
mod processes;
mod progress;
mod record;
pub(crate) mod server;
mod status;
mod topology;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};

use crate::netns::{self, Netns};
use crate::output::Format;
use crate::shell;
use crate::stars::{self, Stars};

pub(crate) use agent::command as agent_command;
pub(crate) use dataplane::{beside, report, spawn};
pub(crate) use options::name;
pub use options::{Dataplane, Name, Options};
pub(crate) use progress::{Interrupt, Progress};
pub(crate) use record::Paths;
pub use record::{Process, Record};
pub(crate) use status::source_check_drops;
pub use topology::{EniLink, HostLink, PodLink, Topology};

/// The lab's commands.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Build the lab and start its dataplane
    Up(Box<Up>),
    /// Remove the lab, also what an `up` left that was killed
    Down(Down),
    /// Show names, addresses, MACs, processes, and what the fabric's source check dropped
    Status(Status),
    /// Run a command in one of the lab's namespaces: node, vpc, pod-a, host-x, imds, ...
    Exec(Exec),
    /// Play the Stars demo: network policies on real pods, step by step
    Stars(Box<Stars>),
}

/// What `sluice lab up --help` ends with.
const MEMBERS: &str = "Namespaces, each PREFIX-NAME; `ip netns exec PREFIX-NAME CMD` and `sluice lab exec NAME -- CMD` both work:
  node     eni0 10.0.9.5 (primary, gateway 10.0.9.1), eni1 10.0.10.5 (gateway 10.0.10.1)
  pod-a    10.0.1.10 on eni0          pod-b    10.0.1.11 on eni0
  pod-c    10.0.2.20 on eni1          pod-d    10.0.2.21 on eni1
  vpc      the fabric: routes by the owner of an address, drops what EC2's source check would
  host-v   10.0.77.7, in the VPC      host-w   100.64.3.3, in its second CIDR
  host-x   203.0.113.9, outside       host-y   198.51.100.7, outside, behind --path-mtu
  imds     169.254.169.254
Servers: TCP and UDP port 7 echo; port 8 says the address that the client is seen with (a UDP answer is as long as its
question); HTTP on imds, with /peer for the same and /latest/meta-data/ as far as VPC CNI reads it.";

/// `sluice lab up`.
#[derive(Debug, Args)]
#[command(after_help = MEMBERS)]
pub struct Up {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    options: Options,
}

/// `sluice lab down`.
#[derive(Debug, Args)]
pub struct Down {
    #[command(flatten)]
    name: Name,
}

/// `sluice lab status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    name: Name,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// `sluice lab exec`.
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    name: Name,
    /// Where: node, vpc, pod-a, host-x, imds, or a namespace's whole name
    member: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

/// Runs one of the lab's commands.
///
/// # Errors
/// What the command says.
pub fn run(command: &Lab) -> Result<ExitCode> {
    require_root()?;
    match command {
        Lab::Up(command) => {
            let Up { name, options } = &**command;
            let progress = Progress::new(format!("lab {}", name.name), Interrupt::watch()?);
            let record = up(&name.name, options, &progress)?;
            drop(progress);
            println!(
                "lab `{}` is up: {} pods, {} ENIs, dataplane {}",
                name.name,
                record.topology.pods.len(),
                record.topology.enis.len(),
                options.dataplane
            );
            let flag = if name.name == "sluice" { String::new() } else { format!(" --name {}", name.name) };
            println!("try: sluice lab exec{flag} pod-a -- curl -s http://{}/peer", topology::IMDS);
            Ok(ExitCode::SUCCESS)
        }
        Lab::Down(Down { name }) => {
            let removed = down(&name.name)?;
            if removed.is_nothing() {
                println!("lab `{}`: nothing was there", name.name);
            } else {
                println!(
                    "lab `{}` is down: {} namespaces removed, {} processes ended",
                    name.name, removed.namespaces, removed.processes
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Lab::Status(Status { name, output }) => status::show(&name.name, *output),
        Lab::Exec(exec) => exec_in(exec),
        Lab::Stars(stars) => stars::run(stars),
    }
}

/// Builds a lab and starts its dataplane. On top of what a killed `up` left it cleans first; when it fails or is
/// interrupted nothing stays.
///
/// # Errors
/// Not root, a tool is missing, the lab is up already, or a step failed.
pub(crate) fn up(name: &str, options: &Options, progress: &Progress) -> Result<Record> {
    up_prepared(name, options, progress, || Ok(()))
}

/// As [`up`]; `prepare` is called once the lab's directory is there and before anything is started.
///
/// # Errors
/// As [`up`], or `prepare` failed.
pub(crate) fn up_prepared(
    name: &str,
    options: &Options,
    progress: &Progress,
    prepare: impl FnOnce() -> Result<()>,
) -> Result<Record> {
    require_root()?;
    shell::require(&["ip", "nft", "ethtool"])?;
    if options.dataplane == Dataplane::Iptables {
        shell::require(&["iptables-restore"])?;
    }
    let paths = Paths::new(name);
    let _lock = paths.lock()?;
    make_way(name, &paths, progress)?;
    let built = assemble(name, options, &paths, progress, prepare);
    if built.is_err() {
        progress.line(&format!("lab {name}: removing what was built"));
        if let Err(e) = clean::remove(name) {
            progress.line(&format!("{e:#}"));
        }
    }
    // Ctrl-C ends what runs just then, too; that is no failure of its own.
    built.map_err(|e| progress.check().err().unwrap_or(e))
}

/// Removes a lab.
///
/// # Errors
/// Not root, or something could not be removed.
pub(crate) fn down(name: &str) -> Result<clean::Removed> {
    require_root()?;
    let paths = Paths::new(name);
    let _lock = paths.lock()?;
    clean::remove(name)
}

/// Refuses to touch a living lab or another's namespaces, removes the leftovers of a dead one.
fn make_way(name: &str, paths: &Paths, progress: &Progress) -> Result<()> {
    let known = Record::read(paths).ok();
    if let Some(record) = known.as_ref().filter(|r| r.is_live()) {
        let pids: Vec<_> =
            record.processes.iter().filter(|p| p.is_alive()).map(|p| p.pid.to_string()).collect();
        bail!(
            "the lab `{name}` is up already (dataplane {}, processes {}): `sluice lab down --name {name}` first, \
             or give another --name",
            record.options.dataplane,
            pids.join(", ")
        );
    }
    let left = clean::namespaces(name);
    if known.is_none() && !paths.dir().exists() {
        for namespace in &left {
            let inhabitants = Netns::open(namespace)?.processes();
            if !inhabitants.is_empty() {
                bail!(
                    "the network namespace `{namespace}` exists, is no lab of ours and is used by process {}: \
                     give another --name",
                    inhabitants.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                );
            }
        }
    }
    if !left.is_empty() || paths.dir().exists() {
        progress.step("removing what an earlier run left")?;
        clean::remove(name)?;
    }
    Ok(())
}

fn assemble(
    name: &str,
    options: &Options,
    paths: &Paths,
    progress: &Progress,
    prepare: impl FnOnce() -> Result<()>,
) -> Result<Record> {
    let topology = Topology::plan(name, options);
    paths.create()?;
    prepare()?;
    let mut record = Record { topology, options: options.clone(), processes: Vec::new(), complete: false };
    record.write(paths)?;
    build::build(&record.topology, options, progress)?;
    progress.step("echo servers and IMDS")?;
    record.processes.push(start_server(name, paths)?);
    record.write(paths)?;
    if options.manifests.is_some() && options.dataplane != Dataplane::Sluice {
        bail!("--manifests needs --dataplane sluice: `{}` follows no agent", options.dataplane);
    }
    let daemon = dataplane::start(&record.topology, options, paths, progress)?;
    record.processes.extend(daemon);
    if let Some(manifests) = &options.manifests {
        record.write(paths)?;
        progress.step("sluice-agent")?;
        let agent = agent::start(&record.topology, options, paths, manifests)?;
        record.processes.push(agent);
        record.write(paths)?;
        agent::wait(&record, paths, progress)?;
    }
    record.complete = true;
    record.write(paths)?;
    progress.check()?;
    Ok(record)
}

fn start_server(name: &str, paths: &Paths) -> Result<Process> {
    use std::os::unix::process::CommandExt as _;
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let log = paths.log("server");
    let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut child = Command::new(own)
        .args(server::SERVER_ARGS)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(file))
        .process_group(0)
        .spawn()
        .context("cannot start the lab's servers")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("cannot read from the lab's servers")?;
    }
    let process = Process::new("server", child.id());
    if line.trim() != "ready" {
        processes::stop_child(child);
        bail!("the lab's servers did not start:\n{}", dataplane::tail(&log));
    }
    process.context("the lab's servers are gone")
}

fn exec_in(exec: &Exec) -> Result<ExitCode> {
    let record = record_of(&exec.name.name)?;
    let namespace = record.topology.namespace_of(&exec.member).with_context(|| {
        let names = record.topology.namespaces();
        let members: Vec<_> =
            names.iter().filter_map(|n| n.strip_prefix(&format!("{}-", exec.name.name))).collect();
        format!("the lab `{}` has no `{}`: one of {}", exec.name.name, exec.member, members.join(", "))
    })?;
    let (program, args) = exec.command.split_first().context("no command given")?;
    // As `ip netns exec` does it, with /sys of that namespace: foreign tools look there.
    let status = Command::new("ip")
        .args(["netns", "exec", &namespace])
        .arg(program)
        .args(args)
        .status()
        .context("cannot run `ip netns exec`")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// The record of a lab that is up.
///
/// # Errors
/// There is no such lab; the message says which there are.
pub(crate) fn record_of(name: &str) -> Result<Record> {
    let record = Record::read(&Paths::new(name));
    record.map_err(|e| {
        let labs = labs();
        if labs.is_empty() {
            anyhow!("no lab `{name}` is up: `sluice lab up` makes one")
        } else if labs.iter().any(|l| l == name) {
            e
        } else {
            anyhow!("no lab `{name}` is up; there are: {}", labs.join(", "))
        }
    })
}

fn labs() -> Vec<String> {
    let suffix = "-node";
    netns::names()
        .into_iter()
        .filter_map(|n| Some(n.strip_suffix(suffix)?.to_owned()))
        .filter(|lab| Paths::new(lab).record().exists())
        .collect()
}

fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "the lab needs root, for network namespaces and BPF: run it with sudo, or in a privileged container"
    )
}
