//! Custom resources: read by the schema of their CRD and not by structs of Go, so that an empty list is kept, null is dropped,
//! and a value of a wrong type is one more thing that is invalid (422).
//!
//! The one that there is is the VPC CNI's `ENIConfig` (`crd.k8s.amazonaws.com/v1alpha1`).

use serde_json::{Map, Value};

use super::schema;
use super::status::Cause;

/// A piece of the schema.
enum Shape {
    Text,
    Time,
    Integer,
    List(&'static Shape),
    Object(&'static [(&'static str, Shape)], &'static [&'static str]),
}

static CONDITION: Shape = Shape::Object(
    &[
        ("type", Shape::Text),
        ("status", Shape::Text),
        ("reason", Shape::Text),
        ("message", Shape::Text),
        ("observedGeneration", Shape::Integer),
        ("lastTransitionTime", Shape::Time),
    ],
    &["type", "status"],
);
static TEXT: Shape = Shape::Text;
static ENI_CONFIG: Shape = Shape::Object(
    &[
        (
            "spec",
            Shape::Object(&[("subnet", Shape::Text), ("securityGroups", Shape::List(&TEXT))], &["subnet"]),
        ),
        ("status", Shape::Object(&[("conditions", Shape::List(&CONDITION))], &[])),
    ],
    &[],
);

/// Reads an `ENIConfig`; what its schema does not know is dropped, and its path told in `unknown`.
#[must_use]
pub fn decode(object: &Value, unknown: &mut Vec<String>) -> Value {
    prune(&ENI_CONFIG, "", object, unknown)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

fn prune(shape: &Shape, path: &str, value: &Value, unknown: &mut Vec<String>) -> Value {
    match (shape, value) {
        (Shape::Object(members, _), Value::Object(object)) => {
            let mut kept = Map::new();
            for (name, value) in object {
                let at = join(path, name);
                let known = members.iter().find(|(known, _)| known == name);
                match known {
                    Some(_) if value.is_null() => {}
                    Some((_, shape)) => {
                        kept.insert(name.clone(), prune(shape, &at, value, unknown));
                    }
                    None if path.is_empty() && ["kind", "apiVersion"].contains(&name.as_str()) => {}
                    None if path.is_empty() && name == "metadata" => {
                        kept.insert(name.clone(), value.clone());
                    }
                    None => unknown.push(at),
                }
            }
            Value::Object(kept)
        }
        (Shape::List(shape), Value::Array(items)) => {
            let items = items.iter().enumerate();
            items.map(|(i, item)| prune(shape, &format!("{path}[{i}]"), item, unknown)).collect()
        }
        _ => value.clone(),
    }
}

/// What of an `ENIConfig` is not as its schema wants it.
pub fn check(object: &Value, causes: &mut Vec<Cause>) {
    shape(&ENI_CONFIG, "", object, causes);
}

fn shape(shape_of: &Shape, path: &str, value: &Value, causes: &mut Vec<Cause>) {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let mut refuse = |wanted: &str, found: &str, place: &str| {
        let message =
            format!("Invalid value: \"{found}\": {place} in body must be of type {wanted}: \"{found}\"");
        causes.push(Cause { reason: "FieldValueTypeInvalid", message, field: path.into() });
    };
    match (shape_of, value) {
        (Shape::Text, Value::String(_)) => {}
        (Shape::Integer, Value::Number(n)) if n.is_i64() => {}
        (Shape::Time, Value::String(text)) => {
            if schema::time(text, false).is_err() {
                // The status is checked as a document of its own, and the message says where in that.
                refuse("date-time", text, path.strip_prefix("status.").unwrap_or(path));
            }
        }
        (Shape::List(inner), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                shape(inner, &format!("{path}[{i}]"), item, causes);
            }
        }
        (Shape::Object(members, required), Value::Object(object)) => {
            for name in *required {
                if !object.contains_key(*name) {
                    causes.push(Cause::required(join(path, name), ""));
                }
            }
            for (name, inner) in *members {
                if let Some(value) = object.get(*name) {
                    shape(inner, &join(path, name), value, causes);
                }
            }
        }
        (Shape::Text | Shape::Time, _) => refuse("string", found, path),
        (Shape::Integer, _) => refuse("integer", found, path),
        (Shape::List(_), _) => refuse("array", found, path),
        (Shape::Object(..), _) => refuse("object", found, path),
    }
}
