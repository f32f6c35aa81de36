//! What can go wrong at the facade, in words a person can act on.

use std::path::PathBuf;

use c2c_queue::QueueError;

/// An operation of the uplink that was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// The durable queue refused.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The settings make no sense.
    #[error("the settings cannot be used: {words}")]
    Settings {
        /// What is wrong with which one.
        words: String,
        /// The cause, where there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A file that was to be added cannot be.
    #[error("cannot add {path}: {words}")]
    Add {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        words: String,
        /// The cause, where there is one.
        #[source]
        source: Option<std::io::Error>,
    },
    /// Frame.io said no, or cannot be reached.
    #[error(transparent)]
    Service(#[from] c2c_protocol::Error),
    /// There is no valid pairing.
    #[error("this unit is not paired with a project; pair it first")]
    NotPaired,
    /// The uplink is shutting down.
    #[error("the uplink is shutting down")]
    ShuttingDown,
}
