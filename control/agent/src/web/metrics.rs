//! Metrics. Those that mean what one of the VPC CNI's does have its name, so that dashboards go on.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use sluice_ec2::aws::{Called, Calls};
use sluice_kube::manifests::Severity;

use super::pages::Snapshot;
use crate::cni::{Counts, Reserve, Window};

/// All of them.
pub(super) fn text(snapshot: &Snapshot, desk: &Window, calls: &[Arc<Calls>]) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let called = calls.iter().flat_map(|calls| calls.all()).collect();
    let counts = desk.counts();
    counts.register(&mut registry);
    let exposed = Exposed { snapshot: snapshot.clone(), counts, reserve: desk.reserve(), called };
    registry.register_collector(Box::new(exposed));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposed {
    snapshot: Snapshot,
    counts: Counts,
    reserve: Reserve,
    called: Vec<Called>,
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self { snapshot, counts, reserve, called } = self;
        let one = |value: bool| u64::from(value);
        for (name, help, value) in [
            ("sluice_agent_connected", "1: sluiced is connected", one(snapshot.connected)),
            ("sluice_agent_synced", "1: every object of the cluster is known", one(snapshot.synced)),
            (
                "sluice_agent_ready",
                "1: nothing about this node needs an operator",
                one(snapshot.unready.is_none()),
            ),
            (
                "sluice_agent_generation",
                "Generation that sluiced accepted last",
                snapshot.generation.unwrap_or(0),
            ),
            ("sluice_agent_pods", "Pods of this node that have a path", snapshot.pods as u64),
            ("sluice_agent_addresses_cooling", "Addresses that cool down", reserve.cooling.into()),
            (
                "sluice_agent_addresses_short",
                "Addresses that the pool is short of its target",
                reserve.short.into(),
            ),
            ("awscni_total_ip_addresses", "Addresses that serve pods", reserve.total.into()),
            ("awscni_assigned_ip_addresses", "Addresses that pods have", reserve.assigned.into()),
            ("awscni_total_ipv4_prefixes", "Prefixes (/28) that serve pods", reserve.prefixes.into()),
            ("awscni_eni_allocated", "ENIs that are attached", reserve.enis.into()),
            ("awscni_eni_max", "ENIs at most", reserve.max_enis.into()),
            ("awscni_ip_max", "Pods at most", reserve.max_pods.into()),
        ] {
            gauge(&mut encoder, name, help, value)?;
        }
        let count = |severity| snapshot.findings.iter().filter(|f| f.severity == severity).count() as u64;
        let findings = [("error", Severity::Error), ("warning", Severity::Warning), ("note", Severity::Note)];
        let findings =
            findings.map(|(word, severity)| (vec![("severity", word.to_owned())], count(severity)));
        let mut metric = encoder.encode_descriptor(
            "sluice_agent_findings",
            "What was found, and holds",
            None,
            MetricType::Gauge,
        )?;
        for (labels, value) in findings {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        let [accepted, refused] = snapshot.generations;
        let outcome = |word: &str, value| (vec![("outcome", word.to_owned())], value);
        counters(
            &mut encoder,
            "sluice_agent_generations",
            "Generations that sluiced answered",
            [outcome("accepted", accepted), outcome("refused", refused)],
        )?;
        let sum = |pick: fn(&Called) -> u64| called.iter().map(pick).sum::<u64>();
        for (name, help, value) in [
            ("awscni_add_ip_req_count", "Addresses that were asked for", counts.adds.get()),
            ("awscni_del_ip_req_count", "Attachments that were deleted", counts.dels.get()),
            (
                "awscni_no_available_ip_addresses",
                "Requests that found no free address",
                counts.without_address.get(),
            ),
            ("awscni_aws_api_error_count", "Calls to EC2 that failed", sum(|called| called.failed)),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let by_function = |pick: fn(&Called) -> u64| -> Vec<(Labels, u64)> {
            called
                .iter()
                .map(|called| (vec![("fn", called.action.name().to_owned())], pick(called)))
                .collect()
        };
        unknown(&mut encoder, "awscni_ec2api_req_count", "Calls to EC2", &by_function(|c| c.made))?;
        unknown(
            &mut encoder,
            "awscni_ec2api_error_count",
            "Calls to EC2 that failed",
            &by_function(|c| c.failed),
        )?;
        let mut metric = encoder.encode_descriptor(
            "sluice_ec2_call_seconds",
            "Time that calls to EC2 took, attempts and waits between them included",
            None,
            MetricType::Counter,
        )?;
        for called in called {
            let labels: Labels = vec![("action", called.action.name().to_owned())];
            ConstCounter::new(called.took.as_secs_f64()).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

fn counters(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A counter whose name does not end in `_total`, as the VPC CNI has them.
fn unknown(encoder: &mut DescriptorEncoder, name: &str, help: &str, series: &[(Labels, u64)]) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
    for (labels, value) in series {
        ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}
