//! One request on its way through the simulator, with the faults that apply to it.
//!
//! Invariants: every request ends in exactly one outcome in the log; a cut never returns to the handler, so
//! nothing is answered after it; faults act at the same points on both hosts.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::answer::{self, Answer};
use crate::fault::{Effect, EndpointName, Plan, Subject};
use crate::log::{Entry, HostKind, Outcome};
use crate::wire::Wire;
use crate::world::World;

/// What the handlers know of the connection they serve.
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) host: HostKind,
    pub(crate) wire: Arc<Wire>,
    /// Set by an answer 101: who speaks on the websocket that follows.
    pub(crate) websocket: Mutex<Option<crate::websocket::Seat>>,
}

/// A request at work.
pub(crate) struct Exchange {
    pub(crate) world: Arc<World>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) entry: Entry,
    plan: Plan,
    received: u64,
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// The client went away.
    Gone,
    /// It is longer than allowed.
    TooLong,
}

impl Exchange {
    pub(crate) fn open(
        world: Arc<World>,
        connection: Arc<Connection>,
        endpoint: EndpointName,
        head: &http::request::Parts,
    ) -> Self {
        connection.wire.read_at(0);
        connection.wire.write_at(0);
        let entry = Entry::open(&world, connection.host, connection.number, endpoint, head);
        Self {
            world,
            connection,
            entry,
            plan: Plan::default(),
            received: 0,
        }
    }

    /// Looks up the faults for this request. Call once, when its subject is known.
    pub(crate) fn meet_faults(&mut self, subject: Subject<'_>) {
        self.plan = self.world.change(|state| {
            let mut rng = state.rng.fork();
            state.faults.plan(subject, &mut rng)
        });
        let ids = self.plan.ids.clone();
        if !ids.is_empty() {
            self.entry.note(|entry| entry.faults = ids);
        }
    }

    /// Ends the connection; the handler never comes back from here.
    pub(crate) async fn cut(&mut self) -> ! {
        self.entry.close(Outcome::Cut);
        self.connection.wire.cut(true);
        std::future::pending::<std::convert::Infallible>().await;
        unreachable!("a pending future does not finish")
    }

    /// The faults that act before the body is read. An answer is to be given at once.
    pub(crate) async fn before_body(&mut self) -> Option<Answer> {
        if let Some(delay) = self.plan.delay {
            self.world.clock.sleep(delay).await;
        }
        if let Some(rate) = self.plan.read_rate {
            self.connection.wire.read_at(rate);
        }
        match &self.plan.effect {
            Some(Effect::DropAnswerless | Effect::CutAfterBytes(0)) => self.cut().await,
            Some(Effect::RejectEarly {
                status,
                body,
                headers,
            }) => Some(answer::closing(answer::made_up(*status, body, headers))),
            _ => None,
        }
    }

    /// Counts body bytes that were read, and acts on the faults that wait for a number of them.
    pub(crate) async fn count(&mut self, bytes: u64) {
        self.received += bytes;
        match self.plan.effect {
            Some(Effect::CutAfterBytes(limit)) if self.received >= limit => {
                self.entry.received(self.received);
                self.cut().await;
            }
            Some(Effect::Stall { after_bytes }) if self.received >= after_bytes => {
                self.stall().await
            }
            _ => {}
        }
    }

    /// Body bytes read so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the request is to be held before its body is read at all.
    pub(crate) async fn stall_at_start(&mut self) {
        if self.plan.effect == Some(Effect::Stall { after_bytes: 0 }) {
            self.stall().await;
        }
    }

    async fn stall(&mut self) {
        let received = self.received;
        self.entry.note(|entry| {
            entry.received = received;
            entry.outcome = Outcome::Stalled;
        });
        let ids = self.plan.ids.clone();
        let mut changes = self.world.watch();
        let world = Arc::clone(&self.world);
        let lifted = async {
            loop {
                changes.mark_unchanged();
                if !world.read(|state| ids.iter().all(|id| state.faults.holds(*id)))
                    || changes.changed().await.is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = lifted => {
                self.plan.effect = None;
                self.entry.note(|entry| entry.outcome = Outcome::Open);
            }
            () = self.connection.wire.client_gone() => {
                self.entry.close(Outcome::Gone);
                self.connection.wire.cut(false);
                std::future::pending::<()>().await;
            }
        }
    }

    /// The answer of a fault that takes the place of any effect.
    pub(crate) fn instead(&self) -> Option<Answer> {
        match self.plan.effect.as_ref()? {
            Effect::Status {
                status,
                body,
                headers,
            } => Some(answer::made_up(*status, body, headers)),
            Effect::CaptivePortal => Some(answer::captive_portal()),
            Effect::Redirect(location) => {
                let mut answer = answer::html(307, "Temporary Redirect", "The document has moved.");
                answer::put(&mut answer, "location", location);
                Some(answer)
            }
            _ => None,
        }
    }

    pub(crate) fn effect(&self) -> Option<&Effect> {
        self.plan.effect.as_ref()
    }

    /// Reads a small body whole.
    pub(crate) async fn collect(
        &mut self,
        mut body: Incoming,
        limit: usize,
    ) -> Result<Bytes, BodyEnd> {
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(BodyEnd::Gone);
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            whole.extend_from_slice(&data);
            if whole.len() > limit {
                return Err(BodyEnd::TooLong);
            }
        }
        self.entry.received(whole.len() as u64);
        Ok(Bytes::from(whole))
    }

    /// Reads a body to its end and forgets it, with the faults that act on the way.
    pub(crate) async fn drain(&mut self, body: &mut Incoming) -> Result<(), BodyEnd> {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return Err(BodyEnd::Gone);
            };
            if let Some(data) = frame.data_ref() {
                self.count(data.len() as u64).await;
            }
        }
        self.entry.received(self.received);
        Ok(())
    }

    /// The client left in the middle: there is nobody to answer.
    pub(crate) fn gone(mut self) -> Answer {
        self.entry.received(self.received);
        self.entry.close(Outcome::Gone);
        answer::closing(answer::empty(400))
    }

    /// Sends the answer, with the faults that act on answers.
    pub(crate) async fn finish(mut self, mut answer: Answer) -> Answer {
        answer::date(&mut answer, self.world.clock.claimed_date());
        let status = answer.status().as_u16();
        match self.plan.effect {
            Some(Effect::CutBeforeAnswer) => self.cut().await,
            Some(Effect::TruncateAnswer(bytes)) if answer.body().len() > bytes as u64 => {
                self.entry.close(Outcome::Cut);
                let wire = Arc::clone(&self.connection.wire);
                return answer.map(|body| body.truncated(bytes, move || wire.cut(false)));
            }
            _ => {}
        }
        if self.plan.slow_answer {
            self.connection.wire.write_at(64);
        }
        self.entry.close(Outcome::Answered(status));
        answer
    }
}
