//! Parts: what is checked, what is stored, and where whole files end up.

use std::path::Path;
use std::time::Duration;

use c2c_simulator::{AssetStage, Outcome};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{MIB, Rig, UNIT, md5, noise, soon, split};

/// A header set for a part upload of the right kind.
const GOOD: [(&str, &str); 2] = [
    ("content-type", "video/quicktime"),
    ("x-amz-acl", "private"),
];

#[tokio::test]
async fn a_file_arrives_whole_whatever_the_order() {
    let rig = Rig::start(|builder| builder.timezone("America/Denver")).await;
    let (token, _) = rig.pair().await;
    let bytes = noise(11 * MIB + 17, 1);
    let urls = rig
        .urls(
            &token,
            "A001C003.mov",
            bytes.len() as u64,
            &json!({ "parts": 2, "offset": 86_400 }),
        )
        .await;
    let size = bytes.len().div_ceil(2);
    for index in [1, 0] {
        let part = &bytes[index * size..bytes.len().min((index + 1) * size)];
        let reply = rig.put(&urls[index], part.to_vec()).await;
        assert_eq!((reply.status, reply.body.len()), (200, 0));
        assert_eq!(reply.header("etag"), format!("\"{}\"", md5(part)));
        assert!(!reply.header("x-amz-request-id").is_empty());
    }
    let delivered = soon(rig.simulator.admin().wait_for_delivered(1))
        .await
        .remove(0);
    // 22:13 UTC is 15:13 in Denver, one day earlier by the offset.
    let place = format!("delivered/Cloud Devices/2023_11_13/VIDEO/C2C-UPLINK-{UNIT}/A001C003.mov");
    assert_eq!(delivered.path, rig.simulator.root().join(place));
    assert!(std::fs::read(&delivered.path).unwrap() == bytes);
    assert_eq!((delivered.size, delivered.parts), (bytes.len() as u64, 2));
    assert_eq!(delivered.md5, md5(&bytes));
    assert_eq!(delivered.sha256, hex::encode(sha2::Sha256::digest(&bytes)));
    let asset = rig.simulator.admin().assets().remove(0);
    assert_eq!(
        (asset.stage, asset.parts[0].puts, asset.parts[1].puts),
        (AssetStage::Delivered, 1, 1)
    );
    assert_eq!(
        std::fs::read_dir(rig.simulator.root().join("incoming"))
            .unwrap()
            .count(),
        0
    );
    let log = rig.simulator.admin().requests();
    assert!(
        log.iter().all(|entry| entry.violations.is_empty()),
        "{log:#?}"
    );
    let put = log.iter().find(|entry| entry.part == Some(2)).unwrap();
    assert_eq!((put.method.as_str(), put.status()), ("PUT", Some(200)));
    assert_eq!(
        (put.content_length, put.received),
        (
            Some(bytes.len() as u64 - size as u64),
            bytes.len() as u64 - size as u64
        )
    );
    assert_eq!(put.asset_name.as_deref(), Some("A001C003.mov"));
    assert!(!put.has_authorization && put.client_id.as_deref() == Some(UNIT));
}

