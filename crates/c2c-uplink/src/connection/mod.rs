//! The connection: tokens, identity and the airlock between projects.
//!
//! Invariants:
//!
//! 1. A new token pair is durable before its first use; an old refresh token is never sent again once a newer is known.
//! 2. One refresh is in flight, whatever the number of workers; the others wait for its result.
//! 3. After each pairing and each refresh `devices/me` is asked before anything else is; if the project is another one, every
//!    transfer is cancelled and the queue emptied before the first request for the new project.
//! 4. Losing the authorization loses nothing else.

mod expiry;
mod pairing;
pub(crate) mod presence;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use c2c_protocol::{
    Client, DeviceStatus, ErrorKind, ExposeSecret, Me, Reached, RefusalBody, RetryAfter,
    SecretString, Stage,
};
use c2c_queue::{Airlock, Identity, Queue, QueueError, RefreshState, Tokens};
use serde::Serialize;
use tokio::sync::{Mutex, Notify, broadcast, watch};

use crate::crash;
use crate::error::UplinkError;
use crate::event::Event;
use crate::link::Link;
use crate::time::TimeKeeper;
use crate::transfer::Airgate;

pub use pairing::{Pairing, PairingStep};
use presence::Pause;

/// Whether this unit may talk to its project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "connection", rename_all = "snake_case")]
pub enum Standing {
    /// Tokens are at hand, but who we are was not confirmed yet since the start or the last refresh.
    Unconfirmed,
    /// Paired, confirmed.
    Paired {
        /// The channel is paused in Frame.io.
        paused: bool,
    },
    /// Never paired, or the authorization was lost.
    PairAgain {
        /// Why, for a person.
        words: String,
    },
}

/// Who we are to the service.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) client_id: String,
    pub(crate) client_secret: SecretString,
}

/// Why the tokens are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The access token was refused.
    Refused,
    /// It will run out.
    AheadOfNeed,
}

/// How a call that needs a token ended when it did not end with an answer.
#[derive(Debug)]
pub(crate) enum NoToken {
    /// Pair again.
    Lost,
    /// Not now: the link or the service does not let us refresh.
    NotNow,
    /// The store failed.
    Store(QueueError),
}

impl From<QueueError> for NoToken {
    fn from(error: QueueError) -> NoToken {
        NoToken::Store(error)
    }
}

#[derive(Debug, Default)]
struct Held {
    tokens: Option<Tokens>,
    /// When the tokens run out, in time since boot; `None` if unknown.
    expires_boot_ms: Option<i64>,
    stored_boot_ms: Option<i64>,
    /// How much earlier than planned this pair is renewed, from 0 to 1.
    jitter: f64,
}

/// The one connection of this unit.
#[derive(Debug)]
pub(crate) struct Connection {
    queue: Arc<dyn Queue>,
    client: Client,
    credentials: Credentials,
    time: Arc<TimeKeeper>,
    link: Arc<Link>,
    airgate: Arc<Airgate>,
    events: broadcast::Sender<Event>,
    held: Mutex<Held>,
    standing: watch::Sender<Standing>,
    identity: watch::Sender<Option<Identity>>,
    /// The last time that the API was called, that the identity was asked, and of a heartbeat, for presence.
    last_call: AtomicI64,
    last_look: AtomicI64,
    last_heartbeat: AtomicI64,
    /// The identity is asked once at a time, so that no answer overtakes a newer one.
    asking: Mutex<()>,
    /// The presence socket is open.
    socket: AtomicBool,
    /// Whoever tends the presence should look again what is due.
    tend_again: Notify,
    pause: std::sync::Mutex<Pause>,
    /// The last date of expiry that was announced.
    announced_expiry: std::sync::Mutex<Option<String>>,
    /// Tokens that `devices/me` refused since it accepted one.
    refusals: AtomicU32,
    /// Renewals that failed in a row, and until when (time since boot) no further one ahead of need is tried.
    failed_renewals: AtomicU32,
    no_renewal_before: AtomicI64,
}

/// Fresh tokens that are refused this often mean that the authorization itself is of no use.
const REFUSALS: u32 = 3;
/// Tokens are not renewed ahead of need before this age, whatever life the service gives them.
const LEAST_AGE_MS: i64 = 30_000;

