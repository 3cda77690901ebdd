//! The engine's figures as JSON and as a table.

use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde::Serialize;

use super::reference::{self, Reference};
use super::run::{CHECKSUM_LENGTHS, Cell, Costs, Settings};
use super::scaling::Scale;
use super::stream::Order;
use crate::host::Host;

/// Version of the JSON's shape.
pub const SCHEMA: u32 = 1;

/// What the project holds itself to (shuffled flows, one core, 64 bytes): flows, nanoseconds, ratio to the yardstick.
pub const TARGETS: [(u32, f64, f64); 3] = [(1_000, 20.0, 1.6), (100_000, 45.0, 1.8), (1_000_000, 110.0, 2.1)];

/// Everything about a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `engine`.
    pub bench: &'static str,
    /// Version of this shape.
    pub schema: u32,
    /// The machine.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// Packets of known flows.
    pub cells: Vec<Cell>,
    /// Everything else.
    pub costs: Costs,
    /// Several workers on one table.
    pub scaling: Vec<Scale>,
    /// Other engines, from the design's measurements in another hour; not measured in this run.
    pub reference: Vec<Reference>,
}

impl Report {
    /// Puts the parts together.
    #[must_use]
    pub fn new(host: Host, settings: Settings, cells: Vec<Cell>, costs: Costs, scaling: Vec<Scale>) -> Self {
        let reference = reference::TABLE.to_vec();
        Self { bench: "engine", schema: SCHEMA, host, settings, cells, costs, scaling, reference }
    }

    /// The run for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = plain();
        let mut header = vec!["CPU ns/packet".to_owned()];
        header.extend(self.cells.iter().map(|c| {
            let order = if c.order == Order::Shuffled { " shuffled" } else { "" };
            format!("{}{order}", count(c.flows))
        }));
        table.set_header(header);
        let mut row = |name: &str, figure: &dyn Fn(&Cell) -> String| {
            let mut cells = vec![name.to_owned()];
            cells.extend(self.cells.iter().map(figure));
            table.add_row(cells);
        };
        row("Sluice", &|c| format!("{:.1}", c.engine_ns));
        row("minimal loop (yardstick)", &|c| format!("{:.1}", c.yardstick_ns));
        row("ratio", &|c| format!("{:.2}x", c.ratio));
        row("target", &|c| match target(c) {
            Some((ns, ratio)) => format!("<= {ns:.0}, {ratio:.1}x"),
            None => String::new(),
        });
        for reference in &self.reference {
            let name = format!("{} *", reference.engine);
            row(&name, &|c| {
                let ns = column(c).and_then(|at| reference.ns[at]);
                ns.map_or_else(|| "-".into(), |ns| format!("{ns:.0}"))
            });
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!(
            "{}\n{} bytes, median of {} rounds, engine and yardstick in turn; parse, flow, state, NAT, checksum, counters.\n{table}\n\
             * constants: the design's measurements on a machine of this kind in another hour, not of this run\n\n",
            self.host, self.settings.length, self.settings.rounds
        );
        text += &self.costs_text();
        for scale in &self.scaling {
            text += &format!(
                "{} worker{} on one table, {} flows: {:.1} CPU-ns a packet, {:.2} Mpps together\n",
                scale.threads,
                if scale.threads == 1 { "" } else { "s" },
                count(scale.flows),
                scale.cpu_ns,
                scale.million_pps
            );
        }
        if self.host.debug_build {
            text += "note: a debug build: these figures mean nothing; build with --release\n";
        }
        text
    }

    fn costs_text(&self) -> String {
        let Costs { new_flows_per_second, new_flow_ns, expiry_ns, expired_per_second, parse_ns, checksum_ns } =
            &self.costs;
        let mut text = format!(
            "new SNAT flows: {:.2} M/s ({new_flow_ns:.0} ns each; target 2 M/s)\n\
             expiry: {:.2} M/s ({expiry_ns:.0} ns each)\nparse: {parse_ns:.1} ns\n",
            new_flows_per_second / 1e6,
            expired_per_second / 1e6
        );
        for (length, ns) in CHECKSUM_LENGTHS.iter().zip(checksum_ns) {
            text += &format!("checksum of {length} bytes: {ns:.1} ns ({:.1} GB/s)\n", *length as f64 / ns);
        }
        text
    }
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
        .set_style(TableComponent::HeaderLines, '-')
        .set_style(TableComponent::MiddleHeaderIntersections, '-');
    table
}

fn target(cell: &Cell) -> Option<(f64, f64)> {
    let shuffled = cell.order == Order::Shuffled || cell.flows == 1000;
    let (_, ns, ratio) = TARGETS.iter().find(|(flows, ..)| *flows == cell.flows && shuffled)?;
    Some((*ns, *ratio))
}

/// The column of the reference table that this cell compares with.
fn column(cell: &Cell) -> Option<usize> {
    match (cell.flows, cell.order) {
        (1_000, _) => Some(0),
        (100_000, Order::InOrder) => Some(1),
        (1_000_000, Order::InOrder) => Some(2),
        (100_000, Order::Shuffled) => Some(3),
        (1_000_000, Order::Shuffled) => Some(4),
        _ => None,
    }
}

fn count(flows: u32) -> String {
    match flows {
        f if f >= 1_000_000 && f % 1_000_000 == 0 => format!("{}M", f / 1_000_000),
        f if f >= 1000 && f % 1000 == 0 => format!("{}k", f / 1000),
        f => f.to_string(),
    }
}
