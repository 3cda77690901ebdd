//! What an AF_XDP port counts, and what the kernel counts for it.

use xsk_rs::socket::XdpStatistics;

use crate::PortStats;
use crate::port::counters;

counters! {
    /// The port's own counters.
    pub(super) struct Counters {
        /// Packets received, a chain of descriptors being one.
        rx_packets = "rx_packets";
        /// Bytes received, Ethernet headers included.
        rx_bytes = "rx_bytes";
        /// Descriptors from the kernel that name no chunk it was given; a fault of the driver.
        rx_foreign = "rx_foreign_descs";
        /// Packets discarded because they came in more pieces than a chain holds.
        rx_chain_too_long = "rx_chain_too_long";
        /// System calls that woke the driver to take chunks from the fill ring.
        rx_wakeups = "rx_wakeups";
        /// Times that no chunk of the pool was free to refill the fill ring; the kernel drops when that lasts.
        fill_short = "rx_fill_short";
        /// Frames put into the transmit ring, pieces of a super-packet counted one by one.
        tx_packets = "tx_packets";
        /// Bytes put into the transmit ring, Ethernet headers included.
        tx_bytes = "tx_bytes";
        /// Descriptors that the kernel gave back after transmission.
        completions = "tx_completions";
        /// Packets copied into UMEM to be sent: from the trunk, cut, or with a checksum to complete.
        tx_copied = "tx_copied";
        /// Segments made from TCP and UDP super-packets.
        segments = "tx_segments";
        /// IP fragments made from packets that were larger than the MTU.
        fragments = "tx_fragments";
        /// Packets refused because the transmit ring was full; the engine's drop `tx_full`.
        tx_full = "tx_full";
        /// Packets refused because this port cannot send them: another's, too short, too large; the engine's drop
        /// `tx_error`.
        tx_error = "tx_error";
        /// Packets refused because no chunk of the pool was free to carry them; the engine's drop `no_frame`.
        tx_no_frame = "tx_no_frame";
        /// System calls that had the kernel transmit.
        sends = "sends";
        /// Such calls that failed for another reason than a full queue: the interface is down or gone.
        send_errors = "send_errors";
    }
}

type Read = fn(&XdpStatistics) -> u64;

/// `XDP_STATISTICS` of the socket, field by field (linux/if_xdp.h).
const KERNEL: [(&str, &str, Read); 6] = [
    (
        "rx_dropped",
        "Kernel: packets dropped for other reasons than a full receive ring, such as one too large for a chunk.",
        XdpStatistics::rx_dropped,
    ),
    (
        "rx_invalid_descs",
        "Kernel: descriptors of the fill ring that it refused.",
        XdpStatistics::rx_invalid_descs,
    ),
    (
        "tx_invalid_descs",
        "Kernel: descriptors of the transmit ring that it refused.",
        XdpStatistics::tx_invalid_descs,
    ),
    (
        "rx_ring_full",
        "Kernel: packets dropped because the receive ring was full: the worker is too slow.",
        XdpStatistics::rx_ring_full,
    ),
    (
        "rx_fill_ring_empty_descs",
        "Kernel: times that it found no chunk in the fill ring for a packet.",
        XdpStatistics::rx_fill_ring_empty_descs,
    ),
    (
        "tx_ring_empty_descs",
        "Kernel: times that it looked for work in an empty transmit ring; harmless.",
        XdpStatistics::tx_ring_empty_descs,
    ),
];

/// Adds the kernel's counters to `stats`.
pub(super) fn report_kernel(kernel: &XdpStatistics, stats: &mut PortStats) {
    for (name, _, read) in KERNEL {
        stats.push(name, read(kernel));
    }
}

/// Every counter of an AF_XDP port with what it means, in the order of its statistics.
#[must_use]
pub fn meanings() -> Vec<(&'static str, &'static str)> {
    let kernel = KERNEL.iter().map(|(name, meaning, _)| (*name, *meaning));
    Counters::MEANINGS.iter().copied().chain(kernel).collect()
}
