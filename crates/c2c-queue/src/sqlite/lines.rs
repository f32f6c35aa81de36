//! History: bounded per media, so that a clip that fails for a month costs no more than one that fails for a day.

use rusqlite::params;

use crate::clock::WallTime;
use crate::history::{Event, HistoryLine};
use crate::media::MediaId;

use super::rows::change;
use super::{Done, Tx};

/// Oldest lines of a media that are kept for ever: how it all began.
pub(super) const FIRST: i64 = 50;
/// Newest lines that are kept.
pub(super) const NEWEST: i64 = 450;

/// Adds a line to the life of a media, or to that of the queue itself.
pub(super) fn write(tx: &Tx<'_>, media: Option<MediaId>, event: &Event) -> Done<()> {
    let line: i64 = match media {
        Some(id) => {
            let sql = "UPDATE media SET lines = lines + 1 WHERE id = ?";
            change(tx, sql, &[&id.0])?;
            count(tx, id)?
        }
        None => {
            change(tx, "UPDATE store SET lines = lines + 1", &[])?;
            tx.db
                .prepare_cached("SELECT lines FROM store")?
                .query_row([], |row| row.get(0))?
        }
    };
    put(tx, media, line, event)
}

/// Lines that were counted for a media.
pub(super) fn count(tx: &Tx<'_>, id: MediaId) -> Done<i64> {
    let sql = "SELECT lines FROM media WHERE id = ?";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .query_row([id.0], |row| row.get(0))?)
}

/// Adds the line with this number; the caller has counted it.
pub(super) fn put(tx: &Tx<'_>, media: Option<MediaId>, line: i64, event: &Event) -> Done<()> {
    let id = media.map(|id| id.0);
    tx.db
        .prepare_cached("INSERT INTO history (media_id, line, at, event) VALUES (?, ?, ?, ?)")?
        .execute(params![id, line, tx.wall, serde_json::to_string(event)?])?;
    let fallen = line - NEWEST;
    if fallen > FIRST {
        tx.db
            .prepare_cached("DELETE FROM history WHERE media_id IS ? AND line = ?")?
            .execute(params![id, fallen])?;
    }
    Ok(())
}

/// The lines of a media, or of the queue itself, oldest first.
pub(super) fn read(tx: &Tx<'_>, media: Option<MediaId>) -> Done<Vec<HistoryLine>> {
    let sql = "SELECT id, at, event FROM history WHERE media_id IS ? ORDER BY line";
    let mut statement = tx.db.prepare_cached(sql)?;
    let mut rows = statement.query(params![media.map(|id| id.0)])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let event: String = row.get(2)?;
        let event = serde_json::from_str(&event)?;
        lines.push(HistoryLine {
            id: row.get(0)?,
            media,
            at: WallTime(row.get(1)?),
            event,
        });
    }
    Ok(lines)
}
