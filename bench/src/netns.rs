//! Work inside a network namespace.
//!
//! A namespace belongs to a thread, and a thread that entered one should not come back: each piece of work gets a thread
//! of its own, and sockets and attachments that it makes stay where they were made.

use std::fs::File;
use std::path::PathBuf;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its namespaces.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    PathBuf::from("/var/run/netns").join(name)
}

/// Starts a thread inside the namespace.
///
/// # Errors
/// There is no such namespace, or the caller lacks `CAP_SYS_ADMIN`.
pub fn spawn<T: Send + 'static>(
    namespace: &str,
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let path = path(namespace);
    let file = File::open(&path)
        .with_context(|| format!("network namespace {} cannot be opened", path.display()))?;
    let namespace = namespace.to_owned();
    Ok(Builder::new().name(name.to_owned()).spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| {
            format!("cannot enter network namespace {namespace}: CAP_SYS_ADMIN is needed")
        })?;
        work()
    })?)
}

/// Does a piece of work inside the namespace and waits for it.
///
/// # Errors
/// As [`spawn`], or what the work itself gives.
pub fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    join(spawn(namespace, "netns", work)?)
}

/// Waits for a thread and gives what it gave.
///
/// # Errors
/// The work's own error, or that it panicked.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the bench panicked"))?
}
