//! The directory as a whole: what it says now, and what has changed since the last look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluice_policy::Change;

use super::cluster::Cluster;
use super::decode::Key;
use super::files::Files;
use super::finding::{Finding, Severity};
use super::placement::{Allocations, Placement, Slot};
use super::walk::{Found, Signature, is_manifest, walk};
use super::watch::Touched;

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: Files,
    signatures: BTreeMap<Arc<Path>, Option<Signature>>,
    cluster: Cluster,
    /// What could not be looked into at the last scan.
    unread: Vec<Finding>,
}

/// What has changed between two looks.
#[derive(Debug, Default)]
pub struct Batch {
    /// The changes, in an order in which they can be applied.
    pub changes: Vec<Change>,
    /// Files that were read for it.
    pub files: usize,
}

impl Directory {
    /// A directory that has not been looked at yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, placement: &Placement, allocations: &Allocations) -> Self {
        Self {
            root: root.into(),
            files: Files::default(),
            signatures: BTreeMap::new(),
            cluster: Cluster::new(placement, allocations),
            unread: Vec::new(),
        }
    }

    /// Looks at every file that differs from when it was read; the first time at all.
    pub fn scan(&mut self) -> Batch {
        let Found { files: found, failed } = walk(&self.root);
        let mut touched: BTreeSet<Arc<Path>> = found
            .iter()
            .filter(|(path, signature)| self.signatures.get(*path) != Some(*signature))
            .map(|(path, _)| Arc::clone(path))
            .collect();
        // What lies where nobody can look now is not known to be gone.
        let hidden = |path: &Path| failed.iter().any(|(directory, _)| path.starts_with(directory));
        touched.extend(self.files.paths().filter(|p| !found.contains_key(*p) && !hidden(p)).cloned());
        self.unread = failed
            .iter()
            .map(|(path, error)| {
                let message = format!("cannot be read: {error}; what it held before stays in force");
                Finding::at(Some(Arc::from(path.as_path())), (0, 0), Severity::Error, message)
            })
            .collect();
        self.reload(&touched)
    }

    /// Looks at what a [`Watcher`](super::Watcher) saw.
    pub fn refresh(&mut self, touched: &Touched) -> Batch {
        let Touched::Files(paths) = touched else { return self.scan() };
        let paths = paths.iter().filter(|path| is_manifest(path)).map(|path| Arc::from(path.as_path()));
        self.reload(&paths.collect())
    }

    /// Everything there is to say now: about files, and about what they come to together.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.unread.clone();
        findings.extend(self.files.findings());
        findings.extend(self.cluster.findings(&self.files));
        findings.sort();
        findings
    }

    /// Namespace and name of the pods that have places of this node, by address.
    #[must_use]
    pub fn tenants(&self) -> BTreeMap<Ipv4Addr, &(Arc<str>, Arc<str>)> {
        self.cluster.tenants()
    }

    /// Makes a place for a pod of this node, as CNI ADD does; gives what that changes.
    pub fn open(&mut self, slot: Slot) -> Batch {
        Batch { changes: self.cluster.open(slot), files: 0 }
    }

    /// Ends a place of this node; gives what that changes.
    pub fn close(&mut self, ip: Ipv4Addr) -> Batch {
        Batch { changes: self.cluster.close(ip), files: 0 }
    }

    /// The file and the line of an object that is in force.
    #[must_use]
    pub fn place(&self, key: &Key) -> Option<(Arc<Path>, usize)> {
        self.files.place(key)
    }

    /// What was chosen so far, to be given to the next [`Directory::new`].
    #[must_use]
    pub fn allocations(&self) -> Allocations {
        self.cluster.allocations()
    }

    fn reload(&mut self, paths: &BTreeSet<Arc<Path>>) -> Batch {
        for path in paths {
            // Before it is read: a write in between is seen as another change, never missed.
            match Signature::of(path) {
                Some(signature) => self.signatures.insert(Arc::clone(path), Some(signature)),
                None => self.signatures.remove(path),
            };
        }
        let edits = self.files.reload(paths);
        Batch { changes: self.cluster.apply(edits, &self.files), files: paths.len() }
    }
}
