//! The case runner: any file of the format of `cases/networkpolicy`, through the real compiler and the real engine.
//!
//! Every case is played three ways, each on every node that it has: at once, every change by a generation of its own, and
//! with the policies in reverse. Each probe is one new connection and its answer. On a node the egress half of what its
//! pods send and the ingress half of what they are sent must come out as the case says; everything else is not its business.

mod admission;
mod control;
mod judge;
mod objects;
mod packets;
mod plane;
mod report;

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use control::{Control, Pace};
pub use plane::Plane;
pub use report::{Mismatch, Report, Tally};

use self::judge::Judged;
use crate::networkpolicy::Cluster;
use crate::networkpolicy::case::{Assertion, Case, CaseError, Line, Step, read};

/// Source ports of probes: so many connections has a case room for before one is used again.
const SOURCE_PORTS: std::ops::Range<u16> = 20_000..60_000;

/// How a case is brought into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// All objects at once, for every step anew.
    Batch,
    /// Every object and every mutation by a generation of its own.
    Incremental,
    /// All objects at once, the policies in reverse.
    Reversed,
}

impl Way {
    const ALL: [Self; 3] = [Self::Batch, Self::Incremental, Self::Reversed];

    const fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Incremental => "incremental",
            Self::Reversed => "reversed",
        }
    }
}

/// Plays the cases of a file, those alone whose name contains `filter`, on every CPU.
///
/// # Errors
/// The file cannot be read, or a line of it is no case.
pub fn run(file: &Path, filter: &str) -> Result<Report, CaseError> {
    let lines = read(file)?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut reports = Vec::new();
        while let Some((number, line)) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut report = Report::default();
            match line {
                Line::Case(case) if case.id.contains(filter) => play(case, *number, &mut report),
                Line::Admission(case) if case.id.contains(filter) => {
                    admission::judge(case, *number, &mut report);
                }
                Line::Case(_) | Line::Admission(_) => {}
            }
            reports.push(report);
        }
        reports
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let reports = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|e| resume_unwind(e))).collect::<Vec<_>>()
    });
    Ok(reports.into_iter().fold(Report::default(), Report::and))
}

/// What became of one probe over all ways and nodes.
#[derive(Debug, Default)]
struct Fate {
    judged: u32,
    around: u32,
    failures: Vec<String>,
}

fn play(case: &Case, line: usize, report: &mut Report) {
    let assertions: Vec<&Assertion> = case.steps().flat_map(Step::assertions).collect();
    let mut fates: Vec<Fate> = assertions.iter().map(|_| Fate::default()).collect();
    for node in &case.cluster().nodes {
        for way in Way::ALL {
            let place = format!("{}, {} local", way.name(), node.name);
            if let Err(reason) = play_once(case, &node.name, way, &place, &mut fates) {
                // The case itself cannot go on: whatever it still asserts has not held.
                report.broken(case, line, format!("{place}: {reason}"));
            }
        }
    }
    report.case(case, line, assertions.into_iter().zip(fates));
}

fn play_once(case: &Case, node: &str, way: Way, place: &str, fates: &mut [Fate]) -> Result<(), String> {
    let mut cluster = case.cluster();
    let room = fates.len();
    let fresh = |cluster: &Cluster| Plane::new(cluster, node, room);
    let mut plane = fresh(&cluster)?;
    let mut sports = SOURCE_PORTS.cycle();
    let mut fates = fates.iter_mut();
    for (i, step) in case.steps().enumerate() {
        let wrong = |reason: String| format!("step {i}: {reason}");
        match way {
            Way::Incremental => {
                plane.follow(&cluster, Pace::OneByOne).map_err(wrong)?;
                for mutation in step.mutations {
                    cluster.apply(mutation).map_err(|e| wrong(e.to_string()))?;
                    plane.follow(&cluster, Pace::OneByOne).map_err(wrong)?;
                }
            }
            Way::Batch | Way::Reversed => {
                for mutation in step.mutations {
                    cluster.apply(mutation).map_err(|e| wrong(e.to_string()))?;
                }
                plane = fresh(&cluster).map_err(wrong)?;
                let mut ordered = cluster.clone();
                if way == Way::Reversed {
                    ordered.policies.reverse();
                }
                plane.follow(&ordered, Pace::AtOnce).map_err(wrong)?;
            }
        }
        if let Some(address) = plane.control().meddles() {
            return Err(wrong(format!("{address} is isolated here, but is no pod's of this node")));
        }
        for (assertion, sport) in step.assertions().zip(&mut sports) {
            let Some(fate) = fates.next() else { break };
            match judge::judge(&mut plane, &cluster, assertion, sport) {
                Judged::Passed => fate.judged += 1,
                Judged::ByConstruction => fate.around += 1,
                Judged::Elsewhere => {}
                Judged::Failed(reason) => fate.failures.push(format!("{place}: {reason}")),
            }
        }
        if !plane.conserves() {
            return Err(wrong("the engine's counters do not add up".into()));
        }
    }
    Ok(())
}
