//! `kill -9`, Ctrl-C and two programs at once: what was finished is never sent again, and nothing is lost.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(unix)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use c2c_simulator::{Admin, Effect, EndpointName, Fault, Simulator};
use rustix::process::Signal;
use support::books::Books;
use support::ledger::{Ledger, arrived, puts};
use support::{Ended, IN_FLIGHT, Place, Running, TRANSFERS, service};

const CHUNK: u64 = 256 << 10;
/// Ten chunks, the last of them short.
const CLIP: usize = 10 * (256 << 10) - 1000;
const NAME: &str = "A001C001.mov";

async fn paired() -> (Simulator, Place) {
    let simulator = service(CHUNK).start().await.unwrap();
    let place = Place::at(&simulator);
    place.run(&["pair"]).await.exits(0);
    place.file(NAME, CLIP);
    (simulator, place)
}

/// Makes every part take a while, so that some are in flight at any time.
fn slow(admin: &Admin) {
    let effect = Effect::SlowRead {
        bytes_per_sec: 4 * CHUNK,
    };
    admin.add_fault(Fault::new(EndpointName::PutChunk, effect));
}

async fn until_arrived(admin: &Admin, parts: usize) {
    let met = admin
        .wait_until_within(Duration::from_secs(60), |now| {
            let sent = now.requests_for(EndpointName::PutChunk);
            sent.filter(|request| request.status() == Some(200)).count() >= parts
        })
        .await;
    assert!(met, "{parts} parts never arrived");
}

/// A second run sends exactly the parts that the books do not have, each once.
async fn goes_on(simulator: &Simulator, place: &Place, ledger: &Ledger) {
    let admin = simulator.admin();
    let before = Books::read(&place.state()).await;
    let last = admin.requests().last().unwrap().id;
    let asset = before.media[NAME].asset_id.clone().unwrap();
    let missing: Vec<_> = (1..=10)
        .map(|part| (asset.clone(), part))
        .filter(|key| !before.finished.contains(key))
        .collect();
    assert!(!missing.is_empty(), "the first run was over already");
    let ended = place.run(&["upload"]).await.exits(0);
    assert_eq!(ended.told().last().unwrap()["delivered"], 1, "{ended:?}");
    let mut sent: Vec<_> = puts(admin)
        .into_iter()
        .filter(|(request, _)| request.id > last)
        .map(|(_, key)| key)
        .collect();
    sent.sort();
    assert_eq!(
        sent,
        missing,
        "exactly what was not finished, but: {:#?}\n{ended:#?}",
        puts(admin)
            .iter()
            .map(|(request, key)| (
                request.id > last,
                request.connection,
                key.1,
                request.outcome,
                request.received
            ))
            .collect::<Vec<_>>()
    );
    let cost = ledger.settle(admin, place, &[NAME.to_owned()]).await;
    assert_eq!((cost.bytes_again, cost.lost), (0, 0));
}

/// Ends the run, holds the books against what it told, and notes the death.
async fn note(simulator: &Simulator, place: &Place, ended: &Ended, ledger: &mut Ledger) -> Books {
    let books = Books::read(&place.state()).await;
    books.keep_what_was_told(&ended.told());
    ledger.died(simulator.admin(), &books).await;
    books
}

