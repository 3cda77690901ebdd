//! A directory of manifests as a source of objects.
//!
//! ```text
//!  Watcher ──which files──> Directory: files ──objects that are others──> cluster ──> Batch of changes
//!                             │ text: documents, each on its own    │ nodes, pods, services, endpoint slices
//!                             │ decode, defaults: typed objects     │ placement: addresses and ports, stable
//!                             └ files: last good versions           └ problems
//! ```

mod cluster;
mod decode;
mod defaults;
mod directory;
mod endpoints;
mod files;
mod finding;
mod nodes;
mod placement;
mod pods;
mod problems;
mod services;
mod source;
mod text;
mod walk;
mod watch;

pub use decode::{Key, Kind};
pub use directory::{Batch, Directory};
pub use finding::{Finding, Severity, Topic};
pub use placement::{Allocations, NODE_PORTS, NodePlace, Placement, Slot};
pub use watch::{Touched, WatchError, Watcher};

#[cfg(test)]
mod tests;
