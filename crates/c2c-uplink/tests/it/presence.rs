//! Presence: the socket where there is one, polling where there is none, and what a pause does the moment it is heard of.
//!
//! Time stands still unless a test moves it, so what happens without being moved happens at once.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use c2c_simulator::{
    BodyKind, Effect, EndpointName, Fault, HostKind, LoggedRequest, Simulator, Snapshot,
};
use c2c_uplink::queue::{Hold, MediaState};
use c2c_uplink::{AddMedia, Event, Standing, Uplink};
use tokio::sync::broadcast::Receiver;

use crate::bench::{Bench, PATIENCE, media, reaches, soon};

/// Time passes this much at once while something is waited for that takes a moment of the room's time.
const TICK: Duration = Duration::from_millis(100);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn no_socket(status: u16) -> Fault {
    let effect = Effect::Status {
        status,
        body: BodyKind::Empty,
        headers: Vec::new(),
    };
    Fault::new(EndpointName::Websocket, effect)
}

/// A bench whose time stands still, and an uplink at work.
async fn still() -> (Bench, Uplink) {
    still_with(|uplink| uplink).await
}

async fn still_with(
    change: impl FnOnce(c2c_uplink::UplinkBuilder) -> c2c_uplink::UplinkBuilder,
) -> (Bench, Uplink) {
    let sim = Simulator::builder().poll_interval(Duration::from_millis(100));
    let bench = Bench::paced(sim, 0.0).await;
    let uplink = change(bench.uplink()).open().await.unwrap();
    bench.drive(seconds(1), bench.pair(&uplink)).await;
    (bench, uplink)
}

async fn socket_is_open(bench: &Bench, uplink: &Uplink) {
    let open = async {
        soon(
            bench
                .sim
                .admin()
                .wait_until(|sim| sim.stats().websockets_open == 1),
        )
        .await;
        while !uplink.has_presence_socket() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, open).await.unwrap();
}

