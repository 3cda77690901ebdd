//! Admission: whether the product refuses what the API server refuses, and nothing else.

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::report::Report;
use crate::networkpolicy::case::{Admission, Admit};

pub(super) fn judge(case: &Admission, line: usize, report: &mut Report) {
    // What has not even the types of a policy is refused before anybody looks at what it says.
    let reasons = match serde_json::from_value::<NetworkPolicy>(case.policy.clone()) {
        Ok(policy) => sluice_policy::admit(&policy).iter().map(ToString::to_string).collect(),
        Err(e) => vec![e.to_string()],
    };
    let failure = match (case.expect, reasons.is_empty()) {
        (Admit::Accept, true) | (Admit::Reject, false) => None,
        (Admit::Accept, false) => Some(format!("refused, expected to be taken: {}", reasons.join("; "))),
        (Admit::Reject, true) => Some("taken, expected to be refused".to_owned()),
    };
    report.admission(&case.id, line, failure);
}
