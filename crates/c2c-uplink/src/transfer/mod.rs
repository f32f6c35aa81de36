//! From a registered chunk to bytes on the wire and their proof.

mod airgate;
mod body;
mod slots;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use c2c_protocol::{ErrorKind, ExposeSecret, Meter, Reached, Stage, UploadUrl};
use c2c_queue::{ChunkClaim, ChunkProof, Claim, MediaId, Operation, QueueError};
use tokio::task::JoinSet;

use crate::crash;
use crate::engine::{Checkout, Engine, Trouble, server_words};
use crate::event::Event;
use crate::host;
use crate::progress::{Flight, OnBoard};
use crate::settle::{Fault, Refused, TRIES, classify_put};
use crate::source;

pub(crate) use airgate::{Airgate, Pass};
pub(crate) use body::{BufferPool, FileRange};
pub(crate) use slots::{Slot, Slots};

/// How often a transfer in progress is looked at.
const TICK: Duration = Duration::from_secs(1);
/// A lease is renewed this often while bytes move.
const RENEW: Duration = Duration::from_secs(15);
/// A URL this close to its end is not worth beginning with.
const URL_MARGIN: Duration = Duration::from_secs(60);
/// The slowest rate that still counts as a link: a chunk may take as long as its bytes need at this rate, whatever the limit
/// of an attempt says. 3,125 bytes per second, half of 50 kbit/s, since several transfers share the line.
const SLOWEST: u64 = 3_125;

/// Claims chunks as long as there are slots, and sends each in a task of its own, until the shutdown.
pub(crate) async fn work(engine: Arc<Engine>, pool: Arc<BufferPool>) {
    let holder = engine.holder("transfer");
    let mut flying = JoinSet::new();
    while engine.open_gate().await {
        while flying.try_join_next().is_some() {}
        let slot = tokio::select! {
            _ = engine.stop.cancelled() => break,
            slot = engine.slots.acquire() => slot,
        };
        let mut wake = pin!(engine.wake.notified());
        wake.as_mut().enable();
        let Some(pass) = engine.airgate.enter().await else {
            continue;
        };
        if !engine.is_open() {
            continue;
        }
        match engine
            .queue
            .claim_chunk(&holder, engine.settings.lease)
            .await
        {
            Ok(Claim::Got(claim)) => {
                crash::point("chunk.claimed");
                engine.idle_transfers.store(false, Ordering::Relaxed);
                let checkout = Checkout::of(&claim.lease, &claim.media, claim.attempt);
                let (engine, pool) = (engine.clone(), pool.clone());
                flying.spawn(async move {
                    let work = handle(&engine, &pool, *claim, pass, slot);
                    engine.guard(checkout, Operation::Transfer, work).await;
                });
            }
            Ok(Claim::Later(wait)) => {
                drop((pass, slot));
                engine.idle_transfers.store(true, Ordering::Relaxed);
                engine.idle(wake, Some(wait)).await;
            }
            Ok(Claim::Nothing) => {
                drop((pass, slot));
                engine.idle_transfers.store(true, Ordering::Relaxed);
                engine.idle(wake, None).await;
            }
            Err(QueueError::Closed) => break,
            Err(error) => engine.store_trouble(&error).await,
        }
    }
    // They know of the shutdown, and give back what they hold.
    while flying.join_next().await.is_some() {}
}

/// How an attempt ended.
enum Attempted {
    Sent(ChunkProof),
    Trouble(Trouble),
    /// Shutdown or airlock: nobody's fault, the try is given back.
    Abandoned {
        bytes_wasted: u64,
    },
    /// The lease is not ours any more.
    Lost,
}

