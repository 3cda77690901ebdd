//! Objects and their history: what etcd and the watch cache in front of it are to a real API server.
//!
//! ```text
//!            compacted            window                      rv
//! history ──────┼────────────────────┼─────────────────────────┤
//!  of a         │ exact lists and    │ watches can start here  │
//!  resource     │ continued pages    │ (and lists be exact)    │
//! ```
//! A compaction moves the left bound alone; what the cache still has it goes on serving. A restart empties the cache, and so
//! moves the right one up to the newest version. Every change keeps the object before and after it: from that any snapshot can
//! be had by walking back, and a watch can tell an object that has begun to match its selector from one that has changed.
//!
//! Objects lie here encoded, and everyone who is sent one shares these bytes. The version is left out of them, so that the
//! same bytes serve an event that carries another one (`DELETED` has the content of before, and the version of the deletion).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Map, Value};

use super::kinds::{RESOURCES, Resource};
use super::selector::Selector;

/// One object, encoded.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`, or the name alone.
    pub key: Arc<str>,
    /// The version at which it became this.
    pub rv: u64,
    labels: BTreeMap<String, String>,
    fields: Vec<String>,
    /// Everything after `"metadata":{"resourceVersion":"…"`.
    tail: Bytes,
    /// Where in `tail` the metadata ends.
    metadata: usize,
}

/// How an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// With `kind` and `apiVersion`.
    Whole,
    /// As an item of its own list: built-in kinds say neither there.
    Item,
    /// `PartialObjectMetadata`.
    Partial,
}

impl Object {
    /// Encodes an object. Its `metadata.resourceVersion`, kind and version are what the store says, not what it says.
    #[must_use]
    pub fn new(resource: &Resource, rv: u64, mut value: Value) -> Self {
        let fields = resource.fields.iter().map(|field| text_at(&value, field)).collect();
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().into())).collect();
        let empty = Value::Null;
        let mut metadata = value["metadata"].as_object_mut().map(std::mem::take).unwrap_or_default();
        metadata.remove("resourceVersion");
        let text = |key| metadata.get(key).unwrap_or(&empty).as_str().unwrap_or_default();
        let key = key(text("namespace"), text("name"));
        let mut tail = String::new();
        for (name, value) in &metadata {
            member(&mut tail, name, value);
        }
        tail.push('}');
        let metadata = tail.len();
        for (name, value) in value.as_object().into_iter().flatten() {
            if !["kind", "apiVersion", "metadata"].contains(&name.as_str()) {
                member(&mut tail, name, value);
            }
        }
        tail.push('}');
        Self { key: key.into(), rv, labels, fields, tail: tail.into(), metadata }
    }

    /// Writes it as of a version.
    pub fn write(&self, resource: &Resource, form: Form, rv: u64, out: &mut Vec<u8>) {
        let head = match form {
            Form::Item if !resource.custom => String::new(),
            Form::Whole | Form::Item => {
                format!(r#""kind":"{}","apiVersion":"{}","#, resource.kind, resource.api_version())
            }
            Form::Partial => r#""kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#.into(),
        };
        out.extend_from_slice(format!(r#"{{{head}"metadata":{{"resourceVersion":"{rv}""#).as_bytes());
        if form == Form::Partial {
            out.extend_from_slice(&self.tail[..self.metadata]);
            out.push(b'}');
        } else {
            out.extend_from_slice(&self.tail);
        }
    }

    /// The object, to be looked into.
    #[must_use]
    pub fn value(&self, resource: &Resource) -> Value {
        let mut text = Vec::with_capacity(self.tail.len() + 128);
        self.write(resource, Form::Whole, self.rv, &mut text);
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Is it selected?
    #[must_use]
    pub fn matches(&self, resource: &Resource, selector: &Selector) -> bool {
        selector.is_empty()
            || selector.matches(&self.labels, |field| match field {
                "metadata.name" => self.key.rsplit_once('/').map_or(&*self.key, |(_, name)| name).into(),
                "metadata.namespace" => {
                    self.key.split_once('/').map_or("", |(namespace, _)| namespace).into()
                }
                _ => {
                    let at = resource.fields.iter().position(|f| *f == field);
                    at.and_then(|at| self.fields.get(at)).cloned().unwrap_or_default()
                }
            })
    }

    /// Bytes that it takes in an answer, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.tail.len() + 64
    }
}

/// The key of an object within its resource.
#[must_use]
pub fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}") }
}

