//! How fast it went, and so how long it may take.
//!
//! Invariants: only time in which there was something to send counts; nothing is foretold before two seconds of it were seen,
//! nor while nothing moves; the range holds its own middle. Pure: the time is passed in.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// When everything will be through, as a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EtaRange {
    /// Seconds left if it goes as well as in the good stretches of the last minutes.
    pub soonest: u64,
    /// Seconds left if it goes as badly as in the bad ones.
    pub latest: u64,
}

/// What was foretold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forecast {
    pub(crate) middle: u64,
    pub(crate) range: EtaRange,
}

/// The last minutes, second by second.
#[derive(Debug, Default)]
pub(crate) struct Past {
    last: Option<(Duration, u64)>,
    /// Bytes of each whole second in which there was work, the latest one last.
    seconds: VecDeque<f64>,
    /// Bytes of the second that is not over, and how much of it is.
    begun: (f64, f64),
}

/// Seconds that are remembered.
const MEMORY: usize = 300;
/// Seconds that the present rate is taken over.
const PRESENT: usize = 10;
/// Nothing is foretold from less.
const LEAST: f64 = 2.0;
/// The past is cut into this many stretches, and the second best and second worst of ten are taken.
const STRETCHES: usize = 10;
const QUANTILE: f64 = 0.2;

impl Past {
    /// Takes in how far everything is by now. `working`: there is something to send.
    pub(crate) fn note(&mut self, now: Duration, total: u64, working: bool) {
        let Some((at, before)) = self.last.replace((now, total)) else {
            return;
        };
        if !working || now <= at {
            return;
        }
        // What has to be sent again was taken back, and is no progress when it comes again; but what others sent meanwhile is.
        let gained = total.saturating_sub(before) as f64;
        let span = (now - at).as_secs_f64();
        let per_second = gained / span;
        let mut left = span.min(MEMORY as f64 + 1.0);
        while left > 0.0 {
            let part = left.min(1.0 - self.begun.1);
            self.begun.0 += per_second * part;
            self.begun.1 += part;
            left -= part;
            if self.begun.1 >= 1.0 - 1e-9 {
                self.seconds.push_back(self.begun.0);
                self.begun = (0.0, 0.0);
                if self.seconds.len() > MEMORY {
                    self.seconds.pop_front();
                }
            }
        }
    }

    /// Bytes per second over the last ten seconds; 0 while nothing is known.
    pub(crate) fn rate(&self) -> u64 {
        let (bytes, span) = self.present();
        if span < 0.2 { 0 } else { (bytes / span) as u64 }
    }

    /// Nothing was acknowledged for ten seconds, although there was work.
    pub(crate) fn is_stalled(&self) -> bool {
        let (bytes, span) = self.present();
        span >= PRESENT as f64 - 0.01 && bytes < 1.0
    }

    /// When `left` bytes will be through.
    pub(crate) fn foretell(&self, left: u64) -> Option<Forecast> {
        if left == 0 {
            let range = EtaRange {
                soonest: 0,
                latest: 0,
            };
            return Some(Forecast { middle: 0, range });
        }
        let observed = self.seconds.len() as f64 + self.begun.1;
        if observed < LEAST || self.is_stalled() {
            return None;
        }
        // Looking back as far as ahead: what comes in the next minute is told by the last one, not by the last five.
        let left = left as f64;
        let mut reach = 30;
        let mut mean = self.mean(reach);
        if mean > 0.0 {
            reach = ((left / mean) as usize).clamp(30, MEMORY);
        } else {
            reach = MEMORY;
        }
        mean = self.mean(reach);
        if mean <= 0.0 {
            return None;
        }
        let middle = left / mean;
        let (bad, good) = self.quantiles(reach)?;
        // The further ahead of what was seen, the less it tells.
        let wider = 1.0 + 0.1 * (1.0 + middle / observed.min(reach as f64)).log2();
        let good = good.max(mean) * wider;
        // Stretches without a byte happen; for ever they do not last.
        let bad = (bad.min(mean) / wider).max(mean / 4.0);
        Some(Forecast {
            middle: middle.ceil() as u64,
            range: EtaRange {
                soonest: (left / good).floor() as u64,
                latest: (left / bad).ceil() as u64,
            },
        })
    }

    fn present(&self) -> (f64, f64) {
        let recent = self.seconds.iter().rev().take(PRESENT);
        let bytes: f64 = recent.clone().sum();
        (bytes + self.begun.0, recent.count() as f64 + self.begun.1)
    }

    fn mean(&self, reach: usize) -> f64 {
        let bytes: f64 = self.seconds.iter().rev().take(reach).sum();
        bytes / self.seconds.len().min(reach).max(1) as f64
    }

