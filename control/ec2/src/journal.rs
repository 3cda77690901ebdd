//! Sequences of EC2 calls that must survive a kill at any point.
//!
//! Each is a value in the checkpoint that says what was written down *before* the next call. After a kill the call is
//! made again, and every one of them may be: creation carries a client token, and an answer that something is already
//! so, or already gone, counts as done after EC2 was asked about the interface.
//!
//! ```text
//!  Create:  Intent ──create──► Made ──attach──► Attached ──DeleteOnTermination──► Kept ──IMDS shows it──► in the store
//!             │ refused          │ refused        │                                │ not within 12 tries
//!             ▼                  └────────────────┴───────► Free ◄─────────────────┘
//!            dropped
//!  Free:    Detach ──detach──► Delete ──not before 2 s, while in use again──► gone
//! ```

use crate::cloud::{AttachmentId, CreateInterface, EniId, Interface, SubnetId};
use crate::moment::Moment;
use serde::{Deserialize, Serialize};

/// Where the making of an interface is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Making {
    /// The request is about to be sent, or was sent and not answered.
    Intent,
    /// It exists.
    Made {
        /// As EC2 described it.
        interface: Interface,
    },
    /// It is attached.
    Attached {
        /// As EC2 described it.
        interface: Interface,
        /// The attachment.
        attachment: AttachmentId,
    },
    /// EC2 deletes it with the instance. What is left is that IMDS shows it.
    Kept {
        /// As EC2 described it.
        interface: Interface,
        /// The attachment.
        attachment: AttachmentId,
    },
}

impl Making {
    /// The interface, as far as there is one.
    pub fn interface(&self) -> Option<&Interface> {
        match self {
            Self::Intent => None,
            Self::Made { interface } | Self::Attached { interface, .. } | Self::Kept { interface, .. } => {
                Some(interface)
            }
        }
    }
}

/// Where the freeing of an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freeing {
    /// It is to be detached.
    Detach,
    /// It is to be deleted.
    Delete,
}

/// What a sequence does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Makes an interface, attaches it and waits until IMDS shows it.
    Create {
        /// What is asked of EC2, again and again if need be.
        request: Box<CreateInterface>,
        /// Subnets to try when this one is full.
        others: Vec<SubnetId>,
        /// At which device index of the default card.
        device_index: u32,
        /// Where it is.
        making: Box<Making>,
    },
    /// Detaches and deletes an interface.
    Free {
        /// Which.
        eni: EniId,
        /// Where it is.
        freeing: Freeing,
    },
}

/// A sequence under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// What it does.
    pub work: Work,
    /// Tries of the step that it is at.
    pub tries: u32,
    /// When the next try is due.
    pub due: Moment,
}

impl Sequence {
    /// A sequence at its beginning.
    pub fn new(work: Work, now: Moment) -> Self {
        Self { work, tries: 0, due: now }
    }

    /// The interface that it is at work on, as far as there is one.
    pub fn eni(&self) -> Option<&EniId> {
        match &self.work {
            Work::Create { making, .. } => making.interface().map(|interface| &interface.id),
            Work::Free { eni, .. } => Some(eni),
        }
    }

    /// Whether it makes an interface.
    pub fn creates(&self) -> bool {
        matches!(self.work, Work::Create { .. })
    }

    /// The next step, with a fresh count of tries.
    pub fn advance(&mut self, work: Work, due: Moment) {
        *self = Self { work, tries: 0, due };
    }
}
