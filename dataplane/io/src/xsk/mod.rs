//! AF_XDP: the only module that calls xsk-rs.
//!
//! One [`Umem`] serves every device and queue; each [`XskPort`] is one queue of one device with rings of its own. A chunk
//! of the UMEM is always at exactly one place, and the places are types or sets that only this module can move it between:
//!
//! ```text
//!          take                    into tx ring
//!  pool ---------> UmemFrame --------------------> kernel (tx) ----+
//!   ^  ^              |  ^                                         |
//!   |  +--- drop -----+  +------ out of rx ring -- kernel (fill) <-|--- refill, straight from the pool
//!   +--------------------------------------------------------------+
//!                              completion
//! ```
//! `pool.free + fill + tx + frames alive == total` is [`UmemAccount`], asserted in tests.

mod counters;
mod error;
mod frame;
mod kernel;
mod open;
mod port;
mod umem;

pub use counters::meanings;
pub use error::XskError;
pub use frame::UmemFrame;
pub use open::{BusyPoll, Mode, XskOptions};
pub use port::XskPort;
pub use umem::{CHUNK_SIZE, PIECE_CAPACITY, Umem, UmemAccount};