fn member(out: &mut String, name: &str, value: &Value) {
    out.push_str(&format!(",{}:{value}", Value::from(name)));
}

/// A field as a selector compares it.
fn text_at(value: &Value, field: &str) -> String {
    match field.split('.').fold(value, |at, name| &at[name]) {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => yes.to_string(),
        Value::Null if ["spec.hostNetwork", "spec.unschedulable"].contains(&field) => "false".into(),
        _ => String::new(),
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The version that it made.
    pub rv: u64,
    /// What was there.
    pub old: Option<Arc<Object>>,
    /// What is there now.
    pub new: Option<Arc<Object>>,
    /// What an event shows: the new object, or the last state of the one that is gone.
    pub shown: Arc<Object>,
}

impl Change {
    /// The event that a watch with this selector sees, and whose content it shows.
    #[must_use]
    pub fn event(&self, resource: &Resource, selector: &Selector) -> Option<(&'static str, &Arc<Object>)> {
        let selected =
            |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|o| o.matches(resource, selector));
        match (selected(&self.old), selected(&self.new)) {
            (false, false) => None,
            (false, true) => Some(("ADDED", &self.shown)),
            (true, true) => Some(("MODIFIED", &self.shown)),
            (true, false) if self.new.is_none() => Some(("DELETED", &self.shown)),
            (true, false) => self.old.as_ref().map(|old| ("DELETED", old)),
        }
    }
}

/// The objects of one resource.
#[derive(Debug, Default)]
pub struct Table {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    history: VecDeque<Change>,
    window: u64,
    /// The history holds every change after this version.
    floor: u64,
}

impl Table {
    /// The object of a key.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The objects of a namespace, or all of them, in the order of their keys.
    pub fn range<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let prefix = prefix(namespace);
        let start = Bound::Included(Arc::from(prefix.as_str()));
        self.objects
            .range::<Arc<str>, _>((start, Bound::Unbounded))
            .map(|(_, object)| object)
            .take_while(move |object| object.key.starts_with(&prefix))
    }

    /// The changes after a version.
    pub fn since(&self, rv: u64) -> impl Iterator<Item = &Change> {
        let start = self.history.partition_point(|change| change.rv <= rv);
        self.history.range(start..)
    }

    /// Can a watch start after this version?
    #[must_use]
    pub fn watchable(&self, rv: u64) -> bool {
        rv >= self.window.max(self.floor)
    }

    /// Is every change after this version still known?
    #[must_use]
    pub fn holds(&self, rv: u64) -> bool {
        rv >= self.floor
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects of a namespace as they were at a version.
    fn at(&self, namespace: &str, rv: u64) -> Vec<Arc<Object>> {
        let prefix = prefix(namespace);
        let mut objects: BTreeMap<Arc<str>, Arc<Object>> =
            self.range(namespace).map(|object| (object.key.clone(), object.clone())).collect();
        for change in self.history.iter().rev().take_while(|change| change.rv > rv) {
            if change.shown.key.starts_with(&prefix) {
                match &change.old {
                    Some(old) => objects.insert(old.key.clone(), old.clone()),
                    None => objects.remove(&change.shown.key),
                };
            }
        }
        objects.into_values().collect()
    }
}

fn prefix(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!("{namespace}/") }
}

/// Everything that is stored.
#[derive(Debug)]
pub struct Store {
    rv: u64,
    compacted: u64,
    tables: Vec<Table>,
    /// Changes that a resource's history keeps at most.
    pub history_limit: usize,
}

impl Default for Store {
    fn default() -> Self {
        let tables = RESOURCES.iter().map(|_| Table::default()).collect();
        Self { rv: 1, compacted: 0, tables, history_limit: 20_000 }
    }
}

