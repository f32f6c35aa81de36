//! A small memory that belongs to no project.

use rusqlite::{OptionalExtension, params};

use crate::error::QueueError;

use super::rows::change;
use super::{Done, Tx};

/// Keys there is room for.
const KEYS: i64 = 64;
/// Longest key, in bytes.
const KEY: usize = 64;
/// Longest value, in bytes.
const VALUE: usize = 64 * 1024;

/// What is remembered under a key.
pub(super) fn recall(tx: &Tx<'_>, key: &str) -> Done<Option<String>> {
    let sql = "SELECT value FROM memory WHERE key = ?";
    Ok(tx
        .db
        .prepare_cached(sql)?
        .query_row(params![key], |row| row.get(0))
        .optional()?)
}

/// Remembers a value, or forgets it.
pub(super) fn remember(tx: &Tx<'_>, key: &str, value: Option<&str>) -> Done<()> {
    if key.is_empty() || key.len() > KEY {
        let words = format!(
            "a key to remember something under has 1 to {KEY} bytes, this one has {}",
            key.len()
        );
        return Err(QueueError::Invalid(words).into());
    }
    let Some(value) = value else {
        change(tx, "DELETE FROM memory WHERE key = ?", &[&key])?;
        return Ok(());
    };
    if value.len() > VALUE {
        let words = format!(
            "what is to be remembered as {key} has {} bytes, more than {VALUE}",
            value.len()
        );
        return Err(QueueError::Invalid(words).into());
    }
    let sql = "INSERT INTO memory (key, value, turn) \
        VALUES (?, ?, (SELECT coalesce(max(turn), 0) + 1 FROM memory)) \
        ON CONFLICT (key) DO UPDATE SET value = excluded.value, turn = excluded.turn";
    change(tx, sql, &[&key, &value])?;
    let sql = "DELETE FROM memory WHERE key IN \
        (SELECT key FROM memory ORDER BY turn DESC LIMIT -1 OFFSET ?)";
    change(tx, sql, &[&KEYS])?;
    Ok(())
}
