//! Leaves the line to others when they need it.
//!
//! The round trip to the first hop tells how long packets wait on the way out of this unit; that of the upload connections, how
//! long they wait behind a router, too. While both are near their best nobody waits for us. When it grows, somebody does: either the queue is ours, then sending a little less than the line carries
//! empties it; or it is fed by others, then it does not empty, and we step back until it does.
//!
//! Invariants: never below the floor, so that work goes on; only what was seen within the last minutes counts as the best round
//! trip, so that another route does not silence us for good; a lost probe says nothing by itself. Pure: the time since any
//! fixed moment is passed in.

use std::collections::VecDeque;
use std::time::Duration;

/// One look at the line. About five a second are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Time since any fixed moment.
    pub now: Duration,
    /// The round trip to the first hop; `None` if the probe was lost, and where there is no first hop.
    pub first_hop: Option<Duration>,
    /// The smoothed round trip of the upload connections; `None` if the system does not tell.
    pub connections: Option<Duration>,
    /// What this unit got through in the last half second or so, in bytes per second.
    pub goodput: u64,
}

/// How polite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoliteRule {
    /// Never below this, in bytes per second.
    pub floor: u64,
    /// The delay over the best round trip that is nobody's trouble, on a line without noise.
    pub least_target: Duration,
    /// The same on the noisiest line.
    pub most_target: Duration,
}

impl Default for PoliteRule {
    fn default() -> PoliteRule {
        PoliteRule {
            floor: 32 * 1024,
            least_target: Duration::from_millis(25),
            most_target: Duration::from_millis(50),
        }
    }
}

/// Decides how fast we may be. Without trouble there is no limit at all.
#[derive(Clone, Debug)]
pub struct Polite {
    rule: PoliteRule,
    best_first_hop: Best,
    best_connections: Best,
    /// The last delays; the smallest of them is believed, because noise only ever adds.
    recent: VecDeque<f64>,
    /// Mean of the delay and of its distance from that mean, in seconds, while nothing is wrong.
    usual: Option<(f64, f64)>,
    allowed: Option<f64>,
    /// The most that the line carried lately.
    high: f64,
    /// Since when nobody waits.
    calm: Option<Duration>,
    /// We stepped back for others, not for our own queue.
    yielded: bool,
    /// Our own queue needs until then to become empty.
    emptying: Duration,
    /// What we got through when we first stepped back. If the queue empties before its time is over, it was ours alone.
    before: Option<f64>,
    /// When a queue was found to have been ours alone.
    cleared: Option<Duration>,
    /// More than enough was allowed, since then.
    unused: Option<Duration>,
    last_look: Option<Duration>,
    last_answer: Option<Duration>,
    last_delay: f64,
}

/// Noise has to last as long as this many looks to be taken for a queue.
const BELIEVED: usize = 3;
/// Without an answer for this long we may grow, as if there were no probe.
const BLIND: Duration = Duration::from_secs(10);
/// After this many seconds without trouble we begin to come back.
const PATIENCE: f64 = 2.0;
/// The share of what the line carried that empties our own queue.
const EASE: f64 = 0.9;
/// The share that is left each time others seem to wait.
const YIELD: f64 = 0.2;
/// What is handed over already goes on for this long after a step back, in seconds.
const BACKLOG: f64 = 0.6;
/// A queue that seemed to be ours and is back sooner than this was not.
const DOUBTED: Duration = Duration::from_secs(15);

impl Polite {
    /// Begins without a limit.
    #[must_use]
    pub fn new(rule: PoliteRule) -> Polite {
        Polite {
            rule,
            best_first_hop: Best::default(),
            best_connections: Best::default(),
            recent: VecDeque::with_capacity(BELIEVED),
            usual: None,
            allowed: None,
            high: 0.0,
            calm: None,
            yielded: false,
            emptying: Duration::ZERO,
            before: None,
            cleared: None,
            unused: None,
            last_look: None,
            last_answer: None,
            last_delay: 0.0,
        }
    }

