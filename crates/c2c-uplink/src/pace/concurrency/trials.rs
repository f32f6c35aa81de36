//! The controller on the modelled links. `--nocapture` prints the tables that the constants come from; a release build tries
//! twenty seeds, a debug build three.

use super::simulated::{
    BLOATED, CLEAN, FAT, LTE, Outcome, Path, Policy, Profile, SATELLITE, THIN, Turn, WIFI, World,
    mbit,
};
use super::{Bounds, Controller, Settled, Why};

const MIB: f64 = 1024.0 * 1024.0;

fn seeds() -> std::ops::RangeInclusive<u64> {
    1..=if cfg!(debug_assertions) { 3 } else { 20 }
}

fn auto() -> Controller {
    Controller::new(Bounds { min: 1, max: 32 }, 4)
}

/// `first` seconds to settle, then what `then` seconds bring.
fn fixed(profile: &Profile, transfers: u32, seed: u64, first: f64, then: f64) -> Outcome {
    let mut world = World::new(profile, seed);
    let mut policy = Policy::Fixed(transfers);
    world.run(first, &mut policy);
    world.run(then, &mut policy)
}

fn mean(outcomes: &[Outcome], what: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(what).sum::<f64>() / outcomes.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In percent of the line's rate, of which packets leave 96.5 % for payload.
fn share(goodput: f64, path: Path) -> f64 {
    100.0 * goodput / (path.rate * 1e6 / 8.0)
}

#[test]
fn the_model_agrees_with_measured_links() {
    // (link, CUBIC, transfers, measured least and most % of the line in the first 40 s)
    let rows = [
        (LTE, true, 1, (14.0, 18.0)),
        (LTE, true, 2, (30.0, 33.0)),
        (LTE, true, 4, (49.0, 65.0)),
        (LTE, true, 8, (83.0, 95.0)),
        (LTE, true, 16, (93.0, 95.0)),
        (WIFI, true, 1, (16.0, 26.0)),
        (WIFI, true, 2, (39.0, 50.0)),
        (WIFI, true, 4, (69.0, 83.0)),
        (WIFI, true, 8, (84.0, 94.0)),
        (SATELLITE, true, 2, (5.0, 7.0)),
        (SATELLITE, true, 4, (8.0, 14.0)),
        (SATELLITE, true, 8, (17.0, 24.0)),
        (SATELLITE, true, 16, (37.0, 47.0)),
        (FAT, true, 2, (84.0, 90.0)),
        (FAT, true, 4, (86.0, 94.0)),
        (BLOATED, true, 1, (90.0, 96.0)),
        (LTE, false, 1, (92.0, 93.0)),
        (LTE, false, 4, (93.0, 94.0)),
        (WIFI, false, 1, (92.0, 92.0)),
        (WIFI, false, 4, (93.0, 94.0)),
        (SATELLITE, false, 2, (67.0, 82.0)),
        (SATELLITE, false, 4, (75.0, 84.0)),
        (SATELLITE, false, 8, (79.0, 85.0)),
        (FAT, false, 4, (82.0, 93.0)),
    ];
    // How far the model may be off, in points: its chunks, its machine and its kernel cost nothing.
    const OFF: f64 = 10.0;
    for (path, cubic, transfers, (least, most)) in rows {
        let profile = Profile::new(path, cubic).handover();
        let goodput = median(
            (1..=3)
                .map(|seed| share(fixed(&profile, transfers, seed, 0.0, 40.0).goodput, path))
                .collect(),
        );
        println!(
            "{transfers:2} × cubic {cubic:5} over {:4} Mbit/s, {:3.0} ms: {goodput:3.0} %, measured {least} to {most}",
            path.rate,
            path.rtt * 1e3
        );
        assert!(
            goodput > least - OFF && goodput < most + OFF,
            "{transfers} over {path:?}: {goodput} %, measured {least} to {most}"
        );
    }
    // The queue: with CUBIC a buffer of a second is full, with BBR it is nearly empty.
    let queue = |cubic| {
        let profile = Profile::new(BLOATED, cubic);
        1000.0 * fixed(&profile, 1, 1, 20.0, 40.0).queue
    };
    assert!((500.0..900.0).contains(&queue(true)), "{}", queue(true));
    assert!(queue(false) < 60.0, "{}", queue(false));
}

/// A steady link, and what is asked of the controller there.
struct Steady {
    name: &'static str,
    path: Path,
    cubic: bool,
    chunk: f64,
    handover: bool,
    buffers: f64,
    /// Share of the best fixed number's goodput that the mean of all seeds must reach...
    mean: f64,
    /// ...and each seed.
    each: f64,
    /// Transfers at most, as the mean over time and seeds.
    transfers: f64,
    /// Seconds until a span brings `each` of the best, median of the seeds.
    soon: f64,
}

fn steady(name: &'static str, path: Path, cubic: bool) -> Steady {
    Steady {
        name,
        path,
        cubic,
        chunk: 25.0 * MIB,
        handover: false,
        buffers: 3e6,
        mean: 0.93,
        each: 0.80,
        transfers: 2.5,
        soon: 30.0,
    }
}

fn try_steady(rows: &[Steady]) {
    for row in rows {
        let mut profile = Profile::new(row.path, row.cubic)
            .chunk(row.chunk)
            .buffers(row.buffers);
        if row.handover {
            profile = profile.handover();
        }
        let (best, number) = [1, 2, 4, 8, 16, 32]
            .map(|n| {
                let runs = [1, 2].map(|seed| fixed(&profile, n, seed, 30.0, 60.0));
                (mean(&runs, |run| run.goodput), n)
            })
            .into_iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        let mut late = Vec::new();
        let mut soon = Vec::new();
        for seed in seeds() {
            let mut controller = auto();
            let mut world = World::new(&profile, seed);
            let mut good = None;
            for span in 0..36 {
                let outcome = world.run(5.0, &mut Policy::Controlled(&mut controller));
                if outcome.goodput >= row.each * best && good.is_none() {
                    good = Some(5.0 * f64::from(span + 1));
                }
            }
            soon.push(good.unwrap_or(f64::INFINITY));
            late.push(world.run(180.0, &mut Policy::Controlled(&mut controller)));
        }
        let least = late
            .iter()
            .map(|run| run.goodput)
            .fold(f64::INFINITY, f64::min)
            / best;
        let soon = median(soon);
        let all = mean(&late, |run| run.goodput) / best;
        let transfers = mean(&late, |run| run.transfers);
        println!(
            "{:12} {:5}: best {:3.0} % with {number:2}; auto {:3.0} % of that (least {:3.0}), {transfers:4.1} transfers, {:4.1} % sent twice, queue {:3.0} ms, good after {soon:3.0} s",
            row.name,
            if row.cubic { "cubic" } else { "bbr" },
            share(best, row.path),
            100.0 * all,
            100.0 * least,
            100.0 * mean(&late, |run| run.wasted),
            1000.0 * mean(&late, |run| run.queue),
        );
        assert!(all >= row.mean, "{}: {all}", row.name);
        assert!(least >= row.each, "{}: {least}", row.name);
        assert!(transfers <= row.transfers, "{}: {transfers}", row.name);
        assert!(soon <= row.soon, "{}: {soon} s", row.name);
    }
}

#[test]
fn loss_asks_for_many() {
    try_steady(&[
        Steady {
            transfers: 10.0,
            ..steady("lte", LTE, true)
        },
        Steady {
            transfers: 9.0,
            ..steady("wifi", WIFI, true)
        },
        Steady {
            transfers: 10.0,
            chunk: MIB,
            handover: true,
            ..steady("lte stills", LTE, true)
        },
    ]);
}

#[test]
fn a_lossy_satellite_asks_for_all() {
    try_steady(&[Steady {
        mean: 0.90,
        transfers: 32.0,
        soon: 90.0,
        ..steady("satellite", SATELLITE, true)
    }]);
}

/// Over a satellite each look takes a quarter of a minute: whoever climbs by looks alone is late.
#[test]
fn a_lossy_satellite_is_climbed_at_once() {
    for chunk in [25.0 * MIB, 5.0 * MIB] {
        let mut shares = Vec::new();
        for seed in seeds() {
            let profile = Profile::new(SATELLITE, true).chunk(chunk).handover();
            let mut world = World::new(&profile, seed);
            let first = world.run(120.0, &mut Policy::Controlled(&mut auto()));
            shares.push(share(first.goodput, SATELLITE));
        }
        println!("the first 120 s bring {shares:.0?} % of the line");
        assert!(shares.iter().all(|share| *share > 50.0));
        assert!(median(shares) > 55.0);
    }
}

#[test]
fn without_loss_few_are_enough() {
    try_steady(&[
        steady("fat", FAT, true),
        Steady {
            handover: true,
            transfers: 4.0,
            ..steady("fat, answers", FAT, true)
        },
        steady("clean", CLEAN, true),
        // No loss and no queue either: each flow brings a fixed 13 MB/s.
        Steady {
            buffers: 262_144.0,
            transfers: 14.0,
            soon: 40.0,
            ..steady("fat, small", FAT, true)
        },
        // A policer: it drops what is too much and queues nothing.
        Steady {
            mean: 0.84,
            each: 0.75,
            transfers: 8.0,
            soon: 40.0,
            ..steady(
                "policed",
                Path {
                    queue: 15e3,
                    ..CLEAN
                },
                true,
            )
        },
        // The same far away, where those who seem to starve are believed, and rightly: there the most bring the most.
        Steady {
            transfers: 32.0,
            soon: 40.0,
            ..steady(
                "policed far",
                Path {
                    queue: 150e3,
                    rtt: 0.600,
                    ..CLEAN
                },
                true,
            )
        },
        steady("bloated", BLOATED, true),
        Steady {
            chunk: MIB,
            ..steady("thin", THIN, true)
        },
    ]);
}

#[test]
fn one_or_two_are_enough_for_bbr() {
    try_steady(&[
        steady("lte", LTE, false),
        Steady {
            transfers: 3.0,
            mean: 0.90,
            ..steady("wifi", WIFI, false)
        },
        Steady {
            transfers: 4.0,
            mean: 0.85,
            ..steady("satellite", SATELLITE, false)
        },
        // As measured over real satellite emulations: one flow brings two thirds.
        Steady {
            buffers: 1e6,
            transfers: 4.0,
            ..steady("sat, small", SATELLITE, false)
        },
        steady("fat", FAT, false),
        steady("bloated", BLOATED, false),
        Steady {
            chunk: MIB,
            ..steady("thin", THIN, false)
        },
    ]);
}

#[test]
fn reno_is_loss_based_too() {
    for seed in seeds() {
        let mut controller = auto();
        let profile = Profile::new(LTE, true).reno().chunk(8.0 * MIB);
        assert!(profile.loss_based());
        let mut world = World::new(&profile, seed);
        world.run(60.0, &mut Policy::Controlled(&mut controller));
        let late = world.run(120.0, &mut Policy::Controlled(&mut controller));
        assert!(share(late.goodput, LTE) > 82.0, "{late:?}");
    }
}

/// Runs through turns; the outcomes of `(seconds to adapt, seconds that count)` after each.
fn through(profile: &Profile, seed: u64, spans: &[(f64, f64)]) -> (Controller, Vec<Outcome>) {
    let mut controller = auto();
    let mut world = World::new(profile, seed);
    let outcomes = spans
        .iter()
        .map(|(adapt, counts)| {
            world.run(*adapt, &mut Policy::Controlled(&mut controller));
            world.run(*counts, &mut Policy::Controlled(&mut controller))
        })
        .collect();
    (controller, outcomes)
}

#[test]
fn a_rate_that_changes_in_mid_flight_is_followed() {
    for (cubic, transfers) in [(true, 10.0), (false, 4.0)] {
        let profile = Profile::new(LTE, cubic)
            .chunk(4.0 * MIB)
            .turn(120.0, Turn::Rate(mbit(2.0)))
            .turn(240.0, Turn::Rate(mbit(50.0)))
            .turn(360.0, Turn::Rate(mbit(20.0)));
        let mut all = [0.0; 4];
        for seed in seeds() {
            let spans = [(60.0, 60.0); 4];
            let (_, outcomes) = through(&profile, seed, &spans);
            for ((sum, outcome), rate) in all.iter_mut().zip(&outcomes).zip([20.0, 2.0, 50.0, 20.0])
            {
                *sum += outcome.goodput / mbit(rate) / seeds().count() as f64;
                assert!(
                    outcome.goodput / mbit(rate) > 0.65,
                    "{cubic} {seed} {rate}: {outcome:?}"
                );
            }
            // On the 2 Mbit/s that are left, a queue of 150 kB is 0.6 s: what filled 20 Mbit/s is too much.
            assert!(
                outcomes[1].transfers < transfers,
                "{cubic} {seed}: {outcomes:?}"
            );
        }
        println!("cubic {cubic}: 20, 2, 50, 20 Mbit/s: {all:.2?} of each");
        assert!(all.iter().all(|share| *share > 0.85), "{all:?}");
    }
}

#[test]
fn others_come_and_go() {
    for cubic in [true, false] {
        let profile = Profile::new(CLEAN, cubic)
            .chunk(4.0 * MIB)
            .turn(90.0, Turn::Others(4))
            .turn(210.0, Turn::Others(0));
        for seed in seeds() {
            let (_, outcomes) =
                through(&profile, seed, &[(45.0, 45.0), (60.0, 60.0), (45.0, 60.0)]);
            let shares: Vec<_> = outcomes
                .iter()
                .map(|run| run.goodput / mbit(20.0))
                .collect();
            println!(
                "cubic {cubic}, four others in the middle: {shares:.2?}, {:.1} transfers",
                outcomes[1].transfers
            );
            assert!(shares[0] > 0.9 && shares[2] > 0.9, "{outcomes:?}");
            // Neither starved, nor crowding out the others.
            assert!(shares[1] > 0.1, "{outcomes:?}");
            assert!(outcomes[1].transfers < 7.0, "{outcomes:?}");
        }
    }
}

#[test]
fn cuts_are_waited_for() {
    for cubic in [true, false] {
        let path = Path {
            rate: 10.0,
            ..CLEAN
        };
        let mut profile = Profile::new(path, cubic).chunk(4.0 * MIB);
        for cut in 1..15 {
            profile = profile.turn(20.0 * f64::from(cut), Turn::Cut(2.0));
        }
        for seed in seeds() {
            let (_, outcomes) = through(&profile, seed, &[(60.0, 220.0)]);
            let share = outcomes[0].goodput / mbit(10.0) / 0.9;
            println!("cubic {cubic}, 2 s cut of 20: {share:.2} of the time it was up");
            assert!(share > 0.85, "{outcomes:?}");
            assert!(outcomes[0].transfers < 6.0, "{outcomes:?}");
        }
    }
}

#[test]
fn a_long_cut_changes_nothing() {
    let profile = Profile::new(CLEAN, true)
        .chunk(4.0 * MIB)
        .turn(100.0, Turn::Cut(120.0));
    let mut controller = auto();
    let mut world = World::new(&profile, 1);
    world.run(100.0, &mut Policy::Controlled(&mut controller));
    let before = (controller.target(), controller.settled());
    world.run(110.0, &mut Policy::Controlled(&mut controller));
    assert_eq!(controller.why(), Why::Silent);
    assert!(controller.target() <= before.0 + 1, "{controller:?}");
    world.run(40.0, &mut Policy::Controlled(&mut controller));
    assert_ne!(controller.why(), Why::Silent);
}

#[test]
fn too_little_work_teaches_nothing() {
    for cubic in [true, false] {
        let profile = Profile::new(LTE, cubic).turn(0.0, Turn::Work(Some(2)));
        let mut controller = auto();
        let mut world = World::new(&profile, 3);
        world.run(120.0, &mut Policy::Controlled(&mut controller));
        assert_eq!(controller.target(), 4, "{}", world.trace.join("\n"));
        assert_eq!(controller.settled(), None);
        assert_eq!(controller.why(), Why::LittleWork);
    }
}

#[test]
fn what_suited_a_network_is_used_at_once() {
    let mut gains = Vec::new();
    for seed in seeds() {
        let profile = Profile::new(LTE, true).chunk(8.0 * MIB);
        let mut controller = auto();
        World::new(&profile, seed).run(120.0, &mut Policy::Controlled(&mut controller));
        let Some(settled) = controller.settled() else {
            continue;
        };
        controller.network_changed();
        assert_eq!((controller.target(), controller.settled()), (4, None));
        let fresh =
            World::new(&profile, seed + 100).run(6.0, &mut Policy::Controlled(&mut controller));
        controller.resume(settled);
        assert_eq!(controller.target(), settled.transfers);
        assert_eq!(controller.why(), Why::Remembered);
        let mut world = World::new(&profile, seed + 100);
        let known = world.run(6.0, &mut Policy::Controlled(&mut controller));
        gains.push(known.goodput / fresh.goodput);
        world.run(10.0, &mut Policy::Controlled(&mut controller));
        assert!(controller.settled().is_some(), "{}", world.trace.join("\n"));
    }
    println!("the first six seconds bring {:.2?} times as much", gains);
    assert!(gains.len() > 1 && median(gains) > 1.1);
}

#[test]
fn a_wrong_memory_is_mended() {
    for (transfers, path, cubic, least, most) in [
        (32, CLEAN, true, 0.9, 6.0),
        (1, LTE, true, 0.85, 12.0),
        (32, LTE, false, 0.85, 6.0),
    ] {
        for seed in seeds() {
            let profile = Profile::new(path, cubic).chunk(MIB);
            let mut controller = auto();
            controller.resume(Settled {
                transfers,
                goodput: 50_000_000,
            });
            let mut world = World::new(&profile, seed);
            world.run(150.0, &mut Policy::Controlled(&mut controller));
            let late = world.run(60.0, &mut Policy::Controlled(&mut controller));
            assert!(
                late.goodput > least * mbit(path.rate),
                "{transfers}: {late:?}"
            );
            assert!(late.transfers < most, "{transfers}: {late:?}");
        }
    }
}
