//! A server that takes everything and keeps nothing.
//!
//! Invariants: a body byte is counted and dropped as early as possible, without TLS in the kernel and with it where it was
//! decrypted; the answers cost nothing; each connection has a thread of its own, so that no client waits for another; what was
//! begun before the counts were taken anew is not in them.
//!
//! It speaks as much of Camera to Cloud as a real client needs to pair and upload, the S3 calls of the usual uploaders, and
//! plain PUT. It checks no signature. Its entity tags do not look like an MD5: a client that verifies hashes all the same,
//! and has nothing to compare.

mod answers;
mod conn;
mod http;
mod observer;

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Failure;
pub(crate) use observer::Observer;

/// What arrived since the counts were taken anew.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Connections on which something was asked, other than for these counts.
    pub(crate) connections: u64,
    /// Of these, still open.
    pub(crate) open: u64,
    pub(crate) requests: u64,
    /// Bytes of the bodies of PUTs.
    pub(crate) bytes: u64,
    /// The same, of requests that were complete and answered.
    pub(crate) bytes_whole: u64,
    /// Bytes sent in vain: bodies that broke off or were begun anew, and those of parts that had arrived before.
    pub(crate) in_vain: u64,
    /// Bytes so far of bodies that are under way, and may become whole.
    pub(crate) in_flight: u64,
    /// Seconds from the first to the last of those bytes.
    pub(crate) span: f64,
    /// Media that were registered.
    pub(crate) assets: u64,
}

/// Where a running sink is found; printed as one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// The Camera to Cloud API, HTTPS.
    pub(crate) api: String,
    /// The storage, HTTPS.
    pub(crate) secure: String,
    /// The storage and the counts, plain HTTP.
    pub(crate) plain: String,
    /// PEM file of the authority that signed the certificate.
    pub(crate) ca_file: PathBuf,
}

/// What all connections share.
pub(crate) struct Sink {
    tally: Mutex<Arc<Tally>>,
    /// Connections of clients that are open, by numbers of their own.
    clients: Mutex<HashMap<u64, TcpStream>>,
    assets: AtomicU64,
    /// Base of the upload URLs.
    secure: String,
    tls: Arc<rustls::ServerConfig>,
}

#[derive(Default)]
struct Tally {
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    bytes_whole: AtomicU64,
    assets: AtomicU64,
    parts: Mutex<Parts>,
    span: Mutex<Option<(Instant, Instant)>>,
}

/// What came of each part.
#[derive(Default)]
struct Parts(HashMap<String, Bodies>);

/// All bodies of one part.
#[derive(Default)]
struct Bodies {
    /// Bytes of those that have ended.
    ended: u64,
    /// The longest of those that arrived as a whole.
    whole: Option<u64>,
    /// Those under way, in the order in which they began.
    under_way: Vec<Arc<AtomicU64>>,
}

/// A body under way: its part, and the bytes so far.
struct Body {
    part: String,
    bytes: Arc<AtomicU64>,
}

impl Body {
    fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Parts {
    fn begun(&mut self, part: String) -> Body {
        let bytes = Arc::new(AtomicU64::new(0));
        let bodies = self.0.entry(part.clone()).or_default();
        bodies.under_way.push(bytes.clone());
        Body { part, bytes }
    }

    fn ended(&mut self, body: &Body, whole: bool) {
        let bodies = self.0.entry(body.part.clone()).or_default();
        bodies
            .under_way
            .retain(|each| !Arc::ptr_eq(each, &body.bytes));
        let bytes = body.bytes.load(Ordering::Relaxed);
        bodies.ended += bytes;
        if whole {
            bodies.whole = Some(bodies.whole.map_or(bytes, |known| known.max(bytes)));
        }
    }

    /// Bytes in vain, and bytes in flight.
    fn sorted_out(&self) -> (u64, u64) {
        let (mut in_vain, mut in_flight) = (0, 0);
        for bodies in self.0.values() {
            let mut sent = bodies.ended;
            let mut newest = 0;
            for body in &bodies.under_way {
                newest = body.load(Ordering::Relaxed);
                sent += newest;
            }
            // Whoever begins anew has given up what came before, though the sink may not have heard of it.
            match bodies.whole {
                Some(whole) => in_vain += sent - whole,
                None => {
                    in_vain += sent - newest;
                    in_flight += newest;
                }
            }
        }
        (in_vain, in_flight)
    }
}

/// A connection that counts as open while this lives.
struct Open(Arc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    fn open(self: &Arc<Tally>) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let now = Instant::now();
        let mut span = self.span();
        *span = Some(span.map_or((now, now), |(first, _)| (first, now)));
    }

    fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (in_vain, in_flight) = self.parts().sorted_out();
        Counts {
            connections: get(&self.connections),
            open: get(&self.open),
            requests: get(&self.requests),
            bytes: get(&self.bytes),
            bytes_whole: get(&self.bytes_whole),
            in_vain,
            in_flight,
            span: self
                .span()
                .map_or(0.0, |(first, last)| (last - first).as_secs_f64()),
            assets: get(&self.assets),
        }
    }
}

impl Sink {
    fn new(secure: String, tls: Arc<rustls::ServerConfig>) -> Sink {
        Sink {
            tally: Mutex::default(),
            clients: Mutex::default(),
            assets: AtomicU64::new(1),
            secure,
            tls,
        }
    }

    /// The counts that are taken now.
    fn tally(&self) -> Arc<Tally> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }

    /// Takes the counts anew. What a killed client left in its kernel would still be sent, and take the place of what the
    /// next one sends: its connections end.
    fn reset(&self) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        for client in self.clients().values() {
            // One that has ended meanwhile is what is wanted.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the process ends. Says where on stdout.
pub(crate) fn serve(address: IpAddr, dir: &Path) -> Result<(), Failure> {
    let tls = certificate(address, dir)?;
    let listen = || {
        TcpListener::bind(SocketAddr::new(address, 0)).and_then(|listener| {
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        })
    };
    let failed = |source| Failure::Io {
        what: format!("listening on {address}"),
        source,
    };
    let (api, api_port) = listen().map_err(failed)?;
    let (secure, secure_port) = listen().map_err(failed)?;
    let (plain, plain_port) = listen().map_err(failed)?;
    let host = if address.is_loopback() {
        "localhost".to_owned()
    } else {
        address.to_string()
    };
    let addresses = Addresses {
        api: format!("https://{host}:{api_port}"),
        secure: format!("https://{host}:{secure_port}"),
        plain: format!("http://{host}:{plain_port}"),
        ca_file: dir.join("ca.pem"),
    };
    let sink = Arc::new(Sink::new(addresses.secure.clone(), tls));
    let line = serde_json::to_string(&addresses).map_err(Failure::Json)?;
    #[expect(clippy::print_stdout, reason = "the runner reads it there")]
    {
        println!("{line}");
    }
    std::thread::scope(|scope| {
        for (listener, secure) in [(&api, true), (&secure, true), (&plain, false)] {
            let sink = &sink;
            scope.spawn(move || accept(listener, secure, sink));
        }
    });
    Ok(())
}

fn accept(listener: &TcpListener, secure: bool, sink: &Arc<Sink>) {
    for (tcp, number) in listener.incoming().flatten().zip(0..) {
        let sink = sink.clone();
        // A connection that cannot have a thread is closed; the client sees it.
        let _ = std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || {
                let _ = tcp.set_nodelay(true);
                // Both listeners for clients count for themselves.
                let number = number << 1 | u64::from(secure);
                if let (true, Ok(other)) = (secure, tcp.try_clone()) {
                    sink.clients().insert(number, other);
                }
                conn::serve(tcp, secure, &sink);
                sink.clients().remove(&number);
            });
    }
}

