//! An HTTP/1.1 client that hides nothing: whether a body ended or was cut is what these tests ask.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// No answer takes longer, but for a watch's.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, encoded.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Clean,
    Cut,
}

/// Status and headers; the names of these are in lower case.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Every value of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) text: String,
    pub(crate) end: End,
}

impl Answer {
    /// The body: JSON if it is, else a string.
    pub(crate) fn body(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::from(self.text.as_str()))
    }
}

/// Sends a request and reads its answer to the end.
pub(crate) fn send(server: SocketAddr, request: &Request) -> Result<Answer> {
    let (head, mut body) = open(server, request)?;
    body.reader.get_ref().set_read_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    let end = if body.read_to_end(&mut bytes).is_ok() { End::Clean } else { End::Cut };
    Ok(Answer { head, text: String::from_utf8_lossy(&bytes).into_owned(), end })
}

fn open(server: SocketAddr, request: &Request) -> Result<(Head, Body)> {
    let mut socket = TcpStream::connect(server)?;
    let mut text =
        format!("{} {} HTTP/1.1\r\nHost: fake\r\nConnection: close\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        text += &format!("{name}: {value}\r\n");
    }
    let body = request.body.as_deref().unwrap_or_default();
    if request.body.is_some() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    socket.write_all(format!("{text}\r\n{body}").as_bytes())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(socket);
    let mut line = || -> Result<String> {
        let mut text = String::new();
        reader.read_line(&mut text)?;
        Ok(text.trim_end().to_string())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("no status line: {first:?}"))?;
    let mut headers = Vec::new();
    loop {
        let text = line()?;
        let Some((name, value)) = text.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_string()));
    }
    let head = Head { status, headers };
    let length = head.header("content-length").first().and_then(|l| l.parse().ok());
    let chunked = length.is_none();
    Ok((head, Body { reader, chunked, left: length.unwrap_or(0), over: false }))
}

/// A body that is read as it comes. A cut one is an error.
struct Body {
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// Bytes of this chunk, or of the body.
    left: usize,
    over: bool,
}

impl Body {
    /// Reads the size of the next chunk (RFC 9112 §7.1).
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.left = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        self.over = self.left == 0;
        Ok(())
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.chunked && !self.over {
            self.next_chunk()?;
        }
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = self.left.min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// What has come of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Whole lines.
    pub(crate) events: Vec<Value>,
    /// What is left of a line that was cut.
    pub(crate) rest: String,
    pub(crate) end: Option<End>,
}

/// An open watch, read by a thread of its own.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) head: Head,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    socket: TcpStream,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    pub(crate) fn open(server: SocketAddr, request: &Request) -> Result<Self> {
        let (head, body) = open(server, request)?;
        let socket = body.reader.get_ref().try_clone()?;
        socket.set_read_timeout(None)?;
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let shared = seen.clone();
        let reader = std::thread::spawn(move || follow(body, &shared));
        Ok(Self { head, seen, socket, reader: Some(reader) })
    }

    /// Waits until something is so, or the time is over; then looks.
    pub(crate) fn wait<T>(
        &self,
        at_most: Duration,
        so: impl Fn(&Seen) -> bool,
        look: impl FnOnce(&Seen) -> T,
    ) -> T {
        let (seen, news) = &*self.seen;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, _) =
            news.wait_timeout_while(seen, at_most, |seen| !so(seen)).unwrap_or_else(PoisonError::into_inner);
        look(&seen)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _closed = self.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _joined = reader.join();
        }
    }
}

fn follow(body: Body, shared: &(Mutex<Seen>, Condvar)) {
    let (seen, news) = shared;
    let mut body = BufReader::new(body);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = body.read_until(b'\n', &mut line);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match serde_json::from_slice(&line) {
            Ok(event) if line.ends_with(b"\n") => seen.events.push(event),
            _ => {
                seen.rest = String::from_utf8_lossy(&line).into_owned();
                seen.end = Some(if read.is_ok() { End::Clean } else { End::Cut });
            }
        }
        news.notify_all();
        if seen.end.is_some() {
            return;
        }
    }
}
