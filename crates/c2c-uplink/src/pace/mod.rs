//! How much goes on at once and how fast.

pub mod bucket;
pub mod concurrency;
pub mod first_hop;
mod gauge;
mod manners;
mod networks;
mod parts;
pub mod polite;
mod steer;
pub mod uptimes;

pub(crate) use gauge::Gauge;
pub(crate) use manners::be_polite;
pub(crate) use networks::network_key;
pub(crate) use parts::{Circumstance, choose_parts};
pub use steer::Steering;
pub(crate) use steer::{Helm, steer};
