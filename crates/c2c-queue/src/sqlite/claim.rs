//! Checking out work.
//!
//! A media carries the time at which there is something to check out of it (`wake_at`), and whether that time
//! has come (`due`). Those that have come form two short indexes, in the order of work; those that wait form
//! another, in the order of time. So neither a long queue nor a long list of waiting media costs anything.
//! The statements name their index: without statistics SQLite would rather sort all media of a state. None of them says
//! RETURNING: SQLite makes a table for that, which costs more than asking once more.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use crate::history::{Event, Operation};
use crate::media::{Media, MediaId, MediaState};
use crate::queue::{Attempt, ChunkClaim, Claim, Holder, Item, Lease, RegistrationClaim};

use super::rows::{self, change, chunk_columns, media_columns};
use super::{Done, Tx, lines, verdict};

/// Checks out the next registration.
pub(super) fn registration(
    tx: &Tx<'_>,
    holder: &Holder,
    lease: Duration,
    ahead: Option<u64>,
) -> Done<Claim<RegistrationClaim>> {
    wake(tx, MediaState::Queued)?;
    if let Some(ahead) = ahead {
        wake(tx, MediaState::Transferring)?;
        let sql = "SELECT chunks_due FROM counts";
        let due: i64 = tx.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        if due >= rows::number(ahead) {
            return Ok(Claim::Nothing);
        }
    }
    let sql = "SELECT id FROM media INDEXED BY media_to_register WHERE due = 1 AND state = 'queued' \
        ORDER BY priority DESC, position, id LIMIT 1";
    let next: Option<i64> = tx
        .db
        .prepare_cached(sql)?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(next) = next else {
        return later(tx, MediaState::Queued);
    };
    let id = MediaId(next);
    let token = tx.spend_token();
    let sql = "UPDATE media SET state = 'registering', tries = tries + 1, tries_total = tries_total + 1, \
        not_before = 0, due = NULL, wake_at = NULL, lease_token = ?, lease_process = ?, lease_worker = ?, \
        lease_until = ?, lines = lines + 1 WHERE id = ?";
    let until = tx.after(lease);
    change(
        tx,
        sql,
        &[&token, &holder.process, &holder.worker, &until, &id.0],
    )?;
    let sql = concat!(
        "SELECT ",
        media_columns!(),
        ", lines FROM media WHERE id = ?"
    );
    let (media, line) = tx.db.prepare_cached(sql)?.query_row(params![id.0], |row| {
        Ok((rows::media(row, tx.now)?, row.get(rows::MEDIA_COLUMNS)?))
    })?;
    let attempt = Attempt {
        number: media.tries,
        round: media.rounds + 1,
        final_try: media.final_try,
    };
    let event = tried(Operation::Register, None, attempt);
    lines::put(tx, Some(id), line, &event)?;
    let lease = Lease {
        item: Item::Registration(id),
        token: token.cast_unsigned(),
    };
    Ok(Claim::Got(Box::new(RegistrationClaim {
        lease,
        media,
        attempt,
    })))
}

