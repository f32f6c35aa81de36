//! The hasher that all transfers share: one thread that advances whatever streams have bytes, together.
//!
//! Invariants:
//! - A stream never holds more than [`Digests::backlog`] buffers, those in work included; each is dropped as soon as its last byte is
//!   hashed. Nothing is copied.
//! - The thread runs only while it computes, and computes only when it is due: some stream ends, some stream fills half of its
//!   backlog, or every open stream has something. Between these it waits without a clock, for nothing else can make work urgent.
//! - No caller hangs: whatever ends the thread wakes everybody with [`DigestError::Stopped`]. The next stream begins a new thread.
//! - No buffer is dropped and nobody woken while the book is locked: both run code of others.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::Bytes;

use crate::md5x::{Instructions, Lane};
use crate::stream::Md5Stream;

/// Why a digest cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The operating system gave no thread.
    #[error(
        "no thread for checksums could be started; send fewer chunks at once or switch verification off"
    )]
    Start(#[source] io::Error),
    /// The thread ended before the digest was there; what it hashed is lost.
    #[error("the thread that computes checksums ended early; send the chunk again")]
    Stopped,
    /// A buffer was pushed although the stream had no room for it.
    #[error("the checksum is behind: wait until the stream is ready before the next buffer")]
    Full,
}

/// The handle of the hasher; clones share it.
///
/// The thread begins with the first stream and ends when the last handle and the last stream are gone.
///
/// ```
/// # use bytes::Bytes;
/// # use c2c_digest::{DigestError, Digests};
/// # async fn example() -> Result<(), DigestError> {
/// let digests = Digests::new(4);
/// let mut stream = digests.begin()?;
/// stream.update(Bytes::from_static(b"abc")).await?;
/// let etag = stream.finish().await?;
/// assert_eq!(etag[..2], [0x90, 0x01]);
/// # Ok(())
/// # }
/// # let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
/// # let mut example = std::pin::pin!(example());
/// # while let std::task::Poll::Pending = example.as_mut().poll(context) { std::thread::yield_now() }
/// ```
pub struct Digests {
    shared: Arc<Shared>,
}

impl Digests {
    /// A hasher that holds at most `backlog` buffers of each stream (at least 1 is taken).
    ///
    /// Four buffers of 256 KiB let a sender go on while its stream waits for company in the lanes. A sender that takes its buffers
    /// from a bounded pool needs more of them than `backlog`, for those given away come back only when they are hashed.
    pub fn new(backlog: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                book: Mutex::new(Book {
                    handles: 1,
                    ..Book::default()
                }),
                work: Condvar::new(),
                backlog: backlog.max(1),
            }),
        }
    }

    /// How many buffers a stream holds at most.
    pub fn backlog(&self) -> usize {
        self.shared.backlog
    }

    /// Begins the digest of a chunk.
    ///
    /// # Errors
    ///
    /// [`DigestError::Start`] if a thread was needed and none could be had.
    pub fn begin(&self) -> Result<Stream, DigestError> {
        let mut book = self.shared.lock();
        if !book.running {
            let shared = self.shared.clone();
            thread::Builder::new()
                .name("c2c-digest".into())
                .spawn(move || work(&shared))
                .map_err(DigestError::Start)?;
            book.running = true;
        }
        let id = book.next;
        book.next += 1;
        book.handles += 1;
        book.entries.insert(id, Entry::default());
        drop(book);
        Ok(Stream {
            shared: self.shared.clone(),
            id,
        })
    }
}

