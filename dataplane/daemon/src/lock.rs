//! One daemon per run directory: a lock on a file that names its holder.
//!
//! The lock is the kernel's (`flock`), so it ends with the process however that ends, and a stale file refuses nobody.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Why the run directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon holds it.
    #[error(
        "another sluiced (pid {pid}) runs with {}: stop it, or give this one a --run-dir of its own \
         in a network namespace of its own", dir.display()
    )]
    Held {
        /// The process that holds it, as it wrote it down.
        pid: String,
        /// The run directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The run directory, held by this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// One that was killed holds its lock until the last of its threads is gone, which whoever restarts it does not wait for.
const DYING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl RunDir {
    /// Creates the directory (0700) where it is not there, and locks it.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that holds it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io(path))?;
        let file_path = path.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file_path)
            .map_err(io(&file_path))?;
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(io(&file_path))?;
        let mut lock = lock(file).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => {
                let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
                LockError::Held { pid: pid.to_owned(), dir: path.to_owned() }
            }
            other => LockError::Io { path: file_path.clone(), source: other.into() },
        })?;
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(io(&file_path))?;
        writeln!(lock, "{}", std::process::id()).map_err(io(&file_path))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A file of the directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    let deadline = Instant::now() + DYING;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((held, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = held,
            done => return done.map_err(|(_, errno)| errno),
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused_with_the_firsts_pid() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let held = RunDir::take(&run).unwrap();
        let refused = RunDir::take(&run).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        RunDir::take(&run).unwrap();
        assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