/// Waits for news of a pause. No time passes but that of the room.
async fn paused(events: &mut Receiver<Event>, wanted: bool) {
    let heard = async {
        loop {
            if let Event::Paused(paused) = events.recv().await.unwrap() {
                assert_eq!(paused, wanted);
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("heard of the pause");
}

/// Waits until the service has heard from the unit again. Should it take a moment, then no longer than that.
async fn heard_of(bench: &Bench) {
    let now = bench.sim.clock().now();
    let heard = |sim: &Snapshot<'_>| sim.devices()[0].last_seen >= now;
    bench.drive(TICK, bench.sim.admin().wait_until(heard)).await;
}

/// Waits until the service was called since this moment.
async fn called_since(bench: &Bench, moment: SystemTime) {
    let called = |sim: &Snapshot<'_>| {
        let last = sim.requests().iter().rev().find(|call| is_call(call));
        last.is_some_and(|call| call.at > moment && call.finished_at.is_some())
    };
    bench
        .drive(TICK, bench.sim.admin().wait_until(called))
        .await;
}

/// Lets an hour pass, as fast as the unit can follow: when a call is due after this long, time hardly moves until it came.
async fn an_hour(bench: &Bench, due: Duration) {
    let clock = bench.sim.clock();
    let until = clock.now() + seconds(3600);
    while clock.now() < until {
        bench.pass(seconds(5), seconds(5)).await;
        let last = calls(bench).last().unwrap().at;
        if clock.now().duration_since(last).unwrap() >= due {
            called_since(bench, last).await;
        }
    }
}

fn is_call(call: &LoggedRequest) -> bool {
    call.host == HostKind::Api && call.endpoint != EndpointName::Websocket
}

fn calls(bench: &Bench) -> Vec<LoggedRequest> {
    let mut calls = bench.sim.admin().requests();
    calls.retain(is_call);
    calls
}

/// At least every five minutes a call, and heartbeats never closer than one minute. Tells how many heartbeats there were.
fn assert_presence(bench: &Bench, from: SystemTime) -> usize {
    let mut last = from;
    let calls = calls(bench);
    for call in calls.iter().filter(|call| call.at >= from) {
        let gap = call.at.duration_since(last).unwrap();
        assert!(gap <= seconds(300), "silent for {gap:?} before {call:?}");
        last = call.at;
    }
    let gap = bench.sim.clock().now().duration_since(last).unwrap();
    assert!(gap <= seconds(300), "silent for {gap:?} at the end");
    let heartbeats: Vec<_> = calls
        .iter()
        .filter(|call| call.endpoint == EndpointName::Heartbeat)
        .collect();
    for pair in heartbeats.windows(2) {
        let gap = pair[1].at.duration_since(pair[0].at).unwrap();
        assert!(gap >= seconds(60), "heartbeats {gap:?} apart");
    }
    heartbeats.len()
}

/// A pause is heard without any time passing: fresh media waits, and goes on the moment the pause ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_heard_at_once() {
    let (bench, uplink) = still().await;
    uplink.start().await;
    socket_is_open(&bench, &uplink).await;
    let mut events = uplink.events();
    let told = bench.sim.clock().now();
    bench.sim.admin().pause(0);
    paused(&mut events, true).await;
    assert_eq!(bench.sim.clock().now(), told, "no time passed");
    assert_eq!(uplink.standing(), Standing::Paired { paused: true });
    assert_eq!(uplink.identity().unwrap().status, "paused");

    bench.advance(seconds(5));
    let during = AddMedia::path(bench.file("during.mov", 1000, 1)).captured_now();
    let during = uplink.add([during]).await.unwrap()[0].id;
    let held = async {
        while media(&uplink, during).await.hold != Some(Hold::ChannelPaused) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap();
    assert_eq!(bench.creates("during.mov"), 0, "it is not even asked for");

    bench.advance(seconds(5));
    let told = bench.sim.clock().now();
    bench.sim.admin().resume(0);
    paused(&mut events, false).await;
    assert_eq!(bench.sim.clock().now(), told, "no time passed");
    assert_eq!(uplink.standing(), Standing::Paired { paused: false });
    // Released without any time passing; the service decides about it.
    reaches(&uplink, during, MediaState::Withheld).await;
    bench.advance(seconds(3));
    let after = AddMedia::path(bench.file("after.mov", 1000, 2)).captured_now();
    let after = uplink.add([after]).await.unwrap()[0].id;
    reaches(&uplink, after, MediaState::Delivered).await;
    assert_eq!(bench.requests(EndpointName::Websocket).len(), 1);
    bench.assert_no_violations();
    uplink.shutdown().await.unwrap();
    soon(
        bench
            .sim
            .admin()
            .wait_until(|sim| sim.stats().websockets_open == 0),
    )
    .await;
}

/// An hour on one socket: a beat every 15 seconds keeps it, the REST side hears of the unit often enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_kept_and_the_rest_not_forgotten() {
    let (bench, uplink) = still().await;
    uplink.start().await;
    socket_is_open(&bench, &uplink).await;
    let from = bench.sim.clock().now();
    for _ in 0..240 {
        bench.advance(seconds(15));
        heard_of(&bench).await;
        let last = calls(&bench).last().unwrap().at;
        if bench.sim.clock().now().duration_since(last).unwrap() >= seconds(240) {
            called_since(&bench, last).await;
        }
    }
    // Without beats there would be sixty. On a busy machine a minute of this time can pass between two turns of a task.
    let sockets = bench.requests(EndpointName::Websocket).len();
    assert!(sockets <= 3, "{sockets} sockets in an hour");
    let heartbeats = assert_presence(&bench, from);
    assert!(heartbeats > 8, "{heartbeats}");
    let asked = bench.requests(EndpointName::Me).len();
    assert!(
        (4..=8).contains(&asked),
        "{asked} questions about the identity"
    );
    bench.assert_no_violations();
    uplink.shutdown().await.unwrap();
}

/// A service without sockets: the identity is polled every two minutes, and the socket asked for about once an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_socket_the_identity_is_polled() {
    for status in [404, 403, 426] {
        let (bench, uplink) = still().await;
        bench.sim.admin().add_fault(no_socket(status));
        uplink.start().await;
        let from = bench.sim.clock().now();
        an_hour(&bench, seconds(120)).await;
        let mut events = uplink.events();
        bench.sim.admin().pause(0);
        let before = bench.sim.clock().now();
        bench.drive(seconds(1), paused(&mut events, true)).await;
        let heard_after = bench.sim.clock().now().duration_since(before).unwrap();
        assert!(heard_after <= seconds(150), "{heard_after:?}");
        bench.sim.admin().resume(0);
        bench.drive(seconds(1), paused(&mut events, false)).await;
        an_hour(&bench, seconds(120)).await;
        assert!(!uplink.has_presence_socket());
        assert_presence(&bench, from);
        let asked = bench.requests(EndpointName::Websocket).len();
        // Every change of the standing is a reason to ask again, too: here the start and both ends of the pause.
        assert!((2..=8).contains(&asked), "{asked} questions for a socket");
        assert!(matches!(
            uplink.standing(),
            Standing::Paired { paused: false }
        ));
        uplink.shutdown().await.unwrap();
    }
}

