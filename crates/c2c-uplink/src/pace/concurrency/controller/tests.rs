use proptest::prelude::*;

use super::*;

/// What a number of transfers brings on an imagined link.
#[derive(Clone, Copy)]
struct Brings {
    /// Bytes per second.
    goodput: f64,
    srtt_ms: u32,
    min_rtt_ms: u32,
    /// Share of what is sent that is sent again.
    wasted: f64,
    faults: u32,
}

impl Default for Brings {
    fn default() -> Brings {
        Brings {
            goodput: 1e6,
            srtt_ms: 50,
            min_rtt_ms: 48,
            wasted: 0.0,
            faults: 0,
        }
    }
}

/// A link that answers every number at once and evenly.
struct Bench {
    controller: Controller,
    now: u64,
    loss_based: bool,
    seen: Vec<Why>,
}

impl Bench {
    fn new(bounds: (u32, u32), start: u32) -> Bench {
        let (min, max) = bounds;
        Bench {
            controller: Controller::new(Bounds { min, max }, start),
            now: 1000,
            loss_based: true,
            seen: Vec::new(),
        }
    }

    fn sample(&mut self, sample: Sample) -> u32 {
        let target = self.controller.sample(&sample);
        if self.seen.last() != Some(&self.controller.why()) {
            self.seen.push(self.controller.why());
        }
        target
    }

    fn run(&mut self, seconds: u64, link: impl Fn(u32) -> Brings) -> u32 {
        for _ in 0..seconds * 4 {
            self.now += 250;
            let brings = link(self.controller.target());
            let acknowledged = brings.goodput / 4.0;
            let sent = acknowledged / (1.0 - brings.wasted);
            self.sample(Sample {
                at_ms: self.now,
                acknowledged: acknowledged as u64,
                sent: Some(sent as u64),
                retransmitted: Some((sent * brings.wasted) as u64),
                srtt_us: Some(brings.srtt_ms * 1000),
                min_rtt_us: Some(brings.min_rtt_ms * 1000),
                sending: self.controller.target(),
                waiting_work: true,
                faults: brings.faults,
                loss_based: self.loss_based,
            });
        }
        self.controller.target()
    }
}

/// Each brings as much as the one before, up to so many.
fn up_to(most: u32) -> impl Fn(u32) -> Brings {
    move |n| Brings {
        goodput: 1e6 * f64::from(n.min(most)),
        ..Brings::default()
    }
}

#[test]
fn it_finds_the_fewest_that_fill_the_link() {
    for (start, most) in [
        (4, 1),
        (4, 2),
        (4, 4),
        (4, 7),
        (4, 12),
        (1, 9),
        (16, 3),
        (2, 32),
    ] {
        let mut bench = Bench::new((1, 32), start);
        bench.run(240, up_to(most));
        let settled = bench.controller.settled().unwrap();
        assert_eq!(settled.transfers, most, "from {start}: {:?}", bench.seen);
        assert_eq!(settled.goodput, u64::from(most) * 1_000_000);
    }
}

#[test]
fn bounds_hold() {
    for (min, max, start, most, ends) in [
        (1, 6, 4, 20, 6),
        (3, 32, 4, 1, 3),
        (2, 5, 99, 1, 2),
        (0, 0, 0, 9, 1),
        (9, 3, 1, 1, 9),
    ] {
        let mut bench = Bench::new((min, max), start);
        assert_eq!(bench.run(200, up_to(most)), ends);
    }
}

#[test]
fn a_fixed_number_stays() {
    let mut bench = Bench::new((7, 7), 4);
    assert_eq!(bench.run(60, up_to(32)), 7);
    assert_eq!(bench.controller.why(), Why::Fixed);
    assert_eq!(bench.controller.settled(), None);
}

#[test]
fn at_the_bound_it_says_so() {
    let mut bench = Bench::new((1, 8), 4);
    bench.run(30, up_to(32));
    assert!(bench.seen.contains(&Why::AtMost), "{:?}", bench.seen);
}

