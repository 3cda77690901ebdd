//! Server-side apply, as far as an agent of a node needs it: a manager owns what it applied, loses what it applies no more,
//! and is refused what another manager applied, unless it forces.
//!
//! Who owns what is kept in `metadata.managedFields`, of managers that apply alone. What came by an update has no owner here,
//! where the real server would tell the conflict.

use serde_json::{Map, Value, json};

use super::{Answer, Part, World, Write};
use crate::fakes::kubernetes::clock;
use crate::fakes::kubernetes::kinds::Resource;
use crate::fakes::kubernetes::patch;
use crate::fakes::kubernetes::status::Refusal;

impl World {
    /// Applies a configuration. Returns whether the object was made by it.
    ///
    /// # Errors
    /// Another manager applied another value (409), and whatever a create or update is refused for.
    #[expect(clippy::too_many_arguments, reason = "they are the parts of one request")]
    pub fn apply(
        &mut self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        part: Part,
        write: &mut Write,
        wanted: &Value,
        force: bool,
    ) -> Result<(bool, Answer), Refusal> {
        let word = |member: &str| wanted[member].as_str().unwrap_or_default();
        if word("kind").is_empty() || word("apiVersion").is_empty() {
            let (kind, version) = (word("kind"), word("apiVersion"));
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            return Err(Refusal::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
        }
        if !wanted["metadata"]["managedFields"].is_null() {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        let mut wanted = wanted.clone();
        wanted["metadata"]["name"] = json!(name);
        let owned = fields(resource.kind, "", &body(&wanted));
        let subresource = if part == Part::Status { "status" } else { "" };
        let mark = |object: &mut Value, manager: &str| own(resource, object, manager, subresource, &owned);
        let manager = write.manager.clone();
        if self.object(resource, namespace, name).is_err() {
            if part != Part::Main {
                return Err(Refusal::not_found(resource, name));
            }
            let made = self.create(resource, namespace, &wanted, write)?;
            return Ok((true, self.marked(resource, made, write, |object| mark(object, &manager))));
        }
        let applied = self.update(resource, namespace, name, part, write, |old| {
            let mut conflicts = Vec::new();
            for entry in old["metadata"]["managedFields"].as_array().into_iter().flatten() {
                let other = entry["manager"].as_str().unwrap_or_default();
                let same =
                    other == manager && entry["subresource"].as_str().unwrap_or_default() == subresource;
                if !same {
                    let mut paths = Vec::new();
                    shared(&entry["fieldsV1"], &owned, old, &wanted, "", &mut paths);
                    conflicts.extend(paths.into_iter().map(|path| (other.to_string(), path)));
                }
            }
            if !conflicts.is_empty() && !force {
                return Err(conflict(&conflicts));
            }
            let mut new = old.clone();
            for entry in old["metadata"]["managedFields"].as_array().into_iter().flatten() {
                let same = entry["manager"] == manager.as_str()
                    && entry["subresource"].as_str().unwrap_or_default() == subresource;
                if same {
                    disown(&mut new, &entry["fieldsV1"], &owned);
                }
            }
            patch::strategic(resource.kind, &mut new, &body(&wanted));
            Ok(new)
        })?;
        Ok((false, self.marked(resource, applied, write, |object| mark(object, &manager))))
    }

    /// Writes down who owns what: without a version of its own if that is all that is new.
    fn marked(
        &mut self,
        resource: &Resource,
        answer: Answer,
        write: &Write,
        mark: impl Fn(&mut Value) -> bool,
    ) -> Answer {
        match answer {
            Answer::Stored(object) if !write.dry_run => {
                let mut value = object.value(resource);
                if mark(&mut value) {
                    Answer::Stored(self.store.amend(resource, value))
                } else {
                    Answer::Stored(object)
                }
            }
            other => other,
        }
    }
}

/// What is applied of a configuration: all but what names the object.
fn body(wanted: &Value) -> Value {
    let mut body = wanted.clone();
    if let Some(members) = body.as_object_mut() {
        members.remove("kind");
        members.remove("apiVersion");
        if let Some(metadata) = members.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| name == "labels" || name == "annotations" || name == "finalizers");
        }
        if members.get("metadata").is_some_and(|metadata| metadata == &json!({})) {
            members.remove("metadata");
        }
    }
    body
}

/// The set of fields of a configuration (`FieldsV1`).
fn fields(kind: &str, path: &str, value: &Value) -> Value {
    let mut set = Map::new();
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                set.insert(format!("f:{name}"), fields(kind, &path, value));
            }
        }
        Value::Array(items) => {
            if let Some(key) = patch::merge_key(kind, path) {
                for item in items {
                    let mut of_item = fields(kind, path, item);
                    of_item["."] = json!({});
                    set.insert(format!("k:{}", json!({ key: item[key] })), of_item);
                }
            }
        }
        _ => {}
    }
    Value::Object(set)
}

