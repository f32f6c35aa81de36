//! One TCP flow of the model: a window, what it does on an acknowledgement and what on a loss.
//!
//! The law of each algorithm is the published one (RFC 9438 for CUBIC with its Reno-friendly region and HyStart,
//! RFC 5681 for Reno, BBR version 1 with its start, drain, eight-phase cycle and the look for the smallest round trip).

use std::collections::VecDeque;

/// Payload of one segment, bytes.
pub(super) const SEGMENT: f64 = 1448.0;

const CUBIC_C: f64 = 0.4;
const CUBIC_BETA: f64 = 0.7;

/// Who decides how fast a flow sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Cubic,
    Reno,
    Bbr,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Startup,
    Drain,
    Cruise { index: usize, since: f64 },
    LookForRtt { until: f64 },
}

/// What only BBR keeps.
#[derive(Debug)]
struct Model {
    phase: Phase,
    /// Delivery rates of the last ten rounds, bytes per second.
    rates: VecDeque<f64>,
    round_start: f64,
    round_bytes: f64,
    full_rate: f64,
    flat_rounds: u32,
    rtt: f64,
    rtt_at: f64,
}

/// One sender. Bytes are payload; times are seconds.
#[derive(Debug)]
pub(super) struct Flow {
    algorithm: Algorithm,
    /// Bytes.
    pub(super) window: f64,
    threshold: f64,
    /// The most that buffers at both ends let it have under way.
    buffers: f64,
    pub(super) in_flight: f64,
    pub(super) srtt: f64,
    min_rtt: f64,
    recovery_until: f64,
    silent_until: f64,
    /// The top of the last saw tooth, segments.
    top: f64,
    epoch: Option<f64>,
    reno_estimate: f64,
    model: Model,
    pub(super) acknowledged: f64,
    pub(super) sent: f64,
    pub(super) retransmitted: f64,
}

impl Flow {
    pub(super) fn new(algorithm: Algorithm, rtt: f64, buffers: f64, now: f64) -> Flow {
        Flow {
            algorithm,
            window: 10.0 * SEGMENT,
            threshold: f64::INFINITY,
            buffers,
            in_flight: 0.0,
            srtt: rtt,
            min_rtt: rtt,
            recovery_until: 0.0,
            silent_until: 0.0,
            top: 0.0,
            epoch: None,
            reno_estimate: 0.0,
            model: Model {
                phase: Phase::Startup,
                rates: VecDeque::from([10.0 * SEGMENT / rtt]),
                round_start: now,
                round_bytes: 0.0,
                full_rate: 0.0,
                flat_rounds: 0,
                rtt,
                rtt_at: now,
            },
            acknowledged: 0.0,
            sent: 0.0,
            retransmitted: 0.0,
        }
    }

    fn bandwidth(&self) -> f64 {
        self.model.rates.iter().copied().fold(SEGMENT, f64::max)
    }

    /// How much it may send within the next `step` seconds.
    pub(super) fn allowance(&self, now: f64, step: f64) -> f64 {
        if now < self.silent_until {
            return 0.0;
        }
        let (window, pace) = match self.algorithm {
            Algorithm::Cubic | Algorithm::Reno => {
                let gain = if self.window < self.threshold {
                    2.0
                } else {
                    1.2
                };
                (self.window, gain * self.window / self.srtt)
            }
            Algorithm::Bbr => {
                let product = self.bandwidth() * self.model.rtt;
                let (window_gain, pace_gain) = match self.model.phase {
                    Phase::Startup => (2.885, 2.885),
                    Phase::Drain => (2.885, 0.347),
                    Phase::Cruise { index: 0, .. } => (2.0, 1.25),
                    Phase::Cruise { index: 1, .. } => (2.0, 0.75),
                    Phase::Cruise { .. } => (2.0, 1.0),
                    Phase::LookForRtt { .. } => (0.0, 1.0),
                };
                let window = (window_gain * product).max(4.0 * SEGMENT);
                (window, pace_gain * self.bandwidth())
            }
        };
        (window.min(self.buffers) - self.in_flight)
            .min(pace * step)
            .max(0.0)
    }

    pub(super) fn on_sent(&mut self, bytes: f64) {
        self.in_flight += bytes;
        self.sent += bytes;
    }

