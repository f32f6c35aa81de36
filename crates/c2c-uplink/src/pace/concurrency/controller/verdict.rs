//! What follows from a window: the comparison with the base, the next number to try, and what a verdict leaves behind.

use super::tuning::*;
use super::{Controller, Patience, Stage, Trial};
use crate::pace::concurrency::window::{Measure, Window};
use crate::pace::concurrency::{Sample, Settled, Why};

impl Controller {
    pub(super) fn judge(&mut self, sample: &Sample) {
        let now = sample.at_ms;
        if self.window.ms() < self.window_ms() {
            return;
        }
        let Some(measure) = self.window.measure() else {
            return;
        };
        if self.window.faults >= (self.target / 4).max(2) {
            self.back_off_from_faults(now);
            return;
        }
        let full = match self.trial {
            Some(trial) => Some(trial.base.goodput),
            None => self.base.map(|base| base.goodput),
        };
        if self.recovers(now, &measure, full) {
            self.window = Window::default();
            return;
        }
        match self.trial {
            None => {
                self.window = Window::default();
                self.settle_base(measure);
                self.choose(now, sample.loss_based);
            }
            Some(trial) if trial.faith => self.keep_faith(now, sample.loss_based, trial, measure),
            Some(trial) if trial.to > trial.from => {
                self.judge_more(now, sample.loss_based, trial, measure);
            }
            Some(trial) => self.judge_fewer(now, sample.loss_based, trial, measure),
        }
    }

    /// Whoever starves on a long way gets more without having to prove that it pays, until the link is full. Whether all of
    /// them are needed is asked later.
    fn keep_faith(&mut self, now: u64, loss_based: bool, trial: Trial, measure: Measure) {
        if measure.goodput >= FAITH_KEEPS * trial.base.goodput {
            self.accept_more(now, loss_based, &trial, measure);
            let step = self.step_ms();
            self.down.failed(now, step, 2.0);
            return;
        }
        // It went down: perhaps the link did. From here on it is a comparison like any other.
        let trial = Trial {
            faith: false,
            since_ms: now,
            ..trial
        };
        self.trial = Some(trial);
        self.window = Window::default();
        let ramp = self.ramp_ms(trial.base.goodput);
        self.stage = Stage::Ramp {
            until_ms: now.saturating_add(ramp),
        };
    }

    /// On a long way those who begin need not wait for their first full window to see that they starve.
    pub(super) fn look_early(&mut self, ms: u64, until_ms: u64, sample: &Sample) {
        let now = sample.at_ms;
        let early = until_ms.saturating_sub(now) as f64 <= FAITH_ROUND_TRIPS * self.srtt_ms;
        if self.base.is_some() || self.trial.is_some() || !self.is_far() || !early {
            return;
        }
        self.window.add(ms, sample, self.block_ms());
        if (self.window.ms() as f64) < FAITH_WINDOW_ROUND_TRIPS * self.srtt_ms {
            return;
        }
        let measure = std::mem::take(&mut self.window).measure();
        if let Some(measure) = measure.filter(|measure| self.starving(sample.loss_based, measure)) {
            self.stage = Stage::Measure;
            self.base = Some(measure);
            self.choose(now, sample.loss_based);
        }
    }

    fn is_far(&self) -> bool {
        self.calm_ms.is_some_and(|calm| calm >= LONG_WAY_MS)
    }

