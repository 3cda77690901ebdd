//! What an object must pass before it is stored: it is read as its kind, it may be where it is to be, it is valid, and it
//! is written over what its writer saw.

use serde_json::{Value, json};

use super::{Unknown, World, Write, drop_member, key};
use crate::fakes::kubernetes::custom;
use crate::fakes::kubernetes::kinds::{self, Resource};
use crate::fakes::kubernetes::rules::{self, names};
use crate::fakes::kubernetes::schema::{self, Oddities};
use crate::fakes::kubernetes::status::{Cause, Refusal, details};

impl World {
    /// Reads a body as an object of the resource.
    pub(super) fn read(
        &self,
        resource: &Resource,
        body: &Value,
        write: &mut Write,
    ) -> Result<Value, Refusal> {
        let handled = |why: &str| {
            let (kind, version) = (resource.kind, resource.version);
            Refusal::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
            ))
        };
        kind_of(resource, body, write)?;
        let mut unknown = Vec::new();
        let object = if resource.custom {
            let metadata = json!({ "metadata": body["metadata"] });
            let metadata = schema::decode("ConfigMap", &metadata, &mut Oddities::default());
            let mut object = custom::decode(body, &mut unknown);
            object["metadata"] = metadata.map_err(|why| handled(&why))?["metadata"].take();
            object
        } else {
            let mut oddities = Oddities::default();
            let object = schema::decode(resource.kind, body, &mut oddities).map_err(|why| handled(&why))?;
            unknown = oddities.unknown;
            object
        };
        let odd: Vec<String> = unknown
            .into_iter()
            .map(|path| format!("unknown field \"{path}\""))
            .chain(write.duplicates.iter().map(|path| format!("duplicate field \"{path}\"")))
            .collect();
        match write.unknown {
            Unknown::Strict if !odd.is_empty() => {
                return Err(handled(&format!("strict decoding error: {}", odd.join(", "))));
            }
            Unknown::Warn => write.warnings.extend(odd),
            Unknown::Strict | Unknown::Ignore => {}
        }
        Ok(object)
    }

    pub(super) fn namespace_of(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), Refusal> {
        let written = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
        if written != namespace {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if resource.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
        }
        Ok(())
    }

    /// May something new be made in this namespace?
    pub(super) fn admit(&self, resource: &Resource, namespace: &str, name: &str) -> Result<(), Refusal> {
        let Some(namespaces) = kinds::of_path("", "v1", "namespaces").filter(|_| resource.namespaced) else {
            return Ok(());
        };
        let found = self.object(namespaces, "", namespace)?.value(namespaces);
        if found["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let message = format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            resource.qualified()
        );
        let mut about = details(resource, name);
        about["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        Err(Refusal::new(403, "Forbidden", message, about))
    }

    /// A pod that has a node is labelled with where that is.
    pub(super) fn zone(&self, resource: &Resource, pod: &mut Value) {
        let (true, Some(node)) = (resource.kind == "Pod", pod["spec"]["nodeName"].as_str()) else { return };
        let Some(nodes) = kinds::of_path("", "v1", "nodes") else { return };
        let Ok(node) = self.object(nodes, "", node) else { return };
        let node = node.value(nodes);
        for label in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
            let place = &node["metadata"]["labels"][label];
            if !place.is_null() {
                pod["metadata"]["labels"][label] = place.clone();
            }
        }
    }

    pub(super) fn check(
        &self,
        resource: &Resource,
        name: &str,
        object: &Value,
        old: Option<&Value>,
        write: &mut Write,
    ) -> Result<(), Refusal> {
        let mut causes = Vec::new();
        if resource.custom {
            let mut shown = object.clone();
            if old.is_some() {
                drop_member(&mut shown, "status");
            } else {
                names::subdomain("metadata.name", name, &mut causes);
            }
            names::labels("metadata.labels", &object["metadata"]["labels"], &mut causes);
            custom::check(&shown, &mut causes);
        } else {
            causes = rules::validate(resource, object, old, &mut write.warnings);
        }
        refused(resource, name, &causes)
    }

    pub(super) fn check_status(
        &self,
        resource: &Resource,
        name: &str,
        object: &Value,
    ) -> Result<(), Refusal> {
        let mut causes = rules::validate_status(resource, object);
        if resource.custom {
            custom::check(&json!({ "status": object["status"] }), &mut causes);
        }
        refused(resource, name, &causes)
    }
}

fn refused(resource: &Resource, name: &str, causes: &[Cause]) -> Result<(), Refusal> {
    if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid(resource, name, causes)) }
}

/// Is the body of the kind that its path is for?
fn kind_of(resource: &Resource, body: &Value, write: &mut Write) -> Result<(), Refusal> {
    let word = |member: &str| body[member].as_str().unwrap_or_default();
    let (version, kind) = (word("apiVersion"), word("kind"));
    if kind.is_empty() && !resource.custom {
        return Ok(());
    }
    if kind == resource.kind && version == resource.api_version() {
        return Ok(());
    }
    if resource.custom && kind == resource.kind {
        let others = body.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let others = others.filter(|name| !["kind", "apiVersion", "metadata"].contains(name));
        write.warnings.extend(others.map(|name| format!("unknown field \"{name}\"")));
        return Err(Refusal::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            resource.api_version()
        )));
    }
    let internal =
        if resource.group.is_empty() { "core" } else { resource.group.split('.').next().unwrap_or("") };
    let short = version.rsplit('/').next().unwrap_or_default();
    Err(Refusal::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {}: converting ({short}.{kind}) to ({internal}.{}): unknown conversion",
        resource.kind, resource.kind
    )))
}

/// Is the new object written over the version, and the object, that its writer saw?
pub(super) fn precedence(resource: &Resource, name: &str, old: &Value, new: &Value) -> Result<(), Refusal> {
    let (was, is) = (&old["metadata"], &new["metadata"]);
    let version = is["resourceVersion"].as_str().unwrap_or_default();
    if version.is_empty() || version == "0" {
        if resource.custom {
            let cause =
                Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
            let mut refusal = Refusal::invalid(resource, name, &[cause]);
            let message = refusal.body["message"].as_str().unwrap_or_default();
            let message = message.replacen(&resource.qualified_kind(), &resource.qualified(), 1);
            refusal.body["message"] = json!(message);
            refusal.body["details"]["kind"] = json!(resource.plural);
            return Err(refusal);
        }
    } else if was["resourceVersion"] != version {
        return Err(Refusal::stale(resource, name));
    }
    if !is["uid"].is_null() && is["uid"] != was["uid"] {
        let namespace = was["namespace"].as_str().unwrap_or_default();
        let text = |uid: &Value| uid.as_str().unwrap_or_default().to_string();
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {}, UID in object meta: {}",
            resource.plural,
            key(namespace, name),
            text(&is["uid"]),
            text(&was["uid"])
        );
        return Err(Refusal::conflict(resource, name, &why));
    }
    Ok(())
}
