//! Where the watches come together: changes that wait to be told, and the names of what is there.
//!
//! A pod that was fetched for a CNI ADD is ahead of the watch. Until the watch has come to the version that was fetched, what
//! it says of the pod's name is about the past and is dropped; a relist ends that, for it is never older.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{self as core, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use sluice_policy::{Change, Kind, Labels, Object, ObjectId, Refusal};
use tokio::sync::Notify;

use super::News;
use super::slim::{EniConfig, NodeFacts, SlimNode, SlimPod, namespace};
use crate::manifests::{Finding, Severity, Topic};

/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(10);

/// A watch that has not failed for so long works again: it need not have anything to say. Longer than the longest wait between
/// two attempts, 30 s, and the time that one may take.
const QUIET: Duration = Duration::from_secs(60);

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

pub(super) type SharedGather = Arc<Mutex<Gather>>;

/// A kind of object that is watched.
pub trait Watched: Sized {
    /// What the API calls many of it.
    const PLURAL: &'static str;
    /// Its place among the watches.
    const PLACE: usize;
    /// Its kind for the compiler; absent: it is none of the compiler's.
    const KIND: Option<Kind>;
    /// A server need not know it.
    const OPTIONAL: bool = false;

    /// Namespace and name, and what tells one incarnation from the next.
    fn identity(&self) -> Identity;

    /// What the compiler takes.
    ///
    /// # Errors
    /// The API server should have refused it.
    fn object(self, gather: &mut Gather) -> Result<Option<Object>, Vec<Refusal>>;

    /// It is gone, where somebody besides the compiler must know.
    fn gone(_name: &str, _gather: &mut Gather) {}
}

/// Who an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    name: Name,
    uid: String,
    /// Its version as a number; servers of one resource compare them so (Kubernetes API concepts, "Resource versions").
    version: u64,
}

impl Identity {
    fn of(object: &impl Resource<DynamicType = ()>) -> Self {
        let meta = object.meta();
        Self {
            name: (
                meta.namespace.as_deref().unwrap_or_default().into(),
                meta.name.as_deref().unwrap_or_default().into(),
            ),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0),
        }
    }
}

/// What one watch has come to.
#[derive(Debug, Default)]
struct Watch {
    synced: bool,
    known: HashSet<Name>,
    /// Names of the list that is coming in.
    listed: Option<HashSet<Name>>,
    /// What was wrong, and when it was last.
    trouble: Option<(String, Instant)>,
}

/// Everything that the watches share.
pub struct Gather {
    node: String,
    /// An empty text.
    nameless: Arc<str>,
    watches: [Watch; KINDS],
    changes: Vec<Change>,
    /// Objects that the server has and that make no sense here.
    refused: BTreeMap<(usize, Name), String>,
    findings_changed: bool,
    own_node: Option<NodeFacts>,
    eni_configs: BTreeMap<String, EniConfig>,
    eni_configs_changed: bool,
    /// Pods that are ahead of their watch.
    fetched: HashMap<Name, (String, u64)>,
    labels: HashSet<Labels>,
    sweep_at: usize,
    told: bool,
    over: bool,
    tell: Box<dyn FnMut(News) -> bool + Send>,
    wake: Arc<Notify>,
}

/// How many kinds are watched.
const KINDS: usize = 7;

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gather").field("node", &self.node).finish_non_exhaustive()
    }
}

pub(super) fn lock(gather: &SharedGather) -> MutexGuard<'_, Gather> {
    gather.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells what has gathered, for ever.
pub(super) async fn tell(gather: &SharedGather) {
    let wake = Arc::clone(&lock(gather).wake);
    loop {
        // Woken by what there is to tell, and now and then to see what is over.
        let _ = tokio::time::timeout(QUIET / 10, wake.notified()).await;
        tokio::time::sleep(TOGETHER).await;
        let mut gather = lock(gather);
        gather.settle(Instant::now());
        gather.flush();
        if gather.over {
            return;
        }
    }
}