    fn judge_more(&mut self, now: u64, loss_based: bool, trial: Trial, measure: Measure) {
        let ratio = self.worth(&measure) / self.worth(&trial.base).max(1.0);
        let needed = self.needed_for_more(&trial);
        let doubt = Self::doubt(ratio, &trial.base, &measure);
        let late = measure.ms >= WINDOWS_AT_MOST * self.window_ms();
        if (ratio - needed).abs() <= doubt && !late {
            return;
        }
        if unlike(&trial.base, &measure) && ratio < 1.0 {
            self.link_changed_in_trial(now, trial, measure);
            return;
        }
        let starving = self.starving(loss_based, &measure);
        // In doubt, those who starve get more.
        if ratio >= needed || (starving && ratio + doubt >= needed) {
            self.accept_more(now, loss_based, &trial, measure);
            return;
        }
        self.trial = None;
        self.ceiling = Some(trial.to);
        self.steep = false;
        self.flat = ratio + doubt < 1.0 + 0.5 * (needed - 1.0);
        let step = self
            .step_ms()
            .max(now.saturating_sub(trial.since_ms) as f64);
        let full = self.stands(&measure) && loss_based;
        self.up
            .failed(now, step, if full { FULL_PATIENCE } else { 1.0 });
        self.base = Some(trial.base);
        let window = std::mem::take(&mut self.window);
        self.go(now, trial.from);
        self.window = window;
        self.doubtful = Some(trial);
        self.why = Why::MoreBroughtNothing {
            more: trial.to - trial.from,
            percent: percent(measure.goodput / trial.base.goodput.max(1.0) - 1.0),
        };
    }

    fn judge_fewer(&mut self, now: u64, loss_based: bool, trial: Trial, measure: Measure) {
        // A queue that grew meanwhile is not the fault of fewer.
        let ratio = (self.worth(&measure) / self.worth(&trial.base).max(1.0))
            .max(measure.goodput / trial.base.goodput.max(1.0));
        let needed = (KEEP / self.kept).min(1.0);
        let doubt = Self::doubt(ratio, &trial.base, &measure);
        let late = measure.ms >= 2 * WINDOWS_AT_MOST * self.window_ms();
        if (ratio - needed).abs() <= doubt && !late {
            return;
        }
        if unlike(&trial.base, &measure) && ratio > 1.0 {
            self.link_changed_in_trial(now, trial, measure);
            return;
        }
        self.trial = None;
        self.window = Window::default();
        let step = self
            .step_ms()
            .max(now.saturating_sub(trial.since_ms) as f64);
        // In doubt, what was known to be enough stays.
        if ratio >= needed && (ratio - doubt >= needed || doubt < 0.5 * (1.0 - KEEP)) {
            self.kept *= ratio.min(1.0);
            self.flat = false;
            self.ceiling = Some(trial.from);
            let least = if self.stands(&measure) && loss_based {
                FULL_PATIENCE
            } else {
                1.0
            };
            self.up.failed(now, step, least);
            self.down = Patience::default();
            self.base = Some(measure);
            self.why = Why::FewerSuffice { from: trial.from };
            self.choose(now, loss_based);
        } else {
            self.floor = Some(trial.to);
            if trial.to + 1 >= trial.from
                || ratio < 1.0 - 0.5 * f64::from(trial.from - trial.to) / f64::from(trial.from)
            {
                self.down.failed(now, step, 1.0);
            }
            self.base = Some(trial.base);
            self.go(now, trial.from);
            self.why = Why::FewerLost {
                fewer: trial.from - trial.to,
                percent: percent(1.0 - measure.goodput / trial.base.goodput.max(1.0)),
            };
        }
    }

    /// The transfers of a climb that seemed not to pay still go on: so they may be measured on.
    pub(super) fn reconsider(&mut self, ms: u64, trial: &Trial, sample: &Sample) {
        self.window.add(ms, sample, self.block_ms());
        let Some(measure) = self.window.measure() else {
            return;
        };
        if measure.ms < self.window_ms() {
            return;
        }
        let ratio = self.worth(&measure) / self.worth(&trial.base).max(1.0);
        let doubt = Self::doubt(ratio, &trial.base, &measure);
        let needed = self.needed_for_more(trial);
        let late = measure.ms >= 2 * WINDOWS_AT_MOST * self.window_ms();
        let starving = self.starving(sample.loss_based, &measure);
        if ratio - doubt >= needed || (late && starving && ratio + doubt >= needed) {
            self.accept_more(sample.at_ms, sample.loss_based, trial, measure);
        } else if late {
            self.window = Window::default();
        }
    }

