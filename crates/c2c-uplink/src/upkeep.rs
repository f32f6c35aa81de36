//! What has to be looked after while the workers work: lost leases, files that disappear and come back, receipts without
//! a digest, tokens that run out, presence, the network, the clock.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use c2c_queue::{
    FileFacts, Hold, Media, MediaId, MediaState, QueueError, Receipt, Volume, WallTime,
};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::connection::{NoToken, Standing, Why};
use crate::crash;
use crate::engine::Engine;
use crate::event::Event;
use crate::host;
use crate::settle::Fault;
use crate::source::{difference, fault_of_open, is_fresh, on_its_volume};

/// Leases and files: every few seconds, until the shutdown.
pub(crate) async fn look_after(engine: Arc<Engine>) {
    const PERIOD: Duration = Duration::from_secs(5);
    let mut looker = Looker::default();
    loop {
        if let Err(error) = round(&engine, &mut looker).await {
            if matches!(error, QueueError::Closed) {
                return;
            }
            engine.store_trouble(&error).await;
        }
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            _ = engine.clock.sleep(PERIOD) => {}
        }
    }
}

async fn round(engine: &Engine, looker: &mut Looker) -> Result<(), QueueError> {
    engine.time.watch_wall();
    let recovered = engine.queue.recover_expired().await?;
    if !recovered.is_empty() {
        tracing::warn!(
            items = recovered.len(),
            "work returned to the pool: its workers went silent"
        );
        engine.changed();
    }
    let standing = engine.connection.standing();
    let open = matches!(standing, Standing::Paired { paused: false });
    if open && !std::mem::replace(&mut looker.open, open) {
        let resumed = engine.queue.unhold_all(Hold::ChannelPaused).await?;
        if !resumed.is_empty() {
            engine.changed();
        }
    }
    looker.open = open;
    looker.look(engine).await?;
    if !engine.looked.swap(true, Ordering::AcqRel) {
        engine.settled.notify_waiters();
    }
    Ok(())
}

/// Goes around the unfinished media, a page at a time: is the file of each still there, and the same?
#[derive(Default)]
struct Looker {
    after: Option<MediaId>,
    after_held: Option<MediaId>,
    /// The channel was open at the last look; what waited for it was released then.
    open: bool,
    /// Since when (time since boot) media wait for their volume. Only the time of this run counts: nobody can bring a card
    /// back to a unit that is off.
    away: BTreeMap<MediaId, i64>,
    /// A look that is still under way: on a dead network drive it takes as long as the drive is dead.
    looking: Option<JoinHandle<Vec<(Media, Found)>>>,
}

impl Looker {
    async fn look(&mut self, engine: &Engine) -> Result<(), QueueError> {
        const PAGE: u32 = 500;
        if self.looking.is_none() {
            let states = vec![
                MediaState::Queued,
                MediaState::Transferring,
                MediaState::Parked,
            ];
            let mut page = engine.queue.list(Some(states), self.after, PAGE).await?;
            // After the last page, from the start again.
            let full = page.len() as u32 == PAGE;
            self.after = page.last().filter(|_| full).map(|media| media.id);
            // What waits for a file or a card is looked at each time, however long the queue is; if too many do, in turn.
            let held = engine.queue.held(self.after_held, PAGE).await?;
            let full = held.len() as u32 == PAGE;
            self.after_held = held.last().filter(|_| full).map(|media| media.id);
            for held in held {
                if page.iter().all(|media| media.id != held.id) {
                    page.push(held);
                }
            }
            if page.is_empty() {
                return Ok(());
            }
            let wall = engine.clock.wall();
            self.looking = Some(tokio::task::spawn_blocking(move || {
                let mounted = host::volumes();
                let look =
                    |media: Media| look_at(&media, &mounted, wall).map(|found| (media, found));
                page.into_iter().filter_map(look).collect()
            }));
        }
        let Some(looking) = &mut self.looking else {
            return Ok(());
        };
        let Ok(found) = tokio::time::timeout(Duration::from_secs(10), looking).await else {
            tracing::warn!("a file system with media does not answer");
            return Ok(());
        };
        self.looking = None;
        engine.hung.clear();
        for (media, found) in found.unwrap_or_default() {
            if matches!(found, Found::CaptureMayBeKnown)
                && !engine
                    .time
                    .prepare(&media.capture)
                    .await?
                    .is_sound(media.added_at)
            {
                continue;
            }
            let waited = self.waited(engine, &media, &found);
            apply(engine, media, found, waited).await?;
        }
        Ok(())
    }

