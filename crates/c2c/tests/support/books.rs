//! What the queue of a unit says, read from a copy of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use c2c_queue::{ChunkState, Media, MediaId, MediaState, Queue, Receipt, SqliteQueue, SystemClock};
use serde_json::Value;

/// A part at the service: the asset and the number of the part, from 1.
pub(crate) type Key = (String, u32);

/// The books of a unit at one moment.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// By name; the names in these tests are unique.
    pub(crate) media: BTreeMap<String, Media>,
    /// Of delivered media, by name.
    pub(crate) receipts: BTreeMap<String, Receipt>,
    /// Parts whose acknowledgement is recorded.
    pub(crate) finished: BTreeSet<Key>,
    /// The authorization is there.
    pub(crate) paired: bool,
}

impl Books {
    /// Copies what lies in `state` and reads the copy. Nothing there means empty books.
    pub(crate) async fn read(state: &Path) -> Books {
        let mut books = Books::default();
        if !state.join("queue.db").exists() {
            return books;
        }
        let copy = tempfile::tempdir().unwrap();
        for name in ["queue.db", "queue.db-wal"] {
            if state.join(name).exists() {
                std::fs::copy(state.join(name), copy.path().join(name)).unwrap();
            }
        }
        if std::fs::metadata(copy.path().join("queue.db"))
            .unwrap()
            .len()
            == 0
            && !copy.path().join("queue.db-wal").exists()
        {
            // Made, but not begun: as good as nothing.
            return books;
        }
        let queue =
            SqliteQueue::open_read_only(copy.path().join("queue.db"), Arc::new(SystemClock))
                .unwrap();
        books.paired = queue.connection().await.unwrap().tokens_stored_at.is_some();
        for media in queue.list(None, None, 10_000).await.unwrap() {
            if let Some(receipt) = queue.receipt(media.id).await.unwrap() {
                books.finished.extend(
                    receipt
                        .chunks
                        .iter()
                        .map(|chunk| (receipt.asset_id.clone(), chunk.number + 1)),
                );
                books.receipts.insert(media.name.clone(), receipt);
            } else if let Some(asset) = &media.asset_id {
                let chunks = queue.chunks(media.id).await.unwrap();
                books.finished.extend(
                    chunks
                        .iter()
                        .filter(|chunk| chunk.state == ChunkState::Sent)
                        .map(|chunk| (asset.clone(), chunk.number + 1)),
                );
            }
            let known = books.media.insert(media.name.clone(), media);
            assert!(known.is_none(), "a media is there twice: {known:?}");
        }
        queue.close().await.unwrap();
        books
    }

    pub(crate) fn state_of(&self, name: &str) -> Option<MediaState> {
        self.media.get(name).map(|media| media.state)
    }

    fn by_id(&self, id: &Value) -> Option<&Media> {
        let id = MediaId(id.as_i64()?);
        self.media.values().find(|media| media.id == id)
    }

    /// Whatever the program told the world before it died must be in the books.
    #[track_caller]
    pub(crate) fn keep_what_was_told(&self, told: &[Value]) {
        for event in told {
            let media = self.by_id(&event["media"]);
            match event["event"].as_str() {
                Some("added") => assert!(media.is_some(), "told, but not kept: {event}"),
                Some("chunk_sent") => {
                    let media = media.unwrap_or_else(|| panic!("told, but not kept: {event}"));
                    let part = u32::try_from(event["chunk"].as_u64().unwrap()).unwrap() + 1;
                    let asset = media.asset_id.clone().unwrap_or_default();
                    assert!(
                        self.finished.contains(&(asset, part)),
                        "told, but not kept: {event}\n{media:#?}"
                    );
                }
                Some("delivered") => {
                    let receipt = media.and_then(|media| self.receipts.get(&media.name));
                    let asset = receipt.map(|receipt| receipt.asset_id.as_str());
                    assert_eq!(
                        asset,
                        event["asset_id"].as_str(),
                        "told, but not kept: {event}"
                    );
                }
                _ => {}
            }
        }
    }
}
