//! The server: a socket, a runtime of its own, and the way in for tests.
//!
//! ```text
//! FakeApiServer ─owns─► runtime (2 threads) ─► listener ─► connection ─► handler ─┐
//!      └──────────────────── Shared: World behind a mutex, version, faults ◄──────┘
//! ```
//! It has its own runtime, so that a test of any kind can hold it, and so that no test's executor slows it down.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::answer::Served;
use super::crowd::{Churn, Crowd};
use super::faults::{Fault, Faults, Order};
use super::handler;
use super::rbac::{User, Users};
use super::status::Refusal;
use super::world::World;

/// What can be chosen before it starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// How often a quiet watch is sent a bookmark.
    pub bookmark_every: Duration,
    /// How long a list waits for a version that is not there yet.
    pub patience: Duration,
    /// Is the CRD of `ENIConfig` there?
    pub custom: bool,
    /// Has it a status subresource? The VPC CNI's has none.
    pub custom_status: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            bookmark_every: Duration::from_secs(60),
            patience: Duration::from_secs(3),
            custom: true,
            custom_status: true,
        }
    }
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Shared {
    world: Mutex<World>,
    version: watch::Sender<u64>,
    drain: watch::Sender<u64>,
    pub(super) power: Mutex<Option<watch::Sender<bool>>>,
    pub(super) faults: Faults,
    pub(super) users: Mutex<Users>,
    pub(super) bookmark_every: Duration,
    pub(super) patience: Duration,
    /// Where it listens, or did.
    pub(super) address: Mutex<SocketAddr>,
    requests: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    /// Does something with the world, and wakes those who watch it.
    pub(super) fn world<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut world);
        // A CRD that goes is to be seen too, though it may make no version.
        let now = world.store.rv() * 2 + u64::from(world.custom);
        drop(world);
        self.version.send_if_modified(|known| std::mem::replace(known, now) != now);
        done
    }

    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn drain(&self) -> watch::Receiver<u64> {
        self.drain.subscribe()
    }

    pub(super) fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that have come so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends every watch cleanly and empties the watch cache, as a server that is told to go and comes again.
    pub(super) fn restart(&self) {
        self.drain.send_modify(|n| *n += 1);
        self.world(|world| world.store.restart());
    }
}

/// An API server on loopback.
#[derive(Debug)]
pub struct FakeApiServer {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl FakeApiServer {
    /// Starts one on a free port of loopback.
    ///
    /// # Errors
    /// There is no socket or no thread to be had.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts one.
    ///
    /// # Errors
    /// The address is taken, or there is no socket or no thread to be had.
    pub fn start_with(options: &Options) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-apiserver")
            .enable_all()
            .build()?;
        let mut world = World::default();
        world.custom = options.custom;
        world.custom_status = options.custom_status;
        let shared = Arc::new(Shared {
            version: watch::channel(world.store.rv()).0,
            world: Mutex::new(world),
            drain: watch::channel(0).0,
            power: Mutex::default(),
            faults: Faults::default(),
            users: Mutex::default(),
            bookmark_every: options.bookmark_every,
            patience: options.patience,
            address: Mutex::new(options.listen),
            requests: AtomicU64::new(0),
            closed: AtomicBool::new(true),
        });
        let mut server = Self { shared, runtime: Some(runtime), address: options.listen };
        server.address = server.listen()?;
        Ok(server)
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks at, or changes, what it stores; open watches see every change.
    pub fn world<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        self.shared.world(act)
    }

    /// Stores a manifest, status included, as [`World::load`].
    ///
    /// # Errors
    /// It is of a kind that is not here, or is refused.
    pub fn apply(&self, manifest: &Value) -> Result<(), Refusal> {
        self.world(|world| world.load(manifest).map(drop))
    }

    /// Stores every document of a YAML or JSON text.
    ///
    /// # Errors
    /// The text is none, or a document is refused: which, and why.
    pub fn load(&self, text: &str) -> Result<usize, String> {
        let mut loaded = 0;
        for manifest in super::load::documents(text)? {
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
            let kind = manifest["kind"].as_str().unwrap_or_default();
            self.apply(&manifest).map_err(|refusal| {
                format!("document {} ({kind} \"{name}\"): {}", loaded + 1, refusal.body["message"])
            })?;
            loaded += 1;
        }
        Ok(loaded)
    }