impl Connection {
    pub(crate) async fn open(
        queue: Arc<dyn Queue>,
        client: Client,
        credentials: Credentials,
        time: Arc<TimeKeeper>,
        link: Arc<Link>,
        airgate: Arc<Airgate>,
        events: broadcast::Sender<Event>,
    ) -> Result<Connection, UplinkError> {
        let stored = match queue.connection().await {
            Ok(stored) => stored,
            // The key is gone, and with it the tokens; everything else is there. New tokens bring a new key into use.
            Err(error @ QueueError::Sealed { .. }) => {
                let words = error.to_string();
                queue.forget_tokens(words).await?;
                queue.connection().await?
            }
            Err(error) => return Err(error.into()),
        };
        let standing = match (&stored.tokens, stored.lost) {
            (Some(_), _) => Standing::Unconfirmed,
            (None, Some(words)) => Standing::PairAgain { words },
            (None, None) => Standing::PairAgain {
                words: "this unit is not paired with a project yet".into(),
            },
        };
        if stored.refresh == RefreshState::InFlight {
            tracing::info!("a token refresh was cut off; its outcome will show");
        }
        let now = time.boot().0;
        let stored_boot_ms = now - stored.tokens_age_ms as i64;
        let held = Held {
            expires_boot_ms: stored
                .tokens
                .as_ref()
                .map(|tokens| stored_boot_ms + tokens.expires_in_ms as i64),
            stored_boot_ms: stored.tokens.as_ref().map(|_| stored_boot_ms),
            tokens: stored.tokens,
            jitter: fastrand::f64(),
        };
        Ok(Connection {
            queue,
            client,
            credentials,
            time,
            link,
            airgate,
            events,
            held: Mutex::new(held),
            standing: watch::Sender::new(standing),
            identity: watch::Sender::new(stored.identity),
            last_call: AtomicI64::new(i64::MIN),
            last_look: AtomicI64::new(i64::MIN),
            last_heartbeat: AtomicI64::new(i64::MIN),
            asking: Mutex::default(),
            socket: AtomicBool::new(false),
            tend_again: Notify::new(),
            pause: std::sync::Mutex::default(),
            announced_expiry: std::sync::Mutex::default(),
            refusals: AtomicU32::new(0),
            failed_renewals: AtomicU32::new(0),
            no_renewal_before: AtomicI64::new(i64::MIN),
        })
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    pub(crate) fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.borrow().clone()
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Paired { paused: true })
    }

    /// Whether something captured `offset` seconds ago was captured while the channel was already known to be paused.
    pub(crate) fn is_fresh_in_pause(&self, offset: u64) -> bool {
        let captured = self.time.boot().0 - (offset as i64).saturating_mul(1000);
        self.is_paused() && self.pause().since.is_some_and(|since| captured >= since)
    }

    /// Asks who we are while the gate stays open: presence, and news about a pause.
    pub(crate) async fn look(&self) -> Result<(), NoToken> {
        let access = self.any_access().await?;
        match self.confirm_with(&access).await {
            Err(NoToken::Lost) => self.refresh(&access, Why::Refused).await.map(|_| ()),
            Err(other) => Err(other),
            Ok(_) => Ok(()),
        }
    }

    /// The access token for work: only while who we are is confirmed, so that no token of another project can be among the
    /// work of this one.
    pub(crate) async fn access(&self) -> Result<SecretString, NoToken> {
        let held = self.held.lock().await;
        match (&held.tokens, &*self.standing.borrow()) {
            (Some(tokens), Standing::Paired { .. }) => Ok(tokens.access.clone()),
            (Some(_), _) => Err(NoToken::NotNow),
            (None, _) => Err(NoToken::Lost),
        }
    }

    /// The access token, confirmed or not, for the calls that confirm it.
    pub(crate) async fn any_access(&self) -> Result<SecretString, NoToken> {
        match &self.held.lock().await.tokens {
            Some(tokens) => Ok(tokens.access.clone()),
            None => Err(NoToken::Lost),
        }
    }

    /// Notes that the API was called, and learns its time. What the call itself brought matters more than the time: if that
    /// cannot be stored, the next call tells it again.
    pub(crate) async fn note_call<T>(
        &self,
        answered: &Result<c2c_protocol::Answered<T>, c2c_protocol::Error>,
        sent: c2c_queue::BootTime,
    ) {
        let date = match answered {
            Ok(answered) => answered.date,
            Err(error) => match &error.kind {
                ErrorKind::Refused(refusal) => refusal.date,
                _ => return,
            },
        };
        // The service counts from when the request arrived, which was not before it was sent.
        self.last_call.store(sent.0, Ordering::Relaxed);
        if let Err(error) = self.time.note_date(date, sent).await {
            tracing::warn!("the service's time could not be stored: {error}");
        }
    }

    /// How long the API has not been called.
    pub(crate) fn silent_for(&self) -> Duration {
        let last = self.last_call.load(Ordering::Relaxed);
        if last == i64::MIN {
            return Duration::MAX;
        }
        Duration::from_millis((self.time.boot().0 - last).max(0) as u64)
    }

    /// Time until the tokens should be renewed ahead of need: three quarters of their life, earlier by a random part of a tenth.
    pub(crate) async fn renew_in(&self) -> Option<Duration> {
        let held = self.held.lock().await;
        let (expires, stored) = (held.expires_boot_ms?, held.stored_boot_ms?);
        let life = (expires - stored).max(0) as f64;
        let ahead = stored + ((life * (0.75 - 0.1 * held.jitter)) as i64).max(LEAST_AGE_MS);
        let due = ahead.max(self.no_renewal_before.load(Ordering::Relaxed));
        Some(Duration::from_millis(
            (due - self.time.boot().0).max(0) as u64
        ))
    }

    /// Renews the tokens because `stale` was refused or is about to run out. If somebody else did so meanwhile, that is enough.
    pub(crate) async fn refresh(
        &self,
        stale: &SecretString,
        why: Why,
    ) -> Result<SecretString, NoToken> {
        let mut held = self.held.lock().await;
        let Some(tokens) = &held.tokens else {
            return Err(NoToken::Lost);
        };
        if tokens.access.expose_secret() != stale.expose_secret() {
            return Ok(tokens.access.clone());
        }
        let refresh_token = tokens.refresh.clone();
        crash::point("refresh.begin");
        self.queue.begin_refresh().await?;
        crash::point("refresh.begun");
        let mut answer = self.ask_refresh(&refresh_token).await?;
        if answer.as_ref().is_err_and(may_have_been_spent) && self.link.judge().await {
            // The answer was lost. The token may still be good, and asking is the only way to know.
            answer = self.ask_refresh(&refresh_token).await?;
        }
        let pair = match answer {
            Ok(pair) => pair,
            Err(error) => return Err(self.refresh_failed(&mut held, error, why).await?),
        };
        crash::point("refresh.answered");
        // Until `devices/me` confirms the project, nobody registers or sends.
        self.standing.send_replace(Standing::Unconfirmed);
        let tokens = Tokens {
            access: pair.access_token,
            refresh: pair.refresh_token,
            expires_in_ms: pair.expires_in.as_millis() as u64,
        };
        self.keep_tokens(&mut held, tokens.clone()).await?;
        crash::point("refresh.stored");
        self.failed_renewals.store(0, Ordering::Relaxed);
        drop(held);
        self.confirm_with(&tokens.access).await?;
        Ok(tokens.access)
    }

    async fn ask_refresh(
        &self,
        refresh_token: &SecretString,
    ) -> Result<Result<c2c_protocol::TokenPair, c2c_protocol::Error>, NoToken> {
        let Credentials {
            client_id,
            client_secret,
        } = &self.credentials;
        let sent = self.time.boot();
        let answer = self
            .client
            .refresh(client_id, client_secret, refresh_token)
            .await;
        self.note_call(&answer, sent).await;
        Ok(answer.map(|answered| answered.value))
    }

    async fn refresh_failed(
        &self,
        held: &mut Held,
        error: c2c_protocol::Error,
        why: Why,
    ) -> Result<NoToken, QueueError> {
        let dead = match &error.kind {
            ErrorKind::Refused(refusal) => {
                // A page with this status is from somebody in between.
                (refusal.status == 401 && !matches!(refusal.body, RefusalBody::Html))
                    || refusal.says("Not Authorized")
                    || matches!(
                        refusal.simple(),
                        Some("invalid_request" | "invalid_grant" | "invalid_client")
                    )
            }
            _ => false,
        };
        if dead {
            let words = self.words_of_loss();
            self.lose(held, words).await?;
            return Ok(NoToken::Lost);
        }
        let spent = may_have_been_spent(&error);
        if !spent {
            self.queue.end_refresh().await?;
        }
        if matches!(error.kind, ErrorKind::Transport(_) | ErrorKind::Answer(_)) {
            self.link.judge().await;
        }
        if why == Why::Refused {
            // Nothing can be done with the old token; the connection keeper tries on.
            self.standing.send_replace(Standing::Unconfirmed);
        }
        let failures = self.failed_renewals.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = crate::settle::backoff(
            failures,
            Duration::from_secs(5),
            Duration::from_secs(300),
            1.0,
        );
        let wait = wait.max(self.asked_to_wait(&error));
        self.no_renewal_before.store(
            self.time.boot().0 + wait.as_millis() as i64,
            Ordering::Relaxed,
        );
        tracing::warn!("the tokens could not be refreshed, trying again later: {error}");
        Ok(NoToken::NotNow)
    }

    /// How long the service asks to be left alone, an hour at most.
    fn asked_to_wait(&self, error: &c2c_protocol::Error) -> Duration {
        let asked = match error.refusal().and_then(|refusal| refusal.retry_after) {
            Some(RetryAfter::Delay(wait)) => wait,
            Some(RetryAfter::At(at)) => at.duration_since(self.time.now()).unwrap_or_default(),
            None => Duration::ZERO,
        };
        asked.min(Duration::from_secs(3600))
    }

    async fn keep_tokens(&self, held: &mut Held, tokens: Tokens) -> Result<(), QueueError> {
        // The old pair is spent: this one must not be lost to a disk that is full for a moment.
        loop {
            match self.queue.store_tokens(tokens.clone()).await {
                Ok(()) => break,
                Err(QueueError::Closed) => return Err(QueueError::Closed),
                Err(error) => {
                    tracing::error!("the new tokens cannot be stored yet: {error}");
                    let _ = self.events.send(Event::StoreTrouble {
                        words: error.to_string(),
                    });
                    self.time.pause(Duration::from_secs(2)).await;
                }
            }
        }
        let now = self.time.boot().0;
        held.stored_boot_ms = Some(now);
        held.expires_boot_ms = Some(now + tokens.expires_in_ms as i64);
        held.tokens = Some(tokens);
        held.jitter = fastrand::f64();
        Ok(())
    }

    /// Takes over the tokens of a fresh pairing.
    pub(crate) async fn paired(&self, tokens: Tokens) -> Result<Identity, UplinkError> {
        crash::point("pair.answered");
        {
            let mut held = self.held.lock().await;
            self.standing.send_replace(Standing::Unconfirmed);
            self.keep_tokens(&mut held, tokens.clone()).await?;
            crash::point("pair.stored");
        }
        self.confirm_until_known().await
    }

    async fn confirm_until_known(&self) -> Result<Identity, UplinkError> {
        loop {
            match self.confirm().await {
                Ok(identity) => return Ok(identity),
                Err(NoToken::Lost) => return Err(UplinkError::NotPaired),
                Err(NoToken::Store(error)) => return Err(error.into()),
                Err(NoToken::NotNow) => {
                    self.link.online().await;
                    self.time.pause(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn lose(&self, held: &mut Held, words: String) -> Result<(), QueueError> {
        self.queue.forget_tokens(words.clone()).await?;
        crash::point("lost.stored");
        *held = Held::default();
        self.standing.send_replace(Standing::PairAgain {
            words: words.clone(),
        });
        tracing::warn!("pair again: {words}");
        let _ = self.events.send(Event::PairAgain { words });
        Ok(())
    }

    /// Asks who we are. Opens the gate for the workers when the answer is known and the airlock was passed.
    pub(crate) async fn confirm(&self) -> Result<Identity, NoToken> {
        let access = self.any_access().await?;
        match self.confirm_with(&access).await {
            Err(NoToken::Lost) => {
                // The token was refused: a refresh tells whether the authorization itself is gone, and confirms by itself.
                self.refresh(&access, Why::Refused).await?;
                self.identity().ok_or(NoToken::NotNow)
            }
            other => other,
        }
    }

    /// [`NoToken::Lost`] means here only that this access token was refused.
    async fn confirm_with(&self, access: &SecretString) -> Result<Identity, NoToken> {
        let _asking = self.asking.lock().await;
        let (sent, pushed) = (self.time.boot(), self.pushed());
        self.last_look.store(sent.0, Ordering::Relaxed);
        let answer = self.client.me(access).await;
        self.note_call(&answer, sent).await;
        let me = match answer {
            Ok(answered) => answered.value,
            Err(error) => {
                if let ErrorKind::Refused(refusal) = &error.kind
                    && (refusal.status == 401 || refusal.says("Not Authorized"))
                {
                    return Err(self.refused(access).await?);
                }
                if matches!(error.kind, ErrorKind::Transport(_) | ErrorKind::Answer(_)) {
                    self.link.judge().await;
                }
                tracing::debug!("who we are is not known yet: {error}");
                return Err(NoToken::NotNow);
            }
        };
        // Held until the airlock is passed: no other token can come in between.
        let held = self.held.lock().await;
        let current = held
            .tokens
            .as_ref()
            .map(|tokens| tokens.access.expose_secret());
        if current != Some(access.expose_secret()) {
            tracing::debug!("an answer to an older token is of no use any more");
            return Err(NoToken::NotNow);
        }
        self.refusals.store(0, Ordering::Relaxed);
        Ok(self.admit(me, pushed).await?)
    }

    /// `devices/me` refused a token. After too many fresh ones in a row only a person can help.
    async fn refused(&self, access: &SecretString) -> Result<NoToken, QueueError> {
        if self.refusals.fetch_add(1, Ordering::Relaxed) + 1 > REFUSALS {
            let mut held = self.held.lock().await;
            let current = held
                .tokens
                .as_ref()
                .map(|tokens| tokens.access.expose_secret());
            if current == Some(access.expose_secret()) {
                self.refusals.store(0, Ordering::Relaxed);
                let words = "Frame.io refuses even fresh tokens of this unit".to_owned();
                self.lose(&mut held, words).await?;
            }
        }
        Ok(NoToken::Lost)
    }

    /// The airlock: nothing of one project passes into another.
    async fn admit(&self, me: Me, pushed: u64) -> Result<Identity, QueueError> {
        let paused = me.status == DeviceStatus::Paused;
        let identity = identity_of(me);
        let before = self.identity();
        let other = before
            .as_ref()
            .is_some_and(|before| before.project_id != identity.project_id);
        let closed = if other {
            crash::point("airlock.closing");
            Some(self.airgate.close().await)
        } else {
            None
        };
        let passed = self.queue.store_identity(identity.clone()).await;
        crash::point("airlock.stored");
        drop(closed);
        if let Airlock::Changed { cleared } = passed? {
            let from = before.map(|before| before.project_name).unwrap_or_default();
            tracing::warn!(
                cleared,
                "another project is connected; the queue was emptied"
            );
            let _ = self.events.send(Event::ProjectChanged { from, cleared });
        }
        self.identity.send_replace(Some(identity.clone()));
        self.admitted(paused, pushed).await?;
        self.announce_expiry();
        let _ = self.events.send(Event::Identity(identity.clone()));
        Ok(identity)
    }

    /// Gives the authorization back and forgets it; queue and history stay.
    pub(crate) async fn revoke(&self) -> Result<(), UplinkError> {
        let mut held = self.held.lock().await;
        let Some(tokens) = held.tokens.clone() else {
            return Ok(());
        };
        let Credentials {
            client_id,
            client_secret,
        } = &self.credentials;
        let told = self
            .client
            .revoke(client_id, client_secret, &tokens.refresh)
            .await;
        self.lose(&mut held, "this unit was disconnected by hand".into())
            .await?;
        told.map(|_| ()).map_err(UplinkError::from)
    }
}

/// The request may have reached the server, and its answer is unknown.
fn may_have_been_spent(error: &c2c_protocol::Error) -> bool {
    match &error.kind {
        ErrorKind::Transport(transport) => {
            transport.reached == Reached::Maybe && transport.stage != Stage::Body
        }
        // An answer that is not understood: the token pair in it is lost.
        ErrorKind::Answer(answer) => !answer.looks_like_portal,
        _ => false,
    }
}

fn identity_of(me: Me) -> Identity {
    let status = match me.status {
        DeviceStatus::Online => "online".to_owned(),
        DeviceStatus::Offline => "offline".to_owned(),
        DeviceStatus::Paused => "paused".to_owned(),
        DeviceStatus::Other(word) => word,
    };
    Identity {
        id: me.id,
        device_id: me.device_id,
        device_name: me.name,
        project_id: me.project_id,
        project_name: me.project_name,
        status,
        authorization_expires_at: me.authorization_expires_at,
        channels: me
            .channels
            .into_iter()
            .zip(0..)
            .map(|(channel, place)| (channel.external_index.unwrap_or(place), channel.name))
            .collect(),
    }
}
