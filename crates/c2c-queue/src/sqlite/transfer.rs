//! Chunks arrive, or do not; the last one makes the receipt.

use rusqlite::{OptionalExtension, params};

use crate::clock::WallTime;
use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{Media, MediaId, MediaState};
use crate::queue::{ChunkProof, Lease, Outcome, Sent, Setback, Verdict};
use crate::receipt::{Receipt, ReceiptChunk};

use super::leases::{self, HeldChunk};
use super::rows::{self, change};
use super::{Done, Tx, lines, verdict};

/// Records a chunk as sent; the last one delivers the media.
pub(super) fn sent(tx: &Tx<'_>, lease: &Lease, proof: &ChunkProof) -> Done<Sent> {
    let HeldChunk {
        media,
        number,
        length,
        ..
    } = leases::chunk(tx, lease)?;
    let id = media.id;
    if verified(proof.etag.as_deref(), proof.md5.as_deref()) == Some(false) {
        let words =
            format!("chunk {number} of media {id} arrived damaged: its ETag is not its MD5");
        return Err(QueueError::Invalid(words).into());
    }
    let left = media.chunk_count.saturating_sub(media.chunks_sent + 1);
    if left == 0 {
        let receipt = Some(Box::new(deliver(tx, &media, number, length, proof)?));
        return Ok(Sent { left, receipt });
    }
    let sql = "UPDATE chunk SET state = 'sent', sent_at = ?, etag = ?, md5 = ?, crc64nvme = ?, acknowledged = ?, not_before = 0, \
        url = NULL, lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL, \
        lease_round = NULL WHERE media_id = ? AND number = ?";
    change(
        tx,
        sql,
        &[
            &tx.wall,
            &proof.etag,
            &proof.md5,
            &proof.crc64nvme.map(u64::cast_signed),
            &rows::number(length),
            &id.0,
            &number,
        ],
    )?;
    change(
        tx,
        "UPDATE media SET tries = 0, rounds = 0, final_try = 0, last_fault = NULL WHERE id = ?",
        &[&id.0],
    )?;
    verdict::settle(tx, id)?;
    Ok(Sent {
        left,
        receipt: None,
    })
}

/// Writes the receipt and lets go of the chunks: a delivered media costs one row and its receipt. `last` is the chunk that
/// just arrived, with its proof; it is recorded in the receipt alone.
fn deliver(
    tx: &Tx<'_>,
    media: &Media,
    last: u32,
    length: u64,
    proof: &ChunkProof,
) -> Done<Receipt> {
    verdict::check_move(media, MediaState::Delivered)?;
    let receipt = receipt(tx, media, last, proof)?;
    change(tx, "DELETE FROM chunk WHERE media_id = ?", &[&media.id.0])?;
    let sql = "UPDATE media SET state = 'delivered', hold = NULL, held_at = NULL, held_since = NULL, not_before = 0, \
        parked_boot = NULL, due = NULL, wake_at = NULL, rested_at = ?, tries = 0, rounds = 0, final_try = 0, \
        last_fault = NULL, chunks_sending = chunks_sending - 1, chunks_sent = chunks_sent + 1, \
        bytes_sent = bytes_sent + ?, lines = lines + 1 WHERE id = ?";
    change(tx, sql, &[&tx.wall, &rows::number(length), &media.id.0])?;
    let line = lines::count(tx, media.id)?;
    let sql = "INSERT INTO receipt (media_id, project_id, delivered_at, body) VALUES (?, ?, ?, ?)";
    let body = serde_json::to_string(&receipt)?;
    change(
        tx,
        sql,
        &[&media.id.0, &receipt.project_id, &tx.wall, &body],
    )?;
    lines::put(tx, Some(media.id), line, &Event::Delivered)?;
    Ok(receipt)
}

