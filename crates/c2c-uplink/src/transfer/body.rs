//! A range of a file as a request body: read in reused buffers, hashed while read, in fixed memory.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use c2c_digest::{Crc64, DigestError, Finish, Stream};
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::host;
use crate::pace::bucket::Pace;

/// Large enough to amortise a system call, small enough to stay in the cache of one core.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Buffers that are used again and again; a fresh allocation per frame would cost more than the upload itself.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    fn take(self: &Arc<Self>) -> Buffer {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; BUFFER]),
            length: 0,
            pool: self.clone(),
        }
    }
}

/// A buffer that returns to its pool when the last reference to its bytes is gone.
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }
}

/// What became of the reading side, for the worker that sends the body.
#[derive(Debug, Default)]
pub(crate) struct BodyState {
    error: Mutex<Option<io::Error>>,
    md5: Mutex<Option<Finish>>,
    crc64: Mutex<Option<u64>>,
    given: Notify,
}

impl BodyState {
    /// The read error that ended the request, if one did.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        lock(&self.error).take()
    }

    /// The MD5 of everything that was read, in hexadecimal; `None` if none was asked for, or not everything was read. It may
    /// be a moment behind the last byte. Taken once.
    pub(crate) async fn md5(&self) -> Option<Result<String, DigestError>> {
        let finish = lock(&self.md5).take()?;
        Some(finish.await.map(hex::encode))
    }

    /// The CRC-64/NVME of everything that was read, once all of it was.
    pub(crate) fn crc64(&self) -> Option<u64> {
        *lock(&self.crc64)
    }

    /// Waits until the connection has taken the last byte. For one waiter.
    pub(crate) async fn given(&self) {
        self.given.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Granting = Pin<Box<dyn Future<Output = usize> + Send>>;
type Read = io::Result<Buffer>;

/// `length` bytes of a file from `start`. Made anew for each attempt.
///
/// What the page cache holds is read at once; only for the rest a thread is asked to wait for the disk.
pub(crate) struct FileRange {
    file: Arc<File>,
    next: u64,
    left: u64,
    pool: Arc<BufferPool>,
    /// The hasher works on the side, on the buffers that are sent.
    hasher: Option<Stream>,
    crc64: Crc64,
    reading: Option<JoinHandle<Read>>,
    pace: Pace,
    /// A permission that is waited for, or one that was given: so many bytes.
    granting: Option<Granting>,
    granted: usize,
    state: Arc<BodyState>,
}

impl FileRange {
    pub(crate) fn new(
        file: Arc<File>,
        start: u64,
        length: u64,
        pool: Arc<BufferPool>,
        hasher: Option<Stream>,
        pace: Pace,
    ) -> (FileRange, Arc<BodyState>) {
        let state = Arc::new(BodyState::default());
        let mut range = FileRange {
            file,
            next: start,
            left: length,
            pool,
            hasher,
            crc64: Crc64::new(),
            reading: None,
            pace,
            granting: None,
            granted: 0,
            state: state.clone(),
        };
        if length == 0 {
            range.finish();
        }
        (range, state)
    }

    /// Waits until the next bytes may be sent.
    fn poll_grant(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wanted = self.left.min(BUFFER as u64) as usize;
        let mut granting = match self.granting.take() {
            Some(granting) => granting,
            None if self.pace.is_unlimited() => {
                self.granted = wanted;
                return Poll::Ready(());
            }
            None => {
                let pace = self.pace.clone();
                Box::pin(async move { pace.grant(wanted).await })
            }
        };
        match granting.as_mut().poll(cx) {
            Poll::Ready(granted) => {
                self.granted = granted;
                Poll::Ready(())
            }
            Poll::Pending => {
                self.granting = Some(granting);
                Poll::Pending
            }
        }
    }

    /// Reads the next buffer: at once, or in a thread that may wait.
    fn begin_read(&mut self) -> Option<Buffer> {
        let length = self.left.min(std::mem::take(&mut self.granted) as u64) as usize;
        let mut buffer = self.pool.take();
        buffer.length = length;
        let at = self.next;
        let ready = host::read_cached_at(&self.file, &mut buffer.bytes[..length], at);
        if ready == length {
            return Some(buffer);
        }
        let file = self.file.clone();
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let rest = &mut buffer.bytes[ready..length];
            host::read_exact_at(&file, rest, at + ready as u64).map(|()| buffer)
        }));
        None
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let told = io::Error::new(error.kind(), error.to_string());
        *lock(&self.state.error) = Some(error);
        Poll::Ready(Some(Err(told)))
    }

    fn finish(&mut self) {
        *lock(&self.state.md5) = self.hasher.take().map(Stream::finish);
        *lock(&self.state.crc64) = Some(self.crc64.finalize());
        self.state.given.notify_one();
    }
}

