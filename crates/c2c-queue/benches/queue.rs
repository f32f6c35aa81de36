//! What the operations of the queue cost, by how many chunks are queued behind the ones at work.
//!
//! Each bench works on media of a higher priority, so that the long queue is there and never used up. `cargo bench -p
//! c2c-queue`; a name filters: `cargo bench -p c2c-queue --bench queue -- claim`.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot prepare itself is to panic"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use c2c_queue::{
    Capture, CaptureSource, ChunkProof, Claim, FileFacts, Hold, Holder, Lease, NewAsset, NewChunk,
    NewMedia, Queue, SqliteOptions, SqliteQueue, SystemClock, Vault, WallTime,
};
use divan::Bencher;
use secrecy::{SecretBox, SecretString};
use tokio::runtime::Runtime;

const LENGTHS: [u64; 4] = [0, 1_000, 100_000, 1_000_000];
const LEASE: Duration = Duration::from_secs(3600);

fn main() {
    divan::main();
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

struct Store {
    queue: Option<SqliteQueue>,
    dir: tempfile::TempDir,
}

impl Store {
    /// A store with so many ready chunks, 10 to a media, and as many media that are not registered as those are; one in a
    /// hundred of them is held.
    fn with(chunks: u64) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(&dir);
        RUNTIME.block_on(async {
            let media = chunks.div_ceil(10);
            for first in (0..media).step_by(10_000) {
                let numbers = first..media.min(first + 10_000);
                queue.add(numbers.map(clip).collect()).await.unwrap();
            }
            for _ in 0..media {
                register(&queue, 10).await;
            }
            for first in (0..media).step_by(10_000) {
                let numbers = first..media.min(first + 10_000);
                let held = numbers.map(|number| {
                    let mut clip = clip(media + number);
                    clip.hold = (number % 100 == 0).then_some(Hold::ByHand);
                    clip
                });
                queue.add(held.collect()).await.unwrap();
            }
        });
        Store {
            queue: Some(queue),
            dir,
        }
    }

    fn queue(&self) -> &SqliteQueue {
        self.queue.as_ref().unwrap()
    }
}

fn open(dir: &tempfile::TempDir) -> SqliteQueue {
    SqliteQueue::open(SqliteOptions {
        path: dir.path().join("queue.db"),
        clock: Arc::new(SystemClock),
        vault: Vault::from_key(SecretBox::new(Box::new([42; 32]))),
        process: "bench".to_owned(),
        command: "the bench".to_owned(),
        patience: Duration::ZERO,
    })
    .unwrap()
}

/// The stores, each made once.
fn store(chunks: u64) -> &'static Mutex<Store> {
    static STORES: Mutex<BTreeMap<u64, &'static Mutex<Store>>> = Mutex::new(BTreeMap::new());
    STORES
        .lock()
        .unwrap()
        .entry(chunks)
        .or_insert_with(|| Box::leak(Box::new(Mutex::new(Store::with(chunks)))))
}

fn holder() -> Holder {
    Holder {
        process: "bench".to_owned(),
        worker: "w".to_owned(),
    }
}

