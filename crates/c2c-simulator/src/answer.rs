//! Answers in the service's own words: the two error schemas, S3's XML, and the pages of machines in between.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

use crate::fault::BodyKind;

/// An answer on its way out.
pub(crate) type Answer = Response<AnswerBody>;

/// The body of an [`Answer`]: whole, or cut short on purpose.
pub(crate) struct AnswerBody {
    bytes: Option<Bytes>,
    announced: u64,
    cut: Option<Cut>,
}

struct Cut {
    flushed: bool,
    order: Box<dyn Fn() + Send + Sync>,
}

impl AnswerBody {
    pub(crate) fn len(&self) -> u64 {
        self.announced
    }

    /// Announces everything but sends `bytes` only, then gives the order to cut the connection.
    pub(crate) fn truncated(self, bytes: usize, order: impl Fn() + Send + Sync + 'static) -> Self {
        let kept = self
            .bytes
            .map(|whole| whole.slice(..bytes.min(whole.len())));
        Self {
            bytes: kept,
            announced: self.announced,
            cut: Some(Cut {
                flushed: false,
                order: Box::new(order),
            }),
        }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self {
            announced: bytes.len() as u64,
            bytes: Some(bytes),
            cut: None,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(bytes) = self.bytes.take()
            && !bytes.is_empty()
        {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(cut) = &mut self.cut else {
            return Poll::Ready(None);
        };
        // One turn of the connection's loop writes out what was handed over before the cut.
        if cut.flushed {
            (cut.order)();
        } else {
            cut.flushed = true;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.bytes.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

pub(crate) fn with_type(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(AnswerBody::from(body.into()));
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(crate) fn empty(status: u16) -> Answer {
    let mut answer = with_type(status, "", Bytes::new());
    answer.headers_mut().remove(CONTENT_TYPE);
    answer
}

pub(crate) fn json(status: u16, value: &Value) -> Answer {
    with_type(status, "application/json; charset=utf-8", value.to_string())
}

/// The simple schema of the auth endpoints.
pub(crate) fn simple(status: u16, error: &str) -> Answer {
    json(status, &json!({ "error": error }))
}

/// The detailed schema of all other endpoints.
pub(crate) fn detailed(status: u16, title: &str, detail: &str) -> Answer {
    let error = json!({ "code": status, "detail": detail, "status": status, "title": title });
    json(
        status,
        &json!({ "code": status, "errors": [error], "message": title }),
    )
}

pub(crate) fn not_authorized() -> Answer {
    detailed(
        401,
        "Not Authorized",
        "You are not allowed to access that resource",
    )
}

pub(crate) fn channel_paused() -> Answer {
    detailed(
        409,
        "Channel Paused",
        "The channel you're uploading from is currently paused.",
    )
}

pub(crate) fn went_wrong() -> Answer {
    detailed(
        500,
        "Something went wrong",
        "There was a problem with your request",
    )
}

/// An S3 error document; `more` are further elements.
pub(crate) fn s3(status: u16, code: &str, message: &str, more: &[(&str, String)]) -> Answer {
    use std::fmt::Write;
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
    let _ = write!(
        xml,
        "<Code>{}</Code><Message>{}</Message>",
        escape(code),
        escape(message)
    );
    for (name, value) in more {
        let _ = write!(xml, "<{name}>{}</{name}>", escape(value));
    }
    let (request, host) = (request_id(), uuid::Uuid::new_v4().simple());
    let _ = write!(
        xml,
        "<RequestId>{request}</RequestId><HostId>{host}</HostId></Error>"
    );
    let mut answer = with_type(status, "application/xml", xml);
    put(&mut answer, "x-amz-request-id", &request);
    answer
}

pub(crate) fn html(status: u16, title: &str, text: &str) -> Answer {
    let (title, text) = (escape(title), escape(text));
    let page = format!(
        "<!DOCTYPE html>\n<html><head><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{text}</p></body></html>\n"
    );
    with_type(status, "text/html; charset=utf-8", page)
}

pub(crate) fn captive_portal() -> Answer {
    with_type(
        200,
        "text/html; charset=utf-8",
        "<!DOCTYPE html>\n<html><head><title>Welcome to the Grand Hotel</title></head><body>\
         <form method=\"post\" action=\"/login\"><p>Please enter your room number to use the network.</p>\
         <input name=\"room\"><button>Connect</button></form></body></html>\n",
    )
}

/// The answer of a fault.
pub(crate) fn made_up(status: u16, body: &BodyKind, headers: &[(String, String)]) -> Answer {
    let mut answer = match body {
        BodyKind::Simple(error) => simple(status, error),
        BodyKind::Detailed { title, detail } => detailed(status, title, detail),
        BodyKind::Html => html(
            status,
            "Gateway error",
            "The gateway could not reach the server behind it.",
        ),
        BodyKind::S3 { code, message } => s3(status, code, message, &[]),
        BodyKind::Empty => empty(status),
        BodyKind::NotUtf8 => with_type(
            status,
            "application/json",
            &b"{\"error\": \"\xff\xfe\xc3\x28"[..],
        ),
        BodyKind::Text(text) => with_type(status, "text/plain; charset=utf-8", text.clone()),
    };
    for (name, value) in headers {
        put(&mut answer, name, value);
    }
    answer
}

/// Marks an answer given before the request's body was read.
pub(crate) fn closing(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Sets a header field; names and values that HTTP does not allow are left out.
pub(crate) fn put(answer: &mut Answer, name: &str, value: &str) {
    let pair = (
        HeaderName::from_bytes(name.as_bytes()),
        HeaderValue::from_str(value),
    );
    if let (Ok(name), Ok(value)) = pair {
        answer.headers_mut().insert(name, value);
    }
}

pub(crate) fn date(answer: &mut Answer, at: SystemTime) {
    put(answer, "date", &httpdate::fmt_http_date(at));
}

/// Sixteen capital hexadecimal digits, as S3 numbers its requests.
pub(crate) fn request_id() -> String {
    hex::encode_upper(&uuid::Uuid::new_v4().as_bytes()[..8])
}

pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write most control characters.
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
