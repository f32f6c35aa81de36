//! What verdicts do to a media, and the moves that people cause too.
//!
//! A move is checked against [`MediaState::may_become`] before it is made; the schema checks it again.

use rusqlite::params;

use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{Hold, Media, MediaId, MediaState};
use crate::queue::{Outcome, Setback, Verdict};

use super::rows::{self, change};
use super::{Done, Tx, lines};

/// Which hold stays whatever else comes: what a person asked for, or must decide.
pub(super) fn needs_person(hold: Hold) -> bool {
    matches!(hold, Hold::ByHand | Hold::CaptureTimeUnknown)
}

/// Refuses a move that the life cycle does not have.
pub(super) fn check_move(media: &Media, to: MediaState) -> Done<()> {
    if media.state.may_become(to) {
        return Ok(());
    }
    Err(QueueError::IllegalMove {
        media: media.id,
        from: media.state,
        to,
    }
    .into())
}

/// Finds out when there is something to check out of this media. Ends every operation that may have changed that.
pub(super) fn settle(tx: &Tx<'_>, id: MediaId) -> Done<()> {
    let sql = "SELECT state, hold IS NULL, not_before, chunks_ready, wake_at, due FROM media WHERE id = ?";
    let (state, free, not_before, ready, wake_at, due) =
        tx.db.prepare_cached(sql)?.query_row(params![id.0], |row| {
            let state: String = row.get(0)?;
            let values: (bool, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let waking: (Option<i64>, Option<bool>) = (row.get(4)?, row.get(5)?);
            Ok((state, values.0, values.1, values.2, waking.0, waking.1))
        })?;
    let wakes = match MediaState::parse(&state) {
        Some(MediaState::Queued) if free => Some(not_before),
        Some(MediaState::Transferring) if free && ready > 0 => {
            let sql = "SELECT min(not_before) FROM chunk INDEXED BY chunk_waking WHERE media_id = ? AND state = 'ready'";
            let first: i64 = tx
                .db
                .prepare_cached(sql)?
                .query_row(params![id.0], |row| row.get(0))?;
            Some(first.max(not_before))
        }
        _ => None,
    };
    let is_due = wakes.map(|wakes| wakes <= tx.now);
    if (wakes, is_due) != (wake_at, due) {
        let sql = "UPDATE media SET wake_at = ?, due = ? WHERE id = ?";
        change(tx, sql, &[&wakes, &is_due, &id.0])?;
    }
    Ok(())
}

/// Notes what went wrong, before the verdict is applied.
pub(super) fn note(
    tx: &Tx<'_>,
    media: MediaId,
    operation: Operation,
    chunk: Option<u32>,
    setback: &Setback,
) -> Done<()> {
    let sql = "UPDATE media SET last_fault = ?, bytes_resent = bytes_resent + ?, \
        possible_duplicates = possible_duplicates + ?, parts = CASE WHEN ? THEN NULL ELSE parts END WHERE id = ?";
    let fault = serde_json::to_string(&setback.fault)?;
    let wasted = rows::number(setback.bytes_wasted);
    change(
        tx,
        sql,
        &[
            &fault,
            &wasted,
            &setback.possible_duplicate,
            &setback.drop_parts,
            &media.0,
        ],
    )?;
    if setback.possible_duplicate {
        lines::write(tx, Some(media), &Event::PossibleDuplicate)?;
    }
    let wait = match setback.verdict {
        Verdict::Again { after, .. }
        | Verdict::NextRound { after }
        | Verdict::RegisterAgain { after, .. } => {
            Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
        }
        _ => None,
    };
    let event = Event::Fault {
        operation,
        chunk,
        fault: setback.fault.clone(),
        verdict: setback.verdict.as_str().to_owned(),
        wait_ms: wait,
    };
    lines::write(tx, Some(media), &event)
}

/// What became of a media, once its operation is done.
pub(super) fn outcome(tx: &Tx<'_>, id: MediaId) -> Done<Outcome> {
    let media = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
    Ok(Outcome {
        state: media.state,
        hold: media.hold,
    })
}

/// Sets a media aside; whether that changed anything. A hold that needs a person is never replaced.
pub(super) fn set_hold(tx: &Tx<'_>, media: &Media, hold: Hold) -> Done<bool> {
    if media.hold == Some(hold) || media.hold.is_some_and(needs_person) {
        return Ok(false);
    }
    let sql = "UPDATE media SET hold = ?, held_at = ?, held_since = ?, due = NULL, wake_at = NULL WHERE id = ?";
    change(tx, sql, &[&hold.as_str(), &tx.wall, &tx.now, &media.id.0])?;
    Ok(true)
}

/// A round is used up: fresh tries, behind everything that is in the queue now.
pub(super) fn next_round(tx: &Tx<'_>, id: MediaId, not_before: i64) -> Done<()> {
    let sql = "UPDATE media SET rounds = rounds + 1, tries = 0, position = ?, not_before = ?, due = NULL, \
        wake_at = NULL WHERE id = ?";
    let position = tx.next_position();
    change(tx, sql, &[&position, &not_before, &id.0])?;
    fresh_chunk_tries(tx, id)
}

/// The tries of all chunks that are not sent start again at 0.
pub(super) fn fresh_chunk_tries(tx: &Tx<'_>, id: MediaId) -> Done<()> {
    change(
        tx,
        "UPDATE chunk INDEXED BY chunk_tried SET tries = 0 WHERE media_id = ? AND tries > 0 AND state <> 'sent'",
        &[&id.0],
    )?;
    Ok(())
}

/// Brings a media to rest. Leases on it and on its chunks are void afterwards.
pub(super) fn rest(tx: &Tx<'_>, media: &Media, to: MediaState) -> Done<()> {
    check_move(media, to)?;
    let id = media.id.0;
    match to {
        MediaState::Cancelled | MediaState::Withheld => {
            let lost = drop_chunk_rows(tx, media)?;
            let sql = "UPDATE media SET state = ?, chunk_count = 0, chunks_ready = 0, chunks_sending = 0, \
                chunks_sent = 0, bytes_sent = 0, bytes_resent = bytes_resent + ?, asset_id = NULL, \
                project_id = NULL, registered_at = NULL, urls_at = NULL, tries = 0, rounds = 0, final_try = 0, \
                parked_boot = NULL, not_before = 0, due = NULL, wake_at = NULL, \
                lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL, \
                hold = NULL, held_at = NULL, held_since = NULL, \
                rested_at = ? WHERE id = ?";
            change(tx, sql, &[&to.as_str(), &lost.total(), &tx.wall, &id])?;
        }
        MediaState::Parked | MediaState::Failed => {
            let vain = void_chunk_leases(tx, media.id)?;
            let boot = (to == MediaState::Parked).then_some(tx.boot);
            let sql = "UPDATE media SET state = ?, parked_boot = ?, bytes_resent = bytes_resent + ?, \
                not_before = 0, due = NULL, wake_at = NULL, \
                lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL, \
                hold = NULL, held_at = NULL, held_since = NULL, \
                rested_at = ? WHERE id = ?";
            change(tx, sql, &[&to.as_str(), &boot, &vain, &tx.wall, &id])?;
        }
        MediaState::Queued
        | MediaState::Registering
        | MediaState::Transferring
        | MediaState::Delivered => {
            return Err(QueueError::Defect(format!("{to} is not a place to rest")).into());
        }
    }
    Ok(())
}

/// What is given up with the chunks of a media.
pub(super) struct Lost {
    /// Bytes of chunks that were sent.
    pub(super) sent: i64,
    /// Bytes that were acknowledged of chunks in flight.
    pub(super) in_flight: i64,
}

impl Lost {
    fn total(&self) -> i64 {
        self.sent.saturating_add(self.in_flight)
    }
}

fn in_flight(tx: &Tx<'_>, id: MediaId) -> Done<i64> {
    let sql = "SELECT coalesce(sum(acknowledged), 0) FROM chunk INDEXED BY chunk_leased WHERE media_id = ? AND lease_token IS NOT NULL";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0], |row| row.get(0))?)
}

