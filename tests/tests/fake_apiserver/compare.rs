//! What of two answers must be the same, and what may differ: the README of the recordings says which is which.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

/// An answer with what no two servers have in common put out of sight.
pub(crate) fn stable(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let generated = members.contains_key("generateName");
            // The only condition of which the server itself writes the time, at the binding.
            let scheduled = members.get("type").is_some_and(|kind| kind == "PodScheduled");
            let known = members.iter().filter(|(name, _)| *name != "managedFields");
            let known = known.map(|(name, value)| {
                let stable = match (name.as_str(), value) {
                    ("uid", Value::String(_)) => "a uid".into(),
                    ("resourceVersion", Value::String(text)) if !text.is_empty() => "a version".into(),
                    ("continue", Value::String(text)) if !text.is_empty() => "a token".into(),
                    ("creationTimestamp" | "deletionTimestamp", Value::String(text)) if is_time(text) => {
                        "a time".into()
                    }
                    ("lastTransitionTime", Value::String(text)) if scheduled && is_time(text) => {
                        "a time".into()
                    }
                    ("name", Value::String(_)) if generated => "a generated name".into(),
                    ("clusterIP", Value::String(text)) => address(text).into(),
                    ("nodePort", Value::Number(port)) if port.as_u64().is_some_and(in_port_range) => {
                        "a port of the range".into()
                    }
                    ("clusterIPs", Value::Array(addresses)) => addresses
                        .iter()
                        .map(|a| Value::from(address(a.as_str().unwrap_or_default())))
                        .collect(),
                    // The real server has no order among causes, and says the same thing more than once.
                    ("causes", Value::Array(causes)) => {
                        let mut causes: Vec<Value> = causes.iter().map(stable).collect();
                        causes.sort_by_key(Value::to_string);
                        causes.dedup();
                        Value::from(causes)
                    }
                    _ => stable(value),
                };
                (name.clone(), stable)
            });
            Value::Object(known.collect())
        }
        Value::Array(items) => items.iter().map(stable).collect(),
        Value::String(text) => message(text).into(),
        other => other.clone(),
    }
}

fn is_time(text: &str) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:ddZ";
    text.len() == pattern.len()
        && text.chars().zip(pattern.chars()).all(|(c, p)| if p == 'd' { c.is_ascii_digit() } else { c == p })
}

fn in_port_range(port: u64) -> bool {
    (30_000..=32_767).contains(&port)
}

fn address(text: &str) -> &str {
    if text.starts_with("10.96.0.") { "an address of the range" } else { text }
}

/// A text without identities and current versions, and without the difference of two Go structures that the real server
/// prints for a pod update that it refuses.
fn message(text: &str) -> String {
    let text = text.split("\n@@").next().unwrap_or_default();
    let mut masked = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        if rest.get(..36).is_some_and(is_uid) {
            masked.push_str("a uid");
            rest = &rest[36..];
        } else if let Some(after) = rest.strip_prefix("resource version: ").filter(|after| digits(after) > 0)
        {
            masked.push_str("resource version: a version");
            rest = &after[digits(after)..];
        } else if let Some(after) = rest.strip_prefix("current: ").filter(|after| digits(after) > 0) {
            masked.push_str("current: a version");
            rest = &after[digits(after)..];
        } else if let Some(after) =
            rest.strip_prefix('(').filter(|a| digits(a) > 0 && a[digits(a)..].starts_with(')'))
        {
            masked.push_str("(a version)");
            rest = &after[digits(after) + 1..];
        } else {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    masked
}

fn is_uid(text: &str) -> bool {
    text.bytes().enumerate().all(|(i, byte)| match i {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Where two values differ, at most a few places.
pub(crate) fn differences(want: &Value, got: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differ("", want, got, &mut found);
    found.truncate(5);
    found
}

fn differ(at: &str, want: &Value, got: &Value, found: &mut Vec<String>) {
    let absent = Value::from("(absent)");
    match (want, got) {
        _ if want == got => {}
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                let member = |of: &serde_json::Map<String, Value>| of.get(name).unwrap_or(&absent).clone();
                differ(&format!("{at}/{name}"), &member(a), &member(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{at}/{i}"), a, b, found);
            }
        }
        _ => found.push(format!("{at}: recorded {want}, here {got}")),
    }
}

/// What the unstable values of both servers have to do with each other, over the whole replay.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    uids: HashMap<String, String>,
    back: HashMap<String, String>,
    /// Recorded version to ours, of everything.
    versions: BTreeMap<u64, u64>,
    /// The same, of objects alone: each comes from a write of its own.
    writes: BTreeMap<u64, u64>,
}

impl Relations {
    /// Takes in two values of the same shape.
    pub(crate) fn take(&mut self, want: &Value, got: &Value) -> Vec<String> {
        let mut broken = Vec::new();
        self.walk(want, got, &mut broken);
        broken
    }

    fn walk(&mut self, want: &Value, got: &Value, broken: &mut Vec<String>) {
        match (want, got) {
            (Value::Object(a), Value::Object(b)) => {
                let list = a.contains_key("items");
                let metadata = (&want["metadata"]["resourceVersion"], &got["metadata"]["resourceVersion"]);
                if let (Some(recorded), Some(ours)) = (number(metadata.0), number(metadata.1)) {
                    // A bookmark's object has no name, and comes from no write.
                    let write = !list && a["metadata"]["name"].is_string();
                    broken.extend(self.version(recorded, ours, write));
                }
                for (name, a) in a.iter().filter(|(name, _)| *name != "managedFields") {
                    let Some(b) = b.get(name) else { continue };
                    match (name.as_str(), a.as_str(), b.as_str()) {
                        ("uid", Some(a), Some(b)) => broken.extend(self.uid(a, b)),
                        _ => self.walk(a, b, broken),
                    }
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                for (a, b) in a.iter().zip(b) {
                    self.walk(a, b, broken);
                }
            }
            _ => {}
        }
    }

    fn uid(&mut self, recorded: &str, ours: &str) -> Option<String> {
        let known = self.uids.entry(recorded.into()).or_insert_with(|| ours.into()).clone();
        let back = self.back.entry(ours.into()).or_insert_with(|| recorded.into()).clone();
        (known != ours || back != recorded)
            .then(|| format!("uid {recorded} was {known} here and is {ours}, which was {back}"))
    }

    fn version(&mut self, recorded: u64, ours: u64, write: bool) -> Option<String> {
        let known = *self.versions.entry(recorded).or_insert(ours);
        if known != ours {
            return Some(format!("version {recorded} was {known} here and is {ours}"));
        }
        let before = self.versions.range(..recorded).next_back();
        let after = self.versions.range(recorded + 1..).next();
        if before.is_some_and(|(_, b)| *b > ours) || after.is_some_and(|(_, a)| *a < ours) {
            return Some(format!("version {recorded} is {ours} here, between {before:?} and {after:?}"));
        }
        if write {
            self.writes.insert(recorded, ours);
            let before = self.writes.range(..recorded).next_back();
            let after = self.writes.range(recorded + 1..).next();
            if before.is_some_and(|(_, b)| *b == ours) || after.is_some_and(|(_, a)| *a == ours) {
                return Some(format!("the write {recorded} is {ours} here, as is {before:?} or {after:?}"));
            }
        }
        None
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}
