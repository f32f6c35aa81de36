//! Every fault, as its victim sees it.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Outcome, SimClock, Target};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{MIB, Rig, detailed, exchange, md5, noise, soon, split};

const ME: EndpointName = EndpointName::Me;
const PUT: EndpointName = EndpointName::PutChunk;

fn status(status: u16, body: BodyKind) -> Effect {
    Effect::Status {
        status,
        body,
        headers: Vec::new(),
    }
}

async fn last_outcome(rig: &Rig) -> Outcome {
    let admin = rig.simulator.admin();
    let settled = |outcome| !matches!(outcome, Outcome::Open | Outcome::Stalled);
    soon(admin.wait_until(|snapshot| {
        snapshot
            .requests()
            .back()
            .is_some_and(|entry| settled(entry.outcome))
    }))
    .await;
    admin.requests().pop().unwrap().outcome
}

#[tokio::test]
async fn made_up_answers_have_the_documented_bodies() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let me = async |effect: Effect| {
        let id = admin.add_fault(Fault::new(ME, effect).once());
        let reply = rig
            .call("GET", "/v2/devices/me", &token, &Value::Null)
            .await;
        assert_eq!(admin.requests().last().unwrap().faults, [id]);
        reply
    };
    let simple = me(status(400, BodyKind::Simple("invalid_client".to_owned()))).await;
    assert_eq!(
        (simple.status, simple.json()),
        (400, json!({ "error": "invalid_client" }))
    );
    let kind = BodyKind::Detailed {
        title: "Payment Required".to_owned(),
        detail: "Over the plan".to_owned(),
    };
    let reply = me(status(402, kind)).await;
    assert_eq!(
        (reply.status, reply.json()),
        (402, detailed(402, "Payment Required", "Over the plan"))
    );
    let html = me(status(404, BodyKind::Html)).await;
    assert_eq!(
        (html.status, html.header("content-type")),
        (404, "text/html; charset=utf-8")
    );
    let s3 = me(status(
        503,
        BodyKind::S3 {
            code: "SlowDown".to_owned(),
            message: "a < b & c".to_owned(),
        },
    ))
    .await;
    assert_eq!(
        (s3.status, s3.xml("Code"), s3.xml("Message")),
        (503, "SlowDown".to_owned(), "a &lt; b &amp; c".to_owned())
    );
    let empty = me(status(500, BodyKind::Empty)).await;
    assert_eq!((empty.status, empty.body.len()), (500, 0));
    let not_utf8 = me(status(500, BodyKind::NotUtf8)).await;
    assert!(std::str::from_utf8(&not_utf8.body).is_err());
    let text = me(status(418, BodyKind::Text("short and stout".to_owned()))).await;
    assert_eq!(
        (text.status, text.text().as_str()),
        (418, "short and stout")
    );
    let headers = vec![("retry-after".to_owned(), "7".to_owned())];
    let limited = me(Effect::Status {
        status: 429,
        body: BodyKind::Empty,
        headers,
    })
    .await;
    assert_eq!(
        (
            limited.status,
            limited.header("retry-after"),
            limited.header("x-ratelimit-limit")
        ),
        (429, "7", "100")
    );
    assert!(
        !html.headers.contains_key("x-ratelimit-limit")
            && !limited.header("x-request-id").is_empty()
    );
    let portal = me(Effect::CaptivePortal).await;
    assert!(
        portal.status == 200
            && portal.text().contains("<form")
            && portal.header("content-type").starts_with("text/html")
    );
    let moved = me(Effect::Redirect("https://login.hotel.example/".to_owned())).await;
    assert_eq!(
        (moved.status, moved.header("location")),
        (307, "https://login.hotel.example/")
    );
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &token, &Value::Null)
            .await
            .status,
        200
    );
    assert!(
        admin
            .requests()
            .iter()
            .all(|entry| entry.violations.is_empty())
    );
}

#[tokio::test]
async fn a_fault_finds_its_part_of_its_asset() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let slow_down = BodyKind::S3 {
        code: "SlowDown".to_owned(),
        message: "Please reduce your request rate.".to_owned(),
    };
    admin.add_fault(
        Fault::new(
            Target::endpoint(PUT).part(2).asset("b.mov"),
            status(503, slow_down),
        )
        .once(),
    );
    for name in ["a.mov", "b.mov"] {
        let urls = rig
            .urls(&token, name, 10 * MIB, &json!({ "parts": 2 }))
            .await;
        for (index, url) in urls.iter().enumerate() {
            let reply = rig.put(url, noise(5 * MIB, index as u64)).await;
            let hit = name == "b.mov" && index == 1;
            assert_eq!(reply.status, if hit { 503 } else { 200 }, "{name} {index}");
            if hit {
                assert_eq!(reply.xml("Code"), "SlowDown");
                assert_eq!(admin.assets()[1].parts[1].puts, 0);
                assert_eq!(rig.put(url, noise(5 * MIB, index as u64)).await.status, 200);
            }
        }
    }
    soon(admin.wait_for_delivered(2)).await;
    assert_eq!(admin.faults()[0].hits, 1);
    admin.add_fault(Fault::new(
        Target::endpoint(EndpointName::CreateAsset).asset("c.mov"),
        Effect::CutBeforeAnswer,
    ));
    assert_eq!(
        rig.create(&token, "d.mov", 1, &Value::Null).await.status,
        200
    );
}

