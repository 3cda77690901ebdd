//! The control plane's side of a lab's daemon: generations over the state socket, as JSON.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Lab;
use crate::node::Client;

/// A control plane that is connected to a lab's daemon.
#[derive(Debug)]
pub struct Pusher {
    client: Client,
    number: u64,
}

impl Pusher {
    /// Connects.
    ///
    /// # Panics
    /// The daemon does not answer.
    #[must_use]
    pub fn connect(lab: &Lab) -> Self {
        let (client, hello) = Client::greet(lab, "state.sock");
        let number = hello["hello"]["generation"].as_u64().unwrap_or_else(|| panic!("no greeting: {hello}"));
        Self { client, number }
    }

    /// Sends the changes as one generation and waits until it is in force; says how long that took.
    ///
    /// # Panics
    /// The daemon refuses it.
    #[track_caller]
    pub fn push(&mut self, ops: &Value) -> Duration {
        let (answer, took) = self.offer(ops);
        assert!(answer["accepted"].is_object(), "refused: {answer}");
        took
    }

    /// As [`Pusher::push`], of several lists of changes in their order.
    #[track_caller]
    pub fn push_all(&mut self, ops: &[Vec<Value>]) -> Duration {
        self.push(&Value::Array(ops.concat()))
    }

    /// Sends the changes as one generation; gives the daemon's answer, and how long it took.
    pub fn offer(&mut self, ops: &Value) -> (Value, Duration) {
        self.number += 1;
        let message = json!({ "generation": { "number": self.number, "ops": ops } });
        let since = Instant::now();
        let answer = self.client.ask(&message);
        (answer, since.elapsed())
    }
}
