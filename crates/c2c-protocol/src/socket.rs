//! A TCP connection that counts, and that does not lose an early answer.
//!
//! Invariants:
//!
//! - Bytes are counted below TLS, after the kernel has taken them.
//! - A server may answer and close while the request is still being sent. The kernel then fails the next write although
//!   the answer waits in the receive buffer. So a failed write is kept back until the reader has come to the end: the
//!   answer wins, and the error is reported only where there is none.
//! - Whoever watches the counts holds the socket weakly: watching never keeps a connection open.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tuning::{self, Transport};

/// A connected socket.
#[derive(Debug)]
pub(crate) struct TcpIo {
    tcp: Arc<TcpStream>,
    facts: Arc<SocketFacts>,
    write_error: Option<io::Error>,
}

/// What can be known about a connection from outside.
#[derive(Debug)]
pub(crate) struct SocketFacts {
    tcp: Weak<TcpStream>,
    written: AtomicU64,
    /// Bytes that the layer above has taken from its caller and not given to the kernel yet.
    held_back: AtomicU64,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    loss_based: bool,
}

impl TcpIo {
    pub(crate) fn new(tcp: TcpStream, peer: SocketAddr) -> Self {
        let tcp = Arc::new(tcp);
        let facts = Arc::new(SocketFacts {
            tcp: Arc::downgrade(&tcp),
            written: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            peer,
            local: tcp.local_addr().ok(),
            loss_based: tuning::loss_based(&tcp),
        });
        Self {
            tcp,
            facts,
            write_error: None,
        }
    }

    pub(crate) fn facts(&self) -> Arc<SocketFacts> {
        Arc::clone(&self.facts)
    }

    /// Notes how much the layer above holds back.
    pub(crate) fn hold_back(&self, count: usize) {
        self.facts.held_back.store(count as u64, Ordering::Release);
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.write_error.is_some() {
            // Nobody wakes this up: the reader goes on, and its end is the end of the connection.
            return Poll::Pending;
        }
        let error = loop {
            match ready!(self.tcp.poll_write_ready(cx)) {
                Ok(()) => {}
                Err(error) => break error,
            }
            match write(&self.tcp) {
                Ok(count) => {
                    self.facts
                        .written
                        .fetch_add(count as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break error,
            }
        };
        self.write_error = Some(error);
        // The reader may have gone to sleep in this very turn, before the connection broke.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl SocketFacts {
    /// Bytes that the kernel has taken since the connection was made.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether bytes wait between their sender and the kernel.
    pub(crate) fn holds_back(&self) -> bool {
        self.held_back.load(Ordering::Acquire) > 0
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our own address, if the system tells it.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Bytes that the kernel has taken and the other side has not confirmed; `None` once the connection is gone, 0
    /// where the system cannot tell.
    pub(crate) fn unacknowledged(&self) -> Option<u64> {
        let tcp = self.tcp.upgrade()?;
        send_queue(&tcp)
    }

    /// What the kernel knows about the connection; `None` once it is gone, or where the system does not tell.
    pub(crate) fn transport(&self) -> Option<Transport> {
        let tcp = self.tcp.upgrade()?;
        tuning::transport(&tcp, self.loss_based)
    }

    /// Whether the idle connection is still open and silent. Anything to read from it, the end included, means that
    /// the server is done with it.
    pub(crate) fn is_quiet(&self) -> bool {
        let Some(tcp) = self.tcp.upgrade() else {
            return false;
        };
        let mut byte = [MaybeUninit::uninit()];
        let seen = SockRef::from(&*tcp).peek(&mut byte);
        matches!(seen, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for TcpIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = loop {
            if let Err(error) = ready!(self.tcp.poll_read_ready(cx)) {
                break Err(error);
            }
            match self.tcp.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other,
            }
        };
        match outcome {
            Ok(count) if count > 0 || buf.remaining() == 0 => {
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
            // The end. If sending failed before, that is the better explanation.
            ended => Poll::Ready(match self.write_error.take() {
                Some(error) => Err(error),
                None => ended.map(|_| ()),
            }),
        }
    }
}

impl AsyncWrite for TcpIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp| tcp.try_write(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp| tcp.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match SockRef::from(&*self.tcp).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "arm",
        target_arch = "aarch64",
        target_arch = "riscv32",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    )
))]
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
fn send_queue(tcp: &TcpStream) -> Option<u64> {
    /// `SIOCOUTQ`, the same as `TIOCOUTQ`, on these architectures.
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: the descriptor is an open TCP socket, borrowed for the call, and for it SIOCOUTQ writes one C int.
    let bytes = unsafe {
        let getter = rustix::ioctl::Getter::<SIOCOUTQ, core::ffi::c_int>::new();
        rustix::ioctl::ioctl(tcp, getter)
    };
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok())
}

#[cfg(not(all(
    any(target_os = "linux", target_os = "android"),
    any(
        target_arch = "x86",
        target_arch = "x86_64",
        target_arch = "arm",
        target_arch = "aarch64",
        target_arch = "riscv32",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    )
)))]
fn send_queue(_tcp: &TcpStream) -> Option<u64> {
    Some(0)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_answer_outlives_a_failed_write() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut ours = TcpIo::new(TcpStream::connect(address).await.unwrap(), address);
        let (mut theirs, _) = listener.accept().await.unwrap();
        ours.write_all(b"request").await.unwrap();
        theirs.readable().await.unwrap();
        theirs.write_all(b"answer").await.unwrap();
        // Closed with bytes unread: the kernel resets the connection.
        drop(theirs);
        while ours.write_error.is_none() {
            poll_fn(|cx| match Pin::new(&mut ours).poll_write(cx, b"more") {
                Poll::Ready(Err(error)) => panic!("the answer is lost: {error}"),
                _ => Poll::Ready(()),
            })
            .await;
            tokio::task::yield_now().await;
        }
        let mut answer = [0; 6];
        ours.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        // After the last byte the failure comes to light, and only then.
        assert!(ours.read(&mut answer).await.is_err());
    }

    #[tokio::test]
    async fn facts_do_not_keep_a_connection_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut ours = TcpIo::new(TcpStream::connect(address).await.unwrap(), address);
        let (mut theirs, _) = listener.accept().await.unwrap();
        let facts = ours.facts();
        assert!(facts.is_quiet());
        ours.write_all(b"hello").await.unwrap();
        assert_eq!((facts.written(), facts.peer()), (5, address));
        theirs.write_all(b"!").await.unwrap();
        poll_fn(|cx| ours.tcp.poll_read_ready(cx)).await.unwrap();
        assert!(!facts.is_quiet(), "there is something to read");
        drop(ours);
        let mut all = Vec::new();
        // Ends, because the socket is closed although the facts live on; the unread byte makes it a reset.
        let _ = theirs.read_to_end(&mut all).await;
        assert_eq!(
            (facts.unacknowledged(), facts.is_quiet(), facts.written()),
            (None, false, 5)
        );
    }
}
