//! The pages.

use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use sluice_ec2::aws::Calls;
use sluice_kube::manifests::Finding;

use super::metrics;
use crate::agent::Event;
use crate::cni::Window;
use crate::environment::Printed;

/// How long the loop may take to say how it stands.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take before it is not healthy: a daemon that hangs holds it for 10 s, and restarting the agent would not
/// help.
const HEALTHY: Duration = Duration::from_secs(15);

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Prometheus' text format.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every path, with what it has.
const PATHS: [(&str, &str); 9] = [
    ("/healthz", "200 while the agent's loop answers"),
    (
        "/readyz",
        "200 while the daemon has the node's state in force and ADD is answered; 503 with the reason",
    ),
    ("/metrics", "metrics, as on port 61678"),
    ("/v1/status", "generation, findings, and why the node is not ready"),
    ("/v1/enis", "ENIs, their links, what they carry, and what keeps the pool from growing"),
    ("/v1/pods", "pods and their leases; container IDs are cut"),
    ("/v1/eni-configs", "the ENIConfig that this node uses, or why it does not"),
    ("/v1/networkutils-env-settings", "the environment variables, with what is in force"),
    ("/v1/ipamd-env-settings", "the same"),
];

/// How the agent's loop stands.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// This node's name.
    pub node: String,
    /// The daemon is connected.
    pub connected: bool,
    /// The generation that it accepted last.
    pub generation: Option<u64>,
    /// Every object of the cluster is known.
    pub synced: bool,
    /// Pods that have a path.
    pub pods: usize,
    /// Generations that were accepted, and those that were refused, since the start.
    pub generations: [u64; 2],
    /// Why pods may have no network, in a word and in a sentence.
    pub unready: Option<(&'static str, String)>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// The ENIConfig that this node uses, or would, and why it does not.
    pub eni_config: Option<(String, Option<String>)>,
}

/// Everything that pages are made of.
pub(crate) struct Pages {
    /// The agent's loop.
    agent: Mutex<Sender<Event>>,
    /// What is answered to the CNI plugin.
    desk: Window,
    /// Calls to EC2.
    calls: Vec<Arc<Calls>>,
}

pub(super) struct Page {
    pub status: u16,
    pub kind: &'static str,
    pub body: String,
}

pub(super) fn nowhere(instead: &str) -> Page {
    Page { status: 404, kind: TEXT, body: format!("there is nothing here; {instead} is served\n") }
}

fn json_page(status: u16, value: &impl Serialize) -> Page {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Page { status, kind: JSON, body: text + "\n" },
        Err(error) => Page { status: 500, kind: TEXT, body: format!("{error}\n") },
    }
}

impl Pages {
    pub(crate) fn new(agent: Sender<Event>, desk: Window, calls: Vec<Arc<Calls>>) -> Self {
        Self { agent: Mutex::new(agent), desk, calls }
    }

    /// How the loop stands, if it answers in time.
    fn ask(&self, patience: Duration) -> Result<Snapshot, Page> {
        let (reply, answer) = sync_channel(1);
        let told = self.agent.lock().unwrap_or_else(PoisonError::into_inner).send(Event::Ask(reply));
        let answer = told.ok().and_then(|()| answer.recv_timeout(patience).ok());
        answer.ok_or_else(|| Page {
            status: 503,
            kind: TEXT,
            body: format!(
                "the agent's loop has not answered in {} s: does sluiced hang?\n",
                patience.as_secs()
            ),
        })
    }

    pub(super) fn page(&self, path: &str) -> Page {
        self.find(path).unwrap_or_else(|page| page)
    }