async fn half_sent(simulator: &Simulator, place: &Place) -> Running {
    slow(simulator.admin());
    let running = place.start(&["upload", NAME]);
    until_arrived(simulator.admin(), 4).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_in_the_middle_the_next_run_sends_what_was_not_finished() {
    let (simulator, place) = paired().await;
    let mut ledger = Ledger::default();
    let running = half_sent(&simulator, &place).await;
    running.signal(Signal::KILL);
    let ended = running.end().await;
    assert!(ended.was_killed(), "{ended:?}");
    note(&simulator, &place, &ended, &mut ledger).await;

    // Looking at what a dead process left needs no repair, and finds the file waiting.
    let status = place.run(&["status"]).await.exits(0).document();
    assert_eq!(
        status["queue"]["states"]["transferring"]["media"], 1,
        "{status}"
    );

    simulator.admin().clear_faults();
    goes_on(&simulator, &place, &ledger).await;
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ctrl_c_and_after_sigterm_it_goes_on_as_well() {
    for signal in [Signal::INT, Signal::TERM] {
        let (simulator, place) = paired().await;
        let mut ledger = Ledger::default();
        let running = half_sent(&simulator, &place).await;
        running.signal(signal);
        let ended = running.end().await.exits(130);
        assert_eq!(ended.told().last().unwrap()["exit_code"], 130);
        let books = note(&simulator, &place, &ended, &mut ledger).await;
        // A clean end gives everything back and charges nothing.
        let media = &books.media[NAME];
        assert_eq!(
            (media.tries, media.rounds, media.hold),
            (0, 0, None),
            "{signal:?}"
        );
        simulator.admin().clear_faults();
        goes_on(&simulator, &place, &ledger).await;
        simulator.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_part_it_arrives_all_the_same() {
    let (simulator, place) = paired().await;
    let admin = simulator.admin();
    slow(admin);
    let mut ledger = Ledger::default();
    let mut deaths = 0;
    loop {
        let before = arrived(admin).len();
        let running = place.start(&["upload", NAME]);
        if before < 10 {
            // Parts that had arrived unrecorded come again first, so they do not count as progress.
            let more = |admin: &Admin| arrived(admin).len() > before;
            let met = admin
                .wait_until_within(Duration::from_secs(60), |now| {
                    let parts: BTreeSet<_> = now
                        .requests_for(EndpointName::PutChunk)
                        .filter(|request| request.status() == Some(200))
                        .map(|request| (request.asset_id.clone(), request.part))
                        .collect();
                    parts.len() > before
                })
                .await;
            assert!(met && more(admin), "no progress after {deaths} deaths");
            running.signal(Signal::KILL);
        }
        let ended = running.end().await;
        if !ended.was_killed() {
            ended.exits(0);
            break;
        }
        deaths += 1;
        note(&simulator, &place, &ended, &mut ledger).await;
    }
    assert!(deaths >= 2, "{deaths}");
    let cost = ledger.settle(admin, &place, &[NAME.to_owned()]).await;
    assert_eq!((cost.bytes_again, cost.lost), (0, 0));
    assert!(cost.in_flight <= deaths * IN_FLIGHT);
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_names_the_first_and_a_dead_first_is_no_obstacle() {
    let (simulator, place) = paired().await;
    let stall = Effect::Stall { after_bytes: 1000 };
    simulator
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall));
    let first = place.start(&["upload", NAME]);
    let met = simulator
        .admin()
        .wait_until_within(Duration::from_secs(60), |now| {
            now.requests_for(EndpointName::PutChunk).count() >= TRANSFERS
        });
    assert!(met.await, "the first never began to send");

    for args in [&["upload", NAME][..], &["add", NAME], &["pair"]] {
        let second = place.run(args).await.exits(4);
        let first = format!("process {}", first.id());
        assert!(second.err.contains(&first), "{args:?}: {}", second.err);
        let told = second.told();
        assert_eq!(told.last().unwrap()["exit_code"], 4);
    }

    first.signal(Signal::KILL);
    let ended = first.end().await;
    let mut ledger = Ledger::default();
    // What stalls would never notice that its other end is gone.
    simulator.admin().clear_faults();
    note(&simulator, &place, &ended, &mut ledger).await;
    goes_on(&simulator, &place, &ledger).await;
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_answer_to_a_registration_is_on_its_way_it_owns_up_to_a_possible_duplicate()
 {
    let (simulator, place) = paired().await;
    let admin = simulator.admin();
    admin.add_fault(Fault::new(EndpointName::CreateAsset, Effect::SlowAnswer));
    let running = place.start(&["upload", NAME]);
    let met = admin.wait_until_within(Duration::from_secs(60), |now| now.assets().len() == 1);
    assert!(met.await, "it was never registered");
    running.signal(Signal::KILL);
    let ended = running.end().await;
    assert!(ended.was_killed(), "{ended:?}");
    let mut ledger = Ledger::default();
    let books = note(&simulator, &place, &ended, &mut ledger).await;
    assert_eq!(books.media[NAME].asset_id, None);
    admin.clear_faults();
    place.run(&["upload"]).await.exits(0);
    let cost = ledger.settle(admin, &place, &[NAME.to_owned()]).await;
    assert_eq!((cost.bytes_again, cost.lost), (0, 0));
    assert_eq!(admin.assets().len(), 2, "the first one stays empty");
    let receipt = &Books::read(&place.state()).await.receipts[NAME];
    assert_eq!(receipt.possible_duplicates, 1, "{receipt:?}");
    simulator.shutdown().await;
}
