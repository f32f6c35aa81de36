//! The client: one call, one request, one report.
//!
//! Invariants: the bearer token is added in one place, for the API host; a refused or failed request never returns its
//! connection to the pool unless both bodies went through; an API call ends within the answer timeout.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use crate::answers::{
    Answered, Asset, AssetWire, ChunkAnswer, DeviceCode, HealthWire, Me, MeWire, PartUrlsWire,
    PollAnswer, RealtimeAsset, SecretText, TokenPair,
};
use crate::chunks::MAX_CHUNK;
use crate::config::{ClientConfig, ConfigError, Origin};
use crate::connect::{Connector, timed_out};
use crate::decode::Raw;
use crate::error::{AnswerError, Endpoint, Error, Reached, RequestError, Stage, TransportError};
use crate::meter::{Meter, MeterGuard};
use crate::pool::{Conn, Outgoing, Pool, Taken};
use crate::refusal::{self, Refusal};
use crate::requests::{
    CreateAsset, CreateRealtimeAsset, Form, RealtimeParts, SCOPE, bearer, filetype,
};
use crate::tls::tls_config;
use crate::upload_url::UploadUrl;

/// Largest answer of the API in bytes.
const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// Largest answer with upload URLs in bytes: 10,000 URLs of over a kilobyte each.
const MAX_URLS_ANSWER: usize = 32 * 1024 * 1024;
/// Largest body of a refusal that is looked at, and of an answer of the storage.
const MAX_REFUSAL: usize = 64 * 1024;
/// Longest wait for the body of a refusal: its status is known already.
const REFUSAL_BODY_WAIT: Duration = Duration::from_secs(5);
/// The storage closes idle connections after about 5 s; one that old is not trusted any more.
const STORAGE_PATIENCE: Duration = Duration::from_secs(4);
/// The same for the API.
const API_PATIENCE: Duration = Duration::from_secs(30);

const CLIENT_VERSION: HeaderName = HeaderName::from_static("x-client-version");
const QR_PAIRING: HeaderName = HeaderName::from_static("x-client-platypus-enabled");
const ACL: HeaderName = HeaderName::from_static("x-amz-acl");

/// Talks to the API and the storage. Clones share one pool of connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    pool: Pool,
    api: Origin,
    api_host_header: HeaderValue,
    client_version: HeaderValue,
    user_agent: HeaderValue,
    answer_timeout: Duration,
    allow_plain_loopback: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("api", &self.shared.api)
            .finish_non_exhaustive()
    }
}

/// What an API call consists of.
struct Call<'a> {
    endpoint: Endpoint,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: CallBody,
    /// Doing it twice is the same as doing it once.
    idempotent: bool,
    limit: usize,
    /// Not to be repeated by a refusal.
    secrets: Vec<&'a str>,
}

