//! `sluice lab stars`: the Stars demo on the pods of a lab. Four NetworkPolicies come and go as files in a directory that
//! the agent watches; five pods ask each other by service name all the while; and after every step who reaches whom is held
//! against what the policies' own text says.

mod ask;
mod bed;
mod bundle;
mod expect;
mod observe;
mod play;
mod web;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::lab::{self, Interrupt, Progress};
use crate::output::{Format, print, print_json};
use bed::Bed;
use play::LiveFlows;

/// What `--help` ends with.
const AFTER: &str = "Steps: S0 nothing is isolated; S1 default deny in `stars` and `client`; S2 the management UI reaches all; S3 the
frontend reaches the backend on 6379; S4 the client's namespace reaches the frontend on 80. Each is a file in
/run/sluice-lab/PREFIX/manifests, from which the agent on the node follows it.

Exit codes: 0 everything was as expected, 1 something was not, or the lab did not come up, 2 wrong command line.

Examples:
  sluice lab stars                        play it all, a matrix after each step
  sluice lab stars --serve                look at it in a browser, and press the buttons yourself
  ssh -L 8080:127.0.0.1:8080 node         for a browser elsewhere";

/// `sluice lab stars`.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Stars {
    /// Name of the lab that is made for it; one of this name must not be up
    #[arg(long, default_value = "sluice-stars", value_name = "PREFIX", value_parser = lab::name)]
    name: String,
    /// Show the management UI as a web page instead, until Ctrl-C; a loopback address
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:8080", value_parser = loopback)]
    serve: Option<SocketAddr>,
    /// What the agent does with live connections when a policy changes; the play expects it
    #[arg(long, value_name = "recheck|keep", default_value = "recheck", value_parser = live_flows)]
    on_policy_change: LiveFlows,
    /// How to print the result; progress goes to the standard error
    #[arg(long, value_enum, default_value_t, conflicts_with = "serve")]
    output: Format,
    /// The workload's binary [default: `star` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    star: Option<PathBuf>,
    /// The agent's binary [default: `sluice-agent` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// A further argument for `sluice-agent`, may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// The daemon's binary [default: `sluiced` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    sluiced: Option<PathBuf>,
    /// A further argument for `sluiced run`, may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    sluiced_arg: Vec<String>,
}

/// Plays the demo or serves it; the exit code is 1 when anything was not as expected.
///
/// # Errors
/// The lab could not be built, or the user interrupted.
pub(crate) fn run(stars: &Stars) -> Result<ExitCode> {
    let progress = Progress::new("stars", Interrupt::watch()?);
    // Before the lab: a port that is taken is known at once.
    let page = stars.serve.map(web::Server::bind).transpose()?;
    let mut bed = Bed::up(stars, &progress)?;
    if let Some(page) = page {
        web::serve(&page, bed, &progress)?;
        return Ok(ExitCode::SUCCESS);
    }
    let show = |text: &str| match stars.output {
        // Standard output is the report's.
        Format::Json => progress.line(text),
        // Where nobody reads any more the play goes on to its exit code.
        Format::Table => progress.suspended(|| {
            let _ = print(text);
        }),
    };
    let report = play::play(&mut bed, stars.on_policy_change, &progress, &show)?;
    drop(bed);
    drop(progress);
    match stars.output {
        Format::Json => print_json(&report)?,
        Format::Table => print(&format!("\nstars: {} passed, {} failed", report.passed, report.failed))?,
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The page says who may reach whom and changes it: it is for this machine only.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let at =
        text.parse::<SocketAddr>().map_err(|_| "an address and a port, as in 127.0.0.1:8080".to_owned())?;
    if at.ip().is_loopback() {
        Ok(at)
    } else {
        Err(format!("{} is no loopback address: take 127.0.0.1 and an SSH tunnel", at.ip()))
    }
}

fn live_flows(text: &str) -> Result<LiveFlows, String> {
    match text {
        "recheck" => Ok(LiveFlows::Recheck),
        "keep" => Ok(LiveFlows::Keep),
        _ => Err("one of recheck, keep".into()),
    }
}

impl LiveFlows {
    /// As the agent's flag has it.
    const fn word(self) -> &'static str {
        match self {
            Self::Recheck => "recheck",
            Self::Keep => "keep",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stays_on_this_machine() {
        assert_eq!(loopback("127.0.0.1:0").unwrap().port(), 0);
        assert!(loopback("[::1]:8080").is_ok());
        assert!(loopback("0.0.0.0:8080").unwrap_err().contains("0.0.0.0"));
        assert!(loopback("10.0.0.1:8080").is_err() && loopback("8080").is_err());
    }
}