    fn accept_more(&mut self, now: u64, loss_based: bool, trial: &Trial, measure: Measure) {
        let proportional = f64::from(trial.to) / f64::from(trial.from) - 1.0;
        let ratio = self.worth(&measure) / self.worth(&trial.base).max(1.0);
        let starving = self.starving(loss_based, &measure);
        self.steep = ratio - 1.0 >= STEEP * proportional || (starving && self.steep);
        self.flat = false;
        self.trial = None;
        self.doubtful = None;
        self.window = Window::default();
        self.target = trial.to;
        self.stage = Stage::Measure;
        self.recovery = None;
        self.floor = Some(trial.from);
        self.ceiling = self.ceiling.filter(|ceiling| *ceiling > trial.to);
        self.up = Patience::default();
        self.base = Some(measure);
        self.kept = 1.0;
        self.why = Why::Climbing {
            from: trial.from,
            to: trial.to,
        };
        self.choose(now, loss_based);
    }

    /// More that bring far less, or fewer that bring far more: that was the link. What goes on now is the new base.
    fn link_changed_in_trial(&mut self, now: u64, trial: Trial, measure: Measure) {
        self.trial = None;
        self.another_link(&trial.base, measure);
        self.base = None;
        self.go(now, trial.to);
    }

    fn back_off_from_faults(&mut self, now: u64) {
        let count = self.window.faults;
        let most = self
            .trial
            .take()
            .map_or(self.target, |trial| trial.from.min(trial.to));
        self.ceiling = Some(self.target);
        let step = self.step_ms();
        self.up.failed(now, step, 1.0);
        let fewer = most.min(self.target - (self.target / 4).max(1).min(self.target - 1));
        self.go(now, fewer.max(self.bounds.min));
        self.base = None;
        self.kept = 1.0;
        self.why = Why::Faults { count };
    }

    /// Compares what the same number brings with what it brought.
    fn settle_base(&mut self, measure: Measure) {
        let Some(base) = self.base else {
            self.base = Some(measure);
            return;
        };
        let fuller = self.stands(&measure)
            && self.queue_ms(measure.srtt_ms) > 3.0 * self.queue_ms(base.srtt_ms) + 50.0;
        if unlike(&base, &measure) || fuller {
            self.unlike += 1;
            if self.unlike >= 2 {
                self.another_link(&base, measure);
            }
        } else {
            self.unlike = 0;
            self.base = Some(base.blend(&measure));
        }
    }

    pub(super) fn another_link(&mut self, before: &Measure, now: Measure) {
        self.base = Some(now);
        self.unlike = 0;
        self.kept = 1.0;
        self.steep = true;
        self.flat = false;
        self.ceiling = None;
        self.floor = None;
        self.up = Patience::default();
        self.down = Patience::default();
        self.why = Why::LinkChanged {
            percent: (100.0 * now.goodput / before.goodput.max(1.0)).min(1e6) as u32,
        };
    }

    fn choose(&mut self, now: u64, loss_based: bool) {
        let Some(base) = self.base else {
            return;
        };
        if self.unlike > 0 {
            return;
        }
        if let Some(remembered) = self.remembered.take() {
            let share = base.goodput / (remembered.goodput as f64).max(1.0);
            if (0.6..1.7).contains(&share) {
                let step = self.step_ms();
                self.up.failed(now, step, 2.0);
                self.down.failed(now, step, 2.0);
                self.settled = Some(remembered);
                self.why = Why::Confirmed;
            }
        }
        let stands = self.stands(&base);
        let down_first = stands || !loss_based;
        let more = self.more(now, loss_based, self.starving(loss_based, &base));
        let fewer = self.fewer(now, loss_based, &base);
        let (to, climbing) = match (more, fewer) {
            (Some(more), None) => (more, true),
            (Some(more), Some(_)) if !down_first => (more, true),
            (_, Some(fewer)) => (fewer, false),
            (None, None) => {
                self.hold(&base);
                return;
            }
        };
        let from = self.target;
        self.why = if climbing {
            Why::Climbing { from, to }
        } else if stands {
            Why::Delay {
                from_ms: self.calm_ms.unwrap_or(0.0) as u32,
                to_ms: base.srtt_ms.unwrap_or(0.0) as u32,
            }
        } else if base.wasted > 0.05 {
            Why::Waste {
                percent: (100.0 * base.wasted) as u32,
            }
        } else {
            Why::TryingFewer { from, to }
        };
        self.trial = Some(Trial {
            from,
            to,
            base,
            since_ms: now,
            faith: climbing && self.is_far() && self.starving(loss_based, &base),
        });
        self.go(now, to);
    }

