//! Growing files.

use serde_json::{Value, json};

use crate::client::{MIB, Reply, Rig, noise, soon};

async fn create(rig: &Rig, token: &str, more: &Value) -> Reply {
    let mut body =
        json!({ "is_realtime_upload": true, "filetype": "video/quicktime", "offset": 0 });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().cloned().unwrap());
    rig.call("POST", "/v2/devices/assets", token, &body).await
}

async fn parts(rig: &Rig, token: &str, id: &str, body: &Value) -> Reply {
    rig.call(
        "POST",
        &format!("/v2/devices/assets/{id}/realtime_upload/parts"),
        token,
        body,
    )
    .await
}

fn part(number: u64, size: u64, is_final: bool) -> Value {
    json!({ "number": number, "size": size, "is_final": is_final })
}

#[tokio::test]
async fn numbers_may_be_skipped_and_come_in_any_order() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let created = create(&rig, &token, &json!({ "extension": ".mov" }))
        .await
        .json();
    assert_eq!(created.as_object().unwrap().len(), 2);
    assert_eq!(created["name"], "[new file].mov");
    let id = created["id"].as_str().unwrap();
    let (head, middle, tail) = (noise(5 * MIB, 1), noise(6 * MIB, 2), noise(77, 3));
    let total = (head.len() + middle.len() + tail.len()) as u64;

    let reply = parts(
        &rig,
        &token,
        id,
        &json!({ "parts": [part(5, 6 * MIB, false)] }),
    )
    .await;
    let middle_url = reply.json()["upload_urls"][0].as_str().unwrap().to_owned();
    assert!(
        middle_url.contains("is_realtime_upload=true") && middle_url.contains("part_number=5&")
    );
    assert_eq!(rig.put(&middle_url, middle.clone()).await.status, 200);
    let last = json!({ "asset_name": "A001C007.mov", "asset_filesize": total, "parts": [part(9, 77, true)] });
    let reply = parts(&rig, &token, id, &last).await;
    assert_eq!(
        rig.put(
            reply.json()["upload_urls"][0].as_str().unwrap(),
            tail.clone()
        )
        .await
        .status,
        200
    );
    assert!(rig.simulator.admin().delivered().is_empty());
    let reply = parts(
        &rig,
        &token,
        id,
        &json!({ "asset_name": "late.mov", "parts": [part(1, 5 * MIB, false)] }),
    )
    .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        rig.put(
            reply.json()["upload_urls"][0].as_str().unwrap(),
            head.clone()
        )
        .await
        .status,
        200
    );
    let delivered = soon(rig.simulator.admin().wait_for_delivered(1))
        .await
        .remove(0);
    assert_eq!(
        (delivered.name.as_str(), delivered.size),
        ("A001C007.mov", total)
    );
    assert!(std::fs::read(delivered.path).unwrap() == [head, middle, tail].concat());
}

#[tokio::test]
async fn urls_come_in_the_order_asked_for_and_again_on_demand() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let created = create(&rig, &token, &json!({ "name": "a.mov" }))
        .await
        .json();
    let id = created["id"].as_str().unwrap();
    let body = json!({ "parts": [part(3, 5 * MIB, false), part(1, 5 * MIB, false)] });
    let urls = parts(&rig, &token, id, &body).await.json();
    assert!(
        urls["upload_urls"][0]
            .as_str()
            .unwrap()
            .contains("part_number=3&")
    );
    assert!(
        urls["upload_urls"][1]
            .as_str()
            .unwrap()
            .contains("part_number=1&")
    );
    rig.clock.advance(std::time::Duration::from_secs(1));
    let again = parts(&rig, &token, id, &body).await.json();
    assert_ne!(again, urls);
    let secrets = rig.simulator.admin().issued_secrets();
    for list in [&urls, &again] {
        assert!(
            secrets
                .iter()
                .any(|secret| list["upload_urls"][0].as_str() == Some(secret))
        );
    }
}

#[tokio::test]
async fn broken_rules_are_refused() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    for wrong in [
        json!({ "name": "a.mov", "filesize": 10 }),
        json!({ "name": "a" }),
        json!({ "extension": "mov" }),
        json!({ "name": "a.mp4", "extension": ".mov" }),
        json!({ "name": "a.mov", "filetype": null }),
        json!({}),
    ] {
        assert_eq!(create(&rig, &token, &wrong).await.status, 400, "{wrong}");
    }
    let created = create(&rig, &token, &json!({ "name": "a.mov" }))
        .await
        .json();
    let id = created["id"].as_str().unwrap();
    let first = json!({ "parts": [part(1, 5 * MIB, false)] });
    assert_eq!(parts(&rig, &token, id, &first).await.status, 200);
    for wrong in [
        json!({}),
        json!({ "parts": [] }),
        json!({ "parts": "all" }),
        json!({ "parts": [{ "number": 2, "size": 5 * MIB }] }),
        json!({ "parts": [part(0, 5 * MIB, false)] }),
        json!({ "parts": [part(10_001, 5 * MIB, false)] }),
        json!({ "parts": [part(2, 5 * MIB - 1, false)] }),
        json!({ "parts": [part(2, 5 * 1024 * MIB + 1, false)] }),
        json!({ "parts": [part(1, 6 * MIB, false)] }),
        json!({ "parts": [part(2, 5 * MIB, false), part(2, 5 * MIB, false)] }),
        json!({ "parts": [part(2, 1, true)] }),
        json!({ "asset_filesize": 0, "parts": [part(2, 1, true)] }),
        json!({ "asset_filesize": 5 * MIB, "parts": [part(2, 1, true)] }),
        json!({ "asset_filesize": 11 * MIB, "parts": [part(2, 1, true), part(3, 1, true)] }),
        json!({ "asset_filesize": 11 * MIB, "parts": [part(2, 1, true), part(3, 5 * MIB, false)] }),
        json!({ "asset_name": "a", "parts": [part(2, 5 * MIB, false)] }),
    ] {
        let reply = parts(&rig, &token, id, &wrong).await;
        assert_eq!(reply.status, 400, "{wrong} {}", reply.text());
    }
    assert_eq!(
        parts(&rig, &token, "33333333-3333-4333-8333-000000000000", &first)
            .await
            .status,
        404
    );
    assert_eq!(parts(&rig, "stale", id, &first).await.status, 401);
    let finished = rig.create(&token, "b.mov", 10, &Value::Null).await.json();
    assert_eq!(
        parts(&rig, &token, finished["id"].as_str().unwrap(), &first)
            .await
            .status,
        400
    );
    assert_eq!(rig.simulator.admin().assets()[0].parts.len(), 1);
}
