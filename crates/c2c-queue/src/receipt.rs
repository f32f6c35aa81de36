//! Receipts: the durable proof of a delivery.

use serde::{Deserialize, Serialize};

use crate::clock::{Capture, WallTime};
use crate::media::MediaId;

/// One chunk as the service acknowledged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptChunk {
    /// 0-based, in file order.
    pub number: u32,
    /// First byte within the file.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// The ETag the server answered with.
    pub etag: Option<String>,
    /// MD5 of what was sent, hexadecimal.
    pub md5: Option<String>,
    /// The ETag has the form of an MD5 and equals it. `None` when it has another form.
    pub verified: Option<bool>,
    /// Tries it took.
    pub tries: u32,
    /// When it was acknowledged (wall clock).
    pub sent_at: WallTime,
}

/// The durable proof of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version of this form; `1`.
    pub version: u32,
    /// The media.
    pub media: MediaId,
    /// The name in Frame.io.
    pub name: String,
    /// Where the file was.
    pub path: String,
    /// MIME type.
    pub filetype: String,
    /// Length in bytes.
    pub size: u64,
    /// The asset.
    pub asset_id: String,
    /// The project it was delivered to.
    pub project_id: String,
    /// When the media was created.
    pub capture: Capture,
    /// When it was added, registered and delivered (wall clock).
    pub added_at: WallTime,
    /// When the delivered registration was made (wall clock).
    pub registered_at: WallTime,
    /// When the last chunk was acknowledged (wall clock).
    pub delivered_at: WallTime,
    /// Tries, registration and chunks together.
    pub tries: u64,
    /// How many times an asset was created; more than one means that upload URLs died or the file changed.
    pub registrations: u32,
    /// Creates whose answer was lost; each may have left an asset without content.
    pub possible_duplicates: u32,
    /// Bytes sent more than once, or in vain.
    pub bytes_resent: u64,
    /// The chunks.
    pub chunks: Vec<ReceiptChunk>,
    /// CRC-64/NVME of the whole file as it was sent, written as S3 does (`x-amz-checksum-crc64nvme` of a full object: base64 of
    /// 8 bytes). `None` if a chunk was sent without one, as all were by earlier versions.
    #[serde(default)]
    pub crc64nvme: Option<String>,
    /// SHA-256 of the whole file, hexadecimal; absent until the receipt is sealed, which is done on request only: it takes
    /// a second reading of the file.
    pub sha256: Option<String>,
    /// Why there is no SHA-256, if there will be none.
    pub unsealed: Option<String>,
}
