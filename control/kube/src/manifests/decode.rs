//! A document as a typed object: which kind it is, whether its fields are ones, and which were not read.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::source::{self, Source};
use super::text::{Document, Malformed, Position};

/// How deep lists may lie in lists.
const NESTING: usize = 4;

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    Node,
    /// `v1`
    Pod,
    /// `apps/v1`
    Deployment,
    /// `apps/v1`
    ReplicaSet,
    /// `v1`
    ReplicationController,
    /// `apps/v1`
    StatefulSet,
    /// `apps/v1`
    DaemonSet,
    /// `batch/v1`
    Job,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `networking.k8s.io/v1`
    NetworkPolicy,
}

impl Kind {
    /// The `apiVersion` that is read.
    fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::ReplicationController | Self::Service => "v1",
            Self::Deployment | Self::ReplicaSet | Self::StatefulSet | Self::DaemonSet => "apps/v1",
            Self::Job => "batch/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    /// Whether it lies in a namespace.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "Namespace" => Self::Namespace,
            "Node" => Self::Node,
            "Pod" => Self::Pod,
            "Deployment" => Self::Deployment,
            "ReplicaSet" => Self::ReplicaSet,
            "ReplicationController" => Self::ReplicationController,
            "StatefulSet" => Self::StatefulSet,
            "DaemonSet" => Self::DaemonSet,
            "Job" => Self::Job,
            "Service" => Self::Service,
            "EndpointSlice" => Self::EndpointSlice,
            "NetworkPolicy" => Self::NetworkPolicy,
            _ => return Err(()),
        })
    }
}

/// What a manifest is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty where the kind has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An object of a document.
#[derive(Debug)]
pub(super) struct Item {
    pub key: Key,
    pub at: Position,
    pub source: Source,
    /// Fields that mean nothing and other things that its author should know.
    pub warnings: Vec<String>,
}

/// What became of an object of a document.
#[derive(Debug)]
pub(super) enum Outcome {
    Good(Box<Item>),
    /// It is none: not in force. The key is there when it could be told.
    Bad {
        key: Option<Key>,
        at: Position,
        messages: Vec<String>,
    },
    /// A kind that means nothing here.
    Ignored {
        at: Position,
        message: String,
    },
}

/// The objects of a YAML document, lists unfolded.
pub(super) fn yaml(document: &Document<'_>) -> Vec<Outcome> {
    let at = Position { line: document.line, column: 0 };
    match document.value() {
        Ok(value) => unfold(value, at, Some(document)),
        Err(malformed) => vec![bad(malformed)],
    }
}

/// The objects of a JSON value, lists unfolded.
pub(super) fn json(value: Result<Value, Malformed>) -> Vec<Outcome> {
    match value {
        Ok(value) => unfold(value, Position::default(), None),
        Err(malformed) => vec![bad(malformed)],
    }
}

fn bad(malformed: Malformed) -> Outcome {
    Outcome::Bad { key: None, at: malformed.at, messages: vec![malformed.message] }
}

fn unfold(value: Value, at: Position, document: Option<&Document<'_>>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    visit(value, at, document, 0, &mut outcomes);
    outcomes
}

