//! Selectors against labels, and keys that look alike.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_policy::Labels;

/// How many letters may differ in a key that was meant to be another one.
const SLIPS: usize = 2;

/// Whether a selector matches; an empty one matches everything.
pub(super) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let value = |key: &str| labels.get(key).map(|v| &**v);
    let equal = selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let found = value(&e.key);
        let listed = || found.is_some_and(|f| e.values.iter().flatten().any(|v| v == f));
        match e.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => found.is_some(),
            _ => found.is_none(),
        }
    });
    equal && expressions
}

/// The keys that a selector asks for or against.
pub(super) fn keys(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.as_str());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.as_str()))
}

/// The name that is most like another one, if it is like it at all.
pub(super) fn similar<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|other| (distance(name, other), other)).filter(|(d, other)| {
        let short = name.len().min(other.len());
        *d > 0 && *d <= SLIPS && *d < short
    });
    near.min().map(|(_, other)| other)
}

/// Letters to insert, remove or replace to make one text the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        let known = || ["app", "role", "app.kubernetes.io/name"].into_iter();
        assert_eq!(similar("ap", known()), Some("app"));
        assert_eq!(similar("app.kubernetes.io/nmae", known()), Some("app.kubernetes.io/name"));
        assert_eq!(similar("tier", known()), None);
        assert_eq!(similar("app", known()), None, "it is there");
    }
}
