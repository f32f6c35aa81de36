//! Rows as the types of the crate, and back.

use std::path::{Path, PathBuf};

use rusqlite::types::{FromSql, Type, Value, ValueRef};
use rusqlite::{OptionalExtension, Row, ToSql, params};

use crate::clock::{BootId, BootTime, Capture, CaptureSource, WallTime};
use crate::host;
use crate::media::{
    Chunk, ChunkState, FileFacts, FileId, Hold, Media, MediaId, MediaState, Volume,
};

use super::{Done, Tx};

/// The columns of a media in the order in which [`media`] reads them: [`MEDIA_COLUMNS`] columns.
macro_rules! media_columns {
    () => {
        "id, path, name, size, mtime_ns, device, file, volume_id, mount_point, removable, filetype, capture_wall, \
        capture_boot_id, capture_boot, capture_source, capture_accepted, channel, priority, position, parts, \
        auto_version_id, state, hold, held_at, held_since, tries, rounds, tries_total, final_try, not_before, asset_id, \
        project_id, registered_at, registrations, registrations - registrations_before, possible_duplicates, chunk_count, \
        chunks_sent, bytes_sent, bytes_resent, last_fault, added_at, rested_at"
    };
}

/// The columns of a chunk in the order in which [`chunk`] reads them: [`CHUNK_COLUMNS`] columns.
macro_rules! chunk_columns {
    () => {
        "number, start, length, state, tries, tries_total, acknowledged, not_before, etag, md5, sent_at"
    };
}

pub(super) use {chunk_columns, media_columns};

/// How many columns a media has; what a statement asks for besides comes after them.
pub(super) const MEDIA_COLUMNS: usize = 43;

/// How many columns a chunk has.
pub(super) const CHUNK_COLUMNS: usize = 11;

/// Reads columns one after the other.
struct Columns<'r, 's> {
    row: &'r Row<'s>,
    next: usize,
}

impl Columns<'_, '_> {
    fn get<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        let column = self.next;
        self.next += 1;
        self.row.get(column)
    }

    /// A count or a size; the schema keeps it from being negative.
    fn count<T: TryFrom<i64>>(&mut self) -> rusqlite::Result<T> {
        let column = self.next;
        let value: i64 = self.get()?;
        T::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
    }

    fn optional_count<T: TryFrom<i64>>(&mut self) -> rusqlite::Result<Option<T>> {
        let column = self.next;
        let value: Option<i64> = self.get()?;
        value
            .map(|value| {
                T::try_from(value)
                    .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
            })
            .transpose()
    }

    fn path(&mut self) -> rusqlite::Result<Option<PathBuf>> {
        let column = self.next;
        self.next += 1;
        match self.row.get_ref(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(text) => {
                let text = std::str::from_utf8(text).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
                })?;
                Ok(Some(PathBuf::from(text)))
            }
            ValueRef::Blob(bytes) => Ok(Some(host::path_from_bytes(bytes))),
            other => Err(unknown(column, &format!("{:?}", other.data_type()))),
        }
    }

    fn word<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> rusqlite::Result<T> {
        let column = self.next;
        let word: String = self.get()?;
        parse(&word).ok_or_else(|| unknown(column, &word))
    }

    fn optional_word<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> rusqlite::Result<Option<T>> {
        let column = self.next;
        let word: Option<String> = self.get()?;
        word.map(|word| parse(&word).ok_or_else(|| unknown(column, &word)))
            .transpose()
    }

    fn time(&mut self) -> rusqlite::Result<WallTime> {
        self.get().map(WallTime)
    }

    fn optional_time(&mut self) -> rusqlite::Result<Option<WallTime>> {
        Ok(self.get::<Option<i64>>()?.map(WallTime))
    }
}

fn unknown(column: usize, word: &str) -> rusqlite::Error {
    let words = format!("`{word}` is no word of this format");
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, words.into())
}

/// Milliseconds until `not_before`, if that is still to come.
fn due_in(not_before: i64, now: i64) -> Option<u64> {
    u64::try_from(not_before.saturating_sub(now))
        .ok()
        .filter(|wait| *wait > 0)
}