/// A socket that breaks, or cannot be had for a while, comes back by itself, and nothing else suffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_socket_comes_back() {
    let (bench, uplink) = still().await;
    let cut = Fault::new(EndpointName::Websocket, Effect::CutBeforeAnswer).times(3);
    bench.sim.admin().add_fault(cut);
    uplink.start().await;
    let from = bench.sim.clock().now();
    bench
        .drive(seconds(1), socket_is_open(&bench, &uplink))
        .await;
    assert_eq!(bench.requests(EndpointName::Websocket).len(), 4);
    let took = bench.sim.clock().now().duration_since(from).unwrap();
    assert!(
        (seconds(2)..seconds(60)).contains(&took),
        "with waits in between: {took:?}"
    );
    assert!(uplink.link() == c2c_uplink::LinkState::Online);
    // A minute of silence: the service closes the socket. Time stands still for the unit, or it could be back before
    // anybody saw that it was gone.
    bench.sim.clock().advance(seconds(61));
    soon(
        bench
            .sim
            .admin()
            .wait_until(|sim| sim.stats().websockets_open == 0),
    )
    .await;
    bench
        .drive(seconds(1), socket_is_open(&bench, &uplink))
        .await;
    // A pause that began while there was no socket is not missed.
    bench.sim.clock().advance(seconds(61));
    soon(
        bench
            .sim
            .admin()
            .wait_until(|sim| sim.stats().websockets_open == 0),
    )
    .await;
    let mut events = uplink.events();
    bench.sim.admin().pause(0);
    bench.drive(seconds(1), paused(&mut events, true)).await;
    uplink.shutdown().await.unwrap();
}

/// The token died while the unit slept: the socket is refused, the token renewed once, and the socket opened with the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_token_is_renewed_for_the_socket() {
    let (bench, uplink) = still().await;
    uplink.start().await;
    socket_is_open(&bench, &uplink).await;
    bench.sim.clock().advance(seconds(28_801));
    soon(
        bench
            .sim
            .admin()
            .wait_until(|sim| sim.stats().websockets_open == 0),
    )
    .await;
    bench
        .drive(seconds(1), socket_is_open(&bench, &uplink))
        .await;
    assert_eq!(bench.requests(EndpointName::Refresh).len(), 1);
    let sockets = bench.requests(EndpointName::Websocket);
    assert_eq!(
        sockets.last().unwrap().token,
        Some(2),
        "the token of the second pair"
    );
    uplink.shutdown().await.unwrap();
}

/// One chunk that takes an hour keeps nobody silent, with and without a socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_long_chunk_does_not_silence_the_unit() {
    for socket in [true, false] {
        let patient = |uplink: c2c_uplink::UplinkBuilder| {
            let long = seconds(3 * 3600);
            uplink.stall(long).attempt_limit(long).lease(long)
        };
        let (bench, uplink) = still_with(patient).await;
        let admin = bench.sim.admin();
        if !socket {
            admin.add_fault(no_socket(404));
        }
        admin.add_fault(Fault::new(
            EndpointName::PutChunk,
            Effect::Stall { after_bytes: 100 },
        ));
        uplink.start().await;
        let file = bench.file("long.mov", 200_000, 1);
        let id = uplink.add([&file]).await.unwrap()[0].id;
        let stalls = |sim: &Snapshot<'_>| sim.stats().puts_open == 1;
        assert!(admin.wait_until_within(PATIENCE, stalls).await);
        let from = bench.sim.clock().now();
        an_hour(&bench, seconds(if socket { 240 } else { 120 })).await;
        assert_eq!(
            bench.requests(EndpointName::PutChunk).len(),
            1,
            "still the first try"
        );
        assert_presence(&bench, from);
        assert_eq!(admin.devices()[0].status, "online");
        admin.clear_faults();
        bench
            .drive(seconds(1), reaches(&uplink, id, MediaState::Delivered))
            .await;
        bench.assert_delivered("long.mov", &file).await;
        uplink.shutdown().await.unwrap();
    }
}

/// Everything that is logged, down to the smallest detail.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The token is a part of the socket's address; it is a part of no log line.
#[tokio::test]
async fn no_secret_is_logged_by_a_life_with_a_socket() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber alone, lines that other tests reach first would count as nobody's.
    let _another = tracing::Dispatch::new(
        tracing_subscriber::fmt()
            .with_writer(std::io::sink)
            .finish(),
    );
    let _logged = tracing::subscriber::set_default(subscriber);
    let (bench, uplink) = still().await;
    bench.sim.admin().add_fault(no_socket(503).once());
    uplink.start().await;
    bench
        .drive(seconds(1), socket_is_open(&bench, &uplink))
        .await;
    let mut events = uplink.events();
    bench.sim.admin().pause(0);
    paused(&mut events, true).await;
    bench.sim.clock().advance(seconds(28_801));
    soon(
        bench
            .sim
            .admin()
            .wait_until(|sim| sim.stats().websockets_open == 0),
    )
    .await;
    bench
        .drive(seconds(1), socket_is_open(&bench, &uplink))
        .await;
    bench.sim.admin().revoke_all();
    let lost = async {
        while !matches!(uplink.standing(), Standing::PairAgain { .. }) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    bench.drive(seconds(1), lost).await;
    uplink.shutdown().await.unwrap();
    let logged = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("the presence socket is open"),
        "the log is there"
    );
    assert!(logged.contains("pair again"), "{logged}");
    for secret in bench.sim.admin().issued_secrets() {
        assert!(!logged.contains(&secret), "a secret was logged");
    }
}
