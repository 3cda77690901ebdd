//! What each file holds, and whose word counts where two say the same.
//!
//! A file that turns malformed must not take its objects down with it: a policy that vanishes for a typing error would
//! open what it closed. So an object leaves only when its file says so in good form. Where a broken document tells which
//! object it was, that one stays as it was; where it does not, everything stays that the file held and holds no more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;

use sluice_policy::{ContainerPort, LabelPool, Pool};

use super::decode::{self, Item, Key, Outcome};
use super::finding::{Finding, Severity};
use super::source::Source;
use super::text::{self, Position};

/// Bytes that a file may have.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// An object that is another one than before; without a source it is gone.
#[derive(Debug)]
pub(super) struct Edit {
    pub key: Key,
    pub before: Option<Arc<Source>>,
    pub source: Option<Arc<Source>>,
}

/// All files of a directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<Arc<Path>, File>,
    /// The file that speaks of an object; of several, the first in path order, whose word counts.
    claims: HashMap<Key, Arc<Path>>,
    /// Objects of which more than one file speaks, with all of them.
    disputed: BTreeMap<Key, BTreeSet<Arc<Path>>>,
    shared: Shared,
}

#[derive(Debug, Default)]
struct File {
    items: BTreeMap<Key, Held>,
    findings: Vec<Finding>,
}

#[derive(Debug, Clone)]
struct Held {
    line: usize,
    source: Arc<Source>,
    /// Hash of the text of its document; 0 where it is not known, or there was something to say about the document.
    hash: u64,
}

impl Files {
    /// The files that are known, in path order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// Reads files again, and gives the objects that are others now.
    pub(super) fn reload(&mut self, paths: &BTreeSet<Arc<Path>>) -> Vec<Edit> {
        let mut before: BTreeMap<Key, Option<Arc<Source>>> = BTreeMap::new();
        for path in paths {
            let text = read(path);
            let old = self.files.remove(path);
            let new = match text {
                Ok(text) => Some(File::parse(path, &text, old.as_ref(), &mut self.shared)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(File::unread(path, &error, old.as_ref())),
            };
            let keys = differing(old.as_ref(), new.as_ref());
            if let Some(old) = old {
                self.files.insert(Arc::clone(path), old);
            }
            for key in &keys {
                before.entry(key.clone()).or_insert_with(|| self.source(key).cloned());
            }
            match new {
                Some(new) => self.files.insert(Arc::clone(path), new),
                None => self.files.remove(path),
            };
            keys.into_iter().for_each(|key| self.claim(path, key));
        }
        let edits = before.into_iter().map(|(key, before)| (self.source(&key).cloned(), key, before));
        edits
            .filter(|(now, _, before)| match (now, before) {
                (Some(now), Some(before)) => !Arc::ptr_eq(now, before) && now != before,
                (now, before) => now.is_some() != before.is_some(),
            })
            .map(|(source, key, before)| Edit { key, before, source })
            .collect()
    }

    fn claim(&mut self, path: &Arc<Path>, key: Key) {
        let held = self.files.get(path).is_some_and(|file| file.items.contains_key(&key));
        let known = self.claims.get(&key);
        let mut claims = self.disputed.remove(&key).unwrap_or_else(|| known.into_iter().cloned().collect());
        if held {
            claims.insert(Arc::clone(path));
        } else {
            claims.remove(path);
        }
        match claims.first() {
            Some(first) if known != Some(first) => {
                self.claims.insert(key.clone(), Arc::clone(first));
            }
            Some(_) => {}
            None => {
                self.claims.remove(&key);
            }
        }
        if claims.len() > 1 {
            self.disputed.insert(key, claims);
        }
    }

    /// What counts for an object.
    pub(super) fn source(&self, key: &Key) -> Option<&Arc<Source>> {
        self.held(key).map(|(_, held)| &held.source)
    }

    fn held(&self, key: &Key) -> Option<(&Arc<Path>, &Held)> {
        let path = self.claims.get(key)?;
        Some((path, self.files.get(path)?.items.get(key)?))
    }

    /// The file and line of an object.
    pub(super) fn place(&self, key: &Key) -> Option<(Arc<Path>, usize)> {
        self.held(key).map(|(path, held)| (Arc::clone(path), held.line))
    }

    /// Everything there is to say about the files.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = self.files.values().flat_map(|f| f.findings.iter().cloned()).collect();
        for (key, paths) in &self.disputed {
            let mut places = paths.iter().filter_map(|path| {
                let line = self.files.get(path)?.items.get(key)?.line;
                Some((path, line))
            });
            let Some((first, line)) = places.next() else { continue };
            let message = format!("{key} is also in {}:{line}, which stays in force", first.display());
            findings.extend(places.map(|(path, line)| {
                Finding::at(Some(Arc::clone(path)), (line, 0), Severity::Error, &*message)
            }));
        }
        findings
    }
}

