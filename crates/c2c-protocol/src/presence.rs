//! The presence socket: one websocket on which the service sees that this unit is there, and tells at once when its
//! channel is paused or resumed. Phoenix channels with JSON object frames.
//!
//! Invariants: one [`Presence`] is one connection, and nothing here opens another; the access token is a part of the
//! address of the handshake (the protocol has it so) and of nothing that is printed; a message is limited in size; what
//! is not understood is reported as news without content, never as a failure.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::answers::DeviceStatus;
use crate::call::Call;
use crate::connect::timed_out;
use crate::error::{AnswerError, Endpoint, Error, Reached, Stage, TransportError};
use crate::exchange::{Wire, refusal_body};
use crate::pool::Outgoing;
use crate::refusal::{self, Refusal};
use crate::requests::bearer;

/// Largest message in bytes; status news have a few hundred.
const MAX_MESSAGE: usize = 256 * 1024;
/// A block for reading and one for writing: frames here are small, and the socket lives long.
const BUFFER: usize = 8 * 1024;
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// What came over the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceNews {
    /// The service is there: a reply to a heartbeat, or a ping.
    Alive,
    /// The status of this unit changed to this.
    Status(DeviceStatus),
    /// Something about this unit changed; this version cannot tell what.
    Changed,
}

/// An open presence socket. Dropping it closes the connection.
pub struct Presence {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    answer_timeout: Duration,
    topic: Option<String>,
    next_ref: u64,
    _task: Task,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}

