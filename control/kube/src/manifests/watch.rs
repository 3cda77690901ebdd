//! Which files changed, as soon as they are whole.
//!
//! A manifest that is half written may be good YAML with half of its rules. So a file counts when its writer closes it
//! or it is renamed into place; one that stays open is looked at after a while all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::walk::is_manifest;

/// Changes that come within this time of each other are one.
const QUIET: Duration = Duration::from_millis(2);
/// The longest that changes are gathered for.
const GATHER: Duration = Duration::from_millis(20);
/// How long an open file may stay unread.
const OPEN: Duration = Duration::from_millis(500);

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// These files.
    Files(BTreeSet<PathBuf>),
    /// Any: events were lost, or a directory came, went or moved.
    Everything,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {}: {source} (is it a directory that can be read? fs.inotify.max_user_watches bounds how many directories)", path.display())]
pub struct WatchError {
    /// The directory.
    pub path: PathBuf,
    /// The system's reason.
    pub source: notify::Error,
}

/// Watches a directory and what is below until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    _inotify: RecommendedWatcher,
}

impl Watcher {
    /// Begins to watch; `tell` is called, in a thread of its own, for each change until it gives false.
    ///
    /// Begin before the first scan: what happens in between is told, too.
    ///
    /// # Errors
    /// The directory is not there or cannot be watched.
    pub fn start(
        root: &Path,
        tell: impl FnMut(Touched) -> bool + Send + 'static,
    ) -> Result<Self, WatchError> {
        let failed = |source| WatchError { path: root.to_owned(), source };
        let (sender, events): (Sender<notify::Result<Event>>, _) = channel();
        let mut inotify = notify::recommended_watcher(sender).map_err(failed)?;
        inotify.watch(root, RecursiveMode::Recursive).map_err(failed)?;
        std::thread::Builder::new()
            .name("sluice-manifests".into())
            .spawn(move || gather(&events, tell))
            .map_err(|error| failed(error.into()))?;
        Ok(Self { _inotify: inotify })
    }
}

/// What has been seen and not told.
#[derive(Debug, Default)]
struct Seen {
    everything: bool,
    whole: BTreeSet<PathBuf>,
    /// Files that are being written, and since when.
    open: BTreeMap<PathBuf, Instant>,
}

fn gather(events: &Receiver<notify::Result<Event>>, mut tell: impl FnMut(Touched) -> bool) {
    let mut seen = Seen::default();
    let mut since: Option<Instant> = None;
    loop {
        let wait = match since {
            Some(since) => QUIET.min(GATHER.saturating_sub(since.elapsed())),
            None => seen.next_late(),
        };
        match events.recv_timeout(wait) {
            Ok(event) => seen.take(event),
            Err(RecvTimeoutError::Timeout) => {
                seen.close_late();
                if since.is_some() {
                    since = None;
                    if !seen.told().is_none_or(&mut tell) {
                        return;
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if since.is_none() && (seen.everything || !seen.whole.is_empty()) {
            since = Some(Instant::now());
        }
    }
}

impl Seen {
    fn take(&mut self, event: notify::Result<Event>) {
        let Ok(event) = event else {
            self.everything = true;
            return;
        };
        if event.need_rescan() || event.paths.is_empty() {
            self.everything = true;
            return;
        }
        for path in event.paths {
            self.file(&event.kind, path);
        }
    }

    fn file(&mut self, kind: &EventKind, path: PathBuf) {
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) if is_manifest(&path) => self.close(path),
            EventKind::Access(_) => {}
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any)
            | EventKind::Create(CreateKind::File)
                if is_manifest(&path) =>
            {
                // A link or a hard link is whole at once, and is never closed.
                let linked = matches!(kind, EventKind::Create(_)) && is_link(&path);
                if linked {
                    self.close(path);
                } else {
                    self.open.entry(path).or_insert_with(Instant::now);
                }
            }
            EventKind::Modify(ModifyKind::Data(_)) => {}
            EventKind::Remove(RemoveKind::File) | EventKind::Modify(_) if is_manifest(&path) => {
                self.close(path)
            }
            EventKind::Create(CreateKind::File) | EventKind::Remove(RemoveKind::File)
                if !is_hidden(&path) => {}
            // Directories, and the hidden link that a mounted ConfigMap is switched by.
            _ => self.everything = true,
        }
    }

    fn close(&mut self, path: PathBuf) {
        self.open.remove(&path);
        self.whole.insert(path);
    }

    fn next_late(&self) -> Duration {
        let first = self.open.values().min();
        first.map_or(Duration::from_secs(3600), |since| OPEN.saturating_sub(since.elapsed()))
    }

    fn close_late(&mut self) {
        let late: Vec<_> = self
            .open
            .iter()
            .filter(|(_, since)| since.elapsed() >= OPEN)
            .map(|(path, _)| path.clone())
            .collect();
        for path in late {
            self.close(path);
        }
    }

    fn told(&mut self) -> Option<Touched> {
        let whole = std::mem::take(&mut self.whole);
        if std::mem::take(&mut self.everything) {
            return Some(Touched::Everything);
        }
        (!whole.is_empty()).then_some(Touched::Files(whole))
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_link(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink() || m.nlink() > 1)
}
