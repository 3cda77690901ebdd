//! The probe loop: every round asks all URLs at once, each on a connection of its own that is new, so that a policy is
//! met at its first packet and not by a connection that an older one had allowed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::args::Serve;
use crate::http::{self, Failure, Url};
use crate::name::Resolver;

/// What the last round brought. Shared between the loop and those who answer `/status`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<Round>>);

#[derive(Debug, Default)]
struct Round {
    /// Rounds that have ended.
    number: u64,
    results: BTreeMap<String, Outcome>,
}

#[derive(Debug)]
struct Outcome {
    answer: Result<String, Failure>,
    took: Duration,
}

impl Board {
    /// What `/status` says.
    pub(crate) fn status(&self, name: &str, collect: bool) -> Value {
        let round = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reachable = Map::new();
        let mut probes = Map::new();
        let mut collected = Map::new();
        for (url, outcome) in &round.results {
            let ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
            let result = outcome.answer.as_ref().map_or_else(|failure| failure.word(), |_| "ok");
            reachable.insert(url.clone(), outcome.answer.is_ok().into());
            probes.insert(url.clone(), json!({ "result": result, "ms": ms }));
            if let Ok(body) = &outcome.answer {
                // What is no JSON is no status.
                collected.insert(url.clone(), serde_json::from_str(body).unwrap_or(Value::Null));
            }
        }
        let mut status =
            json!({ "name": name, "reachable": reachable, "round": round.number, "probes": probes });
        if collect {
            status["collected"] = collected.into();
        }
        status
    }

    fn keep(&self, results: BTreeMap<String, Outcome>) {
        let mut round = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        round.number += 1;
        round.results = results;
    }
}

/// Probes for ever.
pub(crate) fn run(settings: &Serve, board: &Board) {
    loop {
        let begun = Instant::now();
        // Read anew: a pod's resolv.conf may come after its first process.
        let resolver = settings.dns.map(Resolver::of).or_else(|| {
            std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|text| Resolver::from_config(&text))
        });
        board.keep(round(&settings.probes, resolver.as_ref(), begun + settings.timeout));
        std::thread::sleep(settings.interval.saturating_sub(begun.elapsed()));
    }
}

fn round(urls: &[Url], resolver: Option<&Resolver>, deadline: Instant) -> BTreeMap<String, Outcome> {
    std::thread::scope(|scope| {
        let probes: Vec<_> =
            urls.iter().map(|url| (url, scope.spawn(move || one(url, resolver, deadline)))).collect();
        let ended = probes.into_iter().filter_map(|(url, probe)| Some((url.to_string(), probe.join().ok()?)));
        ended.collect()
    })
}

fn one(url: &Url, resolver: Option<&Resolver>, deadline: Instant) -> Outcome {
    let begun = Instant::now();
    let address = match resolver {
        Some(resolver) => resolver.address(&url.host, deadline),
        None => url.host.parse().map_err(|_| Failure::NoDns),
    };
    let answer = address.and_then(|ip| http::ask(url, SocketAddr::from((ip, url.port)), deadline));
    Outcome { answer, took: begun.elapsed() }
}
