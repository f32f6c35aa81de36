//! What went wrong with a request, and whether the server can have seen it.
//!
//! Invariants: `Display` is one sentence that a person can act on and names the cause; the chain of `source()` keeps
//! the original error; nothing here holds a token, a secret or an upload URL.

use std::error::Error as StdError;
use std::fmt;
use std::time::SystemTime;

use crate::chunks::ChunkError;
use crate::refusal::Refusal;
use crate::upload_url::UploadUrlError;

/// Which call was made. `Display` is the call in human words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `POST /v2/auth/device/code`
    DeviceCode,
    /// `POST /v2/auth/token` with a device code
    PollToken,
    /// `POST /v2/auth/token` with a refresh token
    Refresh,
    /// `POST /v2/auth/revoke`
    Revoke,
    /// `GET /v2/devices/me`
    Me,
    /// `POST /v2/devices/heartbeat`
    Heartbeat,
    /// `GET /health`
    Health,
    /// `POST /v2/devices/assets`
    CreateAsset,
    /// `POST /v2/devices/assets/{id}/realtime_upload/parts`
    RealtimeParts,
    /// `PUT` of one chunk to its upload URL
    PutChunk,
    /// The websocket `/devices/websocket`
    Presence,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceCode => "asking for a pairing code",
            Self::PollToken => "asking whether the pairing was authorized",
            Self::Refresh => "refreshing the access token",
            Self::Revoke => "revoking the token",
            Self::Me => "asking for the connected project",
            Self::Heartbeat => "the heartbeat",
            Self::Health => "the health check",
            Self::CreateAsset => "creating the asset",
            Self::RealtimeParts => "asking for the upload URLs of a growing file",
            Self::PutChunk => "uploading a chunk",
            Self::Presence => "the presence socket",
        })
    }
}

/// A failed call.
#[derive(Debug)]
pub struct Error {
    /// Which call.
    pub endpoint: Endpoint,
    /// What happened.
    pub kind: ErrorKind,
}

impl Error {
    pub(crate) fn new(endpoint: Endpoint, kind: impl Into<ErrorKind>) -> Self {
        Self {
            endpoint,
            kind: kind.into(),
        }
    }

    /// The refusal, if the server answered with one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.kind {
            ErrorKind::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The transport failure, if it was one.
    #[must_use]
    pub fn transport(&self) -> Option<&TransportError> {
        match &self.kind {
            ErrorKind::Transport(transport) => Some(transport),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.endpoint, self.kind)
    }
}

impl StdError for Error {
    // The kind is part of this sentence already; the chain goes on with what caused it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.kind.source()
    }
}

/// What kind of failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The way to the server, or the caller's own body.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server answered, and not with a 2xx.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The server answered 2xx with something that is not the expected answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// Refused here, before anything was sent.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl From<Refusal> for ErrorKind {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

/// How far a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The host name has no address.
    Resolve,
    /// No address of the host accepts a connection.
    Connect,
    /// No address of the host answered in time.
    ConnectTimeout,
    /// The proxy on the way cannot be reached or does not let us through.
    Proxy,
    /// The TLS handshake failed or was cut.
    Tls,
    /// The certificate is not trusted or not for this host.
    TlsCertificate,
    /// The connection failed while the request was being sent.
    Send,
    /// The caller's own body could not be read, or has not the promised length.
    Body,
    /// The connection failed while waiting for the answer or in the middle of it, or the answer is not HTTP.
    Answer,
    /// The answer did not come in time.
    AnswerTimeout,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "the name of the server could not be resolved",
            Self::Connect => "no connection to the server could be made",
            Self::ConnectTimeout => "the server did not accept a connection in time",
            Self::Proxy => "there is no way through the proxy",
            Self::Tls => "no secure connection to the server could be made",
            Self::TlsCertificate => "the certificate of the server is not trusted",
            Self::Send => "the connection was lost while sending",
            Self::Body => "the data to send could not be read",
            Self::Answer => "the connection was lost before the whole answer arrived",
            Self::AnswerTimeout => "the server did not answer in time",
        })
    }
}

/// Whether the server can have seen the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reached {
    /// Not a byte of it was sent.
    No,
    /// Some or all of it may have arrived, and may have been acted on.
    Maybe,
}

/// The request or its answer got lost on the way.
#[derive(Debug)]
pub struct TransportError {
    /// How far it came.
    pub stage: Stage,
    /// Whether it failed on a connection that had served a request before (and may have been closed meanwhile).
    pub reused: bool,
    /// Whether the server can have seen the request.
    pub reached: Reached,
    /// The cause.
    pub source: Box<dyn StdError + Send + Sync>,
}

impl TransportError {
    /// A failure before any byte of the request was sent.
    pub(crate) fn unsent(stage: Stage, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            stage,
            reused: false,
            reached: Reached::No,
            source: source.into(),
        }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut root: &(dyn StdError + 'static) = self.source.as_ref();
        // What a proxy did is told with its name; what is below may not say that a proxy was involved at all.
        while self.stage != Stage::Proxy
            && let Some(next) = root.source()
        {
            root = next;
        }
        write!(f, "{} ({root})", self.stage)
    }
}

impl StdError for TransportError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.source.as_ref())
    }
}

/// A 2xx whose body is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerError {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong; names the field where there is one. Never repeats values of the answer.
    pub what: String,
    /// An HTML page or something that is no JSON at all: most likely a middle box answered instead of the service.
    pub looks_like_portal: bool,
    /// The time of the server (`Date`).
    pub date: Option<SystemTime>,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.looks_like_portal {
            write!(
                f,
                "something other than the service answered (status {}, {}); is there a sign-in page?",
                self.status, self.what
            )
        } else {
            write!(
                f,
                "the answer (status {}) is not understood: {}",
                self.status, self.what
            )
        }
    }
}

impl StdError for AnswerError {}

/// The request was refused here, before anything was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The name cannot be used for an asset.
    #[error("the name cannot be used: {why}")]
    Name {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file or the wished parts break a limit.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// A chunk is larger than one PUT can carry.
    #[error("a chunk of {length} bytes is larger than the limit of {limit} bytes")]
    ChunkTooLarge {
        /// Bytes of the chunk.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file type is no MIME type that fits into a header.
    #[error("the file type is not a valid MIME type; give one such as video/quicktime")]
    FileType,
    /// A token, id or secret is empty or has characters that cannot be sent.
    #[error("the {what} is empty or has characters that cannot be sent")]
    Credential {
        /// Which one.
        what: &'static str,
    },
    /// The upload URL is not usable.
    #[error(transparent)]
    Url(#[from] UploadUrlError),
    /// A list of real-time parts breaks a rule.
    #[error("the parts of the growing file cannot be asked for: {why}")]
    Realtime {
        /// Which rule.
        why: &'static str,
    },
    /// The request does not fit into JSON.
    #[error("the request could not be written as JSON")]
    Json(#[source] serde_json::Error),
    /// The request could not be put together.
    #[error("the request could not be put together")]
    Build(#[from] http::Error),
}
