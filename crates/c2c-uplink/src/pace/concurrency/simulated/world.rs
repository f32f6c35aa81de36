//! The bottleneck, the flows through it and the transfers that a policy asks for.

use std::collections::VecDeque;

use fastrand::Rng;

use super::flow::{Algorithm, Flow, SEGMENT};
use super::{Profile, Turn};
use crate::pace::concurrency::{Controller, Sample};

/// Who decides how many transfers there are.
pub(in crate::pace::concurrency) enum Policy<'a> {
    Fixed(u32),
    Controlled(&'a mut Controller),
}

/// What a span of a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pace::concurrency) struct Outcome {
    /// Payload delivered, bytes per second.
    pub(in crate::pace::concurrency) goodput: f64,
    /// Share of the bytes sent that were sent again.
    pub(in crate::pace::concurrency) wasted: f64,
    /// Mean wait in the queue, seconds.
    pub(in crate::pace::concurrency) queue: f64,
    /// Mean number of transfers that were sending.
    pub(in crate::pace::concurrency) transfers: f64,
    /// The largest number that was asked for.
    pub(in crate::pace::concurrency) most: u32,
}

/// Bytes of one flow in the queue, or the news that some were dropped at its end.
struct Batch {
    flow: usize,
    bytes: f64,
    lost: f64,
    at: f64,
}

struct Arrival {
    at: f64,
    bytes: f64,
    lost: f64,
    rtt: f64,
}

struct Slot {
    flow: Flow,
    ours: bool,
    /// Sends from then on; before, it connects or waits for an answer.
    from: f64,
    left: f64,
    closed: bool,
    line: VecDeque<Arrival>,
}

/// The state of one run.
pub(in crate::pace::concurrency) struct World {
    profile: Profile,
    rng: Rng,
    now: f64,
    step: f64,
    slots: Vec<Slot>,
    queue: VecDeque<Batch>,
    queued: f64,
    credit: f64,
    cut_until: f64,
    turns: usize,
    others: u32,
    work: Option<u32>,
    jitter: f64,
    jitter_at: f64,
    min_rtt: f64,
    target: u32,
    next_sample: f64,
    last_sample: f64,
    sending_since: u32,
    before: Totals,
    /// One line per sample: second, target, sending, megabytes per second, round trip in ms, the controller's words.
    pub(in crate::pace::concurrency) trace: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    acknowledged: f64,
    sent: f64,
    retransmitted: f64,
}

impl World {
    pub(in crate::pace::concurrency) fn new(profile: &Profile, seed: u64) -> World {
        World {
            rng: Rng::with_seed(seed),
            now: 0.0,
            step: (profile.path.rtt / 10.0).clamp(0.002, 0.02),
            slots: Vec::new(),
            queue: VecDeque::new(),
            queued: 0.0,
            credit: 0.0,
            cut_until: 0.0,
            turns: 0,
            others: 0,
            work: None,
            jitter: 0.0,
            jitter_at: 0.0,
            min_rtt: f64::INFINITY,
            target: 0,
            next_sample: 0.0,
            last_sample: 0.0,
            sending_since: u32::MAX,
            before: Totals::default(),
            trace: Vec::new(),
            profile: profile.clone(),
        }
    }

    /// Goes on for so many seconds.
    pub(in crate::pace::concurrency) fn run(
        &mut self,
        seconds: f64,
        policy: &mut Policy<'_>,
    ) -> Outcome {
        let (start, end) = (self.now, self.now + seconds);
        let before = self.totals();
        let mut outcome = Outcome::default();
        let mut steps = 0.0;
        while self.now < end {
            self.now += self.step;
            steps += 1.0;
            self.turn();
            if self.now >= self.next_sample {
                self.control(policy);
            }
            outcome.most = outcome.most.max(self.target);
            self.staff();
            self.arrivals();
            self.send();
            self.serve();
            outcome.queue += self.queued / self.profile.path.rate;
            outcome.transfers += f64::from(self.sending());
        }
        let after = self.totals();
        let sent = (after.sent - before.sent).max(1.0);
        Outcome {
            goodput: (after.acknowledged - before.acknowledged) / (self.now - start),
            wasted: (after.retransmitted - before.retransmitted) / sent,
            queue: outcome.queue / steps,
            transfers: outcome.transfers / steps,
            most: outcome.most,
        }
    }

