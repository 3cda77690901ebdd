//! The node as EC2 and its metadata service tell it.

mod cloud;
mod mode;

pub use cloud::{CloudArgs, Told, cloud};
pub(crate) use mode::{Steer, name, service_cidrs, start};