#[test]
fn what_is_remembered_is_confirmed_or_mended_within_the_bounds() {
    for (transfers, goodput, ends, confirmed) in [
        (5, 5_000_000, 5, true),
        (12, 12_000_000, 5, false),
        (1_000_000, u64::MAX, 5, false),
        (0, 0, 5, false),
    ] {
        let mut bench = Bench::new((1, 16), 4);
        bench.controller.resume(Settled { transfers, goodput });
        assert_eq!(bench.controller.target(), transfers.clamp(1, 16));
        bench.run(240, up_to(5));
        assert_eq!(
            bench.controller.target(),
            ends,
            "{transfers}: {:?}",
            bench.seen
        );
        assert_eq!(
            bench.seen.contains(&Why::Confirmed),
            confirmed,
            "{:?}",
            bench.seen
        );
        bench.controller.network_changed();
        assert_eq!(
            (bench.controller.target(), bench.controller.settled()),
            (4, None)
        );
    }
}

#[test]
fn broken_connections_are_taken_back() {
    // Something on the way allows six connections and breaks each further one.
    let link = |n: u32| Brings {
        goodput: 1e6 * f64::from(n.min(6)),
        faults: n.saturating_sub(6),
        ..Brings::default()
    };
    let mut bench = Bench::new((1, 32), 4);
    bench.run(240, link);
    assert!(bench.controller.target() <= 7, "{:?}", bench.seen);
    let faults = |why: &Why| matches!(why, Why::Faults { .. });
    assert!(bench.seen.iter().any(faults), "{:?}", bench.seen);
    let settled = bench.controller.settled().unwrap();
    assert!((4..=6).contains(&settled.transfers), "{settled:?}");
}

#[test]
fn a_dead_link_is_no_reason_to_change() {
    let mut bench = Bench::new((1, 32), 4);
    bench.run(120, up_to(5));
    let before = bench.controller.target();
    let dead = |n| Brings {
        goodput: 0.0,
        faults: n,
        ..Brings::default()
    };
    assert_eq!(bench.run(300, dead), before);
    assert_eq!(bench.controller.why(), Why::Silent);
    assert_eq!(bench.run(60, up_to(5)), before);
    assert_ne!(bench.controller.why(), Why::Silent);
}

#[test]
fn waste_is_counted() {
    // BBR on LTE as measured: more flows bring a point, and a seventh of the packets is dropped.
    let link = |n| {
        let (share, wasted, queue) = match n {
            1 => (0.92, 0.003, 6),
            2 => (0.92, 0.061, 51),
            3..=4 => (0.93, 0.106, 56),
            5..=8 => (0.93, 0.132, 56),
            _ => (0.94, 0.148, 56),
        };
        Brings {
            goodput: 2.5e6 * share,
            srtt_ms: 60 + queue,
            min_rtt_ms: 60,
            wasted,
            faults: 0,
        }
    };
    for start in [1, 2, 4, 8, 16] {
        let mut bench = Bench::new((1, 32), start);
        bench.loss_based = false;
        bench.run(120, link);
        assert_eq!(
            bench.controller.settled().map(|settled| settled.transfers),
            Some(1),
            "{start}: {:?}",
            bench.seen
        );
    }
}

#[test]
fn over_a_satellite_two_to_four_of_bbr_are_enough() {
    // BBR as measured: 63 % with one, 82 % with two, then 84 and 85 %.
    let link = |n| Brings {
        goodput: 2.5e6 * [0.63, 0.82, 0.83, 0.84][(n as usize - 1).min(3)],
        srtt_ms: if n < 2 { 620 } else { 900 },
        min_rtt_ms: 600,
        ..Brings::default()
    };
    for start in [1, 2, 4, 8] {
        let mut bench = Bench::new((1, 32), start);
        bench.loss_based = false;
        bench.run(400, link);
        let settled = bench.controller.settled().unwrap();
        let few = (2..=4).contains(&settled.transfers);
        assert!(few, "{start}: {:?}", bench.seen);
    }
}

#[test]
fn the_delay_is_told() {
    let link = |n| Brings {
        goodput: 2e6,
        srtt_ms: 50 + 90 * n,
        ..Brings::default()
    };
    let mut bench = Bench::new((1, 32), 4);
    bench.run(2, |_| Brings::default());
    bench.run(60, link);
    assert_eq!(bench.controller.target(), 1);
    let told = |why: &Why| {
        matches!(
            why,
            Why::Delay {
                from_ms: 50,
                to_ms: 300..=410
            }
        )
    };
    assert!(bench.seen.iter().any(told), "{:?}", bench.seen);
}

#[test]
fn samples_far_apart_are_not_compared() {
    let mut bench = Bench::new((1, 32), 4);
    for _ in 0..50 {
        bench.now += 10_000;
        let sample = Sample {
            at_ms: bench.now,
            acknowledged: 10_000_000,
            sending: 4,
            waiting_work: true,
            loss_based: true,
            ..Sample::default()
        };
        assert_eq!(bench.sample(sample), 4);
    }
    assert_eq!(bench.controller.settled(), None);
}

