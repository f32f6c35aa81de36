//! The pairing of this unit with one project, as it is remembered.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::WallTime;

/// The token pair of a connection. Neither prints nor serialises.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Bearer token of the API.
    pub access: SecretString,
    /// Single-use token for the next pair.
    pub refresh: SecretString,
    /// Life of the access token from the moment it was stored, in milliseconds.
    pub expires_in_ms: u64,
}

/// Whether a refresh was on its way when this was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshState {
    /// No refresh is under way.
    Settled,
    /// A refresh was begun and its answer never stored: the refresh token may be spent.
    InFlight,
}

/// What `GET /v2/devices/me` said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The project-device id.
    pub id: String,
    /// The device id.
    pub device_id: String,
    /// Name of the device as the project shows it.
    pub device_name: String,
    /// Key of the project; another value is another project.
    pub project_id: String,
    /// Name of the project; to show only.
    pub project_name: String,
    /// `online`, `offline` or `paused`.
    pub status: String,
    /// When the authorization ends, as the server wrote it; `None` for never.
    pub authorization_expires_at: Option<String>,
    /// Names of the channels by index.
    pub channels: Vec<(u32, String)>,
}

/// The connection as stored.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The last known identity, if the unit was ever paired.
    pub identity: Option<Identity>,
    /// The tokens, unless the authorization was lost.
    pub tokens: Option<Tokens>,
    /// Milliseconds since the tokens were stored, on the store's own time.
    pub tokens_age_ms: u64,
    /// When the tokens were stored (wall clock).
    pub tokens_stored_at: Option<WallTime>,
    /// Whether a refresh was on its way.
    pub refresh: RefreshState,
    /// Why the tokens are gone, for a person.
    pub lost: Option<String>,
}

/// What became of the queue when an identity was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Airlock {
    /// First pairing of this queue; media added before it stay.
    First,
    /// The same project as before; everything goes on.
    SameProject,
    /// Another project: the queue was emptied in the same transaction.
    Changed {
        /// How many media were removed.
        cleared: u64,
    },
}
