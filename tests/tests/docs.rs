//! The documentation says what the code does: tables are made from the code's own texts, examples are parsed, links lead
//! somewhere. `UPDATE_DOCS=1 cargo test -p sluice-tests --test docs` writes the generated parts anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sluice_engine::Drop;
use sluice_state::push::{Hello, Push, PushReply};
use sluice_state::query::{Answer, Query};
use sluice_state::{OnFailure, Preset, State, Timeouts};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares what stands between `<!-- generated: NAME -->` and `<!-- end -->` with what the code says now.
fn check_generated(path: &str, parts: &[(&str, String)]) {
    let found = read(path);
    let mut wanted = found.clone();
    for (name, text) in parts {
        let opening = format!("<!-- generated: {name} -->\n");
        let at = wanted.find(&opening).unwrap_or_else(|| panic!("{path} has no {}", opening.trim()));
        let start = at + opening.len();
        let len = wanted[start..].find("<!-- end -->").unwrap_or_else(|| panic!("{path}: {name} has no end"));
        wanted.replace_range(start..start + len, text);
    }
    assert_eq!(
        found.matches("<!-- generated:").count(),
        parts.len(),
        "{path} has a generated part that nobody makes"
    );
    if found == wanted {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        // By way of a rename: other tests of this file read the document meanwhile.
        let (new, path) = (root().join(format!("{path}.new")), root().join(path));
        fs::write(&new, wanted)
            .and_then(|()| fs::rename(&new, path))
            .expect("the documentation can be written");
        return;
    }
    let differing = found.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    panic!(
        "{path} is not what the code says. Run: UPDATE_DOCS=1 cargo test -p sluice-tests --test docs\n{differing:?}"
    );
}

fn table<'a>(first: &str, rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = format!("| {first} | meaning |\n|---|---|\n");
    for (name, meaning) in rows {
        assert!(!meaning.is_empty(), "{name} has no meaning");
        writeln!(text, "| `{name}` | {} |", meaning.replace('|', "\\|")).expect("a string takes everything");
    }
    text
}

#[test]
fn every_counter_is_in_the_tables_with_its_meaning() {
    check_generated(
        "docs/counters.md",
        &[
            ("drops", table("reason", Drop::ALL.iter().map(|drop| (drop.name(), drop.explain())))),
            ("events", table("counter", sluiced::query::meanings())),
            ("xsk", table("counter", sluice_io::xsk::meanings())),
            ("trunk", table("counter", sluice_io::trunk::meanings())),
            ("bpf", table("counter", sluice_bpf::counter_meanings().iter().copied())),
        ],
    );
}

#[test]
fn every_variable_of_the_vpc_cni_is_in_the_table_with_its_standing() {
    check_generated("docs/environment.md", &[("variables", sluice_agent::environment::markdown())]);
}

#[test]
fn every_drop_reason_has_its_place_in_the_runbook() {
    let text = read("docs/runbooks/drops.md");
    let missing: Vec<_> = Drop::ALL
        .iter()
        .filter(|drop| !text.contains(&format!("`{drop}`")))
        .map(|drop| drop.name())
        .collect();
    assert!(missing.is_empty(), "docs/runbooks/drops.md says nothing about {missing:?}");
}

/// The text of the first code block of that language after a heading.
fn block<'a>(text: &'a str, heading: &str, language: &str) -> &'a str {
    let after = text.split_once(heading).unwrap_or_else(|| panic!("no `{heading}`")).1;
    let body =
        after.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language} block")).1;
    body.split_once("```").expect("the block ends").0
}

#[test]
fn the_example_states_are_good_and_the_same() {
    let text = read("docs/state.md");
    let toml =
        State::from_toml(block(&text, "## A complete example", "toml")).expect("the TOML example is good");
    let json =
        State::from_json(block(&text, "## The same as JSON", "json")).expect("the JSON example is good");
    assert_eq!(toml, json);
    let minimal =
        State::from_toml(block(&text, "## The least that works", "toml")).expect("the least is good");
    assert_eq!(minimal.node.on_failure, OnFailure::Drop);
    assert!(minimal.primary_eni().is_some() && !minimal.pods.is_empty());
}