    /// Another network, another first hop: what was learned is of no use. The limit stays until the next looks.
    pub fn network_changed(&mut self) {
        *self = Polite {
            allowed: self.allowed,
            last_look: self.last_look,
            ..Polite::new(self.rule)
        };
    }

    /// What is allowed now, in bytes per second; `None` is no limit.
    #[must_use]
    pub fn allowed(&self) -> Option<u64> {
        self.allowed.map(|rate| rate as u64)
    }

    /// Takes in a look; what is allowed from now on.
    pub fn look(&mut self, look: Look) -> Option<u64> {
        let now = look.now;
        let last = self.last_look.replace(now).unwrap_or(now);
        let passed = now.saturating_sub(last).as_secs_f64().min(1.0);
        let goodput = look.goodput as f64;
        self.high = goodput.max(self.high * (-passed / 300.0).exp());
        let delays = [
            look.first_hop.map(|it| self.best_first_hop.delay(now, it)),
            look.connections
                .map(|it| self.best_connections.delay(now, it)),
        ];
        // Wherever packets wait, somebody waits.
        let Some(delay) = delays.into_iter().flatten().reduce(f64::max) else {
            let answered = *self.last_answer.get_or_insert(now);
            if now.saturating_sub(answered) >= BLIND {
                self.grow(now, passed, goodput);
            }
            return self.allowed();
        };
        self.last_answer = Some(now);
        if self.recent.len() == BELIEVED {
            self.recent.pop_front();
        }
        self.recent.push_back(delay);
        let falls = delay < self.last_delay - 0.3 * passed;
        self.last_delay = delay;
        let believed = if self.recent.len() < BELIEVED {
            0.0
        } else {
            self.recent.iter().copied().fold(f64::INFINITY, f64::min)
        };
        let target = self.target();
        if believed > 2.0 * target {
            self.calm = None;
            self.unused = None;
            // A queue that becomes shorter needs no less from us; one that had the time to and does not is not ours alone.
            if !falls && (!self.yielded || now >= self.emptying) {
                self.before = match self.yielded {
                    true => None,
                    false => Some(goodput),
                };
                self.yielded = true;
                self.cut(YIELD, goodput);
                let needs = believed / (1.0 - YIELD) + BACKLOG;
                self.emptying = now + Duration::from_secs_f64(needs.min(2.5));
            }
        } else if believed > target {
            self.calm = None;
            self.unused = None;
            if now >= self.emptying {
                self.yielded = false;
                self.cut(EASE, goodput);
                let needs = believed / (1.0 - EASE) + 0.4;
                self.emptying = now + Duration::from_secs_f64(needs.min(2.5));
            }
        } else {
            self.calm.get_or_insert(now);
            if let Some(before) = self.before.take() {
                self.clear(now, before);
            }
            self.note_usual(delay, passed);
            self.grow(now, passed, goodput);
        }
        self.allowed()
    }

    /// The queue went as soon as we stepped back: nobody else fed it, and the line carries what it carried.
    fn clear(&mut self, now: Duration, before: f64) {
        let doubted = |cleared: Duration| now.saturating_sub(cleared) < DOUBTED;
        if self.cleared.is_none_or(|cleared| !doubted(cleared)) {
            self.yielded = false;
            self.allowed = self.allowed.map(|rate| rate.max(EASE * before));
        }
        self.cleared = Some(now);
    }

    fn target(&self) -> f64 {
        let noise = self.usual.map_or(0.0, |(_, noise)| noise);
        let least = self.rule.least_target.as_secs_f64();
        let most = self.rule.most_target.as_secs_f64().max(least);
        (least + 1.5 * noise).min(most)
    }

    fn note_usual(&mut self, delay: f64, passed: f64) {
        let (mean, noise) = self.usual.unwrap_or((delay, 0.0));
        let weight = 1.0 - (-passed / 5.0).exp();
        let off = (delay - mean).abs();
        self.usual = Some((
            mean + weight * (delay - mean),
            noise + weight * (off - noise),
        ));
    }

    fn cut(&mut self, share: f64, goodput: f64) {
        let from = self.allowed.map_or(goodput, |rate| rate.min(goodput));
        self.allowed = Some((from * share).max(self.rule.floor as f64));
    }

