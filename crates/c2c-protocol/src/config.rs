//! What a client needs to know.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, Uri};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::proxy::Proxy;
use crate::tuning::Tuning;
use crate::upload_url::{bare_host, is_loopback};

/// The production API.
pub const DEFAULT_API_URL: &str = "https://api.frame.io";

/// Settings of a [`crate::Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Base of the API, scheme and host and maybe a port; https, or http to this machine with `allow_plain_loopback`.
    pub api_url: String,
    /// Version of the product, sent with every API call; a semantic version.
    pub client_version: String,
    /// Whose certificates are trusted.
    pub trust: Trust,
    /// Addresses to use instead of asking DNS.
    pub resolve: Vec<ResolveOverride>,
    /// Longest wait for name and connection together, and again for the TLS handshake. 10 s.
    pub connect_timeout: Duration,
    /// Longest wait for a whole API call, connection included. 40 s: the service itself gives up after 30 s.
    pub answer_timeout: Duration,
    /// Whether plain http to `localhost` and loopback addresses is allowed, for simulators and tests.
    pub allow_plain_loopback: bool,
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// Network interface to send through (Linux only), e.g. `wwan0`.
    pub interface: Option<String>,
    /// The proxy on the way to the API and the storage; that of the environment by default.
    pub proxy: Proxy,
    /// How the connections are tuned.
    pub tuning: Tuning,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            api_url: DEFAULT_API_URL.to_owned(),
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            trust: Trust::System,
            resolve: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(40),
            allow_plain_loopback: false,
            user_agent: concat!("c2c-uplink/", env!("CARGO_PKG_VERSION")).to_owned(),
            interface: None,
            proxy: Proxy::Environment,
            tuning: Tuning::default(),
        }
    }
}

/// Whose certificates are trusted.
#[derive(Clone, Default)]
pub enum Trust {
    /// The roots of the system.
    #[default]
    System,
    /// The roots of the system and these.
    SystemAnd(Vec<CertificateDer<'static>>),
    /// Only these.
    Only(Vec<CertificateDer<'static>>),
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::SystemAnd(roots) => write!(f, "SystemAnd({} roots)", roots.len()),
            Self::Only(roots) => write!(f, "Only({} roots)", roots.len()),
        }
    }
}

/// Why a CA file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The file cannot be read.
    #[error("the CA file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not PEM.
    #[error("the CA file {} is not valid PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls_pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("the CA file {} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads all certificates of a PEM file.
///
/// # Errors
///
/// When the file cannot be read, is not PEM, or holds no certificate.
pub fn load_ca_file(path: impl AsRef<Path>) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let path = path.as_ref();
    let pem = std::fs::read(path).map_err(|source| TrustError::Read {
        path: path.into(),
        source,
    })?;
    let roots: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TrustError::Pem {
            path: path.into(),
            source,
        })?;
    if roots.is_empty() {
        return Err(TrustError::Empty { path: path.into() });
    }
    Ok(roots)
}

/// Addresses for one host and port, written `HOST:PORT:ADDR[,ADDR...]` as for curl; IPv6 in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveOverride {
    /// The host in lower case.
    pub host: String,
    /// The port it applies to.
    pub port: u16,
    /// The addresses to use, at least one.
    pub addresses: Vec<IpAddr>,
}

/// The text is not `HOST:PORT:ADDR`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not of the form HOST:PORT:ADDRESS, e.g. api.frame.io:443:127.0.0.1")]
pub struct ResolveOverrideError {
    text: String,
}

