//! What a run has found: counts in probes, every mismatch with its probe.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Fate;
use crate::networkpolicy::case::{Assertion, Case};

/// Passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// As expected, every way.
    pub passed: usize,
    /// Not as expected, at least one way.
    pub failed: usize,
}

impl Tally {
    fn add(&mut self, passed: bool) {
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
    }

    fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// One thing that did not come out as a case says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The line of the file.
    pub line: usize,
    /// The case.
    pub case: String,
    /// The probe; none when it is the case as a whole, or an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// What happened, once for every way in which it did.
    pub reasons: Vec<String>,
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Cases, admission cases among them.
    pub cases: usize,
    /// All probes.
    #[serde(flatten)]
    pub probes: Tally,
    /// Those among them where the API leaves the answer open, by the name of the open point.
    pub open_points: BTreeMap<String, Tally>,
    /// Probes of which some packet went through an engine.
    pub through_the_engine: usize,
    /// Probes that never reach an engine and are allowed: to a pod from its own node, to a pod from itself.
    pub by_construction: usize,
    /// Probes that no node judges and that are allowed: neither end is a pod that policies know.
    pub nobodys: usize,
    /// Everything that did not come out as it should.
    pub mismatches: Vec<Mismatch>,
}

impl Report {
    /// Whether everything came out as it should.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.probes.failed == 0 && self.mismatches.is_empty()
    }

    /// This one and another one, the mismatches in order of their lines.
    #[must_use]
    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.cases += other.cases;
        self.probes.merge(other.probes);
        for (point, tally) in other.open_points {
            self.open_points.entry(point).or_default().merge(tally);
        }
        self.through_the_engine += other.through_the_engine;
        self.by_construction += other.by_construction;
        self.nobodys += other.nobodys;
        self.mismatches.append(&mut other.mismatches);
        self.mismatches.sort_by_key(|m| m.line);
        self
    }

    /// Records that a case could not be played to its end.
    pub(super) fn broken(&mut self, case: &Case, line: usize, reason: String) {
        self.mismatches.push(Mismatch { line, case: case.id.clone(), probe: None, reasons: vec![reason] });
    }

    /// Records a case that was played; one that broke has all of its probes failed.
    pub(super) fn case<'a>(
        &mut self,
        case: &Case,
        line: usize,
        probes: impl Iterator<Item = (&'a Assertion, Fate)>,
    ) {
        self.cases += 1;
        let broken = self.mismatches.last().is_some_and(|m| m.line == line);
        for (assertion, mut fate) in probes {
            let judged = fate.judged + fate.around > 0 || !fate.failures.is_empty();
            if !judged && !assertion.allowed {
                fate.failures.push("denied is expected, but no node judges it: it is always allowed".into());
            }
            let passed = fate.failures.is_empty() && !broken;
            self.probes.add(passed);
            if let Some(point) = &assertion.open_point {
                self.open_points.entry(point.clone()).or_default().add(passed);
            }
            self.nobodys += usize::from(!judged);
            self.through_the_engine += usize::from(fate.judged > 0);
            self.by_construction += usize::from(fate.around > 0 && fate.judged == 0);
            if !fate.failures.is_empty() {
                self.mismatches.push(Mismatch {
                    line,
                    case: case.id.clone(),
                    probe: Some(assertion.probe.to_string()),
                    reasons: fate.failures,
                });
            }
        }
    }

    /// Records an admission case.
    pub(super) fn admission(&mut self, id: &str, line: usize, failure: Option<String>) {
        self.cases += 1;
        self.probes.add(failure.is_none());
        if let Some(reason) = failure {
            self.mismatches.push(Mismatch { line, case: id.to_owned(), probe: None, reasons: vec![reason] });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mismatch in &self.mismatches {
            write!(f, "line {}: {}", mismatch.line, mismatch.case)?;
            if let Some(probe) = &mismatch.probe {
                write!(f, ": {probe}")?;
            }
            writeln!(f)?;
            mismatch.reasons.iter().try_for_each(|reason| writeln!(f, "    {reason}"))?;
        }
        if self.through_the_engine + self.by_construction > 0 {
            writeln!(
                f,
                "{} cases; {} probes went through an engine, {} are allowed without one",
                self.cases,
                self.through_the_engine,
                self.by_construction + self.nobodys
            )?;
        }
        for (point, tally) in &self.open_points {
            writeln!(f, "open point {point}: {} passed, {} failed", tally.passed, tally.failed)?;
        }
        write!(f, "{} passed, {} failed", self.probes.passed, self.probes.failed)
    }
}
