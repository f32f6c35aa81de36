//! One file per group of commands; each does one thing and says how it ended.

mod demo;
mod hand;
mod look;
mod simulator;
mod tell;
mod upload;

pub(crate) use demo::demo;
pub(crate) use hand::by_hand;
pub(crate) use look::{list, status};
pub(crate) use simulator::simulator;
pub(crate) use tell::{explain, receipt};
pub(crate) use upload::{add, pair, upload};
