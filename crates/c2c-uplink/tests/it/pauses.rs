//! Nothing that was captured in a pause is ever delivered, everything that was not is: at every side of every edge, whatever
//! the wall clock of the unit does meanwhile.
//!
//! Both sides live in a time that stands still while requests are on their way, so the offsets are exact.

use std::time::Duration;

use c2c_simulator::{EndpointName, Simulator};
use c2c_uplink::queue::{ByHand, Hold, MediaId, MediaState, Selection};
use c2c_uplink::{AddMedia, Event, OrganiseBy, Standing, Uplink};

use crate::bench::{Bench, PATIENCE, idle, media};

const DAY_MS: i64 = 86_400_000;
/// Time passes this much at once where something waits for it.
const STEP: Duration = Duration::from_millis(500);

/// A bench whose time stands still, and an uplink that is paired but not at work.
async fn still() -> (Bench, Uplink) {
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    let bench = Bench::paced(sim, 0.0).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.drive(STEP, bench.pair(&uplink)).await;
    (bench, uplink)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn capture(bench: &Bench, uplink: &Uplink, name: &str) -> MediaId {
    let seed = name.bytes().map(u64::from).sum::<u64>() + 1;
    let path = bench.file(name, 1000, seed);
    let media = AddMedia::path(path).captured_now();
    uplink.add([media]).await.unwrap()[0].id
}

/// Waits, in a time that stands still, until each media is delivered or withheld.
async fn settled(uplink: &Uplink, ids: &[MediaId]) -> Vec<MediaState> {
    let mut states = Vec::new();
    let mut events = uplink.events();
    let all = async {
        for id in ids {
            loop {
                let state = media(uplink, *id).await.state;
                if state.is_resting() {
                    states.push(state);
                    break;
                }
                let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("settled in time");
    states
}

/// Three seconds to each side of both edges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_edges_of_a_pause_are_kept() {
    let (bench, uplink) = still().await;
    let mut ids = Vec::new();
    ids.push(capture(&bench, &uplink, "before.mov").await);
    bench.advance(seconds(3));
    bench.sim.admin().pause(0);
    bench.advance(seconds(3));
    ids.push(capture(&bench, &uplink, "begun.mov").await);
    bench.advance(seconds(4000));
    ids.push(capture(&bench, &uplink, "ending.mov").await);
    bench.advance(seconds(3));
    bench.sim.admin().resume(0);
    bench.advance(seconds(3));
    ids.push(capture(&bench, &uplink, "after.mov").await);
    bench.advance(seconds(10_000));
    uplink.start().await;
    use MediaState::{Delivered, Withheld};
    assert_eq!(
        settled(&uplink, &ids).await,
        [Delivered, Withheld, Withheld, Delivered]
    );
    // Each was asked for once: what is withheld is not asked for again by itself.
    bench.pass(seconds(3600), seconds(10)).await;
    for name in ["before.mov", "begun.mov", "ending.mov", "after.mov"] {
        assert_eq!(bench.creates(name), 1, "{name}");
    }
    let withheld = media(&uplink, ids[1]).await;
    assert_eq!(withheld.last_fault.unwrap().code, "channel_paused");

    // A person may insist; the service still decides.
    let selection = Selection::Ids(vec![ids[1]]);
    let queue = uplink.queue();
    let retried = queue.by_hand(selection, ByHand::Retry).await.unwrap();
    assert_eq!(retried, [ids[1]]);
    uplink.nudge();
    assert_eq!(settled(&uplink, &ids[1..2]).await, [Withheld]);
    assert_eq!(bench.creates("begun.mov"), 2);
    uplink.shutdown().await.unwrap();
}

/// While the channel is known to be paused: fresh media waits without being asked for, older media goes on; after the pause
/// the service decides about what waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_media_waits_for_the_end_of_the_pause() {
    let (bench, uplink) = still().await;
    uplink.start().await;
    let early = capture(&bench, &uplink, "early.mov").await;
    assert_eq!(settled(&uplink, &[early]).await, [MediaState::Delivered]);
    // Captured before the pause, added in it: like a card that is read late.
    let old = uplink.queue().media(early).await.unwrap().unwrap().capture;
    bench.advance(seconds(5));
    let mut events = uplink.events();
    bench.sim.admin().pause(0);
    let noticed = async |wanted: bool, events: &mut tokio::sync::broadcast::Receiver<Event>| {
        let heard = async {
            loop {
                if let Event::Paused(paused) = events.recv().await.unwrap()
                    && paused == wanted
                {
                    return;
                }
            }
        };
        bench.drive(STEP, heard).await;
    };
    noticed(true, &mut events).await;
    bench.advance(seconds(5));
    let fresh = capture(&bench, &uplink, "fresh.mov").await;
    let late = AddMedia::path(bench.file("late.mov", 1000, 77)).captured_at(old);
    let late = uplink.add([late]).await.unwrap()[0].id;
    assert_eq!(settled(&uplink, &[late]).await, [MediaState::Delivered]);
    let held = async {
        while media(&uplink, fresh).await.hold != Some(Hold::ChannelPaused) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap();
    // A long pause, with everything that runs by itself.
    bench.pass(seconds(3600), seconds(10)).await;
    assert_eq!(
        bench.creates("fresh.mov"),
        0,
        "no request is burned in a pause"
    );
    assert_eq!(media(&uplink, fresh).await.hold, Some(Hold::ChannelPaused));

    bench.advance(seconds(5));
    bench.sim.admin().resume(0);
    noticed(false, &mut events).await;
    let rested = settled(&uplink, std::slice::from_ref(&fresh));
    assert_eq!(bench.drive(STEP, rested).await, [MediaState::Withheld]);
    assert_eq!(bench.creates("fresh.mov"), 1);
    let after = capture(&bench, &uplink, "after.mov").await;
    assert_eq!(settled(&uplink, &[after]).await, [MediaState::Delivered]);
    uplink.shutdown().await.unwrap();
}

/// Works until nothing is left to do, in a time that hardly moves, and closes.
async fn work(bench: &Bench, uplink: Uplink) {
    uplink.start().await;
    let done = async {
        loop {
            let confirmed = matches!(uplink.standing(), Standing::Paired { .. });
            if confirmed && uplink.queue().status().await.unwrap().active() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    bench.drive(Duration::from_millis(10), done).await;
    uplink.shutdown().await.unwrap();
}

/// Random pauses, random captures at least 3 s from each edge, the wall clock of the unit jumping by days in between, some of
/// it sent while it goes on, some only at the end, over restarts of the program and of the system.
///
/// Each run of the system meets the service once: that is what makes its captures exact for later runs.
async fn live(seed: u64) -> (usize, usize) {
    let (bench, mut uplink) = still().await;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut paused = false;
    let mut captured: Vec<(MediaId, bool, String)> = Vec::new();
    for _ in 0..random.usize(20..40) {
        bench.advance(Duration::from_millis(random.u64(3_000..2_000_000)));
        match random.u32(0..10) {
            0..=5 => {
                let name = format!("{}.mov", captured.len());
                let id = capture(&bench, &uplink, &name).await;
                captured.push((id, paused, name));
            }
            6..=7 => {
                if paused {
                    bench.sim.admin().resume(0);
                } else {
                    bench.sim.admin().pause(0);
                }
                paused = !paused;
            }
            8 => {
                let jump = random.i64(-5 * DAY_MS..5 * DAY_MS);
                bench.clock().jump_wall(jump);
            }
            _ => {
                // A session with the service; then a restart of the program, or of the whole system.
                work(&bench, uplink).await;
                if random.bool() {
                    bench.clock().reboot();
                    // The battery of the clock is empty, as often as not.
                    bench.clock().jump_wall(random.i64(-2 * DAY_MS..2 * DAY_MS));
                    let met = bench.uplink().open().await.unwrap();
                    work(&bench, met).await;
                }
                uplink = bench.uplink().open().await.unwrap();
            }
        }
    }
    bench.advance(seconds(3));
    bench.sim.admin().resume(0);
    bench.advance(seconds(30));
    uplink.start().await;
    let ids: Vec<MediaId> = captured.iter().map(|(id, ..)| *id).collect();
    let states = bench
        .drive(Duration::from_millis(200), settled(&uplink, &ids))
        .await;
    let mut withheld = 0;
    for ((_, paused, name), state) in captured.iter().zip(&states) {
        let expected = if *paused {
            withheld += 1;
            MediaState::Withheld
        } else {
            MediaState::Delivered
        };
        assert_eq!(*state, expected, "seed {seed}: {name}");
    }
    bench.assert_no_violations();
    let names: Vec<String> = bench
        .sim
        .admin()
        .delivered()
        .into_iter()
        .map(|delivered| delivered.name)
        .collect();
    for (_, paused, name) in &captured {
        assert_eq!(
            names.iter().any(|delivered| delivered == name),
            !paused,
            "seed {seed}: {name}"
        );
    }
    uplink.shutdown().await.unwrap();
    (captured.len(), withheld)
}

/// Sixteen lives; any other with `C2C_PAUSE_SEED=n`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_pauses_are_kept() {
    let seeds: Vec<u64> = match std::env::var("C2C_PAUSE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=16).collect(),
    };
    let one = seeds.len() == 1;
    let (mut captured, mut withheld) = (0, 0);
    for seed in seeds {
        println!("seed {seed}");
        let (all, kept) = live(seed).await;
        captured += all;
        withheld += kept;
    }
    println!("{captured} captures, {withheld} in pauses");
    assert!(one || (withheld > 0 && withheld < captured));
}

/// Whoever asks for the folder of the day of the upload gives the protection up: no offset is sent, so the service cannot tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organised_by_upload_date_no_offset_is_sent() {
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    let bench = Bench::paced(sim, 0.0).await;
    let by_upload = bench.uplink().organise_by(OrganiseBy::UploadDate);
    let uplink = by_upload.open().await.unwrap();
    bench.drive(STEP, bench.pair(&uplink)).await;
    bench.sim.admin().pause(0);
    bench.advance(seconds(5));
    let id = capture(&bench, &uplink, "in-a-pause.mov").await;
    bench.advance(seconds(5));
    bench.sim.admin().resume(0);
    bench.advance(seconds(5));
    uplink.start().await;
    assert_eq!(settled(&uplink, &[id]).await, [MediaState::Delivered]);
    let creates = bench.requests(EndpointName::CreateAsset);
    let offsets: Vec<_> = creates
        .into_iter()
        .map(|create| create.create.unwrap().offset)
        .collect();
    assert_eq!(offsets, [None]);
    uplink.shutdown().await.unwrap();
}

/// The wall clock jumps by days between capture and upload, and while media waits: the offset does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jumping_wall_clock_changes_nothing() {
    let (bench, uplink) = still().await;
    let jumps = [DAY_MS, -9 * DAY_MS, 400 * DAY_MS, -391 * DAY_MS, 3_700_000];
    for (n, jump) in jumps.into_iter().enumerate() {
        capture(&bench, &uplink, &format!("{n}.mov")).await;
        bench.clock().jump_wall(jump);
        bench.advance(seconds(1000));
    }
    uplink.start().await;
    idle(&uplink).await;
    let creates = bench.requests(EndpointName::CreateAsset);
    let mut offsets: Vec<u64> = creates
        .into_iter()
        .map(|create| create.create.unwrap().offset.unwrap())
        .collect();
    // Several are on the way at once, and may overtake each other.
    offsets.sort_unstable();
    assert_eq!(offsets, [1000, 2000, 3000, 4000, 5000]);
    uplink.shutdown().await.unwrap();
}

/// Whoever waits for the end of the work is not told of it in the moment in which a held media goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_hold_is_not_the_end_of_the_work() {
    let (bench, uplink) = still().await;
    let id = capture(&bench, &uplink, "clip.mov").await;
    let uplink = std::sync::Arc::new(uplink);
    // Several, each at another place between its two looks at the queue.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let uplink = uplink.clone();
        waiting.spawn(async move { uplink.wait_idle().await.map(drop) });
    }
    for _ in 0..400 {
        let queue = uplink.queue();
        queue.hold(id, Hold::ChannelPaused).await.unwrap();
        uplink.nudge();
        queue.unhold(id, Hold::ChannelPaused, None).await.unwrap();
        uplink.nudge();
        assert!(waiting.try_join_next().is_none(), "idle with work to do");
    }
    uplink.shutdown().await.unwrap();
}
