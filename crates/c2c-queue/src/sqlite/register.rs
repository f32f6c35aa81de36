//! Registration: the asset exists, or it does not.

use rusqlite::params;

use crate::clock::Capture;
use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{FileFacts, MediaId, MediaState};
use crate::queue::{Lease, NewAsset, Outcome, Setback, Verdict};

use super::rows::{self, change};
use super::{Done, Tx, claim, intake, leases, lines, verdict};

/// Stores the asset with all its chunks.
pub(super) fn asset_created(tx: &Tx<'_>, lease: &Lease, asset: &NewAsset) -> Done<()> {
    let (id, size) = leases::registration_size(tx, lease)?;
    let count = check(id, size, asset)?;
    let sql = "INSERT INTO chunk (media_id, number, start, length, url) VALUES (?, ?, ?, ?, ?)";
    let mut insert = tx.db.prepare_cached(sql)?;
    for (number, chunk) in (0u32..).zip(&asset.chunks) {
        let url = secrecy::ExposeSecret::expose_secret(&chunk.url);
        let sealed = tx
            .vault()?
            .seal(claim::URL, &claim::url_row(id, number), url)?;
        insert.execute(params![
            id.0,
            number,
            rows::number(chunk.start),
            rows::number(chunk.length),
            sealed
        ])?;
    }
    let sql = "UPDATE media SET state = 'transferring', asset_id = ?, project_id = ?, registered_at = ?, \
        urls_at = ?, registrations = registrations + 1, last_fault = NULL, chunk_count = ?5, chunks_ready = ?5, not_before = 0, \
        tries = max(0, tries - 1), wake_at = iif(hold IS NULL, 0, NULL), due = iif(hold IS NULL, 1, NULL), \
        lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL, lines = lines + 1 \
        WHERE id = ?6";
    change(
        tx,
        sql,
        &[
            &asset.asset_id,
            &asset.project_id,
            &tx.wall,
            &tx.now,
            &count,
            &id.0,
        ],
    )?;
    let event = Event::Registered {
        asset_id: asset.asset_id.clone(),
        chunks: count,
        offset: asset.offset,
    };
    lines::put(tx, Some(id), lines::count(tx, id)?, &event)
}

/// The chunks must cover the file exactly once: anything else would deliver another file.
fn check(id: MediaId, size: u64, asset: &NewAsset) -> Done<u32> {
    let invalid = |words: String| {
        Err(QueueError::Invalid(format!("the asset for media {id}: {words}")).into())
    };
    let mut next = 0u64;
    for chunk in &asset.chunks {
        if chunk.start != next {
            return invalid(format!(
                "a chunk begins at byte {}, expected was {next}",
                chunk.start
            ));
        }
        if chunk.length == 0 && size > 0 {
            return invalid(format!("the chunk at byte {next} is empty"));
        }
        next = next.saturating_add(chunk.length);
    }
    if asset.chunks.is_empty() || next != size || (size == 0 && asset.chunks.len() != 1) {
        return invalid(format!(
            "{} chunks cover {next} bytes of a file of {size}",
            asset.chunks.len()
        ));
    }
    if asset.asset_id.is_empty() {
        return invalid("it has no id".to_owned());
    }
    match u32::try_from(asset.chunks.len()) {
        Ok(count) => Ok(count),
        Err(_) => invalid("there are too many chunks".to_owned()),
    }
}

/// Applies the verdict on a registration that did not succeed.
pub(super) fn failed(tx: &Tx<'_>, lease: &Lease, setback: &Setback) -> Done<Outcome> {
    let media = leases::registration(tx, lease)?;
    let id = media.id;
    verdict::note(tx, id, Operation::Register, None, setback)?;
    match &setback.verdict {
        Verdict::Again { after, counted } | Verdict::RegisterAgain { after, counted } => {
            leases::return_registration(tx, id, tx.after(*after), !counted)?;
        }
        Verdict::NextRound { after } => {
            leases::return_registration(tx, id, 0, false)?;
            verdict::next_round(tx, id, tx.after(*after))?;
        }
        Verdict::Hold(hold) => {
            leases::return_registration(tx, id, 0, true)?;
            if verdict::set_hold(tx, &media, *hold)? {
                lines::write(tx, Some(id), &Event::Held { hold: *hold })?;
            }
        }
        Verdict::Park => verdict::rest(tx, &media, MediaState::Parked)?,
        Verdict::Withhold => verdict::rest(tx, &media, MediaState::Withheld)?,
        Verdict::Fail => verdict::rest(tx, &media, MediaState::Failed)?,
        Verdict::Cancel => verdict::rest(tx, &media, MediaState::Cancelled)?,
    }
    verdict::settle(tx, id)?;
    verdict::outcome(tx, id)
}

/// Stores what the file is now; the registration goes on with it.
pub(super) fn file_changed(
    tx: &Tx<'_>,
    lease: &Lease,
    facts: &FileFacts,
    capture: Option<&Capture>,
    words: String,
) -> Done<()> {
    let media = leases::registration(tx, lease)?;
    if i64::try_from(facts.size).is_err() {
        let words = format!(
            "{} says it has {} bytes, which no file has",
            media.path.display(),
            facts.size
        );
        return Err(QueueError::Invalid(words).into());
    }
    if let Some(words) = capture.and_then(|capture| intake::nonsense(capture, &media.path)) {
        return Err(QueueError::Invalid(words).into());
    }
    let sql = "UPDATE media SET size = ?, mtime_ns = ?, device = ?, file = ? WHERE id = ?";
    let device = facts.file_id.map(|id| id.device.cast_signed());
    let file = facts.file_id.map(|id| id.file.cast_signed());
    change(
        tx,
        sql,
        &[
            &rows::number(facts.size),
            &facts.mtime_ns,
            &device,
            &file,
            &media.id.0,
        ],
    )?;
    if let Some(capture) = capture {
        let sql = "UPDATE media SET capture_wall = ?, capture_boot_id = ?, capture_boot = ?, capture_source = ?, \
            capture_accepted = 0 WHERE id = ?";
        change(
            tx,
            sql,
            &[
                &capture.wall.0,
                &capture.boot_id.as_ref().map(|boot| boot.0.clone()),
                &capture.boot.map(|boot| boot.0),
                &rows::capture_source_word(capture.source),
                &media.id.0,
            ],
        )?;
    }
    lines::write(tx, Some(media.id), &Event::FileChanged { words })
}
