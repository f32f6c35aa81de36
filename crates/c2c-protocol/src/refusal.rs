//! What the server said when it refused.
//!
//! Invariants: any bytes at all give a [`Refusal`], never a failure; its texts are short, without control characters,
//! without the query of any URL, and without the secrets of the request that was refused.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use quick_xml::events::Event;
use serde_json::Value;

/// Longest text kept from a server, in characters.
const MAX_WORDS: usize = 500;
/// Most entries kept of a detailed body.
const MAX_ERRORS: usize = 16;

/// The server answered with something other than a 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What kind of body came with it.
    pub body: RefusalBody,
    /// The short name of the error, if the body has one (`Channel Paused`, `invalid_client`, `SlowDown`).
    pub title: Option<String>,
    /// The best text of the server, at most 500 characters; empty if it said nothing.
    pub words: String,
    /// The id under which the server logged the request.
    pub request_id: Option<String>,
    /// When to come back (`Retry-After`).
    pub retry_after: Option<RetryAfter>,
    /// The rate limit the answer reports.
    pub rate_limit: Option<RateLimit>,
    /// The time of the server (`Date`).
    pub date: Option<SystemTime>,
    /// Where a redirect points to; it was not followed.
    pub location_host: Option<String>,
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalBody {
    /// `{"error": "..."}`, as the auth endpoints answer.
    Simple {
        /// The code, e.g. `invalid_client`.
        error: String,
    },
    /// `{"code", "errors", "message"}`, as all other endpoints answer.
    Detailed {
        /// The code, mostly the status again.
        code: Option<i64>,
        /// The message; empty if missing.
        message: String,
        /// The single errors.
        errors: Vec<DetailedError>,
    },
    /// The XML of S3.
    S3 {
        /// The code, e.g. `SlowDown`.
        code: String,
        /// The message; empty if missing.
        message: String,
    },
    /// A web page: a proxy, a portal or a load balancer.
    Html,
    /// Nothing.
    Empty,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Text of no known form, also JSON or XML that was cut.
    Other,
}

/// One entry of a detailed body. Texts are empty where missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetailedError {
    /// Short name, e.g. `Channel Paused`.
    pub title: String,
    /// Sentence.
    pub detail: String,
    /// HTTP status.
    pub status: Option<i64>,
    /// Code, mostly the status again.
    pub code: Option<i64>,
}

/// When the server wants to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// After this long.
    Delay(Duration),
    /// At this time, by the server's clock.
    At(SystemTime),
}

/// The `x-ratelimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per window.
    pub limit: Option<u64>,
    /// Requests left in this window.
    pub remaining: Option<u64>,
    /// Length of the window.
    pub window: Option<Duration>,
}

