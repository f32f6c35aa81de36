//! The faults that the policy knows, each with its scope and its words.

use std::time::{Duration, SystemTime};

use c2c_queue::{FaultRecord, Scope};

/// How long the server asks us to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `Retry-After` in seconds.
    pub delay: Option<Duration>,
    /// `Retry-After` as a date.
    pub until: Option<SystemTime>,
    /// The time in which the rate-limit bucket refills (`x-ratelimit-window` with nothing remaining).
    pub refill: Option<Duration>,
}

/// What went wrong, precise enough to decide what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No name, no route, no connection: the request was never sent.
    Unreachable {
        /// What is broken, for a person.
        words: String,
    },
    /// The certificate or the host name is wrong: somebody else answers.
    Untrusted {
        /// What the verifier said.
        words: String,
    },
    /// A middle box answered instead of the service: HTML, a redirect, an answer without the expected shape.
    MiddleBox {
        /// What came instead.
        words: String,
    },
    /// The connection broke or fell silent after the request had begun.
    Interrupted {
        /// How it broke.
        words: String,
        /// Whether the link was found to work right after.
        link_up: bool,
    },
    /// No byte was accepted by the peer for too long, or the attempt took too long as a whole.
    Stalled {
        /// Which limit was passed.
        words: String,
        /// Whether the link was found to work right after.
        link_up: bool,
    },
    /// 401: the access token is not accepted.
    Unauthorized,
    /// 402: the account is over its limits.
    AccountLimit,
    /// 403 of the API: no permission, or something in between blocks the call.
    Forbidden,
    /// 404 of the API with the service's own words.
    NotFound,
    /// 409 "Channel Paused": captured in a pause.
    ChannelPaused,
    /// 409 `slow_down`.
    SlowDown(Asked),
    /// Another 409.
    Conflict,
    /// 400 or 422: the service refuses the request itself.
    BadRequest,
    /// 500 while `parts` was asked for: the service may dislike the number.
    PartsRefused,
    /// 429.
    RateLimited(Asked),
    /// 500 of the API.
    ServerError,
    /// 408, 425, 502, 503, 504, 520 to 527: trouble between us and the service.
    Infrastructure(Asked),
    /// A passing fault of the storage: 5xx, SlowDown, RequestTimeout, IncompleteBody, BadDigest.
    Storage(Asked),
    /// The upload URL is too old.
    UrlExpired,
    /// The storage, in its own words, does not know the key or the upload: the asset was removed.
    UploadGone,
    /// The storage refuses the signature or the access.
    SignatureRefused,
    /// The storage says that our request is malformed (length, size limits, method).
    Malformed,
    /// What the storage stored is not what we sent.
    DigestMismatch,
    /// The file cannot be read.
    Unreadable {
        /// What the system said.
        words: String,
    },
    /// The file is gone for good.
    FileGone {
        /// Where it was looked for.
        words: String,
    },
    /// The volume with the file is not mounted.
    VolumeAway,
    /// The file is not what it was when it was registered.
    FileChanged {
        /// What differs.
        words: String,
    },
    /// The file is still being written.
    FileChanging,
    /// The moment of capture cannot be known.
    CaptureTimeUnknown {
        /// Why not.
        words: String,
    },
    /// The channel is known to be paused and the media is fresh.
    PausedNow,
    /// An earlier worker died with this item in its hands, once too often.
    WorkerLost,
    /// Our own mistake: a panic, a broken plan.
    Program {
        /// What happened.
        words: String,
    },
    /// The service accepted a create, but its answer is of no use: each repetition may leave an empty asset.
    NotUnderstood {
        /// What is wrong with it.
        words: String,
    },
    /// An answer that nothing above describes.
    Unknown,
}

/// What a fault means for more than the one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The link is broken: everybody waits while one probe looks.
    LinkDown,
    /// The access token must be refreshed.
    Refresh,
    /// No more registrations until a slow probe succeeds.
    StopRegistering,
}

impl Fault {
    /// Whose fault it is.
    pub fn scope(&self) -> Scope {
        match self {
            Fault::Unreachable { .. } | Fault::Untrusted { .. } | Fault::MiddleBox { .. } => {
                Scope::Link
            }
            Fault::Interrupted { link_up, .. } | Fault::Stalled { link_up, .. } => {
                if *link_up {
                    Scope::Service
                } else {
                    Scope::Link
                }
            }
            Fault::Unauthorized => Scope::Credentials,
            Fault::AccountLimit | Fault::Forbidden => Scope::Account,
            Fault::ChannelPaused | Fault::PausedNow => Scope::Refusal,
            Fault::SlowDown(_)
            | Fault::Conflict
            | Fault::NotFound
            | Fault::RateLimited(_)
            | Fault::ServerError
            | Fault::Infrastructure(_)
            | Fault::Storage(_)
            | Fault::DigestMismatch
            | Fault::NotUnderstood { .. }
            | Fault::Unknown => Scope::Service,
            Fault::BadRequest
            | Fault::PartsRefused
            | Fault::SignatureRefused
            | Fault::Malformed => Scope::Request,
            Fault::UrlExpired | Fault::UploadGone => Scope::Stale,
            Fault::Unreadable { .. }
            | Fault::FileGone { .. }
            | Fault::VolumeAway
            | Fault::FileChanged { .. }
            | Fault::FileChanging
            | Fault::CaptureTimeUnknown { .. } => Scope::Media,
            Fault::WorkerLost | Fault::Program { .. } => Scope::Program,
        }
    }

