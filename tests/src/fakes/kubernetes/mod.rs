//! A Kubernetes API server that is none: what the agent and its tests need of one, without etcd, and with faults on demand.
//!
//! ```text
//! client ─HTTP/1.1─► handler ─► request (what is asked) ─► rbac (may they) ─┬─► list, watch ─► answer
//!                                                                          └─► write ─► world ─► store
//! words, apart from any store or socket: kinds, selector, status, schema + rules + custom (objects), patch
//! ```
//! A test holds a [`FakeApiServer`]; a person has the same by the control endpoint.

pub mod answer;
pub mod clock;
mod control;
pub mod crowd;
pub mod custom;
pub mod discovery;
mod events;
pub mod faults;
mod handler;
pub mod kinds;
pub mod list;
pub mod load;
pub mod patch;
pub mod rbac;
pub mod request;
pub mod rules;
pub mod schema;
pub mod selector;
mod server;
pub mod status;
pub mod store;
mod watch;
pub mod world;
mod write;

pub use server::{FakeApiServer, Options};
