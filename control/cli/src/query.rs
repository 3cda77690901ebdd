//! Asking the daemon by its query socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use sluice_state::query::{Answer, Client, Query};

use crate::lab::Paths;

/// The query socket's name in the daemon's run directory.
pub(crate) const SOCKET: &str = "query.sock";

/// Which daemon to ask.
#[derive(Debug, Clone, Args)]
pub(crate) struct Daemon {
    /// The daemon's run directory
    #[arg(long, default_value = "/run/sluice", value_name = "DIR")]
    run_dir: PathBuf,
    /// Ask the daemon of this lab instead
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "sluice", conflicts_with = "run_dir")]
    lab: Option<String>,
}

impl Daemon {
    /// Connects to it.
    ///
    /// # Errors
    /// No daemon answers there; the message says where it was looked for and what to do.
    pub(crate) fn connect(&self) -> Result<Client> {
        let dir = self.lab.as_ref().map_or_else(|| self.run_dir.clone(), |lab| Paths::new(lab).run());
        let socket = dir.join(SOCKET);
        Client::connect(&socket, concat!("sluice ", env!("CARGO_PKG_VERSION")), Duration::from_secs(10))
            .with_context(|| {
                let way = match &self.lab {
                    Some(lab) => format!("is the lab up? `sluice lab status --name {lab}`"),
                    None => "is sluiced running? another place is --run-dir DIR, a lab's daemon --lab [NAME]"
                        .into(),
                };
                format!("no daemon answers at {}: {way}", socket.display())
            })
    }

    /// Asks one question.
    ///
    /// # Errors
    /// No daemon answers, or it refuses the question.
    pub(crate) fn ask(&self, query: &Query) -> Result<Answer> {
        match self.connect()?.ask(query)? {
            Answer::Refused(reason) => bail!("the daemon refuses: {reason}"),
            answer => Ok(answer),
        }
    }
}