/// The media in a row that was selected with `media_columns!`.
pub(super) fn media(row: &Row<'_>, now: i64) -> rusqlite::Result<Media> {
    let mut columns = Columns { row, next: 0 };
    let c = &mut columns;
    let id = MediaId(c.get()?);
    let path = c.path()?.unwrap_or_default();
    let name = c.get()?;
    let size = c.count()?;
    let mtime_ns = c.get()?;
    let (device, file): (Option<i64>, Option<i64>) = (c.get()?, c.get()?);
    let file_id = device.zip(file).map(|(device, file)| FileId {
        device: device.cast_unsigned(),
        file: file.cast_unsigned(),
    });
    let (volume_id, mount_point, removable): (Option<String>, _, Option<bool>) =
        (c.get()?, c.path()?, c.get()?);
    let volume = match (volume_id, mount_point, removable) {
        (Some(id), Some(mount_point), Some(removable)) => Some(Volume {
            id,
            mount_point,
            removable,
        }),
        _ => None,
    };
    Ok(Media {
        id,
        path,
        name,
        facts: FileFacts {
            size,
            mtime_ns,
            file_id,
        },
        volume,
        filetype: c.get()?,
        capture: Capture {
            wall: c.time()?,
            boot_id: c.get::<Option<String>>()?.map(BootId),
            boot: c.get::<Option<i64>>()?.map(BootTime),
            source: c.word(capture_source)?,
        },
        capture_accepted: c.get()?,
        channel: c.count()?,
        priority: c.get()?,
        position: c.get()?,
        parts: c.optional_count()?,
        auto_version_id: c.get()?,
        state: c.word(MediaState::parse)?,
        hold: c.optional_word(Hold::parse)?,
        held_at: c.optional_time()?,
        held_for_ms: c
            .get::<Option<i64>>()?
            .map(|since| u64::try_from(now.saturating_sub(since)).unwrap_or(0)),
        tries: c.count()?,
        rounds: c.count()?,
        tries_total: c.count()?,
        final_try: c.get()?,
        due_in_ms: due_in(c.get()?, now),
        asset_id: c.get()?,
        project_id: c.get()?,
        registered_at: c.optional_time()?,
        registrations: c.count()?,
        registrations_since_retry: c.count()?,
        possible_duplicates: c.count()?,
        chunk_count: c.count()?,
        chunks_sent: c.count()?,
        bytes_sent: c.count()?,
        bytes_resent: c.count()?,
        last_fault: {
            let column = c.next;
            let text: Option<String> = c.get()?;
            let fault = text.map(|text| serde_json::from_str(&text)).transpose();
            fault.map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
            })?
        },
        added_at: c.time()?,
        rested_at: c.optional_time()?,
    })
}

/// The chunk in a row that was selected with `chunk_columns!`.
pub(super) fn chunk(row: &Row<'_>, now: i64) -> rusqlite::Result<Chunk> {
    let mut columns = Columns { row, next: 0 };
    let c = &mut columns;
    Ok(Chunk {
        number: c.count()?,
        start: c.count()?,
        length: c.count()?,
        state: c.word(chunk_state)?,
        tries: c.count()?,
        tries_total: c.count()?,
        acknowledged: c.count()?,
        due_in_ms: due_in(c.get()?, now),
        etag: c.get()?,
        md5: c.get()?,
        sent_at: c.optional_time()?,
    })
}

fn chunk_state(word: &str) -> Option<ChunkState> {
    match word {
        "ready" => Some(ChunkState::Ready),
        "sending" => Some(ChunkState::Sending),
        "sent" => Some(ChunkState::Sent),
        _ => None,
    }
}

fn capture_source(word: &str) -> Option<CaptureSource> {
    match word {
        "given" => Some(CaptureSource::Given),
        "file_time" => Some(CaptureSource::FileTime),
        "doubted" => Some(CaptureSource::Doubted),
        _ => None,
    }
}

/// The word for a source.
pub(super) fn capture_source_word(source: CaptureSource) -> &'static str {
    match source {
        CaptureSource::Given => "given",
        CaptureSource::FileTime => "file_time",
        CaptureSource::Doubted => "doubted",
    }
}

/// A path as it is stored: readable in any database tool where it is Unicode.
pub(super) fn path_value(path: &Path) -> Value {
    match path.to_str() {
        Some(text) => Value::Text(text.to_owned()),
        None => Value::Blob(host::path_bytes(path)),
    }
}

/// A number of bytes or of things, for a column. Nothing real comes near the limit.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One media.
pub(super) fn find_media(tx: &Tx<'_>, id: MediaId) -> Done<Option<Media>> {
    let sql = concat!("SELECT ", media_columns!(), " FROM media WHERE id = ?");
    let mut statement = tx.db.prepare_cached(sql)?;
    Ok(statement
        .query_row(params![id.0], |row| media(row, tx.now))
        .optional()?)
}

/// Runs a statement that changes rows; how many.
pub(super) fn change(tx: &Tx<'_>, sql: &str, values: &[&dyn ToSql]) -> Done<usize> {
    Ok(tx.db.prepare_cached(sql)?.execute(values)?)
}

/// Reads the first column of every row as ids.
pub(super) fn ids(tx: &Tx<'_>, sql: &str, values: &[&dyn ToSql]) -> Done<Vec<MediaId>> {
    let mut statement = tx.db.prepare_cached(sql)?;
    let ids = statement
        .query_map(values, |row| row.get(0).map(MediaId))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(ids)
}
