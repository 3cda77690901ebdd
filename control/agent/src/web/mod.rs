//! What the agent tells over HTTP: introspection for people on the node, health for probes, metrics for Prometheus. Ports and
//! paths are the VPC CNI's where it has them.
//!
//! ```text
//!  127.0.0.1:61679 or a socket ── /healthz /readyz /v1/... ─┐            ┌─ Agent's loop: how it stands
//!                                                           ├─ Pages ◄───┼─ Desk: ENIs, leases, what was asked of it
//!  :61678 ─────────────────────── /metrics ─────────────────┘            └─ calls to EC2
//! ```
//!
//! Nothing can be changed here. Health is asked of the loop itself: one that hangs is not healthy.

mod metrics;
mod pages;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response, Server};

pub(crate) use pages::Pages;
pub use pages::Snapshot;

/// Where introspection listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// At an address.
    Tcp(SocketAddr),
    /// At a socket.
    Unix(PathBuf),
}

impl std::str::FromStr for Bind {
    type Err = String;

    /// `ADDRESS:PORT`, or `unix:PATH` (VPC CNI: `INTROSPECTION_BIND_ADDRESS`).
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            let whole = path.is_absolute();
            return whole.then_some(Self::Unix(path)).ok_or_else(|| "unix:/PATH is valid".to_owned());
        }
        // As Go has it, `:61679` is every address.
        let text = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
        text.parse().map(Self::Tcp).map_err(|_| "ADDRESS:PORT or unix:/PATH is valid".to_owned())
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is served where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    /// Everything.
    Introspection,
    /// Metrics alone: others on the network reach it.
    Metrics,
}

/// Servers; they end with this.
#[derive(Debug)]
pub(crate) struct Web {
    servers: Vec<Arc<Listening>>,
}

struct Listening {
    server: Server,
    socket: Option<PathBuf>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening").field("at", &self.server.server_addr()).finish_non_exhaustive()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // The next agent would remove it as well.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Requests that are answered at once.
const CLIENTS: usize = 16;
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

impl Web {
    /// Serves what is wanted. An address that is taken is said, and costs the node nothing else.
    pub(crate) fn start(introspection: Option<&Bind>, metrics: Option<SocketAddr>, pages: Pages) -> Self {
        let pages = Arc::new(pages);
        let mut servers = Vec::new();
        let wanted = [
            introspection.map(|bind| (bind.clone(), Face::Introspection)),
            metrics.map(|address| (Bind::Tcp(address), Face::Metrics)),
        ];
        for (bind, face) in wanted.into_iter().flatten() {
            match serve(&bind, face, Arc::clone(&pages)) {
                Ok(server) => servers.push(server),
                Err(error) => tracing::warn!(
                    "{bind} cannot be served: {error}; {}",
                    match face {
                        Face::Introspection => "INTROSPECTION_BIND_ADDRESS names another place",
                        Face::Metrics => "--metrics-address names another place",
                    }
                ),
            }
        }
        Self { servers }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        for listening in &self.servers {
            listening.server.unblock();
        }
    }
}

fn serve(bind: &Bind, face: Face, pages: Arc<Pages>) -> io::Result<Arc<Listening>> {
    let refused = |error: Box<dyn std::error::Error + Send + Sync>| io::Error::other(error.to_string());
    let (server, socket) = match bind {
        Bind::Tcp(address) => (Server::http(address).map_err(refused)?, None),
        Bind::Unix(path) => {
            if std::os::unix::net::UnixStream::connect(path).is_err() && path.exists() {
                // An agent that was killed has left it.
                std::fs::remove_file(path)?;
            }
            (Server::http_unix(path).map_err(refused)?, Some(path.clone()))
        }
    };
    let at = server.server_addr();
    let what = match face {
        Face::Introspection => "introspection",
        Face::Metrics => "metrics",
    };
    tracing::info!(%at, "{what}");
    let listening = Arc::new(Listening { server, socket });
    let serving = Arc::downgrade(&listening);
    std::thread::Builder::new().name("sluice-web".into()).spawn(move || {
        let clients = Arc::new(());
        while let Some(listening) = serving.upgrade() {
            match listening.server.recv_timeout(LOOK) {
                Ok(Some(request)) if Arc::strong_count(&clients) <= CLIENTS => {
                    let (pages, client) = (Arc::clone(&pages), Arc::clone(&clients));
                    // One who asks for health while the loop hangs holds up nobody else. Without a thread it is hung up on.
                    let _ = std::thread::Builder::new().name("sluice-page".into()).spawn(move || {
                        answer(request, face, &pages);
                        drop(client);
                    });
                }
                // Too many at once are dropped, and thereby answered with an error.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "{what} is no longer served");
                    return;
                }
            }
        }
    })?;
    Ok(listening)
}

fn answer(request: Request, face: Face, pages: &Pages) {
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    let page = match (request.method(), face) {
        (Method::Get | Method::Head, Face::Metrics) if path != "/metrics" => pages::nowhere("/metrics"),
        (Method::Get | Method::Head, _) => pages.page(&path),
        _ => pages::Page { status: 405, kind: pages::TEXT, body: "only GET is served\n".to_owned() },
    };
    let mut response = Response::from_string(page.body).with_status_code(page.status);
    if let Ok(kind) = Header::from_bytes("Content-Type", page.kind) {
        response.add_header(kind);
    }
    // Who asked may have gone.
    let _ = request.respond(response);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_the_vpc_cni_reads_it() {
        let read = |text: &str| text.parse::<Bind>();
        assert_eq!(read("127.0.0.1:61679"), Ok(Bind::Tcp("127.0.0.1:61679".parse().unwrap())));
        assert_eq!(read(":61679"), Ok(Bind::Tcp("0.0.0.0:61679".parse().unwrap())));
        assert_eq!(read("unix:/run/x.sock"), Ok(Bind::Unix("/run/x.sock".into())));
        assert!(read("unix:x.sock").is_err() && read("localhost").is_err());
    }
}
