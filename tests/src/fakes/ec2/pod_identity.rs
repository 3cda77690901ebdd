//! The agent of EKS Pod Identity (169.254.170.23): a pod shows the token of its service account and gets a session of its
//! role.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::json;

use super::http::iso8601;
use super::serve::{Face, Reply, Shared, reply};

const JSON: &str = "application/json";

/// How long a session lasts.
const LASTS: Duration = Duration::from_secs(6 * 3600);

/// The endpoint that `AWS_CONTAINER_CREDENTIALS_FULL_URI` names.
#[derive(Debug)]
pub struct PodIdentity {
    shared: Arc<Shared>,
}

impl PodIdentity {
    /// The endpoint of this world.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Face for PodIdentity {
    async fn answer(&self, request: Request<Bytes>) -> Option<Reply> {
        if request.method() != Method::GET || request.uri().path() != "/v1/credentials" {
            return Some(reply(404, JSON, json!({ "message": "GET /v1/credentials" }).to_string()));
        }
        let token = request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let now = self.shared.now();
        let mut world = self.shared.world();
        let Some(role) = world.identity(token).map(str::to_owned) else {
            let message = "Service account token is missing or has no association";
            return Some(reply(
                400,
                JSON,
                json!({ "message": message, "code": "InvalidTokenException" }).to_string(),
            ));
        };
        let key = world.session(now, &role, LASTS);
        let answer = json!({ "AccessKeyId": key.id, "SecretAccessKey": key.secret, "Token": key.token,
            "AccountId": world.account, "Expiration": iso8601(now + LASTS) });
        Some(reply(200, JSON, answer.to_string()))
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }
}
