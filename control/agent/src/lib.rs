//! The control plane of a node.
#![forbid(unsafe_code)]
