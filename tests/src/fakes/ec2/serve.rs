//! Sockets in front of the world. A face answers, or it does not: then the connection breaks, as it does when a load
//! balancer of the real service dies.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{DATE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::world::World;

/// The answers of a face.
pub type Reply = Response<Full<Bytes>>;

/// The world behind all faces, and its clock.
#[derive(Debug)]
pub struct Shared {
    world: Mutex<World>,
    /// By how much the world's clock is ahead of this machine's, in milliseconds.
    ahead: AtomicI64,
}

impl Shared {
    /// A world whose clock is this machine's.
    #[must_use]
    pub fn new(world: World) -> Arc<Self> {
        Arc::new(Self { world: Mutex::new(world), ahead: AtomicI64::new(0) })
    }

    /// The world. A test that panicked while it looked leaves it as good as it was.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world's time since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> Duration {
        let here = clock();
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { here.saturating_sub(by) } else { here + by }
    }

    /// Puts the world's clock ahead of this machine's, or behind it: the machine then has clock skew.
    pub fn set_ahead(&self, milliseconds: i64) {
        self.ahead.store(milliseconds, Ordering::Relaxed);
    }
}

/// This machine's time since the Unix epoch.
#[must_use]
pub fn clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// One face of the world.
pub trait Face: Send + Sync + 'static {
    /// Answers a request; none breaks the connection.
    fn answer(&self, request: Request<Bytes>) -> impl Future<Output = Option<Reply>> + Send;

    /// The world behind it.
    fn shared(&self) -> &Shared;
}

/// A face that is being served, until this is dropped.
#[derive(Debug)]
pub struct Served {
    /// Where.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Served {
    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a face.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(listen: SocketAddr, face: impl Face) -> Result<Served, String> {
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        format!("cannot listen on {listen}: {e}; port 0 takes any free one, addresses below 169.254 must exist on a device")
    })?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let face = Arc::new(face);
    let task = tokio::spawn(async move {
        // Connections die with the face: a world that is gone does not answer.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let face = face.clone();
            connections.spawn(async move {
                let service = service_fn(|request| handle(face.clone(), request));
                // A broken connection is the business of who broke it.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(Served { address, task })
}

/// The word that hyper closes a connection for.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the world breaks the connection")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn handle(face: Arc<impl Face>, request: Request<Incoming>) -> Result<Reply, Broken> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let mut reply = face.answer(Request::from_parts(head, body)).await.ok_or(Broken)?;
    // SDKs compare this with their own clock.
    if let Ok(date) = HeaderValue::from_str(&super::http::http_date(face.shared().now())) {
        reply.headers_mut().insert(DATE, date);
    }
    Ok(reply)
}

/// An answer with a body.
#[must_use]
pub fn reply(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}
