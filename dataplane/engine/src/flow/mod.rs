//! The flow table: what the engine remembers of every connection, shared by all workers without a lock.
//!
//! A packet that arrives at another worker than the flow's first one must find the same translation at once, and no worker
//! may ever wait for another one that the scheduler has put aside. So there is one table. A lookup is wait-free: it reads a
//! bucket and a flow. An insert claims words by compare-and-swap, and the keys of both directions become findable at one
//! moment or not at all, when the flow's state word goes from pending to live. All memory is there from the start and is
//! addressed by index only, so that it can lie in a mapping that outlives the process.
//!
//! ```text
//!  buckets: 64 bytes, 8 words              slots: three cache lines a flow
//!  +---------------------------+           +-------------------------------------------------------+
//!  | tag 31 | dir 1 | index 32 |---------->| shared  original key + l3 delta + origin               |
//!  | ...                       |           |         reply key + l4 delta | egress | policy | state |
//!  +---------------------------+           +-------------------------------------------------------+
//!   two candidate buckets a key,           | forward last seen, packets, bytes, TCP sequence        |
//!   the first is preferred                 +-------------------------------------------------------+
//!                                          | reply   the same                                       |
//!                                          +-------------------------------------------------------+
//!  who may write: shared  keys the inserter while pending, state anybody by CAS, link the wheel that holds the slot
//!                 meters  the worker that handles the direction
//!  who may reuse: the worker that unlinked it, after every worker has passed a quiescent point
//! ```
//!
//! `insert` holds the protocol that keeps keys unique, `reclaim` the quiescent points, `wheel` and `age` the ageing.

mod age;
mod claim;
mod insert;
mod key;
mod local;
mod phase;
pub(crate) mod prefetch;
mod reclaim;
mod slot;
mod sync;
mod table;
mod tcp;
mod timeouts;
mod view;
mod wheel;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use insert::{InsertError, NewFlow, Start};
pub use key::FlowKey;
pub use local::{Aged, Local};
pub use phase::Phase;
pub use slot::Origin;
pub use table::{Dir, FlowId, FlowTable, TableError};
pub use tcp::{TcpSegment, TcpVerdict};
pub use timeouts::TimeoutsNs;
pub use view::{DirectionRecord, Flow, FlowRecord};
