//! What can go wrong with the store, in words a person can act on.

use std::path::PathBuf;

use crate::keyring::KeyringError;
use crate::media::{MediaId, MediaState};

/// The process that owns a store, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process id.
    pub pid: Option<u32>,
    /// Its command line or name.
    pub command: Option<String>,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.pid, &self.command) {
            (Some(pid), Some(command)) => write!(f, "process {pid} ({command})"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

/// An operation of the queue that was not done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Another process has the store open.
    #[error(
        "the queue at {path} is in use by {owner}; stop it first, or use another state directory"
    )]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who has it.
        owner: Owner,
    },
    /// A newer version of the program wrote the store.
    #[error(
        "the queue at {path} has format {found}, this program knows formats up to {known}; use the newer program"
    )]
    TooNew {
        /// The store.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// The file is not a queue, or is damaged.
    #[error("the queue at {path} cannot be used: {words}; move it away to start with an empty one")]
    Unusable {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        words: String,
    },
    /// The state directory or a file in it cannot be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("the queue could not {action}: {source}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A stored secret cannot be opened with the key at hand.
    #[error(
        "the secrets stored in the queue do not open with the key at hand ({what}); pair again"
    )]
    Sealed {
        /// Which secret.
        what: &'static str,
    },
    /// The key of an existing queue is in the keyring of the system, which does not give it.
    #[error(
        "the key of this queue is in the keyring of the system, and {source}; unlock or start the keyring, or remove {marker} to begin with a new key and pair again"
    )]
    KeyAway {
        /// The file that says so.
        marker: PathBuf,
        /// Why the keyring does not give it.
        source: KeyringError,
    },
    /// The keyring was asked for by name and cannot keep the key of a new queue.
    #[error(
        "the keyring of the system cannot keep the key: {source}; use a key file instead (`--key-store file`)"
    )]
    KeyNotKept {
        /// Why not.
        source: KeyringError,
    },
    /// The lease is not the current one any more; what was reported under it is not applied.
    #[error("the lease on media {0} was lost to another worker")]
    LeaseLost(MediaId),
    /// Somebody is working on it right now.
    #[error("media {media} is being worked on by {holder}; try again when it is done")]
    Busy {
        /// The media.
        media: MediaId,
        /// Who works on it.
        holder: String,
    },
    /// There is no such media.
    #[error("there is no media {0} in the queue; `c2c list` shows what there is")]
    NoSuchMedia(MediaId),
    /// The life cycle does not allow it.
    #[error("media {media} is {from} and cannot become {to}")]
    IllegalMove {
        /// The media.
        media: MediaId,
        /// Its state.
        from: MediaState,
        /// The state asked for.
        to: MediaState,
    },
    /// What was handed over makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A defect of this program; the operation was undone, and the others went on.
    #[error("the queue met a defect of its own ({0}); nothing was changed, please report it")]
    Defect(String),
    /// The store was closed.
    #[error("the queue is closed")]
    Closed,
}
