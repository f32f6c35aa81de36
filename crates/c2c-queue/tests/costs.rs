//! What things cost must not depend on how much is in the queue. Ratios only: machines differ.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot prepare its test is to panic"
)]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use c2c_queue::conformance::Store;
use c2c_queue::{
    Capture, CaptureSource, ChunkProof, Claim, FaultRecord, FileFacts, Holder, NewAsset, NewChunk,
    NewMedia, Queue, Scope, Setback, Verdict, WallTime,
};
use secrecy::SecretString;

use support::SqliteStore;

const LEASE: Duration = Duration::from_secs(60);

fn holder() -> Holder {
    Holder {
        process: "run-1".to_owned(),
        worker: "w".to_owned(),
    }
}

fn clip(number: u64, size: u64) -> NewMedia {
    NewMedia {
        path: PathBuf::from(format!("/card/{number}")),
        name: "clip".to_owned(),
        facts: FileFacts {
            size,
            mtime_ns: 1,
            file_id: None,
        },
        volume: None,
        filetype: "video/mp4".to_owned(),
        capture: Capture {
            wall: WallTime(0),
            boot_id: None,
            boot: None,
            source: CaptureSource::Given,
        },
        channel: 0,
        priority: 0,
        parts: None,
        auto_version_id: None,
        hold: None,
        again: false,
    }
}

/// Media that are registered, with `chunks` chunks each.
async fn fill(queue: &dyn Queue, media: u64, chunks: u64) {
    queue
        .add((0..media).map(|number| clip(number, chunks)).collect())
        .await
        .unwrap();
    for _ in 0..media {
        register(queue, chunks).await;
    }
}

async fn register(queue: &dyn Queue, chunks: u64) {
    let claim = queue.claim_registration(&holder(), LEASE, None).await;
    let Claim::Got(claim) = claim.unwrap() else {
        panic!("nothing to register")
    };
    let chunk = |start| NewChunk {
        start,
        length: 1,
        url: SecretString::from("https://uploads.invalid/"),
    };
    let asset = NewAsset {
        asset_id: "asset".to_owned(),
        project_id: "project".to_owned(),
        offset: None,
        chunks: (0..chunks).map(chunk).collect(),
    };
    queue.asset_created(&claim.lease, asset).await.unwrap();
}

/// A clip that goes before all others, each time.
fn urgent(size: u64) -> NewMedia {
    let mut urgent = clip(u64::MAX, size);
    urgent.priority = 1;
    urgent.again = true;
    urgent
}

/// Handing an operation to the thread of the store and back takes this long or less, as the scheduler likes.
const NOISE: Duration = Duration::from_micros(150);

/// The time of a step with little disturbance.
async fn quick_step(mut step: impl AsyncFnMut()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..150 {
        let start = Instant::now();
        step().await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 10]
}

async fn claim_and_send(queue: &dyn Queue) {
    let Claim::Got(claim) = queue.claim_chunk(&holder(), LEASE).await.unwrap() else {
        panic!("nothing to send")
    };
    queue
        .chunk_sent(
            &claim.lease,
            ChunkProof {
                etag: None,
                md5: None,
                crc64nvme: None,
            },
        )
        .await
        .unwrap();
}

/// Repeats a comparison that other work on the machine may have disturbed; it must come out right once.
async fn ratio_below(
    limit: f64,
    what: &str,
    mut small: impl AsyncFnMut() -> Duration,
    mut big: impl AsyncFnMut() -> Duration,
) {
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let (small, big) = (small().await, big().await);
        let ratio = big.max(NOISE).as_secs_f64() / small.max(NOISE).as_secs_f64();
        if ratio < limit {
            return;
        }
        ratios.push(ratio);
    }
    panic!("{what} costs {ratios:.1?} times as much in a long queue");
}

