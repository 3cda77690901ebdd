//! Refusals, in the API server's own words: a client tells them apart by code, reason and details, so these must be right.

use serde_json::{Map, Value, json};

use super::kinds::Resource;

/// An answer that is not the object asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// A `Status` of the API.
    pub body: Value,
    /// Seconds that the client is to wait (`Retry-After`).
    pub retry_after: Option<u32>,
}

/// One field that is wrong: reason of the cause, what is wrong with it, where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid` and its like.
    pub reason: &'static str,
    /// What is said about the field.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

impl Cause {
    /// A value that cannot be; `value` as the server prints it.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        let message = format!("Invalid value: {value}: {why}");
        Self { reason: "FieldValueInvalid", message, field: field.into() }
    }

    /// A value that is absent.
    #[must_use]
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".into() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// A value that may not be there.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", message: format!("Forbidden: {why}"), field: field.into() }
    }

    /// A value that is none of a few.
    #[must_use]
    pub fn unsupported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
        Self { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// A value that is there twice.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
            field: field.into(),
        }
    }
}

impl Refusal {
    /// A refusal of any kind; an empty reason and null details are left out.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>, details: Value) -> Self {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message.into(), "code": code,
        });
        if !reason.is_empty() {
            body["reason"] = json!(reason);
        }
        if !details.is_null() {
            body["details"] = details;
        }
        Self { code, body, retry_after: None }
    }

    /// 400 in words of its own.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, Value::Null)
    }

    /// 404 for an object.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(404, "NotFound", message, details(resource, name))
    }

    /// 409 for a name that is taken.
    #[must_use]
    pub fn exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message, details(resource, name))
    }

    /// 409 for a write over a version that is not the newest.
    #[must_use]
    pub fn stale(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 for another reason.
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message, details(resource, name))
    }

    /// 422: what is wrong with an object, every field at once.
    #[must_use]
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        if resource.kind == "Event" {
            // Events are checked as those of the core group, whichever group they came by.
            return Self::invalid_as("Event", "", "Event", name, causes);
        }
        Self::invalid_as(&resource.qualified_kind(), resource.group, resource.kind, name, causes)
    }

    /// 422 for options of a request.
    #[must_use]
    pub fn invalid_options(kind: &str, causes: &[Cause]) -> Self {
        Self::invalid_as(&format!("{kind}.meta.k8s.io"), "meta.k8s.io", kind, "", causes)
    }

    fn invalid_as(qualified: &str, group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let mut said: Vec<String> = Vec::new();
        for text in causes.iter().map(|c| format!("{}: {}", c.field, c.message)) {
            if !said.contains(&text) {
                said.push(text);
            }
        }
        let said = if let [one] = &said[..] { one.clone() } else { format!("[{}]", said.join(", ")) };
        let causes: Vec<Value> = causes
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }))
            .collect();
        let mut details = Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.into(), json!(value));
            }
        }
        details.insert("causes".into(), causes.into());
        Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {said}"), details.into())
    }

    /// 504 for a version that is not there yet, after having waited for it.
    #[must_use]
    pub fn too_new(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let causes =
            json!([{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }]);
        let mut refusal =
            Self::new(504, "Timeout", message, json!({ "causes": causes, "retryAfterSeconds": 1 }));
        refusal.retry_after = Some(1);
        refusal
    }

    /// 410 for a list at a version that is thrown away.
    #[must_use]
    pub fn expired() -> Self {
        Self::new(410, "Expired", "The resourceVersion for the provided list is too old.", Value::Null)
    }

    /// 410 for a page after the snapshot is thrown away, with the token that goes on at the newest version.
    #[must_use]
    pub fn expired_continue(fresh: &str) -> Self {
        let mut refusal = Self::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
             the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
             Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
             deleted between the time the first chunk was returned and now may show up in the list.",
            Value::Null,
        );
        refusal.body["metadata"]["continue"] = json!(fresh);
        refusal
    }
}

/// Which object a refusal is about.
#[must_use]
pub fn details(resource: &Resource, name: &str) -> Value {
    let mut details = Map::new();
    for (key, value) in [("name", name), ("group", resource.group), ("kind", resource.plural)] {
        if !value.is_empty() {
            details.insert(key.into(), json!(value));
        }
    }
    details.into()
}
