//! One file's mistake is that file's alone, and takes nothing back that was good.

use super::*;

#[test]
fn a_malformed_document_is_reported_with_its_place_and_all_others_apply() {
    let mut bed = Bed::new();
    let text =
        format!("{}apiVersion: v1\nkind: Pod\nmetadata: {{name: [x\n---\n{}", pod("one", ""), pod("two", ""));
    bed.write("sub/x.yaml", &text);
    bed.write("other.yml", &pod("three", ""));
    assert_eq!(bed.pods(), ["a/one", "a/three", "a/two"]);
    let line = text.lines().position(|l| l.contains("[x")).unwrap() + 2;
    bed.error(&["sub/x.yaml", &format!(":{line}:"), "error: "]);
}

#[test]
fn a_file_that_turns_malformed_keeps_its_last_good_objects_until_it_is_good_again() {
    let mut bed = Bed::new();
    let good = format!("{}{}", policy("deny", ""), pod("one", ""));
    bed.write("x.yaml", &good);
    let before = bed.objects.len();
    // Which document it was cannot be told: everything stays, and what is new and good comes.
    let changed = bed.write("x.yaml", &format!("kind: [\n---\n{}{}", pod("one", ""), pod("two", "")));
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(bed.objects.len(), before + 1);
    bed.error(&["what the file held before stays in force"]);
    bed.write("x.yaml", &pod("two", ""));
    assert_eq!(bed.pods(), ["a/two"]);
    assert!(bed.names(sluice_policy::Kind::NetworkPolicy).is_empty() && bed.errors().is_empty());
}

#[test]
fn a_broken_object_that_tells_its_name_keeps_only_itself() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &format!("{}{}", policy("deny", ""), pod("one", "")));
    // Port 0 is refused, and the pod has left the file.
    let refused = policy("deny", "{podSelector: {}}], ports: [{port: 0}");
    let changed = bed.write("x.yaml", &refused);
    assert!(bed.pods().is_empty(), "{changed:?}");
    assert_eq!(bed.names(sluice_policy::Kind::NetworkPolicy), ["a/deny"]);
    bed.error(&[
        "x.yaml:1:",
        "spec.ingress[0].ports[0].port",
        "must be between 1 and 65535",
        "last good version",
    ]);
    assert!(!changed.iter().any(|id| id.kind == sluice_policy::Kind::NetworkPolicy), "it has not changed");
}

#[test]
fn a_value_of_the_wrong_type_has_its_line() {
    let mut bed = Bed::new();
    bed.write(
        "x.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\nspec:\n  containers: []\n  hostNetwork: perhaps\n",
    );
    bed.error(&["x.yaml:7:", "Pod default/x", "boolean"]);
}

#[test]
fn of_two_that_say_the_same_the_first_in_path_order_stays_in_force() {
    let mut bed = Bed::new();
    bed.write("b.yaml", &pod("one", ", hostNetwork: true"));
    assert!(bed.pod("a/one").host_network);
    bed.write("a.yaml", &pod("one", ""));
    assert!(!bed.pod("a/one").host_network);
    bed.error(&["b.yaml:1:", "Pod a/one is also in ", "a.yaml:1"]);
    bed.remove("a.yaml");
    assert!(bed.pod("a/one").host_network && bed.errors().is_empty());
    bed.write("b.yaml", &format!("{}{}", pod("one", ""), pod("one", ", hostNetwork: true")));
    assert!(!bed.pod("a/one").host_network);
    bed.error(&["b.yaml:6:", "line 1"]);
}

#[test]
fn lists_are_unfolded_json_is_read_and_what_means_nothing_is_noted() {
    let mut bed = Bed::new();
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: n}}\n\
                - {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n";
    bed.write("list.yaml", list);
    bed.write("pods.json", r#"{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "p"}, "spec": {"containers": []}}]}"#);
    bed.write("old.yaml", "apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: d}\n");
    bed.write("notes.txt", "kind: [");
    bed.write(".hidden.yaml", "kind: [");
    assert_eq!(bed.pods(), ["default/p"]);
    let notes: Vec<_> = bed.findings(Severity::Note).iter().map(ToString::to_string).collect();
    assert!(notes[0].contains("v1 ConfigMap") && notes[1].contains("apps/v1 Deployment is"), "{notes:?}");
    assert!(bed.errors().is_empty());
}

#[test]
fn a_misspelt_field_is_a_warning_because_it_opens_what_it_should_close() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &policy("p", "").replace("from", "form"));
    let warnings = bed.findings(Severity::Warning);
    assert!(warnings[0].to_string().contains("unknown field \"spec.ingress[0].form\""), "{warnings:?}");
    assert_eq!(bed.names(sluice_policy::Kind::NetworkPolicy), ["a/p"]);
}

#[test]
fn names_that_no_api_server_takes_are_refused() {
    let mut bed = Bed::new();
    for (file, name) in [("a.yaml", "Upper"), ("b.yaml", "-x"), ("c.yaml", "a_b")] {
        bed.write(file, &pod(name, ""));
    }
    assert!(bed.pods().is_empty());
    assert_eq!(bed.errors().len(), 3);
    bed.write("d.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\nspec: {containers: []}\n");
    assert!(bed.errors().iter().any(|e| e.contains("metadata.name")));
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &pod("one", ""));
    let away = bed.root.path().with_extension("away");
    std::fs::rename(bed.root.path(), &away).unwrap();
    assert!(bed.scan().is_empty());
    bed.error(&["cannot be read", "stays in force"]);
    std::fs::rename(&away, bed.root.path()).unwrap();
    assert!(bed.scan().is_empty() && bed.errors().is_empty());
}
