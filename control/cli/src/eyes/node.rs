//! `sluice pods`, `sluice leases`, `sluice enis`: what the agent has, asked at its CNI socket, which is root's alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use sluice_cni::agent::Agent;
use sluice_cni::protocol::{Reply, Request, SOCKET, Shown};

use crate::lab::Paths;
use crate::output::{Format, print, print_json, table};

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which agent is asked, and how the answer is printed.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The agent's CNI socket
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    cni_socket: PathBuf,
    /// Ask the agent of this lab instead
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "sluice", conflicts_with = "cni_socket")]
    lab: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

impl NodeArgs {
    fn ask(&self) -> Result<Shown> {
        let socket =
            self.lab.as_ref().map_or_else(|| self.cni_socket.clone(), |lab| Paths::new(lab).cni_socket());
        let mut agent = Agent::greet(&socket, Instant::now() + PATIENCE, Duration::ZERO).context(
            "is sluice-agent running with --cni-socket, and are you root? another place is --cni-socket PATH, a lab's --lab [NAME]",
        )?;
        match agent.ask(&Request::Show)? {
            Reply::Shown(shown) => Ok(shown),
            other => bail!("the agent answers {other:?}"),
        }
    }
}

/// Prints the pods that were added, and the interface of each.
///
/// # Errors
/// No agent answers.
pub(crate) fn pods(args: &NodeArgs) -> Result<()> {
    let shown = args.ask()?;
    if args.output == Format::Json {
        return print_json(&shown.leases);
    }
    let rows = shown.leases.iter().map(|lease| {
        vec![
            lease.pod.namespace.clone(),
            lease.pod.name.clone(),
            lease.address.to_string(),
            lease.host_interface.clone().unwrap_or_else(|| "being added".into()),
            lease.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        ]
    });
    print(&table(&["NAMESPACE", "NAME", "ADDRESS", "INTERFACE", "NETNS"], rows))
}

/// Prints the leases.
///
/// # Errors
/// No agent answers.
pub(crate) fn leases(args: &NodeArgs) -> Result<()> {
    let shown = args.ask()?;
    if args.output == Format::Json {
        return print_json(&shown.leases);
    }
    let rows = shown.leases.iter().map(|lease| {
        vec![
            lease.address.to_string(),
            lease.eni.clone(),
            format!("{}/{}", lease.pod.namespace, lease.pod.name),
            lease.attachment.container.clone(),
            lease.since.clone(),
        ]
    });
    let [total, leased, cooling] = shown.addresses;
    let text = table(&["ADDRESS", "ENI", "POD", "CONTAINER", "SINCE"], rows);
    let counts = format!("{leased} of {total} addresses are leased, {cooling} cool down");
    print(&[text, counts].join("\n"))
}

/// Prints the ENIs, and what keeps the pool from growing.
///
/// # Errors
/// No agent answers.
pub(crate) fn enis(args: &NodeArgs) -> Result<()> {
    let shown = args.ask()?;
    if args.output == Format::Json {
        return print_json(&shown);
    }
    let rows = shown.enis.iter().map(|eni| {
        vec![
            eni.id.clone(),
            eni.link.clone().unwrap_or_else(|| "not there yet".into()),
            eni.primary.to_string(),
            eni.subnet.clone(),
            eni.blocks.len().to_string(),
            eni.leased.to_string(),
            eni.idle.clone().unwrap_or_else(|| "pods".into()),
        ]
    });
    let mut text = table(&["ENI", "LINK", "PRIMARY", "SUBNET", "BLOCKS", "LEASED", "SERVES"], rows);
    for trouble in &shown.troubles {
        text.push_str(&format!("\n{trouble}"));
    }
    print(&text)
}
