//! Answers that are wrong, cut, early, late or from somebody else.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use c2c_protocol::{
    AnswerError, Client, ClientConfig, CreateAsset, Error, ErrorKind, Meter, Reached, RefusalBody,
    Stage,
};
use http_body::{Body, Frame};
use support::{Authority, Server, Step, answer, body, chain, json, secret, silent};

fn answer_error(error: Error) -> AnswerError {
    match error.kind {
        ErrorKind::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn asset() -> CreateAsset {
    CreateAsset {
        name: "a.mov".into(),
        filetype: "video/quicktime".into(),
        filesize: 10,
        offset: Some(0),
        channel: None,
        parts: None,
        auto_version_id: None,
    }
}

#[tokio::test]
async fn errors_name_the_field() {
    enum Call {
        Code,
        Refresh,
        Me,
        Create,
    }
    use Call::{Code, Create, Me, Refresh};
    let cases = [
        (
            Code,
            r#"{"user_code":"482913","expires_in":120}"#,
            "device_code",
        ),
        (
            Code,
            r#"{"device_code":"","user_code":"482913","expires_in":120}"#,
            "device_code",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"","expires_in":120}"#,
            "user_code",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"48\u00002913","expires_in":120}"#,
            "user_code",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"\ufffd\ufffd\ufffd","expires_in":120}"#,
            "user_code",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":482913,"expires_in":120}"#,
            "user_code",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"482913","expires_in":"leak"}"#,
            "expires_in",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"482913","expires_in":-1}"#,
            "expires_in",
        ),
        (
            Code,
            r#"{"device_code":"leak","user_code":"482913","expires_in":1e300}"#,
            "expires_in",
        ),
        (
            Refresh,
            r#"{"access_token":"leak","expires_in":1}"#,
            "refresh_token",
        ),
        (
            Refresh,
            r#"{"access_token":null,"refresh_token":"leak","expires_in":1}"#,
            "access_token",
        ),
        (
            Refresh,
            r#"{"access_token":["leak"],"refresh_token":"leak","expires_in":1}"#,
            "access_token",
        ),
        (Me, r#"{"id":"i","status":"online"}"#, "project_id"),
        (
            Me,
            r#"{"id":"i","status":"online","project_id":" "}"#,
            "project_id",
        ),
        (Me, r#"{"id":"i","project_id":"p"}"#, "status"),
        (
            Me,
            r#"{"id":"i","project_id":"p","status":"online","channels":[{"id":"c"},{"name":"x"}]}"#,
            "channels[1]",
        ),
        (
            Me,
            r#"{"id":"i","project_id":"p","status":"online","project":{"name":5}}"#,
            "project.name",
        ),
        (
            Create,
            r#"{"upload_urls":["https://s3.example/leak"]}"#,
            "id",
        ),
        (Create, r#"{"id":"a"}"#, "upload_urls"),
        (Create, r#"{"id":"a","upload_urls":null}"#, "upload_urls"),
        (Create, r#"{"id":"a","upload_urls":[]}"#, "upload_urls"),
        (
            Create,
            r#"{"id":"a","upload_urls":["https://s3.example/leak",7]}"#,
            "upload_urls[1]",
        ),
        (
            Create,
            r#"{"id":"a","upload_urls":["https://s3.example/leak","http://s3.example/leak?s=leak"]}"#,
            "upload_urls[1]",
        ),
        (
            Create,
            r#"{"id":"a","upload_urls":["leak leak"]}"#,
            "upload_urls[0]",
        ),
    ];
    let server = Server::start(cases.iter().map(|(_, body, _)| json(200, body)).collect()).await;
    let client = server.client();
    let token = secret("token");
    for (call, body, field) in cases {
        let error = match call {
            Code => client.device_code("id", &token, false).await.unwrap_err(),
            Refresh => client.refresh("id", &token, &token).await.unwrap_err(),
            Me => client.me(&token).await.unwrap_err(),
            Create => client.create_asset(&token, &asset()).await.unwrap_err(),
        };
        let text = chain(&error);
        assert!(text.contains(&format!("`{field}")), "{body}: {text}");
        assert!(!text.contains("leak"), "{body}: {text}");
        assert!(!answer_error(error).looks_like_portal, "{body}");
    }
}

#[tokio::test]
async fn a_cut_answer_is_never_half_understood() {
    let whole = r#"{"device_code":"dc","user_code":"482913","expires_in":120,"interval":5}"#;
    // Cut in the JSON, with a matching length: every prefix.
    let steps = (0..whole.len())
        .map(|end| json(200, &whole[..end]))
        .collect();
    let server = Server::start(steps).await;
    let client = server.client();
    for end in 0..whole.len() {
        let error = answer_error(
            client
                .device_code("id", &secret("s"), false)
                .await
                .unwrap_err(),
        );
        assert!(!error.looks_like_portal, "{end}: {error}");
    }
    // Cut on the wire: the length promises more.
    let mut cut = answer(200, "", whole);
    cut.truncate(cut.len() - 7);
    let server = Server::start(vec![Step::AnswerAndClose(cut)]).await;
    let error = server
        .client()
        .device_code("id", &secret("s"), false)
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::Answer, Reached::Maybe),
        "{error}"
    );
    // Cut in the head.
    let server = Server::start(vec![Step::AnswerAndClose(b"HTTP/1.1 200 O".to_vec())]).await;
    let error = server
        .client()
        .device_code("id", &secret("s"), false)
        .await
        .unwrap_err();
    assert_eq!(error.transport().unwrap().stage, Stage::Answer, "{error}");
    // No HTTP at all.
    let server = Server::start(vec![Step::AnswerAndClose(
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    )])
    .await;
    let error = server.client().me(&secret("tok")).await.unwrap_err();
    assert_eq!(error.transport().unwrap().stage, Stage::Answer, "{error}");
    assert_eq!(
        server.seen().len(),
        1,
        "an answer that is no HTTP is no reason to ask again"
    );
}

#[tokio::test]
async fn a_sign_in_page_is_recognised_on_every_call() {
    let page = "<!DOCTYPE html><html><title>Hotel</title><form>";
    for body in [page, "Please sign in", "\u{feff}<html>", "<wisp/>"] {
        let server = Server::start(vec![Step::Answer(answer(
            200,
            "Content-Type: text/html\r\n",
            body,
        ))])
        .await;
        let client = server.client();
        let token = secret("tok");
        let url = server.url("/parts/1");
        let errors = [
            client
                .device_code("id", &token, false)
                .await
                .map(drop)
                .unwrap_err(),
            client
                .poll_token("id", &token, &token)
                .await
                .map(drop)
                .unwrap_err(),
            client
                .refresh("id", &token, &token)
                .await
                .map(drop)
                .unwrap_err(),
            client
                .revoke("id", &token, &token)
                .await
                .map(drop)
                .unwrap_err(),
            client.me(&token).await.map(drop).unwrap_err(),
            client.heartbeat(&token).await.map(drop).unwrap_err(),
            client.health().await.map(drop).unwrap_err(),
            client
                .create_asset(&token, &asset())
                .await
                .map(drop)
                .unwrap_err(),
            client
                .put_chunk(&url, "x/y", 3, support::body(3), &Arc::default())
                .await
                .map(drop)
                .unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("sign-in"), "{error}");
            assert!(answer_error(error).looks_like_portal);
        }
    }
}

