//! What forwards on the lab's node: the daemon, or the kernel with one of three sets of rules to compare with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use sluice_state::RandomizeSnat;
use sluice_state::query::{Answer, Client, Query, Report};

use super::options::{Dataplane, Options};
use super::progress::Progress;
use super::record::{Paths, Process};
use super::topology::Topology;
use crate::netns::Netns;
use crate::query::SOCKET;
use crate::shell;

/// How long the daemon may take until its workers run.
const START: Duration = Duration::from_secs(20);

/// Starts the dataplane; gives the process when there is one.
///
/// # Errors
/// A rule is refused, or the daemon does not come up; then the message ends with the tail of its log.
pub(crate) fn start(
    plan: &Topology,
    options: &Options,
    paths: &Paths,
    progress: &Progress,
) -> Result<Option<Process>> {
    // Written whatever forwards, so that a daemon can be started by hand in any lab.
    let state = plan.state(options);
    state.check().context("the options make no valid state")?;
    let text = toml::to_string(&state).context("cannot write the state as TOML")?;
    let path = paths.state();
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    mount(Some("bpf"), &paths.bpf(), Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount a bpffs on {}", paths.bpf().display()))?;
    let node = Netns::open(&plan.node)?;
    match options.dataplane {
        Dataplane::Sluice => {
            progress.step("sluiced")?;
            sluiced(&node, options, paths, progress).map(Some)
        }
        Dataplane::Nft => {
            progress.step("nft masquerade")?;
            node.within(|| shell::feed("nft", &["-f", "-"], &nft(plan, options))).map(|_| None)
        }
        Dataplane::Iptables => {
            progress.step("the iptables rules of VPC CNI")?;
            node.within(|| shell::feed("iptables-restore", &[], &iptables(plan, options))).map(|_| None)
        }
        Dataplane::Kernel | Dataplane::None => Ok(None),
    }
}

fn sluiced(node: &Netns, options: &Options, paths: &Paths, progress: &Progress) -> Result<Process> {
    let binary = options.sluiced.clone().map_or_else(|| beside("sluiced", "--sluiced"), Ok)?;
    let log = paths.log("sluiced");
    let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut command = Command::new(&binary);
    command.arg("run");
    if options.manifests.is_none() {
        command.arg("--state").arg(paths.state());
    }
    command.arg("--run-dir").arg(paths.run()).arg("--bpffs").arg(paths.bpf());
    command.args(&options.sluiced_arg);
    // Only the network namespace is the node's: /sys and the bpffs stay the caller's.
    let child = node.within(|| spawn(&mut command, file))?;
    let process = Process::new("sluiced", child.id());
    let ready = wait_ready(child, paths, progress);
    ready.map_err(|e| {
        let (binary, log, tail) = (binary.display(), log.display(), tail(&log));
        anyhow!("{binary} did not come up: {e:#}\nthe end of {log}:\n{tail}")
    })?;
    process.context("sluiced is gone")
}

/// Starts a process that outlives this one: its own process group, so that Ctrl-C here is not its.
pub(crate) fn spawn(command: &mut Command, log: std::fs::File) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    let errors = log.try_clone().context("cannot share the log")?;
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors))
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}

fn wait_ready(mut child: Child, paths: &Paths, progress: &Progress) -> Result<Report> {
    let deadline = Instant::now() + START;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        let last = match report(&paths.run()) {
            Ok(report) => return Ok(report),
            Err(e) => e,
        };
        let late = Instant::now() >= deadline;
        if let Err(stop) = progress.check() {
            super::processes::stop_child(child);
            return Err(stop);
        }
        if late {
            super::processes::stop_child(child);
            return Err(last.context(format!("not ready after {} s", START.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon's start-up report, by its query socket.
pub(crate) fn report(run: &Path) -> Result<Report> {
    let mut client = Client::connect(&run.join(SOCKET), "sluice lab", Duration::from_secs(2))?;
    match client.ask(&Query::Report)? {
        Answer::Report(report) => Ok(*report),
        Answer::Refused(reason) => bail!("{reason}"),
        _ => bail!("the daemon answered another question"),
    }
}

/// A program that lies beside this one, or in PATH; `flag` is the way to name another.
///
/// # Errors
/// There is none.
pub(crate) fn beside(program: &str, flag: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let beside = own.with_file_name(program);
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|f| f.is_file()).with_context(|| {
        format!(
            "no `{program}` beside {} and none in PATH: build it (`make build`) or name it with {flag}",
            own.display()
        )
    })
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(30)..];
    if last.is_empty() { "  (empty)".into() } else { last.iter().map(|l| format!("  {l}\n")).collect() }
}

/// VPC CNI's rule for nftables: connections of pods that will be translated are marked, so that rule 1024 sends them by the
/// primary ENI, and masqueraded there.
fn nft(plan: &Topology, options: &Options) -> String {
    let nat = options.nat();
    if nat.external_snat {
        return "table ip sluice-lab { }\n".into();
    }
    let flag = match nat.randomize {
        RandomizeSnat::Prng => " fully-random",
        RandomizeSnat::HashRandom => " random",
        RandomizeSnat::None => "",
    };
    let stay: Vec<_> = nat.vpc_cidrs.iter().chain(&nat.exclude_cidrs).map(ToString::to_string).collect();
    let stay = stay.join(", ");
    let primary = &plan.enis[0].name;
    format!(
        "table ip sluice-lab {{\n\
         \x20 set untranslated {{\n    type ipv4_addr\n    flags interval\n    auto-merge\n    elements = {{ {stay} }}\n  }}\n\
         \x20 chain marks {{\n    type filter hook prerouting priority -90; policy accept;\n\
         \x20   iifname \"enia*\" ct state new fib daddr type != local ip daddr != @untranslated ct mark set ct mark or 0x80\n\
         \x20   iifname \"enia*\" meta mark set ct mark and 0x80\n  }}\n\
         \x20 chain translate {{\n    type nat hook postrouting priority srcnat; policy accept;\n\
         \x20   oifname \"{primary}\" ip daddr != @untranslated masquerade{flag}\n  }}\n}}\n"
    )
}

/// The rules of VPC CNI (`pkg/networkutils/network.go`, `iptables_connmark.go`), pods' veths named `enia+` here.
fn iptables(plan: &Topology, options: &Options) -> String {
    let nat = options.nat();
    let primary = &plan.enis[0];
    let mut rules = format!(
        "*mangle\n\
         -A PREROUTING -i {eni} -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in \
         -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i enia+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT\n",
        eni = primary.name,
    );
    if nat.external_snat {
        return rules;
    }
    let flag = match nat.randomize {
        RandomizeSnat::Prng => " --random-fully",
        RandomizeSnat::HashRandom => " --random",
        RandomizeSnat::None => "",
    };
    rules.push_str("*nat\n:AWS-SNAT-CHAIN-0 - [0:0]\n:AWS-CONNMARK-CHAIN-0 - [0:0]\n");
    for cidr in nat.vpc_cidrs.iter().chain(&nat.exclude_cidrs) {
        for (chain, comment) in [("SNAT", "AWS SNAT CHAIN"), ("CONNMARK", "AWS CONNMARK CHAIN, VPC CIDR")] {
            let _ = writeln!(
                rules,
                "-A AWS-{chain}-CHAIN-0 -d {cidr} -m comment --comment \"{comment}\" -j RETURN"
            );
        }
    }
    let _ = writeln!(
        rules,
        "-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL \
         -j SNAT --to-source {address}{flag}\n\
         -A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
         -A AWS-CONNMARK-CHAIN-0 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i enia+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
         -A PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT",
        address = primary.address,
    );
    rules
}
