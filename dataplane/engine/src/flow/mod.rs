//! Flows: what the engine remembers of every connection.

mod key;

pub use key::FlowKey;
