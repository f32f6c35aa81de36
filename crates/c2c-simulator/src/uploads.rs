//! The uploads host: one `PUT` per part, checked as S3 checks a pre-signed URL.
//!
//! Invariants: nothing about a part is believed before its signature was verified; a body is streamed to disk in
//! fixed memory; a stored part has exactly the length it was registered with.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts as Head;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::answer::{self, Answer};
use crate::asset::AssetStage;
use crate::clock::stamp_secs;
use crate::exchange::{Connection, Exchange};
use crate::fault::{Effect, EndpointName, Subject};
use crate::presign::{Signed, query_pairs};
use crate::store::{self, PartWriter};
use crate::world::World;

/// A part upload that may proceed.
struct Permit {
    asset_id: String,
    part: u32,
    length: u64,
}

/// Answers one request to the uploads host.
pub(crate) async fn handle(
    world: Arc<World>,
    connection: Arc<Connection>,
    request: http::Request<Incoming>,
) -> Answer {
    let (head, mut body) = request.into_parts();
    let mut exchange = Exchange::open(world, connection, EndpointName::PutChunk, &head);
    let query = query_pairs(head.uri.query().unwrap_or_default());
    let (part, asset_name) = claim(&exchange, &query);
    exchange.meet_faults(Subject {
        endpoint: EndpointName::PutChunk,
        part,
        asset_name: asset_name.as_deref(),
    });
    let world = Arc::clone(&exchange.world);
    world.change(|state| {
        state.stats.puts_open += 1;
        state.stats.puts_peak = state.stats.puts_peak.max(state.stats.puts_open);
    });
    let _counted = world.counted(|stats| stats.puts_open -= 1);
    if let Some(answer) = exchange.before_body().await {
        return exchange.finish(signed_off(answer)).await;
    }
    if exchange.instead().is_some() {
        if exchange.drain(&mut body).await.is_err() {
            return exchange.gone();
        }
        let answer = exchange.instead().unwrap_or_else(|| answer::empty(500));
        return exchange.finish(signed_off(answer)).await;
    }
    let permit = match permit(&exchange, &head, query) {
        Ok(permit) => permit,
        Err(refusal) => return exchange.finish(signed_off(answer::closing(*refusal))).await,
    };
    exchange.stall_at_start().await;
    match receive(&mut exchange, &mut body, &permit).await {
        Ok(answer) => exchange.finish(signed_off(answer)).await,
        Err(Interrupted::Gone) => exchange.gone(),
        Err(Interrupted::Disk(error)) => {
            tracing::error!(%error, "a part could not be stored");
            let answer = answer::s3(
                500,
                "InternalError",
                "We encountered an internal error. Please try again.",
                &[],
            );
            exchange.finish(signed_off(answer::closing(answer))).await
        }
    }
}

fn signed_off(mut answer: Answer) -> Answer {
    if !answer.headers().contains_key("x-amz-request-id") {
        answer::put(&mut answer, "x-amz-request-id", &answer::request_id());
    }
    answer::put(
        &mut answer,
        "x-amz-id-2",
        &uuid::Uuid::new_v4().simple().to_string(),
    );
    answer::put(&mut answer, "server", "AmazonS3");
    answer
}

/// What the request says about itself, for the log and the faults. Nothing of it is verified yet.
fn claim(exchange: &Exchange, query: &[(String, String)]) -> (Option<u32>, Option<String>) {
    let part = value(query, "x-amz-meta-part_number").and_then(|number| number.parse().ok());
    let asset_id = value(query, "x-amz-meta-asset_id").map(str::to_owned);
    let known = asset_id.as_deref().and_then(|id| {
        let facts = |state: &crate::world::State| {
            let asset = state.assets.get(id)?;
            Some((asset.name.clone(), asset.client_id.clone()))
        };
        exchange.world.read(facts)
    });
    let (name, client_id) = known.unzip();
    let noted = name.clone();
    exchange.entry.note(|entry| {
        entry.part = part;
        entry.asset_id = asset_id;
        entry.asset_name = noted;
        entry.client_id = client_id;
    });
    (part, name)
}

fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

fn denied(message: &str, more: &[(&str, String)]) -> Box<Answer> {
    Box::new(answer::s3(403, "AccessDenied", message, more))
}

