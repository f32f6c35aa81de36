//! Whether a file that its last owner did not close is whole.
//!
//! 1. A small file is looked at before anything is done with it.
//! 2. A large one, whose look would keep everybody waiting, is looked at while the work goes on. If it turns out to be damaged,
//!    every operation from then on says so.
//! 3. A file whose look was not finished is not marked as closed: the next start looks again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection as Db, InterruptHandle};

use crate::error::QueueError;

use super::{Done, files};

/// Largest file that is looked at first: a fraction of a second.
const SMALL: i64 = 64 * 1024 * 1024;

/// What was found out at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// The file is whole, or was closed.
    Whole,
    /// It is to be looked at while the work goes on.
    Later,
}

/// Looks at the file if that is needed, and, unless `first`, if it is small.
pub(super) fn at_start(db: &Db, path: &Path, first: bool) -> Done<Checked> {
    let clean: bool = db.query_row("SELECT clean FROM store", [], |row| row.get(0))?;
    if clean {
        return Ok(Checked::Whole);
    }
    let pragma = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    let size = pragma("PRAGMA page_count")?.saturating_mul(pragma("PRAGMA page_size")?);
    if !first && size > SMALL {
        return Ok(Checked::Later);
    }
    match damage(db)? {
        None => Ok(Checked::Whole),
        Some(words) => Err(unusable(path, words).into()),
    }
}

/// What is wrong with the file, if anything is. Every page is looked at.
fn damage(db: &Db) -> rusqlite::Result<Option<String>> {
    let words: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((words != "ok").then(|| format!("the file is damaged ({words})")))
}

fn unusable(path: &Path, words: String) -> QueueError {
    QueueError::Unusable {
        path: path.to_owned(),
        words,
    }
}

/// What a look beside the work has found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    damage: OnceLock<String>,
    finished: AtomicBool,
}

impl Findings {
    /// Of a file that needs no look.
    pub(super) fn whole() -> Arc<Findings> {
        let findings = Findings::default();
        findings.finished.store(true, Ordering::Release);
        Arc::new(findings)
    }

    /// Whether the file is known to be whole.
    pub(super) fn are_good(&self) -> bool {
        self.finished.load(Ordering::Acquire) && self.damage.get().is_none()
    }

    /// Fails once the file is known to be damaged.
    pub(super) fn tell(&self, path: &Path) -> Result<(), QueueError> {
        match self.damage.get() {
            None => Ok(()),
            Some(words) => Err(unusable(path, words.clone())),
        }
    }
}

/// The look beside the work.
pub(super) struct Look {
    interrupt: InterruptHandle,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Look {
    /// Begins. `db` is a connection of its own.
    pub(super) fn start(db: Db, findings: Arc<Findings>) -> std::io::Result<Look> {
        let interrupt = db.get_interrupt_handle();
        let look = move || {
            match damage(&db) {
                Ok(None) => {}
                Ok(Some(words)) => {
                    tracing::error!(%words, "the queue cannot be trusted any more");
                    findings.damage.get_or_init(|| words);
                }
                Err(error) if files::damaged(&error) => {
                    findings
                        .damage
                        .get_or_init(|| format!("the file is damaged ({error})"));
                }
                Err(error) => {
                    tracing::debug!(%error, "the queue was not looked at to its end");
                    return;
                }
            }
            findings.finished.store(true, Ordering::Release);
        };
        let thread = std::thread::Builder::new()
            .name("queue-check".to_owned())
            .spawn(look)?;
        Ok(Look {
            interrupt,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends it, finished or not.
    pub(super) fn end(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else { return };
        while !thread.is_finished() {
            // It may just be between two statements, where there is nothing to interrupt.
            self.interrupt.interrupt();
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        if thread.join().is_err() {
            tracing::error!("a thread of the queue panicked");
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.end();
    }
}
