//! Which files a directory has: manifests in it and below, hidden names left out (a mounted `ConfigMap` keeps its old
//! versions under them).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How deep directories may lie, links to directories included: a bound on loops.
const DEPTH: usize = 16;

/// What tells whether a file has changed without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Signature {
    /// Of a file as it is now; none when it is not there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
    }
}

/// Whether a file's name is a manifest's.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    !hidden && ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// What a walk has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Every manifest.
    pub files: BTreeMap<Arc<Path>, Option<Signature>>,
    /// The directories that could not be read.
    pub failed: Vec<(PathBuf, io::Error)>,
}

/// Every manifest, and the directories that could not be read.
pub(super) fn walk(root: &Path) -> Found {
    let mut found = Found::default();
    visit(root, 0, &mut found);
    found
}

fn visit(directory: &Path, depth: usize, found: &mut Found) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return found.failed.push((directory.to_owned(), error)),
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return found.failed.push((directory.to_owned(), error)),
        };
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if path.is_dir() {
            if depth < DEPTH {
                visit(&path, depth + 1, found);
            } else {
                found
                    .failed
                    .push((path, io::Error::other(format!("lies more than {DEPTH} directories deep"))));
            }
        } else if is_manifest(&path) {
            let signature = Signature::of(&path);
            found.files.insert(path.into(), signature);
        }
    }
}
