//! The command line of `sluice-agent`.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sluice_ec2::settings::Settings as PoolSettings;
use sluice_ec2::variables::Refused;
use sluice_kube::cluster::{Cluster, ClusterError, Options, Server, WATCH_SECONDS};
use sluice_kube::manifests::{Severity, Watcher};
use sluice_state::StateError;
use tracing_subscriber::EnvFilter;

use crate::agent::{Agent, Ended, Event, Places};
use crate::allocations::Store;
use crate::environment::{Environment, Printed, VARIABLES};
use crate::inventory::{Inventory, InventoryError};
use crate::model::Model;
use crate::settings::Settings;
use crate::web::{Bind, Pages, Web};
use crate::{cni, node, vpc_cni};

const HELP: &str = "\
Exit codes:
  0  done, or stopped by SIGTERM or SIGINT
  1  something of the system failed; the message names it and the way out
  2  the command line is wrong
  3  the inventory or a variable is refused, `check` found errors, the daemon refused what --once sent, the VPC CNI
     still runs on this node, or pods cannot be taken over or given back yet

Signals while it runs:
  SIGHUP           read the inventory and the whole directory again; a bad inventory changes nothing
  SIGTERM, SIGINT  stop; the daemon keeps what it has

Environment:
  SLUICE_LOG  what is logged, as in `info` or `sluice_agent=debug` (default info)
  Those of the VPC CNI, AWS_VPC_K8S_CNI_EXTERNALSNAT and all others: `sluice-agent env` lists them

Examples:
  sluice-agent check --manifests manifests --inventory node.toml
  sluice-agent --manifests manifests --inventory node.toml --dry-run
  sluice-agent --manifests manifests --inventory node.toml
  sluice-agent --in-cluster --inventory node.toml --cni-socket /run/sluice/cni/agent.sock --cni-conf-dir /etc/cni/net.d";

/// What is logged by default. The netlink package warns of every attribute that is longer than it knows.
const LOG: &str = "info,netlink_packet_route=error";

/// Where what a directory's pods were given is kept where no inventory has a file beside it.
const ALLOCATIONS: &str = "/run/sluice/allocations.json";

/// Where introspection listens (VPC CNI: the same).
const INTROSPECTION: Bind = Bind::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 61679));

/// How long an ADD waits for the API server to tell of a pod that is not known yet.
const FETCH: Duration = Duration::from_secs(5);

/// The control plane of a node: follows an API server, or Kubernetes manifests in a directory, tells sluiced what they come to,
/// and answers the CNI plugin.
///
/// Of a directory: add, change or remove a file, and the packets follow; one that turns malformed keeps its last good objects.
#[derive(Debug, Parser)]
#[command(
    name = "sluice-agent",
    version,
    after_help = HELP,
    max_term_width = 110,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

/// Where the cluster's objects come from when the agent runs.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
struct From {
    /// Directory of manifests, with everything below: .yaml, .yml, .json
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The API server of a kubeconfig's current context
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The API server of the pod that this runs in, by its service account; CLUSTER_ENDPOINT names another way to it
    #[arg(long)]
    in_cluster: bool,
}

