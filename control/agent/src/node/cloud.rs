//! `sluice-agent cloud`: what IMDS and EC2 tell of this node, which calls are denied, and with whose credentials. It changes
//! nothing.

use std::io::{self, Write as _};
use std::net::Ipv4Addr;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;
use sluice_ec2::aws::{Ec2, Imds, Settings};
use sluice_ec2::cloud::{Cloud as _, Identity, InterfaceFilter, Limits, Metadata as _, SubnetFilter};
use sluice_ec2::pool::ask_limits;

/// How it prints.
#[derive(Debug, Clone, Args)]
pub struct CloudArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// What was told.
#[derive(Debug, Serialize)]
pub struct Told {
    identity: Identity,
    limits: Limits,
    /// The interfaces as EC2 has them.
    interfaces: Vec<Shown>,
    /// Subnets of the zone that have free addresses, and how many.
    subnets: Vec<(String, u32)>,
    /// Interfaces that IMDS shows.
    metadata: usize,
    /// Calls that failed, with the reason and the way out.
    troubles: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    device_index: Option<u32>,
    primary: Ipv4Addr,
    addresses: usize,
    prefixes: usize,
    subnet: String,
}

/// Asks, and prints.
///
/// # Errors
/// IMDS does not answer, there are no credentials, or a call failed that the pool cannot do without.
pub fn cloud(args: &CloudArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = runtime.block_on(ask())?;
    let mut stdout = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(&told)?)?,
        Output::Text => print(&mut stdout, &told)?,
    }
    anyhow::ensure!(told.troubles.is_empty(), "{} call(s) failed", told.troubles.len());
    Ok(())
}

fn print(out: &mut impl io::Write, told: &Told) -> io::Result<()> {
    let Identity { instance, instance_type, zone, region } = &told.identity;
    let limits = &told.limits;
    writeln!(out, "{instance} {instance_type} in {zone} ({region})")?;
    writeln!(
        out,
        "{} interfaces of {} addresses at most; prefixes: {}",
        limits.interfaces,
        limits.addresses,
        if limits.nitro { "yes" } else { "no, it is no Nitro instance" }
    )?;
    for eni in &told.interfaces {
        let index = eni.device_index.map_or("-".to_owned(), |index| index.to_string());
        writeln!(
            out,
            "{} at {index}: {}, {} more address(es), {} prefix(es), {}",
            eni.id, eni.primary, eni.addresses, eni.prefixes, eni.subnet
        )?;
    }
    for (subnet, free) in &told.subnets {
        writeln!(out, "{subnet}: {free} free")?;
    }
    writeln!(out, "IMDS shows {} interface(s)", told.metadata)?;
    for trouble in &told.troubles {
        writeln!(out, "error: {trouble}")?;
    }
    Ok(())
}

async fn ask() -> anyhow::Result<Told> {
    let variable = |name: &str| std::env::var(name).ok();
    let imds = Imds::from_env(variable)?;
    let identity = imds.identity().await.context("who this node is")?;
    let ec2 = Ec2::connect(Settings::from_env(&identity.region, variable)).await?;
    let mut troubles = Vec::new();
    let (limits, denied) = ask_limits(&ec2, &identity.instance_type).await?;
    troubles.extend(denied.map(|error| format!("{error}; the built-in table is used")));
    let filter = InterfaceFilter::AttachedTo(identity.instance.clone());
    let interfaces = match ec2.describe_interfaces(&filter).await {
        Ok(found) => found,
        Err(error) => {
            troubles.push(error.to_string());
            Vec::new()
        }
    };
    let mut subnets = Vec::new();
    if let Some(first) = interfaces.first() {
        let filter = SubnetFilter::Zone { vpc: first.vpc.clone(), zone: identity.zone.clone() };
        match ec2.describe_subnets(&filter).await {
            Ok(found) => subnets.extend(found.into_iter().map(|subnet| (subnet.id.to_string(), subnet.free))),
            Err(error) => troubles.push(error.to_string()),
        }
    }
    let metadata = match imds.interfaces().await {
        Ok(found) => found.len(),
        Err(error) => {
            troubles.push(error.to_string());
            0
        }
    };
    let shown = interfaces.into_iter().map(|eni| Shown {
        id: eni.id.to_string(),
        device_index: eni.attachment.map(|at| at.device_index),
        primary: eni.primary,
        addresses: eni.secondary.len(),
        prefixes: eni.prefixes.len(),
        subnet: eni.subnet.to_string(),
    });
    Ok(Told { identity, limits, interfaces: shown.collect(), subnets, metadata, troubles })
}
