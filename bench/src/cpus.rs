//! Which CPU runs what.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// CPUs that a task may run on, ascending; 0 is the calling thread.
///
/// # Errors
/// There is no such task.
pub fn allowed(task: u32) -> nix::Result<Vec<usize>> {
    let set = sched_getaffinity(pid(task))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Keeps a task on these CPUs; 0 is the calling thread.
///
/// # Errors
/// There is no such task, none of these CPUs is there, or `CAP_SYS_NICE` is missing for another's task.
pub fn keep(task: u32, cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    sched_setaffinity(pid(task), &set)
}

/// CPUs on which a process has pinned threads of its own.
#[must_use]
pub fn pinned_by(process: u32) -> Vec<usize> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let tasks = tasks.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mut cpus: Vec<usize> =
        tasks.filter_map(|task| allowed(task).ok()).filter(|cpus| cpus.len() == 1).flatten().collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

fn pid(task: u32) -> Pid {
    Pid::from_raw(task.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_kept_on_a_cpu_is_found_there() {
        std::thread::spawn(|| {
            let all = allowed(0).unwrap();
            keep(0, &all[..1]).unwrap();
            assert_eq!(allowed(0).unwrap(), all[..1]);
            assert!(pinned_by(std::process::id()).contains(&all[0]));
        })
        .join()
        .unwrap();
    }
}
