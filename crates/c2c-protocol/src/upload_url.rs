//! A pre-signed upload URL: whoever holds it may write the chunk, so it is a secret.
//!
//! Invariants: only [`UploadUrl::expose`] gives the URL away; `Debug`, `Display` and every error show the scheme and
//! the host alone; the scheme is https, or http to this very machine where that was asked for.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use http::uri::PathAndQuery;
use secrecy::{ExposeSecret, SecretString};

/// A pre-signed URL for one chunk. Cheap to clone; erased from memory when the last clone goes.
#[derive(Clone)]
pub struct UploadUrl {
    inner: Arc<Inner>,
}

struct Inner {
    whole: SecretString,
    host: String,
    port: u16,
    https: bool,
    issued_at: Option<SystemTime>,
    life: Option<Duration>,
}

/// Why an upload URL is not usable. Never contains the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UploadUrlError {
    /// It does not parse, or has no host.
    #[error("the upload URL is not a valid absolute URL")]
    Malformed,
    /// Anything but https.
    #[error("the upload URL to {host} is not https; it was not used")]
    NotHttps {
        /// The host it names.
        host: String,
    },
    /// It points to the API itself, where chunks do not belong.
    #[error("the upload URL points to the API at {host}; it was not used")]
    IntoApi {
        /// The host it names.
        host: String,
    },
    /// It carries a user name or password.
    #[error("the upload URL carries a user name; it was not used")]
    UserInfo,
}

impl UploadUrl {
    /// Reads a URL as the service handed it out. It is kept byte by byte: the signature covers it.
    ///
    /// Plain http is accepted only with `allow_plain_loopback`, and only to `localhost` or a loopback address.
    ///
    /// # Errors
    ///
    /// When the URL is malformed, not https, or carries a user name.
    pub fn parse(s: &str, allow_plain_loopback: bool) -> Result<Self, UploadUrlError> {
        let uri: Uri = s.parse().map_err(|_| UploadUrlError::Malformed)?;
        let authority = uri.authority().ok_or(UploadUrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UploadUrlError::UserInfo);
        }
        let host = bare_host(authority.host());
        // `host:` and `host:99999` leave text behind the colon that is no port.
        let tail = &authority.as_str()[authority.host().len()..];
        if host.is_empty() || (!tail.is_empty() && authority.port_u16().is_none()) {
            return Err(UploadUrlError::Malformed);
        }
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if allow_plain_loopback && is_loopback(&host) => false,
            _ => return Err(UploadUrlError::NotHttps { host }),
        };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let query = uri.query().unwrap_or("");
        Ok(Self {
            inner: Arc::new(Inner {
                whole: SecretString::from(s),
                issued_at: query_value(query, "X-Amz-Date").and_then(parse_amz_date),
                life: query_value(query, "X-Amz-Expires")
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
                host,
                port,
                https,
            }),
        })
    }

    /// The URL itself. Only the request and the durable queue need it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.inner.whole.expose_secret()
    }

    /// The host in lower case; an IPv6 address stands without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.inner.host
    }

    /// The port, also where the URL leaves it out.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// Whether the connection is encrypted (always, except to this very machine).
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.inner.https
    }

    /// When the service signed it (`X-Amz-Date`), if the URL says so.
    #[must_use]
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.inner.issued_at
    }

    /// How long after [`UploadUrl::issued_at`] it is valid (`X-Amz-Expires`), if the URL says so.
    #[must_use]
    pub fn life(&self) -> Option<Duration> {
        self.inner.life
    }

    /// When it stops being valid, if the URL says so.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.issued_at()?.checked_add(self.life()?)
    }

    /// Whether it leads to this host and port.
    pub(crate) fn points_to(&self, host: &str, port: u16) -> bool {
        let bare = |host: &str| host.trim_end_matches('.').to_ascii_lowercase();
        self.port() == port && bare(self.host()) == bare(host)
    }

    pub(crate) fn uri(&self) -> Option<Uri> {
        self.expose().parse().ok()
    }

    /// What a server must not be able to make us print by repeating it.
    pub(crate) fn secrets(&self) -> Vec<&str> {
        let whole = self.expose();
        let query = whole.split_once('?').map_or("", |(_, query)| query);
        let values = [
            "X-Amz-Signature",
            "X-Amz-Credential",
            "X-Amz-Security-Token",
        ];
        let values = values
            .into_iter()
            .filter_map(|name| query_value(query, name));
        [whole, query].into_iter().chain(values).collect()
    }

    pub(crate) fn path_and_query(&self) -> PathAndQuery {
        self.uri()
            .and_then(|uri| uri.path_and_query().cloned())
            .unwrap_or_else(|| PathAndQuery::from_static("/"))
    }
}

