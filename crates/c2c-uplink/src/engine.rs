//! What all workers share, and how a fault becomes a verdict in the queue.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use c2c_digest::Digests;
use c2c_protocol::{Client, RefusalBody};
use c2c_queue::{
    Attempt, Clock, Holder, Lease, Media, Operation, Outcome, Queue, QueueError, Setback, Verdict,
};
use futures_util::FutureExt;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Standing};
use crate::crash;
use crate::event::Event;
use crate::link::Link;
use crate::pace::Helm;
use crate::pace::bucket::Pacer;
use crate::progress::Board;
use crate::settings::Settings;
use crate::settle::{Effect, Fault, Situation, decide};
use crate::source::Hung;
use crate::time::TimeKeeper;
use crate::transfer::{Airgate, Slots, Wary};

/// Everything that is shared.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) settings: Settings,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: Arc<TimeKeeper>,
    pub(crate) link: Arc<Link>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) airgate: Arc<Airgate>,
    pub(crate) board: Arc<Board>,
    /// How many transfers may run.
    pub(crate) slots: Arc<Slots>,
    /// Computes the MD5 of all chunks that are on the way, several at a time.
    pub(crate) digests: Digests,
    /// Limits in bytes per second.
    pub(crate) pacer: Arc<Pacer>,
    /// What steers the number of transfers.
    pub(crate) helm: Helm,
    /// Chunks that the storage is asked about before they are sent.
    pub(crate) wary: Wary,
    /// No chunk is ready: what the transfers do now says nothing about the link.
    pub(crate) idle_transfers: AtomicBool,
    pub(crate) events: broadcast::Sender<Event>,
    /// Something changed that may give a waiting worker work.
    pub(crate) wake: Notify,
    /// A person asked to look again now.
    pub(crate) nudged: Notify,
    /// Something changed that may have made the queue idle.
    pub(crate) settled: Notify,
    /// Results that are being stored, whose events nobody has seen yet.
    pub(crate) reports: AtomicUsize,
    pub(crate) stop: CancellationToken,
    pub(crate) process: String,
    /// 402: no registrations while this is set.
    pub(crate) account_limit: AtomicBool,
    /// The files of what is held were looked at in this run: what came back while nobody ran is known by now.
    pub(crate) looked: AtomicBool,
    /// File systems that do not answer.
    pub(crate) hung: Hung,
    /// Addresses that this unit just lost: connections from them are dead.
    pub(crate) addresses_lost: watch::Sender<BTreeSet<IpAddr>>,
    pub(crate) jitter: Mutex<fastrand::Rng>,
}

/// What a fault was, in the terms of the policy, with what the queue should remember.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) fault: Fault,
    /// The server's words and request id.
    pub(crate) server: Option<String>,
    /// The create may have reached the server.
    pub(crate) possible_duplicate: bool,
    /// Bytes sent in vain.
    pub(crate) bytes_wasted: u64,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble {
            fault,
            server: None,
            possible_duplicate: false,
            bytes_wasted: 0,
        }
    }
}

/// A result on its way into the queue and out as an event. While there is one, the queue does not count as idle: who waits for
/// the end sees everything that led to it.
pub(crate) struct Report<'a>(&'a Engine);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.0.reports.fetch_sub(1, Ordering::SeqCst);
        self.0.settled.notify_waiters();
    }
}

/// What was checked out, kept aside in case that the work on it panics.
#[derive(Debug)]
pub(crate) struct Checkout {
    lease: Lease,
    media: Media,
    attempt: Attempt,
}

impl Checkout {
    pub(crate) fn of(lease: &Lease, media: &Media, attempt: Attempt) -> Checkout {
        Checkout {
            lease: lease.clone(),
            media: media.clone(),
            attempt,
        }
    }
}

