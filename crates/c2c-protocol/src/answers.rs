//! What the service answers.
//!
//! Invariants: tokens and the device code are secrets from the moment they are decoded; a code that is shown to a
//! person is printable; fields that nobody needs may be missing or null.

use std::fmt;
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use crate::refusal::RateLimit;
use crate::upload_url::UploadUrl;

/// A value, and what the answer says beside it.
#[derive(Debug, Clone)]
pub struct Answered<T> {
    /// The answer itself.
    pub value: T,
    /// The time of the server (`Date`).
    pub date: Option<SystemTime>,
    /// The rate limit the answer reports.
    pub rate_limit: Option<RateLimit>,
}

/// A pairing code.
#[derive(Debug, Clone, Deserialize)]
pub struct DeviceCode {
    /// The handle for polling; never shown.
    #[serde(deserialize_with = "secret")]
    pub device_code: SecretString,
    /// What the user types; printable and shown exactly as received.
    #[serde(deserialize_with = "printable")]
    pub user_code: String,
    /// How long the code lives, from the moment of the answer.
    #[serde(deserialize_with = "seconds")]
    pub expires_in: Duration,
    /// The shortest gap between two polls; 5 s where the service does not say.
    #[serde(deserialize_with = "seconds", default = "default_interval")]
    pub interval: Duration,
    /// The name of the device; empty where the service does not say.
    #[serde(default, deserialize_with = "text_or_null")]
    pub name: String,
    /// The page where the user types the code; empty where the service does not say.
    #[serde(default, deserialize_with = "text_or_null")]
    pub verification_uri: String,
    /// The page with the code filled in, for a link or a QR code.
    #[serde(default, alias = "verification_url_complete")]
    pub verification_uri_complete: Option<String>,
}

/// An access token and the single-use token that renews it.
#[derive(Debug, Clone, Deserialize)]
pub struct TokenPair {
    /// The bearer token of the API.
    #[serde(deserialize_with = "secret")]
    pub access_token: SecretString,
    /// Good for one refresh.
    #[serde(deserialize_with = "secret")]
    pub refresh_token: SecretString,
    /// How long the access token lives, from the moment of the answer.
    #[serde(deserialize_with = "seconds")]
    pub expires_in: Duration,
}

/// The answer to a poll.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PollAnswer {
    /// The user has authorized the device.
    Granted(TokenPair),
    /// Not yet; ask again after the interval.
    Pending,
    /// Asked too soon; lengthen the interval by 5 s.
    SlowDown,
    /// The code has timed out; ask for a new one.
    Expired,
    /// The user has said no.
    Denied,
    /// The code is unknown or was used before; ask for a new one.
    InvalidGrant,
}

/// The identity of this unit and the project it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Id of the unit within the project.
    pub id: String,
    /// Id of the unit.
    pub device_id: String,
    /// Name as shown to users.
    pub name: String,
    /// `video`, `audio` or `data`.
    pub asset_type: String,
    /// Online, offline or paused.
    pub status: DeviceStatus,
    /// IANA name of the time zone.
    pub timezone: Option<String>,
    /// The key of the project; never empty.
    pub project_id: String,
    /// Name of the project as shown to users; may change.
    pub project_name: String,
    /// When the authorization ends, in the words of the service; `None` for never.
    pub authorization_expires_at: Option<String>,
    /// The streams of the unit.
    pub channels: Vec<Channel>,
}

/// Status of the unit as the service sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceStatus {
    /// Seen lately.
    Online,
    /// Not seen lately.
    Offline,
    /// Media created now will be refused.
    Paused,
    /// A word this version does not know.
    Other(String),
}

impl fmt::Display for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Paused => "paused",
            Self::Other(other) => other,
        })
    }
}

impl<'de> Deserialize<'de> for DeviceStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(match word.to_ascii_lowercase().as_str() {
            "online" => Self::Online,
            "offline" => Self::Offline,
            "paused" => Self::Paused,
            _ => Self::Other(word),
        })
    }
}

/// One stream of the unit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Channel {
    /// Id of the channel.
    pub id: String,
    /// Name of the channel.
    #[serde(default, deserialize_with = "text_or_null")]
    pub name: String,
    /// The number that is sent as `channel` when a media is registered.
    #[serde(default)]
    pub external_index: Option<u32>,
    /// Online or offline, where the service says.
    #[serde(default)]
    pub status: Option<DeviceStatus>,
}

