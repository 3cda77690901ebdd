//! The management UI: one page without any network of its own, on a loopback address.
//!
//! Other pages in the same browser can send requests here, and other users of this machine can connect. So a request
//! must name this server as its host (a name that was rebound to 127.0.0.1 does not), and what changes the state must carry a token
//! that only the printed address has: it is in the fragment, which browsers never send.

mod view;

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use tiny_http::{Header, Method, Request, Response};

use super::bed::{Bed, panicked};
use super::expect::{Policies, Policy};
use super::observe::observe;
use crate::lab::Progress;
use crate::output;
use view::View;

/// The page; the place of its version is all that is filled in.
const PAGE: &str = include_str!("page.html");
/// Bytes of a request's body at most.
const BODY: u64 = 4096;
/// Requests that are answered at once.
const CLIENTS: usize = 64;
/// From one look at the stars to the next.
const LOOK: Duration = Duration::from_millis(500);
/// The header of the token.
const TOKEN: &str = "X-Sluice-Token";
/// What a browser is told about the page: nothing from anywhere else, in nobody's frame, never stored.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The listening server.
pub(super) struct Server {
    http: tiny_http::Server,
    at: SocketAddr,
    token: String,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted(Policies);

/// The body of `POST /api/policies`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// The policies to be in force, by name; all others are taken out.
    policies: Vec<String>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address is taken.
    pub(super) fn bind(at: SocketAddr) -> Result<Self> {
        let http = tiny_http::Server::http(at).map_err(|e| {
            anyhow!(
                "cannot listen on {at}: {e}: give another address with --serve ADDR; port 0 takes a free one"
            )
        })?;
        let at = http.server_addr().to_ip().context("the server has no address")?;
        Ok(Self { http, at, token: token()? })
    }

    fn url(&self) -> String {
        format!("http://{}/#token={}", self.at, self.token)
    }
}