    fn totals(&self) -> Totals {
        let mut all = Totals::default();
        for slot in self.slots.iter().filter(|slot| slot.ours) {
            all.acknowledged += slot.flow.acknowledged;
            all.sent += slot.flow.sent;
            all.retransmitted += slot.flow.retransmitted;
        }
        all
    }

    fn turn(&mut self) {
        while let Some((at, turn)) = self.profile.turns.get(self.turns) {
            if *at > self.now {
                break;
            }
            match *turn {
                Turn::Rate(rate) => self.profile.path.rate = rate,
                Turn::Cut(seconds) => self.cut_until = self.now + seconds,
                Turn::Others(flows) => self.others = flows,
                Turn::Work(most) => self.work = most,
            }
            self.turns += 1;
        }
        if self.now >= self.jitter_at && self.profile.path.jitter > 0.0 {
            self.jitter = (2.0 * self.rng.f64() - 1.0) * self.profile.path.jitter;
            self.jitter_at = self.now + 0.05;
        }
    }

    fn sending(&self) -> u32 {
        let sending = |slot: &&Slot| slot.ours && !slot.closed && slot.from <= self.now;
        self.slots.iter().filter(sending).count() as u32
    }

    /// Opens and closes flows until there are as many as wanted.
    fn staff(&mut self) {
        let wanted = self.work.map_or(self.target, |most| most.min(self.target));
        for (ours, wanted) in [(true, wanted), (false, self.others)] {
            let open = |slot: &&Slot| slot.ours == ours && !slot.closed;
            let mut have = self.slots.iter().filter(open).count() as u32;
            while have < wanted {
                // TCP and TLS take two round trips before the first byte of a body.
                let connect = 2.0 * self.profile.path.rtt;
                // Chunks do not begin together: the first ones of a start are as if cut at random.
                let share = if self.now < 1.0 {
                    0.5 + 0.5 * self.rng.f64()
                } else {
                    1.0
                };
                self.slots.push(Slot {
                    flow: Flow::new(
                        self.profile.algorithm,
                        self.profile.path.rtt,
                        self.profile.buffers,
                        self.now + connect,
                    ),
                    ours,
                    from: self.now + connect,
                    left: self.profile.chunk * share,
                    closed: false,
                    line: VecDeque::new(),
                });
                have += 1;
            }
            if !ours && have > wanted {
                let mut surplus = have - wanted;
                for slot in &mut self.slots {
                    if !slot.ours && !slot.closed && surplus > 0 {
                        slot.closed = true;
                        surplus -= 1;
                    }
                }
            }
        }
    }

    fn arrivals(&mut self) {
        let wanted = self.work.map_or(self.target, |most| most.min(self.target));
        let open = |slot: &&Slot| slot.ours && !slot.closed;
        let mut have = self.slots.iter().filter(open).count() as u32;
        let answer = if self.profile.handover {
            self.profile.path.rtt
        } else {
            0.0
        };
        for slot in &mut self.slots {
            let (mut bytes, mut lost, mut rtt) = (0.0, 0.0, 0.0);
            while let Some(arrival) = slot.line.front().filter(|next| next.at <= self.now) {
                bytes += arrival.bytes;
                lost += arrival.lost;
                rtt = arrival.rtt;
                slot.line.pop_front();
            }
            if bytes > 0.0 {
                slot.flow.on_acknowledged(self.now, bytes, rtt);
                if slot.ours {
                    self.min_rtt = self.min_rtt.min(rtt);
                    slot.left -= bytes;
                }
            }
            if lost > 0.0 {
                slot.flow.on_lost(self.now, lost);
            }
            if slot.ours && !slot.closed && slot.left <= 0.0 {
                slot.left = self.profile.chunk;
                if have > wanted {
                    slot.closed = true;
                    have -= 1;
                } else {
                    slot.from = self.now + answer;
                }
            }
        }
    }

