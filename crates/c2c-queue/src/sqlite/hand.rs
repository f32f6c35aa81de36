//! What a person asks for, and the one more try after a restart.

use std::collections::BTreeSet;

use rusqlite::params;

use crate::error::QueueError;
use crate::history::Event;
use crate::media::{Hold, Media, MediaId, MediaState};
use crate::queue::{ByHand, Selection};

use super::rows::{self, change, ids};
use super::{Done, Tx, intake, lines, verdict};

/// Does it to every selected media that it applies to.
pub(super) fn by_hand(tx: &Tx<'_>, selection: &Selection, action: ByHand) -> Done<Vec<MediaId>> {
    let explicit = matches!(selection, Selection::Ids(_));
    let mut done = Vec::new();
    for id in selected(tx, selection)? {
        let media = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
        let applied = match action {
            ByHand::Retry if media.state == MediaState::Delivered => {
                refuse(&media, MediaState::Queued, explicit)?
            }
            ByHand::Cancel if media.state == MediaState::Delivered => {
                refuse(&media, MediaState::Cancelled, explicit)?
            }
            ByHand::Retry => retry(tx, &media)?,
            ByHand::Cancel if media.state == MediaState::Cancelled => false,
            ByHand::Cancel => {
                verdict::rest(tx, &media, MediaState::Cancelled)?;
                true
            }
            ByHand::Prioritize(priority) => prioritize(tx, &media, priority)?,
            ByHand::Hold => {
                !media.state.is_resting() && verdict::set_hold(tx, &media, Hold::ByHand)?
            }
            ByHand::Release => release(tx, &media)?,
        };
        if applied {
            verdict::settle(tx, id)?;
            lines::write(
                tx,
                Some(id),
                &Event::ByHand {
                    action: action.as_str().to_owned(),
                },
            )?;
            done.push(id);
        }
    }
    Ok(done)
}

/// Named explicitly, a delivered media is a mistake to be told; among many it is passed over.
fn refuse(media: &Media, to: MediaState, explicit: bool) -> Done<bool> {
    if explicit {
        return Err(QueueError::IllegalMove {
            media: media.id,
            from: media.state,
            to,
        }
        .into());
    }
    Ok(false)
}

fn selected(tx: &Tx<'_>, selection: &Selection) -> Done<Vec<MediaId>> {
    match selection {
        Selection::Ids(ids) => Ok(BTreeSet::from_iter(ids.iter().copied())
            .into_iter()
            .collect()),
        Selection::State(state) => ids(
            tx,
            "SELECT id FROM media WHERE state = ? ORDER BY id",
            &[&state.as_str()],
        ),
        Selection::Held => ids(
            tx,
            "SELECT id FROM media WHERE hold IS NOT NULL ORDER BY id",
            &[],
        ),
        Selection::All => ids(tx, "SELECT id FROM media ORDER BY id", &[]),
    }
}

fn release(tx: &Tx<'_>, media: &Media) -> Done<bool> {
    let Some(hold) = media.hold else {
        return Ok(false);
    };
    intake::lift_hold(tx, media.id)?;
    if hold == Hold::CaptureTimeUnknown {
        change(
            tx,
            "UPDATE media SET capture_accepted = 1 WHERE id = ?",
            &[&media.id.0],
        )?;
    }
    Ok(true)
}

/// What a retry ends: to send in a pause, or against a person's word, is not what it asks for.
fn lifted_by_retry(hold: Hold) -> bool {
    match hold {
        Hold::VolumeAway | Hold::FileChanging => true,
        Hold::ByHand | Hold::CaptureTimeUnknown | Hold::ChannelPaused => false,
    }
}

fn prioritize(tx: &Tx<'_>, media: &Media, priority: i32) -> Done<bool> {
    if matches!(media.state, MediaState::Delivered | MediaState::Cancelled) {
        return Ok(false);
    }
    change(
        tx,
        "UPDATE media SET priority = ? WHERE id = ?",
        &[&priority, &media.id.0],
    )?;
    Ok(true)
}

