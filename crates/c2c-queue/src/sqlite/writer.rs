//! The one thread that writes: operations in, groups out.
//!
//! 1. Every operation runs in a savepoint, or in a transaction of its own: its own error, or its own panic, undoes it alone.
//! 2. Nobody is answered before the commit of the group is on disk; if that fails, nobody's change happened and
//!    everybody in the group learns it.
//! 3. Once accepted an operation happens whole, whether or not its caller still waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rusqlite::Connection as Db;
use tokio::sync::oneshot;

use crate::error::QueueError;
use crate::vault::Vault;

use super::check::Findings;
use super::files::LockFile;
use super::time::StoreTime;
use super::{Done, Fault, Numbers, Tx};

/// Most operations that share a commit; bounds how long the first of them waits for the last.
const GROUP: usize = 256;

/// What the thread is told.
pub(super) enum Message {
    /// Do this.
    Job(Haste, Box<dyn Job>),
    /// Finish what came before this, and close.
    Close(oneshot::Sender<Result<(), QueueError>>),
}

/// Whether an operation may wait for company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// It goes to the disk at once.
    Urgent,
    /// It may wait as long as [`super::SqliteOptions::patience`] says.
    Patient,
}

/// An operation whose result waits for the commit.
pub(super) trait Job: Send {
    /// Runs the operation; whether its changes are to be kept.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Answers the caller: with the result, or with why the group came to nothing.
    fn answer(self: Box<Self>, group: Option<&rusqlite::Error>);
}

/// The usual [`Job`].
pub(super) struct Operation<T, F> {
    action: &'static str,
    work: Option<F>,
    result: Option<Result<T, QueueError>>,
    reply: oneshot::Sender<Result<T, QueueError>>,
}

/// An operation and the place where its result will arrive.
pub(super) fn operation<T, F>(
    action: &'static str,
    work: F,
) -> (Operation<T, F>, oneshot::Receiver<Result<T, QueueError>>)
where
    F: FnOnce(&Tx<'_>) -> Done<T>,
{
    let (reply, answer) = oneshot::channel();
    (
        Operation {
            action,
            work: Some(work),
            result: None,
            reply,
        },
        answer,
    )
}

impl<T, F> Job for Operation<T, F>
where
    T: Send,
    F: FnOnce(&Tx<'_>) -> Done<T> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        // What the operation touched is undone with its savepoint, so nothing half-done is ever seen.
        let result = match catch_unwind(AssertUnwindSafe(|| work(tx))) {
            Ok(done) => done.map_err(|fault| fault.during(self.action)),
            Err(panic) => Err(QueueError::Defect(format!(
                "it could not {}: {}",
                self.action,
                words(&*panic)
            ))),
        };
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, group: Option<&rusqlite::Error>) {
        let result = match (group, self.result) {
            (None, Some(result)) => result,
            // An operation that failed by itself keeps its own error.
            (Some(_), Some(Err(error))) => Err(error),
            (Some(error), _) => Err(QueueError::Sqlite {
                action: self.action,
                source: same(error),
            }),
            (None, None) => Err(QueueError::Closed),
        };
        // The caller may have gone; the operation happened all the same.
        let _ = self.reply.send(result);
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic".to_owned())
}

fn same(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, words) => {
            rusqlite::Error::SqliteFailure(*code, words.clone())
        }
        other => {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR);
            rusqlite::Error::SqliteFailure(code, Some(other.to_string()))
        }
    }
}

/// Who waits for the store to be closed, if anybody does.
type Closing = Option<oneshot::Sender<Result<(), QueueError>>>;

/// The state of the thread.
pub(super) struct Writer {
    pub(super) db: Db,
    pub(super) time: StoreTime,
    pub(super) boot: String,
    pub(super) vault: Vault,
    pub(super) numbers: Numbers,
    pub(super) commits: Arc<AtomicU64>,
    pub(super) patience: Duration,
    pub(super) findings: Arc<Findings>,
    pub(super) lock: LockFile,
}

impl Writer {
    /// Works until told to close, or until nobody can ask any more.
    pub(super) fn run(self, inbox: &Receiver<Message>) {
        while let Ok(first) = inbox.recv() {
            let (mut group, closing) = self.gather(first, inbox);
            while !group.is_empty() {
                group = self.commit(group);
            }
            if let Some(reply) = closing {
                let closed = self.close();
                // Whoever asked may have gone; it is closed nevertheless.
                let _ = reply.send(closed);
                return;
            }
        }
    }

