//! The behaviour of the uplink, against the simulator over real HTTPS.
#![expect(missing_docs, reason = "tests")]

mod bench;
mod files;
mod interruptions;
mod sizes;
mod tokens;
