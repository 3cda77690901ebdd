//! The play: S0 to S4 and back, what must hold besides, and the same policies in another order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::ask::{Outcome, Talk};
use super::bed::Bed;
use super::expect::{Policies, Policy, Who};
use super::observe::{Cell, matrix, observe};
use crate::lab::{Progress, source_check_drops};
use crate::netns::Netns;

/// A step of the play.
struct Act {
    name: &'static str,
    policies: Policies,
    /// What is done with the connection that lives through several steps.
    talk: Option<TalkAct>,
}

enum TalkAct {
    /// The frontend connects to the backend.
    Open,
    /// The connection answers, or it must be silent where live flows are judged again.
    Ask { allowed: bool },
}

/// What a step came to.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    name: &'static str,
    policies: Policies,
    /// Milliseconds from the change of a file to the daemon having the generation; the sum over all files of the step,
    /// none where the step changes no rule.
    in_force_ms: Option<u128>,
    pub(super) cells: Vec<Cell>,
}

/// Something besides the matrix that must hold.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    name: String,
    pub(super) ok: bool,
    note: String,
}

/// Everything that was seen.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) steps: Vec<Step>,
    pub(super) checks: Vec<Check>,
    pub(super) passed: usize,
    pub(super) failed: usize,
}

impl Report {
    fn count(&mut self) {
        let cells = self.steps.iter().flat_map(|step| step.cells.iter().map(|cell| cell.ok));
        let (passed, failed): (Vec<_>, Vec<_>) =
            cells.chain(self.checks.iter().map(|check| check.ok)).partition(|ok| *ok);
        (self.passed, self.failed) = (passed.len(), failed.len());
    }
}

/// Whether live flows outlive a change of policy, as the agent was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LiveFlows {
    /// They are judged again.
    Recheck,
    /// They live on.
    Keep,
}

fn acts() -> Vec<Act> {
    let act = |name, policies| Act { name, policies, talk: None };
    let with = |name, policies, talk| Act { name, policies, talk: Some(talk) };
    let all = Policies::step(4);
    vec![
        act("S0", Policies::step(0)),
        act("S1", Policies::step(1)),
        act("S2", Policies::step(2)),
        act("S3", Policies::step(3)),
        with("S4", all, TalkAct::Open),
        with("back to S3", Policies::step(3), TalkAct::Ask { allowed: true }),
        with("back to S2", Policies::step(2), TalkAct::Ask { allowed: false }),
        act("back to S1", Policies::step(1)),
        act("back to S0", Policies::step(0)),
        act("other order: S4", Policies::of(&[Policy::S4])),
        act("other order: S3", Policies::of(&[Policy::S4, Policy::S3])),
        act("other order: S2", Policies::of(&[Policy::S4, Policy::S3, Policy::S2])),
        act("other order: S1", all),
        act("S4 without S3", all.without(Policy::S3)),
        act("the end", Policies::step(0)),
    ]
}

/// Plays all of it. What fails is counted and the play goes on.
///
/// # Errors
/// The lab broke, or the user interrupted.
pub(super) fn play(
    bed: &mut Bed,
    live: LiveFlows,
    progress: &Progress,
    show: &dyn Fn(&str),
) -> Result<Report> {
    let mut report = Report::default();
    let mut talk = None;
    let acts = acts();
    for (n, act) in acts.iter().enumerate() {
        progress.step_quietly(format!("{} of {}: {}", n + 1, acts.len(), act.name))?;
        let begun = Instant::now();
        let in_force = bed.bring(act.policies, progress)?;
        let cells = observe(bed)?;
        show(&text(act, &cells, in_force, begun.elapsed()));
        if let Some(what) = &act.talk {
            let check = converse(bed, &mut talk, what, live, act.name)?;
            show(&line(&check));
            report.checks.push(check);
        }
        let step = Step {
            name: act.name,
            policies: act.policies,
            in_force_ms: in_force.map(|t| t.as_millis()),
            cells,
        };
        report.steps.push(step);
    }
    for check in [same_end(&report.steps), named(&bed.drops()?), sources(bed)?] {
        show(&line(&check));
        report.checks.push(check);
    }
    report.count();
    Ok(report)
}

