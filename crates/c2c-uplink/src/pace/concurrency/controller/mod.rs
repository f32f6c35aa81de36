//! The controller itself: samples in, target out.
//!
//! Every number goes through three stages: *staffing* (as many send as should; those too many end with their chunk), *ramp* (new
//! flows find their speed, or the rest takes over what was given up) and *measuring* in windows. A window either confirms what the
//! number brings (its *base*) or judges a *trial* of another number against the base of the one before.

#[cfg(test)]
mod tests;
mod tuning;
mod verdict;

use tuning::*;
use verdict::unlike;

use super::window::{Measure, Window};
use super::{Bounds, Sample, Settled, Why};

/// When a step in one direction may be tried again.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    factor: f64,
    since_ms: u64,
    wait_ms: f64,
}

impl Patience {
    fn failed(&mut self, now: u64, step_ms: f64, least: f64) {
        self.factor = (self.factor * 2.0).clamp(least, PATIENCE_AT_MOST);
        self.since_ms = now;
        self.wait_ms = (PATIENCE * step_ms).max(PATIENCE_MS);
    }

    /// Whether it is over; at the latest after `most` times its unit.
    fn over(&self, now: u64, most: f64) -> bool {
        let wait = self.wait_ms * self.factor.min(most);
        now.saturating_sub(self.since_ms) as f64 >= wait
    }
}

/// A number on trial.
#[derive(Clone, Copy, Debug)]
struct Trial {
    from: u32,
    to: u32,
    base: Measure,
    since_ms: u64,
    /// Not a comparison: the way is long, and those who starve need more. See [`LONG_WAY_MS`].
    faith: bool,
}

/// The time after a step down, until the rest has taken over.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    until_ms: u64,
    last: Option<f64>,
}

/// What the transfers do just now.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Until as many send as should.
    Staffing {
        since_ms: u64,
    },
    /// Until new flows have found their speed, or old ones have taken over what was given up.
    Ramp {
        until_ms: u64,
    },
    Measure,
}

/// Decides how many transfers go on at once. See the module.
#[derive(Clone, Debug)]
pub struct Controller {
    bounds: Bounds,
    start: u32,
    target: u32,
    last_ms: Option<u64>,
    stage: Stage,
    window: Window,
    trial: Option<Trial>,
    recovery: Option<Recovery>,
    /// A climb that seemed not to pay. As long as its transfers go on, they may still prove it wrong.
    doubtful: Option<Trial>,
    /// The last climb clearly brought nothing: a policer, perhaps, not a want of flows.
    flat: bool,
    /// What the present number brings.
    base: Option<Measure>,
    /// Share of the goodput that is left after all that was given up for fewer transfers.
    kept: f64,
    /// The last accepted climb was nearly proportional.
    steep: bool,
    /// This many brought nothing.
    ceiling: Option<u32>,
    /// This many were too few.
    floor: Option<u32>,
    up: Patience,
    down: Patience,
    /// Windows in a row that do not fit to the base.
    unlike: u32,
    silent_ms: u64,
    silent: bool,
    idle_ms: u64,
    srtt_ms: f64,
    round_trips: u32,
    /// The smoothed round trip, smoothed over a second: jitter evens out.
    even_ms: f64,
    calm_ms: Option<f64>,
    remembered: Option<Settled>,
    settled: Option<Settled>,
    why: Why,
}

impl Controller {
    /// Begins with `start` transfers, or what the bounds leave of it.
    pub fn new(bounds: Bounds, start: u32) -> Controller {
        let bounds = Bounds {
            min: bounds.min.max(1),
            max: bounds.max.max(bounds.min).max(1),
        };
        let start = start.clamp(bounds.min, bounds.max);
        Controller {
            bounds,
            start,
            target: start,
            last_ms: None,
            stage: Stage::Staffing { since_ms: 0 },
            window: Window::default(),
            trial: None,
            recovery: None,
            doubtful: None,
            flat: false,
            base: None,
            kept: 1.0,
            steep: true,
            ceiling: None,
            floor: None,
            up: Patience::default(),
            down: Patience::default(),
            unlike: 0,
            silent_ms: 0,
            silent: false,
            idle_ms: 0,
            srtt_ms: UNKNOWN_RTT_MS,
            round_trips: 0,
            even_ms: 0.0,
            calm_ms: None,
            remembered: None,
            settled: None,
            why: Why::Starting,
        }
    }

    /// The number of transfers that should go on now.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// Why it is this number.
    pub fn why(&self) -> Why {
        self.why
    }

    /// What to remember for this network; `None` until a number has proven itself, and while too little was sent to tell.
    pub fn settled(&self) -> Option<Settled> {
        self.settled
    }

    /// Begins anew with what suited this network before. It is measured like any other number, but if it still brings about
    /// as much, the search is skipped.
    pub fn resume(&mut self, settled: Settled) {
        self.restart(settled.transfers, Why::Remembered);
        self.remembered = Some(Settled {
            transfers: self.target,
            ..settled
        });
    }

