//! The engine in memory: no socket, no kernel, one thread or several, bytes in and bytes out.
//!
//! CPU time is this thread's own (`CLOCK_THREAD_CPUTIME_ID`), so a busy machine disturbs it only by way of its caches. A
//! minimal loop runs in turn with the engine over the same frames: the ratio of the two is what says something about
//! the engine rather than about the CPU.

pub mod path;
pub mod policy;
pub mod reference;
pub mod report;
pub mod run;
pub mod scaling;
pub mod stream;
pub mod world;
pub mod yardstick;
