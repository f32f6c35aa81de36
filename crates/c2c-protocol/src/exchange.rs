//! One request over one connection, and what came back.
//!
//! Invariants: a connection goes back to the pool only after both bodies went through; what was not sent may be sent
//! again, what may have been sent is repeated only where twice is the same as once; an API call ends within the answer
//! timeout.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use secrecy::zeroize::Zeroizing;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::answers::ChunkAnswer;
use crate::call::Call;
use crate::chunks::MAX_CHUNK;
use crate::config::Origin;
use crate::connect::{Connector, timed_out};
use crate::decode::Raw;
use crate::error::{AnswerError, Endpoint, Error, Reached, RequestError, Stage, TransportError};
use crate::meter::{Meter, MeterGuard};
use crate::pool::{Conn, Outgoing, Pool, Taken};
use crate::refusal::{self, Refusal};
use crate::requests::filetype;
use crate::upload_url::{UploadUrl, UploadUrlError};

/// Largest body of a refusal that is looked at, and of an answer of the storage.
const MAX_REFUSAL: usize = 64 * 1024;
/// Longest wait for the body of a refusal: its status is known already.
const REFUSAL_BODY_WAIT: Duration = Duration::from_secs(5);
/// The storage closes idle connections after about 5 s; one that old is not trusted any more.
const STORAGE_PATIENCE: Duration = Duration::from_secs(4);
/// The same for the API.
const API_PATIENCE: Duration = Duration::from_secs(30);

/// How long the storage may take to say that it wants a chunk.
const WORD_WAIT: Duration = Duration::from_secs(3);

const CLIENT_VERSION: HeaderName = HeaderName::from_static("x-client-version");
const ACL: HeaderName = HeaderName::from_static("x-amz-acl");

/// What all clones of a client share.
pub(crate) struct Wire {
    pub(crate) connector: Connector,
    pub(crate) pool: Pool,
    pub(crate) api: Origin,
    pub(crate) api_host_header: HeaderValue,
    pub(crate) client_version: HeaderValue,
    pub(crate) user_agent: HeaderValue,
    pub(crate) answer_timeout: Duration,
}

