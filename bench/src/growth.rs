//! How the cost of c2c grows with what there is to do.
//!
//! Invariants: of one row of cells only one thing differs; a cell that stands in several rows is measured once in each round;
//! what waits besides is in the queue before the time is taken. Of what waits behind, a few dozen small files are sent while the
//! last chunks of the large one are on their way: that is how the client works, and in its cost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::Failure;
use crate::measure::{Cost, Task};
use crate::peer::{Job, Ours, Peer, copy_dir, sibling};
use crate::sink::{Addresses, Counts, Observer};
use crate::table::{Summary, table};
use crate::work::Work;

const MIB: u64 = 1 << 20;

/// Media that wait besides.
const WAITING: u64 = 10_000;

/// Nothing that is measured here takes longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is in the queue besides what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Waiting {
    Nothing,
    /// Held by hand.
    Held,
    /// Of a lower priority: it could be sent at any time.
    Behind,
}

/// One amount of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    count: u64,
    size: u64,
    transfers: usize,
    waiting: Waiting,
}

/// One cell of one row in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Grown {
    work: &'static str,
    what: &'static str,
    label: &'static str,
    round: usize,
    cost: Cost,
    counts: Counts,
    files: u64,
    bytes: u64,
    trouble: Option<String>,
}

const USUAL: Cell = Cell {
    count: 1,
    size: 1024 * MIB,
    transfers: 4,
    waiting: Waiting::Nothing,
};

/// What grows, how much there is of it, and the cell.
fn rows() -> Vec<(&'static str, &'static str, Cell)> {
    let sized = |mib| Cell {
        size: mib * MIB,
        ..USUAL
    };
    let many = |count| Cell {
        count,
        size: MIB / 4,
        ..USUAL
    };
    let by = |transfers| Cell { transfers, ..USUAL };
    let besides = |waiting| Cell { waiting, ..USUAL };
    const SIZE: &str = "size of one file";
    const COUNT: &str = "files of 256 KiB";
    const TRANSFERS: &str = "transfers, one file of 1 GiB";
    const QUEUE: &str = "queue besides one file of 1 GiB";
    vec![
        (SIZE, "256 MiB", sized(256)),
        (SIZE, "1 GiB", USUAL),
        (SIZE, "4 GiB", sized(4096)),
        (COUNT, "100", many(100)),
        (COUNT, "1,000", many(1000)),
        (COUNT, "4,000", many(4000)),
        (TRANSFERS, "1", by(1)),
        (TRANSFERS, "4", USUAL),
        (TRANSFERS, "16", by(16)),
        (TRANSFERS, "32", by(32)),
        (QUEUE, "nothing", USUAL),
        (QUEUE, "10,000 held", besides(Waiting::Held)),
        (
            QUEUE,
            "10,000 behind in order, killed at the end of the first",
            besides(Waiting::Behind),
        ),
    ]
}

/// Where everything is.
pub(crate) struct Site<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) paired: &'a Path,
    pub(crate) addresses: &'a Addresses,
    pub(crate) rounds: usize,
    /// An eighth of everything.
    pub(crate) quick: bool,
}

/// Measures all cells; the files are removed afterwards, since no other work needs them.
pub(crate) fn measure(
    work: &Work,
    site: &Site<'_>,
    sink: &mut Observer,
    say: &dyn Fn(&str),
) -> Result<Vec<Grown>, Failure> {
    let mut made = Made::default();
    let done = made.measure(work, site, sink, say);
    for dir in made.dirs {
        // What cannot be removed lies below the directory of the bench.
        let _ = fs::remove_dir_all(dir);
    }
    done
}

/// What was made and is to go.
#[derive(Default)]
struct Made {
    dirs: Vec<PathBuf>,
}

