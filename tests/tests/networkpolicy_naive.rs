//! The naive evaluator against every case that was written down: it is the yardstick of the property tests, so it has to
//! be measured itself.

use std::path::Path;

use sluice_tests::networkpolicy::case::{Line, parse, read};
use sluice_tests::networkpolicy::{Endpoint, evaluate};

/// The cases lie beside the repository.
fn corpus() -> Option<std::path::PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/networkpolicy/corpus.jsonl");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is not there", path.display());
    eprintln!("NOT TESTED: {} is not there", path.display());
    None
}

#[test]
fn it_agrees_with_every_case() {
    let Some(path) = corpus() else { return };
    let (mut asserted, mut wrong) = (0, Vec::new());
    for (number, line) in read(&path).unwrap() {
        let Line::Case(case) = line else { panic!("line {number} is no case of connections") };
        let mut cluster = case.cluster();
        for step in case.steps() {
            for mutation in step.mutations {
                cluster.apply(mutation).unwrap_or_else(|e| panic!("{}: {e}", case.id));
            }
            for assertion in step.assertions() {
                asserted += 1;
                let found =
                    evaluate(&cluster, &assertion.probe).unwrap_or_else(|e| panic!("{}: {e}", case.id));
                let allowed = found.egress && found.ingress;
                if allowed != assertion.allowed || assertion.halves.is_some_and(|h| h != found) {
                    wrong.push(format!("{}: {}: {found:?}, not {assertion:?}", case.id, assertion.probe));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {asserted}:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    assert!(asserted > 80_000, "{asserted}");
}

#[test]
fn what_is_not_of_the_format_is_an_error() {
    let case = |probes: &str, steps: &str| {
        format!(
            r#"{{"id":"t","namespaces":[{{"name":"x","labels":null}}],"nodes":[{{"name":"n","ip":"10.0.0.1","local":true}}],
            "pods":[],"policies":[],"probes":[{probes}],"steps":[{steps}]}}"#
        )
    };
    let probe = r#"{"from":"pod:x/a","to":"ip:1.2.3.4","protocol":"TCP","port":80,"expect":"allow"}"#;
    assert!(parse(&case(probe, "")).is_ok());
    let policy = |spec: &str| {
        format!(
            r#"{{"mutations":[{{"op":"apply_policy","policy":{{"metadata":{{"namespace":"x","name":"p"}},"spec":{spec}}}}}]}}"#
        )
    };
    assert!(parse(&case("", &policy("{}"))).is_ok());
    for (line, word) in [
        (case(&probe.replace("expect", "expects"), ""), "expects"),
        (case(&probe.replace("ip:1.2.3.4", "ip:::1"), ""), "no endpoint"),
        (case(&probe.replace("TCP", "ICMP"), ""), "ICMP"),
        (case(&probe.replace("80", "65536"), ""), "65536"),
        (case("", r#"{"mutations":[{"op":"drain_node","node":"n"}]}"#), "drain_node"),
        (case("", r#"{"mutations":[{"op":"delete_pod","pod":"x/a","grace":1}]}"#), "grace"),
        (case("", &policy(r#"{"podSelctor":{}}"#)), "spec.podSelctor"),
        (case("", &policy(r#"{"ingress":[{"from":[{"ipBlock":{"cidr":"::/0","excpt":[]}}]}]}"#)), "excpt"),
        (case("", "").replace("true", "false"), "0 nodes are local"),
        (
            case(
                r#"{"matrix":{"from":["ip:1.2.3.4"],"to":["ip:1.2.3.4"],"protocol":"TCP","port":1,"rows":["?"]}}"#,
                "",
            ),
            "`?`",
        ),
        ("{".into(), "JSON"),
    ] {
        let error = parse(&line).err().unwrap_or_else(|| panic!("{line} is taken"));
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert_eq!("node:n".parse(), Ok(Endpoint::Node("n".into())));
}
