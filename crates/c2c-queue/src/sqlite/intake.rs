//! Media come in, wait for their file, and go with it.

use std::path::Path;

use rusqlite::{OptionalExtension, params};

use crate::clock::Capture;
use crate::error::QueueError;
use crate::history::Event;
use crate::media::{Hold, Media, MediaId, MediaState, NewMedia, Volume};
use crate::queue::Added;
use crate::spool::Spool;

use super::rows::{self, change, path_value};
use super::{Done, Tx, lines, verdict};

/// Accepts media, those that are new.
pub(super) fn add(tx: &Tx<'_>, media: Vec<NewMedia>) -> Done<Vec<Added>> {
    media.iter().map(|new| add_one(tx, new)).collect()
}

/// The same for media that lie in a file.
pub(super) fn add_spooled(tx: &Tx<'_>, media: Spool) -> Done<Vec<Added>> {
    media.into_media()?.map(|new| add_one(tx, &new?)).collect()
}

fn add_one(tx: &Tx<'_>, new: &NewMedia) -> Done<Added> {
    check(new)?;
    if !new.again
        && let Some((id, state)) = twin(tx, new)?
    {
        return Ok(Added {
            id,
            already: Some(state),
        });
    }
    let position = tx.next_position();
    let facts = &new.facts;
    let volume = new.volume.as_ref();
    let sql = "INSERT INTO media (path, name, size, mtime_ns, device, file, volume_id, mount_point, removable, \
            filetype, capture_wall, capture_boot_id, capture_boot, capture_source, channel, priority, position, \
            parts, auto_version_id, hold, held_at, held_since, added_at, wake_at, due, lines) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, \
            ?24, ?25, ?26)";
    tx.db.prepare_cached(sql)?.execute(params![
        path_value(&new.path),
        new.name,
        rows::number(facts.size),
        facts.mtime_ns,
        facts.file_id.map(|id| id.device.cast_signed()),
        facts.file_id.map(|id| id.file.cast_signed()),
        volume.map(|volume| volume.id.as_str()),
        volume.map(|volume| path_value(&volume.mount_point)),
        volume.map(|volume| volume.removable),
        new.filetype,
        new.capture.wall.0,
        new.capture.boot_id.as_ref().map(|id| id.0.as_str()),
        new.capture.boot.map(|boot| boot.0),
        rows::capture_source_word(new.capture.source),
        new.channel,
        new.priority,
        position,
        new.parts,
        new.auto_version_id,
        new.hold.map(Hold::as_str),
        new.hold.map(|_| tx.wall),
        new.hold.map(|_| tx.now),
        tx.wall,
        new.hold.is_none().then_some(0),
        new.hold.is_none().then_some(true),
        1 + i64::from(new.hold.is_some()),
    ])?;
    let id = MediaId(tx.db.last_insert_rowid());
    lines::put(tx, Some(id), 1, &Event::Added)?;
    if let Some(hold) = new.hold {
        lines::put(tx, Some(id), 2, &Event::Held { hold })?;
    }
    Ok(Added { id, already: None })
}

fn check(new: &NewMedia) -> Done<()> {
    let path = new.path.display();
    let words = if !new.path.is_absolute() {
        format!("the path {path} is not absolute")
    } else if new.name.is_empty() {
        format!("{path} has no name for Frame.io")
    } else if i64::try_from(new.facts.size).is_err() {
        format!(
            "{path} says it has {} bytes, which no file has",
            new.facts.size
        )
    } else if let Some(words) = nonsense(&new.capture, &new.path) {
        words
    } else if new.parts == Some(0) {
        format!("{path} cannot be sent in 0 chunks")
    } else {
        return Ok(());
    };
    Err(QueueError::Invalid(words).into())
}

/// What is wrong with a moment of capture, if anything is.
pub(super) fn nonsense(capture: &Capture, path: &Path) -> Option<String> {
    (capture.boot.is_some() != capture.boot_id.is_some()).then(|| {
        format!(
            "the moment of capture of {} has a time since boot without the boot, or the reverse",
            path.display()
        )
    })
}

