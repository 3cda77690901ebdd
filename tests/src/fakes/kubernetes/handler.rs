//! From a request to its answer: who asks, for what, may they, and what comes of it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::answer::{self, Body, Reply, Severed};
use super::faults::{self, What, find};
use super::list::{Listed, Page};
use super::rbac::{self, Attempt, User};
use super::request::{self, Place, Query, Target, Wanted};
use super::server::Shared;
use super::status::Refusal;
use super::store::Form;
use super::watch::Watch;
use super::{control, discovery, events, kinds, list, write};

/// Bytes that are gathered before they are sent.
const PIECE: usize = 256 << 10;

/// What is known of a request once its head is read.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) query: Query,
    pub(super) wanted: Wanted,
    pub(super) content_type: String,
    pub(super) body: Bytes,
    pub(super) manager: String,
}

pub(super) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Reply {
    match route(&shared, request).await {
        Ok(reply) => reply,
        Err(refusal) => answer::refusal(&refusal),
    }
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let header = |name| head.headers.get(name).and_then(|v: &hyper::header::HeaderValue| v.to_str().ok());
    let path = head.uri.path().to_string();
    let read = async || {
        let collected = body.collect().await;
        collected.map(http_body_util::Collected::to_bytes).map_err(|e| Refusal::bad_request(e.to_string()))
    };
    if let Some(path) = path.strip_prefix("/control") {
        return Ok(control::handle(shared, &head.method, path, &read().await?).await);
    }
    shared.count();
    let user = shared.users.lock().unwrap_or_else(PoisonError::into_inner).of(header(AUTHORIZATION))?;
    let (custom, status) = shared.world(|world| (world.custom, world.custom_status));
    let place = request::place(&path, custom);
    let target = match place {
        Place::Objects(target) if target.resource.custom && target.subresource == "status" && !status => {
            return Err(request::no_resource());
        }
        Place::Objects(target) => target,
        Place::Discovery(group, version) => {
            return Ok(answer::document(200, &discovery::group(&group, &version, status), Wanted::Whole));
        }
        Place::NoResource => return Err(request::no_resource()),
        Place::Nowhere => return Ok(elsewhere(shared, &head.method, &path, custom, &user, &read().await?)),
    };
    let wanted = request::accept(header(ACCEPT).unwrap_or_default())?;
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let verb = verb(&head.method, &target, &query)?;
    authorize(shared, &user, verb, &target, &query)?;
    let hit = shared.faults.hit(target.resource.plural, verb);
    sleep(faults::delay(&hit)).await;
    if let Some(reply) = refused(&hit) {
        return Ok(reply);
    }
    let manager = query.text("fieldManager").to_string();
    let agent = header(hyper::header::USER_AGENT).unwrap_or("unknown").split('/').next().unwrap_or("unknown");
    let asked = Asked {
        manager: if manager.is_empty() { agent.into() } else { manager },
        method: head.method.clone(),
        content_type: header(CONTENT_TYPE)
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .into(),
        body: Bytes::new(),
        target,
        query,
        wanted,
    };
    match verb {
        "watch" => watch(shared, asked, hit).await,
        "list" => collection(shared, &asked, &hit).await,
        "get" => get(shared, &asked).await,
        _ => write::handle(shared, &Asked { body: read().await?, ..asked }),
    }
}

/// What is not an object.
fn elsewhere(shared: &Shared, method: &Method, path: &str, custom: bool, user: &User, body: &[u8]) -> Reply {
    let document = |status, value: &Value| answer::document(status, value, Wanted::Whole);
    match path.trim_end_matches('/') {
        "/version" => document(200, &discovery::version()),
        "/healthz" | "/livez" | "/readyz" => answer::text(200, "ok"),
        "/api" => document(200, &discovery::core()),
        "/apis" => document(200, &discovery::all(custom)),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" if method == Method::POST => {
            let body = serde_json::from_slice(body).unwrap_or_default();
            document(201, &shared.world(|world| rbac::review(&world.store, user, &body)))
        }
        _ => answer::text(404, "404 page not found\n"),
    }
}

