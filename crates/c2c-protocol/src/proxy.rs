//! Whether a host is reached through a proxy, and which one.
//!
//! Invariants: the user name and password of a proxy are never printed; hosts on this machine, and hosts that were given
//! addresses of their own, are reached directly unless a proxy was chosen explicitly.

use std::fmt;
use std::str::FromStr;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use secrecy::SecretString;

use crate::upload_url::{bare_host, is_loopback};

/// How hosts are reached.
#[derive(Debug, Clone, Default)]
pub enum Proxy {
    /// As `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say (or their lower-case names), like curl. Hosts on this machine and
    /// hosts with a [`crate::ResolveOverride`] are reached directly.
    #[default]
    Environment,
    /// Directly, whatever the environment says.
    None,
    /// All through this one, hosts on this machine included.
    Url(ProxyUrl),
}

impl FromStr for Proxy {
    type Err = ProxyUrlError;

    /// `none`, `environment`, or the URL of a proxy.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "environment" => Ok(Self::Environment),
            url => url.parse().map(Self::Url),
        }
    }
}

/// A proxy: `http://[USER:PASSWORD@]HOST[:PORT]` (CONNECT), `socks5://...` (names are resolved here) or `socks5h://...`
/// (names are resolved by the proxy). `Debug` and `Display` leave out user and password.
#[derive(Clone)]
pub struct ProxyUrl {
    pub(crate) kind: Kind,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) login: Login,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    Socks5 { resolves: bool },
}

/// How a proxy knows who we are.
#[derive(Clone)]
pub(crate) enum Login {
    Nobody,
    Basic(HeaderValue),
    Socks {
        user: String,
        password: SecretString,
    },
}

/// The text is no URL of a proxy that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyUrlError {
    /// It does not parse.
    #[error(
        "the proxy URL is not valid; give one such as http://proxy.example:3128 or socks5h://proxy.example:1080"
    )]
    Malformed,
    /// Another kind of proxy.
    #[error("proxies of the kind `{scheme}` are not supported; http, socks5 and socks5h are")]
    Unsupported {
        /// The scheme of the URL.
        scheme: String,
    },
    /// SOCKS5 has one byte for the length of each.
    #[error("the user name and the password of a SOCKS5 proxy must have 1 to 255 bytes")]
    Login,
}

impl FromStr for ProxyUrl {
    type Err = ProxyUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What the parser below takes for another scheme it drops without a word.
        if let Some((scheme, _)) = text.split_once("://")
            && !matches!(scheme, "http" | "socks5" | "socks5h")
        {
            let plain = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
            return Err(if plain && !scheme.is_empty() {
                ProxyUrlError::Unsupported {
                    scheme: scheme.to_owned(),
                }
            } else {
                ProxyUrlError::Malformed
            });
        }
        let any = Uri::from_static("https://any.invalid");
        let found = Matcher::builder().all(text).build().intercept(&any);
        ProxyUrl::read(&found.ok_or(ProxyUrlError::Malformed)?)
    }
}

impl ProxyUrl {
    fn read(found: &Intercept) -> Result<Self, ProxyUrlError> {
        let uri = found.uri();
        let (kind, usual) = match uri.scheme_str() {
            Some("http") | None => (Kind::Connect, 80),
            Some("socks5") => (Kind::Socks5 { resolves: false }, 1080),
            Some("socks5h") => (Kind::Socks5 { resolves: true }, 1080),
            Some(other) => {
                return Err(ProxyUrlError::Unsupported {
                    scheme: other.to_owned(),
                });
            }
        };
        let authority = uri.authority().ok_or(ProxyUrlError::Malformed)?;
        let host = bare_host(authority.host());
        let tail = &authority.as_str()[authority.host().len()..];
        if host.is_empty() || (!tail.is_empty() && authority.port_u16().is_none()) {
            return Err(ProxyUrlError::Malformed);
        }
        let login = match (found.basic_auth(), found.raw_auth()) {
            (Some(basic), _) => Login::Basic(basic.clone()),
            (None, Some((user, password))) => {
                let fits = |text: &str| (1..=255).contains(&text.len());
                if !fits(user) || !fits(password) {
                    return Err(ProxyUrlError::Login);
                }
                Login::Socks {
                    user: user.to_owned(),
                    password: password.to_owned().into(),
                }
            }
            (None, None) => Login::Nobody,
        };
        Ok(Self {
            kind,
            host,
            port: authority.port_u16().unwrap_or(usual),
            login,
        })
    }