/// The objects of documents, in the order of the hashes of their texts.
struct Documents<'a>(Vec<(&'a Key, &'a Held)>);

impl<'a> Documents<'a> {
    /// Those that need not be parsed again: of a file with a thousand pods, all but the one that changes.
    fn new(old: Option<&'a File>) -> Self {
        let items = old.into_iter().flat_map(|file| &file.items);
        let mut items: Vec<_> = items.filter(|(_, held)| held.hash != 0).collect();
        items.sort_unstable_by_key(|(_, held)| held.hash);
        Self(items)
    }

    /// The objects of a document; none, if it is not known.
    fn of(&self, hash: u64) -> &[(&'a Key, &'a Held)] {
        let start = self.0.partition_point(|(_, held)| held.hash < hash);
        let known = &self.0[start..];
        &known[..known.partition_point(|(_, held)| held.hash == hash)]
    }
}

/// What the objects of all files have in common is kept once.
#[derive(Debug)]
struct Shared {
    hashing: RandomState,
    labels: LabelPool,
    ports: Pool<[ContainerPort]>,
}

impl Default for Shared {
    fn default() -> Self {
        // They go on to the compiler, which has pools of its own.
        Self { hashing: RandomState::new(), labels: LabelPool::new(2), ports: Pool::new(2) }
    }
}

impl Shared {
    fn outcome(&mut self, mut outcome: Outcome) -> Outcome {
        if let Outcome::Good(item) = &mut outcome {
            self.share(item);
        }
        outcome
    }

    fn share(&mut self, item: &mut Item) {
        let key = &mut item.key;
        key.namespace = self.labels.text(&key.namespace);
        let Source::Pods(pods) = &mut item.source else { return };
        let pod = Arc::make_mut(&mut pods.template.pod);
        pod.namespace = Arc::clone(&key.namespace);
        if pod.name == key.name {
            pod.name = Arc::clone(&key.name);
        }
        pod.labels = self.labels.labels(&pod.labels);
        pod.node = pod.node.as_ref().map(|node| self.labels.text(node));
        pod.ports = self.ports.keep(&pod.ports);
        if pod.uid.is_empty() {
            pod.uid = self.labels.text(&pod.uid);
        }
    }
}

