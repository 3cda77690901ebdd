//! The API server without its sockets: what a request to read or write an object does to what is stored.
//!
//! ```text
//! create: read ─ name ─ namespace ─ defaults ─ rules ─ address, port ─ store
//! update: read ─ version ─ keep what is the server's ─ defaults ─ rules ─ no change? ─ store, or the last finalizer gone
//! delete: preconditions ─ grace, finalizers ─ store or remove
//! ```

mod admission;
mod apply;
mod delete;
mod services;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use delete::{DeleteOptions, Deleted};

use admission::precedence;

use super::clock::{self, Lots};
use super::kinds::{self, Resource};
use super::rules;
use super::status::Refusal;
use super::store::{Object, Store, key};

/// What is to happen to fields that no one knows (`fieldValidation`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unknown {
    /// The writer is told.
    #[default]
    Warn,
    /// The object is refused.
    Strict,
    /// Nothing.
    Ignore,
}

/// How an object is to be written, and what its writer is told beside the object.
#[derive(Debug, Default)]
pub struct Write {
    /// Check and answer, but store nothing.
    pub dry_run: bool,
    /// Unknown fields.
    pub unknown: Unknown,
    /// Fields that the body names twice.
    pub duplicates: Vec<String>,
    /// Who writes (`fieldManager`).
    pub manager: String,
    /// What comes back in `Warning` headers.
    pub warnings: Vec<String>,
}

/// An object as an answer has it.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It is stored so.
    Stored(Arc<Object>),
    /// It is not stored: a dry run, or the last state of what is gone.
    Shown(Value),
}

/// Which part of an object a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but the status, where that is a subresource.
    Main,
    /// The status.
    Status,
    /// The finalizers of a namespace.
    Finalize,
}

/// Everything that the server knows.
#[derive(Debug)]
pub struct World {
    /// Objects and history.
    pub store: Store,
    /// Is the CRD of `ENIConfig` there?
    pub custom: bool,
    /// Has it a status subresource?
    pub custom_status: bool,
    /// The addresses of services.
    pub service_range: ipnet::Ipv4Net,
    lots: Lots,
    addresses: BTreeSet<u32>,
    ports: BTreeSet<u16>,
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self {
            store: Store::default(),
            custom: true,
            custom_status: true,
            service_range: services::DEFAULT_RANGE,
            lots: Lots::new(0x5eed),
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
        };
        world.bootstrap();
        world
    }
}

