//! Presence: the service sees that this unit is there, and this unit hears of a pause.
//!
//! Invariants:
//!
//! 1. Where the service has a websocket, a pause is heard the moment it begins or ends; where it has none (or while it is
//!    out of order), the identity is asked every two minutes instead, however busy the API is with other calls.
//! 2. The API is called at least every five minutes as long as the link is online, whatever the transfers do, and
//!    heartbeats are never closer than a minute.
//! 3. What was pushed is newer than an answer that was asked for before.
//! 4. Trouble with the socket is nobody else's: it charges no media, takes no link offline, and costs no authorization.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use c2c_protocol::{
    DeviceStatus, Error, ErrorKind, ExposeSecret, Presence, PresenceNews, RefusalBody, SecretString,
};
use c2c_queue::{Hold, Identity, QueueError};

use super::{Connection, NoToken, Standing, Why};
use crate::engine::Engine;
use crate::event::Event;
use crate::link::LinkState;
use crate::settle::backoff;

/// Without the socket: the identity is asked this often.
const POLL: Duration = Duration::from_secs(120);
/// With it: a push may be lost, and not everything is pushed.
const POLL_WITH_SOCKET: Duration = Duration::from_secs(900);
/// With it: the longest silence towards the REST API. A unit that is silent for five minutes is shown as offline.
const SILENCE: Duration = Duration::from_secs(240);
/// The service wants heartbeats no closer than this.
const HEARTBEATS_APART: Duration = Duration::from_secs(60);

/// A heartbeat on the socket.
const BEAT: Duration = Duration::from_secs(15);
/// A socket on which nothing was heard for this long is dead.
const DEAD: Duration = Duration::from_secs(60);
/// A service that says it has no socket is asked again after this.
const RARELY: Duration = Duration::from_secs(3600);
/// Longest wait before the next try of a socket that broke.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The pause of the channel as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// When it was first heard of, in time since boot.
    pub(super) since: Option<i64>,
    /// Counts what was pushed, so that an older answer does not undo it.
    pub(super) pushed: u64,
}

impl Connection {
    /// Whether the presence socket is open and alive.
    pub(crate) fn has_socket(&self) -> bool {
        self.socket.load(Ordering::Relaxed)
    }

    /// Time until the service should hear from us again.
    pub(crate) fn tend_in(&self) -> Duration {
        let since = |at: &std::sync::atomic::AtomicI64| match at.load(Ordering::Relaxed) {
            i64::MIN => Duration::MAX,
            at => Duration::from_millis((self.time.boot().0 - at).max(0) as u64),
        };
        let asked = since(&self.last_look);
        if !self.has_socket() {
            return POLL.saturating_sub(asked);
        }
        let heard_of = SILENCE
            .saturating_sub(self.silent_for())
            .max(HEARTBEATS_APART.saturating_sub(since(&self.last_heartbeat)));
        heard_of.min(POLL_WITH_SOCKET.saturating_sub(asked))
    }