impl FromStr for ResolveOverride {
    type Err = ResolveOverrideError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, rest) = match text.strip_prefix('[') {
                Some(inner) => inner.split_once("]:")?,
                None => text.split_once(':')?,
            };
            let (port, addresses) = rest.split_once(':')?;
            let addresses = addresses
                .split(',')
                .map(|address| {
                    match address
                        .strip_prefix('[')
                        .and_then(|inner| inner.strip_suffix(']'))
                    {
                        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                        None => address.parse().ok(),
                    }
                })
                .collect::<Option<Vec<IpAddr>>>()?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty()).then(|| Self {
                host: host.to_ascii_lowercase(),
                port,
                addresses,
            })
        };
        parse().ok_or_else(|| ResolveOverrideError {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for ResolveOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}:", self.host, self.port)?;
        } else {
            write!(f, "{}:{}:", self.host, self.port)?;
        }
        for (index, address) in self.addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match address {
                IpAddr::V4(address) => write!(f, "{comma}{address}")?,
                IpAddr::V6(address) => write!(f, "{comma}[{address}]")?,
            }
        }
        Ok(())
    }
}

/// Why a client cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The API URL is no URL of a host.
    #[error("the API URL `{url}` is not valid; give one such as https://api.frame.io")]
    ApiUrl {
        /// What was given.
        url: String,
    },
    /// The API URL is not https.
    #[error(
        "the API URL `{url}` is not https; plain http is allowed only to this machine, and only for tests"
    )]
    NotHttps {
        /// What was given.
        url: String,
    },
    /// The version is no semantic version.
    #[error("the client version `{version}` is not a semantic version such as 1.4.2")]
    ClientVersion {
        /// What was given.
        version: String,
        /// The cause.
        source: semver::Error,
    },
    /// The user agent does not fit into a header.
    #[error("the user agent has characters that cannot be sent")]
    UserAgent,
    /// A timeout of zero.
    #[error("the connect and answer timeouts must be longer than zero")]
    Timeout,
    /// Binding to an interface is not possible on this system.
    #[error("sending through a chosen network interface is possible on Linux only")]
    Interface,
    /// The roots of the system cannot be used.
    #[error(
        "the CA certificates of this system cannot be used; install ca-certificates or give a CA file"
    )]
    SystemRoots(#[source] rustls::Error),
    /// A given root cannot be used.
    #[error("a given CA certificate cannot be used")]
    Root(#[source] rustls::Error),
    /// Only given roots are trusted, and none was given.
    #[error("no CA certificate was given to trust")]
    NoRoots,
    /// The TLS library refuses its own settings.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// A host to talk to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) https: bool,
}

impl Origin {
    /// The `Host` header: the port only where it is not the usual one.
    pub(crate) fn host_header(&self) -> Option<HeaderValue> {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let usual = if self.https { 443 } else { 80 };
        let text = if self.port == usual {
            host
        } else {
            format!("{host}:{}", self.port)
        };
        HeaderValue::from_str(&text).ok()
    }
}

impl ClientConfig {
    pub(crate) fn api_origin(&self) -> Result<Origin, ConfigError> {
        let invalid = || ConfigError::ApiUrl {
            url: shown(&self.api_url),
        };
        let uri: Uri = self.api_url.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let tail = &authority.as_str()[authority.host().len()..];
        if authority.as_str().contains('@')
            || !matches!(uri.path(), "" | "/")
            || uri.query().is_some()
            || (!tail.is_empty() && authority.port_u16().is_none())
        {
            return Err(invalid());
        }
        let host = bare_host(authority.host());
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.allow_plain_loopback && is_loopback(&host) => false,
            Some("http") => {
                return Err(ConfigError::NotHttps {
                    url: shown(&self.api_url),
                });
            }
            _ => return Err(invalid()),
        };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Origin { host, port, https })
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        semver::Version::parse(&self.client_version).map_err(|source| {
            ConfigError::ClientVersion {
                version: self.client_version.clone(),
                source,
            }
        })?;
        if self.connect_timeout.is_zero() || self.answer_timeout.is_zero() {
            return Err(ConfigError::Timeout);
        }
        if self.interface.is_some() && !cfg!(any(target_os = "linux", target_os = "android")) {
            return Err(ConfigError::Interface);
        }
        Ok(())
    }
}

