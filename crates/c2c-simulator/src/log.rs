//! The log of every request, against which a client's conduct can be asserted.
//!
//! Invariants: a request is in the log before anything else happens to it; secrets (bearer tokens, URL queries)
//! are kept apart from what is printed or serialised; the oldest entries are dropped beyond the capacity.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::fault::EndpointName;
use crate::world::World;

/// Which of the two public hosts a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKind {
    /// The API, `https://localhost:…`.
    Api,
    /// The store of parts, `https://127.0.0.1:…`.
    Uploads,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still at work.
    Open,
    /// Held by a stall fault.
    Stalled,
    /// Answered with this status. Whether the client got it whole is not known.
    Answered(u16),
    /// Cut by the simulator.
    Cut,
    /// The client went away, or sent less than it announced.
    Gone,
}

/// What a create call said, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateFields {
    /// `name`
    pub name: Option<String>,
    /// `filetype`
    pub filetype: Option<String>,
    /// `filesize` in bytes
    pub filesize: Option<u64>,
    /// `offset` in seconds before now
    pub offset: Option<u64>,
    /// `channel`
    pub channel: Option<u32>,
    /// `parts`
    pub parts: Option<u64>,
    /// `is_realtime_upload`
    pub is_realtime_upload: bool,
}

/// One request as the simulator saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoggedRequest {
    /// Counts from 1 over both hosts.
    pub id: u64,
    /// When its head was read (simulated time).
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// When its outcome was known (simulated time).
    #[serde(with = "rfc3339::option")]
    pub finished_at: Option<SystemTime>,
    /// The host it came to.
    pub host: HostKind,
    /// The connection it came on, counted from 1 over both hosts.
    pub connection: u64,
    /// What it is for; `Any` when unknown.
    pub endpoint: EndpointName,
    /// HTTP method.
    pub method: String,
    /// The `Host` header.
    pub authority: String,
    /// Path without the query.
    pub path: String,
    /// The query with every value left out.
    pub query: String,
    /// Header fields in order; the values of secret ones are replaced.
    pub headers: Vec<(String, String)>,
    /// `x-client-version`
    pub client_version: Option<String>,
    /// Body bytes announced by `Content-Length`.
    pub content_length: Option<u64>,
    /// Body bytes read so far.
    pub received: u64,
    /// Whether an `Authorization` header was present.
    pub has_authorization: bool,
    /// Which access token was used, by number of issue (1, 2, …), when it is one of ours.
    pub token: Option<u64>,
    /// The unit, when known.
    pub client_id: Option<String>,
    /// The asset, when known.
    pub asset_id: Option<String>,
    /// The asset's name, when known.
    pub asset_name: Option<String>,
    /// The part (1-based) of a part upload.
    pub part: Option<u32>,
    /// The fields of a create call.
    pub create: Option<CreateFields>,
    /// What became of it.
    pub outcome: Outcome,
    /// Numbers of the faults that acted.
    pub faults: Vec<u64>,
    /// Rules of the protocol that it broke.
    pub violations: Vec<String>,
    #[serde(skip)]
    private: Private,
}

#[derive(Clone, Default)]
struct Private {
    query: String,
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl LoggedRequest {
    /// The status it was answered with, if it was.
    pub fn status(&self) -> Option<u16> {
        match self.outcome {
            Outcome::Answered(status) => Some(status),
            Outcome::Open | Outcome::Stalled | Outcome::Cut | Outcome::Gone => None,
        }
    }

    /// The first header field of this name (any case), redacted if secret.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The whole query, secrets and all. Never printed and never in the JSON of the admin API.
    pub fn full_query(&self) -> &str {
        &self.private.query
    }
}

/// The entries kept.
pub(crate) struct Log {
    next_id: u64,
    capacity: usize,
    pub(crate) entries: VecDeque<LoggedRequest>,
}

impl Log {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            next_id: 1,
            capacity: capacity.max(1),
            entries: VecDeque::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    fn push(&mut self, mut entry: LoggedRequest) -> u64 {
        entry.id = self.next_id;
        self.next_id += 1;
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
        self.next_id - 1
    }

    /// The entry with this number unless it was dropped meanwhile.
    fn get(&mut self, id: u64) -> Option<&mut LoggedRequest> {
        let found = self
            .entries
            .binary_search_by_key(&id, |entry| entry.id)
            .ok()?;
        self.entries.get_mut(found)
    }
}

/// The hand of a request on its entry. Dropped without an outcome it says that the client went away.
pub(crate) struct Entry {
    world: Arc<World>,
    id: u64,
    closed: bool,
}

impl Entry {
    /// Writes the head of a request into the log.
    pub(crate) fn open(
        world: &Arc<World>,
        host: HostKind,
        connection: u64,
        endpoint: EndpointName,
        head: &http::request::Parts,
    ) -> Self {
        let text = |name: &str| {
            head.headers
                .get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let query = head.uri.query().unwrap_or_default().to_owned();
        let entry = LoggedRequest {
            id: 0,
            at: world.clock.now(),
            finished_at: None,
            host,
            connection,
            endpoint,
            method: head.method.to_string(),
            authority: text("host").unwrap_or_default(),
            path: head.uri.path().to_owned(),
            query: redact_query(&query),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| redact_header(name.as_str(), value))
                .collect(),
            client_version: text("x-client-version"),
            content_length: text("content-length").and_then(|length| length.parse().ok()),
            received: 0,
            has_authorization: head.headers.contains_key("authorization"),
            token: None,
            client_id: None,
            asset_id: None,
            asset_name: None,
            part: None,
            create: None,
            outcome: Outcome::Open,
            faults: Vec::new(),
            violations: Vec::new(),
            private: Private { query },
        };
        let id = world.change(|state| state.log.push(entry));
        Self {
            world: Arc::clone(world),
            id,
            closed: false,
        }
    }

    /// Adds to the entry what was learnt.
    pub(crate) fn note(&self, act: impl FnOnce(&mut LoggedRequest)) {
        self.world.change(|state| {
            if let Some(entry) = state.log.get(self.id) {
                act(entry);
            }
        });
    }

    /// Records a broken rule.
    pub(crate) fn violation(&self, rule: impl Into<String>) {
        let rule = rule.into();
        self.note(|entry| entry.violations.push(rule));
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.note(|entry| entry.received = bytes);
    }

    pub(crate) fn close(&mut self, outcome: Outcome) {
        self.closed = true;
        let now = self.world.clock.now();
        self.note(|entry| {
            entry.outcome = outcome;
            entry.finished_at = Some(now);
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.closed {
            self.close(Outcome::Gone);
        }
    }
}

fn redact_query(query: &str) -> String {
    let names = query.split('&').filter(|pair| !pair.is_empty());
    names
        .map(|pair| format!("{}=…", pair.split('=').next().unwrap_or(pair)))
        .collect::<Vec<_>>()
        .join("&")
}

fn redact_header(name: &str, value: &http::HeaderValue) -> (String, String) {
    let shown = match name {
        "authorization" | "proxy-authorization" | "cookie" => "…".to_owned(),
        _ => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    (name.to_owned(), shown)
}
