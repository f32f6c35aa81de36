//! What is asked of the service, and the checks before anything is sent.

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::chunks::{ChunkError, MAX_CHUNKS, MAX_FILE, MIN_CHUNK, check_parts};
use crate::error::RequestError;

/// The scope of every pairing.
pub const SCOPE: &str = "asset_create offline";

/// Longest asset name in bytes of UTF-8.
const MAX_NAME: usize = 255;

/// `POST /v2/devices/assets`: registers a finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateAsset {
    /// The name in the project: at most 255 bytes, no `/`, no control characters.
    pub name: String,
    /// The MIME type; every chunk must be sent with the same.
    pub filetype: String,
    /// The exact size in bytes.
    pub filesize: u64,
    /// Whole seconds between the capture and now. Leaving it out also leaves out the protection of pauses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The channel, 0 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<u32>,
    /// The wished number of chunks, see [`crate::allowed_parts`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<u32>,
    /// The asset this one is the next version of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_version_id: Option<String>,
}

impl CreateAsset {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        check_name(&self.name)?;
        filetype(&self.filetype)?;
        if self.filesize > MAX_FILE {
            return Err(ChunkError::FileTooLarge {
                filesize: self.filesize,
            }
            .into());
        }
        if let Some(parts) = self.parts {
            check_parts(self.filesize, parts)?;
        }
        Ok(())
    }
}

/// `POST /v2/devices/assets` for a file that is still growing. Give a name, an extension, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateRealtimeAsset {
    /// The name with its extension, if it is known already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The extension with its dot, e.g. `.mov`, if the name is not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    /// The MIME type; every part must be sent with the same.
    pub filetype: String,
    /// Whole seconds between the start of the recording and now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The channel, 0 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<u32>,
}

impl CreateRealtimeAsset {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        filetype(&self.filetype)?;
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let extension = |text: &str| {
            text.len() >= 2
                && text.starts_with('.')
                && !text.contains('/')
                && !text.contains(char::is_control)
        };
        match (&self.name, &self.extension) {
            (None, None) => Err(RequestError::Realtime {
                why: "a name or an extension is needed",
            }),
            (_, Some(given)) if !extension(given) => Err(RequestError::Realtime {
                why: "the extension must be a dot and at least one character",
            }),
            (Some(name), Some(given)) if !name.ends_with(given.as_str()) => {
                Err(RequestError::Realtime {
                    why: "the name does not end with the extension",
                })
            }
            _ => Ok(()),
        }
    }
}

/// Which parts of a growing file are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RealtimeParts {
    /// The parts, at least one.
    pub parts: Vec<RealtimePart>,
    /// The name, if the asset was created with an extension alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset_name: Option<String>,
    /// The size of the whole file in bytes; needed exactly with the final part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset_filesize: Option<u64>,
}

/// One part of a growing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RealtimePart {
    /// Its number from 1; the file is joined in ascending order, and numbers may be left out.
    pub number: u32,
    /// Its exact size in bytes; at least [`MIN_CHUNK`] unless it is the final one.
    pub size: u64,
    /// Whether it is the last of the file.
    pub is_final: bool,
}

impl RealtimeParts {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let refuse = |why| Err(RequestError::Realtime { why });
        if self.parts.is_empty() {
            return refuse("no part is named");
        }
        if self
            .parts
            .iter()
            .any(|part| !(1..=MAX_CHUNKS).contains(&part.number))
        {
            return refuse("part numbers run from 1 to 10000");
        }
        if self.parts.iter().any(|part| part.size > crate::MAX_CHUNK) {
            return refuse("a part is larger than 5 GiB");
        }
        if self
            .parts
            .iter()
            .any(|part| part.size < if part.is_final { 1 } else { MIN_CHUNK })
        {
            return refuse(
                "a part other than the final one is smaller than 5 MiB, or the final one is empty",
            );
        }
        match (
            self.parts.iter().filter(|part| part.is_final).count(),
            self.asset_filesize,
        ) {
            (0, _) => {}
            (1, Some(1..=MAX_FILE)) => {}
            (1, _) => return refuse("the final part needs the size of the whole file"),
            _ => return refuse("only one part can be the final one"),
        }
        if let Some(name) = &self.asset_name {
            check_name(name)?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), RequestError> {
    let refuse = |why| Err(RequestError::Name { why });
    if name.trim().is_empty() {
        return refuse("it is empty");
    }
    if name.len() > MAX_NAME {
        return refuse("it is longer than 255 bytes");
    }
    if name.contains('/') {
        return refuse("it contains a slash");
    }
    if name.contains(char::is_control) {
        return refuse("it contains a control character");
    }
    Ok(())
}

/// The type as a header: visible ASCII with a slash in the middle.
pub(crate) fn filetype(text: &str) -> Result<HeaderValue, RequestError> {
    let valid = text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && text.trim() == text
        && text
            .split_once('/')
            .is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty());
    if !valid {
        return Err(RequestError::FileType);
    }
    HeaderValue::from_str(text).map_err(|_| RequestError::FileType)
}

/// `Authorization: Bearer ...`, marked so that it is not printed.
pub(crate) fn bearer(token: &SecretString) -> Result<HeaderValue, RequestError> {
    let refuse = RequestError::Credential {
        what: "access token",
    };
    let token = token.expose_secret();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refuse);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| refuse)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A `multipart/form-data` body.
