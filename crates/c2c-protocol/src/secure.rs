//! TLS for a counted connection, sealed in batches.
//!
//! Invariants:
//!
//! - What a caller hands over is sealed at once, up to 17 records, into one buffer that leaves with as few system calls as
//!   the kernel allows. Buffers for sealed bytes are shared by all connections and used again: one exists for each
//!   connection that has something to send, none for the idle ones.
//! - Bytes are taken from the caller only while nothing sealed is waiting, so that at most one batch is held back here.
//! - An end without the peer's close_notify is an error: it may be a cut.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{
    AppDataRecord, ConnectionState, EncodeError, EncryptError, InsufficientSizeError,
    UnbufferedStatus,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::socket::TcpIo;

/// Plain bytes of one TLS record.
const RECORD: usize = 16 * 1024;
/// Most plain bytes sealed at once: a body buffer of 256 KiB and the head before it.
const BATCH: usize = 17 * RECORD;
/// Room for a sealed batch: each record grows by at most 29 bytes, and slices do not end at record boundaries.
const SEALED: usize = BATCH + 64 * 32;
/// Sealed bytes of less than this stay in a buffer of the connection's own.
const SMALL: usize = 8 * 1024;
/// First room for what comes in, and most of it: a handshake may spread over several records.
const INCOMING: usize = 4 * 1024;
const MAX_INCOMING: usize = 128 * 1024;
/// Spare buffers kept at most.
const MAX_SPARE: usize = 32;

/// Buffers of [`SEALED`] bytes that nobody uses.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A TLS client connection.
pub(crate) struct TlsIo {
    tcp: TcpIo,
    tls: UnbufferedClientConnection,
    incoming: Vec<u8>,
    filled: usize,
    plain: Vec<u8>,
    taken: usize,
    sealed: Sealed,
    /// The peer said that it sends nothing more.
    ended: bool,
}

/// Where the connection stands after all that came was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Ready,
    NeedsInput,
    Closed,
}

/// What the turn is for.
enum Wish<'a> {
    LookOnly,
    Seal(&'a [u8]),
    SayGoodbye,
}

impl TlsIo {
    /// The handshake. The certificate must be valid for `name`.
    pub(crate) async fn connect(
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
        tcp: TcpIo,
    ) -> io::Result<TlsIo> {
        let tls = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        let mut io = TlsIo {
            tcp,
            tls,
            incoming: Vec::new(),
            filled: 0,
            plain: Vec::new(),
            taken: 0,
            sealed: Sealed::default(),
            ended: false,
        };
        loop {
            let turn = match io.turn(Wish::LookOnly) {
                Ok(turn) => turn,
                Err(error) => {
                    // The alert tells the other side why; whether it arrives does not matter.
                    let _ = io.turn(Wish::LookOnly);
                    poll_fn(|cx| {
                        let _ = io.poll_drain(cx);
                        Poll::Ready(())
                    })
                    .await;
                    return Err(error);
                }
            };
            let done = poll_fn(|cx| {
                // A failed write never becomes ready: then the reader finds the end.
                if let Poll::Ready(Err(error)) = io.poll_drain(cx) {
                    return Poll::Ready(Err(error));
                }
                match turn {
                    Turn::Ready => Poll::Ready(Ok(true)),
                    Turn::Closed => Poll::Ready(Err(cut())),
                    Turn::NeedsInput => match ready!(io.poll_fill(cx))? {
                        0 => Poll::Ready(Err(cut())),
                        _ => Poll::Ready(Ok(false)),
                    },
                }
            })
            .await?;
            if done {
                return Ok(io);
            }
        }
    }

