//! Requests that change something.

use serde_json::{Value, json};

use super::answer::{self, Reply};
use super::handler::{Asked, head, item, tail};
use super::list::{self, Listed};
use super::patch;
use super::request;
use super::schema;
use super::server::Shared;
use super::status::{Cause, Refusal};
use super::world::{Answer, DeleteOptions, Deleted, Part, Unknown, World, Write};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

pub(super) fn handle(shared: &Shared, asked: &Asked) -> Result<Reply, Refusal> {
    let mut write = options(asked)?;
    let done = match asked.method.as_str() {
        "POST" => create(shared, asked, &mut write),
        "PUT" => put(shared, asked, &mut write),
        "PATCH" => change(shared, asked, &mut write),
        _ => delete(shared, asked, &mut write),
    };
    let mut reply = done.unwrap_or_else(|refusal| answer::refusal(&refusal));
    write.warnings.dedup();
    answer::warn(&mut reply, &write.warnings);
    Ok(reply)
}

/// The options that every write has.
fn options(asked: &Asked) -> Result<Write, Refusal> {
    let kind = match asked.method.as_str() {
        "POST" => "CreateOptions",
        "PUT" => "UpdateOptions",
        "PATCH" => "PatchOptions",
        _ => "DeleteOptions",
    };
    let dry = asked.query.text("dryRun");
    let mut causes = Vec::new();
    if !dry.is_empty() && dry != "All" {
        causes.push(Cause::unsupported("dryRun", &json!([dry]), &["All"]));
    }
    if kind == "PatchOptions" {
        if asked.content_type == APPLY {
            if asked.query.text("fieldManager").is_empty() {
                causes.push(Cause::required("fieldManager", "is required for apply patch"));
            }
        } else if asked.query.has("force") {
            causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    if !causes.is_empty() {
        return Err(Refusal::invalid_options(kind, &causes));
    }
    let unknown = match asked.query.text("fieldValidation") {
        "Strict" => Unknown::Strict,
        "Ignore" => Unknown::Ignore,
        _ => Unknown::Warn,
    };
    let manager = asked.manager.clone();
    Ok(Write { dry_run: dry == "All", unknown, manager, ..Write::default() })
}

/// The object of a body.
fn body(asked: &Asked, write: &mut Write) -> Result<Value, Refusal> {
    let resource = asked.target.resource;
    match asked.content_type.as_str() {
        "" | "application/json" => {}
        "application/yaml" => {
            let text = String::from_utf8_lossy(&asked.body);
            return serde_yaml_ng::from_str(&text).map_err(|e| Refusal::bad_request(e.to_string()));
        }
        _ => {
            let accepted = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
            return Err(request::no_type(accepted));
        }
    }
    let text = String::from_utf8_lossy(&asked.body);
    let begin: String = text.chars().take(30).collect();
    let excerpt = match (&*text, begin.len() < text.len()) {
        ("", _) => "<empty>".into(),
        (_, true) => format!("{begin} ..."),
        (whole, false) => whole.to_string(),
    };
    let kind = resource.kind;
    let unrecognized = |why: &str| {
        Refusal::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why} ({excerpt})"
        ))
    };
    let parsed = schema::parse(&asked.body).map_err(|e| {
        let why = if e.is_eof() { "unexpected end of JSON input".into() } else { e.to_string() };
        unrecognized(&format!("couldn't get version/kind; json parse error: {why}"))
    })?;
    if resource.custom && parsed.value["kind"].as_str().unwrap_or_default().is_empty() {
        return Err(unrecognized(&format!("Object 'Kind' is missing in '{text}'")));
    }
    write.duplicates = parsed.duplicates;
    Ok(parsed.value)
}

fn create(shared: &Shared, asked: &Asked, write: &mut Write) -> Result<Reply, Refusal> {
    let target = &asked.target;
    if target.subresource == "binding" {
        let binding: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        shared.world(|world| world.bind(&target.namespace, &target.name, node))?;
        let done =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
        return Ok(answer::document(201, &done, asked.wanted));
    }
    let object = body(asked, write)?;
    let made = shared.world(|world| world.create(target.resource, &target.namespace, &object, write))?;
    Ok(answer::object(201, target.resource, &made, asked.wanted))
}

fn part(asked: &Asked) -> Part {
    match asked.target.subresource.as_str() {
        "status" => Part::Status,
        "finalize" => Part::Finalize,
        _ => Part::Main,
    }
}