fn certificate(address: IpAddr, dir: &Path) -> Result<Arc<rustls::ServerConfig>, Failure> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    let authority_key = KeyPair::generate().map_err(Failure::Certificate)?;
    let mut authority = CertificateParams::new(Vec::new()).map_err(Failure::Certificate)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose issuer has its own name for self-signed.
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "The authority of the bench");
    let root = authority
        .self_signed(&authority_key)
        .map_err(Failure::Certificate)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().map_err(Failure::Certificate)?;
    let names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        address.to_string(),
    ];
    let certificate = CertificateParams::new(names)
        .and_then(|params| params.signed_by(&key, &issuer))
        .map_err(Failure::Certificate)?;
    let path = dir.join("ca.pem");
    std::fs::write(&path, root.pem()).map_err(|source| Failure::Io {
        what: format!("writing {}", path.display()),
        source,
    })?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As the storage of the service does; the client's cipher then costs the same for all.
    let aes = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != aes.suite());
    let chain = vec![certificate.der().clone()];
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, key.into())
        })
        .map_err(Failure::Tls)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_broke_off_or_came_twice_was_in_vain_and_what_is_under_way_was_not() {
        let mut parts = Parts::default();
        let begin = |parts: &mut Parts, part: &str, bytes| {
            let body = parts.begun(part.to_owned());
            body.came(bytes);
            body
        };
        // Whole; broken off twice, whole between; whole twice; broken off and not begun again.
        for (part, bytes, whole) in [
            ("a", 10, true),
            ("b", 4, false),
            ("b", 10, true),
            ("b", 3, false),
            ("c", 20, true),
            ("c", 20, true),
            ("d", 100, false),
        ] {
            let body = begin(&mut parts, part, bytes);
            parts.ended(&body, whole);
        }
        assert_eq!(parts.sorted_out(), (4 + 3 + 20 + 100, 0));
        // Under way for the first time, and again after it broke off.
        let _first = begin(&mut parts, "e", 1_000);
        let second = begin(&mut parts, "d", 50);
        assert_eq!(parts.sorted_out(), (127, 1_050));
        // Begun anew while the sink still waits for the one before; and again what had arrived.
        let _anew = begin(&mut parts, "e", 7);
        let _twice = begin(&mut parts, "a", 5);
        assert_eq!(parts.sorted_out(), (127 + 1_000 + 5, 57));
        parts.ended(&second, true);
        assert_eq!(parts.sorted_out(), (127 + 1_000 + 5, 7));
    }

    /// What is served is what clients of all kinds ask for; the counts are of what was sent.
    #[test]
    fn a_part_that_breaks_off_is_counted_apart() {
        let dir = tempfile::tempdir().unwrap();
        let tls = certificate([127, 0, 0, 1].into(), dir.path()).unwrap();
        let sink = Arc::new(Sink::new("https://localhost:1".to_owned(), tls));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = sink.clone();
        // Each in turn, so that one has ended when the next is answered.
        let serving = std::thread::spawn(move || {
            for _ in 0..3 {
                conn::serve(listener.accept().unwrap().0, false, &server);
            }
        });
        let say = |words: &str| {
            let mut tcp = TcpStream::connect(address).unwrap();
            tcp.write_all(words.as_bytes()).unwrap();
            tcp.shutdown(std::net::Shutdown::Write).unwrap();
            let mut said = String::new();
            tcp.read_to_string(&mut said).unwrap();
            said
        };
        let broken =
            say("PUT /b/k?partNumber=1&uploadId=u HTTP/1.1\r\nContent-Length: 9\r\n\r\n1234");
        assert_eq!(broken, "");
        let both = say(
            "PUT /b/k?partNumber=1&uploadId=v HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789\
             PUT /b/k?partNumber=2&uploadId=v HTTP/1.1\r\nContent-Length: 2\r\n\r\n12",
        );
        assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
        assert!(!both.contains("100 Continue"));
        let counts = say("GET /_counts HTTP/1.1\r\n\r\n");
        serving.join().unwrap();
        let counts: Counts =
            serde_json::from_str(counts.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            (counts.bytes, counts.bytes_whole, counts.in_vain),
            (15, 11, 4)
        );
        assert_eq!(
            (counts.connections, counts.open, counts.requests),
            (2, 0, 3)
        );
        sink.reset();
        let counts = sink.tally().counts();
        assert_eq!(
            (counts.bytes, counts.in_vain, counts.connections),
            (0, 0, 0)
        );
    }
}
