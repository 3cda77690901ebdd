//! Named network namespaces, and work inside them.
//!
//! `ip netns exec` remounts /sys and thereby hides a bpffs; here only the network namespace changes. It changes for a
//! thread of its own, so the rest of the process never leaves its namespace; a child started from that thread inherits it.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps named namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace that iproute2 knows by name.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Opens a namespace.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = path(name);
        let file = File::open(&path).with_context(|| format!("no network namespace `{name}`"))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// Runs `work` inside, on a thread that ends with it.
    ///
    /// # Errors
    /// The namespace cannot be entered (root is needed), or `work` failed.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().and_then(|()| work()));
            thread.join().unwrap_or_else(|_| Err(anyhow!("work in the namespace `{}` panicked", self.name)))
        })
    }

    /// Moves the calling thread inside for good.
    ///
    /// # Errors
    /// The namespace cannot be entered: root is needed.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace `{}`: root is needed", self.name))
    }

    /// Processes that live inside, by the namespace of their main thread.
    pub(crate) fn processes(&self) -> Vec<i32> {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(own) = self.file.metadata() else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|m| m.ino() == own.ino() && m.dev() == own.dev())
            })
            .collect()
    }
}

/// Names of all namespaces, sorted.
pub(crate) fn names() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}
