//! As much of HTTP/1.1 as the demo speaks: one GET a connection, a small body, everything bounded in bytes and time.

use std::io::{BufRead, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Bytes of a request's or an answer's head at most.
const HEAD: u64 = 8 * 1024;
/// Bytes of an answer's body at most.
const BODY: u64 = 256 * 1024;

/// `http://HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    /// A name or an address.
    pub(crate) host: String,
    /// The port, 80 where none is given.
    pub(crate) port: u16,
    path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no URL for a probe: http://HOST[:PORT]/PATH");
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (place, path) = rest.split_once('/').map_or((rest, ""), |(place, path)| (place, path));
        let (host, port) = match place.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?),
            None => (place, 80),
        };
        let printable = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if host.is_empty() || !printable(host) || !printable(path) {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), host: host.to_owned(), port, path: format!("/{path}") })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why there was no answer, in one word that programs tell apart: a policy drops in silence, so a denied probe ends in
/// `timeout` and never in `refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The name server did not answer.
    NoDns,
    /// The name server knows no such name.
    NoName,
    /// Nothing came back.
    Timeout,
    /// A RST, or an ICMP error that means the same.
    Refused,
    /// An ICMP error, or no route.
    Unreachable,
    /// There was a connection and no good answer on it.
    Broken,
}

impl Failure {
    /// The word.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::NoDns => "no-dns",
            Self::NoName => "no-name",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
        }
    }

    fn of(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Broken,
        }
    }
}

/// Asks for a URL at an address and gives the body.
///
/// # Errors
/// There was no good answer until the deadline.
pub(crate) fn ask(url: &Url, at: SocketAddr, deadline: Instant) -> Result<String, Failure> {
    let mut stream = TcpStream::connect_timeout(&at, left(deadline)?).map_err(|e| Failure::of(&e))?;
    let head =
        format!("GET {} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n", url.path, url.host, url.port);
    let limit = left(deadline)?;
    let sent = stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.set_write_timeout(Some(limit)))
        .and_then(|()| stream.write_all(head.as_bytes()));
    sent.map_err(|e| Failure::of(&e))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // By hand and not to the end in one go: a peer that sends a byte a second must not outlast the deadline.
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if (answer.len() + n) as u64 <= HEAD + BODY => answer.extend_from_slice(&buffer[..n]),
            Ok(_) => return Err(Failure::Broken),
            Err(e) => return Err(Failure::of(&e)),
        }
        left(deadline)?;
    }
    body(&answer).ok_or(Failure::Broken)
}

fn left(deadline: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::Timeout) } else { Ok(left) }
}

/// The body of a good answer, whole.
fn body(answer: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let good = lines.next()?.split(' ').nth(1)? == "200";
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    (good && length.is_none_or(|length| length == body.len())).then(|| body.to_owned())
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The path of a GET; none for anything else.
    pub(crate) path: Option<String>,
    /// The client may ask again on the same connection.
    pub(crate) keep: bool,
}

/// Reads the next request; none when the client has ended the connection.
///
/// # Errors
/// The client went away in the middle, or took longer than the socket's timeout.
pub(crate) fn request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut reader = reader.take(HEAD);
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut keep = true;
    let mut line = String::new();
    while reader.read_line(&mut line)? != 0 && !line.trim().is_empty() {
        keep &= !line.trim().eq_ignore_ascii_case("connection: close");
        line.clear();
    }
    let mut words = first.split_ascii_whitespace();
    let path = match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(path), Some("HTTP/1.1")) => Some(path.to_owned()),
        (Some("GET"), Some(path), Some("HTTP/1.0")) => {
            keep = false;
            Some(path.to_owned())
        }
        _ => None,
    };
    // A head that fills its bound is cut: what follows is no request.
    let keep = keep && path.is_some() && reader.limit() > 0;
    Ok(Some(Request { path, keep }))
}

/// Answers a request.
///
/// # Errors
/// The client went away.
pub(crate) fn answer(mut stream: &TcpStream, status: &str, keep: bool, body: &str) -> std::io::Result<()> {
    let (length, connection) = (body.len(), if keep { "keep-alive" } else { "close" });
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: {connection}\r\n\r\n"
    );
    stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_named() {
        let url: Url = "http://frontend.stars:8080/status".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("frontend.stars", 8080, "/status"));
        let url: Url = "http://frontend".parse().unwrap();
        assert_eq!((url.port, url.path.as_str()), (80, "/"));
        for bad in ["frontend", "https://a/", "http:///x", "http://a:0/", "http://a:b/", "http://a b/"] {
            assert!(bad.parse::<Url>().unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn requests_follow_one_another_until_one_is_the_last() {
        let mut text: &[u8] = b"GET /status HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\nPOST / HTTP/1.1\r\n\r\n";
        let next = |text: &mut &[u8]| request(text).unwrap();
        let path = |path: &str| Some(path.to_owned());
        assert_eq!(next(&mut text), Some(Request { path: path("/status"), keep: true }));
        assert_eq!(next(&mut text), Some(Request { path: path("/"), keep: false }));
        assert_eq!(next(&mut text), Some(Request { path: None, keep: false }));
        assert_eq!(next(&mut text), None);
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000));
        assert!(!next(&mut long.as_bytes()).unwrap().keep);
    }

    #[test]
    fn only_a_whole_good_answer_has_a_body() {
        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(body(good).as_deref(), Some("{}"));
        assert_eq!(body(b"HTTP/1.0 200 OK\r\n\r\nx").as_deref(), Some("x"));
        assert_eq!(body(&good[..good.len() - 1]), None, "cut short");
        assert_eq!(body(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), None);
        assert_eq!(body(b"hello"), None);
        assert_eq!(body(&[0xff; 40]), None);
    }
}
