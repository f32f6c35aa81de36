//! Upload URLs that die: by age, by the word of the storage, or for ever.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Outcome, Simulator, Target};
use c2c_uplink::queue::{ByHand, MediaId, MediaState, Selection};
use c2c_uplink::{AddMedia, Uplink};

use crate::bench::{Bench, PATIENCE, fault_codes, idle, media, reaches};

const CHUNK: u64 = 64 * 1024;
const DAY: Duration = Duration::from_secs(86_400);

async fn bench() -> Bench {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(CHUNK);
    Bench::paced(sim, 100.0).await
}

fn refusal(code: &str, message: &str) -> Effect {
    Effect::Status {
        status: 403,
        body: BodyKind::S3 {
            code: code.into(),
            message: message.into(),
        },
        headers: Vec::new(),
    }
}

/// A media of four chunks, captured now, of which three have arrived and the third hangs.
async fn three_of_four(bench: &Bench) -> (Uplink, MediaId, std::path::PathBuf) {
    let third = Target::endpoint(EndpointName::PutChunk).part(3);
    let stall = Effect::Stall { after_bytes: 1 };
    bench.sim.admin().add_fault(Fault::new(third, stall).once());
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 4 * CHUNK, 1);
    let captured = AddMedia::path(&file).captured_now();
    let id = uplink.add([captured]).await.unwrap()[0].id;
    let stuck = |snapshot: &c2c_simulator::Snapshot<'_>| {
        let of = |outcome| {
            let puts = snapshot.requests_for(EndpointName::PutChunk);
            puts.filter(|put| put.outcome == outcome).count()
        };
        of(Outcome::Answered(200)) == 3 && of(Outcome::Stalled) == 1
    };
    assert!(bench.sim.admin().wait_until_within(PATIENCE, stuck).await);
    while media(&uplink, id).await.chunks_sent < 3 {
        tokio::task::yield_now().await;
    }
    (uplink, id, file)
}

/// Registered twice, all chunks sent anew to the second asset, and the receipt says so.
async fn assert_sent_anew(bench: &Bench, uplink: &Uplink, id: MediaId, file: &std::path::Path) {
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(receipt.registrations, 2, "{receipt:?}");
    assert!(receipt.bytes_resent >= 3 * CHUNK, "{receipt:?}");
    bench.assert_asset_delivered(&receipt.asset_id, file).await;
    let puts = bench.puts(&receipt.asset_id);
    assert_eq!(
        puts.into_iter().collect::<Vec<_>>(),
        [(1, 1), (2, 1), (3, 1), (4, 1)]
    );
    let offsets: Vec<u64> = bench
        .requests(EndpointName::CreateAsset)
        .iter()
        .filter(|request| request.status() == Some(201) || request.status() == Some(200))
        .map(|request| request.create.as_ref().unwrap().offset.unwrap())
        .collect();
    assert_eq!(offsets.len(), 2);
    assert!(offsets[0] < 600, "{offsets:?}");
    assert!(
        offsets[1] >= 86_400,
        "the offset is measured anew: {offsets:?}"
    );
    bench.assert_no_violations();
}

/// URLs that are a day old are not even tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_that_are_a_day_old_are_replaced_unasked() {
    let bench = bench().await;
    let (uplink, id, file) = three_of_four(&bench).await;
    bench.advance(DAY);
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    assert_sent_anew(&bench, &uplink, id, &file).await;
    let refused = bench
        .requests(EndpointName::PutChunk)
        .iter()
        .filter(|put| put.status() == Some(403))
        .count();
    assert_eq!(refused, 0, "an expired URL was used");
    uplink.shutdown().await.unwrap();
}

/// The storage's clock is ahead of ours: its refusal is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_that_the_storage_calls_expired_are_replaced() {
    let bench = bench().await;
    let (uplink, id, file) = three_of_four(&bench).await;
    bench.sim.clock().advance(DAY);
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(receipt.registrations, 2, "{receipt:?}");
    assert!(receipt.bytes_resent >= 3 * CHUNK, "{receipt:?}");
    bench.assert_asset_delivered(&receipt.asset_id, &file).await;
    let codes = fault_codes(&uplink, id).await;
    assert_eq!(
        codes.iter().filter(|code| *code == "url_expired").count(),
        1,
        "{codes:?}"
    );
    uplink.shutdown().await.unwrap();
}

