//! The behaviour of the uplink, against the simulator over real HTTPS.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bench;
mod files;
mod interruptions;
mod sizes;
mod tokens;
