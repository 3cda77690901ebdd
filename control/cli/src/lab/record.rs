//! What a lab leaves on disk, so that later commands, and a `down` after a kill -9, know what there is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::topology::Topology;

/// Where labs keep their directories.
const ROOT: &str = "/run/sluice-lab";

/// The paths of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    name: String,
}

impl Paths {
    /// The paths of the lab of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// The lab's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        PathBuf::from(ROOT).join(&self.name)
    }

    /// The record.
    pub(crate) fn record(&self) -> PathBuf {
        self.dir().join("lab.json")
    }

    /// The daemon's state.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir().join("state.toml")
    }

    /// What the agent is told of the node, where there is one.
    pub(crate) fn inventory(&self) -> PathBuf {
        self.dir().join("inventory.toml")
    }

    /// The daemon's run directory, with its sockets.
    pub(crate) fn run(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Where the agent answers the CNI plugin.
    pub(crate) fn cni_socket(&self) -> PathBuf {
        self.dir().join("cni/agent.sock")
    }

    /// Where the agent puts the CNI configuration.
    pub(crate) fn net_d(&self) -> PathBuf {
        self.dir().join("net.d")
    }

    /// The lab's bpffs.
    pub(crate) fn bpf(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// The log of a process of the lab.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.dir().join(format!("{process}.log"))
    }

    /// The pid file of a process of the lab.
    pub(crate) fn pid(&self, process: &str) -> PathBuf {
        self.dir().join(format!("{process}.pid"))
    }

    /// Creates the directory and what is in it, for root only.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn create(&self) -> Result<()> {
        for dir in [self.dir(), self.run(), self.bpf()] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Takes the lab's lock: one `up` or `down` at a time.
    ///
    /// # Errors
    /// Another one holds it, or the file system refuses.
    pub(crate) fn lock(&self) -> Result<Lock> {
        std::fs::create_dir_all(ROOT).with_context(|| format!("cannot create {ROOT}: root is needed"))?;
        let path = PathBuf::from(ROOT).join(format!("{}.lock", self.name));
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => held,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    bail!("another `sluice lab up` or `down` works on the lab `{}` right now", self.name)
                }
                Err((_, e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
            };
            // A holder removes the file before it lets go: what was opened before that locks nobody out.
            let current = std::fs::metadata(&path).map(|m| m.ino()).ok();
            if current == held.metadata().map(|m| m.ino()).ok() {
                return Ok(Lock { path, _held: held });
            }
        }
    }
}

/// The lab's lock; its file goes with it.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only root and only this process writes there; a file that stays is empty and harmless.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A process of the lab, told from a later one of the same number by when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is: `server`, `sluiced`, `agent`.
    pub name: String,
    /// Its id.
    pub pid: i32,
    /// Clock ticks after boot when it started (field 22 of /proc/PID/stat).
    pub started: u64,
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn new(name: &str, pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { name: name.to_owned(), pid, started: started(pid)? })
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a living process started, by /proc.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything; the state is the first after it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The record of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What is laid out.
    pub topology: Topology,
    /// What was asked for.
    pub options: Options,
    /// The processes that were started.
    pub processes: Vec<Process>,
    /// False while `up` is at work, or after it was killed.
    pub complete: bool,
}

impl Record {
    /// Reads a lab's record.
    ///
    /// # Errors
    /// There is none, or it is of another version of this program.
    pub(crate) fn read(paths: &Paths) -> Result<Self> {
        let path = paths.record();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Writes it, whole or not at all, and a pid file for each process.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn write(&self, paths: &Paths) -> Result<()> {
        let path = paths.record();
        let next = path.with_extension("json.next");
        std::fs::write(&next, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&next, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        for process in &self.processes {
            let path = paths.pid(&process.name);
            std::fs::write(&path, format!("{}\n", process.pid))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether any of its processes runs: the lab is in use.
    pub(crate) fn is_live(&self) -> bool {
        self.processes.iter().any(Process::is_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = Process::new("test", std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Process::new("child", child.id());
        child.wait().unwrap();
        assert!(gone.is_none_or(|p| !p.is_alive()));
    }
}
