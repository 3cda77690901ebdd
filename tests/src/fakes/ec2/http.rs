//! EC2 and STS over HTTP, on one address: the query protocol tells them apart by its version. Under `/_world` a person
//! looks and makes things fail; no AWS client ever asks there.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};
use jiff::Timestamp;
use jiff::civil::DateTime;
use serde_json::json;

use super::call::Refusal;
use super::faults::Rule;
use super::form::Form;
use super::serve::{Face, Reply, Shared, reply};
use super::world::{Signature, World};
use super::{sts, xml};

const XML: &str = "text/xml;charset=UTF-8";
const JSON: &str = "application/json";

/// The endpoint of EC2 and STS.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

impl Endpoint {
    /// The endpoint of this world.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn query(&self, headers: &HeaderMap, body: &[u8]) -> Option<Reply> {
        let now = self.shared.now();
        let mut form = Form::parse(body);
        if form.is_sts() {
            let mut world = self.shared.world();
            return Some(sts::answer(&mut world, now, &mut form));
        }
        let request = format!("{:032x}", now.as_nanos());
        let done = {
            let mut world = self.shared.world();
            run(&mut world, now, headers, form, &request)
        };
        let (result, delay, cut) = match done {
            Ok(done) => done,
            Err(refused) => (Err(refused), Duration::ZERO, false),
        };
        tokio::time::sleep(delay).await;
        if cut {
            return None;
        }
        Some(match result {
            Ok(text) => reply(200, XML, text),
            Err(refused) => reply(refused.status, XML, xml::refusal(&request, &refused)),
        })
    }

    fn control(&self, method: &Method, path: &str, body: &[u8]) -> Reply {
        let now = self.shared.now();
        let mut world = self.shared.world();
        match (method, path) {
            (&Method::GET, "/_world") => {
                world.settle(now);
                reply(200, JSON, format!("{:#}\n", look(&world)))
            }
            (&Method::GET, "/_world/log") => reply(200, JSON, format!("{:#}\n", json!(world.log()))),
            (&Method::GET, "/_world/rules") => {
                reply(200, JSON, format!("{:#}\n", json!(world.script.rules())))
            }
            (&Method::DELETE, "/_world/rules") => {
                world.script.clear();
                reply(204, JSON, "")
            }
            (&Method::POST, "/_world/rules") => match serde_json::from_slice::<Rule>(body) {
                Ok(rule) => {
                    world.script.push(rule);
                    reply(201, JSON, "{}\n")
                }
                Err(e) => reply(
                    400,
                    JSON,
                    json!({ "error": format!("{e}"), "would-do": Rule::example() }).to_string(),
                ),
            },
            _ => reply(
                404,
                JSON,
                json!({ "error": format!("{method} {path}"), "would-do": ["GET /_world", "GET /_world/log",
                    "GET, POST, DELETE /_world/rules"] })
                .to_string(),
            ),
        }
    }
}

type Done = (Result<String, Refusal>, Duration, bool);

fn run(world: &mut World, now: Duration, headers: &HeaderMap, form: Form, id: &str) -> Result<Done, Refusal> {
    let role = world.authenticate(now, &signature(headers)?)?;
    let (call, dry_run) = form.call()?;
    let reaction = world.call(now, &role, &call, dry_run);
    let text = reaction.answer.map(|answer| xml::answer(world, call.action(), id, &answer));
    Ok((text, reaction.delay, reaction.cut))
}

impl Face for Endpoint {
    async fn answer(&self, request: Request<Bytes>) -> Option<Reply> {
        let path = request.uri().path();
        if path.starts_with("/_world") {
            return Some(self.control(request.method(), path, request.body()));
        }
        // A GET carries the same parameters in the address; curl likes it.
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let body = if request.method() == Method::GET { query } else { request.body() };
        self.query(request.headers(), body).await
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// What a request says about its sender: key and date of SigV4, and the session token.
fn signature(headers: &HeaderMap) -> Result<Signature, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let missing = |what: &str| {
        Refusal::new(
            "AuthFailure",
            format!("AWS was not able to validate the provided access credentials: no {what}"),
        )
    };
    let authorization = text("authorization").ok_or_else(|| missing("Authorization header"))?;
    let scope = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .and_then(|rest| rest.split(',').find_map(|part| part.trim().strip_prefix("Credential=")))
        .ok_or_else(|| missing("Credential of AWS4-HMAC-SHA256"))?;
    let [key, _, _, "ec2", "aws4_request"] = scope.split('/').collect::<Vec<_>>()[..] else {
        return Err(missing("scope KEY/DATE/REGION/ec2/aws4_request"));
    };
    let date = text("x-amz-date").ok_or_else(|| missing("X-Amz-Date header"))?;
    let date = DateTime::strptime("%Y%m%dT%H%M%SZ", date)
        .and_then(|d| d.to_zoned(jiff::tz::TimeZone::UTC))
        .map_err(|_| missing("X-Amz-Date of the form 20260101T000000Z"))?;
    let date = Duration::from_secs(u64::try_from(date.timestamp().as_second()).unwrap_or(0));
    Ok(Signature { key: key.to_owned(), token: text("x-amz-security-token").map(str::to_owned), date })
}

/// The world for a person.
fn look(world: &World) -> serde_json::Value {
    let interfaces: Vec<_> = world
        .interfaces()
        .values()
        .map(|i| {
            let attachment = i.attachment.as_ref().map(|a| {
                json!({ "id": a.id, "instance": a.instance, "device": a.device, "card": a.card,
                    "progress": a.progress.to_string(), "delete-on-termination": a.delete_on_termination })
            });
            json!({ "id": i.id, "mac": i.mac, "subnet": i.subnet, "status": i.status(), "groups": i.groups,
                "primary": i.primary, "secondary": i.secondary, "prefixes": i.prefixes,
                "description": i.description, "tags": i.tags, "attachment": attachment })
        })
        .collect();
    let subnets: Vec<_> = world
        .subnets()
        .values()
        .map(|s| {
            json!({ "id": s.id, "zone": s.zone, "cidr": s.cidr, "free": s.free(),
                "free-prefixes": s.free_prefixes() })
        })
        .collect();
    let instances: Vec<_> = world
        .instances()
        .values()
        .map(|i| json!({ "id": i.id, "type": i.shape.name, "zone": i.zone, "running": i.running }))
        .collect();
    json!({ "calls": world.counts(), "instances": instances, "subnets": subnets, "interfaces": interfaces })
}

/// A time as AWS writes it in documents.
#[must_use]
pub fn iso8601(since_epoch: Duration) -> String {
    format_time(since_epoch, "%Y-%m-%dT%H:%M:%SZ")
}

/// A time as HTTP writes it.
#[must_use]
pub fn http_date(since_epoch: Duration) -> String {
    format_time(since_epoch, "%a, %d %b %Y %H:%M:%S GMT")
}

fn format_time(since_epoch: Duration, format: &str) -> String {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).strftime(format).to_string()
}