fn retry(tx: &Tx<'_>, media: &Media) -> Done<bool> {
    let applies = match media.state {
        MediaState::Parked | MediaState::Failed | MediaState::Withheld => true,
        // Cancelled and added again since: it is in the queue, once is enough.
        MediaState::Cancelled => !has_twin(tx, media.id)?,
        MediaState::Queued | MediaState::Registering | MediaState::Transferring => {
            waits(tx, media)?
        }
        MediaState::Delivered => false,
    };
    if !applies {
        return Ok(false);
    }
    if media.state.is_resting() {
        wake_up(tx, media, false)?;
    }
    let sql = "UPDATE media SET tries = 0, rounds = 0, final_try = 0, not_before = 0, \
        registrations_before = registrations WHERE id = ?";
    change(tx, sql, &[&media.id.0])?;
    verdict::fresh_chunk_tries(tx, media.id)?;
    let sql =
        "UPDATE chunk SET not_before = 0 WHERE media_id = ? AND state = 'ready' AND not_before > 0";
    change(tx, sql, &[&media.id.0])?;
    if media.hold.is_some_and(lifted_by_retry) {
        intake::lift_hold(tx, media.id)?;
    }
    Ok(true)
}

/// Back to where a resting media left off: to its chunks if it has any.
fn wake_up(tx: &Tx<'_>, media: &Media, final_try: bool) -> Done<()> {
    let to = if media.chunk_count > 0 {
        MediaState::Transferring
    } else {
        MediaState::Queued
    };
    verdict::check_move(media, to)?;
    let sql = "UPDATE media SET state = ?, tries = 0, final_try = ?, not_before = 0, parked_boot = NULL, \
        rested_at = NULL, due = NULL, wake_at = NULL WHERE id = ?";
    change(tx, sql, &[&to.as_str(), &final_try, &media.id.0])?;
    if to == MediaState::Queued {
        // An asset without chunks to send is of no use.
        let sql = "UPDATE media SET asset_id = NULL, project_id = NULL, registered_at = NULL, urls_at = NULL \
            WHERE id = ? AND asset_id IS NOT NULL";
        change(tx, sql, &[&media.id.0])?;
    }
    Ok(())
}

/// Whether anything but a worker is missing.
fn waits(tx: &Tx<'_>, media: &Media) -> Done<bool> {
    if media.due_in_ms.is_some() || media.hold.is_some_and(lifted_by_retry) {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM chunk WHERE media_id = ? AND state = 'ready' AND not_before > ?";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .exists(params![media.id.0, tx.now])?)
}

/// The same file is in the queue under another name, by the rules of intake.
fn has_twin(tx: &Tx<'_>, id: MediaId) -> Done<bool> {
    let sql = "SELECT 1 FROM media AS mine JOIN media AS other ON other.path = mine.path \
            AND other.size = mine.size AND other.mtime_ns = mine.mtime_ns AND other.channel = mine.channel \
            AND coalesce(other.file = mine.file, 1) AND coalesce(other.volume_id = mine.volume_id, 1) \
        WHERE mine.id = ? AND other.id <> mine.id AND other.state <> 'cancelled'";
    Ok(tx.db.prepare_cached(sql)?.exists(params![id.0])?)
}

/// Gives media that were parked in an earlier run of the system one more try, once.
pub(super) fn grant_restart_tries(tx: &Tx<'_>, boot: &str) -> Done<Vec<MediaId>> {
    let sql = "SELECT id FROM media WHERE state = 'parked' AND parked_boot <> ? AND final_try = 0 ORDER BY id";
    let granted = ids(tx, sql, &[&boot])?;
    for id in &granted {
        let media = rows::find_media(tx, *id)?.ok_or(QueueError::NoSuchMedia(*id))?;
        wake_up(tx, &media, true)?;
        verdict::fresh_chunk_tries(tx, *id)?;
        let sql = "UPDATE chunk SET not_before = 0 WHERE media_id = ? AND state = 'ready' AND not_before > 0";
        change(tx, sql, &[&id.0])?;
        verdict::settle(tx, *id)?;
        lines::write(tx, Some(*id), &Event::RestartTry)?;
    }
    Ok(granted)
}
