//! What is kept of a manifest: the slim forms that the compiler takes, and for workloads the pod that they repeat.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::Metadata;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodTemplateSpec, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_policy::{Refusal, admit_new};

use super::decode::{Failure, Key, Kind, typed};
use super::defaults;
use super::text::Document;

/// Pods that one workload may have here.
const MAX_REPLICAS: i32 = 100_000;

/// Why an object is refused, each with its field.
type Reasons = Vec<String>;

/// What a manifest says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    Namespace(sluice_policy::Namespace),
    /// A node, and the range of its pods.
    Node(Box<sluice_policy::Node>, Option<Ipv4Net>),
    Pods(Pods),
    Service(Box<Service>),
    /// A hand-written slice.
    Slice(Box<sluice_policy::EndpointSlice>),
    Policy(Box<NetworkPolicy>),
}

/// Pods that a manifest asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pods {
    pub replicas: Replicas,
    pub template: Template,
}

/// How often a manifest has its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replicas {
    /// Once: it is a Pod.
    Itself,
    /// `NAME-first` and so on; a stateful set's pods have labels of their name and number.
    Numbered { first: u32, count: u32, labelled: bool },
    /// Once on each node.
    EachNode,
}

/// A pod before it has a place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template {
    /// As the manifest has it: node and address only where it gives them.
    pub pod: Arc<sluice_policy::Pod>,
    pub node_selector: BTreeMap<String, String>,
    /// The manifest says in which phase it is.
    pub has_phase: bool,
    /// False when its conditions say that it is not ready.
    pub ready: bool,
}

