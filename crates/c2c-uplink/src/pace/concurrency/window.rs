//! What a span of samples came to, and how sure that is.

use super::Sample;

/// A stretch of samples with the same number of transfers.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    ms: u64,
    acknowledged: u64,
    sent: u64,
    retransmitted: u64,
    srtt_ms: f64,
    srtt_weight: f64,
    sending_ms: f64,
    pub(super) faults: u32,
    /// (ms, bytes) of each block.
    blocks: Vec<(u64, u64)>,
}

/// A window, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measure {
    /// Bytes per second that the peers acknowledged.
    pub(super) goodput: f64,
    /// Relative standard error of the goodput.
    pub(super) error: f64,
    /// Share of what was sent that was sent again.
    pub(super) wasted: f64,
    /// Mean smoothed round trip, ms, where known.
    pub(super) srtt_ms: Option<f64>,
    /// Mean number of transfers that had data to send.
    pub(super) sending: f64,
    /// Length in ms.
    pub(super) ms: u64,
}

impl Window {
    /// Adds the span of `ms` that `sample` reports. Spans are gathered to blocks of at least `block_ms`, since what
    /// follows within a round trip or two is not independent.
    pub(super) fn add(&mut self, ms: u64, sample: &Sample, block_ms: u64) {
        self.ms = self.ms.saturating_add(ms);
        self.acknowledged = self.acknowledged.saturating_add(sample.acknowledged);
        if let (Some(sent), Some(again)) = (sample.sent, sample.retransmitted) {
            self.sent = self.sent.saturating_add(sent);
            self.retransmitted = self.retransmitted.saturating_add(again);
        }
        if let Some(srtt) = sample.srtt_us {
            self.srtt_ms += ms as f64 * f64::from(srtt) / 1000.0;
            self.srtt_weight += ms as f64;
        }
        self.sending_ms += ms as f64 * f64::from(sample.sending);
        self.faults = self.faults.saturating_add(sample.faults);
        match self.blocks.last_mut() {
            Some(last) if last.0 < block_ms => {
                last.0 = last.0.saturating_add(ms);
                last.1 = last.1.saturating_add(sample.acknowledged);
            }
            _ => self.blocks.push((ms, sample.acknowledged)),
        }
    }

    pub(super) fn ms(&self) -> u64 {
        self.ms
    }

    /// What it came to; `None` if it is empty.
    pub(super) fn measure(&self) -> Option<Measure> {
        if self.ms == 0 {
            return None;
        }
        let goodput = self.acknowledged as f64 * 1000.0 / self.ms as f64;
        let srtt_ms = (self.srtt_weight > 0.0).then(|| self.srtt_ms / self.srtt_weight);
        Some(Measure {
            goodput,
            error: self.error(goodput),
            wasted: (self.retransmitted as f64 / self.sent.max(1) as f64).min(1.0),
            srtt_ms,
            sending: self.sending_ms / self.ms as f64,
            ms: self.ms,
        })
    }

    fn error(&self, goodput: f64) -> f64 {
        let count = self.blocks.len();
        if count < 3 || goodput <= 0.0 {
            return 0.1;
        }
        let squares: f64 = self
            .blocks
            .iter()
            .map(|(ms, bytes)| {
                let rate = *bytes as f64 * 1000.0 / (*ms).max(1) as f64;
                // A short last block weighs as little as it says.
                let weight = *ms as f64 * count as f64 / self.ms as f64;
                weight * (rate / goodput - 1.0).powi(2)
            })
            .sum();
        (squares / (count - 1) as f64 / count as f64).sqrt()
    }
}

impl Measure {
    /// Both as one, the newer counting at least a third.
    pub(super) fn blend(&self, newer: &Measure) -> Measure {
        let share = (newer.ms as f64 / (self.ms + newer.ms).max(1) as f64).max(1.0 / 3.0);
        let mix = |old: f64, new: f64| old + share * (new - old);
        Measure {
            goodput: mix(self.goodput, newer.goodput),
            error: ((1.0 - share) * self.error).hypot(share * newer.error),
            wasted: mix(self.wasted, newer.wasted),
            srtt_ms: match (self.srtt_ms, newer.srtt_ms) {
                (Some(old), Some(new)) => Some(mix(old, new)),
                (old, new) => new.or(old),
            },
            sending: mix(self.sending, newer.sending),
            ms: self
                .ms
                .saturating_add(newer.ms)
                .min(newer.ms.saturating_mul(3)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(acknowledged: u64) -> Sample {
        Sample {
            acknowledged,
            sent: Some(acknowledged * 2),
            retransmitted: Some(acknowledged / 10),
            srtt_us: Some(50_000),
            sending: 4,
            ..Sample::default()
        }
    }

    #[test]
    fn a_window_says_what_it_saw() {
        let mut window = Window::default();
        assert_eq!(window.measure(), None);
        for bytes in [100, 110, 90, 100] {
            window.add(500, &sample(bytes * 1000), 100);
        }
        let measure = window.measure().unwrap();
        assert_eq!(measure.goodput, 200_000.0);
        assert_eq!(measure.wasted, 0.05);
        assert_eq!(measure.srtt_ms, Some(50.0));
        assert_eq!(measure.sending, 4.0);
        // Deviations of 0, 10, -10, 0 %: variance 200/3 (%)², over four blocks.
        assert!((measure.error - (0.02f64 / 3.0 / 4.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn an_even_rate_has_no_error_however_it_is_cut() {
        let mut window = Window::default();
        for ms in [250, 300, 310, 270, 330, 260] {
            window.add(ms, &sample(ms * 100), 500);
        }
        assert!(window.measure().unwrap().error < 1e-9);
    }

    #[test]
    fn a_blend_leans_on_the_longer_but_never_ignores_the_newer() {
        let mut window = Window::default();
        window.add(1000, &sample(1000), 100);
        let old = Measure {
            ms: 100_000,
            ..window.measure().unwrap()
        };
        let new = Measure {
            goodput: 4000.0,
            ms: 1000,
            ..old
        };
        assert_eq!(old.blend(&new).goodput, 2000.0);
        assert_eq!(old.blend(&new).ms, 3000);
    }
}
