use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{admit, admit_new, policy_from_json, unknown_fields};

/// The lines of a file of cases; none, told loudly, where the folder is not beside this repository.
fn lines(file: &str) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("../shared/cases").join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{}: {error}", path.display());
            eprintln!("NOT TESTED: {} is not there ({error})", path.display());
            Vec::new()
        }
    }
}

#[test]
fn the_cases_of_admission() {
    for case in lines("networkpolicy/admission.jsonl") {
        let refusals = policy_from_json(case["policy"].clone()).map(|policy| admit(&policy));
        let accepted = refusals.as_ref().is_ok_and(Vec::is_empty);
        assert_eq!(accepted, case["admission"] == "accept", "{}: {refusals:?}", case["id"]);
    }
}

/// Every POST and PUT of a policy that a real API server answered by looking at the policy: 201 or 200, 422 with its
/// causes, 400 for a wrong type.
#[test]
fn the_answers_of_a_real_server() {
    let mut seen = 0;
    for exchange in lines("kubernetes-api/exchanges.jsonl") {
        let id = exchange["id"].as_str().unwrap();
        let request = &exchange["request"];
        let Some(status) = exchange["response"]["status"].as_u64() else { continue };
        let write = matches!(request["method"].as_str(), Some("POST" | "PUT"));
        let strict = request["query"]["fieldValidation"] == "Strict";
        if !id.starts_with("np-") || !write || strict || status == 409 {
            continue;
        }
        let body = match request["body_raw"].as_str() {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => request["body"].clone(),
        };
        seen += 1;
        let warnings: Vec<String> =
            unknown_fields(&body).iter().map(|f| format!("299 - \"unknown field \\\"{f}\\\"\"")).collect();
        let warned = exchange["response"]["headers"]["Warning"].as_array().into_iter().flatten();
        let warned = warned.filter_map(Value::as_str).filter(|w| w.contains("unknown field"));
        assert_eq!(warnings, warned.collect::<Vec<_>>(), "{id}");
        let policy = policy_from_json(body);
        let ours: BTreeSet<(String, String, String)> = policy
            .iter()
            .flat_map(admit_new)
            .map(|r| (r.field, r.reason, serde_json::to_value(r.kind).unwrap().as_str().unwrap().to_owned()))
            .collect();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let causes = exchange["response"]["body"]["details"]["causes"].as_array();
        let theirs: BTreeSet<(String, String, String)> = causes
            .into_iter()
            .flatten()
            .map(|c| (text(&c["field"]), text(&c["message"]), text(&c["reason"])))
            .collect();
        assert_eq!(policy.is_err(), status == 400, "{id}: {status}, but ours is {policy:?}");
        assert_eq!(ours, theirs, "{id}");
    }
    assert!(seen == 0 || seen > 80, "only {seen} exchanges");
}

#[test]
fn what_older_servers_stored_is_read() {
    for (text, net) in [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("010.0.0.0/08", "10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("fd00:0::1/32", "fd00::/32"),
    ] {
        let mut refusals = Vec::new();
        let read = super::cidr("cidr", text, &mut refusals);
        assert_eq!((read, refusals), (Some(net.parse().unwrap()), Vec::new()), "{text}");
    }
}