#[tokio::test]
async fn a_put_without_a_tag_says_so() {
    let server = Server::start(vec![Step::Answer(answer(200, "", ""))]).await;
    let url = server.url("/parts/1");
    let got = server
        .client()
        .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
        .await
        .unwrap();
    assert_eq!(got.etag, None);
}

#[tokio::test]
async fn refusals_of_every_kind() {
    let cases: [(u16, &str, &[u8], RefusalBody); 5] = [
        (
            400,
            "",
            br#"{"error":"invalid_client"}"#,
            RefusalBody::Simple {
                error: "invalid_client".into(),
            },
        ),
        (
            503,
            "",
            b"<Error><Code>SlowDown</Code><Message>m</Message></Error>",
            RefusalBody::S3 {
                code: "SlowDown".into(),
                message: "m".into(),
            },
        ),
        (
            404,
            "Content-Type: text/html; charset=utf-8\r\n",
            b"<p>not here",
            RefusalBody::Html,
        ),
        (502, "", b"", RefusalBody::Empty),
        (500, "", b"\xff\xfe", RefusalBody::NotUtf8),
    ];
    let steps = cases
        .iter()
        .map(|(status, headers, body, _)| Step::Answer(answer(*status, headers, body)))
        .collect();
    let server = Server::start(steps).await;
    let client = server.client();
    for (status, _, _, expected) in cases {
        let error = client.me(&secret("tok")).await.unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(
            (refusal.status, &refusal.body),
            (status, &expected),
            "{error}"
        );
    }
    assert_eq!(
        server.connections(),
        1,
        "a refusal that was read to its end keeps the connection"
    );
    // A refusal whose body is cut still is one.
    let mut cut = answer(409, "", r#"{"message":"Channel Paused"}"#);
    cut.truncate(cut.len() - 2);
    let server = Server::start(vec![Step::AnswerAndClose(cut)]).await;
    let error = server
        .client()
        .create_asset(&secret("tok"), &asset())
        .await
        .unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.status, &refusal.body), (409, &RefusalBody::Other));
}

