//! The behaviour of the uplink, against the simulator over real HTTPS.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bench;
mod cards;
mod chaos;
mod clock;
mod fairness;
mod files;
mod identity;
mod interruptions;
mod leases;
mod links;
mod month;
mod outage;
mod pauses;
mod presence;
mod progress;
mod proxy;
mod sizes;
mod stalls;
mod tokens;
mod urls;
