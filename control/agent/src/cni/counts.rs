//! What the plugin asked, counted.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sluice_cni::protocol::{Refusal, Reply, Request};

/// Upper bounds of the time that an ADD takes, in seconds: the aim is 50 ms.
const SECONDS: [f64; 11] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counters. Copies count the same.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    requests: Family<Asked, Counter>,
    seconds: Histogram,
    /// Requests for an address.
    pub adds: Counter,
    /// Attachments that were deleted.
    pub dels: Counter,
    /// Requests that found no free address.
    pub without_address: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    request: &'static str,
    outcome: &'static str,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Histogram::new(SECONDS),
            adds: Counter::default(),
            dels: Counter::default(),
            without_address: Counter::default(),
        }
    }
}

impl Counts {
    /// A question, and what came of it.
    pub(super) fn answered(&self, request: &'static str, reply: &Reply) {
        let outcome = match reply {
            Reply::Refused { kind, .. } => match kind {
                Refusal::Version => "version",
                Refusal::Invalid => "invalid",
                Refusal::Unknown => "unknown",
                Refusal::TryAgain => "try_again",
                Refusal::NotReady => "not_ready",
            },
            _ => "ok",
        };
        self.requests.get_or_create(&Asked { request, outcome }).inc();
    }

    /// A pod's path and policy are in force, so long after its address was asked for.
    pub(super) fn added(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// For a scrape.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sluice_cni_requests",
            "What the CNI plugin asked, by what came of it",
            self.requests.clone(),
        );
        registry.register(
            "sluice_cni_add_seconds",
            "From the request for an address until the pod's path and policy were in force",
            self.seconds.clone(),
        );
    }
}

/// What a question is called.
pub(super) fn name(request: &Request) -> &'static str {
    match request {
        Request::Assign { .. } => "assign",
        Request::Attach { .. } => "attach",
        Request::Release { .. } => "release",
        Request::Check { .. } => "check",
        Request::Gc { .. } => "gc",
        Request::Status => "status",
        Request::Show => "show",
    }
}
