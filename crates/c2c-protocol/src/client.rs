//! The client: one method per call.
//!
//! Invariants: what breaks a known rule is refused before anything is sent; the bearer token is added to API calls and
//! to nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use secrecy::{ExposeSecret, SecretString};

use crate::answers::{
    Answered, Asset, AssetWire, ChunkAnswer, DeviceCode, HealthWire, Me, MeWire, PartUrlsWire,
    PollAnswer, RealtimeAsset, SecretText, TokenPair,
};
use crate::call::{Call, CallBody};
use crate::config::{ClientConfig, ConfigError};
use crate::connect::Connector;
use crate::decode::Raw;
use crate::error::{AnswerError, Endpoint, Error, RequestError, TransportError};
use crate::exchange::Wire;
use crate::meter::Meter;
use crate::pool::{Outgoing, Pool};
use crate::presence::Presence;
use crate::proxy::Proxies;
use crate::refusal;
use crate::requests::{CreateAsset, CreateRealtimeAsset, RealtimeParts, SCOPE};
use crate::tls::tls_config;
use crate::upload_url::{UploadUrl, UploadUrlError};
#[cfg(doc)]
use crate::{Reached, Stage};

/// Largest answer with upload URLs in bytes: 10,000 URLs of over a kilobyte each.
const MAX_URLS_ANSWER: usize = 32 * 1024 * 1024;
/// Digits of the largest offset.
const OFFSET_WIDTH: usize = 20;

const QR_PAIRING: HeaderName = HeaderName::from_static("x-client-platypus-enabled");

/// Talks to the API and the storage. Clones share one pool of connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Wire>,
    allow_plain_loopback: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("api", &self.shared.api)
            .finish_non_exhaustive()
    }
}

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
        let shared = Wire {
            api,
            api_host_header,
            client_version: HeaderValue::from_str(&config.client_version)
                .map_err(|_| ConfigError::UserAgent)?,
            user_agent: HeaderValue::from_str(&config.user_agent)
                .map_err(|_| ConfigError::UserAgent)?,
            answer_timeout: config.answer_timeout,
            pool: Pool::default(),
            connector: Connector {
                tls: tls_config(&config.trust)?,
                resolve: config.resolve,
                connect_timeout: config.connect_timeout,
                interface: config.interface,
                tuning: Arc::new(config.tuning),
                proxies: Proxies::new(config.proxy),
            },
        };
        Ok(Self {
            shared: Arc::new(shared),
            allow_plain_loopback: config.allow_plain_loopback,
        })
    }

    /// The host of the API.
    #[must_use]
    pub fn api_host(&self) -> &str {
        &self.shared.api.host
    }

    /// The proxy on the way to the API, `HOST:PORT`, if there is one.
    #[must_use]
    pub fn api_proxy(&self) -> Option<String> {
        let Wire { api, connector, .. } = &*self.shared;
        let proxy = connector.proxy(&api.host, api.port).ok().flatten();
        proxy.map(|proxy| proxy.authority())
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
        let mut call =
            Call::new(Endpoint::DeviceCode, Method::POST, "/v2/auth/device/code").form(&fields)?;
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
        let call = Call::new(Endpoint::PollToken, Method::POST, "/v2/auth/token").form(&fields)?;
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
        let call = Call::new(Endpoint::Refresh, Method::POST, "/v2/auth/token").form(&fields)?;
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
        let call = Call::new(Endpoint::Revoke, Method::POST, "/v2/auth/revoke").form(&fields)?;
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

    /// Opens the presence socket, on which this unit is seen as online and hears of pauses.
    ///
    /// # Errors
    ///
    /// [`Error`]; a service without one refuses.
    pub async fn presence(&self, token: &SecretString) -> Result<Presence, Error> {
        Presence::open(&self.shared, token).await
    }

    /// Asks whether the service is there. Anything but its own words is an error, a sign-in page above all.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn health(&self) -> Result<Answered<()>, Error> {
        let call = Call::new(Endpoint::Health, Method::GET, "/health").idempotent();
        let raw = self.shared.api(call).await?;
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
        let open = CreateAsset {
            offset: None,
            ..asset.clone()
        };
        let mut json = serde_json::to_vec(&open)
            .map_err(|error| Error::new(endpoint, RequestError::Json(error)))?;
        // The length goes out before the value is known: blanks, which JSON allows, make up the difference.
        json.pop();
        json.extend_from_slice(b",\"offset\":");
        let mut call = Call::new(endpoint, Method::POST, "/v2/devices/assets")
            .bearer(token)?
            .json(&())?;
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
        let raw = self.shared.api(call).await?;
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
        let raw = self.shared.api(call).await?;
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
        self.shared
            .put(
                url,
                filetype,
                length,
                Outgoing::new(body, length),
                meter,
                false,
            )
            .await
    }

    /// The same, but asks the storage first whether it wants the chunk (`Expect: 100-continue`), and begins to send it
    /// after its word, or after 3 s without one.
    ///
    /// It costs a round trip. It is for a chunk whose connection was reset for no visible reason: a storage that refuses
    /// early and closes at once may look like a bad network, because the reset overtakes the answer.
    ///
    /// # Errors
    ///
    /// As for [`Client::put_chunk`].
    pub async fn put_chunk_asking_first<B>(
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
        self.shared
            .put(
                url,
                filetype,
                length,
                Outgoing::new(body, length),
                meter,
                true,
            )
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
            UploadUrl::parse(text.0.expose_secret(), self.allow_plain_loopback)
                .and_then(
                    |url| match url.points_to(&self.shared.api.host, self.shared.api.port) {
                        true => Err(UploadUrlError::IntoApi {
                            host: url.host().to_owned(),
                        }),
                        false => Ok(url),
                    },
                )
                .map_err(|error| raw.error(format!("`upload_urls[{index}]`: {error}"), false))
        };
        texts.iter().enumerate().map(parse).collect()
    }

    async fn decode<T: serde::de::DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<Answered<T>, Error> {
        let endpoint = call.endpoint;
        let raw = self.shared.api(call).await?;
        let value = raw.decode().map_err(|error| Error::new(endpoint, error))?;
        Ok(answered(value, &raw))
    }

    async fn nothing(&self, call: Call<'_>) -> Result<Answered<()>, Error> {
        let endpoint = call.endpoint;
        let raw = self.shared.api(call).await?;
        raw.nothing().map_err(|error| Error::new(endpoint, error))?;
        Ok(answered((), &raw))
    }
}

fn answered<T>(value: T, raw: &Raw) -> Answered<T> {
    Answered {
        value,
        date: raw.date(),
        rate_limit: refusal::rate_limit(&raw.headers),
    }
}
