//! The crash census: at every named point of the way of the data the program kills itself with SIGKILL, several times in a row, and
//! is started again. Nothing accepted is lost, nothing recorded is sent again, and no person is needed, but where an answer with
//! tokens died with the process.
//!
//! The table that it prints is the one in `docs/RELIABILITY.md`.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(unix)]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use c2c_queue::MediaState;
use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator};
use c2c_uplink::crash::POINTS;
use support::books::Books;
use support::ledger::{Cost, Ledger};
use support::{Ended, IN_FLIGHT, Place, service};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CHUNK: u64 = 64 << 10;

/// What is going on when the program dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Workload {
    /// One file of twelve chunks.
    Clip,
    /// Thirty files of one chunk.
    Stills,
    /// Clips and stills, cuts and 503s on the way, and tokens that run out twice.
    Mixed,
    /// The unit comes into another project: told by the service, and by pairing again.
    Moved,
}

const WORKLOADS: [Workload; 4] = [
    Workload::Clip,
    Workload::Stills,
    Workload::Mixed,
    Workload::Moved,
];

/// What came of one point and one workload.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    kills: usize,
    /// Media that were accepted.
    accepted: usize,
    /// How often a person had to type in a code again.
    paired_again: usize,
    cost: Cost,
}

/// Which passes of the point kill, in the order of the runs.
fn passes(point: &str, workload: Workload) -> VecDeque<u32> {
    let passes: &[u32] = match (point.split('.').next(), workload) {
        (Some("chunk"), _) => &[1, 4, 2],
        (Some("register"), Workload::Stills | Workload::Mixed) => &[1, 6, 3],
        (Some("delivered" | "sealed"), Workload::Stills) => &[1, 9, 4],
        (Some("setback"), _) => &[1, 2, 1],
        _ => &[1, 1],
    };
    passes.iter().copied().collect()
}

/// One unit that dies at one point again and again.
struct Unit {
    point: &'static str,
    simulator: Simulator,
    place: Place,
    passes: VecDeque<u32>,
    /// How often the clock of the service may still be moved past the life of the tokens.
    expiries: u32,
    /// Every name that was accepted into the queue of this project.
    accepted: Vec<String>,
    ledger: Ledger,
    found: Found,
}

impl Unit {
    async fn new(point: &'static str, workload: Workload) -> Unit {
        let simulator = service(CHUNK).start().await.unwrap();
        let place = Place::at(&simulator);
        Unit {
            point,
            simulator,
            place,
            passes: passes(point, workload),
            expiries: 0,
            accepted: Vec::new(),
            ledger: Ledger::default(),
            found: Found::default(),
        }
    }

    fn file(&self, name: &str, size: usize) -> String {
        self.place.file(name, size);
        name.to_owned()
    }

    /// Runs the program, to be killed at the next pass. What it left is held against what it told and what the service saw.
    async fn once(&mut self, args: &[&str], deadly: bool) -> Ended {
        let pass = if deadly { self.passes.front() } else { None };
        let crash = pass.map(|pass| format!("{}:{pass}", self.point));
        let more: Vec<_> = crash
            .iter()
            .map(|crash| ("C2C_CRASH", crash.as_str()))
            .collect();
        let ended = self.place.run_with(args, &more).await;
        let (command, files) = (args[0], &args[1..]);
        let adds = matches!(command, "add" | "upload");
        if ended.was_killed() {
            assert!(crash.is_some(), "killed by somebody else: {ended:#?}");
            self.passes.pop_front();
            self.found.kills += 1;
        }
        let books = Books::read(&self.place.state()).await;
        books.keep_what_was_told(&ended.told());
        if adds && (self.point != "add.before" || !ended.was_killed()) {
            // The program went past the adding, so every file is accepted.
            for name in files {
                if !self.accepted.iter().any(|known| known == name) {
                    self.accepted.push((*name).to_owned());
                }
            }
        }
        for name in &self.accepted {
            let state = books.state_of(name);
            assert!(
                state.is_some_and(|state| !state.is_resting() || state == MediaState::Delivered),
                "{name} was accepted and is {state:?} after {}: {ended:#?}",
                self.point
            );
        }
        assert_eq!(
            books.media.len(),
            self.accepted.len(),
            "accepted, or not: {ended:#?}"
        );
        if ended.was_killed() {
            self.ledger.died(self.simulator.admin(), &books).await;
        }
        ended
    }