impl<'a> Call<'a> {
    fn new(endpoint: Endpoint, method: Method, path: impl Into<String>) -> Self {
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

    fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    fn bearer(mut self, token: &'a SecretString) -> Result<Self, Error> {
        let value = bearer(token).map_err(|error| Error::new(self.endpoint, error))?;
        self.headers.insert(header::AUTHORIZATION, value);
        self.secrets.push(token.expose_secret());
        Ok(self)
    }

    fn form(mut self, fields: &[(&'static str, &'a str)], public: &[&str]) -> Result<Self, Error> {
        let form = Form::new(fields).map_err(|error| Error::new(self.endpoint, error))?;
        self.headers.insert(header::CONTENT_TYPE, form.content_type);
        self.body = CallBody::Ready(form.body);
        self.secrets.extend(
            fields
                .iter()
                .filter(|(name, _)| !public.contains(name))
                .map(|(_, value)| *value),
        );
        Ok(self)
    }

    fn json(mut self, value: &impl serde::Serialize) -> Result<Self, Error> {
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
enum CallBody {
    Ready(Bytes),
    /// Made when the connection takes it, so that what it says is true at that moment.
    AtSend {
        length: usize,
        make: Arc<dyn Fn() -> Bytes + Send + Sync>,
    },
}

impl CallBody {
    fn len(&self) -> usize {
        match self {
            CallBody::Ready(bytes) => bytes.len(),
            CallBody::AtSend { length, .. } => *length,
        }
    }

    fn outgoing(&self) -> (Outgoing, Arc<Taken>) {
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
        let made = self.0.take().map(|make| Ok(hyper::body::Frame::data(make())));
        std::task::Poll::Ready(made)
    }
}

/// Digits of the largest offset.
const OFFSET_WIDTH: usize = 20;

/// Fields of a form that may be shown.
const PUBLIC_FIELDS: [&str; 3] = ["client_id", "scope", "grant_type"];

impl Client {
    /// Makes a client. Nothing is sent.
    ///
    /// # Errors
    ///
    /// When a setting is not usable; the sentence says which.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let api = config.api_origin()?;
        let api_host_header = api.host_header().ok_or_else(|| ConfigError::ApiUrl {
            url: config.api_url.clone(),
        })?;
        let shared = Shared {
            api,
            api_host_header,
            client_version: HeaderValue::from_str(&config.client_version)
                .map_err(|_| ConfigError::UserAgent)?,
            user_agent: HeaderValue::from_str(&config.user_agent)
                .map_err(|_| ConfigError::UserAgent)?,
            answer_timeout: config.answer_timeout,
            allow_plain_loopback: config.allow_plain_loopback,
            pool: Pool::default(),
            connector: Connector {
                tls: tls_config(&config.trust)?,
                resolve: config.resolve,
                connect_timeout: config.connect_timeout,
                interface: config.interface,
            },
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The host of the API.
    #[must_use]
    pub fn api_host(&self) -> &str {
        &self.shared.api.host
    }

    /// Asks for a pairing code. `qr` also asks for a URL with the code filled in.
    ///
    /// # Errors
    ///
    /// As for every call: [`Error`]. A refused client secret is a simple refusal `invalid_client`.
    pub async fn device_code(
        &self,
        id: &str,
        secret: &SecretString,
        qr: bool,
    ) -> Result<Answered<DeviceCode>, Error> {
        let fields = [
            ("client_id", id),
            ("client_secret", secret.expose_secret()),
            ("scope", SCOPE),
        ];
        let mut call = Call::new(Endpoint::DeviceCode, Method::POST, "/v2/auth/device/code")
            .form(&fields, &PUBLIC_FIELDS)?;
        if qr {
            call.headers
                .insert(QR_PAIRING, HeaderValue::from_static("true"));
        }
        self.decode(call).await
    }

    /// Asks whether the user has authorized the device.
    ///
    /// # Errors
    ///
    /// [`Error`]; the refusals that belong to a pairing are answers, see [`PollAnswer`].
    pub async fn poll_token(
        &self,
        id: &str,
        secret: &SecretString,
        device_code: &SecretString,
    ) -> Result<Answered<PollAnswer>, Error> {
        let fields = [
            ("client_id", id),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", device_code.expose_secret()),
        ];
        let call = Call::new(Endpoint::PollToken, Method::POST, "/v2/auth/token")
            .form(&fields, &PUBLIC_FIELDS)?;
        match self.decode::<TokenPair>(call).await {
            Ok(granted) => Ok(Answered {
                value: PollAnswer::Granted(granted.value),
                date: granted.date,
                rate_limit: granted.rate_limit,
            }),
            Err(error) => {
                let answer = error
                    .refusal()
                    .filter(|refusal| refusal.status == 400)
                    .and_then(|refusal| {
                        let value = match refusal.simple()? {
                            "authorization_pending" => PollAnswer::Pending,
                            "slow_down" => PollAnswer::SlowDown,
                            "expired_token" => PollAnswer::Expired,
                            "access_denied" => PollAnswer::Denied,
                            "invalid_grant" => PollAnswer::InvalidGrant,
                            _ => return None,
                        };
                        Some(Answered {
                            value,
                            date: refusal.date,
                            rate_limit: refusal.rate_limit,
                        })
                    });
                answer.ok_or(error)
            }
        }
    }

    /// Trades the refresh token for a new pair. Both old tokens are dead as soon as the service has seen this.
    ///
    /// # Errors
    ///
    /// [`Error`]; where [`TransportError::reached`] is [`Reached::Maybe`] the old pair may be dead already.
    pub async fn refresh(
        &self,
        id: &str,
        secret: &SecretString,
        refresh_token: &SecretString,
    ) -> Result<Answered<TokenPair>, Error> {
        let fields = [
            ("client_id", id),
            ("client_secret", secret.expose_secret()),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose_secret()),
        ];
        let call = Call::new(Endpoint::Refresh, Method::POST, "/v2/auth/token")
            .form(&fields, &PUBLIC_FIELDS)?;
        self.decode(call).await
    }

    /// Makes a token invalid.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn revoke(
        &self,
        id: &str,
        secret: &SecretString,
        token: &SecretString,
    ) -> Result<Answered<()>, Error> {
        let fields = [
            ("client_id", id),
            ("client_secret", secret.expose_secret()),
            ("token", token.expose_secret()),
        ];
        let call = Call::new(Endpoint::Revoke, Method::POST, "/v2/auth/revoke")
            .form(&fields, &PUBLIC_FIELDS)?;
        self.nothing(call).await
    }

    /// Asks who this unit is and where its media go.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn me(&self, token: &SecretString) -> Result<Answered<Me>, Error> {
        let call = Call::new(Endpoint::Me, Method::GET, "/v2/devices/me")
            .bearer(token)?
            .idempotent();
        let wire = self.decode::<MeWire>(call).await?;
        Ok(Answered {
            value: wire.value.into(),
            date: wire.date,
            rate_limit: wire.rate_limit,
        })
    }

    /// Says that this unit is online.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn heartbeat(&self, token: &SecretString) -> Result<Answered<()>, Error> {
        let call = Call::new(Endpoint::Heartbeat, Method::POST, "/v2/devices/heartbeat")
            .bearer(token)?
            .idempotent();
        self.nothing(call).await
    }

