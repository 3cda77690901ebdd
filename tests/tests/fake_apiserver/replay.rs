//! Plays the steps against the fake and keeps what differs.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sluice_tests::fakes::kubernetes::faults::{Fault, What};
use sluice_tests::fakes::kubernetes::rbac::User;
use sluice_tests::fakes::kubernetes::{FakeApiServer, Options};

use crate::compare::{Relations, differences, stable};
use crate::http::{self, Answer, End, Head, Stream};
use crate::left_out::{BODY_LEFT_OUT, EVENTS_LEFT_OUT, LEFT_OUT, OWNERS};
use crate::recording::{self, Step};

/// An event, or the end of a watch, comes within this time, or not at all.
const SOON: Duration = Duration::from_secs(10);
/// What should not come has so long to come all the same.
const QUIET: Duration = Duration::from_millis(20);

/// `--service-cluster-ip-range` of the real server.
const SERVICE_RANGE: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 24);

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) exchanges: usize,
    pub(crate) watches: usize,
    pub(crate) events: usize,
    pub(crate) skipped: BTreeSet<&'static str>,
    pub(crate) wrong: Vec<String>,
}

/// A watch that is open.
struct Open {
    stream: Stream,
    /// The fake's newest version when it was opened: what is older is no live event.
    version: u64,
}

/// The fake, and what has been seen of it.
pub(crate) struct Replay<'a> {
    server: FakeApiServer,
    watches: &'a [Value],
    open: HashMap<usize, Open>,
    bodies: HashMap<String, Value>,
    relations: Relations,
    /// Up to which version each exchange brought the fake.
    causes: Vec<(u64, String)>,
    outcome: Outcome,
}

impl<'a> Replay<'a> {
    pub(crate) fn start(watches: &'a [Value]) -> Result<Self> {
        let server = FakeApiServer::start_with(&Options {
            // What takes the real server minutes and seconds, and is the same in less.
            bookmark_every: Duration::from_millis(300),
            patience: Duration::from_millis(50),
            custom: false,
            ..Options::default()
        })?;
        server.world(|world| world.service_range = SERVICE_RANGE);
        server.user("admin", User::admin());
        server.user("limited", User::named("limited"));
        Ok(Self {
            server,
            watches,
            open: HashMap::new(),
            bodies: HashMap::new(),
            relations: Relations::default(),
            causes: Vec::new(),
            outcome: Outcome::default(),
        })
    }

    pub(crate) fn finish(self) -> Outcome {
        self.outcome
    }

    pub(crate) fn play(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Exchange(line) => self.exchange(line)?,
            Step::Control(line) => self.control(line)?,
            Step::Open(i) => self.open(*i)?,
            Step::Close(i) => self.close(*i)?,
        }
        Ok(())
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn version(&self) -> u64 {
        self.server.world(|world| world.store.rv())
    }

    /// Is this left out?
    fn skips(&mut self, id: &str) -> bool {
        let left_out = LEFT_OUT.iter().find(|(name, _)| *name == id);
        self.outcome.skipped.extend(left_out.map(|(name, _)| *name));
        left_out.is_some()
    }

    fn wrong(&mut self, id: &str, what: impl std::fmt::Display) {
        self.outcome.wrong.push(format!("{id}: {what}"));
    }

    fn exchange(&mut self, line: &Value) -> Result<()> {
        let id = line["id"].as_str().context("an exchange without an id")?;
        if self.skips(id) {
            match id {
                "crd-create" => self.server.world(|world| world.custom = true),
                "crd-del" => self.server.world(sluice_tests::fakes::kubernetes::world::World::remove_custom),
                _ => {}
            }
        } else {
            let request = recording::request(line, |from| self.bodies.get(from).cloned())?;
            let answer = http::send(self.address(), &request).with_context(|| id.to_string())?;
            self.outcome.exchanges += 1;
            self.answer(id, &line["response"], &answer);
            self.bodies.insert(id.into(), answer.body());
        }
        let version = self.version();
        if self.causes.last().is_none_or(|(last, _)| *last < version) {
            self.causes.push((version, id.into()));
        }
        Ok(())
    }

    fn answer(&mut self, id: &str, recorded: &Value, answer: &Answer) {
        self.head(id, recorded, &answer.head);
        if answer.end != End::Clean {
            self.wrong(id, "the body was cut");
        }
        if BODY_LEFT_OUT.iter().any(|(name, _)| *name == id) {
            return;
        }
        let (mut want, mut got) = (recorded["body"].clone(), answer.body());
        if answer.head.header("content-type") == ["application/yaml"] {
            // The order of members is no part of it.
            want = want.as_str().and_then(|text| serde_yaml_ng::from_str(text).ok()).unwrap_or_default();
            got = serde_yaml_ng::from_str(&answer.text).unwrap_or_default();
        }
        self.compare(id, &want, &got);
        if OWNERS.contains(&id) {
            let found = differences(&owners(&want), &owners(&got));
            found.into_iter().for_each(|difference| self.wrong(id, difference));
        }
    }