fn put(shared: &Shared, asked: &Asked, write: &mut Write) -> Result<Reply, Refusal> {
    let target = &asked.target;
    let (resource, namespace, name) = (target.resource, target.namespace.as_str(), target.name.as_str());
    let mut object = body(asked, write)?;
    match object["metadata"]["name"].as_str() {
        Some(written) if written != name => {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({written}) does not match the name on the URL ({name})"
            )));
        }
        Some(_) => {}
        None => object["metadata"]["name"] = json!(name),
    }
    shared.world(|world| {
        if resource.kind == "Lease" && world.object(resource, namespace, name).is_err() {
            let made = world.create(resource, namespace, &object, write)?;
            return Ok(answer::object(201, resource, &made, asked.wanted));
        }
        let written = world.update(resource, namespace, name, part(asked), write, |_| Ok(object))?;
        Ok(answer::object(200, resource, &written, asked.wanted))
    })
}

fn change(shared: &Shared, asked: &Asked, write: &mut Write) -> Result<Reply, Refusal> {
    let target = &asked.target;
    let resource = target.resource;
    let kind = asked.content_type.as_str();
    match kind {
        STRATEGIC if resource.custom => return Err(request::no_type(&[JSON, MERGE, APPLY].join(", "))),
        JSON | MERGE | STRATEGIC | APPLY => {}
        _ => {
            let message = "415: Unsupported Media Type";
            return Err(Refusal::new(415, "UnsupportedMediaType", message, json!({})));
        }
    }
    if kind == APPLY {
        let text = String::from_utf8_lossy(&asked.body);
        let wanted: Value = serde_yaml_ng::from_str(&text)
            .map_err(|e| Refusal::bad_request(format!("error decoding YAML: {e}")))?;
        let force = asked.query.flag("force");
        let (made, applied) = shared.world(|world| {
            let (namespace, name) = (&target.namespace, &target.name);
            world.apply(resource, namespace, name, part(asked), write, &wanted, force)
        })?;
        return Ok(answer::object(if made { 201 } else { 200 }, resource, &applied, asked.wanted));
    }
    let patch: Value = serde_json::from_slice(&asked.body)
        .map_err(|e| Refusal::bad_request(format!("error decoding patch: {e}")))?;
    if kind == JSON && !patch.is_array() {
        return Err(Refusal::bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ));
    }
    let written = shared.world(|world| {
        world.update(resource, &target.namespace, &target.name, part(asked), write, |old| {
            let mut new = old.clone();
            match &patch {
                Value::Array(operations) if kind == JSON => {
                    let message = "the server rejected our request due to an error in our request";
                    patch::json(&mut new, operations)
                        .map_err(|_| Refusal::new(422, "Invalid", message, json!({})))?;
                }
                _ if kind == STRATEGIC => patch::strategic(resource.kind, &mut new, &patch),
                _ => patch::merge(&mut new, &patch),
            }
            Ok(new)
        })
    })?;
    Ok(answer::object(200, resource, &written, asked.wanted))
}

fn delete(shared: &Shared, asked: &Asked, write: &mut Write) -> Result<Reply, Refusal> {
    let target = &asked.target;
    let given: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let word = |value: &Value| value.as_str().map(str::to_string);
    let mut options = DeleteOptions {
        grace: given["gracePeriodSeconds"].as_i64(),
        uid: word(&given["preconditions"]["uid"]),
        resource_version: word(&given["preconditions"]["resourceVersion"]),
        propagation: word(&given["propagationPolicy"]).unwrap_or_default(),
    };
    if let Some(grace) = asked.query.number("gracePeriodSeconds")? {
        options.grace = Some(grace);
    }
    if asked.query.has("propagationPolicy") {
        options.propagation = asked.query.text("propagationPolicy").into();
    }
    write.dry_run |= given["dryRun"][0] == "All";
    if target.name.is_empty() {
        return shared.world(|world| collection(world, asked, &options, write));
    }
    let deleted = shared
        .world(|world| world.delete(target.resource, &target.namespace, &target.name, &options, write))?;
    Ok(match deleted {
        Deleted::Object(object) => answer::object(200, target.resource, &object, asked.wanted),
        Deleted::Status(status) => answer::document(200, &status, asked.wanted),
    })
}

/// Deletes what a list selects; answers the list.
fn collection(
    world: &mut World,
    asked: &Asked,
    options: &DeleteOptions,
    write: &Write,
) -> Result<Reply, Refusal> {
    let target = &asked.target;
    let resource = target.resource;
    let Listed::Page(mut page) = list::list(&world.store, resource, &target.namespace, &asked.query)? else {
        return Err(Refusal::bad_request("a version that is not there yet"));
    };
    for object in &mut page.objects {
        let name = object.key.rsplit('/').next().unwrap_or_default().to_string();
        let deleted = world.delete(resource, &target.namespace_of(&object.key), &name, options, write)?;
        if let Deleted::Object(Answer::Stored(held)) = deleted {
            *object = held;
        }
    }
    let mut text = head(resource, &page, asked.wanted);
    for (i, object) in page.objects.iter().enumerate() {
        item(resource, asked.wanted, i, object, &mut text);
    }
    text.extend_from_slice(tail(&page, asked.wanted));
    Ok(answer::json(200, text.into()))
}
