//! The CNI plugin, and what it and the agent say to each other.
#![forbid(unsafe_code)]

pub mod protocol;
