//! Tokens that run out or are taken away in the middle of the work.

use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator, Target};
use c2c_uplink::queue::MediaState;
use c2c_uplink::{PairingStep, Standing};

use crate::bench::{Bench, PATIENCE, idle, media, reaches};

/// 401 in the middle: one refresh, and everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_is_refreshed_once_for_all() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    let files: Vec<_> = (0..6)
        .map(|n| bench.file(&format!("{n}.mov"), 100_000, n + 1))
        .collect();
    uplink.add(&files[..3]).await.unwrap();
    idle(&uplink).await;
    bench.sim.clock().advance(Duration::from_secs(28_801));
    uplink.add(&files[3..]).await.unwrap();
    idle(&uplink).await;
    for (n, file) in files.iter().enumerate() {
        bench.assert_delivered(&format!("{n}.mov"), file).await;
    }
    let refreshes = bench
        .sim
        .admin()
        .requests()
        .iter()
        .filter(|request| request.endpoint == EndpointName::Refresh)
        .count();
    assert_eq!(refreshes, 1);
    uplink.shutdown().await.unwrap();
}

/// The authorization is gone: the queue waits, the person is told, and after pairing with the same project it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_authorization_keeps_the_queue() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    bench.sim.admin().revoke_all();
    let file = bench.file("clip.mov", 100_000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let lost = async {
        while !matches!(uplink.standing(), Standing::PairAgain { .. }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
    assert_eq!(media(&uplink, id).await.tries, 0);
    bench.pair(&uplink).await;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    uplink.shutdown().await.unwrap();
}

/// Another project: what was queued for the first never reaches the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_project_empties_the_queue_before_anything_is_sent() {
    let bench = Bench::with(Simulator::builder().poll_interval(Duration::from_millis(100))).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let queued: Vec<_> = (0..5)
        .map(|n| bench.file(&format!("secret-{n}.mov"), 10_000, n + 1))
        .collect();
    uplink.add(&queued).await.unwrap();
    let other = bench.sim.admin().add_project("Show B");
    let mut pairing = uplink.pair();
    while let Some(step) = pairing.next().await.unwrap() {
        if let c2c_uplink::PairingStep::Code { user_code, .. } = step {
            bench
                .sim
                .admin()
                .approve(&user_code, Some(&other), None)
                .unwrap();
        }
    }
    assert_eq!(uplink.identity().unwrap().project_id, other);
    assert_eq!(uplink.queue().status().await.unwrap().active(), 0);
    uplink.start().await;
    let file = bench.file("clip.mov", 10_000, 9);
    uplink.add([&file]).await.unwrap();
    idle(&uplink).await;
    let delivered = bench.sim.admin().delivered();
    assert_eq!(
        delivered
            .iter()
            .map(|d| d.name.as_str())
            .collect::<Vec<_>>(),
        ["clip.mov"]
    );
    assert_eq!(delivered[0].project_id, other);
    uplink.shutdown().await.unwrap();
}

/// A refresh whose answer is lost: the token is spent, its successor unknown. Only a person can help, and is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_refresh_leads_to_pairing_again() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    bench.sim.admin().add_fault(Fault {
        on: Target {
            endpoint: EndpointName::Refresh,
            part: None,
            asset_name: None,
        },
        effect: Effect::CutBeforeAnswer,
        times: Some(1),
        after: 0,
        probability: None,
    });
    bench.sim.clock().advance(Duration::from_secs(28_801));
    let id = uplink.add([bench.file("clip.mov", 1000, 1)]).await.unwrap()[0].id;
    let lost = async {
        while !matches!(uplink.standing(), Standing::PairAgain { .. }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
    bench.pair(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    uplink.shutdown().await.unwrap();
}

/// A refresh that the service cannot answer right now spends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_survives_trouble_of_the_service() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    bench.sim.admin().add_fault(Fault {
        on: Target {
            endpoint: EndpointName::Refresh,
            part: None,
            asset_name: None,
        },
        effect: Effect::Status {
            status: 503,
            body: BodyKind::Html,
            headers: Vec::new(),
        },
        times: Some(2),
        after: 0,
        probability: None,
    });
    bench.sim.clock().advance(Duration::from_secs(28_801));
    let id = uplink.add([bench.file("clip.mov", 1000, 1)]).await.unwrap()[0].id;
    reaches(&uplink, id, MediaState::Delivered).await;
    uplink.shutdown().await.unwrap();
}

/// Pairing before anything else runs, with the service away at first: the wait is told, and the code comes when the service does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pairing_survives_a_service_that_is_away() {
    let bench = Bench::start().await;
    bench.sim.admin().add_fault(Fault {
        on: Target {
            endpoint: EndpointName::Any,
            part: None,
            asset_name: None,
        },
        effect: Effect::CutBeforeAnswer,
        times: Some(4),
        after: 0,
        probability: None,
    });
    let uplink = bench.uplink().open().await.unwrap();
    let mut pairing = uplink.pair();
    let first = pairing.next().await.unwrap();
    assert!(
        matches!(first, Some(PairingStep::Waiting { .. })),
        "{first:?}"
    );
    let code = tokio::time::timeout(PATIENCE, pairing.next()).await;
    let code = code.expect("the code comes by itself").unwrap();
    let Some(PairingStep::Code { user_code, .. }) = code else {
        panic!("{code:?}");
    };
    bench.sim.admin().approve(&user_code, None, None).unwrap();
    let paired = pairing.next().await.unwrap();
    assert!(matches!(paired, Some(PairingStep::Paired(_))), "{paired:?}");
    uplink.shutdown().await.unwrap();
}

