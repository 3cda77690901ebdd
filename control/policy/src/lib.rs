//! Kubernetes objects compiled into the dataplane's state: who may speak to whom, and where services lead.
#![forbid(unsafe_code)]
