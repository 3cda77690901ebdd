//! Asking a star from outside of it: one connection with a deadline, and in one word what became of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long an answer may take: as long as a star's own probe.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an answer at most.
const BOUND: usize = 512 * 1024;

/// What became of a question, in the words of `star`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// It was answered.
    Ok,
    /// Silence: what a policy that denies must look like.
    Timeout,
    /// A RST, or what means the same.
    Refused,
    /// An ICMP error, or no route.
    Unreachable,
    /// A connection without a good answer.
    Broken,
    /// The name server was silent.
    NoDns,
    /// There is no such name.
    NoName,
    /// Nothing is known yet.
    Unknown,
}

impl Outcome {
    /// The outcome of a word of `star`.
    pub(super) fn of_word(word: &str) -> Self {
        match word {
            "ok" => Self::Ok,
            "timeout" => Self::Timeout,
            "refused" => Self::Refused,
            "unreachable" => Self::Unreachable,
            "broken" => Self::Broken,
            "no-dns" => Self::NoDns,
            "no-name" => Self::NoName,
            _ => Self::Unknown,
        }
    }

    /// The word.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::NoDns => "no-dns",
            Self::NoName => "no-name",
            Self::Unknown => "unknown",
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

/// A connection to a star that is kept.
#[derive(Debug)]
pub(super) struct Talk {
    stream: TcpStream,
    host: SocketAddr,
}

impl Talk {
    /// Connects, in the calling thread's namespace.
    ///
    /// # Errors
    /// What came instead of a connection.
    pub(super) fn open(at: SocketAddr) -> Result<Self, Outcome> {
        let stream = TcpStream::connect_timeout(&at, PATIENCE).map_err(|e| Outcome::of(&e))?;
        let short = Some(Duration::from_millis(100));
        let set = stream.set_read_timeout(short).and_then(|()| stream.set_nodelay(true));
        set.map(|()| Self { stream, host: at }).map_err(|e| Outcome::of(&e))
    }

    /// Asks for `/status` and gives the body.
    ///
    /// # Errors
    /// What came instead of it, within [`PATIENCE`].
    pub(super) fn status(&mut self) -> Result<String, Outcome> {
        let deadline = Instant::now() + PATIENCE;
        let question = format!("GET /status HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.write_all(question.as_bytes()).map_err(|e| Outcome::of(&e))?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Outcome::Broken),
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(e) if Outcome::of(&e) == Outcome::Timeout && Instant::now() < deadline => {}
                Err(e) => return Err(Outcome::of(&e)),
            }
            if let Some(body) = body(&answer) {
                return body;
            }
            if answer.len() > BOUND {
                return Err(Outcome::Broken);
            }
        }
    }
}

/// Asks once.
///
/// # Errors
/// As [`Talk::open`] and [`Talk::status`].
pub(super) fn status(at: SocketAddr) -> Result<String, Outcome> {
    Talk::open(at)?.status()
}

/// The body of an answer once it is whole; none before that.
fn body(answer: &[u8]) -> Option<Result<String, Outcome>> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let good = head.split(' ').nth(1) == Some("200");
    let (Some(length), true) = (length, good) else { return Some(Err(Outcome::Broken)) };
    let body = answer.get(end + 4..end + 4 + length)?;
    Some(String::from_utf8(body.to_vec()).map_err(|_| Outcome::Broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_awaited_or_broken() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(body(whole), Some(Ok("{}".into())));
        for cut in 0..whole.len() {
            assert_eq!(body(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(body(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), Some(Err(Outcome::Broken)));
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n\r\n"), Some(Err(Outcome::Broken)));
    }

    #[test]
    fn words_come_back() {
        for word in ["ok", "timeout", "refused", "unreachable", "broken", "no-dns", "no-name", "unknown"] {
            assert_eq!(Outcome::of_word(word).word(), word);
        }
    }
}
