//! The start-up report as lines of the log.

use sluice_state::PortRange;
use sluice_state::query::{EniReport, Report};

/// Says what was got, and what is degraded and why.
pub fn log(report: &Report) {
    for line in lines(report) {
        tracing::info!("{line}");
    }
    for finding in &report.findings {
        let remedy =
            if finding.remedy.is_empty() { String::new() } else { format!(". Remedy: {}", finding.remedy) };
        tracing::warn!("degraded: {}: {}{remedy}", finding.subject, finding.what);
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "sluiced {} on Linux {}: generation {}, {} worker(s), tc by {}, without a daemon: {}, started in {} ms",
        report.daemon,
        report.kernel,
        report.generation,
        report.workers.len(),
        report.tc,
        report.on_failure,
        report.startup_ms,
    )];
    lines.extend(report.enis.iter().map(eni));
    for worker in &report.workers {
        let queues = if worker.queues.is_empty() { "no queue".to_owned() } else { worker.queues.join(" ") };
        lines.push(format!(
            "worker {} on CPU {}: {}:{} {queues}",
            worker.id, worker.cpu, report.trunk.name, worker.id
        ));
    }
    if let Some(imported) = &report.imported {
        lines.push(format!(
            "connections of the kernel's taken over: {}, left to it: {}, not readable: {}",
            imported.taken, imported.elsewhere, imported.unreadable
        ));
    }
    let ports = &report.ports;
    let address = ports.address.map_or_else(|| "no address".to_owned(), |address| address.to_string());
    lines.push(format!(
        "ports on {address}: TCP {}; UDP {}; ICMP ids {}; held by processes of the node: {}; host's ephemeral range {}",
        ranges(&ports.tcp),
        ranges(&ports.udp),
        ranges(&ports.icmp),
        ports.listeners.len(),
        ports.ephemeral.map_or_else(|| "unknown".to_owned(), |range| range.to_string()),
    ));
    lines
}

fn eni(eni: &EniReport) -> String {
    let on = eni
        .offloads
        .iter()
        .filter(|(_, on)| **on)
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    let of = eni.max_queues.map_or_else(String::new, |max| format!(" of {max}"));
    let version =
        if eni.driver_version.is_empty() { String::new() } else { format!(" {}", eni.driver_version) };
    format!(
        "ENI {}{}: driver {}{version}, mode {}, {} queue(s){of}, MTU {}, offloads on: {}",
        eni.name,
        if eni.primary { " (primary)" } else { "" },
        eni.driver,
        eni.mode,
        eni.queues,
        eni.mtu,
        if on.is_empty() { "none" } else { &on },
    )
}

/// Ranges in one line, at most eight of them.
fn ranges(ranges: &[PortRange]) -> String {
    const SHOWN: usize = 8;
    let shown = ranges.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(",");
    match ranges.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => format!("{shown} and {} ranges more", n - SHOWN),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranges_stay_one_line() {
        let range = |n| PortRange { first: n, last: n };
        assert_eq!(ranges(&[]), "none");
        assert_eq!(ranges(&[range(1), range(3)]), "1,3");
        let many: Vec<_> = (1..=20).map(|n| range(n * 2)).collect();
        assert_eq!(ranges(&many), "2,4,6,8,10,12,14,16 and 12 ranges more");
    }
}
