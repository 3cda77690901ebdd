//! The reader of the case format: one JSON object a line, of which everything is known. A field that is not is an error
//! with the line, since a runner that skips what it does not understand passes everything.

use std::fmt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sluice_state::Protocol;

use super::cluster::{Cluster, Endpoint, Mutation, Namespace, Node, Pod, Probe, key};
use super::naive::Halves;

/// One line of a file.
#[derive(Debug, Clone)]
pub enum Line {
    /// A case of connections.
    Case(Box<Case>),
    /// A policy object that the API server takes or refuses.
    Admission(Box<Admission>),
}

/// A cluster, what happens to it, and which connections are allowed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what a case may have is all of the format; not all of it is for machines")]
pub struct Case {
    /// Its name.
    pub id: String,
    source: Option<String>,
    description: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    stated_by: Option<String>,
    impl_case: Option<String>,
    namespaces: Vec<Namespace>,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    #[serde(deserialize_with = "policies")]
    policies: Vec<NetworkPolicy>,
    #[serde(default)]
    probes: Vec<Entry>,
    #[serde(default)]
    steps: Vec<RawStep>,
}

/// A moment of a case: what has changed since the one before, and what then holds.
#[derive(Debug, Clone, Copy)]
pub struct Step<'c> {
    /// The changes; none before the first step.
    pub mutations: &'c [Mutation],
    entries: &'c [Entry],
}

/// A policy object and whether the API server takes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what a case may have is all of the format; not all of it is for machines")]
pub struct Admission {
    /// Its name.
    pub id: String,
    source: Option<String>,
    description: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    /// Whether it is taken.
    #[serde(rename = "admission")]
    pub expect: Admit,
    /// The object as a user writes it: it need not even have the types of a policy.
    pub policy: Value,
}

/// What the API server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admit {
    /// It takes the object.
    Accept,
    /// It refuses it.
    Reject,
}

/// One asserted connection.
#[derive(Debug, Clone)]
pub struct Assertion {
    /// The connection.
    pub probe: Probe,
    /// Whether it is allowed.
    pub allowed: bool,
    /// What each half says; none where the case gives the outcome alone.
    pub halves: Option<Halves>,
    /// The open point of the API on which it turns.
    pub open_point: Option<String>,
}

/// A file of cases that cannot be read.
#[derive(Debug)]
pub struct CaseError {
    file: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    reason: String,
}

impl std::error::Error for CaseError {}

impl fmt::Display for CaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    #[serde(default)]
    mutations: Vec<Mutation>,
    #[serde(default)]
    probes: Vec<Entry>,
}

/// A probe or a matrix, with what was asserted spelt out.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
struct Entry(Vec<Assertion>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProbe {
    from: Endpoint,
    to: Endpoint,
    protocol: Protocol,
    port: u16,
    expect: Expect,
    egress: Option<Expect>,
    ingress: Option<Expect>,
    #[serde(rename = "impl")]
    open_point: Option<String>,
    #[serde(rename = "stated")]
    _stated: Option<Expect>,
    #[serde(rename = "disputed")]
    _disputed: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatrix {
    matrix: Matrix,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    from: Vec<Endpoint>,
    to: Vec<Endpoint>,
    protocol: Protocol,
    port: u16,
    rows: Vec<String>,
    #[serde(rename = "stated")]
    _stated: Option<Value>,
}

/// Reads a file, every line numbered from 1. Empty lines are skipped.
///
/// # Errors
/// The file cannot be read, or a line is no case: the first such line.
pub fn read(file: &Path) -> Result<Vec<(usize, Line)>, CaseError> {
    let fail = |line, reason: String| CaseError { file: file.to_owned(), line, reason };
    let text = std::fs::read_to_string(file).map_err(|e| fail(0, format!("cannot be read: {e}")))?;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        lines.push((number, parse(line).map_err(|reason| fail(number, reason))?));
    }
    Ok(lines)
}

/// Reads one line.
///
/// # Errors
/// What about it is not of the format.
pub fn parse(line: &str) -> Result<Line, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("is no JSON: {e}"))?;
    let id = value.get("id").and_then(Value::as_str).unwrap_or("without an id").to_owned();
    let wrong = |e: String| format!("case {id}: {e}");
    if value.get("admission").is_some() {
        return serde_json::from_value(value).map(Line::Admission).map_err(|e| wrong(e.to_string()));
    }
    let case: Case = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    let local = case.nodes.iter().filter(|n| n.local).count();
    if local != 1 {
        return Err(wrong(format!("{local} nodes are local: exactly one must be")));
    }
    Ok(Line::Case(Box::new(case)))
}

