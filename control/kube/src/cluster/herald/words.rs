//! What is written, as the API has it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{NodeCondition, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::ApiResource;
use serde_json::{Value, json};

use super::{CONDITION, EniConfigStanding, Unready, WRITER, text};
use crate::manifests::Topic;

/// The longest note of an Event, in bytes (Kubernetes: 1024).
const NOTE: usize = 1024;

/// What is told once: a reason and an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub reason: &'static str,
    pub local: bool,
}

impl From<&Topic> for Key {
    fn from(topic: &Topic) -> Self {
        let Topic { reason, kind, namespace, name, local } = topic.clone();
        Self { kind, namespace, name, reason, local }
    }
}

impl Key {
    /// The Lease of who may tell it: one for the cluster, and one for each `ENIConfig`, which not every node can judge.
    pub(super) fn claim(&self) -> String {
        if self.kind == "ENIConfig" { claim_of_eni_config(&self.name) } else { format!("{WRITER}-events") }
    }
}

/// The Lease of who may write of an `ENIConfig`.
pub(super) fn claim_of_eni_config(name: &str) -> String {
    let whole = format!("{WRITER}-eniconfig-{name}");
    if whole.len() <= 253 {
        return whole;
    }
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!("{WRITER}-eniconfig-{:016x}", hasher.finish())
}

/// Where objects of a kind are.
pub(super) fn resource(kind: &str) -> ApiResource {
    let (group, version, plural) = match kind {
        "Namespace" => ("", "v1", "namespaces"),
        "Node" => ("", "v1", "nodes"),
        "Pod" => ("", "v1", "pods"),
        "Service" => ("", "v1", "services"),
        "NetworkPolicy" => ("networking.k8s.io", "v1", "networkpolicies"),
        "EndpointSlice" => ("discovery.k8s.io", "v1", "endpointslices"),
        _ => ("crd.k8s.amazonaws.com", "v1alpha1", "eniconfigs"),
    };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// An Event of `events.k8s.io/v1`.
pub(super) fn event(key: &Key, uid: Option<String>, message: &str, instance: &str, now: Timestamp) -> Event {
    let namespace = Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty());
    let regarding = ObjectReference {
        api_version: Some(resource(key.kind).api_version),
        kind: Some(key.kind.to_owned()),
        name: Some(key.name.clone()),
        namespace: namespace.clone(),
        uid,
        ..ObjectReference::default()
    };
    let note =
        message.char_indices().take_while(|(at, c)| at + c.len_utf8() <= NOTE).map(|(_, c)| c).collect();
    // A name of 253 bytes leaves no room for more.
    let name: String = key.name.chars().take(230).collect();
    Event {
        action: Some("Configure".to_owned()),
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        note: Some(note),
        reason: Some(key.reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(WRITER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// The node's condition; nothing where it is so already.
pub(super) fn condition(
    unready: Option<&Unready>,
    present: Option<&NodeCondition>,
    now: Timestamp,
) -> Option<NodeCondition> {
    let (status, reason, message) = match unready {
        None => ("True", "PodNetworkReady", "pods of this node get an address, a path and their policy"),
        Some(unready) => ("False", unready.reason, &*unready.message),
    };
    let same = |found: &NodeCondition| {
        found.status == status
            && found.reason.as_deref() == Some(reason)
            && found.message.as_deref() == Some(message)
    };
    if present.is_some_and(same) {
        return None;
    }
    let since = present.filter(|found| found.status == status).and_then(|f| f.last_transition_time.clone());
    Some(NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    })
}

/// An `ENIConfig`'s status; nothing where it is so already.
pub(super) fn status(standing: &EniConfigStanding, present: &Value, now: Timestamp) -> Option<Value> {
    let (status, reason, message) = match &standing.problem {
        None => ("True", "Used", "interfaces are made by it"),
        Some(problem) => ("False", "Unusable", &**problem),
    };
    let conditions = present["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let ready = conditions.iter().find(|condition| text(condition, "type") == "Ready").cloned();
    let ready = ready.unwrap_or_default();
    let found = (text(&ready, "status"), text(&ready, "reason"), text(&ready, "message"));
    if found == (status, reason, message) {
        return None;
    }
    let since = (found.0 == status).then(|| ready["lastTransitionTime"].clone());
    let since = since.filter(Value::is_string).unwrap_or_else(|| json!(Time(now)));
    let condition = json!({
        "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    Some(json!({ "conditions": [condition] }))
}

/// Labels of what is written for nobody but us.
pub(super) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "sluice".to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_transition_and_is_not_written_twice() {
        let unready = |reason| Unready { reason, message: "m".into() };
        let first = condition(Some(&unready("A")), None, at(10)).unwrap();
        assert_eq!((&*first.status, &first.last_transition_time), ("False", &Some(Time(at(10)))));
        assert_eq!(condition(Some(&unready("A")), Some(&first), at(20)), None);
        let other = condition(Some(&unready("B")), Some(&first), at(20)).unwrap();
        assert_eq!(other.last_transition_time, Some(Time(at(10))), "it was false before");
        let well = condition(None, Some(&other), at(30)).unwrap();
        assert_eq!((&*well.status, &well.last_transition_time), ("True", &Some(Time(at(30)))));
    }

    #[test]
    fn a_status_is_written_on_change_alone() {
        let standing = |problem: Option<&str>| EniConfigStanding {
            name: "default".into(),
            problem: problem.map(str::to_owned),
        };
        let first = status(&standing(Some("full")), &Value::Null, at(10)).unwrap();
        assert_eq!(first["conditions"][0]["reason"], "Unusable");
        assert_eq!(status(&standing(Some("full")), &first, at(20)), None);
        let other = status(&standing(Some("gone")), &first, at(20)).unwrap();
        assert_eq!(
            other["conditions"][0]["lastTransitionTime"],
            first["conditions"][0]["lastTransitionTime"]
        );
        let well = status(&standing(None), &other, at(30)).unwrap();
        assert_ne!(well["conditions"][0]["lastTransitionTime"], first["conditions"][0]["lastTransitionTime"]);
    }

    #[test]
    fn an_event_is_cut_to_what_the_api_takes() {
        let topic = Topic::node("MissingIAMPermissions", "n");
        let long = "ä".repeat(2000);
        let event = event(&Key::from(&topic), None, &long, "agent-x", at(1));
        assert_eq!(event.note.unwrap().len(), 1024);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert!(claim_of_eni_config(&"x".repeat(253)).len() <= 253);
    }
}
