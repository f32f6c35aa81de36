//! Frame.io Camera to Cloud on the wire.
//!
//! Invariants:
//!
//! - One call is one request. Nothing here retries on a policy, schedules, or remembers; the only repetition is that of
//!   a request which a dead pooled connection swallowed, and only where repeating it cannot change anything.
//! - Every failure says at which [`Stage`] it happened and whether the server can have seen the request.
//! - Tokens, the client secret, the device code and upload URLs never appear in `Debug`, `Display` or an error.
//! - The bearer token goes to the API host alone. Redirects are never followed.
//! - Memory does not depend on the size of a chunk: bodies stream, answers are limited.
//!
//! [`Client`] holds the connections; [`ChunkPlan`] holds the arithmetic; [`Error`] says what happened.

mod answers;
mod call;
mod chunks;
mod client;
mod config;
mod connect;
mod decode;
mod error;
mod exchange;
mod meter;
mod pool;
mod presence;
mod proxy;
mod refusal;
mod requests;
mod secure;
mod socket;
mod tls;
mod tuning;
mod tunnel;
mod upload_url;

pub use answers::{
    Answered, Asset, Channel, ChunkAnswer, DeviceCode, DeviceStatus, Me, PollAnswer, RealtimeAsset,
    TokenPair,
};
pub use chunks::{
    ChunkError, ChunkPlan, MAX_CHUNK, MAX_CHUNKS, MAX_FILE, MIN_CHUNK, allowed_parts, check_parts,
};
pub use client::Client;
pub use config::{
    ClientConfig, ConfigError, DEFAULT_API_URL, ResolveOverride, ResolveOverrideError, Trust,
    TrustError, load_ca_file,
};
pub use error::{
    AnswerError, Endpoint, Error, ErrorKind, Reached, RequestError, Stage, TransportError,
};
pub use meter::Meter;
pub use presence::{Presence, PresenceNews};
pub use proxy::{Proxy, ProxyUrl, ProxyUrlError};
pub use refusal::{DetailedError, RateLimit, Refusal, RefusalBody, RetryAfter};
pub use requests::{CreateAsset, CreateRealtimeAsset, RealtimePart, RealtimeParts, SCOPE};
pub use secrecy::{ExposeSecret, SecretString};
pub use tls::install_crypto_provider;
pub use tuning::{Congestion, Transport, Tuning};
pub use upload_url::{UploadUrl, UploadUrlError};
