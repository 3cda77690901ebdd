//! Credentials: from the environment, a service account (IRSA), Pod Identity or the instance's role, whichever the SDK's
//! chain finds first. They are asked for once and kept until they are old.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use tokio::sync::Mutex;

use super::client::chain;

/// Credentials that end within this time are asked for anew.
const OLD: Duration = Duration::from_secs(5 * 60);

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "no AWS credentials: {0}; the agent's service account needs a role (eks.amazonaws.com/role-arn, or a Pod Identity association), or the node's role the permissions and IMDS a hop limit that reaches the pod"
)]
pub struct CredentialsError(pub(super) String);

/// Where credentials come from.
#[derive(Debug)]
pub(super) struct Keys {
    provider: SharedCredentialsProvider,
    kept: Mutex<Option<Credentials>>,
}

impl Keys {
    /// The SDK's own chain, in a region: STS is asked there.
    pub(super) async fn find(region: &str) -> Result<Self, CredentialsError> {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .http_client(http)
            .load()
            .await;
        let provider = config.credentials_provider();
        let provider = provider.ok_or_else(|| CredentialsError("nothing provides any".to_owned()))?;
        Ok(Self { provider, kept: Mutex::new(None) })
    }

    /// These, whatever else there is.
    pub(super) fn fixed(id: &str, secret: &str) -> Self {
        let keys = Credentials::new(id, secret, None, None, "given");
        Self { provider: SharedCredentialsProvider::new(keys), kept: Mutex::new(None) }
    }

    /// Credentials that are good for a while.
    pub(super) async fn get(&self) -> Result<Credentials, CredentialsError> {
        let mut kept = self.kept.lock().await;
        let good = |keys: &Credentials| keys.expiry().is_none_or(|end| end > SystemTime::now() + OLD);
        if let Some(keys) = kept.as_ref().filter(|keys| good(keys)) {
            return Ok(keys.clone());
        }
        match self.provider.provide_credentials().await {
            Ok(keys) => {
                *kept = Some(keys.clone());
                Ok(keys)
            }
            // Those that are there may still be good for some minutes.
            Err(error) => {
                match kept.as_ref().filter(|k| k.expiry().is_none_or(|end| end > SystemTime::now())) {
                    Some(keys) => Ok(keys.clone()),
                    None => Err(CredentialsError(chain(&error))),
                }
            }
        }
    }

    /// What is kept was refused.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }
}