fn clip(number: u64) -> NewMedia {
    NewMedia {
        path: PathBuf::from(format!("/media/card-{}/A{number:08}.MOV", number / 500)),
        name: format!("A{number:08}.MOV"),
        facts: FileFacts {
            size: 10,
            mtime_ns: 1,
            file_id: None,
        },
        volume: None,
        filetype: "video/quicktime".to_owned(),
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

/// A clip that goes before all others.
fn urgent(size: u64) -> NewMedia {
    let mut clip = clip(0);
    clip.priority = 1;
    clip.facts.size = size;
    clip.again = true;
    clip
}

async fn claim_registration(queue: &dyn Queue) -> Lease {
    let claim = queue.claim_registration(&holder(), LEASE, None).await;
    match claim.unwrap() {
        Claim::Got(claim) => claim.lease,
        other => panic!("nothing to register: {other:?}"),
    }
}

fn asset(chunks: u64) -> NewAsset {
    let signature = "X-Amz-Signature=0123456789abcdef".repeat(15);
    let chunk = |start| NewChunk {
        start,
        length: 1,
        url: SecretString::from(format!("https://uploads.invalid/{start}?{signature}")),
    };
    NewAsset {
        asset_id: "1c4ad3a9-6ab4-4b95-8c5e-3b8ecf63aeae".to_owned(),
        project_id: "0d6e0f44-91a9-4d0d-a09c-3d6ac5b34b1b".to_owned(),
        offset: Some(1),
        chunks: (0..chunks).map(chunk).collect(),
    }
}

async fn register(queue: &dyn Queue, chunks: u64) {
    let lease = claim_registration(queue).await;
    queue.asset_created(&lease, asset(chunks)).await.unwrap();
}

async fn claim_chunk(queue: &dyn Queue) -> Lease {
    match queue.claim_chunk(&holder(), LEASE).await.unwrap() {
        Claim::Got(claim) => claim.lease,
        other => panic!("nothing to send: {other:?}"),
    }
}

fn proof() -> ChunkProof {
    ChunkProof {
        etag: Some("9e107d9d372bb6826bd81d3542a419d6".to_owned()),
        md5: Some("9e107d9d372bb6826bd81d3542a419d6".to_owned()),
        crc64nvme: Some(7),
    }
}

#[divan::bench(args = LENGTHS, sample_count = 300, sample_size = 1)]
fn add_one(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher
        .with_inputs(|| vec![urgent(10)])
        .bench_local_values(|media| RUNTIME.block_on(store.queue().add(media)).unwrap());
    RUNTIME.block_on(async {
        while let Claim::Got(claim) = store
            .queue()
            .claim_registration(&holder(), LEASE, None)
            .await
            .unwrap()
        {
            if claim.media.priority == 0 {
                store.queue().release(&claim.lease).await.unwrap();
                return;
            }
            store
                .queue()
                .asset_created(&claim.lease, asset(10))
                .await
                .unwrap();
            for _ in 0..10 {
                let lease = claim_chunk(store.queue()).await;
                store.queue().chunk_sent(&lease, proof()).await.unwrap();
            }
        }
    });
}

/// Checks out a registration and stores its asset: two operations. With them, ten chunks are taken away again.
#[divan::bench(args = LENGTHS, sample_count = 300, sample_size = 1)]
fn register_one(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher
        .with_inputs(|| {
            RUNTIME
                .block_on(store.queue().add(vec![urgent(1)]))
                .unwrap()
        })
        .bench_local_values(|_| RUNTIME.block_on(register(store.queue(), 1)));
    RUNTIME.block_on(async {
        for _ in 0..300 {
            let lease = claim_chunk(store.queue()).await;
            store.queue().chunk_sent(&lease, proof()).await.unwrap();
        }
    });
}

#[divan::bench(args = LENGTHS, sample_count = 300, sample_size = 1)]
fn claim_and_complete_chunk(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    RUNTIME.block_on(async {
        store.queue().add(vec![urgent(301)]).await.unwrap();
        register(store.queue(), 301).await;
    });
    bencher.bench_local(|| {
        RUNTIME.block_on(async {
            let lease = claim_chunk(store.queue()).await;
            store.queue().chunk_sent(&lease, proof()).await.unwrap()
        })
    });
    RUNTIME.block_on(async {
        let lease = claim_chunk(store.queue()).await;
        store.queue().chunk_sent(&lease, proof()).await.unwrap();
    });
}

#[divan::bench(args = LENGTHS, sample_count = 500)]
fn status(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher.bench_local(|| RUNTIME.block_on(store.queue().status()).unwrap());
}

#[divan::bench(args = LENGTHS)]
fn upcoming_100(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher.bench_local(|| RUNTIME.block_on(store.queue().upcoming(100)).unwrap());
}

#[divan::bench(args = LENGTHS)]
fn held_100(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher.bench_local(|| RUNTIME.block_on(store.queue().held(None, 100)).unwrap());
}

#[divan::bench(args = LENGTHS)]
fn list_100(bencher: Bencher<'_, '_>, length: u64) {
    let store = store(length).lock().unwrap();
    bencher.bench_local(|| {
        RUNTIME
            .block_on(store.queue().list(None, None, 100))
            .unwrap()
    });
}

/// Closes the store and starts again, up to the first chunk that is checked out.
#[divan::bench(args = LENGTHS, sample_count = 5, sample_size = 1)]
fn start_to_first_chunk(bencher: Bencher<'_, '_>, length: u64) {
    start(bencher, length, true);
}

/// The same after a power cut: the file is looked at first.
#[divan::bench(args = LENGTHS, sample_count = 3, sample_size = 1)]
fn start_after_a_power_cut(bencher: Bencher<'_, '_>, length: u64) {
    start(bencher, length, false);
}

fn start(bencher: Bencher<'_, '_>, length: u64, clean: bool) {
    let mut store = store(length).lock().unwrap();
    if length == 0 {
        // There is to be something to check out.
        RUNTIME.block_on(async {
            store.queue().add(vec![urgent(1)]).await.unwrap();
            register(store.queue(), 1).await;
        });
    }
    let store = std::cell::RefCell::new(&mut *store);
    bencher
        .with_inputs(|| {
            let mut store = store.borrow_mut();
            if let Some(queue) = store.queue.take()
                && clean
            {
                RUNTIME.block_on(queue.close()).unwrap();
            }
        })
        .bench_local_values(|()| {
            let mut store = store.borrow_mut();
            let queue = open(&store.dir);
            let lease = RUNTIME.block_on(claim_chunk(&queue));
            RUNTIME.block_on(queue.release(&lease)).unwrap();
            store.queue = Some(queue);
        });
    if length == 0 {
        let store = store.borrow_mut();
        let lease = RUNTIME.block_on(claim_chunk(store.queue()));
        RUNTIME
            .block_on(store.queue().chunk_sent(&lease, proof()))
            .unwrap();
    }
}
