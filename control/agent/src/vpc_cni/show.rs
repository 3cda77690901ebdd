//! A survey in words, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::presence::Present;
use super::restore::Return;
use super::takeover::Survey;

/// A string takes every word.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {{ let _ = writeln!($text, $($arg)*); }};
}

/// For people.
pub(crate) fn table(survey: &Survey, present: Option<&Present>, dry_run: bool) -> String {
    let plan = &survey.plan;
    let mut text = String::new();
    if let Some(Present { found }) = present {
        line!(text, "The VPC CNI still runs here ({found}): nothing is taken over until it is removed.");
    }
    if let Err(why) = &survey.daemon {
        line!(text, "The daemon does not answer ({why}): nothing is removed until it has these pods.");
    }
    line!(text, "{} pod(s) {} over:", plan.taken.len(), if dry_run { "would come" } else { "come" });
    let pods: Vec<_> = plan.taken.iter().map(|taken| taken.allocation.pod()).collect();
    let width = pods.iter().map(String::len).max().unwrap_or_default();
    for (pod, taken) in pods.iter().zip(&plan.taken) {
        let address = taken.allocation.address.to_string();
        let state = if in_force(survey, taken.allocation.address) { "in force" } else { "not in force yet" };
        line!(
            text,
            "  {pod:width$}  {address:15}  {}  {}  {}  {state}",
            taken.eni,
            taken.host_interface,
            taken.mac
        );
    }
    for (title, list) in [("dropped, their pods are gone", &plan.dropped), ("stay the VPC CNI's", &plan.left)]
    {
        if !list.is_empty() {
            line!(text, "{} {title}:", list.len());
            list.iter().for_each(|left| line!(text, "  {}: {}", left.what, left.why));
        }
    }
    let steps = survey.steps();
    line!(text, "{} step(s):", steps.len());
    steps.iter().for_each(|step| line!(text, "  {step}"));
    if !plan.takes_all() {
        line!(text, "What all pods of the VPC CNI share, its chains and marks, stays until none is its.");
    }
    text
}

/// For programs.
pub(crate) fn json(survey: &Survey, present: Option<&Present>) -> Value {
    let plan = &survey.plan;
    let taken = plan.taken.iter().map(|taken| {
        json!({
            "namespace": taken.allocation.namespace,
            "name": taken.allocation.name,
            "container": taken.allocation.container,
            "ip": taken.allocation.address,
            "eni": taken.eni,
            "interface": taken.host_interface,
            "mac": taken.mac,
            "in_force": in_force(survey, taken.allocation.address),
            "rules": taken.rules.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "vpc_cni": present.map(|present| &present.found),
        "daemon": survey.daemon.as_ref().err(),
        "taken": taken.collect::<Vec<_>>(),
        "dropped": plan.dropped,
        "left": plan.left,
        "takes_all": plan.takes_all(),
        "steps": survey.steps().iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// The pods' places, to be put into an inventory (`docs/runbooks/agent.md`).
pub(crate) fn inventory(survey: &Survey) -> String {
    let mut text = String::new();
    for taken in &survey.plan.taken {
        let allocation = &taken.allocation;
        line!(text, "[[pod]]\nnamespace = {:?}\nname = {:?}", allocation.namespace, allocation.name);
        line!(text, "ip = \"{}\"\neni = {:?}", allocation.address, taken.eni);
        line!(text, "interface = {:?}\nmac = \"{}\"\n", taken.host_interface, taken.mac);
    }
    text
}

/// What is given back.
pub(crate) fn restored(found: &Return) -> String {
    let mut text = String::new();
    line!(text, "{} lease(s) go back:", found.allocations.len());
    found.allocations.iter().for_each(|a| line!(text, "  {} {}", a.pod(), a.address));
    if !found.dropped.is_empty() {
        line!(text, "{} dropped, their pods are gone: {}", found.dropped.len(), found.dropped.join(", "));
    }
    line!(text, "{} rule(s):", found.rules.len());
    found.rules.iter().for_each(|rule| line!(text, "  ip rule add {rule}"));
    text
}

fn in_force(survey: &Survey, address: std::net::Ipv4Addr) -> bool {
    survey.daemon.iter().flatten().any(|pod| pod.ip == address && pod.attached)
}
