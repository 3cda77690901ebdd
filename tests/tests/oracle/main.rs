//! The kernel as an oracle: the same frames go to the engine and to a kernel that does `nft masquerade`.
//!
//! What comes of each probe must be the same after the chosen port, except for the differences that `differences.rs`
//! lists with their reasons; and each of those must really occur. The outcome is also kept as `docs/kernel-oracle.md`,
//! which this test checks; with `SLUICE_WRITE_DOCS=1` it writes it anew.

mod differences;
mod engine;
mod kernel;
mod outcome;
mod probes;
mod sys;

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use outcome::{Seen, Side, canonical, chosen_port, describe};
use probes::Probe;

pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const ENI_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];
/// Below the pods' 1500.
pub(crate) const ENI_MTU: u32 = 1400;

/// A frame with the Ethernet addresses that it has when it enters on a side.
pub(crate) fn address_frame(side: Side, mut frame: Vec<u8>) -> Vec<u8> {
    let (dst, src) = match side {
        Side::Pod => (HOST_MAC, POD_MAC),
        Side::Wire => (ENI_MAC, GATEWAY_MAC),
    };
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
    frame
}

/// What both systems did with a probe.
struct Compared {
    name: &'static str,
    kernel: String,
    engine: String,
    same: bool,
}

#[test]
fn the_engine_does_what_the_kernel_does() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the kernel oracle needs root: it makes network namespaces");
    // One CPU, so that the kernel keeps the order of what is sent.
    let mut one = nix::sched::CpuSet::new();
    let now = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).context("CPU affinity")?;
    let cpu = (0..nix::sched::CpuSet::count()).find(|cpu| now.is_set(*cpu).unwrap_or(false));
    one.set(cpu.context("a CPU to run on")?)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).context("CPU affinity")?;

    let mut kernel = kernel::Kernel::new()?;
    let mut all = Vec::new();
    for probe in probes::all() {
        kernel.reset()?;
        all.push(compare(&mut kernel, &probe).with_context(|| format!("probe {}", probe.name))?);
    }
    let report = report(&all)?;
    println!("{report}");
    judge(&all)?;
    check_docs(&report)
}

fn compare(kernel: &mut kernel::Kernel, probe: &Probe) -> Result<Compared> {
    let mut engine = engine::Engine::new()?;
    let (mut of_kernel, mut of_engine) = (Vec::new(), Vec::new());
    let (mut kernel_port, mut engine_port) = (None, None);
    let mut same = true;
    // What is cut into pieces is compared when the last one is through.
    let (mut kernel_parts, mut engine_parts) = (Vec::new(), Vec::new());
    for step in &probe.steps {
        let frame = |port: Option<u16>| address_frame(step.from, (step.frame)(port.unwrap_or(5555)));
        kernel_parts.extend(kernel.inject(step.from, &frame(kernel_port))?);
        engine_parts.extend(engine.inject(step.from, &frame(engine_port))?);
        kernel_port = kernel_port.or(kernel_parts.iter().find_map(chosen_port));
        engine_port = engine_port.or(engine_parts.iter().find_map(chosen_port));
        if step.more {
            continue;
        }
        let k = canonical(std::mem::take(&mut kernel_parts), kernel_port);
        let e = canonical(std::mem::take(&mut engine_parts), engine_port);
        // What is handed to the kernel, the kernel may well drop itself.
        same &= k == e || (k.is_empty() && e.iter().all(|seen| *seen == Seen::Host));
        of_kernel.push(describe(&k));
        of_engine.push(describe(&e));
    }
    Ok(Compared { name: probe.name, kernel: of_kernel.join("<br>"), engine: of_engine.join("<br>"), same })
}

/// Every difference is listed, and every listed one occurs.
fn judge(all: &[Compared]) -> Result<()> {
    let mut wrong = Vec::new();
    for compared in all {
        let listed = differences::reason(compared.name).is_some();
        if !compared.same && !listed {
            let Compared { name, kernel, engine, .. } = compared;
            wrong.push(format!("{name} differs and is not listed:\n  kernel {kernel}\n  engine {engine}"));
        }
        if compared.same && listed {
            wrong.push(format!("{} is listed as a difference and is none any more", compared.name));
        }
    }
    for (name, _) in differences::ALL {
        if !all.iter().any(|compared| compared.name == *name) {
            wrong.push(format!("{name} is listed as a difference and is no probe"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn report(all: &[Compared]) -> Result<String> {
    let differing = all.iter().filter(|c| !c.same).count();
    let mut text = String::new();
    writeln!(text, "# The kernel as an oracle\n")?;
    writeln!(
        text,
        "Written by `tests/tests/oracle` with `SLUICE_WRITE_DOCS=1`, and checked by it. The same frames go to the engine and to a\n\
         kernel that forwards with `nft masquerade`: {} probes, {} the same but for the chosen port (`p*`), {differing} different, each\n\
         for a reason. A line of a cell is what came of one packet of the probe (of one datagram, where it was cut).\n",
        all.len(),
        all.len() - differing,
    )?;
    writeln!(text, "## Differences\n\n| probe | the kernel | Sluice | why |\n|---|---|---|---|")?;
    for c in all.iter().filter(|c| !c.same) {
        let why = differences::reason(c.name).unwrap_or("not listed");
        writeln!(text, "| {} | {} | {} | {why} |", c.name, c.kernel, c.engine)?;
    }
    writeln!(text, "\n## The same\n\n| probe | what comes of it |\n|---|---|")?;
    for c in all.iter().filter(|c| c.same) {
        writeln!(text, "| {} | {} |", c.name, c.engine)?;
    }
    Ok(text)
}

fn check_docs(report: &str) -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kernel-oracle.md");
    if std::env::var_os("SLUICE_WRITE_DOCS").is_some() {
        return std::fs::write(path, report).context("docs/kernel-oracle.md");
    }
    let there = std::fs::read_to_string(path).context("docs/kernel-oracle.md")?;
    let line = there.lines().zip(report.lines()).find(|(a, b)| a != b);
    ensure!(
        there == report,
        "docs/kernel-oracle.md is not what comes out; write it anew with SLUICE_WRITE_DOCS=1. First difference: {line:?}"
    );
    Ok(())
}
