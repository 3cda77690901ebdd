//! Label and field selectors, as a query string has them. A watch must ask its selector about the old and the new content of
//! every change, so they are parsed once and know nothing of JSON.

use std::collections::BTreeMap;

use super::kinds::Resource;
use super::status::Refusal;

/// One demand on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Demand {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

/// Demands that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<(String, Demand)>,
    fields: Vec<(String, bool, String)>,
}

impl Selector {
    /// Reads both selectors of a request.
    ///
    /// # Errors
    /// One of them cannot be read, or names a field that this resource cannot be selected by.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Refusal> {
        let labels = Labels(labels)
            .parse()
            .map_err(|e| Refusal::bad_request(format!("unable to parse requirement: {e}")))?;
        let mut parsed = Vec::new();
        for term in fields.split(',').filter(|t| !t.is_empty()) {
            let (key, equal, value) = if let Some((key, value)) = term.split_once("!=") {
                (key, false, value)
            } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (key, true, value)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid selector: '{term}'; can't understand '{term}'"
                )));
            };
            let known = key == "metadata.name"
                || (key == "metadata.namespace" && resource.namespaced)
                || resource.fields.contains(&key);
            if !known {
                // Kinds without fields of their own are refused by another piece of the real server.
                let why = if resource.fields.is_empty() && !resource.custom {
                    format!(
                        "\"{key}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {key}")
                };
                return Err(Refusal::bad_request(why));
            }
            parsed.push((key.to_string(), equal, value.to_string()));
        }
        Ok(Self { labels, fields: parsed })
    }

    /// Does it select everything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Does it select an object with these labels and fields?
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>, field: impl Fn(&str) -> String) -> bool {
        self.labels.iter().all(|(key, demand)| {
            let value = labels.get(key);
            let number = || value.and_then(|v| v.parse::<i64>().ok());
            match demand {
                Demand::In(values) => value.is_some_and(|v| values.contains(v)),
                Demand::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Demand::Exists => value.is_some(),
                Demand::Absent => value.is_none(),
                Demand::Above(bound) => number().is_some_and(|v| v > *bound),
                Demand::Below(bound) => number().is_some_and(|v| v < *bound),
            }
        }) && self.fields.iter().all(|(key, equal, value)| (field(key) == *value) == *equal)
    }
}

/// What is left to read of a label selector.
struct Labels<'a>(&'a str);

impl Labels<'_> {
    fn parse(mut self) -> Result<Vec<(String, Demand)>, String> {
        let mut demands = Vec::new();
        self.space();
        while !self.0.is_empty() {
            demands.push(self.demand()?);
            self.space();
            if !self.eat(",") && !self.0.is_empty() {
                return Err(format!("found '{}', expected: ',' or 'end of string'", self.0));
            }
            self.space();
        }
        Ok(demands)
    }

    fn demand(&mut self) -> Result<(String, Demand), String> {
        if self.eat("!") {
            return Ok((self.word(), Demand::Absent));
        }
        let key = self.word();
        self.space();
        let demand = if self.eat("!=") {
            Demand::NotIn(vec![self.value()])
        } else if self.eat("==") || self.eat("=") {
            Demand::In(vec![self.value()])
        } else if self.eat(">") {
            Demand::Above(self.number()?)
        } else if self.eat("<") {
            Demand::Below(self.number()?)
        } else {
            match self.word().as_str() {
                "" => Demand::Exists,
                "in" => Demand::In(self.set()?),
                "notin" => Demand::NotIn(self.set()?),
                other => {
                    return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"));
                }
            }
        };
        Ok((key, demand))
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        self.space();
        if !self.eat("(") {
            return Err(format!("found '{}' expected: '('", self.0));
        }
        let mut values = Vec::new();
        loop {
            self.space();
            values.push(self.word());
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(format!("found '{}', expected: ',' or ')'", self.0));
            }
        }
    }

    fn value(&mut self) -> String {
        self.space();
        self.word()
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.value();
        word.parse().map_err(|_| {
            format!(
                "values[0]: Invalid value: \"{word}\": for 'Gt', 'Lt' operators, the value must be an integer"
            )
        })
    }

    fn word(&mut self) -> String {
        let end = self.0.find(|c: char| c.is_whitespace() || ",=!<>()".contains(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word.into()
    }

    fn space(&mut self) {
        self.0 = self.0.trim_start();
    }

    fn eat(&mut self, what: &str) -> bool {
        self.0.strip_prefix(what).is_some_and(|rest| {
            self.0 = rest;
            true
        })
    }
}