impl Wire {
    /// One API call within the answer timeout; gives only a 2xx.
    pub(crate) async fn api(&self, call: Call<'_>) -> Result<Raw, Error> {
        let endpoint = call.endpoint;
        let meter = Arc::new(Meter::default());
        let limit = self.answer_timeout;
        match timeout(limit, self.api_without_limit(call, &meter)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let connected = meter.reused();
                let error = TransportError {
                    stage: if connected.is_some() {
                        Stage::AnswerTimeout
                    } else {
                        Stage::ConnectTimeout
                    },
                    reused: connected.unwrap_or(false),
                    reached: if meter.handed_over() > 0 {
                        Reached::Maybe
                    } else {
                        Reached::No
                    },
                    source: timed_out("no answer", limit).into(),
                };
                Err(Error::new(endpoint, error))
            }
        }
    }

    async fn api_without_limit(&self, call: Call<'_>, meter: &Arc<Meter>) -> Result<Raw, Error> {
        let failed = |error: TransportError| Error::new(call.endpoint, error);
        let mut fresh = false;
        let exchange = loop {
            let (body, taken) = call.body.outgoing();
            let request = self
                .api_request(&call, body)
                .map_err(|error| Error::new(call.endpoint, error))?;
            match self
                .exchange(&self.api, request, &taken, fresh, meter)
                .await
            {
                Ok(exchange) => break exchange,
                // A connection that died while it was idle says nothing about the service. The request may be repeated
                // where it was not sent, or where sending it twice changes nothing.
                Err(lost)
                    if lost.error.reused
                        && !fresh
                        && (lost.unsent() || (call.idempotent && lost.silent)) =>
                {
                    tracing::debug!(
                        "{} is repeated: the idle connection had died",
                        call.endpoint
                    );
                    self.pool.forget(&self.api);
                    fresh = true;
                }
                Err(lost) => return Err(failed(lost.error)),
            }
        };
        let reused = exchange.conn.reused;
        let (parts, incoming) = exchange.response.into_parts();
        if !parts.status.is_success() {
            let (body, complete) = refusal_body(incoming).await;
            drop(exchange.guard);
            if complete && exchange.taken.all_sent(meter) {
                self.pool.put(&self.api, exchange.conn, API_PATIENCE);
            }
            let refusal = Refusal::read(parts.status, &parts.headers, &body, &call.secrets);
            return Err(Error::new(call.endpoint, refusal));
        }
        let read = read_body(incoming, call.limit).await;
        drop(exchange.guard);
        let raw = |body| Raw {
            status: parts.status,
            headers: parts.headers,
            body,
        };
        match read {
            Ok(body) => {
                if exchange.taken.all_sent(meter) {
                    self.pool.put(&self.api, exchange.conn, API_PATIENCE);
                }
                Ok(raw(body))
            }
            Err(BodyTrouble::TooLarge) => {
                let what = format!("larger than the limit of {} bytes", call.limit);
                Err(Error::new(
                    call.endpoint,
                    raw(Zeroizing::default()).error(what, false),
                ))
            }
            Err(BodyTrouble::Lost(error)) => Err(failed(TransportError {
                stage: Stage::Answer,
                reused,
                reached: Reached::Maybe,
                source: error.into(),
            })),
        }
    }

    pub(crate) fn api_request(
        &self,
        call: &Call<'_>,
        body: Outgoing,
    ) -> Result<Request<Outgoing>, RequestError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.path.as_str())
            .body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.api_host_header.clone());
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CLIENT_VERSION, self.client_version.clone());
        if call.method != Method::GET {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        headers.extend(call.headers.clone());
        Ok(request)
    }

    pub(crate) async fn put(
        &self,
        url: &UploadUrl,
        filetype: &str,
        length: u64,
        (mut body, taken): (Outgoing, Arc<Taken>),
        meter: &Arc<Meter>,
        ask_first: bool,
    ) -> Result<ChunkAnswer, Error> {
        let endpoint = Endpoint::PutChunk;
        // The bearer token does not go there, and neither does a chunk: nothing good would hand out such a URL.
        if url.points_to(&self.api.host, self.api.port) {
            let host = url.host().to_owned();
            return Err(Error::new(
                endpoint,
                RequestError::from(UploadUrlError::IntoApi { host }),
            ));
        }
        let origin = Origin {
            host: url.host().to_owned(),
            port: url.port(),
            https: url.is_https(),
        };
        let word = ask_first.then(|| {
            let word = Arc::new(Notify::new());
            let given = Arc::clone(&word);
            body.wait_for(Box::pin(async move {
                // A storage that does not know the question says nothing.
                let _ = timeout(WORD_WAIT, given.notified()).await;
            }));
            word
        });
        let mut request = self
            .put_request(url, &origin, filetype, length, body)
            .map_err(|error| Error::new(endpoint, error))?;
        if let Some(word) = word {
            request
                .headers_mut()
                .insert(header::EXPECT, HeaderValue::from_static("100-continue"));
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    word.notify_one();
                }
            });
        }
        let mut fresh = false;
        let exchange = loop {
            match self.exchange(&origin, request, &taken, fresh, meter).await {
                Ok(exchange) => break exchange,
                // Not a byte was sent, so the body is untouched.
                Err(Lost {
                    error,
                    request: Some(unsent),
                    ..
                }) if error.reused && !fresh => {
                    tracing::debug!("a chunk starts again: the idle connection had died");
                    request = *unsent;
                    fresh = true;
                }
                Err(lost) => return Err(Error::new(endpoint, lost.error)),
            }
        };
        let Exchange {
            response,
            conn,
            guard,
            taken,
        } = exchange;
        let (parts, incoming) = response.into_parts();
        let (body, complete) = refusal_body(incoming).await;
        drop(guard);
        let everything_sent = taken.all_sent(meter);
        if complete && everything_sent {
            self.pool.put(&origin, conn, STORAGE_PATIENCE);
        }
        if !parts.status.is_success() {
            let secrets = url.secrets();
            return Err(Error::new(
                endpoint,
                Refusal::read(parts.status, &parts.headers, &body, &secrets),
            ));
        }
        let text = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let answer = ChunkAnswer {
            etag: text("etag")
                .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned())
                .filter(|etag| !etag.is_empty()),
            request_id: text("x-amz-request-id").map(str::to_owned),
            date: refusal::date(&parts.headers),
        };
        let portal = |what: &str| AnswerError {
            status: parts.status.as_u16(),
            what: what.to_owned(),
            looks_like_portal: true,
            date: answer.date,
        };
        if !everything_sent {
            return Err(Error::new(
                endpoint,
                portal("success before the whole chunk was sent"),
            ));
        }
        if answer.etag.is_none() && !body.is_empty() {
            return Err(Error::new(endpoint, portal("no entity tag, but a text")));
        }
        Ok(answer)
    }

    fn put_request(
        &self,
        url: &UploadUrl,
        origin: &Origin,
        filetype_text: &str,
        length: u64,
        body: Outgoing,
    ) -> Result<Request<Outgoing>, RequestError> {
        if length > MAX_CHUNK {
            return Err(RequestError::ChunkTooLarge {
                length,
                limit: MAX_CHUNK,
            });
        }
        let filetype = filetype(filetype_text)?;
        let host = origin.host_header().ok_or(UploadUrlError::Malformed)?;
        let mut request = Request::builder()
            .method(Method::PUT)
            .uri(url.path_and_query())
            .body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, host);
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(header::CONTENT_TYPE, filetype);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(ACL, HeaderValue::from_static("private"));
        Ok(request)
    }

    /// Sends a request on an idle connection or a new one, and waits for the head of the answer.
    async fn exchange(
        &self,
        origin: &Origin,
        request: Request<Outgoing>,
        taken: &Arc<Taken>,
        fresh: bool,
        meter: &Arc<Meter>,
    ) -> Result<Exchange, Lost> {
        let idle = if fresh {
            None
        } else {
            self.pool.take(origin).await
        };
        let mut conn = match idle {
            Some(conn) => conn,
            None => match self.pool.open(&self.connector, origin).await {
                Ok(conn) => conn,
                Err(error) => {
                    return Err(Lost {
                        error,
                        request: None,
                        silent: true,
                    });
                }
            },
        };
        let guard = meter.attach(&conn.facts, conn.reused);
        match conn.send(request).await {
            Ok(response) => Ok(Exchange {
                response,
                conn,
                guard,
                taken: Arc::clone(taken),
            }),
            Err((error, unsent)) => {
                let reached = if unsent.is_some() || meter.handed_over() == 0 {
                    Reached::No
                } else {
                    Reached::Maybe
                };
                let stage = if taken.failed() {
                    Stage::Body
                } else if reached == Reached::Maybe && taken.all_sent(meter) {
                    Stage::Answer
                } else {
                    Stage::Send
                };
                Err(Lost {
                    // An answer that is not HTTP is an answer nevertheless.
                    silent: !error.is_parse() && stage != Stage::Body,
                    error: TransportError {
                        stage,
                        reused: conn.reused,
                        reached,
                        source: error.into(),
                    },
                    request: unsent.map(Box::new),
                })
            }
        }
    }
}

