//! Ending what a lab runs: gently first, by force when that does not help, and never a process that is not the lab's.

use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::record::Process;
use crate::netns::Netns;

/// How long a process has to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Ends a process of the record.
pub(crate) fn stop(process: &Process) {
    if !process.is_alive() {
        return;
    }
    signal(process.pid, Signal::SIGTERM);
    if !gone_within(GRACE, || !process.is_alive()) {
        signal(process.pid, Signal::SIGKILL);
        gone_within(GRACE, || !process.is_alive());
    }
}

/// Ends a child of this process and reaps it.
pub(crate) fn stop_child(mut child: Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        signal(pid, Signal::SIGTERM);
    }
    if !gone_within(GRACE, || matches!(child.try_wait(), Ok(Some(_)) | Err(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Ends everything that lives in a namespace of the lab. This process is never among them: it only visits with threads.
pub(crate) fn stop_all_in(netns: &Netns) -> usize {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let inhabitants = || netns.processes().into_iter().filter(|pid| *pid != own).collect::<Vec<_>>();
    let first = inhabitants();
    if first.is_empty() {
        return 0;
    }
    first.iter().for_each(|pid| signal(*pid, Signal::SIGTERM));
    if !gone_within(GRACE, || inhabitants().is_empty()) {
        inhabitants().iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        gone_within(GRACE, || inhabitants().is_empty());
    }
    first.len()
}

fn signal(pid: i32, signal: Signal) {
    // The only failure for root is that it is gone already.
    let _ = kill(Pid::from_raw(pid), signal);
}

fn gone_within(limit: Duration, mut gone: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if gone() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
