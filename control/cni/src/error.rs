//! Errors as the CNI specification has them: a code, a message, details.

use serde::Serialize;

use crate::call::Version;
use crate::protocol::Refusal;

/// Error codes of the CNI specification 1.1, section "Error".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// Incompatible CNI version; also plugin and agent of two releases.
    IncompatibleVersion = 1,
    /// An unsupported field in the configuration.
    UnsupportedField = 2,
    /// The container is not known or does not exist.
    UnknownContainer = 3,
    /// A necessary environment variable is missing or invalid.
    InvalidEnvironment = 4,
    /// Input or output failed.
    InputOutput = 5,
    /// The configuration does not parse.
    Decoding = 6,
    /// The configuration is invalid.
    InvalidConfiguration = 7,
    /// A transient condition: try again later.
    TryAgain = 11,
    /// STATUS: an ADD could not be served.
    NotAvailable = 50,
    /// What was laid is not as it was laid (CHECK); codes from 100 are a plugin's own.
    Differs = 100,
    /// The kernel refused.
    Kernel = 101,
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// Its code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What more is known, and the way out; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// With what more is known.
    #[must_use]
    pub fn with(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// What the agent refuses.
    #[must_use]
    pub fn refused(kind: Refusal, message: String) -> Self {
        let code = match kind {
            Refusal::Version => Code::IncompatibleVersion,
            Refusal::Invalid => Code::InvalidConfiguration,
            Refusal::Unknown => Code::UnknownContainer,
            Refusal::TryAgain => Code::TryAgain,
            Refusal::NotReady => Code::NotAvailable,
        };
        Self::new(code, message)
    }

    /// The error as JSON, in the version that was asked for.
    #[must_use]
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let shown = Shown {
            cni_version: version.text(),
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        // Text and numbers have no way to fail.
        serde_json::to_string_pretty(&shown).unwrap_or_default()
    }
}
