//! What the user sees.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, ToSql, params};

use crate::media::{Chunk, ChunkState, Media, MediaId, MediaState};
use crate::queue::{QueueStatus, StateTally};
use crate::receipt::Receipt;

use super::rows::{self, chunk_columns, ids, media_columns};
use super::{Done, Tx};

/// The queue in numbers: nine rows, whatever its length.
pub(super) fn status(tx: &Tx<'_>) -> Done<QueueStatus> {
    let mut states = BTreeMap::new();
    let mut statement = tx
        .db
        .prepare_cached("SELECT state, media, bytes, bytes_sent FROM tally WHERE media > 0")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let state: String = row.get(0)?;
        let tally = StateTally {
            media: count(row, 1)?,
            bytes: count(row, 2)?,
            bytes_sent: count(row, 3)?,
        };
        if let Some(state) = MediaState::parse(&state) {
            states.insert(state, tally);
        }
    }
    let (held, chunks_ready) = tx
        .db
        .prepare_cached("SELECT held, chunks_ready FROM counts")?
        .query_row([], |row| Ok((count(row, 0)?, count(row, 1)?)))?;
    Ok(QueueStatus {
        states,
        held,
        chunks_ready,
    })
}

fn count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn media_where(tx: &Tx<'_>, rest: &str, values: &[&dyn ToSql]) -> Done<Vec<Media>> {
    let all = concat!("SELECT ", media_columns!(), " FROM media ");
    let mut statement = tx.db.prepare_cached(&format!("{all}{rest}"))?;
    let media = statement
        .query_map(values, |row| rows::media(row, tx.now))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(media)
}

/// Media in order of id.
pub(super) fn list(
    tx: &Tx<'_>,
    states: Option<Vec<MediaState>>,
    after: Option<MediaId>,
    limit: u32,
) -> Done<Vec<Media>> {
    let after = after.map_or(i64::MIN, |id| id.0);
    let Some(mut states) = states else {
        return media_where(tx, "WHERE id > ? ORDER BY id LIMIT ?", &[&after, &limit]);
    };
    states.sort_unstable();
    states.dedup();
    // State by state along the index: a rare state is found at once in a long queue.
    let mut found = Vec::new();
    for state in states {
        let sql = "SELECT id FROM media WHERE state = ? AND id > ? ORDER BY id LIMIT ?";
        found.extend(ids(tx, sql, &[&state.as_str(), &after, &limit])?);
    }
    found.sort_unstable();
    let found = found.into_iter().take(limit as usize);
    let media = found
        .map(|id| rows::find_media(tx, id))
        .collect::<Done<Vec<Option<Media>>>>()?;
    Ok(media.into_iter().flatten().collect())
}

/// Media that are held; the schema lets no resting media be.
pub(super) fn held(tx: &Tx<'_>, after: Option<MediaId>, limit: u32) -> Done<Vec<Media>> {
    let after = after.map_or(i64::MIN, |id| id.0);
    let rest = "INDEXED BY media_held WHERE hold IS NOT NULL AND id > ? ORDER BY id LIMIT ?";
    media_where(tx, rest, &[&after, &limit])
}

/// Media in the order of work.
pub(super) fn upcoming(tx: &Tx<'_>, limit: u32) -> Done<Vec<Media>> {
    let rest = "INDEXED BY media_in_line WHERE state IN ('queued', 'registering', 'transferring') ORDER BY priority DESC, position, id LIMIT ?";
    media_where(tx, rest, &[&limit])
}

/// The chunks of a media; those of a delivered one as its receipt tells them.
pub(super) fn chunks(tx: &Tx<'_>, id: MediaId) -> Done<Vec<Chunk>> {
    let Some(media) = rows::find_media(tx, id)? else {
        return Ok(Vec::new());
    };
    if media.state == MediaState::Delivered {
        let receipt = receipt(tx, id)?;
        return Ok(receipt
            .map(|receipt| receipt.chunks)
            .unwrap_or_default()
            .into_iter()
            .map(delivered)
            .collect());
    }
    let sql = concat!(
        "SELECT ",
        chunk_columns!(),
        " FROM chunk WHERE media_id = ? ORDER BY number"
    );
    let mut statement = tx.db.prepare_cached(sql)?;
    let chunks = statement.query_map(params![id.0], |row| rows::chunk(row, tx.now))?;
    Ok(chunks.collect::<rusqlite::Result<_>>()?)
}

fn delivered(chunk: crate::receipt::ReceiptChunk) -> Chunk {
    Chunk {
        number: chunk.number,
        start: chunk.start,
        length: chunk.length,
        state: ChunkState::Sent,
        tries: 0,
        tries_total: chunk.tries,
        acknowledged: chunk.length,
        due_in_ms: None,
        etag: chunk.etag,
        md5: chunk.md5,
        sent_at: Some(chunk.sent_at),
    }
}

/// The receipt of a media.
pub(super) fn receipt(tx: &Tx<'_>, id: MediaId) -> Done<Option<Receipt>> {
    let sql = "SELECT body FROM receipt WHERE media_id = ?";
    let body: Option<String> = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0], |row| row.get(0))
        .optional()?;
    Ok(body.map(|body| serde_json::from_str(&body)).transpose()?)
}

/// Receipts that nobody has sealed yet, oldest first.
pub(super) fn unsealed_receipts(tx: &Tx<'_>, limit: u32) -> Done<Vec<Receipt>> {
    let mut statement = tx
        .db
        .prepare_cached("SELECT body FROM receipt WHERE sealed = 0 ORDER BY id LIMIT ?")?;
    let mut rows = statement.query(params![limit])?;
    let mut receipts = Vec::new();
    while let Some(row) = rows.next()? {
        let body: String = row.get(0)?;
        receipts.push(serde_json::from_str(&body)?);
    }
    Ok(receipts)
}
