//! Answers: whole ones, and those that are written while they are sent.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Response;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use serde_json::Value;
use tokio::sync::mpsc;

use super::kinds::Resource;
use super::request::Wanted;
use super::status::Refusal;
use super::store::Form;
use super::world::Answer;

/// The connection is to be cut, as if the server had been killed.
#[derive(Debug)]
pub struct Severed;

impl fmt::Display for Severed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Severed {}

/// A piece of an answer that is written while it is sent.
pub type Piece = Result<Bytes, Severed>;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// What comes.
    Stream(mpsc::Receiver<Piece>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Severed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Severed>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => pieces.poll_recv(context).map(|piece| Some(piece?.map(Frame::data))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

/// An answer in words of the API.
pub type Reply = Response<Body>;

/// Puts an answer together.
#[must_use]
pub fn reply(status: u16, content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// Plain text.
#[must_use]
pub fn text(status: u16, text: &str) -> Reply {
    reply(status, "text/plain; charset=utf-8", Body::Whole(Some(Bytes::copy_from_slice(text.as_bytes()))))
}

/// A JSON document, or the same as YAML.
#[must_use]
pub fn document(status: u16, value: &Value, wanted: Wanted) -> Reply {
    if wanted == Wanted::Yaml {
        let text = serde_yaml_ng::to_string(value).unwrap_or_default();
        return reply(status, "application/yaml", Body::Whole(Some(text.into())));
    }
    json(status, value.to_string().into())
}

/// JSON that is already written.
#[must_use]
pub fn json(status: u16, text: Bytes) -> Reply {
    reply(status, "application/json", Body::Whole(Some(text)))
}

/// A refusal.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Reply {
    let mut reply = document(refusal.code, &refusal.body, Wanted::Whole);
    if let Some(seconds) = refusal.retry_after {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

/// One object.
#[must_use]
pub fn object(status: u16, resource: &Resource, answer: &Answer, wanted: Wanted) -> Reply {
    match answer {
        Answer::Stored(object) if wanted != Wanted::Yaml => {
            let mut text = Vec::with_capacity(object.size() + 128);
            object.write(resource, wanted.form(), object.rv, &mut text);
            json(status, text.into())
        }
        Answer::Stored(object) => document(status, &object.value(resource), wanted),
        Answer::Shown(value) if wanted.form() == Form::Partial => {
            let metadata = &value["metadata"];
            let partial = serde_json::json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            });
            document(status, &partial, wanted)
        }
        Answer::Shown(value) => document(status, value, wanted),
    }
}

/// Adds `Warning` headers (RFC 7234 §5.5, code 299).
pub fn warn(reply: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append(WARNING, value);
        }
    }
}

/// What hyper wants of a service: it always answers.
pub type Served = Result<Reply, Infallible>;
