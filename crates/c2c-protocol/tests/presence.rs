//! The presence socket, against a server that says exactly what a test wants.
#![allow(clippy::unwrap_used, reason = "a test that fails here fails")]

mod support;

use std::time::Duration;

use c2c_protocol::{
    Client, ClientConfig, DeviceStatus, Endpoint, PresenceNews, SecretString, Stage, Trust,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use support::{Authority, Server, Step, answer, chain, secret};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

type Socket = WebSocketStream<tokio_rustls::server::TlsStream<TcpStream>>;

/// Has letters that a query must not carry as they are.
const TOKEN: &str = "eyJ0.a+b/c=d&e%f";

struct Other {
    client: Client,
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl Other {
    async fn start() -> Self {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(ClientConfig {
            api_url: format!(
                "https://localhost:{}",
                listener.local_addr().unwrap().port()
            ),
            client_version: "2.16.4".into(),
            trust: Trust::Only(vec![authority.root()]),
            resolve: vec![
                format!(
                    "localhost:{}:127.0.0.1",
                    listener.local_addr().unwrap().port()
                )
                .parse()
                .unwrap(),
            ],
            answer_timeout: Duration::from_secs(20),
            ..ClientConfig::default()
        })
        .unwrap();
        Self {
            client,
            listener,
            acceptor: authority.acceptor("localhost"),
        }
    }

    /// Takes the handshake, and gives its address and version.
    async fn accept(&self) -> (Socket, String, String) {
        let (tcp, _) = self.listener.accept().await.unwrap();
        let tls = self.acceptor.accept(tcp).await.unwrap();
        let mut asked = (String::new(), String::new());
        #[expect(
            clippy::result_large_err,
            reason = "the shape that the handshake wants"
        )]
        let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            asked.0 = request.uri().to_string();
            asked.1 = request.headers()["x-client-version"]
                .to_str()
                .unwrap()
                .to_owned();
            assert!(!request.headers().contains_key("authorization"));
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(tls, look)
            .await
            .unwrap();
        (socket, asked.0, asked.1)
    }

    async fn open(&self) -> (c2c_protocol::Presence, Socket) {
        let token = secret(TOKEN);
        let (presence, (socket, ..)) = tokio::join!(self.client.presence(&token), self.accept());
        (presence.unwrap(), socket)
    }
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
            return serde_json::from_str(text.as_str()).unwrap();
        }
    }
}

