//! The CNI plugin, and what it and the agent say to each other.
//!
//! ```text
//!  runtime ──environment, configuration──► call ──► command ──► stdout: a result, or an error with its code
//!                                                     │  │
//!                                   agent (socket) ◄──┘  └──► veth (rtnetlink, in the pod's namespace and the node's)
//! ```
//!
//! The plugin decides nothing: which address, which name, which MTU, which veth a DEL may remove are the agent's
//! answers. So it holds no state, and a plugin of the same protocol is right whatever the agent has learnt since.
#![forbid(unsafe_code)]

pub mod agent;
pub mod call;
pub mod command;
pub mod error;
pub mod protocol;
pub mod result;
pub mod veth;