    /// What it means for more than the one item.
    pub fn effect(&self) -> Effect {
        match self {
            Fault::Unreachable { .. } | Fault::Untrusted { .. } | Fault::MiddleBox { .. } => {
                Effect::LinkDown
            }
            Fault::Interrupted { link_up: false, .. } | Fault::Stalled { link_up: false, .. } => {
                Effect::LinkDown
            }
            Fault::Unauthorized => Effect::Refresh,
            Fault::AccountLimit => Effect::StopRegistering,
            _ => Effect::None,
        }
    }

    /// The stable short name used in history lines and JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Fault::Unreachable { .. } => "unreachable",
            Fault::Untrusted { .. } => "untrusted_tls",
            Fault::MiddleBox { .. } => "middle_box",
            Fault::Interrupted { .. } => "interrupted",
            Fault::Stalled { .. } => "stalled",
            Fault::Unauthorized => "unauthorized",
            Fault::AccountLimit => "account_limit",
            Fault::Forbidden => "forbidden",
            Fault::NotFound => "not_found",
            Fault::ChannelPaused => "channel_paused",
            Fault::SlowDown(_) => "slow_down",
            Fault::Conflict => "conflict",
            Fault::BadRequest => "bad_request",
            Fault::PartsRefused => "parts_refused",
            Fault::RateLimited(_) => "rate_limited",
            Fault::ServerError => "server_error",
            Fault::Infrastructure(_) => "infrastructure",
            Fault::Storage(_) => "storage",
            Fault::UrlExpired => "url_expired",
            Fault::UploadGone => "upload_gone",
            Fault::SignatureRefused => "signature_refused",
            Fault::Malformed => "malformed",
            Fault::DigestMismatch => "digest_mismatch",
            Fault::Unreadable { .. } => "unreadable",
            Fault::FileGone { .. } => "file_gone",
            Fault::VolumeAway => "volume_away",
            Fault::FileChanged { .. } => "file_changed",
            Fault::FileChanging => "file_changing",
            Fault::CaptureTimeUnknown { .. } => "capture_time_unknown",
            Fault::PausedNow => "paused_now",
            Fault::WorkerLost => "worker_lost",
            Fault::Program { .. } => "program",
            Fault::NotUnderstood { .. } => "not_understood",
            Fault::Unknown => "unknown",
        }
    }

    /// One sentence for a person: what happened and, where there is something, what to do.
    pub fn words(&self) -> String {
        match self {
            Fault::Unreachable { words } => format!("Frame.io cannot be reached: {words}; check the network"),
            Fault::Untrusted { words } => format!(
                "the server's certificate is not trusted ({words}); sign in to this Wi-Fi, check the clock of this unit, or add the CA"
            ),
            Fault::MiddleBox { words } => {
                format!("something on the way answered instead of Frame.io ({words}); sign in to this Wi-Fi")
            }
            Fault::Interrupted { words, .. } => format!("the connection broke: {words}"),
            Fault::Stalled { words, .. } => format!("the transfer stalled: {words}"),
            Fault::Unauthorized => "the access token is not accepted any more; it is being refreshed".into(),
            Fault::AccountLimit => {
                "the account of this project is over its limits; ask its owner to make room in Frame.io".into()
            }
            Fault::Forbidden => {
                "Frame.io forbids the upload; check the connection's permissions in the project, or the network's filters"
                    .into()
            }
            Fault::NotFound => "Frame.io does not know the address that was asked for".into(),
            Fault::ChannelPaused => {
                "captured while the channel was paused, so it is not uploaded; retry by hand if it may be".into()
            }
            Fault::PausedNow => "the channel is paused in Frame.io; new media waits until it is resumed".into(),
            Fault::SlowDown(_) | Fault::RateLimited(_) => "Frame.io asks us to slow down".into(),
            Fault::Conflict => "Frame.io reports a conflict".into(),
            Fault::BadRequest => "Frame.io refuses this media; see its words, then retry by hand".into(),
            Fault::PartsRefused => "Frame.io refused the number of chunks; its own choice is taken instead".into(),
            Fault::ServerError => "Frame.io had an error of its own".into(),
            Fault::Infrastructure(_) => "the way to Frame.io is in trouble".into(),
            Fault::Storage(_) => "the storage had an error of its own".into(),
            Fault::UrlExpired => "the upload URLs expired; the media is registered again".into(),
            Fault::UploadGone => {
                "the storage does not know this upload any more, as if its asset was removed; the media is registered again".into()
            }
            Fault::SignatureRefused => "the storage refused the signature of the upload URL".into(),
            Fault::Malformed => "the storage says that the request is malformed; please report this".into(),
            Fault::DigestMismatch => "what the storage received differs from what was sent; the chunk is sent again".into(),
            Fault::Unreadable { words } => format!("the file cannot be read: {words}; check the disk or the card"),
            Fault::FileGone { words } => words.clone(),
            Fault::VolumeAway => "the volume with this file is not mounted; insert it again".into(),
            Fault::FileChanged { words } => format!("the file changed after it was registered: {words}"),
            Fault::FileChanging => "the file is still being written; it waits until it is stable".into(),
            Fault::CaptureTimeUnknown { words } => format!(
                "capture time unknown: {words}; release it by hand if it was not captured during a pause"
            ),
            Fault::WorkerLost => "the program ended several times while working on this".into(),
            Fault::Program { words } => format!("a fault of this program: {words}; please report it"),
            Fault::NotUnderstood { words } => {
                format!("Frame.io accepted the media with an answer that is not understood ({words}); please report it")
            }
            Fault::Unknown => "an answer that is not understood".into(),
        }
    }

    /// The fault as it is remembered, with the server's own words if there are any.
    pub fn record(&self, server: Option<String>) -> FaultRecord {
        FaultRecord {
            scope: self.scope(),
            code: self.code().to_owned(),
            words: self.words(),
            server,
        }
    }
}