fn converse(
    bed: &Bed,
    talk: &mut Option<Talk>,
    what: &TalkAct,
    live: LiveFlows,
    step: &str,
) -> Result<Check> {
    let at = bed.service(Who::Backend)?;
    let (wanted, said) = match what {
        TalkAct::Open => {
            let frontend = Netns::open(&bed.star(Who::Frontend)?.netns)?;
            let opened = frontend.within(|| Ok(Talk::open(at)))?;
            let said = opened.and_then(|mut opened| {
                let said = opened.status();
                *talk = Some(opened);
                said
            });
            (Outcome::Ok, said)
        }
        TalkAct::Ask { allowed } => {
            let wanted = *allowed || live == LiveFlows::Keep;
            let said = talk.as_mut().map_or(Err(Outcome::Unknown), Talk::status);
            (if wanted { Outcome::Ok } else { Outcome::Timeout }, said)
        }
    };
    let result = said.err().unwrap_or(Outcome::Ok);
    Ok(Check {
        name: format!("the frontend's live connection to the backend at {step}"),
        ok: result == wanted,
        note: format!("{}, expected {}", result.word(), wanted.word()),
    })
}

/// Whatever the order, all four policies come to the same.
fn same_end(steps: &[Step]) -> Check {
    let ends: Vec<_> =
        steps.iter().filter(|step| step.policies == Policies::step(4)).map(|s| &s.cells).collect();
    let same = ends.windows(2).all(|pair| pair[0] == pair[1]);
    Check {
        name: "S4 is the same in either order".into(),
        ok: same && ends.len() > 1,
        note: format!("{} matrices compared", ends.len()),
    }
}

/// What was denied has the policy's name among the reasons for drops, not another one that silence would look like, too.
fn named(drops: &BTreeMap<String, u64>) -> Check {
    let denied = drops.get("policy_ingress").copied().unwrap_or_default();
    Check {
        name: "what was denied is counted".into(),
        ok: denied > 0,
        note: format!("policy_ingress {denied}"),
    }
}

/// Nothing left the node with a source that its ENI does not own.
fn sources(bed: &Bed) -> Result<Check> {
    let dropped: u64 = source_check_drops(&bed.record().topology)?.values().sum();
    Ok(Check { name: "EC2's source check".into(), ok: dropped == 0, note: format!("dropped {dropped}") })
}

fn text(act: &Act, cells: &[Cell], in_force: Option<Duration>, took: Duration) -> String {
    let in_force = in_force.map_or_else(
        || "it changes no rule".to_owned(),
        |t| format!("the daemon had it after {} ms", t.as_millis()),
    );
    let failed = cells.iter().filter(|cell| !cell.ok).count();
    format!(
        "\n{}  (in force: {}; {in_force}, seen after {:.1} s)\n{}\n{} passed, {failed} failed",
        act.name,
        act.policies,
        took.as_secs_f64(),
        matrix(cells),
        cells.len() - failed,
    )
}

fn line(check: &Check) -> String {
    format!("{}  {}: {}", if check.ok { "OK" } else { "FAIL" }, check.name, check.note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_play_goes_there_and_back_and_ends_where_it_began() {
        let acts = acts();
        let steps: Vec<_> = acts.iter().map(|act| act.policies).collect();
        let forth: Vec<_> = (0..=4).map(Policies::step).collect();
        let back: Vec<_> = (0..4).rev().map(Policies::step).collect();
        assert_eq!(steps[..5], forth);
        assert_eq!(steps[5..9], back);
        assert_eq!(steps.last(), Some(&Policies::default()));
        assert_eq!(steps.iter().filter(|p| **p == Policies::step(4)).count(), 2);
    }

    #[test]
    fn another_matrix_at_the_end_is_told() {
        let step = |result| Step {
            name: "S4",
            policies: Policies::step(4),
            in_force_ms: Some(1),
            cells: vec![Cell {
                from: Who::Client,
                to: Who::Frontend,
                port: 80,
                expected: true,
                result,
                ok: result == Outcome::Ok,
            }],
        };
        assert!(same_end(&[step(Outcome::Ok), step(Outcome::Ok)]).ok);
        assert!(!same_end(&[step(Outcome::Ok), step(Outcome::Timeout)]).ok);
        assert!(!same_end(&[step(Outcome::Ok)]).ok);
    }
}
