//! What happens to a packet on one direction of a link.
//!
//! Invariants: packets arrive in the order in which they were offered; the line never sends faster than its rate, nor is it
//! idle while something waits; no more bytes wait than the queue holds. Everything about a packet is decided when it is offered,
//! in terms of a time that is passed in.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

use super::profile::{Cuts, Line};

/// For how long one draw of the jitter holds.
const JITTER_PERIOD: Duration = Duration::from_millis(50);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is there at this time.
    Arrives(Duration),
    /// It was sent and is lost on the way.
    Lost,
    /// The queue is full.
    Dropped,
    /// The link is gone, or goes before it is sent.
    Cut,
}

/// What one direction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Packets offered.
    pub(crate) packets: u64,
    /// Bytes offered, IP headers included.
    pub(crate) bytes: u64,
    /// Packets that arrive.
    pub(crate) delivered: u64,
    /// Bytes that arrive.
    pub(crate) delivered_bytes: u64,
    /// Packets lost on the way.
    pub(crate) lost: u64,
    /// Packets that found the queue full.
    pub(crate) dropped: u64,
    /// Packets that a cut took.
    pub(crate) cut: u64,
    /// Waiting times of all packets sent, added up.
    pub(crate) waited: Duration,
}

/// The model of one direction.
#[derive(Debug)]
pub(crate) struct Model {
    line: Line,
    cuts: Option<Cuts>,
    rng: Rng,
    /// When the last bit of what waits will have been sent.
    free_at: Duration,
    /// When each packet that waits will have been sent, and its bytes.
    waiting: VecDeque<(Duration, usize)>,
    waiting_bytes: usize,
    delay: Duration,
    redraw_at: Duration,
    last_arrival: Duration,
    tally: Tally,
}

impl Model {
    /// An empty line at time zero, at which the first period of the cuts begins.
    pub(crate) fn new(line: Line, cuts: Option<Cuts>, rng: Rng) -> Model {
        Model {
            line,
            cuts,
            rng,
            free_at: Duration::ZERO,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            delay: line.delay,
            redraw_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    /// Decides about a packet of this many bytes that comes now. `now` never goes back.
    pub(crate) fn offer(&mut self, now: Duration, bytes: usize) -> Fate {
        let fate = self.decide(now, bytes);
        let length = bytes as u64;
        self.tally.packets += 1;
        self.tally.bytes += length;
        match fate {
            Fate::Arrives(_) => {
                self.tally.delivered += 1;
                self.tally.delivered_bytes += length;
            }
            Fate::Lost => self.tally.lost += 1,
            Fate::Dropped => self.tally.dropped += 1,
            Fate::Cut => self.tally.cut += 1,
        }
        fate
    }

    /// What was done since the line was made.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    fn decide(&mut self, now: Duration, bytes: usize) -> Fate {
        while let Some(&(sent, length)) = self.waiting.front()
            && sent <= now
        {
            self.waiting.pop_front();
            self.waiting_bytes -= length;
        }
        let begin = self.free_at.max(now);
        let sent = begin + self.airtime(bytes);
        if let Some(cuts) = self.cuts
            && cuts.up_for(now).is_none_or(|left| now + left < sent)
        {
            return Fate::Cut;
        }
        if self.waiting_bytes + bytes > self.line.queue {
            return Fate::Dropped;
        }
        self.free_at = sent;
        self.waiting.push_back((sent, bytes));
        self.waiting_bytes += bytes;
        self.tally.waited += begin - now;
        if self.line.loss > 0.0 && self.rng.f64() < self.line.loss {
            return Fate::Lost;
        }
        self.last_arrival = self.last_arrival.max(sent + self.delay(sent));
        Fate::Arrives(self.last_arrival)
    }

    fn airtime(&self, bytes: usize) -> Duration {
        Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / self.line.rate)
    }

