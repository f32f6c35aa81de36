//! From the bytes of a 2xx to a value, or to an [`AnswerError`] that names the field.
//!
//! Invariant: an error never repeats a value of the answer, which may hold tokens.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use crate::error::AnswerError;
use crate::refusal;

/// An answer read to its end.
pub(crate) struct Raw {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: secrecy::zeroize::Zeroizing<Vec<u8>>,
}

impl Raw {
    pub(crate) fn date(&self) -> Option<SystemTime> {
        refusal::date(&self.headers)
    }

    /// An error about this answer as a whole.
    pub(crate) fn error(&self, what: impl Into<String>, looks_like_portal: bool) -> AnswerError {
        AnswerError {
            status: self.status.as_u16(),
            what: what.into(),
            looks_like_portal,
            date: self.date(),
        }
    }

    /// Decodes JSON.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, AnswerError> {
        let text = self.text()?;
        let start = text.trim_start();
        if start.is_empty() {
            return Err(self.error("the answer is empty", false));
        }
        if !start.starts_with(['{', '[', '"']) {
            return Err(self.error("no JSON", true));
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let cause = error.into_inner();
            if cause.is_eof() {
                return self.error(
                    format!("the JSON is cut off after {} bytes", text.len()),
                    false,
                );
            }
            let words = without_values(&cause.to_string());
            // A missing field is named by the message; the path is that of the object around it.
            let what = if path == "." {
                words
            } else {
                format!("`{path}`: {words}")
            };
            self.error(what, false)
        })?;
        json.end()
            .map_err(|_| self.error("there is text after the JSON", false))?;
        Ok(value)
    }

    /// For calls whose answer carries nothing: a web page is none of theirs.
    pub(crate) fn nothing(&self) -> Result<(), AnswerError> {
        let text = self.text()?;
        let start = text.trim_start();
        if start.is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(start).is_ok() {
            return Ok(());
        }
        Err(self.error("neither empty nor JSON", true))
    }

    fn text(&self) -> Result<&str, AnswerError> {
        let text = std::str::from_utf8(&self.body)
            .map_err(|_| self.error("the answer is not UTF-8 text", true))?;
        if refusal::is_html(text, &self.headers) {
            return Err(self.error("a web page", true));
        }
        Ok(text)
    }
}

/// Drops the value out of serde's "invalid type: string \"...\", expected ..." and the place in the text.
fn without_values(message: &str) -> String {
    let message = match message.rfind(" at line ") {
        Some(end) => &message[..end],
        None => message,
    };
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(kind) {
            let expected = rest.rfind(", expected ").map_or("", |at| &rest[at..]);
            let found: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphabetic() || *c == ' ')
                .collect();
            return format!("{kind}{}{expected}", found.trim_end());
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_dropped_from_messages() {
        for (message, expected) in [
            (
                "invalid type: string \"secret, expected x\", expected u64 at line 1 column 9",
                "invalid type: string, expected u64",
            ),
            (
                "invalid type: integer `12345`, expected a string at line 1 column 9",
                "invalid type: integer, expected a string",
            ),
            (
                "invalid type: null, expected a string",
                "invalid type: null, expected a string",
            ),
            (
                "missing field `expires_in` at line 1 column 2",
                "missing field `expires_in`",
            ),
        ] {
            assert_eq!(without_values(message), expected);
        }
    }
}
