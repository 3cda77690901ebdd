//! `sluice-tests`: cases that others wrote, played against the product.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::conformance;
use sluice_tests::fakes::ec2::cli as fake_ec2;
use sluice_tests::fakes::kubernetes::crowd::Crowd;
use sluice_tests::fakes::kubernetes::rbac::User;
use sluice_tests::fakes::kubernetes::{FakeApiServer, Options};

/// What `--help` ends with.
const EXIT_CODES: &str = "Exit codes: 0 everything came out as the cases say, 1 something did not, 2 wrong command line or no case file.";

#[derive(Debug, Parser)]
#[command(name = "sluice-tests", version, about = "Play case files against the product", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play NetworkPolicy cases through the real compiler and the real engine
    ///
    /// Each case is played three ways (all objects at once, every change by a generation of its own, policies in reverse), on
    /// each of its nodes. A probe is one new connection and its answer. Lines with `admission` are objects that are to be taken
    /// or refused.
    #[command(after_long_help = "Example: sluice-tests conformance corpus.jsonl --filter edge/")]
    Conformance {
        /// Cases, one JSON object a line
        file: PathBuf,
        /// Play those alone whose id contains this
        #[arg(long, value_name = "ID", default_value = "")]
        filter: String,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Serve what a node talks to, without a cluster or a cloud
    #[command(subcommand)]
    Fakes(Fake),
}

#[derive(Debug, Subcommand)]
enum Fake {
    /// EC2, STS, the metadata service and the agent of Pod Identity, as one world with real limits
    #[command(after_long_help = fake_ec2::EXAMPLE)]
    Ec2(fake_ec2::Options),
    /// Serve a Kubernetes API over plain HTTP, until it is interrupted
    ///
    /// It stores objects, lists and watches them as a real API server does, and breaks on demand: GET /control tells what
    /// there is, docs/fakes-kubernetes.md how. No controllers run.
    #[command(
        after_long_help = "Example:\n  sluice-tests fakes kubernetes --listen 127.0.0.1:8001 --load pods.yaml\n  \
        curl -N 'http://127.0.0.1:8001/api/v1/pods?watch=true'\n  \
        kubectl --server http://127.0.0.1:8001 get pods -A -o json"
    )]
    Kubernetes {
        /// Where to listen; port 0 for any
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Manifests to store first, YAML or JSON, status included; again for more
        #[arg(long, value_name = "FILE")]
        load: Vec<PathBuf>,
        /// A bearer token and whose it is; `admin` may do everything. With none, everyone may
        #[arg(long, value_name = "TOKEN=USER")]
        user: Vec<String>,
        /// Pods of a made-up cluster, 6 to 10 kB each; with namespaces, nodes, policies, services and slices
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        pods: usize,
        /// Nodes of that cluster: node-0, node-1, …
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        nodes: usize,
        /// Changes of its pods in a second; 0 for none
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        changes: u32,
    },
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let (file, filter, output) = match Cli::parse().command {
        Command::Conformance { file, filter, output } => (file, filter, output),
        Command::Fakes(fake) => {
            let served = match fake {
                Fake::Ec2(options) => fake_ec2::run(&options).map_err(|e| e.to_string()),
                Fake::Kubernetes { listen, load, user, pods, nodes, changes } => {
                    let crowd = Crowd { pods, nodes, ..Crowd::default() };
                    serve_kubernetes(listen, &load, &user, &crowd, changes)
                }
            };
            return match served {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("sluice-tests: {e}");
                    ExitCode::from(2)
                }
            };
        }
    };
    let report = match conformance::run(&file, &filter) {
        Ok(report) => report,
        Err(e) => {
            eprintln!("sluice-tests: {e}");
            return ExitCode::from(2);
        }
    };
    if report.cases == 0 {
        eprintln!("sluice-tests: {}: no case whose id contains `{filter}`", file.display());
        return ExitCode::from(2);
    }
    match output {
        Format::Text => println!("{report}"),
        Format::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("sluice-tests: {e}"),
        },
    }
    if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves until the process is interrupted.
fn serve_kubernetes(
    listen: SocketAddr,
    load: &[PathBuf],
    users: &[String],
    crowd: &Crowd,
    changes: u32,
) -> Result<(), String> {
    let options = Options { listen, ..Options::default() };
    let server = FakeApiServer::start_with(&options).map_err(|e| format!("--listen {listen}: {e}"))?;
    for file in load {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let loaded = server.load(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        eprintln!("{}: {loaded} objects", file.display());
    }
    for user in users {
        let (token, name) =
            user.split_once('=').ok_or(format!("--user {user}: it is TOKEN=USER, as in t0=admin"))?;
        server.user(token, if name == "admin" { User::admin() } else { User::named(name) });
    }
    let mut churn = None;
    if crowd.pods > 0 {
        server
            .fill(crowd)
            .map_err(|refusal| format!("--pods {}: {}", crowd.pods, refusal.body["message"]))?;
        if changes > 0 {
            churn = Some(server.churn(crowd, changes).map_err(|e| format!("--changes {changes}: {e}"))?);
        }
    }
    println!("{}", server.url());
    loop {
        std::thread::park_timeout(Duration::from_secs(60));
        if let Some(churn) = &churn {
            eprintln!("{} changes, at worst {} ms late", churn.done(), churn.late_micros() / 1_000);
        }
    }
}
