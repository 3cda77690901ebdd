//! Short grace periods while many programs are attached or taken off.
//!
//! The kernel waits for an RCU grace period under the rtnl lock for each tcx link: 12 ms, 6 s for 250 pods, in which no
//! address or interface of the node can change either. With `/sys/kernel/rcu_expedited` set it takes some 0.1 ms. The
//! switch is the whole machine's, so it is held for the time of the burst only. Where it cannot be written (a read-only
//! /sys), attaching only takes longer.

use std::fs;

const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// Fewer attachments than this are not worth it. A pod has two, and its CNI ADD waits for both: 32 ms of 40 were grace
/// periods.
const WORTH: usize = 2;

/// Grace periods are short while this lives.
#[derive(Debug)]
pub struct Expedited(Option<String>);

impl Expedited {
    /// Shortens grace periods for a burst of so many attachments.
    #[must_use]
    pub fn during(attachments: usize) -> Self {
        if attachments < WORTH {
            return Self(None);
        }
        let before = fs::read_to_string(SWITCH).ok().filter(|before| before.trim() == "0");
        Self(before.filter(|_| fs::write(SWITCH, "1").is_ok()))
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Some(before) = self.0.take()
            && let Err(error) = fs::write(SWITCH, before.trim())
        {
            tracing::warn!(%error, "{SWITCH} stays at 1: grace periods cost more interrupts");
        }
    }
}