    fn find(&self, path: &str) -> Result<Page, Page> {
        Ok(match path {
            "/" => {
                let list = PATHS.iter().map(|(path, has)| format!("{path:32}{has}\n")).collect();
                Page { status: 200, kind: TEXT, body: list }
            }
            "/healthz" => {
                self.ask(HEALTHY)?;
                Page { status: 200, kind: TEXT, body: "ok\n".to_owned() }
            }
            "/readyz" => {
                let why = not_ready(&self.ask(PATIENCE)?, self.desk.shown().ready);
                match why {
                    None => Page { status: 200, kind: TEXT, body: "ok\n".to_owned() },
                    Some(why) => Page { status: 503, kind: TEXT, body: why + "\n" },
                }
            }
            "/metrics" => match metrics::text(&self.ask(PATIENCE)?, &self.desk, &self.calls) {
                Ok(body) => Page { status: 200, kind: METRICS, body },
                Err(error) => Page { status: 500, kind: TEXT, body: format!("{error}\n") },
            },
            "/v1/status" => json_page(200, &self.ask(PATIENCE)?),
            "/v1/enis" => {
                let mut shown = self.desk.shown();
                shown.leases.clear();
                json_page(200, &without_leases(&shown))
            }
            "/v1/pods" => {
                let mut leases = self.desk.shown().leases;
                // Whoever has a whole ID can ask the runtime for more; a beginning is enough to find one's way.
                leases.iter_mut().for_each(|lease| lease.attachment.container.truncate(12));
                leases.iter_mut().for_each(|lease| lease.netns = None);
                json_page(200, &leases)
            }
            "/v1/eni-configs" => {
                let configs: Vec<Value> = self
                    .ask(PATIENCE)?
                    .eni_config
                    .into_iter()
                    .map(|(name, problem)| json!({ "name": name, "used": problem.is_none(), "problem": problem }))
                    .collect();
                json_page(200, &configs)
            }
            "/v1/networkutils-env-settings" | "/v1/ipamd-env-settings" => {
                let all = Printed::all(|name| std::env::var(name).ok()).into_iter();
                let settings = all.map(|printed| {
                    let value = printed.value.unwrap_or_else(|| printed.default.to_owned());
                    (printed.name.to_owned(), Value::String(value))
                });
                json_page(200, &settings.collect::<serde_json::Map<String, Value>>())
            }
            _ => nowhere("/ lists what"),
        })
    }
}

/// The ENIs' page, which has no leases.
fn without_leases(shown: &sluice_cni::protocol::Shown) -> Value {
    let mut value = serde_json::to_value(shown).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.remove("leases");
    }
    value
}

/// Why traffic of pods may not be as it should, or no pod can be added.
fn not_ready(snapshot: &Snapshot, serving: bool) -> Option<String> {
    if !snapshot.synced {
        return Some("the cluster's objects are not all known yet".to_owned());
    }
    if !snapshot.connected || snapshot.generation.is_none() {
        return Some("sluiced has not accepted the node's state".to_owned());
    }
    if let Some((reason @ ("DaemonUnreachable" | "StateRefused"), why)) = &snapshot.unready {
        return Some(format!("{reason}: {why}"));
    }
    (!serving).then(|| match &snapshot.unready {
        Some((reason, why)) => format!("{reason}: {why}"),
        None => "no ENI gives addresses to pods yet".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_while_pods_can_be_added_and_their_state_is_in_force() {
        let well = Snapshot {
            node: "n".into(),
            connected: true,
            generation: Some(1),
            synced: true,
            pods: 0,
            generations: [1, 0],
            unready: None,
            findings: Vec::new(),
            eni_config: None,
        };
        assert_eq!(not_ready(&well, true), None);
        // What an operator must mend later takes no running node out.
        let denied = Snapshot { unready: Some(("MissingIAMPermissions", "x".into())), ..well.clone() };
        assert_eq!(not_ready(&denied, true), None);
        assert!(not_ready(&denied, false).is_some_and(|why| why.contains("MissingIAMPermissions")));
        assert!(not_ready(&Snapshot { connected: false, ..well.clone() }, true).is_some());
        assert!(not_ready(&Snapshot { synced: false, ..well.clone() }, true).is_some());
        assert!(not_ready(&well, false).is_some());
    }
}
