//! Deleting: a pod ends in its own time, a finalizer holds an object, a namespace waits for its content.

use serde_json::{Value, json};

use super::{Answer, World, Write, typed};
use crate::fakes::kubernetes::clock;
use crate::fakes::kubernetes::kinds::Resource;
use crate::fakes::kubernetes::status::{Cause, Refusal, details};

/// How to delete (`DeleteOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds that a pod has.
    pub grace: Option<i64>,
    /// Only the object with this identity.
    pub uid: Option<String>,
    /// Only the object at this version.
    pub resource_version: Option<String>,
    /// `Foreground`, `Background`, `Orphan`, or nothing.
    pub propagation: String,
}

/// What a deletion answers.
#[derive(Debug)]
pub enum Deleted {
    /// The object, held or in its last state.
    Object(Answer),
    /// A `Status` that says which.
    Status(Value),
}

/// Is an object that is being deleted held by nothing any more?
pub(super) fn is_over(resource: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    !metadata["deletionTimestamp"].is_null()
        && metadata["finalizers"].is_null()
        && match resource.kind {
            "Pod" => grace == 0,
            "Namespace" => object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty),
            _ => true,
        }
}

impl World {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// There is none, it is another one than the writer means, or it may not go.
    pub fn delete(
        &mut self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        write: &Write,
    ) -> Result<Deleted, Refusal> {
        const PROPAGATION: [&str; 4] = ["Foreground", "Background", "Orphan", "nil"];
        if !options.propagation.is_empty() && !PROPAGATION[..3].contains(&options.propagation.as_str()) {
            let cause = Cause::unsupported("propagationPolicy", &json!(options.propagation), &PROPAGATION);
            return Err(Refusal::invalid_options("DeleteOptions", &[cause]));
        }
        let stored = self.object(resource, namespace, name)?;
        let mut object = stored.value(resource);
        precondition(resource, name, &object, options)?;
        if resource.kind == "Namespace" && ["default", "kube-system", "kube-public"].contains(&name) {
            let message = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
            return Err(Refusal::new(403, "Forbidden", message, details(resource, name)));
        }
        let began = !object["metadata"]["deletionTimestamp"].is_null();
        if resource.kind == "Pod" {
            return Ok(Deleted::Object(self.delete_pod(resource, object, options, write.dry_run)));
        }
        if write.dry_run {
            return Ok(Deleted::Object(Answer::Stored(stored)));
        }
        let finalizer = match options.propagation.as_str() {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        if let (Some(finalizer), false) = (finalizer, began) {
            if object["metadata"]["finalizers"].is_null() {
                object["metadata"]["finalizers"] = json!([]);
            }
            if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
                list.push(json!(finalizer));
            }
        }
        let held = !object["metadata"]["finalizers"].is_null() || resource.kind == "Namespace";
        if held && began {
            return Ok(Deleted::Object(Answer::Stored(stored)));
        }
        if held {
            object["metadata"]["deletionTimestamp"] = json!(clock::text(clock::now()));
            if resource.kind == "Namespace" {
                object["status"]["phase"] = json!("Terminating");
            } else {
                object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            }
            count_generation(resource, &mut object);
            return Ok(Deleted::Object(Answer::Stored(self.put(resource, object))));
        }
        self.remove(resource, &stored.key, None);
        if resource.kind == "Service" {
            return Ok(Deleted::Object(Answer::Shown(self.last(resource, object))));
        }
        let mut about = details(resource, name);
        about["uid"] = object["metadata"]["uid"].clone();
        Ok(Deleted::Status(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about,
        })))
    }

    /// What is shown of an object that has just gone: its version is that of the deletion.
    fn last(&self, resource: &Resource, object: Value) -> Value {
        let mut last = typed(resource, object);
        last["metadata"]["resourceVersion"] = json!(self.store.rv().to_string());
        last
    }

    fn delete_pod(
        &mut self,
        resource: &'static Resource,
        mut pod: Value,
        options: &DeleteOptions,
        dry_run: bool,
    ) -> Answer {
        let finished = ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default());
        let usual = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        let at_once = finished || pod["spec"]["nodeName"].is_null();
        let grace = if at_once { 0 } else { options.grace.unwrap_or(usual).max(0) };
        let metadata = &mut pod["metadata"];
        let begun = metadata["deletionTimestamp"].as_str().and_then(clock::seconds);
        let left = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        match begun {
            // A second deletion can only shorten what is left.
            Some(_) if grace >= left => {}
            Some(end) => {
                metadata["deletionTimestamp"] = json!(clock::text(end - left + grace));
                metadata["deletionGracePeriodSeconds"] = json!(grace);
            }
            None => {
                metadata["deletionTimestamp"] = json!(clock::text(clock::now() + grace));
                metadata["deletionGracePeriodSeconds"] = json!(grace);
                count_generation(resource, &mut pod);
            }
        }
        let key = super::key(
            pod["metadata"]["namespace"].as_str().unwrap_or_default(),
            pod["metadata"]["name"].as_str().unwrap_or_default(),
        );
        if dry_run {
            return Answer::Shown(pod);
        }
        let changed = begun.is_none() || grace < left;
        let over = is_over(resource, &pod);
        let shown = if changed { Some(self.put(resource, pod.clone())) } else { None };
        if over {
            self.remove(resource, &key, None);
            return Answer::Shown(self.last(resource, pod));
        }
        match shown.or_else(|| self.store.table(resource).object(&key).cloned()) {
            Some(object) => Answer::Stored(object),
            None => Answer::Shown(typed(resource, pod)),
        }
    }
}

fn count_generation(resource: &Resource, object: &mut Value) {
    if resource.generation {
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = json!(generation);
    }
}

fn precondition(
    resource: &Resource,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Refusal> {
    let metadata = &object["metadata"];
    let refuse = |what: &str, asked: &str, found: &Value, then: &str| {
        let found = found.as_str().unwrap_or_default();
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the {what} in the precondition ({asked}) does not match the {what} in record ({found}). {then}",
            resource.kind
        );
        Err(Refusal::new(409, "Conflict", message, json!({ "name": name, "kind": resource.kind })))
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| metadata["uid"] != *uid) {
        let then = "The object might have been deleted and then recreated";
        return refuse("UID", uid, &metadata["uid"], then);
    }
    match options.resource_version.as_deref().filter(|rv| metadata["resourceVersion"] != *rv) {
        Some(rv) => {
            refuse("ResourceVersion", rv, &metadata["resourceVersion"], "The object might have been modified")
        }
        None => Ok(()),
    }
}