/// Checks everything that can be checked before the body.
fn permit(
    exchange: &Exchange,
    head: &Head,
    query: Vec<(String, String)>,
) -> Result<Permit, Box<Answer>> {
    let violation = |rule: &str| exchange.entry.violation(rule.to_owned());
    let header = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if head.headers.contains_key("authorization") {
        violation("an Authorization header was sent to the uploads host");
        return Err(Box::new(answer::s3(
            400,
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string \
             parameter or the Authorization header should be specified",
            &[("ArgumentName", "Authorization".to_owned())],
        )));
    }
    if head.method == http::Method::POST {
        violation("a part upload must use PUT");
        return Err(Box::new(answer::s3(
            405,
            "MethodNotAllowed",
            "The specified method is not allowed against this resource.",
            &[
                ("Method", "POST".to_owned()),
                ("ResourceType", "OBJECT".to_owned()),
            ],
        )));
    }
    verify(exchange, head, &query)?;
    let unsigned = head
        .headers
        .keys()
        .find(|name| name.as_str().starts_with("x-amz-") && *name != "x-amz-acl");
    if let Some(name) = unsigned {
        violation("an x-amz- header was sent that the URL does not sign");
        let more = [("HeadersNotSigned", name.to_string())];
        return Err(denied(
            "There were headers present in the request which were not signed",
            &more,
        ));
    }
    if head.headers.contains_key("transfer-encoding") || header("content-length").is_empty() {
        violation("Content-Length is missing");
        let message = "You must provide the Content-Length HTTP header.";
        return Err(Box::new(answer::s3(
            411,
            "MissingContentLength",
            message,
            &[],
        )));
    }
    let asset_id = value(&query, "x-amz-meta-asset_id")
        .unwrap_or_default()
        .to_owned();
    let part: u32 = value(&query, "x-amz-meta-part_number")
        .and_then(|part| part.parse().ok())
        .unwrap_or_default();
    let size = exchange.world.read(|state| {
        state
            .assets
            .get(&asset_id)?
            .parts
            .get(&part)
            .map(|part| part.size)
    });
    let Some(size) = size else {
        return Err(Box::new(answer::s3(
            404,
            "NoSuchKey",
            "The specified key does not exist.",
            &[],
        )));
    };
    let length: u64 = header("content-length").parse().unwrap_or(u64::MAX);
    let lengths = [
        ("ProposedSize", length.to_string()),
        ("ExpectedSize", size.to_string()),
    ];
    if length > size {
        violation("the body is longer than the part");
        let message = "Your proposed upload exceeds the maximum allowed size";
        return Err(Box::new(answer::s3(
            400,
            "EntityTooLarge",
            message,
            &lengths,
        )));
    }
    if length < size {
        violation("the body is shorter than the part");
        let message = "Your proposed upload is smaller than the minimum allowed size";
        return Err(Box::new(answer::s3(
            400,
            "EntityTooSmall",
            message,
            &lengths,
        )));
    }
    Ok(Permit {
        asset_id,
        part,
        length,
    })
}

/// Checks the URL's form, age and signature.
fn verify(exchange: &Exchange, head: &Head, query: &[(String, String)]) -> Result<(), Box<Answer>> {
    let world = &exchange.world;
    let header = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut rest = query.to_vec();
    let signature = rest
        .iter()
        .position(|(name, _)| name == "X-Amz-Signature")
        .map(|at| rest.remove(at).1);
    let (Some(signature), Some(issued)) =
        (signature, value(query, "X-Amz-Date").and_then(parse_date))
    else {
        exchange.entry.violation("the URL carries no signature");
        return Err(denied("Access Denied", &[]));
    };
    let life = value(query, "X-Amz-Expires")
        .and_then(|secs| secs.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs);
    let now = world.clock.now();
    if now >= issued + life {
        let more = [
            ("X-Amz-Expires", life.as_secs().to_string()),
            ("Expires", stamp_secs(issued + life)),
            ("ServerTime", stamp_secs(now)),
        ];
        return Err(denied("Request has expired", &more));
    }
    let signed = Signed {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: &rest,
        content_type: header("content-type"),
        host: header("host"),
        acl: header("x-amz-acl"),
    };
    if world.signer.verify(&signed, &signature) {
        return Ok(());
    }
    exchange
        .entry
        .violation(mismatch(world, &signed, &signature, query));
    Err(Box::new(answer::s3(
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and signing \
         method.",
        &[("AWSAccessKeyId", "C2CSIMULATOR".to_owned())],
    )))
}

