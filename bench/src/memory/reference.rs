//! Figures of other engines, for orientation only: measured on a machine of the same
//! kind in another hour. They are constants, not results of this run; the yardstick's are.

use serde::Serialize;

/// CPU nanoseconds per packet of another engine.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Reference {
    /// Which engine.
    pub engine: &'static str,
    /// 1,000, 100,000 and 1,000,000 flows in order, then 100,000 and 1,000,000 shuffled.
    pub ns: [Option<f64>; 5],
}

/// The design's table.
pub const TABLE: [Reference; 4] = [
    Reference {
        engine: "VPP v26.06 nat44-ed",
        ns: [Some(38.0), Some(124.0), Some(141.0), Some(202.0), Some(248.0)],
    },
    Reference {
        engine: "VPP nat44-ed + reflective ACL",
        ns: [Some(50.0), Some(171.0), Some(188.0), Some(256.0), Some(303.0)],
    },
    Reference {
        engine: "VPP sfdp NAT (no policy)",
        ns: [Some(40.0), Some(75.0), Some(91.0), Some(147.0), Some(178.0)],
    },
    Reference { engine: "OVS-DPDK 3.1 ct+nat", ns: [Some(309.0), Some(769.0), None, None, None] },
];
