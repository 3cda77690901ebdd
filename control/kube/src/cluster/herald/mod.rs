//! What operators must know, told where they look: Events at the object that it is about, a condition of the node, and the
//! status of an `ENIConfig` where its definition has one.
//!
//! ```text
//!                                       ┌─ condition SluiceReady of this node    (on change)
//!  Standing: all that holds now ──watch─┼─ Events: of this node and its pods     (on change, and every half hour)
//!                                       ├─ Events: of what every node sees    ┐
//!                                       └─ status of the node's ENIConfig     ┴─ one writer in the cluster: a Lease
//! ```
//!
//! What is told is a state and not a stream: while the server is away, what has come and gone is not told afterwards. A
//! cluster of thousands of nodes must not write one thing thousands of times, so that what is not a node's own is written by
//! whoever holds its Lease.

mod claim;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::trouble;
use crate::manifests::{Finding, Severity};
use claim::{Claims, Held};
use words::{Key, condition, event, resource};

/// The condition's type.
pub const CONDITION: &str = "SluiceReady";
/// Who writes, as Events and managed fields name it.
const WRITER: &str = "sluice-agent";
/// A node that is not ready for less than this has not been unready.
const LASTING: Duration = Duration::from_secs(2);
/// What every node sees has to stand for so long: objects of one manifest come one after the other.
const SETTLED: Duration = Duration::from_secs(3);
/// Between two Events with other words about the same thing.
const PAUSE: Duration = Duration::from_secs(60);
/// What still holds is told again: an API server keeps Events for an hour.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// Events at once, and how long each takes to be allowed again.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(3);
/// A node whose object is not there is looked for this often.
const NO_NODE: Duration = Duration::from_secs(30);
/// The wait after a request that failed, from and to.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(120)];

/// All that holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Why this node's pods may have no network; absent: all is well.
    pub unready: Option<Unready>,
    /// What was found. Those with a topic become Events.
    pub findings: Vec<Finding>,
    /// The `ENIConfig` that this node uses, or would.
    pub eni_config: Option<EniConfigStanding>,
}

/// Why a node is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// In one word (a condition's `reason`).
    pub reason: &'static str,
    /// The cause and the way out.
    pub message: String,
}

/// An `ENIConfig` as a node finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfigStanding {
    /// Its name.
    pub name: String,
    /// Why it is not used; absent: it is.
    pub problem: Option<String>,
}

/// Who tells.
pub(super) struct Herald {
    client: Client,
    node: String,
    instance: String,
    claims: Claims,
    /// Since when something holds.
    seen: BTreeMap<Key, Instant>,
    told: BTreeMap<Key, (String, Instant)>,
    unready_since: Option<Instant>,
    /// The condition as it was written last.
    condition: Option<Option<Unready>>,
    status: Option<EniConfigStanding>,
    budget: Budget,
    tries: u32,
    said: Option<String>,
}

