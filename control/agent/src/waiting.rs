//! Who waits for the path of a pod, and what they are told.

use std::net::Ipv4Addr;
use std::sync::mpsc::SyncSender;

/// What became of a pod that was added: the generation that brought its path, or why it has none.
pub type Attached = Result<u64, NotAttached>;

/// Why a pod that was added has no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAttached {
    /// Nobody knows the pod: its policy is not known either.
    #[error("no pod {0} of this node is known yet: without its labels nobody knows its policy")]
    Unknown(String),
    /// The daemon does not have it in force.
    #[error("{0}")]
    NotInForce(String),
}

/// Somebody who waits until the daemon has a pod's path in force.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub ip: Ipv4Addr,
    pub interface: String,
    pub reply: SyncSender<Attached>,
    /// The generation that has the path; absent: it is not sent yet.
    pub sent: Option<u64>,
}

impl Waiter {
    pub(crate) fn tell(self, what: Attached) {
        // Who waited may have given up.
        let _ = self.reply.try_send(what);
    }
}
