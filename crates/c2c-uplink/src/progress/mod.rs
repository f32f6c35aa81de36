//! How far everything is, as numbers that are true.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use c2c_protocol::Meter;
use c2c_queue::{MediaId, MediaState, QueueStatus};
use serde::Serialize;

/// A chunk on the wire.
#[derive(Debug)]
pub(crate) struct Flight {
    media: MediaId,
    number: u32,
    length: u64,
    meter: Arc<Meter>,
}

impl Flight {
    pub(crate) fn new(media: MediaId, number: u32, length: u64, meter: Arc<Meter>) -> Flight {
        Flight {
            media,
            number,
            length,
            meter,
        }
    }

    /// Of the chunk's bytes, those that the peer's TCP acknowledged. Wire bytes include a little framing: never more than the chunk.
    fn acknowledged(&self) -> u64 {
        self.meter.acknowledged().min(self.length)
    }
}

/// The chunks on the wire, and the recent past of their sum.
#[derive(Debug, Default)]
pub(crate) struct Board {
    flights: Mutex<BTreeMap<u64, Arc<Flight>>>,
    next: std::sync::atomic::AtomicU64,
    rate: Mutex<RateMeter>,
}

/// Takes its flight off the board when the attempt ends.
#[derive(Debug)]
pub(crate) struct OnBoard {
    board: Arc<Board>,
    key: u64,
}

impl Drop for OnBoard {
    fn drop(&mut self) {
        self.board
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

impl Board {
    pub(crate) fn begin(self: &Arc<Self>, flight: Flight) -> OnBoard {
        let key = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, Arc::new(flight));
        OnBoard {
            board: self.clone(),
            key,
        }
    }

    fn flights(&self) -> Vec<Arc<Flight>> {
        self.flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Bytes of each media that are on the wire and acknowledged, but not yet confirmed by the service.
    pub(crate) fn in_flight(&self) -> BTreeMap<MediaId, InFlight> {
        let mut sums = BTreeMap::<MediaId, InFlight>::new();
        for flight in self.flights() {
            let sum = sums.entry(flight.media).or_default();
            sum.chunks.push(flight.number);
            sum.acknowledged += flight.acknowledged();
        }
        sums
    }

    pub(crate) fn rate(&self, now: Duration, total: u64) -> u64 {
        self.rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(now, total)
    }
}

/// What is on the wire of one media.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// The chunks being sent, from 0.
    pub chunks: Vec<u32>,
    /// Bytes of them that the peer acknowledged.
    pub acknowledged: u64,
}

/// How far everything is.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    /// The queue in numbers.
    pub queue: QueueStatus,
    /// Media with chunks on the wire.
    pub active: Vec<ActiveMedia>,
    /// Bytes of all media that are to be delivered and those that are.
    pub bytes_total: u64,
    /// Bytes confirmed by the service, plus those on the wire that the peer acknowledged.
    pub bytes_acknowledged: u64,
    /// Bytes per second over the last seconds, by what was acknowledged.
    pub rate: u64,
    /// Seconds left at that rate; `None` while there is no rate.
    pub eta_seconds: Option<u64>,
}

/// A media with chunks on the wire.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActiveMedia {
    /// The media.
    pub media: MediaId,
    /// Its name in Frame.io.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes confirmed by the service, plus those on the wire that the peer acknowledged.
    pub acknowledged: u64,
    /// Chunks confirmed.
    pub chunks_sent: u32,
    /// All its chunks.
    pub chunk_count: u32,
    /// The chunks on the wire, from 0.
    pub sending: Vec<u32>,
}

impl Progress {
    pub(crate) fn new(
        queue: QueueStatus,
        active: Vec<ActiveMedia>,
        in_flight: u64,
        board: &Board,
        now: Duration,
    ) -> Progress {
        let alive = [
            MediaState::Queued,
            MediaState::Registering,
            MediaState::Transferring,
            MediaState::Delivered,
        ];
        let bytes_total: u64 = alive.iter().map(|state| queue.of(*state).bytes).sum();
        let confirmed: u64 = alive.iter().map(|state| queue.of(*state).bytes_sent).sum();
        let bytes_acknowledged = (confirmed + in_flight).min(bytes_total);
        let rate = board.rate(now, bytes_acknowledged);
        let left = bytes_total - bytes_acknowledged;
        let eta_seconds = (rate > 0).then(|| left.div_ceil(rate));
        Progress {
            queue,
            active,
            bytes_total,
            bytes_acknowledged,
            rate,
            eta_seconds,
        }
    }
}

/// Bytes per second over the last ten seconds.
#[derive(Debug, Default)]
struct RateMeter {
    samples: VecDeque<(Duration, u64)>,
}

const WINDOW: Duration = Duration::from_secs(10);

impl RateMeter {
    fn note(&mut self, now: Duration, total: u64) -> u64 {
        // The total falls when a chunk has to be sent again or the queue is emptied: start anew.
        if self
            .samples
            .back()
            .is_some_and(|(at, last)| total < *last || now < *at)
        {
            self.samples.clear();
        }
        self.samples.push_back((now, total));
        while self.samples.len() > 2
            && self
                .samples
                .get(1)
                .is_some_and(|(at, _)| now - *at >= WINDOW)
        {
            self.samples.pop_front();
        }
        let Some((from, bytes)) = self.samples.front() else {
            return 0;
        };
        let span = (now - *from).as_secs_f64();
        if span < 0.2 {
            0
        } else {
            ((total - bytes) as f64 / span) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let mut meter = RateMeter::default();
        let mut rate = 0;
        for second in 0..30 {
            rate = meter.note(Duration::from_secs(second), second * 100);
        }
        assert_eq!(rate, 100);
        for second in 30..45 {
            rate = meter.note(Duration::from_secs(second), 2900);
        }
        assert_eq!(rate, 0);
        assert_eq!(
            meter.note(Duration::from_secs(46), 10),
            0,
            "a fall starts anew"
        );
    }
}