/// The same file, in the queue already. The number of the device is not asked: it changes with every mount and restart.
/// Another number of the file, or another volume at the same place, makes another one, as far as both are known.
fn twin(tx: &Tx<'_>, new: &NewMedia) -> Done<Option<(MediaId, MediaState)>> {
    let sql = "SELECT id, state FROM media INDEXED BY media_by_path WHERE path = ?1 AND size = ?2 AND mtime_ns = ?3 \
        AND coalesce(file = ?4, 1) AND channel = ?5 AND coalesce(volume_id = ?6, 1) AND state <> 'cancelled' ORDER BY id DESC LIMIT 1";
    let row: Option<(i64, String)> = tx
        .db
        .prepare_cached(sql)?
        .query_row(
            params![
                path_value(&new.path),
                rows::number(new.facts.size),
                new.facts.mtime_ns,
                new.facts.file_id.map(|id| id.file.cast_signed()),
                new.channel,
                new.volume.as_ref().map(|volume| volume.id.as_str()),
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(row.and_then(|(id, state)| Some((MediaId(id), MediaState::parse(&state)?))))
}

fn find(tx: &Tx<'_>, id: MediaId) -> Done<Media> {
    rows::find_media(tx, id)?.ok_or_else(|| QueueError::NoSuchMedia(id).into())
}

/// Cancels a media that cannot be sent any more.
pub(super) fn file_gone(tx: &Tx<'_>, id: MediaId, words: String) -> Done<()> {
    let media = find(tx, id)?;
    if media.state == MediaState::Cancelled {
        return Ok(());
    }
    verdict::rest(tx, &media, MediaState::Cancelled)?;
    lines::write(tx, Some(id), &Event::FileGone { words })
}

/// Sets a media aside that nobody is working on.
pub(super) fn hold(tx: &Tx<'_>, id: MediaId, hold: Hold) -> Done<()> {
    let media = find(tx, id)?;
    if media.state.is_resting() {
        let words = format!("media {id} is {} and cannot be held", media.state);
        return Err(QueueError::Invalid(words).into());
    }
    if let Some(holder) = holder(tx, id)? {
        return Err(QueueError::Busy { media: id, holder }.into());
    }
    if verdict::set_hold(tx, &media, hold)? {
        lines::write(tx, Some(id), &Event::Held { hold })?;
        verdict::settle(tx, id)?;
    }
    Ok(())
}

/// Who works on a media now.
fn holder(tx: &Tx<'_>, id: MediaId) -> Done<Option<String>> {
    let sql = "SELECT lease_process || '/' || lease_worker FROM media WHERE id = ?1 AND lease_token IS NOT NULL \
        UNION ALL SELECT lease_process || '/' || lease_worker FROM chunk \
        WHERE media_id = ?1 AND lease_token IS NOT NULL LIMIT 1";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0], |row| row.get(0))
        .optional()?)
}

/// Ends a hold of one kind, and notes where the file was found.
pub(super) fn unhold(
    tx: &Tx<'_>,
    id: MediaId,
    hold: Hold,
    found: Option<(std::path::PathBuf, Volume)>,
) -> Done<()> {
    let media = find(tx, id)?;
    if let Some((path, volume)) = found
        && media.state != MediaState::Delivered
    {
        if !path.is_absolute() {
            return Err(QueueError::Invalid(format!(
                "the path {} is not absolute",
                path.display()
            ))
            .into());
        }
        let sql =
            "UPDATE media SET path = ?, volume_id = ?, mount_point = ?, removable = ? WHERE id = ?";
        let mount = path_value(&volume.mount_point);
        change(
            tx,
            sql,
            &[
                &path_value(&path),
                &volume.id,
                &mount,
                &volume.removable,
                &id.0,
            ],
        )?;
    }
    if media.hold == Some(hold) {
        lift_hold(tx, id)?;
        lines::write(tx, Some(id), &Event::Released { hold })?;
        verdict::settle(tx, id)?;
    }
    Ok(())
}

/// Ends every hold of one kind.
pub(super) fn unhold_all(tx: &Tx<'_>, hold: Hold) -> Done<Vec<MediaId>> {
    let held = rows::ids(
        tx,
        "SELECT id FROM media WHERE hold IS NOT NULL AND hold = ? ORDER BY id",
        &[&hold.as_str()],
    )?;
    for id in &held {
        lift_hold(tx, *id)?;
        lines::write(tx, Some(*id), &Event::Released { hold })?;
        verdict::settle(tx, *id)?;
    }
    Ok(held)
}

/// Ends any hold.
pub(super) fn lift_hold(tx: &Tx<'_>, id: MediaId) -> Done<()> {
    change(
        tx,
        "UPDATE media SET hold = NULL, held_at = NULL, held_since = NULL WHERE id = ?",
        &[&id.0],
    )?;
    Ok(())
}