#[test]
fn every_field_of_the_state_is_documented() {
    let text = read("docs/state.md");
    let example =
        State::from_toml(block(&text, "## A complete example", "toml")).expect("the example is good");
    let json = serde_json::to_value(&example).expect("a state is JSON");
    let mut paths = Vec::new();
    collect(&json, "", &mut paths);
    let missing: Vec<_> = paths.iter().filter(|path| !text.contains(&format!("| `{path}` |"))).collect();
    assert!(missing.is_empty(), "docs/state.md has no row for {missing:?}");
}

#[test]
fn the_conversations_of_both_sockets_are_spoken_by_the_code() {
    let text = read("docs/state.md");
    let parse = |line: &str, good: Result<(), serde_json::Error>| {
        assert!(good.is_ok(), "{line}: {good:?}");
    };
    let mut hellos = 0;
    for line in block(&text, "## The state socket", "text").lines() {
        match line.split_at(2) {
            ("> ", message) if message.contains("\"client\"") => {
                hellos += 1;
                parse(line, serde_json::from_str::<Hello>(message).map(drop));
            }
            ("> ", message) => parse(line, serde_json::from_str::<Push>(message).map(drop)),
            (_, message) => parse(line, serde_json::from_str::<PushReply>(message).map(drop)),
        }
    }
    for line in block(&text, "## The query socket", "text").lines() {
        match line.split_at(2) {
            ("> ", message) if message.contains("\"client\"") => {
                hellos += 1;
                parse(line, serde_json::from_str::<Hello>(message).map(drop));
            }
            ("> ", message) if message.contains("\"prot\"") => {
                assert!(serde_json::from_str::<Query>(message).is_err(), "{line} must be refused");
            }
            ("> ", message) => parse(line, serde_json::from_str::<Query>(message).map(drop)),
            (_, message) => parse(line, serde_json::from_str::<Answer>(message).map(drop)),
        }
    }
    assert_eq!(hellos, 2);
}

/// Paths of all leaves, `eni[].name`; a list of plain values is a leaf, and so is a table by address.
fn collect(value: &serde_json::Value, path: &str, into: &mut Vec<String>) {
    use serde_json::Value::{Array, Object};
    match value {
        Object(fields) if !fields.keys().any(|key| key.parse::<std::net::Ipv4Addr>().is_ok()) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect(value, &format!("{path}{dot}{name}"), into);
            }
        }
        Array(items) if items.iter().any(serde_json::Value::is_object) => {
            for item in items {
                collect(item, &format!("{path}[]"), into);
            }
        }
        _ => into.push(path.to_owned()),
    }
}

#[test]
fn the_timeouts_are_those_in_force() {
    let text = read("docs/state.md");
    let of = |preset| Timeouts { preset, ..Timeouts::default() }.all();
    for ((name, linux), (_, rfc)) in of(Preset::Linux).into_iter().zip(of(Preset::Rfc)) {
        let row = format!("| `timeouts.{name}` | {} | {} |", linux.0, rfc.0);
        assert!(text.contains(&row), "docs/state.md has no `{row}`");
    }
}

#[test]
fn the_defaults_are_those_in_force() {
    let json = serde_json::to_string_pretty(&State::default()).expect("a state is JSON");
    check_generated("docs/state.md", &[("defaults", format!("```json\n{json}\n```\n"))]);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document can be read");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = document.parent().expect("a file has a folder");
            if !folder.join(target).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_decision_is_in_the_index() {
    let index = read("docs/adr/README.md");
    for document in documents().iter().filter(|path| path.parent().is_some_and(|p| p.ends_with("adr"))) {
        let name = document.file_name().and_then(|n| n.to_str()).expect("a plain name");
        assert!(
            name == "README.md" || index.contains(&format!("({name})")),
            "{name} is not in docs/adr/README.md"
        );
    }
}

fn documents() -> Vec<PathBuf> {
    let mut found =
        vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("bench/README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of documents can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}
