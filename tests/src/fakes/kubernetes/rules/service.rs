//! Services. Their addresses and node ports are given out where the objects are ([`super::super::world`]).

use serde_json::{Value, json};

use super::super::status::Cause;
use super::{default, drop_member, items, items_mut, names, text};

pub(super) fn defaults(service: &mut Value, old: Option<&Value>) {
    let spec = &mut service["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": 10_800 } }));
    }
    for port in items_mut(spec, "ports") {
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        if port["targetPort"].is_null() || port["targetPort"] == 0 {
            port["targetPort"] = number;
        }
    }
    let kind = text(spec, "type").to_string();
    if kind == "ExternalName" {
        for member in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            drop_member(spec, member);
        }
    } else {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
        if spec["ipFamilyPolicy"].is_null() || spec["ipFamilyPolicy"] == "PreferDualStack" {
            default(spec, "ipFamilyPolicy", json!("SingleStack"));
        }
        default(spec, "ipFamilies", json!(["IPv4"]));
        addresses(spec, old);
    }
    if kind == "NodePort" || kind == "LoadBalancer" || !spec["externalIPs"].is_null() {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    } else {
        drop_member(spec, "externalTrafficPolicy");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    } else {
        drop_member(spec, "allocateLoadBalancerNodePorts");
        if kind != "NodePort" {
            for port in items_mut(spec, "ports") {
                drop_member(port, "nodePort");
            }
        }
    }
    if old.is_none() {
        service["status"] = json!({ "loadBalancer": {} });
    }
    for ingress in items_mut(&mut service["status"]["loadBalancer"], "ingress") {
        if !text(ingress, "ip").is_empty() {
            default(ingress, "ipMode", json!("VIP"));
        }
    }
}

/// `clusterIP` and the first of `clusterIPs` are one address.
fn addresses(spec: &mut Value, old: Option<&Value>) {
    let before = old.map_or(&Value::Null, |old| &old["spec"]);
    if spec["clusterIP"].is_null() && !before["clusterIP"].is_null() && spec["clusterIPs"].is_null() {
        spec["clusterIP"] = before["clusterIP"].clone();
        spec["clusterIPs"] = before["clusterIPs"].clone();
    }
    if spec["clusterIP"].is_null() {
        if let Some(first) = spec["clusterIPs"].get(0).cloned() {
            spec["clusterIP"] = first;
        }
    } else if spec["clusterIPs"].is_null() || spec["clusterIPs"] == before["clusterIPs"] {
        let same = spec["clusterIPs"].get(0) == Some(&spec["clusterIP"]);
        if !same {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
    }
}

pub(super) fn check(
    service: &Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
    warnings: &mut Vec<String>,
) {
    let spec = &service["spec"];
    let external = spec["type"] == "ExternalName";
    let headless = spec["clusterIP"] == "None";
    let many = spec["ports"].as_array().is_some_and(|ports| ports.len() > 1);
    if spec["ports"].is_null() && !external && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    if external && text(spec, "externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    let mut seen = Vec::new();
    for (i, port) in items(spec, "ports") {
        let at = format!("spec.ports[{i}]");
        if many && text(port, "name").is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        }
        names::port(&format!("{at}.port"), &port["port"], causes);
        names::one_of(&format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"], causes);
        match &port["targetPort"] {
            Value::String(name) => names::port_name(&format!("{at}.targetPort"), name, causes),
            number => names::port(&format!("{at}.targetPort"), number, causes),
        }
        if !port["nodePort"].is_null()
            && !port["nodePort"].as_i64().is_some_and(|p| (30_000..32_768).contains(&p))
        {
            let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
            causes.push(Cause::invalid(format!("{at}.nodePort"), &port["nodePort"], why));
        }
        let identity = (text(port, "protocol"), &port["port"]);
        if seen.contains(&identity) {
            // As the real server prints it: its own struct, of what tells ports apart.
            let message = format!(
                "Duplicate value: {{\"Name\":\"\",\"Protocol\":\"{}\",\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                identity.0, identity.1
            );
            causes.push(Cause { reason: "FieldValueDuplicate", message, field: at });
        }
        seen.push(identity);
    }
    names::one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"], causes);
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why));
    }
    for (i, ip) in items(spec, "clusterIPs") {
        if ip != "None" {
            names::ip(&format!("spec.clusterIPs[{i}]"), ip, causes);
        }
    }
    if let Some(before) = old.map(|old| &old["spec"]) {
        let kept = before["clusterIPs"].is_null() || external || before["clusterIPs"] == spec["clusterIPs"];
        if !kept {
            let why = "may not change once set";
            causes.push(Cause::invalid("spec.clusterIPs[0]", &spec["clusterIPs"], why));
        }
    }
    if !spec["externalIPs"].is_null() {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_string(),
        );
    }
}
