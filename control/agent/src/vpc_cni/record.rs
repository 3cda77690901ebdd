//! What was taken over, written down before anything goes: for the next run after a kill, and for the way back.
//!
//! It lies on a file system that a reboot empties, as ipamd's does: a reboot ends every pod that it tells of.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_ec2::checkpoint::{FileStorage, Storage as _};

use super::host::Rule;
use super::ipam::{Allocation, replace};

/// Where the record is kept.
pub(crate) const RECORD: &str = "/run/sluice/from-vpc-cni.json";

const VERSION: &str = "sluice-from-vpc-cni/1";

/// What was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: String,
    /// The leases.
    pub(crate) allocations: Vec<Allocation>,
    /// The rules that went with them.
    pub(crate) rules: Vec<Rule>,
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read, or written.
    #[error("the record of what was taken over, {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("the record of what was taken over, {}, makes no sense: {why}; move it away to go on without it", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Record {
    /// A record of these.
    pub(crate) fn new(allocations: Vec<Allocation>, rules: Vec<Rule>) -> Self {
        Self { version: VERSION.to_owned(), allocations, rules }
    }

    /// Reads it; nothing where there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, RecordError> {
        let read = FileStorage::new(path).read();
        let Some(text) = read.map_err(|source| RecordError::File { path: path.to_owned(), source })? else {
            return Ok(None);
        };
        let corrupt = |why| RecordError::Corrupt { path: path.to_owned(), why };
        let record: Self = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
        if record.version != VERSION {
            return Err(corrupt(format!("its version is {:?}; {VERSION:?} can be read", record.version)));
        }
        Ok(Some(record))
    }

    /// Writes it, so that neither a kill nor a loss of power leaves half of it.
    pub(crate) fn write(&self, path: &Path) -> Result<(), RecordError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let written = text.and_then(|text| replace(path, &text));
        written.map_err(|source| RecordError::File { path: path.to_owned(), source })
    }
}
