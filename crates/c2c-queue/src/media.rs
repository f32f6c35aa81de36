//! Media and chunks: the rows of the queue and the states they may be in.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::{Capture, WallTime};
use crate::history::FaultRecord;

/// Names a media within one queue; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaId(pub i64);

impl fmt::Display for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The life cycle of a media.
///
/// ```text
/// queued ──► registering ──► transferring ──► delivered
///   ▲            │  │              │
///   └────────────┘  │              │      any state but delivered ──► cancelled
///   ▲ register again│              │
///   └───────────────┼──────────────┤
///                   ▼              ▼
///               withheld      parked, failed        (a person's retry leads back)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaState {
    /// On disk here, not yet known to Frame.io.
    Queued,
    /// A worker is creating the asset right now (or died doing so).
    Registering,
    /// The asset exists; chunks are being sent.
    Transferring,
    /// Every chunk was acknowledged; there is a receipt.
    Delivered,
    /// Created during a pause of the channel: never sent, never retried by itself.
    Withheld,
    /// All rounds used; one more try after the next restart of the system.
    Parked,
    /// Nothing will help without a person.
    Failed,
    /// A person said so, or its file is gone.
    Cancelled,
}

impl MediaState {
    /// Every state, in the order of life.
    pub const ALL: [MediaState; 8] = [
        MediaState::Queued,
        MediaState::Registering,
        MediaState::Transferring,
        MediaState::Delivered,
        MediaState::Withheld,
        MediaState::Parked,
        MediaState::Failed,
        MediaState::Cancelled,
    ];

    /// The word used in the database, in JSON, on the command line and on the page.
    pub fn as_str(self) -> &'static str {
        match self {
            MediaState::Queued => "queued",
            MediaState::Registering => "registering",
            MediaState::Transferring => "transferring",
            MediaState::Delivered => "delivered",
            MediaState::Withheld => "withheld",
            MediaState::Parked => "parked",
            MediaState::Failed => "failed",
            MediaState::Cancelled => "cancelled",
        }
    }

    /// The state that `word` names.
    pub fn parse(word: &str) -> Option<MediaState> {
        MediaState::ALL
            .into_iter()
            .find(|state| state.as_str() == word)
    }

    /// Nothing happens to the media by itself any more (a parked media: until the next restart).
    pub fn is_resting(self) -> bool {
        match self {
            MediaState::Queued | MediaState::Registering | MediaState::Transferring => false,
            MediaState::Delivered
            | MediaState::Withheld
            | MediaState::Parked
            | MediaState::Failed
            | MediaState::Cancelled => true,
        }
    }

    /// Whether a media in this state may pass to `next`. The database holds the same table.
    pub fn may_become(self, next: MediaState) -> bool {
        use MediaState::*;
        match self {
            Queued => matches!(next, Registering | Parked | Failed | Cancelled),
            Registering => matches!(
                next,
                Queued | Transferring | Withheld | Parked | Failed | Cancelled
            ),
            Transferring => matches!(next, Queued | Delivered | Parked | Failed | Cancelled),
            Parked | Failed => {
                matches!(next, Queued | Transferring | Delivered | Cancelled | Failed)
            }
            Withheld => matches!(next, Queued | Cancelled),
            Cancelled => matches!(next, Queued),
            Delivered => false,
        }
    }
}

impl fmt::Display for MediaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The life cycle of a chunk: `ready → sending → sent`, and back to `ready` after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkState {
    /// Waiting for a worker.
    Ready,
    /// Leased to a worker.
    Sending,
    /// Acknowledged with a 2xx answer.
    Sent,
}

/// Why an unfinished media is not worked on although nothing failed. Work goes on when it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// A person holds it.
    ByHand,
    /// The moment of capture cannot be known well enough to honour pauses; a person decides.
    CaptureTimeUnknown,
    /// The volume with the file is not mounted; released by itself when it comes back.
    VolumeAway,
    /// The file is still changing; released by itself when it is stable.
    FileChanging,
    /// The channel is paused and the media is fresh; released by itself when the channel is resumed.
    ChannelPaused,
}

impl Hold {
    /// The word used in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Hold::ByHand => "by_hand",
            Hold::CaptureTimeUnknown => "capture_time_unknown",
            Hold::VolumeAway => "volume_away",
            Hold::FileChanging => "file_changing",
            Hold::ChannelPaused => "channel_paused",
        }
    }

    /// The hold that `word` names.
    pub fn parse(word: &str) -> Option<Hold> {
        [
            Hold::ByHand,
            Hold::CaptureTimeUnknown,
            Hold::VolumeAway,
            Hold::FileChanging,
            Hold::ChannelPaused,
        ]
        .into_iter()
        .find(|hold| hold.as_str() == word)
    }
}

/// Which file it is, whatever it is called: device and inode on Unix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Number of the device that holds the file.
    pub device: u64,
    /// Number of the file on that device.
    pub file: u64,
}