#[tokio::test]
async fn refreshing_and_polling_are_told_apart() {
    let rig = Rig::start(|builder| builder).await;
    let admin = rig.simulator.admin();
    admin.add_fault(Fault::new(
        EndpointName::Refresh,
        status(503, BodyKind::Empty),
    ));
    let (_, refresh) = rig.pair().await;
    assert_eq!(rig.refresh(&refresh).await.status, 503);
    admin.clear_faults();
    admin.add_fault(Fault::new(
        EndpointName::Token,
        status(503, BodyKind::Empty),
    ));
    assert_eq!(rig.refresh(&refresh).await.status, 200);
}

#[tokio::test]
async fn cut_before_the_answer_takes_effect_and_dropping_does_not() {
    let rig = Rig::start(|builder| builder).await;
    let (token, refresh) = rig.pair().await;
    let admin = rig.simulator.admin();
    let url = rig.urls(&token, "a.mov", 5, &Value::Null).await.remove(0);
    admin.add_fault(Fault::new(PUT, Effect::DropAnswerless).once());
    assert!(rig.try_put(&url, "12345").await.is_err());
    assert_eq!(
        (last_outcome(&rig).await, admin.assets()[0].parts[0].puts),
        (Outcome::Cut, 0)
    );
    admin.add_fault(Fault::new(PUT, Effect::CutBeforeAnswer).once());
    assert!(rig.try_put(&url, "12345").await.is_err());
    assert_eq!(
        (last_outcome(&rig).await, admin.assets()[0].parts[0].puts),
        (Outcome::Cut, 1)
    );
    soon(admin.wait_for_delivered(1)).await;

    // The lost answer of a refresh: the old token is spent, the new one unknown.
    admin.add_fault(Fault::new(EndpointName::Refresh, Effect::CutBeforeAnswer).once());
    let secret = rig.simulator.client_secret();
    let fields = [
        ("client_id", crate::client::UNIT),
        ("client_secret", &secret),
        ("grant_type", "refresh_token"),
        ("refresh_token", &refresh),
    ];
    let headers = [
        ("x-client-version", "1.2.3"),
        ("content-type", "multipart/form-data; boundary=b"),
    ];
    let body = crate::client::multipart(&fields);
    assert!(
        rig.send("POST", &rig.api("/v2/auth/token"), &headers, body)
            .await
            .is_err()
    );
    assert_eq!(
        rig.refresh(&refresh).await.json(),
        json!({ "error": "invalid_request" })
    );
}