impl Clone for Digests {
    fn clone(&self) -> Self {
        self.shared.lock().handles += 1;
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl Drop for Digests {
    fn drop(&mut self) {
        self.shared.lock().handles -= 1;
        self.shared.work.notify_one();
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digests")
            .field("streams", &self.shared.lock().entries.len())
            .field("backlog", &self.shared.backlog)
            .finish_non_exhaustive()
    }
}

/// The digest of one chunk under way. Dropped, it is cancelled, and its buffers are free.
pub struct Stream {
    shared: Arc<Shared>,
    id: u64,
}

impl Stream {
    /// Waits until there is room for a buffer, and gives it to the hasher.
    ///
    /// Dropped while it waits, it has given nothing.
    ///
    /// # Errors
    ///
    /// [`DigestError::Stopped`] if the hasher ended.
    pub async fn update(&mut self, buffer: Bytes) -> Result<(), DigestError> {
        poll_fn(|context| self.poll_ready(context)).await?;
        self.push(buffer)
    }

    /// Whether there is room for a buffer; otherwise the task is woken when there is.
    ///
    /// # Errors
    ///
    /// [`DigestError::Stopped`] if the hasher ended.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DigestError>> {
        let mut book = self.shared.lock();
        let Some(entry) = book.entries.get_mut(&self.id) else {
            return Poll::Ready(Err(DigestError::Stopped));
        };
        if entry.held < self.shared.backlog {
            return Poll::Ready(Ok(()));
        }
        entry.wait(context)
    }

    /// Gives a buffer to the hasher, after [`poll_ready`](Self::poll_ready) found room for it.
    ///
    /// # Errors
    ///
    /// [`DigestError::Full`] if there is no room: the buffer is not hashed. [`DigestError::Stopped`] if the hasher ended.
    pub fn push(&mut self, buffer: Bytes) -> Result<(), DigestError> {
        let mut book = self.shared.lock();
        let Some(entry) = book.entries.get_mut(&self.id) else {
            drop(book);
            return Err(DigestError::Stopped);
        };
        if entry.held >= self.shared.backlog {
            drop(book);
            return Err(DigestError::Full);
        }
        if buffer.is_empty() {
            return Ok(());
        }
        entry.queue.push_back(buffer);
        entry.held += 1;
        self.shared.rouse(&book);
        Ok(())
    }

    /// Ends the stream; the future gives the MD5 of everything that was given, as an S3 ETag has it in hexadecimal.
    pub fn finish(self) -> Finish {
        let mut book = self.shared.lock();
        if let Some(entry) = book.entries.get_mut(&self.id) {
            entry.ending = true;
            self.shared.rouse(&book);
        }
        drop(book);
        Finish { stream: self }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut book = self.shared.lock();
        let entry = book.entries.remove(&self.id);
        book.handles -= 1;
        drop(book);
        // Also one stream less to wait for: the others may be due now.
        self.shared.work.notify_one();
        drop(entry);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The digest of a stream that has ended: the 16 bytes of MD5, or [`DigestError::Stopped`].
#[derive(Debug)]
#[must_use = "a digest that nobody waits for is cancelled"]
pub struct Finish {
    stream: Stream,
}

impl Future for Finish {
    type Output = Result<[u8; 16], DigestError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut book = self.stream.shared.lock();
        let Some(entry) = book.entries.get_mut(&self.stream.id) else {
            return Poll::Ready(Err(DigestError::Stopped));
        };
        match entry.digest {
            Some(digest) => Poll::Ready(Ok(digest)),
            None => entry.wait(context),
        }
    }
}

struct Shared {
    book: Mutex<Book>,
    work: Condvar,
    backlog: usize,
}

/// What the handles and the thread tell each other.
#[derive(Default)]
struct Book {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// Handles and streams out there.
    handles: usize,
    running: bool,
}

#[derive(Default)]
struct Entry {
    /// Buffers that the thread has not taken yet.
    queue: VecDeque<Bytes>,
    /// Those, and the ones that it has taken and not used up.
    held: usize,
    ending: bool,
    digest: Option<[u8; 16]>,
    waker: Option<Waker>,
}

impl Entry {
    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        // Nothing that panics runs under the lock, so that what a poisoned one guards is whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it has a reason to compute.
    fn rouse(&self, book: &Book) {
        if self.due(book) {
            self.work.notify_one();
        }
    }

    fn due(&self, book: &Book) -> bool {
        due(
            book.entries
                .values()
                .filter(|entry| entry.digest.is_none())
                .map(|entry| (entry.held, entry.ending)),
            self.backlog,
        )
    }

    /// Waits until there is something to compute and takes all buffers over. `false` when nobody is left.
    fn gather(&self, streams: &mut Vec<(u64, Md5Stream)>) -> bool {
        let mut book = self.lock();
        loop {
            if book.handles == 0 {
                return false;
            }
            let cancelled: Vec<_> = streams
                .extract_if(.., |(id, _)| !book.entries.contains_key(id))
                .collect();
            if !cancelled.is_empty() {
                drop(book);
                drop(cancelled);
                book = self.lock();
                continue;
            }
            if self.due(&book) {
                break;
            }
            book = self.work.wait(book).unwrap_or_else(PoisonError::into_inner);
        }
        for (id, entry) in &mut book.entries {
            if entry.digest.is_some() || (entry.queue.is_empty() && !entry.ending) {
                continue;
            }
            let at = streams
                .iter()
                .position(|(known, _)| known == id)
                .unwrap_or_else(|| {
                    streams.push((*id, Md5Stream::new()));
                    streams.len() - 1
                });
            for buffer in entry.queue.drain(..) {
                streams[at].1.push(buffer);
            }
        }
        true
    }

    /// Tells the streams how far they are, and the digests of those that have ended.
    fn publish(&self, streams: &mut Vec<(u64, Md5Stream)>) {
        let mut wakers = Vec::new();
        let mut book = self.lock();
        streams.retain(|(id, stream)| {
            let Some(entry) = book.entries.get_mut(id) else {
                // Cancelled; its buffers are dropped by the next gathering, outside of the lock.
                return true;
            };
            entry.held = entry.queue.len() + stream.held();
            let ended = entry.ending && entry.held == 0;
            if ended {
                entry.digest = Some(stream.finalize());
            }
            if ended || (!entry.ending && entry.held < self.backlog) {
                wakers.extend(entry.waker.take());
            }
            !ended
        });
        drop(book);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Whether the thread should compute now, from `(buffers held, ending)` of each stream without a digest.
///
/// A single stream is cheapest to hash in company, so what can wait waits for the others: until somebody asks for a digest, until a
/// stream has used half of its backlog (its sender goes on with the other half meanwhile), or until all have something.
fn due(streams: impl Iterator<Item = (usize, bool)>, backlog: usize) -> bool {
    let mut any = false;
    let mut all = true;
    for (held, ending) in streams {
        if ending || held >= backlog.div_ceil(2) {
            return true;
        }
        any = true;
        all &= held > 0;
    }
    any && all
}

/// The thread.
fn work(shared: &Shared) {
    let _ended = Ended(shared);
    let instructions = Instructions::best();
    let mut streams = Vec::new();
    while shared.gather(&mut streams) {
        step(instructions, &mut streams);
        shared.publish(&mut streams);
    }
}

/// Takes every stream that has whole blocks further, in company.
fn step(instructions: Instructions, streams: &mut [(u64, Md5Stream)]) {
    for (_, stream) in streams.iter_mut() {
        stream.settle();
    }
    let mut lanes: Vec<_> = streams
        .iter_mut()
        .map(|(_, stream)| stream.ready())
        .map(|(state, blocks)| Lane { state, blocks })
        .collect();
    let before: Vec<_> = lanes.iter().map(|lane| lane.blocks.len()).collect();
    instructions.advance(&mut lanes);
    let done: Vec<_> = lanes
        .iter()
        .zip(before)
        .map(|(lane, before)| before - lane.blocks.len())
        .collect();
    for ((_, stream), done) in streams.iter_mut().zip(done) {
        stream.advance(done);
    }
}

/// Wakes everybody when the thread ends, in whatever way.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut book = self.0.lock();
        book.running = false;
        let mut entries = std::mem::take(&mut book.entries);
        drop(book);
        for entry in entries.values_mut() {
            entry.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_due() {
        for (streams, backlog, expected, why) in [
            (&[][..], 4, false, "nobody is there"),
            (&[(0, false)], 4, false, "nothing to hash"),
            (&[(1, false)], 4, true, "nobody else to wait for"),
            (&[(1, false), (0, false)], 4, false, "company may come"),
            (&[(2, false), (0, false)], 4, true, "half of the backlog"),
            (&[(1, false), (1, false)], 4, true, "all have something"),
            (&[(0, true), (1, false), (0, false)], 4, true, "one ends"),
            (&[(1, false), (0, false)], 1, true, "a backlog of one"),
            (&[(1, false), (0, false)], 2, true, "a backlog of two"),
            (&[(1, false), (0, false)], 3, false, "half, rounded up"),
        ] {
            assert_eq!(due(streams.iter().copied(), backlog), expected, "{why}");
        }
    }

    #[test]
    fn the_thread_ends_with_the_last_handle() {
        let digests = Digests::new(4);
        let shared = Arc::downgrade(&digests.shared);
        let stream = digests.begin().unwrap();
        let clone = digests.clone();
        drop(digests);
        drop(stream);
        assert!(clone.shared.lock().running, "a handle is left: {:?}", clone);
        drop(clone);
        // The thread is the last that knows the book.
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
