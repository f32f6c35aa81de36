//! Leases: kept, given back, taken back. Only the holder of the current token is heard.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use crate::error::QueueError;
use crate::history::Event;
use crate::media::{Media, MediaId};
use crate::queue::{Item, Lease, Recovered};

use super::rows::{self, change};
use super::{Done, Tx, lines, verdict};

fn token(lease: &Lease) -> i64 {
    lease.token.cast_signed()
}

fn lost(lease: &Lease) -> QueueError {
    QueueError::LeaseLost(lease.item.media())
}

fn registered(lease: &Lease) -> Done<MediaId> {
    let Item::Registration(id) = lease.item else {
        return Err(QueueError::Invalid(format!(
            "the lease is on a chunk of media {}",
            lease.item.media()
        ))
        .into());
    };
    Ok(id)
}

/// The media whose registration is held with this lease, and the size of its file.
pub(super) fn registration_size(tx: &Tx<'_>, lease: &Lease) -> Done<(MediaId, u64)> {
    let id = registered(lease)?;
    let sql = "SELECT size FROM media WHERE id = ? AND lease_token = ?";
    let size: Option<i64> = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0, token(lease)], |row| row.get(0))
        .optional()?;
    let size = size.ok_or_else(|| lost(lease))?;
    Ok((id, size.cast_unsigned()))
}

/// The media whose registration is held with this lease.
pub(super) fn registration(tx: &Tx<'_>, lease: &Lease) -> Done<Media> {
    let id = registered(lease)?;
    let sql = "SELECT 1 FROM media WHERE id = ? AND lease_token = ?";
    let held = tx
        .db
        .prepare_cached(sql)?
        .exists(params![id.0, token(lease)])?;
    let media = if held {
        rows::find_media(tx, id)?
    } else {
        None
    };
    media.ok_or_else(|| lost(lease).into())
}

/// A chunk that is held.
pub(super) struct HeldChunk {
    /// The media it belongs to.
    pub(super) media: Media,
    /// Its number.
    pub(super) number: u32,
    /// Its length in bytes.
    pub(super) length: u64,
    /// The round in which it was checked out is the current one.
    pub(super) this_round: bool,
}

/// The chunk that is held with this lease.
pub(super) fn chunk(tx: &Tx<'_>, lease: &Lease) -> Done<HeldChunk> {
    let Item::Chunk(id, number) = lease.item else {
        let words = format!(
            "the lease is on the registration of media {}",
            lease.item.media()
        );
        return Err(QueueError::Invalid(words).into());
    };
    let sql = "SELECT length, lease_round FROM chunk WHERE media_id = ? AND number = ? AND lease_token = ?";
    let row: Option<(i64, u32)> = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0, number, token(lease)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let (length, round) = row.ok_or_else(|| lost(lease))?;
    let media = rows::find_media(tx, id)?.ok_or_else(|| lost(lease))?;
    let this_round = round == media.rounds;
    Ok(HeldChunk {
        media,
        number,
        length: length.cast_unsigned(),
        this_round,
    })
}

/// Keeps a lease for longer.
pub(super) fn renew(tx: &Tx<'_>, lease: &Lease, acknowledged: u64, extend: Duration) -> Done<()> {
    let until = tx.after(extend);
    let changed = match lease.item {
        Item::Registration(id) => {
            let sql = "UPDATE media SET lease_until = ? WHERE id = ? AND lease_token = ?";
            change(tx, sql, &[&until, &id.0, &token(lease)])?
        }
        Item::Chunk(id, number) => {
            let sql = "UPDATE chunk SET lease_until = ?, acknowledged = ? \
                WHERE media_id = ? AND number = ? AND lease_token = ?";
            change(
                tx,
                sql,
                &[
                    &until,
                    &rows::number(acknowledged),
                    &id.0,
                    &number,
                    &token(lease),
                ],
            )?
        }
    };
    if changed == 0 {
        Err(lost(lease).into())
    } else {
        Ok(())
    }
}

/// Puts a held chunk back, due at `not_before`, with or without its try.
pub(super) fn return_chunk(
    tx: &Tx<'_>,
    id: MediaId,
    number: u32,
    not_before: i64,
    give_back: bool,
) -> Done<()> {
    let sql = "UPDATE chunk SET state = 'ready', not_before = ?, tries = max(0, tries - ?), lease_token = NULL, \
        lease_process = NULL, lease_worker = NULL, lease_until = NULL, lease_round = NULL \
        WHERE media_id = ? AND number = ?";
    change(tx, sql, &[&not_before, &give_back, &id.0, &number])?;
    Ok(())
}

