//! A gigabyte passes through without staying. In a process of its own, so that nothing else is measured.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "it/client.rs"]
#[allow(dead_code, reason = "most of the client is for the other tests")]
mod client;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use client::{MIB, Rig, soon, split};
use http_body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use serde_json::json;

/// A body that is made while it is sent.
struct Generated {
    piece: Bytes,
    left: u64,
}

impl Body for Generated {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = self.left.min(self.piece.len() as u64);
        self.left -= size;
        Poll::Ready(Some(Ok(Frame::data(
            self.piece.slice(..usize::try_from(size).unwrap()),
        ))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

async fn put(rig: &Rig, url: &str, piece: &Bytes, size: u64) -> u16 {
    let (host, port, path) = split(url);
    let io = TokioIo::new(rig.connect(url).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::put(path)
        .header("host", format!("{host}:{port}"))
        .header("content-type", "video/quicktime")
        .header("x-amz-acl", "private");
    let body = Generated {
        piece: piece.clone(),
        left: size,
    };
    sender
        .send_request(request.body(body).unwrap())
        .await
        .unwrap()
        .status()
        .as_u16()
}

/// Kilobytes from a line of `/proc/self/status`.
#[cfg(target_os = "linux")]
fn kilobytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_takes_no_more_memory_than_a_megabyte() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let piece = Bytes::from(client::noise(64 * 1024, 1));
    let small = rig
        .urls(&token, "small.mov", 10 * MIB, &json!({ "parts": 2 }))
        .await;
    for url in &small {
        assert_eq!(put(&rig, url, &piece, 5 * MIB).await, 200);
    }
    soon(rig.simulator.admin().wait_for_delivered(1)).await;

    let before = kilobytes("VmRSS:");
    let big = rig
        .urls(&token, "big.mov", 1024 * MIB, &json!({ "parts": 2 }))
        .await;
    for url in &big {
        assert_eq!(put(&rig, url, &piece, 512 * MIB).await, 200);
    }
    let delivered = soon(rig.simulator.admin().wait_for_delivered(2))
        .await
        .pop()
        .unwrap();
    assert_eq!(delivered.size, 1024 * MIB);
    assert_eq!(
        std::fs::metadata(&delivered.path).unwrap().len(),
        1024 * MIB
    );
    let grown = kilobytes("VmHWM:").saturating_sub(before);
    assert!(grown < 30 * 1024, "the peak is {grown} KiB above the rest");
    rig.simulator.shutdown().await;
}