impl Refusal {
    /// Whether the title, the message or the title of any single error equals `title`, without regard to ASCII case.
    #[must_use]
    pub fn says(&self, title: &str) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(title);
        self.title.as_deref().is_some_and(same)
            || match &self.body {
                RefusalBody::Detailed {
                    message, errors, ..
                } => same(message) || errors.iter().any(|error| same(&error.title)),
                RefusalBody::Simple { error } => same(error),
                _ => false,
            }
    }

    /// The code of a simple body.
    #[must_use]
    pub fn simple(&self) -> Option<&str> {
        match &self.body {
            RefusalBody::Simple { error } => Some(error),
            _ => None,
        }
    }

    /// The code of an S3 body.
    #[must_use]
    pub fn s3_code(&self) -> Option<&str> {
        match &self.body {
            RefusalBody::S3 { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Reads an answer. `secrets` are the secrets of the request: a server that repeats them shall not leak them.
    pub(crate) fn read(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[&str],
    ) -> Self {
        let clean = |text: &str| clean(text, secrets);
        let mut request_id = None;
        let (kind, title, words) = match std::str::from_utf8(body) {
            Err(_) => (RefusalBody::NotUtf8, None, String::new()),
            Ok(text) if text.trim().is_empty() => (RefusalBody::Empty, None, String::new()),
            Ok(text) if is_html(text, headers) => {
                let title = html_title(text)
                    .map(clean)
                    .filter(|title| !title.is_empty());
                let words = title.clone().unwrap_or_default();
                (RefusalBody::Html, title, words)
            }
            Ok(text) => {
                if let Some(xml) = s3_error(text) {
                    request_id = xml.request_id.as_deref().map(clean);
                    let (code, message) = (clean(&xml.code), clean(&xml.message));
                    let words = clean(&join(&code, &message));
                    (
                        RefusalBody::S3 {
                            code: code.clone(),
                            message,
                        },
                        Some(code),
                        words,
                    )
                } else {
                    json_error(text, &clean)
                        .unwrap_or_else(|| (RefusalBody::Other, None, clean(text)))
                }
            }
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let request_id = header("x-request-id")
            .or_else(|| header("x-amz-request-id"))
            .map(clean)
            .or(request_id);
        Self {
            status: status.as_u16(),
            body: kind,
            title: title.filter(|title| !title.is_empty()),
            words,
            request_id: request_id.filter(|id| !id.is_empty()),
            retry_after: header("retry-after").and_then(parse_retry_after),
            rate_limit: rate_limit(headers),
            date: date(headers),
            location_host: header("location")
                .and_then(|location| location.parse::<Uri>().ok())
                .and_then(|uri| uri.host().map(clean)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered with status {}", self.status)?;
        if let Some(host) = &self.location_host {
            write!(f, ", a redirect to {host} that was not followed")?;
        }
        match (&self.body, self.words.is_empty()) {
            (RefusalBody::Html, true) => f.write_str(" and a web page"),
            (RefusalBody::Html, false) => write!(f, " and a web page titled \"{}\"", self.words),
            (_, true) => Ok(()),
            (_, false) => write!(f, ": {}", self.words),
        }
    }
}

/// The `Date` header.
pub(crate) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

/// The `x-ratelimit-*` headers, if any is there.
pub(crate) fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    let number = |name: &'static str| -> Option<u64> {
        headers
            .get(HeaderName::from_static(name))?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let found = RateLimit {
        limit: number("x-ratelimit-limit"),
        remaining: number("x-ratelimit-remaining"),
        window: number("x-ratelimit-window").map(Duration::from_millis),
    };
    (found.limit.is_some() || found.remaining.is_some() || found.window.is_some()).then_some(found)
}

fn parse_retry_after(text: &str) -> Option<RetryAfter> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(RetryAfter::Delay(Duration::from_secs(seconds))),
        Err(_) => httpdate::parse_http_date(text).ok().map(RetryAfter::At),
    }
}

/// Whether this is a web page, by its type or its beginning.
pub(crate) fn is_html(text: &str, headers: &HeaderMap) -> bool {
    let start: String = text
        .trim_start_matches('\u{feff}')
        .trim_start()
        .chars()
        .take(512)
        .collect();
    let start = start.to_ascii_lowercase();
    if start.starts_with("<!doctype html") || start.starts_with("<html") || start.contains("<html")
    {
        return true;
    }
    // Some services label their JSON or XML as a page; what it is decides then.
    let labelled = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().starts_with("text/html"));
    labelled
        && !start.starts_with(['{', '['])
        && !start.starts_with("<?xml")
        && !start.starts_with("<error")
}

fn html_title(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let open = lower.find("<title")?;
    let start = open + lower[open..].find('>')? + 1;
    let end = start + lower[start..].find("</title")?;
    text.get(start..end)
}

fn join(head: &str, tail: &str) -> String {
    match (head.is_empty(), tail.is_empty()) {
        (false, false) if head.eq_ignore_ascii_case(tail) => head.to_owned(),
        (false, false) => format!("{head}: {tail}"),
        (false, true) => head.to_owned(),
        (true, _) => tail.to_owned(),
    }
}

type Parsed = (RefusalBody, Option<String>, String);

fn json_error(text: &str, clean: &impl Fn(&str) -> String) -> Option<Parsed> {
    let Ok(Value::Object(object)) = serde_json::from_str::<Value>(text) else {
        return None;
    };
    let text_of =
        |value: Option<&Value>| value.and_then(Value::as_str).map(clean).unwrap_or_default();
    let number_of = |value: Option<&Value>| {
        value.and_then(|v| {
            v.as_i64()
                .or_else(|| v.as_str().and_then(|s| s.parse().ok()))
        })
    };
    let errors = object.get("errors").and_then(Value::as_array);
    if let (Some(error), None) = (object.get("error").and_then(Value::as_str), errors) {
        let error = clean(error);
        let words = clean(&join(&error, &text_of(object.get("error_description"))));
        return Some((
            RefusalBody::Simple {
                error: error.clone(),
            },
            Some(error),
            words,
        ));
    }
    if errors.is_none() && !object.contains_key("message") {
        return None;
    }
    let message = text_of(object.get("message"));
    let errors: Vec<DetailedError> = errors
        .into_iter()
        .flatten()
        .take(MAX_ERRORS)
        .filter_map(|entry| match entry {
            Value::String(detail) => Some(DetailedError {
                title: String::new(),
                detail: clean(detail),
                status: None,
                code: None,
            }),
            Value::Object(entry) => Some(DetailedError {
                title: text_of(entry.get("title")),
                detail: text_of(entry.get("detail")),
                status: number_of(entry.get("status")),
                code: number_of(entry.get("code")),
            }),
            _ => None,
        })
        .collect();
    let first = errors.first();
    let title = first
        .map(|error| error.title.clone())
        .filter(|title| !title.is_empty())
        .unwrap_or(message.clone());
    let words = match first {
        Some(error) => clean(&join(&title, &error.detail)),
        None => message.clone(),
    };
    let code = number_of(object.get("code"));
    Some((
        RefusalBody::Detailed {
            code,
            message,
            errors,
        },
        Some(title),
        words,
    ))
}

#[derive(Default)]
struct S3Error {
    code: String,
    message: String,
    request_id: Option<String>,
}

/// The `<Error>` document of S3; `None` for any other text, also for a document that was cut.
fn s3_error(text: &str) -> Option<S3Error> {
    if !text
        .trim_start_matches('\u{feff}')
        .trim_start()
        .starts_with('<')
    {
        return None;
    }
    let mut reader = quick_xml::Reader::from_str(text);
    let mut path: Vec<String> = Vec::new();
    let mut error = S3Error::default();
    let mut complete = false;
    loop {
        let piece: String = match reader.read_event().ok()? {
            Event::Start(start) => {
                path.push(start.local_name().into_inner().to_owned());
                continue;
            }
            Event::End(_) => {
                complete |= path.len() == 1 && path[0] == "Error";
                path.pop();
                continue;
            }
            Event::Eof => break,
            Event::Text(text) => text.xml10_content().into_owned(),
            Event::CData(text) => text.xml10_content().into_owned(),
            Event::GeneralRef(entity) => match entity.resolve_char_ref() {
                Ok(Some(character)) => character.to_string(),
                _ => quick_xml::escape::resolve_xml_entity(&entity)
                    .unwrap_or_default()
                    .to_owned(),
            },
            _ => continue,
        };
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["Error", "Code"] => error.code.push_str(&piece),
            ["Error", "Message"] => error.message.push_str(&piece),
            ["Error", "RequestId"] => error.request_id.get_or_insert_default().push_str(&piece),
            _ => {}
        }
    }
    (complete && !error.code.trim().is_empty()).then_some(error)
}