impl fmt::Debug for UploadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadUrl({self})")
    }
}

impl fmt::Display for UploadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.inner.https { "https" } else { "http" };
        write!(f, "{scheme}://{}/[redacted]", self.inner.host)
    }
}

/// Host without brackets, lower case.
pub(crate) fn bare_host(host: &str) -> String {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .to_ascii_lowercase()
}

pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The value of a query parameter, name compared without case. Dates and numbers need no percent-decoding.
fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
}

/// `20240816T203012Z` to a time.
fn parse_amz_date(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u64> {
        bytes[from..to]
            .iter()
            .all(u8::is_ascii_digit)
            .then_some(())?;
        text.get(from..to)?.parse().ok()
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    // Days since 1970-01-01, counting years from March so that the leap day is the last one.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(
        ((days * 24 + hour) * 60 + minute) * 60 + second,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = "https://frameio-uploads-production.s3-accelerate.amazonaws.com/parts/1%2F2?x-amz-meta-part_number=1\
        &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20240816T203012Z&X-Amz-Expires=86400&X-Amz-Signature=deadbeef";

    #[test]
    fn reads_what_the_signature_says_and_keeps_every_byte() {
        let url = UploadUrl::parse(REAL, false).unwrap();
        assert_eq!(url.expose(), REAL);
        assert_eq!(
            url.host(),
            "frameio-uploads-production.s3-accelerate.amazonaws.com"
        );
        assert_eq!(url.port(), 443);
        assert_eq!(
            url.issued_at(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_723_840_212))
        );
        assert_eq!(url.life(), Some(Duration::from_secs(86_400)));
        assert_eq!(
            url.expires_at(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_723_926_612))
        );
        assert!(
            url.path_and_query()
                .as_str()
                .starts_with("/parts/1%2F2?x-amz-meta-part_number=1&")
        );
    }

    #[test]
    fn amz_dates_agree_with_the_calendar() {
        for (text, seconds) in [
            ("19700101T000000Z", 0),
            ("20000229T235959Z", 951_868_799),
            ("20000301T000000Z", 951_868_800),
            ("21000301T000000Z", 4_107_542_400),
        ] {
            assert_eq!(
                parse_amz_date(text),
                Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for wrong in [
            "",
            "20240816",
            "20241316T000000Z",
            "2024081６T00000Z",
            "+0240816T203012Z",
            "00000101T000000Z",
        ] {
            assert_eq!(parse_amz_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn refuses_what_is_not_safe() {
        let refuse = |text: &str, plain: bool| UploadUrl::parse(text, plain).unwrap_err();
        assert!(matches!(
            refuse("http://s3.example/a?b", true),
            UploadUrlError::NotHttps { .. }
        ));
        assert!(matches!(
            refuse("http://127.0.0.1:1/a?b", false),
            UploadUrlError::NotHttps { .. }
        ));
        assert!(matches!(
            refuse("http://127.0.0.1.evil.example/a", true),
            UploadUrlError::NotHttps { .. }
        ));
        assert!(matches!(
            refuse("ftp://s3.example/a", true),
            UploadUrlError::NotHttps { .. }
        ));
        assert_eq!(
            refuse("https://user:pw@s3.example/a", true),
            UploadUrlError::UserInfo
        );
        for malformed in [
            "",
            "/only/path",
            "https://",
            "not a url",
            "https://s3.example:99999/a",
            "https://s3.example:/a",
        ] {
            assert_eq!(
                refuse(malformed, true),
                UploadUrlError::Malformed,
                "{malformed}"
            );
        }
        for fine in [
            "http://localhost:8000/a",
            "http://127.0.0.1:1/a",
            "http://[::1]:9/a?b=c",
        ] {
            assert!(!UploadUrl::parse(fine, true).unwrap().is_https());
        }
        assert_eq!(
            UploadUrl::parse("https://[::1]/a", false).unwrap().host(),
            "::1"
        );
    }

    #[test]
    fn nothing_but_expose_shows_the_url() {
        let url = UploadUrl::parse(REAL, false).unwrap();
        for shown in [format!("{url:?}"), url.to_string()] {
            assert!(shown.contains("amazonaws.com"), "{shown}");
            assert!(
                !shown.contains("deadbeef") && !shown.contains("parts"),
                "{shown}"
            );
        }
        let error =
            UploadUrl::parse("http://s3.example/parts?X-Amz-Signature=deadbeef", true).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("deadbeef"));
    }
}