#[tokio::test]
async fn cut_in_the_middle_of_a_body() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let url = rig
        .urls(&token, "a.mov", 4 * MIB, &Value::Null)
        .await
        .remove(0);
    admin.add_fault(Fault::new(PUT, Effect::CutAfterBytes(MIB)).once());
    assert!(rig.try_put(&url, noise(4 * MIB, 1)).await.is_err());
    assert_eq!(last_outcome(&rig).await, Outcome::Cut);
    let received = admin.requests().last().unwrap().received;
    assert!((MIB..2 * MIB).contains(&received), "{received}");
    soon(admin.wait_until(|snapshot| snapshot.stats().uploads_open == 0)).await;
    assert_eq!(
        std::fs::read_dir(rig.simulator.root().join("incoming"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(rig.put(&url, noise(4 * MIB, 1)).await.status, 200);

    admin.add_fault(Fault::new(EndpointName::CreateAsset, Effect::CutAfterBytes(10)).once());
    let bearer = format!("Bearer {token}");
    let headers = [
        ("x-client-version", "1.0.0"),
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({ "name": "b.mov", "filesize": 1 }).to_string();
    assert!(
        rig.send("POST", &rig.api("/v2/devices/assets"), &headers, body)
            .await
            .is_err()
    );
    assert_eq!(admin.assets().len(), 1);
}

#[tokio::test]
async fn a_stall_ends_when_it_is_lifted_or_the_client_leaves() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let stalled = |snapshot: &c2c_simulator::Snapshot<'_>| {
        snapshot
            .requests()
            .back()
            .is_some_and(|entry| entry.outcome == Outcome::Stalled)
    };
    let url = rig
        .urls(&token, "a.mov", 20 * MIB, &json!({ "parts": 1 }))
        .await
        .remove(0);
    let fault = Fault::new(PUT, Effect::Stall { after_bytes: MIB });
    admin.add_fault(fault.clone());
    let lifting = async {
        soon(admin.wait_until(stalled)).await;
        let entry = admin.requests().pop().unwrap();
        assert!(
            (MIB..2 * MIB).contains(&entry.received),
            "{}",
            entry.received
        );
        admin.clear_faults();
    };
    let (reply, ()) = tokio::join!(rig.put(&url, noise(20 * MIB, 1)), lifting);
    assert_eq!(reply.status, 200);

    admin.add_fault(fault);
    let leaving = async {
        let stream = rig.connect(&url).await.unwrap();
        // A reset gets through although the simulator takes no more bytes; an orderly farewell would queue up.
        stream.get_ref().0.set_zero_linger().unwrap();
        let headers = [
            ("content-type", "video/quicktime"),
            ("x-amz-acl", "private"),
        ];
        tokio::select! {
            reply = exchange(stream, "PUT", &url, &headers, noise(20 * MIB, 1).into()) => {
                panic!("answered: {}", reply.is_ok())
            }
            () = admin.wait_until(stalled) => {}
        }
    };
    leaving.await;
    assert_eq!(last_outcome(&rig).await, Outcome::Gone);
    soon(admin.wait_until(|snapshot| snapshot.stats().uploads_open == 0)).await;

    admin.add_fault(Fault::new(ME, Effect::Stall { after_bytes: 0 }));
    tokio::select! {
        _ = rig.call("GET", "/v2/devices/me", &token, &Value::Null) => panic!("answered"),
        () = admin.wait_until(stalled) => {}
    }
    assert_eq!(last_outcome(&rig).await, Outcome::Gone);

    // An orderly farewell behind bytes that nobody reads is seen when the stall is lifted.
    admin.clear_faults();
    admin.add_fault(Fault::new(PUT, Effect::Stall { after_bytes: MIB }));
    tokio::select! {
        _ = rig.try_put(&url, noise(20 * MIB, 1)) => panic!("answered"),
        () = admin.wait_until(stalled) => {}
    }
    admin.clear_faults();
    assert_eq!(last_outcome(&rig).await, Outcome::Gone);
    soon(admin.wait_until(|snapshot| snapshot.stats().uploads_open == 0)).await;
}

#[tokio::test]
async fn a_delay_is_one_of_the_simulated_clock() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    admin.add_fault(Fault::new(ME, Effect::Delay(Duration::from_secs(3_600))));
    admin.add_fault(Fault::new(ME, status(503, BodyKind::Empty)));
    let moving = async {
        soon(admin.wait_until(|snapshot| {
            snapshot
                .requests()
                .back()
                .is_some_and(|entry| entry.faults.len() == 2)
        }))
        .await;
        assert_eq!(admin.requests().last().unwrap().outcome, Outcome::Open);
        rig.clock.advance(Duration::from_secs(3_600));
    };
    let (reply, ()) = tokio::join!(
        rig.call("GET", "/v2/devices/me", &token, &Value::Null),
        moving
    );
    assert_eq!(reply.status, 503);
    let entry = admin.requests().pop().unwrap();
    assert_eq!(
        entry.finished_at.unwrap().duration_since(entry.at).unwrap(),
        Duration::from_secs(3_600)
    );
}

#[tokio::test]
async fn slow_wires_take_their_time() {
    let rig = Rig::start_at(SimClock::scaled(200.0), |builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let url = rig
        .urls(&token, "a.mov", 10 * MIB, &json!({ "parts": 1 }))
        .await
        .remove(0);
    admin.add_fault(
        Fault::new(
            PUT,
            Effect::SlowRead {
                bytes_per_sec: MIB / 4,
            },
        )
        .once(),
    );
    assert_eq!(rig.put(&url, noise(10 * MIB, 1)).await.status, 200);
    let entry = admin.requests().pop().unwrap();
    let took = entry.finished_at.unwrap().duration_since(entry.at).unwrap();
    assert!(took >= Duration::from_secs(35), "{took:?}");

    admin.add_fault(Fault::new(ME, Effect::SlowAnswer).once());
    let before = rig.clock.now();
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &token, &Value::Null)
            .await
            .status,
        200
    );
    let took = rig.clock.now().duration_since(before).unwrap();
    // More than two thousand bytes at 64 a second.
    assert!(took >= Duration::from_secs(30), "{took:?}");
}

