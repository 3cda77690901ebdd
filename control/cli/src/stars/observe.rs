//! Who reaches whom right now, as the pods themselves see it, beside what the policies in force say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::ask::{self, Outcome};
use super::bed::{Bed, panicked};
use super::expect::{Who, allowed};
use crate::netns::Netns;
use crate::output;

/// The backend's port that no policy opens.
const CLOSED: u16 = 6380;

/// One pair and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Cell {
    /// Who asked.
    pub(super) from: Who,
    /// Who was asked.
    pub(super) to: Who,
    /// On which port.
    pub(super) port: u16,
    /// What the policies say.
    pub(super) expected: bool,
    /// What came.
    pub(super) result: Outcome,
    /// What came is what the policies say; what they deny must end in silence.
    pub(super) ok: bool,
}

impl Cell {
    /// Whether there was an answer.
    pub(super) fn reached(&self) -> bool {
        self.result == Outcome::Ok
    }

    fn judge(bed: &Bed, from: Who, to: Who, port: u16, result: Outcome) -> Self {
        let expected = allowed(bed.policies(), from, to, port);
        let wanted = if expected { Outcome::Ok } else { Outcome::Timeout };
        Self { from, to, port, expected, result, ok: result == wanted }
    }
}

/// Looks at everything once. Denied questions are asked at the same time: each takes as long as patience lasts.
///
/// # Errors
/// The lab is gone.
pub(super) fn observe(bed: &Bed) -> Result<Vec<Cell>> {
    std::thread::scope(|scope| {
        let closed = scope.spawn(|| {
            let frontend = Netns::open(&bed.star(Who::Frontend)?.netns)?;
            let at = SocketAddr::from((bed.star(Who::Backend)?.ip, CLOSED));
            frontend.within(|| Ok(outcome(ask::status(at))))
        });
        let browser = scope.spawn(|| {
            let hosts = &bed.record().topology.hosts;
            let host = hosts.iter().find(|h| h.name == "host-v").context("the lab has no host-v")?;
            let at = SocketAddr::from((bed.star(Who::ManagementUi)?.ip, Who::ManagementUi.port()));
            Netns::open(&host.namespace)?.within(|| Ok(outcome(ask::status(at))))
        });
        let mut cells = Vec::new();
        for from in Who::PODS {
            let status = bed.status(from)?;
            let said = status.as_ref().ok();
            for to in from.asks() {
                let result = said.map_or(Outcome::Unknown, |status| probe(status, *to));
                cells.push(Cell::judge(bed, from, *to, to.port(), result));
            }
            let result = status.as_ref().err().copied().unwrap_or(Outcome::Ok);
            cells.push(Cell::judge(bed, Who::Node, from, from.port(), result));
        }
        let closed = closed.join().map_err(|_| panicked())??;
        cells.push(Cell::judge(bed, Who::Frontend, Who::Backend, CLOSED, closed));
        let browser = browser.join().map_err(|_| panicked())??;
        cells.push(Cell::judge(bed, Who::Browser, Who::ManagementUi, Who::ManagementUi.port(), browser));
        cells.sort_by_key(|cell| (cell.from, cell.to, cell.port));
        Ok(cells)
    })
}

fn outcome<T>(said: Result<T, Outcome>) -> Outcome {
    said.err().unwrap_or(Outcome::Ok)
}

/// What a star's last round says of its question to `to`.
fn probe(status: &Value, to: Who) -> Outcome {
    status["probes"][&to.url()]["result"].as_str().map_or(Outcome::Unknown, Outcome::of_word)
}

/// The matrix for people: who asks, downwards, whom on which port, across.
pub(super) fn matrix(cells: &[Cell]) -> String {
    let mut columns: Vec<_> = cells.iter().map(|cell| (cell.to, cell.port)).collect();
    columns.sort_unstable();
    columns.dedup();
    let mut rows: BTreeMap<Who, Vec<String>> = BTreeMap::new();
    for from in cells.iter().map(|cell| cell.from) {
        rows.entry(from).or_insert_with(|| {
            let cell = |(to, port)| cells.iter().find(|c| c.from == from && c.to == to && c.port == port);
            columns.iter().map(|column| cell(*column).map_or_else(|| "-".into(), text)).collect()
        });
    }
    let header: Vec<_> = columns.iter().map(|(to, port)| format!("{}:{port}", to.name())).collect();
    let header: Vec<_> = std::iter::once("FROM \\ TO").chain(header.iter().map(String::as_str)).collect();
    let rows = rows.into_iter().map(|(from, cells)| [vec![from.name().to_owned()], cells].concat());
    output::table(&header, rows)
}

fn text(cell: &Cell) -> String {
    let word = |reached: bool| if reached { "yes" } else { "no" };
    match (cell.ok, cell.reached(), cell.expected) {
        (true, reached, _) => word(reached).into(),
        // Denied, as it should be, but not in silence.
        (false, false, false) => format!("FAIL: {}", cell.result.word()),
        (false, _, expected) => format!("FAIL: {}, not {}", cell.result.word(), word(expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(from: Who, to: Who, expected: bool, result: Outcome) -> Cell {
        let wanted = if expected { Outcome::Ok } else { Outcome::Timeout };
        Cell { from, to, port: to.port(), expected, result, ok: result == wanted }
    }

    #[test]
    fn the_matrix_shows_what_came_and_shouts_where_it_should_not_have() {
        let cells = [
            cell(Who::Client, Who::Frontend, true, Outcome::Ok),
            cell(Who::Client, Who::Backend, false, Outcome::Timeout),
            cell(Who::Backend, Who::Frontend, false, Outcome::Refused),
            cell(Who::Frontend, Who::Backend, false, Outcome::Ok),
        ];
        let text = matrix(&cells);
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split("  ").filter(|w| !w.is_empty()).map(str::trim).collect())
            .collect();
        assert_eq!(lines[0], ["FROM \\ TO", "frontend:80", "backend:6379"]);
        assert_eq!(lines[1], ["client", "yes", "no"]);
        assert_eq!(lines[2], ["frontend", "-", "FAIL: ok, not no"]);
        assert_eq!(lines[3], ["backend", "FAIL: refused", "-"]);
    }

    #[test]
    fn a_stars_own_words_are_read() {
        let status = serde_json::json!({"probes": {"http://backend.stars:6379/status": {"result": "timeout", "ms": 1000}}});
        assert_eq!(probe(&status, Who::Backend), Outcome::Timeout);
        assert_eq!(probe(&status, Who::Frontend), Outcome::Unknown);
    }
}
