//! Connections that break, answers that get lost, servers in trouble.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator, Target};
use c2c_uplink::queue::MediaState;
use c2c_uplink::{AddMedia, Event, LinkFault, LinkState, Transfers};

use crate::bench::{Bench, idle, media, reaches};

const MIB: u64 = 1024 * 1024;

fn fault(endpoint: EndpointName, effect: Effect, times: Option<u32>, after: u32) -> Fault {
    Fault {
        on: Target {
            endpoint,
            part: None,
            asset_name: None,
        },
        effect,
        times,
        after,
        probability: None,
    }
}

async fn small_chunks() -> Bench {
    Bench::with(
        Simulator::builder()
            .poll_interval(Duration::from_millis(100))
            .default_chunk_size(MIB),
    )
    .await
}

/// A server that cuts connections at random bytes delays the media and nothing else; chunks that arrived are not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_at_random_bytes_lose_nothing() {
    let bench = small_chunks().await;
    let mut random = fastrand::Rng::with_seed(11);
    for n in 0..12 {
        let effect = Effect::CutAfterBytes(random.u64(0..MIB));
        bench
            .sim
            .admin()
            .add_fault(fault(EndpointName::PutChunk, effect, Some(1), n));
    }
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 10 * MIB + 3, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(receipt.registrations, 1);
    assert!(
        bench
            .puts(&receipt.asset_id)
            .values()
            .all(|&puts| puts == 1),
        "{:?}",
        bench.puts(&receipt.asset_id)
    );
    uplink.shutdown().await.unwrap();
}

/// The chunk arrived, its answer did not: it is sent again, to the same URL, and nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_chunk_costs_one_more_put() {
    let bench = small_chunks().await;
    bench.sim.admin().add_fault(fault(
        EndpointName::PutChunk,
        Effect::CutBeforeAnswer,
        Some(1),
        1,
    ));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 3 * MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// The asset may exist although no answer came: another is created, and the receipt says that the first may be there, empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_create_is_recorded_as_a_possible_duplicate() {
    let bench = small_chunks().await;
    bench.sim.admin().add_fault(fault(
        EndpointName::CreateAsset,
        Effect::CutBeforeAnswer,
        Some(1),
        0,
    ));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(
        (receipt.possible_duplicates, receipt.registrations),
        (1, 1),
        "{receipt:?}"
    );
    assert_eq!(bench.sim.admin().assets().len(), 2);
    uplink.shutdown().await.unwrap();
}

/// Trouble of the service and of the storage passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_in_trouble_are_waited_for() {
    let bench = small_chunks().await;
    let slow_down = BodyKind::S3 {
        code: "SlowDown".into(),
        message: "Please reduce your request rate".into(),
    };
    let status = |status, body| Effect::Status {
        status,
        body,
        headers: Vec::new(),
    };
    bench.sim.admin().add_fault(fault(
        EndpointName::CreateAsset,
        status(503, BodyKind::Html),
        Some(1),
        0,
    ));
    bench.sim.admin().add_fault(fault(
        EndpointName::PutChunk,
        status(503, slow_down),
        Some(2),
        0,
    ));
    bench
        .sim
        .admin()
        .add_fault(fault(EndpointName::PutChunk, Effect::WrongEtag, Some(1), 2));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 3 * MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// What the service refuses for good fails with its words, and the next media goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_media_fails_with_the_words_of_the_service() {
    let bench = small_chunks().await;
    let body = BodyKind::Detailed {
        title: "Unprocessable".into(),
        detail: "filetype is not allowed here".into(),
    };
    let effect = Effect::Status {
        status: 422,
        body,
        headers: Vec::new(),
    };
    let mut refuse = fault(EndpointName::CreateAsset, effect, None, 0);
    refuse.on.asset_name = Some("bad.mov".into());
    bench.sim.admin().add_fault(refuse);
    let uplink = bench.working().await;
    let added = uplink
        .add([bench.file("bad.mov", 10, 1), bench.file("good.mov", 10, 2)])
        .await
        .unwrap();
    idle(&uplink).await;
    let bad = media(&uplink, added[0].id).await;
    assert_eq!(bad.state, MediaState::Failed);
    let server = bad.last_fault.unwrap().server.unwrap();
    assert!(server.contains("filetype is not allowed here"), "{server}");
    assert_eq!(
        media(&uplink, added[1].id).await.state,
        MediaState::Delivered
    );
    uplink.shutdown().await.unwrap();
}