    /// Host and port, for people.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Connect => "http",
            Kind::Socks5 { resolves: false } => "socks5",
            Kind::Socks5 { resolves: true } => "socks5h",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// `HOST:PORT`, an IPv6 address in brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The choice as the connector uses it.
pub(crate) enum Proxies {
    Never,
    Environment(Box<Matcher>),
    Always(ProxyUrl),
}

impl Proxies {
    /// Reads the environment once.
    pub(crate) fn new(proxy: Proxy) -> Self {
        match proxy {
            Proxy::None => Self::Never,
            Proxy::Url(url) => Self::Always(url),
            Proxy::Environment => {
                let matcher = Matcher::from_env();
                let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
                let set = names
                    .iter()
                    .find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
                // Asked about a host that no rule excepts.
                let any = Uri::from_static("https://any.invalid");
                if let (Some(name), None) = (set, matcher.intercept(&any))
                    && std::env::var_os("NO_PROXY").is_none()
                    && std::env::var_os("no_proxy").is_none()
                {
                    tracing::warn!("{name} is not the URL of a proxy; connecting directly");
                }
                Self::Environment(Box::new(matcher))
            }
        }
    }

    /// The proxy on the way to a host. `pinned` hosts were given addresses of their own.
    pub(crate) fn on_the_way_to(
        &self,
        host: &str,
        port: u16,
        pinned: bool,
    ) -> Result<Option<ProxyUrl>, ProxyUrlError> {
        let matcher = match self {
            Self::Never => return Ok(None),
            Self::Always(url) => return Ok(Some(url.clone())),
            Self::Environment(_) if pinned || is_loopback(host) => return Ok(None),
            Self::Environment(matcher) => matcher,
        };
        let Ok(uri) = format!("https://{}", authority(host, port)).parse::<Uri>() else {
            return Ok(None);
        };
        matcher
            .intercept(&uri)
            .map(|found| ProxyUrl::read(&found))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_their_logins_never_shown() {
        for (text, shown, kind) in [
            (
                "http://p.example:3128",
                "http://p.example:3128",
                Kind::Connect,
            ),
            (
                "http://U:s3cr3t@P.example",
                "http://p.example:80",
                Kind::Connect,
            ),
            ("p.example:8080", "http://p.example:8080", Kind::Connect),
            (
                "socks5://[::1]:9",
                "socks5://[::1]:9",
                Kind::Socks5 { resolves: false },
            ),
            (
                "socks5h://u:s3cr3t@p.example",
                "socks5h://p.example:1080",
                Kind::Socks5 { resolves: true },
            ),
        ] {
            let url: ProxyUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.kind),
                (shown, kind),
                "{text}"
            );
            assert!(!format!("{url:?}").contains("s3cr3t"), "{url:?}");
            assert_eq!(
                text.contains('@'),
                !matches!(url.login, Login::Nobody),
                "{text}"
            );
        }
        for text in [
            "https://p.example",
            "socks4://p.example:1",
            "ftp://u:s3cr3t@p.example",
        ] {
            let error = text.parse::<ProxyUrl>().unwrap_err();
            assert!(
                matches!(error, ProxyUrlError::Unsupported { .. }),
                "{text}: {error}"
            );
            assert!(!format!("{error} {error:?}").contains("s3cr3t"));
        }
        for text in ["", "http://", "http://p.example:x", "not a url", "://p"] {
            assert_eq!(
                text.parse::<ProxyUrl>().unwrap_err(),
                ProxyUrlError::Malformed,
                "{text}"
            );
        }
        assert_eq!(
            "socks5://user@p.example".parse::<ProxyUrl>().unwrap_err(),
            ProxyUrlError::Login
        );
        assert!(matches!("none".parse(), Ok(Proxy::None)));
        assert!(matches!("environment".parse(), Ok(Proxy::Environment)));
    }

    #[test]
    fn the_environment_spares_this_machine_and_pinned_hosts() {
        let matcher = Matcher::builder()
            .all("http://p.example:3128")
            .no("inside.example,10.0.0.0/8")
            .build();
        let environment = Proxies::Environment(Box::new(matcher));
        let goes = |host: &str, pinned| {
            environment
                .on_the_way_to(host, 443, pinned)
                .unwrap()
                .is_some()
        };
        assert!(goes("api.frame.io", false) && goes("2001:db8::1", false));
        assert!(!goes("api.frame.io", true), "it has an address of its own");
        for host in [
            "localhost",
            "127.0.0.1",
            "::1",
            "inside.example",
            "s3.inside.example",
            "10.1.2.3",
        ] {
            assert!(!goes(host, false), "{host}");
        }
        let always = Proxies::Always("socks5h://p.example".parse().unwrap());
        assert!(
            always
                .on_the_way_to("127.0.0.1", 443, true)
                .unwrap()
                .is_some()
        );
        assert!(
            Proxies::Never
                .on_the_way_to("api.frame.io", 443, false)
                .unwrap()
                .is_none()
        );
    }
}
