use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};
use sluice_state::{Op, Protocol, Service as Compiled, WithoutEndpoints};

use crate::world::tests::{Followed, delete, pod, settings, upsert};
use crate::{Change, ContainerPort, EndpointSlice, Kind, Node, Object, Service};

fn service(spec: &Value) -> Change {
    named_service("a/web", 100, spec, &json!({}))
}

fn named_service(name: &str, created: i64, spec: &Value, status: &Value) -> Change {
    let (namespace, name) = name.split_once('/').unwrap();
    let mut object: core::Service = serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name}, "spec": spec, "status": status
    }))
    .unwrap();
    let time = k8s_openapi::jiff::Timestamp::from_second(created).unwrap();
    object.metadata.creation_timestamp = Some(time.into());
    Change::Upsert(Object::Service(Service::try_from(&object).unwrap()))
}

fn slice(name: &str, ports: &Value, endpoints: &Value) -> Change {
    let object: discovery::EndpointSlice = serde_json::from_value(json!({
        "metadata": {"namespace": "a", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints
    }))
    .unwrap();
    Change::Upsert(Object::EndpointSlice(EndpointSlice::try_from(&object).unwrap()))
}

fn one_slice(endpoints: &Value) -> Change {
    slice("web-1", &json!([{"name": "http", "port": 8080, "protocol": "TCP"}]), endpoints)
}

fn at(ip: &str, node: &str) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}})
}

fn with(endpoint: &Value, more: &Value) -> Value {
    let mut endpoint = endpoint.clone();
    endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    endpoint
}

fn cluster_ip() -> Value {
    json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
           "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]})
}

fn node(zone: Option<&str>) -> Change {
    let zone = zone.map(Into::into);
    Change::Upsert(Object::Node(Node {
        name: "n1".into(),
        addresses: Vec::new(),
        zone,
        labels: std::sync::Arc::default(),
    }))
}

fn compile(changes: impl IntoIterator<Item = Change>) -> Vec<Compiled> {
    let mut followed = Followed::new(settings());
    followed.apply(changes);
    followed.update();
    followed.world.services().services.iter().map(|s| (**s).clone()).collect()
}

fn endpoints(service: &Compiled) -> Vec<String> {
    service.endpoints.iter().map(|e| format!("{}:{}", e.ip, e.port)).collect()
}

fn frontends(service: &Compiled) -> Vec<String> {
    let place = |a: Option<Ipv4Addr>| a.map_or_else(|| "*".to_owned(), |a| a.to_string());
    service.frontends.iter().map(|f| format!("{}:{}", place(f.address), f.port)).collect()
}