impl Made {
    fn measure(
        &mut self,
        work: &Work,
        site: &Site<'_>,
        sink: &mut Observer,
        say: &dyn Fn(&str),
    ) -> Result<Vec<Grown>, Failure> {
        let rows = rows().into_iter().map(|(what, label, cell)| {
            let mut cell = cell;
            if site.quick && cell.count > 1 {
                cell.count = cell.count.div_ceil(8);
            } else if site.quick {
                cell.size /= 8;
            }
            (what, label, cell)
        });
        let rows: Vec<_> = rows.collect();
        let mut states = BTreeMap::from([(Waiting::Nothing, site.paired.to_owned())]);
        let mut all = Vec::new();
        for round in 0..site.rounds {
            let mut known: BTreeMap<Cell, (Cost, Counts, Option<String>)> = BTreeMap::new();
            for (what, label, cell) in &rows {
                let (cost, counts, trouble) = match known.get(cell) {
                    Some(known) => known.clone(),
                    None => {
                        let state = match states.get(&cell.waiting) {
                            Some(state) => state.clone(),
                            None => self.queue(work, site, cell.waiting)?,
                        };
                        let files = self.files(work, site, *cell)?;
                        let ran = run(site, sink, *cell, &files, &state)?;
                        states.insert(cell.waiting, state);
                        say(&format!(
                            "{} round {}: {what}: {label}: {:.2} s, {:.2} CPU-s, {:.1} MiB{}",
                            work.name,
                            round + 1,
                            ran.0.wall,
                            ran.0.cpu,
                            ran.0.memory,
                            ran.2
                                .as_deref()
                                .map_or(String::new(), |words| format!(": FAILED: {words}")),
                        ));
                        known.insert(*cell, ran.clone());
                        ran
                    }
                };
                all.push(Grown {
                    work: work.name,
                    what,
                    label,
                    round,
                    cost,
                    counts,
                    files: cell.count,
                    bytes: cell.count * cell.size,
                    trouble,
                });
            }
        }
        Ok(all)
    }

    fn files(&mut self, work: &Work, site: &Site<'_>, cell: Cell) -> Result<Vec<PathBuf>, Failure> {
        let made = work.with(cell.count, cell.size).files(site.dir, false)?;
        self.remember(made.dir);
        Ok(made.whole)
    }

    /// A paired state with so much in its queue.
    fn queue(&mut self, work: &Work, site: &Site<'_>, how: Waiting) -> Result<PathBuf, Failure> {
        let io = |source| Failure::Io {
            what: "making a long queue".into(),
            source,
        };
        let count = if site.quick { WAITING / 8 } else { WAITING };
        let made = work.with(count, 1024).files(site.dir, false)?;
        self.remember(made.dir);
        let list: Vec<String> = made
            .whole
            .iter()
            .map(|path| format!("{}\n", path.display()))
            .collect();
        let state = site.dir.join(match how {
            Waiting::Held => "held",
            _ => "behind",
        });
        self.remember(state.clone());
        let _ = fs::remove_dir_all(&state);
        copy_dir(site.paired, &state).map_err(io)?;
        let names = state.join("files-of-the-bench");
        fs::write(&names, list.concat()).map_err(io)?;
        let ours = |words: &[&str]| -> Result<(), Failure> {
            let task = Task::new(sibling("c2c")?, site.dir)
                .args(words)
                .args([Path::new("--state-dir"), &state])
                .env("C2C_API_URL", &site.addresses.api)
                .env("C2C_CA_FILE", &site.addresses.ca_file)
                .env("C2C_CLIENT_SECRET", "sink");
            let (cost, said) = task.run()?;
            match cost.ended_well {
                true => Ok(()),
                false => Err(Failure::Queue(said)),
            }
        };
        let names = names.display().to_string();
        ours(&["add", "--priority", "-1", "--files-from", &names])?;
        if how == Waiting::Held {
            ours(&["hold", "--all"])?;
        }
        Ok(state)
    }

    fn remember(&mut self, dir: PathBuf) {
        if !self.dirs.contains(&dir) {
            self.dirs.push(dir);
        }
    }
}

