//! Label selectors in a canonical form: equal meaning, written in whatever order, is one value that can be interned.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::Labels;

/// All of these must hold; none: everything matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Requirement {
    key: Arc<str>,
    operator: Operator,
}

/// Values are sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Operator {
    In(Vec<Arc<str>>),
    /// Matches a missing key, too.
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Reads a selector that admission has let through; an operator that it would have refused matches nothing.
    pub(crate) fn new(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        });
        let expressions = selector.match_expressions.iter().flatten().map(|e| {
            let mut values: Vec<Arc<str>> =
                e.values.iter().flatten().map(|v| Arc::from(v.as_str())).collect();
            values.sort_unstable();
            values.dedup();
            let operator = match e.operator.as_str() {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => Operator::In(Vec::new()),
            };
            Requirement { key: e.key.as_str().into(), operator }
        });
        let mut all: Vec<Requirement> = labels.chain(expressions).collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&*requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|v| values.contains(v)),
                Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// A label that whatever matches must have, to find it by.
    pub(crate) fn anchor(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        self.0.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) if values.len() == 1 => Some((&requirement.key, &values[0])),
            _ => None,
        })
    }
}
