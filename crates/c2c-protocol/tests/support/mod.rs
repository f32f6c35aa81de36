//! A server that does exactly what a test says, over real sockets, and remembers all it was sent.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test file uses its own part of this, and a helper that fails fails the test"
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use c2c_protocol::{Client, ClientConfig, SecretString, Trust, UploadUrl};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What to do with one request.
#[derive(Clone)]
pub enum Step {
    /// Read it all, answer, and wait for the next one.
    Answer(Vec<u8>),
    /// Give the first word after the head, read it all, answer, and wait for the next one.
    Consent(Vec<u8>, Vec<u8>),
    /// Read it all, answer, and close.
    AnswerAndClose(Vec<u8>),
    /// Read the head alone, answer, and close with the body unread: the kernel then resets the connection.
    EarlyAndReset(Vec<u8>),
    /// Read the head alone, answer, and keep the connection open without reading on.
    EarlyAndHold(Vec<u8>),
    /// Read it all and close without a word.
    Close,
    /// Read the head and so many bytes of the body, then close.
    CutAfter(usize),
    /// Read the head and so many bytes of the body, then do nothing more.
    Stall(usize),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub connection: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

#[derive(Default)]
pub struct Log {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    closed: AtomicUsize,
    changed: Notify,
}

pub struct Server {
    pub address: SocketAddr,
    log: Arc<Log>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Takes the steps one per request, in the order of the requests; the last one repeats.
    pub async fn start(steps: Vec<Step>) -> Self {
        Self::start_with(steps, None).await
    }

    pub async fn start_with(steps: Vec<Step>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let served = Arc::clone(&log);
        let steps = Arc::new(Mutex::new(steps));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // Else a short answer may still wait for an acknowledgement when the connection is reset.
                tcp.set_nodelay(true).unwrap();
                let number = served.connections.fetch_add(1, Ordering::SeqCst);
                let (log, steps, tls) = (Arc::clone(&served), Arc::clone(&steps), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(tcp, number, &log, &steps).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                serve(stream, number, &log, &steps).await;
                            }
                        }
                    }
                    log.closed.fetch_add(1, Ordering::SeqCst);
                    log.changed.notify_waiters();
                });
            }
        });
        Self { address, log, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }

    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many connections are closed, seen from here.
    pub async fn until_closed(&self, count: usize) {
        self.until(|log| log.closed.load(Ordering::SeqCst) >= count)
            .await;
    }

    /// Waits until so many requests have come (their heads, where a step reads no more).
    pub async fn until_seen(&self, count: usize) {
        self.until(|log| log.seen.lock().unwrap().len() >= count)
            .await;
    }

    async fn until(&self, done: impl Fn(&Log) -> bool) {
        let wait = async {
            loop {
                let changed = self.log.changed.notified();
                if done(&self.log) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("the server waits in vain");
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            api_url: format!("http://{}", self.address),
            client_version: "2.16.4".into(),
            allow_plain_loopback: true,
            // No system certificates are needed for plain connections, and none may be there.
            trust: Trust::Only(vec![Authority::new().root()]),
            ..ClientConfig::default()
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    pub fn url(&self, path: &str) -> UploadUrl {
        // Another name for the same machine: the API takes no chunks.
        let port = self.address.port();
        UploadUrl::parse(&format!("http://localhost:{port}{path}"), true).unwrap()
    }
}

async fn serve(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    number: usize,
    log: &Log,
    steps: &Mutex<Vec<Step>>,
) {
    let mut buffer = Vec::new();
    while let Some((line, headers)) = read_head(&mut io, &mut buffer).await {
        let step = {
            let mut steps = steps.lock().unwrap();
            if steps.len() > 1 {
                steps.remove(0)
            } else {
                steps[0].clone()
            }
        };
        let length = headers
            .iter()
            .find(|(name, _)| name == "content-length")
            .map_or(0, |(_, value)| value.parse::<usize>().unwrap());
        let wanted = match step {
            Step::EarlyAndReset(_) | Step::EarlyAndHold(_) => 0,
            Step::CutAfter(count) | Step::Stall(count) => count.min(length),
            Step::Answer(_) | Step::Consent(..) | Step::AnswerAndClose(_) | Step::Close => length,
        };
        if let Step::Consent(word, _) = &step {
            io.write_all(word).await.unwrap();
            io.flush().await.unwrap();
        }
        let mut body = std::mem::take(&mut buffer);
        let mut block = vec![0; 64 * 1024];
        while body.len() < wanted {
            match io.read(&mut block).await {
                Ok(count) if count > 0 => body.extend_from_slice(&block[..count]),
                _ => break,
            }
        }
        let complete = body.len() >= wanted;
        body.truncate(length);
        log.seen.lock().unwrap().push(Seen {
            line,
            headers,
            body,
            connection: number,
        });
        log.changed.notify_waiters();
        if !complete {
            return;
        }
        match step {
            Step::Answer(answer) | Step::Consent(_, answer) => io.write_all(&answer).await.unwrap(),
            Step::AnswerAndClose(answer) => {
                io.write_all(&answer).await.unwrap();
                let _ = io.shutdown().await;
                return;
            }
            Step::EarlyAndReset(answer) => {
                io.write_all(&answer).await.unwrap();
                io.flush().await.unwrap();
                return;
            }
            Step::EarlyAndHold(answer) => {
                io.write_all(&answer).await.unwrap();
                io.flush().await.unwrap();
                std::future::pending::<()>().await;
            }
            Step::Close | Step::CutAfter(_) => return,
            Step::Stall(_) if wanted == length => {
                let _ = io.read(&mut block).await;
                return;
            }
            Step::Stall(_) => std::future::pending::<()>().await,
        }
    }
}

async fn read_head(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Option<(String, Vec<(String, String)>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut block = [0; 4096];
        match io.read(&mut block).await {
            Ok(count) if count > 0 => buffer.extend_from_slice(&block[..count]),
            _ => return None,
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some((line, headers))
}

/// An answer with a body.
pub fn answer(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut text = format!(
        "HTTP/1.1 {status} Words\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    text.extend_from_slice(body);
    text
}

pub fn json(status: u16, body: &str) -> Step {
    Step::Answer(answer(status, "Content-Type: application/json\r\n", body))
}

pub fn stored(etag: &str) -> Step {
    Step::Answer(answer(
        200,
        &format!("ETag: \"{etag}\"\r\nx-amz-request-id: RID\r\n"),
        "",
    ))
}

pub fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

pub fn body(length: usize) -> Full<Bytes> {
    Full::new(Bytes::from(vec![7; length]))
}

/// A certificate authority of its own.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            certificate,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub fn pem(&self) -> String {
        use std::fmt::Write;
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in base64(&self.certificate).as_bytes().chunks(64) {
            writeln!(pem, "{}", std::str::from_utf8(line).unwrap()).unwrap();
        }
        pem + "-----END CERTIFICATE-----\n"
    }

    pub fn acceptor(&self, host: &str) -> TlsAcceptor {
        c2c_protocol::install_crypto_provider();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = tokio_rustls::rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, at| {
            word << 8 | u32::from(group.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * at) & 63) as usize] as char;
            text.push(if at <= group.len() { letter } else { '=' });
        }
    }
    text
}

/// A port on which nobody listens.
pub async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// A server that takes connections and says nothing.
pub async fn silent() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// Connects by hand, to see that a port is alive.
pub async fn reachable(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_ok()
}

/// An error with the whole chain of its causes.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(" <- {cause} {cause:?}");
        next = cause.source();
    }
    text
}
