//! Meters: CPU time of everybody involved, round-trip times, TCP throughput.

pub mod cpu;
pub mod rtt;
pub mod tcp;
