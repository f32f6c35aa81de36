//! Workers and processes that go silent with work in their hands.

use std::path::Path;
use std::time::{Duration, Instant};

use c2c_simulator::{Effect, EndpointName, Fault, Outcome, Simulator};
use c2c_uplink::Transfers;
use c2c_uplink::queue::{
    ChunkProof, Claim, Event, Holder, MediaId, MediaState, NewAsset, QueueError,
};

use crate::bench::{Bench, PATIENCE, idle, media, reaches};

const CHUNK: u64 = 64 * 1024;
const LEASE: Duration = Duration::from_secs(60);

fn sim() -> c2c_simulator::Builder {
    Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(CHUNK)
}

/// Somebody who claims work and is never heard of again.
fn silent() -> Holder {
    Holder {
        process: "0-gone".into(),
        worker: "silent".into(),
    }
}

async fn lost_leases(uplink: &c2c_uplink::Uplink, id: MediaId) -> Vec<String> {
    let history = uplink.queue().history(Some(id)).await.unwrap();
    let lost = history.into_iter().filter_map(|line| match line.event {
        Event::LeaseLost { holder, .. } => Some(holder),
        _ => None,
    });
    lost.collect()
}

/// A registration whose worker went silent is taken over when its lease ends; the late report is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_registration_is_taken_over() {
    let bench = Bench::paced(sim(), 60.0).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let file = bench.file("clip.mov", CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let claimed_at = bench.clock().elapsed();
    let holder = silent();
    let claim = uplink.queue().claim_registration(&holder, LEASE, None);
    let Claim::Got(claim) = claim.await.unwrap() else {
        panic!("nothing to claim");
    };
    uplink.start().await;
    // Nothing else is to be done, so the uplink is idle only when this media is delivered.
    idle(&uplink).await;
    let waited = bench.clock().elapsed() - claimed_at;
    assert!(
        waited >= 60_000,
        "taken over after {waited} ms of a lease of 60 s"
    );
    bench.assert_delivered("clip.mov", &file).await;
    assert_eq!(lost_leases(&uplink, id).await, ["0-gone/silent"]);
    let late = NewAsset {
        asset_id: "late".into(),
        project_id: "late".into(),
        offset: None,
        chunks: Vec::new(),
    };
    let late = uplink.queue().asset_created(&claim.lease, late).await;
    assert!(matches!(late, Err(QueueError::LeaseLost(_))), "{late:?}");
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    // Nobody knows whether the silent one had sent its request.
    assert_eq!(receipt.possible_duplicates, 1);
    uplink.shutdown().await.unwrap();
}

/// The same for a chunk: the others are sent meanwhile, this one when the lease ends, and the late report is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_chunk_is_taken_over() {
    let bench = Bench::paced(sim(), 60.0).await;
    let stall = Effect::Stall { after_bytes: 1 };
    let stall = bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall).times(2));
    let builder = bench
        .uplink()
        .transfers(Transfers::Fixed(1))
        .stall(Duration::from_secs(36_000));
    let uplink = bench.working_as(builder).await;
    let file = bench.file("clip.mov", 4 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let stalled = |snapshot: &c2c_simulator::Snapshot<'_>| {
        let puts = snapshot.requests_for(EndpointName::PutChunk);
        puts.filter(|put| put.outcome == Outcome::Stalled).count() == 2
    };
    assert!(bench.sim.admin().wait_until_within(PATIENCE, stalled).await);
    // One transfer may send: the first chunk is handed over and has no answer, the second is all it may have besides.
    let Claim::Got(claim) = uplink.queue().claim_chunk(&silent(), LEASE).await.unwrap() else {
        panic!("nothing to claim");
    };
    assert_eq!(claim.chunk.number, 2);
    bench.sim.admin().remove_fault(stall);
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let parts: Vec<_> = bench
        .requests(EndpointName::PutChunk)
        .iter()
        .map(|put| put.part.unwrap())
        .collect();
    assert_eq!(
        parts,
        [1, 2, 4, 3],
        "the silent one's chunk comes last, and once"
    );
    assert_eq!(lost_leases(&uplink, id).await, ["0-gone/silent"]);
    let proof = ChunkProof {
        etag: Some("late".into()),
        md5: None,
        crc64nvme: None,
    };
    let late = uplink.queue().chunk_sent(&claim.lease, proof).await;
    assert!(matches!(late, Err(QueueError::LeaseLost(_))), "{late:?}");
    uplink.shutdown().await.unwrap();
}

