//! What c2c-uplink remembers: media, chunks, leases, attempts, the connection and the receipts.
//!
//! Invariants, whatever happens to the process or to the power:
//!
//! 1. [`Queue::add`] returns after the media is on disk.
//! 2. Every operation is one transaction: it happened whole, or not at all.
//! 3. A try is counted when work is checked out, so a process that dies has used one.
//! 4. What a holder reports is applied only while its [`Lease`] is still the current one;
//!    the fencing token decides, not the time.
//! 5. Waiting and leases run on the store's own time, which never goes back; the wall clock is
//!    kept only to be shown and to date a [`Capture`].
//!
//! The crate knows no HTTP, no retry policy and starts no tasks. Callers decide the [`Verdict`]
//! that follows a fault; the queue applies it.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod connection;
mod error;
mod history;
mod host;
mod keyring;
mod media;
mod queue;
mod receipt;
mod spool;
mod sqlite;
mod vault;

pub use clock::{
    BootId, BootTime, Capture, CaptureSource, Clock, ManualClock, ScaledClock, Sleep, SystemClock,
    WallTime,
};
pub use connection::{Airlock, Connection, Identity, RefreshState, Tokens};
pub use error::{Owner, QueueError};
pub use history::{Event, FaultRecord, HistoryLine, Operation, Scope};
pub use keyring::{KeyStore, KeyringError};
pub use media::{
    Chunk, ChunkState, FileFacts, FileId, Hold, Media, MediaId, MediaState, NewMedia, Volume,
};
pub use queue::{
    Added, Attempt, ByHand, ChunkClaim, ChunkProof, Claim, Holder, Item, Lease, NewAsset, NewChunk,
    Outcome, Queue, QueueStatus, Recovered, RegistrationClaim, Selection, Sent, Setback,
    StateTally, Verdict,
};
pub use receipt::{Receipt, ReceiptChunk};
pub use spool::{Spool, SpooledMedia};
pub use sqlite::{SqliteOptions, SqliteQueue};
pub use vault::Vault;