#[tokio::test]
async fn the_date_folder_follows_the_time_zone() {
    // 22:13 UTC is already the next day in Auckland.
    let rig = Rig::start(|builder| {
        builder
            .timezone("Pacific/Auckland")
            .folder_for_extension(".JPG", "STILLS")
    })
    .await;
    let (token, _) = rig.pair().await;
    for (name, folder) in [("a.mov", "VIDEO"), ("b.jpg", "STILLS")] {
        let url = rig.urls(&token, name, 3, &Value::Null).await.remove(0);
        assert_eq!(rig.put(&url, "abc").await.status, 200);
        let count = rig.simulator.admin().assets().len();
        let path = soon(rig.simulator.admin().wait_for_delivered(count))
            .await
            .pop()
            .unwrap()
            .path;
        let tail = format!("Cloud Devices/2023_11_15/{folder}/C2C-UPLINK-{UNIT}/{name}");
        assert!(path.ends_with(&tail), "{}", path.display());
    }
    assert!(
        c2c_simulator::Simulator::builder()
            .timezone("Mars/Olympus")
            .start()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn hostile_names_and_equal_names_find_a_place() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let long = "é".repeat(125) + "a.mov";
    let names = [
        "..",
        "../../../../tmp/evil",
        "/etc/passwd",
        "nul\0.mov",
        "a.mov",
        "a.mov",
        "a.mov",
        "README",
        "README",
        &long,
    ];
    for (index, name) in names.iter().enumerate() {
        let url = rig.urls(&token, name, 3, &Value::Null).await.remove(0);
        assert_eq!(rig.put(&url, "abc").await.status, 200);
        soon(rig.simulator.admin().wait_for_delivered(index + 1)).await;
    }
    let folder = rig
        .simulator
        .root()
        .join("delivered/Cloud Devices/2023_11_14/VIDEO")
        .join(format!("C2C-UPLINK-{UNIT}"));
    let delivered = rig.simulator.admin().delivered();
    let found: Vec<String> = delivered
        .iter()
        .map(|file| {
            assert_eq!(
                file.path.parent(),
                Some(folder.as_path()),
                "{}",
                file.path.display()
            );
            assert_eq!(std::fs::read(&file.path).unwrap(), b"abc");
            file.path.file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(
        found,
        [
            "___",
            ".._.._.._.._tmp_evil",
            "_etc_passwd",
            "nul_.mov",
            "a.mov",
            "a (2).mov",
            "a (3).mov",
            "README",
            "README (2)",
            &long
        ]
    );
    assert_eq!(delivered[1].name, "../../../../tmp/evil");
    let creates = rig.simulator.admin().requests();
    let doubtful = creates
        .iter()
        .filter(|entry| !entry.violations.is_empty())
        .count();
    assert_eq!(doubtful, 3);
}

#[tokio::test]
async fn every_rule_of_a_part_has_its_xml() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let url = rig.urls(&token, "a.mov", 5, &Value::Null).await.remove(0);
    let bearer = format!("Bearer {token}");
    let with = |more: &[(&'static str, &'static str)]| [&GOOD[..], more].concat();
    let mismatch = "SignatureDoesNotMatch";
    let tampered = url.replace("part_number=1", "part_number=2");
    let unsigned = url.split("&X-Amz-Signature").next().unwrap().to_owned();
    let other_path = url.replace("/original.mov", "/original.mp4");
    for (method, url, headers, body, status, code) in [
        (
            "PUT",
            &url,
            vec![("x-amz-acl", "private")],
            "12345",
            403,
            mismatch,
        ),
        (
            "PUT",
            &url,
            vec![("content-type", "video/mp4"), ("x-amz-acl", "private")],
            "12345",
            403,
            mismatch,
        ),
        (
            "PUT",
            &url,
            vec![("content-type", "video/quicktime")],
            "12345",
            403,
            mismatch,
        ),
        (
            "PUT",
            &url,
            vec![GOOD[0], ("x-amz-acl", "public-read")],
            "12345",
            403,
            mismatch,
        ),
        (
            "PUT",
            &url,
            with(&[("host", "localhost")]),
            "12345",
            403,
            mismatch,
        ),
        (
            "PUT",
            &url,
            with(&[("x-amz-meta-more", "1")]),
            "12345",
            403,
            "AccessDenied",
        ),
        ("GET", &url, GOOD.to_vec(), "", 403, mismatch),
        (
            "POST",
            &url,
            GOOD.to_vec(),
            "12345",
            405,
            "MethodNotAllowed",
        ),
        ("PUT", &tampered, GOOD.to_vec(), "12345", 403, mismatch),
        ("PUT", &other_path, GOOD.to_vec(), "12345", 403, mismatch),
        (
            "PUT",
            &unsigned,
            GOOD.to_vec(),
            "12345",
            403,
            "AccessDenied",
        ),
        ("PUT", &url, GOOD.to_vec(), "123456", 400, "EntityTooLarge"),
        ("PUT", &url, GOOD.to_vec(), "1234", 400, "EntityTooSmall"),
    ] {
        let reply = rig.send(method, url, &headers, body).await.unwrap();
        assert_eq!(
            (reply.status, reply.xml("Code").as_str()),
            (status, code),
            "{method} {headers:?} {body}"
        );
        assert!(!reply.xml("RequestId").is_empty() && reply.header("connection") == "close");
        let entry = rig.simulator.admin().requests().pop().unwrap();
        assert_eq!(
            entry.violations.len(),
            1,
            "{method} {headers:?} {:?}",
            entry.violations
        );
    }
    let headers = [&GOOD[..], &[("authorization", bearer.as_str())]].concat();
    let reply = rig.send("PUT", &url, &headers, "12345").await.unwrap();
    assert_eq!(
        (reply.status, reply.xml("Code").as_str()),
        (400, "InvalidArgument")
    );
    let entry = rig.simulator.admin().requests().pop().unwrap();
    assert!(entry.has_authorization && entry.header("authorization") == Some("…"));
    assert_eq!(rig.simulator.admin().assets()[0].parts[0].puts, 0);
    assert_eq!(rig.put(&url, "12345").await.status, 200);
}

#[tokio::test]
async fn a_body_without_a_length_is_refused() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let url = rig.urls(&token, "a.mov", 5, &Value::Null).await.remove(0);
    let (host, port, path) = split(&url);
    let mut stream = rig.connect(&url).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: video/quicktime\r\nx-amz-acl: private\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 411 ") && answer.contains("<Code>MissingContentLength</Code>"),
        "{answer}"
    );
}