/// The head of an answer, and what its request still holds.
struct Exchange {
    response: Response<Incoming>,
    conn: Conn,
    guard: MeterGuard,
    taken: Arc<Taken>,
}

/// No answer.
struct Lost {
    error: TransportError,
    /// The request, if not a byte of it was sent.
    request: Option<Box<Request<Outgoing>>>,
    /// The server said nothing at all.
    silent: bool,
}

impl Lost {
    fn unsent(&self) -> bool {
        self.error.reached == Reached::No && self.silent
    }
}

enum BodyTrouble {
    TooLarge,
    Lost(hyper::Error),
}

async fn read_body(
    mut incoming: Incoming,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, BodyTrouble> {
    let mut body = Zeroizing::new(Vec::new());
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(BodyTrouble::Lost)?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if body.len() + data.len() > limit {
            return Err(BodyTrouble::TooLarge);
        }
        body.extend_from_slice(data);
    }
    Ok(body)
}

/// The body of a refusal as far as it comes, and whether it came whole: the status alone says enough.
pub(crate) async fn refusal_body(mut incoming: Incoming) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    let read = async {
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else { return false };
            let Some(data) = frame.data_ref() else {
                continue;
            };
            let room = MAX_REFUSAL - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                return false;
            }
        }
        true
    };
    let complete = timeout(REFUSAL_BODY_WAIT, read).await.unwrap_or(false);
    (body, complete)
}