    /// Lets the service hear from us if it is time, and asks whether anything changed.
    pub(crate) async fn tend(&self) -> Result<(), NoToken> {
        self.announce_expiry();
        if !self.tend_in().is_zero() {
            return Ok(());
        }
        let now = self.time.boot().0;
        let asked = self.last_look.load(Ordering::Relaxed);
        let due = asked == i64::MIN || now - asked >= POLL_WITH_SOCKET.as_millis() as i64;
        if !self.has_socket() || due {
            return self.look().await;
        }
        self.last_heartbeat.store(now, Ordering::Relaxed);
        let access = self.any_access().await?;
        let answer = self.client.heartbeat(&access).await;
        self.note_call(&answer, c2c_queue::BootTime(now)).await;
        match answer {
            Err(error) if is_unauthorized(&error) => {
                self.refresh(&access, Why::Refused).await.map(drop)
            }
            // Nothing depends on it; the next one is a minute away.
            Err(error) => {
                tracing::debug!("{error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Waits until what is due may be due earlier.
    pub(crate) async fn tend_again(&self) {
        self.tend_again.notified().await;
    }

    /// How many pushes about the pause there were so far.
    pub(super) fn pushed(&self) -> u64 {
        self.pause().pushed
    }

    /// Takes over whether the channel is paused, as an answer says that was asked for after `pushed` pushes. Opens the
    /// gate for the workers.
    pub(super) async fn admitted(&self, paused: bool, pushed: u64) -> Result<(), QueueError> {
        let noted = {
            let mut pause = self.pause();
            let paused = match pause.pushed == pushed {
                true => paused,
                false => pause.since.is_some(),
            };
            let noted = self.note_pause(&mut pause, paused);
            // Only a change is one: others take it for news.
            self.standing.send_if_modified(|standing| {
                let now = Standing::Paired { paused };
                let changed = *standing != now;
                *standing = now;
                changed
            });
            noted
        };
        self.tell(noted).await
    }

    /// The service pushed a status.
    async fn pushed_status(&self, status: &DeviceStatus) -> Result<(), QueueError> {
        let noted = {
            let mut pause = self.pause();
            pause.pushed += 1;
            let now = *status == DeviceStatus::Paused;
            let noted = self.note_pause(&mut pause, now);
            // While who we are is not confirmed, whoever confirms it takes this into account.
            self.standing.send_if_modified(|standing| match standing {
                Standing::Paired { paused } if *paused != now => {
                    *paused = now;
                    true
                }
                _ => false,
            });
            noted
        };
        self.identity.send_if_modified(|identity| match identity {
            Some(identity) => {
                identity.status = status.to_string();
                true
            }
            None => false,
        });
        self.tell(noted).await
    }

    /// Whether the channel is paused now, if that is news.
    fn note_pause(&self, pause: &mut Pause, paused: bool) -> Option<bool> {
        if pause.since.is_some() == paused {
            return None;
        }
        pause.since = paused.then(|| self.time.boot().0);
        Some(paused)
    }

    /// Tells the news, once everything that can be asked knows it, and lets go what waited for the end of the pause.
    async fn tell(&self, noted: Option<bool>) -> Result<(), QueueError> {
        let Some(paused) = noted else { return Ok(()) };
        tracing::info!(paused, "the channel's pause changed");
        let _ = self.events.send(Event::Paused(paused));
        if !paused {
            self.queue.unhold_all(Hold::ChannelPaused).await?;
        }
        Ok(())
    }

    /// For what was held because of a pause that ended in that very moment.
    pub(crate) async fn release_unless_paused(&self) -> Result<(), QueueError> {
        let over = self.pause().since.is_none();
        if over {
            self.queue.unhold_all(Hold::ChannelPaused).await?;
        }
        Ok(())
    }

    pub(super) fn pause(&self) -> std::sync::MutexGuard<'_, Pause> {
        self.pause
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What follows the end of a socket, or a failure to get one.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// At once: what was wrong is known to have changed.
    AtOnce,
    /// With backoff; `worked` if there was a socket.
    Soon { worked: bool },
    /// The service has none.
    Rarely,
    /// The shutdown.
    Stop,
}

/// Keeps the presence socket open while this unit is paired. Until the shutdown.
pub(crate) async fn keep(engine: Arc<Engine>) {
    let connection = &engine.connection;
    let mut standing = connection.watch_standing();
    let mut network = engine.link.watch_network();
    let mut failures = 0;
    loop {
        let paired = async {
            let paired = |standing: &Standing| matches!(standing, Standing::Paired { .. });
            // The senders live as long as the engine.
            let _ = standing.wait_for(paired).await;
            engine.link.online().await;
        };
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            _ = paired => {}
        }
        network.mark_unchanged();
        let ended = attend(&engine, &mut network).await;
        connection.socket.store(false, Ordering::Relaxed);
        let wait = match ended {
            Next::Stop => return,
            Next::AtOnce => continue,
            Next::Rarely => {
                failures = 0;
                RARELY.mul_f64(0.75 + engine.jitter() / 4.0)
            }
            Next::Soon { worked } => {
                failures = if worked { 1 } else { failures + 1 };
                let jitter = 0.5 + engine.jitter() / 2.0;
                backoff(failures, Duration::from_secs(1), LONGEST_WAIT, jitter)
            }
        };
        // Polling takes over at once.
        connection.tend_again.notify_one();
        standing.mark_unchanged();
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            _ = engine.clock.sleep(wait) => {}
            // Other tokens, another project, another way: another try.
            _ = standing.changed(), if ended == Next::Rarely => {}
            _ = network.changed() => failures = 0,
        }
    }
}

/// One socket from its handshake to its end.
async fn attend(engine: &Engine, network: &mut tokio::sync::watch::Receiver<u64>) -> Next {
    let (presence, topic) = match open(engine).await {
        Ok(opened) => opened,
        Err(next) => return next,
    };
    engine.connection.socket.store(true, Ordering::Relaxed);
    tracing::info!("the presence socket is open");
    // What was pushed before the join is not told again. This also tells the service that we are here.
    match engine.connection.look().await {
        Ok(()) => engine.changed(),
        Err(NoToken::Store(error)) => engine.store_trouble(&error).await,
        Err(NoToken::Lost | NoToken::NotNow) => {}
    }
    listen(engine, presence, &topic, network).await
}

/// Opens a socket and joins the topic of this unit, whose name it gives.
///
/// Only the handshake itself is given up at the shutdown: a renewal of the tokens must come to its end.
async fn open(engine: &Engine) -> Result<(Presence, String), Next> {
    let connection = &engine.connection;
    let soon = |_| Next::Soon { worked: false };
    // A token that dies in a moment is renewed first.
    if connection.renew_in().await.is_some_and(|due| due.is_zero()) {
        let access = connection.any_access().await.map_err(soon)?;
        let renewed = connection.refresh(&access, Why::AheadOfNeed).await;
        renewed.map_err(soon)?;
    }
    let access = connection.access().await.map_err(soon)?;
    let identity = connection.identity().ok_or(Next::Soon { worked: false })?;
    let mut link = engine.link.subscribe();
    let joined = tokio::select! {
        _ = engine.stop.cancelled() => return Err(Next::Stop),
        // One probe looks for everybody while the link is down.
        _ = link.wait_for(|state| *state != LinkState::Online) => {
            return Err(Next::Soon { worked: false });
        }
        joined = join(engine, &access, &identity) => joined,
    };
    let error = match joined {
        Ok(Some(joined)) => return Ok(joined),
        Ok(None) => {
            tracing::debug!("the service does not know this unit on its presence socket");
            return Err(Next::Rarely);
        }
        Err(error) => error,
    };
    tracing::debug!("{error}");
    if is_unauthorized(&error) || is_forbidden(&error) {
        // Is it the token? Asking who we are renews it if so.
        let _ = connection.look().await;
        let now = connection.any_access().await.map_err(soon)?;
        if now.expose_secret() != access.expose_secret() {
            return Err(Next::AtOnce);
        }
    }
    Err(after_failure(&error))
}

/// `None` if the service knows this unit under none of its ids.
async fn join(
    engine: &Engine,
    access: &SecretString,
    identity: &Identity,
) -> Result<Option<(Presence, String)>, Error> {
    let mut presence = engine.client.presence(access).await?;
    for topic in topics(identity) {
        if presence.join(&topic).await? {
            return Ok(Some((presence, topic)));
        }
    }
    presence.close().await;
    Ok(None)
}

/// The ids under which the service may know this unit.
fn topics(identity: &Identity) -> impl Iterator<Item = String> {
    [identity.device_id.clone(), identity.id.clone()].into_iter()
}

/// Beats and listens until the socket ends, or is of no use any more.
async fn listen(
    engine: &Engine,
    mut presence: Presence,
    topic: &str,
    network: &mut tokio::sync::watch::Receiver<u64>,
) -> Next {
    let connection = &engine.connection;
    let worked = Next::Soon { worked: true };
    let mut standing = connection.watch_standing();
    let mut identity = connection.identity.subscribe();
    let millis = |span: Duration| span.as_millis() as i64;
    let mut heard = engine.time.boot().0;
    let mut beat = heard + millis(BEAT);
    loop {
        let lost = matches!(&*standing.borrow_and_update(), Standing::PairAgain { .. });
        let ours = match &*identity.borrow_and_update() {
            Some(identity) => topics(identity).any(|id| id == topic),
            None => false,
        };
        if lost || !ours {
            presence.close().await;
            return Next::AtOnce;
        }
        let now = engine.time.boot().0;
        if now - heard >= millis(DEAD) {
            tracing::info!("the presence socket is silent; opening another one");
            return worked;
        }
        if now >= beat {
            beat = now + millis(BEAT);
            let mut sent = pin!(presence.heartbeat());
            let sent = tokio::select! {
                biased;
                sent = &mut sent => sent,
                _ = engine.stop.cancelled() => return Next::Stop,
                _ = engine.clock.sleep(BEAT) => return worked,
            };
            if let Err(error) = sent {
                tracing::debug!("{error}");
                return worked;
            }
        }
        let until = beat.min(heard + millis(DEAD)) - now;
        let news = tokio::select! {
            // What has arrived is read before anything is concluded from a silence.
            biased;
            _ = engine.stop.cancelled() => {
                presence.close().await;
                return Next::Stop;
            }
            news = presence.next() => news,
            _ = standing.changed() => continue,
            _ = identity.changed() => continue,
            // The socket may hang on a way that is gone.
            _ = network.changed() => return Next::AtOnce,
            _ = engine.clock.sleep(Duration::from_millis(until.max(1) as u64)) => continue,
        };
        let taken = match news {
            Ok(PresenceNews::Alive) => Ok(()),
            Ok(PresenceNews::Status(status)) => connection.pushed_status(&status).await,
            // Something about us: whoever asks learns what.
            Ok(_) => match connection.look().await {
                Err(NoToken::Store(error)) => Err(error),
                Ok(()) | Err(NoToken::Lost | NoToken::NotNow) => Ok(()),
            },
            Err(error) => {
                tracing::info!("{error}");
                return worked;
            }
        };
        heard = engine.time.boot().0;
        match taken {
            Ok(()) => engine.changed(),
            Err(error) => engine.store_trouble(&error).await,
        }
    }
}

/// Whether it is worth trying again soon.
fn after_failure(error: &Error) -> Next {
    let soon = Next::Soon { worked: false };
    match &error.kind {
        ErrorKind::Refused(refusal) => match refusal.status {
            // A page is from somebody in between.
            _ if matches!(refusal.body, RefusalBody::Html) => soon,
            300..=399 | 407 | 408 | 425 | 429 | 502..=511 | 520..=527 => soon,
            _ => Next::Rarely,
        },
        _ => soon,
    }
}

fn is_unauthorized(error: &Error) -> bool {
    matches!(&error.kind, ErrorKind::Refused(refusal) if refusal.status == 401)
}

fn is_forbidden(error: &Error) -> bool {
    matches!(&error.kind, ErrorKind::Refused(refusal) if refusal.status == 403)
}
