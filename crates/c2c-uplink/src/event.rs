//! What an embedder hears while the uplink works.

use std::time::Duration;

use c2c_queue::{FaultRecord, Hold, Identity, MediaId, MediaState, Operation, Receipt};

use crate::link::LinkState;

/// Something happened. Events tell, the queue knows: a listener that falls behind loses events, never facts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A media was accepted; it is on disk.
    Added {
        /// The media.
        media: MediaId,
        /// Its name in Frame.io.
        name: String,
    },
    /// The asset of a media exists.
    Registered {
        /// The media.
        media: MediaId,
        /// Its name in Frame.io.
        name: String,
        /// The asset.
        asset_id: String,
        /// Number of its chunks.
        chunks: u32,
    },
    /// A chunk was acknowledged.
    ChunkSent {
        /// The media.
        media: MediaId,
        /// The chunk, from 0.
        number: u32,
        /// Chunks still to be sent.
        left: u32,
    },
    /// A media was delivered.
    Delivered {
        /// Its proof; the whole-file digest is added a little later.
        receipt: Box<Receipt>,
    },
    /// Something went wrong.
    Setback {
        /// The media.
        media: MediaId,
        /// Its name in Frame.io.
        name: String,
        /// During what.
        operation: Operation,
        /// What.
        fault: FaultRecord,
        /// Where the media is now.
        state: MediaState,
        /// Why it is held, if it is.
        hold: Option<Hold>,
        /// Wait before the next try, if there will be one by itself.
        wait: Option<Duration>,
    },
    /// The media left the queue for good: its file is gone.
    Cancelled {
        /// The media.
        media: MediaId,
        /// Why, for a person.
        words: String,
    },
    /// The link changed.
    Link(LinkState),
    /// Who this unit is was learned or confirmed.
    Identity(Identity),
    /// Another project is connected; the queue was emptied.
    ProjectChanged {
        /// The project before.
        from: String,
        /// How many media were removed.
        cleared: u64,
    },
    /// The authorization is lost; pair again. The queue waits.
    PairAgain {
        /// Why, for a person.
        words: String,
    },
    /// The channel was paused or resumed in Frame.io.
    Paused(bool),
    /// The authorization ends within a day, as somebody set it in Frame.io. Said once for each date.
    AuthorizationExpiring {
        /// When, as the service wrote it.
        at: String,
        /// Time until then.
        left: Duration,
    },
    /// The durable queue cannot be written or read; work stops until it can.
    StoreTrouble {
        /// Why, for a person.
        words: String,
    },
    /// A receipt got its whole-file digest.
    Sealed {
        /// The media.
        media: MediaId,
    },
}
