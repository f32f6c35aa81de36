//! One API call before it is sent.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::Full;
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Endpoint, Error, RequestError};
use crate::pool::{Outgoing, Taken};
use crate::requests::{Form, bearer};

/// Largest answer of the API in bytes.
const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// Fields of a form that may be shown.
const PUBLIC_FIELDS: [&str; 3] = ["client_id", "scope", "grant_type"];

/// What an API call consists of.
pub(crate) struct Call<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallBody,
    /// Doing it twice is the same as doing it once.
    pub(crate) idempotent: bool,
    pub(crate) limit: usize,
    /// Not to be repeated by a refusal.
    pub(crate) secrets: Vec<&'a str>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(endpoint: Endpoint, method: Method, path: impl Into<String>) -> Self {
        Self {
            endpoint,
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: CallBody::Ready(Bytes::new()),
            idempotent: false,
            limit: MAX_ANSWER,
            secrets: Vec::new(),
        }
    }

    pub(crate) fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn bearer(mut self, token: &'a SecretString) -> Result<Self, Error> {
        let value = bearer(token).map_err(|error| Error::new(self.endpoint, error))?;
        self.headers.insert(header::AUTHORIZATION, value);
        self.secrets.push(token.expose_secret());
        Ok(self)
    }

    pub(crate) fn form(mut self, fields: &[(&'static str, &'a str)]) -> Result<Self, Error> {
        let form = Form::new(fields).map_err(|error| Error::new(self.endpoint, error))?;
        self.headers.insert(header::CONTENT_TYPE, form.content_type);
        self.body = CallBody::Ready(form.body);
        self.secrets.extend(
            fields
                .iter()
                .filter(|(name, _)| !PUBLIC_FIELDS.contains(name))
                .map(|(_, value)| *value),
        );
        Ok(self)
    }

    pub(crate) fn json(mut self, value: &impl serde::Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(value)
            .map_err(|error| Error::new(self.endpoint, RequestError::Json(error)))?;
        self.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        self.body = CallBody::Ready(Bytes::from(json));
        Ok(self)
    }
}

/// The body of an API call.
pub(crate) enum CallBody {
    Ready(Bytes),
    /// Made when the connection takes it, so that what it says is true at that moment.
    AtSend {
        length: usize,
        make: Arc<dyn Fn() -> Bytes + Send + Sync>,
    },
}

impl CallBody {
    pub(crate) fn len(&self) -> usize {
        match self {
            CallBody::Ready(bytes) => bytes.len(),
            CallBody::AtSend { length, .. } => *length,
        }
    }

    pub(crate) fn outgoing(&self) -> (Outgoing, Arc<Taken>) {
        match self {
            CallBody::Ready(bytes) => Outgoing::new(Full::new(bytes.clone()), bytes.len() as u64),
            CallBody::AtSend { length, make } => {
                let body = MadeAtSend(Some(Arc::clone(make)));
                Outgoing::new(body, *length as u64)
            }
        }
    }
}

/// A body of one frame that does not exist before it is asked for.
struct MadeAtSend(Option<Arc<dyn Fn() -> Bytes + Send + Sync>>);

impl hyper::body::Body for MadeAtSend {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let made = self
            .0
            .take()
            .map(|make| Ok(hyper::body::Frame::data(make())));
        std::task::Poll::Ready(made)
    }
}