    fn grow(&mut self, now: Duration, passed: f64, goodput: f64) {
        let Some(rate) = self.allowed else { return };
        // What is not used says nothing about the line: no more of it, and in the end no limit at all.
        if goodput < 0.5 * rate && rate > 2.0 * self.rule.floor as f64 {
            let since = *self.unused.get_or_insert(now);
            if now.saturating_sub(since) >= Duration::from_secs(10) {
                self.allowed = None;
                self.unused = None;
            }
            return;
        }
        self.unused = None;
        let calm = self.calm.map_or(f64::INFINITY, |since| {
            now.saturating_sub(since).as_secs_f64()
        });
        // Shares per second. The longer it is calm, the bolder; but near what the line carried, carefully.
        let step: f64 = match (self.yielded, rate < 0.8 * self.high) {
            (true, _) if calm < PATIENCE => 0.0,
            (true, true) => 0.25 * ((calm - PATIENCE) / 1.5).exp2(),
            (false, true) => 0.03 * (calm / 1.5).exp2(),
            (_, false) => {
                self.yielded = false;
                0.03 * ((calm - 20.0).max(0.0) / 5.0).exp2()
            }
        };
        self.allowed = Some(rate * (step.min(0.7) * passed).exp());
    }
}

/// The best round trip of the last minutes.
#[derive(Clone, Debug, Default)]
struct Best {
    /// The smallest of each span, with the begin of the span.
    spans: VecDeque<(Duration, f64)>,
}

const SPAN: Duration = Duration::from_secs(20);
const SPANS: usize = 10;

