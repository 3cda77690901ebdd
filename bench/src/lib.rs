//! Measuring Sluice: the engine in memory, and the whole node path beside the kernel's.
//!
//! Numbers from this crate are ratios of things measured in turn within one run on one machine; a figure alone says more
//! about the machine and its hour than about the code (README.md here). Each module says what it counts and what it leaves
//! out.
#![deny(unsafe_code)]

pub mod cpus;
pub mod forwarding;
pub mod host;
pub mod load;
pub mod memory;
pub mod meter;
pub mod netns;
pub mod progress;
pub mod sys;
