//! Registering assets: fields, limits, pauses.

use std::time::Duration;

use c2c_simulator::RateLimit;
use serde_json::{Value, json};

use crate::client::{MIB, Rig, detailed, not_authorized, split};

#[tokio::test]
async fn both_addresses_and_both_content_types() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let reply = rig
        .create(
            &token,
            "A001C003.mov",
            21_136_250,
            &json!({ "parts": 4, "offset": 10 }),
        )
        .await;
    let asset = reply.json();
    assert_eq!(
        (reply.status, asset["upload_urls"].as_array().unwrap().len()),
        (200, 4)
    );
    assert_eq!(
        (&asset["_type"], &asset["status"]),
        (&json!("file"), &json!("created"))
    );
    assert_eq!(asset["original_upload"], asset["upload_urls"][0]);
    let bearer = format!("Bearer {token}");
    let headers = [
        ("x-client-version", "2.0.0"),
        ("authorization", bearer.as_str()),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let form = "name=still+one.jpg&filetype=image%2Fjpeg&filesize=1000&offset=0&reel_name=A001";
    let reply = rig
        .send("POST", &rig.api("/v2/assets"), &headers, form)
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.json()["name"].as_str()),
        (200, Some("still one.jpg"))
    );
    let assets = rig.simulator.admin().assets();
    assert_eq!(
        assets
            .iter()
            .map(|asset| asset.name.as_str())
            .collect::<Vec<_>>(),
        ["A001C003.mov", "still one.jpg"]
    );
    assert_eq!(assets[1].metadata["reel_name"], "A001");
    let sizes: Vec<u64> = assets[0].parts.iter().map(|part| part.size).collect();
    assert_eq!(sizes, [5_284_063, 5_284_063, 5_284_063, 5_284_061]);
    let entry = rig.simulator.admin().requests().pop().unwrap();
    assert_eq!(entry.create.as_ref().unwrap().filesize, Some(1_000));
    assert_eq!(
        (entry.asset_name.as_deref(), entry.asset_id.as_deref()),
        (Some("still one.jpg"), Some(assets[1].id.as_str()))
    );

    let multipart = [
        headers[0],
        headers[1],
        ("content-type", "multipart/form-data; boundary=b"),
    ];
    let reply = rig
        .send("POST", &rig.api("/v2/assets"), &multipart, "--b--\r\n")
        .await
        .unwrap();
    assert_eq!(reply.status, 400);
    let refused = rig.create("stale", "a.mov", 1, &Value::Null).await;
    assert_eq!((refused.status, refused.json()), (401, not_authorized()));
}

