//! Somebody else needs the line for a while: what they get, what they wait, and what it costs the client.
//!
//! Invariants: the other begins and ends at the same moments of every trial, whatever the client does; what each got is what
//! arrived, counted at the far end; the round trip is that of small packets through the same queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Failure;
use crate::link::{self, Network, Ping, Pinger, Stranger};
use crate::measure::{Cost, Task};
use crate::sink::{Counts, Observer};
use crate::table::{Summary, table};

/// Between two looks at what arrived.
const LOOK: Duration = Duration::from_millis(100);

/// A rate is that of the last so many seconds.
const SPAN: f64 = 1.0;

/// Who is below this share of the rate before has yielded.
const YIELDED: f64 = 0.5;

/// Who is above this share of it is back.
const BACK: f64 = 0.8;

/// One trial of one client.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shared {
    pub(crate) work: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) title: String,
    pub(crate) round: usize,
    pub(crate) cost: Cost,
    pub(crate) counts: Counts,
    pub(crate) line: link::Counts,
    pub(crate) course: Course,
    pub(crate) figures: Figures,
    pub(crate) trouble: Option<String>,
}

/// What happened when. Times are seconds since the client began.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Course {
    /// Bits per second of the link.
    rate: u64,
    /// When the other began to connect.
    came: f64,
    /// When the other was gone.
    went: f64,
    looks: Vec<Look>,
    pings: Vec<Ping>,
}

/// What had arrived by then, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Look {
    at: f64,
    ours: u64,
    theirs: u64,
}

/// What is told about a trial. Shares are of the link, times in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    /// The client's share in the seconds before the other came, and the round trip then.
    alone: f64,
    alone_round_trip: f64,
    /// From a second after the other came until it went.
    theirs: f64,
    ours: f64,
    round_trip: f64,
    round_trip_95: f64,
    /// From the moment the other came until the client was below half of what it had, and stayed there on average.
    yielded: Option<f64>,
    /// From the moment the other went.
    back: Option<f64>,
}

impl Course {
    fn arrived(&self, at: f64, whose: fn(&Look) -> u64) -> f64 {
        let after = self.looks.partition_point(|look| look.at <= at);
        match (
            after.checked_sub(1).and_then(|i| self.looks.get(i)),
            self.looks.get(after),
        ) {
            (Some(before), Some(after)) => {
                let share = (at - before.at) / (after.at - before.at);
                let (from, to) = (whose(before) as f64, whose(after) as f64);
                from + (to - from) * share
            }
            (Some(last), None) => whose(last) as f64,
            (None, _) => 0.0,
        }
    }

    /// The share of the link between two moments.
    fn share(&self, from: f64, to: f64, whose: fn(&Look) -> u64) -> f64 {
        let bytes = self.arrived(to, whose) - self.arrived(from, whose);
        bytes * 8.0 / (to - from).max(f64::EPSILON) / self.rate.max(1) as f64
    }