    /// Pairs, through every death. A person is needed again only if the tokens died on the way.
    async fn pair(&mut self) {
        loop {
            let ended = self.once(&["pair"], true).await;
            let paired = Books::read(&self.place.state()).await.paired;
            if !ended.was_killed() {
                ended.exits(0);
                assert!(paired);
                return;
            }
            let status = self.place.run(&["status"]).await.exits(0).document();
            assert_eq!(status["paired"], paired, "{status}");
            assert_eq!(
                paired,
                self.point != "pair.answered",
                "only tokens that were never stored are lost"
            );
            if paired {
                return;
            }
            self.found.paired_again += 1;
        }
    }

    /// Adds or uploads, through every death, until the program ends by itself.
    async fn work(&mut self, command: &str, files: &[String]) {
        let mut with_files = true;
        loop {
            let mut args = vec![command];
            if with_files {
                args.extend(files.iter().map(String::as_str));
            }
            if command == "upload" && self.expiries > 0 {
                self.expiries -= 1;
                self.simulator
                    .clock()
                    .advance(Duration::from_secs(8 * 3600 + 60));
            }
            let ended = self.once(&args, true).await;
            if ended.was_killed() {
                // Both are right after a death: to say the files again, and to let the queue go on.
                let kept = files.iter().all(|name| self.accepted.contains(name));
                with_files = !kept || command == "add" || !with_files;
                continue;
            }
            if ended.status.code() == Some(3) {
                self.lost_tokens(&ended).await;
                continue;
            }
            ended.exits(0);
            return;
        }
    }

    /// The service rotated the tokens, and the answer died with the process: the one case for a person.
    async fn lost_tokens(&mut self, ended: &Ended) {
        assert_eq!(
            self.point, "refresh.answered",
            "a person is needed: {ended:#?}"
        );
        assert!(
            ended.err.contains("c2c pair") && ended.err.contains("the queue is kept"),
            "{}",
            ended.err
        );
        let status = self.place.run(&["status"]).await.exits(0).document();
        assert_eq!(status["paired"], false, "{status}");
        assert!(status["lost"].is_string(), "{status}");
        self.found.paired_again += 1;
        // Only by asking could it know that the token was spent.
        self.ledger.excused = Some("a spent refresh token was used again");
        self.place.run(&["pair"]).await.exits(0);
    }

    /// What `names` are delivered, once, with the right bytes and receipts.
    async fn settle(mut self, names: &[String]) -> Found {
        let admin = self.simulator.admin().clone();
        self.found.cost = self.ledger.settle(&admin, &self.place, names).await;
        self.found.accepted = names.len();
        self.simulator.shutdown().await;
        self.found
    }
}

async fn clip(point: &'static str) -> Found {
    let mut unit = Unit::new(point, Workload::Clip).await;
    let names = vec![unit.file("A001C001.mov", 12 * CHUNK as usize - 77)];
    unit.pair().await;
    unit.work("upload", &names).await;
    unit.settle(&names).await
}

async fn stills(point: &'static str) -> Found {
    let mut unit = Unit::new(point, Workload::Stills).await;
    let names: Vec<_> = (0..30)
        .map(|n| unit.file(&format!("STILL{n:02}.jpg"), 5_000 + 331 * n))
        .collect();
    unit.pair().await;
    unit.work("add", &names).await;
    unit.work("upload", &[]).await;
    unit.settle(&names).await
}

