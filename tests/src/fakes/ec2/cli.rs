//! `sluice-tests fakes ec2`: the world for a person and for programs of any language.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::faults::{Bucket, Buckets, Policy};
use super::http::Endpoint;
use super::metadata::Metadata;
use super::pod_identity::PodIdentity;
use super::serve::{Shared, clock, serve};
use super::world::{Delays, World};

/// What `--help` ends with.
pub const EXAMPLE: &str = "\
Each face is one JSON line on stdout: ec2 (EC2 and STS), imds (IMDSv2 of the instance), pod-identity, and world (the ids).

A client that is pointed at them:
  export AWS_EC2_ENDPOINT=http://127.0.0.1:PORT AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:PORT
  export AWS_ACCESS_KEY_ID=AKIATEST AWS_SECRET_ACCESS_KEY=any AWS_REGION=eu-central-1

A person who looks and makes things fail:
  curl http://127.0.0.1:PORT/_world          every ENI, subnet, instance, and how often each action was called
  curl http://127.0.0.1:PORT/_world/log      every call and what came of it
  curl -d '{\"action\":\"AttachNetworkInterface\",\"times\":3,\"effect\":{\"refuse\":{\"code\":\"InternalError\"}}}' \\
       http://127.0.0.1:PORT/_world/rules    effects: refuse, \"lose-answer\", \"cut\", {\"delay-ms\": 500}
  TOKEN=$(curl -X PUT -H 'x-aws-ec2-metadata-token-ttl-seconds: 60' http://127.0.0.1:PORT/latest/api/token)
  curl -H \"x-aws-ec2-metadata-token: $TOKEN\" http://127.0.0.1:PORT/latest/meta-data/network/interfaces/macs/";

/// Options of `sluice-tests fakes ec2`.
#[derive(Debug, Args)]
pub struct Options {
    /// Where EC2 and STS answer
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the instance's metadata service answers
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    imds: SocketAddr,
    /// Where the agent of Pod Identity answers
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pod_identity: SocketAddr,
    /// Type of the instance; its limits hold
    #[arg(long, value_name = "TYPE", default_value = "m5.large")]
    instance_type: String,
    /// Everything at once: no asynchronous attach, no lag of IMDS and Describe calls
    #[arg(long)]
    instant: bool,
    /// So many calls of each action at once, and so many more a second
    #[arg(long, value_name = "CALLS,PER_SECOND", value_parser = bucket)]
    throttle: Option<Bucket>,
    /// An action that the node's role may not use, beyond those that AmazonEKS_CNI_Policy does not grant
    #[arg(long, value_name = "ACTION")]
    deny: Vec<String>,
    /// An action that it may use, beyond those that AmazonEKS_CNI_Policy grants
    #[arg(long, value_name = "ACTION")]
    allow: Vec<String>,
    /// Break the subnets up first, so that no /28 is left
    #[arg(long)]
    fragmented: bool,
    /// Put the world's clock so many seconds ahead of this machine's
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
    clock_ahead: i32,
    /// A token that STS and Pod Identity trust for the role `aws-node`
    #[arg(long, value_name = "TOKEN")]
    trust: Vec<String>,
}

fn bucket(text: &str) -> Result<Bucket, String> {
    let wrong = || format!("`{text}` is not CALLS,PER_SECOND; `100,5` would be");
    let (capacity, refill) = text.split_once(',').ok_or_else(wrong)?;
    let number = |t: &str| t.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0).ok_or_else(wrong);
    Ok(Bucket { capacity: number(capacity)?, refill: number(refill)? })
}

/// Serves until Ctrl-C.
///
/// # Errors
/// An unknown instance type, an address that cannot be had.
pub fn run(options: &Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(serve_all(options))
}

async fn serve_all(options: &Options) -> Result<(), String> {
    let ahead = i64::from(options.clock_ahead) * 1000;
    let start = clock();
    let by = Duration::from_millis(ahead.unsigned_abs());
    let start = if ahead < 0 { start.saturating_sub(by) } else { start + by };
    let (mut world, place) = World::with_node(start, &options.instance_type)?;
    if options.instant {
        world.delays = Delays::NONE;
    }
    if let Some(bucket) = options.throttle {
        world.buckets = Buckets::all(bucket);
    }
    let policy = options.allow.iter().fold(Policy::amazon_eks_cni(), |p, a| p.with(a));
    let policy = options.deny.iter().fold(policy, |p, a| p.without(a));
    world.grant("node", policy.clone());
    world.grant("aws-node", policy);
    for token in &options.trust {
        world.trust(token, "aws-node");
    }
    if options.fragmented {
        world.fragment(&place.subnet);
        world.fragment(&place.pods);
    }
    let shared = Shared::new(world);
    shared.set_ahead(ahead);
    let ec2 = serve(options.listen, Endpoint::new(shared.clone())).await?;
    let imds = serve(options.imds, Metadata::new(shared.clone(), &place.instance)).await?;
    let pod = serve(options.pod_identity, PodIdentity::new(shared.clone())).await?;
    let lines = [
        json!({ "face": "ec2", "url": ec2.url() }),
        json!({ "face": "imds", "url": imds.url(), "instance": place.instance }),
        json!({ "face": "pod-identity", "url": format!("{}/v1/credentials", pod.url()) }),
        json!({ "face": "world", "region": "eu-central-1", "access-key": "AKIATEST", "instance": place.instance,
            "vpc": place.vpc, "subnet": place.subnet, "pod-subnet": place.pods, "other-zone": place.elsewhere,
            "group": place.group, "pod-group": place.pod_group }),
    ];
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").map_err(|e| format!("cannot write to stdout: {e}"))?;
    }
    out.flush().map_err(|e| format!("cannot write to stdout: {e}"))?;
    drop(out);
    tokio::signal::ctrl_c().await.map_err(|e| e.to_string())
}
