//! Timeouts by phase, in nanoseconds, so that a lookup pays one load and one comparison for an exact expiry.

use sluice_state::{Seconds, Timeouts};

use super::phase::Phase;

/// Longer than a TCP ever waits between two tries (Linux: `TCP_RTO_MAX`, 120 s).
const REVOKED: Seconds = Seconds(300);

/// Timeouts resolved from a preset and its exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutsNs {
    by_phase: [u64; Phase::ALL.len()],
    syn_flood: u64,
    fragment: u64,
    inbound_refresh: bool,
}

impl TimeoutsNs {
    /// Nanoseconds that a flow in `phase` lives after its last packet, while the table is not under pressure.
    #[must_use]
    pub fn of(&self, phase: Phase) -> u64 {
        self.by_phase[phase as usize]
    }

    /// Nanoseconds that an unanswered SYN lives while the table is more than seven eighths full.
    #[must_use]
    pub fn syn_flood(&self) -> u64 {
        self.syn_flood
    }

    /// Nanoseconds that fragments of a datagram are kept.
    #[must_use]
    pub fn fragment(&self) -> u64 {
        self.fragment
    }

    /// Whether a datagram from outside keeps a pod's UDP flow alive. Default true (RFC 4787 REQ-6 permits both, nf_conntrack
    /// does it).
    #[must_use]
    pub fn inbound_refresh(&self) -> bool {
        self.inbound_refresh
    }

    /// The same timeouts with [`TimeoutsNs::inbound_refresh`] set to `refresh`.
    #[must_use]
    pub fn with_inbound_refresh(mut self, refresh: bool) -> Self {
        self.inbound_refresh = refresh;
        self
    }

    /// The timeout of `phase`, under pressure or not.
    pub(super) fn in_force(&self, phase: Phase, pressure: bool) -> u64 {
        let usual = self.of(phase);
        match phase {
            Phase::SynSent | Phase::SynSent2 if pressure => usual.min(self.syn_flood),
            _ => usual,
        }
    }
}

impl From<&Timeouts> for TimeoutsNs {
    fn from(timeouts: &Timeouts) -> Self {
        let seconds = |phase| match phase {
            Phase::SynSent | Phase::SynSent2 => timeouts.tcp_syn_sent(),
            Phase::SynReceived => timeouts.tcp_syn_received(),
            Phase::Established => timeouts.tcp_established(),
            Phase::FinWait => timeouts.tcp_fin_wait(),
            Phase::CloseWait => timeouts.tcp_close_wait(),
            Phase::LastAck => timeouts.tcp_last_ack(),
            Phase::TimeWait => timeouts.tcp_time_wait(),
            Phase::Close => timeouts.tcp_close(),
            Phase::UdpOneWay => timeouts.udp_one_way(),
            Phase::UdpTwoWay => timeouts.udp_two_way(),
            Phase::Icmp => timeouts.icmp(),
            Phase::Other => timeouts.other(),
            Phase::Revoked => REVOKED,
        };
        Self {
            by_phase: Phase::ALL.map(|phase| seconds(phase).nanos()),
            syn_flood: timeouts.tcp_syn_flood().nanos(),
            fragment: timeouts.fragment().nanos(),
            inbound_refresh: true,
        }
    }
}

impl Default for TimeoutsNs {
    fn default() -> Self {
        Self::from(&Timeouts::default())
    }
}
