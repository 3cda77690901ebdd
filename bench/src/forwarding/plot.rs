//! A run as one SVG: what a reader compares first, side by side.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::bed::Direction;
use super::lab::Dataplane;
use super::report::Report;
use super::summary::{Metric, Row};

/// One group of bars: what it is called, and which rows it takes.
struct Panel {
    title: &'static str,
    groups: Vec<Group>,
}

type Group = (String, Box<dyn Fn(&Row) -> bool>);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes the plot.
///
/// # Errors
/// The file cannot be written.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, (1280, 900)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| anyhow!("cannot write {}: {e}", path.display()))?;
    let panels = panels(report);
    let title = format!("sluice-bench forwarding, {} rounds: {}", report.rounds, report.host);
    let area = area.titled(&title, ("sans-serif", 18)).map_err(|e| anyhow!("{e}"))?;
    for (panel, part) in panels.iter().zip(area.split_evenly((2, 2))) {
        draw(report, panel, &part).map_err(|e| anyhow!("cannot plot {}: {e}", panel.title))?;
    }
    area.present().map_err(|e| anyhow!("cannot write {}: {e}", path.display()))
}

fn panels(report: &Report) -> Vec<Panel> {
    let plan = &report.plan;
    let mut cpu: Vec<Group> = Vec::new();
    for direction in [Direction::Up, Direction::Down] {
        for length in plan.lengths.iter().copied() {
            for flows in plan.flows.iter().copied() {
                let way = if direction == Direction::Up { "up" } else { "down" };
                let label = format!(
                    "{way} {length}B {}",
                    if flows >= 1000 { format!("{}k", flows / 1000) } else { flows.to_string() }
                );
                cpu.push((
                    label,
                    Box::new(move |row: &Row| {
                        row.key.metric == Metric::CpuNs
                            && row.key.direction == Some(direction)
                            && row.key.length == Some(length)
                            && row.key.flows == Some(flows)
                    }),
                ));
            }
        }
    }
    let both = |metric: Metric| -> Vec<Group> {
        [Direction::Up, Direction::Down]
            .into_iter()
            .map(|direction| {
                let is = move |row: &Row| row.key.metric == metric && row.key.direction == Some(direction);
                (direction.label().to_owned(), Box::new(is) as Box<dyn Fn(&Row) -> bool>)
            })
            .collect()
    };
    let times = [
        ("p50", Metric::RttP50),
        ("p99", Metric::RttP99),
        ("p50 + load", Metric::LoadedRttP50),
        ("p99 + load", Metric::LoadedRttP99),
    ];
    let times = times
        .into_iter()
        .map(|(label, metric)| {
            (
                label.to_owned(),
                Box::new(move |row: &Row| row.key.metric == metric) as Box<dyn Fn(&Row) -> bool>,
            )
        })
        .collect();
    vec![
        Panel {
            title: "CPU ns per packet at the fixed rate, generator taken off (less is better)",
            groups: cpu,
        },
        Panel {
            title: "delivered flat out, kpps, 64 bytes (more is better)",
            groups: both(Metric::FlatOutKpps),
        },
        Panel { title: "TCP, Gbit/s (more is better)", groups: both(Metric::TcpGbps) },
        Panel { title: "round trip, us (less is better)", groups: times },
    ]
}

fn draw(report: &Report, panel: &Panel, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let dataplanes = report.dataplanes();
    let rows = |group: usize| report.summary.iter().filter(move |r| (panel.groups[group].1)(r));
    let highest = (0..panel.groups.len()).flat_map(rows).map(|r| r.max).fold(0.0, f64::max).max(1e-9);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..panel.groups.len() as f64, 0.0..highest * 1.1)?;
    let label = |x: &f64| panel.groups.get(*x as usize).map(|g| g.0.clone()).unwrap_or_default();
    chart.configure_mesh().disable_x_mesh().x_labels(0).y_labels(6).x_label_formatter(&label).draw()?;

    // Labels by hand, in the middle of each group.
    let style = ("sans-serif", if panel.groups.len() > 6 { 9 } else { 13 }).into_text_style(area);
    for (i, (text, _)) in panel.groups.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(i as f64 + 0.5, 0.0));
        let (left, top) = area.get_base_pixel();
        let half = (text.len() as i32) * if panel.groups.len() > 6 { 2 } else { 4 };
        area.draw(&Text::new(text.clone(), (x - left - half, y - top + 8), style.clone()))?;
    }

    let width = 0.8 / dataplanes.len().max(1) as f64;
    for (j, dataplane) in dataplanes.iter().enumerate() {
        let colour = colour(*dataplane);
        let mut bars = Vec::new();
        for i in 0..panel.groups.len() {
            let Some(row) = rows(i).find(|r| r.dataplane == *dataplane) else { continue };
            let x = i as f64 + 0.1 + j as f64 * width;
            bars.push(Rectangle::new([(x, 0.0), (x + width * 0.92, row.median)], colour.filled()));
            let middle = x + width * 0.46;
            chart.draw_series(std::iter::once(PathElement::new(
                vec![(middle, row.min), (middle, row.max)],
                BLACK.stroke_width(1),
            )))?;
        }
        chart
            .draw_series(bars)?
            .label(dataplane.label())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.7))
        .label_font(("sans-serif", 11))
        .draw()?;
    Ok(())
}

fn colour(dataplane: Dataplane) -> RGBColor {
    match dataplane {
        Dataplane::Kernel => RGBColor(150, 150, 150),
        Dataplane::Nft => RGBColor(86, 130, 190),
        Dataplane::Iptables => RGBColor(190, 140, 70),
        Dataplane::Sluice => RGBColor(40, 150, 110),
    }
}
