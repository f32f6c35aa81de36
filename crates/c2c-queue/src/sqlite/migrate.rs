//! The format of the file: numbered steps, all in one transaction.
//!
//! 1. A file of a newer format is refused before anything is changed.
//! 2. A file that holds a queue is copied before it is migrated.
//! 3. A power cut in the middle leaves the old format whole.

use std::path::{Path, PathBuf};

use rusqlite::{Connection as Db, TransactionBehavior};

use crate::error::QueueError;
use crate::host;

use super::check::{self, Checked};
use super::{Done, files};

/// Step `n` leads from format `n` to format `n + 1`.
const STEPS: [&str; 2] = [
    include_str!("migrations/001_initial.sql"),
    include_str!("migrations/002_checksums.sql"),
];

/// Brings the file to the newest format, and checks it if its last owner did not close it.
pub(super) fn to_newest(db: &mut Db, path: &Path) -> Result<Checked, QueueError> {
    migrate(db, path, &STEPS)
}

/// Fails unless the file has exactly the format of this program.
pub(super) fn check_readable(db: &Db, path: &Path) -> Result<(), QueueError> {
    let found = files::unusable(path, "read its format", format(db))?;
    let known = STEPS.len();
    refuse_newer(found, known, path)?;
    if found < known {
        let words = format!("it has the old format {found}; start the program that owns it once");
        return Err(QueueError::Unusable {
            path: path.to_owned(),
            words,
        });
    }
    Ok(())
}

fn migrate(db: &mut Db, path: &Path, steps: &[&str]) -> Result<Checked, QueueError> {
    let found = files::unusable(path, "read its format", format(db))?;
    refuse_newer(found, steps.len(), path)?;
    let newest = found == steps.len();
    if found > 0 {
        // What is damaged is not migrated.
        let checked = check::at_start(db, path, !newest);
        let checked = files::unusable(path, "check its database", checked)?;
        if newest {
            return Ok(checked);
        }
        copy(db, path, found)?;
    }
    files::unusable(path, "migrate its database", run(db, found, steps))?;
    Ok(Checked::Whole)
}

fn format(db: &Db) -> Done<usize> {
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(found).unwrap_or(usize::MAX))
}

fn refuse_newer(found: usize, known: usize, path: &Path) -> Result<(), QueueError> {
    if found <= known {
        return Ok(());
    }
    let number = |format: usize| u32::try_from(format).unwrap_or(u32::MAX);
    Err(QueueError::TooNew {
        path: path.to_owned(),
        found: number(found),
        known: number(known),
    })
}

/// Where the copy of a file of format `found` goes.
fn copy_path(path: &Path, found: usize) -> PathBuf {
    path.with_extension(format!("format-{found}.bak"))
}

fn copy(db: &Db, path: &Path, found: usize) -> Result<(), QueueError> {
    let target = copy_path(path, found);
    let make = || -> std::io::Result<()> {
        let file = host::private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&target)?;
        host::make_private(&file)
    };
    let failed = |source| QueueError::Io {
        action: "copy the queue to",
        path: target.clone(),
        source,
    };
    make().map_err(failed)?;
    let progress = None::<fn(rusqlite::backup::Progress)>;
    files::unusable(
        path,
        "copy its database",
        db.backup("main", &target, progress).map_err(Into::into),
    )?;
    let sync = || {
        std::fs::File::open(&target)?
            .sync_all()
            .and_then(|()| host::sync_dir(host::parent(path)))
    };
    sync().map_err(|source| QueueError::Io {
        action: "copy the queue to",
        path: target.clone(),
        source,
    })
}

fn run(db: &mut Db, found: usize, steps: &[&str]) -> Done<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in steps.iter().skip(found) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", files::APPLICATION_ID)?;
    transaction.pragma_update(
        None,
        "user_version",
        i64::try_from(steps.len()).unwrap_or(i64::MAX),
    )?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &str =
        "ALTER TABLE store ADD COLUMN test_note TEXT; UPDATE store SET test_note = 'migrated';";
    const BROKEN: &str = "ALTER TABLE store ADD COLUMN test_note TEXT; UPDATE nowhere SET x = 1;";

    fn fresh() -> (tempfile::TempDir, PathBuf, Db) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.db");
        files::create(&path).unwrap();
        let mut db = files::connect(&path).unwrap();
        to_newest(&mut db, &path).unwrap();
        (dir, path, db)
    }

    #[test]
    fn an_old_file_is_copied_and_migrated() {
        let (_dir, path, mut db) = fresh();
        db.execute("UPDATE store SET client_id = 'kept'", [])
            .unwrap();
        migrate(&mut db, &path, &[STEPS[0], STEPS[1], NEXT]).unwrap();
        let row: (String, String) = db
            .query_row("SELECT client_id, test_note FROM store", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(row, ("kept".to_owned(), "migrated".to_owned()));
        assert_eq!(format(&db).unwrap(), 3);

        let copy = Db::open(copy_path(&path, 2)).unwrap();
        assert_eq!(format(&copy).unwrap(), 2, "the copy has the old format");
        let kept: String = copy
            .query_row("SELECT client_id FROM store", [], |row| row.get(0))
            .unwrap();
        assert_eq!(kept, "kept");
        let error = check_readable(&db, &path).unwrap_err();
        assert!(
            matches!(
                error,
                QueueError::TooNew {
                    found: 3,
                    known: 2,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_broken_step_changes_nothing() {
        let (_dir, path, mut db) = fresh();
        migrate(&mut db, &path, &[STEPS[0], STEPS[1], NEXT, BROKEN]).unwrap_err();
        assert_eq!(format(&db).unwrap(), 2);
        assert!(db.prepare("SELECT test_note FROM store").is_err());
    }

    #[test]
    fn an_old_file_is_not_read_without_its_owner() {
        let (_dir, path, db) = fresh();
        db.pragma_update(None, "user_version", 0).unwrap();
        let error = check_readable(&db, &path).unwrap_err().to_string();
        assert!(error.contains("old format"), "{error}");
    }
}
