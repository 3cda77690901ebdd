//! What an inventory may say, and what is said to who gets it wrong.

use sluice_agent::Inventory;

const GOOD: &str = r#"
version = 1
[node]
name = "here"
[nat]
vpc_cidrs = ["10.0.0.0/16"]
[[eni]]
name = "eth0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
[[pod]]
ip = "10.0.9.20"
eni = "eth0"
interface = "eni0"
mac = "02:00:00:00:00:0a"
[[pod]]
namespace = "n"
name = "kept"
ip = "10.0.9.21"
eni = "eth0"
interface = "eni1"
mac = "02:00:00:00:00:0b"
[cluster]
zone = "z1"
[[cluster.node]]
name = "there"
address = "10.0.9.6"
pod_cidr = "10.0.128.0/24"
"#;

#[test]
fn places_nodes_and_ranges_are_read() {
    let inventory = Inventory::parse(GOOD).unwrap();
    assert!(inventory.state.pods.is_empty(), "places are no pods before somebody takes them");
    let placement = inventory.placement();
    assert_eq!(placement.node, "here");
    let slots = placement.slots.unwrap();
    assert_eq!(slots[0].pod, None);
    assert_eq!(slots[1].pod, Some(("n".into(), "kept".into())));
    assert_eq!(placement.nodes[0].addresses, ["10.0.9.5".parse::<std::net::Ipv4Addr>().unwrap()]);
    assert_eq!(placement.nodes[0].zone.as_deref(), Some("z1"));
    assert_eq!(placement.nodes[1].pod_cidr, Some("10.0.128.0/24".parse().unwrap()));
    assert_eq!(placement.service_cidrs, ["172.20.0.0/16".parse::<ipnet::Ipv4Net>().unwrap()]);
}

#[test]
fn every_mistake_is_named_with_its_field() {
    let refused = |text: &str, parts: &[&str]| {
        let error = Inventory::parse(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}` in {error}");
        }
    };
    refused(&GOOD.replace("name = \"here\"", ""), &["node.name"]);
    refused(&GOOD.replace("namespace = \"n\"\n", ""), &["pod[1]", "both namespace and name"]);
    refused(&GOOD.replace("name = \"there\"", "name = \"here\""), &["cluster.node[0].name"]);
    refused(&GOOD.replace("10.0.128.0/24", "10.0.9.0/24"), &["cluster.node[0].pod_cidr", "10.0.9.20"]);
    refused(&GOOD.replace("10.0.128.0/24", "10.0.128.1/24"), &["host bits", "10.0.128.0/24"]);
    refused(&GOOD.replace("zone", "zones"), &["[cluster]", "zones"]);
    refused(&GOOD.replace("zone = \"z1\"", "service_cidrs = []"), &["cluster.service_cidrs"]);
    refused(&GOOD.replace("zone = \"z1\"", "service_cidrs = [\"172.20.0.1/16\"]"), &["services.cidrs[0]"]);
    refused(&GOOD.replace("interface = \"eni1\"", "interface = \"eni0\""), &["pod[1].interface"]);
    refused(&format!("{GOOD}[[policy.pod]]\nip = \"10.0.9.20\"\n"), &["come from the manifests"]);
    refused("version = [", &["does not parse"]);
    let given = |list: &str| {
        GOOD.replace("gateway = \"10.0.9.1\"", &format!("gateway = \"10.0.9.1\"\npod_addresses = {list}"))
    };
    refused(&given("[\"10.0.9.5\"]"), &["eni eth0.pod_addresses", "overlaps 10.0.9.5/32"]);
    refused(&given("[\"10.0.9.16/28\"]"), &["eni eth0.pod_addresses", "overlaps 10.0.9.20/32"]);
    refused(&given("[\"10.0.9.64/27\"]"), &["10.0.9.64/27", "a /28"]);
    refused(&given("[\"10.0.9.70/28\"]"), &["host bits", "10.0.9.64/28"]);
    refused(&given("[\"ten\"]"), &["eth0", "`ten`", "10.0.9.64/28"]);
    refused(&given("7"), &["eth0", "`7`"]);
    let inventory = Inventory::parse(&given("[\"10.0.9.30\", \"10.0.9.64/28\"]")).unwrap();
    let addresses = &inventory.addresses["eth0"];
    assert_eq!((addresses.addresses.len(), addresses.prefixes.len()), (1, 1));
}