impl Case {
    /// The cluster before the first step.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster {
            namespaces: self.namespaces.clone(),
            nodes: self.nodes.clone(),
            pods: self.pods.clone(),
            policies: self.policies.clone(),
        }
    }

    /// Its moments in order, the beginning first.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let first = Step { mutations: &[], entries: &self.probes };
        std::iter::once(first)
            .chain(self.steps.iter().map(|s| Step { mutations: &s.mutations, entries: &s.probes }))
    }
}

impl<'c> Step<'c> {
    /// What holds once all changes are handled.
    pub fn assertions(self) -> impl Iterator<Item = &'c Assertion> {
        self.entries.iter().flat_map(|e| &e.0)
    }
}

impl TryFrom<Value> for Entry {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        if value.get("matrix").is_some() {
            let raw: RawMatrix = serde_json::from_value(value).map_err(|e| format!("matrix: {e}"))?;
            return raw.matrix.spell_out().map(Self);
        }
        let text = value.to_string();
        let raw: RawProbe = serde_json::from_value(value).map_err(|e| format!("probe {text}: {e}"))?;
        let allowed = raw.expect == Expect::Allow;
        let halves = match (allowed, raw.egress, raw.ingress) {
            (true, None, None) => Some(Halves { egress: true, ingress: true }),
            (false, None, None) => None,
            (_, egress, ingress) => {
                let half = |e: Option<Expect>| e.is_none_or(|e| e == Expect::Allow);
                let halves = Halves { egress: half(egress), ingress: half(ingress) };
                if (halves.egress && halves.ingress) != allowed {
                    return Err(format!("probe {text}: its halves contradict what it expects"));
                }
                Some(halves)
            }
        };
        let probe = Probe { from: raw.from, to: raw.to, protocol: raw.protocol, port: raw.port };
        Ok(Self(vec![Assertion { probe, allowed, halves, open_point: raw.open_point }]))
    }
}

impl Matrix {
    fn spell_out(self) -> Result<Vec<Assertion>, String> {
        if self.rows.len() != self.from.len() {
            return Err(format!("matrix: {} rows for {} sources", self.rows.len(), self.from.len()));
        }
        let mut assertions = Vec::new();
        for (from, row) in self.from.iter().zip(&self.rows) {
            if row.chars().count() != self.to.len() {
                return Err(format!("matrix: row `{row}` of {from} for {} destinations", self.to.len()));
            }
            for (to, cell) in self.to.iter().zip(row.chars()) {
                let (egress, ingress) = match cell {
                    '.' => (true, true),
                    'e' => (false, true),
                    'i' => (true, false),
                    'x' => (false, false),
                    '-' => continue,
                    _ => return Err(format!("matrix: `{cell}` in row `{row}` is none of . e i x -")),
                };
                assertions.push(Assertion {
                    probe: Probe {
                        from: from.clone(),
                        to: to.clone(),
                        protocol: self.protocol,
                        port: self.port,
                    },
                    allowed: egress && ingress,
                    halves: Some(Halves { egress, ingress }),
                    open_point: None,
                });
            }
        }
        Ok(assertions)
    }
}

/// A policy all of whose fields the API has.
pub(super) fn policy<'de, D: Deserializer<'de>>(de: D) -> Result<Box<NetworkPolicy>, D::Error> {
    typed(&Value::deserialize(de)?).map(Box::new).map_err(serde::de::Error::custom)
}

fn policies<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<NetworkPolicy>, D::Error> {
    let values = Vec::<Value>::deserialize(de)?;
    values.iter().map(typed).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn typed(value: &Value) -> Result<NetworkPolicy, String> {
    let policy: NetworkPolicy = serde_json::from_value(value.clone()).map_err(|e| format!("policy: {e}"))?;
    let (namespace, name) = key(&policy);
    if namespace.is_empty() || name.is_empty() {
        return Err("policy: metadata.namespace and metadata.name are required".into());
    }
    // The types read over what they do not know, and say what they have understood when they are written again.
    let understood = serde_json::to_value(&policy).map_err(|e| format!("policy {namespace}/{name}: {e}"))?;
    match unknown(value, &understood, "") {
        Some(path) => Err(format!("policy {namespace}/{name}: unknown field `{path}`")),
        None => Ok(policy),
    }
}

/// The first field of `written` that is missing in `understood`. What is null says nothing.
fn unknown(written: &Value, understood: &Value, path: &str) -> Option<String> {
    match written {
        Value::Object(fields) => fields.iter().filter(|(_, v)| !v.is_null()).find_map(|(name, value)| {
            let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match understood.get(name) {
                Some(inner) => unknown(value, inner, &here),
                None => Some(here),
            }
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| unknown(item, understood.get(i)?, &format!("{path}[{i}]"))),
        _ => None,
    }
}