/// A lease that ends while its holder is still at work: the holder notices at its next renewal, and the chunk is not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_shorter_than_its_renewal_delivers_all_the_same() {
    let bench = Bench::paced(sim(), 100.0).await;
    bench.sim.admin().add_fault(
        Fault::new(
            EndpointName::PutChunk,
            Effect::Delay(Duration::from_secs(40)),
        )
        .times(2),
    );
    let uplink = bench
        .working_as(bench.uplink().lease(Duration::from_secs(8)))
        .await;
    let file = bench.file("clip.mov", CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    assert!(!lost_leases(&uplink, id).await.is_empty());
    uplink.shutdown().await.unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What a dead process had in its hands is free at the next start, long before the leases end.
///
/// The state directory is copied while every worker is in the middle of a chunk: the copy is what a power cut would leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leases_of_a_dead_process_end_at_the_next_start() {
    let bench = Bench::with(sim()).await;
    // The first two chunks arrive, then everything stalls.
    let stall = Effect::Stall { after_bytes: 1 };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall).after(2));
    let uplink = bench
        .working_as(bench.uplink().transfers(Transfers::Fixed(4)))
        .await;
    let file = bench.file("clip.mov", 10 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let stuck = |snapshot: &c2c_simulator::Snapshot<'_>| {
        let puts = snapshot.requests_for(EndpointName::PutChunk);
        puts.filter(|put| put.outcome == Outcome::Stalled).count() == 8
    };
    assert!(bench.sim.admin().wait_until_within(PATIENCE, stuck).await);
    while media(&uplink, id).await.chunks_sent < 2 {
        tokio::task::yield_now().await;
    }
    let copy = bench.dir.path().join("copy");
    copy_dir(&bench.state(), &copy);
    uplink.shutdown().await.unwrap();
    bench.sim.admin().clear_faults();
    bench.sim.admin().clear_requests();

    let begun = Instant::now();
    let next = bench.uplink().state_dir(&copy).open().await.unwrap();
    assert_eq!(lost_leases(&next, id).await.len(), 8);
    next.start().await;
    reaches(&next, id, MediaState::Delivered).await;
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "a lease was waited for"
    );
    bench.assert_delivered("clip.mov", &file).await;
    assert_eq!(
        bench.requests(EndpointName::PutChunk).len(),
        8,
        "the two that had arrived are not sent again"
    );
    next.shutdown().await.unwrap();
}

/// Dropped without a shutdown, the uplink gives everything back as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_that_is_dropped_leaves_nothing_behind() {
    let bench = Bench::with(sim()).await;
    let stall = Effect::Stall { after_bytes: 1 };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 6 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let stuck = |snapshot: &c2c_simulator::Snapshot<'_>| {
        let puts = snapshot.requests_for(EndpointName::PutChunk);
        puts.filter(|put| put.outcome == Outcome::Stalled).count() == 4
    };
    assert!(bench.sim.admin().wait_until_within(PATIENCE, stuck).await);
    drop(uplink);
    bench.sim.admin().clear_faults();
    // The tasks of the dropped one let go of the store when they notice.
    let opened = async {
        loop {
            match bench.uplink().open().await {
                Ok(uplink) => return uplink,
                Err(c2c_uplink::UplinkError::Queue(QueueError::InUse { .. })) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let next = tokio::time::timeout(PATIENCE, opened).await.unwrap();
    next.start().await;
    reaches(&next, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    next.shutdown().await.unwrap();
}