/// What the request does, in the words of RBAC.
fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, Refusal> {
    let one = !target.name.is_empty();
    Ok(match *method {
        Method::GET if one && !target.watch => "get",
        Method::GET if target.watch || query.flag("watch") => "watch",
        Method::GET => "list",
        Method::POST if !one || target.subresource == "binding" => "create",
        Method::PUT if one => "update",
        Method::PATCH if one => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(request::no_method()),
    })
}

fn authorize(
    shared: &Shared,
    user: &User,
    verb: &str,
    target: &Target,
    query: &Query,
) -> Result<(), Refusal> {
    let resource = target.resource;
    let what = match target.subresource.as_str() {
        "" => resource.plural.to_string(),
        sub => format!("{}/{sub}", resource.plural),
    };
    // A collection of which one name is selected is authorized as that object.
    let selected =
        query.text("fieldSelector").split(',').find_map(|term| term.strip_prefix("metadata.name="));
    let name = if target.name.is_empty() { selected.unwrap_or_default() } else { &target.name };
    let group = if target.core_events { "" } else { resource.group };
    let attempt = Attempt { verb, group, resource: &what, namespace: &target.namespace, name };
    if shared.world(|world| rbac::allowed(&world.store, user, &attempt)) {
        Ok(())
    } else {
        Err(rbac::forbidden(resource, user, &attempt))
    }
}

/// The answer of a fault that leaves nothing to be done.
fn refused(hit: &[What]) -> Option<Reply> {
    find(hit, |what| match what {
        What::TooManyRequests { retry_after } => {
            let mut reply = answer::text(429, "Too many requests, please try again later.\n");
            reply.headers_mut().insert(RETRY_AFTER, (*retry_after).into());
            Some(reply)
        }
        What::Fail { status } => {
            let message =
                format!("an error on the server (\"{status}\") has prevented the request from succeeding");
            Some(answer::refusal(&Refusal::new(*status, "InternalError", message, Value::Null)))
        }
        _ => None,
    })
}

async fn watch(shared: &Arc<Shared>, asked: Asked, hit: Vec<What>) -> Result<Reply, Refusal> {
    let partial = matches!(asked.wanted, Wanted::Partial { .. });
    let target = &asked.target;
    let mut query = asked.query;
    if !target.name.is_empty() {
        query.select_name(&target.name);
    }
    let watch = Watch::parse(target.resource, &target.namespace, partial, &query, hit)?;
    let (out, pieces) = mpsc::channel(8);
    let (begun, settled) = oneshot::channel();
    tokio::spawn(watch.run(shared.clone(), out, begun));
    // An error says that the stream is over already.
    let _settled = settled.await;
    Ok(answer::reply(200, "application/json", Body::Stream(pieces)))
}

async fn get(shared: &Shared, asked: &Asked) -> Result<Reply, Refusal> {
    let target = &asked.target;
    if target.subresource == "binding" || target.subresource == "finalize" {
        return Err(request::no_method());
    }
    if asked.wanted == (Wanted::Partial { list: true }) {
        let message = format!(
            "you requested PartialObjectMetadataList, but the requested object is not a list (*core.{})",
            target.resource.kind
        );
        return Err(Refusal::new(406, "NotAcceptable", message, Value::Null));
    }
    let version = list::version(asked.query.text("resourceVersion"));
    let version = version.map_err(|why| Refusal::bad_request(format!("invalid resource version: {why}")))?;
    wait(shared, version.unwrap_or(0)).await?;
    let object = shared.world(|world| world.object(target.resource, &target.namespace, &target.name))?;
    if target.core_events {
        return Ok(answer::document(200, &events::core(&object.value(target.resource)), asked.wanted));
    }
    let stored = super::world::Answer::Stored(object);
    Ok(answer::object(200, target.resource, &stored, asked.wanted))
}

/// Waits for a version, as long as the server's patience lasts.
async fn wait(shared: &Shared, wanted: u64) -> Result<(), Refusal> {
    let mut version = shared.version();
    let end = tokio::time::Instant::now() + shared.patience;
    loop {
        let current = shared.world(|world| world.store.rv());
        if current >= wanted {
            return Ok(());
        }
        tokio::select! {
            _ = version.changed() => {}
            () = tokio::time::sleep_until(end) => return Err(Refusal::too_new(wanted, current)),
        }
    }
}

