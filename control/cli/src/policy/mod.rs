//! `sluice policy`: what a directory of manifests means, before it is applied anywhere.
//!
//! Everything here asks the compiler that a node runs, on the manifests as the API server would take them; nothing asks a
//! cluster. `check` says what is most likely a slip, `matrix` who may reach whom, `diff` what a change of the files changes,
//! `why` which policies and rules decide one connection.

mod check;
mod diff;
mod load;
mod matrix;
mod ports;
mod reach;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

pub use self::load::{Mode, Reading};
use self::reach::Reach;
pub use self::why::WhyArgs;
use crate::output::Format;

/// The commands of `sluice policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say what in the manifests is wrong, or does not do what it seems to
    ///
    /// Errors are what is not in force: an object that the API server would refuse, a file that does not parse, a field that
    /// does not exist. Warnings are in force and most likely a slip: a selector that selects nothing, a rule that another one
    /// makes pointless, rules of a direction that policyTypes leaves out, a port's name that nobody has.
    #[command(after_long_help = CHECK_HELP)]
    Check {
        /// The manifests' directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Fail for warnings, too
        #[arg(long)]
        strict: bool,
        /// How it is read
        #[command(flatten)]
        reading: Reading,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Show who may reach whom on which ports
    ///
    /// Pods of one namespace with equal labels are one party; so is each part of the address space that an ipBlock names, and
    /// the rest of it. The answer is exact: it is read from the rules that the compiler makes, not found by trying ports.
    #[command(after_long_help = MATRIX_HELP)]
    Matrix {
        /// The manifests' directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// How it is read
        #[command(flatten)]
        reading: Reading,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: MatrixFormat,
    },
    /// Show which pairs change between two sets of manifests
    ///
    /// Compares pod by pod; pods that only one of the two has are not compared.
    #[command(after_long_help = DIFF_HELP)]
    Diff {
        /// The manifests as they were
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The manifests as they will be
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// End with 1 when a pair changes
        #[arg(long)]
        exit_code: bool,
        /// How it is read
        #[command(flatten)]
        reading: Reading,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Name the policies and rules that decide a connection
    #[command(after_long_help = WHY_HELP)]
    Why(Box<WhyArgs>),
}

/// How a matrix is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MatrixFormat {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// A page that needs nothing else
    Html,
}

const CHECK_HELP: &str = "\
Examples:
  sluice policy check deploy/                  every finding with file and line
  sluice policy check deploy/ --strict         in a pipeline: warnings fail, too

Exit codes: 0 no errors, 1 errors (with --strict: or warnings), 2 wrong command line.";

const MATRIX_HELP: &str = "\
Examples:
  sluice policy matrix deploy/
  sluice policy matrix deploy/ --output html > matrix.html
  sluice policy matrix deploy/ --output json | jq '.reach[] | select(.from == \"anywhere else\")'

`-` means nothing, `everything` every protocol and port. A pod always reaches itself, and a pod and its own node always
reach each other.";

const DIFF_HELP: &str = "\
Examples:
  git worktree add /tmp/old main && sluice policy diff /tmp/old/deploy deploy/
  sluice policy diff old/ new/ --exit-code     ends with 1 when a pair changes

`+` opens, `-` closes, `~` both.";

const WHY_HELP: &str = "\
Endpoints: NAMESPACE/POD, ip:A.B.C.D, node:NAME (a process in the node's own network).

Examples:
  sluice policy why --from shop/web-0 --to shop/db-0 --port 5432/TCP deploy/
  sluice policy why --from ip:203.0.113.7 --to shop/web-0 --port 443 deploy/
  sluice policy why --from shop/web-0 --to ip:8.8.8.8 --port 53/UDP deploy/

Exit codes: 0 answered, whatever the answer, 1 no such pod or node, 2 wrong command line.";

pub(crate) fn run(command: &PolicyCommand) -> Result<ExitCode> {
    let fails = match command {
        PolicyCommand::Check { directory, strict, reading, output } => {
            check::print(&load::load(directory, reading)?, *strict, *output)?
        }
        PolicyCommand::Matrix { directory, reading, output } => {
            let cluster = load::load(directory, reading)?;
            complain(&cluster);
            let reach = Reach::new(&cluster);
            match output {
                MatrixFormat::Table => matrix::table(&reach)?,
                MatrixFormat::Json => matrix::json(&reach)?,
                MatrixFormat::Html => matrix::html(&reach)?,
            }
            false
        }
        PolicyCommand::Diff { old, new, exit_code, reading, output } => {
            let (old, new) = (load::load(old, reading)?, load::load(new, reading)?);
            complain(&old);
            complain(&new);
            diff::print(&Reach::new(&old), &Reach::new(&new), *output)? && *exit_code
        }
        PolicyCommand::Why(args) => {
            let cluster = load::load(&args.directory, &args.reading)?;
            complain(&cluster);
            why::print(&cluster, args)?;
            false
        }
    };
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// An answer about manifests of which some are not in force is about what is left, and must say so.
fn complain(cluster: &load::Cluster) {
    for finding in cluster.findings.iter().filter(|f| f.severity == sluice_kube::manifests::Severity::Error) {
        eprintln!("{finding}");
    }
}
