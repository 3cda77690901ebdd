//! IMDSv2 of one instance. It shows the past: first a MAC address without what belongs to it, then the rest, and what is gone
//! for a while longer. Whoever deletes because of it deletes too much.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request};
use serde_json::json;

use super::http::iso8601;
use super::serve::{Face, Reply, Shared, reply};
use super::world::World;

const TEXT: &str = "text/plain";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";

/// How long the credentials of an instance profile last.
const SESSION: Duration = Duration::from_secs(6 * 3600);

/// The metadata service as one instance sees it.
#[derive(Debug)]
pub struct Metadata {
    shared: Arc<Shared>,
    instance: String,
    /// How many hops the answer to `PUT` may take; EC2's default is 1.
    hop_limit: u8,
    /// How many hops away who asks here is: 1 on the host, 2 in a pod behind it.
    hops: u8,
    /// Tokens and when they end.
    tokens: Mutex<BTreeMap<String, Duration>>,
    /// The session that is handed out until it is old.
    session: Mutex<Option<super::world::Key>>,
}

impl Metadata {
    /// The service of an instance, asked from the host, with EC2's hop limit.
    #[must_use]
    pub fn new(shared: Arc<Shared>, instance: &str) -> Self {
        Self {
            shared,
            instance: instance.to_owned(),
            hop_limit: 1,
            hops: 1,
            tokens: Mutex::default(),
            session: Mutex::default(),
        }
    }

    /// The same, asked from further away than the hop limit allows or not.
    #[must_use]
    pub fn with_hops(mut self, hop_limit: u8, hops: u8) -> Self {
        self.hop_limit = hop_limit;
        self.hops = hops;
        self
    }

    async fn token(&self, request: &Request<Bytes>) -> Reply {
        if request.headers().contains_key("x-forwarded-for") {
            return reply(403, TEXT, "");
        }
        let ttl =
            request.headers().get(TTL).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|t| (1..=21_600).contains(t)) else {
            return reply(400, TEXT, "");
        };
        if self.hops > self.hop_limit {
            // The answer's TTL ends on the way: who asks waits until it gives up.
            std::future::pending::<()>().await;
        }
        let now = self.shared.now();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, end| *end > now);
        let token = format!("AQAE{:032x}{:04x}==", now.as_nanos(), tokens.len());
        tokens.insert(token.clone(), now + Duration::from_secs(ttl));
        let mut reply = reply(200, TEXT, token);
        reply.headers_mut().insert(TTL, HeaderValue::from(ttl));
        reply
    }

    fn read(&self, path: &str) -> Reply {
        let now = self.shared.now();
        let mut world = self.shared.world();
        world.settle(now);
        let tree = tree(&world, now, &self.instance);
        let secret = path.strip_prefix("meta-data/iam/security-credentials/").filter(|role| !role.is_empty());
        if let Some(role) = secret
            && tree.contains_key(path)
        {
            return reply(200, TEXT, self.credentials(&mut world, now, role));
        }
        match look_up(&tree, path) {
            Some(text) => reply(200, TEXT, text),
            None => reply(
                404,
                TEXT,
                "<?xml version=\"1.0\"?><html><head><title>404 - Not Found</title></head></html>",
            ),
        }
    }

    fn credentials(&self, world: &mut World, now: Duration, role: &str) -> String {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            |key: &super::world::Key| key.expires.is_some_and(|end| end > now + Duration::from_secs(5 * 60));
        let key = match session.take().filter(fresh) {
            Some(key) => key,
            None => world.session(now, role, SESSION),
        };
        let text = json!({ "Code": "Success", "LastUpdated": iso8601(now), "Type": "AWS-HMAC", "AccessKeyId": key.id,
            "SecretAccessKey": key.secret, "Token": key.token, "Expiration": iso8601(key.expires.unwrap_or(now)) });
        *session = Some(key);
        format!("{text:#}")
    }
}

