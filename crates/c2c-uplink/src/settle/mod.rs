//! What follows a fault: pure policy.
//!
//! Nothing in this module does I/O, reads a clock or rolls dice; time and jitter are arguments. A fault
//! is first *named* ([`Fault`], by `classify`), then *judged* ([`decide`]).
//!
//! Invariants, held by tests and properties:
//!
//! 1. A fault of the link, of the credentials or of the account never uses up a try.
//! 2. Counted tries are bounded: [`TRIES`] in each of [`ROUNDS`] rounds, then the media is parked.
//! 3. On the one more try after a restart, the first counted fault fails the media.
//! 4. Every wait is finite.

mod classify;
mod fault;
mod outage;
mod policy;
#[cfg(test)]
mod rows;

pub(crate) use classify::{classify_create, classify_put};
pub use fault::{Asked, Effect, Fault};
pub(crate) use outage::{Outages, Refused};
pub use policy::{Judged, ROUNDS, Situation, TRIES, backoff, decide};