/// Polls keep their distance up to the end of a code and beyond, however the interval divides its life, and `slow_down` makes it
/// longer for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_keep_their_distance() {
    let seven = Duration::from_secs(7);
    let bench = Bench::paced(Simulator::builder().poll_interval(seven), 0.0).await;
    let uplink = bench.uplink().open().await.unwrap();
    let slow_down = Effect::Status {
        status: 400,
        body: BodyKind::Simple("slow_down".into()),
        headers: Vec::new(),
    };
    let mut pairing = uplink.pair();
    let step = Duration::from_millis(250);
    for slowed in [false, true] {
        let code = bench.drive(step, pairing.next()).await.unwrap();
        assert!(matches!(code, Some(PairingStep::Code { .. })), "{code:?}");
        if slowed {
            let fault = Fault::new(EndpointName::Token, slow_down.clone());
            bench.sim.admin().add_fault(fault.once());
        }
    }
    let last = bench.drive(step, pairing.next()).await.unwrap();
    assert!(matches!(last, Some(PairingStep::Code { .. })), "{last:?}");
    let polls = bench.requests(EndpointName::Token);
    assert!(polls.len() > 20, "{} polls", polls.len());
    let mut least = seven;
    for pair in polls.windows(2) {
        let gap = pair[1].at.duration_since(pair[0].at).unwrap();
        assert!(gap >= seven, "{gap:?} between {pair:?}");
        if least > seven {
            assert!(gap >= least, "{gap:?} after `slow_down`: {pair:?}");
        }
        if !pair[1].faults.is_empty() {
            least = Duration::from_secs(12);
        }
    }
    assert!(least > seven, "`slow_down` was said");
    bench.assert_no_violations();
    uplink.shutdown().await.unwrap();
}

/// Dropped at any moment, a pairing leaves nothing behind that blocks the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_pairing_polls_no_more_and_blocks_nothing() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    let mut pairing = uplink.pair();
    pairing.next().await.unwrap();
    let polling = tokio::time::timeout(Duration::from_millis(700), pairing.next()).await;
    assert!(polling.is_err(), "nobody approved it");
    drop(pairing);
    let polls = |bench: &Bench| {
        let requests = bench.sim.admin().requests();
        requests
            .iter()
            .filter(|request| request.endpoint == EndpointName::Token)
            .count()
    };
    let before = polls(&bench);
    assert!(before > 0);
    bench.pair(&uplink).await;
    let second: usize = polls(&bench) - before;
    assert!(second <= 3, "{second} polls: the first pairing still runs");
    uplink.shutdown().await.unwrap();
}

/// The key file is lost: the secrets are, too, but the queue is not, and pairing again brings everything back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_key_costs_a_pairing_and_nothing_else() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let file = bench.file("clip.mov", 10_000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    uplink.shutdown().await.unwrap();
    std::fs::remove_file(bench.state().join("key")).unwrap();
    let uplink = bench.uplink().open().await.unwrap();
    assert!(matches!(uplink.standing(), Standing::PairAgain { .. }));
    bench.pair(&uplink).await;
    uplink.start().await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// A shutdown in the middle of a renewal waits for its answer: the token in it is the only one there is from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_cut_a_renewal_off() {
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    let bench = Bench::paced(sim, 10.0).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    uplink.shutdown().await.unwrap();
    // Whichever part of the program asks first: the renewal is due, and its answer trickles.
    for _ in 0..5 {
        bench.advance(Duration::from_secs(7 * 3600));
        let slow = Fault {
            on: Target::endpoint(EndpointName::Refresh),
            effect: Effect::SlowAnswer,
            times: None,
            after: 0,
            probability: None,
        };
        let slow = bench.sim.admin().add_fault(slow);
        let before = bench.sim.admin().stats().refreshes;
        let uplink = bench.uplink().open().await.unwrap();
        uplink.start().await;
        let spent = |snapshot: &c2c_simulator::Snapshot<'_>| snapshot.stats().refreshes > before;
        assert!(bench.sim.admin().wait_until_within(PATIENCE, spent).await);
        uplink.shutdown().await.unwrap();
        bench.sim.admin().remove_fault(slow);
        let next = bench.uplink().open().await.unwrap();
        next.start().await;
        let confirmed = async {
            while !matches!(next.standing(), Standing::Paired { .. }) {
                assert!(
                    !matches!(next.standing(), Standing::PairAgain { .. }),
                    "the authorization was lost in the shutdown"
                );
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, confirmed).await.unwrap();
        next.shutdown().await.unwrap();
    }
}