    /// How long the media has waited for its volume in this run.
    fn waited(&mut self, engine: &Engine, media: &Media, found: &Found) -> Duration {
        let now = engine.clock.boot().0;
        if !matches!(found, Found::VolumeAway) {
            self.away.remove(&media.id);
            return Duration::ZERO;
        }
        let since = *self.away.entry(media.id).or_insert(now);
        Duration::from_millis((now - since).max(0) as u64)
    }
}

enum Found {
    Gone(String),
    VolumeAway,
    VolumeBack(PathBuf, Volume),
    Stable,
    /// Held because the moment of capture was not known; the server may have been heard since.
    CaptureMayBeKnown,
}

/// What there is to do about one media; blocks on the disk.
fn look_at(media: &Media, mounted: &[Volume], wall: WallTime) -> Option<Found> {
    match std::fs::metadata(&media.path) {
        // Another card with a file of that name.
        Ok(_) if on_its_volume(media, mounted).is_err() => relocated(media, mounted),
        Ok(metadata) => match media.hold {
            Some(Hold::VolumeAway) => {
                let volume =
                    host::volume_of(&media.path, mounted).or_else(|| media.volume.clone())?;
                Some(Found::VolumeBack(media.path.clone(), volume))
            }
            Some(Hold::FileChanging) => {
                let facts = host::facts_of(&metadata);
                (!is_fresh(&facts, wall)).then_some(Found::Stable)
            }
            Some(Hold::CaptureTimeUnknown) => Some(Found::CaptureMayBeKnown),
            _ => None,
        },
        Err(error) => match fault_of_open(media, &error, mounted) {
            Fault::FileGone { words } => Some(Found::Gone(words)),
            Fault::VolumeAway => relocated(media, mounted),
            // Unreadable: the next try says so, and is counted.
            _ => None,
        },
    }
}

/// Where the volume of a media is now, if the file is there.
fn relocated(media: &Media, mounted: &[Volume]) -> Option<Found> {
    let volume = media.volume.as_ref()?;
    match host::relocate(&media.path, volume, mounted) {
        Some((path, volume)) if path.exists() => Some(Found::VolumeBack(path, volume)),
        _ => Some(Found::VolumeAway),
    }
}

