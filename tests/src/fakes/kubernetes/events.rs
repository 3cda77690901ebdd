//! Events of `events.k8s.io` as the core group shows the same objects: other names for the same things.

use serde_json::{Value, json};

use super::kinds::Resource;
use super::list::Page;
use super::request::Query;

/// An event as the core group has it.
pub(super) fn core(event: &Value) -> Value {
    let mut core = event.clone();
    let Some(members) = core.as_object_mut() else { return core };
    let names = [
        ("regarding", "involvedObject"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("reportingController", "reportingComponent"),
    ];
    for (from, to) in names {
        if let Some(value) = members.remove(from) {
            members.insert(to.into(), value);
        }
    }
    members.insert("apiVersion".into(), json!("v1"));
    core
}

/// A query of the core group, in the words of the other.
pub(super) fn query(query: &Query) -> Query {
    let fields = query.text("fieldSelector").replace("involvedObject.", "regarding.");
    query.with("fieldSelector", &fields.replace("reportingComponent", "reportingController"))
}

/// A list of them.
pub(super) fn list(resource: &Resource, page: &Page) -> Value {
    let items: Vec<Value> = page
        .objects
        .iter()
        .map(|object| {
            let mut event = core(&object.value(resource));
            if let Some(members) = event.as_object_mut() {
                members.remove("kind");
                members.remove("apiVersion");
            }
            event
        })
        .collect();
    let metadata = json!({ "resourceVersion": page.rv.to_string() });
    json!({ "kind": "EventList", "apiVersion": "v1", "metadata": metadata, "items": items })
}
