//! Assets and their parts: what may be registered, and what becomes of it.
//!
//! Invariants: the parts of an asset cover its file exactly once; the size of every part is known before its URL
//! is; an asset is joined once, when its last part arrives, and never changes afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::answer::{self, Answer};
use crate::clock::{rfc3339, stamp};
use crate::fields::{Fields, bad_request, invalid};
use crate::log::CreateFields;
use crate::pairing::Bearer;
use crate::presign::Grant;
use crate::world::{Settings, State, World};

/// Smallest size of a part that is not the last one.
pub(crate) const MIN_PART: u64 = 5 << 20;
/// Largest size of a part.
pub(crate) const MAX_PART: u64 = 5 << 30;
/// Largest number of parts.
pub(crate) const MAX_PARTS: u64 = 10_000;
/// Largest file.
pub(crate) const MAX_FILE: u64 = 5 << 40;

/// How far an asset got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssetStage {
    /// Registered; parts are missing.
    Created,
    /// All parts are there and are being joined.
    Joining,
    /// The file lies in its place.
    Delivered,
    /// The simulator could not write the file.
    Failed(String),
}

pub(crate) struct Asset {
    pub(crate) id: String,
    pub(crate) resource_id: String,
    request_id: String,
    pub(crate) name: String,
    pub(crate) filetype: String,
    pub(crate) extension: String,
    pub(crate) filesize: Option<u64>,
    pub(crate) offset: u64,
    pub(crate) channel: u32,
    pub(crate) client_id: String,
    pub(crate) project_id: String,
    pub(crate) device_name: String,
    pub(crate) created_at: SystemTime,
    pub(crate) captured_at: SystemTime,
    pub(crate) parts: BTreeMap<u32, Part>,
    pub(crate) realtime: Option<Realtime>,
    pub(crate) auto_version_id: Option<String>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) stage: AssetStage,
}

pub(crate) struct Part {
    pub(crate) size: u64,
    /// When its URLs were issued; a real-time part may have several.
    issued_at: Vec<SystemTime>,
    pub(crate) stored: Option<[u8; 16]>,
    pub(crate) puts: u32,
}

/// What only a growing file has.
pub(crate) struct Realtime {
    pub(crate) default_name: bool,
    pub(crate) final_part: Option<u32>,
}

/// One part as the admin sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartView {
    /// Counts from 1.
    pub number: u32,
    /// Bytes.
    pub size: u64,
    /// MD5 in hexadecimal of the bytes that count, once stored.
    pub md5: Option<String>,
    /// How often it was stored whole.
    pub puts: u32,
}

/// An asset as the admin sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssetView {
    /// Its key.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its MIME type.
    pub filetype: String,
    /// Bytes, once known.
    pub filesize: Option<u64>,
    /// The `offset` it was created with, in seconds.
    pub offset: u64,
    /// The channel's index.
    pub channel: u32,
    /// The unit it came from.
    pub client_id: String,
    /// The project it is in.
    pub project_id: String,
    /// When it was registered (simulated time).
    #[serde(with = "rfc3339")]
    pub created_at: SystemTime,
    /// Registration minus offset.
    #[serde(with = "rfc3339")]
    pub captured_at: SystemTime,
    /// Whether it was registered as a growing file.
    pub is_realtime_upload: bool,
    /// The asset this one is the next version of.
    pub auto_version_id: Option<String>,
    /// Fields of the create call that the protocol does not name.
    pub metadata: Map<String, Value>,
    /// How far it got.
    pub stage: AssetStage,
    /// Its parts in order.
    pub parts: Vec<PartView>,
}

/// A file that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The asset.
    pub asset_id: String,
    /// The asset's name, which the file's name may differ from.
    pub name: String,
    /// The unit it came from.
    pub client_id: String,
    /// The project it is in.
    pub project_id: String,
    /// Where the file lies.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// MD5 of the whole file, hexadecimal.
    pub md5: String,
    /// SHA-256 of the whole file, hexadecimal.
    pub sha256: String,
    /// Number of parts it came in.
    pub parts: u32,
    /// Registration minus offset.
    #[serde(with = "rfc3339")]
    pub captured_at: SystemTime,
    /// When the last part had arrived and all were joined (simulated time).
    #[serde(with = "rfc3339")]
    pub delivered_at: SystemTime,
}

const KNOWN: [&str; 9] = [
    "name",
    "extension",
    "filetype",
    "filesize",
    "offset",
    "channel",
    "parts",
    "is_realtime_upload",
    "auto_version_id",
];

