//! The chunks on the wire.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use c2c_protocol::Meter;
use c2c_queue::MediaId;
use serde::Serialize;

use super::Seen;
use super::eta::{Forecast, Past};

/// A chunk on the wire.
#[derive(Debug)]
pub(crate) struct Flight {
    media: MediaId,
    number: u32,
    length: u64,
    meter: Arc<Meter>,
    /// The most that was seen of each: a connection that is replaced behind our back begins its counts anew.
    most: [AtomicU64; 3],
}

/// Where the bytes of one chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whereabouts {
    read: u64,
    on_wire: u64,
    acknowledged: u64,
}

impl Flight {
    pub(crate) fn new(media: MediaId, number: u32, length: u64, meter: Arc<Meter>) -> Flight {
        Flight {
            media,
            number,
            length,
            meter,
            most: Default::default(),
        }
    }

    /// Where its bytes are now. Wire bytes include a little framing: never more than the chunk.
    fn look(&self) -> Whereabouts {
        // In this order, because each may only grow meanwhile.
        self.note([
            self.meter.acknowledged(),
            self.meter.on_wire(),
            self.meter.handed_over(),
        ])
    }

    /// From the last station to the first.
    fn note(&self, counts: [u64; 3]) -> Whereabouts {
        let mut later = 0;
        let [acknowledged, on_wire, read] = [0, 1, 2].map(|station| {
            let count = counts[station].min(self.length).max(later);
            let before = self.most[station].fetch_max(count, Ordering::Relaxed);
            later = count.max(before);
            later
        });
        Whereabouts {
            read,
            on_wire,
            acknowledged,
        }
    }
}

/// What is on the wire of one media.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// The chunks being sent, from 0.
    pub chunks: Vec<u32>,
    /// Bytes of them that were read and given to a connection.
    pub read: u64,
    /// Bytes of them that left this unit.
    pub on_wire: u64,
    /// Bytes of them that the peer acknowledged.
    pub acknowledged: u64,
}

/// How it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    pub(super) rate: u64,
    pub(super) stalled: bool,
    pub(super) forecast: Option<Forecast>,
}

/// All chunks on the wire, and the recent past of their sum.
#[derive(Debug, Default)]
pub(crate) struct Board {
    flights: Mutex<BTreeMap<u64, Arc<Flight>>>,
    next: AtomicU64,
    /// Grows with every change that the queue may know more about.
    version: AtomicU64,
    wasted: AtomicU64,
    seen: Mutex<Option<Arc<Seen>>>,
    past: Mutex<Past>,
}

/// Takes its flight off the board when the attempt ends. Unless it has landed, what was acknowledged of it was in vain.
#[derive(Debug)]
pub(crate) struct OnBoard {
    board: Arc<Board>,
    key: u64,
    landed: bool,
}

impl OnBoard {
    /// The chunk is stored as sent.
    pub(crate) fn landed(mut self) {
        self.landed = true;
    }
}

impl Drop for OnBoard {
    fn drop(&mut self) {
        let flight = lock(&self.board.flights).remove(&self.key);
        if let Some(flight) = flight
            && !self.landed
        {
            self.board.waste(flight.look().acknowledged);
        }
        self.board.touch();
    }
}

impl Board {
    pub(crate) fn begin(self: &Arc<Self>, flight: Flight) -> OnBoard {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.flights).insert(key, Arc::new(flight));
        self.touch();
        OnBoard {
            board: self.clone(),
            key,
            landed: false,
        }
    }

    /// The queue may say something else now.
    pub(crate) fn touch(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Bytes that were acknowledged have to be sent again.
    pub(crate) fn waste(&self, bytes: u64) {
        self.wasted.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn wasted(&self) -> u64 {
        self.wasted.load(Ordering::Relaxed)
    }

    /// What is on the wire of each media, not yet confirmed by the service.
    pub(super) fn in_flight(&self) -> BTreeMap<MediaId, InFlight> {
        let flights: Vec<Arc<Flight>> = lock(&self.flights).values().cloned().collect();
        let mut sums = BTreeMap::<MediaId, InFlight>::new();
        for flight in flights {
            let sum = sums.entry(flight.media).or_default();
            let now = flight.look();
            sum.chunks.push(flight.number);
            sum.read += now.read;
            sum.on_wire += now.on_wire;
            sum.acknowledged += now.acknowledged;
        }
        sums
    }

    pub(super) fn seen(&self) -> Option<Arc<Seen>> {
        lock(&self.seen).clone()
    }

    pub(super) fn remember(&self, seen: Arc<Seen>) {
        *lock(&self.seen) = Some(seen);
    }

    /// Takes in how far everything is; how fast it goes, and what is to be expected.
    pub(super) fn outlook(&self, now: Duration, done: u64, all: u64, working: bool) -> Outlook {
        let mut past = lock(&self.past);
        past.note(now, done, working);
        Outlook {
            rate: past.rate(),
            stalled: past.is_stalled(),
            forecast: past.foretell(all.saturating_sub(done)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flight(length: u64) -> Flight {
        Flight::new(MediaId(1), 0, length, Arc::new(Meter::default()))
    }

    proptest! {
        /// Whatever the kernel says, and in whatever order it is asked.
        #[test]
        fn the_stations_are_in_order_and_never_fall(
            length in 0_u64..1000,
            looks in prop::collection::vec([0_u64..1200, 0..1200, 0..1200], 1..50),
        ) {
            let flight = flight(length);
            let mut before = flight.look();
            for counts in looks {
                let now = flight.note(counts);
                prop_assert!(now.acknowledged <= now.on_wire);
                prop_assert!(now.on_wire <= now.read);
                prop_assert!(now.read <= length);
                prop_assert!(now.acknowledged >= before.acknowledged);
                prop_assert!(now.on_wire >= before.on_wire && now.read >= before.read);
                before = now;
            }
        }
    }

    #[test]
    fn what_did_not_land_was_in_vain() {
        let board = Arc::new(Board::default());
        let begin = || {
            let flight = flight(100);
            flight.note([60, 70, 80]);
            board.begin(flight)
        };
        let (one, other) = (begin(), begin());
        let sum = board.in_flight().remove(&MediaId(1)).unwrap();
        assert_eq!((sum.read, sum.on_wire, sum.acknowledged), (160, 140, 120));
        let version = board.version();
        one.landed();
        assert_eq!(board.wasted(), 0);
        assert!(board.version() > version, "the queue knows more now");
        drop(other);
        assert_eq!(board.wasted(), 60);
        assert!(board.in_flight().is_empty());
    }
}
