//! Checking out work.
//!
//! A media carries the time at which there is something to check out of it (`wake_at`), and whether that time
//! has come (`due`). Those that have come form two short indexes, in the order of work; those that wait form
//! another, in the order of time. So neither a long queue nor a long list of waiting media costs anything.
//! The statements name their index: without statistics SQLite would rather sort all media of a state.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use crate::history::{Event, Operation};
use crate::media::{MediaId, MediaState};
use crate::queue::{Attempt, ChunkClaim, Claim, Holder, Item, Lease, RegistrationClaim};

use super::rows::{self, change};
use super::{Done, Tx, lines, verdict};
use crate::error::QueueError;

/// Checks out the next registration.
pub(super) fn registration(
    tx: &Tx<'_>,
    holder: &Holder,
    lease: Duration,
    ahead: Option<u64>,
) -> Done<Claim<RegistrationClaim>> {
    wake(tx)?;
    if let Some(ahead) = ahead {
        let sql = "SELECT chunks_due FROM counts";
        let due: i64 = tx.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        if due >= rows::number(ahead) {
            return Ok(Claim::Nothing);
        }
    }
    let sql = "UPDATE media SET state = 'registering', tries = tries + 1, tries_total = tries_total + 1, \
            not_before = 0, due = NULL, wake_at = NULL, lease_token = (SELECT token + 1 FROM store), \
            lease_process = ?, lease_worker = ?, lease_until = ? \
        WHERE id = (SELECT id FROM media INDEXED BY media_to_register WHERE due = 1 AND state = 'queued' \
            ORDER BY priority DESC, position, id LIMIT 1) \
        RETURNING id, lease_token";
    let got: Option<(i64, i64)> = tx
        .db
        .prepare_cached(sql)?
        .query_row(
            params![holder.process, holder.worker, tx.after(lease)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((id, token)) = got else {
        return later(tx, MediaState::Queued);
    };
    let id = MediaId(id);
    spend_token(tx)?;
    let media = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
    let attempt = Attempt {
        number: media.tries,
        round: media.rounds + 1,
        final_try: media.final_try,
    };
    note_try(tx, id, Operation::Register, None, attempt)?;
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
    wake(tx)?;
    let sql = "UPDATE chunk SET state = 'sending', tries = tries + 1, tries_total = tries_total + 1, \
            acknowledged = 0, not_before = 0, lease_token = (SELECT token + 1 FROM store), lease_process = ?1, \
            lease_worker = ?2, lease_until = ?3, lease_round = (SELECT rounds FROM media WHERE id = media_id) \
        WHERE rowid = (SELECT rowid FROM chunk INDEXED BY chunk_ready \
            WHERE state = 'ready' AND not_before <= ?4 AND media_id = \
                (SELECT id FROM media INDEXED BY media_to_send WHERE due = 1 AND state = 'transferring' \
                ORDER BY priority DESC, position, id LIMIT 1) \
            ORDER BY number LIMIT 1) \
        RETURNING media_id, number, lease_token, url";
    let got: Option<(i64, u32, i64, Vec<u8>)> = tx
        .db
        .prepare_cached(sql)?
        .query_row(
            params![holder.process, holder.worker, tx.after(lease), tx.now],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
        .optional()?;
    let Some((id, number, token, url)) = got else {
        return later(tx, MediaState::Transferring);
    };
    let id = MediaId(id);
    spend_token(tx)?;
    change(
        tx,
        "UPDATE media SET tries_total = tries_total + 1 WHERE id = ?",
        &[&id.0],
    )?;
    verdict::settle(tx, id)?;
    let media = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
    let chunk = rows::find_chunk(tx, id, number)?.ok_or(QueueError::NoSuchMedia(id))?;
    let attempt = Attempt {
        number: chunk.tries,
        round: media.rounds + 1,
        final_try: media.final_try,
    };
    if chunk.tries_total > 1 {
        note_try(tx, id, Operation::Transfer, Some(number), attempt)?;
    }
    let sql = "SELECT urls_at FROM media WHERE id = ?";
    let urls_at: i64 = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0], |row| row.get(0))?;
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

/// Marks the media whose time has come. Each wait ends once, so this costs as much as there are waits.
fn wake(tx: &Tx<'_>) -> Done<()> {
    for state in [MediaState::Queued, MediaState::Transferring] {
        let sql = "UPDATE media INDEXED BY media_waking SET due = 1 WHERE due = 0 AND state = ? AND wake_at <= ?";
        change(tx, sql, &[&state.as_str(), &tx.now])?;
    }
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

fn spend_token(tx: &Tx<'_>) -> Done<()> {
    change(tx, "UPDATE store SET token = token + 1", &[])?;
    Ok(())
}

fn note_try(
    tx: &Tx<'_>,
    id: MediaId,
    operation: Operation,
    chunk: Option<u32>,
    attempt: Attempt,
) -> Done<()> {
    let event = Event::Try {
        operation,
        chunk,
        number: attempt.number,
        round: attempt.round,
    };
    lines::write(tx, Some(id), &event)
}
