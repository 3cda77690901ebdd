//! The query socket's side of the conversation: read-only questions about a daemon that runs.

mod capture;
mod flows;
mod metrics;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sluice_state::framing::{FramingError, MAX_QUERY, read_message, write_message};
use sluice_state::push::Hello;
use sluice_state::query::{Answer, QUERY_VERSION, Query, Stats};

pub use stats::meanings;

use crate::plane::Plane;
use crate::socket::Connection;
use crate::view::View;

/// Clients of the query socket at a time.
pub const CLIENTS: usize = 16;
/// Questions per second and client.
pub const RATE: u32 = 100;
/// A client that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Reads the BPF programs' counters by name.
pub type BpfCounters = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// What the answers are made from.
pub struct Sources {
    /// What the workers share.
    pub plane: Arc<Plane>,
    /// What the control thread shows.
    pub view: Arc<ArcSwap<View>>,
    /// The BPF programs' counters.
    pub bpf: BpfCounters,
}

impl Sources {
    /// Every counter there is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        stats::collect(self)
    }
}

/// Talks to one client until it closes.
pub fn serve(connection: &mut Connection, sources: &Sources) {
    match converse(connection, sources) {
        Ok(()) | Err(FramingError::Closed) => {}
        Err(error) => tracing::debug!(%error, "a client of the query socket was cut off"),
    }
}

fn converse(connection: &mut Connection, sources: &Sources) -> Result<(), FramingError> {
    let hello: Hello = read_message(&mut connection.stream, 4096)?;
    if hello.version != QUERY_VERSION {
        let refused = format!(
            "protocol version {} is not spoken here, {QUERY_VERSION} is: use the `sluice` command of version {}",
            hello.version,
            env!("CARGO_PKG_VERSION")
        );
        return write_message(&mut connection.stream, &Answer::Refused(refused));
    }
    let daemon = env!("CARGO_PKG_VERSION").to_owned();
    let hello = Answer::Hello { version: QUERY_VERSION, daemon, pid: std::process::id() };
    write_message(&mut connection.stream, &hello)?;
    while connection.wait(Some(IDLE)) {
        let answer = match read_message(&mut connection.stream, MAX_QUERY) {
            Ok(Query::Capture(filter)) => return capture::stream(connection, sources, filter),
            Ok(query) => answer(sources, query),
            Err(FramingError::Syntax(error)) => {
                Answer::Refused(format!("the question does not parse: {error}"))
            }
            Err(error) => return Err(error),
        };
        write_message(&mut connection.stream, &answer)?;
    }
    Ok(())
}

fn answer(sources: &Sources, query: Query) -> Answer {
    let view = sources.view.load();
    match query {
        Query::Report => Answer::Report(Box::new(view.report.clone())),
        Query::Stats => Answer::Stats(Box::new(sources.stats())),
        Query::Flows(filter) => Answer::Flows(flows::list(sources, &view, &filter)),
        Query::Ports => Answer::Ports(Box::new(view.report.ports.clone())),
        Query::Pods => Answer::Pods(view.pods.to_vec()),
        Query::Metrics => match metrics::text(sources.stats()) {
            Ok(text) => Answer::Metrics(text),
            Err(error) => Answer::Refused(format!("the metrics could not be written: {error}")),
        },
        Query::Capture(_) => Answer::Refused("a capture is a stream of its own".into()),
    }
}
