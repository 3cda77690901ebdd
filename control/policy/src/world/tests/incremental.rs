//! What a change costs, and corners that deserve a name.

use std::net::Ipv4Addr;

use serde_json::json;
use sluice_state::{Op, Protocol};

use super::judge::Judge;
use super::{Followed, delete, namespace, pod, policy, port, settings, upsert};
use crate::{Change, End, EnforcingMode, Kind, Object, Phase, Probe};

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// Ten remote pods `a/1` to `a/10` of two apps, and `a/web` on this node.
fn ten() -> Followed {
    let mut followed = Followed::new(settings());
    followed.apply([namespace("a", &[])]);
    for n in 1..=10 {
        let app = if n <= 5 { "one" } else { "two" };
        let mut pod = pod(&format!("a/{n}"), &[("app", app)], &ip(n).to_string());
        pod.node = Some("n2".into());
        followed.apply([upsert(pod)]);
    }
    followed.apply([upsert(pod("a/web", &[("app", "web")], "10.0.0.100"))]);
    followed.update();
    followed
}

fn from(app: &str) -> Change {
    policy(
        json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}}),
    )
}

#[test]
fn a_policy_about_some_moves_only_these() {
    let mut followed = ten();
    followed.apply([from("one")]);
    let ops = followed.update().ops;
    assert!(
        matches!(&ops[..], [Op::UpsertIdentity(_), Op::UpsertRules(_), Op::UpsertAddresses(five), Op::UpsertPodPolicy(_)] if five.len() == 5),
        "{ops:?}"
    );
    let judge = Judge::new(&followed.state.policy);
    let tcp = Some((Protocol::Tcp, 80));
    assert!(judge.ingress(ip(5), ip(100), tcp) && !judge.ingress(ip(6), ip(100), tcp));
}

#[test]
fn a_policy_about_all_gives_no_address_a_new_identity() {
    let mut followed = ten();
    followed.apply([policy(json!({"metadata": {"namespace": "a", "name": "p"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"podSelector": {}}]}]}}))]);
    let ops = followed.update().ops;
    assert!(
        matches!(&ops[..], [Op::UpsertIdentity(_), Op::UpsertRules(_), Op::UpsertPodPolicy(_)]),
        "{ops:?}"
    );
}

#[test]
fn what_changes_nothing_costs_nothing() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    followed.apply([from("one"), upsert(pod("a/web", &[("app", "web")], "10.0.0.100"))]);
    let mut noted = crate::world::tests::read_policy(
        json!({"metadata": {"namespace": "a", "name": "p", "labels": {"x": "y"}}, "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "web"]}]},
            "policyTypes": ["Ingress"], "egress": [{}],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "one"}}}], "ports": []}]}}),
    );
    noted.metadata.resource_version = Some("7".to_owned());
    followed.apply([Change::Upsert(Object::NetworkPolicy(Box::new(noted)))]);
    assert!(followed.update().ops.is_empty());
}

#[test]
fn a_relabelled_pod_is_one_address() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let mut pod = pod("a/10", &[("app", "one")], &ip(10).to_string());
    pod.node = Some("n2".into());
    followed.apply([upsert(pod)]);
    let ops = followed.update().ops;
    assert!(matches!(&ops[..], [Op::UpsertAddresses(one)] if one.len() == 1), "{ops:?}");
}

#[test]
fn a_changed_rule_keeps_its_number() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let before = followed.world.policy().pods;
    followed.apply([from("two")]);
    let ops = followed.update().ops;
    assert!(!ops.iter().any(|op| matches!(op, Op::UpsertPodPolicy(_) | Op::DeleteRules(_))), "{ops:?}");
    assert_eq!(followed.world.policy().pods, before);
}

#[test]
fn a_refused_policy_leaves_the_last_good_one() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let bad = super::read_policy(
        json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"ingress": [{"from": [{}]}]}}),
    );
    let refusals = followed.world.apply(Change::Upsert(Object::NetworkPolicy(Box::new(bad)))).unwrap_err();
    assert_eq!(refusals[0].to_string(), "spec.ingress[0].from[0]: Required value: must specify a peer");
    assert!(followed.update().ops.is_empty());
    assert_eq!(followed.world.policy().pods.len(), 1);
}

#[test]
fn two_live_pods_with_one_address() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let mut newer = pod("a/11", &[("app", "one")], &ip(10).to_string());
    newer.node = Some("n2".into());
    newer.created = Some(1_800_000_000);
    followed.apply([upsert(newer.clone())]);
    let update = followed.update();
    assert!(matches!(&update.ops[..], [Op::UpsertAddresses(_)]), "{:?}", update.ops);
    assert_eq!(update.findings.len(), 1);
    assert!(update.findings[0].to_string().starts_with("Pod a/10: has address 10.0.0.10 with pod a/11"));
    assert_eq!(followed.world.findings(), update.findings);
    // One that only waits does not displace one that runs.
    newer.phase = Phase::Pending;
    followed.apply([upsert(newer)]);
    assert!(matches!(&followed.update().ops[..], [Op::UpsertAddresses(_)]));
}

