//! The table with a virtual clock, against a plain map, and under real threads.

mod model;
mod stress;
mod table;
mod tcp;
