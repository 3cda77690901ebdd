//! The node as EC2 and its metadata service tell it.

mod cloud;

pub use cloud::{CloudArgs, Told, cloud};