/// A registered asset.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Its id; never empty.
    pub id: String,
    /// Its name as the service has it.
    pub name: String,
    /// Where the chunks go, in file order; never empty.
    pub upload_urls: Vec<UploadUrl>,
}

/// A registered asset of a growing file; its URLs are asked for part by part.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RealtimeAsset {
    /// Its id; never empty.
    #[serde(deserialize_with = "non_empty")]
    pub id: String,
    /// Its name as the service has it.
    #[serde(default, deserialize_with = "text_or_null")]
    pub name: String,
}

/// The storage has taken a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkAnswer {
    /// The entity tag without its quotes: the MD5 of the chunk in hex. Missing means there is no proof.
    pub etag: Option<String>,
    /// The id under which the storage logged the request.
    pub request_id: Option<String>,
    /// The time of the storage (`Date`).
    pub date: Option<SystemTime>,
}

/// `GET /v2/devices/me` on the wire.
#[derive(Deserialize)]
pub(crate) struct MeWire {
    #[serde(deserialize_with = "non_empty")]
    id: String,
    #[serde(default, deserialize_with = "text_or_null")]
    device_id: String,
    #[serde(default, deserialize_with = "text_or_null")]
    name: String,
    #[serde(default, deserialize_with = "text_or_null")]
    asset_type: String,
    status: DeviceStatus,
    #[serde(default)]
    timezone: Option<String>,
    #[serde(deserialize_with = "non_empty")]
    project_id: String,
    #[serde(default)]
    project: Option<ProjectWire>,
    #[serde(default)]
    authorization: Option<AuthorizationWire>,
    #[serde(default)]
    channels: Option<Vec<Channel>>,
}

#[derive(Deserialize)]
struct ProjectWire {
    #[serde(default, deserialize_with = "text_or_null")]
    name: String,
}

#[derive(Deserialize)]
struct AuthorizationWire {
    #[serde(default)]
    expires_at: Option<String>,
}

impl From<MeWire> for Me {
    fn from(wire: MeWire) -> Self {
        Self {
            id: wire.id,
            device_id: wire.device_id,
            name: wire.name,
            asset_type: wire.asset_type,
            status: wire.status,
            timezone: wire.timezone,
            project_id: wire.project_id,
            project_name: wire.project.map(|project| project.name).unwrap_or_default(),
            authorization_expires_at: wire
                .authorization
                .and_then(|authorization| authorization.expires_at),
            channels: wire.channels.unwrap_or_default(),
        }
    }
}

/// The part of an asset object that matters, with its URLs still unread.
#[derive(Deserialize)]
pub(crate) struct AssetWire {
    #[serde(deserialize_with = "non_empty")]
    pub(crate) id: String,
    #[serde(default, deserialize_with = "text_or_null")]
    pub(crate) name: String,
    pub(crate) upload_urls: Vec<SecretText>,
}

/// The answer to a request for part URLs.
#[derive(Deserialize)]
pub(crate) struct PartUrlsWire {
    pub(crate) upload_urls: Vec<SecretText>,
}

/// A secret as an element of a list.
#[derive(Deserialize)]
pub(crate) struct SecretText(#[serde(deserialize_with = "secret")] pub(crate) SecretString);

/// `{"status":"ok"}`; an older form says `{"ok":true}`.
#[derive(Deserialize)]
pub(crate) struct HealthWire {
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    ok: Option<bool>,
}

impl HealthWire {
    pub(crate) fn is_ok(&self) -> bool {
        self.ok == Some(true)
            || self
                .status
                .as_deref()
                .is_some_and(|status| status.eq_ignore_ascii_case("ok"))
    }
}

fn default_interval() -> Duration {
    Duration::from_secs(5)
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Err(serde::de::Error::custom("is empty"));
    }
    Ok(SecretString::from(text))
}

fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(serde::de::Error::custom("is empty"));
    }
    Ok(text)
}

fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

fn printable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() || text.len() > 64 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(serde::de::Error::custom("is not a code that can be shown"));
    }
    Ok(text)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let value = f64::deserialize(deserializer)?;
    // Ten years: far beyond any token, and safe in every sum of times.
    if !(0.0..=315_360_000.0).contains(&value) {
        return Err(serde::de::Error::custom("is no sensible number of seconds"));
    }
    Ok(Duration::from_secs_f64(value))
}
