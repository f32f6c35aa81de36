//! As much of HTTP/1.1 as uploaders speak.

/// The head of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) length: u64,
    pub(crate) expects_word: bool,
    pub(crate) closes: bool,
    pub(crate) chunked: bool,
}

impl Head {
    /// Parses the bytes up to the empty line.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Head> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?, first.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Head {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            ..Head::default()
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("expect") {
                head.expects_word = value.eq_ignore_ascii_case("100-continue");
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.eq_ignore_ascii_case("chunked");
            }
        }
        Some(head)
    }

    /// Whether the query has this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// What is put there: the same for each try of the same part, whatever else the query says.
    pub(crate) fn part(&self) -> String {
        match self.value("partNumber") {
            Some(number) => format!("{}?{number}", self.path),
            None => self.path.clone(),
        }
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == key).then_some(value)
        })
    }
}

/// An answer with a body.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nDate: {date}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let head = Head::parse(
            b"PUT /a/b?uploadId=7&partNumber=2 HTTP/1.1\r\nHost: x\r\nContent-LENGTH: 12\r\nexpect: 100-Continue",
        )
        .unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("PUT", "/a/b"));
        assert_eq!(
            (head.length, head.expects_word, head.closes),
            (12, true, false)
        );
        assert!(head.has("partNumber") && head.has("uploadId") && !head.has("part"));
        assert_eq!(head.part(), "/a/b?2");
        let other = Head::parse(b"PUT /a/b?uploads&partNumber HTTP/1.1").unwrap();
        assert!(other.has("uploads"));
        assert_eq!(other.part(), "/a/b?");
        assert_eq!(Head::parse(b"GET"), None);
        assert_eq!(Head::parse(b"PUT / HTTP/1.1\r\nContent-Length: x"), None);
    }
}
