//! Taking a lab down: whatever is left of it, in whatever state an earlier `up` was killed.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, umount2};

use super::processes;
use super::record::{Paths, Process, Record};
use super::server::SERVER_ARGS;
use crate::netns::{self, Netns};
use crate::shell;

/// What was found and removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Processes that were ended.
    pub(crate) processes: usize,
    /// Namespaces that were deleted.
    pub(crate) namespaces: usize,
    /// Mounts that were taken away.
    pub(crate) mounts: usize,
    /// The directory was there.
    pub(crate) directory: bool,
}

impl Removed {
    /// True when there was nothing.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes everything that belongs to a lab: its processes, all processes in its namespaces, the namespaces with every
/// link in them, its mounts, its directory.
///
/// # Errors
/// Something could not be removed; what is named in the message is still there.
pub(crate) fn remove(name: &str) -> Result<Removed> {
    let paths = Paths::new(name);
    let mut removed = Removed::default();
    // A record that cannot be read is that of a killed `up`: the namespaces tell the rest.
    if let Ok(record) = Record::read(&paths) {
        // The agent first, or it would complain of a daemon that is gone; then the daemon: it detaches while everything is
        // still there.
        let mut processes: Vec<_> = record.processes.iter().collect();
        processes.sort_by_key(|p| match p.name.as_str() {
            "agent" => 0,
            "sluiced" => 1,
            _ => 2,
        });
        for process in processes {
            removed.processes += usize::from(process.is_alive());
            processes::stop(process);
        }
    }
    for process in unrecorded_servers(name) {
        removed.processes += 1;
        processes::stop(&process);
    }
    let mut failures = Vec::new();
    for namespace in namespaces(name) {
        if let Ok(netns) = Netns::open(&namespace) {
            removed.processes += processes::stop_all_in(&netns);
        }
        match shell::run("ip", &["netns", "del", &namespace]) {
            Ok(_) => removed.namespaces += 1,
            Err(e) => failures.push(format!("{e:#}")),
        }
    }
    while is_mounted(&paths.bpf()) {
        match umount2(&paths.bpf(), MntFlags::MNT_DETACH) {
            Ok(()) => removed.mounts += 1,
            Err(e) => {
                failures.push(format!("cannot unmount {}: {e}", paths.bpf().display()));
                break;
            }
        }
    }
    let dir = paths.dir();
    if failures.is_empty() && dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        removed.directory = true;
    }
    if failures.is_empty() {
        Ok(removed)
    } else {
        bail!("the lab `{name}` is not wholly gone:\n  {}", failures.join("\n  "))
    }
}

/// Servers of the lab that no record names: `up` was killed between starting one and writing it down. The daemon needs no
/// such search, it lives in the node's namespace.
fn unrecorded_servers(lab: &str) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut args = line.split(|byte| *byte == 0).skip(1);
        let expected = [SERVER_ARGS[0], SERVER_ARGS[1], lab];
        expected.iter().all(|word| args.next() == Some(word.as_bytes()))
    })
    .filter_map(|pid| Process::new("server", pid))
    .collect()
}

/// The namespaces on this machine that carry the lab's name and a member's.
pub(crate) fn namespaces(lab: &str) -> Vec<String> {
    netns::names().into_iter().filter(|name| is_member(lab, name)).collect()
}

fn is_member(lab: &str, namespace: &str) -> bool {
    let Some(member) = namespace.strip_prefix(lab).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    match member.split_once('-') {
        None => matches!(member, "node" | "vpc" | "imds"),
        Some(("host", host)) => matches!(host, "v" | "w" | "x" | "y"),
        Some(("pod", pod)) => {
            (pod.len() == 1 && pod.bytes().all(|b| b.is_ascii_lowercase()))
                || (2..=3).contains(&pod.len()) && pod.bytes().all(|b| b.is_ascii_digit())
        }
        Some(_) => false,
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(1)).any(|at| Path::new(at) == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_never_takes_the_namespaces_of_one_whose_name_it_begins() {
        for mine in
            ["sluice-node", "sluice-vpc", "sluice-pod-a", "sluice-pod-27", "sluice-host-x", "sluice-imds"]
        {
            assert!(is_member("sluice", mine), "{mine}");
        }
        for other in [
            "sluice-a-node",
            "sluice-pod-node",
            "sluice-pod-a-vpc",
            "sluice",
            "sluicer-node",
            "sluice-host-node",
        ] {
            assert!(!is_member("sluice", other), "{other}");
        }
    }
}
