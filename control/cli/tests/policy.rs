//! `sluice policy` as its users call it, on manifests in a directory of their own.

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: web, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, image: db, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.100.3.4, selector: {app: db}, ports: [{port: 5432}]}
";

const DENY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

const DB: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
  - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}]
    ports: [{port: 9000, endPort: 9009, protocol: UDP}]
";

fn manifests(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text.trim_start()).unwrap();
    }
    dir
}

/// Exit code, standard output and error.
fn policy(args: &[&str], dirs: &[&TempDir]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("sluice").unwrap();
    command.arg("policy").args(args).args(dirs.iter().map(|d| d.path()));
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
}

#[test]
fn good_manifests_have_no_findings() {
    let dir = manifests(&[("pods.yaml", PODS), ("deny.yaml", DENY), ("db.yaml", DB)]);
    let (code, out, err) = policy(&["check", "--strict"], &[&dir]);
    assert_eq!((code, out.trim(), err.as_str()), (0, "2 policies in force: 0 errors, 0 warnings", ""));
}

#[test]
fn every_slip_is_told_with_its_place_and_reason() {
    let slips = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: slips, namespace: shop}
spec:
  podSelector: {matchLabels: {ap: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {taem: shop}}}]
  - from: [{podSelector: {matchLabels: {app: cache}}}]
  egress:
  - {}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shadow, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
  - from: [{podSelector: {}}]
    ports: [{port: slq}, {port: sql, protocol: UDP}]
";
    let dir = manifests(&[("pods.yaml", PODS), ("slips.yaml", slips)]);
    let (code, out, _) = policy(&["check"], &[&dir]);
    assert_eq!(code, 0, "warnings alone are no failure:\n{out}");
    has(
        &out,
        &[
            "slips.yaml:1: warning: NetworkPolicy shop/slips spec.podSelector: selects no pod",
            "no label `ap` there: did you mean `app`?",
            "spec.ingress[0].from[0].namespaceSelector: selects no namespace; no label `taem` there: did you mean `team`?",
            "spec.ingress[1].from[0].podSelector: selects no pod of `shop`",
            "spec.ingress[1]: allows nobody",
            "spec.egress: is never looked at: policyTypes is [Ingress]",
            "slips.yaml:13: warning: NetworkPolicy shop/shadow spec.ingress[1]: changes nothing: spec.ingress[0] allows all of it",
            "has a port named `slq` for TCP: did you mean `sql`?",
            "has a port named `sql` for UDP: they have it as TCP",
        ],
    );
    assert_eq!(policy(&["check", "--strict"], &[&dir]).0, 1);
}

#[test]
fn what_is_not_in_force_is_an_error() {
    let refused = DB.replace("203.0.113.128/25", "198.51.100.0/24");
    let misspelt = DENY.replace("podSelector", "podSelctor");
    let dir = manifests(&[
        ("pods.yaml", PODS),
        ("refused.yaml", &refused),
        ("misspelt.yaml", &misspelt),
        ("broken.yaml", "a: [\n"),
    ]);
    let (code, out, _) = policy(&["check"], &[&dir]);
    assert_eq!(code, 1, "{out}");
    has(&out, &["refused.yaml", "except", "misspelt.yaml", "podSelctor", "broken.yaml"]);
    let (code, json, _) = policy(&["check", "--output", "json"], &[&dir]);
    let findings: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(
        code == 1 && findings.iter().any(|f| f["severity"] == "error" && f["line"].as_u64().unwrap() > 0)
    );
}

