//! Transfers that stall, are slow, or take too long.

use std::time::Duration;

use c2c_simulator::{Effect, EndpointName, Fault, Outcome, Simulator};
use c2c_uplink::queue::{Event, MediaState};

use crate::bench::{Bench, PATIENCE, fault_codes, idle, media};

const MIB: u64 = 1024 * 1024;

async fn bench(factor: f64) -> Bench {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(MIB);
    Bench::paced(sim, factor).await
}

/// A PUT that goes silent in the middle is given up after the stall time and sent again on another connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_put_is_sent_again_on_a_new_connection() {
    let bench = bench(100.0).await;
    let stall = Effect::Stall {
        after_bytes: 300_000,
    };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall).once());
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let puts = bench.requests(EndpointName::PutChunk);
    assert_eq!(puts.len(), 2, "{puts:?}");
    // An orderly end behind bytes that it did not read is seen by the service when it reads on.
    bench.sim.admin().clear_faults();
    let gone = |snapshot: &c2c_simulator::Snapshot<'_>| {
        let mut puts = snapshot.requests_for(EndpointName::PutChunk);
        puts.any(|put| put.outcome == Outcome::Gone)
    };
    assert!(bench.sim.admin().wait_until_within(PATIENCE, gone).await);
    assert_ne!(puts[0].connection, puts[1].connection);
    let lasted = puts[1].at.duration_since(puts[0].at).unwrap();
    assert!(
        lasted >= Duration::from_secs(60),
        "given up after {lasted:?}"
    );
    assert!(
        lasted < Duration::from_secs(300),
        "given up after {lasted:?}"
    );
    assert_eq!(fault_codes(&uplink, id).await, ["stalled"]);
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert!(receipt.bytes_resent >= 300_000, "{receipt:?}");
    assert_eq!(receipt.registrations, 1);
    uplink.shutdown().await.unwrap();
}

/// A line of 50 kbit/s that moves is not a stall, however many stall times one chunk takes; and its lease is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_line_is_no_stall() {
    let bench = bench(60.0).await;
    let slow = Effect::SlowRead {
        bytes_per_sec: 6_250,
    };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, slow));
    let uplink = bench
        .working_as(bench.uplink().lease(Duration::from_secs(90)))
        .await;
    let file = bench.file("clip.mov", MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let puts = bench.requests(EndpointName::PutChunk);
    assert_eq!(puts.len(), 1, "{puts:?}");
    let lasted = puts[0].finished_at.unwrap().duration_since(puts[0].at);
    assert!(
        lasted.clone().unwrap() > Duration::from_secs(150),
        "the line was not slow: {lasted:?}"
    );
    let history = uplink.queue().history(Some(id)).await.unwrap();
    let disturbed = history
        .iter()
        .any(|line| matches!(line.event, Event::Fault { .. } | Event::LeaseLost { .. }));
    assert!(!disturbed, "{history:?}");
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!((receipt.bytes_resent, receipt.chunks[0].tries), (0, 1));
    uplink.shutdown().await.unwrap();
}

/// An attempt that lasts longer than an attempt may is begun again, even if the stall time allows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_over_its_limit_is_begun_again() {
    let bench = bench(400.0).await;
    let stall = Effect::Stall { after_bytes: 1_000 };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall).once());
    let builder = bench
        .uplink()
        .stall(Duration::from_secs(7200))
        .attempt_limit(Duration::from_secs(400));
    let uplink = bench.working_as(builder).await;
    let file = bench.file("clip.mov", 200_000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let history = uplink.queue().history(Some(id)).await.unwrap();
    let words = history.iter().find_map(|line| match &line.event {
        Event::Fault { fault, .. } => Some(fault.words.clone()),
        _ => None,
    });
    let words = words.unwrap();
    assert!(words.contains("longer than 400 s"), "{words}");
    let puts = bench.requests(EndpointName::PutChunk);
    assert_eq!(puts.len(), 2);
    let lasted = puts[1].at.duration_since(puts[0].at).unwrap();
    assert!(lasted >= Duration::from_secs(400), "{lasted:?}");
    assert_eq!(media(&uplink, id).await.state, MediaState::Delivered);
    uplink.shutdown().await.unwrap();
}

/// The service takes its time to answer, but not a stall time: nothing is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_is_waited_for() {
    let bench = bench(60.0).await;
    let delay = Effect::Delay(Duration::from_secs(45));
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, delay).times(3));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 3 * MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    assert_eq!(bench.requests(EndpointName::PutChunk).len(), 3);
    assert_eq!(fault_codes(&uplink, id).await, [""; 0]);
    uplink.shutdown().await.unwrap();
}

/// A limit in bytes per second is no stall, however long a chunk takes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_slows_down_is_not_given_up() {
    let bench = Bench::paced(Simulator::builder(), 200.0).await;
    let builder = bench
        .uplink()
        .limit_rate(100_000)
        .attempt_limit(Duration::from_secs(1))
        .stall(Duration::from_secs(36_000));
    let uplink = bench.working_as(builder).await;
    // Two seconds there are 400 s to the uplink, and 200 kB get 64 s at the rate of the slowest line.
    let file = bench.file("clip.mov", 200_000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    bench.assert_delivered("clip.mov", &file).await;
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    assert_eq!(receipt.bytes_resent, 0);
    assert_eq!(bench.requests(EndpointName::PutChunk).len(), 1);
    uplink.shutdown().await.unwrap();
}