/// The task under the handshake ends with whoever waits for it.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Presence {
    /// Opens the socket. A service without one answers with a refusal.
    pub(crate) async fn open(wire: &Wire, token: &SecretString) -> Result<Self, Error> {
        match timeout(wire.answer_timeout, Self::handshake(wire, token)).await {
            Ok(opened) => opened,
            Err(_) => Err(failed(TransportError {
                stage: Stage::AnswerTimeout,
                reused: false,
                reached: Reached::Maybe,
                source: timed_out("no presence socket", wire.answer_timeout).into(),
            })),
        }
    }

    async fn handshake(wire: &Wire, token: &SecretString) -> Result<Self, Error> {
        let endpoint = Endpoint::Presence;
        // Checks the token like that of every other call.
        bearer(token).map_err(|error| Error::new(endpoint, error))?;
        let key = generate_key();
        let path = format!(
            "/devices/websocket?Authorization=Bearer%20{}",
            escaped(token.expose_secret())
        );
        let mut call = Call::new(endpoint, Method::GET, path);
        call.secrets.push(token.expose_secret());
        for (name, value) in [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, key.as_str()),
        ] {
            let value = HeaderValue::from_str(value)
                .map_err(|error| Error::new(endpoint, crate::RequestError::Build(error.into())))?;
            call.headers.insert(name, value);
        }
        let (body, _) = Outgoing::new(Empty::new(), 0);
        let request = wire
            .api_request(&call, body)
            .map_err(|error| Error::new(endpoint, error))?;

        let origin = &wire.api;
        let tcp = wire
            .connector
            .dial(&origin.host, origin.port)
            .await
            .map_err(failed)?;
        let io: Box<dyn Io> = if origin.https {
            let stream = wire.connector.secure(&origin.host, tcp).await;
            Box::new(stream.map_err(failed)?)
        } else {
            Box::new(tcp)
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| failed(TransportError::unsent(Stage::Connect, error)))?;
        let task = Task(tokio::spawn(connection.with_upgrades()).abort_handle());
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed(lost(error)))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, incoming) = response.into_parts();
            let (body, _) = refusal_body(incoming).await;
            if parts.status.is_success() {
                return Err(Error::new(
                    endpoint,
                    AnswerError {
                        status: parts.status.as_u16(),
                        what: "an ordinary answer instead of a websocket".to_owned(),
                        looks_like_portal: true,
                        date: refusal::date(&parts.headers),
                    },
                ));
            }
            let refusal = Refusal::read(parts.status, &parts.headers, &body, &call.secrets);
            return Err(Error::new(endpoint, refusal));
        }
        let accepted = response.headers().get(ACCEPT).map(HeaderValue::as_bytes);
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(Error::new(
                endpoint,
                AnswerError {
                    status: response.status().as_u16(),
                    what: "the websocket handshake was answered for somebody else".to_owned(),
                    looks_like_portal: true,
                    date: refusal::date(response.headers()),
                },
            ));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| failed(lost(error)))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config));
        Ok(Self {
            socket: socket.await,
            answer_timeout: wire.answer_timeout,
            topic: None,
            next_ref: 1,
            _task: task,
        })
    }

    /// Asks for the news of a unit. `false` if the service does not know it under this id.
    ///
    /// # Errors
    ///
    /// [`Error`]: the socket broke, or no reply came within the answer timeout.
    pub async fn join(&mut self, device_id: &str) -> Result<bool, Error> {
        let topic = format!("devices:{device_id}");
        let asked = self.say(&topic, "phx_join").await?;
        let limit = self.answer_timeout;
        let reply = async {
            loop {
                let Some(frame) = self.frame().await? else {
                    continue;
                };
                if frame.event == "phx_reply" && frame.reference.as_deref() == Some(asked.as_str())
                {
                    return Ok(frame.payload["status"] == "ok");
                }
            }
        };
        let joined = match timeout(limit, reply).await {
            Ok(joined) => joined?,
            Err(_) => return Err(failed(lost(timed_out("no reply to the join", limit)))),
        };
        if joined {
            self.topic = Some(topic);
        }
        Ok(joined)
    }

    /// Says that this unit is there. The reply arrives as [`PresenceNews::Alive`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the socket broke.
    pub async fn heartbeat(&mut self) -> Result<(), Error> {
        self.say("phoenix", "heartbeat").await.map(drop)
    }

    /// Waits for what comes next, without limit. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error`]: the socket was closed or broke; it is of no more use.
    pub async fn next(&mut self) -> Result<PresenceNews, Error> {
        loop {
            let Some(frame) = self.frame().await? else {
                return Ok(PresenceNews::Alive);
            };
            let ours = self.topic.as_deref() == Some(frame.topic.as_str());
            match frame.event.as_str() {
                "phx_reply" => return Ok(PresenceNews::Alive),
                "phx_error" | "phx_close" if ours => {
                    let ended = std::io::Error::other("the service ended the channel");
                    return Err(failed(lost(ended)));
                }
                "status_updated" if ours => {
                    let status = frame.payload.get("status").cloned().unwrap_or_default();
                    return Ok(match serde_json::from_value::<DeviceStatus>(status) {
                        Ok(DeviceStatus::Other(_)) | Err(_) => PresenceNews::Changed,
                        Ok(status) => PresenceNews::Status(status),
                    });
                }
                _ if ours => return Ok(PresenceNews::Changed),
                _ => {}
            }
        }
    }

    /// Closes the socket politely.
    pub async fn close(mut self) {
        // Whether the other side hears it changes nothing.
        let _ = timeout(FAREWELL, self.socket.close(None)).await;
    }

    async fn say(&mut self, topic: &str, event: &str) -> Result<String, Error> {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        let frame = json!({ "topic": topic, "event": event, "payload": {}, "ref": reference });
        self.socket
            .send(Message::text(frame.to_string()))
            .await
            .map_err(|error| failed(lost(error)))?;
        Ok(reference)
    }

    /// The next frame; `None` for a sign of life without content.
    async fn frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return Ok(serde_json::from_str::<Value>(text.as_str())
                        .ok()
                        .and_then(Frame::read));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_))) => {
                    return Ok(None);
                }
                Some(Ok(Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => {
                    let closed = std::io::Error::other("the service closed the socket");
                    return Err(failed(lost(closed)));
                }
                Some(Err(error)) => return Err(failed(lost(error))),
            }
        }
    }
}

struct Frame {
    topic: String,
    event: String,
    payload: Value,
    reference: Option<String>,
}

impl Frame {
    fn read(mut value: Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        let (topic, event, reference) = (text("topic")?, text("event")?, text("ref"));
        Some(Self {
            topic,
            event,
            payload: value["payload"].take(),
            reference,
        })
    }
}

fn failed(error: TransportError) -> Error {
    Error::new(Endpoint::Presence, error)
}

fn lost(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TransportError {
    TransportError {
        stage: Stage::Answer,
        reused: false,
        reached: Reached::Maybe,
        source: source.into(),
    }
}

/// A value for a query.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}