/// What the log keeps of a create call, whether or not it is valid.
pub(crate) fn create_fields(fields: &Fields) -> CreateFields {
    let whole = |name: &str| fields.whole(name).ok().flatten();
    CreateFields {
        name: fields.text("name").ok().flatten(),
        filetype: fields.text("filetype").ok().flatten(),
        filesize: whole("filesize"),
        offset: whole("offset"),
        channel: whole("channel").and_then(|channel| u32::try_from(channel).ok()),
        parts: whole("parts"),
        is_realtime_upload: fields
            .flag("is_realtime_upload")
            .ok()
            .flatten()
            .unwrap_or(false),
    }
}

/// Registers an asset. The error is the answer to give.
pub(crate) fn create(
    world: &World,
    bearer: &Bearer,
    fields: &Fields,
) -> Result<(String, Value), Box<Answer>> {
    let realtime = fields.flag("is_realtime_upload")?.unwrap_or(false);
    if realtime && fields.is_form() {
        return Err(bad_request("a real-time upload must be created with JSON"));
    }
    let filetype = fields.text("filetype")?.unwrap_or_default();
    if realtime && filetype.is_empty() {
        return Err(bad_request("`filetype` is required for a real-time upload"));
    }
    let offset = fields.whole("offset")?.unwrap_or(0);
    let channel = fields.whole("channel")?.unwrap_or(0);
    let parts = fields.whole("parts")?;
    let filesize = fields.whole("filesize")?;
    let auto_version_id = fields.text("auto_version_id")?;
    if auto_version_id
        .as_deref()
        .is_some_and(|id| uuid::Uuid::parse_str(id).is_err())
    {
        return Err(invalid("`auto_version_id` must be a UUID"));
    }
    let (name, extension, default_name) = name_of(fields, realtime)?;
    match filesize {
        Some(_) if realtime => {
            return Err(bad_request(
                "`filesize` must be absent from a real-time upload",
            ));
        }
        None if !realtime => return Err(invalid("`filesize` is required")),
        Some(size) if size > MAX_FILE => return Err(invalid("`filesize` is more than 5 TiB")),
        Some(_) | None => {}
    }
    let settings = &world.settings;
    let channel = u32::try_from(channel)
        .ok()
        .filter(|channel| *channel < settings.channels.max(1));
    let channel = channel.ok_or_else(|| invalid("there is no such `channel`"))?;
    let now = world.clock.now();
    let captured_at = now
        .checked_sub(Duration::from_secs(offset))
        .filter(|at| *at >= SystemTime::UNIX_EPOCH);
    let captured_at = captured_at.ok_or_else(|| invalid("`offset` reaches back too far"))?;

    world.change(|state| {
        if state.paused_at(&bearer.client_id, channel, captured_at) {
            return Err(Box::new(answer::channel_paused()));
        }
        let sizes = match filesize {
            Some(size) => {
                part_sizes(size, parts, settings).ok_or_else(|| Box::new(answer::went_wrong()))?
            }
            None => Vec::new(),
        };
        let device = state
            .devices
            .get(&bearer.client_id)
            .ok_or_else(|| Box::new(answer::not_authorized()))?;
        let id = || uuid::Uuid::new_v4().to_string();
        let part = |size| Part {
            size,
            issued_at: vec![now],
            stored: None,
            puts: 0,
        };
        let asset = Asset {
            id: id(),
            resource_id: id(),
            request_id: uuid::Uuid::new_v4().simple().to_string(),
            name,
            filetype: if filetype.is_empty() {
                "application/octet-stream".to_owned()
            } else {
                filetype
            },
            extension,
            filesize,
            offset,
            channel,
            client_id: bearer.client_id.clone(),
            project_id: device.project_id.clone(),
            device_name: device.name.clone(),
            created_at: now,
            captured_at,
            parts: (1..).zip(sizes.into_iter().map(part)).collect(),
            realtime: realtime.then_some(Realtime {
                default_name,
                final_part: None,
            }),
            auto_version_id,
            metadata: fields.rest(&KNOWN),
            stage: AssetStage::Created,
        };
        let creator = device.creator_id().to_owned();
        let body = if realtime {
            json!({ "id": asset.id, "name": asset.name })
        } else {
            asset_object(&asset, &creator, &asset.urls(world))
        };
        let id = asset.id.clone();
        state.asset_order.push(id.clone());
        state.assets.insert(id.clone(), asset);
        Ok((id, body))
    })
}

