//! Kubernetes objects from a directory of manifests.
#![forbid(unsafe_code)]
