//! A field-grade uplink for Frame.io Camera to Cloud.
//!
//! Media once accepted by [`Uplink::add`] is delivered, or rests with a reason that a person can act on. The files of this
//! crate follow the way of the data: `intake` (a path becomes a media), `register` (a media becomes an asset with chunks),
//! `transfer` (chunks become bytes on the wire), `settle` (what follows a fault: pure policy). They are served by
//! `connection` (pairing, tokens, the airlock between projects), `link` and `network` (the way to the internet), `time` (the moment of
//! capture and the offset), [`pace`] (how much goes on at once), `progress`, `upkeep`, and started and watched by `supervisor`.

pub mod crash;

mod connection;
mod engine;
mod error;
mod event;
mod host;
mod intake;
mod link;
mod network;
pub mod pace;
mod progress;
mod register;
mod settings;
mod settle;
mod source;
mod supervisor;
mod time;
mod transfer;
mod upkeep;
mod uplink;

pub use c2c_protocol::{Congestion, Proxy, ProxyUrl, ResolveOverride, Tuning};
pub use c2c_queue as queue;
pub use connection::{Pairing, PairingStep, Standing};
pub use error::UplinkError;
pub use event::Event;
pub use intake::AddMedia;
pub use link::{LinkFault, LinkState};
pub use pace::Steering;
pub use pace::bucket::{Pacer, Rate};
pub use progress::{ActiveMedia, EtaRange, InFlight, Progress};
pub use settings::{OrganiseBy, RestartSignal, Transfers};
pub use settle::{Asked, Effect, Fault, Judged, ROUNDS, Situation, TRIES, backoff, decide};
pub use uplink::{ClientSettings, Uplink, UplinkBuilder};

/// A span of time as a person says it.
fn format_span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=119 => format!("{seconds} seconds"),
        120..=7_199 => format!("{} minutes", seconds / 60),
        7_200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
