//! The life of a media as lines: each try, fault, verdict and act of a person.

use serde::{Deserialize, Serialize};

use crate::clock::WallTime;
use crate::media::{Hold, MediaId};

/// Whose fault something was. Decides who is charged for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The way to the internet: nobody is charged, everybody waits.
    Link,
    /// Frame.io or S3 in trouble.
    Service,
    /// The tokens of this unit.
    Credentials,
    /// The account of the project's owner: its plan or its permissions.
    Account,
    /// This file.
    Media,
    /// The service will not take it, and is right.
    Refusal,
    /// Our request was wrong.
    Request,
    /// The upload URLs are too old.
    Stale,
    /// Our program: a panic, a lost worker.
    Program,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Creating the asset.
    Register,
    /// Sending a chunk.
    Transfer,
}

/// A fault as it is remembered and shown. Never holds a secret or an upload URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// Whose fault.
    pub scope: Scope,
    /// Stable short name, e.g. `channel_paused`, `connect_timeout`, `url_expired`.
    pub code: String,
    /// One sentence for a person: what happened, to what, what to do.
    pub words: String,
    /// The server's own words and request id, where there are any.
    pub server: Option<String>,
}

/// One line in the life of a media or of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// Grows with every line.
    pub id: i64,
    /// The media, or `None` for a line about the whole queue.
    pub media: Option<MediaId>,
    /// When (wall clock of this unit).
    pub at: WallTime,
    /// What.
    pub event: Event,
}

/// What a history line tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Accepted into the queue.
    Added,
    /// A try began. Chunks log only their second and later tries.
    Try {
        /// What is tried.
        operation: Operation,
        /// Which chunk, for a transfer.
        chunk: Option<u32>,
        /// Number of the try in its round, from 1.
        number: u32,
        /// Number of the round, from 1.
        round: u32,
    },
    /// The asset exists.
    Registered {
        /// The asset.
        asset_id: String,
        /// Number of chunks.
        chunks: u32,
        /// The offset that was sent, in seconds.
        offset: Option<u64>,
    },
    /// Something went wrong, and what the policy decided.
    Fault {
        /// During what.
        operation: Operation,
        /// Which chunk, for a transfer.
        chunk: Option<u32>,
        /// What went wrong.
        fault: FaultRecord,
        /// The verdict, in the words of [`crate::Verdict::as_str`].
        verdict: String,
        /// Wait before the next try, milliseconds.
        wait_ms: Option<u64>,
    },
    /// Bytes had to be given up: a registration with sent chunks was replaced.
    RegisteredAnew {
        /// Bytes that had been sent in vain.
        bytes_lost: u64,
    },
    /// A create was sent and its answer lost: an asset without content may exist.
    PossibleDuplicate,
    /// A worker went silent; its work returned to the pool.
    LeaseLost {
        /// Which chunk, or `None` for the registration.
        chunk: Option<u32>,
        /// Who held it.
        holder: String,
    },
    /// Every chunk was acknowledged.
    Delivered,
    /// One more try after a restart of the system.
    RestartTry,
    /// Not worked on for this reason.
    Held {
        /// Why.
        hold: Hold,
    },
    /// Worked on again.
    Released {
        /// What had held it.
        hold: Hold,
    },
    /// The file was seen to be another one than before.
    FileChanged {
        /// What differs, for a person.
        words: String,
    },
    /// The file is gone and the media with it.
    FileGone {
        /// Why, for a person.
        words: String,
    },
    /// A person did something.
    ByHand {
        /// `retry`, `cancel`, `prioritize`, `hold` or `release`.
        action: String,
    },
    /// The whole-file digest was added to the receipt.
    ReceiptSealed,
    /// Another project was connected; the queue was emptied.
    ProjectChanged {
        /// Project before, by id.
        from: String,
        /// Project now, by id.
        to: String,
        /// How many media were removed.
        cleared: u64,
    },
    /// Paired or paired again.
    Paired {
        /// The project, by id.
        project_id: String,
    },
    /// The authorization was lost; the queue waits for a new pairing.
    AuthorizationLost {
        /// Why, for a person.
        words: String,
    },
}