    /// Looks at everything that came in, and does what is wished if the connection is open for it.
    fn turn(&mut self, mut wish: Wish<'_>) -> io::Result<Turn> {
        let TlsIo {
            tls,
            incoming,
            filled,
            plain,
            sealed,
            ended,
            tcp,
            ..
        } = self;
        loop {
            let UnbufferedStatus {
                mut discard, state, ..
            } = tls.process_tls_records(&mut incoming[..*filled]);
            let turn = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut read = Ok(None);
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(AppDataRecord {
                                discard: more,
                                payload,
                                ..
                            }) => {
                                discard += more;
                                plain.extend_from_slice(payload);
                            }
                            Err(error) => {
                                read = Err(invalid(error));
                                break;
                            }
                        }
                    }
                    read
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => sealed
                    .append(INCOMING, |out| match data.encode(out) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(InsufficientSizeError {
                            required_size,
                        })) => Err(Refused::Room(required_size)),
                        Err(error) => Err(Refused::For(io::Error::other(error))),
                    })
                    .map(|()| None),
                // The order is kept by the buffer; it leaves as soon as it can.
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(None)
                }
                Ok(ConnectionState::PeerClosed) => {
                    *ended = true;
                    Ok(None)
                }
                Ok(ConnectionState::Closed) => {
                    *ended = true;
                    Ok(Some(Turn::Closed))
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match std::mem::replace(&mut wish, Wish::LookOnly) {
                        Wish::LookOnly => Ok(Some(Turn::Ready)),
                        Wish::Seal(data) => sealed
                            .append(data.len() + (data.len() / RECORD + 1) * 32, |out| {
                                traffic.encrypt(data, out).map_err(Refused::from)
                            })
                            .map(|()| Some(Turn::Ready)),
                        Wish::SayGoodbye => sealed
                            .append(64, |out| {
                                traffic.queue_close_notify(out).map_err(Refused::from)
                            })
                            .map(|()| Some(Turn::Ready)),
                    }
                }
                Ok(ConnectionState::BlockedHandshake) => Ok(Some(Turn::NeedsInput)),
                Ok(other) => Err(io::Error::other(format!(
                    "a TLS state that no client is in: {other:?}"
                ))),
                Err(error) => Err(invalid(error)),
            };
            if discard > 0 {
                incoming.copy_within(discard..*filled, 0);
                *filled -= discard;
            }
            tcp.hold_back(sealed.waiting());
            if let Some(turn) = turn? {
                return Ok(turn);
            }
        }
    }

    /// Reads what has come. 0 is the end of the TCP connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.filled == self.incoming.len() {
            let room = (self.incoming.len() * 2).clamp(INCOMING, MAX_INCOMING);
            if room == self.filled {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the server's TLS handshake is too large",
                )));
            }
            self.incoming.resize(room, 0);
        }
        let mut buffer = ReadBuf::new(&mut self.incoming[self.filled..]);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.filled += count;
        Poll::Ready(Ok(count))
    }

    /// Gives the kernel what is sealed.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sealed.waiting() > 0 {
            let count =
                ready!(Pin::new(&mut self.tcp).poll_write(cx, self.sealed.bytes_waiting()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.gone(count);
            self.tcp.hold_back(self.sealed.waiting());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let waiting = &this.plain[this.taken..];
            if !waiting.is_empty() {
                let count = waiting.len().min(buf.remaining());
                buf.put_slice(&waiting[..count]);
                this.taken += count;
                if this.taken == this.plain.len() {
                    this.plain.clear();
                    this.taken = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(cut()));
            }
            this.turn(Wish::LookOnly)?;
            // An answer of TLS itself, such as new keys. If it cannot leave now, it goes with the next data.
            if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let mut total = 0;
        for buf in bufs {
            let part = &buf[..buf.len().min(BATCH - total)];
            if part.is_empty() {
                continue;
            }
            if this.turn(Wish::Seal(part))? != Turn::Ready {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            total += part.len();
        }
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is sealed is taken, and leaves when it can.
            _ => Poll::Ready(Ok(total)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn(Wish::SayGoodbye).is_ok() {
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

/// Bytes on their way to the kernel.
#[derive(Default)]
struct Sealed {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

enum Refused {
    Room(usize),
    For(io::Error),
}

impl From<EncryptError> for Refused {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
                Refused::Room(required_size)
            }
            error => Refused::For(io::Error::other(error)),
        }
    }
}

impl Sealed {
    fn waiting(&self) -> usize {
        self.end - self.start
    }

    fn bytes_waiting(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Lets `write` put bytes at the end, with as much room as it needs.
    fn append(
        &mut self,
        room: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Refused>,
    ) -> io::Result<()> {
        self.make_room(room);
        loop {
            match write(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(Refused::Room(room)) if room > self.bytes.len() - self.end => {
                    self.make_room(room);
                }
                Err(Refused::Room(_)) => {
                    return Err(io::Error::other("TLS asked for less room than there was"));
                }
                Err(Refused::For(error)) => return Err(error),
            }
        }
    }

    fn make_room(&mut self, room: usize) {
        let needed = self.end + room;
        if needed <= self.bytes.len() {
            return;
        }
        if needed <= SMALL {
            self.bytes.resize(SMALL, 0);
        } else if needed <= SEALED && self.bytes.len() < SEALED {
            let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut larger = spare.unwrap_or_else(|| vec![0; SEALED]);
            larger[..self.end].copy_from_slice(&self.bytes[..self.end]);
            self.bytes = larger;
        } else {
            self.bytes.resize(needed, 0);
        }
    }

    fn gone(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if self.bytes.len() == SEALED {
            let bytes = std::mem::take(&mut self.bytes);
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < MAX_SPARE {
                spare.push(bytes);
            }
        }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What the other side sent cannot be right. [`crate::tls::handshake_failed`] looks inside.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the other side closed the connection without the end of TLS",
    )
}
