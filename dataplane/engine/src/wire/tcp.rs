//! What a TCP header says besides its ports.

/// The flags byte of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is valid.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    /// FIN is set.
    #[inline]
    #[must_use]
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// SYN is set.
    #[inline]
    #[must_use]
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// RST is set.
    #[inline]
    #[must_use]
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// ACK is set.
    #[inline]
    #[must_use]
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// The first packet of a connection: SYN without ACK.
    #[inline]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// A combination that a stack sends: exactly those that Linux' `nf_conntrack` takes for valid.
    #[inline]
    #[must_use]
    pub const fn valid(self) -> bool {
        const VALID: u64 = {
            const F: u8 = TcpFlags::FIN;
            const S: u8 = TcpFlags::SYN;
            const R: u8 = TcpFlags::RST;
            const A: u8 = TcpFlags::ACK;
            const U: u8 = TcpFlags::URG;
            let sets = [S, S | U, S | A, R, R | A, F | A, F | A | U, A, A | U];
            let mut bits = 0;
            let mut i = 0;
            while i < sets.len() {
                bits |= 1 << sets[i];
                i += 1;
            }
            bits
        };
        let relevant = self.0 & (Self::FIN | Self::SYN | Self::RST | Self::ACK | Self::URG);
        VALID >> relevant & 1 != 0
    }
}

/// The numbers of a TCP header, host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHeader {
    /// The flags.
    pub flags: TcpFlags,
    /// Sequence number of the first byte (or of the SYN).
    pub seq: u32,
    /// Next sequence number that the sender expects.
    pub ack: u32,
    /// Window as it stands there, not scaled.
    pub window: u16,
}