/// Checks out the next chunk.
pub(super) fn chunk(tx: &Tx<'_>, holder: &Holder, lease: Duration) -> Done<Claim<ChunkClaim>> {
    wake(tx, MediaState::Transferring)?;
    let sql = "SELECT rowid, media_id FROM chunk INDEXED BY chunk_ready \
        WHERE state = 'ready' AND not_before <= ? AND media_id = \
            (SELECT id FROM media INDEXED BY media_to_send WHERE due = 1 AND state = 'transferring' \
            ORDER BY priority DESC, position, id LIMIT 1) \
        ORDER BY number LIMIT 1";
    let next: Option<(i64, i64)> = tx
        .db
        .prepare_cached(sql)?
        .query_row([tx.now], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((row, id)) = next else {
        return later(tx, MediaState::Transferring);
    };
    let id = MediaId(id);
    let token = tx.spend_token();
    let sql = "UPDATE chunk SET state = 'sending', tries = tries + 1, tries_total = tries_total + 1, \
        acknowledged = 0, not_before = 0, lease_token = ?, lease_process = ?, \
        lease_worker = ?, lease_until = ?, lease_round = (SELECT rounds FROM media WHERE id = media_id) \
        WHERE rowid = ?";
    let until = tx.after(lease);
    change(
        tx,
        sql,
        &[&token, &holder.process, &holder.worker, &until, &row],
    )?;
    let sql = concat!(
        "SELECT ",
        chunk_columns!(),
        ", url FROM chunk WHERE rowid = ?"
    );
    let (chunk, url) = tx.db.prepare_cached(sql)?.query_row([row], |row| {
        let url: Vec<u8> = row.get(rows::CHUNK_COLUMNS)?;
        Ok((rows::chunk(row, tx.now)?, url))
    })?;
    let number = chunk.number;
    // The last ready chunk of a media: there is nothing more to check out of it.
    let sql = "UPDATE media SET tries_total = tries_total + 1, wake_at = iif(chunks_ready = 0, NULL, wake_at), \
        due = iif(chunks_ready = 0, NULL, due) WHERE id = ?";
    change(tx, sql, &[&id.0])?;
    let sql = concat!(
        "SELECT ",
        media_columns!(),
        ", chunks_ready, urls_at FROM media WHERE id = ?"
    );
    let (media, ready, urls_at): (Media, i64, i64) =
        tx.db.prepare_cached(sql)?.query_row(params![id.0], |row| {
            let media = rows::media(row, tx.now)?;
            let (ready, urls_at) = (rows::MEDIA_COLUMNS, rows::MEDIA_COLUMNS + 1);
            Ok((media, row.get(ready)?, row.get(urls_at)?))
        })?;
    if ready > 0 {
        verdict::settle(tx, id)?;
    }
    let attempt = Attempt {
        number: chunk.tries,
        round: media.rounds + 1,
        final_try: media.final_try,
    };
    if chunk.tries_total > 1 {
        let event = tried(Operation::Transfer, Some(number), attempt);
        lines::write(tx, Some(id), &event)?;
    }
    Ok(Claim::Got(Box::new(ChunkClaim {
        lease: Lease {
            item: Item::Chunk(id, number),
            token: token.cast_unsigned(),
        },
        url: tx.vault()?.open(URL, &url_row(id, number), &url)?,
        url_age: Duration::from_millis(u64::try_from(tx.now - urls_at).unwrap_or(0)),
        media,
        chunk,
        attempt,
    })))
}

/// The kind under which upload URLs are sealed.
pub(super) const URL: &str = "upload URL";

/// The row under which an upload URL is sealed.
pub(super) fn url_row(id: MediaId, number: u32) -> String {
    format!("{id}/{number}")
}

/// Marks the media in this state whose time has come. Each wait ends once, so this costs as much as there are waits.
fn wake(tx: &Tx<'_>, state: MediaState) -> Done<()> {
    let sql = "UPDATE media INDEXED BY media_waking SET due = 1 WHERE due = 0 AND state = ? AND wake_at <= ?";
    change(tx, sql, &[&state.as_str(), &tx.now])?;
    Ok(())
}

/// When to ask again, if nothing else happens.
fn later<T>(tx: &Tx<'_>, state: MediaState) -> Done<Claim<T>> {
    let sql = "SELECT min(wake_at) FROM media INDEXED BY media_waking WHERE due = 0 AND state = ?";
    let first: Option<i64> = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![state.as_str()], |row| row.get(0))?;
    Ok(match first {
        Some(at) => {
            let wait = u64::try_from(at.saturating_sub(tx.now)).unwrap_or(0);
            Claim::Later(Duration::from_millis(wait.max(1)))
        }
        None => Claim::Nothing,
    })
}

fn tried(operation: Operation, chunk: Option<u32>, attempt: Attempt) -> Event {
    Event::Try {
        operation,
        chunk,
        number: attempt.number,
        round: attempt.round,
    }
}
