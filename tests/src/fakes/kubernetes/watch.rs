//! Watches: what is there, then what happens.
//!
//! ```text
//! world ──rv──► watch channel ──► this task: changes after the cursor ─► selector ─► bytes ─► connection
//!                                  ▲ timeout, bookmarks, orders
//! ```
//! A watch holds a cursor into the history of its resource and nothing else. It is woken by any change of any resource, looks
//! under the lock for its own, and encodes them without it; the bytes of the objects are shared.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{Piece, Severed};
use super::faults::{End, What, find};
use super::kinds::Resource;
use super::list;
use super::request::Query;
use super::selector::Selector;
use super::server::Shared;
use super::status::{Cause, Refusal};
use super::store::{Change, Form, Object, bookmark};

/// Bytes that are gathered before they are sent.
const PIECE: usize = 64 << 10;
/// How long a watch lasts whose client names no time.
const USUAL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A bookmark comes so long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// A watch, as asked for.
#[derive(Debug)]
pub(super) struct Watch {
    resource: &'static Resource,
    namespace: String,
    selector: Selector,
    partial: bool,
    start: Start,
    bookmarks: bool,
    timeout: Duration,
    faults: Vec<What>,
}

/// Where a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With what is there at a version that is not older than this one; then a bookmark that says so.
    State { not_older: u64, marker: bool },
    /// After a version.
    After(u64),
    /// Now.
    Now,
}

impl Watch {
    /// Reads the parameters.
    ///
    /// # Errors
    /// They contradict each other, or are none.
    pub(super) fn parse(
        resource: &'static Resource,
        namespace: &str,
        partial: bool,
        query: &Query,
        faults: Vec<What>,
    ) -> Result<Self, Refusal> {
        check(query)?;
        let selector = Selector::parse(resource, query.text("labelSelector"), query.text("fieldSelector"))?;
        let version = list::version(query.text("resourceVersion"));
        let version = version.map_err(|why| Refusal::new(500, "", why, Value::Null))?;
        let bookmarks = query.flag("allowWatchBookmarks");
        let start = match version {
            _ if query.flag("sendInitialEvents") => {
                Start::State { not_older: version.unwrap_or(0), marker: bookmarks }
            }
            None | Some(0) if query.has("sendInitialEvents") => Start::Now,
            // One that names no version is told where the initial events end, though it has not asked.
            None => Start::State { not_older: 0, marker: bookmarks },
            Some(0) => Start::State { not_older: 0, marker: false },
            Some(version) => Start::After(version),
        };
        let timeout = query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        Ok(Self {
            resource,
            namespace: namespace.into(),
            selector,
            partial,
            start,
            bookmarks,
            timeout: timeout.map_or(USUAL_TIMEOUT, Duration::from_secs),
            faults,
        })
    }

    /// Writes the stream until it ends. `begun` is told as soon as it is settled what the stream begins with: a client that
    /// has seen the head of the answer sees every change from then on as an event.
    pub(super) async fn run(self, shared: Arc<Shared>, out: mpsc::Sender<Piece>, begun: oneshot::Sender<()>) {
        let find_millis =
            |pick: fn(&What) -> Option<u64>| Duration::from_millis(find(&self.faults, pick).unwrap_or(0));
        let stall = find_millis(|w| if let What::Stall { millis } = w { Some(*millis) } else { None });
        let lag = find_millis(|w| if let What::Lag { millis } = w { Some(*millis) } else { None });
        let mut stream = Stream { watch: &self, out, begun: Some(begun), piece: Vec::new(), events: 0 };
        // How it ends is all that there is to say: the receiver is gone, or the stream is over.
        let _ended = stream.run(&shared, stall, lag).await;
    }
}

fn check(query: &Query) -> Result<(), Refusal> {
    const AT: &str = "resourceVersionMatch";
    let how = query.text(AT);
    let mut causes = Vec::new();
    if query.has("sendInitialEvents") {
        if how != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            causes.push(Cause::forbidden(AT, why));
            if !how.is_empty() {
                causes.push(Cause::unsupported(AT, &json!(how), &["NotOlderThan"]));
            }
        }
    } else if !how.is_empty() {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        causes.push(Cause::forbidden(AT, why));
    }
    if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid_options("ListOptions", &causes)) }
}

/// The stream is over, and why does not matter.
struct Over;

struct Stream<'a> {
    watch: &'a Watch,
    out: mpsc::Sender<Piece>,
    begun: Option<oneshot::Sender<()>>,
    piece: Vec<u8>,
    events: usize,
}

