//! The allocator of addresses against the fake EC2: what it promises whatever fails, and what it costs.
#![forbid(unsafe_code)]

mod churn;
mod direct;
mod scenes;
