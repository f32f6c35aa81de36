//! What the transfers together do to the line, as the kernel tells it.
//!
//! Invariant: a byte that a peer acknowledged is counted once, in the span in which it was seen, also when its transfer ends
//! between two looks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use c2c_protocol::Meter;
use tokio::sync::Notify;

use super::concurrency::Sample;

/// Watches the requests of all transfers.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    state: Mutex<State>,
    begun: Notify,
    /// For a second waiter.
    begun_too: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    watched: BTreeMap<u64, Entry>,
    /// Acknowledged bytes of transfers that ended since the last look.
    ended: u64,
    /// Acknowledged bytes of all transfers that ended.
    finished: u64,
    faults: u32,
    shortest_us: Option<u32>,
    loss_based: bool,
}

#[derive(Debug)]
struct Entry {
    meter: Arc<Meter>,
    acknowledged: u64,
    /// Sent and resent bytes of the connection at the last look, once the kernel told.
    counted: Option<(u64, u64)>,
}

/// One request on the gauge; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    gauge: Arc<Gauge>,
    key: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut state = self.gauge.state();
        if let Some(entry) = state.watched.remove(&self.key) {
            let acknowledged = entry.meter.acknowledged();
            state.finished += acknowledged;
            state.ended += acknowledged.saturating_sub(entry.acknowledged);
        }
    }
}

impl Gauge {
    /// Watches a request until the answer is dropped.
    pub(crate) fn watch(self: &Arc<Self>, meter: Arc<Meter>) -> Watched {
        let mut state = self.state();
        let key = state.next;
        state.next += 1;
        state.watched.insert(
            key,
            Entry {
                meter,
                acknowledged: 0,
                counted: None,
            },
        );
        drop(state);
        self.begun.notify_one();
        self.begun_too.notify_one();
        Watched {
            gauge: self.clone(),
            key,
        }
    }

    /// A connection failed for a reason that may lie in the line.
    pub(crate) fn fault(&self) {
        self.state().faults += 1;
    }

    /// Waits until there is a request to watch. For one waiter.
    pub(crate) async fn busy(&self) {
        while self.state().watched.is_empty() {
            self.begun.notified().await;
        }
    }

    /// The same for a second waiter.
    pub(crate) async fn busy_too(&self) {
        while self.state().watched.is_empty() {
            self.begun_too.notified().await;
        }
    }

    /// Bytes that were acknowledged since the beginning.
    pub(crate) fn acknowledged(&self) -> u64 {
        let state = self.state();
        let running = state.watched.values();
        state.finished + running.map(|entry| entry.meter.acknowledged()).sum::<u64>()
    }

    /// The mean of the smoothed round trips of all connections.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        let state = self.state();
        let told = state
            .watched
            .values()
            .filter_map(|entry| entry.meter.transport());
        let all: Vec<Duration> = told.map(|told| told.round_trip).collect();
        let count = u32::try_from(all.len()).ok().filter(|count| *count > 0)?;
        Some(all.iter().sum::<Duration>() / count)
    }

    /// Another network: its round trips are others.
    pub(crate) fn network_changed(&self) {
        self.state().shortest_us = None;
    }

    /// What was seen since the last look.
    pub(crate) fn look(&self, now: Duration, sending: usize, waiting_work: bool) -> Sample {
        let mut state = self.state();
        let mut sample = Sample {
            at_ms: now.as_millis() as u64,
            acknowledged: std::mem::take(&mut state.ended),
            sending: sending as u32,
            waiting_work,
            faults: std::mem::take(&mut state.faults),
            ..Sample::default()
        };
        let (mut round_trips, mut counted) = (Vec::new(), None::<(u64, u64)>);
        let (mut shortest, mut loss_based) = (state.shortest_us, None);
        for entry in state.watched.values_mut() {
            let acknowledged = entry.meter.acknowledged();
            sample.acknowledged += acknowledged.saturating_sub(entry.acknowledged);
            entry.acknowledged = acknowledged;
            let Some(told) = entry.meter.transport() else {
                entry.counted = None;
                continue;
            };
            round_trips.push(told.round_trip.as_micros() as u64);
            let least = told.shortest_round_trip.map(|rtt| rtt.as_micros() as u32);
            shortest = shortest.into_iter().chain(least).min();
            loss_based = Some(loss_based.unwrap_or(false) | told.loss_based);
            if let Some((sent, resent)) = entry.counted {
                let sum = counted.get_or_insert((0, 0));
                sum.0 += told.sent.saturating_sub(sent);
                sum.1 += told.resent.saturating_sub(resent);
            }
            entry.counted = Some((told.sent, told.resent));
        }
        state.shortest_us = shortest;
        state.loss_based = loss_based.unwrap_or(state.loss_based);
        sample.loss_based = state.loss_based;
        sample.min_rtt_us = shortest;
        if !round_trips.is_empty() {
            let mean = round_trips.iter().sum::<u64>() / round_trips.len() as u64;
            sample.srtt_us = u32::try_from(mean).ok();
        }
        (sample.sent, sample.retransmitted) = counted.unzip();
        sample
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
