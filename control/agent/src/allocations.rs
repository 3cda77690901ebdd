//! What was given out, kept over a restart: a pod whose address moved would be another pod for everybody who knows it.

use std::io;
use std::path::{Path, PathBuf};

use sluice_kube::manifests::Allocations;

/// The file of allocations.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    kept: Allocations,
    failed: bool,
}

impl Store {
    /// Reads what was kept; a file that cannot be read is as none, and said so.
    pub(crate) fn open(path: PathBuf) -> Self {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the allocations cannot be read: addresses are given out anew");
                None
            }
        };
        let kept = text.and_then(|text| match serde_json::from_str(&text) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the allocations do not parse: addresses are given out anew");
                None
            }
        });
        Self { path, kept: kept.unwrap_or_default(), failed: false }
    }

    /// What was kept.
    pub(crate) fn kept(&self) -> &Allocations {
        &self.kept
    }

    /// Keeps what is given out now.
    pub(crate) fn keep(&mut self, now: Allocations) {
        if now == self.kept {
            return;
        }
        match write(&self.path, &now) {
            Ok(()) => {
                self.kept = now;
                self.failed = false;
            }
            Err(error) if !self.failed => {
                tracing::warn!(
                    file = %self.path.display(), %error,
                    "the allocations cannot be kept: after a restart addresses may be others; name a file with --allocations"
                );
                self.failed = true;
            }
            Err(_) => {}
        }
    }
}

/// Writes JSON beside the file and puts it in its place, so that nobody ever reads half of it.
pub(crate) fn write(path: &Path, content: &impl serde::Serialize) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut text = serde_json::to_vec_pretty(content)?;
    text.push(b'\n');
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}