/// Captured in a pause: withheld, with the reason, and never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_of_a_pause_is_withheld() {
    let bench = small_chunks().await;
    // Without the socket the unit does not hear of the pause in time: the service decides.
    let no_socket = Effect::Status {
        status: 404,
        body: BodyKind::Empty,
        headers: Vec::new(),
    };
    bench
        .sim
        .admin()
        .add_fault(fault(EndpointName::Websocket, no_socket, None, 0));
    let uplink = bench.working().await;
    let before = bench.file("before.mov", 10, 1);
    bench.sim.admin().pause(0);
    let during = AddMedia::path(bench.file("during.mov", 10, 2)).captured_now();
    let added = uplink.add([during, before.into()]).await.unwrap();
    idle(&uplink).await;
    let withheld = media(&uplink, added[0].id).await;
    assert_eq!(withheld.state, MediaState::Withheld);
    assert!(withheld.last_fault.unwrap().words.contains("paused"));
    assert_eq!(
        media(&uplink, added[1].id).await.state,
        MediaState::Delivered
    );
    uplink.shutdown().await.unwrap();
}

/// A portal answers for everybody: nobody loses a try, the reason is named, and when it is gone everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captive_portal_costs_no_try() {
    let bench = small_chunks().await;
    let uplink = bench.working().await;
    let portal =
        bench
            .sim
            .admin()
            .add_fault(fault(EndpointName::Any, Effect::CaptivePortal, None, 0));
    let mut events = uplink.events();
    let file = bench.file("clip.mov", 2 * MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let words = loop {
        if let Event::Link(LinkState::Offline { fault, words }) = events.recv().await.unwrap() {
            assert_eq!(fault, LinkFault::Captive);
            break words;
        }
    };
    assert!(words.contains("sign in"), "{words}");
    let waiting = reaches(&uplink, id, MediaState::Queued).await;
    assert_eq!(
        (waiting.state, waiting.tries),
        (MediaState::Queued, 0),
        "{waiting:?}"
    );
    bench.sim.admin().remove_fault(portal);
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// A connection that ended in the middle of a chunk although the link is up: the storage is asked before the chunk comes again,
/// and only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reset_in_the_middle_the_storage_is_asked_first() {
    let bench = small_chunks().await;
    let cut = Target::endpoint(EndpointName::PutChunk).part(2);
    bench
        .sim
        .admin()
        .add_fault(Fault::new(cut, Effect::CutAfterBytes(100_000)).once());
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 5 * MIB, 1);
    uplink.add([&file]).await.unwrap();
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let puts = bench.requests(EndpointName::PutChunk);
    let asked: Vec<_> = puts
        .iter()
        .filter(|put| {
            let mut headers = put.headers.iter();
            headers.any(|(name, value)| name == "expect" && value == "100-continue")
        })
        .map(|put| put.part.unwrap())
        .collect();
    assert_eq!((puts.len(), asked), (6, vec![2]));
    uplink.shutdown().await.unwrap();
}

/// Connections are reused: a handful of them carries many chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reused() {
    let bench = small_chunks().await;
    let uplink = bench
        .working_as(bench.uplink().transfers(Transfers::Fixed(4)))
        .await;
    let file = bench.file("clip.mov", 40 * MIB, 1);
    uplink.add([&file]).await.unwrap();
    idle(&uplink).await;
    let puts = bench
        .sim
        .admin()
        .requests()
        .into_iter()
        .filter(|request| request.method == "PUT");
    let connections: std::collections::BTreeSet<_> =
        puts.map(|request| request.connection).collect();
    // Four that send, and as many whose answers are on the way.
    assert!(connections.len() <= 8, "{connections:?} for 40 chunks");
    uplink.shutdown().await.unwrap();
}
