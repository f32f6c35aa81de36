//! What a thousand stills cost the queue: processor time and flushes of the disk for each, from add to delivery.
//!
//! Not a micro-benchmark: it prints a table. `cargo bench -p c2c-queue --bench stills`.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot prepare itself is to panic"
)]
#![expect(clippy::print_stdout, reason = "its table is its purpose")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use c2c_queue::{
    Capture, CaptureSource, ChunkProof, Claim, FileFacts, FileId, Holder, NewAsset, NewChunk,
    NewMedia, Queue, SqliteOptions, SqliteQueue, SystemClock, Vault, Volume, WallTime,
};
use secrecy::{SecretBox, SecretString};

const STILLS: u64 = 1_000;
const LEASE: Duration = Duration::from_secs(60);

fn main() {
    println!("patience, workers, then for each still: ms of CPU, flushes, ms of wall time");
    for (patience, workers) in [(0, 1), (0, 4), (0, 8), (2, 1), (2, 4), (2, 8)] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        runtime.block_on(measure(workers, Duration::from_millis(patience)));
    }
}

fn still(number: u64) -> NewMedia {
    NewMedia {
        path: PathBuf::from(format!("/media/A001/DCIM/100/DSC{number:05}.JPG")),
        name: format!("DSC{number:05}.JPG"),
        facts: FileFacts {
            size: 1 << 20,
            mtime_ns: 1,
            file_id: Some(FileId {
                device: 2049,
                file: number,
            }),
        },
        volume: Some(Volume {
            id: "1c4ad3a9-6ab4-4b95-8c5e-3b8ecf63aeae".to_owned(),
            mount_point: PathBuf::from("/media/A001"),
            removable: true,
        }),
        filetype: "image/jpeg".to_owned(),
        capture: Capture {
            wall: WallTime(0),
            boot_id: None,
            boot: None,
            source: CaptureSource::FileTime,
        },
        channel: 0,
        priority: 0,
        parts: None,
        auto_version_id: None,
        hold: None,
        again: false,
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.cast_unsigned(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

async fn measure(workers: u32, patience: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let queue = SqliteQueue::open(SqliteOptions {
        path: dir.path().join("queue.db"),
        clock: Arc::new(SystemClock),
        vault: Vault::from_key(SecretBox::new(Box::new([42; 32]))),
        process: "bench".to_owned(),
        command: "the bench".to_owned(),
        patience,
    });
    let queue = Arc::new(queue.unwrap());
    let stages = ["add", "register", "transfer"];
    let (mut cpu_before, mut flushes, mut began) = (cpu(), queue.commits(), Instant::now());
    let mut all = (0.0, 0.0, 0.0);
    for stage in stages {
        match stage {
            "add" => drop(queue.add((0..STILLS).map(still).collect()).await.unwrap()),
            "register" => each(&queue, workers, register).await,
            _ => each(&queue, workers, transfer).await,
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / STILLS as f64;
        let row = (
            ms(cpu().saturating_sub(cpu_before)),
            (queue.commits() - flushes) as f64 / STILLS as f64,
            ms(began.elapsed()),
        );
        println!(
            "{patience:>4?} {workers:>7} {:>11.3} {:>9.3} {:>9.3}   {stage}",
            row.0, row.1, row.2
        );
        all = (all.0 + row.0, all.1 + row.1, all.2 + row.2);
        (cpu_before, flushes, began) = (cpu(), queue.commits(), Instant::now());
    }
    println!(
        "{patience:>4?} {workers:>7} {:>11.3} {:>9.3} {:>9.3}   all",
        all.0, all.1, all.2
    );
    queue.close().await.unwrap();
}

async fn each<F: Future<Output = bool> + Send + 'static>(
    queue: &Arc<SqliteQueue>,
    workers: u32,
    step: fn(Arc<SqliteQueue>, Holder) -> F,
) {
    let workers: Vec<_> = (0..workers)
        .map(|worker| {
            let queue = queue.clone();
            let holder = Holder {
                process: "bench".to_owned(),
                worker: format!("worker-{worker}"),
            };
            tokio::spawn(async move { while step(queue.clone(), holder.clone()).await {} })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

async fn register(queue: Arc<SqliteQueue>, holder: Holder) -> bool {
    let Claim::Got(claim) = queue
        .claim_registration(&holder, LEASE, Some(u64::MAX))
        .await
        .unwrap()
    else {
        return false;
    };
    let signature = "X-Amz-Signature=0123456789abcdef".repeat(15);
    let asset = NewAsset {
        asset_id: "1c4ad3a9-6ab4-4b95-8c5e-3b8ecf63aeae".to_owned(),
        project_id: "0d6e0f44-91a9-4d0d-a09c-3d6ac5b34b1b".to_owned(),
        offset: Some(1),
        chunks: vec![NewChunk {
            start: 0,
            length: claim.media.facts.size,
            url: SecretString::from(format!("https://uploads.invalid/?{signature}")),
        }],
    };
    queue.asset_created(&claim.lease, asset).await.unwrap();
    true
}

async fn transfer(queue: Arc<SqliteQueue>, holder: Holder) -> bool {
    let Claim::Got(claim) = queue.claim_chunk(&holder, LEASE).await.unwrap() else {
        return false;
    };
    let proof = ChunkProof {
        etag: Some("9e107d9d372bb6826bd81d3542a419d6".to_owned()),
        md5: Some("9e107d9d372bb6826bd81d3542a419d6".to_owned()),
        crc64nvme: Some(7),
    };
    let sent = queue.chunk_sent(&claim.lease, proof).await.unwrap();
    assert!(sent.receipt.is_some(), "a still is one chunk");
    true
}