impl World {
    /// What a real server makes of its own.
    fn bootstrap(&mut self) {
        for name in ["kube-system", "kube-public", "default", "kube-node-lease"] {
            self.seed(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        }
        self.seed(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "component": "apiserver", "provider": "kubernetes" },
            },
            "spec": {
                "clusterIP": self.first_address().to_string(),
                "ports": [{ "name": "https", "port": 443, "targetPort": 6443 }],
            },
        }));
    }

    fn seed(&mut self, manifest: &Value) {
        let stored = self.load(manifest);
        debug_assert!(stored.is_ok(), "{stored:?}");
    }

    /// Stores a manifest as a client with every right would: makes it, or writes over it; its status is stored with it.
    ///
    /// # Errors
    /// It is of a kind that is not here, or is refused.
    pub fn load(&mut self, manifest: &Value) -> Result<Arc<Object>, Refusal> {
        let word = |member: &str| manifest[member].as_str().unwrap_or_default();
        let (version, kind) = (word("apiVersion"), word("kind"));
        let Some(resource) = kinds::of_manifest(version, kind) else {
            return Err(Refusal::bad_request(format!("there is no kind \"{kind}\" of \"{version}\" here")));
        };
        let metadata = &manifest["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let namespace = if resource.namespaced { namespace } else { "" };
        let mut write = Write::default();
        let known = self.store.table(resource).object(&key(namespace, name)).is_some();
        let written = if known {
            self.update(resource, namespace, name, Part::Main, &mut write, |old| {
                let mut new = manifest.clone();
                new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                Ok(new)
            })?
        } else {
            self.create(resource, namespace, manifest, &mut write)?
        };
        let written = if resource.status && !manifest["status"].is_null() {
            self.update(resource, namespace, name, Part::Status, &mut write, |old| {
                let mut new = old.clone();
                super::patch::merge(&mut new["status"], &manifest["status"]);
                Ok(new)
            })?
        } else {
            written
        };
        match written {
            Answer::Stored(object) => Ok(object),
            Answer::Shown(_) => Err(Refusal::not_found(resource, name)),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn object(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Object>, Refusal> {
        let found = self.store.table(resource).object(&key(namespace, name));
        found.cloned().ok_or_else(|| Refusal::not_found(resource, name))
    }

    /// Makes an object.
    ///
    /// # Errors
    /// Whatever the API refuses it for.
    pub fn create(
        &mut self,
        resource: &'static Resource,
        namespace: &str,
        body: &Value,
        write: &mut Write,
    ) -> Result<Answer, Refusal> {
        let mut object = self.read(resource, body, write)?;
        self.namespace_of(resource, namespace, &mut object)?;
        let metadata = &mut object["metadata"];
        let generated = metadata["generateName"].as_str().unwrap_or_default().to_string();
        if metadata["name"].is_null() && !generated.is_empty() {
            metadata["name"] = json!(format!("{generated}{}", self.lots.suffix()));
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_string();
        self.admit(resource, namespace, &name)?;
        system_members(metadata, &Value::Null);
        metadata["uid"] = json!(self.lots.uid());
        metadata["creationTimestamp"] = json!(clock::text(clock::now()));
        if resource.generation {
            metadata["generation"] = json!(1);
        }
        if resource.custom {
            drop_member(&mut object, "status");
        }
        rules::defaults(resource, &mut object, None);
        self.zone(resource, &mut object);
        self.check(resource, &name, &object, None, write)?;
        if self.store.table(resource).object(&key(namespace, &name)).is_some() {
            return Err(Refusal::exists(resource, &name));
        }
        if resource.kind == "Service" {
            self.allocate(&name, &mut object)?;
        }
        Ok(if write.dry_run {
            Answer::Shown(typed(resource, object))
        } else {
            Answer::Stored(self.put(resource, object))
        })
    }

    /// Writes an object again: `change` makes the new one of the old one.
    ///
    /// # Errors
    /// Whatever the API refuses it for, and what `change` does.
    pub fn update(
        &mut self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        part: Part,
        write: &mut Write,
        change: impl FnOnce(&Value) -> Result<Value, Refusal>,
    ) -> Result<Answer, Refusal> {
        let stored = self.object(resource, namespace, name)?;
        let old = stored.value(resource);
        let wanted = change(&old)?;
        let mut new = self.read(resource, &wanted, write)?;
        self.namespace_of(resource, namespace, &mut new)?;
        precedence(resource, name, &old, &new)?;
        let mut old = old;
        for member in ["kind", "apiVersion"] {
            drop_member(&mut old, member);
        }
        match part {
            Part::Main => {
                system_members(&mut new["metadata"], &old["metadata"]);
                if resource.status {
                    keep(&mut new, &old, "status");
                }
            }
            Part::Status => {
                let status = new["status"].take();
                new = old.clone();
                put_member(&mut new, "status", status);
            }
            Part::Finalize => {
                let finalizers = new["spec"]["finalizers"].take();
                new = old.clone();
                put_member(&mut new["spec"], "finalizers", finalizers);
            }
        }
        rules::defaults(resource, &mut new, Some(&old));
        if part == Part::Status {
            self.check_status(resource, name, &new)?;
        } else {
            self.check(resource, name, &new, Some(&old), write)?;
        }
        if new == old {
            return Ok(Answer::Stored(stored));
        }
        if resource.generation && generation_counts(resource, &old, &new) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
        if resource.kind == "Service" && part == Part::Main {
            self.allocate(name, &mut new)?;
        }
        if write.dry_run || delete::is_over(resource, &new) {
            let mut shown = typed(resource, new.clone());
            shown["metadata"]["resourceVersion"] = json!(stored.rv.to_string());
            if !write.dry_run {
                self.remove(resource, &stored.key, None);
            }
            return Ok(Answer::Shown(shown));
        }
        Ok(Answer::Stored(self.put(resource, new)))
    }

    /// Binds a pod to a node, as a scheduler does.
    ///
    /// # Errors
    /// There is no such pod, or it has a node.
    pub fn bind(&mut self, namespace: &str, name: &str, node: &str) -> Result<(), Refusal> {
        let pods =
            kinds::of_path("", "v1", "pods").ok_or_else(|| Refusal::bad_request("there are no pods"))?;
        let mut pod = self.object(pods, namespace, name)?.value(pods);
        if let Some(bound) = pod["spec"]["nodeName"].as_str() {
            let message = format!(
                "Operation cannot be fulfilled on pods/binding \"{name}\": pod {name} is already assigned to node \"{bound}\""
            );
            return Err(Refusal::new(
                409,
                "Conflict",
                message,
                json!({ "name": name, "kind": "pods/binding" }),
            ));
        }
        pod["spec"]["nodeName"] = json!(node);
        self.zone(pods, &mut pod);
        super::patch::strategic(
            "Pod",
            &mut pod,
            &json!({ "status": { "conditions": [{
            "type": "PodScheduled", "status": "True",
            "lastProbeTime": null, "lastTransitionTime": clock::text(clock::now()),
        }] } }),
        );
        self.put(pods, pod);
        Ok(())
    }

    fn put(&mut self, resource: &Resource, object: Value) -> Arc<Object> {
        if resource.kind == "Service" {
            let metadata = &object["metadata"];
            let word = |member: &str| metadata[member].as_str().unwrap_or_default();
            let known = self.store.table(resource).object(&key(word("namespace"), word("name"))).cloned();
            if let Some(known) = known {
                self.release(&known.value(resource));
            }
            self.claim(&object);
        }
        self.store.put(resource, object)
    }

    fn remove(&mut self, resource: &Resource, key: &str, last: Option<Value>) {
        let known = self.store.table(resource).object(key).cloned();
        if let Some(known) = known.filter(|_| resource.kind == "Service") {
            self.release(&known.value(resource));
        }
        self.store.remove(resource, key, last);
    }

    /// Stores an object that is already as the server would store it, without any of its rules: how a generator fills the
    /// store faster than requests could. It is given an identity and a time, if it has none.
    pub fn put_raw(&mut self, resource: &Resource, mut object: Value) -> Arc<Object> {
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(self.lots.uid());
            object["metadata"]["creationTimestamp"] = json!(clock::text(clock::now()));
        }
        self.put(resource, object)
    }

    /// Takes the CRD away, with the objects of its resource.
    pub fn remove_custom(&mut self) {
        for resource in kinds::RESOURCES.iter().filter(|r| r.custom) {
            let keys: Vec<_> = self.store.table(resource).range("").map(|o| o.key.clone()).collect();
            for key in keys {
                self.store.remove(resource, &key, None);
            }
        }
        self.custom = false;
    }
}

/// Does a change of this object count as a new generation of it?
fn generation_counts(resource: &Resource, old: &Value, new: &Value) -> bool {
    if resource.kind == "EndpointSlice" {
        return true;
    }
    let other = |value: &Value| {
        let mut value = value.clone();
        drop_member(&mut value, "metadata");
        drop_member(&mut value, "status");
        value
    };
    other(old) != other(new)
}

/// What of the metadata is the server's: it stays as it was, or is not there yet.
fn system_members(metadata: &mut Value, old: &Value) {
    const MEMBERS: [&str; 7] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "managedFields",
    ];
    for member in MEMBERS {
        keep(metadata, old, member);
    }
    if !old.is_null() {
        keep(metadata, old, "generateName");
    }
}

fn keep(object: &mut Value, old: &Value, member: &str) {
    put_member(object, member, old[member].clone());
}

fn put_member(object: &mut Value, member: &str, value: Value) {
    if value.is_null() {
        drop_member(object, member);
    } else {
        object[member] = value;
    }
}

fn drop_member(object: &mut Value, member: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(member);
    }
}

/// The object with its kind and version.
fn typed(resource: &Resource, object: Value) -> Value {
    let mut typed = match object {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    typed.insert("kind".into(), json!(resource.kind));
    typed.insert("apiVersion".into(), json!(resource.api_version()));
    if let Some(metadata) = typed.get_mut("metadata") {
        drop_member(metadata, "resourceVersion");
    }
    Value::Object(typed)
}