    /// The answers to what was asked between two moments, in order of their size.
    fn round_trips(&self, from: f64, to: f64) -> Vec<f64> {
        let asked = |ping: &&Ping| ping.sent >= from && ping.sent < to;
        let mut all: Vec<f64> = self
            .pings
            .iter()
            .filter(asked)
            .filter_map(|ping| ping.round_trip)
            .collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn figures(&self) -> Figures {
        let ours = |look: &Look| look.ours;
        let theirs = |look: &Look| look.theirs;
        let (came, went) = (self.came, self.went);
        let settled = (came - 10.0).max(came / 2.0);
        let alone = self.share(settled, came, ours);
        let meanwhile = self.round_trips(came + SPAN, went);
        let moments = |from: f64, to: f64| {
            self.looks
                .iter()
                .map(|look| look.at)
                .filter(move |at| *at > from && *at <= to)
        };
        let now = |at: f64| self.share(at - SPAN, at, ours);
        Figures {
            alone,
            alone_round_trip: mean(&self.round_trips(settled, came)),
            theirs: self.share(came + SPAN, went, theirs),
            ours: self.share(came + SPAN, went, ours),
            round_trip: mean(&meanwhile),
            round_trip_95: high(&meanwhile),
            // One that only wavers has not yielded. The last second is too short for an average.
            yielded: moments(came, went - SPAN)
                .find(|&at| {
                    now(at) < YIELDED * alone && self.share(at, went, ours) < YIELDED * alone
                })
                .map(|at| at - came),
            back: moments(went, f64::INFINITY)
                .find(|&at| now(at) >= BACK * alone)
                .map(|at| at - went),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What 95 of 100 are not above, of values in order.
fn high(values: &[f64]) -> f64 {
    let index = (values.len() * 95).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(0.0)
}

/// Somebody else, from the moment they begin to connect.
type Other = JoinHandle<std::io::Result<Stranger>>;

/// Runs a client for `limit`; somebody else comes after a quarter of it and stays for another.
pub(crate) fn share(
    task: &Task,
    sink: &mut Observer,
    network: &Network,
    limit: Duration,
) -> Result<(Course, Counts, link::Counts, Cost, Option<String>), Failure> {
    let began = Instant::now();
    let pinger = Pinger::begin(network, began)?;
    let mut course = Course {
        rate: network.profile().rate(),
        ..Course::default()
    };
    let theirs = Arc::new(AtomicU64::new(0));
    let mut other: Option<Other> = None;
    let mut due = Duration::ZERO;
    let mut last = None;
    let failed = |source| Failure::Io {
        what: "somebody else on the line".into(),
        source,
    };
    let (cost, words) = task.run_until(|| {
        let now = began.elapsed();
        if now >= due {
            due = now + LOOK;
            let counts = sink.counts()?;
            course.looks.push(Look {
                at: began.elapsed().as_secs_f64(),
                ours: counts.bytes,
                theirs: theirs.load(Ordering::Relaxed),
            });
            last = Some((counts, network.counts()));
        }
        if other.is_none() && course.came == 0.0 && now >= limit / 4 {
            course.came = now.as_secs_f64();
            let (near, far) = (network.near().to_owned(), network.far().to_owned());
            let arrived = theirs.clone();
            // Connecting takes as long as the queue is; the looks go on meanwhile.
            other = Some(thread::spawn(move || Stranger::begin(&near, &far, arrived)));
        }
        if now >= limit / 2
            && let Some(other) = other.take()
        {
            end(other).map_err(failed)?;
            course.went = began.elapsed().as_secs_f64();
        }
        Ok(now >= limit)
    })?;
    if let Some(other) = other.take() {
        end(other).map_err(failed)?;
    }
    course.pings = pinger.end();
    let (counts, line) = match last {
        Some(last) => last,
        None => (sink.counts()?, network.counts()),
    };
    let trouble = (!cost.cut_off).then(|| format!("it ended too early: {words}"));
    Ok((course, counts, line, cost, trouble))
}

fn end(other: Other) -> std::io::Result<()> {
    let stranger = other
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))?;
    drop(stranger);
    Ok(())
}

impl Shared {
    pub(crate) fn figures(course: &Course) -> Figures {
        course.figures()
    }

    /// The trial in a line.
    pub(crate) fn words(&self) -> String {
        let f = &self.figures;
        let after = |time: Option<f64>| time.map_or("never".into(), |time| format!("{time:.1} s"));
        format!(
            "alone {:.0} % at {:.0} ms; with another {:.0} %, who got {:.0} % at {:.0} ms (p95 {:.0}); yielded {}, back {}",
            f.alone * 100.0,
            f.alone_round_trip * 1000.0,
            f.ours * 100.0,
            f.theirs * 100.0,
            f.round_trip * 1000.0,
            f.round_trip_95 * 1000.0,
            after(f.yielded),
            after(f.back),
        )
    }
}

/// The table of all trials.
pub(crate) fn tell(all: &[Shared], missing: &[(String, String)]) -> String {
    let mut peers: Vec<&Shared> = Vec::new();
    for one in all {
        if !peers.iter().any(|known| known.peer == one.peer) {
            peers.push(one);
        }
    }
    let mut rows: Vec<Vec<String>> = peers
        .iter()
        .map(|peer| {
            let good: Vec<&Figures> = all
                .iter()
                .filter(|one| one.peer == peer.peer && one.trouble.is_none())
                .map(|one| &one.figures)
                .collect();
            let column = |value: &dyn Fn(&Figures) -> f64| {
                let values: Vec<f64> = good.iter().map(|one| value(one)).collect();
                Summary::of(&values).map_or_else(|| "failed".to_owned(), |summary| summary.text(0))
            };
            let moment = |value: &dyn Fn(&Figures) -> Option<f64>| {
                let values: Vec<f64> = good.iter().filter_map(|one| value(one)).collect();
                match (Summary::of(&values), good.len() - values.len()) {
                    (_, 0) if good.is_empty() => "failed".to_owned(),
                    (None, _) => "never".to_owned(),
                    (Some(summary), 0) => summary.text(1),
                    (Some(summary), never) => {
                        format!("{}, never in {never} of {}", summary.text(1), good.len())
                    }
                }
            };
            vec![
                peer.title.clone(),
                column(&|one| one.alone * 100.0),
                column(&|one| one.alone_round_trip * 1000.0),
                column(&|one| one.theirs * 100.0),
                column(&|one| one.ours * 100.0),
                column(&|one| one.round_trip * 1000.0),
                column(&|one| one.round_trip_95 * 1000.0),
                moment(&|one| one.yielded),
                moment(&|one| one.back),
            ]
        })
        .collect();
    for (title, why) in missing {
        rows.push(vec![title.clone(), why.clone()]);
    }
    let head = [
        "client",
        "alone, % of the link",
        "round trip then, ms",
        "the other gets, %",
        "the client meanwhile, %",
        "round trip meanwhile, ms",
        "95 % of them below, ms",
        "yielded after, s",
        "back after, s",
    ];
    table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of 8 Mbit/s, a byte a microsecond: `ours` and `theirs` say who gets how much of it, by the second.
    fn course(ours: fn(f64) -> f64, theirs: fn(f64) -> f64) -> Course {
        let mut course = Course {
            rate: 8_000_000,
            came: 20.0,
            went: 40.0,
            ..Course::default()
        };
        let (mut own, mut other) = (0.0, 0.0);
        for tick in 0..800 {
            let at = f64::from(tick) * 0.1;
            course.looks.push(Look {
                at,
                ours: own as u64,
                theirs: other as u64,
            });
            course.pings.push(Ping {
                sent: at,
                round_trip: (tick % 10 != 0).then(|| 0.06 + 0.1 * theirs(at)),
            });
            own += ours(at) * 100_000.0;
            other += theirs(at) * 100_000.0;
        }
        course
    }

    fn while_there(at: f64) -> bool {
        (20.0..40.0).contains(&at)
    }

    #[test]
    fn who_yields_and_comes_back_is_seen_to() {
        // Gone after 3 s; back, little by little, from 42 to 52 s.
        let polite = |at: f64| match at {
            at if at < 23.0 => 0.9,
            at if at < 42.0 => 0.1,
            at => (0.1 + (at - 42.0) * 0.08).min(0.9),
        };
        let figures = course(polite, |at| if while_there(at) { 0.8 } else { 0.0 }).figures();
        let near = |value: f64, wanted: f64, by: f64| (value - wanted).abs() <= by;
        assert!(near(figures.alone, 0.9, 0.001), "{figures:?}");
        assert!(near(figures.alone_round_trip, 0.06, 0.001), "{figures:?}");
        assert!(near(figures.theirs, 0.8, 0.001), "{figures:?}");
        assert!(near(figures.round_trip, 0.14, 0.001), "{figures:?}");
        assert!(near(figures.round_trip_95, 0.14, 0.001), "{figures:?}");
        assert!(near(figures.yielded.unwrap(), 3.6, 0.3), "{figures:?}");
        assert!(near(figures.back.unwrap(), 10.2, 0.7), "{figures:?}");
    }

    #[test]
    fn who_only_wavers_has_not_yielded_and_was_never_away() {
        let rude = |at: f64| if (25.0..27.0).contains(&at) { 0.2 } else { 0.9 };
        let figures = course(rude, |at| if while_there(at) { 0.05 } else { 0.0 }).figures();
        assert_eq!(figures.yielded, None);
        assert!(figures.back.unwrap() < 0.2, "{figures:?}");
        let gone = |at: f64| if at < 20.0 { 0.9 } else { 0.0 };
        let figures = course(gone, |_| 0.0).figures();
        assert_eq!(figures.back, None);
        assert!(figures.yielded.unwrap() < 1.0, "{figures:?}");
    }

    #[test]
    fn what_95_of_100_are_not_above() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(high(&hundred), 95.0);
        assert_eq!(high(&[7.0]), 7.0);
        assert_eq!(high(&[]), 0.0);
    }
}
