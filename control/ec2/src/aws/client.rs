//! HTTP, for both: one connection pool, a time limit a request, TLS by rustls and ring.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Largest answer that is read: 1,000 interfaces with 50 addresses each are 20 MB.
const LARGEST: usize = 64 << 20;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);

/// Sends requests.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// No answer came.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// The request may have reached the other side.
    pub sent: bool,
    pub why: String,
}

impl Http {
    pub(super) fn new() -> std::io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// The answer, within the time.
    pub(super) async fn send(
        &self,
        request: Request<Bytes>,
        patience: Duration,
    ) -> Result<Response<Bytes>, NoAnswer> {
        let exchange = async {
            let answer = self
                .client
                .request(request.map(Full::new))
                .await
                .map_err(|error| NoAnswer { sent: !error.is_connect(), why: chain(&error) })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST)
                .collect()
                .await
                .map_err(|error| NoAnswer { sent: true, why: format!("the answer broke off: {error}") })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(patience, exchange).await.unwrap_or_else(|_| {
            Err(NoAnswer { sent: true, why: format!("no answer in {} s", patience.as_secs()) })
        })
    }
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