/// Takes the chunks that are being sent from their holders. Returns the bytes that went in vain.
fn void_chunk_leases(tx: &Tx<'_>, id: MediaId) -> Done<i64> {
    let vain = in_flight(tx, id)?;
    let sql = "UPDATE chunk INDEXED BY chunk_leased SET state = 'ready', lease_token = NULL, lease_process = NULL, lease_worker = NULL, \
        lease_until = NULL, lease_round = NULL WHERE media_id = ? AND lease_token IS NOT NULL";
    change(tx, sql, &[&id.0])?;
    Ok(vain)
}

/// Deletes the chunks; the caller sets the counters of the media in the same transaction.
fn drop_chunk_rows(tx: &Tx<'_>, media: &Media) -> Done<Lost> {
    if media.chunk_count == 0 {
        return Ok(Lost {
            sent: 0,
            in_flight: 0,
        });
    }
    let lost = Lost {
        sent: rows::number(media.bytes_sent),
        in_flight: in_flight(tx, media.id)?,
    };
    change(tx, "DELETE FROM chunk WHERE media_id = ?", &[&media.id.0])?;
    Ok(lost)
}

/// Drops the asset of a media, so that it is registered again, at the earliest at `not_before`. `tries` is the
/// number of tries of the registration from now on. `media` is the media as it is.
pub(super) fn register_again(tx: &Tx<'_>, media: &Media, tries: u32, not_before: i64) -> Done<()> {
    check_move(media, MediaState::Queued)?;
    let lost = drop_chunk_rows(tx, media)?;
    let sql = "UPDATE media SET state = 'queued', tries = ?, not_before = ?, chunk_count = 0, chunks_ready = 0, \
        chunks_sending = 0, chunks_sent = 0, bytes_sent = 0, bytes_resent = bytes_resent + ?, asset_id = NULL, \
        project_id = NULL, registered_at = NULL, urls_at = NULL, parked_boot = NULL, rested_at = NULL, due = NULL, \
        wake_at = NULL, lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL \
        WHERE id = ?";
    change(tx, sql, &[&tries, &not_before, &lost.total(), &media.id.0])?;
    if lost.sent > 0 {
        let bytes_lost = u64::try_from(lost.sent).unwrap_or(0);
        lines::write(tx, Some(media.id), &Event::RegisteredAnew { bytes_lost })?;
    }
    Ok(())
}
