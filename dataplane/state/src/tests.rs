use super::*;

const LAB: &str = r#"
version = 1

[node]
name = "lab"

[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"

[[pod]]
namespace = "default"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "enia"
mac = "02:00:00:00:01:0a"

[nat]
vpc_cidrs = ["10.0.0.0/16", "100.64.0.0/16"]
"#;

fn findings(text: &str) -> Vec<Invalid> {
    match State::from_toml(text) {
        Err(StateError::Invalid(findings)) => findings,
        other => panic!("expected findings, got {other:?}"),
    }
}

#[test]
fn a_plain_state_reads_and_survives_both_formats() {
    let state = State::from_toml(LAB).unwrap();
    assert_eq!(state.primary_eni().unwrap().name, "eni0");
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(State::from_json(&json).unwrap(), state);
    let toml = toml::to_string(&state).unwrap();
    assert_eq!(State::from_toml(&toml).unwrap(), state);
}

#[test]
fn unknown_and_duplicate_keys_are_named() {
    let unknown = State::from_toml(&LAB.replace("gateway =", "gatewy =")).unwrap_err().to_string();
    assert!(unknown.contains("gatewy"), "{unknown}");
    let duplicate = State::from_toml(&LAB.replace("primary = true", "primary = true\nprimary = true"));
    assert!(duplicate.unwrap_err().to_string().contains("duplicate key"));
    let json = r#"{"version":1,"version":1}"#;
    assert!(State::from_json(json).unwrap_err().to_string().contains("duplicate field"));
}

#[test]
fn every_finding_is_reported_with_field_value_and_remedy() {
    let text = LAB
        .replace("eni = \"eni0\"", "eni = \"eni7\"")
        .replace("\"100.64.0.0/16\"", "\"10.0.128.0/17\"")
        .replace("gateway = \"10.0.9.1\"", "gateway = \"10.0.8.1\"");
    let found = findings(&text);
    let fields: Vec<_> = found.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["eni[0].gateway", "pod[0].eni", "nat.vpc_cidrs[1]"]);
    assert!(found[1].to_string().contains("eni7") && found[1].to_string().contains("eni0"));
    assert!(found[2].reason.contains("10.0.0.0/16"));
}

#[test]
fn a_port_range_that_leaves_nothing_is_refused() {
    let text = format!("{LAB}\n[snat_ports]\nranges = [\"2000-2010\"]\nexclude = [\"2000-3000\"]\n");
    assert_eq!(findings(&text)[0].field, "snat_ports");
    let backwards = format!("{LAB}\n[snat_ports]\nranges = [\"3000-2000\"]\n");
    assert!(State::from_toml(&backwards).unwrap_err().to_string().contains("FIRST <= LAST"));
}

#[test]
fn a_generation_is_applied_whole_or_not_at_all() {
    let state = State::from_toml(LAB).unwrap();
    let mut pod = state.pods[0].clone();
    pod.ip = "10.0.1.11".parse().unwrap();
    pod.interface = "enib".into();
    let good =
        Generation { number: 2, ops: vec![Op::UpsertPod(pod.clone()), Op::DeletePod(state.pods[0].ip)] };
    let next = state.apply(&good).unwrap();
    assert_eq!(next.pods, [pod.clone()]);
    pod.eni = "nowhere".into();
    let bad = Generation { number: 3, ops: vec![Op::DeletePod(pod.ip), Op::UpsertPod(pod)] };
    assert!(next.apply(&bad).is_err());
    assert_eq!(next.pods.len(), 1);
}

#[test]
fn the_default_port_set_is_the_documented_one() {
    let set = SnatPorts::default().set();
    assert_eq!(
        set.ranges().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["1024-29999", "61000-65535"]
    );
    assert_eq!(set.len(), 28_976 + 4_536);
    assert!(set.contains(1024) && !set.contains(1023) && set.contains(65_535) && !set.contains(30_000));
}

#[test]
fn translation_follows_the_vpc_cni() {
    let mut nat = State::from_toml(LAB).unwrap().nat;
    let to = |s: &str| s.parse().unwrap();
    assert!(!nat.translates(to("10.0.255.255")) && nat.translates(to("10.1.0.0")));
    assert!(!nat.translates(to("100.64.3.3")) && nat.translates(to("169.254.169.254")));
    nat.exclude_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
    assert!(!nat.translates(to("203.0.113.9")));
    nat.external_snat = true;
    assert!(!nat.translates(to("198.51.100.7")));
}