    fn head(&mut self, id: &str, recorded: &Value, head: &Head) {
        if recorded["status"] != json!(head.status) {
            self.wrong(id, format!("recorded status {}, here {}", recorded["status"], head.status));
        }
        for name in ["Content-Type", "Retry-After", "Warning", "Allow", "Location", "Www-Authenticate"] {
            let want = &recorded["headers"][name];
            let want: Vec<&str> = match want {
                Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            let got = head.header(&name.to_lowercase());
            if want != got {
                self.wrong(id, format!("recorded {name} {want:?}, here {got:?}"));
            }
        }
    }

    fn compare(&mut self, id: &str, want: &Value, got: &Value) {
        let found = differences(&stable(want), &stable(got));
        let broken = if found.is_empty() { self.relations.take(want, got) } else { Vec::new() };
        found.into_iter().chain(broken).for_each(|difference| self.wrong(id, difference));
    }

    fn control(&mut self, line: &Value) -> Result<()> {
        match (line["control"].as_str(), line["id"].as_str()) {
            (Some("compact"), _) => self.server.world(|world| world.store.compact(world.store.rv())),
            (Some("restart"), Some("sigterm")) => self.server.restart(),
            (Some("restart"), Some("sigkill")) => self.server.kill()?,
            (Some("overload"), _) => {
                self.server.fault(Fault::new("pods", "list", 1, What::TooManyRequests { retry_after: 1 }));
            }
            _ => bail!("an unknown control line: {line}"),
        }
        Ok(())
    }

    fn open(&mut self, i: usize) -> Result<()> {
        let line = &self.watches[i];
        let id = line["id"].as_str().context("a watch without an id")?;
        if self.skips(id) {
            return Ok(());
        }
        self.outcome.watches += 1;
        let request = recording::request(line, |from| self.bodies.get(from).cloned())?;
        let recorded = &line["response"];
        if !recorded["body"].is_null() {
            let answer = http::send(self.address(), &request).with_context(|| id.to_string())?;
            self.answer(id, recorded, &answer);
            return Ok(());
        }
        let version = self.version();
        let stream = Stream::open(self.address(), &request).with_context(|| id.to_string())?;
        self.head(id, recorded, &stream.head);
        self.open.insert(i, Open { stream, version });
        Ok(())
    }

    fn close(&mut self, i: usize) -> Result<()> {
        let line = &self.watches[i];
        let id = line["id"].as_str().context("a watch without an id")?;
        let Some(Open { stream, version }) = self.open.remove(&i) else { return Ok(()) };
        let none = Vec::new();
        let events = line["events"].as_array().unwrap_or(&none);
        let causes = line["event_after"].as_array().unwrap_or(&none);
        let ticks: Vec<&Value> = events.iter().filter(|event| is_tick(event)).collect();
        let want: Vec<(&Value, &Value)> =
            events.iter().zip(causes).filter(|(event, _)| !is_tick(event)).collect();
        let stays = line["ended_by"] == "client";
        // First what must come; then a while for what must not.
        let so = |seen: &http::Seen| {
            let ticked = seen.events.iter().filter(|event| is_tick(event)).count();
            let all = seen.events.len() - ticked >= want.len() && (ticks.is_empty() || ticked > 0);
            if stays { all } else { seen.end.is_some() }
        };
        stream.wait(SOON, so, |_| ());
        let over = |seen: &http::Seen| seen.end.is_some();
        let (seen, end) = stream.wait(QUIET, over, |seen| (seen.events.clone(), seen.end));
        let recorded = line["response"]["end"].as_str().map(|text| match text.split(' ').next() {
            Some("clean") => End::Clean,
            _ => End::Cut,
        });
        if end != recorded {
            self.wrong(id, format!("recorded end {recorded:?}, here {end:?}"));
        }
        let (got_ticks, got): (Vec<&Value>, Vec<&Value>) = seen.iter().partition(|event| is_tick(event));
        if ticks.is_empty() != got_ticks.is_empty() && !ticks.is_empty() {
            self.wrong(id, "no bookmark came");
        }
        for tick in got_ticks {
            // How many come, and when, is the server's business; what they look like is not.
            if let Some(want) = ticks.first() {
                let found = differences(&stable(want), &stable(tick));
                found.into_iter().for_each(|difference| self.wrong(id, difference));
            }
        }
        if want.len() != got.len() {
            let shown = |event: &Value| format!("{} {}", event["type"], event["object"]["metadata"]["name"]);
            let want: Vec<String> = want.iter().map(|(event, _)| shown(event)).collect();
            let got: Vec<String> = got.iter().map(|event| shown(event)).collect();
            self.wrong(id, format!("recorded {} events {want:?}, here {} {got:?}", want.len(), got.len()));
            return Ok(());
        }
        self.outcome.events += got.len();
        for (n, ((want, after), got)) in want.into_iter().zip(got).enumerate() {
            let place = format!("{id} event {n}");
            if EVENTS_LEFT_OUT.iter().any(|(name, _)| *name == place) {
                if stable(want) == stable(got) {
                    self.wrong(&place, "is alike now, and need not be left out");
                }
            } else {
                self.compare(&place, want, got);
            }
            let live = got["object"]["metadata"]["resourceVersion"].as_str().and_then(|rv| rv.parse().ok());
            if let Some(live) = live.filter(|rv: &u64| *rv > version && want["type"] != "BOOKMARK") {
                let cause = self.causes.iter().find(|(last, _)| live <= *last).map(|(_, id)| id.clone());
                if after.as_str() != cause.as_deref() {
                    self.wrong(&place, format!("recorded after {after}, here after {cause:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Is it a bookmark that comes by the clock, and not the one that ends the initial events?
fn is_tick(event: &Value) -> bool {
    event["type"] == "BOOKMARK" && event["object"]["metadata"]["annotations"].is_null()
}

/// Who applied what.
fn owners(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let mut applied: Vec<Value> = entries.into_iter().filter(|entry| entry["operation"] == "Apply").collect();
    for entry in &mut applied {
        entry["time"] = "a time".into();
    }
    json!(applied)
}
