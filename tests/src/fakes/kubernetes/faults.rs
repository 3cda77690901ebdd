//! What goes wrong on purpose. A fault waits for requests that it fits; an order reaches the watches that are open now.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// The version is no longer known: a list is 410, a continued one 410 with a fresh token, a watch is 200 with one `ERROR`.
    Expired,
    /// 429 in plain text, as from the limit on requests in flight.
    TooManyRequests {
        /// Seconds of `Retry-After`.
        retry_after: u32,
    },
    /// A `Status` with this code.
    Fail {
        /// HTTP status.
        status: u16,
    },
    /// The answer begins later.
    Delay {
        /// Milliseconds.
        millis: u64,
    },
    /// The answer begins, and nothing more comes for this time: before a watch's live events, within a list.
    Stall {
        /// Milliseconds.
        millis: u64,
    },
    /// The connection is cut within the event after this many (within a list: half way).
    Cut {
        /// Events that come through.
        #[serde(default)]
        after: usize,
    },
    /// A watch ends cleanly after this many events.
    Close {
        /// Events that come through.
        #[serde(default)]
        after: usize,
    },
    /// Every event of a watch comes twice.
    Duplicate,
    /// The events of a watch come later by this time, those of other resources do not.
    Lag {
        /// Milliseconds.
        millis: u64,
    },
}

/// What happens to which requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Plural of the resource; of any if absent.
    #[serde(default)]
    pub resource: Option<String>,
    /// `list`, `watch`, `get`, `create`, `update`, `patch`, `delete`; any if absent.
    #[serde(default)]
    pub verb: Option<String>,
    /// To how many requests; to all from now on if absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

impl Fault {
    /// A fault of one resource and verb, that hits so many requests.
    #[must_use]
    pub fn new(resource: &str, verb: &str, times: u32, what: What) -> Self {
        Self { resource: Some(resource.into()), verb: Some(verb.into()), times: Some(times), what }
    }
}

/// What happens to open watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The connection is cut in the middle of a line.
    Cut,
    /// The stream ends cleanly.
    Close,
    /// An `ERROR` event of an expired version, and then the end.
    Expire,
}

/// Which open watches come to which end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Plural of the resource; of any if absent.
    #[serde(default)]
    pub resource: Option<String>,
    /// How they end.
    pub end: End,
}

/// The faults that wait.
#[derive(Debug)]
pub struct Faults {
    waiting: Mutex<Vec<Fault>>,
    orders: broadcast::Sender<Order>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { waiting: Mutex::default(), orders: broadcast::channel(64).0 }
    }
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    /// Takes every fault away.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The faults that wait.
    #[must_use]
    pub fn waiting(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    /// Ends watches that are open. Returns how many heard it, those of other resources included.
    pub fn order(&self, order: Order) -> usize {
        self.orders.send(order).unwrap_or(0)
    }

    pub(super) fn orders(&self) -> broadcast::Receiver<Order> {
        self.orders.subscribe()
    }

    /// What hits this request.
    pub(super) fn hit(&self, resource: &str, verb: &str) -> Vec<What> {
        let mut hit = Vec::new();
        self.lock().retain_mut(|fault| {
            let fits = fault.resource.as_deref().is_none_or(|r| r == resource)
                && fault.verb.as_deref().is_none_or(|v| v == verb);
            if !fits {
                return true;
            }
            hit.push(fault.what.clone());
            match &mut fault.times {
                None => true,
                Some(times) => {
                    *times = times.saturating_sub(1);
                    *times > 0
                }
            }
        });
        hit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first that `pick` finds among faults.
pub(super) fn find<T>(faults: &[What], pick: impl Fn(&What) -> Option<T>) -> Option<T> {
    faults.iter().find_map(pick)
}

/// How long the faults want an answer to be held back before it begins.
pub(super) fn delay(faults: &[What]) -> Duration {
    let millis = find(faults, |what| match what {
        What::Delay { millis } => Some(*millis),
        _ => None,
    });
    Duration::from_millis(millis.unwrap_or(0))
}