async fn apply(
    engine: &Engine,
    media: Media,
    found: Found,
    waited: Duration,
) -> Result<(), QueueError> {
    let done = match found {
        Found::Gone(words) => cancel(engine, &media, words).await,
        Found::VolumeAway if media.hold == Some(Hold::VolumeAway) => {
            if waited < engine.settings.volume_patience {
                return Ok(());
            }
            let words = format!(
                "the volume with {} did not come back within {} hours",
                media.path.display(),
                engine.settings.volume_patience.as_secs() / 3600
            );
            cancel(engine, &media, words).await
        }
        Found::VolumeAway if media.hold.is_none() => {
            engine.queue.hold(media.id, Hold::VolumeAway).await
        }
        // Held for another reason already; that one ends first.
        Found::VolumeAway => Ok(()),
        Found::VolumeBack(path, volume) => {
            engine
                .queue
                .unhold(media.id, Hold::VolumeAway, Some((path, volume)))
                .await
        }
        Found::CaptureMayBeKnown => {
            engine
                .queue
                .unhold(media.id, Hold::CaptureTimeUnknown, None)
                .await
        }
        Found::Stable => {
            engine
                .queue
                .unhold(media.id, Hold::FileChanging, None)
                .await
        }
    };
    match done {
        Ok(()) => engine.changed(),
        // A worker has it in its hands, or it moved on since we looked: the next round sees.
        Err(
            QueueError::LeaseLost(_)
            | QueueError::NoSuchMedia(_)
            | QueueError::IllegalMove { .. }
            | QueueError::Busy { .. }
            | QueueError::Invalid(_),
        ) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn cancel(engine: &Engine, media: &Media, words: String) -> Result<(), QueueError> {
    let _report = engine.report();
    engine.queue.file_gone(media.id, words.clone()).await?;
    engine.emit(Event::Cancelled {
        media: media.id,
        words,
    });
    Ok(())
}

/// Adds the digest of the whole file to each receipt, one at a time, until the shutdown.
pub(crate) async fn seal(engine: Arc<Engine>) {
    let mut events = engine.events.subscribe();
    loop {
        match seal_all(&engine).await {
            Ok(()) => {}
            Err(QueueError::Closed) => return,
            Err(error) => {
                engine.store_trouble(&error).await;
                if engine.stop.is_cancelled() {
                    return;
                }
                continue;
            }
        }
        loop {
            tokio::select! {
                _ = engine.stop.cancelled() => return,
                event = events.recv() => match event {
                    Ok(Event::Delivered { .. }) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }
}

async fn seal_all(engine: &Engine) -> Result<(), QueueError> {
    loop {
        let open = engine.queue.unsealed_receipts(16).await?;
        if open.is_empty() {
            return Ok(());
        }
        for receipt in open {
            let id = receipt.media;
            let facts = engine.queue.media(id).await?.map(|media| media.facts);
            let stop = engine.stop.clone();
            let digest = tokio::task::spawn_blocking(move || digest_of(&receipt, facts, &stop));
            let digest = match digest.await {
                Ok(Some(digest)) => digest,
                // Shutting down: the next start goes on here.
                Ok(None) => return Ok(()),
                Err(panic) => Err(format!("a fault of this program: {panic}")),
            };
            engine.queue.seal_receipt(id, digest).await?;
            crash::point("sealed");
            engine.emit(Event::Sealed { media: id });
            engine.settled.notify_waiters();
        }
    }
}

/// SHA-256 of the delivered file, if it still is the file that was delivered. `None` at the shutdown.
fn digest_of(
    receipt: &Receipt,
    facts: Option<FileFacts>,
    stop: &tokio_util::sync::CancellationToken,
) -> Option<Result<String, String>> {
    let Some(facts) = facts else {
        return Some(Err("the media was removed from the queue".into()));
    };
    let digest = || -> std::io::Result<Option<Result<String, String>>> {
        let file = std::fs::File::open(&receipt.path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1024 * 1024];
        let mut at = 0;
        let before = host::facts_of(&file.metadata()?);
        if let Some(words) = difference(&facts, &before) {
            return Ok(Some(Err(format!(
                "the file changed after its delivery: {words}"
            ))));
        }
        while at < receipt.size {
            if stop.is_cancelled() {
                return Ok(None);
            }
            let length = (receipt.size - at).min(buffer.len() as u64) as usize;
            host::read_exact_at(&file, &mut buffer[..length], at)?;
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        let after = host::facts_of(&file.metadata()?);
        Ok(Some(match difference(&facts, &after) {
            Some(words) => Err(format!("the file changed after its delivery: {words}")),
            None => Ok(hex::encode(hasher.finalize())),
        }))
    };
    match digest() {
        Ok(found) => found,
        Err(error) => Some(Err(format!(
            "the file could not be read after its delivery: {error}"
        ))),
    }
}

/// Keeps the connection: confirms who we are, renews tokens ahead of need, and is heard by the service. Until the shutdown.
pub(crate) async fn keep_connection(engine: Arc<Engine>) {
    let mut standing = engine.connection.watch_standing();
    let mut failures = 0;
    loop {
        if engine.stop.is_cancelled() {
            return;
        }
        let now = standing.borrow_and_update().clone();
        let step = match now {
            Standing::PairAgain { .. } => {
                tokio::select! {
                    _ = engine.stop.cancelled() => return,
                    _ = standing.changed() => {}
                }
                continue;
            }
            Standing::Unconfirmed => {
                tokio::select! {
                    _ = engine.stop.cancelled() => return,
                    _ = engine.link.online() => {}
                }
                engine.connection.confirm().await.map(|_| ())
            }
            Standing::Paired { .. } => {
                let presence = engine.connection.tend_in();
                let renewal = engine.connection.renew_in().await.unwrap_or(Duration::MAX);
                let wait = presence.min(renewal).max(Duration::from_millis(200));
                tokio::select! {
                    _ = engine.stop.cancelled() => return,
                    _ = standing.changed() => continue,
                    _ = engine.connection.tend_again() => continue,
                    _ = engine.clock.sleep(wait) => {}
                }
                tokio::select! {
                    _ = engine.stop.cancelled() => return,
                    _ = engine.link.online() => {}
                }
                tend(&engine).await
            }
        };
        match step {
            Ok(()) => {
                failures = 0;
                engine.changed();
            }
            Err(NoToken::Store(error)) => engine.store_trouble(&error).await,
            Err(NoToken::Lost | NoToken::NotNow) => {
                failures += 1;
                let jitter = 0.5 + engine.jitter() / 2.0;
                let wait = crate::settle::backoff(
                    failures,
                    Duration::from_secs(1),
                    Duration::from_secs(60),
                    jitter,
                );
                tokio::select! {
                    _ = engine.stop.cancelled() => return,
                    _ = engine.clock.sleep(wait) => {}
                }
            }
        }
    }
}

/// Renews the tokens if they are due; otherwise lets the service hear from us, and hears whether the channel is paused.
async fn tend(engine: &Engine) -> Result<(), NoToken> {
    if engine
        .connection
        .renew_in()
        .await
        .is_some_and(|due| due.is_zero())
    {
        let access = engine.connection.any_access().await?;
        return engine
            .connection
            .refresh(&access, Why::AheadOfNeed)
            .await
            .map(|_| ());
    }
    engine.connection.tend().await
}
