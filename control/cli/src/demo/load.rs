//! The demo's load: TCP by iperf3 in both directions, small UDP packets at a fixed rate, and the account of every packet.
//!
//! The UDP sink never reads: what reached its link is counted there, so that no receiver's process competes for the CPUs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use sluice_state::query::{Answer, Client, Query, Stats};

use super::Check;
use crate::lab::{Dataplane, Paths, Progress, Record};
use crate::netns::Netns;
use crate::output::table;
use crate::query::SOCKET;

/// Packets a second that the pod offers.
const RATE: u64 = 100_000;
/// Flows that they belong to.
const FLOWS: u16 = 64;
/// First of the sink's ports: above what the lab's servers use, below everyone's ephemeral range.
const SINK: u16 = 600;
/// Bytes of payload: 64 on the wire with the frame check sequence.
const PAYLOAD: usize = 18;

/// The load of one dataplane.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    dataplane: Dataplane,
    /// TCP from the pod to the outside host, in Gbit/s of payload.
    tcp_out_gbit: f64,
    /// TCP from the outside host to the pod.
    tcp_in_gbit: f64,
    /// Small UDP packets that the pod sent.
    udp_sent: u64,
    /// Those that reached the outside host.
    udp_delivered: u64,
    /// Packets a second that were sent.
    udp_rate: f64,
}

impl Measured {
    fn new(dataplane: Dataplane, tcp: [f64; 2], udp: Udp) -> Self {
        Self {
            dataplane,
            tcp_out_gbit: tcp[0],
            tcp_in_gbit: tcp[1],
            udp_sent: udp.sent,
            udp_delivered: udp.delivered,
            udp_rate: udp.rate,
        }
    }
}

/// What became of the small packets.
#[derive(Debug, Clone, Copy)]
struct Udp {
    sent: u64,
    delivered: u64,
    /// Packets a second that were sent.
    rate: f64,
}

/// All loads, and what the daemon counted under its own.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Loads {
    measured: Vec<Measured>,
    /// What the daemon's counters grew by.
    counters: BTreeMap<String, u64>,
    /// What the daemon dropped, by reason; those at zero are left out.
    drops: BTreeMap<String, u64>,
}

/// Loads a lab; with the daemon every packet is accounted for.
///
/// # Errors
/// iperf3 fails, the daemon does not answer, or the user interrupted.
pub(super) fn run(
    record: &Record,
    quick: bool,
    progress: &Progress,
    checks: &mut Vec<Check>,
) -> Result<Loads> {
    let name = &record.topology.name;
    let daemon = (record.options.dataplane == Dataplane::Sluice).then(|| Paths::new(name).run());
    let before = daemon.as_deref().map(stats).transpose()?;
    let tcp = tcp(record, quick, progress)?;
    // The account is about the UDP packets: what TCP lost it has sent again.
    let between = daemon.as_deref().map(settled).transpose()?;
    let links = link_drops(record)?;
    let udp = udp(record, quick, progress)?;
    let mut loads = Loads {
        measured: vec![Measured::new(record.options.dataplane, tcp, udp)],
        counters: BTreeMap::new(),
        drops: BTreeMap::new(),
    };
    if let (Some(dir), Some(before), Some(between)) = (daemon, before, between) {
        let after = settled(&dir)?;
        loads.counters = counters(&before, &after);
        loads.drops = grown(&before.drops, &after.drops);
        checks.push(balance(&after));
        checks.push(explained(udp, &between, &after, &grown(&links, &link_drops(record)?)));
    }
    Ok(loads)
}

impl Loads {
    /// Adds the same load on another dataplane.
    pub(super) fn compare(&mut self, record: &Record, quick: bool, progress: &Progress) -> Result<()> {
        let (tcp, udp) = (tcp(record, quick, progress)?, udp(record, quick, progress)?);
        self.measured.push(Measured::new(record.options.dataplane, tcp, udp));
        Ok(())
    }

