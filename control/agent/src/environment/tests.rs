use std::cell::RefCell;
use std::collections::BTreeSet;

use sluice_ec2::variables::Refusal;

use super::*;

fn read(set: &[(&str, &str)]) -> Result<Environment, Refused> {
    Environment::read(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
}

fn refused(set: &[(&str, &str)]) -> Vec<Refusal> {
    read(set).expect_err("it is refused").0
}

fn nets(text: &[&str]) -> Vec<Ipv4Net> {
    text.iter().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn nothing_set_decides_nothing() {
    assert_eq!(read(&[]), Ok(Environment::default()));
    let empty: Vec<_> = VARIABLES.iter().map(|v| (v.name, " ")).collect();
    assert_eq!(read(&empty), Ok(Environment::default()));
    let mut nat = Nat { exclude_cidrs: nets(&["10.9.0.0/16"]), external_snat: true, ..Nat::default() };
    let before = nat.clone();
    Environment::default().translate(&mut nat);
    assert_eq!(nat, before);
}

#[test]
fn what_is_set_goes_over_the_inventory() {
    let environment = read(&[
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "False"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", " 192.168.7.9/24, 10.20.1.0/24,10.20.0.0/16,,2001:db8::/32"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom"),
        ("NETWORK_POLICY_ENFORCING_MODE", "strict"),
        ("AWS_VPC_ENI_MTU", "1500"),
        ("POD_MTU", "1480"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "veth"),
        ("INTROSPECTION_BIND_ADDRESS", "unix:/run/aws-node.sock"),
        ("DISABLE_INTROSPECTION", "true"),
        ("DISABLE_METRICS", "TRUE"),
        ("DISABLE_POD_V6", "true"),
    ])
    .unwrap();
    let mut nat = Nat { exclude_cidrs: nets(&["10.9.0.0/16"]), external_snat: true, ..Nat::default() };
    environment.translate(&mut nat);
    assert!(!nat.external_snat);
    assert_eq!(nat.exclude_cidrs, nets(&["10.20.0.0/16", "192.168.7.0/24"]));
    assert_eq!(nat.randomize, RandomizeSnat::HashRandom);
    assert_eq!(environment.enforcing_mode, Some(EnforcingMode::Strict));
    assert_eq!((environment.eni_mtu, environment.pod_mtu), (Some(1500), Some(1480)));
    assert_eq!(environment.veth_prefix.as_deref(), Some("veth"));
    let said = environment.notes.join("\n");
    assert!(said.contains("2001:db8::/32") && said.contains("DISABLE_POD_V6=true changes nothing"), "{said}");
    assert_eq!(environment.introspection, Some(Bind::Unix("/run/aws-node.sock".into())));
    assert!(environment.no_introspection && environment.no_metrics);
}

#[test]
fn everything_wrong_is_named_at_once_with_what_is_valid() {
    let wrong = [
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes", "true or false"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "random", "prng, hashrandom, none"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/8,10.1.2", "`10.1.2` is no range"),
        ("NETWORK_POLICY_ENFORCING_MODE", "lax", "standard, strict"),
        ("AWS_VPC_ENI_MTU", "9002", "576 to 9001"),
        ("POD_MTU", "575", "576 to 9001"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan", "1 to 4 letters"),
        ("ENABLE_IPv6", "true", "only false is valid"),
        ("ENABLE_IPv4", "maybe", "true or false"),
        ("INTROSPECTION_BIND_ADDRESS", "61679", "ADDRESS:PORT or unix:/PATH"),
    ];
    let set: Vec<_> = wrong.iter().map(|(name, value, _)| (*name, *value)).collect();
    let found = refused(&set);
    assert_eq!(found.len(), wrong.len(), "{found:?}");
    for (name, value, valid) in wrong {
        let refusal = found.iter().find(|refusal| refusal.variable == name).expect(name);
        assert!(refusal.value == value && refusal.valid.contains(valid), "{refusal:?}");
    }
    let words = Refused(found).to_string();
    assert!(
        words.contains("ENABLE_IPv6: `true` is refused: only false is valid. Sluice does no IPv6"),
        "{words}"
    );
}

#[test]
fn a_pods_frames_fit_the_enis() {
    let found = refused(&[("AWS_VPC_ENI_MTU", "1500"), ("POD_MTU", "9001")]);
    assert_eq!((found[0].variable, found.len()), ("POD_MTU", 1));
    assert!(found[0].valid.contains("1500"), "{found:?}");
}

/// Those that may be any text.
const TEXTS: [&str; 5] =
    ["ENI_CONFIG_ANNOTATION_DEF", "ENI_CONFIG_LABEL_DEF", "CLUSTER_NAME", "MY_NODE_NAME", "MY_POD_NAME"];

#[test]
fn each_standing_does_what_it_says() {
    for variable in VARIABLES {
        let result = read(&[(variable.name, "bogus")]);
        match variable.standing {
            // Words that are not among the valid ones; one of the pool's is refused by the pool.
            Standing::Honoured if TEXTS.contains(&variable.name) => {
                assert!(result.is_ok(), "{}", variable.name);
            }
            Standing::Honoured | Standing::Refused { .. } => assert!(result.is_err(), "{}", variable.name),
            Standing::Ignored => match result {
                Ok(found) => assert_eq!(found.notes.len(), 1, "{}", variable.name),
                Err(_) => assert!(variable.does.contains("checked already")),
            },
        }
        if let Standing::Refused { only } = variable.standing {
            assert_eq!(read(&[(variable.name, &only.to_string())]), Ok(Environment::default()));
            assert_eq!(refused(&[(variable.name, &(!only).to_string())]).len(), 1, "{}", variable.name);
        }
    }
}

#[test]
fn what_is_read_is_in_the_table_and_the_table_is_read() {
    let asked = RefCell::new(BTreeSet::new());
    Environment::read(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    })
    .unwrap();
    let table: BTreeSet<_> = VARIABLES.iter().map(|v| v.name.to_owned()).collect();
    assert_eq!(table.len(), VARIABLES.len(), "a name stands twice");
    assert_eq!(*asked.borrow(), table);
}
