//! The files of the store: who may read them, who owns them, and how they are opened.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection as Db, ErrorCode, OpenFlags};

use crate::error::{Owner, QueueError};
use crate::host;

use super::{Done, Fault};

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError {
    move |source| QueueError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes the database file and its directory, for the owner alone. SQLite gives the files it puts beside the
/// database the same rights.
pub(super) fn create(path: &Path) -> Result<(), QueueError> {
    let dir = host::parent(path);
    host::create_private_dir(dir).map_err(failed("make the state directory", dir))?;
    let fresh = !path.exists();
    let mut options = host::private();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(failed("open the queue at", path))?;
    host::make_private(&file).map_err(failed("restrict access to", path))?;
    if fresh {
        file.sync_all()
            .and_then(|()| host::sync_dir(dir))
            .map_err(failed("store the new file", path))?;
    }
    Ok(())
}

/// Fails if there is no file.
pub(super) fn exists(path: &Path) -> Result<(), QueueError> {
    std::fs::metadata(path)
        .map(drop)
        .map_err(failed("find the queue at", path))
}

/// A connection that writes.
pub(super) fn connect(path: &Path) -> Result<Db, QueueError> {
    let open = || -> Done<Db> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Db::open_with_flags(path, flags)?;
        prepare(&mut db)?;
        // Before anything is changed: another program's file must stay as it is.
        if let Some(words) = foreign(&db)? {
            return Err(QueueError::Unusable {
                path: path.to_owned(),
                words,
            }
            .into());
        }
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; PRAGMA journal_size_limit = 67108864;",
        )?;
        Ok(db)
    };
    unusable(path, "open its database", open())
}

/// A connection that only reads.
pub(super) fn connect_reader(path: &Path) -> Result<Db, QueueError> {
    let open = || -> Done<Db> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Db::open_with_flags(path, flags)?;
        prepare(&mut db)?;
        if let Some(words) = foreign(&db)? {
            return Err(QueueError::Unusable {
                path: path.to_owned(),
                words,
            }
            .into());
        }
        Ok(db)
    };
    unusable(path, "open its database", open())
}

fn prepare(db: &mut Db) -> rusqlite::Result<()> {
    #[cfg(test)]
    super::tests::watch(db);
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    db.set_prepared_statement_cache_capacity(128);
    // Otherwise a statement whose values might suit another partial index is prepared anew with each value.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;")
}

/// Marks the file as a queue of this program, in the header of the database: "C2CQ".
pub(super) const APPLICATION_ID: i32 = 0x4332_4351;

fn foreign(db: &Db) -> rusqlite::Result<Option<String>> {
    let id: i32 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let objects: i64 = db.query_row(
        "SELECT count(*) FROM (SELECT 1 FROM sqlite_schema LIMIT 1)",
        [],
        |row| row.get(0),
    )?;
    let ours = id == APPLICATION_ID || (id == 0 && objects == 0);
    Ok((!ours).then(|| "it is the database of another program".to_owned()))
}

/// Says of a damaged file that it is one; passes everything else on.
pub(super) fn unusable<T>(
    path: &Path,
    action: &'static str,
    done: Done<T>,
) -> Result<T, QueueError> {
    done.map_err(|fault| match fault {
        Fault::Sqlite(error) if damaged(&error) => QueueError::Unusable {
            path: path.to_owned(),
            words: format!("the file is damaged ({error})"),
        },
        other => other.during(action),
    })
}

/// Whether SQLite found the file to be damaged.
pub(super) fn damaged(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}

/// The right to use the store, held for as long as this value lives. The operating system takes it back from a
/// process that died, so a file left behind means nothing.
#[derive(Debug)]
pub(super) struct LockFile {
    file: File,
}

impl LockFile {
    /// Takes the lock of the store at `path`, or says who has it.
    pub(super) fn take(path: &Path, process: &str, command: &str) -> Result<LockFile, QueueError> {
        let lock = lock_path(path);
        let mut options = host::private();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock);
        let mut file = file.map_err(failed("open the lock file", &lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(QueueError::InUse {
                    path: path.to_owned(),
                    owner: owner(path),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock)(source)),
        }
        let write = |file: &mut File| {
            host::make_private(file)?;
            file.set_len(0)?;
            let command = command.replace(['\n', '\r'], " ");
            file.write_all(format!("{}\n{command}\n{process}\n", std::process::id()).as_bytes())
        };
        write(&mut file).map_err(failed("write the lock file", &lock))?;
        Ok(LockFile { file })
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Nobody owns the store any more; the lock itself goes with the file handle.
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, "the lock file still names its last owner");
        }
    }
}

/// Who has the store at `path`, as far as its lock file tells.
pub(super) fn owner(path: &Path) -> Owner {
    let mut text = String::new();
    // Some platforms let nobody read a locked file: then the owner stays unnamed.
    if let Ok(file) = File::open(lock_path(path)) {
        let read = file.take(4096).read_to_string(&mut text);
        tracing::trace!(?read, "looked for the owner");
    }
    let mut lines = text.lines();
    let pid = lines.next().and_then(|pid| pid.parse().ok());
    Owner {
        pid,
        command: lines
            .next()
            .filter(|command| !command.is_empty())
            .map(str::to_owned),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}
