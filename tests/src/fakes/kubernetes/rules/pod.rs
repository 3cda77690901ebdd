//! Pods.

use serde_json::{Value, json};

use super::super::status::Cause;
use super::{default, drop_member, items, items_mut, names, text};

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn defaults(pod: &mut Value, old: Option<&Value>) {
    let spec = &mut pod["spec"];
    let host = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            default(container, "terminationMessagePolicy", json!("File"));
            let image = text(container, "image");
            let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
            let moving = tag.is_none_or(|tag| tag == "latest") && !image.contains('@');
            default(container, "imagePullPolicy", json!(if moving { "Always" } else { "IfNotPresent" }));
            for port in items_mut(container, "ports") {
                default(port, "protocol", json!("TCP"));
                if host {
                    let number = port["containerPort"].clone();
                    default(port, "hostPort", number);
                }
            }
        }
    }
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "enableServiceLinks", json!(true));
    default(spec, "priority", json!(0));
    default(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
    match old {
        None => {
            tolerations(spec);
            let class = class(spec);
            pod["status"] = json!({ "phase": "Pending", "qosClass": class });
        }
        Some(old) => addresses(&mut pod["status"], &old["status"]),
    }
}

/// What admission adds to every pod: it outlasts five minutes of a node that does not answer.
fn tolerations(spec: &mut Value) {
    default(spec, "tolerations", json!([]));
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let known = items(spec, "tolerations").any(|(_, t)| {
            let key_fits = text(t, "key").is_empty() || text(t, "key") == key;
            key_fits && (text(t, "effect").is_empty() || text(t, "effect") == "NoExecute")
        });
        if let (false, Some(list)) = (known, spec["tolerations"].as_array_mut()) {
            list.push(
                json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }),
            );
        }
    }
}

/// The class of service that the resources of a pod's containers give it.
fn class(spec: &Value) -> &'static str {
    let (mut any, mut all) = (false, true);
    for (_, container) in items(spec, "containers").chain(items(spec, "initContainers")) {
        let (limits, requests) = (&container["resources"]["limits"], &container["resources"]["requests"]);
        any |= !limits.is_null() || !requests.is_null();
        let whole = !limits["cpu"].is_null() && !limits["memory"].is_null();
        all &= whole && (requests.is_null() || requests == limits);
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `podIP` and the first of `podIPs` are one address: whichever was written last.
fn addresses(status: &mut Value, old: &Value) {
    let first = |status: &Value| status["podIPs"][0]["ip"].clone();
    if status["podIP"] == first(status) {
        return;
    }
    if status["podIP"] != old["podIP"] && !status["podIP"].is_null() {
        status["podIPs"] = json!([{ "ip": status["podIP"] }]);
    } else if first(status).is_null() {
        drop_member(status, "podIP");
    } else {
        status["podIP"] = first(status);
    }
}

pub(super) fn check(pod: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &pod["spec"];
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.containers", ""));
    }
    for (i, container) in items(spec, "containers") {
        let at = format!("spec.containers[{i}]");
        if text(container, "name").is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else {
            names::label_name(&format!("{at}.name"), text(container, "name"), causes);
        }
        if text(container, "image").is_empty() {
            causes.push(Cause::required(format!("{at}.image"), ""));
        }
        for (j, port) in items(container, "ports") {
            let at = format!("{at}.ports[{j}]");
            if let Some(name) = port["name"].as_str() {
                names::port_name(&format!("{at}.name"), name, causes);
            }
            names::port(&format!("{at}.containerPort"), &port["containerPort"], causes);
            names::one_of(&format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"], causes);
        }
    }
    if old.is_some_and(|old| changeable(spec) != changeable(&old["spec"])) {
        causes.push(Cause::forbidden("spec", IMMUTABLE));
    }
}

/// The specification without what an update may change.
fn changeable(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["initContainers", "containers"] {
        for container in items_mut(&mut spec, list) {
            drop_member(container, "image");
        }
    }
    for member in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        drop_member(&mut spec, member);
    }
    spec
}
