//! What a queue of the trunk counts.

use crate::port::counters;

counters! {
    /// From the kernel.
    pub(super) struct RxCounters {
        /// Packets read, a super-packet being one.
        packets = "rx_packets";
        /// Bytes read, Ethernet headers included.
        bytes = "rx_bytes";
        /// Super-packets among them: TCP or UDP, still to be segmented.
        super_packets = "rx_super_packets";
        /// Frames without a tag that the tc programs write: somebody else sends on the trunk. Discarded.
        untagged = "rx_untagged";
        /// Super-packets of a kind that the engine does not know. Discarded.
        unknown_gso = "rx_unknown_gso";
        /// Times that no buffer was free to read into; the packets wait in the kernel.
        no_buffer = "rx_no_buffer";
        /// Reads that failed.
        errors = "rx_errors";
    }
}

counters! {
    /// To the kernel.
    pub(super) struct TxCounters {
        /// Packets written, each packet of a coalesced one counted.
        packets = "tx_packets";
        /// Bytes written, Ethernet headers included.
        bytes = "tx_bytes";
        /// Packets refused because the kernel had no room.
        full = "tx_full";
        /// Packets refused because the kernel would not have them, or because of a verdict that is not the trunk's.
        error = "tx_error";
        /// System calls that wrote.
        writes = "tap_writes";
        /// Nanoseconds inside them; a write runs the receiving pod's whole stack.
        write_ns = "tap_write_ns";
        /// Nanoseconds of the longest of them.
        write_ns_max = "tap_write_ns_max";
        /// Packets that were joined to one before them.
        gro_merged = "gro_merged";
        /// Super-packets made by joining.
        gro_super_packets = "gro_super_packets";
        /// TCP segments that were not joined because their checksum is wrong; passed on as they are.
        gro_bad_checksum = "gro_bad_checksum";
    }
}

/// Every counter of a trunk queue with what it means, in the order of its statistics.
#[must_use]
pub fn meanings() -> Vec<(&'static str, &'static str)> {
    RxCounters::MEANINGS.iter().chain(TxCounters::MEANINGS).copied().collect()
}