#[tokio::test]
async fn every_field_has_its_type() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    for (wrong, word) in [
        (json!({ "name": 5 }), "`name`"),
        (json!({ "name": null }), "`name`"),
        (json!({ "name": "" }), "`name`"),
        (json!({ "filetype": ["video/mp4"] }), "`filetype`"),
        (json!({ "filesize": "1000" }), "`filesize`"),
        (json!({ "filesize": 1000.5 }), "`filesize`"),
        (json!({ "filesize": -1 }), "`filesize`"),
        (json!({ "filesize": null }), "`filesize`"),
        (json!({ "filesize": 5_497_558_138_881_u64 }), "`filesize`"),
        (json!({ "offset": -10 }), "`offset`"),
        (json!({ "offset": 1.5 }), "`offset`"),
        (json!({ "offset": 99_999_999_999_u64 }), "`offset`"),
        (json!({ "channel": "0" }), "`channel`"),
        (json!({ "channel": 1 }), "`channel`"),
        (json!({ "parts": "2" }), "`parts`"),
        (
            json!({ "is_realtime_upload": "no" }),
            "`is_realtime_upload`",
        ),
        (json!({ "auto_version_id": "next" }), "`auto_version_id`"),
    ] {
        let reply = rig.create(&token, "a.mov", 1_000, &wrong).await;
        assert_eq!(reply.status, 422, "{wrong} {}", reply.text());
        assert!(reply.text().contains(word), "{wrong} {}", reply.text());
        assert_eq!(
            rig.simulator
                .admin()
                .requests()
                .last()
                .unwrap()
                .violations
                .len(),
            1
        );
    }
    for broken in [json!([]), json!("a")] {
        assert_eq!(
            rig.call("POST", "/v2/devices/assets", &token, &broken)
                .await
                .status,
            400
        );
    }
    assert!(rig.simulator.admin().assets().is_empty());
    let nothing = rig
        .create(&token, "empty.mov", 0, &Value::Null)
        .await
        .json();
    assert_eq!(nothing["upload_urls"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn part_limits_are_answered_as_documented() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let wrong = detailed(
        500,
        "Something went wrong",
        "There was a problem with your request",
    );
    for (filesize, parts) in [
        (10 * MIB - 2, 2),
        (1_000, 2),
        (1_000, 0),
        (60_000 * MIB, 10_001),
        (6_000 * MIB, 1),
    ] {
        let reply = rig
            .create(&token, "a.mov", filesize, &json!({ "parts": parts }))
            .await;
        assert_eq!(
            (reply.status, reply.json()),
            (500, wrong.clone()),
            "{filesize} / {parts}"
        );
    }
    for (filesize, parts, count) in [
        (10 * MIB, Some(2), 2),
        (1_000, Some(1), 1),
        (25 * MIB, None, 1),
        (25 * MIB + 1, None, 2),
    ] {
        let more = parts.map_or(Value::Null, |parts| json!({ "parts": parts }));
        assert_eq!(
            rig.urls(&token, "a.mov", filesize, &more).await.len(),
            count,
            "{filesize}"
        );
    }
    let many = rig
        .urls(
            &token,
            "a.mov",
            5_497_558_138_880,
            &json!({ "parts": 10_000 }),
        )
        .await;
    assert_eq!(many.len(), 10_000);
}

#[tokio::test]
async fn nothing_that_was_created_in_a_pause_gets_in() {
    let rig = Rig::start(|builder| builder.channels(2)).await;
    let admin = rig.simulator.admin();
    let (token, _) = rig.pair().await;
    let paused = detailed(
        409,
        "Channel Paused",
        "The channel you're uploading from is currently paused.",
    );
    let create = async |offset: u64, channel: u64| {
        let reply = rig
            .create(
                &token,
                "a.mov",
                1_000,
                &json!({ "offset": offset, "channel": channel }),
            )
            .await;
        if reply.status == 409 {
            assert_eq!(reply.json(), paused);
        }
        reply.status
    };
    assert_eq!(create(0, 0).await, 200);
    admin.pause(0);
    assert_eq!(
        (create(0, 0).await, create(1, 0).await, create(0, 1).await),
        (409, 200, 200)
    );
    rig.clock.advance(Duration::from_secs(100));
    assert_eq!(
        (
            create(0, 0).await,
            create(100, 0).await,
            create(101, 0).await
        ),
        (409, 409, 200)
    );
    admin.resume(0);
    // Half open: the moment of resuming is outside.
    assert_eq!((create(0, 0).await, create(1, 0).await), (200, 409));
    rig.clock.advance(Duration::from_secs(1_000));
    assert_eq!((create(1_000, 0).await, create(1_001, 0).await), (200, 409));
    assert_eq!((create(1_100, 0).await, create(1_101, 0).await), (409, 200));
    assert_eq!(admin.pause_windows().len(), 1);
    admin.pause_device(Some("another unit"), 0);
    assert_eq!(create(0, 0).await, 200);
}

#[tokio::test]
async fn limits_are_told_and_enforced_on_demand() {
    let rig = Rig::start(|builder| builder.rate_limit(Some(RateLimit::default()))).await;
    let (token, _) = rig.pair().await;
    let mut left = Vec::new();
    for _ in 0..5 {
        let reply = rig.create(&token, "a.mov", 1, &Value::Null).await;
        assert_eq!(
            (
                reply.status,
                reply.header("x-ratelimit-limit"),
                reply.header("x-ratelimit-window")
            ),
            (200, "5", "1000")
        );
        left.push(reply.header("x-ratelimit-remaining").to_owned());
        assert!(!reply.header("x-request-id").is_empty() && !reply.header("date").is_empty());
    }
    assert_eq!(left, ["4", "3", "2", "1", "0"]);
    let over = rig.create(&token, "a.mov", 1, &Value::Null).await;
    assert_eq!(
        (over.status, over.json()["code"].as_u64()),
        (429, Some(429))
    );
    rig.clock.advance(Duration::from_millis(200));
    assert_eq!(
        rig.create(&token, "a.mov", 1, &Value::Null).await.status,
        200
    );
    assert_eq!(
        rig.create(&token, "a.mov", 1, &Value::Null).await.status,
        429
    );

    let free = Rig::start(|builder| builder).await;
    let (token, _) = free.pair().await;
    for _ in 0..7 {
        assert_eq!(
            free.create(&token, "a.mov", 1, &Value::Null).await.status,
            200
        );
    }
}

#[tokio::test]
async fn urls_look_like_those_of_the_service() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let urls = rig
        .urls(&token, "A001.MOV", 20 * MIB, &json!({ "parts": 2 }))
        .await;
    let (host, port, path) = split(&urls[1]);
    assert_eq!(
        format!("https://{host}:{port}"),
        rig.simulator.uploads_url()
    );
    let names: Vec<&str> = path
        .split_once('?')
        .unwrap()
        .1
        .split('&')
        .map(|pair| pair.split('=').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "x-amz-meta-asset_id",
            "x-amz-meta-extension",
            "x-amz-meta-is_realtime_upload",
            "x-amz-meta-part_count",
            "x-amz-meta-part_number",
            "x-amz-meta-project_id",
            "x-amz-meta-request_id",
            "x-amz-meta-resource_id",
            "x-amz-meta-resource_type",
            "x-amz-meta-total_parts",
            "X-Amz-Algorithm",
            "X-Amz-Credential",
            "X-Amz-Date",
            "X-Amz-Expires",
            "X-Amz-SignedHeaders",
            "X-Amz-Signature",
        ]
    );
    assert!(
        path.starts_with("/parts/")
            && path.contains("part_number=2&")
            && path.contains("extension=mov&")
    );
    let single = rig.urls(&token, "a.jpg", 1, &Value::Null).await;
    assert!(
        split(&single[0]).2.starts_with("/uploads/"),
        "{}",
        single[0]
    );
    let secrets = rig.simulator.admin().issued_secrets();
    for secret in urls
        .iter()
        .chain(&single)
        .chain([&token, &rig.simulator.client_secret()])
    {
        assert!(secrets.contains(secret));
    }
}