async fn mixed(point: &'static str) -> Found {
    let mut unit = Unit::new(point, Workload::Mixed).await;
    let sizes = [
        5 * CHUNK as usize,
        9_000,
        4 * CHUNK as usize + 1,
        0,
        3 * CHUNK as usize - 1,
        40_000,
    ];
    let names: Vec<_> = sizes
        .into_iter()
        .enumerate()
        .map(|(n, size)| unit.file(&format!("MIX{n}.mov"), size))
        .collect();
    unit.pair().await;
    let unavailable = || Effect::Status {
        status: 503,
        body: BodyKind::S3 {
            code: "ServiceUnavailable".into(),
            message: "Please try again.".into(),
        },
        headers: Vec::new(),
    };
    let admin = unit.simulator.admin();
    for fault in [
        Fault::new(EndpointName::PutChunk, Effect::CutAfterBytes(10_000))
            .times(2)
            .after(1),
        Fault::new(EndpointName::PutChunk, unavailable())
            .times(3)
            .after(3),
        Fault::new(EndpointName::PutChunk, Effect::CutBeforeAnswer)
            .once()
            .after(4),
        Fault::new(EndpointName::CreateAsset, unavailable())
            .once()
            .after(1),
        Fault::new(EndpointName::CreateAsset, Effect::CutBeforeAnswer)
            .once()
            .after(2),
    ] {
        admin.add_fault(fault);
    }
    unit.expiries = 3;
    unit.work("add", &names[..3]).await;
    unit.work("upload", &names[3..]).await;
    // The files of the first half may have been all that was said last.
    unit.work("upload", &[]).await;
    unit.settle(&names).await
}

/// Nothing of one project passes into another, wherever the program dies on the way.
async fn moved(point: &'static str) -> Found {
    let mut unit = Unit::new(point, Workload::Moved).await;
    let admin = unit.simulator.admin().clone();
    let by_service = admin.add_project("The second");
    let by_pairing = admin.add_project("The third");
    let first = unit.file("FIRST.mov", 3 * CHUNK as usize);
    unit.pair().await;
    unit.work("upload", std::slice::from_ref(&first)).await;
    let receipt = Books::read(&unit.place.state()).await.receipts[&first].clone();
    let mut expected = BTreeMap::from([(first, receipt.project_id.clone())]);

    for (n, project) in [by_service, by_pairing].into_iter().enumerate() {
        let old: Vec<_> = (0..3)
            .map(|k| unit.file(&format!("OLD{n}{k}.mov"), 1000 * k))
            .collect();
        let args: Vec<&str> = std::iter::once("add")
            .chain(old.iter().map(String::as_str))
            .collect();
        unit.once(&args, false).await.exits(0);
        unit.passes = passes(point, Workload::Moved);
        if n == 0 {
            admin.rebind_device(&project).unwrap();
        } else {
            admin.move_device_to_project(&project).unwrap();
            unit.pair_elsewhere(&old).await;
        }
        unit.arrive(&old).await;
        unit.accepted.clear();
        assert!(
            admin
                .assets()
                .iter()
                .all(|asset| !old.contains(&asset.name)),
            "media of one project went into another: {:#?}",
            admin.assets()
        );
        let new = unit.file(&format!("NEW{n}.mov"), 2 * CHUNK as usize);
        unit.passes.clear();
        unit.work("upload", std::slice::from_ref(&new)).await;
        expected.insert(new, project);
    }
    let there: BTreeMap<_, _> = admin
        .delivered()
        .into_iter()
        .map(|delivered| (delivered.name, delivered.project_id))
        .collect();
    assert_eq!(there, expected);
    unit.found.accepted = expected.len();
    unit.found.cost = unit.ledger.cost(&admin);
    unit.simulator.shutdown().await;
    unit.found
}

impl Unit {
    /// The tokens died with the move: the program says so, keeps the queue, and is paired into the other project.
    async fn pair_elsewhere(&mut self, old: &[String]) {
        loop {
            let ended = self.dying(&["upload"]).await;
            let books = Books::read(&self.place.state()).await;
            assert!(
                old.iter().all(|name| books.media.contains_key(name)),
                "{ended:#?}"
            );
            if !ended.was_killed() {
                let ended = ended.exits(3);
                assert!(ended.err.contains("the queue is kept"), "{}", ended.err);
                break;
            }
        }
        loop {
            let ended = self.dying(&["pair"]).await;
            if !ended.was_killed() {
                ended.exits(0);
                return;
            }
            if Books::read(&self.place.state()).await.paired {
                return;
            }
            assert_eq!(self.point, "pair.answered");
            self.found.paired_again += 1;
        }
    }

    /// The first talk in another project empties the queue, whole or not at all, and lets nothing out.
    async fn arrive(&mut self, old: &[String]) {
        loop {
            let ended = self.dying(&["upload"]).await;
            let left = Books::read(&self.place.state()).await.media.len();
            if !ended.was_killed() {
                ended.exits(0);
                assert_eq!(left, 0);
                return;
            }
            assert!(left == 0 || left >= old.len(), "half emptied: {left}");
        }
    }

