//! The time the simulated service lives in.
//!
//! Invariants: time never runs backwards; every decision of the service (code and token life, pause windows,
//! URL expiry, presence, delays of faults) reads this clock and no other; only the `Date` header may be told
//! to lie, see [`SimClock::set_date_skew`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// A clock that can run faster than the wall, stand still, or be moved forward by hand. Clones share one time.
#[derive(Clone)]
pub struct SimClock {
    shared: Arc<Shared>,
}

struct Shared {
    base: Mutex<Base>,
    /// Bumped whenever the clock is moved by hand, so that sleepers look again.
    moved: watch::Sender<u64>,
}

struct Base {
    real: Instant,
    at: SystemTime,
    factor: f64,
    skew_secs: i64,
}

impl SimClock {
    /// The time of this machine, at its own pace.
    pub fn real() -> Self {
        Self::starting_at(SystemTime::now(), 1.0)
    }

    /// Starts at the time of this machine and runs `factor` times as fast. `0.0` stands still and moves only by
    /// [`SimClock::advance`]; negative and non-finite factors count as `0.0`.
    pub fn scaled(factor: f64) -> Self {
        Self::starting_at(SystemTime::now(), factor)
    }

    /// Starts at `at` and runs `factor` times as fast as the wall (see [`SimClock::scaled`]).
    pub fn starting_at(at: SystemTime, factor: f64) -> Self {
        let factor = if factor.is_finite() && factor > 0.0 {
            factor
        } else {
            0.0
        };
        let base = Base {
            real: Instant::now(),
            at,
            factor,
            skew_secs: 0,
        };
        Self {
            shared: Arc::new(Shared {
                base: Mutex::new(base),
                moved: watch::Sender::new(0),
            }),
        }
    }

    /// The simulated moment.
    pub fn now(&self) -> SystemTime {
        self.with(|base| base.at + base.real.elapsed().mul_f64(base.factor))
    }

    /// Moves the clock forward and wakes whoever sleeps on it.
    pub fn advance(&self, by: Duration) {
        self.with(|base| base.at += by);
        self.shared.moved.send_modify(|count| *count += 1);
    }

    /// Seconds added to the time claimed by `Date` headers, and to nothing else.
    pub fn set_date_skew(&self, secs: i64) {
        self.with(|base| base.skew_secs = secs);
    }

    /// The seconds set by [`SimClock::set_date_skew`].
    pub fn date_skew(&self) -> i64 {
        self.with(|base| base.skew_secs)
    }

    /// What a `Date` header says now.
    pub(crate) fn claimed_date(&self) -> SystemTime {
        let skew = self.date_skew();
        let by = Duration::from_secs(skew.unsigned_abs());
        let now = self.now();
        let shifted = if skew < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        shifted
            .filter(|at| *at >= SystemTime::UNIX_EPOCH)
            .unwrap_or(now)
    }

    /// Sleeps until the simulated clock has moved by `span`, be it by running or by [`SimClock::advance`].
    pub async fn sleep(&self, span: Duration) {
        self.sleep_until(self.now() + span).await;
    }

    /// Sleeps until the simulated clock shows `until`.
    pub async fn sleep_until(&self, until: SystemTime) {
        let mut moved = self.shared.moved.subscribe();
        loop {
            moved.mark_unchanged();
            let Ok(left) = until.duration_since(self.now()) else {
                return;
            };
            if left.is_zero() {
                return;
            }
            let factor = self.with(|base| base.factor);
            let real = if factor > 0.0 {
                (left.as_secs_f64() / factor).min(86_400.0)
            } else {
                f64::INFINITY
            };
            let by_running = async {
                if real.is_finite() {
                    tokio::time::sleep(Duration::from_secs_f64(real)).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = by_running => {}
                changed = moved.changed() => if changed.is_err() { return },
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Base) -> T) -> T {
        act(&mut self
            .shared
            .base
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::real()
    }
}

impl fmt::Debug for SimClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimClock")
            .field("now", &stamp(self.now()))
            .finish_non_exhaustive()
    }
}

/// RFC 3339 in UTC with microseconds, as the service writes its timestamps.
pub(crate) fn stamp(at: SystemTime) -> String {
    format!("{:.6}", timestamp(at))
}

/// RFC 3339 in UTC with whole seconds.
pub(crate) fn stamp_secs(at: SystemTime) -> String {
    format!("{:.0}", timestamp(at))
}

pub(crate) fn timestamp(at: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Serialises moments as RFC 3339 text.
pub(crate) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        at: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::stamp(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<jiff::Timestamp>()
            .map(SystemTime::from)
            .map_err(D::Error::custom)
    }

    /// The same for a moment that may be absent.
    pub(crate) mod option {
        use std::time::SystemTime;

        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        pub(crate) fn serialize<S: Serializer>(
            at: &Option<SystemTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => super::serialize(at, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            let parsed = text.map(|text| text.parse::<jiff::Timestamp>().map(SystemTime::from));
            parsed.transpose().map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_stands_still_moves_by_hand_only() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = SimClock::starting_at(start, 0.0);
        assert_eq!(clock.now(), start);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3_600)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(3_599));
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now(), start + Duration::from_secs(3_600));
    }

    #[tokio::test]
    async fn a_fast_clock_sleeps_less() {
        let clock = SimClock::scaled(10_000.0);
        let (real, simulated) = (Instant::now(), clock.now());
        clock.sleep(Duration::from_secs(100)).await;
        assert!(clock.now().duration_since(simulated).unwrap() >= Duration::from_secs(100));
        assert!(real.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn only_the_date_header_is_skewed() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = SimClock::starting_at(start, 0.0);
        clock.set_date_skew(-86_400);
        assert_eq!(clock.claimed_date(), start - Duration::from_secs(86_400));
        assert_eq!(clock.now(), start);
        assert_eq!(stamp(start), "2023-11-14T22:13:20.000000Z");
    }
}
