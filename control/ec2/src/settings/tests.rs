use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Settings, Refused> {
    Settings::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
}

#[test]
fn nothing_set_means_the_vpc_cnis_defaults() {
    assert_eq!(read(&[]), Ok(Settings::default()));
    assert_eq!(read(&[("WARM_IP_TARGET", ""), ("CLUSTER_NAME", " ")]), Ok(Settings::default()));
}

#[test]
fn targets_have_the_vpc_cnis_precedence() {
    for (variables, target) in [
        (&[("WARM_ENI_TARGET", "0")][..], Target::Interfaces(0)),
        (&[("WARM_ENI_TARGET", "2"), ("WARM_IP_TARGET", "5")], Target::Addresses { warm: 5, minimum: 0 }),
        (&[("MINIMUM_IP_TARGET", "12")], Target::Addresses { warm: 0, minimum: 12 }),
        (&[("WARM_IP_TARGET", "0")], Target::Interfaces(1)),
        (&[("WARM_PREFIX_TARGET", "3")], Target::Interfaces(1)),
        (&[("ENABLE_PREFIX_DELEGATION", "true")], Target::Prefixes(1)),
        (&[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "3")], Target::Prefixes(3)),
        (
            &[("ENABLE_PREFIX_DELEGATION", "1"), ("WARM_PREFIX_TARGET", "0"), ("WARM_IP_TARGET", "4")],
            Target::Addresses { warm: 4, minimum: 0 },
        ),
    ] {
        assert_eq!(read(variables).map(|s| s.target), Ok(target), "{variables:?}");
    }
}

#[test]
fn every_other_variable_reaches_its_field() {
    let settings = read(&[
        ("MAX_ENI", "4"),
        ("IP_COOLDOWN_PERIOD", "45"),
        ("ENABLE_SUBNET_DISCOVERY", "false"),
        ("ADDITIONAL_ENI_TAGS", r#"{"team": "net"}"#),
        ("CLUSTER_NAME", "blue"),
        ("DISABLE_LEAKED_ENI_CLEANUP", "true"),
        ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true"),
        ("MANAGE_UNTAGGED_ENI", "false"),
        ("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "true"),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ("ENI_CONFIG_LABEL_DEF", "topology.kubernetes.io/zone"),
    ])
    .unwrap();
    let expected = Settings {
        target: Target::Interfaces(1),
        max_interfaces: Some(4),
        prefixes: false,
        cooldown: Duration::from_secs(45),
        discover_subnets: false,
        tags: [("team".to_owned(), "net".to_owned())].into(),
        cluster: Some("blue".to_owned()),
        sweep: false,
        provision: false,
        manage_untagged: false,
        manage_cordoned: true,
        custom: Some(CustomKeys {
            annotation: "k8s.amazonaws.com/eniConfig".to_owned(),
            label: "topology.kubernetes.io/zone".to_owned(),
        }),
    };
    assert_eq!(settings, expected);
    assert_eq!(read(&[("MAX_ENI", "-1")]).unwrap().max_interfaces, None);
    assert!(!read(&[("ENABLE_IMDS_ONLY_MODE", "true")]).unwrap().provision);
}

#[test]
fn a_value_that_makes_no_sense_is_named_with_what_would_be_valid() {
    for (variable, value, hint) in [
        ("WARM_IP_TARGET", "-1", "0 to 65535"),
        ("MINIMUM_IP_TARGET", "ten", "whole number"),
        ("WARM_ENI_TARGET", "1.5", "0 to 255"),
        ("MAX_ENI", "many", "1 to 255"),
        ("IP_COOLDOWN_PERIOD", "30s", "whole number"),
        ("ENABLE_PREFIX_DELEGATION", "yes", "true or false"),
        ("ADDITIONAL_ENI_TAGS", "a=b", "JSON object"),
        ("ADDITIONAL_ENI_TAGS", r#"{"node.k8s.amazonaws.com/instance_id": "i-1"}"#, "CNI's own"),
        ("ADDITIONAL_ENI_TAGS", r#"{"aws:x": "1"}"#, "not aws:"),
    ] {
        let text = read(&[(variable, value)]).unwrap_err().to_string();
        assert!(text.contains(variable) && text.contains(hint), "{variable}={value}: {text}");
    }
    let two = read(&[("WARM_IP_TARGET", "x"), ("MAX_ENI", "y")]).unwrap_err();
    assert_eq!(two.0.len(), 2, "{two}");
    let none = read(&[("ENABLE_PREFIX_DELEGATION", "true"), ("WARM_PREFIX_TARGET", "0")]).unwrap_err();
    assert!(none.to_string().contains("MINIMUM_IP_TARGET"), "{none}");
}