/// Where the file lives, in terms that survive another mount point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Identity of the file system (its UUID or file-system id).
    pub id: String,
    /// Where it was mounted when last seen.
    #[serde(with = "crate::host::lossy_path")]
    pub mount_point: PathBuf,
    /// Whether it may be taken out: its media wait for it instead of being cancelled.
    pub removable: bool,
}

/// What was seen of a file; a difference means that it is not the same file any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Identity on its device, where the platform has one.
    pub file_id: Option<FileId>,
}

/// A media as intake hands it to [`crate::Queue::add`].
#[derive(Clone, Debug)]
pub struct NewMedia {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// The name it gets in Frame.io.
    pub name: String,
    /// Size, time and identity of the file now.
    pub facts: FileFacts,
    /// The file system it is on, where that is known.
    pub volume: Option<Volume>,
    /// MIME type; the same value goes with every chunk.
    pub filetype: String,
    /// When it was created.
    pub capture: Capture,
    /// Channel of the device; `0` is the default one.
    pub channel: u32,
    /// Higher goes first; `0` is normal.
    pub priority: i32,
    /// Number of chunks to ask for; the server decides when `None`.
    pub parts: Option<u32>,
    /// The asset that this one becomes the next version of.
    pub auto_version_id: Option<String>,
    /// Starts held.
    pub hold: Option<Hold>,
    /// Adds it even if the very same file is in the queue or was delivered to this project.
    pub again: bool,
}

/// One row of the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Media {
    /// Its name within this queue.
    pub id: MediaId,
    /// Absolute path of the file. Serialised for showing: what is not Unicode in it becomes `U+FFFD`.
    #[serde(with = "crate::host::lossy_path")]
    pub path: PathBuf,
    /// The name in Frame.io.
    pub name: String,
    /// The file as it was when added, or when last registered.
    pub facts: FileFacts,
    /// The file system it is on, where that is known.
    pub volume: Option<Volume>,
    /// MIME type.
    pub filetype: String,
    /// When it was created.
    pub capture: Capture,
    /// A person released it from [`Hold::CaptureTimeUnknown`]: the moment of capture is taken as it stands.
    pub capture_accepted: bool,
    /// Channel of the device.
    pub channel: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Order among media of the same priority; grows when a round is used up.
    pub position: i64,
    /// Number of chunks asked for.
    pub parts: Option<u32>,
    /// The asset that this one becomes the next version of.
    pub auto_version_id: Option<String>,
    /// Where it is in its life.
    pub state: MediaState,
    /// Why it is not worked on, if it is held.
    pub hold: Option<Hold>,
    /// When the hold began (wall clock).
    pub held_at: Option<WallTime>,
    /// How long it has been held, in milliseconds of the store's own time.
    pub held_for_ms: Option<u64>,
    /// Tries used by registration in the current round; one that succeeded does not count.
    pub tries: u32,
    /// Rounds used up since the last progress.
    pub rounds: u32,
    /// Tries ever made, registration and chunks together.
    pub tries_total: u64,
    /// It is on its one more try after a restart.
    pub final_try: bool,
    /// Earliest next try of the registration, in milliseconds from now; `None` when due.
    pub due_in_ms: Option<u64>,
    /// The asset, once registered.
    pub asset_id: Option<String>,
    /// The project it was registered in.
    pub project_id: Option<String>,
    /// When it was registered (wall clock).
    pub registered_at: Option<WallTime>,
    /// How many times an asset was created for it.
    pub registrations: u32,
    /// How many of those since a person last asked for a retry.
    pub registrations_since_retry: u32,
    /// Creates whose answer was lost: each may have left an asset that stays empty.
    pub possible_duplicates: u32,
    /// Chunks of the current registration.
    pub chunk_count: u32,
    /// Chunks acknowledged.
    pub chunks_sent: u32,
    /// Bytes acknowledged in sent chunks.
    pub bytes_sent: u64,
    /// Bytes that were sent more than once, or in vain.
    pub bytes_resent: u64,
    /// What went wrong last, if nothing went right since.
    pub last_fault: Option<FaultRecord>,
    /// When it was added (wall clock).
    pub added_at: WallTime,
    /// When it came to rest (wall clock).
    pub rested_at: Option<WallTime>,
}

/// One chunk of a registered media, without its secret URL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// 0-based, in file order.
    pub number: u32,
    /// First byte within the file.
    pub start: u64,
    /// Length in bytes; `0` only for the single chunk of an empty file.
    pub length: u64,
    /// Where it is in its life.
    pub state: ChunkState,
    /// Tries used in the current round.
    pub tries: u32,
    /// Tries ever made with the current registration.
    pub tries_total: u32,
    /// Bytes the peer acknowledged in the current or last attempt.
    pub acknowledged: u64,
    /// Earliest next try, in milliseconds from now; `None` when due.
    pub due_in_ms: Option<u64>,
    /// The server's ETag once sent.
    pub etag: Option<String>,
    /// MD5 of what was sent, hexadecimal.
    pub md5: Option<String>,
    /// When it was acknowledged (wall clock).
    pub sent_at: Option<WallTime>,
}