#[test]
fn the_matrix_groups_equal_pods_and_is_exact() {
    let dir = manifests(&[("pods.yaml", PODS), ("deny.yaml", DENY), ("db.yaml", DB)]);
    let (code, json, _) = policy(&["matrix", "--output", "json"], &[&dir]);
    assert_eq!(code, 0);
    let matrix: Value = serde_json::from_str(&json).unwrap();
    let web = &matrix["parties"].as_array().unwrap().iter().find(|p| p["labels"]["app"] == "web").unwrap();
    assert_eq!(web["pods"].as_array().unwrap().len(), 3);
    let reach = |from: &str, to: &str| {
        let pairs = matrix["reach"].as_array().unwrap().iter();
        let found: Vec<_> = pairs
            .filter(|p| p["from"].as_str().unwrap().contains(from) && p["to"].as_str().unwrap().contains(to))
            .map(|p| p["ports"].to_string())
            .collect();
        found.join(";")
    };
    assert_eq!(reach("shop/web", "shop/db"), r#"["5432/TCP"]"#);
    assert_eq!(reach("rest of 203.0.113.0/24", "shop/db"), r#"["9000-9009/UDP"]"#);
    assert_eq!(reach("203.0.113.128/25", "shop"), "");
    assert_eq!(reach("anywhere", "shop"), "");
    assert_eq!(reach("shop/db", "anywhere"), r#"["everything"]"#);
    assert_eq!(reach("shop/web", "shop/web"), "");

    let (_, table, _) = policy(&["matrix"], &[&dir]);
    has(&table, &["FROM \\ TO", "5432/TCP", "shop/web-0 and 2 more"]);
    let (_, page, _) = policy(&["matrix", "--output", "html"], &[&dir]);
    has(&page, &["<!doctype html>", "<td class=\"some\">5432/TCP</td>", "</html>"]);
    assert!(!page.contains("http"), "the page needs nothing from anywhere");
}

#[test]
fn a_diff_tells_the_pairs_that_change() {
    let old = manifests(&[("pods.yaml", PODS), ("deny.yaml", DENY)]);
    let new = manifests(&[("pods.yaml", PODS), ("deny.yaml", DENY), ("db.yaml", DB)]);
    let (code, out, _) = policy(&["diff"], &[&old, &new]);
    assert_eq!(code, 0);
    has(&out, &["+  shop/web-0 and 2 more", "shop/db", "nothing", "5432/TCP"]);
    let (code, json, _) = policy(&["diff", "--exit-code", "--output", "json"], &[&new, &old]);
    let changes: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!((code, changes[0]["change"].as_str()), (1, Some("closes")));
    let (code, out, _) = policy(&["diff", "--exit-code"], &[&new, &new]);
    assert_eq!((code, out.trim()), (0, "No pair changes."));
}

#[test]
fn why_names_the_policies_and_the_rules() {
    let dir = manifests(&[("pods.yaml", PODS), ("deny.yaml", DENY), ("db.yaml", DB)]);
    let why = |from: &str, to: &str, port: &str| {
        policy(&["why", "--from", from, "--to", to, "--port", port], &[&dir])
    };
    let (code, out, _) = why("shop/web-0", "shop/db", "5432/TCP");
    assert_eq!(code, 0);
    has(
        &out,
        &[
            "ALLOWED",
            "nothing isolates what it sends",
            "isolated by shop/db, shop/deny",
            "allowed by shop/db ingress[0]",
        ],
    );
    let (code, out, _) = why("ip:203.0.113.200", "shop/db", "9000/UDP");
    assert_eq!(code, 0, "an answer is an answer");
    has(&out, &["DENIED", "ingress of shop/db: denied", "none of their rules allows it"]);
    has(&why("ip:203.0.113.7", "pod:shop/db", "9000/UDP").1, &["ALLOWED", "shop/db ingress[1]"]);
    has(&why("shop/db", "shop/web-0", "ICMP").1, &["DENIED", "shop/deny"]);
    let (code, _, err) = why("shop/web", "shop/db", "80");
    assert_eq!(code, 1);
    has(&err, &["there is no pod shop/web", "shop/web-0"]);
    assert_eq!(why("shop/web-0", "shop/db", "http").0, 2);
    assert_eq!(why("web-0", "shop/db", "80").0, 2);
}

#[test]
fn a_directory_that_is_none_is_told() {
    let (code, _, err) = policy(&["check", "/nonexistent/manifests"], &[]);
    assert_eq!(code, 1);
    has(&err, &["/nonexistent/manifests"]);
    let empty = manifests(&[]);
    let (code, _, err) = policy(&["matrix"], &[&empty]);
    assert_eq!(code, 1);
    has(&err, &["neither pods nor policies"]);
}
