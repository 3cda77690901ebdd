//! The command line of `sluiced`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use crossbeam::channel::Sender;
use nix::net::if_::if_nametoindex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sluice_io::trunk::Trunk;
use sluice_state::State;
use tracing_subscriber::EnvFilter;

use crate::control::{self, Event, StartError};
use crate::lock::LockError;
use crate::privilege;
use crate::report;
use crate::settings::{Output, Settings};

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or stopped by SIGTERM or SIGINT
  1  something of the system failed; the message names it and the way out
  2  the command line is wrong
  3  the state is refused, every finding is listed
  4  a capability is missing, by name
  5  another sluiced runs with this --run-dir

Signals while it runs:
  SIGHUP           read --state again; a bad file changes nothing
  SIGTERM, SIGINT  stop: programs and trunk are removed unless --keep-on-exit

Environment:
  SLUICE_LOG  what is logged, as in `info` or `sluiced=debug` (default info)

Examples:
  sluiced check --state node.toml
  sluiced run --state node.toml
  sluiced run --state node.toml --eni-port tap --output json
  sluiced detach";

/// The netlink package warns of every attribute that the kernel has learned since it was written.
const QUIET: &str = "info,netlink_packet_route=error,netlink_packet_core=error";

/// The dataplane of a node: takes pods' packets from tc and XDP, translates them, and sends them on.
#[derive(Debug, Parser)]
#[command(name = "sluiced", version, about, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the dataplane until SIGTERM.
    Run(Box<Settings>),
    /// Check a state without touching anything.
    Check {
        /// The state: TOML, or JSON when the name ends in .json.
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
    },
    /// Remove everything that a daemon left behind: programs, maps and the trunk. The kernel has the pods' traffic then.
    Detach {
        /// Where they are pinned.
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
        bpffs: PathBuf,
        /// Name of the trunk's interface.
        #[arg(long, value_name = "NAME", default_value = "sluice0")]
        trunk: String,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    abort_on_panic();
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(QUIET));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let result = match cli.command {
        Command::Run(settings) => run(*settings),
        Command::Check { state } => check(&state),
        Command::Detach { bpffs, trunk } => detach(&bpffs, &trunk),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sluiced", &mut io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit code says it all the same.
            let _ = writeln!(io::stderr(), "sluiced: {error}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// A daemon that has lost a thread would hold packets and acknowledge nothing: it ends, and what is pinned fails closed.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<StartError>() {
        Some(StartError::State(_) | StartError::Host(_)) => 3,
        Some(StartError::Privilege(_)) => 4,
        Some(StartError::Lock(LockError::Held { .. })) => 5,
        _ => 1,
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    let output = settings.output;
    let (control, events) = control::start(settings)?;
    signals(events)?;
    let view = control.view();
    report::log(&view.report);
    if output == Output::Json {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &view.report)?;
        writeln!(stdout)?;
        stdout.flush()?;
    }
    control.run();
    Ok(())
}

/// Turns signals into events, in a thread of its own.
fn signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("sluice-signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Reload } else { Event::Stop };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn check(path: &Path) -> anyhow::Result<()> {
    let state = State::from_file(path).map_err(StartError::from)?;
    let ports = state.snat_ports.set();
    writeln!(
        io::stdout(),
        "{}: good: {} ENI(s), {} pod(s), {} SNAT ports",
        path.display(),
        state.enis.len(),
        state.pods.len(),
        ports.len()
    )?;
    Ok(())
}

fn detach(bpffs: &Path, trunk: &str) -> anyhow::Result<()> {
    privilege::check().map_err(StartError::from)?;
    let mut stdout = io::stdout().lock();
    let mut removed = sluice_bpf::detach_pinned(bpffs)?;
    if if_nametoindex(trunk).is_ok() {
        Trunk::remove(trunk)?;
        removed.push(trunk.to_owned());
    }
    for line in &removed {
        writeln!(stdout, "removed: {line}")?;
    }
    if removed.is_empty() {
        writeln!(stdout, "nothing was there: no pins in {}, no interface {trunk}", bpffs.display())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_values_are_refused_with_what_would_do() {
        let refused = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().to_string();
        let ring = refused(&["sluiced", "run", "--xdp-ring", "1000"]);
        assert!(ring.contains("power of two from 64 to 16384"), "{ring}");
        let port = refused(&["sluiced", "run", "--eni-port", "pcap"]);
        assert!(port.contains("auto") && port.contains("xdp") && port.contains("tap"), "{port}");
        let ports = refused(&["sluiced", "run", "--node-ports", "9-3"]);
        assert!(ports.contains("FIRST <= LAST"), "{ports}");
    }

    #[test]
    fn each_kind_of_refusal_has_its_exit_code() {
        let state = State::from_toml("version = 7").unwrap_err();
        assert_eq!(exit_code(&StartError::from(state).into()), 3);
        let held = LockError::Held { pid: "1".into(), dir: "/x".into() };
        assert_eq!(exit_code(&StartError::from(held).into()), 5);
        assert_eq!(exit_code(&anyhow::anyhow!("anything else")), 1);
    }
}