    fn more(&mut self, now: u64, loss_based: bool, starving: bool) -> Option<u32> {
        let patience = if starving {
            STARVING_PATIENCE
        } else {
            PATIENCE_AT_MOST
        };
        if self.target >= self.bounds.max || !self.up.over(now, patience) {
            return None;
        }
        let n = self.target;
        if self.is_far() && !loss_based && n >= ENOUGH_FAR_AWAY {
            return None;
        }
        if self.up.factor > 0.0 {
            // It failed before and is looked at again: in small steps, and the ceiling may have moved.
            self.ceiling = None;
            return Some((n.saturating_add((n / 4).max(1))).min(self.bounds.max));
        }
        let step = if self.steep { n } else { n / 2 };
        let to = match self.ceiling {
            Some(ceiling) if ceiling <= n + 1 => return None,
            Some(ceiling) => n.saturating_add((ceiling - n) / 2).max(n + 1),
            None => n.saturating_add(step.max(1)),
        };
        Some(to.min(self.bounds.max))
    }

    fn fewer(&mut self, now: u64, loss_based: bool, base: &Measure) -> Option<u32> {
        if self.target <= self.bounds.min || !self.down.over(now, PATIENCE_AT_MOST) {
            return None;
        }
        if self.starving(loss_based, base) && !self.flat && self.target < self.bounds.max {
            return None;
        }
        if self.is_far() && !loss_based && self.target <= ENOUGH_FAR_AWAY {
            return None;
        }
        let n = self.target;
        if self.floor.is_some_and(|floor| floor + 1 >= n) {
            self.floor = None;
        }
        let full = self.queue_ms(base.srtt_ms) > self.calm_ms.unwrap_or(UNKNOWN_RTT_MS);
        let even = n > MANY && base.error < EVEN;
        let step = if full || even || !loss_based {
            n / 2
        } else {
            n / 4
        };
        let to = match self.floor {
            Some(floor) => n - ((n - floor) / 2).max(1),
            None => n - step.max(1),
        };
        Some(to.max(self.bounds.min))
    }

    fn hold(&mut self, base: &Measure) {
        if self.target == self.bounds.max && self.ceiling.is_none() {
            self.why = Why::AtMost;
        } else if !self.why.holds() {
            self.why = Why::Enough;
        }
        if base.sending >= 0.75 * f64::from(self.target) {
            self.settled = Some(Settled {
                transfers: self.target,
                goodput: base.goodput as u64,
            });
        }
    }

    /// What a climb must bring, as a ratio.
    fn needed_for_more(&self, trial: &Trial) -> f64 {
        let proportional = f64::from(trial.to) / f64::from(trial.from) - 1.0;
        let share = if self.queue_over(&trial.base, OTHERS) {
            GAIN_FROM_OTHERS
        } else {
            GAIN
        };
        1.0 + share * proportional
    }

    /// Loss-based flows that lose packets and still leave no queue do not fill the link.
    fn starving(&self, loss_based: bool, measure: &Measure) -> bool {
        loss_based && !self.stands(measure) && measure.wasted > STARVING_LOSS
    }

    /// How sure a comparison is: the standard error of `ratio`, scaled by how many are asked for.
    fn doubt(ratio: f64, base: &Measure, measure: &Measure) -> f64 {
        CLEAR * ratio * base.error.hypot(measure.error)
    }
}

fn percent(share: f64) -> i32 {
    (100.0 * share).round().clamp(-100.0, 10_000.0) as i32
}

/// Whether two windows of the same number cannot come from the same link.
pub(super) fn unlike(base: &Measure, measure: &Measure) -> bool {
    let change = measure.goodput / base.goodput.max(1.0) - 1.0;
    let error = base.error.hypot(measure.error);
    change.abs() > CHANGE && change.abs() > CHANGE_ERRORS * error
}