impl Gather {
    pub(super) fn shared(node: &str, tell: impl FnMut(News) -> bool + Send + 'static) -> SharedGather {
        Arc::new(Mutex::new(Self {
            node: node.to_owned(),
            nameless: "".into(),
            watches: std::array::from_fn(|_| Watch::default()),
            changes: Vec::new(),
            refused: BTreeMap::new(),
            findings_changed: false,
            own_node: None,
            eni_configs: BTreeMap::new(),
            eni_configs_changed: false,
            fetched: HashMap::new(),
            labels: HashSet::new(),
            sweep_at: 1024,
            told: false,
            over: false,
            tell: Box::new(tell),
            wake: Arc::new(Notify::new()),
        }))
    }

    /// Nobody listens any more.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What a watch says.
    pub(super) fn take<K: Watched>(&mut self, event: Event<K>) {
        let watch = &mut self.watches[K::PLACE];
        if watch.trouble.take().is_some() {
            self.findings_changed = true;
        }
        match event {
            Event::Init => watch.listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                let identity = object.identity();
                if let Some(listed) = &mut watch.listed {
                    listed.insert(identity.name.clone());
                }
                self.forget_fetched::<K>(&identity.name);
                self.upsert(object, identity);
            }
            Event::InitDone => {
                let listed = watch.listed.take().unwrap_or_default();
                let gone: Vec<Name> = watch.known.difference(&listed).cloned().collect();
                watch.synced = true;
                for name in gone {
                    self.forget_fetched::<K>(&name);
                    self.delete::<K>(&name);
                }
            }
            Event::Apply(object) => {
                let identity = object.identity();
                if self.is_past::<K>(&identity, false) {
                    return;
                }
                self.upsert(object, identity);
            }
            Event::Delete(object) => {
                let identity = object.identity();
                if self.is_past::<K>(&identity, true) {
                    return;
                }
                self.delete::<K>(&identity.name);
            }
        }
        self.wake.notify_one();
    }

    /// The server does not know a kind, and need not.
    pub(super) fn absent<K: Watched>(&mut self) {
        let watch = &mut self.watches[K::PLACE];
        watch.synced = true;
        let known: Vec<Name> = watch.known.iter().cloned().collect();
        for name in known {
            self.delete::<K>(&name);
        }
        self.wake.notify_one();
    }

    /// A watch does not work.
    pub(super) fn trouble<K: Watched>(&mut self, why: String) {
        let watch = &mut self.watches[K::PLACE];
        let same = watch.trouble.as_ref().is_some_and(|(said, _)| *said == why);
        watch.trouble = Some((why, Instant::now()));
        if !same {
            self.findings_changed = true;
            self.wake.notify_one();
        }
    }

    /// Forgets troubles that are over.
    fn settle(&mut self, now: Instant) {
        for watch in &mut self.watches {
            let over = watch.trouble.as_ref().is_some_and(|(_, last)| now.duration_since(*last) > QUIET);
            if over && watch.synced {
                watch.trouble = None;
                self.findings_changed = true;
            }
        }
    }

    /// A pod that somebody needs before the watch has it. Told at once.
    pub(super) fn fetched(&mut self, pod: SlimPod) -> Result<(), String> {
        let identity = pod.identity();
        let name = identity.name.clone();
        self.fetched.insert(name.clone(), (identity.uid.clone(), identity.version));
        self.upsert(pod, identity);
        self.flush();
        match self.refused.get(&(SlimPod::PLACE, name)) {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    fn forget_fetched<K: Watched>(&mut self, name: &Name) {
        if K::KIND == Some(Kind::Pod) {
            self.fetched.remove(name);
        }
    }

    /// Whether a watch tells of a pod as it was before it was fetched.
    fn is_past<K: Watched>(&mut self, identity: &Identity, deleted: bool) -> bool {
        if K::KIND != Some(Kind::Pod) {
            return false;
        }
        let Some((uid, version)) = self.fetched.get(&identity.name) else { return false };
        let same = *uid == identity.uid;
        if same && !deleted && identity.version < *version || !same && identity.version <= *version {
            return true;
        }
        self.fetched.remove(&identity.name);
        false
    }

    fn upsert<K: Watched>(&mut self, object: K, identity: Identity) {
        let key = (K::PLACE, identity.name);
        match object.object(self) {
            Ok(object) => {
                self.findings_changed |= self.refused.remove(&key).is_some();
                self.watches[K::PLACE].known.insert(key.1);
                self.changes.extend(object.map(Change::Upsert));
            }
            // Its last good version stays in force.
            Err(refusals) => {
                let words: Vec<_> = refusals.iter().map(ToString::to_string).collect();
                self.watches[K::PLACE].known.insert(key.1.clone());
                self.refused.insert(key, words.join("; "));
                self.findings_changed = true;
            }
        }
    }

    fn delete<K: Watched>(&mut self, name: &Name) {
        self.findings_changed |= self.refused.remove(&(K::PLACE, name.clone())).is_some();
        self.watches[K::PLACE].known.remove(name);
        K::gone(&name.1, self);
        self.changes.extend(K::KIND.map(|kind| {
            Change::Delete(ObjectId { kind, namespace: Arc::clone(&name.0), name: Arc::clone(&name.1) })
        }));
    }

    /// Labels that many have, once.
    fn intern(&mut self, labels: &mut Labels) {
        if let Some(known) = self.labels.get(labels) {
            *labels = Arc::clone(known);
            return;
        }
        if self.labels.len() >= self.sweep_at {
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
            self.sweep_at = (self.labels.len() * 2).max(1024);
        }
        self.labels.insert(Arc::clone(labels));
    }

    fn flush(&mut self) {
        let synced = self.watches.iter().all(|watch| watch.synced);
        let findings = std::mem::take(&mut self.findings_changed).then(|| self.findings(synced));
        if !synced {
            if findings.is_some() {
                self.say(News { findings, ..News::default() });
            }
            return;
        }
        let node = self.own_node.take();
        let eni_configs = std::mem::take(&mut self.eni_configs_changed);
        let eni_configs = eni_configs.then(|| self.eni_configs.values().cloned().collect());
        let changes = std::mem::take(&mut self.changes);
        let first = !std::mem::replace(&mut self.told, true);
        let nothing = changes.is_empty() && findings.is_none() && node.is_none() && eni_configs.is_none();
        if first {
            // What there is has a home now; what is to come shares with itself.
            tracing::info!(changes = changes.len(), "every watch has synced");
        } else if nothing {
            return;
        }
        self.say(News { synced, changes, findings, node, eni_configs });
    }

    fn say(&mut self, news: News) {
        self.over |= !(self.tell)(news);
    }

    fn findings(&self, synced: bool) -> Vec<Finding> {
        let stays = if synced {
            "what is known stays in force"
        } else {
            "nothing is told to the daemon before everything is known; it keeps what it has"
        };
        let troubles = self.watches.iter().filter_map(|watch| watch.trouble.as_ref()).map(|(why, _)| why);
        let mut all: Vec<Finding> =
            troubles.map(|why| Finding::new(Severity::Error, format!("{why}; {stays}"))).collect();
        all.extend(self.refused.iter().map(|((place, (namespace, name)), why)| {
            let (plural, kind) = NAMES[*place];
            let slash = if namespace.is_empty() { "" } else { "/" };
            let message = format!("{plural} {namespace}{slash}{name} is refused: {why}");
            let (namespace, name) = (namespace.to_string(), name.to_string());
            let topic = Topic { reason: REFUSED, kind, namespace, name, local: false };
            Finding::new(Severity::Error, message).about(topic)
        }));
        all
    }
}

/// An object that makes no sense here; its last good version stays in force.
const REFUSED: &str = "Refused";

/// What the watches and their kinds are called, by their places.
const NAMES: [(&str, &str); KINDS] = [
    (SlimPod::PLURAL, "Pod"),
    (SlimNode::PLURAL, "Node"),
    (PartialObjectMeta::<core::Namespace>::PLURAL, "Namespace"),
    (NetworkPolicy::PLURAL, "NetworkPolicy"),
    (Service::PLURAL, "Service"),
    (EndpointSlice::PLURAL, "EndpointSlice"),
    (EniConfig::PLURAL, "ENIConfig"),
];

impl Watched for SlimPod {
    const PLURAL: &'static str = "pods";
    const PLACE: usize = 0;
    const KIND: Option<Kind> = Some(Kind::Pod);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, gather: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        let mut pod = sluice_policy::Pod::try_from(&self.whole())?;
        gather.intern(&mut pod.labels);
        // Who is who by UID is asked of this node's pods alone, and others are a hundred thousand.
        if pod.node.as_deref() != Some(&*gather.node) {
            pod.uid = Arc::clone(&gather.nameless);
        }
        Ok(Some(Object::Pod(Arc::new(pod))))
    }
}