    /// Forgets what was learned: the way to the service is another one.
    pub fn network_changed(&mut self) {
        self.restart(self.start, Why::Starting);
    }

    /// Takes note of a sample and answers the number of transfers that should go on.
    pub fn sample(&mut self, sample: &Sample) -> u32 {
        if self.bounds.min == self.bounds.max {
            self.why = Why::Fixed;
            return self.target;
        }
        let now = sample.at_ms;
        let Some(ms) = self
            .last_ms
            .replace(now)
            .map(|last| now.saturating_sub(last))
        else {
            self.stage = Stage::Staffing { since_ms: now };
            return self.target;
        };
        if ms == 0 {
            return self.target;
        }
        if ms > GAP_MS {
            self.abandon(now);
            return self.target;
        }
        self.note_round_trip(sample);
        if self.is_silent(ms, sample) || self.lacks_work(ms, sample) {
            return self.target;
        }
        match self.stage {
            Stage::Staffing { since_ms } => self.staff(ms, since_ms, sample),
            Stage::Ramp { until_ms } if now < until_ms => self.look_early(ms, until_ms, sample),
            Stage::Ramp { .. } => {
                self.window = Window::default();
                self.stage = Stage::Measure;
            }
            Stage::Measure => {
                self.window.add(ms, sample, self.block_ms());
                self.judge(sample);
            }
        }
        self.target
    }

    fn restart(&mut self, transfers: u32, why: Why) {
        *self = Controller {
            last_ms: self.last_ms,
            start: self.start,
            stage: Stage::Staffing {
                since_ms: self.last_ms.unwrap_or(0),
            },
            why,
            ..Controller::new(self.bounds, transfers)
        };
    }

    fn note_round_trip(&mut self, sample: &Sample) {
        if let Some(srtt) = sample.srtt_us.filter(|srtt| *srtt > 0) {
            let srtt = f64::from(srtt) / 1000.0;
            self.srtt_ms = srtt;
            self.round_trips = self.round_trips.saturating_add(1);
            self.even_ms += if self.round_trips == 1 {
                srtt
            } else {
                EVENING * (srtt - self.even_ms)
            };
            if self.round_trips >= 3 {
                let calm = self.calm_ms.unwrap_or(self.even_ms).min(self.even_ms);
                self.calm_ms = Some(calm);
            }
        }
        if let (Some(calm), Some(least)) = (self.calm_ms, sample.min_rtt_us) {
            let least = f64::from(least) / 1000.0;
            self.calm_ms = Some(calm.clamp(least, 2.0 * least + 20.0));
        }
    }

    fn window_ms(&self) -> u64 {
        if self.trial.is_some_and(|trial| trial.faith) {
            return (FAITH_WINDOW_ROUND_TRIPS * self.srtt_ms) as u64;
        }
        (WINDOW_ROUND_TRIPS * self.srtt_ms).clamp(WINDOW_MS.0, WINDOW_MS.1) as u64
    }

    fn block_ms(&self) -> u64 {
        (2.0 * self.srtt_ms) as u64
    }

    /// How long new flows take to find their speed: the set-up, slow start up to their share, and some round trips in
    /// which what it overshot is mended; or how long the others take to fill what one left.
    fn ramp_ms(&self, goodput: f64) -> u64 {
        if goodput == 0.0 {
            return (FIRST_RAMP_ROUND_TRIPS * self.srtt_ms).clamp(1000.0, 10_000.0) as u64;
        }
        if self.trial.is_some_and(|trial| trial.faith) {
            return (FAITH_ROUND_TRIPS * self.srtt_ms) as u64;
        }
        let share = goodput * self.srtt_ms / 1000.0 / f64::from(self.target.max(1));
        let doublings = (share / FIRST_WINDOW).max(1.0).log2();
        ((RAMP_ROUND_TRIPS + doublings) * self.srtt_ms).clamp(1000.0, 12_000.0) as u64
    }

    fn step_ms(&self) -> f64 {
        let goodput = self.base.map_or(0.0, |base| base.goodput);
        (self.ramp_ms(goodput) + self.window_ms()) as f64
    }

    /// The wait in queues, ms.
    fn queue_ms(&self, srtt_ms: Option<f64>) -> f64 {
        match (srtt_ms, self.calm_ms) {
            (Some(srtt), Some(calm)) => (srtt - calm).max(0.0),
            _ => 0.0,
        }
    }

    /// Whether the queue stands: a link that is not full has none.
    fn stands(&self, measure: &Measure) -> bool {
        self.queue_over(measure, 1.0)
    }

    fn queue_over(&self, measure: &Measure, factor: f64) -> bool {
        let calm = self.calm_ms.unwrap_or(UNKNOWN_RTT_MS);
        self.queue_ms(measure.srtt_ms) > factor * (calm / 4.0).max(8.0)
    }

