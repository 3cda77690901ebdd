//! Where a flow is in its life, as one word: what the table needs (life, slot generation), what the protocol needs (phase,
//! flags). Both directions move it, so it moves by compare-and-swap as a whole.

/// Where a flow is, as far as its protocol goes. Each phase has a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// TCP: a SYN was sent.
    SynSent,
    /// TCP: both ends have sent a SYN and neither has acknowledged (simultaneous open).
    SynSent2,
    /// TCP: one SYN is acknowledged, the other one not yet.
    SynReceived,
    /// TCP: both SYNs are acknowledged.
    Established,
    /// TCP: one end has sent FIN.
    FinWait,
    /// TCP: the only FIN is acknowledged.
    CloseWait,
    /// TCP: both ends have sent FIN and one is not acknowledged yet.
    LastAck,
    /// TCP: both FINs are acknowledged.
    TimeWait,
    /// TCP: closed by RST.
    Close,
    /// UDP: seen in one direction only.
    UdpOneWay,
    /// UDP: seen in both directions.
    UdpTwoWay,
    /// An ICMP query.
    Icmp,
    /// A protocol without ports.
    Other,
    /// A connection that policy allowed once and forbids now. It stays for as long as its ends may try again: forgotten, its
    /// next segment would look like one of a connection from before the daemon began, which nobody can tell the opener of.
    Revoked,
}

impl Phase {
    /// Every phase, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::SynSent,
        Self::SynSent2,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::UdpOneWay,
        Self::UdpTwoWay,
        Self::Icmp,
        Self::Other,
        Self::Revoked,
    ];

    /// Its name, as nf_conntrack prints it where it has the state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynSent2 => "SYN_SENT2",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::UdpOneWay => "UDP_ONE_WAY",
            Self::UdpTwoWay => "UDP_TWO_WAY",
            Self::Icmp => "ICMP",
            Self::Other => "OTHER",
            Self::Revoked => "REVOKED",
        }
    }
}

/// Who may do what with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// In the queue of free slots or in a worker's cache.
    Free,
    /// Its words are being published; its inserter decides.
    Pending,
    /// Findable.
    Live,
    /// Being unlinked, or waiting for every worker to pass a quiescent point.
    Dead,
    /// Another insert of the same key has won while it was pending; its inserter unlinks it.
    Aborted,
}

/// A flow's state word.
///
/// ```text
/// 63 .. 32 generation of the slot | 31 .. 8 flags | 7 .. 3 phase | 2 .. 0 life
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u64);

/// A packet of the reply direction was seen.
pub(super) const REPLIED: u64 = 1 << 8;
/// The forward direction's SYN is acknowledged; shift by one for the reply's. Likewise below.
pub(super) const SYN_ACKED: u64 = 1 << 9;
/// A plausible FIN was seen.
pub(super) const FIN: u64 = 1 << 11;
/// That FIN is acknowledged.
pub(super) const FIN_ACKED: u64 = 1 << 13;
/// A SYN was seen.
pub(super) const SYN: u64 = 1 << 15;

const LIFE: u64 = 0b111;
const PHASE_SHIFT: u32 = 3;
const PHASE: u64 = 0b1_1111 << PHASE_SHIFT;
const GENERATION: u64 = 0xFFFF_FFFF << 32;

impl State {
    #[inline]
    pub(super) const fn life(self) -> Life {
        match self.0 & LIFE {
            0 => Life::Free,
            1 => Life::Pending,
            2 => Life::Live,
            3 => Life::Dead,
            _ => Life::Aborted,
        }
    }

    #[inline]
    pub(super) const fn is_live(self) -> bool {
        self.0 & LIFE == Life::Live as u64
    }

    #[inline]
    pub(super) const fn with_life(self, life: Life) -> Self {
        Self(self.0 & !LIFE | life as u64)
    }

    /// The phase's number: an index into a table of 16 timeouts.
    #[inline]
    pub(super) const fn phase_index(self) -> usize {
        ((self.0 & PHASE) >> PHASE_SHIFT) as usize & 15
    }

    #[inline]
    pub(super) fn phase(self) -> Phase {
        // Only numbers of phases are ever stored; a torn reading does not exist in one word.
        Phase::ALL.get(self.phase_index()).copied().unwrap_or(Phase::Other)
    }

    #[inline]
    pub(super) const fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !PHASE | (phase as u64) << PHASE_SHIFT)
    }

    #[inline]
    pub(super) const fn is(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    #[inline]
    pub(super) const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// The same life, phase and generation without any flag.
    #[inline]
    pub(super) const fn without_flags(self) -> Self {
        Self(self.0 & (LIFE | PHASE | GENERATION))
    }

    #[inline]
    pub(super) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What the slot's next user starts from.
    #[inline]
    pub(super) const fn next_generation(self) -> Self {
        Self((self.0 & GENERATION).wrapping_add(1 << 32))
    }

    /// A flow that may be given up for a new one when the table is full: not open yet, or closed already. An established
    /// one is never.
    #[inline]
    pub(super) fn is_evictable(self) -> bool {
        match self.phase() {
            Phase::SynSent
            | Phase::SynSent2
            | Phase::SynReceived
            | Phase::TimeWait
            | Phase::Close
            | Phase::Revoked
            | Phase::UdpOneWay => true,
            Phase::Icmp | Phase::Other => !self.is(REPLIED),
            _ => false,
        }
    }
}