/// What a field of a set leads to within an object.
fn within<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    if let Some(name) = field.strip_prefix("f:") {
        return value.get(name);
    }
    let key: Value = serde_json::from_str(field.strip_prefix("k:")?).ok()?;
    value
        .as_array()?
        .iter()
        .find(|item| key.as_object().into_iter().flatten().all(|(name, value)| item.get(name) == Some(value)))
}

/// Paths that both sets have, and at which the values differ.
fn shared(theirs: &Value, ours: &Value, old: &Value, new: &Value, path: &str, found: &mut Vec<String>) {
    for (field, sub) in ours.as_object().into_iter().flatten() {
        let (Some(other), true) = (theirs.get(field), field != ".") else { continue };
        let (before, after) = (within(old, field), within(new, field));
        let name = field.strip_prefix("f:").map_or_else(|| format!("[{field}]"), |name| format!(".{name}"));
        let path = format!("{path}{name}");
        let leaf = sub.as_object().is_none_or(Map::is_empty);
        match (before, after) {
            (Some(before), Some(after)) if leaf && before != after => found.push(path),
            (Some(before), Some(after)) if !leaf => shared(other, sub, before, after, &path, found),
            _ => {}
        }
    }
}

/// Removes what a manager applied before and applies no more.
fn disown(object: &mut Value, before: &Value, now: &Value) {
    for (field, sub) in before.as_object().into_iter().flatten() {
        let kept = now.get(field);
        let leaf = sub.as_object().is_none_or(|set| set.keys().all(|key| key == "."));
        if let Some(name) = field.strip_prefix("f:") {
            if kept.is_none() && leaf {
                super::drop_member(object, name);
            } else if let Some(value) = object.get_mut(name) {
                disown(value, sub, kept.unwrap_or(&Value::Null));
            }
        } else if let (Some(key), Some(items)) = (field.strip_prefix("k:"), object.as_array_mut()) {
            let key: Value = serde_json::from_str(key).unwrap_or_default();
            let is =
                |item: &Value| key.as_object().into_iter().flatten().all(|(n, v)| item.get(n) == Some(v));
            match kept {
                None => items.retain(|item| !is(item)),
                Some(kept) => {
                    for item in items.iter_mut().filter(|item| is(item)) {
                        disown(item, sub, kept);
                    }
                }
            }
        }
    }
}

/// Notes what a manager owns, and takes it from the others. Returns whether that is new.
fn own(resource: &Resource, object: &mut Value, manager: &str, subresource: &str, owned: &Value) -> bool {
    let metadata = &mut object["metadata"];
    let mut entries = metadata["managedFields"].as_array().cloned().unwrap_or_default();
    let same = |entry: &Value| {
        entry["manager"] == manager && entry["subresource"].as_str().unwrap_or_default() == subresource
    };
    if entries.iter().any(|entry| same(entry) && entry["fieldsV1"] == *owned) {
        return false;
    }
    entries.retain(|entry| !same(entry));
    for entry in &mut entries {
        without(&mut entry["fieldsV1"], owned);
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|set| !set.is_empty()));
    let mut entry = json!({
        "manager": manager, "operation": "Apply", "apiVersion": resource.api_version(),
        "time": clock::text(clock::now()), "fieldsType": "FieldsV1", "fieldsV1": owned,
    });
    if !subresource.is_empty() {
        entry["subresource"] = json!(subresource);
    }
    entries.insert(0, entry);
    metadata["managedFields"] = json!(entries);
    true
}

/// Takes the fields of one set out of another.
fn without(set: &mut Value, other: &Value) {
    let Some(members) = set.as_object_mut() else { return };
    members.retain(|field, sub| {
        let Some(other) = other.get(field) else { return true };
        let leaf = sub.as_object().is_none_or(Map::is_empty);
        without(sub, other);
        !leaf && sub.as_object().is_some_and(|set| !set.is_empty())
    });
}

fn conflict(conflicts: &[(String, String)]) -> Refusal {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(manager, path)| {
            let message = format!("conflict with \"{manager}\"");
            json!({ "reason": "FieldManagerConflict", "message": message, "field": path })
        })
        .collect();
    let message = match conflicts {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with \"{manager}\": {path}"),
        _ => {
            let mut text = format!("Apply failed with {} conflicts:", conflicts.len());
            let mut last = "";
            for (manager, path) in conflicts {
                if manager != last {
                    let first = if last.is_empty() { " " } else { "\n" };
                    text.push_str(&format!("{first}conflicts with \"{manager}\":"));
                    last = manager;
                }
                text.push_str(&format!("\n- {path}"));
            }
            text
        }
    };
    Refusal::new(409, "Conflict", message, json!({ "causes": causes }))
}