    /// What a measure is worth: the goodput, less what was sent twice, less what the queue costs.
    fn worth(&self, measure: &Measure) -> f64 {
        let queue = (self.queue_ms(measure.srtt_ms) / 1000.0).min(1.0);
        measure.goodput * (1.0 - measure.wasted) * (1.0 - QUEUE_COST * queue)
    }

    /// Ends a trial without a verdict, and measures anew.
    fn abandon(&mut self, now: u64) {
        let target = self.trial.take().map_or(self.target, |trial| trial.from);
        self.unlike = 0;
        self.go(now, target);
        self.recovery = Some(self.new_recovery(now));
    }

    fn is_silent(&mut self, ms: u64, sample: &Sample) -> bool {
        if sample.acknowledged > 0 || sample.sending == 0 {
            self.silent_ms = 0;
            if self.silent && sample.acknowledged > 0 {
                self.silent = false;
                self.why = Why::Measuring;
                self.abandon(sample.at_ms);
            }
            return self.silent;
        }
        self.silent_ms += ms;
        if self.silent_ms as f64 >= (4.0 * self.srtt_ms).max(1000.0) {
            self.silent = true;
            self.why = Why::Silent;
        }
        self.silent
    }

    fn lacks_work(&mut self, ms: u64, sample: &Sample) -> bool {
        if sample.waiting_work || sample.sending >= self.target {
            if self.idle_ms > 0 {
                self.idle_ms = 0;
                if self.why == Why::LittleWork {
                    self.why = Why::Measuring;
                }
                self.abandon(sample.at_ms);
            }
            return false;
        }
        self.idle_ms += ms;
        if self.idle_ms > self.window_ms() {
            self.why = Why::LittleWork;
        }
        true
    }

    /// Waits until as many send as should; a transfer that is no longer wanted ends with its chunk, which may take long.
    fn staff(&mut self, ms: u64, since_ms: u64, sample: &Sample) {
        let now = sample.at_ms;
        let goodput = self.base.map_or(0.0, |base| base.goodput);
        let ramp = self.ramp_ms(goodput);
        if sample.sending > self.target {
            let Some(trial) = self.trial else {
                match self.doubtful {
                    Some(trial) if trial.to == sample.sending => {
                        self.reconsider(ms, &trial, sample);
                    }
                    _ => self.doubtful = None,
                }
                return;
            };
            if sample.sending != trial.from {
                self.window = Window::default();
                return;
            }
            // The base stays fresh in the meantime.
            self.window.add(ms, sample, self.block_ms());
            if self.window.ms() >= self.window_ms()
                && let Some(measure) = self.window.measure()
            {
                self.window = Window::default();
                if unlike(&trial.base, &measure) {
                    self.unlike += 1;
                    if self.unlike >= 2 {
                        self.another_link(&trial.base, measure);
                        self.abandon(now);
                    }
                } else {
                    self.unlike = 0;
                    self.trial = Some(Trial {
                        base: trial.base.blend(&measure),
                        ..trial
                    });
                }
            }
            return;
        }
        let late = now.saturating_sub(since_ms) > 2 * ramp + 2000;
        if sample.sending == self.target || late {
            self.unlike = 0;
            if self.recovery.is_some() {
                self.recovery = Some(self.new_recovery(now));
            }
            if let Some(trial) = &mut self.trial {
                trial.since_ms = now;
            }
            self.stage = Stage::Ramp {
                until_ms: now.saturating_add(ramp),
            };
        }
    }

    /// Changes the number, to be measured after it has settled.
    fn go(&mut self, now: u64, target: u32) {
        self.recovery = (target < self.target).then(|| self.new_recovery(now));
        self.doubtful = None;
        self.target = target;
        self.window = Window::default();
        self.stage = Stage::Staffing { since_ms: now };
    }

    fn new_recovery(&self, now: u64) -> Recovery {
        let time = RECOVERY_MS + RECOVERY_ROUND_TRIPS * self.srtt_ms;
        Recovery {
            until_ms: now.saturating_add(time as u64),
            last: None,
        }
    }

    /// Whether what is left after a step down still takes over; then this window is not the whole truth.
    fn recovers(&mut self, now: u64, measure: &Measure, full: Option<f64>) -> bool {
        let Some(recovery) = &mut self.recovery else {
            return false;
        };
        let rising = recovery
            .last
            .is_none_or(|last| measure.goodput > RISING * last);
        let there = full.is_none_or(|full| measure.goodput >= KEEP * full);
        if there || !rising || now >= recovery.until_ms {
            // A window that ends the wait by being good is not taken for a fair sample.
            let biased = there && recovery.last.is_some();
            self.recovery = None;
            return biased;
        }
        recovery.last = Some(measure.goodput);
        true
    }
}
