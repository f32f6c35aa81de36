//! Connections and those of them that wait for the next request.
//!
//! Invariants: a connection belongs to one request at a time; it comes back only after both bodies went through
//! completely; dropping one closes it; the one used last is reused first.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::config::Origin;
use crate::connect::Connector;
use crate::error::{Stage, TransportError};
use crate::meter::Meter;
use crate::socket::SocketFacts;

/// Most idle connections kept per host.
const MAX_IDLE: usize = 64;

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// One HTTP/1.1 connection. Closed when dropped.
pub(crate) struct Conn {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
    pub(crate) facts: Arc<SocketFacts>,
    pub(crate) reused: bool,
    epoch: u64,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Conn {
    async fn open(
        connector: &Connector,
        origin: &Origin,
        epoch: u64,
    ) -> Result<Self, TransportError> {
        let tcp = connector.dial(&origin.host, origin.port).await?;
        let facts = tcp.facts();
        let failed = |error: hyper::Error| TransportError::unsent(Stage::Connect, error);
        let (sender, task) = if origin.https {
            let stream = connector.secure(&origin.host, tcp).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(failed)?;
            (sender, tokio::spawn(connection))
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(failed)?;
            (sender, tokio::spawn(connection))
        };
        Ok(Self {
            sender,
            task: task.abort_handle(),
            facts,
            reused: false,
            epoch,
        })
    }

    /// Sends one request. With an error comes the request itself, if not a byte of it was sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<http::Response<hyper::body::Incoming>, (hyper::Error, Option<Request<Outgoing>>)>
    {
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut error| {
                let request = error.take_message();
                (error.into_error(), request)
            })
    }
}

/// Idle connections by host.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    epoch: u64,
    parked: HashMap<Origin, Vec<Parked>>,
}

struct Parked {
    conn: Conn,
    until: Instant,
}

impl Pool {
    /// An idle connection that still seems alive.
    pub(crate) async fn take(&self, origin: &Origin) -> Option<Conn> {
        loop {
            let parked = self.idle().parked.get_mut(origin)?.pop()?;
            let mut conn = parked.conn;
            if parked.until <= Instant::now() || conn.sender.is_closed() || !conn.facts.is_quiet() {
                continue;
            }
            // Settled at once: the connection has done its last request completely. The limit is a safety net.
            if matches!(
                timeout(Duration::from_secs(1), conn.sender.ready()).await,
                Ok(Ok(()))
            ) {
                conn.reused = true;
                return Some(conn);
            }
        }
    }

    /// A new connection.
    pub(crate) async fn open(
        &self,
        connector: &Connector,
        origin: &Origin,
    ) -> Result<Conn, TransportError> {
        let epoch = self.idle().epoch;
        Conn::open(connector, origin, epoch).await
    }

    /// Keeps a connection for at most `patience`.
    pub(crate) fn put(&self, origin: &Origin, conn: Conn, patience: Duration) {
        let now = Instant::now();
        let mut idle = self.idle();
        for parked in idle.parked.values_mut() {
            parked.retain(|parked| parked.until > now && !parked.conn.sender.is_closed());
        }
        idle.parked.retain(|_, parked| !parked.is_empty());
        if conn.epoch != idle.epoch || conn.sender.is_closed() {
            return;
        }
        let parked = idle.parked.entry(origin.clone()).or_default();
        if parked.len() < MAX_IDLE {
            parked.push(Parked {
                conn,
                until: now + patience,
            });
        }
    }

    /// Closes the idle connections to one host.
    pub(crate) fn forget(&self, origin: &Origin) {
        self.idle().parked.remove(origin);
    }

    /// Closes all idle connections; those at work are closed when they are done.
    pub(crate) fn clear(&self) {
        let mut idle = self.idle();
        idle.epoch += 1;
        idle.parked.clear();
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a body was read.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    length: u64,
    finished: AtomicBool,
    failed: AtomicBool,
}

impl Taken {
    /// Every promised byte was taken, and the kernel has them. (The head counts too; a body that lacks only as much as
    /// the head is long passes for complete.)
    pub(crate) fn all_sent(&self, meter: &Meter) -> bool {
        self.finished.load(Ordering::Acquire)
            && !meter.holds_back()
            && meter.handed_over() >= self.length
    }

    /// The body gave an error, or too few or too many bytes.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// A body of a promised length, of any origin.
pub(crate) struct Outgoing {
    inner: UnsyncBoxBody<Bytes, BoxError>,
    length: u64,
    left: u64,
    taken: Arc<Taken>,
    gate: Option<Gate>,
}

/// What a body waits for before its first byte.
pub(crate) type Gate = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body does not keep its promise.
#[derive(Debug, thiserror::Error)]
enum WrongLength {
    #[error("the data ended after {given} of {length} bytes")]
    Short { given: u64, length: u64 },
    #[error("the data is longer than the promised {length} bytes")]
    Long { length: u64 },
}

impl Outgoing {
    pub(crate) fn new<B>(body: B, length: u64) -> (Self, Arc<Taken>)
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let taken = Arc::new(Taken {
            length,
            finished: AtomicBool::new(length == 0),
            failed: AtomicBool::new(false),
        });
        let inner = body.map_err(Into::into).boxed_unsync();
        (
            Self {
                inner,
                length,
                left: length,
                taken: Arc::clone(&taken),
                gate: None,
            },
            taken,
        )
    }

    /// Gives nothing before `gate` is open.
    pub(crate) fn wait_for(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    fn fail(&mut self, error: impl Into<BoxError>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.taken.failed.store(true, Ordering::Release);
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(gate) = &mut self.gate {
            std::task::ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        loop {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            let length = self.length;
            let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    let given = length - self.left;
                    return self.fail(WrongLength::Short { given, length });
                }
                Some(Err(error)) => return self.fail(error),
                Some(Ok(frame)) => frame,
            };
            // Trailers have no place in a body of known length.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return self.fail(WrongLength::Long { length });
            };
            self.left = left;
            if left == 0 {
                self.taken.finished.store(true, Ordering::Release);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