/// Puts a held registration back, due at `not_before`, with or without its try.
pub(super) fn return_registration(
    tx: &Tx<'_>,
    id: MediaId,
    not_before: i64,
    give_back: bool,
) -> Done<()> {
    let sql = "UPDATE media SET state = 'queued', not_before = ?, tries = max(0, tries - ?), due = NULL, \
        wake_at = NULL, lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL \
        WHERE id = ?";
    change(tx, sql, &[&not_before, &give_back, &id.0])?;
    Ok(())
}

/// Gives an item back as if it had never been checked out. What was sent of it all the same was sent in vain.
pub(super) fn release(tx: &Tx<'_>, lease: &Lease) -> Done<()> {
    let id = lease.item.media();
    match lease.item {
        Item::Registration(_) => {
            registration(tx, lease)?;
            return_registration(tx, id, 0, true)?;
        }
        Item::Chunk(_, number) => {
            chunk(tx, lease)?;
            count_vain(tx, id, number)?;
            return_chunk(tx, id, number, 0, true)?;
            let sql = "UPDATE chunk SET tries_total = max(0, tries_total - 1) WHERE media_id = ? AND number = ?";
            change(tx, sql, &[&id.0, &number])?;
        }
    }
    change(
        tx,
        "UPDATE media SET tries_total = max(0, tries_total - 1) WHERE id = ?",
        &[&id.0],
    )?;
    verdict::settle(tx, id)
}

fn count_vain(tx: &Tx<'_>, id: MediaId, number: u32) -> Done<()> {
    let sql = "UPDATE media SET bytes_resent = bytes_resent + \
        (SELECT acknowledged FROM chunk WHERE media_id = ?1 AND number = ?2) WHERE id = ?1";
    change(tx, sql, &[&id.0, &number])?;
    Ok(())
}

/// Takes back what is held beyond its time.
pub(super) fn recover_expired(tx: &Tx<'_>) -> Done<Vec<Recovered>> {
    let registrations = "SELECT id, lease_process, lease_worker FROM media INDEXED BY media_leased \
        WHERE lease_token IS NOT NULL AND lease_until <= ? ORDER BY id";
    let chunks = "SELECT media_id, lease_process, lease_worker, number, acknowledged FROM chunk INDEXED BY chunk_leased \
        WHERE lease_token IS NOT NULL AND lease_until <= ? ORDER BY media_id, number";
    recover(tx, registrations, chunks, &tx.now)
}

/// Takes back what any other process holds.
pub(super) fn recover_dead(tx: &Tx<'_>, process: &str) -> Done<Vec<Recovered>> {
    let registrations = "SELECT id, lease_process, lease_worker FROM media INDEXED BY media_leased \
        WHERE lease_token IS NOT NULL AND lease_process <> ? ORDER BY id";
    let chunks = "SELECT media_id, lease_process, lease_worker, number, acknowledged FROM chunk INDEXED BY chunk_leased \
        WHERE lease_token IS NOT NULL AND lease_process <> ? ORDER BY media_id, number";
    recover(tx, registrations, chunks, &process)
}

fn recover(
    tx: &Tx<'_>,
    registrations: &str,
    chunks: &str,
    value: &dyn rusqlite::ToSql,
) -> Done<Vec<Recovered>> {
    let mut recovered = Vec::new();
    {
        let mut statement = tx.db.prepare_cached(registrations)?;
        let mut rows = statement.query([value])?;
        while let Some(row) = rows.next()? {
            let holder = format!("{}/{}", row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            let item = Item::Registration(MediaId(row.get(0)?));
            recovered.push(Recovered {
                item,
                holder,
                acknowledged: 0,
            });
        }
        let mut statement = tx.db.prepare_cached(chunks)?;
        let mut rows = statement.query([value])?;
        while let Some(row) = rows.next()? {
            let holder = format!("{}/{}", row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            let item = Item::Chunk(MediaId(row.get(0)?), row.get(3)?);
            let acknowledged: i64 = row.get(4)?;
            recovered.push(Recovered {
                item,
                holder,
                acknowledged: u64::try_from(acknowledged).unwrap_or(0),
            });
        }
    }
    for Recovered { item, holder, .. } in &recovered {
        let id = item.media();
        let chunk = match *item {
            Item::Registration(_) => {
                return_registration(tx, id, 0, false)?;
                None
            }
            Item::Chunk(_, number) => {
                count_vain(tx, id, number)?;
                return_chunk(tx, id, number, 0, false)?;
                Some(number)
            }
        };
        lines::write(
            tx,
            Some(id),
            &Event::LeaseLost {
                chunk,
                holder: holder.clone(),
            },
        )?;
        if chunk.is_none() {
            // Whoever went silent may have sent the create before.
            let sql = "UPDATE media SET possible_duplicates = possible_duplicates + 1 WHERE id = ?";
            change(tx, sql, &[&id.0])?;
            lines::write(tx, Some(id), &Event::PossibleDuplicate)?;
        }
        verdict::settle(tx, id)?;
    }
    Ok(recovered)
}
