//! From a host name to a connection.
//!
//! [`Connector::dial`] is the seam: whatever stands between this machine and the host (a proxy, a tunnel) goes there,
//! and everything above sees a byte stream.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
#[cfg(any(target_os = "linux", target_os = "android"))]
use socket2::SockRef;
use tokio::net::{TcpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::config::ResolveOverride;
use crate::error::{Stage, TransportError};
use crate::proxy::{Kind, Proxies, ProxyUrl, ProxyUrlError};
use crate::secure::TlsIo;
use crate::socket::TcpIo;
use crate::tls::handshake_failed;
use crate::tuning::Tuning;
use crate::tunnel::{self, Behind, TunnelError};

/// How long an address may stay silent before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);

/// Makes connections.
pub(crate) struct Connector {
    pub(crate) resolve: Vec<ResolveOverride>,
    pub(crate) connect_timeout: Duration,
    pub(crate) interface: Option<String>,
    pub(crate) tuning: Arc<Tuning>,
    pub(crate) proxies: Proxies,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Connector {
    /// Connects to a host: name, then its addresses; through a proxy where there is one on the way.
    pub(crate) async fn dial(&self, host: &str, port: u16) -> Result<TcpIo, TransportError> {
        let deadline = Instant::now() + self.connect_timeout;
        let proxy = self
            .proxy(host, port)
            .map_err(|error| TransportError::unsent(Stage::Proxy, TunnelError::from(error)))?;
        match proxy {
            Some(proxy) => self.dial_through(&proxy, host, port, deadline).await,
            None => {
                let addresses = self.lookup(host, port, deadline).await?;
                self.race(&addresses, deadline).await
            }
        }
    }

    /// The proxy on the way to a host.
    pub(crate) fn proxy(&self, host: &str, port: u16) -> Result<Option<ProxyUrl>, ProxyUrlError> {
        let pinned = self.pinned(host, port).is_some();
        self.proxies.on_the_way_to(host, port, pinned)
    }

    fn pinned(&self, host: &str, port: u16) -> Option<&ResolveOverride> {
        self.resolve
            .iter()
            .find(|known| known.port == port && known.host == host)
    }

    async fn dial_through(
        &self,
        proxy: &ProxyUrl,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TcpIo, TransportError> {
        let addresses_of =
            |found: Vec<SocketAddr>| found.into_iter().map(Behind::Address).collect();
        let behind: Vec<Behind> = match proxy.kind {
            // An address of its own counts, whoever would resolve the name.
            _ if self.pinned(host, port).is_some() => {
                addresses_of(self.lookup(host, port, deadline).await?)
            }
            Kind::Connect | Kind::Socks5 { resolves: true } => vec![Behind::new(host, port)],
            Kind::Socks5 { resolves: false } => {
                addresses_of(self.lookup(host, port, deadline).await?)
            }
        };
        let mut last_error = None;
        for behind in &behind {
            let through = async {
                let unreachable = |source| TunnelError::Unreachable {
                    proxy: proxy.authority(),
                    source,
                };
                let addresses = self
                    .lookup(&proxy.host, proxy.port, deadline)
                    .await
                    .map_err(unreachable)?;
                let mut tcp = self.race(&addresses, deadline).await.map_err(unreachable)?;
                match proxy.kind {
                    Kind::Connect => tunnel::connect(&mut tcp, proxy, behind).await?,
                    Kind::Socks5 { .. } => tunnel::socks5(&mut tcp, proxy, behind).await?,
                }
                Ok(tcp)
            };
            match timeout_at(deadline, through).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) => {
                    let goes_on = TunnelError::tries_elsewhere(&error);
                    last_error = Some(error);
                    if !goes_on {
                        break;
                    }
                }
                Err(_) => {
                    last_error = Some(TunnelError::Silent {
                        proxy: proxy.authority(),
                        seconds: self.connect_timeout.as_secs_f64(),
                    });
                    break;
                }
            }
        }
        let error = last_error.unwrap_or_else(|| TunnelError::NoProxy {
            proxy: proxy.authority(),
        });
        Err(TransportError::unsent(Stage::Proxy, error))
    }

    /// The addresses of a host, IPv6 and IPv4 alternating.
    pub(crate) async fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, TransportError> {
        self.lookup(host, port, Instant::now() + self.connect_timeout)
            .await
    }

    /// Connects to one address.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<TcpIo, TransportError> {
        self.race(&[address], Instant::now() + self.connect_timeout)
            .await
    }

    /// Makes a connection secure. The certificate must be valid for `host`.
    pub(crate) async fn secure(&self, host: &str, tcp: TcpIo) -> Result<TlsIo, TransportError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| TransportError::unsent(Stage::TlsCertificate, error))?;
        let handshake = TlsIo::connect(Arc::clone(&self.tls), name, tcp);
        match timeout(self.connect_timeout, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(handshake_failed(error)),
            Err(_) => Err(TransportError::unsent(
                Stage::Tls,
                timed_out("no TLS handshake", self.connect_timeout),
            )),
        }
    }

    async fn lookup(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, TransportError> {
        if let Some(known) = self.pinned(host, port) {
            return Ok(known
                .addresses
                .iter()
                .map(|address| SocketAddr::new(*address, port))
                .collect());
        }
        let found: Vec<SocketAddr> = match timeout_at(deadline, lookup_host((host, port))).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return Err(TransportError::unsent(Stage::Resolve, error)),
            Err(_) => {
                let error = timed_out("no answer from the name server", self.connect_timeout);
                return Err(TransportError::unsent(Stage::Resolve, error));
            }
        };
        if found.is_empty() {
            let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            return Err(TransportError::unsent(Stage::Resolve, error));
        }
        Ok(alternate(found))
    }

    /// The first address that accepts wins; each next one starts when the one before has failed or been silent a while.
    async fn race(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<TcpIo, TransportError> {
        let mut waiting = addresses.iter().copied();
        let mut running = JoinSet::new();
        let mut last_error = None;
        let mut next_start = Instant::now();
        loop {
            if running.is_empty() || Instant::now() >= next_start {
                if let Some(address) = waiting.next() {
                    let (interface, tuning) = (self.interface.clone(), Arc::clone(&self.tuning));
                    running
                        .spawn(async move { open(address, interface.as_deref(), &tuning).await });
                    next_start = Instant::now() + HEAD_START;
                } else if running.is_empty() {
                    let error = last_error
                        .unwrap_or_else(|| io::Error::other("there is no address to connect to"));
                    // The kernel's own timeout is one too.
                    let stage = match error.kind() {
                        io::ErrorKind::TimedOut => Stage::ConnectTimeout,
                        _ => Stage::Connect,
                    };
                    return Err(TransportError::unsent(stage, error));
                }
            }
            let more = waiting.len() > 0;
            tokio::select! {
                joined = running.join_next() => match joined {
                    Some(Ok(Ok(tcp))) => return Ok(tcp),
                    Some(Ok(Err(error))) => {
                        last_error = Some(error);
                        next_start = Instant::now();
                    }
                    Some(Err(error)) => last_error = Some(io::Error::other(error)),
                    None => {}
                },
                () = sleep_until(next_start), if more => {}
                () = sleep_until(deadline) => {
                    let error = timed_out("no connection", self.connect_timeout);
                    return Err(TransportError::unsent(Stage::ConnectTimeout, error));
                }
            }
        }
    }
}

pub(crate) fn timed_out(what: &str, after: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{what} within {} s", after.as_secs_f64()),
    )
}

async fn open(address: SocketAddr, interface: Option<&str>, tuning: &Tuning) -> io::Result<TcpIo> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    tuning.apply(&socket, address.ip().is_loopback())?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(interface) = interface {
        SockRef::from(&socket).bind_device(Some(interface.as_bytes()))?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = interface;
    Ok(TcpIo::new(socket.connect(address).await?, address))
}

/// IPv6 and IPv4 in turn, starting with what the system put first.
fn alternate(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut result = Vec::new();
    loop {
        let pair = (first.next(), second.next());
        if pair == (None, None) {
            return result;
        }
        result.extend(pair.0);
        result.extend(pair.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let parse = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<SocketAddr>>()
        };
        let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(
            alternate(found),
            parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"])
        );
    }
}