#[tokio::test]
async fn redirects_are_reported_and_not_followed() {
    let elsewhere = Server::start(vec![json(200, "{}")]).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!(
            "Location: http://{}/login?token=leak\r\n",
            elsewhere.address
        );
        let server = Server::start(vec![Step::Answer(answer(status, &location, ""))]).await;
        let client = server.client();
        let url = server.url("/parts/1");
        let errors = [
            client.me(&secret("tok")).await.map(drop).unwrap_err(),
            client
                .create_asset(&secret("tok"), &asset())
                .await
                .map(drop)
                .unwrap_err(),
            client
                .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
                .await
                .map(drop)
                .unwrap_err(),
        ];
        for error in errors {
            let refusal = error.refusal().unwrap();
            assert_eq!(
                (refusal.status, refusal.location_host.as_deref()),
                (status, Some("127.0.0.1"))
            );
            assert!(!chain(&error).contains("leak"));
        }
    }
    assert_eq!(elsewhere.connections(), 0);
}

const EXPIRED: &str = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";

// Several threads, so that the reset also comes between two writes and not only while one is waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_early_refusal_is_not_lost_when_the_server_resets() {
    // Larger than all socket buffers together, so that the refusal always comes in the middle of the body.
    const LENGTH: usize = 32 * 1024 * 1024;
    let authority = Authority::new();
    for tls in [false, true] {
        let acceptor = tls.then(|| authority.acceptor("localhost"));
        let refusal = answer(403, "Connection: close\r\n", EXPIRED);
        let server = Server::start_with(vec![Step::EarlyAndReset(refusal)], acceptor).await;
        let config = ClientConfig {
            trust: c2c_protocol::Trust::Only(vec![authority.root()]),
            ..server.config()
        };
        let client = Client::new(config).unwrap();
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}/parts/1", server.address.port());
        let url = c2c_protocol::UploadUrl::parse(&url, true).unwrap();
        for run in 0..40 {
            let meter = Arc::new(Meter::default());
            let error = client
                .put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &meter)
                .await
                .unwrap_err();
            let refusal = error
                .refusal()
                .unwrap_or_else(|| panic!("tls {tls}, run {run}: {}", chain(&error)));
            assert_eq!(
                (refusal.status, refusal.s3_code()),
                (403, Some("AccessDenied"))
            );
            assert!(meter.handed_over() < LENGTH as u64);
        }
        assert_eq!(
            server.connections(),
            40,
            "a connection with half a body on it is never used again"
        );
    }
}

#[tokio::test]
async fn an_early_refusal_does_not_wait_for_the_body() {
    const LENGTH: usize = 32 * 1024 * 1024;
    let server = Server::start(vec![Step::EarlyAndHold(answer(403, "", EXPIRED))]).await;
    let url = server.url("/parts/1");
    let error = server
        .client()
        .put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &Arc::default())
        .await
        .unwrap_err();
    assert_eq!(
        error.refusal().unwrap().words,
        "AccessDenied: Request has expired"
    );
    // And an early success is none.
    let server = Server::start(vec![Step::EarlyAndHold(answer(200, "ETag: \"x\"\r\n", ""))]).await;
    let url = server.url("/parts/1");
    let error = server
        .client()
        .put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &Arc::default())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("before the whole chunk"),
        "{error}"
    );
}

/// Asked first, a storage refuses without a byte of the chunk, and the connection is not used again; one that does not know the
/// question gets the chunk after a moment; a word of consent starts it at once.
#[tokio::test]
async fn a_chunk_can_be_asked_for_first() {
    const LENGTH: usize = 1024 * 1024;
    let consent = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    let fine = answer(200, "ETag: \"x\"\r\n", "");
    let refusal = answer(403, "", EXPIRED);
    let steps = vec![
        Step::EarlyAndReset(refusal),
        Step::Consent(consent, fine.clone()),
        Step::Answer(fine),
    ];
    let server = Server::start(steps).await;
    let (url, client) = (server.url("/parts/1"), server.client());
    let meter = Arc::new(Meter::default());
    let ask = || client.put_chunk_asking_first(&url, "x/y", LENGTH as u64, body(LENGTH), &meter);

    let error = ask().await.unwrap_err();
    assert_eq!(error.refusal().unwrap().s3_code(), Some("AccessDenied"));
    assert!(
        meter.handed_over() < 4096,
        "{} bytes were sent to a storage that refuses",
        meter.handed_over()
    );
    let begun = std::time::Instant::now();
    assert_eq!(ask().await.unwrap().etag.as_deref(), Some("x"));
    let with_consent = begun.elapsed();
    assert_eq!(ask().await.unwrap().etag.as_deref(), Some("x"));
    let silent = begun.elapsed() - with_consent;
    assert!(
        silent >= std::time::Duration::from_secs(3) && with_consent < silent,
        "{with_consent:?} with consent, {silent:?} without"
    );
    let seen = server.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.header("expect") == Some("100-continue"))
    );
    assert_eq!(seen.last().unwrap().body.len(), LENGTH);
}

