//! The connection: who we are, our tokens, and the airlock between projects.

use std::time::Duration;

use rusqlite::{Connection as Db, OptionalExtension, params};
use secrecy::ExposeSecret;

use crate::clock::{BootId, WallTime};
use crate::connection::{Airlock, Connection, Identity, RefreshState, Tokens};
use crate::error::QueueError;
use crate::history::Event;
use crate::media::MediaState;
use crate::vault::Vault;

use super::rows::{self, change, ids};
use super::{Done, Tx, lines, verdict};

const ACCESS: &str = "access token";
const REFRESH: &str = "refresh token";
const ROW: &str = "connection";

/// A word sealed at the first start, to tell whether the key is still the same.
const KEY: &str = "key";
const KEY_ROW: &str = "check";
const KEY_WORD: &str = "c2c-queue";

/// Boots whose server time is remembered; older media are dated by the wall clock.
const ANCHORS: i64 = 1000;

/// Seals the known word, once.
pub(super) fn ensure_key_check(db: &Db, vault: &Vault) -> Done<()> {
    let missing: bool =
        db.query_row("SELECT key_check IS NULL FROM store", [], |row| row.get(0))?;
    if missing {
        db.execute(
            "UPDATE store SET key_check = ?",
            [vault.seal(KEY, KEY_ROW, KEY_WORD)?],
        )?;
    }
    Ok(())
}

/// What is stored of the connection.
pub(super) fn connection(tx: &Tx<'_>) -> Done<Connection> {
    let sql = "SELECT identity, access, refresh, expires_in_ms, stored, tokens_stored_at, refreshing, lost \
        FROM connection";
    let mut statement = tx.db.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let row = rows
        .next()?
        .ok_or_else(|| QueueError::Defect("the connection has no row".to_owned()))?;
    let identity: Option<String> = row.get(0)?;
    let (access, refresh): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(1)?, row.get(2)?);
    let (expires, stored): (Option<i64>, Option<i64>) = (row.get(3)?, row.get(4)?);
    let refreshing: bool = row.get(6)?;
    let tokens = match (access, refresh, tx.vault) {
        (Some(access), Some(refresh), Some(vault)) => Some(Tokens {
            access: vault.open(ACCESS, ROW, &access)?,
            refresh: vault.open(REFRESH, ROW, &refresh)?,
            expires_in_ms: expires
                .and_then(|expires| u64::try_from(expires).ok())
                .unwrap_or(0),
        }),
        _ => None,
    };
    Ok(Connection {
        identity: identity
            .map(|text| serde_json::from_str(&text))
            .transpose()?,
        tokens,
        tokens_age_ms: stored
            .and_then(|stored| u64::try_from(tx.now - stored).ok())
            .unwrap_or(0),
        tokens_stored_at: row.get::<_, Option<i64>>(5)?.map(WallTime),
        refresh: if refreshing {
            RefreshState::InFlight
        } else {
            RefreshState::Settled
        },
        lost: row.get(7)?,
    })
}

/// The client id, stored at the first call.
pub(super) fn client_id(tx: &Tx<'_>, proposed: String) -> Done<String> {
    let stored: Option<String> = tx
        .db
        .prepare_cached("SELECT client_id FROM store")?
        .query_row([], |row| row.get(0))?;
    if let Some(stored) = stored {
        return Ok(stored);
    }
    change(tx, "UPDATE store SET client_id = ?", &[&proposed])?;
    Ok(proposed)
}

/// Stores a token pair.
pub(super) fn store_tokens(tx: &Tx<'_>, tokens: &Tokens) -> Done<()> {
    adopt_key(tx)?;
    let access = tx
        .vault()?
        .seal(ACCESS, ROW, tokens.access.expose_secret())?;
    let refresh = tx
        .vault()?
        .seal(REFRESH, ROW, tokens.refresh.expose_secret())?;
    let sql = "UPDATE connection SET announce = max(announce, access IS NULL), access = ?, refresh = ?, \
        expires_in_ms = ?, stored = ?, tokens_stored_at = ?, refreshing = 0, lost = NULL";
    change(
        tx,
        sql,
        &[
            &access,
            &refresh,
            &rows::number(tokens.expires_in_ms),
            &tx.now,
            &tx.wall,
        ],
    )?;
    Ok(())
}