impl Best {
    /// How much longer than the best this one is, in seconds.
    fn delay(&mut self, now: Duration, round_trip: Duration) -> f64 {
        let round_trip = round_trip.as_secs_f64();
        match self.spans.back_mut() {
            Some((begun, best)) if now.saturating_sub(*begun) < SPAN => {
                *best = best.min(round_trip)
            }
            _ => self.spans.push_back((now, round_trip)),
        }
        while self.spans.len() > SPANS {
            self.spans.pop_front();
        }
        let best = self.spans.iter().map(|(_, best)| *best);
        round_trip - best.fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 Mbit/s.
    const LINE: f64 = 2_500_000.0;
    const STEP: f64 = 0.01;
    /// Four connections with 256 KiB each.
    const HANDED_OVER: f64 = 1_048_576.0;

    /// What somebody else sends.
    #[derive(Clone, Copy)]
    enum Other {
        Nothing,
        /// Always the same, as a call or a broadcast.
        Constant(f64),
        /// More and more until the queue is full, then half, as an ordinary upload.
        Greedy(f64),
    }

    /// A line with one queue, where bytes wait in order.
    struct Line {
        now: f64,
        queue: VecDeque<(f64, f64)>,
        queued: f64,
        /// Seconds.
        room: f64,
        base: f64,
        noise: f64,
        /// The share of looks that take up to 300 ms longer, as where a radio sleeps or sends again.
        spikes: f64,
        lost: f64,
        other: Other,
        /// The queue is behind a router: the first hop does not see it, the connections do.
        router: bool,
        /// Bytes of ours that the kernel has and no limit holds back any more.
        handed_over: f64,
        random: fastrand::Rng,
        polite: Polite,
        /// Of the last half second.
        passed: VecDeque<f64>,
    }

    /// What became of a stretch of time.
    #[derive(Debug)]
    struct Seen {
        share: f64,
        /// The mean time that a byte waited.
        waited: f64,
        others: f64,
    }

    impl Line {
        fn new(room: f64) -> Line {
            Line {
                now: 0.0,
                queue: VecDeque::new(),
                queued: 0.0,
                room,
                base: 0.010,
                noise: 0.002,
                spikes: 0.0,
                lost: 0.0,
                other: Other::Nothing,
                router: false,
                handed_over: 0.0,
                random: fastrand::Rng::with_seed(7),
                polite: Polite::new(PoliteRule::default()),
                passed: VecDeque::new(),
            }
        }

        fn run(&mut self, seconds: f64) -> Seen {
            let steps = (seconds / STEP).round() as usize;
            let (mut ours, mut waited, mut others) = (0.0, 0.0, 0.0);
            for _ in 0..steps {
                let (own, other) = self.step();
                ours += own;
                others += other;
                waited += self.queued / LINE;
            }
            Seen {
                share: ours / (seconds * LINE),
                waited: waited / steps as f64,
                others: others / (seconds * LINE),
            }
        }

        fn step(&mut self) -> (f64, f64) {
            // Without a limit we fill whatever there is, as TCP does; and a limit comes late by what was handed over before.
            let allowed = self.polite.allowed.unwrap_or(f64::INFINITY) * STEP;
            self.handed_over += allowed.min((HANDED_OVER - self.handed_over).max(0.0));
            let ours = self.handed_over.min(1.3 * LINE * STEP);
            self.handed_over -= ours;
            let theirs = match &mut self.other {
                Other::Nothing => 0.0,
                Other::Constant(rate) => *rate * STEP,
                Other::Greedy(rate) => {
                    *rate = (*rate + 0.8 * LINE * STEP).min(1.2 * LINE);
                    if self.queued > 0.95 * self.room * LINE {
                        *rate /= 2.0;
                    }
                    *rate * STEP
                }
            };
            let fits = (self.room * LINE - self.queued).max(0.0);
            let scale = (fits / (ours + theirs).max(1.0)).min(1.0);
            self.queue.push_back((ours * scale, theirs * scale));
            self.queued += (ours + theirs) * scale;
            let (mut own, mut other, mut left) = (0.0, 0.0, LINE * STEP);
            while left > 1e-6
                && let Some(front) = self.queue.front_mut()
            {
                let both = front.0 + front.1;
                let part = if both > left { left / both } else { 1.0 };
                own += front.0 * part;
                other += front.1 * part;
                left -= both * part;
                self.queued -= both * part;
                front.0 *= 1.0 - part;
                front.1 *= 1.0 - part;
                if part >= 1.0 {
                    self.queue.pop_front();
                }
            }
            self.passed.push_back(own);
            if self.passed.len() > 50 {
                self.passed.pop_front();
            }
            let before = self.now;
            self.now += STEP;
            if (self.now / 0.2).floor() > (before / 0.2).floor() {
                let mut noise = (self.random.f64() * 2.0 - 1.0) * self.noise;
                if self.random.f64() < self.spikes {
                    noise += self.random.f64() * 0.3;
                }
                let waits = self.queued / LINE;
                let hop = self.base + noise + if self.router { 0.0 } else { waits };
                let connections = Duration::from_secs_f64(0.050 + waits);
                let goodput = self.passed.iter().sum::<f64>() / (self.passed.len() as f64 * STEP);
                self.polite.look(Look {
                    now: Duration::from_secs_f64(self.now),
                    first_hop: (self.random.f64() >= self.lost)
                        .then(|| Duration::from_secs_f64(hop.max(0.0005))),
                    connections: self.router.then_some(connections),
                    goodput: goodput as u64,
                });
            }
            (own, other)
        }
    }

    #[test]
    fn alone_on_a_line_with_a_long_queue() {
        for room in [0.3, 1.0, 3.0] {
            let mut line = Line::new(room);
            // The first seconds have to find out.
            let start = line.run(15.0);
            println!("{room}: {start:?}");
            assert!(start.share > 0.7, "{room}: {start:?}");
            let seen = line.run(120.0);
            assert!(seen.share >= 0.85, "{room}: {seen:?}");
            assert!(seen.waited < 0.06, "{room}: {seen:?}");
        }
    }

    #[test]
    fn alone_on_a_line_without_a_queue_there_is_no_limit() {
        let mut line = Line::new(0.02);
        let seen = line.run(60.0);
        assert!(seen.share > 0.99, "{seen:?}");
        assert_eq!(line.polite.allowed(), None);
    }

    #[test]
    fn others_come_and_go() {
        for other in [
            Other::Constant(0.9 * LINE),
            Other::Constant(1.1 * LINE),
            Other::Greedy(0.5 * LINE),
        ] {
            for offset in 0..10 {
                let mut line = Line::new(1.0);
                line.run(40.0 + 0.37 * f64::from(offset));
                line.other = other;
                line.run(1.0);
                let after = line.polite.allowed().unwrap() as f64 / LINE;
                assert!(after <= 0.2, "{after} after a second, {offset}");
                let seen = line.run(30.0);
                assert!(seen.share <= 0.2, "{seen:?}");
                assert!(seen.others >= 0.8, "{seen:?}");
                line.other = Other::Nothing;
                line.run(20.0);
                let seen = line.run(10.0);
                assert!(seen.share >= 0.85, "{seen:?}");
            }
        }
    }

    #[test]
    fn behind_a_router_the_connections_tell() {
        let mut line = Line::new(1.0);
        line.router = true;
        let alone = line.run(40.0);
        assert!(alone.share >= 0.85 && alone.waited < 0.06, "{alone:?}");
        line.other = Other::Greedy(0.5 * LINE);
        line.run(2.0);
        let seen = line.run(30.0);
        assert!(seen.share <= 0.2 && seen.others >= 0.8, "{seen:?}");
    }

    #[test]
    fn noise_is_no_queue() {
        for (lost, spikes) in [(0.0, 0.0), (0.3, 0.0), (0.0, 0.1), (0.1, 0.1)] {
            let mut line = Line::new(1.0);
            (line.base, line.noise) = (0.030, 0.020);
            (line.lost, line.spikes) = (lost, spikes);
            let seen = line.run(300.0);
            assert!(seen.share >= 0.8, "{lost} {spikes}: {seen:?}");
        }
    }

    #[test]
    fn lost_probes_neither_silence_us_nor_make_us_bold() {
        let mut line = Line::new(1.0);
        line.lost = 0.4;
        line.run(30.0);
        let seen = line.run(60.0);
        assert!(seen.share >= 0.85 && seen.waited < 0.15, "{seen:?}");
        line.other = Other::Greedy(0.5 * LINE);
        line.run(3.0);
        let held = line.polite.allowed().unwrap();
        assert!(held as f64 <= 0.2 * LINE, "{held}");
        // Then the first hop does not answer any more: after a while we come back all the same.
        (line.lost, line.other) = (1.0, Other::Nothing);
        line.run(9.0);
        assert!(line.polite.allowed().unwrap() <= held.max(line.polite.rule.floor) + 1);
        line.run(30.0);
        let seen = line.run(10.0);
        assert!(seen.share >= 0.85, "{seen:?}");
    }

    #[test]
    fn the_floor_is_kept_and_another_route_is_learned() {
        let mut line = Line::new(1.0);
        line.run(30.0);
        line.base = 0.150;
        line.run(5.0);
        let rule = PoliteRule::default();
        assert_eq!(line.polite.allowed(), Some(rule.floor));
        line.run(240.0);
        let seen = line.run(60.0);
        assert!(seen.share >= 0.85, "{seen:?}");
        // Known to be another network, it is learned at once.
        line.base = 0.400;
        line.polite.network_changed();
        let seen = line.run(60.0);
        assert!(seen.share >= 0.85, "{seen:?}");
    }

    #[test]
    fn what_nobody_uses_is_no_limit_in_the_end() {
        let mut polite = Polite::new(PoliteRule::default());
        let look = |tenths: u64, millis: u64, goodput: u64| Look {
            now: Duration::from_millis(tenths * 100),
            first_hop: Some(Duration::from_millis(millis)),
            connections: None,
            goodput,
        };
        polite.look(look(0, 5, 1_000_000));
        for tenths in 1..6 {
            polite.look(look(tenths * 2, 500, 1_000_000));
        }
        assert!(polite.allowed().is_some());
        for tenths in 6..150 {
            polite.look(look(tenths * 2, 5, 10_000));
        }
        assert_eq!(polite.allowed(), None);
    }
}