#[tokio::test]
async fn a_cut_while_sending_is_named_so() {
    const LENGTH: usize = 32 * 1024 * 1024;
    let server = Server::start(vec![Step::CutAfter(1000)]).await;
    let url = server.url("/parts/1");
    let error = server
        .client()
        .put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &Arc::default())
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached, transport.reused),
        (Stage::Send, Reached::Maybe, false),
        "{error}"
    );
    // After the whole body it is the answer that is missing.
    let server = Server::start(vec![Step::Close]).await;
    let url = server.url("/parts/1");
    let error = server
        .client()
        .put_chunk(&url, "x/y", 5, body(5), &Arc::default())
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::Answer, Reached::Maybe),
        "{error}"
    );
}

/// A body that gives blocks, then ends or fails.
struct Blocks {
    left: usize,
    fails: bool,
}

impl Body for Blocks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left > 0 {
            self.left -= 1;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[1; 1000])))));
        }
        Poll::Ready(
            self.fails
                .then(|| Err(std::io::Error::other("the card is gone"))),
        )
    }
}

#[tokio::test]
async fn a_body_that_fails_is_the_callers_fault() {
    let server = Server::start(vec![support::stored("x")]).await;
    let client = server.client();
    let url = server.url("/parts/1");
    for (blocks, fails, words) in [
        (3, true, "the card is gone"),
        (0, true, "the card is gone"),
        (3, false, "ended after 3000 of 5000"),
        (6, false, "longer than"),
    ] {
        // Six blocks of a thousand bytes cannot be 5,500.
        let length = if blocks == 6 { 5_500 } else { 5_000 };
        let body = Blocks {
            left: blocks,
            fails,
        };
        let error = client
            .put_chunk(&url, "x/y", length, body, &Arc::default())
            .await
            .unwrap_err();
        assert_eq!(
            error.transport().unwrap().stage,
            Stage::Body,
            "{}",
            chain(&error)
        );
        assert!(error.to_string().contains(words), "{error}");
    }
    let good = Blocks {
        left: 5,
        fails: false,
    };
    client
        .put_chunk(&url, "x/y", 5_000, good, &Arc::default())
        .await
        .unwrap();
    assert_eq!(
        server
            .seen()
            .iter()
            .filter(|seen| seen.body.len() == 5_000)
            .count(),
        1
    );
}

#[tokio::test]
async fn too_large_an_answer_is_an_error() {
    let filler = format!(r#"{{"status":"ok","x":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    let server = Server::start(vec![json(200, &filler)]).await;
    let error = answer_error(server.client().health().await.unwrap_err());
    assert!(error.what.contains("larger than"), "{error}");
    // Ten thousand URLs of more than a kilobyte each are fine.
    let url = format!("\"https://s3.example/parts/1?x={}\"", "x".repeat(1_100));
    let urls = vec![url; 10_000].join(",");
    let server = Server::start(vec![json(
        200,
        &format!(r#"{{"id":"a","upload_urls":[{urls}]}}"#),
    )])
    .await;
    let asset = server
        .client()
        .create_asset(&secret("tok"), &asset())
        .await
        .unwrap()
        .value;
    assert_eq!(asset.upload_urls.len(), 10_000);
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time() {
    let server = Server::start(vec![Step::Stall(usize::MAX)]).await;
    let config = ClientConfig {
        answer_timeout: Duration::from_millis(200),
        ..server.config()
    };
    let error = Client::new(config.clone())
        .unwrap()
        .me(&secret("tok"))
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::AnswerTimeout, Reached::Maybe),
        "{error}"
    );
    server.until_closed(1).await;
    // A TLS handshake that is not answered.
    let (address, _listener) = silent().await;
    let config = ClientConfig {
        api_url: format!("https://{address}"),
        connect_timeout: Duration::from_millis(200),
        answer_timeout: Duration::from_secs(40),
        ..config
    };
    let error = Client::new(config)
        .unwrap()
        .me(&secret("tok"))
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::Tls, Reached::No),
        "{error}"
    );
}