fn receipt(tx: &Tx<'_>, media: &Media, last: u32, proof: &ChunkProof) -> Done<Receipt> {
    let sql = "SELECT number, start, length, etag, md5, tries_total, sent_at, crc64nvme FROM chunk WHERE media_id = ? \
        ORDER BY number";
    let mut statement = tx.db.prepare_cached(sql)?;
    let mut whole = Some(0);
    let chunks = statement.query_map(params![media.id.0], |row| {
        let number = row.get(0)?;
        let length = row.get::<_, i64>(2)?.cast_unsigned();
        let (etag, md5, crc, sent_at) = if number == last {
            let ChunkProof {
                etag,
                md5,
                crc64nvme,
            } = proof.clone();
            (etag, md5, crc64nvme, tx.wall)
        } else {
            let crc: Option<i64> = row.get(7)?;
            let crc = crc.map(i64::cast_unsigned);
            (row.get(3)?, row.get(4)?, crc, row.get(6)?)
        };
        whole = whole
            .zip(crc)
            .map(|(whole, crc)| c2c_digest::combine(whole, crc, length));
        Ok(ReceiptChunk {
            number,
            start: row.get::<_, i64>(1)?.cast_unsigned(),
            length,
            verified: verified(etag.as_deref(), md5.as_deref()),
            etag,
            md5,
            tries: row.get(5)?,
            sent_at: WallTime(sent_at),
        })
    })?;
    let chunks = chunks.collect::<rusqlite::Result<Vec<_>>>()?;
    let incomplete = || QueueError::Defect(format!("media {} was sent without an asset", media.id));
    Ok(Receipt {
        version: 1,
        media: media.id,
        name: media.name.clone(),
        path: media.path.display().to_string(),
        filetype: media.filetype.clone(),
        size: media.facts.size,
        asset_id: media.asset_id.clone().ok_or_else(incomplete)?,
        project_id: media.project_id.clone().ok_or_else(incomplete)?,
        capture: media.capture.clone(),
        added_at: media.added_at,
        registered_at: media.registered_at.ok_or_else(incomplete)?,
        delivered_at: WallTime(tx.wall),
        tries: media.tries_total,
        registrations: media.registrations,
        possible_duplicates: media.possible_duplicates,
        bytes_resent: media.bytes_resent,
        chunks,
        crc64nvme: whole.map(c2c_digest::to_base64),
        sha256: None,
        unsealed: None,
    })
}

/// Whether the ETag proves the bytes; `None` if it says nothing about them.
fn verified(etag: Option<&str>, md5: Option<&str>) -> Option<bool> {
    let (etag, md5) = (etag?, md5?);
    let is_md5 = etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_md5.then(|| etag.eq_ignore_ascii_case(md5))
}

/// Applies the verdict on a chunk that did not arrive.
pub(super) fn failed(tx: &Tx<'_>, lease: &Lease, setback: &Setback) -> Done<Outcome> {
    let HeldChunk {
        media,
        number,
        this_round,
        ..
    } = leases::chunk(tx, lease)?;
    let id = media.id;
    verdict::note(tx, id, Operation::Transfer, Some(number), setback)?;
    // Before the media moves: this holder has reported, so nothing of its chunk is in flight any more.
    let (wait, give_back) = match &setback.verdict {
        Verdict::Again { after, counted } => (tx.after(*after), !counted),
        Verdict::NextRound { after } => (tx.after(*after), false),
        Verdict::Hold(_) => (0, true),
        _ => (0, false),
    };
    leases::return_chunk(tx, id, number, wait, give_back)?;
    match &setback.verdict {
        Verdict::Again { .. } => {}
        // Several chunks of one media may fail in the same round; they use it up once.
        Verdict::NextRound { .. } if this_round => verdict::next_round(tx, id, wait)?,
        Verdict::NextRound { .. } => {
            let sql = "UPDATE media SET not_before = max(not_before, ?), due = NULL, wake_at = NULL WHERE id = ?";
            change(tx, sql, &[&wait, &id.0])?;
            change(
                tx,
                "UPDATE chunk SET tries = 0 WHERE media_id = ? AND number = ?",
                &[&id.0, &number],
            )?;
        }
        Verdict::RegisterAgain { after, counted } => {
            verdict::register_again(
                tx,
                &media,
                media.tries + u32::from(*counted),
                tx.after(*after),
            )?;
        }
        Verdict::Hold(hold) => {
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

/// Completes a receipt.
pub(super) fn seal_receipt(tx: &Tx<'_>, id: MediaId, sha256: Result<String, String>) -> Done<()> {
    let sql = "SELECT body FROM receipt WHERE media_id = ?";
    let body: Option<String> = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![id.0], |row| row.get(0))
        .optional()?;
    let body = body.ok_or(QueueError::NoSuchMedia(id))?;
    let mut receipt: Receipt = serde_json::from_str(&body)?;
    match sha256 {
        Ok(digest) => {
            receipt.sha256 = Some(digest);
            receipt.unsealed = None;
        }
        // A digest that is known is not given up again.
        Err(words) if receipt.sha256.is_none() => receipt.unsealed = Some(words),
        Err(_) => return Ok(()),
    }
    let sql = "UPDATE receipt SET sealed = 1, body = ? WHERE media_id = ?";
    change(tx, sql, &[&serde_json::to_string(&receipt)?, &id.0])?;
    // The media may be gone with its project; the receipt is not.
    if rows::find_media(tx, id)?.is_some() {
        lines::write(tx, Some(id), &Event::ReceiptSealed)?;
    }
    Ok(())
}