impl Watched for SlimNode {
    const PLURAL: &'static str = "nodes";
    const PLACE: usize = 1;
    const KIND: Option<Kind> = Some(Kind::Node);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, gather: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        if self.meta().name.as_deref() == Some(&gather.node) {
            gather.own_node = Some(self.facts());
        }
        Ok(Some(Object::Node(sluice_policy::Node::try_from(&self.whole())?)))
    }

    fn gone(name: &str, gather: &mut Gather) {
        if name == gather.node {
            gather.own_node = Some(NodeFacts { terminating: true, ..NodeFacts::default() });
        }
    }
}

impl Watched for PartialObjectMeta<core::Namespace> {
    const PLURAL: &'static str = "namespaces";
    const PLACE: usize = 2;
    const KIND: Option<Kind> = Some(Kind::Namespace);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, gather: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        let mut slim = sluice_policy::Namespace::try_from(&namespace(self.metadata))?;
        gather.intern(&mut slim.labels);
        Ok(Some(Object::Namespace(slim)))
    }
}

impl Watched for NetworkPolicy {
    const PLURAL: &'static str = "networkpolicies";
    const PLACE: usize = 3;
    const KIND: Option<Kind> = Some(Kind::NetworkPolicy);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, _: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        Ok(Some(Object::NetworkPolicy(Box::new(self))))
    }
}

