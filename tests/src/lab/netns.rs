//! Work inside a network namespace, on a thread that ends with it, so that no test ever leaves its own.

use std::fs::File;

use nix::sched::{CloneFlags, setns};

/// Runs `work` in the named namespace and gives what it gave.
///
/// # Panics
/// There is no such namespace, or the work panics: its message is passed on.
pub fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into a namespace for good.
pub(super) fn enter(namespace: &str) {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("cannot enter {namespace}: {e}"));
}
