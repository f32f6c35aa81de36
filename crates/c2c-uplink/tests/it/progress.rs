//! The numbers that are shown are true at every moment, and asking for them costs next to nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use c2c_simulator::{Effect, EndpointName, Fault, Simulator};
use c2c_uplink::queue::MediaId;
use c2c_uplink::{Progress, Uplink};

use crate::bench::{Bench, PATIENCE, idle, media};

const MIB: u64 = 1 << 20;

async fn bench() -> Bench {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(MIB);
    Bench::with(sim).await
}

fn slow(bytes_per_sec: u64) -> Fault {
    Fault::new(EndpointName::PutChunk, Effect::SlowRead { bytes_per_sec })
}

/// Looks every few milliseconds until everything is delivered; each look is checked.
async fn watch(uplink: &Uplink, mut check: impl FnMut(&Progress)) {
    let mut done = std::pin::pin!(idle(uplink));
    loop {
        tokio::select! {
            biased;
            _ = &mut done => break,
            _ = tokio::time::sleep(Duration::from_millis(3)) => {}
        }
        check(&uplink.progress().await.unwrap());
    }
    check(&uplink.progress().await.unwrap());
}

fn is_in_order(progress: &Progress) {
    let Progress {
        bytes_total,
        bytes_read,
        bytes_on_wire,
        bytes_acknowledged,
        ..
    } = progress;
    assert!(bytes_acknowledged <= bytes_on_wire, "{progress:?}");
    assert!(bytes_on_wire <= bytes_read, "{progress:?}");
    assert!(bytes_read <= bytes_total, "{progress:?}");
    for media in &progress.active {
        assert!(media.acknowledged <= media.on_wire, "{media:?}");
        assert!(media.on_wire <= media.read, "{media:?}");
        assert!(media.read <= media.size, "{media:?}");
    }
    if let Some(eta) = progress.eta {
        let middle = progress.eta_seconds.unwrap();
        assert!(eta.soonest <= middle && middle <= eta.latest, "{eta:?}");
    }
}

/// Nothing is lost, so no number ever falls: not in a chunk, not between two, not while the end of one is being stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_numbers_are_in_order_and_never_fall() {
    let bench = bench().await;
    bench.sim.admin().add_fault(slow(MIB));
    let uplink = bench.working().await;
    let files = ["a.mov", "b.mov", "c.mov"].map(|name| bench.file(name, 5 * MIB + 77, 3));
    // Files of the same content are three files all the same.
    uplink.add(files).await.unwrap();
    let all = 3 * (5 * MIB + 77);
    let mut totals = [0; 3];
    let mut media = BTreeMap::<MediaId, [u64; 3]>::new();
    let (mut between, mut ahead, mut foretold) = (0, 0, 0);
    watch(&uplink, |progress| {
        is_in_order(progress);
        assert_eq!((progress.bytes_total, progress.bytes_resent), (all, 0));
        let now = [
            progress.bytes_read,
            progress.bytes_on_wire,
            progress.bytes_acknowledged,
        ];
        assert!(
            (0..3).all(|n| now[n] >= totals[n]),
            "{totals:?} {progress:?}"
        );
        totals = now;
        between += u32::from(0 < now[2] && now[2] < all);
        ahead += u32::from(now[0] > now[2]);
        foretold += u32::from(progress.eta.is_some_and(|eta| eta.latest > 0));
        for active in &progress.active {
            let now = [active.read, active.on_wire, active.acknowledged];
            let before = media.insert(active.media, now).unwrap_or_default();
            assert!((0..3).all(|n| now[n] >= before[n]), "{before:?} {active:?}");
        }
    })
    .await;
    assert_eq!(totals, [all; 3]);
    assert!(between > 10, "hardly anything was seen on its way");
    assert!(ahead > 0, "what is read is ahead of what is acknowledged");
    assert!(foretold > 0, "no time left was told in {between} looks");
    uplink.shutdown().await.unwrap();
}

/// A chunk whose connection breaks is taken back, counted, and sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_is_counted() {
    let bench = bench().await;
    let cut = Effect::CutAfterBytes(MIB / 2);
    let admin = bench.sim.admin();
    admin.add_fault(Fault::new(EndpointName::PutChunk, cut).times(2));
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 6 * MIB, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let mut resent = 0;
    watch(&uplink, |progress| {
        is_in_order(progress);
        assert!(progress.bytes_resent >= resent);
        resent = progress.bytes_resent;
    })
    .await;
    let end = uplink.progress().await.unwrap();
    assert_eq!((end.bytes_read, end.bytes_acknowledged), (6 * MIB, 6 * MIB));
    let stored = media(&uplink, id).await.bytes_resent;
    assert!(stored > 0 && resent >= stored, "{resent} {stored}");
    // Twice at most a chunk.
    assert!(resent <= 2 * MIB, "{resent}");
    uplink.shutdown().await.unwrap();
}

/// Without a byte acknowledged for ten seconds there is no time left to tell, and it shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_shows() {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(MIB);
    let bench = Bench::paced(sim, 20.0).await;
    let stall = Effect::Stall { after_bytes: 1_000 };
    bench
        .sim
        .admin()
        .add_fault(Fault::new(EndpointName::PutChunk, stall));
    let uplink = bench
        .working_as(bench.uplink().stall(Duration::from_secs(7200)))
        .await;
    uplink
        .add([bench.file("clip.mov", 30 * MIB, 1)])
        .await
        .unwrap();
    let stalled = async {
        loop {
            let progress = uplink.progress().await.unwrap();
            is_in_order(&progress);
            if progress.stalled {
                return progress;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let progress = tokio::time::timeout(PATIENCE, stalled).await.unwrap();
    assert_eq!((progress.rate, progress.eta), (0, None));
    assert!(progress.bytes_acknowledged < progress.bytes_total);
    bench.sim.admin().clear_faults();
    idle(&uplink).await;
    let end = uplink.progress().await.unwrap();
    assert!(!end.stalled && end.bytes_acknowledged == end.bytes_total);
    uplink.shutdown().await.unwrap();
}

/// Prints what a look costs while four transfers run and nothing else changes:
/// `cargo test --release -p c2c-uplink --test it -- --ignored --nocapture what_a_look_costs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_a_look_costs() {
    let bench = bench().await;
    bench.sim.admin().add_fault(slow(20_000));
    let uplink = bench.working().await;
    let files: Vec<_> = (0..500)
        .map(|n| bench.file(&format!("{n}.mov"), 2 * MIB, n + 1))
        .collect();
    uplink.add(files).await.unwrap();
    while uplink.progress().await.unwrap().active.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let looks = 20_000;
    let begun = Instant::now();
    for _ in 0..looks {
        std::hint::black_box(uplink.progress().await.unwrap());
    }
    let each = begun.elapsed() / looks;
    let begun = Instant::now();
    for _ in 0..looks / 10 {
        std::hint::black_box(uplink.queue().status().await.unwrap());
    }
    let asked = begun.elapsed() / (looks / 10);
    println!("a look: {each:?}; asking the queue for its status alone: {asked:?}");
    uplink.shutdown().await.unwrap();
}
