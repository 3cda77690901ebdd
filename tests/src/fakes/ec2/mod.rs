//! EC2 and what stands around it, as one world with several faces. The libraries that imitate EC2 have neither limits nor
//! prefixes nor detaching that takes time, and those are what an allocator must survive.
//!
//! ```text
//!   form.rs  query -> Call          world/        pure: every call brings the time
//!   http.rs  EC2 and STS   ──────►  ┌──────────────────────────────────────────────┐
//!   xml.rs   Answer -> XML          │ World: VPC, subnets, groups, instances, ENIs │
//!   metadata.rs  IMDSv2    ──────►  │        keys, policy, buckets, script, log    │
//!   pod_identity.rs        ──────►  │        past views (EC2 and IMDS lag)         │
//!                                   └──────────────────────────────────────────────┘
//! ```
//!
//! What a call does is decided before HTTP sees it, so that a test may use the world without a socket and with a clock of
//! its own.

pub mod call;
pub mod cli;
pub mod faults;
pub mod form;
pub mod http;
pub mod metadata;
pub mod objects;
pub mod pod_identity;
pub mod serve;
pub mod shapes;
pub mod sts;
pub mod world;
pub mod xml;

pub use call::{Answer, Call, Refusal};
pub use faults::{Effect, Rule};
pub use world::{Delays, Reaction, World};