fn visit(value: Value, at: Position, document: Option<&Document<'_>>, depth: usize, out: &mut Vec<Outcome>) {
    let refuse = |message: String| Outcome::Bad { key: None, at, messages: vec![message] };
    let Value::Object(mut object) = value else {
        if !value.is_null() {
            out.push(refuse("is no Kubernetes object: a mapping with apiVersion and kind is one".into()));
        }
        return;
    };
    let text = |object: &Map<String, Value>, key: &str| {
        object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (version, kind) = (text(&object, "apiVersion"), text(&object, "kind"));
    if version.is_empty() || kind.is_empty() {
        out.push(refuse("is no Kubernetes object: it has no apiVersion or no kind".into()));
        return;
    }
    if let Some(of) = kind.strip_suffix("List") {
        let Some(Value::Array(items)) = object.remove("items") else {
            out.push(refuse(format!("{kind} has no items")));
            return;
        };
        if depth == NESTING {
            out.push(refuse(format!("lists lie in each other more than {NESTING} deep")));
            return;
        }
        for mut item in items {
            // The API server's own lists name the kind once.
            if let Value::Object(item) = &mut item
                && !of.is_empty()
            {
                item.entry("apiVersion").or_insert_with(|| version.clone().into());
                item.entry("kind").or_insert_with(|| of.into());
            }
            visit(item, at, None, depth + 1, out);
        }
        return;
    }
    let Ok(known) = kind.parse::<Kind>() else {
        out.push(Outcome::Ignored {
            at,
            message: format!("{version} {kind} means nothing here and is left alone"),
        });
        return;
    };
    if version != known.api_version() {
        let message = format!("{version} {kind} is not read: {} {kind} is", known.api_version());
        out.push(Outcome::Ignored { at, message });
        return;
    }
    out.push(object_of(known, object, at, document));
}

fn object_of(
    kind: Kind,
    object: Map<String, Value>,
    at: Position,
    document: Option<&Document<'_>>,
) -> Outcome {
    let metadata = object.get("metadata").and_then(Value::as_object);
    let field = |name: &str| metadata.and_then(|m| m.get(name)).and_then(Value::as_str).unwrap_or_default();
    let name = field("name").to_owned();
    let mut namespace = field("namespace").to_owned();
    let mut warnings = Vec::new();
    if name.is_empty() {
        let message = format!("{kind} has no metadata.name (generateName gives none here: write a name)");
        return Outcome::Bad { key: None, at, messages: vec![message] };
    }
    if !kind.is_namespaced() {
        if !namespace.is_empty() {
            warnings.push(format!("metadata.namespace `{namespace}` means nothing for a {kind}"));
        }
        namespace.clear();
    } else if namespace.is_empty() {
        namespace = "default".into();
    }
    let key = Key { kind, namespace: namespace.into(), name: name.into() };
    match source::read(&key, Value::Object(object), document) {
        Ok((source, unknown)) => {
            warnings.extend(unknown);
            Outcome::Good(Box::new(Item { key, at, source, warnings }))
        }
        Err(failure) => {
            let at = failure.at.unwrap_or(at);
            Outcome::Bad { key: Some(key), at, messages: failure.messages }
        }
    }
}

/// Why an object is not in force.
#[derive(Debug)]
pub(super) struct Failure {
    pub at: Option<Position>,
    pub messages: Vec<String>,
}

/// The value as a `T` with its namespace filled in, and the fields that `T` does not have.
pub(super) fn typed<T>(
    key: &Key,
    value: &Value,
    document: Option<&Document<'_>>,
) -> Result<(T, Vec<String>), Failure>
where
    T: DeserializeOwned + Serialize + k8s_openapi::Metadata<Ty = ObjectMeta>,
{
    let mut object = T::deserialize(value).map_err(|e| Failure {
        at: document.map(Document::blame::<T>),
        messages: vec![format!("{key}: {e}")],
    })?;
    let read = serde_json::to_value(&object)
        .map_err(|e| Failure { at: None, messages: vec![format!("{key}: {e}")] })?;
    let mut unknown = Vec::new();
    compare(value, &read, &mut String::new(), &mut unknown);
    let metadata = object.metadata_mut();
    metadata.namespace = (!key.namespace.is_empty()).then(|| key.namespace.to_string());
    Ok((object, unknown))
}

/// Collects the fields that were given and have not come back.
fn compare(given: &Value, read: &Value, path: &mut String, unknown: &mut Vec<String>) {
    let len = path.len();
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                match read.get(name) {
                    Some(other) => compare(value, other, path, unknown),
                    None => unknown.push(format!("unknown field \"{path}\"")),
                }
                path.truncate(len);
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            for (i, (a, b)) in given.iter().zip(read).enumerate() {
                path.push_str(&format!("[{i}]"));
                compare(a, b, path, unknown);
                path.truncate(len);
            }
        }
        _ => {}
    }
}