#[test]
fn without_the_kernels_facts_the_goodput_decides() {
    let mut bench = Bench::new((1, 32), 4);
    for _ in 0..800 {
        bench.now += 300;
        let n = bench.controller.target();
        bench.sample(Sample {
            at_ms: bench.now,
            acknowledged: 300_000 * u64::from(n.min(9)),
            sending: n,
            waiting_work: true,
            loss_based: true,
            ..Sample::default()
        });
    }
    assert_eq!(
        bench.controller.settled().map(|settled| settled.transfers),
        Some(9)
    );
}

#[test]
fn reasons_are_for_people() {
    let rows = [
        (Why::Climbing { from: 4, to: 8 }, "climbing: from 4 to 8"),
        (
            Why::MoreBroughtNothing {
                more: 3,
                percent: -1,
            },
            "holding: 3 more brought nothing",
        ),
        (
            Why::MoreBroughtNothing {
                more: 3,
                percent: 4,
            },
            "holding: 3 more brought only 4 %",
        ),
        (
            Why::FewerLost {
                fewer: 1,
                percent: 12,
            },
            "holding: 1 fewer lost 12 %",
        ),
        (
            Why::Delay {
                from_ms: 60,
                to_ms: 410,
            },
            "backing off: the round trip went from 60 to 410 ms",
        ),
        (
            Why::Waste { percent: 14 },
            "backing off: 14 % of the bytes are sent again",
        ),
        (Why::Silent, "holding: nothing is acknowledged"),
    ];
    for (why, text) in rows {
        assert_eq!(why.to_string(), text);
    }
}

fn any_sample() -> impl Strategy<Value = (u64, Sample)> {
    let bytes = prop_oneof![Just(0), 0..10_000_000u64, Just(u64::MAX)];
    let rtt = prop_oneof![Just(0), 1..3_000_000u32, Just(u32::MAX)];
    let few = prop_oneof![0..40u32, Just(u32::MAX)];
    (
        prop_oneof![200..600u64, Just(0), 0..20_000u64, Just(u64::MAX / 64)],
        (
            bytes.clone(),
            proptest::option::of(bytes.clone()),
            proptest::option::of(bytes),
        ),
        (proptest::option::of(rtt.clone()), proptest::option::of(rtt)),
        (
            few.clone(),
            any::<bool>(),
            prop_oneof![9 => Just(0), 1 => few],
            any::<bool>(),
        ),
    )
        .prop_map(
            |(
                gap,
                (acknowledged, sent, retransmitted),
                (srtt_us, min_rtt_us),
                (sending, waiting_work, faults, loss_based),
            )| {
                let sample = Sample {
                    at_ms: 0,
                    acknowledged,
                    sent,
                    retransmitted,
                    srtt_us,
                    min_rtt_us,
                    sending,
                    waiting_work,
                    faults,
                    loss_based,
                };
                (gap, sample)
            },
        )
}

proptest! {
    /// Whatever it is told, the target stays within the bounds, and what it remembers does, too.
    #[test]
    fn the_target_stays_within_the_bounds(
        min in 0..8u32,
        max in prop_oneof![0..40u32, Just(u32::MAX)],
        start in any::<u32>(),
        remembered in proptest::option::of((any::<u32>(), any::<u64>())),
        samples in proptest::collection::vec(any_sample(), 1..400),
        // Most spans are obedient, or nothing would ever be tried.
        obey in any::<bool>(),
    ) {
        let mut controller = Controller::new(Bounds { min, max }, start);
        if let Some((transfers, goodput)) = remembered {
            controller.resume(Settled { transfers, goodput });
        }
        let bounds = min.max(1)..=max.max(min).max(1);
        let mut now = 0u64;
        for (gap, sample) in samples {
            now = now.saturating_add(gap);
            let sending = if obey { controller.target() } else { sample.sending };
            let target = controller.sample(&Sample { at_ms: now, sending, ..sample });
            prop_assert!(bounds.contains(&target));
            prop_assert_eq!(target, controller.target());
            prop_assert!(controller.settled().is_none_or(|settled| bounds.contains(&settled.transfers)));
            prop_assert!(!controller.why().to_string().is_empty());
        }
    }
}