pub(crate) struct Form {
    pub(crate) content_type: HeaderValue,
    pub(crate) body: Bytes,
}

impl Form {
    /// Every field must have a name of ours and a value that is not empty.
    pub(crate) fn new(fields: &[(&'static str, &str)]) -> Result<Self, RequestError> {
        if let Some((what, _)) = fields.iter().find(|(_, value)| value.is_empty()) {
            return Err(RequestError::Credential { what });
        }
        // The boundary may be any line that no value contains.
        let boundary = (0_u32..)
            .map(|number| format!("c2c-form-boundary-{number:04}"))
            .find(|boundary| {
                fields
                    .iter()
                    .all(|(_, value)| !value.contains(boundary.as_str()))
            })
            .unwrap_or_default();
        let mut body = String::new();
        for (name, value) in fields {
            body += &format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
        }
        body += &format!("--{boundary}--\r\n");
        let content_type =
            HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"))
                .map_err(|error| RequestError::Build(error.into()))?;
        Ok(Self {
            content_type,
            body: Bytes::from(body),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset() -> CreateAsset {
        CreateAsset {
            name: "A001C003.mov".into(),
            filetype: "video/quicktime".into(),
            filesize: 21_136_250,
            offset: Some(10),
            channel: None,
            parts: None,
            auto_version_id: None,
        }
    }

    #[test]
    fn the_json_has_only_what_is_given() {
        let json = serde_json::to_value(asset()).unwrap();
        let expected = serde_json::json!({
            "name": "A001C003.mov", "filetype": "video/quicktime", "filesize": 21_136_250, "offset": 10
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn names_types_sizes_and_parts_are_checked() {
        assert!(asset().check().is_ok());
        let longest = "é".repeat(127) + "x";
        assert!(
            CreateAsset {
                name: longest.clone(),
                ..asset()
            }
            .check()
            .is_ok()
        );
        for name in ["", "  ", "a/b", "a\nb", "a\u{7f}b", &(longest + "x")] {
            let error = CreateAsset {
                name: name.into(),
                ..asset()
            }
            .check()
            .unwrap_err();
            assert!(matches!(error, RequestError::Name { .. }), "{name:?}");
        }
        for filetype in [
            "",
            "video",
            "/x",
            "video/",
            "video/quick\r\ntime",
            " video/x",
            "vidéo/x",
        ] {
            let error = CreateAsset {
                filetype: filetype.into(),
                ..asset()
            }
            .check()
            .unwrap_err();
            assert!(matches!(error, RequestError::FileType), "{filetype:?}");
        }
        let words = CreateAsset {
            parts: Some(5),
            ..asset()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(words.contains("allowed are 1 to 4"), "{words}");
        assert!(
            CreateAsset {
                filesize: MAX_FILE + 1,
                ..asset()
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn a_form_survives_hostile_values() {
        let form = Form::new(&[
            ("client_id", "c2c-form-boundary-0000"),
            ("client_secret", "a\r\n--b--\r\n"),
        ])
        .unwrap();
        assert_eq!(
            form.content_type,
            "multipart/form-data; boundary=c2c-form-boundary-0001"
        );
        let text = String::from_utf8(form.body.to_vec()).unwrap();
        assert_eq!(text.matches("--c2c-form-boundary-0001\r\n").count(), 2);
        assert!(text.ends_with("\r\n--c2c-form-boundary-0001--\r\n"));
        let Err(error) = Form::new(&[("client_id", "")]) else {
            panic!("an empty id is no id")
        };
        assert!(error.to_string().contains("client_id"), "{error}");
    }

    #[test]
    fn real_time_rules() {
        let part = |number, size, is_final| RealtimePart {
            number,
            size,
            is_final,
        };
        let ask = |parts: Vec<RealtimePart>, asset_filesize| RealtimeParts {
            parts,
            asset_name: None,
            asset_filesize,
        };
        assert!(ask(vec![part(1, MIN_CHUNK, false)], None).check().is_ok());
        assert!(
            ask(vec![part(10_000, 1, true)], Some(MIN_CHUNK + 1))
                .check()
                .is_ok()
        );
        for wrong in [
            ask(vec![], None),
            ask(vec![part(0, MIN_CHUNK, false)], None),
            ask(vec![part(10_001, MIN_CHUNK, false)], None),
            ask(vec![part(1, MIN_CHUNK - 1, false)], None),
            ask(vec![part(1, 0, true)], Some(1)),
            ask(vec![part(1, 1, true)], None),
            ask(vec![part(1, 1, true)], Some(MAX_FILE + 1)),
            ask(vec![part(1, 1, true), part(2, 1, true)], Some(2)),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        let growing = CreateRealtimeAsset {
            name: None,
            extension: Some(".mp4".into()),
            filetype: "video/mp4".into(),
            offset: Some(0),
            channel: None,
        };
        assert!(growing.check().is_ok());
        assert!(
            CreateRealtimeAsset {
                extension: Some("mp4".into()),
                ..growing.clone()
            }
            .check()
            .is_err()
        );
        assert!(
            CreateRealtimeAsset {
                name: Some("a.mov".into()),
                ..growing.clone()
            }
            .check()
            .is_err()
        );
        assert!(
            CreateRealtimeAsset {
                extension: None,
                ..growing
            }
            .check()
            .is_err()
        );
    }
}
