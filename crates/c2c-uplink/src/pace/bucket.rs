//! A limit in bytes per second for everything together, for each interface and for each connection.
//!
//! Invariants:
//!
//! - In no stretch of time more is granted than the rate times that time plus one [`burst`]: 50 ms of the rate, or 16 KiB
//!   where that is more, and never more than 200 ms of it (from 5 KiB/s on). So ten seconds are exact within 2 %.
//! - Time in which nothing was asked for is forgotten beyond that burst.
//! - A rate that is changed is in force at once, for those that wait already, too.
//! - Who asks first is served first, and nobody gets more than a quarter of a burst at a time.
//! - A grant that is given up while it waits takes nothing.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes per second; `None` is no limit.
pub type Rate = Option<NonZeroU64>;

/// The most that a limit of `rate` lets through at once, in bytes.
#[must_use]
pub fn burst(rate: NonZeroU64) -> u64 {
    let rate = rate.get();
    (rate / 20).max(GRAIN.min(rate / 5)).max(LEAST_BURST)
}

/// Smaller bursts would only cost system calls.
const GRAIN: u64 = 16 * 1024;
/// About one packet: below it there is nothing to pace.
const LEAST_BURST: u64 = 1024;

/// The answer of a [`Bucket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Bytes that may be sent now; 0 while it has to be waited.
    pub bytes: usize,
    /// When bytes is 0: ask again after this time.
    pub wait: Duration,
}

/// Bytes that run in at a rate and are taken out. Pure: the time is passed in, as the time since any fixed moment.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    level: f64,
    at: Duration,
}

impl Bucket {
    /// An empty bucket.
    #[must_use]
    pub fn new(now: Duration, rate: Rate) -> Bucket {
        Bucket {
            rate,
            level: 0.0,
            at: now,
        }
    }

    /// Changes the rate. What ran in so far stays, up to one burst of the new rate.
    pub fn set_rate(&mut self, now: Duration, rate: Rate) {
        self.fill(now);
        self.rate = rate;
        self.level = match rate {
            Some(rate) => self.level.min(burst(rate) as f64),
            None => 0.0,
        };
    }

    /// Takes up to `wanted` bytes out.
    pub fn take(&mut self, now: Duration, wanted: usize) -> Granted {
        let granted = self.look(now, wanted);
        self.spend(granted.bytes);
        granted
    }

    /// What [`Bucket::take`] would grant.
    fn look(&mut self, now: Duration, wanted: usize) -> Granted {
        self.fill(now);
        let all = Granted {
            bytes: wanted,
            wait: Duration::ZERO,
        };
        let Some(rate) = self.rate else { return all };
        if wanted == 0 {
            return all;
        }
        // Small enough that several take turns within a burst, and that one who comes late loses nothing.
        let portion = wanted.min(usize::try_from(burst(rate) / 4).unwrap_or(usize::MAX));
        let missing = portion as f64 - self.level;
        if missing <= 0.0 {
            return Granted {
                bytes: portion,
                wait: Duration::ZERO,
            };
        }
        let nanos = (missing / rate.get() as f64 * 1e9).ceil() + 1.0;
        Granted {
            bytes: 0,
            wait: Duration::from_nanos(nanos as u64),
        }
    }

    fn spend(&mut self, bytes: usize) {
        if self.rate.is_some() {
            self.level -= bytes as f64;
        }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        if let Some(rate) = self.rate {
            let filled = self.level + rate.get() as f64 * passed.as_secs_f64();
            self.level = filled.min(burst(rate) as f64);
        }
    }
}

/// A bucket that many share.
#[derive(Debug)]
struct Level {
    /// The rate once more, to be read without a lock; 0 is no limit.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
    /// Held by the one whose turn it is; the others stand in line in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

impl Level {
    fn new(rate: Rate) -> Level {
        Level {
            rate: AtomicU64::new(rate.map_or(0, NonZeroU64::get)),
            bucket: Mutex::new(Bucket::new(Duration::ZERO, rate)),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
        }
    }

