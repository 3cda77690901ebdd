//! The container runtime interface, as far as a test needs it: gRPC over HTTP/2 on a unix socket, and messages written by hand.
//! Field numbers are those of `runtime.v1` (Kubernetes, cri-api).

use std::path::Path;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

/// A protobuf message that is being written.
#[derive(Default, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A field of length-delimited type: text, bytes, a message.
    pub(crate) fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub(crate) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    pub(crate) fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field << 3));
        self.varint(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The length-delimited fields of a number in a message.
pub(crate) fn fields(mut message: &[u8], wanted: u64) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        match tag & 7 {
            0 => drop(varint(&mut message)),
            2 => {
                let length = varint(&mut message) as usize;
                let (value, rest) = message.split_at(length);
                if tag >> 3 == wanted {
                    found.push(value.to_vec());
                }
                message = rest;
            }
            other => panic!("a field of type {other}"),
        }
    }
    found
}

/// The varint field of a number, 0 where it is absent.
pub(crate) fn number(mut message: &[u8], wanted: u64) -> u64 {
    while !message.is_empty() {
        let tag = varint(&mut message);
        match tag & 7 {
            0 => {
                let value = varint(&mut message);
                if tag >> 3 == wanted {
                    return value;
                }
            }
            2 => {
                let length = varint(&mut message) as usize;
                message = &message[length..];
            }
            other => panic!("a field of type {other}"),
        }
    }
    0
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = message.split_first().expect("a whole number");
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    unreachable!("the loop has no end")
}

/// Calls a method of the runtime service: its answer, or the error's message.
pub(crate) async fn call(socket: &Path, method: &str, message: &Message) -> Result<Vec<u8>, String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let task = tokio::spawn(connection);
    let mut body = vec![0];
    body.extend((message.0.len() as u32).to_be_bytes());
    body.extend(&message.0);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://runtime/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .expect("a request");
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    task.abort();
    let said = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    if said("grpc-status") != "0" {
        return Err(format!("{method}: {}", said("grpc-message")));
    }
    Ok(body.to_bytes().get(5..).unwrap_or_default().to_vec())
}
