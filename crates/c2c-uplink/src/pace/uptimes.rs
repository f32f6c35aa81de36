//! How long the link usually stays up, learned from its interruptions.
//!
//! Invariants: only time in which the link was up counts; several transfers that break of one cause are one interruption; the
//! present uptime counts, too, before it has ended; what is old is forgotten.

use std::time::Duration;

/// Learns how long the link stays up.
///
/// Counts interruptions and the time in which the link was up, both forgotten with a half-life of ten minutes of uptime. Pure:
/// the time since any fixed moment is passed in and must not run backwards; what does is taken for no time at all.
#[derive(Clone, Debug, Default)]
pub struct Uptimes {
    up_since: Option<Duration>,
    /// Seconds.
    up: f64,
    interruptions: f64,
    last: Option<Duration>,
}

/// What is older counts half.
const HALF_LIFE: f64 = 600.0;
/// Several transfers break of one cause.
const SAME: Duration = Duration::from_secs(5);
/// Seconds of uptime believed in beforehand, so that one early break does not mean a line that breaks all the time.
const BELIEF: f64 = 60.0;

impl Uptimes {
    /// The link came up.
    pub fn up(&mut self, now: Duration) {
        self.account(now);
        self.up_since = Some(now);
    }

    /// The link went down. It was an interruption if it was up.
    pub fn down(&mut self, now: Duration) {
        if self.up_since.is_some() {
            self.account(now);
            self.up_since = None;
            self.count(now);
        }
    }

    /// A transfer was broken off by the link, which may be up again already.
    pub fn fault(&mut self, now: Duration) {
        self.account(now);
        self.count(now);
    }

    /// The usual time between two interruptions; `None` if there was none, or none for long.
    #[must_use]
    pub fn typical(&self, now: Duration) -> Option<Duration> {
        let mut current = self.clone();
        current.account(now);
        if current.interruptions < 0.1 {
            return None;
        }
        let seconds = (current.up + BELIEF) / (current.interruptions + 0.5);
        Some(Duration::from_secs_f64(seconds.min(86_400.0)))
    }

    fn count(&mut self, now: Duration) {
        if self
            .last
            .is_none_or(|last| now.saturating_sub(last) >= SAME)
        {
            self.interruptions += 1.0;
        }
        self.last = Some(now);
    }

    fn account(&mut self, now: Duration) {
        let Some(since) = self.up_since else { return };
        let seconds = now.saturating_sub(since).as_secs_f64();
        let kept = 0.5_f64.powf(seconds / HALF_LIFE);
        self.interruptions *= kept;
        self.up = self.up * kept + seconds * (1.0 + kept) / 2.0;
        self.up_since = Some(now.max(since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_are_learned_and_forgotten() {
        let at = Duration::from_secs;
        let mut uptimes = Uptimes::default();
        assert_eq!(uptimes.typical(at(0)), None);
        uptimes.down(at(0));
        uptimes.up(at(1));
        assert_eq!(uptimes.typical(at(1000)), None, "never interrupted");
        // 20 s up, 2 s down.
        let mut now = 1000;
        uptimes.down(at(now));
        for _ in 0..60 {
            uptimes.up(at(now + 2));
            now += 22;
            uptimes.down(at(now));
            // All four transfers say so, too.
            for _ in 0..4 {
                uptimes.fault(at(now + 1));
            }
        }
        let typical = uptimes.typical(at(now)).unwrap().as_secs();
        assert!((18..32).contains(&typical), "{typical}");
        // Then it holds, and time heals.
        uptimes.up(at(now + 2));
        let mut before = typical;
        for minutes in [5, 10, 20, 40] {
            let later = uptimes.typical(at(now + minutes * 60)).unwrap().as_secs();
            assert!(later > before, "{later} after {minutes} minutes");
            before = later;
        }
        assert_eq!(uptimes.typical(at(now + 86_400)), None);
    }

    #[test]
    fn one_early_break_is_no_habit() {
        let mut uptimes = Uptimes::default();
        uptimes.up(Duration::ZERO);
        uptimes.fault(Duration::from_secs(2));
        let typical = uptimes.typical(Duration::from_secs(2)).unwrap();
        assert!(typical > Duration::from_secs(30), "{typical:?}");
    }
}
