//! How much goes on at once and how fast.

pub mod concurrency;
mod gauge;
mod networks;
mod parts;
mod steer;

pub(crate) use gauge::Gauge;
pub(crate) use networks::network_key;
pub(crate) use parts::{Circumstance, choose_parts};
pub use steer::Steering;
pub(crate) use steer::{Helm, steer};