/// Name, extension without its dot, and whether the name is the server's own.
fn name_of(fields: &Fields, realtime: bool) -> Result<(String, String, bool), Box<Answer>> {
    let name = fields.text("name")?.filter(|name| !name.is_empty());
    let given = fields.text("extension")?.filter(|_| realtime);
    if given
        .as_deref()
        .is_some_and(|extension| !extension.starts_with('.') || extension.len() < 2)
    {
        return Err(bad_request(
            "`extension` must be a dot and at least one character",
        ));
    }
    let extension_of = |name: &str| {
        let extension = name
            .rsplit_once('.')
            .map(|(_, extension)| extension)
            .unwrap_or_default();
        let plain =
            !extension.is_empty() && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain && extension.len() <= 16 {
            extension.to_ascii_lowercase()
        } else {
            "bin".to_owned()
        }
    };
    match (name, given) {
        (Some(name), Some(extension))
            if !name.to_lowercase().ends_with(&extension.to_lowercase()) =>
        {
            Err(bad_request(
                "`extension` does not match the extension of `name`",
            ))
        }
        (Some(name), None) if realtime && !has_extension(&name) => Err(bad_request(
            "a real-time upload needs a `name` with an extension, or `extension`",
        )),
        (Some(name), _) => {
            let extension = extension_of(&name);
            Ok((name, extension, false))
        }
        (None, Some(extension)) => Ok((
            format!("[new file]{extension}"),
            extension_of(&extension),
            true,
        )),
        (None, None) if realtime => Err(bad_request(
            "a real-time upload needs `name` or `extension`",
        )),
        (None, None) => Err(invalid("`name` is required")),
    }
}

/// A dot with something after it.
pub(crate) fn has_extension(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(_, rest)| !rest.is_empty())
}

/// The sizes of the parts of a file, or `None` if the limits do not allow that number.
fn part_sizes(filesize: u64, wanted: Option<u64>, settings: &Settings) -> Option<Vec<u64>> {
    let count = match wanted {
        Some(0) => return None,
        Some(count) if count > MAX_PARTS => return None,
        Some(count) if count > 1 && filesize.div_ceil(count) < MIN_PART => return None,
        Some(count) => count,
        None => filesize
            .div_ceil(settings.default_chunk_size.max(1))
            .clamp(1, MAX_PARTS),
    };
    let size = filesize.div_ceil(count);
    if size > MAX_PART {
        return None;
    }
    let last = filesize - size * (count - 1);
    let whole = usize::try_from(count - 1).ok()?;
    Some(std::iter::repeat_n(size, whole).chain([last]).collect())
}

impl Asset {
    /// The upload URLs of a finished file, in file order.
    fn urls(&self, world: &World) -> Vec<String> {
        self.parts
            .keys()
            .filter_map(|number| self.url(world, *number))
            .collect()
    }

    /// The newest URL of a part.
    pub(crate) fn url(&self, world: &World, number: u32) -> Option<String> {
        let issued_at = *self.parts.get(&number)?.issued_at.last()?;
        Some(self.url_issued(world, number, issued_at))
    }

    /// Every URL ever issued for this asset.
    pub(crate) fn all_urls(&self, world: &World) -> Vec<String> {
        let issues = self
            .parts
            .iter()
            .flat_map(|(number, part)| part.issued_at.iter().map(move |at| (*number, *at)));
        issues
            .map(|(number, at)| self.url_issued(world, number, at))
            .collect()
    }

    fn url_issued(&self, world: &World, part: u32, issued_at: SystemTime) -> String {
        world.signer.url(&Grant {
            asset_id: &self.id,
            resource_id: &self.resource_id,
            request_id: &self.request_id,
            project_id: &self.project_id,
            extension: &self.extension,
            filetype: &self.filetype,
            realtime: self.realtime.is_some(),
            part,
            total: self.realtime.is_none().then_some(self.parts.len()),
            issued_at,
        })
    }

    /// Registers a part of a growing file, or issues another URL for one of the same size.
    pub(crate) fn register(&mut self, number: u32, size: u64, now: SystemTime) {
        let fresh = || Part {
            size,
            issued_at: Vec::new(),
            stored: None,
            puts: 0,
        };
        self.parts
            .entry(number)
            .or_insert_with(fresh)
            .issued_at
            .push(now);
    }

    /// Whether every byte is there.
    pub(crate) fn complete(&self) -> bool {
        let sum: u64 = self.parts.values().map(|part| part.size).sum();
        let closed = self
            .realtime
            .as_ref()
            .is_none_or(|realtime| realtime.final_part.is_some());
        closed
            && self.filesize == Some(sum)
            && self.parts.values().all(|part| part.stored.is_some())
    }