#[tokio::test]
async fn urls_die_after_a_day() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let url = rig.urls(&token, "a.mov", 5, &Value::Null).await.remove(0);
    rig.clock.advance(Duration::from_secs(86_399));
    assert_eq!(rig.put(&url, "12345").await.status, 200);
    rig.clock.advance(Duration::from_secs(1));
    let dead = rig.put(&url, "12345").await;
    assert_eq!(
        (dead.status, dead.xml("Code"), dead.xml("Message")),
        (
            403,
            "AccessDenied".to_owned(),
            "Request has expired".to_owned()
        )
    );
    assert_eq!(
        (dead.xml("Expires"), dead.xml("ServerTime")),
        (
            "2023-11-15T22:13:20Z".to_owned(),
            "2023-11-15T22:13:20Z".to_owned()
        )
    );
}

#[tokio::test]
async fn the_last_write_wins_until_the_file_is_joined() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let (first, second, other) = (noise(5 * MIB, 1), noise(5 * MIB, 2), noise(5 * MIB, 3));
    let urls = rig
        .urls(&token, "a.mov", 10 * MIB, &json!({ "parts": 2 }))
        .await;
    assert_eq!(rig.put(&urls[0], other).await.status, 200);
    assert_eq!(rig.put(&urls[0], first.clone()).await.status, 200);
    assert_eq!(rig.put(&urls[0], first.clone()).await.status, 200);
    assert_eq!(rig.put(&urls[1], second.clone()).await.status, 200);
    let delivered = soon(rig.simulator.admin().wait_for_delivered(1))
        .await
        .remove(0);
    assert!(std::fs::read(&delivered.path).unwrap() == [first.clone(), second].concat());
    let again = rig.put(&urls[0], noise(5 * MIB, 4)).await;
    assert_eq!(again.status, 200);
    assert!(std::fs::read(&delivered.path).unwrap()[..100] == first[..100]);
    let asset = rig.simulator.admin().assets().remove(0);
    assert_eq!((asset.parts[0].puts, asset.parts[1].puts), (4, 1));
    assert_eq!(rig.simulator.admin().delivered().len(), 1);
    let log = rig.simulator.admin().requests();
    let differing = log
        .iter()
        .filter(|entry| !entry.violations.is_empty())
        .count();
    assert_eq!(differing, 2);
}