    fn delay(&mut self, now: Duration) -> Duration {
        if !self.line.jitter.is_zero() && now >= self.redraw_at {
            let jitter = self.line.jitter.mul_f64(2.0 * self.rng.f64());
            self.delay = (self.line.delay + jitter).saturating_sub(self.line.jitter);
            self.redraw_at = now + JITTER_PERIOD;
        }
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1500;

    /// 12 Mbit/s: a packet of 1500 bytes takes 1 ms.
    fn line() -> Line {
        Line {
            rate: 12_000_000,
            delay: ms(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            queue: 4 * PACKET,
        }
    }

    fn model(line: Line) -> Model {
        Model::new(line, None, Rng::with_seed(7))
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_leaves_at_the_rate_and_what_the_queue_cannot_hold_is_dropped() {
        let mut model = model(line());
        let fates: Vec<Fate> = (0..6).map(|_| model.offer(ms(5), PACKET)).collect();
        assert_eq!(
            fates,
            [
                Fate::Arrives(ms(16)),
                Fate::Arrives(ms(17)),
                Fate::Arrives(ms(18)),
                Fate::Arrives(ms(19)),
                Fate::Dropped,
                Fate::Dropped,
            ]
        );
        // One packet has been sent, so there is room for one.
        assert_eq!(model.offer(ms(6), PACKET), Fate::Arrives(ms(20)));
        assert_eq!(model.offer(ms(6), PACKET), Fate::Dropped);
        // All have been sent: nothing waits, and the line was not sending meanwhile.
        assert_eq!(model.offer(ms(30), PACKET), Fate::Arrives(ms(41)));
        let tally = model.tally();
        assert_eq!(
            (tally.packets, tally.delivered, tally.dropped, tally.lost),
            (9, 6, 3, 0)
        );
        assert_eq!(tally.bytes, 9 * 1500);
        assert_eq!(tally.delivered_bytes, 6 * 1500);
        assert_eq!(tally.waited, ms(1 + 2 + 3 + 3));
    }

    #[test]
    fn a_small_packet_finds_room_where_a_large_one_does_not() {
        let mut model = model(line());
        assert!(matches!(model.offer(ms(0), 5000), Fate::Arrives(_)));
        assert_eq!(model.offer(ms(0), PACKET), Fate::Dropped);
        assert!(matches!(model.offer(ms(0), 40), Fate::Arrives(_)));
    }

    #[test]
    fn a_line_that_is_kept_busy_delivers_its_rate_less_the_loss() {
        let mut model = model(Line {
            loss: 0.02,
            ..line()
        });
        let mut last = Duration::ZERO;
        // Twice the rate for a minute.
        for tick in 0..120_000_u64 {
            if let Fate::Arrives(at) = model.offer(Duration::from_micros(tick * 500), PACKET) {
                assert!(at > last);
                last = at;
            }
        }
        let tally = model.tally();
        let sent = tally.delivered + tally.lost;
        assert!((60_000..60_005).contains(&sent), "{tally:?}");
        assert!((1_000..1_400).contains(&tally.lost), "{tally:?}");
        assert_eq!(tally.dropped, 120_000 - sent);
        // A full queue: three packets, and half of one on average.
        let mean = tally.waited.as_secs_f64() / sent as f64;
        assert!((0.0025..0.0035).contains(&mean), "{mean}");
    }

    #[test]
    fn a_lost_packet_uses_its_airtime() {
        let mut model = model(Line {
            loss: 1.0,
            ..line()
        });
        assert_eq!(model.offer(ms(0), PACKET), Fate::Lost);
        model.line.loss = 0.0;
        assert_eq!(model.offer(ms(0), PACKET), Fate::Arrives(ms(12)));
    }

    #[test]
    fn jitter_changes_every_50_ms_within_its_bounds_and_keeps_the_order() {
        let mut model = model(Line {
            delay: ms(15),
            jitter: ms(10),
            ..line()
        });
        let mut last = Duration::ZERO;
        let mut by_period = vec![Vec::new(); 1000];
        for tick in 0..25_000_u64 {
            let now = ms(tick * 2);
            let Fate::Arrives(at) = model.offer(now, PACKET) else {
                panic!("nothing is lost here");
            };
            assert!(at >= last);
            last = at;
            by_period[usize::try_from(tick / 25).unwrap()].push(at - now - ms(1));
        }
        let first: Vec<Duration> = by_period.iter().map(|delays| delays[24]).collect();
        assert!(first.iter().all(|&delay| delay >= ms(5) && delay <= ms(25)));
        assert!(first.iter().any(|&delay| delay < ms(7)));
        assert!(first.iter().any(|&delay| delay > ms(23)));
        let mean = first.iter().sum::<Duration>() / 1000;
        assert!(mean > ms(14) && mean < ms(16), "{mean:?}");
    }

    #[test]
    fn a_cut_takes_what_waits_and_what_comes_but_not_what_is_on_its_way() {
        let cuts = Cuts {
            every: ms(100),
            length: ms(20),
        };
        let mut model = Model::new(line(), Some(cuts), Rng::with_seed(7));
        let fates: Vec<Fate> = (0..3).map(|_| model.offer(ms(78), PACKET)).collect();
        assert_eq!(
            fates,
            [Fate::Arrives(ms(89)), Fate::Arrives(ms(90)), Fate::Cut]
        );
        assert_eq!(model.offer(ms(80), 40), Fate::Cut);
        assert_eq!(model.offer(ms(99), 40), Fate::Cut);
        assert_eq!(model.offer(ms(100), PACKET), Fate::Arrives(ms(111)));
        assert_eq!(model.tally().cut, 3);
    }
}