    fn is_limited(&self) -> bool {
        self.rate.load(Ordering::Relaxed) != 0
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, now: Duration, rate: Rate) {
        self.bucket().set_rate(now, rate);
        self.rate
            .store(rate.map_or(0, NonZeroU64::get), Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until there is something for whoever has the turn.
    async fn ready(&self, started: Instant, wanted: usize) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let granted = self.bucket().look(started.elapsed(), wanted);
            if granted.bytes > 0 {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(granted.wait) => {}
                () = changed => {}
            }
        }
    }
}

/// The limits of one uplink, all of them changeable while bytes move. Without any limit it costs three atomic loads a send.
#[derive(Debug)]
pub struct Pacer {
    started: Instant,
    total: Arc<Level>,
    wishes: Mutex<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    /// What a person allows in total.
    total: Rate,
    /// What others on the same line leave.
    polite: Rate,
    interfaces: BTreeMap<String, Arc<Level>>,
    connection: Rate,
    connections: Vec<Weak<Level>>,
}

impl Default for Pacer {
    fn default() -> Pacer {
        Pacer {
            started: Instant::now(),
            total: Arc::new(Level::new(None)),
            wishes: Mutex::default(),
        }
    }
}

impl Pacer {
    /// Limits everything together.
    pub fn limit_total(&self, rate: Rate) {
        let mut wishes = self.wishes();
        wishes.total = rate;
        self.set_total(&wishes);
    }

    /// Limits everything together for the sake of others on the line; the smaller one of this and
    /// [`Pacer::limit_total`] is in force.
    pub fn limit_politely(&self, rate: Rate) {
        let mut wishes = self.wishes();
        if wishes.polite != rate {
            wishes.polite = rate;
            self.set_total(&wishes);
        }
    }

    /// Limits what leaves by one interface, e.g. `wlan0`.
    pub fn limit_interface(&self, interface: &str, rate: Rate) {
        let level = self.interface(interface);
        level.set(self.started.elapsed(), rate);
    }

    /// Limits each connection by itself, those that exist and those to come.
    pub fn limit_each_connection(&self, rate: Rate) {
        let mut wishes = self.wishes();
        wishes.connection = rate;
        wishes.connections.retain(|level| match level.upgrade() {
            Some(level) => {
                level.set(self.started.elapsed(), rate);
                true
            }
            None => false,
        });
    }

    /// What is in force for everything together.
    #[must_use]
    pub fn total(&self) -> Rate {
        NonZeroU64::new(self.total.rate.load(Ordering::Relaxed))
    }

    /// The pace of a new connection, by way of `interface` where that is known.
    #[must_use]
    pub fn connection(&self, interface: Option<&str>) -> Pace {
        let interface = interface.map(|name| self.interface(name));
        let mut wishes = self.wishes();
        let own = Arc::new(Level::new(wishes.connection));
        own.bucket().at = self.started.elapsed();
        wishes.connections.retain(|level| level.strong_count() > 0);
        wishes.connections.push(Arc::downgrade(&own));
        Pace {
            started: self.started,
            own,
            interface,
            total: self.total.clone(),
        }
    }

    fn set_total(&self, wishes: &Wishes) {
        let rate = match (wishes.total, wishes.polite) {
            (Some(total), Some(polite)) => Some(total.min(polite)),
            (one, other) => one.or(other),
        };
        self.total.set(self.started.elapsed(), rate);
    }

