//! `sluice`, the command for people: the lab, the demo, and the first eyes on a running dataplane.
//!
//! Exit codes: 0 done, 1 it failed or a check of it did (`demo`, `lab status`), 2 the command line is wrong;
//! `lab exec` ends with the code of what it ran.
#![forbid(unsafe_code)]

pub mod demo;
pub mod eyes;
pub mod lab;
mod netns;
pub mod output;
pub mod policy;
mod query;
mod shell;
pub mod stars;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// What `--help` ends with.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed (for `demo`: a row failed; for `lab status`: not up; for \
                          `policy check`: errors), 2 wrong command line. `lab exec` ends with the code of what it ran.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about = "Look into Sluice, and try it on a virtual EC2 node", after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A virtual EC2 node in network namespaces
    #[command(subcommand)]
    Lab(lab::Lab),
    /// Show real flows through the dataplane, judged; then load
    Demo(Box<demo::Demo>),
    /// Capture packets with the reason for what became of them
    Capture(Box<eyes::CaptureArgs>),
    /// List the flow table
    Flows(eyes::FlowsArgs),
    /// Show every counter and every drop's reason
    Stats(eyes::StatsArgs),
    /// Show the port contract with the host
    Ports(eyes::PortsArgs),
    /// List this node's pods that a container runtime has added, and their interfaces
    Pods(eyes::NodeArgs),
    /// List which address each of them has, since when, and what is free
    Leases(eyes::NodeArgs),
    /// List this node's ENIs, what they carry, and what keeps the pool of addresses from growing
    Enis(eyes::NodeArgs),
    /// What a directory of manifests means: lint, who may reach whom, what a change changes, why
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff) of the program, or of a command as in `man lab up`
    Man {
        /// The command
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// What answers in the lab; `lab up` starts it
    #[command(hide = true)]
    LabServer(lab::Name),
}

/// Runs the command line and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are printed to the standard output and are no error.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    dispatch(&cli.command).unwrap_or_else(|e| {
        eprintln!("sluice: {e:#}");
        ExitCode::FAILURE
    })
}

fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Lab(command) => return lab::run(command),
        Command::Demo(demo) => return demo::run(demo),
        Command::Capture(args) => return eyes::capture(args),
        Command::Flows(args) => eyes::flows(args)?,
        Command::Stats(args) => eyes::stats(args)?,
        Command::Ports(args) => eyes::ports(args)?,
        Command::Pods(args) => eyes::pods(args)?,
        Command::Leases(args) => eyes::leases(args)?,
        Command::Enis(args) => eyes::enis(args)?,
        Command::Policy(command) => return policy::run(command),
        Command::LabServer(name) => lab::server::serve(&name.name)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "sluice", &mut script);
            output::print(String::from_utf8_lossy(&script).trim_end())?;
        }
        Command::Man { command } => {
            let mut page = Vec::new();
            let title = ["sluice"]
                .into_iter()
                .chain(command.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("-");
            clap_mangen::Man::new(subcommand(command)?).title(title).render(&mut page)?;
            output::print(String::from_utf8_lossy(&page).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The command of this path.
fn subcommand(path: &[String]) -> anyhow::Result<clap::Command> {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    for name in path {
        command = command
            .find_subcommand(name)
            .ok_or_else(|| anyhow::anyhow!("`{}` has no command `{name}`", command.get_name()))?;
    }
    Ok(command.clone().version(env!("CARGO_PKG_VERSION")))
}
