//! The cases that were written down, through the real compiler and the real engine, by the program that plays them.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

/// A file of cases, which lie beside the repository.
fn cases(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/networkpolicy").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is not there", path.display());
    eprintln!("NOT TESTED: {} is not there", path.display());
    None
}

fn conformance(file: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-tests"));
    command.arg("conformance").arg(file).args(args);
    command
}

#[test]
fn every_case_holds_three_ways_on_every_node() {
    let Some(corpus) = cases("corpus.jsonl") else { return };
    let output = conformance(&corpus, &["--output", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mismatches = report["mismatches"].as_array().unwrap();
    let shown: Vec<_> = mismatches.iter().take(10).map(|m| format!("{m:#}")).collect();
    assert!(output.status.success(), "{} mismatches:\n{}", mismatches.len(), shown.join("\n"));
    assert_eq!((&report["failed"], mismatches.len()), (&Value::from(0), 0));
    // Nothing was left out: almost all of them are packets that went through an engine.
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(number("cases"), 307);
    assert_eq!(
        number("passed"),
        number("through_the_engine") + number("by_construction") + number("nobodys")
    );
    assert!(number("through_the_engine") > 86_000, "{}", number("through_the_engine"));
}

#[test]
fn every_object_is_taken_or_refused_as_the_api_server_does() {
    let Some(admission) = cases("admission.jsonl") else { return };
    conformance(&admission, &[]).assert().success();
}

/// A case of two pods, of which the local one takes nothing, with these probes and steps.
fn case(probes: &str, steps: &str) -> String {
    format!(
        r#"{{"id":"own/deny","namespaces":[{{"name":"x","labels":{{}}}}],
        "nodes":[{{"name":"n1","ip":"10.0.1.10","local":true}},{{"name":"n2","ip":"10.0.2.10","local":false}}],
        "pods":[{{"namespace":"x","name":"a","labels":{{}},"ip":"10.0.1.20","node":"n1"}},
        {{"namespace":"x","name":"b","labels":{{}},"ip":"10.0.2.20","node":"n2"}}],
        "policies":[{{"metadata":{{"namespace":"x","name":"p"}},"spec":{{"podSelector":{{}},"policyTypes":["Ingress"]}}}}],
        "probes":[{probes}],"steps":[{steps}]}}"#
    )
    .replace('\n', " ")
}

fn probe(to: &str, expected: &str) -> String {
    format!(r#"{{"from":"pod:x/b","to":"{to}","protocol":"SCTP","port":80,{expected}}}"#)
}

/// Exit code and what was said.
fn play(lines: &[String]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let output = conformance(&file, &[]).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn what_does_not_hold_is_told_with_its_probe() {
    let right = probe("pod:x/a", r#""expect":"deny","egress":"allow","ingress":"deny""#);
    let node = r#"{"from":"node:n1","to":"pod:x/a","protocol":"TCP","port":80,"expect":"allow"}"#;
    let good = case(&format!("{right},{node}"), "");
    let (code, text) = play(std::slice::from_ref(&good));
    assert_eq!((code, text.trim().lines().last()), (0, Some("2 passed, 0 failed")), "{text}");

    let allowed = case(&probe("pod:x/a", r#""expect":"allow""#), "");
    let (code, text) = play(&[good.clone(), allowed]);
    assert_eq!((code, text.trim().lines().last()), (1, Some("2 passed, 1 failed")), "{text}");
    for word in [
        "line 2: own/deny: pod:x/b -> pod:x/a 80/SCTP",
        "batch, n1 local",
        "incremental",
        "reversed",
        "policy_ingress",
    ] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }

    let other_half = case(&probe("pod:x/a", r#""expect":"deny","egress":"deny","ingress":"allow""#), "");
    let (code, text) = play(&[other_half]);
    assert!(code == 1 && text.contains("dropped as policy_ingress, expected allowed"), "{text}");

    let nobodys = case(&probe("ip:203.0.113.7", r#""expect":"deny","egress":"deny","ingress":"allow""#), "");
    let (code, text) = play(&[nobodys]);
    assert!(code == 1 && text.contains("passed, expected denied by the source's egress"), "{text}");

    let gone = case("", r#"{"mutations":[{"op":"delete_pod","pod":"x/nobody"}],"probes":[]}"#);
    let (code, text) = play(&[gone]);
    assert!(code == 1 && text.contains("step 1: there is no pod `x/nobody`"), "{text}");
}

#[test]
fn two_pods_may_change_addresses() {
    let swap = r#"{"mutations":[{"op":"set_pod_labels","pod":"x/b","labels":{"friend":"yes"}},
        {"op":"create_pod","pod":{"namespace":"x","name":"c","ip":"10.0.2.21","node":"n2"}},
        {"op":"apply_policy","policy":{"metadata":{"namespace":"x","name":"p"},"spec":{"podSelector":{},
        "ingress":[{"from":[{"podSelector":{"matchLabels":{"friend":"yes"}}}]}]}}},
        {"op":"set_pod_ip","pod":"x/b","ip":"10.0.2.21"},{"op":"set_pod_ip","pod":"x/c","ip":"10.0.2.20"}],
        "probes":[{"from":"ip:10.0.2.21","to":"pod:x/a","protocol":"UDP","port":53,"expect":"allow"},
        {"from":"pod:x/b","to":"ip:10.0.1.20","protocol":"TCP","port":80,"expect":"allow"},
        {"from":"ip:10.0.2.20","to":"pod:x/a","protocol":"TCP","port":80,"expect":"deny","egress":"allow","ingress":"deny"}]}"#;
    let (code, text) = play(&[case("", &swap.replace('\n', " "))]);
    assert_eq!((code, text.trim().lines().last()), (0, Some("3 passed, 0 failed")), "{text}");
}

#[test]
fn a_file_that_is_none_of_cases_is_told_with_its_line() {
    let good = case("", "");
    let (code, text) = play(&[good.clone(), case("", r#"{"mutations":[{"op":"drain","node":"n1"}]}"#)]);
    assert!(code == 2 && text.contains("own.jsonl:2: case own/deny: unknown variant `drain`"), "{text}");
    let (code, text) = play(&[good.replace("\"id\"", "\"name\":1,\"id\"")]);
    assert!(code == 2 && text.contains("own.jsonl:1:") && text.contains("unknown field `name`"), "{text}");
    assert_eq!(play(&[]).0, 2, "a file without a case proves nothing");
}
