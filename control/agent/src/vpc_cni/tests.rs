use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sluice_state::Mac;

use super::host::{Host, Link, Rule};
use super::ipam::{Allocation, Leases, LeasesError};
use super::names::host_interface;
use super::plan::{Plan, plan};
use super::tables::{Backend, Ours};

const LEASES: &str = r#"{"version":"vpc-cni-ipam/1","allocations":[
{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.1.10","allocationTimestamp":1700000000123456789,
 "metadata":{"k8sPodNamespace":"web","k8sPodName":"a","interfacesCount":1}},
{"networkName":"aws-cni","containerID":"c2","ifName":"eth0","ipv4":"10.0.2.20","allocationTimestamp":1700000000000000000,
 "metadata":{"k8sPodNamespace":"web","k8sPodName":"b"}},
{"networkName":"aws-cni","containerID":"c3","ifName":"eth0","ipv4":"10.0.2.21","allocationTimestamp":0,
 "metadata":{"k8sPodNamespace":"web","k8sPodName":"gone"}}]}"#;

fn leases() -> Vec<Allocation> {
    Leases::parse(LEASES.as_bytes()).unwrap().allocations
}

fn rule(priority: u32, from: Option<&str>, to: Option<&str>, table: u32) -> Rule {
    let net = |text: Option<&str>| text.map(|t| t.parse().unwrap());
    Rule { priority, from: net(from), to: net(to), mark: None, table }
}

/// Two pods, `a` on the primary ENI and `b` on the second, and the VPC CNI's rules.
fn host() -> Host {
    let link = |ifindex: u32, name: &str, peer: Option<u8>| {
        (
            ifindex,
            Link {
                name: name.into(),
                ifindex,
                peer_mac: peer.map(|n| Mac([2, 0, 0, 0, 0, n])),
                mac: None,
                mtu: None,
            },
        )
    };
    let marked = Rule { mark: Some((0x80, 0x80)), ..rule(1024, None, None, 254) };
    Host {
        links: BTreeMap::from([
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "eth1", None),
            link(10, &host_interface("eni", "web", "a"), Some(1)),
            link(11, &host_interface("eni", "web", "b"), Some(2)),
        ]),
        pods: BTreeMap::from([(Ipv4Addr::new(10, 0, 1, 10), 10), (Ipv4Addr::new(10, 0, 2, 20), 11)]),
        defaults: BTreeMap::from([(254, 2), (2, 3)]),
        rules: vec![
            rule(100, Some("10.9.9.9/32"), None, 7),
            rule(512, None, Some("10.0.1.10/32"), 254),
            rule(512, None, Some("10.0.2.20/32"), 254),
            rule(512, None, Some("10.0.2.21/32"), 254),
            marked,
            rule(1536, Some("10.0.2.20/32"), None, 2),
            rule(1536, Some("10.0.2.21/32"), None, 2),
            rule(1536, Some("10.0.7.7/32"), None, 2),
            rule(32_765, Some("10.0.10.5/32"), None, 2),
        ],
    }
}

fn planned(host: &Host) -> Plan {
    plan(&leases(), &[], &[], host, "eni", &BTreeSet::new())
}

#[test]
fn leases_are_read_whole_and_written_as_they_were() {
    let leases = leases();
    assert_eq!(leases.len(), 3);
    let again = Leases::parse(&Leases::encode(&leases)).unwrap();
    assert_eq!((again.allocations, again.refused), (leases.clone(), vec![]));
    let lease = leases[0].lease("sluice", "eni-0123456789abcdef0".parse().unwrap());
    assert_eq!((lease.key.network.as_str(), lease.since.0), ("sluice", 1_700_000_000_123));
    // DEL of the VPC CNI's plugin asks under its own network's name.
    let back = Allocation::of_lease(&lease).unwrap();
    assert_eq!(back, Allocation { since_ns: 1_700_000_000_123_000_000, ..leases[0].clone() });
}

