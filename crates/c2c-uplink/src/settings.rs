//! What can be set, with the default of each and why.

use std::time::Duration;

/// How many chunks are sent at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfers {
    /// As many as the link rewards, beginning with two per core, as the service advises.
    #[default]
    Auto,
    /// This many send, at least one; as many again may wait for their answers.
    Fixed(usize),
}

impl Transfers {
    /// The number to begin with on this machine.
    pub fn count(self) -> usize {
        match self {
            Transfers::Auto => 2 * std::thread::available_parallelism().map_or(1, usize::from),
            Transfers::Fixed(count) => count.max(1),
        }
    }
}

/// Which day's folder a media appears in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrganiseBy {
    /// The day it was captured. The service can tell what was captured in a pause.
    #[default]
    CaptureDate,
    /// The day it is uploaded. This gives up the protection by pauses: media captured in an earlier pause is uploaded.
    UploadDate,
}

/// What counts as a restart of the system where the platform has no boot id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartSignal {
    /// Only a new boot id; without one, parked media wait for a person.
    #[default]
    BootId,
    /// Every start of the program.
    ProcessStart,
}

/// The inner settings of the engine.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) transfers: Transfers,
    pub(crate) organise_by: OrganiseBy,
    pub(crate) restart: RestartSignal,
    /// A holder that is silent for longer loses its lease.
    pub(crate) lease: Duration,
    /// No byte accepted by the peer for this long aborts an attempt.
    pub(crate) stall: Duration,
    /// One attempt takes at most this long, or as long as its bytes need on the slowest line that is still one.
    pub(crate) attempt_limit: Duration,
    /// How long an upload URL is good if it does not say.
    pub(crate) url_life: Duration,
    /// How long the media of a removed volume wait for it.
    pub(crate) volume_patience: Duration,
    /// Registration stops while this many chunks wait to be sent.
    pub(crate) chunks_ahead: u64,
    /// Creates per second at most; the service documents five.
    pub(crate) creates_per_second: Option<f64>,
    /// Compare what was sent with the ETag.
    pub(crate) verify: bool,
    /// Step back when others need the line.
    pub(crate) polite: bool,
    /// The interface that is sent through, if one was chosen.
    pub(crate) interface: Option<String>,
    /// Choose the size of chunks by circumstance.
    pub(crate) adapt_parts: bool,
    /// Read each file once more after its delivery, for the SHA-256 in its receipt.
    pub(crate) receipt_sha256: bool,
    /// Plain HTTP upload URLs on loopback are acceptable: for test benches.
    pub(crate) allow_plain_loopback: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            transfers: Transfers::Auto,
            organise_by: OrganiseBy::CaptureDate,
            restart: RestartSignal::BootId,
            lease: Duration::from_secs(30 * 60),
            stall: Duration::from_secs(60),
            attempt_limit: Duration::from_secs(30 * 60),
            url_life: Duration::from_secs(24 * 3600),
            volume_patience: Duration::from_secs(72 * 3600),
            chunks_ahead: 64,
            creates_per_second: Some(5.0),
            verify: true,
            polite: false,
            interface: None,
            adapt_parts: true,
            receipt_sha256: false,
            allow_plain_loopback: false,
        }
    }
}