/// A hundred and twenty-eight bits that nobody can guess.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Serves the page until the user interrupts.
///
/// # Errors
/// The lab broke.
pub(super) fn serve(server: Server, bed: Bed, progress: &Progress) -> Result<()> {
    progress.suspended(|| output::print(&format!("open {}  (Ctrl-C ends it)", server.url())))?;
    progress.step("serving")?;
    let view = Arc::new(Mutex::new(View::new(&bed)?));
    let server = Arc::new(server);
    let clients = Arc::new(());
    let (orders, wanted) = channel();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let follow = scope.spawn(|| follow(bed, &view, wanted, &over, progress));
        let mut served = Ok(());
        while progress.check().is_ok() && !follow.is_finished() {
            match server.http.recv_timeout(Duration::from_millis(100)) {
                Ok(Some(request)) if Arc::strong_count(&clients) <= CLIENTS => {
                    let (server, view, orders) = (Arc::clone(&server), Arc::clone(&view), orders.clone());
                    let client = Arc::clone(&clients);
                    // On a thread that nobody waits for: a client that sends half a request must hold up neither the
                    // others nor the end. Without a thread it is hung up on.
                    let _ = std::thread::Builder::new().spawn(move || {
                        // A browser that goes away in the middle is its own affair.
                        let _ = server.answer(request, &view, &orders);
                        drop(client);
                    });
                }
                // Too many at once: dropped, and thereby answered with an error.
                Ok(_) => {}
                Err(e) => {
                    served = Err(e).context("the web server failed");
                    break;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        follow.join().map_err(|_| panicked())?.and(served)
    })
}

/// Carries orders out, one after the other, and looks at the stars in between. It owns the lab and takes it down.
fn follow(
    mut bed: Bed,
    view: &Mutex<View>,
    wanted: Receiver<Wanted>,
    over: &AtomicBool,
    progress: &Progress,
) -> Result<()> {
    while progress.check().is_ok() && !over.load(Ordering::Relaxed) {
        match observe(&bed) {
            Ok(cells) => lock(view).saw(&bed, cells),
            Err(_) if progress.check().is_err() => break,
            Err(e) => return Err(e),
        }
        if let Ok(first) = wanted.recv_timeout(LOOK) {
            // Whoever presses three buttons wants the last.
            let Wanted(policies) = wanted.try_iter().last().unwrap_or(first);
            lock(view).begins(policies);
            let brought = bed.bring(policies, progress);
            lock(view).ended(&bed, brought);
        }
    }
    // Now, and not when whoever answers a client lets go: an order that comes later has nobody to carry it out.
    drop(wanted);
    Ok(())
}

fn lock(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn answer(
        &self,
        mut request: Request,
        view: &Mutex<View>,
        orders: &Sender<Wanted>,
    ) -> std::io::Result<()> {
        let path = request.url().split(['?', '#']).next().unwrap_or_default().to_owned();
        let (status, kind, body) = if !self.is_host(header(&request, "Host")) {
            let words = format!("this server is http://{}/ and goes by no other name\n", self.at);
            (421, "text/plain", words)
        } else {
            match (request.method(), path.as_str()) {
                (Method::Get, "/") => (200, "text/html; charset=utf-8", PAGE.to_owned()),
                (Method::Get, "/api/state") => (200, "application/json", lock(view).json()),
                (Method::Post, "/api/policies") => match self.order(&mut request) {
                    Ok(wanted) => {
                        // Where nobody follows any more the lab is going down: the page learns it from its next question.
                        let _ = orders.send(wanted);
                        lock(view).begins(wanted.0);
                        (202, "application/json", lock(view).json())
                    }
                    Err((status, reason)) => (status, "text/plain", format!("{reason}\n")),
                },
                (_, "/" | "/api/state" | "/api/policies") => {
                    (405, "text/plain", "GET /, GET /api/state, POST /api/policies\n".into())
                }
                _ => (404, "text/plain", "there is /, /api/state and /api/policies\n".into()),
            }
        };
        let mut response = Response::from_string(body).with_status_code(status);
        for (name, value) in [
            ("Content-Type", kind),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ] {
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        request.respond(response)
    }

    /// Whether a request names this server.
    fn is_host(&self, host: Option<&str>) -> bool {
        let port = self.at.port();
        host.is_some_and(|host| {
            host == self.at.to_string() || host.eq_ignore_ascii_case(&format!("localhost:{port}"))
        })
    }

    /// What a request wants changed, if it may.
    fn order(&self, request: &mut Request) -> Result<Wanted, (u16, String)> {
        let given = header(request, TOKEN).unwrap_or_default();
        if !same(given.as_bytes(), self.token.as_bytes()) {
            return Err((
                403,
                format!("{TOKEN} is missing or wrong: open the address that was printed at the start"),
            ));
        }
        if let Some(origin) = header(request, "Origin")
            && !self.is_host(origin.strip_prefix("http://"))
        {
            return Err((403, format!("{origin} may change nothing here")));
        }
        let mut body = String::new();
        let read = request.as_reader().take(BODY).read_to_string(&mut body);
        read.map_err(|_| (400, "the body is no text".to_owned()))?;
        understand(&body).map_err(|reason| (400, reason))
    }
}

/// Compares without telling by its time how much is the same.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn understand(body: &str) -> Result<Wanted, String> {
    let order: Order =
        serde_json::from_str(body).map_err(|e| format!("not {{\"policies\": [\"S1\", ...]}}: {e}"))?;
    let mut policies = Policies::default();
    for name in &order.policies {
        let found = Policy::ALL.into_iter().find(|policy| policy.name() == name);
        policies = policies.with(found.ok_or_else(|| format!("`{name}` is no policy: S1, S2, S3 or S4"))?);
    }
    Ok(Wanted(policies))
}

fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server::bind("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[test]
    fn only_its_own_names_are_its_host() {
        let server = server();
        let port = server.at.port();
        assert!(
            server.is_host(Some(&format!("127.0.0.1:{port}")))
                && server.is_host(Some(&format!("LocalHost:{port}")))
        );
        for other in
            ["evil.example", "127.0.0.1", &format!("evil.example:{port}"), &format!("127.0.0.2:{port}"), ""]
        {
            assert!(!server.is_host(Some(other)), "{other}");
        }
        assert!(!server.is_host(None));
    }

    #[test]
    fn each_run_has_a_token_of_its_own() {
        let (one, two) = (server(), server());
        assert!(one.token.len() == 32 && one.token != two.token && one.url().ends_with(&one.token));
        assert!(same(b"ab", b"ab") && !same(b"ab", b"ac") && !same(b"ab", b"a") && !same(b"", b"a"));
    }

    #[test]
    fn an_order_names_policies_that_there_are() {
        assert_eq!(understand(r#"{"policies": ["S2", "S1"]}"#), Ok(Wanted(Policies::step(2))));
        assert_eq!(understand(r#"{"policies": []}"#), Ok(Wanted(Policies::default())));
        assert!(understand(r#"{"policies": ["S9"]}"#).unwrap_err().contains("S9"));
        assert!(understand(r#"{"policy": []}"#).is_err() && understand("").is_err());
    }
}