#[test]
fn a_bad_entry_is_told_of_and_takes_no_other_with_it() {
    let entries = [
        (
            r#"{"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.300","metadata":{}}"#,
            "10.0.0.300",
        ),
        (
            r#"{"networkName":"n","containerID":"c","ifName":"eth0","ipv6":"fd00::1","metadata":{}}"#,
            "fd00::1",
        ),
        (
            r#"{"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.9","metadata":{}}"#,
            "k8sPodNamespace",
        ),
        (
            r#"{"networkName":"n","containerID":"","ifName":"eth0","ipv4":"10.0.0.9",
                "metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}"#,
            "containerID",
        ),
        (
            r#"{"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.9",
                "metadata":{"k8sPodNamespace":"a","k8sPodName":"b","interfacesCount":2}}"#,
            "2 interfaces",
        ),
        (r#"{"containerID":5}"#, "does not parse"),
    ];
    for (entry, named) in entries {
        let text = LEASES.replacen("\"allocations\":[", &format!("\"allocations\":[{entry},"), 1);
        let leases = Leases::parse(text.as_bytes()).unwrap();
        assert_eq!(leases.allocations.len(), 3, "{entry}");
        assert!(leases.refused[0].starts_with("allocations[0]"), "{:?}", leases.refused);
        assert!(leases.refused[0].contains(named), "{named}: {:?}", leases.refused);
    }
}

#[test]
fn a_file_that_makes_no_sense_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ipam.json");
    assert_eq!(Leases::read(&path).unwrap(), None);
    for (text, named) in
        [("{\"version\":\"vpc-cni-ipam/2\",\"allocations\":[]}", "vpc-cni-ipam/2"), ("{\"ver", "EOF")]
    {
        std::fs::write(&path, text).unwrap();
        let error = Leases::read(&path).unwrap_err();
        assert!(path.exists(), "looking moves nothing");
        let error = Leases::set_aside(error);
        let LeasesError::Corrupt { aside: Some(aside), .. } = &error else { panic!("{error}") };
        assert_eq!(std::fs::read_to_string(aside).unwrap(), text);
        assert!(!path.exists() && error.to_string().contains(named), "{error}");
        std::fs::remove_file(aside).unwrap();
    }
}

