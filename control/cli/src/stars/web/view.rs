//! What the page is told: everything that it shows, in one answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

use super::super::bed::Bed;
use super::super::bundle;
use super::super::expect::{Policies, Policy, Who};
use super::super::observe::Cell;

/// Changes that the page lists.
const HISTORY: usize = 12;

/// The whole of it.
#[derive(Debug, Serialize)]
pub(super) struct View {
    lab: String,
    version: &'static str,
    /// Milliseconds since the epoch: when the pods were last looked at.
    updated: u64,
    generation: u64,
    pods: Vec<Pod>,
    policies: Vec<Shown>,
    in_force: Policies,
    /// The policies that are being brought into force.
    busy: Option<Policies>,
    /// What was last seen was asked after the last change.
    settled: bool,
    cells: Vec<Cell>,
    history: Vec<Change>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Pod {
    who: Who,
    namespace: &'static str,
    address: String,
    port: u16,
    place: String,
    eni: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: &'static str,
    meaning: &'static str,
    file: &'static str,
    text: &'static str,
}

#[derive(Debug, Serialize)]
struct Change {
    at: u64,
    in_force: Policies,
    /// Milliseconds from the change of the files to the daemon having it; none where it changes no rule.
    took: Option<u64>,
}

impl View {
    /// Before the first look.
    ///
    /// # Errors
    /// The lab is gone.
    pub(super) fn new(bed: &Bed) -> Result<Self> {
        let pods = Who::PODS.into_iter().map(|who| {
            let star = bed.star(who)?;
            Ok(Pod {
                who,
                namespace: who.namespace(),
                address: star.ip.to_string(),
                port: who.port(),
                place: star.place.clone(),
                eni: star.eni.clone(),
            })
        });
        let policies = Policy::ALL.into_iter().map(|policy| {
            let (file, text) = bundle::policy(policy);
            Shown { name: policy.name(), meaning: policy.meaning(), file, text }
        });
        Ok(Self {
            lab: bed.record().topology.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            updated: now(),
            generation: bed.generation()?,
            pods: pods.collect::<Result<_>>()?,
            policies: policies.collect(),
            in_force: bed.policies(),
            busy: None,
            settled: false,
            cells: Vec::new(),
            history: Vec::new(),
            error: None,
        })
    }

    /// The pods were looked at.
    pub(super) fn saw(&mut self, bed: &Bed, cells: Vec<Cell>) {
        self.cells = cells;
        self.settled = self.busy.is_none();
        self.updated = now();
        self.in_force = bed.policies();
        if let Ok(generation) = bed.generation() {
            self.generation = generation;
        }
    }

    /// A change begins.
    pub(super) fn begins(&mut self, wanted: Policies) {
        self.busy = Some(wanted);
        self.settled = false;
        self.error = None;
    }

    /// It has ended.
    pub(super) fn ended(&mut self, bed: &Bed, brought: Result<Option<Duration>>) {
        self.busy = None;
        self.in_force = bed.policies();
        match brought {
            Ok(took) => {
                let took = took.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
                self.history.insert(0, Change { at: now(), in_force: bed.policies(), took });
                self.history.truncate(HISTORY);
            }
            Err(e) => self.error = Some(format!("{e:#}")),
        }
    }

    /// As JSON.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".into())
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