/// A storage that calls every URL expired gets a bounded number of assets, then a person is asked; who can help, helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_always_says_expired_parks_the_media() {
    let bench = bench().await;
    let expired = refusal("AccessDenied", "Request has expired");
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, expired));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 2 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    let parked = media(&uplink, id).await;
    assert_eq!(parked.state, MediaState::Parked);
    assert_eq!(parked.last_fault.unwrap().code, "url_expired");
    assert_eq!(bench.creates("clip.mov"), 4);
    bench.sim.admin().clear_faults();
    let retried = uplink
        .queue()
        .by_hand(Selection::Ids(vec![id]), ByHand::Retry)
        .await
        .unwrap();
    assert_eq!(retried, [id]);
    uplink.nudge();
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// A refused signature is tried once more, then the media is registered again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_signature_is_tried_once_more_then_replaced() {
    let bench = bench().await;
    let mismatch = refusal("SignatureDoesNotMatch", "The signature does not match");
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, mismatch).times(2));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(receipt.registrations, 2);
    assert_eq!(fault_codes(&uplink, id).await, ["signature_refused"; 2]);
    assert_eq!(bench.requests(EndpointName::PutChunk).len(), 3);
    uplink.shutdown().await.unwrap();
}

/// Refused for ever: two tries for each of four assets, then a person is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_that_is_always_refused_parks_the_media() {
    let bench = bench().await;
    let mismatch = refusal("SignatureDoesNotMatch", "The signature does not match");
    let poisoned = Target::endpoint(EndpointName::PutChunk).asset("bad.mov");
    bench.sim.admin().add_fault(Fault::new(poisoned, mismatch));
    let uplink = bench.working().await;
    let bad = bench.file("bad.mov", CHUNK, 1);
    let good = bench.file("good.mov", CHUNK, 2);
    let added = uplink.add([&bad, &good]).await.unwrap();
    idle(&uplink).await;
    assert_eq!(media(&uplink, added[0].id).await.state, MediaState::Parked);
    bench.assert_delivered("good.mov", &good).await;
    assert_eq!(bench.creates("bad.mov"), 4);
    let refused = bench.requests(EndpointName::PutChunk);
    let refused = refused.iter().filter(|put| put.status() == Some(403));
    assert_eq!(refused.count(), 8);
    uplink.shutdown().await.unwrap();
}

/// The storage does not know the key: the asset was removed in Frame.io. A new one is made, and not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_storage_does_not_know_is_replaced() {
    let bench = bench().await;
    let gone = Effect::Status {
        status: 404,
        body: BodyKind::S3 {
            code: "NoSuchKey".into(),
            message: "The specified key does not exist.".into(),
        },
        headers: Vec::new(),
    };
    let poisoned = Target::endpoint(EndpointName::PutChunk).asset("bad.mov");
    bench
        .sim
        .admin()
        .add_fault(Fault::new(poisoned, gone.clone()));
    let unlucky = Target::endpoint(EndpointName::PutChunk).asset("clip.mov");
    bench
        .sim
        .admin()
        .add_fault(Fault::new(unlucky, gone).once());
    let uplink = bench.working().await;
    let bad = bench.file("bad.mov", CHUNK, 1);
    let clip = bench.file("clip.mov", CHUNK, 2);
    let added = uplink.add([&bad, &clip]).await.unwrap();
    idle(&uplink).await;
    assert_eq!(media(&uplink, added[0].id).await.state, MediaState::Parked);
    bench.assert_delivered("clip.mov", &clip).await;
    let receipt = uplink.receipt(added[1].id).await.unwrap().unwrap();
    assert_eq!(receipt.registrations, 2);
    uplink.shutdown().await.unwrap();
}
