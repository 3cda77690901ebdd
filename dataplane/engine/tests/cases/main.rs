//! The engine's cases: bytes in, bytes out, a clock that only the test moves, exact counters and flows. No socket.
//!
//! One module for each family of cases; a test's name begins with its case. [`world`] is the node that they run on.

mod a_which;
mod b_ports;
mod c_tcp;
mod check;
mod d_time;
mod e_icmp;
mod f_fragments;
mod g_odd;
mod h_node;
mod i_tables;
mod j_affinity;
mod j_errors;
mod j_services;
mod k_policy;
mod properties;
mod recorder;
mod simulation;
mod threads;
mod traffic;
mod world;