#[test]
fn a_cluster_ip_leads_to_the_ready_ones() {
    let not_ready = with(&at("10.0.0.3", "n2"), &json!({"conditions": {"ready": false, "serving": false}}));
    let unknown = json!({"addresses": ["10.0.0.4", "10.9.9.9"], "conditions": {}});
    let list = compile([
        service(&cluster_ip()),
        one_slice(&json!([at("10.0.0.2", "n2"), not_ready, unknown, at("10.0.0.1", "n1")])),
    ]);
    assert_eq!(list.len(), 1);
    assert_eq!((&*list[0].name, list[0].protocol, list[0].affinity), ("a/web:http", Protocol::Tcp, None));
    assert_eq!(frontends(&list[0]), ["10.96.0.10:80"]);
    assert!(!list[0].frontends[0].over_local);
    assert_eq!(endpoints(&list[0]), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:8080"]);
}

#[test]
fn those_that_leave_serve_when_none_is_ready() {
    let leaving = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let leaving_on = |ip, node| with(&at(ip, node), &leaving);
    let gone = with(
        &at("10.0.0.9", "n1"),
        &json!({"conditions": {"ready": false, "serving": false, "terminating": true}}),
    );
    let waiting = with(&at("10.0.0.8", "n1"), &json!({"conditions": {"ready": false}}));
    let some = json!([leaving_on("10.0.0.1", "n1"), leaving_on("10.0.0.2", "n2"), gone, waiting]);
    let list = compile([service(&cluster_ip()), one_slice(&some)]);
    assert_eq!(endpoints(&list[0]), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let mut more = some.as_array().unwrap().clone();
    more.push(at("10.0.0.3", "n2"));
    let list = compile([service(&cluster_ip()), one_slice(&json!(more))]);
    assert_eq!(endpoints(&list[0]), ["10.0.0.3:8080"]);
}

#[test]
fn internal_traffic_policy_local() {
    let mut spec = cluster_ip();
    spec["internalTrafficPolicy"] = json!("Local");
    spec["externalIPs"] = json!(["192.0.2.1"]);
    let both = json!([at("10.0.0.1", "n1"), at("10.0.0.2", "n2")]);
    let list = compile([service(&spec), one_slice(&both)]);
    assert_eq!(endpoints(&list[0]), ["10.0.0.1:8080"]);
    assert_eq!(
        (&*list[1].name, frontends(&list[1])),
        ("a/web:http external", vec!["192.0.2.1:80".to_owned()])
    );
    assert_eq!(endpoints(&list[1]), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let list = compile([service(&spec), one_slice(&json!([at("10.0.0.2", "n2")]))]);
    assert_eq!((endpoints(&list[0]).len(), list[0].without_endpoints), (0, WithoutEndpoints::Drop));
    let list = compile([service(&spec), one_slice(&json!([]))]);
    assert_eq!((endpoints(&list[0]).len(), list[0].without_endpoints), (0, WithoutEndpoints::Reject));
}

#[test]
fn hints_need_all_and_one_for_us() {
    let zone = |z: &str| json!({"hints": {"forZones": [{"name": z}]}});
    let near = with(&at("10.0.0.1", "n2"), &zone("z1"));
    let far = with(&at("10.0.0.2", "n3"), &zone("z2"));
    let both = [service(&cluster_ip()), one_slice(&json!([near, far]))];
    let of = |node: Change, rest: &[Change]| {
        endpoints(&compile([node].into_iter().chain(rest.iter().cloned()))[0])
    };
    assert_eq!(of(node(Some("z1")), &both), ["10.0.0.1:8080"]);
    // None for our zone, no zone, or one without hints: all.
    assert_eq!(of(node(Some("z3")), &both).len(), 2);
    assert_eq!(of(node(None), &both).len(), 2);
    let unhinted = json!([near, far, at("10.0.0.3", "n4")]);
    assert_eq!(of(node(Some("z1")), &[service(&cluster_ip()), one_slice(&unhinted)]).len(), 3);
    // One that is not ready does not count.
    let unready = with(&at("10.0.0.3", "n4"), &json!({"conditions": {"ready": false}}));
    let list = json!([near, far, unready]);
    assert_eq!(of(node(Some("z1")), &[service(&cluster_ip()), one_slice(&list)]), ["10.0.0.1:8080"]);
    // Nodes go before zones, and fall back to them.
    let hint = |z: &str, n: &str| json!({"hints": {"forZones": [{"name": z}], "forNodes": [{"name": n}]}});
    let ours = with(&at("10.0.0.1", "n1"), &hint("z1", "n1"));
    let zones = with(&at("10.0.0.2", "n2"), &hint("z1", "n2"));
    let far = with(&at("10.0.0.3", "n3"), &hint("z2", "n3"));
    let list = [service(&cluster_ip()), one_slice(&json!([ours, zones, far]))];
    assert_eq!(of(node(Some("z1")), &list), ["10.0.0.1:8080"]);
    let list = [service(&cluster_ip()), one_slice(&json!([zones, far]))];
    assert_eq!(of(node(Some("z1")), &list), ["10.0.0.2:8080"]);
}

#[test]
fn a_zone_learned_late_changes_the_choice() {
    let hinted = |ip, zone: &str| with(&at(ip, "n2"), &json!({"hints": {"forZones": [{"name": zone}]}}));
    let mut followed = Followed::new(settings());
    followed.apply([
        service(&cluster_ip()),
        one_slice(&json!([hinted("10.0.0.1", "z1"), hinted("10.0.0.2", "z2")])),
    ]);
    followed.update();
    assert_eq!(followed.world.services().services[0].endpoints.len(), 2);
    followed.apply([node(Some("z1"))]);
    assert!(matches!(&followed.update().ops[..], [Op::UpsertService(_)]));
    assert_eq!(followed.world.services().services[0].endpoints.len(), 1);
}

#[test]
fn load_balancers_and_node_ports() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.7"],
        "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
        "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]}});
    let list = compile([
        named_service("a/web", 1, &spec, &status),
        one_slice(&json!([at("10.0.0.1", "n1"), at("10.0.0.2", "n2")])),
    ]);
    assert_eq!(list.len(), 1);
    assert_eq!(
        frontends(&list[0]),
        ["10.96.0.10:80", "192.0.2.7:80", "192.0.2.1:80", "192.0.2.2:80", "*:30080"]
    );
    let sources: Vec<usize> =
        list[0].frontends.iter().map(|f| f.sources.as_ref().map_or(0, Vec::len)).collect();
    assert_eq!(sources, [0, 0, 1, 1, 0]);
    assert_eq!(list[0].affinity, Some(10_800));
    assert_eq!(list[0].endpoints.len(), 2, "the cluster's own pods go anywhere");
}

#[test]
fn what_is_no_service_here() {
    let ports = json!([{"port": 80}]);
    assert!(compile([service(&json!({"clusterIP": "None", "ports": ports}))]).is_empty());
    let external = json!({"type": "ExternalName", "externalName": "example.com", "ports": ports});
    assert!(compile([service(&external)]).is_empty());
    assert!(compile([service(&json!({"clusterIP": "fd00::1", "ports": ports}))]).is_empty());
}

#[test]
fn a_named_target_port_is_another_in_each_slice() {
    let port = |n| json!([{"name": "http", "port": n, "protocol": "TCP"}, {"name": "other", "port": 1}]);
    let list = compile([
        service(&cluster_ip()),
        slice("web-1", &port(8080), &json!([at("10.0.0.1", "n1")])),
        slice("web-2", &port(9090), &json!([at("10.0.0.2", "n1"), at("10.0.0.2", "n1")])),
        // While it moves from slice to slice an endpoint is in both, and ready in one.
        slice(
            "web-3",
            &port(8080),
            &json!([with(&at("10.0.0.1", "n1"), &json!({"conditions": {"ready": false}}))]),
        ),
    ]);
    assert_eq!(endpoints(&list[0]), ["10.0.0.1:8080", "10.0.0.2:9090"]);
}

#[test]
fn a_service_comes_and_goes() {
    let mut followed = Followed::new(settings());
    followed.update();
    followed.apply([one_slice(&json!([at("10.0.0.1", "n1")]))]);
    assert!(followed.update().ops.is_empty());
    followed.apply([service(&cluster_ip())]);
    assert!(matches!(&followed.update().ops[..], [Op::UpsertService(s)] if s.endpoints.len() == 1));
    followed.apply([service(&cluster_ip())]);
    assert!(followed.update().ops.is_empty());
    followed.apply([delete(Kind::EndpointSlice, "a/web-1")]);
    assert!(matches!(&followed.update().ops[..], [Op::UpsertService(s)] if s.endpoints.is_empty()));
    followed.apply([delete(Kind::Service, "a/web")]);
    assert!(matches!(&followed.update().ops[..], [Op::DeleteService(name)] if name == "a/web:http"));
}

#[test]
fn a_place_that_two_services_claim_is_the_older_ones() {
    let spec = |ip: &str| json!({"clusterIP": ip, "externalIPs": ["192.0.2.1"], "ports": [{"name": "http", "port": 80}]});
    let mut followed = Followed::new(settings());
    followed.apply([named_service("a/new", 200, &spec("10.96.0.1"), &json!({}))]);
    followed.update();
    followed.apply([named_service("a/old", 100, &spec("10.96.0.2"), &json!({}))]);
    let update = followed.update();
    let list = followed.world.services().services;
    assert_eq!(frontends(&list[0]), ["10.96.0.1:80"]);
    assert_eq!(frontends(&list[1]), ["10.96.0.2:80", "192.0.2.1:80"]);
    assert_eq!(update.findings.len(), 1);
    assert!(update.findings[0].to_string().starts_with("Service a/new: claims 192.0.2.1 80/TCP"));
    followed.apply([delete(Kind::Service, "a/old")]);
    followed.update();
    assert_eq!(frontends(&followed.world.services().services[0]), ["10.96.0.1:80", "192.0.2.1:80"]);
}

#[test]
fn host_ports_of_this_nodes_pods() {
    let port = |host_ip: Option<&str>| ContainerPort {
        name: None,
        protocol: Protocol::Udp,
        port: 53,
        host_port: Some(5353),
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    let with_port = |name, ip, host_ip| {
        let mut pod = pod(name, &[], ip);
        pod.ports = [port(host_ip)].into();
        pod
    };
    let mut followed = Followed::new(settings());
    let mut remote = with_port("a/c", "10.0.0.3", None);
    remote.node = Some("n2".into());
    followed.apply([
        upsert(with_port("a/a", "10.0.0.1", None)),
        upsert(with_port("a/b", "10.0.0.2", Some("10.0.9.9"))),
        upsert(remote),
        upsert(with_port("a/l", "10.0.0.5", Some("127.0.0.1"))),
    ]);
    followed.update();
    let list = followed.world.services().services;
    assert_eq!(list.len(), 2);
    assert_eq!(
        (frontends(&list[0]), endpoints(&list[0])),
        (vec!["*:5353".into()], vec!["10.0.0.1:53".into()])
    );
    assert_eq!(frontends(&list[1]), ["10.0.9.9:5353"]);
    // A newer pod takes the port over from one that ends.
    let mut newer = with_port("a/n", "10.0.0.4", None);
    newer.created = Some(1_800_000_000);
    followed.apply([upsert(newer)]);
    followed.update();
    let names: Vec<String> = followed.world.services().services.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names, ["a/b:hostport 10.0.9.9:5353/UDP", "a/n:hostport 5353/UDP"]);
    followed.apply([delete(Kind::Pod, "a/n"), delete(Kind::Pod, "a/b")]);
    followed.update();
    assert_eq!(followed.world.services().services[0].name, "a/a:hostport 5353/UDP");
}

#[test]
fn ports_without_names_of_their_own() {
    let spec = json!({"clusterIP": "10.96.0.10", "externalIPs": ["10.96.0.10"],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
    let list = compile([service(&spec)]);
    let names: Vec<&str> = list.iter().map(|s| &*s.name).collect();
    assert_eq!(names, ["a/web:53", "a/web:53/TCP"]);
    assert_eq!(frontends(&list[1]), ["10.96.0.10:53"], "the same address twice is one place");
}