#[tokio::test]
async fn an_early_rejection_has_no_effect() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let url = rig
        .urls(&token, "a.mov", 30 * MIB, &json!({ "parts": 1 }))
        .await
        .remove(0);
    let body = BodyKind::S3 {
        code: "ServiceUnavailable".to_owned(),
        message: "Later.".to_owned(),
    };
    admin.add_fault(
        Fault::new(
            PUT,
            Effect::RejectEarly {
                status: 503,
                body,
                headers: Vec::new(),
            },
        )
        .once(),
    );
    let reply = rig.put(&url, noise(30 * MIB, 1)).await;
    assert_eq!(
        (
            reply.status,
            reply.xml("Code").as_str(),
            reply.header("connection")
        ),
        (503, "ServiceUnavailable", "close")
    );
    let entry = admin.requests().pop().unwrap();
    assert_eq!((entry.received, entry.content_length), (0, Some(30 * MIB)));
    assert_eq!(admin.assets()[0].parts[0].puts, 0);
}

#[tokio::test]
async fn etags_can_be_wrong_or_missing() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    let url = rig.urls(&token, "a.mov", 5, &Value::Null).await.remove(0);
    admin.add_fault(Fault::new(PUT, Effect::WrongEtag).once());
    admin.add_fault(Fault::new(PUT, Effect::NoEtag).once());
    let right = format!("\"{}\"", md5(b"12345"));
    let wrong = rig.put(&url, "12345").await;
    assert!(wrong.header("etag").len() == 34 && wrong.header("etag") != right);
    assert!(!rig.put(&url, "12345").await.headers.contains_key("etag"));
    assert_eq!(rig.put(&url, "12345").await.header("etag"), right);
    assert_eq!(admin.assets()[0].parts[0].puts, 3);
}

#[tokio::test]
async fn handshakes_fail_on_the_host_meant() {
    let rig = Rig::start(|builder| builder).await;
    let admin = rig.simulator.admin();
    admin.add_fault(Fault::new(PUT, Effect::TlsAbort).once());
    assert!(rig.connect(&rig.simulator.api_url()).await.is_ok());
    assert!(rig.connect(&rig.simulator.uploads_url()).await.is_err());
    assert!(rig.connect(&rig.simulator.uploads_url()).await.is_ok());
    admin.add_fault(Fault::new(ME, Effect::TlsAbort).times(2).after(1));
    for works in [true, false, false, true] {
        assert_eq!(rig.connect(&rig.simulator.api_url()).await.is_ok(), works);
    }
    assert_eq!(admin.stats().tls_failures, 3);
    // Neither certificate is good for the other host.
    let (_, port, _) = split(&rig.simulator.uploads_url());
    assert!(
        rig.connect(&format!("https://localhost:{port}"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_answer_can_end_too_soon() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let admin = rig.simulator.admin();
    admin.add_fault(Fault::new(
        EndpointName::DeviceCode,
        Effect::TruncateAnswer(40),
    ));
    let secret = rig.simulator.client_secret();
    let body = crate::client::multipart(&[
        ("client_id", "CAM-2"),
        ("client_secret", &secret),
        ("scope", "asset_create offline"),
    ]);
    let mut stream = rig.connect(&rig.simulator.api_url()).await.unwrap();
    let head = format!(
        "POST /v2/auth/device/code HTTP/1.1\r\nHost: localhost\r\nx-client-version: 1.0.0\r\n\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is cut ends without the farewell of TLS.
    assert!(stream.read_to_end(&mut answer).await.is_err());
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(
        (body.len(), body.starts_with("{\"device_code\":")),
        (40, true),
        "{body}"
    );
    let announced = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("content-length: ")
            .map(str::to_owned)
    });
    assert!(announced.unwrap().parse::<usize>().unwrap() > 200);
    assert_eq!(last_outcome(&rig).await, Outcome::Cut);

    admin.clear_faults();
    admin.add_fault(Fault::new(ME, Effect::TruncateAnswer(0)).once());
    let stream = rig.connect(&rig.simulator.api_url()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, http_body_util::Empty<bytes::Bytes>>(io)
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/v2/devices/me")
        .header("host", "localhost")
        .header("x-client-version", "1.0.0")
        .header("authorization", format!("Bearer {token}"));
    let reply = sender
        .send_request(request.body(http_body_util::Empty::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(reply.status(), 200);
    assert!(reply.into_body().collect().await.is_err());
}

#[tokio::test]
async fn dates_lie_on_demand() {
    let rig = Rig::start(|builder| builder).await;
    let date = async || {
        rig.send("GET", &rig.api("/health"), &[], "")
            .await
            .unwrap()
            .header("date")
            .to_owned()
    };
    assert_eq!(date().await, "Tue, 14 Nov 2023 22:13:20 GMT");
    rig.clock.set_date_skew(-3 * 86_400);
    assert_eq!(date().await, "Sat, 11 Nov 2023 22:13:20 GMT");
    let (token, _) = rig.pair().await;
    let me = rig
        .call("GET", "/v2/devices/me", &token, &Value::Null)
        .await
        .json();
    assert_eq!(me["last_seen_at"], "2023-11-14T22:13:20Z");
}