#[tokio::test]
async fn expect_continue_and_connection_reuse() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let urls = rig
        .urls(&token, "a.mov", 10 * MIB, &json!({ "parts": 2 }))
        .await;
    let mut stream = rig.connect(&urls[0]).await.unwrap();
    let before = rig.simulator.admin().stats().uploads_accepted;
    for (index, url) in urls.iter().enumerate() {
        let (host, port, path) = split(url);
        let close = if index == 1 {
            "Connection: close\r\n"
        } else {
            ""
        };
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: video/quicktime\r\nx-amz-acl: private\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n{close}\r\n",
            5 * MIB
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
        stream
            .write_all(&noise(5 * MIB, index as u64))
            .await
            .unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert_eq!(rig.simulator.admin().stats().uploads_accepted, before);
    let log = rig.simulator.admin().requests();
    let connections: Vec<u64> = log
        .iter()
        .filter(|entry| entry.part.is_some())
        .map(|entry| entry.connection)
        .collect();
    assert!(connections.len() == 2 && connections[0] == connections[1]);

    // A refusal comes without the invitation to send.
    let mut stream = rig.connect(&urls[0]).await.unwrap();
    let (host, port, path) = split(&urls[0]);
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: video/mp4\r\nx-amz-acl: private\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        5 * MIB
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 403 "));
}

async fn read_head<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_still_sends() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let url = rig
        .urls(&token, "a.mov", 30 * MIB, &json!({ "parts": 1 }))
        .await
        .remove(0);
    let headers = [("content-type", "video/mp4"), ("x-amz-acl", "private")];
    let reply = rig
        .send("PUT", &url, &headers, vec![0; 30 << 20])
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.xml("Code").as_str()),
        (403, "SignatureDoesNotMatch")
    );
}

#[tokio::test]
async fn a_part_that_breaks_off_leaves_nothing() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let url = rig
        .urls(&token, "a.mov", 3 * MIB, &Value::Null)
        .await
        .remove(0);
    let (host, port, path) = split(&url);
    let mut stream = rig.connect(&url).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: video/quicktime\r\nx-amz-acl: private\r\n\
         Content-Length: {}\r\n\r\n",
        3 * MIB
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&noise(2 * MIB, 1)).await.unwrap();
    let admin = rig.simulator.admin();
    soon(admin.wait_until(|snapshot| {
        snapshot
            .requests()
            .back()
            .is_some_and(|entry| entry.received >= MIB)
    }))
    .await;
    drop(stream);
    soon(admin.wait_until(|snapshot| {
        snapshot
            .requests()
            .back()
            .is_some_and(|entry| entry.outcome == Outcome::Gone)
    }))
    .await;
    soon(admin.wait_until(|snapshot| {
        snapshot.stats().uploads_open == 0 && snapshot.stats().puts_open == 0
    }))
    .await;
    assert_eq!(
        std::fs::read_dir(rig.simulator.root().join("incoming"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(admin.assets()[0].parts[0].puts, 0);
}

#[tokio::test]
async fn stopping_closes_ports_and_removes_its_own_folder() {
    let rig = Rig::start(|builder| builder).await;
    let (root, api) = (
        rig.simulator.root().to_owned(),
        split(&rig.simulator.api_url()).1,
    );
    let open = rig.connect(&rig.simulator.api_url()).await.unwrap();
    rig.simulator.shutdown().await;
    assert!(
        !root.exists()
            && tokio::net::TcpStream::connect(("127.0.0.1", api))
                .await
                .is_err()
    );
    drop(open);

    let kept = tempfile::tempdir().unwrap();
    let rig = Rig::start(|builder| builder.root(kept.path().join("sim"))).await;
    let announced = rig.simulator.announcement();
    assert_eq!(announced["api_url"], rig.simulator.api_url());
    assert!(Path::new(announced["ca_file"].as_str().unwrap()).is_file());
    rig.simulator.shutdown().await;
    assert!(kept.path().join("sim/delivered").is_dir());
}
