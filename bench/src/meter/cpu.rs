//! CPU time of every task that may carry a packet, from `/proc/PID/task/TID/schedstat`.
//!
//! A packet's cost hides in many places: in the generator's own system call (the node's softirq work runs there), in
//! `ksoftirqd`, in `napi/*` threads, in kworkers, in the daemon. So every task of the machine is read before and after,
//! and those that can be part of a path are added up. `schedstat` counts nanoseconds of actual running and is brought up
//! to date at least every tick (1 to 10 ms), which is why windows are some hundred milliseconds long. What it cannot see is
//! softirq work on top of an idle CPU; `/proc/stat` (by ticks, of the whole machine, whoever caused it) is the cross-check.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Running time of every task so far.
#[derive(Debug, Clone)]
pub struct Snapshot {
    tasks: HashMap<(u32, u32), Task>,
    busy: Duration,
}

#[derive(Debug, Clone)]
struct Task {
    name: String,
    ran: u64,
}

/// Who spent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The generator's thread, with what of the node runs inside its system calls.
    Generator,
    /// The user-space dataplane's threads.
    Dataplane,
    /// `ksoftirqd/N`.
    Softirq,
    /// `napi/*` threads.
    Napi,
    /// Kernel workers.
    Worker,
    /// Everything else: not part of a path, but a measure of how quiet the machine was.
    Elsewhere,
}

/// Whose tasks are whose.
#[derive(Debug, Clone, Default)]
pub struct Cast {
    /// The generator's thread.
    pub generator: u32,
    /// The daemon's processes.
    pub dataplane: Vec<u32>,
}

/// CPU time spent between two snapshots, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Spent {
    /// See [`Share::Generator`].
    pub generator: u64,
    /// See [`Share::Dataplane`].
    pub dataplane: u64,
    /// See [`Share::Softirq`].
    pub softirq: u64,
    /// See [`Share::Napi`].
    pub napi: u64,
    /// See [`Share::Worker`].
    pub worker: u64,
    /// See [`Share::Elsewhere`].
    pub elsewhere: u64,
    /// Busy time of the whole machine by ticks (`/proc/stat`): the cross-check.
    pub machine: u64,
}

impl Spent {
    /// Everything that can be part of a packet's path through the node, the generator's own cost still inside.
    #[must_use]
    pub fn path(&self) -> u64 {
        self.generator + self.dataplane + self.softirq + self.napi + self.worker
    }
}

impl Snapshot {
    /// Reads every task. Takes some milliseconds.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn take() -> Result<Self> {
        let mut tasks = HashMap::new();
        for process in numbers("/proc").context("cannot list /proc")? {
            // A task that ends while it is read is no error: it is simply not there any more.
            for thread in numbers(&format!("/proc/{process}/task")).unwrap_or_default() {
                let base = format!("/proc/{process}/task/{thread}");
                let Ok(line) = fs::read_to_string(format!("{base}/schedstat")) else { continue };
                let Some(ran) = line.split(' ').next().and_then(|n| n.parse().ok()) else { continue };
                let name = fs::read_to_string(format!("{base}/comm")).unwrap_or_default().trim().to_owned();
                tasks.insert((process, thread), Task { name, ran });
            }
        }
        Ok(Self { tasks, busy: busy_time()? })
    }

    /// What was spent since `earlier`. A task that did not exist then counts from its start; one that has ended since is
    /// lost, so generators and daemons must outlive the window.
    #[must_use]
    pub fn since(&self, earlier: &Self, cast: &Cast) -> Spent {
        let mut spent =
            Spent { machine: self.busy.saturating_sub(earlier.busy).as_nanos() as u64, ..Spent::default() };
        for (id, task) in &self.tasks {
            let ran = task.ran.saturating_sub(earlier.tasks.get(id).map_or(0, |t| t.ran));
            let sum = match cast.share(*id, &task.name) {
                Share::Generator => &mut spent.generator,
                Share::Dataplane => &mut spent.dataplane,
                Share::Softirq => &mut spent.softirq,
                Share::Napi => &mut spent.napi,
                Share::Worker => &mut spent.worker,
                Share::Elsewhere => &mut spent.elsewhere,
            };
            *sum += ran;
        }
        spent
    }
}

impl Cast {
    fn share(&self, (process, thread): (u32, u32), name: &str) -> Share {
        if thread == self.generator {
            Share::Generator
        } else if self.dataplane.contains(&process) {
            Share::Dataplane
        } else if name.starts_with("ksoftirqd/") {
            Share::Softirq
        } else if name.starts_with("napi/") {
            Share::Napi
        } else if name.starts_with("kworker/") {
            Share::Worker
        } else {
            Share::Elsewhere
        }
    }
}

/// CPU time of the calling thread so far, exact.
#[must_use]
pub fn of_this_thread() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    // CLOCK_THREAD_CPUTIME_ID always exists on Linux; zero would show as an impossible result, not as a wrong one.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into)
}

fn busy_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq; what a hypervisor stole is nobody's work here.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    // USER_HZ is 100 on every architecture that Linux runs on today.
    Ok(Duration::from_millis(busy * 10))
}

fn numbers(directory: &str) -> std::io::Result<Vec<u32>> {
    Ok(fs::read_dir(directory)?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_thread_is_found_as_the_generators() {
        let cast = Cast { generator: crate::sys::thread_id(), ..Cast::default() };
        let before = Snapshot::take().unwrap();
        let start = of_this_thread();
        let mut sum = 0_u64;
        while of_this_thread() - start < Duration::from_millis(100) {
            sum = std::hint::black_box(sum + 1);
        }
        let spent = Snapshot::take().unwrap().since(&before, &cast);
        assert!(spent.generator >= 80_000_000, "{spent:?}");
        assert!(spent.path() >= spent.generator);
    }

    #[test]
    fn names_tell_who_is_who() {
        let cast = Cast { generator: 7, dataplane: vec![9] };
        let share = |id, name: &str| cast.share(id, name);
        assert_eq!(share((3, 7), "generator"), Share::Generator);
        assert_eq!(share((9, 11), "worker-0"), Share::Dataplane);
        assert_eq!(share((14, 14), "ksoftirqd/0"), Share::Softirq);
        assert_eq!(share((20, 20), "napi/eni0-8194"), Share::Napi);
        assert_eq!(share((20, 20), "kworker/0:1-events"), Share::Worker);
        assert_eq!(share((20, 20), "bash"), Share::Elsewhere);
    }
}