fn run(
    site: &Site<'_>,
    sink: &mut Observer,
    cell: Cell,
    files: &[PathBuf],
    paired: &Path,
) -> Result<(Cost, Counts, Option<String>), Failure> {
    let job = Job {
        files,
        pieces: &[],
        dir: site.dir,
        sink: site.addresses,
        paired,
        scratch: &site.dir.join("scratch"),
        connections: cell.transfers,
        congestion: "cubic",
        python: Path::new(""),
    };
    let mut task = Peer::Ours(Ours::Fixed).task(&job)?;
    task.core = Some(0);
    task.limit = Some(PATIENCE);
    sink.reset()?;
    let bytes = cell.count * cell.size;
    let (cost, words) = if cell.waiting == Waiting::Behind {
        // It would go on with what waits behind. That is less than a chunk of the file by then, so the file is there.
        task.run_until(|| Ok(sink.counts()?.bytes_whole >= bytes))?
    } else {
        task.run()?
    };
    let ended = cost.ended_well || (cell.waiting == Waiting::Behind && cost.cut_off);
    let counts = sink.counts()?;
    let complete = counts.bytes_whole >= bytes;
    Ok((cost, counts, (!ended || !complete).then_some(words)))
}

/// The table of all rows.
pub(crate) fn tell(all: &[Grown]) -> String {
    let mut cells: Vec<(&str, &str)> = Vec::new();
    for one in all {
        if !cells.contains(&(one.what, one.label)) {
            cells.push((one.what, one.label));
        }
    }
    let rows: Vec<Vec<String>> = cells
        .iter()
        .map(|&(what, label)| {
            let good: Vec<&Grown> = all
                .iter()
                .filter(|one| (one.what, one.label) == (what, label) && one.trouble.is_none())
                .collect();
            let column = |value: &dyn Fn(&Grown) -> f64, decimals: usize| {
                let values: Vec<f64> = good.iter().map(|one| value(one)).collect();
                Summary::of(&values)
                    .map_or_else(|| "failed".to_owned(), |summary| summary.text(decimals))
            };
            let gib = |one: &Grown| one.bytes.max(1) as f64 / f64::from(1 << 30);
            vec![
                what.to_owned(),
                label.to_owned(),
                column(&|one| one.cost.wall, 2),
                column(&|one| one.cost.cpu / gib(one), 2),
                // Of one file it would say nothing that the column before does not.
                match good.iter().all(|one| one.files == 1) && !good.is_empty() {
                    true => "–".to_owned(),
                    false => column(&|one| one.cost.cpu * 1000.0 / one.files.max(1) as f64, 1),
                },
                column(&|one| one.cost.memory, 0),
            ]
        })
        .collect();
    let head = [
        "what grows",
        "how much",
        "wall, s",
        "CPU-s per GiB",
        "CPU-ms per file",
        "memory, MiB",
    ];
    table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_row_of_cells_one_thing_differs() {
        let rows = rows();
        for (what, label, cell) in &rows {
            let differs: Vec<usize> = rows
                .iter()
                .filter(|(other, ..)| other == what)
                .map(|(_, _, other)| {
                    usize::from(other.count != cell.count)
                        + usize::from(other.size != cell.size)
                        + usize::from(other.transfers != cell.transfers)
                        + usize::from(other.waiting != cell.waiting)
                })
                .collect();
            assert!(differs.len() > 2, "{what}");
            assert_eq!(
                differs.iter().filter(|&&count| count == 0).count(),
                1,
                "{label}"
            );
            assert!(differs.iter().all(|&count| count <= 1), "{what}: {label}");
        }
    }

    #[test]
    fn each_cell_has_its_line_and_a_failure_says_so() {
        let one = |label, cpu, trouble: Option<&str>| Grown {
            work: "growth",
            what: "files",
            label,
            round: 0,
            cost: Cost {
                wall: 2.0,
                cpu,
                memory: 20.0,
                ..Cost::default()
            },
            counts: Counts::default(),
            files: 100,
            bytes: 1 << 29,
            trouble: trouble.map(str::to_owned),
        };
        let text = tell(&[
            one("100", 1.0, None),
            one("9", 5.0, Some("no")),
            one("100", 2.0, None),
        ]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| files | 100 | 2.00 (2.00–2.00) | 3.00 (2.00–4.00) | 15.0 (10.0–20.0) | 20 (20–20) |",
                "| files | 9 | failed | failed | failed | failed |",
            ]
        );
    }
}
