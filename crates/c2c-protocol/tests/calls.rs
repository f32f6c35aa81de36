//! Every call: what is sent, header by header, and what a good answer becomes.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use c2c_protocol::{
    Client, CreateAsset, CreateRealtimeAsset, DeviceStatus, ErrorKind, ExposeSecret, Meter,
    PollAnswer, RateLimit, RealtimePart, RealtimeParts,
};
use support::{Seen, Server, Step, answer, body, json, secret, stored};

const API_HEADERS: [&str; 4] = ["accept", "host", "user-agent", "x-client-version"];
const TOKENS: &str = r#"{"access_token":"eyJ-access","expires_in":28800,"refresh_token":"r-1","token_type":"bearer"}"#;

fn assert_headers(seen: &Seen, more: &[&str]) {
    let mut expected: Vec<&str> = API_HEADERS.iter().chain(more).copied().collect();
    expected.sort_unstable();
    assert_eq!(seen.names(), expected, "{}", seen.line);
    assert_eq!(
        seen.header("x-client-version"),
        Some("2.16.4"),
        "{}",
        seen.line
    );
    assert_eq!(
        seen.header("user-agent"),
        Some(concat!("c2c-uplink/", env!("CARGO_PKG_VERSION")))
    );
}

/// The fields of a form, in order.
fn form(seen: &Seen) -> Vec<(String, String)> {
    let boundary = seen
        .header("content-type")
        .unwrap()
        .strip_prefix("multipart/form-data; boundary=")
        .unwrap();
    let text = seen
        .text()
        .strip_suffix(&format!("--{boundary}--\r\n"))
        .unwrap();
    text.split(&format!("--{boundary}\r\n"))
        .skip(1)
        .map(|part| {
            let (head, value) = part.split_once("\r\n\r\n").unwrap();
            let name = head
                .strip_prefix("Content-Disposition: form-data; name=\"")
                .unwrap()
                .trim_end_matches('"');
            (
                name.to_owned(),
                value.strip_suffix("\r\n").unwrap().to_owned(),
            )
        })
        .collect()
}

fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn device_code_with_and_without_qr() {
    let code = r#"{"device_code":"dc-1","user_code":"482913","expires_in":120,"interval":5,"name":"ACME",
        "verification_uri":"https://pair.example","verification_url_complete":"https://pair.example?code=482913"}"#;
    let server = Server::start(vec![
        json(200, code),
        json(
            200,
            r#"{"device_code":"d","user_code":"1","expires_in":9.5}"#,
        ),
    ])
    .await;
    let client = server.client();
    let got = client
        .device_code("CAM-1", &secret("s3cr3t"), true)
        .await
        .unwrap()
        .value;
    assert_eq!(
        (got.user_code.as_str(), got.name.as_str()),
        ("482913", "ACME")
    );
    assert_eq!(got.device_code.expose_secret(), "dc-1");
    assert_eq!(
        (got.expires_in, got.interval),
        (Duration::from_secs(120), Duration::from_secs(5))
    );
    assert_eq!(
        got.verification_uri_complete.as_deref(),
        Some("https://pair.example?code=482913")
    );
    let plain = client
        .device_code("CAM-1", &secret("s3cr3t"), false)
        .await
        .unwrap()
        .value;
    assert_eq!(
        (plain.interval, plain.expires_in),
        (Duration::from_secs(5), Duration::from_millis(9_500))
    );
    assert!(plain.verification_uri_complete.is_none() && plain.verification_uri.is_empty());
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v2/auth/device/code HTTP/1.1");
    assert_headers(
        &seen[0],
        &[
            "content-length",
            "content-type",
            "x-client-platypus-enabled",
        ],
    );
    assert_eq!(seen[0].header("x-client-platypus-enabled"), Some("true"));
    assert_headers(&seen[1], &["content-length", "content-type"]);
    let expected = fields(&[
        ("client_id", "CAM-1"),
        ("client_secret", "s3cr3t"),
        ("scope", "asset_create offline"),
    ]);
    assert_eq!(
        (form(&seen[0]), form(&seen[1])),
        (expected.clone(), expected)
    );
}

