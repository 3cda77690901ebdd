//! The recordings, as steps in their order.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::http::Request;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Step {
    Exchange(Value),
    Control(Value),
    /// A watch opens: its place among the watches.
    Open(usize),
    /// And closes.
    Close(usize),
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) steps: Vec<Step>,
    pub(crate) watches: Vec<Value>,
}

/// The cases lie beside the repository.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/kubernetes-api")
}

fn lines(name: &str) -> Result<Vec<Value>> {
    let path = directory().join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: the recordings are to lie beside the repository", path.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

pub(crate) fn read() -> Result<Recording> {
    let watches = lines("watches.jsonl")?;
    let mut steps = Vec::new();
    for (i, watch) in watches.iter().enumerate() {
        steps.push((watch["seq"].as_u64(), Step::Open(i)));
        steps.push((watch["closed_seq"].as_u64(), Step::Close(i)));
    }
    for line in lines("exchanges.jsonl")? {
        let seq = line["seq"].as_u64();
        steps.push((seq, if line["control"].is_null() { Step::Exchange(line) } else { Step::Control(line) }));
    }
    ensure!(steps.iter().all(|(seq, _)| seq.is_some()), "a line has no seq");
    steps.sort_by_key(|(seq, _)| *seq);
    Ok(Recording { steps: steps.into_iter().map(|(_, step)| step).collect(), watches })
}

/// The request of a line, with what came from earlier answers replaced by what came here.
pub(crate) fn request(line: &Value, answer_of: impl Fn(&str) -> Option<Value>) -> Result<Request> {
    let mut recorded = line["request"].clone();
    for reference in line["request"]["refs"].as_array().into_iter().flatten() {
        let word = |member: &str| reference[member].as_str().unwrap_or_default();
        let came = answer_of(word("from")).and_then(|body| body.pointer(word("pointer")).cloned());
        let came = came.with_context(|| format!("{reference}: there was no such answer here"))?;
        let place = recorded.pointer_mut(word("at"));
        *place.with_context(|| format!("{reference}: there is no such place"))? = came;
    }
    let mut target = recorded["path"].as_str().unwrap_or_default().to_string();
    for (i, (name, value)) in recorded["query"].as_object().into_iter().flatten().enumerate() {
        target.push(if i == 0 { '?' } else { '&' });
        target += &format!("{name}={}", encoded(value.as_str().unwrap_or_default()));
    }
    let mut headers = vec![("User-Agent".to_string(), "recorder/1.0".to_string())];
    for (name, value) in recorded["headers"].as_object().into_iter().flatten() {
        headers.push((name.clone(), value.as_str().unwrap_or_default().into()));
    }
    let token = match recorded["as"].as_str() {
        None => Some("admin"),
        Some("none") => None,
        Some(other) => Some(other),
    };
    headers.extend(token.map(|token| ("Authorization".into(), format!("Bearer {token}"))));
    let body = recorded["body_raw"].as_str().map(str::to_string);
    let body = body.or_else(|| recorded.get("body").map(written));
    Ok(Request { method: recorded["method"].as_str().unwrap_or_default().into(), target, headers, body })
}

/// A body as the recorder wrote it, for refusals that quote it: with a space after each colon and comma.
fn written(value: &Value) -> String {
    let list = |open, parts: Vec<String>, close| format!("{open}{}{close}", parts.join(", "));
    match value {
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), written(value)));
            list('{', members.collect(), '}')
        }
        Value::Array(items) => list('[', items.iter().map(written).collect(), ']'),
        other => other.to_string(),
    }
}

/// A value of a query (RFC 3986 §2.1).
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
