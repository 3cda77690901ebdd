//! A run as JSON for machines and as a table for people.

use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde::Serialize;

use super::bed::Window;
use super::lab::Dataplane;
use super::plan::Plan;
use super::run::{Ceiling, Measured, Slot};
use super::summary::{Key, Metric, Row, cpus_elsewhere, summarise, unaccounted};
use crate::host::Host;

/// Version of the JSON's shape.
pub const SCHEMA: u32 = 1;

/// Everything about a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `forwarding`.
    pub bench: &'static str,
    /// Version of this shape.
    pub schema: u32,
    /// The machine.
    pub host: Host,
    /// What was asked for.
    pub plan: Plan,
    /// Rounds that were completed.
    pub rounds: u32,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What a reader must know before believing a figure.
    pub notes: Vec<String>,
    /// The figures.
    pub summary: Vec<Row>,
    /// The generator with nothing behind it.
    pub ceilings: Vec<Ceiling>,
    /// Every window of every round.
    pub slots: Vec<Slot>,
}

impl Report {
    /// Sums a run up.
    #[must_use]
    pub fn new(plan: &Plan, measured: Measured, host: Host) -> Self {
        Self {
            bench: "forwarding",
            schema: SCHEMA,
            notes: notes(plan, &measured, &host),
            summary: summarise(&measured),
            host,
            plan: plan.clone(),
            rounds: measured.rounds,
            seconds: measured.took.as_secs_f64(),
            ceilings: measured.ceilings,
            slots: measured.slots,
        }
    }

    /// The run for people.
    #[must_use]
    pub fn table(&self) -> String {
        let dataplanes = self.dataplanes();
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table
            .set_style(TableComponent::HeaderLines, '-')
            .set_style(TableComponent::MiddleHeaderIntersections, '-');
        let mut header = vec![String::new(), "way, bytes, flows".to_owned()];
        header.extend(dataplanes.iter().map(|d| d.name().to_owned()));
        let compares = dataplanes.contains(&Dataplane::Sluice);
        if compares {
            header.extend(["sluice/kernel".to_owned(), "sluice/nft".to_owned()]);
        }
        table.set_header(header);
        let mut keys: Vec<Key> = Vec::new();
        for row in self.summary.iter().filter(|r| self.is_shown(r.key)) {
            if !keys.contains(&row.key) {
                keys.push(row.key);
            }
        }
        keys.sort_by_key(|key| key.metric as u8);
        let mut metric = None;
        for key in keys {
            let row = |dataplane| self.summary.iter().find(|r| r.key == key && r.dataplane == dataplane);
            let again = metric.replace(key.metric) == Some(key.metric);
            let mut cells =
                vec![if again { String::new() } else { key.metric.label().to_owned() }, place(key)];
            cells.extend(dataplanes.iter().map(|d| row(*d).map_or_else(|| "-".into(), |r| figure(r.median))));
            if compares {
                let sluice = row(Dataplane::Sluice);
                let ratio = |r: Option<f64>| r.map_or_else(|| "-".into(), |r| format!("{r:.2}x"));
                cells.push(ratio(sluice.and_then(|r| r.to_kernel)));
                cells.push(ratio(sluice.and_then(|r| r.to_nft)));
            }
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!(
            "{}\nMedians of {} rounds taken in turn; CPU time at {:.0} kpps, the generator's own taken off.\n{table}\n",
            self.host,
            self.rounds,
            self.plan.rate / 1e3
        );
        text += "The generator with nothing behind it:\n";
        for line in self.ceiling_lines() {
            text += &format!("  {line}\n");
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text
    }

    /// Who was measured, in the order of the table.
    #[must_use]
    pub fn dataplanes(&self) -> Vec<Dataplane> {
        let mut dataplanes: Vec<Dataplane> = self.summary.iter().map(|r| r.dataplane).collect();
        dataplanes.sort();
        dataplanes.dedup();
        dataplanes
    }

    /// Loss and leaks are shown where there are any: rows of zeroes hide the others.
    fn is_shown(&self, key: Key) -> bool {
        match key.metric {
            Metric::LossPercent | Metric::RecoveryLossPercent => {
                self.summary.iter().any(|r| r.key == key && r.median >= 0.05)
            }
            Metric::Leaked => self.summary.iter().any(|r| r.key == key && r.max > 0.0),
            _ => true,
        }
    }

    fn ceiling_lines(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.ceilings.iter().map(|c| (c.window.direction, c.window.length)).collect();
        kinds.sort();
        kinds.dedup();
        let best = |take: &dyn Fn(&Window) -> bool, value: &dyn Fn(&Window) -> f64| {
            let mut values: Vec<f64> =
                self.ceilings.iter().map(|c| &c.window).filter(|w| take(w)).map(value).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        kinds
            .into_iter()
            .map(|(direction, length)| {
                let is = move |w: &Window| w.direction == direction && w.length == length;
                let flat_out = best(&|w| is(w) && w.rate.is_none(), &Window::offered_pps) / 1e3;
                let cost = best(&|w| is(w) && w.rate.is_some(), &Window::gross_ns);
                format!(
                    "{}, {length} bytes: {flat_out:.0} kpps flat out; {cost:.0} CPU-ns a packet at the rate (taken off above)",
                    direction.label()
                )
            })
            .collect()
    }
}

fn notes(plan: &Plan, measured: &Measured, host: &Host) -> Vec<String> {
    let mut notes = Vec::new();
    if measured.rounds < plan.rounds {
        notes.push(format!("{} rounds of {}: the deadline came first", measured.rounds, plan.rounds));
    }
    let elsewhere = cpus_elsewhere(measured);
    if elsewhere > 0.05 {
        notes.push(format!(
            "the machine was not quiet: {elsewhere:.2} of its {} CPUs were busy with something else",
            host.cpus
        ));
    }
    let missed = unaccounted(measured);
    notes.push(format!(
        "cross-check: /proc/stat saw {:+.0} % of the paths' CPU time beyond what the tasks' schedstat accounts for",
        missed * 100.0
    ));
    if host.debug_build {
        notes.push(
            "sluice-bench is a debug build, and so may be sluiced: build with --release before you believe"
                .into(),
        );
    }
    let lost = measured.slots.iter().flat_map(|s| &s.paced).filter(|w| w.loss() > 0.01).count();
    if lost > 0 {
        notes.push(format!(
            "{lost} windows lost more than 1 % at {:.0} kpps: compare CPU time at a lower --rate",
            plan.rate / 1e3
        ));
    }
    notes
}

fn place(key: Key) -> String {
    let parts = [
        key.direction.map(|d| d.label().to_owned()),
        key.length.map(|l| format!("{l} B")),
        key.flows.map(|f| if f >= 1000 { format!("{}k", f / 1000) } else { f.to_string() }),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
