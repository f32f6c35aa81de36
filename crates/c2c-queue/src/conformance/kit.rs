//! What the cases are written with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::clock::{Capture, CaptureSource, ManualClock};
use crate::error::QueueError;
use crate::history::{Event, FaultRecord, Scope};
use crate::media::{FileFacts, Media, MediaId, MediaState, NewMedia};
use crate::queue::{
    ByHand, ChunkClaim, ChunkProof, Claim, Holder, Lease, NewAsset, NewChunk, Outcome, Queue,
    RegistrationClaim, Selection, Sent, Setback, Verdict,
};

use super::Store;

/// The lease that cases take unless they are about leases.
pub(super) const LEASE: Duration = Duration::from_secs(60);

/// A store, its queue and its clock.
pub(super) struct Kit {
    store: Arc<dyn Store>,
    pub(super) queue: Arc<dyn Queue>,
    pub(super) clock: ManualClock,
    process: String,
}

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A clip of `size` bytes.
pub(super) fn clip(name: &str, size: u64) -> NewMedia {
    NewMedia {
        path: PathBuf::from(if cfg!(windows) {
            format!("C:\\card\\{name}")
        } else {
            format!("/card/{name}")
        }),
        name: name.to_owned(),
        facts: FileFacts {
            size,
            mtime_ns: 1_000,
            file_id: None,
        },
        volume: None,
        filetype: "video/mp4".to_owned(),
        capture: Capture {
            wall: crate::WallTime(1_700_000_000_000),
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

/// An asset whose chunks have these lengths.
pub(super) fn asset(name: &str, lengths: &[u64]) -> NewAsset {
    let mut start = 0;
    let chunks = lengths.iter().enumerate().map(|(number, length)| {
        let chunk = NewChunk {
            start,
            length: *length,
            url: SecretString::from(format!(
                "https://uploads.invalid/{name}/{number}?signature=secret"
            )),
        };
        start += length;
        chunk
    });
    NewAsset {
        asset_id: format!("asset-{name}"),
        project_id: "project-1".to_owned(),
        offset: Some(3),
        chunks: chunks.collect(),
    }
}

/// A fault that costs nothing, with a verdict.
pub(super) fn setback(verdict: Verdict) -> Setback {
    Setback {
        fault: FaultRecord {
            scope: Scope::Service,
            code: "service_error".to_owned(),
            words: "the service answered 500; it is tried again".to_owned(),
            server: Some("InternalError".to_owned()),
        },
        verdict,
        possible_duplicate: false,
        bytes_wasted: 0,
        drop_parts: false,
    }
}

pub(super) fn again(seconds: u64) -> Verdict {
    Verdict::Again {
        after: secs(seconds),
        counted: true,
    }
}

/// A proof whose ETag is its MD5.
pub(super) fn proof() -> ChunkProof {
    let md5 = "9e107d9d372bb6826bd81d3542a419d6";
    ChunkProof {
        etag: Some(md5.to_owned()),
        md5: Some(md5.to_owned()),
        crc64nvme: None,
    }
}

pub(super) fn is_lost<T: std::fmt::Debug>(result: Result<T, QueueError>, media: MediaId) {
    assert!(
        matches!(&result, Err(QueueError::LeaseLost(lost)) if *lost == media),
        "expected a lost lease: {result:?}"
    );
}

impl Kit {
    pub(super) async fn open(store: Arc<dyn Store>) -> Kit {
        let process = "run-1".to_owned();
        let queue = store.open(&process).await;
        let clock = store.clock();
        Kit {
            store,
            queue,
            clock,
            process,
        }
    }

    /// Ends the process, cleanly or not, and starts another one.
    pub(super) async fn restart(self, clean: bool) -> Kit {
        self.restart_after(clean, |_| ()).await
    }

    /// The same; `meanwhile` is what happens to the clock while no process runs.
    pub(super) async fn restart_after(
        self,
        clean: bool,
        meanwhile: impl FnOnce(&ManualClock),
    ) -> Kit {
        let Kit {
            store,
            queue,
            clock,
            process,
        } = self;
        if clean {
            queue.close().await.unwrap();
        }
        drop(queue);
        meanwhile(&clock);
        let run: u32 = process.trim_start_matches("run-").parse().unwrap();
        let process = format!("run-{}", run + 1);
        let queue = store.open(&process).await;
        Kit {
            store,
            queue,
            clock,
            process,
        }
    }

    pub(super) fn holder(&self, worker: &str) -> Holder {
        Holder {
            process: self.process.clone(),
            worker: worker.to_owned(),
        }
    }

    pub(super) async fn add(&self, name: &str, size: u64) -> MediaId {
        self.add_new(clip(name, size)).await
    }

    pub(super) async fn add_new(&self, media: NewMedia) -> MediaId {
        let added = self.queue.add(vec![media]).await.unwrap();
        assert_eq!(added.len(), 1);
        assert_eq!(added[0].already, None);
        added[0].id
    }

    pub(super) async fn claim(&self) -> Claim<RegistrationClaim> {
        self.queue
            .claim_registration(&self.holder("register"), LEASE, None)
            .await
            .unwrap()
    }

    pub(super) async fn registration(&self) -> RegistrationClaim {
        match self.claim().await {
            Claim::Got(claim) => *claim,
            other => panic!("no registration to check out: {other:?}"),
        }
    }

    pub(super) async fn claim_chunk(&self) -> Claim<ChunkClaim> {
        self.queue
            .claim_chunk(&self.holder("transfer"), LEASE)
            .await
            .unwrap()
    }

    pub(super) async fn chunk(&self) -> ChunkClaim {
        match self.claim_chunk().await {
            Claim::Got(claim) => *claim,
            other => panic!("no chunk to check out: {other:?}"),
        }
    }

    /// Adds a media and registers it with chunks of these lengths; nothing else may be waiting for that.
    pub(super) async fn registered(&self, name: &str, lengths: &[u64]) -> MediaId {
        let id = self.add(name, lengths.iter().sum()).await;
        self.register(id, lengths).await;
        id
    }

    /// Registers the media, which must be the next one.
    pub(super) async fn register(&self, id: MediaId, lengths: &[u64]) {
        let claim = self.registration().await;
        assert_eq!(claim.media.id, id);
        self.queue
            .asset_created(&claim.lease, asset(&claim.media.name, lengths))
            .await
            .unwrap();
    }

    pub(super) async fn fail(&self, lease: &Lease, verdict: Verdict) -> Outcome {
        let setback = setback(verdict);
        match lease.item {
            crate::Item::Registration(_) => self
                .queue
                .registration_failed(lease, setback)
                .await
                .unwrap(),
            crate::Item::Chunk(..) => self.queue.chunk_failed(lease, setback).await.unwrap(),
        }
    }

    pub(super) async fn sent(&self, lease: &Lease) -> Sent {
        self.queue.chunk_sent(lease, proof()).await.unwrap()
    }

    /// Sends all that is left of the media, which must be the next one.
    pub(super) async fn deliver(&self, id: MediaId) {
        loop {
            let claim = self.chunk().await;
            assert_eq!(claim.media.id, id);
            if self.sent(&claim.lease).await.receipt.is_some() {
                return;
            }
        }
    }

    pub(super) async fn media(&self, id: MediaId) -> Media {
        self.queue.media(id).await.unwrap().unwrap()
    }

    pub(super) async fn state(&self, id: MediaId) -> MediaState {
        self.media(id).await.state
    }

    pub(super) async fn by_hand(&self, ids: &[MediaId], action: ByHand) -> Vec<MediaId> {
        self.queue
            .by_hand(Selection::Ids(ids.to_vec()), action)
            .await
            .unwrap()
    }

    pub(super) async fn events(&self, id: MediaId) -> Vec<Event> {
        self.queue
            .history(Some(id))
            .await
            .unwrap()
            .into_iter()
            .map(|line| line.event)
            .collect()
    }

    pub(super) async fn nothing_to_register(&self) {
        let claim = self.claim().await;
        assert!(matches!(claim, Claim::Nothing), "{claim:?}");
    }

    pub(super) async fn nothing_to_send(&self) {
        let claim = self.claim_chunk().await;
        assert!(matches!(claim, Claim::Nothing), "{claim:?}");
    }

    pub(super) async fn register_later(&self, wait: Duration) {
        let claim = self.claim().await;
        assert!(
            matches!(claim, Claim::Later(later) if later == wait),
            "expected {wait:?}: {claim:?}"
        );
    }

    pub(super) async fn send_later(&self, wait: Duration) {
        let claim = self.claim_chunk().await;
        assert!(
            matches!(claim, Claim::Later(later) if later == wait),
            "expected {wait:?}: {claim:?}"
        );
    }
}

pub(super) fn url(claim: &ChunkClaim) -> &str {
    claim.url.expose_secret()
}
