//! What is wrong with objects that are good manifests each on its own: kept by what it is about, so that it goes with it.

use std::collections::BTreeMap;

use super::decode::Key;
use super::files::Files;
use super::finding::{Finding, Severity};
use super::pods::{PodId, full_name};

/// Problems, by what they are about.
#[derive(Debug, Default)]
pub(super) struct Problems {
    manifests: BTreeMap<Key, Vec<Problem>>,
    pods: BTreeMap<PodId, Problem>,
}

#[derive(Debug)]
struct Problem {
    /// The manifest whose place is shown.
    manifest: Key,
    severity: Severity,
    message: String,
}

impl Problems {
    /// Forgets what was wrong with a manifest.
    pub(super) fn clear(&mut self, manifest: &Key) {
        self.manifests.remove(manifest);
    }

    /// Says what is wrong with a manifest.
    pub(super) fn add(&mut self, manifest: &Key, severity: Severity, message: &str) {
        let problem =
            Problem { manifest: manifest.clone(), severity, message: format!("{manifest} {message}") };
        self.manifests.entry(manifest.clone()).or_default().push(problem);
    }

    /// Forgets what was wrong with the place of a pod.
    pub(super) fn clear_pod(&mut self, pod: &PodId) {
        self.pods.remove(pod);
    }

    /// Says what is wrong with the place of a pod that a manifest has made.
    pub(super) fn add_pod(&mut self, pod: &PodId, manifest: &Key, severity: Severity, message: &str) {
        let message = format!("pod {} {message}", full_name(pod));
        self.pods.insert(pod.clone(), Problem { manifest: manifest.clone(), severity, message });
    }

    /// All of them, with the places of their manifests.
    pub(super) fn findings(&self, files: &Files) -> Vec<Finding> {
        let all = self.manifests.values().flatten().chain(self.pods.values());
        all.map(|problem| {
            let (file, line) = files.place(&problem.manifest).unzip();
            Finding::at(file, (line.unwrap_or(0), 0), problem.severity, &*problem.message)
        })
        .collect()
    }
}
