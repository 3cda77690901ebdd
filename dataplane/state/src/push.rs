//! What travels over the state socket: numbered generations in, acknowledgements out.
//!
//! A client opens with [`Hello`] and is answered with [`PushReply::Hello`], which says what is in force. After that each
//! [`Generation`] is answered by [`PushReply::Accepted`], once every worker has it, or by [`PushReply::Refused`], and
//! then what was in force stays in force.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Generation, Invalid};

/// The version of the state socket's protocol.
pub const PUSH_VERSION: u32 = 1;

/// The first message of a client, on either socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol's version: [`PUSH_VERSION`] or [`crate::query::QUERY_VERSION`].
    pub version: u32,
    /// Who asks; shown in the daemon's log, never interpreted.
    pub client: String,
}

/// Every further message of a client of the state socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Push {
    /// Brings a generation into force, whole or not at all.
    Generation(Generation),
}

/// The daemon's answers on the state socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushReply {
    /// The answer to [`Hello`].
    Hello {
        /// The daemon's version of the protocol.
        version: u32,
        /// The daemon's own version.
        daemon: String,
        /// Number of the generation in force.
        generation: u64,
    },
    /// Every worker has the generation.
    Accepted {
        /// Its number.
        generation: u64,
        /// What is accepted but not as it should be: a pod whose interface is not there yet.
        warnings: Vec<String>,
        /// The pods of the state in force whose packets take no path through the engine, by address: their interfaces
        /// are not there, or could not be bound. For who must not tell a pod's owner that it is connected.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        without_path: Vec<Ipv4Addr>,
    },
    /// The generation was refused; the one before stays in force.
    Refused {
        /// Number of the generation that stays in force.
        generation: u64,
        /// Why, in one sentence.
        reason: String,
        /// Every finding, where the content was the reason.
        findings: Vec<Invalid>,
    },
}