    /// Puts a large cluster into it.
    ///
    /// # Errors
    /// As [`Crowd::fill`].
    pub fn fill(&self, crowd: &Crowd) -> Result<(), Refusal> {
        self.world(|world| crowd.fill(world))
    }

    /// Changes pods of a crowd at a rate, until what this returns is dropped.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn churn(&self, crowd: &Crowd, per_second: u32) -> io::Result<Churn> {
        Churn::start(self.shared.clone(), crowd.clone(), per_second)
    }

    /// Makes a user known by a token. As soon as there is one, requests without a token are anonymous.
    pub fn user(&self, token: &str, user: User) {
        self.shared.users.lock().unwrap_or_else(PoisonError::into_inner).add(token, user);
    }

    /// Lets something go wrong with requests to come.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// What goes wrong, to be looked at or cleared.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Lets something happen to open watches. Returns how many watches there are.
    pub fn order(&self, order: Order) -> usize {
        self.shared.faults.order(order)
    }

    /// Requests that have come so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests()
    }

    /// Ends every watch cleanly and empties the watch cache, as a server that is told to go and comes again.
    pub fn restart(&self) {
        self.shared.restart();
    }

    /// Kills it and starts it again: every connection is cut, the watch cache is empty.
    ///
    /// # Errors
    /// Its address is taken.
    pub fn kill(&self) -> io::Result<()> {
        self.go_away();
        self.world(|world| world.store.restart());
        self.come_back()
    }

    /// Cuts every connection and refuses new ones.
    pub fn go_away(&self) {
        off(&self.shared);
    }

    /// Listens again, on the same address.
    ///
    /// # Errors
    /// It is taken.
    pub fn come_back(&self) -> io::Result<()> {
        self.listen().map(drop)
    }

    fn listen(&self) -> io::Result<SocketAddr> {
        let Some(runtime) = &self.runtime else { return Err(io::Error::other("the server has ended")) };
        let _entered = runtime.enter();
        on(&self.shared, self.address)
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.go_away();
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped within another runtime, where nothing may block.
            runtime.shutdown_background();
        }
    }
}

/// Starts to listen; must be called within a runtime.
pub(super) fn on(shared: &Arc<Shared>, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (power, powered) = watch::channel(true);
    *shared.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    *shared.power.lock().unwrap_or_else(PoisonError::into_inner) = Some(power);
    shared.closed.store(false, Ordering::Release);
    tokio::spawn(accept(shared.clone(), listener, powered));
    Ok(address)
}

/// Cuts every connection, and returns when no new one can be made.
pub(super) fn off(shared: &Shared) {
    if let Some(power) = shared.power.lock().unwrap_or_else(PoisonError::into_inner).take() {
        power.send_replace(false);
        for _ in 0..1_000 {
            if shared.closed.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener, powered: watch::Receiver<bool>) {
    let mut off = powered.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = off.wait_for(|on| !on) => break,
        };
        let Ok((stream, _)) = accepted else { continue };
        // What is not sent at once would be taken for a latency of the API.
        let _best_effort = stream.set_nodelay(true);
        let (shared, mut off) = (shared.clone(), powered.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let shared = shared.clone();
                async move { Served::Ok(handler::handle(shared, request).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that goes away, or a body that is cut on purpose, ends a connection: nothing to tell.
                _ = connection => {}
                _ = off.wait_for(|on| !on) => {}
            }
        });
    }
    drop(listener);
    shared.closed.store(true, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_listed_and_watched() -> io::Result<()> {
        let server = FakeApiServer::start()?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "default" },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
        });
        server.apply(&pod).map_err(|refusal| io::Error::other(refusal.body.to_string()))?;
        let mut stream = TcpStream::connect(server.address())?;
        let path = "/api/v1/pods?watch=true&timeoutSeconds=1&allowWatchBookmarks=true";
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        assert!(text.contains("\"type\":\"ADDED\""), "{text}");
        assert!(text.contains("initial-events-end"), "{text}");
        Ok(())
    }
}
