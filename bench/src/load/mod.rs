//! What is sent, who sends it, and who counts it.
//!
//! ```text
//! generator (pod or remote host)  ->  node: the path under measurement  ->  sink (counts, drops)
//!   AF_PACKET sendmmsg                                                        tc program at ingress
//! ```

pub mod frame;
pub mod generator;
pub mod learn;
pub mod sink;
