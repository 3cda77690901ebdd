//! ENI and address allocation on EC2.
//!
//! Everything that decides is pure: time, randomness and the answers of EC2 and IMDS are arguments. What reaches the
//! network stands behind two traits, [`cloud::Cloud`] and [`cloud::Metadata`], so that the same allocator runs against
//! the AWS SDK, a fake over HTTP and a world in memory.
//!
//! ```text
//!  settings, limits ─┐
//!  store ────────────┴─► plan ──► an action of `cloud` ──► journal (its sequence) ──► checkpoint ──► store
//!                        └───────────────────────── pool: asks, waits, tells ─────────────────────────┘
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "aws")]
pub mod aws;
pub mod backoff;
pub mod checkpoint;
pub mod cloud;
pub mod custom;
pub mod fixed;
pub mod journal;
pub mod limits;
pub mod moment;
pub mod plan;
pub mod pool;
pub mod settings;
pub mod store;
pub mod subnets;
pub mod tags;
pub mod variables;
