//! The threads of the store and the channels to them. No caller ever blocks on the disk.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection as Db;
use tokio::sync::oneshot;

use crate::error::QueueError;
use crate::vault::Vault;

use super::time::StoreTime;
use super::writer::{Haste, Job, Message, Writer, operation};
use super::{Done, Numbers, Tx};

type Answer<T> = oneshot::Receiver<Result<T, QueueError>>;

/// Runs the writing and the reading thread, and ends them.
pub(super) struct Service {
    writer: Option<Line<Message>>,
    reader: Reader,
}

/// A thread and the way to it. Dropped, the thread finishes what it was given and ends.
struct Line<M> {
    outbox: Mutex<Option<Sender<M>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<M: Send + 'static> Line<M> {
    fn start(name: &str, work: impl FnOnce(Receiver<M>) + Send + 'static) -> io::Result<Line<M>> {
        let (outbox, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(inbox))?;
        Ok(Line {
            outbox: Mutex::new(Some(outbox)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands over a message; one that cannot be handed over is dropped, which its caller notices.
    fn send(&self, message: M) {
        let outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outbox) = outbox.as_ref() {
            // The thread ends early only after a close; the caller then learns that.
            let _ = outbox.send(message);
        }
    }

    fn end(&self) {
        drop(
            self.outbox
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("a thread of the queue panicked");
        }
    }
}

impl<M> Drop for Line<M> {
    fn drop(&mut self) {
        drop(
            self.outbox
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("a thread of the queue panicked");
        }
    }
}

impl Service {
    /// Starts the writing thread.
    pub(super) fn start(writer: Writer, reader: Reader) -> io::Result<Service> {
        let writer = Line::start("queue-writer", move |inbox| writer.run(&inbox))?;
        Ok(Service {
            writer: Some(writer),
            reader,
        })
    }

    /// Reads only.
    pub(super) fn look_only(reader: Reader) -> Service {
        Service {
            writer: None,
            reader,
        }
    }

    /// Accepts an operation that changes something; it happens even if the answer is not awaited. `None`
    /// where nothing may be changed.
    pub(super) fn write<T, F>(
        &self,
        haste: Haste,
        action: &'static str,
        work: F,
    ) -> Option<Answer<T>>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Done<T> + Send + 'static,
    {
        let writer = self.writer.as_ref()?;
        let (job, answer) = operation(action, work);
        writer.send(Message::Job(haste, Box::new(job)));
        Some(answer)
    }

    /// Accepts an operation that only reads.
    pub(super) fn read<T, F>(&self, action: &'static str, work: F) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Done<T> + Send + 'static,
    {
        let (job, answer) = operation(action, work);
        self.reader.line.send(Box::new(job));
        answer
    }

    /// Ends the reader, then the writer after everything accepted before. Again: nothing.
    pub(super) async fn close(&self) -> Result<(), QueueError> {
        // The reader first: the last connection that closes folds the log into the database.
        let (finished, last) = operation("close", |_| Ok(()));
        self.reader.line.send(Box::new(finished));
        // After a close there is no reader any more, and nothing to wait for.
        let _ = last.await;
        self.reader.line.end();
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        let (reply, closed) = oneshot::channel();
        writer.send(Message::Close(reply));
        let result = closed.await.unwrap_or(Ok(()));
        writer.end();
        result
    }
}

/// The reading thread.
pub(super) struct Reader {
    line: Line<Box<dyn Job>>,
}

impl Reader {
    /// Starts it.
    pub(super) fn start(db: Db, time: StoreTime, vault: Option<Vault>) -> io::Result<Reader> {
        let line = Line::start("queue-reader", move |inbox: Receiver<Box<dyn Job>>| {
            for mut job in inbox {
                let done = snapshot(&db, &time, vault.as_ref(), &mut *job);
                job.answer(done.err().as_ref());
            }
        })?;
        Ok(Reader { line })
    }
}

/// Runs a job on one state of the database, however many statements it takes.
fn snapshot(
    db: &Db,
    time: &StoreTime,
    vault: Option<&Vault>,
    job: &mut dyn Job,
) -> rusqlite::Result<()> {
    db.prepare_cached("BEGIN")?.execute([])?;
    let numbers = Numbers::default();
    let read = time.now_in(db).map(|now| {
        job.run(&Tx {
            db,
            now,
            wall: time.wall(),
            boot: "",
            vault,
            numbers: &numbers,
        });
    });
    if !db.is_autocommit() {
        db.prepare_cached("ROLLBACK")?.execute([])?;
    }
    read
}