    /// Prints figures, counters and drops.
    pub(super) fn print(&self, progress: &Progress) {
        let rows = self.measured.iter().map(|m| {
            let lost = m.udp_sent.saturating_sub(m.udp_delivered);
            vec![
                m.dataplane.to_string(),
                format!("{:.2} Gbit/s", m.tcp_out_gbit),
                format!("{:.2} Gbit/s", m.tcp_in_gbit),
                format!("{} ({:.0} kpps)", m.udp_sent, m.udp_rate / 1e3),
                m.udp_delivered.to_string(),
                format!("{lost} ({:.2} %)", percent(lost, m.udp_sent)),
            ]
        });
        let rows = table(&["DATAPLANE", "TCP OUT", "TCP IN", "UDP SENT", "DELIVERED", "LOST"], rows);
        progress.line(&format!("\nload, pod-a and host-x, {FLOWS} UDP flows of 64 bytes\n{rows}"));
        if !self.counters.is_empty() {
            let lines: Vec<_> = self.counters.iter().map(|(name, n)| format!("  {name:<40} {n}")).collect();
            progress.line(&format!("counters of sluiced under this load\n{}", lines.join("\n")));
            let lines: Vec<_> = self.drops.iter().map(|(name, n)| format!("  {name:<40} {n}")).collect();
            let lines = if lines.is_empty() { "  none".to_owned() } else { lines.join("\n") };
            progress.line(&format!("its drops by reason\n{lines}"));
        }
    }
}

fn seconds(quick: bool) -> u64 {
    if quick { 1 } else { 4 }
}

/// Gbit/s from the pod and to it.
fn tcp(record: &Record, quick: bool, progress: &Progress) -> Result<[f64; 2]> {
    let (dataplane, seconds) = (record.options.dataplane, seconds(quick));
    progress.step(format!("load on {dataplane}: TCP from pod-a to host-x, {seconds} s"))?;
    let out = iperf(record, seconds, false)?;
    progress.step(format!("load on {dataplane}: TCP from host-x to pod-a, {seconds} s"))?;
    Ok([out, iperf(record, seconds, true)?])
}

/// The pod and the outside host of every load, each with namespace and address.
fn ends(record: &Record) -> Result<[(&str, Ipv4Addr); 2]> {
    let plan = &record.topology;
    let pod = plan.pods.first().context("the lab has no pod")?;
    let host = plan.hosts.iter().find(|h| h.name == "host-x").context("the lab has no host-x")?;
    Ok([(&pod.namespace, pod.address), (&host.namespace, host.address)])
}

fn iperf(record: &Record, seconds: u64, reverse: bool) -> Result<f64> {
    let [(pod, _), (host, address)] = ends(record)?;
    let address = address.to_string();
    let serve = || {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1", "-B", &address]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().context("cannot start iperf3")
    };
    let mut server = Netns::open(host)?.within(serve)?;
    let result = Netns::open(pod)?.within(|| client(&address, seconds, reverse));
    // `-1` ends it after one client; when there was none it is ended here.
    let _ = server.kill();
    let _ = server.wait();
    result
}

fn client(address: &str, seconds: u64, reverse: bool) -> Result<f64> {
    let seconds = seconds.to_string();
    let mut last = String::new();
    // The server needs a moment to listen.
    for _ in 0..20 {
        let mut command = Command::new("timeout");
        // iperf3 itself waits for ever when a path dies in the middle.
        command.args(["15", "iperf3", "-c", address, "-t", &seconds, "-J", "--connect-timeout", "2000"]);
        if reverse {
            command.arg("-R");
        }
        let output = command.stdin(Stdio::null()).output().context("cannot run iperf3")?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(rate) =
            answer.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64)
            && output.status.success()
        {
            return Ok(rate / 1e9);
        }
        last = answer.get("error").map_or_else(|| output.status.to_string(), ToString::to_string);
        if !last.contains("refused") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("iperf3 from the pod failed: {last}")
}

/// Small packets at the fixed rate, counted where they reach the host's link.
fn udp(record: &Record, quick: bool, progress: &Progress) -> Result<Udp> {
    let (dataplane, seconds) = (record.options.dataplane, seconds(quick));
    progress.step(format!("load on {dataplane}: {RATE} small UDP packets a second, {seconds} s"))?;
    let [(pod, _), (host, address)] = ends(record)?;
    let host = Netns::open(host)?;
    let sinks = host.within(|| {
        let ports = SINK..SINK + FLOWS;
        ports
            .map(|port| UdpSocket::bind((address, port)).context("cannot listen"))
            .collect::<Result<Vec<_>>>()
    })?;
    let before = host.within(|| received("eth0"))?;
    let (sent, took) = Netns::open(pod)?.within(|| send(address, Duration::from_secs(seconds)))?;
    // What is queued on the way still arrives.
    std::thread::sleep(Duration::from_millis(300));
    let delivered = host.within(|| received("eth0"))?.saturating_sub(before).min(sent);
    drop(sinks);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let rate = sent as f64 / took.as_secs_f64();
    Ok(Udp { sent, delivered, rate })
}

