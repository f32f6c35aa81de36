//! Watching the bytes of one request from outside.
//!
//! Invariants: the counts never go down during one request; they survive its end; reading them never blocks the
//! transfer and never keeps a connection open.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::socket::SocketFacts;
use crate::tuning::Transport;

/// Counts the bytes of one request while it runs. Make one per request and share it with the client.
///
/// The counts are wire bytes: they include the request head and the TLS framing, so that they end a little above the
/// length of the chunk.
#[derive(Debug, Default)]
pub struct Meter {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<(Arc<SocketFacts>, u64)>,
    handed_over: u64,
    acknowledged: u64,
    on_wire: u64,
    holds_back: bool,
    reused: Option<bool>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

impl State {
    fn refresh(&mut self) {
        if let Some((facts, base)) = &self.running {
            let written = facts.written().saturating_sub(*base);
            // Read after the count: bytes that leave in between make the result smaller, never too large.
            let unacknowledged = facts.unacknowledged();
            self.handed_over = self.handed_over.max(written);
            if let Some(waiting) = unacknowledged {
                self.acknowledged = self.acknowledged.max(written.saturating_sub(waiting));
            }
        }
    }
}

impl Meter {
    /// Bytes given to the kernel for this request so far.
    #[must_use]
    pub fn handed_over(&self) -> u64 {
        let mut state = self.state();
        state.refresh();
        state.handed_over
    }

    /// Bytes of this request that the other side's kernel has confirmed. Where the system cannot tell, the same as
    /// [`Meter::handed_over`].
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        let mut state = self.state();
        state.refresh();
        state.acknowledged
    }

    /// Bytes of this request that left this machine for the first time: what was handed over without what still waits in
    /// the kernel. Where the system cannot tell, the same as [`Meter::handed_over`].
    #[must_use]
    pub fn on_wire(&self) -> u64 {
        let mut state = self.state();
        state.refresh();
        if let Some((facts, _)) = &state.running {
            let unsent = facts.transport().map_or(0, |told| told.unsent);
            state.on_wire = state
                .on_wire
                .max(state.handed_over.saturating_sub(unsent))
                .max(state.acknowledged);
        }
        state.on_wire
    }

    /// What the kernel knows about the connection of this request; `None` before it has one, after its end, and where
    /// the system does not tell.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        let state = self.state();
        let (facts, _) = state.running.as_ref()?;
        facts.transport()
    }

    /// Whether bytes of this request wait between its body and the kernel.
    pub(crate) fn holds_back(&self) -> bool {
        let state = self.state();
        match &state.running {
            Some((facts, _)) => facts.holds_back(),
            None => state.holds_back,
        }
    }

    /// Whether the request runs on a connection that had served one before; `None` until it has a connection.
    #[must_use]
    pub fn reused(&self) -> Option<bool> {
        self.state().reused
    }

    /// The address of the server; `None` until the request has a connection.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.state().peer
    }

    /// Our own address on the connection; when this unit loses it, the connection is dead although nothing says so.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        self.state().local
    }

    /// Starts counting on a connection; the counts of an earlier request are dropped.
    pub(crate) fn attach(self: &Arc<Self>, facts: &Arc<SocketFacts>, reused: bool) -> MeterGuard {
        *self.state() = State {
            running: Some((Arc::clone(facts), facts.written())),
            reused: Some(reused),
            peer: Some(facts.peer()),
            local: facts.local(),
            ..State::default()
        };
        MeterGuard {
            meter: Arc::clone(self),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Freezes the counts when the request ends, however it ends: the connection then serves others.
#[derive(Debug)]
pub(crate) struct MeterGuard {
    meter: Arc<Meter>,
}

impl Drop for MeterGuard {
    fn drop(&mut self) {
        let mut state = self.meter.state();
        state.refresh();
        state.on_wire = state.on_wire.max(state.acknowledged);
        state.holds_back = state
            .running
            .take()
            .is_some_and(|(facts, _)| facts.holds_back());
    }
}