/// The objects that are not the same memory in both: whatever else a file holds, neither its word nor its claim changes.
fn differing(old: Option<&File>, new: Option<&File>) -> Vec<Key> {
    let source = |file: Option<&File>, key: &Key| Some(Arc::as_ptr(&file?.items.get(key)?.source));
    let keys = |file: Option<&File>, other: Option<&File>| -> Vec<Key> {
        let all = file.into_iter().flat_map(|file| file.items.keys());
        all.filter(|key| source(file, key) != source(other, key)).cloned().collect()
    };
    let mut keys = [keys(old, new), keys(new, old)].concat();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// What of a file is broken.
#[derive(Debug, Default)]
struct Broken {
    /// The objects that could be told.
    keys: BTreeSet<Key>,
    /// There is something of which it could not be told what it was.
    unknown: bool,
}

fn read(path: &Path) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE {
        let message = format!("{length} bytes are more than the {MAX_FILE} that are read: split the file");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    std::fs::read_to_string(path)
}

impl File {
    fn parse(path: &Arc<Path>, text: &str, old: Option<&Self>, shared: &mut Shared) -> Self {
        let mut file = Self::default();
        let known = Documents::new(old);
        let mut broken = Broken::default();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            for outcome in text::json(text).into_iter().flat_map(decode::json) {
                file.take(path, shared.outcome(outcome), 0, old, &mut broken);
            }
        } else {
            for document in text::documents(text) {
                let hash = shared.hashing.hash_one(document.text());
                if file.same(hash, document.line, &known) {
                    continue;
                }
                let said = file.findings.len();
                let mut keys = Vec::new();
                for outcome in decode::yaml(&document) {
                    let outcome = shared.outcome(outcome);
                    if let Outcome::Good(item) = &outcome {
                        keys.push(item.key.clone());
                    }
                    file.take(path, outcome, hash, old, &mut broken);
                }
                // What there is to say must be said again: such a document is always parsed.
                for key in keys.iter().filter(|_| file.findings.len() > said) {
                    file.items.get_mut(key).into_iter().for_each(|held| held.hash = 0);
                }
            }
        }
        let kept = old.into_iter().flat_map(|old| &old.items);
        for (key, held) in kept.filter(|(key, _)| broken.unknown || broken.keys.contains(*key)) {
            file.items.entry(key.clone()).or_insert_with(|| Held { hash: 0, ..held.clone() });
        }
        file
    }

    /// Takes a document over that was there before word by word; false when it was not.
    fn same(&mut self, hash: u64, line: usize, known: &Documents<'_>) -> bool {
        let items = known.of(hash);
        if items.is_empty() || items.iter().any(|(key, _)| self.items.contains_key(*key)) {
            return false;
        }
        for (key, held) in items {
            self.items.insert((*key).clone(), Held { line, ..(*held).clone() });
        }
        true
    }

    fn unread(path: &Arc<Path>, error: &io::Error, old: Option<&Self>) -> Self {
        let mut file = Self::default();
        let tail = if old.is_some() { "; what it held before stays in force" } else { "" };
        file.say(path, Position::default(), Severity::Error, format!("cannot be read: {error}{tail}"));
        for (key, held) in old.into_iter().flat_map(|old| &old.items) {
            file.items.insert(key.clone(), Held { hash: 0, ..held.clone() });
        }
        file
    }

    fn take(
        &mut self,
        path: &Arc<Path>,
        outcome: Outcome,
        hash: u64,
        old: Option<&Self>,
        broken: &mut Broken,
    ) {
        match outcome {
            Outcome::Good(item) => self.take_good(path, *item, hash, old),
            Outcome::Ignored { at, message } => self.say(path, at, Severity::Note, message),
            Outcome::Bad { key, at, messages } => {
                let keeps = match &key {
                    Some(key) => old.is_some_and(|old| old.items.contains_key(key)),
                    None => old.is_some_and(|old| !old.items.is_empty()),
                };
                let tail = match (keeps, &key) {
                    (false, _) => "",
                    (true, Some(_)) => "; its last good version stays in force",
                    (true, None) => "; what the file held before stays in force",
                };
                for message in messages {
                    self.say(path, at, Severity::Error, format!("{message}{tail}"));
                }
                broken.unknown |= key.is_none();
                broken.keys.extend(key);
            }
        }
    }

    fn take_good(&mut self, path: &Arc<Path>, item: Item, hash: u64, old: Option<&Self>) {
        let Item { key, at, source, warnings } = item;
        for warning in warnings {
            self.say(path, at, Severity::Warning, format!("{key}: {warning}"));
        }
        if let Some(first) = self.items.get(&key) {
            let message = format!("{key} is also in line {}, which stays in force", first.line);
            return self.say(path, at, Severity::Error, message);
        }
        // What has not changed stays the same memory.
        let same = old.and_then(|old| old.items.get(&key)).filter(|held| *held.source == source);
        let source = same.map_or_else(|| Arc::new(source), |held| Arc::clone(&held.source));
        self.items.insert(key, Held { line: at.line, source, hash });
    }

    fn say(&mut self, path: &Arc<Path>, at: Position, severity: Severity, message: String) {
        let file = Some(Arc::clone(path));
        self.findings.push(Finding::at(file, (at.line, at.column), severity, message));
    }
}