/// After a new pairing with another key: what the lost key had sealed is given up, and every media that was
/// registered gets fresh upload URLs. With the same key as ever this does nothing.
fn adopt_key(tx: &Tx<'_>) -> Done<()> {
    let vault = tx.vault()?;
    let check: Vec<u8> = tx
        .db
        .prepare_cached("SELECT key_check FROM store")?
        .query_row([], |row| row.get(0))?;
    match vault.open(KEY, KEY_ROW, &check) {
        Ok(_) => return Ok(()),
        Err(QueueError::Sealed { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    let registered = "SELECT id FROM media WHERE state IN ('transferring', 'parked', 'failed') AND chunk_count > 0";
    for id in ids(tx, registered, &[])? {
        let media = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
        if media.state == MediaState::Transferring {
            verdict::register_again(tx, &media, 0, tx.after(Duration::ZERO))?;
        } else {
            // It rests on; a retry begins anew.
            let state = media.state;
            verdict::register_again(tx, &media, 0, 0)?;
            let queued = rows::find_media(tx, id)?.ok_or(QueueError::NoSuchMedia(id))?;
            verdict::rest(tx, &queued, state)?;
        }
        verdict::settle(tx, id)?;
    }
    change(
        tx,
        "UPDATE connection SET access = NULL, refresh = NULL, expires_in_ms = NULL, stored = NULL, \
        tokens_stored_at = NULL",
        &[],
    )?;
    change(
        tx,
        "UPDATE store SET key_check = ?",
        &[&vault.seal(KEY, KEY_ROW, KEY_WORD)?],
    )?;
    Ok(())
}

/// Notes that the refresh token is about to be spent, or was not spent after all.
pub(super) fn set_refreshing(tx: &Tx<'_>, refreshing: bool) -> Done<()> {
    change(tx, "UPDATE connection SET refreshing = ?", &[&refreshing])?;
    Ok(())
}

/// Forgets the tokens and says why.
pub(super) fn forget_tokens(tx: &Tx<'_>, words: String) -> Done<()> {
    let sql = "UPDATE connection SET access = NULL, refresh = NULL, expires_in_ms = NULL, stored = NULL, \
        tokens_stored_at = NULL, refreshing = 0, lost = ?";
    change(tx, sql, &[&words])?;
    lines::write(tx, None, &Event::AuthorizationLost { words })
}

/// Stores who we are; another project empties the queue.
pub(super) fn store_identity(tx: &Tx<'_>, identity: &Identity) -> Done<Airlock> {
    let sql = "SELECT identity, announce FROM connection";
    let (before, announce): (Option<String>, bool) = tx
        .db
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let before: Option<Identity> = before.map(|text| serde_json::from_str(&text)).transpose()?;
    let airlock = match &before {
        None => Airlock::First,
        Some(before) if before.project_id == identity.project_id => Airlock::SameProject,
        Some(_) => Airlock::Changed {
            cleared: clear(tx)?,
        },
    };
    let sql = "UPDATE connection SET identity = ?, announce = 0";
    change(tx, sql, &[&serde_json::to_string(identity)?])?;
    if let (Some(before), Airlock::Changed { cleared }) = (&before, &airlock) {
        let (from, to) = (before.project_id.clone(), identity.project_id.clone());
        lines::write(
            tx,
            None,
            &Event::ProjectChanged {
                from,
                to,
                cleared: *cleared,
            },
        )?;
    }
    if announce || airlock != Airlock::SameProject {
        lines::write(
            tx,
            None,
            &Event::Paired {
                project_id: identity.project_id.clone(),
            },
        )?;
    }
    Ok(airlock)
}

/// Removes every media, chunk and lease. Ids and tokens are never used again, so no late report finds anything.
fn clear(tx: &Tx<'_>) -> Done<u64> {
    change(tx, "DELETE FROM chunk", &[])?;
    change(tx, "DELETE FROM history WHERE media_id IS NOT NULL", &[])?;
    let cleared = change(tx, "DELETE FROM media", &[])?;
    Ok(cleared as u64)
}

/// Stores the server time at the start of a boot.
pub(super) fn store_anchor(tx: &Tx<'_>, boot: &BootId, server_epoch_ms: i64) -> Done<()> {
    let sql = "INSERT INTO anchor (boot_id, server_epoch_ms) VALUES (?, ?) \
        ON CONFLICT (boot_id) DO UPDATE SET server_epoch_ms = excluded.server_epoch_ms";
    change(tx, sql, &[&boot.0, &server_epoch_ms])?;
    change(
        tx,
        "DELETE FROM anchor WHERE id <= (SELECT max(id) FROM anchor) - ?",
        &[&ANCHORS],
    )?;
    Ok(())
}

/// The server time at the start of a boot.
pub(super) fn anchor(tx: &Tx<'_>, boot: &BootId) -> Done<Option<i64>> {
    let sql = "SELECT server_epoch_ms FROM anchor WHERE boot_id = ?";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .query_row(params![boot.0], |row| row.get(0))
        .optional()?)
}

/// The latest server time at the start of any boot.
pub(super) fn latest_anchor(tx: &Tx<'_>) -> Done<Option<i64>> {
    let sql = "SELECT max(server_epoch_ms) FROM anchor";
    Ok(tx.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}
