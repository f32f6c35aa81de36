//! No secret is printed, whatever happens.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::fmt::Write;
use std::sync::Arc;

use c2c_protocol::{Client, ClientConfig, CreateAsset, Error, Meter, UploadUrl};
use support::{Server, Step, answer, body, chain, closed_port, json, secret};

/// Every secret of this test carries this word.
const LEAK: &str = "hunter2hunter2";

fn asset() -> CreateAsset {
    CreateAsset {
        name: "a.mov".into(),
        filetype: "video/quicktime".into(),
        filesize: 10,
        offset: None,
        channel: None,
        parts: None,
        auto_version_id: None,
    }
}

/// Makes every call and returns all that can be printed of the outcomes.
async fn everything(client: &Client, url: &UploadUrl) -> String {
    fn show<T: std::fmt::Debug>(text: &mut String, outcome: Result<T, Error>) {
        match outcome {
            Ok(value) => writeln!(text, "{value:?}").unwrap(),
            Err(error) => writeln!(text, "{error} {error:?} {error:#?} {}", chain(&error)).unwrap(),
        }
    }
    let mut text = format!("{client:?} {url} {url:?}\n");
    let leak = secret(LEAK);
    let meter = Arc::new(Meter::default());
    show(&mut text, client.device_code("id", &leak, true).await);
    show(&mut text, client.poll_token("id", &leak, &leak).await);
    show(&mut text, client.refresh("id", &leak, &leak).await);
    show(&mut text, client.revoke("id", &leak, &leak).await);
    show(&mut text, client.me(&leak).await);
    show(&mut text, client.heartbeat(&leak).await);
    show(&mut text, client.create_asset(&leak, &asset()).await);
    show(
        &mut text,
        client.put_chunk(url, "x/y", 3, body(3), &meter).await,
    );
    show(
        &mut text,
        client.put_chunk(url, "x/y", 3, body(2), &meter).await,
    );
    writeln!(text, "{meter:?}").unwrap();
    text
}

#[tokio::test]
async fn nothing_printed_holds_a_secret() {
    let good = format!(
        r#"{{"device_code":"{LEAK}","user_code":"482913","expires_in":1,"access_token":"{LEAK}","refresh_token":"{LEAK}",
            "id":"i","project_id":"p","status":"online","upload_urls":["https://s3.example/{LEAK}?X-Amz-Signature={LEAK}"]}}"#
    );
    let wrong = format!(
        r#"{{"device_code":["{LEAK}"],"access_token":7,"id":"i","project_id":"p","status":"online",
        "expires_in":"{LEAK}","upload_urls":["http://s3.example/?X-Amz-Signature={LEAK}"]}}"#
    );
    let echo = format!(
        r#"{{"code":403,"message":"no {LEAK}","errors":[{{"title":"{LEAK}","detail":"/x?y={LEAK}"}}]}}"#
    );
    let xml = format!(
        "<Error><Code>{LEAK}</Code><Message>{LEAK} https://s3.example/?s={LEAK}</Message></Error>"
    );
    let page = format!("<html><title>{LEAK}</title>");
    let location = format!("Location: https://portal.example/?back={LEAK}\r\n");
    let steps = [
        ("good", json(200, &good)),
        ("wrong", json(200, &wrong)),
        ("cut", json(200, &good[..good.len() / 2])),
        ("echo", json(403, &echo)),
        ("simple", json(400, &format!(r#"{{"error":"{LEAK}"}}"#))),
        ("xml", Step::Answer(answer(403, "", xml))),
        ("page", Step::Answer(answer(502, "", page))),
        ("text", Step::Answer(answer(500, "", LEAK))),
        ("redirect", Step::Answer(answer(302, &location, ""))),
        ("no http", Step::AnswerAndClose(LEAK.into())),
        ("close", Step::Close),
    ];
    for (what, step) in steps {
        let server = Server::start(vec![step]).await;
        let url = server.url(&format!("/parts/{LEAK}?X-Amz-Signature={LEAK}"));
        let text = everything(&server.client(), &url).await;
        assert!(!text.contains(LEAK), "{what}: {text}");
        assert!(
            server.seen().iter().any(|seen| seen.text().contains(LEAK)),
            "the secrets did go to the server"
        );
    }
}

#[tokio::test]
async fn nothing_printed_holds_a_secret_when_nobody_is_there() {
    let closed = closed_port().await;
    let config = ClientConfig {
        api_url: format!("http://{closed}"),
        allow_plain_loopback: true,
        trust: c2c_protocol::Trust::Only(vec![support::Authority::new().root()]),
        ..ClientConfig::default()
    };
    let url = UploadUrl::parse(&format!("http://{closed}/{LEAK}?s={LEAK}"), true).unwrap();
    let text = everything(&Client::new(config).unwrap(), &url).await;
    assert!(!text.contains(LEAK), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[tokio::test]
async fn the_token_goes_to_the_api_alone() {
    // API and storage on one server, and even one connection: still no token on the PUT.
    let me = json(200, r#"{"id":"i","project_id":"p","status":"online"}"#);
    let server = Server::start(vec![me, support::stored("x")]).await;
    let client = server.client();
    client.me(&secret(LEAK)).await.unwrap();
    let url = server.url("/parts/1");
    client
        .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
        .await
        .unwrap();
    let seen = server.seen();
    assert!(seen[0].header("authorization").is_some());
    assert!(seen[1].header("authorization").is_none());
    assert!(!format!("{:?}", seen[1]).contains(LEAK));
}
