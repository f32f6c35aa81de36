//! From a queued media to an asset with chunk URLs.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use c2c_protocol::{Asset, ChunkPlan, CreateAsset, ErrorKind, Reached, SecretString};
use c2c_queue::{
    BootTime, CaptureSource, Claim, Media, MediaId, NewAsset, NewChunk, Operation, QueueError,
    RegistrationClaim, Scope,
};
use tokio::task::JoinSet;

use crate::connection::{NoToken, Why};
use crate::crash;
use crate::engine::{Checkout, Engine, Trouble, server_words};
use crate::event::Event;
use crate::pace::choose_parts;
use crate::settings::OrganiseBy;
use crate::settle::{Fault, TRIES, classify_create};
use crate::source;
use crate::time::{Offset, PreparedOffset};
use crate::transfer::Pass;

/// How long an answer that may be on its way is waited for when the program stops or the project changes.
const GRACE: Duration = Duration::from_secs(3);
/// While the account is over its limits, one registration is tried this often.
const ACCOUNT_PROBE: Duration = Duration::from_secs(600);

/// Registrations under way at once: enough that none waits for another's round trip, also over a satellite.
const AT_ONCE: usize = 4;

/// What the registrations under way share.
struct Shared {
    pace: Mutex<Pace>,
    /// Media whose create was refused for its token, with no other accepted since.
    refused: Mutex<HashSet<MediaId>>,
}

