//! One connection: heads are read, bodies are dropped.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::net::RecvFlags;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};

use super::answers;
use super::http::Head;
use super::{Body, Sink, Tally};

const BUFFER: usize = 512 * 1024;
const MAX_HEAD: usize = 64 * 1024;
/// Bodies other than of a PUT are looked at, and must be small.
const MAX_BODY: u64 = 4 << 20;

/// Where plain bytes come from and go to.
trait Pipe {
    /// Adds what has come to `head`; 0 is the end.
    fn read_some(&mut self, head: &mut Vec<u8>) -> io::Result<usize>;
    /// Drops at most `most` bytes, at least one; 0 is the end.
    fn discard(&mut self, most: u64) -> io::Result<u64>;
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Serves a connection until it ends.
pub(crate) fn serve(tcp: TcpStream, secure: bool, sink: &Arc<Sink>) {
    // However a connection ends, the next one is served.
    let _ = if secure {
        Secure::accept(tcp, sink).and_then(|mut pipe| requests(&mut pipe, sink))
    } else {
        requests(
            &mut Plain {
                tcp,
                scratch: vec![0; BUFFER],
            },
            sink,
        )
    };
}

fn requests(pipe: &mut impl Pipe, sink: &Sink) -> io::Result<()> {
    let mut held = Vec::new();
    let mut open = None;
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if held.len() > MAX_HEAD || pipe.read_some(&mut held)? == 0 {
                return Ok(());
            }
        };
        let Some(head) = Head::parse(&held[..end]).filter(|head| !head.chunked) else {
            return pipe.send(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            );
        };
        held.drain(..end + 4);
        let tally = sink.tally();
        // Who asks for the counts does not count.
        if !head.path.starts_with("/_") {
            open.get_or_insert_with(|| tally.open());
            tally.requests.fetch_add(1, Ordering::Relaxed);
        }
        if head.expects_word && head.length > 0 {
            pipe.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        if head.method == "PUT" {
            let part = tally.parts().begun(head.part());
            let (bytes, ended) = drop_body(pipe, &mut held, head.length, &tally, &part);
            tally.parts().ended(&part, bytes == head.length);
            ended?;
            if bytes < head.length {
                return Ok(());
            }
            tally.bytes_whole.fetch_add(bytes, Ordering::Relaxed);
        } else {
            if head.length > MAX_BODY {
                return Ok(());
            }
            while (held.len() as u64) < head.length {
                if pipe.read_some(&mut held)? == 0 {
                    return Ok(());
                }
            }
            body = held.drain(..head.length as usize).collect();
        }
        let mut answer = answers::to(&head, &body, sink);
        if head.method == "HEAD" {
            // Whatever it would be: a HEAD has no body.
            if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                answer.truncate(at + 4);
            }
        }
        pipe.send(&answer)?;
        if head.closes {
            return Ok(());
        }
    }
}

