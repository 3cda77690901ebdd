//! What a node talks to, as worlds of our own over real protocols: a test can make them fail in ways that the real ones
//! only fail in at night. Each is a pure world, and HTTP in front of it.

pub mod ec2;
pub mod kubernetes;