/// Reads an object of a kind; also gives the fields that were not read.
pub(super) fn read(
    key: &Key,
    mut value: Value,
    document: Option<&Document<'_>>,
) -> Result<(Source, Vec<String>), Failure> {
    check_names(key)?;
    match key.kind {
        Kind::Namespace => convert(key, &value, document, |namespace: &mut Namespace| {
            defaults::namespace(&mut namespace.metadata);
            Ok(Source::Namespace(
                (&*namespace).try_into().map_err(|refusals: Vec<Refusal>| words(&refusals))?,
            ))
        }),
        Kind::Node => convert(key, &value, document, |node: &mut Node| {
            let cidr = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref());
            let cidr = cidr.filter(|text| !text.is_empty()).map(|text| {
                let parsed = text.parse::<Ipv4Net>();
                parsed.map_err(|_| {
                    refused("spec.podCIDR", text, "must be a valid IPv4 CIDR, (e.g. 10.9.8.0/24)")
                })
            });
            Ok(Source::Node(
                Box::new((&*node).try_into().map_err(|refusals: Vec<Refusal>| words(&refusals))?),
                cidr.transpose()?,
            ))
        }),
        Kind::Pod => {
            convert(key, &value, document, |pod: &mut Pod| Ok(pods(Replicas::Itself, template(pod)?)))
        }
        Kind::Deployment => convert(key, &value, document, |object: &mut Deployment| {
            let spec = std::mem::take(&mut object.spec);
            matches(&spec.selector, &spec.template)?;
            numbered(&object.metadata, Some(spec.template), spec.replicas)
        }),
        Kind::ReplicaSet => convert(key, &value, document, |object: &mut ReplicaSet| {
            let spec = std::mem::take(&mut object.spec);
            if let Some(template) = &spec.template {
                matches(&spec.selector, template)?;
            }
            numbered(&object.metadata, spec.template, spec.replicas)
        }),
        Kind::ReplicationController => {
            convert(key, &value, document, |object: &mut ReplicationController| {
                let spec = object.spec.take().ok_or_else(|| required("spec"))?;
                if let (Some(template), Some(labels)) = (&spec.template, spec.selector) {
                    matches(
                        &LabelSelector { match_labels: Some(labels), match_expressions: None },
                        template,
                    )?;
                }
                numbered(&object.metadata, spec.template, spec.replicas)
            })
        }
        Kind::StatefulSet => convert(key, &value, document, |object: &mut StatefulSet| {
            let spec = std::mem::take(&mut object.spec);
            matches(&spec.selector, &spec.template)?;
            let start = spec.ordinals.and_then(|o| o.start).unwrap_or(0);
            let first = u32::try_from(start)
                .map_err(|_| refused("spec.ordinals.start", start, "must be greater than or equal to 0"))?;
            let replicas = Replicas::Numbered { first, count: count(spec.replicas)?, labelled: true };
            Ok(pods(replicas, repeated(&object.metadata, Some(spec.template))?))
        }),
        Kind::DaemonSet => convert(key, &value, document, |object: &mut DaemonSet| {
            let spec = std::mem::take(&mut object.spec);
            matches(&spec.selector, &spec.template)?;
            Ok(pods(Replicas::EachNode, repeated(&object.metadata, Some(spec.template))?))
        }),
        Kind::Job => convert(key, &value, document, |object: &mut Job| {
            let mut spec = object.spec.take().ok_or_else(|| required("spec"))?;
            let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
            for label in ["job-name", "batch.kubernetes.io/job-name"] {
                labels.insert(label.into(), key.name.to_string());
            }
            let wanted = spec.parallelism.unwrap_or(1).min(spec.completions.unwrap_or(i32::MAX));
            let wanted = if spec.suspend == Some(true) { 0 } else { wanted };
            numbered(&object.metadata, Some(spec.template), Some(wanted))
        }),
        Kind::Service => convert(key, &value, document, |service: &mut Service| {
            defaults::service(service);
            // Refused now, while its place is known; it is taken again once it has its addresses.
            sluice_policy::Service::try_from(&*service).map_err(|refusals: Vec<Refusal>| words(&refusals))?;
            Ok(Source::Service(Box::new(service.clone())))
        }),
        Kind::EndpointSlice => convert(key, &value, document, |slice: &mut EndpointSlice| {
            defaults::slice(slice);
            Ok(Source::Slice(Box::new(
                (&*slice).try_into().map_err(|refusals: Vec<Refusal>| words(&refusals))?,
            )))
        }),
        Kind::NetworkPolicy => {
            fill_empty_rules(&mut value);
            convert(key, &value, document, |policy: &mut NetworkPolicy| {
                defaults::policy(policy);
                let refusals = admit_new(policy);
                if !refusals.is_empty() {
                    return Err(words(&refusals));
                }
                Ok(Source::Policy(Box::new(policy.clone())))
            })
        }
    }
}

fn convert<T>(
    key: &Key,
    value: &Value,
    document: Option<&Document<'_>>,
    into: impl FnOnce(&mut T) -> Result<Source, Reasons>,
) -> Result<(Source, Vec<String>), Failure>
where
    T: DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
{
    let (mut object, unknown) = typed::<T>(key, value, document)?;
    match into(&mut object) {
        Ok(source) => Ok((source, unknown)),
        Err(reasons) => {
            let messages = reasons.iter().map(|reason| format!("{key} is refused: {reason}")).collect();
            Err(Failure { at: None, messages })
        }
    }
}

fn words(refusals: &[Refusal]) -> Reasons {
    refusals.iter().map(ToString::to_string).collect()
}

fn refused(field: &str, value: impl Display, reason: &str) -> Reasons {
    vec![format!("{field}: Invalid value: {value}: {reason}")]
}

fn required(field: &str) -> Reasons {
    vec![format!("{field}: Required value")]
}

fn pods(replicas: Replicas, template: Template) -> Source {
    Source::Pods(Pods { replicas, template })
}

fn numbered(
    metadata: &ObjectMeta,
    template: Option<PodTemplateSpec>,
    replicas: Option<i32>,
) -> Result<Source, Reasons> {
    let replicas = Replicas::Numbered { first: 0, count: count(replicas)?, labelled: false };
    Ok(pods(replicas, repeated(metadata, template)?))
}

