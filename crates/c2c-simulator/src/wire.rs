//! The TCP stream below TLS, with a kill switch and brakes for faults.
//!
//! Invariants: a cut takes effect at once, whatever the connection is doing; a rate of zero means no brake; the
//! socket lives until the last clone of its handle is dropped, and only connection-owned tasks hold clones.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::clock::SimClock;

/// The controls of one connection.
pub(crate) struct Wire {
    stream: Arc<TcpStream>,
    clock: SimClock,
    killed: CancellationToken,
    read_rate: AtomicU64,
    write_rate: AtomicU64,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, clock: SimClock) -> Arc<Self> {
        Arc::new(Self {
            stream: Arc::new(stream),
            clock,
            killed: CancellationToken::new(),
            read_rate: AtomicU64::new(0),
            write_rate: AtomicU64::new(0),
        })
    }

    /// The byte stream to put TLS on.
    pub(crate) fn tap(self: &Arc<Self>) -> Tap {
        Tap {
            wire: Arc::clone(self),
            read_pause: None,
            write_pause: None,
        }
    }

    /// Ends the connection abruptly. With `reset` the client sees RST, else the stream just ends.
    pub(crate) fn cut(&self, reset: bool) {
        if reset && let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "cannot reset the connection, it is closed instead");
        }
        self.killed.cancel();
    }

    /// Resolves when the connection is to end.
    pub(crate) async fn cut_ordered(&self) {
        self.killed.cancelled().await;
    }

    /// Bytes per simulated second that are read from now on; 0 lifts the brake.
    pub(crate) fn read_at(&self, rate: u64) {
        self.read_rate.store(rate, Ordering::Relaxed);
    }

    /// Bytes per simulated second that are written from now on; 0 lifts the brake.
    pub(crate) fn write_at(&self, rate: u64) {
        self.write_rate.store(rate, Ordering::Relaxed);
    }

    /// Resolves when the client closed its end, even while nobody reads.
    pub(crate) async fn client_gone(&self) {
        loop {
            match self
                .stream
                .ready(Interest::READABLE | Interest::WRITABLE)
                .await
            {
                Ok(ready) if !ready.is_read_closed() && !ready.is_write_closed() => {}
                Ok(_) | Err(_) => return,
            }
            // Unread bytes keep the socket readable for ever, so there is no event to wait for.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

type Pause = Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>;

/// A TCP stream that obeys a [`Wire`].
pub(crate) struct Tap {
    wire: Arc<Wire>,
    read_pause: Pause,
    write_pause: Pause,
}

/// How many bytes may pass before the next pause, and how long that pause is.
fn portion(rate: u64) -> (usize, Duration) {
    let bytes = (rate / 20).clamp(1, 65_536);
    (
        usize::try_from(bytes).unwrap_or(65_536),
        Duration::from_secs_f64(bytes as f64 / rate as f64),
    )
}

fn poll_pause(pause: &mut Pause, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(sleep) = pause {
        ready!(sleep.as_mut().poll(cx));
        *pause = None;
    }
    Poll::Ready(())
}

impl Tap {
    fn pause(&self, span: Duration) -> Pause {
        let clock = self.wire.clock.clone();
        Some(Box::pin(async move { clock.sleep(span).await }))
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(poll_pause(&mut this.read_pause, cx));
        let rate = this.wire.read_rate.load(Ordering::Relaxed);
        let limit = if rate == 0 {
            usize::MAX
        } else {
            portion(rate).0
        };
        loop {
            ready!(this.wire.stream.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            let upto = room.len().min(limit);
            match this.wire.stream.try_read(&mut room[..upto]) {
                Ok(count) => {
                    buf.advance(count);
                    if rate != 0 && count > 0 {
                        this.read_pause = this.pause(portion(rate).1);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(poll_pause(&mut this.write_pause, cx));
        let rate = this.wire.write_rate.load(Ordering::Relaxed);
        let upto = if rate == 0 {
            buf.len()
        } else {
            buf.len().min(portion(rate).0)
        };
        loop {
            ready!(this.wire.stream.poll_write_ready(cx))?;
            match this.wire.stream.try_write(&buf[..upto]) {
                Ok(count) => {
                    if rate != 0 {
                        this.write_pause = this.pause(portion(rate).1);
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match socket2::SockRef::from(&*self.wire.stream).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