impl Store {
    /// The newest version.
    #[must_use]
    pub fn rv(&self) -> u64 {
        self.rv
    }

    /// The objects of a resource.
    #[must_use]
    pub fn table(&self, resource: &Resource) -> &Table {
        &self.tables[resource.index()]
    }

    /// The objects of a resource as they were at a version; none if that is no longer known.
    #[must_use]
    pub fn at(&self, resource: &Resource, namespace: &str, rv: u64) -> Option<Vec<Arc<Object>>> {
        let table = self.table(resource);
        (rv >= table.floor && (rv >= table.window || rv >= self.compacted)).then(|| table.at(namespace, rv))
    }

    /// Stores an object under the next version.
    pub fn put(&mut self, resource: &Resource, value: Value) -> Arc<Object> {
        self.rv += 1;
        let new = Arc::new(Object::new(resource, self.rv, value));
        let table = &mut self.tables[resource.index()];
        let old = table.objects.insert(new.key.clone(), new.clone());
        self.record(resource, Change { rv: self.rv, old, new: Some(new.clone()), shown: new.clone() });
        new
    }

    /// Writes over the newest state of an object without a version of its own: for what is written down about the change that
    /// has just been made.
    pub fn amend(&mut self, resource: &Resource, value: Value) -> Arc<Object> {
        let table = &mut self.tables[resource.index()];
        let written = Object::new(resource, 0, value);
        let rv = table.objects.get(&written.key).map_or(self.rv, |object| object.rv);
        let written = Arc::new(Object { rv, ..written });
        table.objects.insert(written.key.clone(), written.clone());
        for change in table.history.iter_mut().rev().take_while(|change| change.rv >= rv) {
            if change.rv == rv && change.shown.key == written.key {
                change.new = Some(written.clone());
                change.shown = written.clone();
            }
        }
        written
    }

    /// Takes an object away under the next version; `last` is what is shown of it, if not what is stored.
    pub fn remove(&mut self, resource: &Resource, key: &str, last: Option<Value>) {
        let Some(old) = self.tables[resource.index()].objects.remove(key) else { return };
        self.rv += 1;
        let shown = last.map_or_else(|| old.clone(), |last| Arc::new(Object::new(resource, self.rv, last)));
        self.record(resource, Change { rv: self.rv, old: Some(old), new: None, shown });
    }

    fn record(&mut self, resource: &Resource, change: Change) {
        let table = &mut self.tables[resource.index()];
        table.history.push_back(change);
        while table.history.len() > self.history_limit.max(1) {
            if let Some(gone) = table.history.pop_front() {
                table.floor = gone.rv;
            }
        }
    }

    /// Throws history up to and including a version away, as etcd does; the watch cache keeps what it has.
    pub fn compact(&mut self, rv: u64) {
        self.compacted = self.compacted.max(rv.min(self.rv));
    }

    /// Empties the watch cache: a watch can start at the newest version at the earliest.
    pub fn restart(&mut self) {
        for table in &mut self.tables {
            table.window = self.rv;
        }
    }

    /// Makes a version without changing anything of ours, as other writers of a real store do.
    pub fn skip(&mut self, versions: u64) {
        self.rv += versions;
    }
}

/// A skeleton that carries a version: what a bookmark shows.
#[must_use]
pub fn bookmark(resource: &Resource, partial: bool, rv: u64, initial_end: bool) -> Value {
    let mut object = if partial {
        Value::Object(Map::new())
    } else {
        serde_json::from_str(resource.skeleton).unwrap_or_default()
    };
    let (kind, version) = if partial {
        ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into())
    } else {
        (resource.kind.to_string(), resource.api_version())
    };
    object["kind"] = kind.into();
    object["apiVersion"] = version.into();
    object["metadata"] = serde_json::json!({ "resourceVersion": rv.to_string() });
    if initial_end {
        object["metadata"]["annotations"] = serde_json::json!({ "k8s.io/initial-events-end": "true" });
    }
    object
}
