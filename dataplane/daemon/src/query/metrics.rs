//! The counters in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use sluice_state::query::Stats;

/// All counters as text.
pub(super) fn text(stats: Stats) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposed(stats)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposed(Stats);

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let stats = &self.0;
        counters(&mut encoder, "sluice_worker", "Counters of the engine and of the workers' loops", || {
            stats.workers.iter().flat_map(|worker| {
                let id = worker.id.to_string();
                worker
                    .counters
                    .iter()
                    .map(move |(name, value)| (vec![("worker", id.clone()), ("name", name.clone())], *value))
            })
        })?;
        counters(&mut encoder, "sluice_drops", "Packets dropped, by reason", || {
            stats.workers.iter().flat_map(|worker| {
                let id = worker.id.to_string();
                worker.drops.iter().map(move |(name, value)| {
                    (vec![("worker", id.clone()), ("reason", name.clone())], *value)
                })
            })
        })?;
        counters(&mut encoder, "sluice_bpf", "Verdicts of the XDP and tc programs", || {
            by_name("verdict", &stats.bpf)
        })?;
        counters(&mut encoder, "sluice_port", "Counters of AF_XDP sockets and trunk queues", || {
            stats.ports.iter().flat_map(|port| {
                let labels = (port.worker.to_string(), port.port.clone());
                port.counters.iter().map(move |(name, value)| {
                    let (worker, port) = labels.clone();
                    (vec![("worker", worker), ("port", port), ("name", name.clone())], *value)
                })
            })
        })?;
        gauge(&mut encoder, "sluice_flows", "Flows in the table", u64::from(stats.flows))?;
        gauge(&mut encoder, "sluice_flow_capacity", "Flows that fit", u64::from(stats.flow_capacity))?;
        for (name, help, value) in stats.extent.all() {
            gauge(&mut encoder, &format!("sluice_state_{name}"), help, value)?;
        }
        gauge(&mut encoder, "sluice_flow_table_bytes", "Memory of the flow table", stats.memory.flow_table)?;
        gauge(&mut encoder, "sluice_umem_bytes", "Memory shared with AF_XDP", stats.memory.umem)?;
        gauge(&mut encoder, "sluice_generation", "Number of the state in force", stats.generation)?;
        gauge(&mut encoder, "sluice_held", "Packets that wait inside", stats.conservation.held)
    }
}

fn by_name<'a>(
    label: &'static str,
    values: &'a BTreeMap<String, u64>,
) -> impl Iterator<Item = (Vec<(&'static str, String)>, u64)> + 'a {
    values.iter().map(move |(name, value)| (vec![(label, name.clone())], *value))
}

fn counters<L, I>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl Fn() -> I,
) -> fmt::Result
where
    L: EncodeLabelSet,
    I: Iterator<Item = (L, u64)>,
{
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series() {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}