    async fn dying(&mut self, args: &[&str]) -> Ended {
        let crash = self
            .passes
            .front()
            .map(|pass| format!("{}:{pass}", self.point));
        let more: Vec<_> = crash
            .iter()
            .map(|crash| ("C2C_CRASH", crash.as_str()))
            .collect();
        let ended = self.place.run_with(args, &more).await;
        if ended.was_killed() {
            assert!(
                self.passes.pop_front().is_some(),
                "killed by somebody else: {ended:#?}"
            );
            self.found.kills += 1;
        }
        ended
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_anywhere_loses_nothing_and_sends_nothing_again() {
    let gate = Arc::new(Semaphore::new(6));
    let mut cases = JoinSet::new();
    let wanted = std::env::var("C2C_CENSUS").unwrap_or_default();
    for workload in WORKLOADS {
        for point in POINTS.into_iter().filter(|point| point.contains(&wanted)) {
            let gate = gate.clone();
            cases.spawn(async move {
                let _turn = gate.acquire().await.unwrap();
                let case = tokio::spawn(async move {
                    match workload {
                        Workload::Clip => clip(point).await,
                        Workload::Stills => stills(point).await,
                        Workload::Mixed => mixed(point).await,
                        Workload::Moved => moved(point).await,
                    }
                });
                (point, workload, case.await)
            });
        }
    }
    let mut all: BTreeMap<(usize, Workload), Found> = BTreeMap::new();
    let mut broken = Vec::new();
    while let Some(case) = cases.join_next().await {
        let (point, workload, found) = case.unwrap();
        let place = POINTS.iter().position(|known| *known == point).unwrap();
        match found {
            Ok(found) => {
                all.insert((place, workload), found);
            }
            // The case has told its story as a panic.
            Err(_) => broken.push(format!("{point} in {workload:?}")),
        }
    }
    report(&all);
    assert!(broken.is_empty(), "broken: {broken:#?}");
    let missed: Vec<_> = POINTS
        .into_iter()
        .enumerate()
        .filter(|(place, point)| {
            point.contains(&wanted)
                && all
                    .iter()
                    .all(|((at, _), found)| at != place || found.kills == 0)
        })
        .map(|(_, point)| point)
        .collect();
    assert!(missed.is_empty(), "no workload passes {missed:?}");
    for ((place, workload), found) in &all {
        let point = POINTS[*place];
        assert_eq!(
            found.cost.bytes_again, 0,
            "{point} in {workload:?}: sent again"
        );
        assert_eq!(found.cost.lost, 0, "{point} in {workload:?}: lost");
        assert!(found.cost.in_flight <= IN_FLIGHT * found.kills);
    }
}

/// Straight to stderr, past the capture of the test harness: the table is the result.
fn report(all: &BTreeMap<(usize, Workload), Found>) {
    let mut out = std::io::stderr().lock();
    let mut say = |line: String| writeln!(out, "{line}").unwrap();
    say("| point | clip | stills | mixed | moved | media | lost | paired again | in flight | bytes sent again |".into());
    say("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |".into());
    let mut sum = Found::default();
    for (place, point) in POINTS.iter().enumerate() {
        let mut row = Found::default();
        let mut cells = String::new();
        for workload in WORKLOADS {
            let Some(found) = all.get(&(place, workload)) else {
                cells.push_str(" not run |");
                continue;
            };
            cells.push_str(&match found.kills {
                0 => " not passed |".to_owned(),
                kills => format!(" {kills} |"),
            });
            for total in [&mut row, &mut sum] {
                total.kills += found.kills;
                total.accepted += found.accepted;
                total.paired_again += found.paired_again;
                total.cost.lost += found.cost.lost;
                total.cost.in_flight += found.cost.in_flight;
                total.cost.bytes_again += found.cost.bytes_again;
            }
        }
        say(format!(
            "| `{point}` |{cells} {} | {} | {} | {} | {} |",
            row.accepted, row.cost.lost, row.paired_again, row.cost.in_flight, row.cost.bytes_again
        ));
    }
    say(format!(
        "{} kills, {} media, {} lost, paired again {} times, {} parts in flight, {} bytes sent again",
        sum.kills,
        sum.accepted,
        sum.cost.lost,
        sum.paired_again,
        sum.cost.in_flight,
        sum.cost.bytes_again
    ));
}