impl http_body::Body for FileRange {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        if this.reading.is_none() {
            // A hasher that is behind holds the sender back: memory does not grow.
            let room = this.hasher.as_mut().map(|hasher| hasher.poll_ready(cx));
            if let Some(room) = room
                && let Err(error) = std::task::ready!(room)
            {
                return this.fail(io::Error::other(error));
            }
            std::task::ready!(this.poll_grant(cx));
        }
        let ready = match &mut this.reading {
            None => this.begin_read(),
            Some(_) => None,
        };
        let read = match (ready, &mut this.reading) {
            (Some(buffer), _) => Ok(buffer),
            (None, Some(reading)) => {
                let joined = std::task::ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                joined.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
            (None, None) => Err(io::Error::other("nothing is being read")),
        };
        match read {
            Ok(buffer) => {
                // Still in the cache, and 50 times as fast as the connection: not worth a thread.
                this.crc64.update(buffer.as_ref());
                this.next += buffer.length as u64;
                this.left -= buffer.length as u64;
                let bytes = Bytes::from_owner(buffer);
                if let Some(hasher) = &mut this.hasher
                    && let Err(error) = hasher.push(bytes.clone())
                {
                    return this.fail(io::Error::other(error));
                }
                if this.left == 0 {
                    this.finish();
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(error) => this.fail(error),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::bucket::Pacer;
    use c2c_digest::Digests;
    use md5::{Digest, Md5};
    use std::io::Write;

    async fn read_all(mut range: FileRange) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let next =
                std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut range), cx))
                    .await;
            match next {
                Some(frame) => out.extend_from_slice(
                    &frame?
                        .into_data()
                        .map_err(|_| io::Error::other("trailers"))?,
                ),
                None => return Ok(out),
            }
        }
    }

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[tokio::test]
    async fn ranges_are_exact_and_hashed() {
        let bytes: Vec<u8> = (0..BUFFER * 3 + 17).map(|n| (n * 31 % 251) as u8).collect();
        let file = file_of(&bytes);
        let pool = Arc::<BufferPool>::default();
        let digests = Digests::new(2);
        for (start, length) in [
            (0, bytes.len()),
            (5, BUFFER),
            (BUFFER, BUFFER + 1),
            (7, 0),
            (bytes.len() - 1, 1),
        ] {
            let (range, state) = FileRange::new(
                file.clone(),
                start as u64,
                length as u64,
                pool.clone(),
                Some(digests.begin().unwrap()),
                Pacer::default().connection(None),
            );
            let wanted = &bytes[start..start + length];
            assert_eq!(read_all(range).await.unwrap(), wanted);
            let md5 = state.md5().await.unwrap().unwrap();
            assert_eq!(md5, hex::encode(Md5::digest(wanted)));
            let mut crc64 = Crc64::new();
            crc64.update(wanted);
            assert_eq!(state.crc64(), Some(crc64.finalize()));
        }
        // Whatever the length: one that is sent, and those that wait for their digest.
        assert!(pool.free.lock().unwrap().len() <= 3);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_no_digest() {
        let (range, state) = FileRange::new(
            file_of(&[1; 100]),
            50,
            51,
            Arc::default(),
            Some(Digests::new(2).begin().unwrap()),
            Pacer::default().connection(None),
        );
        assert_eq!(
            read_all(range).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            state.take_error().unwrap().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(state.md5().await.is_none());
    }
}
