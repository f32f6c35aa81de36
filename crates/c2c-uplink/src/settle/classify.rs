//! From what the client reports to a [`Fault`]: whose fault it is, by the numbered rows of docs/RELIABILITY.md.

use c2c_protocol::{Error, ErrorKind, Refusal, RefusalBody, RetryAfter, Stage, TransportError};

use super::fault::{Asked, Fault};

/// Names a fault of an asset creation (or of another API call with a bearer).
pub(crate) fn classify_create(error: &Error, parts_asked: bool, link_up: bool) -> Fault {
    match &error.kind {
        ErrorKind::Transport(transport) => classify_transport(transport, link_up),
        ErrorKind::Answer(answer) if answer.looks_like_portal => Fault::MiddleBox {
            words: "a page instead of an answer".into(),
        },
        ErrorKind::Answer(answer) => Fault::NotUnderstood {
            words: answer.what.clone(),
        },
        ErrorKind::Request(_) => Fault::BadRequest,
        ErrorKind::Refused(refusal) => classify_api_refusal(refusal, parts_asked),
        _ => Fault::Unknown,
    }
}

/// Names a fault of a chunk upload.
pub(crate) fn classify_put(error: &Error, link_up: bool) -> Fault {
    match &error.kind {
        ErrorKind::Transport(transport) => classify_transport(transport, link_up),
        ErrorKind::Answer(_) => Fault::MiddleBox {
            words: "an answer without the expected shape".into(),
        },
        ErrorKind::Request(_) => Fault::Program {
            words: error.to_string(),
        },
        ErrorKind::Refused(refusal) => classify_storage_refusal(refusal),
        _ => Fault::Unknown,
    }
}

fn classify_transport(transport: &TransportError, link_up: bool) -> Fault {
    match transport.stage {
        Stage::Resolve | Stage::Connect | Stage::ConnectTimeout | Stage::Proxy | Stage::Tls => {
            Fault::Unreachable {
                words: transport.to_string(),
            }
        }
        Stage::TlsCertificate => Fault::Untrusted {
            words: transport.to_string(),
        },
        // The body reports its own faults; the caller looks there first.
        Stage::Body => Fault::Unreadable {
            words: transport.to_string(),
        },
        Stage::Send | Stage::Answer | Stage::AnswerTimeout => Fault::Interrupted {
            words: transport.to_string(),
            link_up,
        },
        _ => Fault::Interrupted {
            words: transport.to_string(),
            link_up,
        },
    }
}

fn classify_api_refusal(refusal: &Refusal, parts_asked: bool) -> Fault {
    // A redirect or a page never comes from the API, whatever its status says.
    if (300..400).contains(&refusal.status) {
        let to = refusal.location_host.as_deref().unwrap_or("elsewhere");
        return Fault::MiddleBox {
            words: format!("a redirect to {to}"),
        };
    }
    let html = matches!(refusal.body, RefusalBody::Html);
    // The service once documented a bad token under another status; its title decides.
    if refusal.status == 401 || refusal.says("Not Authorized") {
        return Fault::Unauthorized;
    }
    match refusal.status {
        402 => Fault::AccountLimit,
        403 | 404 if html => Fault::MiddleBox {
            words: format!("a page with status {}", refusal.status),
        },
        403 => Fault::Forbidden,
        404 => Fault::NotFound,
        409 if refusal.says("Channel Paused") => Fault::ChannelPaused,
        409 if refusal.says("slow_down") || refusal.simple() == Some("slow_down") => {
            Fault::SlowDown(asked(refusal))
        }
        // Cut on its way: it may have said that the channel was paused, which is not for us to guess.
        409 if !matches!(
            refusal.body,
            RefusalBody::Simple { .. } | RefusalBody::Detailed { .. }
        ) =>
        {
            Fault::Unknown
        }
        409 => Fault::Conflict,
        400 | 422 => Fault::BadRequest,
        429 => Fault::RateLimited(asked(refusal)),
        500 if parts_asked => Fault::PartsRefused,
        500 => Fault::ServerError,
        407 | 511 => Fault::MiddleBox {
            words: format!("status {} asks to sign in", refusal.status),
        },
        408 | 425 | 502 | 503 | 504 | 520..=527 => Fault::Infrastructure(asked(refusal)),
        _ => Fault::Unknown,
    }
}

fn classify_storage_refusal(refusal: &Refusal) -> Fault {
    if (300..400).contains(&refusal.status) {
        let to = refusal.location_host.as_deref().unwrap_or("elsewhere");
        return Fault::MiddleBox {
            words: format!("a redirect to {to}"),
        };
    }
    if matches!(refusal.body, RefusalBody::Html) && refusal.status < 500 {
        return Fault::MiddleBox {
            words: format!("a page with status {}", refusal.status),
        };
    }
    let code = refusal.s3_code();
    match (refusal.status, code) {
        (
            _,
            Some("RequestTimeout" | "IncompleteBody" | "BadDigest" | "SlowDown" | "InternalError"),
        ) => Fault::Storage(asked(refusal)),
        (403, Some("AccessDenied")) if refusal.words.to_ascii_lowercase().contains("expired") => {
            Fault::UrlExpired
        }
        (403, Some("ExpiredToken")) => Fault::UrlExpired,
        (401 | 403, _) => Fault::SignatureRefused,
        (400, Some("EntityTooLarge" | "EntityTooSmall")) | (405 | 411 | 413, _) => Fault::Malformed,
        // A middle box does not speak S3's XML about keys: waiting for the link would wait for ever.
        (404, Some("NoSuchKey" | "NoSuchUpload")) => Fault::UploadGone,
        (404, _) => Fault::MiddleBox {
            words: "status 404 instead of the storage".into(),
        },
        (407 | 511, _) => Fault::MiddleBox {
            words: format!("status {} asks to sign in", refusal.status),
        },
        (408 | 425 | 429 | 500..=599, _) => Fault::Storage(asked(refusal)),
        _ => Fault::Unknown,
    }
}

fn asked(refusal: &Refusal) -> Asked {
    let (mut delay, mut until) = (None, None);
    match refusal.retry_after {
        Some(RetryAfter::Delay(wait)) => delay = Some(wait),
        Some(RetryAfter::At(time)) => until = Some(time),
        None => {}
    }
    let refill = refusal
        .rate_limit
        .as_ref()
        .filter(|limit| limit.remaining == Some(0))
        .and_then(|limit| limit.window);
    Asked {
        delay,
        until,
        refill,
    }
}
