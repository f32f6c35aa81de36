//! A storage that is down while the API is fine: everybody waits for it, and nobody is charged.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator};
use c2c_uplink::queue::{Clock, MediaState};
use c2c_uplink::{Event, LinkFault, LinkState};

use crate::bench::{Bench, PATIENCE, idle, media};

const CHUNK: u64 = 64 * 1024;
const HOUR: Duration = Duration::from_secs(3600);

async fn bench() -> Bench {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(CHUNK);
    Bench::paced(sim, 400.0).await
}

fn down(after: u32) -> Fault {
    let effect = Effect::Status {
        status: 503,
        body: BodyKind::S3 {
            code: "ServiceUnavailable".into(),
            message: "down for everybody".into(),
        },
        headers: Vec::new(),
    };
    Fault {
        after,
        ..Fault::new(EndpointName::PutChunk, effect)
    }
}

/// `files` files of `chunks` chunks meet a storage that goes down after so many PUTs, for an hour.
async fn an_hour_without_storage(files: u64, chunks: u64, after: u32) {
    let bench = bench().await;
    let fault = bench.sim.admin().add_fault(down(after));
    let uplink = bench.working().await;
    let mut events = uplink.events();
    let files: Vec<_> = (0..files)
        .map(|n| (format!("{n}.mov"), n))
        .map(|(name, n)| (bench.file(&name, chunks * CHUNK, n + 1), name))
        .collect();
    let added = uplink
        .add(files.iter().map(|(file, _)| file))
        .await
        .unwrap();
    let noticed = async {
        loop {
            if let Event::Link(LinkState::Offline { fault, words }) = events.recv().await.unwrap() {
                return (fault, words);
            }
        }
    };
    let (what, words) = tokio::time::timeout(PATIENCE, noticed).await.unwrap();
    assert_eq!(what, LinkFault::Uploads, "{words}");
    assert!(words.contains("refuses all"), "{words}");

    bench.clock().sleep(HOUR).await;
    for added in &added {
        let waiting = media(&uplink, added.id).await;
        let resting = waiting.state.is_resting() && waiting.state != MediaState::Delivered;
        assert!(!resting && waiting.rounds <= 1, "{waiting:#?}");
    }
    // It is left alone but for a few that look.
    let refused = bench
        .requests(EndpointName::PutChunk)
        .iter()
        .filter(|put| put.status() == Some(503))
        .count();
    assert!((20..1000).contains(&refused), "{refused} attempts");

    bench.sim.admin().remove_fault(fault);
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, files.len() as u64);
    for (file, name) in &files {
        bench.assert_delivered(name, file).await;
    }
    uplink.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_is_down_for_an_hour_costs_nobody_a_try() {
    an_hour_without_storage(12, 3, 0).await;
}

/// There is nobody else to compare with, but what was stored of it before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_goes_down_in_the_middle_of_one_long_clip_does_not_park_it() {
    an_hour_without_storage(1, 30, 8).await;
}
