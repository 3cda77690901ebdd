//! Lists: at which version, which page of it, and what a client is told to go on.

use std::sync::Arc;

use serde_json::{Value, json};

use super::kinds::Resource;
use super::request::Query;
use super::selector::Selector;
use super::status::{Cause, Refusal};
use super::store::{Object, Store};

/// A list, or a page of it.
#[derive(Debug)]
pub struct Page {
    /// The objects, in the order of their keys.
    pub objects: Vec<Arc<Object>>,
    /// The version of which this is true.
    pub rv: u64,
    /// The token that the next page is had by.
    pub next: Option<String>,
    /// How many objects the pages after this one have; not told with a selector.
    pub remaining: Option<usize>,
}

/// What a list comes to.
#[derive(Debug)]
pub enum Listed {
    /// It can be answered.
    Page(Page),
    /// It asks for a version that is not there yet.
    TooNew(u64),
}

/// At which version a list is wanted.
enum At {
    Newest,
    Exactly(u64),
    NotOlderThan(u64),
    /// Continued at the newest version, from a token of an expired one.
    Inconsistent,
}

/// Lists.
///
/// # Errors
/// The parameters are wrong, or the version is no longer known (410).
pub fn list(store: &Store, resource: &Resource, namespace: &str, query: &Query) -> Result<Listed, Refusal> {
    let selector = Selector::parse(resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    check_match(query)?;
    let version = version(query.text("resourceVersion"))
        .map_err(|why| Refusal::bad_request(format!("invalid resource version: {why}")))?;
    let token = query.text("continue");
    let exactly = query.text("resourceVersionMatch") == "Exact";
    let (at, start) = if !token.is_empty() {
        if version.is_some_and(|version| version > 0) {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Refusal::bad_request(message));
        }
        let (rv, start) = read_token(token)?;
        (u64::try_from(rv).map_or(At::Inconsistent, At::Exactly), start)
    } else {
        let unmatched = query.text("resourceVersionMatch").is_empty();
        let at = match version {
            None | Some(0) => At::Newest,
            // A limit without a match has been exact since before there was a match.
            Some(version) if exactly || (limit > 0 && unmatched) => At::Exactly(version),
            Some(version) => At::NotOlderThan(version),
        };
        (at, String::new())
    };
    let limit = if version == Some(0) { 0 } else { limit };
    let (rv, snapshot) = match at {
        At::Exactly(rv) | At::NotOlderThan(rv) if rv > store.rv() => return Ok(Listed::TooNew(rv)),
        At::Newest | At::Inconsistent | At::NotOlderThan(_) => (store.rv(), None),
        At::Exactly(rv) => match store.at(resource, namespace, rv) {
            Some(objects) => (rv, Some(objects)),
            None if token.is_empty() => return Err(Refusal::expired()),
            None => return Err(Refusal::expired_continue(&write_token(-1, &start))),
        },
    };
    let after = if namespace.is_empty() { start } else { format!("{namespace}/{start}") };
    let selected = |object: &Arc<Object>| *object.key >= *after && object.matches(resource, &selector);
    let mut objects: Vec<Arc<Object>> = match snapshot {
        Some(objects) => objects.into_iter().filter(selected).collect(),
        None => store.table(resource).range(namespace).filter(|o| selected(o)).cloned().collect(),
    };
    let mut next = None;
    let mut remaining = None;
    if limit > 0 && objects.len() > limit {
        remaining = selector.is_empty().then_some(objects.len() - limit);
        objects.truncate(limit);
        next = objects.last().map(|last| {
            let key = last.key.strip_prefix(namespace).unwrap_or(&last.key);
            let rv = i64::try_from(rv).unwrap_or(i64::MAX);
            write_token(rv, &format!("{}\0", key.strip_prefix('/').unwrap_or(key)))
        });
    }
    Ok(Listed::Page(Page { objects, rv, next, remaining }))
}

/// A version, none if it is not given.
///
/// # Errors
/// It is no number, in the words of the real server.
pub fn version(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax")
    })
}

fn check_match(query: &Query) -> Result<(), Refusal> {
    const AT: &str = "resourceVersionMatch";
    let (how, version) = (query.text(AT), query.text("resourceVersion"));
    let cause = match how {
        "" => return Ok(()),
        _ if version.is_empty() => {
            Cause::forbidden(AT, "resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        "Exact" if version == "0" => {
            Cause::forbidden(AT, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        "Exact" | "NotOlderThan" => return Ok(()),
        _ => Cause::unsupported(AT, &json!(how), &["Exact", "NotOlderThan", ""]),
    };
    Err(Refusal::invalid_options("ListOptions", &[cause]))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A token: base64 (RFC 4648 §5, no padding) of JSON, as the real server's; no client looks into it.
fn write_token(rv: i64, start: &str) -> String {
    let text = json!({ "v": "meta.k8s.io/v1", "rv": rv, "start": start }).to_string();
    let mut token = String::new();
    for group in text.as_bytes().chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            token.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    token
}

/// The token that goes on at the newest version, from where this one would have.
///
/// # Errors
/// It is no token.
pub fn renewed(token: &str) -> Result<String, Refusal> {
    let (_, start) = read_token(token)?;
    Ok(write_token(-1, &start))
}

fn read_token(token: &str) -> Result<(i64, String), Refusal> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for letter in token.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter).unwrap_or(0);
        bits = bits << 6 | u32::try_from(value).unwrap_or(0);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    let token: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    match (token["rv"].as_i64(), token["start"].as_str()) {
        (Some(rv), Some(start)) if rv >= -1 => Ok((rv, start.into())),
        _ => {
            let odd = bytes.iter().map(|b| char::from(*b)).next().unwrap_or(' ');
            let odd =
                if odd.is_ascii_graphic() { odd.to_string() } else { format!("\\u{:04x}", u32::from(odd)) };
            Err(Refusal::bad_request(format!(
                "invalid continue token: continue key is not valid: invalid character '{odd}' looking for beginning of value"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for start in ["", "a", "ab\0", "demo/p1\0"] {
            assert_eq!(read_token(&write_token(7, start)), Ok((7, start.to_string())));
        }
        assert_eq!(read_token(&write_token(-1, "g1\0")), Ok((-1, "g1\0".to_string())));
        assert!(read_token("garbage").is_err());
    }
}
