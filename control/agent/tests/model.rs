//! What changes add up to in the daemon is what the model would tell from scratch; and a pod never has a path alone.

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use sluice_agent::{Inventory, Model, Settings};
use sluice_policy::EnforcingMode;
use sluice_state::{Generation, Op, State};
use support::{inventory, pod, policy, service, sorted};

fn model(root: &Path, places: usize, mode: EnforcingMode) -> Model {
    let inventory = Inventory::parse(&inventory(places)).unwrap();
    let mut settings = Settings::default();
    settings.environment.enforcing_mode = Some(mode);
    Model::new(inventory, root, &settings, &Default::default())
}

fn everything(model: &Model) -> State {
    let ops = vec![Op::Replace(Box::new(model.state()))];
    State::default().apply(&Generation { number: 1, ops }).unwrap()
}

#[test]
fn a_pods_path_comes_in_one_generation_with_its_policy_and_after_it() {
    let root = tempfile::tempdir().unwrap();
    let mut model = model(root.path(), 2, EnforcingMode::Strict);
    model.scan();
    std::fs::write(root.path().join("x.yaml"), pod("a", "a", "")).unwrap();
    let ops = model.scan();
    let place = |f: &dyn Fn(&Op) -> bool| ops.iter().position(f).unwrap_or_else(|| panic!("{ops:?}"));
    let policy = place(&|op| matches!(op, Op::UpsertPodPolicy(pod) if pod.ip == Ipv4Addr::new(10, 0, 1, 10)));
    let path = place(&|op| matches!(op, Op::UpsertPod(pod) if pod.name == "a" && pod.interface == "eni0"));
    assert!(policy < path, "{ops:?}");
    std::fs::remove_file(root.path().join("x.yaml")).unwrap();
    let ops = model.scan();
    assert!(matches!(ops[0], Op::DeletePod(ip) if ip == Ipv4Addr::new(10, 0, 1, 10)), "{ops:?}");
    assert!(model.state().pods.is_empty() && model.state().policy.pods.is_empty());
}

#[test]
fn a_host_port_is_taken_out_of_the_ports_for_translation() {
    let root = tempfile::tempdir().unwrap();
    let mut model = model(root.path(), 2, EnforcingMode::Standard);
    let text = pod("a", "a", "").replace("containerPort: 8080", "containerPort: 8080, hostPort: 8443");
    std::fs::write(root.path().join("x.yaml"), text).unwrap();
    model.scan();
    assert!(!model.state().snat_ports.set().contains(8443));
    std::fs::write(root.path().join("x.yaml"), pod("a", "a", "")).unwrap();
    let ops = model.scan();
    assert!(ops.iter().any(|op| matches!(op, Op::SnatPorts(_))), "{ops:?}");
    assert!(model.state().snat_ports.set().contains(8443));
}

#[test]
fn what_is_wrong_is_said_and_does_not_stop_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let mut model = model(root.path(), 1, EnforcingMode::Standard);
    let text = format!("{}{}kind: [\n---\n{}", pod("a", "a", ""), pod("b", "b", ""), policy("p", "a", "b"));
    std::fs::write(root.path().join("x.yaml"), text).unwrap();
    model.scan();
    let findings: Vec<_> = model.findings().iter().map(ToString::to_string).collect();
    assert!(findings.iter().any(|f| f.contains("x.yaml:12:") && f.contains("error")), "{findings:?}");
    assert!(findings.iter().any(|f| f.contains("n/b waits: none of this node's 1 places")), "{findings:?}");
    assert_eq!(model.state().policy.pods.len(), 1);
}

#[test]
fn random_edits_add_up_to_everything() {
    for seed in 1..=6_u64 {
        let mut dice = seed * 0x9e37_79b9_7f4a;
        let mut roll = |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % sides
        };
        let root = tempfile::tempdir().unwrap();
        let mode = if seed % 2 == 0 { EnforcingMode::Strict } else { EnforcingMode::Standard };
        let mut model = model(root.path(), 5, mode);
        model.scan();
        let mut told = everything(&model);
        for step in 0..60 {
            let file = root.path().join(format!("f{}.yaml", roll(4)));
            let mut text = String::new();
            for _ in 0..roll(5) {
                let (label, name) = (format!("l{}", roll(3)), format!("x{}", roll(4)));
                text += &match roll(5) {
                    0 | 1 => pod(&name, &label, ["", ", nodeName: there"][usize::from(roll(2) == 0)]),
                    2 => service(&name, &label),
                    3 => policy(&name, &label, &format!("l{}", roll(3))),
                    _ => "kind: [\n---\n".to_owned(),
                };
            }
            if text.is_empty() {
                let _ = std::fs::remove_file(&file);
            } else {
                std::fs::write(&file, text).unwrap();
            }
            let ops = model.scan();
            told = told.apply(&Generation { number: step, ops }).unwrap();
            assert_eq!(sorted(&told), sorted(&everything(&model)), "seed {seed}, step {step}");
            let known: BTreeSet<_> = told.policy.addresses.as_slice().iter().map(|(ip, _)| *ip).collect();
            assert!(told.pods.iter().all(|pod| known.contains(&pod.ip)), "a path without an identity");
        }
    }
}
