//! Manifests in files.

use serde::Deserialize;
use serde_json::Value;

/// Every object of a text of YAML documents (JSON is YAML); those of a `List` one by one.
///
/// # Errors
/// It is no YAML: which document, and why.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let value = Value::deserialize(document).map_err(|e| format!("document {}: {e}", i + 1))?;
        match value {
            Value::Null => {}
            mut list if list["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => {
                objects.extend(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            }
            object => objects.push(object),
        }
    }
    Ok(objects)
}