impl Stream<'_> {
    async fn run(&mut self, shared: &Shared, stall: Duration, lag: Duration) -> Result<(), Over> {
        let watch = self.watch;
        let mut version = shared.version();
        let mut orders = shared.faults.orders();
        let mut drain = shared.drain();
        let opened = Instant::now();
        let end = opened + watch.timeout;
        if watch.faults.contains(&What::Expired) {
            return self.expired(0, shared.world(|w| w.store.rv())).await;
        }
        let mut cursor = match watch.start {
            Start::Now => shared.world(|w| w.store.rv()),
            Start::After(after) => {
                let (fine, rv) =
                    shared.world(|w| (w.store.table(watch.resource).watchable(after), w.store.rv()));
                if !fine {
                    return self.expired(after, rv).await;
                }
                after
            }
            Start::State { not_older, marker } => {
                while shared.world(|w| w.store.rv()) < not_older {
                    self.begin();
                    tokio::select! {
                        _ = version.changed() => {}
                        () = sleep_until(end) => return Ok(()),
                        () = self.out.closed() => return Err(Over),
                    }
                }
                let (rv, objects) = shared.world(|w| {
                    let objects: Vec<_> =
                        w.store.table(watch.resource).range(&watch.namespace).cloned().collect();
                    (w.store.rv(), objects)
                });
                self.begin();
                for object in objects.iter().filter(|o| o.matches(watch.resource, &watch.selector)) {
                    self.event("ADDED", object, object.rv).await?;
                }
                if marker {
                    self.bookmark(rv, true);
                }
                rv
            }
        };
        self.begin();
        self.flush().await?;
        sleep(stall).await;
        let mut last_bookmark = end.checked_sub(LAST_BOOKMARK).filter(|at| *at > opened);
        let mut next_bookmark = opened + shared.bookmark_every;
        let mut limit = u64::MAX;
        loop {
            let prefix = format!("{}/", watch.namespace);
            let (changes, newest, served) = shared.world(|w| {
                let table = w.store.table(watch.resource);
                let newest = w.store.rv().min(limit);
                let ours = |c: &&Change| {
                    c.rv <= newest && (watch.namespace.is_empty() || c.shown.key.starts_with(&prefix))
                };
                let changes: Vec<Change> = table.since(cursor).filter(ours).cloned().collect();
                let served = table.holds(cursor) && (w.custom || !watch.resource.custom);
                (changes, newest, served)
            });
            for change in &changes {
                if let Some((kind, object)) = change.event(watch.resource, &watch.selector) {
                    self.event(kind, object, change.rv).await?;
                }
            }
            self.flush().await?;
            cursor = cursor.max(newest);
            if !served {
                return Ok(());
            }
            let bookmark_at = last_bookmark.unwrap_or(end).min(next_bookmark);
            tokio::select! {
                changed = version.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    limit = u64::MAX;
                    if !lag.is_zero() {
                        limit = *version.borrow_and_update() / 2;
                        sleep(lag).await;
                    }
                }
                () = sleep_until(bookmark_at), if watch.bookmarks => {
                    self.bookmark(cursor, false);
                    self.flush().await?;
                    last_bookmark = last_bookmark.filter(|at| *at > bookmark_at);
                    next_bookmark = bookmark_at + shared.bookmark_every;
                }
                () = sleep_until(end) => return Ok(()),
                order = orders.recv() => {
                    let Ok(order) = order else { continue };
                    if order.resource.is_none_or(|plural| plural == watch.resource.plural) {
                        return match order.end {
                            End::Cut => self.sever().await,
                            End::Close => Ok(()),
                            End::Expire => self.expired(cursor, shared.world(|w| w.store.rv())).await,
                        };
                    }
                }
                _ = drain.changed() => return Ok(()),
                () = self.out.closed() => return Err(Over),
            }
        }
    }

    fn begin(&mut self) {
        // A handler that is gone needs not be told.
        let _told = self.begun.take().map(|begun| begun.send(()));
    }

    async fn event(&mut self, kind: &str, object: &Object, rv: u64) -> Result<(), Over> {
        let after = find(&self.watch.faults, |what| match what {
            What::Cut { after } => Some((*after, true)),
            What::Close { after } => Some((*after, false)),
            _ => None,
        });
        if let Some((_, cut)) = after.filter(|(after, _)| self.events >= *after) {
            self.flush().await?;
            return if cut { self.sever_in(kind, object, rv).await } else { Err(Over) };
        }
        self.events += 1;
        let copies = if self.watch.faults.contains(&What::Duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            self.line(kind, object, rv);
        }
        if self.piece.len() >= PIECE { self.flush().await } else { Ok(()) }
    }

    fn line(&mut self, kind: &str, object: &Object, rv: u64) {
        let form = if self.watch.partial { Form::Partial } else { Form::Whole };
        self.piece.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        object.write(self.watch.resource, form, rv, &mut self.piece);
        self.piece.extend_from_slice(b"}\n");
    }

    fn bookmark(&mut self, rv: u64, initial_end: bool) {
        let object = bookmark(self.watch.resource, self.watch.partial, rv, initial_end);
        let line = json!({ "type": "BOOKMARK", "object": object });
        self.piece.extend_from_slice(format!("{line}\n").as_bytes());
    }

    async fn expired(&mut self, asked: u64, current: u64) -> Result<(), Over> {
        let message = format!("too old resource version: {asked} ({current})");
        let status = Refusal::new(410, "Expired", message, Value::Null).body;
        let line = json!({ "type": "ERROR", "object": status });
        self.piece.extend_from_slice(format!("{line}\n").as_bytes());
        self.flush().await
    }

    /// Cuts the connection within an event.
    async fn sever_in(&mut self, kind: &str, object: &Object, rv: u64) -> Result<(), Over> {
        self.line(kind, object, rv);
        self.piece.truncate(self.piece.len() / 2);
        self.flush().await?;
        self.sever().await
    }

    async fn sever(&mut self) -> Result<(), Over> {
        if self.events == 0 {
            self.piece.extend_from_slice(b"{\"type\":\"MODI");
            self.flush().await?;
        }
        // What was sent is to arrive before the connection goes.
        sleep(Duration::from_millis(5)).await;
        let _gone = self.out.send(Err(Severed)).await;
        Err(Over)
    }

    async fn flush(&mut self) -> Result<(), Over> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.out.send(Ok(piece)).await.map_err(|_| Over)
    }
}