#[test]
fn an_isolated_pod_stays_so_when_another_node_claims_its_address() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let mut stranger = pod("a/stranger", &[], "10.0.0.100");
    (stranger.node, stranger.created) = (Some("n2".into()), Some(1_800_000_000));
    followed.apply([upsert(stranger)]);
    followed.update();
    assert_eq!(followed.world.policy().pods.len(), 1);
}

#[test]
fn a_port_that_nobody_names_is_a_finding() {
    let mut followed = ten();
    followed.apply([policy(json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"ports": [{"port": "http"}]}], "egress": [{"ports": [{"port": "dns", "protocol": "UDP"}]}]}}))]);
    let found: Vec<String> = followed.update().findings.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("a/p egress[0] allows port `dns` (UDP), but no pod has"), "{found:?}");
    assert!(
        found[1].contains("a/p ingress[0] allows port `http` (TCP), but no pod that it selects has"),
        "{found:?}"
    );
    let mut web = pod("a/web", &[("app", "web")], "10.0.0.100");
    web.ports = [port("http", 8080)].into();
    followed.apply([upsert(web)]);
    followed.update();
    assert_eq!(followed.world.findings().len(), 1);
    let judge = Judge::new(&followed.state.policy);
    assert!(judge.ingress(ip(1), ip(100), Some((Protocol::Tcp, 8080))));
    assert!(!judge.ingress(ip(1), ip(100), Some((Protocol::Udp, 8080))));
    assert!(!judge.ingress(ip(1), ip(100), None), "a rule with ports never matches ICMP");
}

#[test]
fn strict_mode_isolates_whom_no_policy_selects() {
    let mut settings = settings();
    settings.mode = EnforcingMode::Strict;
    let mut followed = Followed::new(settings);
    followed.apply([namespace("a", &[]), upsert(pod("a/web", &[("app", "web")], "10.0.0.100"))]);
    followed.update();
    let judge = Judge::new(&followed.state.policy);
    assert!(!judge.ingress(ip(1), ip(100), None) && !judge.egress(ip(100), ip(1), None));
    followed.apply([from("one")]);
    followed.update();
    let judge = Judge::new(&followed.state.policy);
    assert!(!judge.ingress(ip(1), ip(100), None) && judge.egress(ip(100), ip(1), None));
}

#[test]
fn a_terminating_pod_counts_until_it_has_finished() {
    let mut followed = ten();
    followed.apply([from("one")]);
    followed.update();
    let mut web = pod("a/web", &[("app", "web")], "10.0.0.100");
    web.terminating = true;
    followed.apply([upsert(web.clone())]);
    assert!(followed.update().ops.is_empty());
    web.phase = Phase::Succeeded;
    followed.apply([upsert(web)]);
    followed.update();
    assert!(followed.world.policy().pods.is_empty());
    assert_eq!(followed.world.policy().addresses.identity(ip(100)), None);
}

#[test]
fn a_namespace_that_is_not_known_matches_no_namespace_selector() {
    let mut followed = Followed::new(settings());
    let any = policy(json!({"metadata": {"namespace": "a", "name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}}));
    followed.apply([any, upsert(pod("a/web", &[], "10.0.0.100")), upsert(pod("b/x", &[], "10.0.0.1"))]);
    followed.update();
    assert!(!Judge::new(&followed.state.policy).ingress(ip(1), ip(100), None));
    followed.apply([namespace("b", &[])]);
    followed.update();
    assert!(Judge::new(&followed.state.policy).ingress(ip(1), ip(100), None));
    followed.apply([delete(Kind::Namespace, "b")]);
    followed.update();
    assert!(!Judge::new(&followed.state.policy).ingress(ip(1), ip(100), None));
}

#[test]
fn why_names_policies_and_rules() {
    let mut followed = ten();
    followed.apply([from("one"), upsert(pod("a/host", &[], ""))]);
    let why = |from: &str, to: &str| {
        let (from, to): (End, End) = (from.parse().unwrap(), to.parse().unwrap());
        followed.world.decide(&Probe { from, to, protocol: Some(Protocol::Tcp), port: 80 })
    };
    let decision = why("a/1", "a/web");
    assert!(decision.allowed() && decision.ingress.isolated && !decision.egress.isolated);
    assert_eq!(
        (decision.ingress.policies, decision.ingress.rules),
        (vec!["a/p".into()], vec!["a/p ingress[0]".into()])
    );
    let decision = why("10.0.0.6", "a/web");
    assert!(!decision.allowed() && decision.egress.allowed);
    assert_eq!((decision.ingress.policies.len(), decision.ingress.rules.len()), (1, 0));
    assert!(!why("a/nobody", "a/web").allowed());
    assert_eq!(why("a/nobody", "a/web").notes, ["there is no pod a/nobody"]);
    assert_eq!(why("a/host", "a/web").notes, ["a/host has no address (Running)"]);
    assert!(why("a/web", "a/web").allowed());
    assert!("web".parse::<End>().is_err());
}