    /// What is committed together: what has arrived, and, as long as all of it is patient, what arrives soon.
    fn gather(&self, first: Message, inbox: &Receiver<Message>) -> (Vec<Box<dyn Job>>, Closing) {
        let patient_until = Instant::now() + self.patience;
        let mut group = Vec::new();
        let mut urgent = false;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Job(haste, job) => {
                    urgent |= haste == Haste::Urgent;
                    group.push(job);
                }
                Message::Close(reply) => return (group, Some(reply)),
            }
            next = if group.len() == GROUP {
                None
            } else if urgent || self.patience.is_zero() {
                inbox.try_recv().ok()
            } else {
                let left = patient_until.saturating_duration_since(Instant::now());
                inbox.recv_timeout(left).ok()
            };
        }
        (group, None)
    }

    /// Runs a group and answers it. Returns what has to run again, because the database gave up half-way.
    fn commit(&self, group: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let changes = self.db.total_changes();
        let before = self.numbers.clone();
        if let Err(error) = self.step("BEGIN IMMEDIATE") {
            answer(group, Some(&error));
            return Vec::new();
        }
        let alone = group.len() == 1;
        let mut done = Vec::with_capacity(group.len());
        let mut rest = group.into_iter();
        for mut job in rest.by_ref() {
            let ran = if alone {
                // The transaction is its savepoint.
                if !self.run_job(&mut *job) {
                    self.undo(&before);
                }
                Ok(())
            } else {
                self.savepoint(&mut *job)
            };
            done.push(job);
            if let Err(error) = ran {
                self.undo(&before);
                answer(done, Some(&error));
                return rest.collect();
            }
        }
        let kept = if self.db.is_autocommit() {
            Ok(())
        } else if self.db.total_changes() == changes {
            // Nothing changed: there is nothing worth a flush of the disk.
            self.step("ROLLBACK")
        } else {
            let kept = self
                .time
                .persist(&self.db, &self.numbers)
                .and_then(|()| self.step("COMMIT"));
            self.commits.fetch_add(1, Ordering::Relaxed);
            kept
        };
        match kept {
            Ok(()) => answer(done, None),
            Err(error) => {
                self.undo(&before);
                answer(done, Some(&error));
            }
        }
        Vec::new()
    }

    fn step(&self, sql: &'static str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Runs one operation so that it can be undone alone. An error here concerns the whole group.
    fn savepoint(&self, job: &mut dyn Job) -> rusqlite::Result<()> {
        let before = self.numbers.clone();
        self.step("SAVEPOINT operation")?;
        if !self.run_job(job) {
            self.numbers.restore(&before);
            // A full disk makes SQLite roll back everything at once: then this fails too, and says so.
            self.step("ROLLBACK TO operation")?;
        }
        self.step("RELEASE operation")
    }

    fn run_job(&self, job: &mut dyn Job) -> bool {
        job.run(&Tx {
            db: &self.db,
            now: self.time.now(),
            wall: self.time.wall(),
            boot: &self.boot,
            vault: Some(&self.vault),
            numbers: &self.numbers,
        })
    }

    fn undo(&self, before: &Numbers) {
        self.numbers.restore(before);
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the queue could not roll back");
        }
    }

    fn close(self) -> Result<(), QueueError> {
        let Writer {
            db,
            time,
            numbers,
            findings,
            lock,
            ..
        } = self;
        let mark = || -> Done<()> {
            db.execute_batch("BEGIN IMMEDIATE")?;
            time.persist(&db, &numbers)?;
            db.execute("UPDATE store SET clean = ?", [findings.are_good()])?;
            db.execute_batch("COMMIT")?;
            Ok(())
        };
        let marked = mark().map_err(|fault: Fault| fault.during("close"));
        // The last connection that closes also folds the log into the database.
        let closed = db.close().map_err(|(_, source)| QueueError::Sqlite {
            action: "close",
            source,
        });
        drop(lock);
        marked.and(closed)
    }
}

fn answer(jobs: Vec<Box<dyn Job>>, group: Option<&rusqlite::Error>) {
    for job in jobs {
        job.answer(group);
    }
}