#[tokio::test]
async fn a_long_queue_costs_what_a_short_one_does() {
    let [short, long] = [SqliteStore::quick(), SqliteStore::quick()];
    let [short, long] = [short.open("run-1").await, long.open("run-1").await];
    fill(&*short, 2, 1_000).await;
    // 100 big media and 5,000 small ones: 205,000 ready chunks.
    fill(&*long, 100, 2_000).await;
    long.add((1_000..6_000).map(|number| clip(number, 1)).collect())
        .await
        .unwrap();
    assert_eq!(long.status().await.unwrap().chunks_ready, 200_000);
    ratio_below(
        3.0,
        "claim and send",
        async || quick_step(async || claim_and_send(&*short).await).await,
        async || quick_step(async || claim_and_send(&*long).await).await,
    )
    .await;
    ratio_below(
        3.0,
        "status",
        async || quick_step(async || drop(short.status().await.unwrap())).await,
        async || quick_step(async || drop(long.status().await.unwrap())).await,
    )
    .await;
    let life = async |queue: &dyn Queue| {
        queue.add(vec![urgent(1)]).await.unwrap();
        register(queue, 1).await;
        claim_and_send(queue).await;
    };
    ratio_below(
        3.0,
        "the life of a still",
        async || quick_step(async || life(&*short).await).await,
        async || quick_step(async || life(&*long).await).await,
    )
    .await;
    let pages = async |queue: &dyn Queue| {
        queue.upcoming(1).await.unwrap();
        queue.list(None, None, 1).await.unwrap();
        queue.held(None, 1).await.unwrap();
    };
    ratio_below(
        3.0,
        "a page of each list",
        async || quick_step(async || pages(&*short).await).await,
        async || quick_step(async || pages(&*long).await).await,
    )
    .await;
    ratio_below(
        3.0,
        "asking for a registration",
        async || {
            quick_step(async || {
                drop(
                    short
                        .claim_registration(&holder(), LEASE, Some(1))
                        .await
                        .unwrap(),
                )
            })
            .await
        },
        async || {
            quick_step(async || {
                drop(
                    long.claim_registration(&holder(), LEASE, Some(1))
                        .await
                        .unwrap(),
                )
            })
            .await
        },
    )
    .await;
}

#[tokio::test]
async fn waiting_media_cost_nothing() {
    let [short, long] = [SqliteStore::quick(), SqliteStore::quick()];
    let [short, long] = [short.open("run-1").await, long.open("run-1").await];
    fill(&*short, 2, 1_000).await;
    // 3,000 media of the same priority are in front, and every one of them waits.
    fill(&*long, 3_000, 1).await;
    for _ in 0..3_000 {
        let Claim::Got(claim) = long.claim_chunk(&holder(), LEASE).await.unwrap() else {
            panic!("nothing to send")
        };
        let setback = Setback {
            fault: FaultRecord {
                scope: Scope::Service,
                code: "service_error".to_owned(),
                words: "the service is in trouble".to_owned(),
                server: None,
            },
            verdict: Verdict::Again {
                after: Duration::from_secs(3_600),
                counted: true,
            },
            possible_duplicate: false,
            bytes_wasted: 0,
            drop_parts: false,
        };
        long.chunk_failed(&claim.lease, setback).await.unwrap();
    }
    long.add(vec![clip(10_000, 1_000)]).await.unwrap();
    let Claim::Got(claim) = long
        .claim_registration(&holder(), LEASE, Some(1))
        .await
        .unwrap()
    else {
        panic!("media that wait must not keep others from being registered")
    };
    let chunk = |start| NewChunk {
        start,
        length: 1,
        url: SecretString::from("https://uploads.invalid/"),
    };
    let asset = NewAsset {
        asset_id: "asset".to_owned(),
        project_id: "project".to_owned(),
        offset: None,
        chunks: (0..1_000).map(chunk).collect(),
    };
    long.asset_created(&claim.lease, asset).await.unwrap();
    ratio_below(
        3.0,
        "claim and send behind waiting media",
        async || quick_step(async || claim_and_send(&*short).await).await,
        async || quick_step(async || claim_and_send(&*long).await).await,
    )
    .await;
}