/// Why a signature is wrong, for the log.
fn mismatch(
    world: &World,
    signed: &Signed<'_>,
    signature: &str,
    query: &[(String, String)],
) -> String {
    let asset_id = value(query, "x-amz-meta-asset_id").unwrap_or_default();
    let filetype = world.read(|state| {
        state
            .assets
            .get(asset_id)
            .map(|asset| asset.filetype.clone())
    });
    let filetype = filetype.unwrap_or_default();
    let right = Signed {
        method: "PUT",
        content_type: &filetype,
        host: world.signer.host(),
        acl: "private",
        ..*signed
    };
    if !world.signer.verify(&right, signature) {
        return "the URL was altered".to_owned();
    }
    let wrong = [
        (signed.method != "PUT", "a part upload must use PUT"),
        (
            signed.content_type.trim() != filetype,
            "Content-Type differs from the filetype of the asset",
        ),
        (
            signed.acl.trim() != "private",
            "the header x-amz-acl: private is missing",
        ),
        (
            signed.host != world.signer.host(),
            "the Host header differs from the URL",
        ),
    ];
    let names: Vec<&str> = wrong
        .iter()
        .filter(|(is_wrong, _)| *is_wrong)
        .map(|(_, name)| *name)
        .collect();
    names.join("; ")
}

fn parse_date(text: &str) -> Option<SystemTime> {
    let date = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(
        date.to_zoned(jiff::tz::TimeZone::UTC)
            .ok()?
            .timestamp()
            .into(),
    )
}

enum Interrupted {
    Gone,
    Disk(std::io::Error),
}

impl From<std::io::Error> for Interrupted {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Streams the body to disk, commits the part, and makes the answer.
async fn receive(
    exchange: &mut Exchange,
    body: &mut Incoming,
    permit: &Permit,
) -> Result<Answer, Interrupted> {
    let world = Arc::clone(&exchange.world);
    let mut writer = PartWriter::create(&world, &uuid::Uuid::new_v4().simple().to_string())?;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Interrupted::Gone);
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let batch_written = writer.write(data).await?;
        exchange.count(data.len() as u64).await;
        if batch_written {
            exchange.entry.received(exchange.received());
        }
    }
    exchange.entry.received(exchange.received());
    if exchange.received() != permit.length {
        return Err(Interrupted::Gone);
    }
    let md5 = writer.finish().await?;
    commit(exchange, &world, permit, writer, md5)?;
    let mut answer = answer::empty(200);
    match exchange.effect() {
        Some(Effect::NoEtag) => {}
        Some(Effect::WrongEtag) => {
            let wrong: Vec<u8> = md5.iter().map(|byte| !byte).collect();
            answer::put(&mut answer, "etag", &format!("\"{}\"", hex::encode(wrong)));
        }
        _ => answer::put(&mut answer, "etag", &format!("\"{}\"", hex::encode(md5))),
    }
    Ok(answer)
}

/// Makes a part that arrived whole count; the last one of an asset starts the joining.
fn commit(
    exchange: &Exchange,
    world: &Arc<World>,
    permit: &Permit,
    writer: PartWriter,
    md5: [u8; 16],
) -> Result<(), Interrupted> {
    let place = store::part_path(world, &permit.asset_id, permit.part);
    let (complete, differs) = world.change(|state| {
        let Some(asset) = state.assets.get_mut(&permit.asset_id) else {
            return Err(std::io::Error::other("the asset is gone"));
        };
        let late = asset.stage != AssetStage::Created;
        let Some(part) = asset.parts.get_mut(&permit.part) else {
            return Err(std::io::Error::other("the part is gone"));
        };
        let differs = part.stored.is_some_and(|before| before != md5);
        part.puts += 1;
        // A file that was joined is never touched again, as objects that were copied are not.
        if late {
            return Ok((false, differs));
        }
        writer.keep(&place)?;
        part.stored = Some(md5);
        let complete = asset.complete();
        if complete {
            asset.stage = AssetStage::Joining;
        }
        Ok((complete, differs))
    })?;
    if differs {
        exchange
            .entry
            .violation("the part was sent again with other bytes");
    }
    if complete {
        store::join_in_background(world, permit.asset_id.clone());
    }
    Ok(())
}
