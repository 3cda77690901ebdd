//! Who may speak to whom.
//!
//! A policy is asked once per flow, its egress half for a local sender and its ingress half for a local receiver, on the
//! addresses after service DNAT and before SNAT. The answer is stamped into the flow with the generation it came from;
//! an established flow pays a compare. Without any policy everything is allowed, as Kubernetes has it.

use crate::flow::FlowKey;

/// The compiled policy of a node.
#[derive(Debug, Clone)]
pub struct Policy {
    generation: u32,
}

impl Policy {
    /// No policy selects any pod: everything is allowed.
    #[must_use]
    pub const fn allow_all() -> Self {
        Self { generation: 1 }
    }

    /// Changes whenever any verdict may have changed.
    #[inline]
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether a flow may be, judged from its originator's first packet.
    #[inline]
    #[must_use]
    pub const fn allows(&self, _original: &FlowKey) -> bool {
        true
    }
}