#[tokio::test]
async fn polling_knows_its_refusals() {
    let simple = |error: &str| json(400, &format!("{{\"error\":\"{error}\"}}"));
    let errors = [
        "authorization_pending",
        "slow_down",
        "expired_token",
        "access_denied",
        "invalid_grant",
    ];
    let mut steps: Vec<Step> = errors.into_iter().map(simple).collect();
    steps.extend([
        json(200, TOKENS),
        simple("invalid_client"),
        json(500, r#"{"error":"slow_down"}"#),
    ]);
    let server = Server::start(steps).await;
    let client = server.client();
    let poll = || client.poll_token("CAM-1", &SECRET, &DEVICE_CODE);
    static SECRET: std::sync::LazyLock<c2c_protocol::SecretString> =
        std::sync::LazyLock::new(|| secret("s3cr3t"));
    static DEVICE_CODE: std::sync::LazyLock<c2c_protocol::SecretString> =
        std::sync::LazyLock::new(|| secret("dc-1"));
    assert!(matches!(poll().await.unwrap().value, PollAnswer::Pending));
    assert!(matches!(poll().await.unwrap().value, PollAnswer::SlowDown));
    assert!(matches!(poll().await.unwrap().value, PollAnswer::Expired));
    assert!(matches!(poll().await.unwrap().value, PollAnswer::Denied));
    assert!(matches!(
        poll().await.unwrap().value,
        PollAnswer::InvalidGrant
    ));
    let PollAnswer::Granted(tokens) = poll().await.unwrap().value else {
        panic!("not granted")
    };
    assert_eq!(tokens.access_token.expose_secret(), "eyJ-access");
    assert_eq!(tokens.refresh_token.expose_secret(), "r-1");
    assert_eq!(tokens.expires_in, Duration::from_secs(28_800));
    assert_eq!(
        poll().await.unwrap_err().refusal().unwrap().simple(),
        Some("invalid_client")
    );
    assert_eq!(poll().await.unwrap_err().refusal().unwrap().status, 500);
    let seen = &server.seen()[0];
    assert_eq!(seen.line, "POST /v2/auth/token HTTP/1.1");
    assert_headers(seen, &["content-length", "content-type"]);
    let expected = [
        ("client_id", "CAM-1"),
        ("client_secret", "s3cr3t"),
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("device_code", "dc-1"),
    ];
    assert_eq!(form(seen), fields(&expected));
}

#[tokio::test]
async fn refresh_and_revoke() {
    let server = Server::start(vec![
        json(200, TOKENS),
        json(200, "\"ok\""),
        Step::Answer(answer(200, "", "")),
    ])
    .await;
    let client = server.client();
    let pair = client
        .refresh("CAM-1", &secret("s3cr3t"), &secret("r-0"))
        .await
        .unwrap()
        .value;
    assert_eq!(pair.refresh_token.expose_secret(), "r-1");
    client
        .revoke("CAM-1", &secret("s3cr3t"), &secret("r-1"))
        .await
        .unwrap();
    client
        .revoke("CAM-1", &secret("s3cr3t"), &secret("r-1"))
        .await
        .unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v2/auth/token HTTP/1.1");
    assert_eq!(seen[1].line, "POST /v2/auth/revoke HTTP/1.1");
    for request in &seen {
        assert_headers(request, &["content-length", "content-type"]);
    }
    let base = [("client_id", "CAM-1"), ("client_secret", "s3cr3t")];
    assert_eq!(
        form(&seen[0]),
        fields(&[
            base[0],
            base[1],
            ("grant_type", "refresh_token"),
            ("refresh_token", "r-0")
        ])
    );
    assert_eq!(
        form(&seen[1]),
        fields(&[base[0], base[1], ("token", "r-1")])
    );
}

#[tokio::test]
async fn identity() {
    let me = r#"{"_type":"project_device","id":"i","device_id":"d","name":"ACME","asset_type":"video","status":"paused",
        "timezone":"Europe/Paris","project":{"_type":"project","id":"p","name":"Show A"},"project_id":"p",
        "authorization":{"expires_at":"2026-01-01T00:00:00Z","scopes":{"asset_create":true}},
        "channels":[{"id":"c","name":"CAM","external_index":0,"status":"online","unknown":[1]}]}"#;
    let least = r#"{"id":"i","status":"resting","project_id":"p","authorization":null,"channels":null,"project":null,
        "name":null,"timezone":null}"#;
    let headers = "Date: Fri, 16 Aug 2024 20:30:12 GMT\r\nx-ratelimit-limit: 5\r\nx-ratelimit-remaining: 4\r\n\
        x-ratelimit-window: 1000\r\n";
    let server = Server::start(vec![
        Step::Answer(answer(200, headers, me)),
        json(200, least),
    ])
    .await;
    let client = server.client();
    let got = client.me(&secret("tok")).await.unwrap();
    assert_eq!(
        got.date,
        Some(std::time::UNIX_EPOCH + Duration::from_secs(1_723_840_212))
    );
    let limit = RateLimit {
        limit: Some(5),
        remaining: Some(4),
        window: Some(Duration::from_secs(1)),
    };
    assert_eq!(got.rate_limit, Some(limit));
    let me = got.value;
    assert_eq!(
        (me.id.as_str(), me.device_id.as_str(), me.name.as_str()),
        ("i", "d", "ACME")
    );
    assert_eq!(
        (me.project_id.as_str(), me.project_name.as_str(), me.status),
        ("p", "Show A", DeviceStatus::Paused)
    );
    assert_eq!(
        me.authorization_expires_at.as_deref(),
        Some("2026-01-01T00:00:00Z")
    );
    assert_eq!(
        (me.channels.len(), me.channels[0].external_index),
        (1, Some(0))
    );
    let least = client.me(&secret("tok")).await.unwrap().value;
    assert_eq!(least.status, DeviceStatus::Other("resting".into()));
    assert!(
        least.project_name.is_empty()
            && least.channels.is_empty()
            && least.authorization_expires_at.is_none()
    );
    let seen = &server.seen()[0];
    assert_eq!(
        (seen.line.as_str(), seen.header("authorization")),
        ("GET /v2/devices/me HTTP/1.1", Some("Bearer tok"))
    );
    assert_headers(seen, &["authorization"]);
}