/// Makes a text of a server fit to be shown: no control characters, no secrets, no URL queries, not too long.
fn clean(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    // Very short "secrets" would blot out ordinary words.
    for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
        text = text.replace(secret, "[redacted]");
    }
    let mut result = String::new();
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !result.is_empty() {
            result.push(' ');
        }
        // Quotes and angle brackets end a URL in running text.
        for token in word.split_inclusive(['"', '\'', '<', '>']) {
            result.push_str(&without_query(token));
        }
        if result.len() > MAX_WORDS * 4 {
            break;
        }
    }
    match result.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => {
            result.truncate(end);
            result
        }
        None => result,
    }
}

fn without_query(token: &str) -> String {
    if let Some((head, tail)) = token.split_once('?')
        && (tail.contains('=') || head.contains("://"))
    {
        return format!("{head}?[redacted]");
    }
    let lower = token.to_ascii_lowercase();
    if token.contains('=') && (lower.contains("x-amz-") || lower.contains("signature=")) {
        return "[redacted]".to_owned();
    }
    token.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &[u8]) -> Refusal {
        Refusal::read(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body,
            &[],
        )
    }

    const PAUSED: &str = r#"{"code":409,"errors":[{"code":409,"detail":"The channel you're uploading from is currently paused.",
        "status":409,"title":"Channel Paused"}],"message":"Channel Paused"}"#;

    #[test]
    fn both_schemas_of_the_service() {
        let paused = read(409, PAUSED.as_bytes());
        assert!(
            paused.says("channel paused") && !paused.says("Channel") && paused.simple().is_none()
        );
        assert_eq!(
            paused.words,
            "Channel Paused: The channel you're uploading from is currently paused."
        );
        assert!(
            matches!(&paused.body, RefusalBody::Detailed { code: Some(409), errors, .. } if errors[0].status == Some(409))
        );
        let simple = read(400, br#"{"error":"invalid_client"}"#);
        assert_eq!(
            (simple.simple(), simple.words.as_str()),
            (Some("invalid_client"), "invalid_client")
        );
        assert!(simple.says("INVALID_CLIENT"));
        assert_eq!(
            simple.to_string(),
            "the server answered with status 400: invalid_client"
        );
        // Fields of a wrong type are left out; the rest is kept.
        let odd = read(422, br#"{"code":"422","errors":["name too long",7,{"title":"T","status":"x"}],"message":null}"#);
        let RefusalBody::Detailed {
            code,
            message,
            errors,
        } = &odd.body
        else {
            panic!("{odd:?}")
        };
        assert_eq!((*code, message.as_str(), errors.len()), (Some(422), "", 2));
        assert_eq!(odd.words, "name too long");
        assert!(odd.says("T"));
    }

    #[test]
    fn s3_xml() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
            <Error><Code>AccessDenied</Code><Message>Request &lt;has&gt; expired &#38; gone</Message>
            <X-Amz-Expires>86400</X-Amz-Expires><RequestId>ABC123</RequestId></Error>"#;
        let refusal = read(403, body);
        assert_eq!(refusal.s3_code(), Some("AccessDenied"));
        assert_eq!(refusal.words, "AccessDenied: Request <has> expired & gone");
        assert_eq!(refusal.request_id.as_deref(), Some("ABC123"));
        // Every way of cutting it still is a refusal, and never half a document taken as whole.
        for end in 0..body.len() {
            let cut = read(403, &body[..end]);
            assert_eq!(cut.status, 403);
            assert!(cut.s3_code().is_none(), "{end}: {cut:?}");
        }
    }

    #[test]
    fn everything_else_has_a_name_too() {
        for (body, expected) in [
            (&b""[..], RefusalBody::Empty),
            (b" \r\n", RefusalBody::Empty),
            (b"\xff\xfe{\"error\":1}", RefusalBody::NotUtf8),
            (b"<!DOCTYPE html><title>Sign in</title>", RefusalBody::Html),
            (b"\xef\xbb\xbf <HTML><body>x", RefusalBody::Html),
            (b"{\"error\":", RefusalBody::Other),
            (b"[]", RefusalBody::Other),
            (b"{}", RefusalBody::Other),
            (b"{\"error\":{\"a\":1}}", RefusalBody::Other),
            (b"null", RefusalBody::Other),
            (b"upstream connect error", RefusalBody::Other),
            (b"<Other><Code>x</Code></Other>", RefusalBody::Other),
        ] {
            assert_eq!(
                read(502, body).body,
                expected,
                "{}",
                String::from_utf8_lossy(body)
            );
        }
        assert_eq!(
            read(511, b"<html><TITLE>Hotel &amp; Bar</TITLE>").to_string(),
            "the server answered with status 511 and a web page titled \"Hotel &amp; Bar\""
        );
    }

    #[test]
    fn headers_are_read() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("retry-after", "7"),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-window", "1000"),
            ("date", "Fri, 16 Aug 2024 20:30:12 GMT"),
            ("location", "http://portal.hotel.example/login?token=abc"),
            ("x-request-id", "req-1"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let refusal = Refusal::read(StatusCode::FOUND, &headers, b"", &[]);
        assert_eq!(
            refusal.retry_after,
            Some(RetryAfter::Delay(Duration::from_secs(7)))
        );
        let limit = RateLimit {
            limit: Some(5),
            remaining: Some(0),
            window: Some(Duration::from_secs(1)),
        };
        assert_eq!(refusal.rate_limit, Some(limit));
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_723_840_212);
        assert_eq!(refusal.date, Some(date));
        assert_eq!(
            refusal.location_host.as_deref(),
            Some("portal.hotel.example")
        );
        assert_eq!(refusal.request_id.as_deref(), Some("req-1"));
        headers.insert(
            "retry-after",
            "Fri, 16 Aug 2024 20:30:12 GMT".parse().unwrap(),
        );
        let refusal = Refusal::read(StatusCode::SERVICE_UNAVAILABLE, &headers, b"", &[]);
        assert_eq!(refusal.retry_after, Some(RetryAfter::At(date)));
        headers.insert("retry-after", "soon".parse().unwrap());
        assert_eq!(
            Refusal::read(StatusCode::OK, &headers, b"", &[]).retry_after,
            None
        );
    }

    #[test]
    fn texts_are_short_and_carry_no_secret() {
        let long = format!("{{\"error\":\"{}\"}}", "\\u0007\\n é".repeat(2_000));
        let refusal = read(400, long.as_bytes());
        assert!(refusal.words.chars().count() <= 500 && !refusal.words.contains(char::is_control));
        for body in [
            "could not write https://s3.example/parts/1?X-Amz-Signature=deadbeef, sorry",
            "<Error><Code>X</Code><Message>'/parts/1?X-Amz-Signature=deadbeef' X-Amz-Signature=deadbeef</Message></Error>",
            r#"{"error":"bad token tok-deadbeef"}"#,
            r#"{"message":"m","errors":[{"title":"tok-deadbeef","detail":"https://x/?q=deadbeef"}]}"#,
            "<html><title>tok-deadbeef</title>",
        ] {
            let refusal = Refusal::read(
                StatusCode::FORBIDDEN,
                &HeaderMap::new(),
                body.as_bytes(),
                &["tok-deadbeef"],
            );
            let shown = format!("{refusal} {refusal:?}");
            assert!(!shown.contains("deadbeef"), "{shown}");
            assert!(!refusal.words.is_empty());
        }
    }
}
