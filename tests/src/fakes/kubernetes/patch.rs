//! The three patches that carry a difference: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and the strategic merge patch of
//! Kubernetes, which knows by what key the items of a list are told apart.

use serde_json::{Map, Value};

/// Merges a patch of RFC 7386 into an object: null removes, lists are replaced.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = object_of(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it has just been made an object"),
    }
}

/// The key by which the items of a list are told apart; none if a list is replaced as a whole.
#[must_use]
pub fn merge_key(kind: &str, path: &str) -> Option<&'static str> {
    Some(match (kind, path) {
        (_, "metadata.ownerReferences") => "uid",
        ("Pod" | "Node" | "Namespace" | "Service", "status.conditions") | ("Node", "status.addresses") => {
            "type"
        }
        ("Service", "spec.ports") => "port",
        ("Pod", "spec.containers.ports" | "spec.initContainers.ports") => "containerPort",
        ("Pod", "spec.containers.volumeMounts" | "spec.initContainers.volumeMounts") => "mountPath",
        ("Pod", "status.podIPs" | "status.hostIPs" | "spec.hostAliases") => "ip",
        (
            "Pod",
            "spec.containers"
            | "spec.initContainers"
            | "spec.ephemeralContainers"
            | "spec.volumes"
            | "spec.imagePullSecrets"
            | "spec.containers.env"
            | "spec.initContainers.env",
        ) => "name",
        _ => return None,
    })
}

/// Merges a strategic merge patch into an object of a kind.
pub fn strategic(kind: &str, target: &mut Value, patch: &Value) {
    strategic_at(kind, "", target, patch);
}

fn strategic_at(kind: &str, path: &str, target: &mut Value, patch: &Value) {
    let Value::Object(entries) = patch else {
        *target = patch.clone();
        return;
    };
    if entries.get("$patch").is_some_and(|how| how == "replace") {
        *target = patch.clone();
        object_of(target).remove("$patch");
        return;
    }
    let target = object_of(target);
    for (key, value) in entries.iter().filter(|(key, _)| !key.starts_with('$')) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Array(items) => {
                let list = target.entry(key).or_insert(Value::Null);
                match (merge_key(kind, &path), list.as_array_mut()) {
                    (Some(by), Some(list)) => *list = merge_lists(kind, &path, by, list, items),
                    (None, Some(list)) if path == "metadata.finalizers" => {
                        let new: Vec<_> = items.iter().filter(|item| !list.contains(item)).cloned().collect();
                        list.extend(new);
                    }
                    _ => *list = items.iter().filter(|item| item.get("$patch").is_none()).cloned().collect(),
                }
            }
            _ => strategic_at(kind, &path, target.entry(key).or_insert(Value::Null), value),
        }
    }
}

/// Items of the patch are merged into those of the same key. Where the server knows an order of two it is kept; an item that
/// is new to it comes before those that the patch does not name.
fn merge_lists(kind: &str, path: &str, by: &str, server: &[Value], patch: &[Value]) -> Vec<Value> {
    let place = |item: &Value| server.iter().position(|known| known[by] == item[by]);
    let mut named = Vec::new();
    for item in patch {
        if item["$patch"] == "delete" {
            continue;
        }
        let mut merged = place(item).map_or(Value::Null, |at| server[at].clone());
        strategic_at(kind, path, &mut merged, item);
        named.push(merged);
    }
    let other = server.iter().filter(|known| !patch.iter().any(|item| item[by] == known[by]));
    let (mut named, mut other) = (named.into_iter().peekable(), other.cloned().peekable());
    let mut list = Vec::new();
    loop {
        let first = match (named.peek(), other.peek()) {
            (Some(left), Some(right)) => match (place(left), place(right)) {
                (Some(left), Some(right)) => left < right,
                _ => true,
            },
            (left, _) => left.is_some(),
        };
        match if first { named.next() } else { other.next() } {
            Some(item) => list.push(item),
            None => return list,
        }
    }
}

/// Applies a JSON patch.
///
/// # Errors
/// An operation that cannot be done: the patch as a whole has no effect.
pub fn json(target: &mut Value, operations: &[Value]) -> Result<(), String> {
    for operation in operations {
        let text = |member: &str| operation[member].as_str().unwrap_or_default();
        let value = || operation.get("value").cloned().ok_or("the operation has no value".to_string());
        let path = text("path");
        let absent = || format!("there is no \"{path}\"");
        match text("op") {
            "add" => add(target, path, value()?)?,
            "remove" => {
                take(target, path)?;
            }
            "replace" => *target.pointer_mut(path).ok_or_else(absent)? = value()?,
            "test" => {
                if target.pointer(path).unwrap_or(&Value::Null) != &value()? {
                    return Err(format!("\"{path}\" is another value"));
                }
            }
            "move" => {
                let moved = take(target, text("from"))?;
                add(target, path, moved)?;
            }
            "copy" => {
                let copied = target.pointer(text("from")).cloned().ok_or_else(absent)?;
                add(target, path, copied)?;
            }
            other => return Err(format!("there is no operation \"{other}\"")),
        }
    }
    Ok(())
}

fn split(path: &str) -> Result<(&str, String), String> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("\"{path}\" is no path"))?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (parent, last) = split(path)?;
    match target.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            map.insert(last, value);
        }
        Some(Value::Array(list)) => {
            let at = if last == "-" { Some(list.len()) } else { last.parse().ok() };
            let at = at.filter(|at| *at <= list.len()).ok_or_else(|| format!("\"{path}\" is no place"))?;
            list.insert(at, value);
        }
        _ => return Err(format!("there is no \"{parent}\"")),
    }
    Ok(())
}

fn take(target: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, last) = split(path)?;
    let absent = || format!("there is no \"{path}\"");
    match target.pointer_mut(parent) {
        Some(Value::Object(map)) => map.remove(&last).ok_or_else(absent),
        Some(Value::Array(list)) => {
            let at = last.parse().ok().filter(|at| *at < list.len()).ok_or_else(absent)?;
            Ok(list.remove(at))
        }
        _ => Err(absent()),
    }
}