impl Face for Metadata {
    async fn answer(&self, request: Request<Bytes>) -> Option<Reply> {
        let path = request.uri().path().to_owned();
        let Some(path) = path.strip_prefix("/latest/") else {
            return Some(if path == "/" { reply(200, TEXT, "latest") } else { reply(404, TEXT, "") });
        };
        if path == "api/token" {
            return Some(match *request.method() {
                Method::PUT => self.token(&request).await,
                _ => reply(405, TEXT, ""),
            });
        }
        if request.method() != Method::GET {
            return Some(reply(405, TEXT, ""));
        }
        let now = self.shared.now();
        let token = request.headers().get(TOKEN).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let known = {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens.get(token).is_some_and(|end| *end > now)
        };
        Some(if known { self.read(path) } else { reply(401, TEXT, "") })
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Everything below `/latest/` that an instance sees now: path to text.
#[must_use]
pub fn tree(world: &World, now: Duration, instance: &str) -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    let Some(host) = world.instances().get(instance) else { return tree };
    let (devices, contents) = world.metadata_views(now);
    let mut put = |path: &str, text: String| tree.insert(path.to_owned(), text);
    put("meta-data/instance-id", host.id.clone());
    put("meta-data/instance-type", host.shape.name.to_owned());
    put("meta-data/placement/availability-zone", host.zone.clone());
    put("meta-data/placement/region", world.region.clone());
    put("meta-data/services/domain", "amazonaws.com".to_owned());
    put("meta-data/services/partition", "aws".to_owned());
    put(&format!("meta-data/iam/security-credentials/{}", host.role), String::new());
    let document = json!({ "accountId": world.account, "architecture": "x86_64", "availabilityZone": host.zone,
        "imageId": "ami-0a000000000000001", "instanceId": host.id, "instanceType": host.shape.name,
        "pendingTime": iso8601(host.launched), "privateIp": devices.get(&host.primary).map(|i| i.primary),
        "region": world.region, "version": "2017-09-30" });
    put("dynamic/instance-identity/document", format!("{document:#}"));
    if let Some(primary) = devices.get(&host.primary) {
        put("meta-data/mac", primary.mac.clone());
        put("meta-data/local-ipv4", primary.primary.to_string());
    }
    for interface in devices.values().filter(|i| i.is_on(instance)) {
        let Some(attachment) = &interface.attachment else { continue };
        if matches!(attachment.progress, super::objects::Progress::Attaching(_)) {
            continue;
        }
        let mut put = |name: &str, text: String| {
            tree.insert(format!("meta-data/network/interfaces/macs/{}/{name}", interface.mac), text);
        };
        put("mac", interface.mac.clone());
        put("device-number", attachment.device.to_string());
        put("interface-id", interface.id.clone());
        put("owner-id", world.account.clone());
        if host.shape.cards.len() > 1 {
            put("network-card", attachment.card.to_string());
        }
        // What belongs to a MAC comes later than the MAC.
        let Some(seen) = contents.get(&interface.id).filter(|i| i.is_on(instance)) else { continue };
        put("subnet-id", seen.subnet.clone());
        put("vpc-id", seen.vpc.clone());
        put("security-group-ids", lines(&seen.groups));
        put("security-groups", lines(seen.groups.iter().filter_map(|g| world.group(g)).map(|g| &g.name)));
        put("local-ipv4s", lines(std::iter::once(&seen.primary).chain(&seen.secondary)));
        if !seen.prefixes.is_empty() {
            put("ipv4-prefix", lines(&seen.prefixes));
        }
        if let Some(subnet) = world.subnets().get(&seen.subnet) {
            put("subnet-ipv4-cidr-block", subnet.cidr.to_string());
        }
        if let Some(vpc) = world.vpc(&seen.vpc) {
            put("vpc-ipv4-cidr-block", vpc.cidrs.first().map(ToString::to_string).unwrap_or_default());
            put("vpc-ipv4-cidr-blocks", lines(&vpc.cidrs));
        }
    }
    tree
}

/// A file's text, or a folder's list: folders in it end with a slash. EC2 takes a folder's name with and without one.
fn look_up(tree: &BTreeMap<String, String>, path: &str) -> Option<String> {
    if let Some(text) = tree.get(path) {
        return Some(text.clone());
    }
    let folder = format!("{}/", path.trim_end_matches('/'));
    let mut names: Vec<String> = Vec::new();
    for rest in tree.keys().filter_map(|key| key.strip_prefix(&folder)) {
        let name = rest.split_inclusive('/').next().unwrap_or(rest);
        if names.last().map(String::as_str) != Some(name) {
            names.push(name.to_owned());
        }
    }
    (!names.is_empty()).then(|| lines(&names))
}

fn lines<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = write!(text, "{gap}{item}");
    }
    text
}