impl Shared {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, HashSet<MediaId>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers media, a few at once and a bounded number of chunks ahead of the senders, until the shutdown.
pub(crate) async fn work(engine: Arc<Engine>) {
    let holder = engine.holder("register");
    let shared = Arc::new(Shared {
        pace: Mutex::new(Pace::new(engine.settings.creates_per_second)),
        refused: Mutex::default(),
    });
    let mut under_way = JoinSet::new();
    while engine.open_gate().await {
        while under_way.try_join_next().is_some() {}
        // While the account is over its limits, one is tried alone.
        let at_once = match engine.account_limit.load(Ordering::Relaxed) {
            true => 1,
            false => AT_ONCE,
        };
        if under_way.len() >= at_once {
            under_way.join_next().await;
            continue;
        }
        let mut wake = pin!(engine.wake.notified());
        wake.as_mut().enable();
        if engine.account_limit.load(Ordering::Relaxed) {
            tokio::select! {
                _ = engine.stop.cancelled() => break,
                _ = engine.clock.sleep(ACCOUNT_PROBE) => {}
                // Somebody asked to look again.
                _ = engine.nudged.notified() => {}
            }
        }
        let wait = shared.pace().wait(engine.clock.boot().0);
        if !wait.is_zero() {
            tokio::select! {
                _ = engine.stop.cancelled() => break,
                _ = engine.clock.sleep(wait) => {}
            }
            // One under way may have learned of a longer wait.
            continue;
        }
        let Some(pass) = engine.airgate.enter().await else {
            continue;
        };
        if !engine.is_open() {
            continue;
        }
        let ahead = Some(engine.settings.chunks_ahead);
        match engine
            .queue
            .claim_registration(&holder, engine.settings.lease, ahead)
            .await
        {
            Ok(Claim::Got(claim)) => {
                crash::point("register.claimed");
                shared.pace().used(engine.clock.boot().0);
                let checkout = Checkout::of(&claim.lease, &claim.media, claim.attempt);
                let (engine, shared) = (engine.clone(), shared.clone());
                under_way.spawn(async move {
                    let work = handle(&engine, *claim, pass, &shared);
                    engine.guard(checkout, Operation::Register, work).await;
                });
            }
            Ok(Claim::Later(wait)) => {
                drop(pass);
                engine.idle(wake, Some(wait)).await;
            }
            Ok(Claim::Nothing) => {
                drop(pass);
                engine.idle(wake, None).await;
            }
            Err(QueueError::Closed) => break,
            Err(error) => engine.store_trouble(&error).await,
        }
    }
    // They know of the shutdown; an answer that is on its way gets a moment.
    while under_way.join_next().await.is_some() {}
}

/// How an attempt ended.
enum Attempted {
    Created(Box<NewAsset>),
    Trouble(Trouble),
    /// The access token was refused: renew this one, then try again.
    Refused(SecretString),
    /// Nothing was sent, and it is nobody's fault.
    Abandoned,
}

async fn handle(
    engine: &Engine,
    claim: RegistrationClaim,
    pass: Pass,
    shared: &Shared,
) -> Result<(), QueueError> {
    let (lease, media, number) = (claim.lease.clone(), claim.media.clone(), claim.attempt);
    match attempt(engine, &claim, &pass, shared).await? {
        Attempted::Created(asset) => {
            crash::point("register.answered");
            let store = || engine.queue.asset_created(&lease, (*asset).clone());
            match engine.insist(store).await {
                Ok(()) => {}
                Err(QueueError::LeaseLost(_)) => {
                    tracing::warn!(media = %media.id, asset = %asset.asset_id, "registered, but the media is not ours any more");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            crash::point("register.stored");
            shared.refused().clear();
            engine.account_limit.store(false, Ordering::Relaxed);
            engine.emit(Event::Registered {
                media: media.id,
                name: media.name,
                chunks: asset.chunks.len() as u32,
                asset_id: asset.asset_id,
            });
            engine.changed();
            Ok(())
        }
        Attempted::Trouble(trouble) => {
            shared.pace().trouble(&trouble.fault, engine.clock.boot().0);
            // An answer about the media itself tells that the account is not what is wrong.
            if matches!(trouble.fault.scope(), Scope::Refusal | Scope::Request) {
                engine.account_limit.store(false, Ordering::Relaxed);
            }
            let waits_for_resume = trouble.fault == Fault::PausedNow;
            engine
                .settle(&lease, &media, Operation::Register, number, trouble)
                .await?;
            if waits_for_resume {
                // The pause may have ended while the hold was stored.
                engine.connection.release_unless_paused().await?;
            }
            Ok(())
        }
        Attempted::Refused(token) => {
            // A fresh token, confirmed since, and refused for this media again: it is not the token.
            let fault = match shared.refused().insert(media.id) {
                true => Fault::Unauthorized,
                false => Fault::Forbidden,
            };
            let renew = fault == Fault::Unauthorized;
            engine
                .settle(&lease, &media, Operation::Register, number, fault.into())
                .await?;
            if !renew {
                return Ok(());
            }
            // The refresh may lead into another project: nobody may be inside the gate then, ourselves included.
            drop(pass);
            match engine.connection.refresh(&token, Why::Refused).await {
                Ok(_) => Ok(()),
                Err(NoToken::Lost | NoToken::NotNow) => {
                    shared.refused().clear();
                    Ok(())
                }
                Err(NoToken::Store(error)) => Err(error),
            }
        }
        Attempted::Abandoned => match engine.queue.release(&lease).await {
            Ok(()) | Err(QueueError::LeaseLost(_)) => Ok(()),
            Err(error) => Err(error),
        },
    }
}

async fn attempt(
    engine: &Engine,
    claim: &RegistrationClaim,
    pass: &Pass,
    shared: &Shared,
) -> Result<Attempted, QueueError> {
    // Until something is sent it may be left at any moment, whatever it waits for.
    let prepared = tokio::select! {
        prepared = prepare(engine, claim) => prepared?,
        _ = pass.cancelled() => return Ok(Attempted::Abandoned),
    };
    match prepared {
        Ok(ready) => create(engine, &claim.media, pass, shared, ready).await,
        Err(ended) => Ok(ended),
    }
}

/// A create that only has to be sent.
struct Ready {
    token: SecretString,
    create: CreateAsset,
    offset: Option<CheckedOffset>,
}

/// An offset that was known a moment ago.
struct CheckedOffset {
    prepared: PreparedOffset,
    seconds: u64,
    at: BootTime,
}

impl CheckedOffset {
    /// The offset as of now. A clock that was set since the check does not make it unknown again.
    fn now(&self, boot: BootTime) -> u64 {
        match self.prepared.now() {
            Offset::Seconds(seconds) => seconds,
            Offset::Unknown(_) => self.seconds + (boot.0 - self.at.0).max(0) as u64 / 1000,
        }
    }
}

async fn prepare(
    engine: &Engine,
    claim: &RegistrationClaim,
) -> Result<Result<Ready, Attempted>, QueueError> {
    let RegistrationClaim {
        lease,
        media,
        attempt,
    } = claim;
    let trouble = |fault: Fault| Ok(Err(Attempted::Trouble(fault.into())));
    // A final try that ended without a report was the final one all the same.
    if attempt.number > if attempt.final_try { 1 } else { TRIES } {
        return trouble(Fault::WorkerLost);
    }
    let mut facts = match source::open_on_volume(media, &engine.hung).await {
        Ok((_, facts)) => facts,
        Err(fault) => return trouble(fault),
    };
    let mut capture = media.capture.clone();
    if let Some(words) = source::difference(&media.facts, &facts) {
        if source::is_fresh(&facts, engine.clock.wall()) {
            return trouble(Fault::FileChanging);
        }
        if media.facts.file_id.is_none() {
            facts.file_id = None;
        }
        // What is in the file now was captured when the file says so now.
        let anew = (capture.source != CaptureSource::Given)
            .then(|| engine.time.capture_of_file(facts.mtime_ns));
        let (anew, unknown) = anew.unzip();
        capture = anew.clone().unwrap_or(capture);
        // Stored before anything else is said: a hold for the new moment must not be released for the old one.
        engine
            .queue
            .file_changed(lease, facts.clone(), anew, words)
            .await?;
        if let Some(words) = unknown.flatten()
            && !media.capture_accepted
        {
            return trouble(Fault::CaptureTimeUnknown { words });
        }
    }
    let offset = match engine.settings.organise_by {
        OrganiseBy::UploadDate => None,
        OrganiseBy::CaptureDate => {
            let prepared = engine.time.prepare(&capture).await?;
            let at = engine.time.boot();
            let seconds = match prepared.now() {
                Offset::Seconds(seconds) => seconds,
                // A person accepted the moment as it stands: the wall clock is all there is.
                Offset::Unknown(_) if media.capture_accepted => prepared.by_wall_clock(),
                Offset::Unknown(words) => return trouble(Fault::CaptureTimeUnknown { words }),
            };
            if engine.connection.is_fresh_in_pause(seconds) {
                return trouble(Fault::PausedNow);
            }
            Some(CheckedOffset {
                prepared,
                seconds,
                at,
            })
        }
    };
    let token = match engine.connection.access().await {
        Ok(token) => token,
        Err(NoToken::Store(error)) => return Err(error),
        Err(NoToken::Lost | NoToken::NotNow) => return Ok(Err(Attempted::Abandoned)),
    };
    let create = CreateAsset {
        name: media.name.clone(),
        filetype: media.filetype.clone(),
        filesize: facts.size,
        offset: None,
        channel: (media.channel != 0).then_some(media.channel),
        parts: media.parts.or_else(|| parts_of(engine, media)),
        auto_version_id: media.auto_version_id.clone(),
    };
    Ok(Ok(Ready {
        token,
        create,
        offset,
    }))
}

async fn create(
    engine: &Engine,
    media: &Media,
    pass: &Pass,
    shared: &Shared,
    ready: Ready,
) -> Result<Attempted, QueueError> {
    let Ready {
        token,
        create,
        offset,
    } = ready;
    let size = create.filesize;
    let says_offset = offset.is_some();
    let said = Arc::new(AtomicU64::new(0));
    let answer = async {
        let Some(offset) = offset else {
            return engine.client.create_asset(&token, &create).await;
        };
        let (said, clock) = (said.clone(), engine.clock.clone());
        let at_send = move || {
            let seconds = offset.now(clock.boot());
            said.store(seconds, Ordering::Relaxed);
            seconds
        };
        engine
            .client
            .create_asset_at(&token, &create, at_send)
            .await
    };
    crash::point("register.sending");
    let sent_at = engine.time.boot();
    let mut answer = pin!(answer);
    let answered = tokio::select! {
        biased;
        answered = &mut answer => Some(answered),
        // The request may be on its way already: its answer gets a moment to arrive.
        _ = pass.cancelled() => tokio::time::timeout(GRACE, &mut answer).await.ok(),
    };
    let Some(answered) = answered else {
        let words = "given up because the program stops or the project changes".to_owned();
        return Ok(Attempted::Trouble(Trouble {
            possible_duplicate: true,
            ..Fault::Interrupted {
                words,
                link_up: false,
            }
            .into()
        }));
    };
    engine.connection.note_call(&answered, sent_at).await;
    match answered {
        Ok(answered) => {
            shared
                .pace()
                .learn(answered.rate_limit.as_ref(), engine.clock.boot().0);
            let said = says_offset.then(|| said.load(Ordering::Relaxed));
            Ok(created(engine, answered.value, size, said))
        }
        Err(error) => {
            let asked = create.parts.is_some();
            Ok(failed(engine, error, media, asked, token.clone()).await)
        }
    }
}

async fn failed(
    engine: &Engine,
    error: c2c_protocol::Error,
    media: &Media,
    parts_asked: bool,
    token: SecretString,
) -> Attempted {
    let possible_duplicate = match &error.kind {
        ErrorKind::Transport(transport) => transport.reached == Reached::Maybe,
        ErrorKind::Answer(_) => true,
        _ => false,
    };
    let link_up = engine.link_up_after(&error, None).await;
    let fault = classify_create(&error, parts_asked, link_up);
    if fault == Fault::PartsRefused && media.parts.is_none() {
        // Our own choice, not a person's: no other media shall stumble over it.
        engine.helm.parts_refused.store(true, Ordering::Relaxed);
    }
    if fault == Fault::Unauthorized {
        return Attempted::Refused(token);
    }
    Attempted::Trouble(Trouble {
        server: server_words(&error),
        possible_duplicate,
        ..fault.into()
    })
}

/// The number of parts that suits the line.
fn parts_of(engine: &Engine, media: &Media) -> Option<u32> {
    if !engine.settings.adapt_parts || engine.helm.parts_refused.load(Ordering::Relaxed) {
        return None;
    }
    choose_parts(media.facts.size, &engine.helm.circumstance())
}

/// Plans the chunks of a new asset.
fn created(engine: &Engine, asset: Asset, size: u64, offset: Option<u64>) -> Attempted {
    let plan = match ChunkPlan::new(size, asset.upload_urls.len() as u32) {
        Ok(plan) => plan,
        Err(error) => {
            // The asset exists, and nothing can be sent to it.
            let words = error.to_string();
            return Attempted::Trouble(Trouble {
                possible_duplicate: true,
                ..Fault::NotUnderstood { words }.into()
            });
        }
    };
    let chunks = plan
        .iter()
        .zip(&asset.upload_urls)
        .map(|(range, url)| NewChunk {
            start: range.start,
            length: range.end - range.start,
            url: SecretString::from(url.expose().to_owned()),
        })
        .collect();
    let project_id = engine
        .connection
        .identity()
        .map(|identity| identity.project_id)
        .unwrap_or_default();
    Attempted::Created(Box::new(NewAsset {
        asset_id: asset.id,
        project_id,
        offset,
        chunks,
    }))
}

/// Keeps creates within the service's rate, by its headers where it sends them.
struct Pace {
    interval_ms: i64,
    next_ms: i64,
    refusals: u32,
}

impl Pace {
    fn new(per_second: Option<f64>) -> Pace {
        let interval_ms = per_second.map_or(0, |rate| (1000.0 / rate.max(0.01)) as i64);
        Pace {
            interval_ms,
            next_ms: i64::MIN,
            refusals: 0,
        }
    }

    fn wait(&self, now_ms: i64) -> Duration {
        Duration::from_millis(self.next_ms.saturating_sub(now_ms).clamp(0, 3_600_000) as u64)
    }

    fn used(&mut self, now_ms: i64) {
        // A little credit lets a handful of stills begin at once after a pause.
        self.next_ms = self.next_ms.max(now_ms - 4 * self.interval_ms) + self.interval_ms;
    }

    /// The service asks for less: the other media wait, too, each time twice as long.
    fn trouble(&mut self, fault: &Fault, now_ms: i64) {
        let (Fault::RateLimited(asked) | Fault::SlowDown(asked)) = fault else {
            return;
        };
        self.refusals = (self.refusals + 1).min(6);
        let asked = [asked.delay, asked.refill]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or_default();
        let wait = Duration::from_millis(500 << self.refusals)
            .max(asked)
            .min(Duration::from_secs(3600));
        self.next_ms = self.next_ms.max(now_ms + wait.as_millis() as i64);
    }

    fn learn(&mut self, limit: Option<&c2c_protocol::RateLimit>, now_ms: i64) {
        self.refusals = 0;
        if let Some(limit) = limit
            && limit.remaining == Some(0)
            && let Some(window) = limit.window
        {
            let window = window.min(Duration::from_secs(60));
            self.next_ms = self.next_ms.max(now_ms + window.as_millis() as i64);
        }
    }
}
