//! Through a proxy: the handshakes of CONNECT and SOCKS5 on a connection to the proxy.
//!
//! Invariants: after a handshake the next byte in either direction belongs to the host behind the proxy; every failure
//! names the proxy and says what to do; user name and password go to the proxy alone and into no text.

use std::io;
use std::net::{IpAddr, SocketAddr};

use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::TransportError;
use crate::proxy::{Login, ProxyUrl, ProxyUrlError, authority};
use crate::socket::TcpIo;

/// Longest head of an answer to CONNECT, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Where the proxy is to connect to.
#[derive(Debug, Clone)]
pub(crate) enum Behind {
    /// A name that the proxy resolves.
    Name(String, u16),
    /// An address.
    Address(SocketAddr),
}

impl Behind {
    pub(crate) fn new(host: &str, port: u16) -> Self {
        match host.parse::<IpAddr>() {
            Ok(address) => Self::Address(SocketAddr::new(address, port)),
            Err(_) => Self::Name(host.to_owned(), port),
        }
    }

    fn authority(&self) -> String {
        match self {
            Self::Name(host, port) => authority(host, *port),
            Self::Address(address) => authority(&address.ip().to_string(), address.port()),
        }
    }
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the proxy {proxy} cannot be reached: {source}; check its address and the network")]
    Unreachable {
        proxy: String,
        source: TransportError,
    },
    #[error("the proxy {proxy} did not answer within {seconds} s")]
    Silent { proxy: String, seconds: f64 },
    #[error("the connection to the proxy {proxy} broke: {source}")]
    Broken { proxy: String, source: io::Error },
    #[error("the proxy {proxy} asks for a user name and a password; put them into its URL")]
    SignIn { proxy: String },
    #[error("the proxy {proxy} does not accept the user name and the password in its URL")]
    WrongLogin { proxy: String },
    #[error("the proxy {proxy} does not connect to {behind} (status {status})")]
    Status {
        proxy: String,
        behind: String,
        status: u16,
    },
    #[error("the proxy {proxy} does not connect to {behind}: {words}")]
    Socks {
        proxy: String,
        behind: String,
        words: &'static str,
        /// Another address of the host may be luckier.
        elsewhere: bool,
    },
    #[error("{proxy} answers, but not as a proxy should; check its address and kind")]
    NoProxy { proxy: String },
    #[error("the proxy of the environment cannot be used: {0}")]
    Url(#[from] ProxyUrlError),
}

impl TunnelError {
    /// Whether the same proxy may reach the host at another address.
    pub(crate) fn tries_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Socks {
                elsewhere: true,
                ..
            }
        )
    }
}