fn send(to: Ipv4Addr, time: Duration) -> Result<(u64, Duration)> {
    let sockets = (SINK..SINK + FLOWS)
        .map(|port| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((to, port))?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot open the senders' sockets")?;
    let start = Instant::now();
    let mut sent = 0;
    let mut refused = 0_u64;
    while start.elapsed() < time {
        let due =
            u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000_000;
        if due <= sent + refused {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for socket in sockets.iter().cycle().take(usize::try_from(due - sent - refused).unwrap_or(usize::MAX))
        {
            // A full queue of the pod's own is its back-pressure: the packet was never sent.
            match socket.send(&[0x5c; PAYLOAD]) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    Ok((sent, start.elapsed()))
}

/// Packets that a link of the calling thread's namespace has received.
fn received(link: &str) -> Result<u64> {
    Ok(device_counters()?.get(link).and_then(|c| c.get(1)).copied().unwrap_or_default())
}

/// The 16 columns of `/proc/net/dev` by link, of the calling thread's namespace.
fn device_counters() -> Result<BTreeMap<String, Vec<u64>>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("cannot read /proc/net/dev")?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines
        .map(|(name, rest)| {
            (name.trim().to_owned(), rest.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
        })
        .collect())
}

/// Packets that links of the node and the fabric dropped, by name.
fn link_drops(record: &Record) -> Result<BTreeMap<String, u64>> {
    let mut drops = BTreeMap::new();
    for (place, namespace) in [("node", &record.topology.node), ("fabric", &record.topology.fabric)] {
        for (link, counters) in Netns::open(namespace)?.within(device_counters)? {
            // Columns of /proc/net/dev: 3 received and dropped, 11 to be sent and dropped.
            for (column, what) in [(3, "rx"), (11, "tx")] {
                drops.insert(
                    format!("link {place} {link} {what}"),
                    counters.get(column).copied().unwrap_or_default(),
                );
            }
        }
    }
    Ok(drops)
}

fn stats(run: &Path) -> Result<Stats> {
    let mut client = Client::connect(&run.join(SOCKET), "sluice demo", Duration::from_secs(5))
        .context("the daemon does not answer")?;
    match client.ask(&Query::Stats)? {
        Answer::Stats(stats) => Ok(*stats),
        other => bail!("the daemon does not tell its counters: {other:?}"),
    }
}

/// The counters once nothing moves any more: balanced, or as they are after two seconds.
fn settled(run: &Path) -> Result<Stats> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let now = stats(run)?;
        if now.conservation.balanced || Instant::now() >= deadline {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(name, n)| (name.clone(), n.saturating_sub(before.get(name).copied().unwrap_or_default())))
        .filter(|(_, n)| *n > 0)
        .collect()
}

fn counters(before: &Stats, after: &Stats) -> BTreeMap<String, u64> {
    let mut all = grown(&before.total, &after.total);
    all.extend(grown(&before.bpf, &after.bpf).into_iter().map(|(name, n)| (format!("bpf {name}"), n)));
    let ports = |stats: &Stats| {
        let mut flat = BTreeMap::new();
        for port in &stats.ports {
            for (name, n) in &port.counters {
                *flat.entry(format!("{} {name}", port.port)).or_insert(0) += n;
            }
        }
        flat
    };
    all.extend(grown(&ports(before), &ports(after)));
    all
}

fn balance(after: &Stats) -> Check {
    let c = &after.conservation;
    Check {
        name: "the engine's account".into(),
        ok: c.balanced,
        note: format!(
            "{} in = {} out + {} dropped + {} held",
            c.packets_in, c.packets_out, c.dropped, c.held
        ),
    }
}

/// Every packet that was lost must stand in some counter by name.
fn explained(udp: Udp, before: &Stats, after: &Stats, links: &BTreeMap<String, u64>) -> Check {
    let lost = udp.sent - udp.delivered;
    let bpf = grown(&before.bpf, &after.bpf).into_iter().filter(|(name, _)| name.contains("drop"));
    let engine = grown(&before.drops, &after.drops).into_iter();
    let named: BTreeMap<String, u64> = engine.chain(bpf).chain(links.clone()).collect();
    let total: u64 = named.values().sum();
    let list: Vec<_> = named.iter().map(|(name, n)| format!("{name} {n}")).collect();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    Check {
        name: "unexplained drops".into(),
        ok: lost <= total,
        note: format!("{} ({lost} UDP packets lost; drops by name: {list})", lost.saturating_sub(total)),
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}