/// A URL without the user name and password that someone may have put into it.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(at)) if at > start => {
            format!("{}://[redacted]@{}", &url[..start], &url[at + 1..])
        }
        (None, Some(at)) => format!("[redacted]@{}", &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_read_as_curl_writes_them() {
        for (text, host, port, count) in [
            ("api.frame.io:443:127.0.0.1", "api.frame.io", 443, 1),
            ("API.frame.io:8443:127.0.0.1,[::1]", "api.frame.io", 8443, 2),
            ("s3.example:443:::1", "s3.example", 443, 1),
            ("[::2]:443:[::1]", "::2", 443, 1),
        ] {
            let parsed: ResolveOverride = text.parse().unwrap();
            assert_eq!(
                (parsed.host.as_str(), parsed.port, parsed.addresses.len()),
                (host, port, count),
                "{text}"
            );
            assert_eq!(
                parsed.to_string().parse::<ResolveOverride>().unwrap(),
                parsed,
                "{text}"
            );
        }
        for wrong in [
            "",
            "host",
            "host:443",
            "host:443:",
            "host:0:127.0.0.1",
            "host:x:127.0.0.1",
            ":443:127.0.0.1",
            "h:1:h",
        ] {
            let error = wrong.parse::<ResolveOverride>().unwrap_err().to_string();
            assert!(error.contains("HOST:PORT:ADDRESS"), "{error}");
        }
    }

    #[test]
    fn only_safe_api_urls_are_taken() {
        let origin = |url: &str, plain: bool| {
            ClientConfig {
                api_url: url.into(),
                allow_plain_loopback: plain,
                ..ClientConfig::default()
            }
            .api_origin()
        };
        let production = origin(DEFAULT_API_URL, false).unwrap();
        assert_eq!(
            production,
            Origin {
                host: "api.frame.io".into(),
                port: 443,
                https: true
            }
        );
        assert_eq!(production.host_header().unwrap(), "api.frame.io");
        assert_eq!(
            origin("https://[::1]:8443/", false)
                .unwrap()
                .host_header()
                .unwrap(),
            "[::1]:8443"
        );
        assert!(!origin("http://127.0.0.1:80", true).unwrap().https);
        assert!(matches!(
            origin("http://127.0.0.1:80", false),
            Err(ConfigError::NotHttps { .. })
        ));
        assert!(matches!(
            origin("http://api.frame.io", true),
            Err(ConfigError::NotHttps { .. })
        ));
        for wrong in [
            "",
            "api.frame.io",
            "https://",
            "https://a/b",
            "https://a?b",
            "https://a:x",
            "https://u:pw@a",
            "ftp://a",
        ] {
            let error = origin(wrong, true).unwrap_err();
            assert!(
                matches!(error, ConfigError::ApiUrl { .. }),
                "{wrong}: {error}"
            );
            assert!(!error.to_string().contains("pw"));
        }
    }

    #[test]
    fn versions_and_timeouts_are_checked() {
        let check = |change: fn(&mut ClientConfig)| {
            let mut config = ClientConfig::default();
            change(&mut config);
            config.check()
        };
        assert!(check(|_| {}).is_ok());
        assert!(check(|config| config.client_version = "2.16.4-rc.1+b7".into()).is_ok());
        assert!(matches!(
            check(|config| config.client_version = "2.16".into()),
            Err(ConfigError::ClientVersion { .. })
        ));
        assert!(matches!(
            check(|config| config.answer_timeout = Duration::ZERO),
            Err(ConfigError::Timeout)
        ));
    }

    #[test]
    fn a_ca_file_must_hold_certificates() {
        let missing = load_ca_file("/nonexistent/ca.pem").unwrap_err();
        assert!(
            matches!(missing, TrustError::Read { .. })
                && missing.to_string().contains("/nonexistent/ca.pem")
        );
        let file = std::env::temp_dir().join(format!("c2c-protocol-ca-{}.pem", std::process::id()));
        std::fs::write(&file, "no certificate here\n").unwrap();
        let error = load_ca_file(&file).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(error, TrustError::Empty { .. }), "{error}");
    }
}