    /// Asks whether the service is there. Anything but its own words is an error, a sign-in page above all.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn health(&self) -> Result<Answered<()>, Error> {
        let call = Call::new(Endpoint::Health, Method::GET, "/health").idempotent();
        let raw = self.api(call).await?;
        let wire: HealthWire = raw
            .decode()
            .map_err(|error| Error::new(Endpoint::Health, error))?;
        if !wire.is_ok() {
            return Err(Error::new(
                Endpoint::Health,
                raw.error("`status`: is not \"ok\"", false),
            ));
        }
        Ok(answered((), &raw))
    }

    /// Registers a finished file.
    ///
    /// # Errors
    ///
    /// [`Error`]; a name, size or number of parts outside the limits is refused before anything is sent.
    pub async fn create_asset(
        &self,
        token: &SecretString,
        asset: &CreateAsset,
    ) -> Result<Answered<Asset>, Error> {
        let call = Call::new(Endpoint::CreateAsset, Method::POST, "/v2/devices/assets")
            .bearer(token)?
            .json(asset)?;
        self.create(call, asset).await
    }

    /// Registers a finished file; its `offset` is asked for when the request goes out, after however long it took to get
    /// a connection, and instead of the one in `asset`.
    ///
    /// # Errors
    ///
    /// As [`Client::create_asset`].
    pub async fn create_asset_at(
        &self,
        token: &SecretString,
        asset: &CreateAsset,
        offset: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Answered<Asset>, Error> {
        let endpoint = Endpoint::CreateAsset;
        let open = CreateAsset { offset: None, ..asset.clone() };
        let mut json = serde_json::to_vec(&open)
            .map_err(|error| Error::new(endpoint, RequestError::Json(error)))?;
        // The length goes out before the value is known: blanks, which JSON allows, make up the difference.
        json.pop();
        json.extend_from_slice(b",\"offset\":");
        let mut call =
            Call::new(endpoint, Method::POST, "/v2/devices/assets").bearer(token)?.json(&())?;
        call.body = CallBody::AtSend {
            length: json.len() + OFFSET_WIDTH + 1,
            make: Arc::new(move || {
                let mut body = json.clone();
                body.extend_from_slice(format!("{:>OFFSET_WIDTH$}}}", offset()).as_bytes());
                Bytes::from(body)
            }),
        };
        self.create(call, asset).await
    }

    async fn create(
        &self,
        mut call: Call<'_>,
        asset: &CreateAsset,
    ) -> Result<Answered<Asset>, Error> {
        let endpoint = call.endpoint;
        asset.check().map_err(|error| Error::new(endpoint, error))?;
        call.limit = MAX_URLS_ANSWER;
        let raw = self.api(call).await?;
        let decode = || {
            let wire: AssetWire = raw.decode()?;
            let upload_urls = self.urls(&raw, &wire.upload_urls)?;
            Ok(Asset {
                id: wire.id,
                name: wire.name,
                upload_urls,
            })
        };
        let value = decode().map_err(|error: AnswerError| Error::new(endpoint, error))?;
        Ok(answered(value, &raw))
    }

    /// Registers a file that is still growing; the URLs come from [`Client::realtime_parts`].
    ///
    /// # Errors
    ///
    /// [`Error`]; what breaks a rule is refused before anything is sent.
    pub async fn create_realtime_asset(
        &self,
        token: &SecretString,
        asset: &CreateRealtimeAsset,
    ) -> Result<Answered<RealtimeAsset>, Error> {
        #[derive(serde::Serialize)]
        struct Wire<'a> {
            #[serde(flatten)]
            asset: &'a CreateRealtimeAsset,
            is_realtime_upload: bool,
        }
        let endpoint = Endpoint::CreateAsset;
        asset.check().map_err(|error| Error::new(endpoint, error))?;
        let wire = Wire {
            asset,
            is_realtime_upload: true,
        };
        let call = Call::new(endpoint, Method::POST, "/v2/devices/assets")
            .bearer(token)?
            .json(&wire)?;
        self.decode(call).await
    }

    /// Asks for the URLs of parts of a growing file, in the order of the parts.
    ///
    /// # Errors
    ///
    /// [`Error`]; what breaks a rule is refused before anything is sent.
    pub async fn realtime_parts(
        &self,
        token: &SecretString,
        asset_id: &str,
        parts: &RealtimeParts,
    ) -> Result<Answered<Vec<UploadUrl>>, Error> {
        let endpoint = Endpoint::RealtimeParts;
        parts.check().map_err(|error| Error::new(endpoint, error))?;
        // The id becomes a part of the path.
        if asset_id.is_empty()
            || !asset_id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(Error::new(
                endpoint,
                RequestError::Realtime {
                    why: "the asset id is not valid",
                },
            ));
        }
        let path = format!("/v2/devices/assets/{asset_id}/realtime_upload/parts");
        let mut call = Call::new(endpoint, Method::POST, path)
            .bearer(token)?
            .json(parts)?;
        call.limit = MAX_URLS_ANSWER;
        let raw = self.api(call).await?;
        let decode = || {
            let wire: PartUrlsWire = raw.decode()?;
            let urls = self.urls(&raw, &wire.upload_urls)?;
            if urls.len() != parts.parts.len() {
                let what = format!(
                    "`upload_urls`: {} for {} parts",
                    urls.len(),
                    parts.parts.len()
                );
                return Err(raw.error(what, false));
            }
            Ok(urls)
        };
        let value = decode().map_err(|error: AnswerError| Error::new(endpoint, error))?;
        Ok(answered(value, &raw))
    }

    /// Sends one chunk of `length` bytes. Waits without limit: give up by dropping the future, which closes the
    /// connection; `meter` shows how it is getting on.
    ///
    /// `filetype` must be the one the asset was registered with: the signature covers it.
    ///
    /// # Errors
    ///
    /// [`Error`]; an answer that comes before the whole body was sent is reported as what it is, not as a lost
    /// connection. A body that fails or has not `length` bytes is [`Stage::Body`].
    pub async fn put_chunk<B>(
        &self,
        url: &UploadUrl,
        filetype: &str,
        length: u64,
        body: B,
        meter: &Arc<Meter>,
    ) -> Result<ChunkAnswer, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.put(url, filetype, length, Outgoing::new(body, length), meter)
            .await
    }

    /// Closes all idle connections, e.g. after the network has changed. Those at work are closed when they are done.
    pub fn drop_idle(&self) {
        self.shared.pool.clear();
    }

    /// Looks up the API host.
    ///
    /// # Errors
    ///
    /// With [`Stage::Resolve`].
    pub async fn probe_dns(&self) -> Result<Vec<SocketAddr>, TransportError> {
        self.shared
            .connector
            .resolve(&self.shared.api.host, self.shared.api.port)
            .await
    }

    /// Connects to one address and closes again.
    ///
    /// # Errors
    ///
    /// With [`Stage::Connect`] or [`Stage::ConnectTimeout`].
    pub async fn probe_tcp(&self, address: SocketAddr) -> Result<(), TransportError> {
        self.shared.connector.connect(address).await.map(drop)
    }

    /// Connects to one address, makes the connection secure for the API host, and closes again. Does only the first
    /// where the API is plain http.
    ///
    /// # Errors
    ///
    /// As [`Client::probe_tcp`], or with [`Stage::Tls`] or [`Stage::TlsCertificate`].
    pub async fn probe_tls(&self, address: SocketAddr) -> Result<(), TransportError> {
        let tcp = self.shared.connector.connect(address).await?;
        if self.shared.api.https {
            self.shared
                .connector
                .secure(&self.shared.api.host, tcp)
                .await?;
        }
        Ok(())
    }

    /// Makes a connection to another host, such as that of an upload URL, up to the secure handshake, and closes it again.
    ///
    /// # Errors
    ///
    /// As [`Client::probe_tls`], or with [`Stage::Resolve`].
    pub async fn probe_host(&self, host: &str, port: u16) -> Result<(), TransportError> {
        let tcp = self.shared.connector.dial(host, port).await?;
        self.shared.connector.secure(host, tcp).await.map(drop)
    }

    fn urls(&self, raw: &Raw, texts: &[SecretText]) -> Result<Vec<UploadUrl>, AnswerError> {
        if texts.is_empty() {
            return Err(raw.error("`upload_urls`: is empty", false));
        }
        let parse = |(index, text): (usize, &SecretText)| {
            UploadUrl::parse(text.0.expose_secret(), self.shared.allow_plain_loopback)
                .map_err(|error| raw.error(format!("`upload_urls[{index}]`: {error}"), false))
        };
        texts.iter().enumerate().map(parse).collect()
    }

    async fn decode<T: serde::de::DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<Answered<T>, Error> {
        let endpoint = call.endpoint;
        let raw = self.api(call).await?;
        let value = raw.decode().map_err(|error| Error::new(endpoint, error))?;
        Ok(answered(value, &raw))
    }

    async fn nothing(&self, call: Call<'_>) -> Result<Answered<()>, Error> {
        let endpoint = call.endpoint;
        let raw = self.api(call).await?;
        raw.nothing().map_err(|error| Error::new(endpoint, error))?;
        Ok(answered((), &raw))
    }

    /// One API call within the answer timeout; gives only a 2xx.
    async fn api(&self, call: Call<'_>) -> Result<Raw, Error> {
        let endpoint = call.endpoint;
        let meter = Arc::new(Meter::default());
        let limit = self.shared.answer_timeout;
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
                .exchange(&self.shared.api, request, &taken, fresh, meter)
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
                    self.shared.pool.forget(&self.shared.api);
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
            if complete && exchange.taken.finished() {
                self.shared
                    .pool
                    .put(&self.shared.api, exchange.conn, API_PATIENCE);
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
                if exchange.taken.finished() {
                    self.shared
                        .pool
                        .put(&self.shared.api, exchange.conn, API_PATIENCE);
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

    fn api_request(
        &self,
        call: &Call<'_>,
        body: Outgoing,
    ) -> Result<Request<Outgoing>, RequestError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.path.as_str())
            .body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.shared.api_host_header.clone());
        headers.insert(header::USER_AGENT, self.shared.user_agent.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CLIENT_VERSION, self.shared.client_version.clone());
        if call.method != Method::GET {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        headers.extend(call.headers.clone());
        Ok(request)
    }

    async fn put(
        &self,
        url: &UploadUrl,
        filetype: &str,
        length: u64,
        (body, taken): (Outgoing, Arc<Taken>),
        meter: &Arc<Meter>,
    ) -> Result<ChunkAnswer, Error> {
        let endpoint = Endpoint::PutChunk;
        let origin = Origin {
            host: url.host().to_owned(),
            port: url.port(),
            https: url.is_https(),
        };
        let mut request = self
            .put_request(url, &origin, filetype, length, body)
            .map_err(|error| Error::new(endpoint, error))?;
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
        let everything_sent = taken.finished();
        if complete && everything_sent {
            self.shared.pool.put(&origin, conn, STORAGE_PATIENCE);
        }
        if !parts.status.is_success() {
            let path = url.path_and_query();
            let secrets = [
                url.expose(),
                path.as_str(),
                path.query().unwrap_or_default(),
            ];
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
        let host = origin
            .host_header()
            .ok_or(crate::UploadUrlError::Malformed)?;
        let mut request = Request::builder()
            .method(Method::PUT)
            .uri(url.path_and_query())
            .body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, host);
        headers.insert(header::USER_AGENT, self.shared.user_agent.clone());
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
            self.shared.pool.take(origin).await
        };
        let mut conn = match idle {
            Some(conn) => conn,
            None => match self.shared.pool.open(&self.shared.connector, origin).await {
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
                } else if taken.finished() && reached == Reached::Maybe {
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

fn answered<T>(value: T, raw: &Raw) -> Answered<T> {
    Answered {
        value,
        date: raw.date(),
        rate_limit: refusal::rate_limit(&raw.headers),
    }
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
async fn refusal_body(mut incoming: Incoming) -> (Vec<u8>, bool) {
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