async fn say(socket: &mut Socket, frame: Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

/// Joins under a device id, with this status as the reply.
async fn join(presence: &mut c2c_protocol::Presence, socket: &mut Socket, status: &str) -> bool {
    let reply = async {
        let frame = hear(socket).await;
        assert_eq!(
            (&frame["topic"], &frame["event"]),
            (&json!("devices:D1"), &json!("phx_join"))
        );
        let payload = json!({ "status": status, "response": {} });
        // What does not belong to the join does not disturb it.
        say(socket, json!({ "topic": "devices:D1", "event": "phx_reply", "payload": { "status": "ok" }, "ref": "77" })).await;
        say(socket, json!({ "topic": "devices:D1", "event": "phx_reply", "payload": payload, "ref": frame["ref"] })).await;
    };
    let (joined, ()) = tokio::join!(presence.join("D1"), reply);
    joined.unwrap()
}

#[tokio::test]
async fn the_handshake_carries_the_token_in_its_address_and_the_version() {
    let other = Other::start().await;
    let token: SecretString = secret(TOKEN);
    let (presence, (_socket, uri, version)) =
        tokio::join!(other.client.presence(&token), other.accept());
    assert!(
        uri.ends_with("/devices/websocket?Authorization=Bearer%20eyJ0.a%2Bb%2Fc%3Dd%26e%25f"),
        "{uri}"
    );
    assert_eq!(version, "2.16.4");
    let presence = presence.unwrap();
    assert!(!format!("{presence:?}").contains("eyJ0"));
    presence.close().await;
}

#[tokio::test]
async fn joins_beats_and_tells_the_news() {
    let other = Other::start().await;
    let (mut presence, mut socket) = other.open().await;
    assert!(join(&mut presence, &mut socket, "ok").await);
    presence.heartbeat().await.unwrap();
    let beat = hear(&mut socket).await;
    assert_eq!(
        (&beat["topic"], &beat["event"], &beat["payload"]),
        (&json!("phoenix"), &json!("heartbeat"), &json!({}))
    );
    say(&mut socket, json!({ "topic": "phoenix", "event": "phx_reply", "payload": { "status": "ok" }, "ref": beat["ref"] })).await;
    assert_eq!(presence.next().await.unwrap(), PresenceNews::Alive);
    for (payload, news) in [
        (
            json!({ "status": "paused" }),
            PresenceNews::Status(DeviceStatus::Paused),
        ),
        (
            json!({ "status": "online" }),
            PresenceNews::Status(DeviceStatus::Online),
        ),
        (json!({ "status": "dreaming" }), PresenceNews::Changed),
        (json!({ "state": 4 }), PresenceNews::Changed),
        (json!(null), PresenceNews::Changed),
    ] {
        // Of another unit: none of ours.
        say(&mut socket, json!({ "topic": "devices:D2", "event": "status_updated", "payload": { "status": "paused" }, "ref": null })).await;
        say(&mut socket, json!({ "topic": "devices:D1", "event": "status_updated", "payload": payload, "ref": null })).await;
        assert_eq!(presence.next().await.unwrap(), news);
    }
    say(
        &mut socket,
        json!({ "topic": "devices:D1", "event": "project_renamed", "payload": {}, "ref": null }),
    )
    .await;
    assert_eq!(presence.next().await.unwrap(), PresenceNews::Changed);
    // Neither noise nor a ping is a failure, and a ping is answered.
    socket.send(Message::text("no json")).await.unwrap();
    assert_eq!(presence.next().await.unwrap(), PresenceNews::Alive);
    socket.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(presence.next().await.unwrap(), PresenceNews::Alive);
    presence.heartbeat().await.unwrap();
    let sent = [socket.next().await, socket.next().await].map(|sent| sent.unwrap().unwrap());
    assert!(sent.contains(&Message::Pong("p".into())), "{sent:?}");
}

#[tokio::test]
async fn a_unit_that_is_not_known_is_not_joined() {
    let other = Other::start().await;
    let (mut presence, mut socket) = other.open().await;
    assert!(!join(&mut presence, &mut socket, "error").await);
    assert!(
        join(&mut presence, &mut socket, "ok").await,
        "another try is possible"
    );
}

#[tokio::test]
async fn every_end_is_an_error_that_says_so() {
    for end in ["close", "drop", "channel", "huge"] {
        let other = Other::start().await;
        let (mut presence, mut socket) = other.open().await;
        assert!(join(&mut presence, &mut socket, "ok").await);
        match end {
            "close" => socket.close(None).await.unwrap(),
            "channel" => say(
                &mut socket,
                json!({ "topic": "devices:D1", "event": "phx_close", "payload": {}, "ref": "1" }),
            )
            .await,
            // More than any message may have: refused unread.
            "huge" => drop(socket.feed(Message::text("x".repeat(300_000))).await),
            _ => drop(socket),
        }
        let error = presence.next().await.unwrap_err();
        assert_eq!(error.endpoint, Endpoint::Presence);
        assert_eq!(
            error.transport().unwrap().stage,
            Stage::Answer,
            "{end}: {error}"
        );
        assert!(
            error
                .to_string()
                .starts_with("the presence socket failed: "),
            "{error}"
        );
        assert!(!chain(&error).contains("eyJ0"), "{error:?}");
    }
}

#[tokio::test]
async fn a_service_without_a_socket_refuses_in_its_own_words() {
    for status in [401, 403, 404, 426, 503] {
        // A server that repeats the address it was asked for, token and all.
        let echo = format!(r#"{{"code":{status},"errors":[],"message":"no {TOKEN} here"}}"#);
        let server = Server::start(vec![Step::Answer(answer(
            status,
            "Content-Type: application/json\r\n",
            echo,
        ))])
        .await;
        let error = server.client().presence(&secret(TOKEN)).await.unwrap_err();
        assert_eq!(error.refusal().unwrap().status, status);
        assert!(!chain(&error).contains("eyJ0"), "{}", chain(&error));
        assert_eq!(server.connections(), 1, "asked once");
    }
    let page = Server::start(vec![Step::Answer(answer(
        200,
        "Content-Type: text/html\r\n",
        "<html>Sign in</html>",
    ))])
    .await;
    let error = page.client().presence(&secret(TOKEN)).await.unwrap_err();
    assert!(error.to_string().contains("sign-in page"), "{error}");
    let forged = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: bm9uZQ==\r\n\r\n";
    let forged = Server::start(vec![Step::Answer(forged.into())]).await;
    let error = forged.client().presence(&secret(TOKEN)).await.unwrap_err();
    assert!(error.to_string().contains("for somebody else"), "{error}");
    let mute = Server::start(vec![Step::Close]).await;
    let error = mute.client().presence(&secret(TOKEN)).await.unwrap_err();
    assert_eq!(error.transport().unwrap().stage, Stage::Answer);
}