#[tokio::test]
async fn heartbeat_and_health() {
    let no_content = Step::Answer(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
    let server = Server::start(vec![
        no_content,
        json(200, r#"{"status":"ok"}"#),
        json(200, r#"{"ok":true}"#),
        json(200, "{}"),
    ])
    .await;
    let client = server.client();
    client.heartbeat(&secret("tok")).await.unwrap();
    client.health().await.unwrap();
    client.health().await.unwrap();
    let error = client.health().await.unwrap_err();
    assert!(
        matches!(&error.kind, ErrorKind::Answer(answer) if answer.what.contains("`status`")),
        "{error}"
    );
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v2/devices/heartbeat HTTP/1.1");
    assert_headers(&seen[0], &["authorization", "content-length"]);
    assert_eq!(seen[0].header("content-length"), Some("0"));
    assert_eq!(seen[1].line, "GET /health HTTP/1.1");
    assert_headers(&seen[1], &[]);
    assert_eq!(server.connections(), 1, "all four on one connection");
}

fn asset() -> CreateAsset {
    CreateAsset {
        name: "A001C003.mov".into(),
        filetype: "video/quicktime".into(),
        filesize: 21_136_250,
        offset: Some(10),
        channel: Some(1),
        parts: Some(2),
        auto_version_id: Some("11111111-1111-4111-8111-111111111111".into()),
    }
}

#[tokio::test]
async fn create_and_send() {
    let created = r#"{"_type":"file","id":"a-1","name":"A001C003.mov","status":"created","upload_urls":
        ["https://s3.example/parts/1?X-Amz-Signature=one","http://127.0.0.1:9/parts/2?X-Amz-Signature=two"]}"#;
    let server = Server::start(vec![json(201, created), stored("d41d8cd9")]).await;
    let client = server.client();
    let got = client
        .create_asset(&secret("tok"), &asset())
        .await
        .unwrap()
        .value;
    assert_eq!((got.id.as_str(), got.upload_urls.len()), ("a-1", 2));
    assert_eq!(
        got.upload_urls[0].expose(),
        "https://s3.example/parts/1?X-Amz-Signature=one"
    );
    let url = server.url("/parts/1%20x?X-Amz-Date=20240816T203012Z&X-Amz-Signature=a%2Fb+c");
    let sent = client
        .put_chunk(
            &url,
            "video/quicktime",
            10,
            body(10),
            &Arc::new(Meter::default()),
        )
        .await
        .unwrap();
    assert_eq!(
        (sent.etag.as_deref(), sent.request_id.as_deref()),
        (Some("d41d8cd9"), Some("RID"))
    );
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /v2/devices/assets HTTP/1.1");
    assert_headers(
        &seen[0],
        &["authorization", "content-length", "content-type"],
    );
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    let expected = serde_json::json!({"name": "A001C003.mov", "filetype": "video/quicktime", "filesize": 21_136_250,
        "offset": 10, "channel": 1, "parts": 2, "auto_version_id": "11111111-1111-4111-8111-111111111111"});
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(seen[0].text()).unwrap(),
        expected
    );
    // The request to the storage: exactly these headers, and the URL byte by byte.
    let put = &seen[1];
    assert_eq!(
        put.line,
        "PUT /parts/1%20x?X-Amz-Date=20240816T203012Z&X-Amz-Signature=a%2Fb+c HTTP/1.1"
    );
    assert_eq!(
        put.names(),
        [
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-amz-acl"
        ]
    );
    assert_eq!(put.header("x-amz-acl"), Some("private"));
    assert_eq!(put.header("content-type"), Some("video/quicktime"));
    assert_eq!(
        (put.header("content-length"), put.body.len()),
        (Some("10"), 10)
    );
    assert_eq!(
        put.header("host"),
        Some(format!("localhost:{}", server.address.port()).as_str())
    );
}

#[tokio::test]
async fn an_empty_chunk_has_a_length_too() {
    let server = Server::start(vec![stored("d41d8cd9")]).await;
    let url = server.url("/parts/1");
    server
        .client()
        .put_chunk(&url, "text/plain", 0, body(0), &Arc::new(Meter::default()))
        .await
        .unwrap();
    assert_eq!(server.only().header("content-length"), Some("0"));
    assert!(server.only().header("transfer-encoding").is_none());
}

#[tokio::test]
async fn growing_files() {
    let urls = r#"{"upload_urls":["https://s3.example/parts/1?s=1"]}"#;
    let server = Server::start(vec![
        json(201, r#"{"id":"a-2","name":"[new file].mp4"}"#),
        json(200, urls),
        json(200, urls),
    ])
    .await;
    let client = server.client();
    let growing = CreateRealtimeAsset {
        name: None,
        extension: Some(".mp4".into()),
        filetype: "video/mp4".into(),
        offset: Some(0),
        channel: None,
    };
    let asset = client
        .create_realtime_asset(&secret("tok"), &growing)
        .await
        .unwrap()
        .value;
    assert_eq!(
        (asset.id.as_str(), asset.name.as_str()),
        ("a-2", "[new file].mp4")
    );
    let part = |number| RealtimePart {
        number,
        size: 10_568_125,
        is_final: false,
    };
    let one = RealtimeParts {
        parts: vec![part(1)],
        asset_name: None,
        asset_filesize: None,
    };
    assert_eq!(
        client
            .realtime_parts(&secret("tok"), "a-2", &one)
            .await
            .unwrap()
            .value
            .len(),
        1
    );
    let two = RealtimeParts {
        parts: vec![part(1), part(2)],
        ..one
    };
    let error = client
        .realtime_parts(&secret("tok"), "a-2", &two)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("1 for 2 parts"), "{error}");
    assert!(
        client
            .realtime_parts(&secret("tok"), "../me", &two)
            .await
            .is_err()
    );
    let seen = server.seen();
    assert_eq!(seen.len(), 3, "the wrong id is not sent");
    let sent =
        |index: usize| serde_json::from_str::<serde_json::Value>(seen[index].text()).unwrap();
    let expected = serde_json::json!({"extension": ".mp4", "filetype": "video/mp4", "offset": 0, "is_realtime_upload": true});
    assert_eq!(sent(0), expected);
    assert_eq!(
        seen[1].line,
        "POST /v2/devices/assets/a-2/realtime_upload/parts HTTP/1.1"
    );
    let expected =
        serde_json::json!({"parts": [{"number": 1, "size": 10_568_125, "is_final": false}]});
    assert_eq!(sent(1), expected);
}

#[tokio::test]
async fn what_breaks_a_rule_is_not_sent() {
    let server = Server::start(vec![json(200, "{}")]).await;
    let client: Client = server.client();
    let token = secret("tok");
    for wrong in [
        CreateAsset {
            name: "a/b".into(),
            ..asset()
        },
        CreateAsset {
            parts: Some(9),
            ..asset()
        },
        CreateAsset {
            filetype: "x\r\ny: z".into(),
            ..asset()
        },
    ] {
        let error = client.create_asset(&token, &wrong).await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Request(_)), "{error}");
    }
    for wrong in ["", "to ken", "tok\r\nX: y", "tök"] {
        let error = client.me(&secret(wrong)).await.unwrap_err();
        assert!(error.to_string().contains("access token"), "{error}");
    }
    assert!(
        client
            .device_code("", &secret("s"), false)
            .await
            .unwrap_err()
            .to_string()
            .contains("client_id")
    );
    assert!(
        client
            .device_code("i", &secret(""), false)
            .await
            .unwrap_err()
            .to_string()
            .contains("client_secret")
    );
    let url = server.url("/parts/1");
    let meter = Arc::new(Meter::default());
    let error = client
        .put_chunk(&url, "x/y", c2c_protocol::MAX_CHUNK + 1, body(1), &meter)
        .await
        .unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Request(_)), "{error}");
    assert_eq!((server.connections(), meter.reused()), (0, None));
}

#[tokio::test]
async fn the_offset_is_asked_for_when_the_request_goes_out() {
    let created = r#"{"id":"a-1","upload_urls":["https://s3.example/parts/1?s=1"]}"#;
    let server = Server::start(vec![json(201, created)]).await;
    let client = server.client();
    for offset in [0, 7, u64::MAX] {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let ask = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            offset
        };
        client
            .create_asset_at(&secret("tok"), &asset(), ask)
            .await
            .unwrap();
        let seen = server.seen().pop().unwrap();
        let sent: serde_json::Value = serde_json::from_str(seen.text()).unwrap();
        assert_eq!(
            (sent["offset"].as_u64(), sent["parts"].as_u64()),
            (Some(offset), Some(2))
        );
        assert_eq!(
            seen.text().matches("offset").count(),
            1,
            "not the one of the asset too"
        );
        assert_eq!(seen.header("content-type"), Some("application/json"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
    // Not for a request that is refused before.
    let wrong = CreateAsset {
        name: String::new(),
        ..asset()
    };
    let unasked = || panic!("nothing is sent, so nothing is asked");
    assert!(
        client
            .create_asset_at(&secret("tok"), &wrong, unasked)
            .await
            .is_err()
    );
}