/// What is looked at once.
#[derive(Debug, Clone, Args)]
struct Sources {
    /// Directory of manifests, with everything below: .yaml, .yml, .json
    #[arg(long, value_name = "DIR", required = true)]
    manifests: Option<PathBuf>,
    /// This node, its ENIs, its places for pods and the cluster around it (TOML; docs/runbooks/agent.md)
    #[arg(long, value_name = "FILE", required = true)]
    inventory: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    from: From,
    /// This node, its ENIs, its places for pods and the cluster around it (TOML; docs/runbooks/agent.md); without it EC2 and its
    /// metadata service tell, addresses come from EC2, and MY_NODE_NAME says which node this is (docs/ipam.md)
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// The daemon's state socket
    #[arg(long, value_name = "PATH", default_value = "/run/sluice/state.sock")]
    state_socket: PathBuf,
    /// Where to write what is in force and what was found, as JSON, whenever it changes
    #[arg(long, value_name = "FILE")]
    status: Option<PathBuf>,
    #[command(flatten)]
    cni: cni::CniArgs,
    #[command(flatten)]
    presence: vpc_cni::PresenceArgs,
    /// Where metrics are served with --cni-socket, unless DISABLE_METRICS is true
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:61678")]
    metrics_address: SocketAddr,
    /// End once the daemon has taken, or refused, everything
    #[arg(long)]
    once: bool,
    /// Print the state that the daemon would be told, and end; of a directory alone
    #[arg(long, conflicts_with_all = ["once", "kubeconfig", "in_cluster"])]
    dry_run: bool,
    /// How --dry-run prints
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with the manifests and the inventory, without touching anything
    Check {
        #[command(flatten)]
        sources: Sources,
        /// How to print
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
        output: Lines,
    },
    /// List the VPC CNI's environment variables: what each is set to, and what Sluice does about it
    Env {
        /// How to print
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
        output: Lines,
    },
    /// Ask IMDS and EC2 what they tell of this node, and say which calls fail; changes nothing
    Cloud(node::CloudArgs),
    /// Take this node's pods over from the VPC CNI, which must be gone, and remove what it left (docs/runbooks/migrate.md)
    Adopt(vpc_cni::AdoptArgs),
    /// Give this node's pods back to the VPC CNI: write its leases and rules, so that aws-node goes on with them
    RestoreVpcCni(vpc_cni::RestoreArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// A state file for `sluiced run --state`
    #[default]
    Toml,
    /// The same as JSON
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Lines {
    /// For people: file:line:column, as compilers have it
    #[default]
    Text,
    /// For programs
    Json,
}

/// `check` has found errors.
#[derive(Debug, thiserror::Error)]
#[error("{0} error(s)")]
struct Found(usize);

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let result = match cli.command {
        None if cli.run.dry_run => dry_run(&cli.run),
        None => run(cli.run),
        Some(Command::Check { sources, output }) => check(&sources, output),
        Some(Command::Env { output }) => env(output),
        Some(Command::Cloud(args)) => node::cloud(&args),
        Some(Command::Adopt(args)) => vpc_cni::adopt(args),
        Some(Command::RestoreVpcCni(args)) => vpc_cni::restore(args),
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "sluice-agent", &mut io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit code says it all the same.
            let _ = writeln!(io::stderr(), "sluice-agent: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let refused =
        error.downcast_ref::<InventoryError>().is_some_and(|e| !matches!(e, InventoryError::Read { .. }));
    let found =
        error.is::<Found>() || error.is::<Refused>() || error.is::<Ended>() || error.is::<StateError>();
    let configuration =
        error.downcast_ref::<ClusterError>().is_some_and(|e| matches!(e, ClusterError::Configuration { .. }));
    if refused || configuration || found || vpc_cni::is_refusal(error) { 3 } else { 1 }
}

impl Sources {
    /// The paths, which the command line has made sure of.
    fn paths(&self) -> anyhow::Result<(&Path, &Path)> {
        let manifests = self.manifests.as_deref().context("--manifests DIR is needed")?;
        let inventory = self.inventory.as_deref().context("--inventory FILE is needed")?;
        Ok((manifests, inventory))
    }

    /// Everything looked at once.
    fn model(&self) -> anyhow::Result<Model> {
        let (manifests, path) = self.paths()?;
        std::fs::read_dir(manifests)
            .with_context(|| format!("cannot read the directory {}", manifests.display()))?;
        let settings = with_environment(&self.settings)?;
        let inventory = settings.inventory(path)?;
        let store = Store::open(settings.allocations_of(path));
        let mut model = Model::new(inventory, manifests, &settings, store.kept());
        model.scan();
        Ok(model)
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    // Before anything else: two owners of one node's addresses give them out twice.
    args.presence.check()?;
    let settings = with_environment(&args.settings)?;
    let (sender, events) = channel();
    signals(sender.clone())?;
    // Before the first look, so that nothing falls in between.
    let touched = sender.clone();
    let tell = move |t| touched.send(Event::Touched(t)).is_ok();
    let _watcher = args.from.manifests.as_deref().map(|from| Watcher::start(from, tell)).transpose()?;
    let (mut steer, mut calls) = (None, Vec::new());
    let given = args.inventory.as_deref().map(|path| settings.inventory(path)).transpose()?;
    let opened = args.cni.open(&settings.environment, |checkpoint, before| {
        if let Some(inventory) = &given {
            let pool = PoolSettings::from_env()?;
            let addresses = cni::of_inventory(inventory, pool, checkpoint, before)?;
            return Ok((Box::new(addresses), inventory.clone()));
        }
        let services = match &settings.service_cidrs[..] {
            [] => node::service_cidrs(),
            given => given.to_vec(),
        };
        let name = node::name()?;
        let started =
            node::start(name, &settings.environment, &services, checkpoint, before, sender.clone())?;
        steer = Some(started.steer);
        calls = started.calls;
        Ok((started.addresses, started.inventory))
    })?;
    let (cni, inventory) = match (opened, given) {
        (Some((cni, inventory)), _) => (Some(cni), inventory),
        (None, Some(inventory)) => (None, inventory),
        (None, None) => {
            anyhow::bail!("--cni-socket PATH is needed without --inventory: it is where leases are kept")
        }
    };
    let cluster = args.from.follow(&inventory, &settings, sender.clone())?;
    let allocations = match &args.inventory {
        Some(path) => settings.allocations_of(path),
        None => settings.allocations.clone().unwrap_or_else(|| ALLOCATIONS.into()),
    };
    let environment = settings.environment.clone();
    let places = Places {
        manifests: args.from.manifests.clone(),
        inventory: args.inventory,
        allocations,
        socket: args.state_socket,
        status: args.status,
    };
    let mut agent = Agent::new(places, inventory, settings, (sender.clone(), events), args.once);
    if let Some(steer) = steer.clone() {
        agent.steer(steer);
    }
    if let Some(cluster) = cluster.clone() {
        agent.announce(move |standing| cluster.announce(standing));
    }
    let (mut answering, mut web) = (None, None);
    if let Some(mut cni) = cni {
        agent.restore(std::mem::take(&mut cni.restored));
        if let Some(cluster) = cluster.clone() {
            cni.fetch_by(move |namespace, name| {
                cluster.fetch_pod(namespace, name, FETCH).map_err(|error| error.to_string())
            });
        }
        let pages = Pages::new(sender.clone(), cni.window(), calls);
        let introspection = environment.introspection.unwrap_or(INTROSPECTION);
        let introspection = (!environment.no_introspection).then_some(introspection);
        let metrics = (!environment.no_metrics).then_some(args.metrics_address);
        web = Some(Web::start(introspection.as_ref(), metrics, pages));
        let (started, ready) = cni.answer(sender)?;
        agent.on_ready(ready);
        answering = Some(started);
    }
    let ended = agent.run();
    if let Some(steer) = steer {
        steer.end();
    }
    drop((answering, cluster, web));
    Ok(ended?)
}

impl From {
    /// Begins to follow the API server, where one is asked for.
    fn follow(
        &self,
        inventory: &Inventory,
        settings: &Settings,
        tell: Sender<Event>,
    ) -> anyhow::Result<Option<Arc<Cluster>>> {
        let server = match &self.kubeconfig {
            Some(path) => Server::Kubeconfig(path.clone()),
            None if self.in_cluster => Server::InCluster,
            None => return Ok(None),
        };
        let options = Options {
            server,
            endpoint: settings.environment.cluster_endpoint.clone(),
            node: inventory.state.node.name.clone(),
            instance: std::env::var("MY_POD_NAME")
                .ok()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| inventory.state.node.name.clone()),
            watch_seconds: WATCH_SECONDS,
        };
        let cluster = Cluster::start(&options, move |news| tell.send(Event::News(news)).is_ok())?;
        Ok(Some(Arc::new(cluster)))
    }
}

/// The settings with what the environment decides.
fn with_environment(settings: &Settings) -> anyhow::Result<Settings> {
    let environment = Environment::from_process()?;
    for note in &environment.notes {
        tracing::warn!("{note}");
    }
    Ok(Settings { environment, ..settings.clone() })
}

/// Turns signals into events, in a thread of its own.
fn signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("sluice-signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Rescan } else { Event::Stop };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn dry_run(args: &RunArgs) -> anyhow::Result<()> {
    let sources = Sources {
        manifests: args.from.manifests.clone(),
        inventory: args.inventory.clone(),
        settings: args.settings.clone(),
    };
    let model = sources.model()?;
    for finding in model.findings() {
        tracing::warn!("{finding}");
    }
    let state = model.state();
    let text = match args.output {
        Format::Toml => toml::to_string(&state).context("the state cannot be written as TOML")?,
        Format::Json => serde_json::to_string_pretty(&state)? + "\n",
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    state.check()?;
    Ok(())
}

fn check(sources: &Sources, output: Lines) -> anyhow::Result<()> {
    let model = sources.model()?;
    let findings = model.findings();
    let state = model.state();
    let mut stdout = io::stdout().lock();
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let errors = count(Severity::Error);
    match output {
        Lines::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&findings)?)?,
        Lines::Text => {
            for finding in &findings {
                writeln!(stdout, "{finding}")?;
            }
            writeln!(
                stdout,
                "{} pod(s) of this node have a path, {} identities, {} isolated, {} service(s); {errors} error(s), {} warning(s), {} note(s)",
                state.pods.len(),
                state.policy.identities.len(),
                state.policy.pods.len(),
                state.services.services.len(),
                count(Severity::Warning),
                count(Severity::Note),
            )?;
        }
    }
    state.check()?;
    if errors > 0 { Err(Found(errors).into()) } else { Ok(()) }
}

/// Prints the variables. A value that is refused is printed like any other: the complaint is for who starts the agent.
fn env(output: Lines) -> anyhow::Result<()> {
    let printed = Printed::all(|name| std::env::var(name).ok());
    let mut stdout = io::stdout().lock();
    match output {
        Lines::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&printed)?)?,
        Lines::Text => {
            let width = VARIABLES.iter().map(|variable| variable.name.len()).max().unwrap_or_default();
            for Printed { name, default, standing, does, value } in printed {
                let counts =
                    value.map_or_else(|| format!("default {default}"), |value| format!("set to {value}"));
                writeln!(stdout, "{name:width$}  {standing:8}  {counts}. {does}")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let run = Cli::try_parse_from(["sluice-agent", "--manifests", "m", "--inventory", "i"]).unwrap();
        assert!(run.command.is_none() && run.run.from.manifests.is_some());
        assert!(Cli::try_parse_from(["sluice-agent", "completions", "bash"]).is_ok());
        assert!(Cli::try_parse_from(["sluice-agent", "--in-cluster", "--cni-socket", "s"]).is_ok(), "on EC2");
        let both = ["sluice-agent", "--manifests", "m", "--in-cluster", "--inventory", "i"];
        assert!(Cli::try_parse_from(both).is_err(), "one source");
        assert!(
            Cli::try_parse_from(["sluice-agent", "--in-cluster", "--inventory", "i", "--dry-run"]).is_err()
        );
        let neither = Cli::try_parse_from(["sluice-agent", "--inventory", "i"]).unwrap_err().to_string();
        assert!(neither.contains("--kubeconfig"), "{neither}");
        let check =
            Cli::try_parse_from(["sluice-agent", "check", "--manifests", "m"]).unwrap_err().to_string();
        assert!(check.contains("--inventory"), "{check}");
    }

    #[test]
    fn each_kind_of_refusal_has_its_exit_code() {
        assert_eq!(exit_code(&Found(2).into()), 3);
        let refused = Ended::Refused { reason: "no".into(), findings: vec![] };
        assert_eq!(exit_code(&refused.into()), 3);
        let missing = crate::inventory::Inventory::from_file(Path::new("/nowhere")).unwrap_err();
        assert_eq!(exit_code(&missing.into()), 1);
    }
}
