//! Presence over a websocket: Phoenix channels with JSON object frames.
//!
//! Invariants: a socket lives as long as the authorization it was opened with; 60 s without a frame from the client
//! (on the simulated clock) close it; a pause or resume is pushed to every device topic that was joined.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts as Head;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::answer::{self, Answer};
use crate::exchange::Exchange;
use crate::pairing::Bearer;
use crate::world::{News, World};

/// Silence after which the server closes.
const IDLE: Duration = Duration::from_secs(60);

/// Who speaks on a websocket.
pub(crate) struct Seat {
    client_id: String,
    authorization: usize,
}

/// Answers the handshake of a caller whose token is good.
pub(crate) fn accept(exchange: &Exchange, head: &Head, bearer: &Bearer) -> Answer {
    let text = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let upgrades = text("upgrade").eq_ignore_ascii_case("websocket")
        && text("connection").to_ascii_lowercase().contains("upgrade")
        && text("sec-websocket-version") == "13"
        && !text("sec-websocket-key").is_empty();
    if !upgrades {
        exchange
            .entry
            .violation("this address takes websocket handshakes only");
        return answer::detailed(400, "Bad Request", "A websocket handshake was expected");
    }
    let mut seat = exchange
        .connection
        .websocket
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *seat = Some(Seat {
        client_id: bearer.client_id.clone(),
        authorization: bearer.authorization,
    });
    let mut answer = answer::empty(101);
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer::put(
        &mut answer,
        "sec-websocket-accept",
        &derive_accept_key(text("sec-websocket-key").as_bytes()),
    );
    answer
}

/// Serves a websocket until either side closes it.
pub(crate) async fn serve<S>(world: &Arc<World>, seat: Seat, stream: S, already_read: Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut socket =
        WebSocketStream::from_partially_read(stream, already_read, Role::Server, None).await;
    let mut pushes = world.pushes.subscribe();
    let opened = seat.client_id.clone();
    world.change(|state| {
        state.stats.websockets_open += 1;
        if let Some(device) = state.devices.get_mut(&opened) {
            device.websockets += 1;
        }
    });
    let leaving = Leaving {
        world: Arc::clone(world),
        client_id: opened,
    };
    let mut topics: Vec<String> = Vec::new();
    let mut deadline = world.clock.now() + IDLE;
    loop {
        tokio::select! {
            message = socket.next() => {
                deadline = world.clock.now() + IDLE;
                let reply = match message {
                    Some(Ok(Message::Text(text))) => answer_frame(world, &seat, &mut topics, text.as_str()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                    Some(Ok(_)) => None,
                };
                if let Some(reply) = reply
                    && socket.send(Message::text(reply.to_string())).await.is_err()
                {
                    break;
                }
            }
            push = pushes.recv() => {
                let push = match push {
                    Ok(push) => push,
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => break,
                };
                if push.client_id.as_deref().is_some_and(|id| id != seat.client_id) {
                    continue;
                }
                if push.news == News::Tokens {
                    if seat.is_good(world) {
                        continue;
                    }
                    break;
                }
                let now = world.clock.now();
                let status = world.read(|state| state.status_of(&seat.client_id, now));
                for topic in &topics {
                    let frame = json!({
                        "topic": topic, "event": "status_updated", "payload": { "status": status }, "ref": null,
                    });
                    if socket.send(Message::text(frame.to_string())).await.is_err() {
                        return;
                    }
                }
            }
            () = world.clock.sleep_until(deadline) => break,
        }
        if !seat.is_good(world) {
            break;
        }
    }
    drop(leaving);
    // The client may be gone already, then there is nothing to close.
    let _ = socket.close(None).await;
}

impl Seat {
    fn is_good(&self, world: &World) -> bool {
        let now = world.clock.now();
        world.read(|state| state.is_authorized(self.authorization, now))
    }
}

fn answer_frame(world: &World, seat: &Seat, topics: &mut Vec<String>, text: &str) -> Option<Value> {
    let frame: Value = serde_json::from_str(text).ok()?;
    let topic = frame.get("topic")?.as_str()?;
    let reply = |status: &str, response: Value| {
        Some(json!({
            "topic": topic, "event": "phx_reply", "payload": { "status": status, "response": response },
            "ref": frame.get("ref"),
        }))
    };
    match frame.get("event")?.as_str()? {
        "heartbeat" if topic == "phoenix" => {
            let now = world.clock.now();
            world.change(|state| {
                if let Some(device) = state.devices.get_mut(&seat.client_id) {
                    device.last_seen = now;
                }
            });
            reply("ok", json!({}))
        }
        "phx_join" => {
            let mine = world.read(|state| {
                let device = state.devices.get(&seat.client_id)?;
                let ids = [
                    Some(device.device_id.as_str()),
                    device.binding().map(|b| b.project_device_id.as_str()),
                ];
                let asked = topic.strip_prefix("devices:")?;
                ids.into_iter()
                    .flatten()
                    .any(|id| id == asked)
                    .then_some(())
            });
            if mine.is_none() {
                return reply("error", json!({ "reason": "unauthorized" }));
            }
            if !topics.iter().any(|known| known == topic) {
                topics.push(topic.to_owned());
            }
            reply("ok", json!({}))
        }
        "phx_leave" => {
            topics.retain(|known| known != topic);
            reply("ok", json!({}))
        }
        _ => reply("error", json!({ "reason": "unmatched topic" })),
    }
}

/// Counts a websocket out again.
struct Leaving {
    world: Arc<World>,
    client_id: String,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.world.change(|state| {
            state.stats.websockets_open -= 1;
            if let Some(device) = state.devices.get_mut(&self.client_id) {
                device.websockets -= 1;
            }
        });
    }
}
