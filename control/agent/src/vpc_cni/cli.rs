//! `sluice-agent adopt` and `sluice-agent restore-vpc-cni`.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::LEASES;
use super::ipam::Leases;
use super::names::PREFIX;
use super::presence::{self, Present};
use super::record::RECORD;
use super::restore::{RestoreError, Return};
use super::show;
use super::takeover::{Files, Survey, TakeoverError};
use crate::environment::Environment;

/// How long between two looks at the daemon while it is waited for.
const LOOK: Duration = Duration::from_millis(250);

/// Where the VPC CNI would answer.
#[derive(Debug, Clone, Args)]
pub struct PresenceArgs {
    /// Where ipamd's introspection would answer; whoever tells of ENIs there is ipamd
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:61679")]
    vpc_cni_introspection: SocketAddr,
    /// Where ipamd's socket would be
    #[arg(long, value_name = "PATH", default_value = "/var/run/aws-node/ipamd.sock")]
    vpc_cni_socket: PathBuf,
}

impl PresenceArgs {
    /// Refuses to go on beside ipamd.
    ///
    /// # Errors
    /// It is here.
    pub fn check(&self) -> Result<(), Present> {
        presence::refuse(self.vpc_cni_introspection, &self.vpc_cni_socket)
    }
}

/// Where leases and what was taken over are.
#[derive(Debug, Clone, Args)]
struct FileArgs {
    /// The VPC CNI's leases [default: AWS_VPC_K8S_CNI_BACKING_STORE, then /var/run/aws-node/ipam.json]
    #[arg(long, value_name = "FILE")]
    vpc_cni_leases: Option<PathBuf>,
    /// What was taken over, for the next run and the way back
    #[arg(long, value_name = "FILE", default_value = RECORD)]
    record: PathBuf,
}

impl FileArgs {
    fn files(self, query: PathBuf, environment: &Environment) -> Files {
        let leases = self.vpc_cni_leases.or_else(|| environment.backing_store.clone());
        let leases = leases.unwrap_or_else(|| LEASES.into());
        let prefix = environment.veth_prefix.clone().unwrap_or_else(|| PREFIX.to_owned());
        Files { leases, record: self.record, query, prefix }
    }
}

/// What is taken over, and how that is told.
#[derive(Debug, Clone, Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    presence: PresenceArgs,
    #[command(flatten)]
    files: FileArgs,
    /// The daemon's query socket
    #[arg(long, value_name = "PATH", default_value = "/run/sluice/query.sock")]
    query_socket: PathBuf,
    /// Say what would be taken over, removed and left, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until the daemon has every pod in force
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with = "dry_run")]
    wait: u64,
    /// Do at most so many steps, to look in between; the next run goes on from there
    #[arg(long, value_name = "NUMBER")]
    steps: Option<usize>,
    /// How to print
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

/// What is given back.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    presence: PresenceArgs,
    #[command(flatten)]
    files: FileArgs,
    /// The pool's checkpoint: leases of pods that Sluice has made
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Say what would be given back, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// The pods' places as an inventory has them
    Inventory,
}

/// Takes this node's pods over from the VPC CNI, or says what that would do.
///
/// # Errors
/// ipamd still runs, what is there cannot be read, the daemon does not have every pod, or a step failed.
pub fn adopt(args: AdoptArgs) -> anyhow::Result<()> {
    let files = args.files.files(args.query_socket, &Environment::from_process()?);
    let present = args.presence.check();
    if !args.dry_run {
        present.clone()?;
    }
    let survey = match Survey::look(&files) {
        // Somebody who only looks moves nothing.
        Err(TakeoverError::Leases(error)) if !args.dry_run => return Err(Leases::set_aside(error).into()),
        other => other?,
    };
    let text = match args.output {
        Output::Table => show::table(&survey, present.as_ref().err(), args.dry_run),
        Output::Json => serde_json::to_string_pretty(&show::json(&survey, present.as_ref().err()))? + "\n",
        Output::Inventory => show::inventory(&survey),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    if args.dry_run {
        return Ok(());
    }
    let survey = wait(&files, survey, Duration::from_secs(args.wait))?;
    let steps = survey.steps();
    let some = args.steps.map_or(steps.len(), |most| most.min(steps.len()));
    for step in &steps[..some] {
        tracing::info!("{step}");
        step.run(&files)?;
    }
    if some < steps.len() {
        tracing::warn!(remain = steps.len() - some, "stopped by --steps");
        return Ok(());
    }
    for left in &survey.plan.left {
        tracing::warn!("{} stays: {}", left.what, left.why);
    }
    tracing::info!(pods = survey.plan.taken.len(), left = survey.plan.left.len(), "taken over");
    Ok(())
}

/// Waits until the daemon has every pod, and looks again: pods may have gone meanwhile.
fn wait(files: &Files, mut survey: Survey, patience: Duration) -> Result<Survey, TakeoverError> {
    let deadline = Instant::now() + patience;
    loop {
        match survey.in_force(&files.query) {
            Ok(()) => return Ok(survey),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(LOOK),
        }
        survey = Survey::look(files)?;
    }
}

/// Gives this node's pods back to the VPC CNI.
///
/// # Errors
/// ipamd runs already, what is there cannot be read, or a pod's ENI is not known.
pub fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let files = args.files.files(PathBuf::new(), &Environment::from_process()?);
    args.presence.check()?;
    let found: Return = Return::look(&files.record, args.checkpoint.as_deref(), &files.prefix)?;
    io::stdout().lock().write_all(show::restored(&found).as_bytes())?;
    if !args.dry_run {
        found.run(&files.leases).map_err(anyhow::Error::from)?;
        tracing::info!(pods = found.allocations.len(), file = %files.leases.display(), "given back");
    }
    Ok(())
}

/// Whether an error is a refusal of what was asked and not a failure of the system.
pub(crate) fn is_refusal(error: &anyhow::Error) -> bool {
    error.is::<Present>()
        || error.downcast_ref::<TakeoverError>().is_some_and(|error| {
            matches!(
                error,
                TakeoverError::NotInForce { .. } | TakeoverError::Daemon { .. } | TakeoverError::Leases(_)
            )
        })
        || error.downcast_ref::<RestoreError>().is_some_and(|error| {
            matches!(
                error,
                RestoreError::Nothing { .. } | RestoreError::NoTable { .. } | RestoreError::Exists { .. }
            )
        })
        || error.is::<super::ipam::LeasesError>()
        || error.is::<super::import::ImportError>()
}