    /// The rate of a bad and of a good stretch.
    fn quantiles(&self, reach: usize) -> Option<(f64, f64)> {
        let seen = self.seconds.len().min(reach);
        let length = seen.div_ceil(STRETCHES).max(1);
        let recent: Vec<f64> = self.seconds.iter().rev().take(seen).copied().collect();
        let mut rates: Vec<f64> = recent
            .chunks(length)
            .map(|stretch| stretch.iter().sum::<f64>() / stretch.len() as f64)
            .collect();
        rates.sort_by(f64::total_cmp);
        let last = rates.len().checked_sub(1)?;
        let bad = (last as f64 * QUANTILE).round() as usize;
        Some((rates[bad], rates[last - bad]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks ten times a second.
    struct Watch {
        past: Past,
        now: Duration,
        total: u64,
    }

    impl Watch {
        fn new() -> Watch {
            let mut past = Past::default();
            past.note(Duration::ZERO, 0, true);
            Watch {
                past,
                now: Duration::ZERO,
                total: 0,
            }
        }

        fn go(&mut self, seconds: u64, rate: u64) {
            for _ in 0..seconds * 10 {
                self.now += Duration::from_millis(100);
                self.total += rate / 10;
                self.past.note(self.now, self.total, true);
            }
        }

        fn range(&self, left: u64) -> Option<(u64, u64)> {
            let range = self.past.foretell(left)?.range;
            Some((range.soonest, range.latest))
        }
    }

    #[test]
    fn nothing_is_known_at_first() {
        let mut watch = Watch::new();
        assert_eq!((watch.past.rate(), watch.range(1000)), (0, None));
        watch.go(1, 1000);
        assert_eq!((watch.past.rate(), watch.range(1000)), (1000, None));
        watch.go(2, 1000);
        assert!(watch.range(1000).is_some());
        assert_eq!(watch.range(0), Some((0, 0)));
    }

    #[test]
    fn a_steady_line_has_a_narrow_range() {
        let mut watch = Watch::new();
        watch.go(60, 1_000_000);
        assert_eq!(watch.past.rate(), 1_000_000);
        let near = watch.past.foretell(30_000_000).unwrap();
        assert_eq!(near.middle, 30);
        assert_eq!((near.range.soonest, near.range.latest), (27, 33));
        // An hour ahead, seen for a minute.
        let far = watch.past.foretell(3_600_000_000).unwrap();
        assert_eq!(far.middle, 3600);
        assert!(
            far.range.soonest < 2_400 && far.range.latest > 5_000,
            "{far:?}"
        );
    }

    #[test]
    fn a_moody_line_has_a_wide_range() {
        let mut watch = Watch::new();
        for _ in 0..10 {
            watch.go(20, 2_000_000);
            watch.go(10, 500_000);
        }
        let told = watch.past.foretell(300_000_000).unwrap();
        let range = told.range;
        assert!((195..=205).contains(&told.middle), "{told:?}");
        assert!(range.soonest < 150 && range.latest > 240, "{told:?}");
    }

    #[test]
    fn a_stall_is_seen_and_forgotten() {
        let mut watch = Watch::new();
        watch.go(60, 1_000_000);
        watch.go(8, 0);
        assert!(!watch.past.is_stalled());
        assert!(watch.range(1_000_000).is_some());
        watch.go(4, 0);
        assert!(watch.past.is_stalled());
        assert_eq!((watch.past.rate(), watch.range(1_000_000)), (0, None));
        watch.go(1, 1_000_000);
        assert!(!watch.past.is_stalled());
        assert!(watch.range(1_000_000).is_some());
    }

    #[test]
    fn idle_time_does_not_count() {
        let mut watch = Watch::new();
        watch.go(20, 1_000_000);
        let before = watch.range(50_000_000);
        for _ in 0..1000 {
            watch.now += Duration::from_secs(1);
            watch.past.note(watch.now, watch.total, false);
        }
        assert_eq!(watch.range(50_000_000), before);
        assert_eq!(watch.past.rate(), 1_000_000);
    }

    #[test]
    fn what_is_sent_again_does_not_stop_the_rest() {
        let mut watch = Watch::new();
        watch.go(20, 1_000_000);
        watch.total -= 5_000_000;
        watch.go(10, 1_000_000);
        let rate = watch.past.rate();
        assert!((950_000..=1_000_000).contains(&rate), "{rate}");
    }

    #[test]
    fn rare_looks_are_enough() {
        let mut past = Past::default();
        for minutes in 0..20_u64 {
            past.note(Duration::from_secs(minutes * 60), minutes * 60_000, true);
        }
        assert_eq!(past.rate(), 1000);
        assert_eq!(past.foretell(10_000).unwrap().middle, 10);
        past.note(Duration::from_secs(1_000_000_000), 2_000_000, true);
        assert_eq!(past.seconds.len(), MEMORY);
    }

    proptest! {
        #[test]
        fn the_range_holds_its_middle(
            steps in prop::collection::vec((1_u64..20, 0_u64..100_000_000), 1..60),
            left: u64,
        ) {
            let mut watch = Watch::new();
            for (seconds, rate) in steps {
                watch.now += Duration::from_secs(seconds);
                watch.total += rate * seconds;
                watch.past.note(watch.now, watch.total, true);
            }
            if let Some(told) = watch.past.foretell(left) {
                prop_assert!(told.range.soonest <= told.middle);
                prop_assert!(told.middle <= told.range.latest);
            }
        }
    }
}