    fn send(&mut self) {
        let mut offered = 0.0;
        let first = self.queue.len();
        for (flow, slot) in self.slots.iter_mut().enumerate() {
            if slot.closed || self.now < slot.from {
                continue;
            }
            let bytes = slot.flow.allowance(self.now, self.step);
            if bytes > 0.0 {
                slot.flow.on_sent(bytes);
                offered += bytes;
                self.queue.push_back(Batch {
                    flow,
                    bytes,
                    lost: 0.0,
                    at: self.now,
                });
            }
        }
        // The queue drops its tail; which flow is hit is chance, in proportion to what each sent.
        let room = self.profile.path.queue + self.profile.path.rate * self.step - self.queued;
        let mut excess = offered - room.max(0.0);
        self.queued += offered - excess.max(0.0);
        let fresh = self.queue.len() - first;
        let whole = excess > 100.0 * SEGMENT;
        let share = (excess / offered.max(1.0)).clamp(0.0, 1.0);
        while excess > 1.0 && fresh > 0 {
            if whole {
                for batch in self.queue.iter_mut().skip(first) {
                    batch.lost = batch.bytes * share;
                    batch.bytes -= batch.lost;
                }
                break;
            }
            let mut at = self.rng.f64() * offered;
            for batch in self.queue.iter_mut().skip(first) {
                at -= batch.bytes + batch.lost;
                if at <= 0.0 {
                    let lost = SEGMENT.min(batch.bytes).min(excess);
                    batch.bytes -= lost;
                    batch.lost += lost;
                    excess -= lost.max(1e-3);
                    break;
                }
            }
        }
    }

    fn serve(&mut self) {
        if self.now < self.cut_until {
            return;
        }
        self.credit = (self.credit + self.profile.path.rate * self.step)
            .min(2.0 * self.profile.path.rate * self.step);
        while self.credit > 0.0 {
            let Some(batch) = self.queue.front_mut() else {
                self.credit = 0.0;
                break;
            };
            let passed = batch.bytes.min(self.credit);
            self.credit -= passed;
            self.queued = (self.queued - passed).max(0.0);
            batch.bytes -= passed;
            let (flow, lost, at) = (batch.flow, batch.lost, batch.at);
            let done = batch.bytes <= 1e-6;
            batch.lost = 0.0;
            if done {
                self.queue.pop_front();
            }
            // A fraction of a packet is lost with the fraction of the chance.
            let unlucky =
                (passed / SEGMENT * self.profile.path.loss + self.rng.f64()).floor() * SEGMENT;
            let random = unlucky.min(passed);
            let way = (self.profile.path.rtt + self.jitter).max(0.001);
            let slot = &mut self.slots[flow];
            let arrives = slot
                .line
                .back()
                .map_or(0.0, |last| last.at)
                .max(self.now + way);
            slot.line.push_back(Arrival {
                at: arrives,
                bytes: passed - random,
                lost: lost + random,
                rtt: arrives - at,
            });
        }
    }

    /// Hands a sample to the controller about every 0.3 s, a little unevenly, as a busy machine does.
    fn control(&mut self, policy: &mut Policy<'_>) {
        let after = self.totals();
        let busy = |slot: &&Slot| slot.ours && !slot.closed && slot.from <= self.now;
        let (count, srtt) = self
            .slots
            .iter()
            .filter(busy)
            .fold((0, 0.0), |(count, sum), slot| {
                (count + 1, sum + slot.flow.srtt)
            });
        let sample = Sample {
            at_ms: (self.now * 1000.0) as u64,
            acknowledged: (after.acknowledged - self.before.acknowledged) as u64,
            sent: Some((after.sent - self.before.sent) as u64),
            retransmitted: Some((after.retransmitted - self.before.retransmitted) as u64),
            srtt_us: (count > 0).then(|| (srtt / f64::from(count) * 1e6) as u32),
            min_rtt_us: self
                .min_rtt
                .is_finite()
                .then_some((self.min_rtt * 1e6) as u32),
            sending: self.sending_since.min(count),
            waiting_work: self.work.is_none_or(|most| most > self.target),
            faults: 0,
            loss_based: self.profile.algorithm != Algorithm::Bbr,
        };
        match policy {
            Policy::Fixed(transfers) => self.target = *transfers,
            Policy::Controlled(controller) => {
                self.target = controller.sample(&sample);
                self.trace.push(format!(
                    "{:7.1} target {:2} sending {:2} {:7.2} MB/s {:5.0} ms  {}",
                    self.now,
                    self.target,
                    sample.sending,
                    (after.acknowledged - self.before.acknowledged)
                        / 1e6
                        / (self.now - self.last_sample).max(1e-3),
                    f64::from(sample.srtt_us.unwrap_or(0)) / 1e3,
                    controller.why(),
                ));
            }
        }
        self.before = after;
        self.last_sample = self.now;
        self.sending_since = count;
        self.next_sample = self.now + 0.25 + 0.1 * self.rng.f64();
    }
}