#[test]
fn pods_come_over_with_their_rules_and_nobody_elses_go() {
    let plan = planned(&host());
    let pods: Vec<_> =
        plan.taken.iter().map(|t| (t.allocation.name.as_str(), t.eni.as_str(), t.rules.len())).collect();
    assert_eq!(pods, [("a", "eth0", 1), ("b", "eth1", 2)]);
    assert_eq!(plan.taken[1].mac, Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(plan.dropped.len(), 1);
    assert!(plan.dropped[0].what.contains("web/gone 10.0.2.21"));
    assert!(plan.takes_all(), "{:?}", plan.left);
    let by_source: Vec<_> = plan.by_source().map(|r| r.to_string()).collect();
    assert_eq!(by_source, ["pref 1536 from 10.0.2.20/32 lookup 2", "pref 1536 from 10.0.2.21/32 lookup 2"]);
    assert_eq!(plan.by_destination().count(), 3);
    assert_eq!(
        plan.shared.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["pref 1024 fwmark 0x80/0x80 lookup main"]
    );
}

#[test]
fn what_is_shared_stays_while_one_pod_is_not_ours() {
    // A veth of nobody's lease.
    let mut with_stranger = host();
    let name = host_interface("eni", "web", "stranger");
    with_stranger
        .links
        .insert(12, Link { name: name.clone(), ifindex: 12, peer_mac: None, mac: None, mtu: None });
    let plan = planned(&with_stranger);
    assert!(!plan.takes_all() && plan.left[0].what.contains(&name));
    // The daemon has it: it is Sluice's own.
    let served = BTreeSet::from([name]);
    assert!(super::plan::plan(&leases(), &[], &[], &with_stranger, "eni", &served).takes_all());
    // A branch ENI.
    let mut with_branch = host();
    with_branch.links.insert(
        12,
        Link { name: "vlan0123456789a".into(), ifindex: 12, peer_mac: None, mac: None, mtu: None },
    );
    assert!(planned(&with_branch).left[0].why.contains("branch ENI"));
    // A pod whose end cannot be asked is told of once.
    let mut mute = host();
    mute.links.get_mut(&10).unwrap().peer_mac = None;
    let plan = planned(&mute);
    assert_eq!((plan.left.len(), plan.taken.len()), (1, 1));
    // An entry that was refused.
    assert!(
        !super::plan::plan(
            &leases(),
            &["allocations[7] is odd".into()],
            &[],
            &host(),
            "eni",
            &BTreeSet::new()
        )
        .takes_all()
    );
}

#[test]
fn a_later_pod_of_the_same_name_does_not_get_the_earlier_ones_address() {
    let mut host = host();
    host.pods.remove(&Ipv4Addr::new(10, 0, 2, 20));
    host.pods.insert(Ipv4Addr::new(10, 0, 2, 99), 11);
    let plan = planned(&host);
    assert_eq!(plan.taken.len(), 1);
    let dropped = plan.dropped.iter().find(|d| d.what.contains("10.0.2.20")).unwrap();
    assert!(dropped.why.contains("10.0.2.99"), "{}", dropped.why);
    assert!(!plan.takes_all(), "its veth has no lease that is known");
}

#[test]
fn a_pods_eni_is_known_after_its_rule_has_gone() {
    let whole = host();
    let mut later = host();
    later.rules.retain(|rule| rule.priority != 1536);
    let plan = super::plan::plan(&leases(), &[], &whole.rules, &later, "eni", &BTreeSet::new());
    assert_eq!(plan.taken[1].eni, "eth1");
    assert_eq!(plan.by_source().count(), 0, "what is gone is not removed again");
}

#[test]
fn a_dropped_leases_rules_stay_where_another_pod_has_the_address() {
    let mut host = host();
    host.pods.insert(Ipv4Addr::new(10, 0, 2, 21), 2);
    assert!(planned(&host).stale.is_empty());
}

/// What `iptables-nft -t nat -S` prints on a node of the VPC CNI beside kube-proxy.
const NAT: &str = r#"# Warning: iptables-legacy tables present, use iptables-legacy to see them
-P PREROUTING ACCEPT
-P POSTROUTING ACCEPT
-N AWS-CONNMARK-CHAIN-0
-N AWS-SNAT-CHAIN-0
-N AWS-SNAT-CHAIN-1
-N KUBE-SERVICES
-N AWS-SNAT-CHAIN-OF-SOMEBODY
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -m comment --comment "mine, \"AWS, CONNMARK\"" -j CONNMARK --restore-mark
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A POSTROUTING -d 10.0.0.0/16 -m comment --comment mine -j AWS-SNAT-CHAIN-1
-A POSTROUTING -m comment --comment "AWS, CONNMARK" -j MASQUERADE
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.9.5 --random-fully
-A KUBE-SERVICES -d 172.20.0.1/32 -p tcp -m tcp --dport 443 -j ACCEPT
"#;

#[test]
fn what_goes_from_a_table_is_the_vpc_cnis_by_exact_match() {
    let ours = Ours::find(Backend::Nft, "nat", NAT);
    assert_eq!(
        ours.script(),
        "*nat\n\
         -D PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
         -D PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         -D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
         -F AWS-CONNMARK-CHAIN-0\n-F AWS-SNAT-CHAIN-0\n-F AWS-SNAT-CHAIN-1\n\
         -X AWS-CONNMARK-CHAIN-0\n-X AWS-SNAT-CHAIN-0\nCOMMIT\n"
    );
    assert_eq!(ours.held.len(), 1, "somebody else's rule jumps to this one");
    let nothing =
        Ours::find(Backend::Legacy, "nat", "-P PREROUTING ACCEPT\n-A PREROUTING -j KUBE-SERVICES\n");
    assert!(nothing.is_empty());
}