impl Watched for Service {
    const PLURAL: &'static str = "services";
    const PLACE: usize = 4;
    const KIND: Option<Kind> = Some(Kind::Service);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, _: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        Ok(Some(Object::Service(sluice_policy::Service::try_from(&self)?)))
    }
}

impl Watched for EndpointSlice {
    const PLURAL: &'static str = "endpointslices";
    const PLACE: usize = 5;
    const KIND: Option<Kind> = Some(Kind::EndpointSlice);

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, _: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        Ok(Some(Object::EndpointSlice(sluice_policy::EndpointSlice::try_from(&self)?)))
    }
}

impl Watched for EniConfig {
    const PLURAL: &'static str = "eniconfigs";
    const PLACE: usize = 6;
    const KIND: Option<Kind> = None;
    const OPTIONAL: bool = true;

    fn identity(&self) -> Identity {
        Identity::of(self)
    }

    fn object(self, gather: &mut Gather) -> Result<Option<Object>, Vec<Refusal>> {
        let before = gather.eni_configs.insert(self.name().to_owned(), self.clone());
        gather.eni_configs_changed |= before.is_none_or(|before| before.spec != self.spec);
        Ok(None)
    }

    fn gone(name: &str, gather: &mut Gather) {
        gather.eni_configs_changed |= gather.eni_configs.remove(name).is_some();
    }
}