/// HTTP CONNECT.
pub(crate) async fn connect(
    tcp: &mut TcpIo,
    proxy: &ProxyUrl,
    behind: &Behind,
) -> Result<(), TunnelError> {
    let name = || proxy.authority();
    let broken = |source| TunnelError::Broken {
        proxy: proxy.authority(),
        source,
    };
    let target = behind.authority();
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Login::Basic(basic) = &proxy.login {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(basic.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    tcp.write_all(&request).await.map_err(broken)?;
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() > MAX_HEAD {
            return Err(TunnelError::NoProxy { proxy: name() });
        }
        let mut block = [0; 1024];
        match tcp.read(&mut block).await.map_err(broken)? {
            0 if head.is_empty() => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            0 => return Err(TunnelError::NoProxy { proxy: name() }),
            count => head.extend_from_slice(&block[..count]),
        }
    };
    let status = std::str::from_utf8(&head)
        .ok()
        .and_then(|text| text.strip_prefix("HTTP/1."))
        .and_then(|text| text.split_whitespace().nth(1))
        .and_then(|status| status.parse::<u16>().ok());
    match status {
        // The host speaks only after we did: more than the head is not from it.
        Some(200..=299) if end == head.len() => Ok(()),
        Some(407) if matches!(proxy.login, Login::Nobody) => {
            Err(TunnelError::SignIn { proxy: name() })
        }
        Some(407) => Err(TunnelError::WrongLogin { proxy: name() }),
        // A page or a redirect for people.
        Some(200..=399) | None => Err(TunnelError::NoProxy { proxy: name() }),
        Some(status) => Err(TunnelError::Status {
            proxy: name(),
            behind: target,
            status,
        }),
    }
}

/// SOCKS5 (RFC 1928), with a user name and password (RFC 1929) where there are any.
pub(crate) async fn socks5(
    tcp: &mut TcpIo,
    proxy: &ProxyUrl,
    behind: &Behind,
) -> Result<(), TunnelError> {
    const NO_LOGIN: u8 = 0;
    const PASSWORD: u8 = 2;
    let name = || proxy.authority();
    let broken = |source| TunnelError::Broken {
        proxy: proxy.authority(),
        source,
    };
    let methods: &[u8] = match &proxy.login {
        Login::Socks { .. } => &[5, 2, NO_LOGIN, PASSWORD],
        Login::Nobody | Login::Basic(_) => &[5, 1, NO_LOGIN],
    };
    tcp.write_all(methods).await.map_err(broken)?;
    let mut chosen = [0; 2];
    tcp.read_exact(&mut chosen).await.map_err(broken)?;
    match (chosen, &proxy.login) {
        ([5, NO_LOGIN], _) => {}
        ([5, PASSWORD], Login::Socks { user, password }) => {
            let mut login = vec![1, user.len() as u8];
            login.extend_from_slice(user.as_bytes());
            let password = password.expose_secret();
            login.push(password.len() as u8);
            login.extend_from_slice(password.as_bytes());
            let login = secrecy::zeroize::Zeroizing::new(login);
            tcp.write_all(&login).await.map_err(broken)?;
            let mut verdict = [0; 2];
            tcp.read_exact(&mut verdict).await.map_err(broken)?;
            if verdict[1] != 0 {
                return Err(TunnelError::WrongLogin { proxy: name() });
            }
        }
        ([5, 0xff], Login::Socks { .. }) => return Err(TunnelError::WrongLogin { proxy: name() }),
        ([5, 0xff], _) => return Err(TunnelError::SignIn { proxy: name() }),
        _ => return Err(TunnelError::NoProxy { proxy: name() }),
    }
    let mut request = vec![5, 1, 0];
    let port = match behind {
        Behind::Address(address) => {
            match address.ip() {
                IpAddr::V4(ip) => {
                    request.push(1);
                    request.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    request.push(4);
                    request.extend_from_slice(&ip.octets());
                }
            }
            address.port()
        }
        Behind::Name(host, port) => {
            let length = u8::try_from(host.len()).map_err(|_| TunnelError::Socks {
                proxy: name(),
                behind: behind.authority(),
                words: "the name is too long for a SOCKS5 proxy",
                elsewhere: false,
            })?;
            request.extend_from_slice(&[3, length]);
            request.extend_from_slice(host.as_bytes());
            *port
        }
    };
    request.extend_from_slice(&port.to_be_bytes());
    tcp.write_all(&request).await.map_err(broken)?;
    let mut reply = [0; 4];
    tcp.read_exact(&mut reply).await.map_err(broken)?;
    if reply[0] != 5 {
        return Err(TunnelError::NoProxy { proxy: name() });
    }
    if reply[1] != 0 {
        let words = match reply[1] {
            2 => "its rules forbid it",
            3 => "the network is not reachable from there",
            4 => "the host is not reachable from there",
            5 => "the host refuses the connection",
            6 => "the connection took too long",
            8 => "it does not know this kind of address",
            _ => "it failed",
        };
        return Err(TunnelError::Socks {
            proxy: name(),
            behind: behind.authority(),
            words,
            elsewhere: matches!(reply[1], 1 | 3..=6 | 8),
        });
    }
    // The address that the proxy uses itself is of no interest, but it is on the wire.
    let length = match reply[3] {
        1 => 4,
        4 => 16,
        3 => {
            let mut length = [0];
            tcp.read_exact(&mut length).await.map_err(broken)?;
            usize::from(length[0])
        }
        _ => return Err(TunnelError::NoProxy { proxy: name() }),
    };
    let mut bound = vec![0; length + 2];
    tcp.read_exact(&mut bound).await.map_err(broken)?;
    Ok(())
}
