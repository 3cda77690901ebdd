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