fn count(replicas: Option<i32>) -> Result<u32, Reasons> {
    let replicas = replicas.unwrap_or(1);
    let fits = u32::try_from(replicas.min(MAX_REPLICAS + 1)).ok().filter(|_| replicas <= MAX_REPLICAS);
    fits.ok_or_else(|| {
        refused("spec.replicas", replicas, "must be from 0 to 100000, the most that is expanded here")
    })
}

/// The pod that a workload repeats; it has the workload's name until it gets its own.
fn repeated(workload: &ObjectMeta, spec: Option<PodTemplateSpec>) -> Result<Template, Reasons> {
    let spec = spec.ok_or_else(|| required("spec.template"))?;
    let metadata = ObjectMeta {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        labels: spec.metadata.and_then(|m| m.labels),
        creation_timestamp: workload.creation_timestamp.clone(),
        ..ObjectMeta::default()
    };
    template(&mut Pod { metadata, spec: spec.spec, status: None })
}

fn template(pod: &mut Pod) -> Result<Template, Reasons> {
    defaults::pod(pod);
    let slim = sluice_policy::Pod::try_from(&*pod).map_err(|refusals: Vec<Refusal>| words(&refusals))?;
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let unready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status != "True");
    let has_phase = status.is_some_and(|s| s.phase.as_ref().is_some_and(|phase| !phase.is_empty()));
    let node_selector = pod.spec.as_mut().and_then(|spec| spec.node_selector.take()).unwrap_or_default();
    Ok(Template { pod: slim.into(), node_selector, has_phase, ready: !unready })
}

/// A workload's selector must match its own pods, or its controller would make pods without end.
fn matches(selector: &LabelSelector, template: &PodTemplateSpec) -> Result<(), Reasons> {
    let none = BTreeMap::new();
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref()).unwrap_or(&none);
    let wanted = selector.match_labels.iter().flatten();
    let mut holds = wanted.clone().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten();
    let empty = wanted.count() == 0 && expressions.clone().count() == 0;
    for expression in expressions {
        let value = labels.get(&expression.key);
        let listed = || value.is_some_and(|v| expression.values.iter().flatten().any(|x| x == v));
        holds &= match expression.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        };
    }
    if empty {
        return Err(refused("spec.selector", "{}", "is empty: a workload must select its own pods"));
    }
    if !holds {
        let shown = serde_json::to_string(labels).unwrap_or_default();
        return Err(refused(
            "spec.template.metadata.labels",
            shown,
            "`selector` does not match template `labels`",
        ));
    }
    Ok(())
}

/// `ingress: [null]` is a rule that says nothing, as the API server stores it.
fn fill_empty_rules(value: &mut Value) {
    for direction in ["ingress", "egress"] {
        let rules = value.pointer_mut(&format!("/spec/{direction}")).and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten().filter(|rule| rule.is_null()) {
            *rule = Value::Object(serde_json::Map::new());
        }
    }
}

/// Names are part of labels, DNS names and file names: the API server lets no other ones in (RFC 1123).
fn check_names(key: &Key) -> Result<(), Failure> {
    let label = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    let fail = |field: &str, value: &str, rule: &str| {
        let messages =
            vec![format!("{key} is refused: metadata.{field}: Invalid value: \"{value}\": {rule}")];
        Err(Failure { at: None, messages })
    };
    let fits = key.namespace.is_empty() || (label(&key.namespace) && key.namespace.len() <= 63);
    if !fits {
        return fail("namespace", &key.namespace, "1 to 63 of a-z, 0-9 and -, neither first nor last a -");
    }
    let short = matches!(key.kind, Kind::Namespace | Kind::Service);
    let fits = if short {
        label(&key.name) && key.name.len() <= 63
    } else {
        key.name.split('.').all(label) && key.name.len() <= 253
    };
    if !fits {
        let rule = if short {
            "1 to 63 of a-z, 0-9 and -, neither first nor last a -"
        } else {
            "1 to 253 of a-z, 0-9, - and ., each part between dots neither first nor last a -"
        };
        return fail("name", &key.name, rule);
    }
    Ok(())
}