    pub(super) fn on_acknowledged(&mut self, now: f64, bytes: f64, rtt: f64) {
        let limited = self.in_flight >= 0.8 * self.window.min(self.buffers);
        self.in_flight = (self.in_flight - bytes).max(0.0);
        self.acknowledged += bytes;
        let weight = (bytes / self.window).clamp(0.01, 0.125);
        self.srtt += weight * (rtt - self.srtt);
        self.min_rtt = self.min_rtt.min(rtt);
        match self.algorithm {
            Algorithm::Bbr => self.model_round(now, bytes, rtt),
            Algorithm::Cubic | Algorithm::Reno if !limited || now < self.recovery_until => {}
            Algorithm::Cubic | Algorithm::Reno if self.window < self.threshold => {
                self.window += bytes;
                // HyStart: the queue has begun to grow.
                if rtt > self.min_rtt + (self.min_rtt / 8.0).clamp(0.004, 0.016)
                    && self.window > 16.0 * SEGMENT
                {
                    self.threshold = self.window;
                }
            }
            Algorithm::Reno => self.window += SEGMENT * bytes / self.window,
            Algorithm::Cubic => self.cubic(now, bytes),
        }
    }

    fn cubic(&mut self, now: f64, bytes: f64) {
        let segments = self.window / SEGMENT;
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.top = self.top.max(segments);
            self.reno_estimate = segments;
            now
        });
        let k = ((self.top - segments_after_cut(self.top)) / CUBIC_C).cbrt();
        let t = now - epoch + self.srtt;
        let target = (CUBIC_C * (t - k).powi(3) + self.top).min(1.5 * segments);
        let acknowledged = bytes / SEGMENT;
        self.reno_estimate +=
            3.0 * (1.0 - CUBIC_BETA) / (1.0 + CUBIC_BETA) * acknowledged / segments;
        let grown = segments + ((target - segments) / segments).max(0.01) * acknowledged;
        self.window = grown.max(self.reno_estimate) * SEGMENT;
    }

    fn model_round(&mut self, now: f64, bytes: f64, rtt: f64) {
        let bandwidth = self.bandwidth();
        let product = bandwidth * self.model.rtt;
        let srtt = self.srtt;
        let in_flight = self.in_flight;
        let model = &mut self.model;
        if rtt <= model.rtt {
            model.rtt = rtt;
            model.rtt_at = now;
        } else if now - model.rtt_at > 10.0 && !matches!(model.phase, Phase::LookForRtt { .. }) {
            model.phase = Phase::LookForRtt {
                until: now + 0.2 + srtt,
            };
        }
        model.round_bytes += bytes;
        if now - model.round_start >= model.rtt {
            let rate = model.round_bytes / (now - model.round_start);
            model.round_start = now;
            model.round_bytes = 0.0;
            if !matches!(model.phase, Phase::LookForRtt { .. }) || rate > bandwidth {
                model.rates.push_back(rate);
                if model.rates.len() > 12 {
                    model.rates.pop_front();
                }
            }
            if model.phase == Phase::Startup {
                if rate > 1.25 * model.full_rate {
                    model.full_rate = rate;
                    model.flat_rounds = 0;
                } else {
                    model.flat_rounds += 1;
                    if model.flat_rounds >= 3 {
                        model.phase = Phase::Drain;
                    }
                }
            }
        }
        match model.phase {
            Phase::Drain if in_flight <= product => {
                model.phase = Phase::Cruise {
                    index: 2,
                    since: now,
                };
            }
            Phase::Cruise { index, since } if now - since >= model.rtt => {
                model.phase = Phase::Cruise {
                    index: (index + 1) % 8,
                    since: now,
                };
            }
            Phase::LookForRtt { until } if now >= until => {
                model.rtt = rtt;
                model.rtt_at = now;
                model.phase = Phase::Cruise {
                    index: 2,
                    since: now,
                };
            }
            _ => {}
        }
    }

    pub(super) fn on_lost(&mut self, now: f64, bytes: f64) {
        let share = bytes / self.in_flight.max(bytes);
        self.in_flight = (self.in_flight - bytes).max(0.0);
        self.retransmitted += bytes;
        if self.algorithm == Algorithm::Bbr || now < self.recovery_until {
            return;
        }
        self.recovery_until = now + self.srtt;
        let segments = self.window / SEGMENT;
        self.epoch = None;
        self.top = if segments < self.top {
            segments * (1.0 + CUBIC_BETA) / 2.0
        } else {
            segments
        };
        let beta = if self.algorithm == Algorithm::Cubic {
            CUBIC_BETA
        } else {
            0.5
        };
        self.window = (self.window * beta).max(2.0 * SEGMENT);
        self.threshold = self.window;
        if segments < 4.0 || share > 0.7 {
            // Too few duplicates come back: only the timer notices.
            self.silent_until = now + (2.0 * self.srtt).max(0.2);
            self.window = 2.0 * SEGMENT;
        }
    }
}

fn segments_after_cut(top: f64) -> f64 {
    CUBIC_BETA * top
}
