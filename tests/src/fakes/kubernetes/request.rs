//! A request, as far as its head says what it wants: which resource, which object, in which form.

use std::collections::BTreeMap;

use super::kinds::{self, Resource};
use super::status::Refusal;
use super::store::Form;
use serde_json::{Value, json};

/// The query of a request, decoded.
#[derive(Debug, Clone, Default)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads a query string.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent(key), percent(value))
                })
                .collect(),
        )
    }

    /// A parameter; empty if it is absent.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// Is the parameter there and not false?
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| value != "false" && value != "0")
    }

    /// The same with another value of one parameter.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.0.insert(key.into(), value.into());
        other
    }

    /// Selects one object by its name.
    pub fn select_name(&mut self, name: &str) {
        let fields = self.0.entry("fieldSelector".into()).or_default();
        let comma = if fields.is_empty() { "" } else { "," };
        fields.push_str(&format!("{comma}metadata.name={name}"));
    }

    /// Is the parameter there?
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Refusal> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let refusal =
            || Refusal::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax"));
        text.parse().map(Some).map_err(|_| refusal())
    }
}

fn percent(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let code = rest.as_str_pair();
                code.and_then(|code| u8::from_str_radix(&code, 16).ok()).unwrap_or(b'%')
            }
            _ => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next two characters of an escape.
trait Pair {
    fn as_str_pair(&mut self) -> Option<String>;
}

impl Pair for std::str::Bytes<'_> {
    fn as_str_pair(&mut self) -> Option<String> {
        Some([self.next()?, self.next()?].into_iter().map(char::from).collect())
    }
}

/// What a path names.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its resource.
    pub resource: &'static Resource,
    /// Empty for all of them, and for what has none.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
    /// `status`, `binding`, `finalize`, or empty.
    pub subresource: String,
    /// The old form of a watch (`/api/v1/watch/…`).
    pub watch: bool,
    /// Events as the core group has them.
    pub core_events: bool,
}

impl Target {
    /// The namespace of an object of this collection, by its key.
    #[must_use]
    pub fn namespace_of(&self, key: &str) -> String {
        key.split_once('/').map_or("", |(namespace, _)| namespace).into()
    }
}

/// What a path leads to.
#[derive(Debug, Clone)]
pub enum Place {
    /// Objects.
    Objects(Target),
    /// The list of the resources of a group and version.
    Discovery(String, String),
    /// A group that is here, but not this resource.
    NoResource,
    /// Nothing.
    Nowhere,
}

/// Reads a path. `custom`: is the CRD there?
#[must_use]
pub fn place(path: &str, custom: bool) -> Place {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version) = match parts.first() {
        Some(&"api") if parts.len() > 1 => ("", parts[1]),
        Some(&"apis") if parts.len() > 2 => (parts[1], parts[2]),
        _ => return Place::Nowhere,
    };
    let known =
        kinds::RESOURCES.iter().any(|r| r.group == group && r.version == version && (custom || !r.custom));
    if !known {
        return Place::Nowhere;
    }
    let mut rest = parts.split_off(if group.is_empty() { 2 } else { 3 });
    let watch = rest.first() == Some(&"watch");
    if watch {
        rest.remove(0);
    }
    let namespaced = rest.len() > 2 && rest[0] == "namespaces" && !["status", "finalize"].contains(&rest[2]);
    let (namespace, rest) = if namespaced { (rest[1], &rest[2..]) } else { ("", &rest[..]) };
    let (plural, name, subresource) = match *rest {
        [] => return Place::Discovery(group.into(), version.into()),
        [plural] => (plural, "", ""),
        [plural, name] => (plural, name, ""),
        [plural, name, sub] => (plural, name, sub),
        _ => return Place::NoResource,
    };
    let core_events = group.is_empty() && plural == "events";
    let group = if core_events { "events.k8s.io" } else { group };
    let Some(resource) = kinds::of_path(group, version, plural) else { return Place::NoResource };
    let known = match subresource {
        "" => true,
        "status" => resource.status,
        "binding" => resource.kind == "Pod",
        "finalize" => resource.kind == "Namespace",
        _ => false,
    };
    if !known
        || (resource.namespaced && namespace.is_empty() && !name.is_empty())
        || (namespaced && !resource.namespaced)
    {
        return Place::NoResource;
    }
    let [namespace, name, subresource] = [namespace, name, subresource].map(percent);
    Place::Objects(Target { resource, namespace, name, subresource, watch, core_events })
}

/// In which form an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The objects themselves.
    Whole,
    /// The same as YAML.
    Yaml,
    /// Their metadata.
    Partial {
        /// `PartialObjectMetadataList` was named.
        list: bool,
    },
}

impl Wanted {
    /// The form of the objects within.
    #[must_use]
    pub fn form(self) -> Form {
        match self {
            Self::Whole | Self::Yaml => Form::Whole,
            Self::Partial { .. } => Form::Partial,
        }
    }
}

/// Reads `Accept`: the first form that is known here.
///
/// # Errors
/// None is (406).
pub fn accept(header: &str) -> Result<Wanted, Refusal> {
    let ranges = header.split(',').map(str::trim).filter(|range| !range.is_empty());
    let mut any = false;
    for range in ranges {
        any = true;
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let wanted: Option<&str> = parts.find_map(|p| p.strip_prefix("as="));
        match (kind, wanted) {
            ("application/json" | "application/*" | "*/*", None) => return Ok(Wanted::Whole),
            ("application/json", Some("PartialObjectMetadata")) => {
                return Ok(Wanted::Partial { list: false });
            }
            ("application/json", Some("PartialObjectMetadataList")) => {
                return Ok(Wanted::Partial { list: true });
            }
            ("application/yaml", None) => return Ok(Wanted::Yaml),
            _ => {}
        }
    }
    if any { Err(not_acceptable()) } else { Ok(Wanted::Whole) }
}

fn not_acceptable() -> Refusal {
    let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
        application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    Refusal::new(406, "NotAcceptable", message, json!({}))
}

/// 404 for a resource that is not in a group that is here.
#[must_use]
pub fn no_resource() -> Refusal {
    Refusal::new(404, "NotFound", "the server could not find the requested resource", json!({}))
}

/// 405.
#[must_use]
pub fn no_method() -> Refusal {
    let message = "the server does not allow this method on the requested resource";
    Refusal::new(405, "MethodNotAllowed", message, json!({}))
}

/// 415, with the types that would do.
#[must_use]
pub fn no_type(accepted: &str) -> Refusal {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    );
    Refusal::new(415, "UnsupportedMediaType", message, Value::Null)
}
