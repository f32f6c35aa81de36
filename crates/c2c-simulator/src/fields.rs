//! Reading request bodies strictly: JSON objects and forms, every field of the type the protocol names.

use std::collections::BTreeMap;

use axum::extract::{FromRequest, Multipart};
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::answer::{self, Answer};

/// The fields of an asset call, from JSON or a form. `null` counts as absent.
pub(crate) struct Fields {
    values: Map<String, Value>,
    form: bool,
}

/// The media type of a `Content-Type` header, without its parameters, in lower case.
pub(crate) fn media_type(header: Option<&str>) -> String {
    header
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

pub(crate) fn invalid(detail: &str) -> Box<Answer> {
    Box::new(answer::detailed(422, "Invalid arguments", detail))
}

pub(crate) fn bad_request(detail: &str) -> Box<Answer> {
    Box::new(answer::detailed(400, "Bad Request", detail))
}

impl Fields {
    /// Reads a JSON object or, where `forms` allows it, a URL-encoded form.
    pub(crate) fn read(
        content_type: Option<&str>,
        body: &[u8],
        forms: bool,
    ) -> Result<Self, Box<Answer>> {
        match media_type(content_type).as_str() {
            "application/json" => match serde_json::from_slice(body) {
                Ok(Value::Object(values)) => Ok(Self {
                    values,
                    form: false,
                }),
                Ok(_) => Err(bad_request("the body must be a JSON object")),
                Err(error) => Err(bad_request(&format!("the body is no JSON: {error}"))),
            },
            "application/x-www-form-urlencoded" if forms => {
                let pairs = form_urlencoded::parse(body);
                let values = pairs
                    .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())));
                Ok(Self {
                    values: values.collect(),
                    form: true,
                })
            }
            other => Err(bad_request(&format!(
                "the content type '{other}' is not accepted here"
            ))),
        }
    }

    pub(crate) fn is_form(&self) -> bool {
        self.form
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Box<Answer>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(invalid(&format!("`{name}` must be a string"))),
        }
    }

    /// A whole number from zero up.
    pub(crate) fn whole(&self, name: &str) -> Result<Option<u64>, Box<Answer>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = if self.form {
            value.as_str().and_then(|text| text.parse().ok())
        } else {
            value.as_u64()
        };
        number.map(Some).ok_or_else(|| {
            invalid(&format!(
                "`{name}` must be a whole number that is not negative"
            ))
        })
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Box<Answer>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let flag = if self.form {
            value.as_str().and_then(|text| text.parse().ok())
        } else {
            value.as_bool()
        };
        flag.map(Some)
            .ok_or_else(|| invalid(&format!("`{name}` must be true or false")))
    }

    pub(crate) fn array(&self, name: &str) -> Result<&[Value], Box<Answer>> {
        match self.get(name) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(invalid(&format!("`{name}` must be an array"))),
        }
    }

    /// Everything but the fields named.
    pub(crate) fn rest(&self, known: &[&str]) -> Map<String, Value> {
        let rest = self
            .values
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_str()));
        rest.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

impl From<Map<String, Value>> for Fields {
    fn from(values: Map<String, Value>) -> Self {
        Self {
            values,
            form: false,
        }
    }
}

/// The text fields of a `multipart/form-data` body; `None` if it is none.
pub(crate) async fn multipart(
    content_type: Option<&str>,
    body: Bytes,
) -> Option<BTreeMap<String, String>> {
    if media_type(content_type) != "multipart/form-data" {
        return None;
    }
    let request = http::Request::builder()
        .header("content-type", content_type?)
        .body(axum::body::Body::from(body));
    let mut parts = Multipart::from_request(request.ok()?, &()).await.ok()?;
    let mut fields = BTreeMap::new();
    while let Some(field) = parts.next_field().await.ok()? {
        let name = field.name()?.to_owned();
        let value = field.text().await.ok()?;
        if fields.insert(name, value).is_some() {
            return None;
        }
    }
    Some(fields)
}
