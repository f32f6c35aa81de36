//! Files that vanish, shrink, grow or are replaced while they are in the queue.

use std::io::Write;
use std::time::Duration;

use c2c_simulator::{Effect, EndpointName, Fault, Simulator, Target};
use c2c_uplink::queue::{Event, MediaState, QueueError};
use c2c_uplink::{Transfers, UplinkError};

use crate::bench::{Bench, idle, reaches};

const MIB: u64 = 1024 * 1024;

fn delay_chunks(by: Duration) -> Fault {
    Fault {
        on: Target {
            endpoint: EndpointName::PutChunk,
            part: None,
            asset_name: None,
        },
        effect: Effect::Delay(by),
        times: None,
        after: 0,
        probability: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_vanishes_is_cancelled_and_blocks_nobody() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let gone = bench.file("gone.mov", 5000, 1);
    let good = bench.file("good.mov", 5000, 2);
    let added = uplink.add([&gone, &good]).await.unwrap();
    std::fs::remove_file(&gone).unwrap();
    uplink.start().await;
    idle(&uplink).await;
    reaches(&uplink, added[0].id, MediaState::Cancelled).await;
    reaches(&uplink, added[1].id, MediaState::Delivered).await;
    bench.assert_delivered("good.mov", &good).await;
    uplink.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_shrinks_or_grows_in_the_queue_is_sent_as_it_is_then() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let shrinks = bench.file("shrinks.mov", 50_000, 1);
    let grows = bench.file("grows.mov", 50_000, 2);
    uplink.add([&shrinks, &grows]).await.unwrap();
    bench.file("shrinks.mov", 40_000, 3);
    bench.file("grows.mov", 60_000, 4);
    uplink.start().await;
    idle(&uplink).await;
    bench.assert_delivered("shrinks.mov", &shrinks).await;
    bench.assert_delivered("grows.mov", &grows).await;
    uplink.shutdown().await.unwrap();
}

/// What was sent of the old content is worth nothing: the media is registered anew, and its receipt says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_sent_is_registered_again() {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(MIB);
    let bench = Bench::with(sim).await;
    let slow = bench
        .sim
        .admin()
        .add_fault(delay_chunks(Duration::from_millis(500)));
    // One at a time, so that most is left to send when the file changes.
    let uplink = bench
        .working_as(bench.uplink().transfers(Transfers::Fixed(1)))
        .await;
    let file = bench.file("clip.mov", 8 * MIB, 1);
    let mut events = uplink.events();
    let id = uplink.add([&file]).await.unwrap()[0].id;
    loop {
        if let c2c_uplink::Event::ChunkSent { .. } = events.recv().await.unwrap() {
            break;
        }
    }
    bench.file("clip.mov", 7 * MIB + 5, 2);
    bench.sim.admin().remove_fault(slow);
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    bench.assert_asset_delivered(&receipt.asset_id, &file).await;
    assert_eq!((receipt.registrations, receipt.size), (2, 7 * MIB + 5));
    assert!(receipt.bytes_resent >= MIB, "{receipt:?}");
    let history = uplink.queue().history(Some(id)).await.unwrap();
    assert!(
        history
            .iter()
            .any(|line| matches!(line.event, Event::RegisteredAnew { .. })),
        "{history:?}"
    );
    uplink.shutdown().await.unwrap();
}

/// A file that is still written to when it is registered waits until it is stable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_still_written_to_waits_until_it_is_stable() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let path = bench.file("clip.mov", 5000, 1);
    let id = uplink.add([&path]).await.unwrap()[0].id;
    std::fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&[7; 5000])
        .unwrap();
    uplink.start().await;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &path).await;
    let history = uplink.queue().history(Some(id)).await.unwrap();
    assert!(
        history
            .iter()
            .any(|line| matches!(line.event, Event::Held { .. })),
        "{history:?}"
    );
    uplink.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_no_file_is_refused_with_its_name() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    for path in [
        bench.dir.path().to_owned(),
        bench.dir.path().join("nothing.mov"),
        "/dev/null".into(),
    ] {
        let error = uplink.add([&path]).await.unwrap_err();
        assert!(matches!(error, UplinkError::Add { .. }), "{error:?}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
    uplink.shutdown().await.unwrap();
}

/// One bad file among good ones: nothing of the call is accepted, so that the caller can repeat it whole.
#[tokio::test]
async fn an_add_is_all_or_nothing() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    let good = bench.file("good.mov", 10, 1);
    uplink
        .add([good, bench.dir.path().join("nothing.mov")])
        .await
        .unwrap_err();
    assert_eq!(uplink.queue().status().await.unwrap().active(), 0);
    uplink.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_second_uplink_on_the_same_state_is_told_who_has_it() {
    let bench = Bench::start().await;
    let first = bench.uplink().open().await.unwrap();
    let error = bench.uplink().open().await.unwrap_err();
    assert!(
        matches!(error, UplinkError::Queue(QueueError::InUse { .. })),
        "{error:?}"
    );
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    first.shutdown().await.unwrap();
    bench
        .uplink()
        .open()
        .await
        .unwrap()
        .shutdown()
        .await
        .unwrap();
}

/// A file that changed in the queue and whose new time lies ahead of every clock waits for a person, once and without turning in
/// circles; and the person's word is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_of_the_future_waits_for_a_person() {
    use c2c_uplink::queue::{ByHand, Hold, Selection};
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    let bench = Bench::paced(sim, 60.0).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let path = bench.file("clip.mov", 5000, 1);
    let id = uplink.add([&path]).await.unwrap()[0].id;
    bench.file("clip.mov", 6000, 2);
    let ahead = std::time::SystemTime::now() + Duration::from_secs(3 * 86_400);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(ahead).unwrap();
    uplink.start().await;
    idle(&uplink).await;
    // Upkeep looks at it many times.
    let minute = Duration::from_secs(60);
    c2c_uplink::queue::Clock::sleep(bench.clock(), minute).await;
    let held = crate::bench::media(&uplink, id).await;
    assert_eq!(held.hold, Some(Hold::CaptureTimeUnknown), "{held:?}");
    let history = uplink.queue().history(Some(id)).await.unwrap();
    let holds = history
        .iter()
        .filter(|line| matches!(line.event, Event::Held { .. }))
        .count();
    assert_eq!(holds, 1, "{history:?}");
    let selection = Selection::Ids(vec![id]);
    let queue = uplink.queue();
    queue.by_hand(selection, ByHand::Release).await.unwrap();
    uplink.nudge();
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &path).await;
    uplink.shutdown().await.unwrap();
}