async fn collection(shared: &Arc<Shared>, asked: &Asked, hit: &[What]) -> Result<Reply, Refusal> {
    let target = &asked.target;
    let query = if target.core_events { events::query(&asked.query) } else { asked.query.clone() };
    if hit.contains(&What::Expired) {
        return Err(match query.text("continue") {
            "" => Refusal::expired(),
            token => Refusal::expired_continue(&list::renewed(token)?),
        });
    }
    let page = loop {
        let listed = shared.world(|w| list::list(&w.store, target.resource, &target.namespace, &query))?;
        match listed {
            Listed::Page(page) => break page,
            Listed::TooNew(version) => wait(shared, version).await?,
        }
    };
    if target.core_events {
        return Ok(answer::document(200, &events::list(target.resource, &page), asked.wanted));
    }
    let stall = find(hit, |what| if let What::Stall { millis } = what { Some(*millis) } else { None });
    let cut = hit.iter().any(|what| matches!(what, What::Cut { .. }));
    let size: usize = page.objects.iter().map(|object| object.size()).sum();
    if asked.wanted == Wanted::Yaml || (size < PIECE && stall.is_none() && !cut) {
        let mut text = head(target.resource, &page, asked.wanted);
        for (i, object) in page.objects.iter().enumerate() {
            item(target.resource, asked.wanted, i, object, &mut text);
        }
        text.extend_from_slice(tail(&page, asked.wanted));
        if asked.wanted == Wanted::Yaml {
            let value = serde_json::from_slice(&text).unwrap_or_default();
            return Ok(answer::document(200, &value, asked.wanted));
        }
        return Ok(answer::json(200, text.into()));
    }
    let (out, pieces) = mpsc::channel(4);
    let (resource, wanted) = (target.resource, asked.wanted);
    tokio::spawn(async move {
        let mut text = head(resource, &page, wanted);
        let middle = page.objects.len() / 2;
        for (i, object) in page.objects.iter().enumerate() {
            item(resource, wanted, i, object, &mut text);
            if i == middle && (cut || stall.is_some()) {
                if cut {
                    text.truncate(text.len() - object.size() / 2);
                }
                if out.send(Ok(std::mem::take(&mut text).into())).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(stall.unwrap_or(5))).await;
                if cut {
                    let _gone = out.send(Err(Severed)).await;
                    return;
                }
            }
            if text.len() >= PIECE && out.send(Ok(std::mem::take(&mut text).into())).await.is_err() {
                return;
            }
        }
        text.extend_from_slice(tail(&page, wanted));
        let _gone = out.send(Ok(text.into())).await;
    });
    Ok(answer::reply(200, "application/json", Body::Stream(pieces)))
}

/// A list up to its first item.
pub(super) fn head(resource: &kinds::Resource, page: &Page, wanted: Wanted) -> Vec<u8> {
    let partial = wanted.form() == Form::Partial;
    let (kind, version) = if partial {
        ("PartialObjectMetadataList".into(), "meta.k8s.io/v1".into())
    } else {
        (format!("{}List", resource.kind), resource.api_version())
    };
    let mut metadata = json!({ "resourceVersion": page.rv.to_string() });
    if let Some(next) = &page.next {
        metadata["continue"] = json!(next);
    } else if resource.custom && !partial {
        metadata["continue"] = json!("");
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let items = if page.objects.is_empty() && partial { "null" } else { "[" };
    format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":{items}"#)
        .into_bytes()
}

pub(super) fn item(
    resource: &kinds::Resource,
    wanted: Wanted,
    i: usize,
    object: &super::store::Object,
    text: &mut Vec<u8>,
) {
    if i > 0 {
        text.push(b',');
    }
    let form = if wanted.form() == Form::Partial { Form::Partial } else { Form::Item };
    object.write(resource, form, object.rv, text);
}

pub(super) fn tail(page: &Page, wanted: Wanted) -> &'static [u8] {
    if page.objects.is_empty() && wanted.form() == Form::Partial { b"}" } else { b"]}" }
}