/// Drops a body of which `held` may be the beginning: how much came, and whether the connection is still one.
fn drop_body(
    pipe: &mut impl Pipe,
    held: &mut Vec<u8>,
    length: u64,
    tally: &Tally,
    body: &Body,
) -> (u64, io::Result<()>) {
    let mut bytes = length.min(held.len() as u64);
    held.drain(..bytes as usize);
    let came = |bytes| {
        tally.received(bytes);
        body.came(bytes);
    };
    came(bytes);
    while bytes < length {
        match pipe.discard(length - bytes) {
            Ok(0) => break,
            Ok(count) => {
                bytes += count;
                came(count);
            }
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}

struct Plain {
    tcp: TcpStream,
    scratch: Vec<u8>,
}

impl Pipe for Plain {
    fn read_some(&mut self, head: &mut Vec<u8>) -> io::Result<usize> {
        let most = self.scratch.len().min(8 * 1024);
        let count = self.tcp.read(&mut self.scratch[..most])?;
        head.extend_from_slice(&self.scratch[..count]);
        Ok(count)
    }

    fn discard(&mut self, most: u64) -> io::Result<u64> {
        let most = most.min(self.scratch.len() as u64) as usize;
        // Dropped in the kernel: nothing is copied.
        let (_, count) = rustix::net::recv(&self.tcp, &mut self.scratch[..most], RecvFlags::TRUNC)?;
        Ok(count as u64)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes)
    }
}

struct Secure {
    tcp: TcpStream,
    tls: UnbufferedServerConnection,
    incoming: Vec<u8>,
    filled: usize,
    outgoing: Vec<u8>,
    /// Plain bytes that came while something else was waited for.
    early: Vec<u8>,
    ready: bool,
    ended: bool,
}

/// What becomes of plain bytes.
enum Into<'a> {
    Head(&'a mut Vec<u8>),
    /// So many were dropped, and what came after the body.
    Nothing(u64, &'a mut Vec<u8>),
}

impl Secure {
    fn accept(tcp: TcpStream, sink: &Sink) -> io::Result<Secure> {
        let tls = UnbufferedServerConnection::new(sink.tls.clone()).map_err(io::Error::other)?;
        let mut pipe = Secure {
            tcp,
            tls,
            incoming: vec![0; BUFFER],
            filled: 0,
            outgoing: vec![0; 16 * 1024],
            early: Vec::new(),
            ready: false,
            ended: false,
        };
        let mut early = Vec::new();
        while !pipe.ready {
            pipe.turn(&mut Into::Head(&mut early), None)?;
            if !pipe.ready && !pipe.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        pipe.early = early;
        Ok(pipe)
    }

    fn fill(&mut self) -> io::Result<bool> {
        let count = self.tcp.read(&mut self.incoming[self.filled..])?;
        self.filled += count;
        Ok(count > 0)
    }

    /// Goes on until nothing is left to do without more input; how many plain bytes came.
    fn turn(&mut self, into: &mut Into<'_>, mut send: Option<&[u8]>) -> io::Result<usize> {
        let mut total = 0;
        loop {
            let UnbufferedStatus {
                mut discard, state, ..
            } = self
                .tls
                .process_tls_records(&mut self.incoming[..self.filled]);
            let mut done = false;
            match state.map_err(io::Error::other)? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        discard += record.discard;
                        total += record.payload.len();
                        match into {
                            Into::Head(head) => head.extend_from_slice(record.payload),
                            Into::Nothing(left, after) => {
                                let body = (*left).min(record.payload.len() as u64);
                                *left -= body;
                                after.extend_from_slice(&record.payload[body as usize..]);
                            }
                        }
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let count = match data.encode(&mut self.outgoing) {
                        Ok(count) => count,
                        Err(EncodeError::InsufficientSize(InsufficientSizeError {
                            required_size,
                        })) => {
                            self.outgoing.resize(required_size, 0);
                            data.encode(&mut self.outgoing).map_err(io::Error::other)?
                        }
                        Err(error) => return Err(io::Error::other(error)),
                    };
                    self.tcp.write_all(&self.outgoing[..count])?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.ended = true;
                    done = true;
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    self.ready = true;
                    if let Some(bytes) = send.take() {
                        let room = bytes.len() + 1024;
                        if self.outgoing.len() < room {
                            self.outgoing.resize(room, 0);
                        }
                        let count = traffic
                            .encrypt(bytes, &mut self.outgoing)
                            .map_err(io::Error::other)?;
                        self.tcp.write_all(&self.outgoing[..count])?;
                    }
                    done = true;
                }
                _ => done = true,
            }
            if discard > 0 {
                self.incoming.copy_within(discard..self.filled, 0);
                self.filled -= discard;
            }
            if done {
                return Ok(total);
            }
        }
    }

    fn more(&mut self, into: &mut Into<'_>) -> io::Result<usize> {
        loop {
            if self.ended || !self.fill()? {
                return Ok(0);
            }
            let count = self.turn(into, None)?;
            if count > 0 {
                return Ok(count);
            }
        }
    }
}

impl Pipe for Secure {
    fn read_some(&mut self, head: &mut Vec<u8>) -> io::Result<usize> {
        if !self.early.is_empty() {
            let count = self.early.len();
            head.append(&mut self.early);
            return Ok(count);
        }
        self.more(&mut Into::Head(head))
    }

    fn discard(&mut self, most: u64) -> io::Result<u64> {
        let mut after = Vec::new();
        let mut into = Into::Nothing(most, &mut after);
        if self.more(&mut into)? == 0 {
            return Ok(0);
        }
        let Into::Nothing(left, _) = into else {
            return Ok(0);
        };
        // A client that sends the next request before the answer would be misread: none of those measured does.
        if !after.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(most - left)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut early = std::mem::take(&mut self.early);
        let sent = self.turn(&mut Into::Head(&mut early), Some(bytes));
        self.early = early;
        sent.map(drop)
    }
}