    pub(crate) fn view(&self) -> AssetView {
        AssetView {
            id: self.id.clone(),
            name: self.name.clone(),
            filetype: self.filetype.clone(),
            filesize: self.filesize,
            offset: self.offset,
            channel: self.channel,
            client_id: self.client_id.clone(),
            project_id: self.project_id.clone(),
            created_at: self.created_at,
            captured_at: self.captured_at,
            is_realtime_upload: self.realtime.is_some(),
            auto_version_id: self.auto_version_id.clone(),
            metadata: self.metadata.clone(),
            stage: self.stage.clone(),
            parts: self
                .parts
                .iter()
                .map(|(number, part)| PartView {
                    number: *number,
                    size: part.size,
                    md5: part.stored.map(hex::encode),
                    puts: part.puts,
                })
                .collect(),
        }
    }
}

impl State {
    pub(crate) fn asset_views(&self) -> Vec<AssetView> {
        self.asset_order
            .iter()
            .filter_map(|id| self.assets.get(id))
            .map(Asset::view)
            .collect()
    }
}

/// The asset object in the shape of the service: what clients need, and the fields they have seen as null.
fn asset_object(asset: &Asset, creator: &str, urls: &[String]) -> Value {
    const NULLS: [&str; 34] = [
        "archive_from",
        "archive_scheduled_at",
        "archive_status",
        "archived_at",
        "asset_type",
        "audio_tracks",
        "checksums",
        "cover",
        "cover_asset_id",
        "deleted_at",
        "description",
        "drm",
        "duration",
        "fps",
        "hard_deleted_at",
        "hls_manifest",
        "includes",
        "original",
        "page_proxy",
        "rating",
        "realtime_upload",
        "source",
        "thumb",
        "timecode",
        "transcode_statuses",
        "transcoded_at",
        "upload_completed_at",
        "upload_failed_at",
        "uploaded_at",
        "waveform",
        "webm_360",
        "workfront_task_id",
        "properties",
        "metadata_flags",
    ];
    let mut object = Map::new();
    for name in NULLS {
        object.insert(name.to_owned(), Value::Null);
    }
    for name in [
        "copy",
        "is_360",
        "is_forensically_watermarked",
        "is_hls_required",
        "is_session_watermarked",
    ] {
        object.insert(name.to_owned(), json!(false));
    }
    for name in [
        "comment_count",
        "frames",
        "item_count",
        "public_item_count",
        "versions",
        "view_count",
    ] {
        object.insert(name.to_owned(), json!(0));
    }
    let now = stamp(asset.created_at);
    let facts = json!({
        "_type": "file", "type": "file", "id": asset.id, "name": asset.name, "filetype": asset.filetype,
        "filesize": asset.filesize, "status": "created", "label": "none", "index": -1.0, "private": false,
        "shared": false, "allow_original_playback": true, "autoversion_id": asset.auto_version_id,
        "creator_id": creator, "project_id": asset.project_id, "resource_id": asset.resource_id,
        "inserted_at": now, "updated_at": now, "upload_urls": urls, "original_upload": urls.first(),
    });
    if let Value::Object(facts) = facts {
        object.extend(facts);
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(filesize: u64, wanted: Option<u64>) -> Option<Vec<u64>> {
        let settings = Settings {
            default_chunk_size: 25 << 20,
            ..crate::simulator::default_settings()
        };
        part_sizes(filesize, wanted, &settings)
    }

    #[test]
    fn the_worked_example_and_the_limits() {
        assert_eq!(
            sizes(21_136_250, Some(4)).unwrap(),
            [5_284_063, 5_284_063, 5_284_063, 5_284_061]
        );
        assert_eq!(
            sizes(21_136_250, Some(2)).unwrap(),
            [10_568_125, 10_568_125]
        );
        assert_eq!(sizes(21_136_250, None).unwrap(), [21_136_250]);
        assert_eq!(sizes(0, None).unwrap(), [0]);
        assert_eq!(sizes(21_136_250, Some(5)), None);
        assert_eq!(sizes(21_136_250, Some(0)), None);
        assert_eq!(sizes(MAX_FILE, Some(10_001)), None);
        assert_eq!(sizes(MAX_PART + 1, Some(1)), None);
        assert_eq!(sizes(1, Some(1)).unwrap(), [1]);
        assert_eq!(sizes(2 * MIN_PART, Some(2)).unwrap(), [MIN_PART, MIN_PART]);
        assert_eq!(sizes(2 * MIN_PART - 2, Some(2)), None);
        let most = sizes(MAX_FILE, None).unwrap();
        assert_eq!((most.len(), most.iter().sum::<u64>()), (10_000, MAX_FILE));
    }
}
