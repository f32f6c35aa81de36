//! Presence over the websocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Rig, soon};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn open(rig: &Rig, token: &str) -> Result<Socket, Error> {
    let url = rig
        .api(&format!(
            "/devices/websocket?Authorization=Bearer%20{token}"
        ))
        .replacen("https", "wss", 1);
    let stream = rig.connect(&rig.simulator.api_url()).await.unwrap();
    tokio_tungstenite::client_async(url, stream)
        .await
        .map(|(socket, _)| socket)
}

async fn say(socket: &mut Socket, topic: &str, event: &str, reference: &str) -> Value {
    let frame = json!({ "topic": topic, "event": event, "payload": {}, "ref": reference });
    socket.send(Message::text(frame.to_string())).await.unwrap();
    hear(socket).await
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(text.as_str()).unwrap(),
            other => assert!(!other.is_close(), "closed"),
        }
    }
}

async fn closed(socket: &mut Socket) -> bool {
    loop {
        match socket.next().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return true,
            Some(Ok(_)) => {}
        }
    }
}

#[tokio::test]
async fn joins_beats_and_hears_of_pauses() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let me = rig
        .call("GET", "/v2/devices/me", &token, &Value::Null)
        .await
        .json();
    let mut socket = open(&rig, &token).await.unwrap();
    for id in ["id", "device_id"] {
        let topic = format!("devices:{}", me[id].as_str().unwrap());
        let reply = say(&mut socket, &topic, "phx_join", "1").await;
        let ok = json!({ "topic": topic, "event": "phx_reply", "payload": { "status": "ok", "response": {} }, "ref": "1" });
        assert_eq!(reply, ok);
        if id == "id" {
            let left = say(&mut socket, &topic, "phx_leave", "2").await;
            assert_eq!(left["payload"]["status"], "ok");
        }
    }
    assert_eq!(
        say(&mut socket, "devices:someone-else", "phx_join", "3").await["payload"]["status"],
        "error"
    );
    let topic = format!("devices:{}", me["device_id"].as_str().unwrap());
    for (paused, word) in [(true, "paused"), (false, "online")] {
        if paused {
            admin.pause(0)
        } else {
            admin.resume(0)
        }
        let push = json!({ "topic": topic, "event": "status_updated", "payload": { "status": word }, "ref": null });
        assert_eq!(hear(&mut socket).await, push);
    }
    for beat in 0..3 {
        rig.clock.advance(Duration::from_secs(59));
        let reference = format!("b{beat}");
        let reply = say(&mut socket, "phoenix", "heartbeat", &reference).await;
        assert_eq!(
            (&reply["payload"]["status"], &reply["ref"]),
            (&json!("ok"), &json!(reference))
        );
    }
    assert_eq!(
        (admin.stats().websockets_open, admin.devices()[0].websockets),
        (1, 1)
    );
    rig.clock.advance(Duration::from_secs(60));
    assert!(closed(&mut socket).await);
    soon(admin.wait_until(|snapshot| snapshot.stats().websockets_open == 0)).await;
    assert_eq!(admin.devices()[0].websockets, 0);
}

#[tokio::test]
async fn bad_tokens_are_refused_and_dying_ones_thrown_out() {
    let rig = Rig::start(|builder| builder).await;
    let (token, refresh) = rig.pair().await;
    let refused = open(&rig, "nonsense").await;
    assert!(matches!(refused, Err(Error::Http(reply)) if reply.status() == 403));
    let plain = rig
        .send(
            "GET",
            &rig.api(&format!(
                "/devices/websocket?Authorization=Bearer%20{token}"
            )),
            &[],
            "",
        )
        .await
        .unwrap();
    assert_eq!(plain.status, 400);
    let logged = rig.simulator.admin().requests().pop().unwrap();
    assert_eq!(
        (logged.query.as_str(), logged.full_query().contains(&token)),
        ("Authorization=…", true)
    );
    assert!(
        !format!("{logged:?}").contains(&token)
            && !serde_json::to_string(&logged).unwrap().contains(&token)
    );

    let mut socket = open(&rig, &token).await.unwrap();
    assert_eq!(rig.refresh(&refresh).await.status, 200);
    assert_eq!(
        say(&mut socket, "phoenix", "heartbeat", "1").await["payload"]["status"],
        "ok"
    );
    rig.simulator.admin().revoke_all();
    assert!(closed(&mut socket).await);
}