impl Engine {
    /// Runs the work on one item. A file that makes us panic must not take the others along: it is charged for it.
    pub(crate) async fn guard(
        &self,
        checkout: Checkout,
        operation: Operation,
        work: impl Future<Output = Result<(), QueueError>>,
    ) {
        let done = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(done) => done,
            Err(panic) => {
                let words = panic_words(&*panic);
                let Checkout {
                    lease,
                    media,
                    attempt,
                } = checkout;
                let trouble = Fault::Program { words }.into();
                self.settle(&lease, &media, operation, attempt, trouble)
                    .await
            }
        };
        if let Err(error) = done {
            self.store_trouble(&error).await;
        }
    }

    /// Call it before a result is stored, and drop it after its event was sent.
    pub(crate) fn report(&self) -> Report<'_> {
        self.reports.fetch_add(1, Ordering::SeqCst);
        Report(self)
    }

    pub(crate) fn jitter(&self) -> f64 {
        self.jitter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .f64()
    }

    pub(crate) fn holder(&self, worker: &str) -> Holder {
        Holder {
            process: self.process.clone(),
            worker: worker.to_owned(),
        }
    }

    pub(crate) fn emit(&self, event: Event) {
        // Nobody listening is no fault.
        let _ = self.events.send(event);
    }

    /// Tells workers and waiters that the queue changed.
    pub(crate) fn changed(&self) {
        self.board.touch();
        self.wake.notify_waiters();
        self.settled.notify_waiters();
    }

    /// Waits until work may be done at all: the link is online and the connection confirmed. `false` at shutdown.
    pub(crate) async fn open_gate(&self) -> bool {
        let mut standing = self.connection.watch_standing();
        let mut link = self.link.subscribe();
        loop {
            let paired = matches!(*standing.borrow_and_update(), Standing::Paired { .. });
            let online = *link.borrow_and_update() == crate::link::LinkState::Online;
            if self.stop.is_cancelled() {
                return false;
            }
            if paired && online {
                return true;
            }
            tokio::select! {
                _ = self.stop.cancelled() => return false,
                _ = standing.changed() => {}
                _ = link.changed() => {}
            }
        }
    }

    /// Whether the gate is open right now.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.connection.standing(), Standing::Paired { .. })
            && self.link.is_online()
            && !self.stop.is_cancelled()
    }

    /// The store failed (a full disk, a dying card). Nothing can be done but say so and try again: what is not stored did not
    /// happen.
    pub(crate) async fn store_trouble(&self, error: &QueueError) {
        if self.stop.is_cancelled() {
            return;
        }
        tracing::error!("{error}");
        self.emit(Event::StoreTrouble {
            words: error.to_string(),
        });
        tokio::select! {
            _ = self.stop.cancelled() => {}
            _ = self.clock.sleep(Duration::from_secs(2)) => {}
        }
    }

    /// Reports to the queue, again and again while only the store is in trouble: what was reached must not be thrown away
    /// because a disk is full for a moment. The lease decides how long that makes sense.
    pub(crate) async fn insist<T, F, R>(&self, report: F) -> Result<T, QueueError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<T, QueueError>>,
    {
        loop {
            match report().await {
                Err(
                    error @ (QueueError::Sqlite { .. }
                    | QueueError::Io { .. }
                    | QueueError::Busy { .. }),
                ) if !self.stop.is_cancelled() => {
                    self.store_trouble(&error).await;
                }
                other => return other,
            }
        }
    }

    /// Sleeps until there may be work again.
    pub(crate) async fn idle(
        &self,
        wake: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
        most: Option<Duration>,
    ) {
        let sleep = async {
            match most {
                // A little more, so that the item is due by then whatever the rounding.
                Some(most) => self.clock.sleep(most + Duration::from_millis(2)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = wake => {}
            _ = sleep => {}
            _ = self.stop.cancelled() => {}
        }
    }

    /// Judges a fault, stores the verdict, and tells everybody concerned.
    pub(crate) async fn settle(
        &self,
        lease: &Lease,
        media: &Media,
        operation: Operation,
        attempt: Attempt,
        trouble: Trouble,
    ) -> Result<(), QueueError> {
        let situation = Situation {
            operation,
            attempt,
            registrations: media.registrations_since_retry,
            link_up: self.link.is_online(),
            now: self.time.now(),
            jitter: self.jitter(),
        };
        let judged = decide(&trouble.fault, &situation);
        let record = trouble.fault.record(trouble.server);
        let wait = match &judged.verdict {
            Verdict::Again { after, .. }
            | Verdict::NextRound { after }
            | Verdict::RegisterAgain { after, .. } => Some(*after),
            _ => None,
        };
        tracing::info!(
            media = %media.id,
            name = %media.name,
            code = %record.code,
            verdict = judged.verdict.as_str(),
            server = record.server.as_deref().unwrap_or(""),
            "{}", record.words
        );
        let dropped_chunks = matches!(judged.verdict, Verdict::RegisterAgain { .. });
        let setback = Setback {
            fault: record.clone(),
            verdict: judged.verdict,
            possible_duplicate: trouble.possible_duplicate,
            bytes_wasted: trouble.bytes_wasted,
            drop_parts: judged.drop_parts,
        };
        let _report = self.report();
        crash::point("setback.judged");
        let stored = self
            .insist(|| {
                let setback = setback.clone();
                async {
                    match operation {
                        Operation::Register => self.queue.registration_failed(lease, setback).await,
                        Operation::Transfer => self.queue.chunk_failed(lease, setback).await,
                    }
                }
            })
            .await;
        let Outcome { state, hold } = match stored {
            Ok(outcome) => outcome,
            // Somebody else has it by now, or a person cancelled it: our report does not matter.
            Err(QueueError::LeaseLost(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        crash::point("setback.stored");
        if dropped_chunks {
            self.board.waste(media.bytes_sent);
        }
        if trouble.fault.effect() == Effect::StopRegistering {
            self.account_limit.store(true, Ordering::Relaxed);
        }
        self.emit(Event::Setback {
            media: media.id,
            name: media.name.clone(),
            operation,
            fault: record,
            state,
            hold,
            wait,
        });
        self.changed();
        Ok(())
    }

    /// The link is judged only for faults that may be its own.
    pub(crate) async fn link_up_after(
        &self,
        error: &c2c_protocol::Error,
        upload_host: Option<(String, u16)>,
    ) -> bool {
        use c2c_protocol::ErrorKind;
        let suspicious = match &error.kind {
            ErrorKind::Transport(transport) => transport.stage != c2c_protocol::Stage::Body,
            ErrorKind::Answer(_) => true,
            ErrorKind::Refused(refusal) => {
                (300..400).contains(&refusal.status)
                    || matches!(refusal.body, RefusalBody::Html)
                    || matches!(refusal.status, 404 | 407 | 511)
                    // Of the API: is it this request, or the whole service?
                    || (upload_host.is_none() && refusal.status >= 500)
            }
            _ => false,
        };
        !suspicious || self.link.report(error, upload_host).await
    }
}

/// The server's words with its request id, as a history line keeps them.
pub(crate) fn server_words(error: &c2c_protocol::Error) -> Option<String> {
    let c2c_protocol::ErrorKind::Refused(refusal) = &error.kind else {
        return None;
    };
    let mut words = format!("{} {}", refusal.status, refusal.words);
    if let Some(id) = &refusal.request_id {
        words.push_str(&format!(" (request {id})"));
    }
    Some(words)
}

/// What a panic said.
fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic
        .downcast_ref::<&str>()
        .map(|words| (*words).to_owned());
    words
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic".to_owned())
}