async fn handle(
    engine: &Engine,
    pool: &Arc<BufferPool>,
    claim: ChunkClaim,
    pass: Pass,
    mut slot: Slot,
) -> Result<(), QueueError> {
    let _stay = &pass;
    let mut flight = None;
    // Whatever it waits for, even a dead disk, it leaves when it must.
    let ended = tokio::select! {
        ended = attempt(engine, pool, &claim, &pass, &mut slot, &mut flight) => ended?,
        _ = pass.cancelled() => Attempted::Abandoned { bytes_wasted: 0 },
    };
    let ChunkClaim {
        lease,
        media,
        chunk,
        attempt,
        ..
    } = &claim;
    match ended {
        Attempted::Sent(proof) => {
            let _report = engine.report();
            crash::point("chunk.answered");
            let report = || engine.queue.chunk_sent(lease, proof.clone());
            let sent = match engine.insist(report).await {
                Ok(sent) => sent,
                Err(QueueError::LeaseLost(_)) => {
                    tracing::debug!(media = %media.id, chunk = chunk.number, "another worker has this chunk by now");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            crash::point("chunk.stored");
            if let Some(flight) = flight.take() {
                flight.landed();
            }
            engine.emit(Event::ChunkSent {
                media: media.id,
                number: chunk.number,
                left: sent.left,
            });
            if let Some(receipt) = sent.receipt {
                crash::point("delivered");
                tracing::info!(media = %media.id, name = %media.name, asset = %receipt.asset_id, "delivered");
                engine.emit(Event::Delivered { receipt });
            }
            engine.changed();
            Ok(())
        }
        Attempted::Trouble(trouble) => {
            drop(flight);
            engine
                .settle(lease, media, Operation::Transfer, *attempt, trouble)
                .await
        }
        Attempted::Abandoned { bytes_wasted } => {
            tracing::debug!(media = %media.id, chunk = chunk.number, bytes_wasted, "given back");
            match engine.queue.release(lease).await {
                Ok(()) | Err(QueueError::LeaseLost(_)) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Attempted::Lost => Ok(()),
    }
}

async fn attempt(
    engine: &Engine,
    pool: &Arc<BufferPool>,
    claim: &ChunkClaim,
    pass: &Pass,
    slot: &mut Slot,
    on_board: &mut Option<OnBoard>,
) -> Result<Attempted, QueueError> {
    let ChunkClaim {
        lease,
        media,
        chunk,
        url,
        url_age,
        attempt,
    } = claim;
    // A final try that ended without a report was the final one all the same.
    if attempt.number > if attempt.final_try { 1 } else { TRIES } {
        return Ok(Attempted::Trouble(Fault::WorkerLost.into()));
    }
    let url = match UploadUrl::parse(url.expose_secret(), engine.settings.allow_plain_loopback) {
        Ok(url) => url,
        Err(error) => {
            return Ok(Attempted::Trouble(
                Fault::Program {
                    words: error.to_string(),
                }
                .into(),
            ));
        }
    };
    if url.life().unwrap_or(engine.settings.url_life) < *url_age + URL_MARGIN {
        return Ok(Attempted::Trouble(Fault::UrlExpired.into()));
    }
    let (file, facts) = match source::open(media, &engine.hung).await {
        Ok(opened) => opened,
        Err(fault) => return Ok(Attempted::Trouble(fault.into())),
    };
    if let Some(words) = source::difference(&media.facts, &facts) {
        // Another card in the same place is no change of this file.
        if let Err(fault) = source::on_its_volume(media, &host::volumes()) {
            return Ok(Attempted::Trouble(fault.into()));
        }
        return Ok(Attempted::Trouble(Fault::FileChanged { words }.into()));
    }
    let file = Arc::new(file);
    let hasher = match engine.settings.verify.then(|| engine.digests.begin()) {
        None => None,
        Some(Ok(hasher)) => Some(hasher),
        Some(Err(error)) => {
            let words = error.to_string();
            return Ok(Attempted::Trouble(Fault::Program { words }.into()));
        }
    };
    let interface = engine.settings.interface.as_deref();
    let pace = engine.pacer.connection(interface);
    let (body, state) = FileRange::new(
        file.clone(),
        chunk.start,
        chunk.length,
        pool.clone(),
        hasher,
        pace.clone(),
    );
    let meter = Arc::new(Meter::default());
    let flight = Flight::new(media.id, chunk.number, chunk.length, meter.clone());
    *on_board = Some(engine.board.begin(flight));
    crash::point("chunk.sending");
    let _watched = engine.helm.gauge.watch(meter.clone());
    let place = (media.id, chunk.number);
    let ask_first = engine.wary.forget(place);
    let put = async {
        let (client, filetype, length) = (&engine.client, &media.filetype, chunk.length);
        if ask_first {
            client
                .put_chunk_asking_first(&url, filetype, length, body, &meter)
                .await
        } else {
            client.put_chunk(&url, filetype, length, body, &meter).await
        }
    };
    let mut put = pin!(put);
    let mut lost = engine.addresses_lost.subscribe();
    let begun = engine.clock.boot().0;
    let limit = engine
        .settings
        .attempt_limit
        .max(Duration::from_secs(chunk.length / SLOWEST));
    let (mut moved_at, mut moved, mut renewed_at) = (begun, 0u64, begun);
    let mut given = false;
    let host = (url.host().to_owned(), url.port());
    let result = loop {
        tokio::select! {
            biased;
            result = &mut put => break result,
            () = state.given(), if !given => {
                given = true;
                slot.handed_over();
            }
            _ = pass.cancelled() => {
                return Ok(Attempted::Abandoned { bytes_wasted: meter.acknowledged() });
            }
            Ok(()) = lost.changed() => {
                let local = meter.local().map(|address| address.ip());
                if local.is_some_and(|address| lost.borrow_and_update().contains(&address)) {
                    tracing::info!(media = %media.id, chunk = chunk.number, "the address it was sent from is gone");
                    return Ok(Attempted::Abandoned { bytes_wasted: meter.acknowledged() });
                }
            }
            _ = engine.clock.sleep(TICK) => {
                let now = engine.clock.boot().0;
                let acknowledged = meter.acknowledged();
                if acknowledged > moved {
                    (moved, moved_at) = (acknowledged, now);
                }
                let silent = Duration::from_millis((now - moved_at).max(0) as u64);
                let lasted = Duration::from_millis((now - begun).max(0) as u64);
                let stalled = if silent >= engine.settings.stall {
                    Some(format!("no byte was accepted for {} s", silent.as_secs()))
                // What a person slows down takes as long as it takes.
                } else if lasted >= limit && pace.is_unlimited() {
                    Some(format!("the attempt took longer than {} s", limit.as_secs()))
                } else {
                    None
                };
                if let Some(words) = stalled {
                    engine.helm.gauge.fault();
                    // Leaving drops the request and with it the connection.
                    let link_up = engine.link.judge().await;
                    return Ok(Attempted::Trouble(Trouble {
                        bytes_wasted: acknowledged.min(chunk.length),
                        ..Fault::Stalled { words, link_up }.into()
                    }));
                }
                if moved_at >= renewed_at && now - renewed_at >= RENEW.as_millis() as i64 {
                    renewed_at = now;
                    match engine.queue.renew(lease, acknowledged.min(chunk.length), engine.settings.lease).await {
                        Ok(()) => {}
                        Err(QueueError::LeaseLost(_)) => return Ok(Attempted::Lost),
                        // The lease runs much longer than the next time to renew it.
                        Err(error) => tracing::warn!("{error}"),
                    }
                }
            }
        }
    };
    let wasted = meter.acknowledged().min(chunk.length);
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => {
            if let Some(error) = state.take_error() {
                let fault = match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => Fault::FileChanged {
                        words: "it became shorter while it was sent".into(),
                    },
                    _ => Fault::Unreadable {
                        words: error.to_string(),
                    },
                };
                return Ok(Attempted::Trouble(Trouble {
                    bytes_wasted: wasted,
                    ..fault.into()
                }));
            }
            let link_up = engine.link_up_after(&error, Some(host.clone())).await;
            if matches!(error.kind, ErrorKind::Transport(_)) {
                engine.helm.gauge.fault();
            }
            if link_up && is_suspicious(&error) {
                engine.wary.note(place);
            }
            let fault = classify_put(&error, link_up);
            if matches!(&error.kind, ErrorKind::Refused(refusal) if refusal.status >= 500)
                && matches!(fault, Fault::Storage(_))
            {
                let refused = Refused {
                    media: media.id,
                    chunk: chunk.number,
                    attempt: *attempt,
                    served_before: media.chunks_sent > 0,
                };
                engine.link.storage_refused(&host, refused);
            }
            return Ok(Attempted::Trouble(Trouble {
                server: server_words(&error),
                bytes_wasted: wasted,
                ..fault.into()
            }));
        }
    };
    // What was read is what the file was only if it is still the same file.
    let now = match source::look_again(media, &engine.hung, file).await {
        Ok(now) => now,
        Err(fault) => {
            return Ok(Attempted::Trouble(Trouble {
                bytes_wasted: chunk.length,
                ..fault.into()
            }));
        }
    };
    if let Some(words) = source::difference(&media.facts, &now) {
        let words = format!("{words} while it was sent");
        return Ok(Attempted::Trouble(Trouble {
            bytes_wasted: chunk.length,
            ..Fault::FileChanged { words }.into()
        }));
    }
    let Some(etag) = &answer.etag else {
        // An answer without an ETag is not S3's, whatever its status.
        let words = "status 200 without an ETag".to_owned();
        // With a link that works this may be so every time: then it must be counted, or it would never end.
        let fault = if engine.link.judge().await {
            Fault::Unknown
        } else {
            Fault::MiddleBox { words }
        };
        return Ok(Attempted::Trouble(Trouble {
            bytes_wasted: wasted,
            ..fault.into()
        }));
    };
    engine.link.storage_served(&host);
    let md5 = match state.md5().await.transpose() {
        Ok(md5) => md5,
        Err(error) => {
            let words = error.to_string();
            return Ok(Attempted::Trouble(Trouble {
                bytes_wasted: wasted,
                ..Fault::Program { words }.into()
            }));
        }
    };
    if let Some(md5) = &md5
        && has_md5_form(etag)
        && !etag.eq_ignore_ascii_case(md5)
    {
        return Ok(Attempted::Trouble(Trouble {
            bytes_wasted: chunk.length,
            ..Fault::DigestMismatch.into()
        }));
    }
    Ok(Attempted::Sent(ChunkProof {
        etag: Some(etag.clone()),
        md5,
        crc64nvme: state.crc64(),
    }))
}

/// Whether the connection ended in the middle of a chunk: perhaps the storage had refused it, and the end overtook its words.
fn is_suspicious(error: &c2c_protocol::Error) -> bool {
    match &error.kind {
        ErrorKind::Transport(transport) => {
            transport.stage == Stage::Send && transport.reached == Reached::Maybe
        }
        _ => false,
    }
}

/// Chunks whose last connection ended in the middle although the link is up: the storage is asked before they are sent again.
#[derive(Debug, Default)]
pub(crate) struct Wary(Mutex<HashSet<(MediaId, u32)>>);

impl Wary {
    /// More than this are never remembered: then something else is wrong.
    const MOST: usize = 1024;

    fn note(&self, place: (MediaId, u32)) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() < Self::MOST {
            places.insert(place);
        }
    }

    fn forget(&self, place: (MediaId, u32)) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.remove(&place)
    }
}

/// 32 hexadecimal digits: what S3 answers for a plain PUT without encryption by KMS.
fn has_md5_form(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}
