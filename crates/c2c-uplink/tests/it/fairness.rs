//! One bad media among good ones: it is tried a bounded number of times and keeps nobody waiting.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, LoggedRequest, Simulator, Target};
use c2c_uplink::queue::{ByHand, Clock, Event, MediaState, Selection};
use c2c_uplink::{ROUNDS, TRIES};

use crate::bench::{Bench, idle, media, reaches};

async fn bench() -> Bench {
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    Bench::paced(sim, 200.0).await
}

fn status(status: u16, code: &str) -> Effect {
    Effect::Status {
        status,
        body: BodyKind::S3 {
            code: code.into(),
            message: "for this one only".into(),
        },
        headers: Vec::new(),
    }
}

fn puts_of(bench: &Bench, name: &str) -> Vec<LoggedRequest> {
    let mut puts = bench.requests(EndpointName::PutChunk);
    puts.retain(|put| put.asset_name.as_deref() == Some(name));
    puts
}

/// The whole life of a poisoned media among a hundred good ones: all its tries, its rest, the one more try after a restart of
/// the system, and the retry by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_media_keeps_nobody_waiting() {
    let bench = bench().await;
    let poisoned = Target::endpoint(EndpointName::PutChunk).asset("poison.mov");
    bench
        .sim
        .admin()
        .add_fault(Fault::new(poisoned, status(503, "InternalError")));
    let uplink = bench.working().await;
    let poison = bench.file("poison.mov", 3000, 1);
    let good: Vec<_> = (0..100)
        .map(|n| bench.file(&format!("{n}.mov"), 3000, n + 2))
        .collect();
    let bad = uplink.add([&poison]).await.unwrap()[0].id;
    uplink.add(&good).await.unwrap();
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, 100);
    let parked = media(&uplink, bad).await;
    assert_eq!(parked.state, MediaState::Parked);
    assert!(parked.last_fault.is_some());
    for (n, file) in good.iter().enumerate() {
        bench.assert_delivered(&format!("{n}.mov"), file).await;
    }

    let tries = puts_of(&bench, "poison.mov");
    assert_eq!(tries.len() as u32, TRIES * ROUNDS);
    // The good ones were done before its tries were.
    let puts = bench.requests(EndpointName::PutChunk);
    let last_good = puts
        .iter()
        .filter(|put| put.asset_name.as_deref() != Some("poison.mov"))
        .map(|put| put.id)
        .max()
        .unwrap();
    assert!(last_good < tries.last().unwrap().id);
    // After a used-up round it is behind everything that was ready: at most those overtake that a worker has in its hands.
    for round in [TRIES as usize, 2 * TRIES as usize] {
        let (used_up, next) = (&tries[round - 1], &tries[round]);
        let ready = bench.requests(EndpointName::CreateAsset);
        let ready = ready
            .iter()
            .filter(|create| create.finished_at.unwrap() < used_up.finished_at.unwrap())
            .filter_map(|create| create.asset_id.as_deref());
        let late = ready
            .filter(|asset| {
                let put = puts
                    .iter()
                    .find(|put| put.asset_id.as_deref() == Some(asset));
                put.is_none_or(|put| put.id > next.id)
            })
            .count();
        assert!(late < 4, "{late} good ones waited for the poisoned one");
    }

    // Another start of the program is no restart of the system.
    uplink.shutdown().await.unwrap();
    let uplink = bench.uplink().open().await.unwrap();
    uplink.start().await;
    idle(&uplink).await;
    assert_eq!(media(&uplink, bad).await.state, MediaState::Parked);
    uplink.shutdown().await.unwrap();

    for restart in 1..=2 {
        bench.clock().reboot();
        let uplink = bench.uplink().open().await.unwrap();
        uplink.start().await;
        idle(&uplink).await;
        let after = media(&uplink, bad).await;
        assert_eq!(after.state, MediaState::Failed, "restart {restart}");
        assert_eq!(
            puts_of(&bench, "poison.mov").len() as u32,
            TRIES * ROUNDS + 1
        );
        let history = uplink.queue().history(Some(bad)).await.unwrap();
        let granted = history
            .iter()
            .filter(|line| matches!(line.event, Event::RestartTry))
            .count();
        assert_eq!(granted, 1, "one more try, once");
        uplink.shutdown().await.unwrap();
    }

    bench.sim.admin().clear_faults();
    let uplink = bench.uplink().open().await.unwrap();
    uplink.start().await;
    let selection = Selection::State(MediaState::Failed);
    let queue = uplink.queue();
    let retried = queue.by_hand(selection, ByHand::Retry).await.unwrap();
    assert_eq!(retried, [bad]);
    uplink.nudge();
    reaches(&uplink, bad, MediaState::Delivered).await;
    bench.assert_delivered("poison.mov", &poison).await;
    uplink.shutdown().await.unwrap();
}

/// The same for a media that cannot be registered, and for one that is never acknowledged as it should be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_poison_is_bounded() {
    let bench = bench().await;
    let admin = bench.sim.admin();
    let create = Target::endpoint(EndpointName::CreateAsset).asset("create.mov");
    admin.add_fault(Fault::new(create, status(500, "")));
    let put = |name: &str| Target::endpoint(EndpointName::PutChunk).asset(name);
    admin.add_fault(Fault::new(put("etag.mov"), Effect::WrongEtag));
    admin.add_fault(Fault::new(put("silent.mov"), Effect::NoEtag));
    admin.add_fault(Fault::new(put("cut.mov"), Effect::CutAfterBytes(100)));
    let uplink = bench.working().await;
    let poisons = ["create.mov", "etag.mov", "silent.mov", "cut.mov"];
    let files: Vec<_> = poisons
        .iter()
        .zip(1..)
        .map(|(name, seed)| bench.file(name, 3000, seed))
        .collect();
    let bad = uplink.add(&files).await.unwrap();
    let good: Vec<_> = (0..20)
        .map(|n| bench.file(&format!("{n}.mov"), 3000, n + 10))
        .collect();
    uplink.add(&good).await.unwrap();
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, 20);
    for (added, name) in bad.iter().zip(poisons) {
        assert_eq!(
            media(&uplink, added.id).await.state,
            MediaState::Parked,
            "{name}"
        );
    }
    assert_eq!(bench.creates("create.mov") as u32, TRIES * ROUNDS);
    for name in &poisons[1..] {
        assert_eq!(puts_of(&bench, name).len() as u32, TRIES * ROUNDS, "{name}");
    }
    uplink.shutdown().await.unwrap();
}

/// A file that cannot be read: three more tries with their waits in each round, and nobody else waits.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_file_is_bounded() {
    let bench = bench().await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let path = bench.file("loop.mov", 3000, 1);
    let bad = uplink.add([&path]).await.unwrap()[0].id;
    // A link to itself: it is there, and cannot be opened by anybody.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let good = bench.file("good.mov", 3000, 2);
    uplink.add([&good]).await.unwrap();
    let begun = bench.clock().boot();
    uplink.start().await;
    idle(&uplink).await;
    bench.assert_delivered("good.mov", &good).await;
    let parked = media(&uplink, bad).await;
    assert_eq!(parked.state, MediaState::Parked, "{parked:?}");
    assert_eq!(parked.last_fault.unwrap().code, "unreadable");
    // 1, 5 and 25 s in each of three rounds, and at least 30 and 60 s between them.
    let waited = bench.clock().boot().0 - begun.0;
    assert!(waited >= (3 * 31 + 90) * 1000, "parked after {waited} ms");
    assert_eq!(bench.creates("loop.mov"), 0);
    uplink.shutdown().await.unwrap();
}