/// Events that may be written now.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let refilled = now.duration_since(self.since).as_secs() / REFILL.as_secs();
        let refilled = u32::try_from(refilled).unwrap_or(BURST);
        if refilled > 0 {
            self.left = self.left.saturating_add(refilled).min(BURST);
            self.since = now;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// When something is to be looked at again, unless something changes before.
type Due = Option<Instant>;

impl Herald {
    /// For a node; `instance` is this agent's name in Events.
    pub(super) fn new(client: Client, node: &str, instance: &str) -> Self {
        Self {
            claims: Claims::new(client.clone(), node),
            client,
            node: node.to_owned(),
            instance: instance.to_owned(),
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
            unready_since: None,
            condition: None,
            status: None,
            budget: Budget { left: BURST, since: Instant::now() },
            tries: 0,
            said: None,
        }
    }

    /// Tells what is handed in, for ever.
    pub(super) async fn run(mut self, mut standing: watch::Receiver<Option<Standing>>) {
        let (mut due, mut rest): (Due, Due) = (None, None);
        loop {
            let until = rest.or(due);
            tokio::select! {
                // After a failure news waits as well.
                changed = standing.changed(), if rest.is_none() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
            let Some(now) = standing.borrow_and_update().clone() else { continue };
            (due, rest) = match self.tell(&now).await {
                Ok(due) => {
                    (self.tries, self.said) = (0, None);
                    (due, None)
                }
                Err(error) => (None, Some(Instant::now() + self.failed(&error))),
            };
        }
    }

    /// The server's refusal is said once; gives the time to wait.
    fn failed(&mut self, error: &kube::Error) -> Duration {
        let words = trouble::words(error);
        if self.said.as_ref() != Some(&words) {
            tracing::warn!(
                "Events, the node's condition or an ENIConfig's status cannot be written: {words}"
            );
            self.said = Some(words);
        }
        let wait = BACKOFF[0].saturating_mul(1 << self.tries.min(10)).min(BACKOFF[1]);
        self.tries += 1;
        wait
    }

    /// One part that is refused keeps no other from being told.
    async fn tell(&mut self, standing: &Standing) -> Result<Due, kube::Error> {
        let parts = [
            self.tell_condition(standing.unready.as_ref()).await,
            self.tell_events(&standing.findings).await,
            self.tell_status(standing.eni_config.as_ref()).await,
        ];
        let due: Result<Vec<Due>, kube::Error> = parts.into_iter().collect();
        Ok(due?.into_iter().flatten().min())
    }

    async fn tell_condition(&mut self, unready: Option<&Unready>) -> Result<Due, kube::Error> {
        let now = Instant::now();
        if unready.is_some() {
            let lasted = *self.unready_since.get_or_insert(now) + LASTING;
            if lasted > now {
                return Ok(Some(lasted));
            }
        } else {
            self.unready_since = None;
        }
        if self.condition.as_ref().is_some_and(|written| written.as_ref() == unready) {
            return Ok(None);
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let Some(node) = nodes.get_opt(&self.node).await? else { return Ok(Some(now + NO_NODE)) };
        let present = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let present = present.into_iter().find(|condition| condition.type_ == CONDITION);
        if let Some(wanted) = condition(unready, present.as_ref(), Timestamp::now()) {
            let patch = json!({ "status": { "conditions": [wanted] } });
            nodes.patch_status(&self.node, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
        self.condition = Some(unready.cloned());
        Ok(None)
    }

    async fn tell_events(&mut self, findings: &[Finding]) -> Result<Due, kube::Error> {
        let now = Instant::now();
        let mut wanted: BTreeMap<Key, String> = BTreeMap::new();
        let told = findings.iter().filter(|finding| finding.severity != Severity::Note);
        for (topic, finding) in told.filter_map(|finding| Some((finding.topic.as_ref()?, finding))) {
            let message = wanted.entry(Key::from(topic)).or_default();
            if !message.is_empty() {
                message.push_str("; ");
            }
            message.push_str(&finding.message);
        }
        self.seen.retain(|key, _| wanted.contains_key(key));
        self.told.retain(|key, (_, at)| wanted.contains_key(key) || *at + PAUSE > now);
        let mut next: Due = None;
        let mut later = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for (key, message) in wanted {
            let seen = *self.seen.entry(key.clone()).or_insert(now);
            let due = match self.told.get(&key) {
                Some((words, at)) if *words == message => *at + AGAIN,
                Some((_, at)) => *at + PAUSE,
                None if key.local => seen,
                None => seen + SETTLED,
            };
            if due > now {
                later(due);
                continue;
            }
            if !key.local
                && let Held::Elsewhere(until) = self.claims.hold(&key.claim()).await?
            {
                later(until);
                continue;
            }
            if !self.budget.take(now) {
                later(now + REFILL);
                continue;
            }
            self.publish(&key, &message).await?;
            self.told.insert(key, (message, now));
        }
        Ok(next)
    }

    async fn publish(&self, key: &Key, message: &str) -> Result<(), kube::Error> {
        // `kubectl describe` finds Events by UID, and those of a node by its name in that place, as kubelet writes them.
        let uid = match key.kind {
            "Node" => Some(key.name.clone()),
            _ => match self.object(key).get_metadata_opt(&key.name).await? {
                Some(object) => object.metadata.uid,
                // Nobody looks at what is gone.
                None => return Ok(()),
            },
        };
        let event = event(key, uid, message, &self.instance, Timestamp::now());
        let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
        let events: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(self.client.clone(), namespace);
        events.create(&PostParams::default(), &event).await?;
        Ok(())
    }

    fn object(&self, key: &Key) -> Api<DynamicObject> {
        let kind = resource(key.kind);
        match &*key.namespace {
            "" => Api::all_with(self.client.clone(), &kind),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &kind),
        }
    }

    async fn tell_status(&mut self, standing: Option<&EniConfigStanding>) -> Result<Due, kube::Error> {
        let Some(standing) = standing.filter(|standing| self.status.as_ref() != Some(*standing)) else {
            return Ok(None);
        };
        let kind = resource("ENIConfig");
        if self.has_status(&kind).await? {
            if let Held::Elsewhere(until) =
                self.claims.hold(&words::claim_of_eni_config(&standing.name)).await?
            {
                return Ok(Some(until));
            }
            let configs: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
            // One that is not there is told by the node's condition.
            if let Some(object) = configs.get_opt(&standing.name).await?
                && let Some(status) = words::status(standing, &object.data["status"], Timestamp::now())
            {
                let apply = json!({
                    "apiVersion": kind.api_version, "kind": kind.kind,
                    "metadata": { "name": standing.name }, "status": status,
                });
                let parameters = PatchParams::apply(WRITER).force();
                configs.patch_status(&standing.name, &parameters, &Patch::Apply(apply)).await?;
            }
        }
        self.status = Some(standing.clone());
        Ok(None)
    }

    /// Whether the definition has a status that is written apart; the VPC CNI's has none.
    async fn has_status(&self, kind: &ApiResource) -> Result<bool, kube::Error> {
        let wanted = format!("{}/status", kind.plural);
        match self.client.list_api_group_resources(&kind.api_version).await {
            Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == wanted)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What of a status is there already.
fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}