    fn interface(&self, name: &str) -> Arc<Level> {
        let mut wishes = self.wishes();
        if let Some(level) = wishes.interfaces.get(name) {
            return level.clone();
        }
        let level = Arc::new(Level::new(None));
        wishes.interfaces.insert(name.to_owned(), level.clone());
        level
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pace of one connection: what it sends passes its own limit, that of its interface and that of everything together.
#[derive(Clone, Debug)]
pub struct Pace {
    started: Instant,
    own: Arc<Level>,
    interface: Option<Arc<Level>>,
    total: Arc<Level>,
}

impl Pace {
    /// Whether [`Pace::grant`] would let everything through at once.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        !self.levels().any(Level::is_limited)
    }

    /// Waits until some of `wanted` bytes may be sent; how many, from 1 to `wanted` (0 only if none was wanted).
    ///
    /// What is granted counts as sent: a writer that could not use all of it keeps the rest for its next write. To give up
    /// waiting, drop the future.
    pub async fn grant(&self, wanted: usize) -> usize {
        if wanted == 0 || self.is_unlimited() {
            return wanted;
        }
        // From the narrow to the wide: who waits for its own limit is in nobody's way. Everybody goes in this order, so
        // nobody waits for one that waits for him.
        let mut turns = [None, None, None];
        for (turn, level) in turns.iter_mut().zip(self.levels()) {
            if level.is_limited() {
                *turn = Some(level.turn.lock().await);
                level.ready(self.started, wanted).await;
            }
        }
        loop {
            match self.take(wanted) {
                Ok(bytes) => return bytes,
                // A rate became smaller in the meantime.
                Err((level, wanted)) => level.ready(self.started, wanted).await,
            }
        }
    }

    /// Takes from all levels at once, or from none.
    fn take(&self, wanted: usize) -> Result<usize, (&Level, usize)> {
        let now = self.started.elapsed();
        let mut bytes = wanted;
        let mut buckets = [None, None, None];
        for (place, level) in buckets.iter_mut().zip(self.levels()) {
            let mut bucket = level.bucket();
            let granted = bucket.look(now, bytes);
            if granted.bytes == 0 {
                return Err((level, bytes));
            }
            bytes = granted.bytes;
            *place = Some(bucket);
        }
        for mut bucket in buckets.into_iter().flatten() {
            bucket.spend(bytes);
        }
        Ok(bytes)
    }

    fn levels(&self) -> impl Iterator<Item = &Level> {
        [Some(&self.own), self.interface.as_ref(), Some(&self.total)]
            .into_iter()
            .flatten()
            .map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    fn rate(rate: u64) -> Rate {
        NonZeroU64::new(rate)
    }

    #[test]
    fn bursts_are_short_and_grains_are_not_too_small() {
        for (rate, expected) in [
            (1, 1024),
            (32 * 1024, 6_553),
            (MB, 50_000),
            (200_000, 16 * 1024),
            (125 * MB, 6_250_000),
        ] {
            assert_eq!(burst(NonZeroU64::new(rate).unwrap()), expected, "{rate}");
        }
    }

    #[test]
    fn an_hour_of_silence_earns_one_burst() {
        let mut bucket = Bucket::new(Duration::ZERO, rate(MB));
        let now = Duration::from_secs(3600);
        let mut sum = 0;
        loop {
            let granted = bucket.take(now, 256 * 1024);
            if granted.bytes == 0 {
                break;
            }
            sum += granted.bytes;
        }
        assert_eq!(sum, 50_000);
    }

    #[test]
    fn a_slower_rate_takes_what_had_run_in() {
        let mut bucket = Bucket::new(Duration::ZERO, rate(100 * MB));
        let now = Duration::from_secs(1);
        bucket.set_rate(now, rate(100_000));
        let granted = bucket.take(now, usize::MAX);
        assert!(granted.bytes <= 16 * 1024, "{granted:?}");
        bucket.set_rate(now, None);
        assert_eq!(bucket.take(now, usize::MAX).bytes, usize::MAX);
    }

    proptest! {
        /// Whatever is asked for, and whenever.
        #[test]
        fn no_window_has_more_than_its_time_and_a_burst(
            bytes_per_second in 1_u64..2_000_000_000,
            asked in prop::collection::vec((0_u64..200_000, 1_usize..1_000_000), 1..150),
        ) {
            let mut bucket = Bucket::new(Duration::ZERO, rate(bytes_per_second));
            let mut now = Duration::ZERO;
            let mut log = Vec::new();
            for (micros, wanted) in asked {
                now += Duration::from_micros(micros);
                let granted = bucket.take(now, wanted);
                prop_assert!(granted.bytes <= wanted);
                prop_assert_eq!(granted.bytes == 0, granted.wait > Duration::ZERO);
                log.push((now, granted.bytes as f64));
            }
            let most = burst(NonZeroU64::new(bytes_per_second).unwrap()) as f64;
            for from in 0..log.len() {
                let mut sum = 0.0;
                for (at, bytes) in &log[from..] {
                    sum += bytes;
                    let span = (*at - log[from].0).as_secs_f64();
                    prop_assert!(sum <= bytes_per_second as f64 * span + most + 1.0);
                }
            }
        }

        /// One that always wants more, and wakes up to 5 ms late.
        #[test]
        fn ten_seconds_are_exact_within_two_percent(
            bytes_per_second in 6_000_u64..1_000_000_000,
            wanted in 1_000_usize..300_000,
            seed: u64,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bucket = Bucket::new(Duration::ZERO, rate(bytes_per_second));
            let mut now = Duration::ZERO;
            let mut sum = 0_u64;
            // More in one go than this would only make the test slow.
            let wanted = wanted.max((bytes_per_second / 10_000) as usize);
            while now < Duration::from_secs(10) {
                let granted = bucket.take(now, wanted);
                sum += granted.bytes as u64;
                if granted.bytes == 0 {
                    now += granted.wait + Duration::from_micros(random.u64(0..5_000));
                }
            }
            let share = sum as f64 / (bytes_per_second as f64 * now.as_secs_f64());
            prop_assert!((0.98..=1.02).contains(&share), "{}", share);
        }
    }

    async fn send_for(pace: Pace, span: Duration, wanted: usize) -> u64 {
        let until = Instant::now() + span;
        let mut sum = 0;
        while let Ok(bytes) = tokio::time::timeout_at(until, pace.grant(wanted)).await {
            assert!(bytes >= 1 && bytes <= wanted);
            sum += bytes as u64;
        }
        sum
    }

    fn within(share: f64, got: u64, expected: f64) {
        assert!(
            (got as f64 - expected).abs() <= share * expected,
            "{got} is not {expected}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn many_share_fairly() {
        let pacer = Pacer::default();
        pacer.limit_total(rate(2 * MB));
        let takers: Vec<_> = (0..7)
            .map(|number| {
                let pace = pacer.connection(Some("eth0"));
                // Some write much at a time, some less: the same share for each.
                let wanted = if number % 2 == 0 { 256 } else { 64 } * 1024;
                tokio::spawn(send_for(pace, Duration::from_secs(20), wanted))
            })
            .collect();
        let mut all = 0;
        for taker in takers {
            let sum = taker.await.unwrap();
            within(0.05, sum, 40e6 / 7.0);
            all += sum;
        }
        within(0.02, all, 40e6);
    }

    #[tokio::test(start_paused = true)]
    async fn every_level_is_passed() {
        let pacer = Pacer::default();
        pacer.limit_total(rate(3 * MB));
        pacer.limit_interface("wlan0", rate(2 * MB));
        pacer.limit_each_connection(rate(MB));
        let ten = Duration::from_secs(10);
        let alone = tokio::spawn(send_for(pacer.connection(None), ten, 100_000));
        within(0.02, alone.await.unwrap(), 10e6);
        let three: Vec<_> = (0..3)
            .map(|_| tokio::spawn(send_for(pacer.connection(Some("wlan0")), ten, 100_000)))
            .collect();
        let mut sum = 0;
        for one in three {
            sum += one.await.unwrap();
        }
        within(0.02, sum, 20e6);
        let mixed: Vec<_> = (0..8)
            .map(|number| {
                let interface = if number < 4 { "wlan0" } else { "eth0" };
                tokio::spawn(send_for(pacer.connection(Some(interface)), ten, 100_000))
            })
            .collect();
        let mut sum = 0;
        for one in mixed {
            sum += one.await.unwrap();
        }
        within(0.02, sum, 30e6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_reaches_those_that_wait() {
        let pacer = Pacer::default();
        pacer.limit_total(rate(1));
        let pace = pacer.connection(None);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move {
                    pace.grant(1000).await;
                    Instant::now()
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let changed = Instant::now();
        pacer.limit_total(None);
        for one in waiting {
            assert_eq!(one.await.unwrap(), changed);
        }
        // And back: from now on it is slow again, without a last gulp.
        pacer.limit_total(rate(MB));
        let first = send_for(pace.clone(), Duration::from_secs(10), 1 << 20).await;
        within(0.02, first, 10e6);
        pacer.limit_politely(rate(MB / 10));
        assert_eq!(pacer.total(), rate(MB / 10));
        let second = send_for(pace.clone(), Duration::from_secs(10), 1 << 20).await;
        within(0.02, second, 1e6);
        pacer.limit_politely(None);
        assert_eq!(pacer.total(), rate(MB));
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_takes_nothing_and_blocks_nobody() {
        let pacer = Pacer::default();
        pacer.limit_total(rate(MB));
        let pace = pacer.connection(None);
        let began = Instant::now();
        let mut sum = 0;
        while began.elapsed() < Duration::from_secs(10) {
            // One that never waits long enough, before one that does.
            let hasty = tokio::time::timeout(Duration::from_millis(1), pace.grant(1 << 20));
            sum += hasty.await.unwrap_or(0);
            sum += pace.grant(1 << 20).await;
        }
        within(0.02, sum as u64, 10e6);
    }

    #[tokio::test]
    async fn without_a_limit_nothing_waits() {
        let pacer = Pacer::default();
        let pace = pacer.connection(Some("eth0"));
        assert!(pace.is_unlimited());
        assert_eq!(pace.grant(usize::MAX).now_or_never(), Some(usize::MAX));
        assert_eq!(pace.grant(0).now_or_never(), Some(0));
    }
}
