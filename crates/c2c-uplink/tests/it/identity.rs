//! Who the unit is: names that change, an authorization that ends, an id that stays.

use std::time::Duration;

use c2c_simulator::{EndpointName, Simulator};
use c2c_uplink::queue::MediaState;
use c2c_uplink::{ClientSettings, Event, PairingStep, Standing, Uplink};

use crate::bench::{Bench, idle, media, reaches};
use crate::presence::no_socket;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

async fn still() -> Bench {
    Bench::paced(
        Simulator::builder().poll_interval(Duration::from_millis(100)),
        0.0,
    )
    .await
}

/// Pairs with an authorization that ends.
async fn pair_until(bench: &Bench, uplink: &Uplink, ends_in: Option<Duration>) {
    let mut pairing = uplink.pair();
    let paired = async {
        while let Some(step) = pairing.next().await.unwrap() {
            if let PairingStep::Code { user_code, .. } = step {
                let admin = bench.sim.admin();
                let end = ends_in.map(|span| bench.sim.clock().now() + span);
                admin.approve(&user_code, None, end).unwrap();
            }
        }
    };
    bench.drive(SECOND, paired).await;
}

/// The project and the unit are renamed: only names change, and what is queued stays queued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_only_names() {
    for socket in [true, false] {
        let bench = still().await;
        let admin = bench.sim.admin();
        if !socket {
            admin.add_fault(no_socket(404));
        }
        let uplink = bench.uplink().open().await.unwrap();
        pair_until(&bench, &uplink, None).await;
        let before = uplink.identity().unwrap();
        // Queued, and not sent: the account has no room.
        let full = c2c_simulator::Effect::Status {
            status: 402,
            body: c2c_simulator::BodyKind::Empty,
            headers: Vec::new(),
        };
        let full = admin.add_fault(c2c_simulator::Fault::new(EndpointName::CreateAsset, full));
        uplink.start().await;
        let file = bench.file("clip.mov", 1000, 1);
        let id = uplink.add([&file]).await.unwrap()[0].id;
        let mut events = uplink.events();
        admin
            .rename_project(&before.project_id, "Another name")
            .unwrap();
        admin.rename_device("UNIT-1", "Camera B").unwrap();
        let renamed = async {
            loop {
                match events.recv().await.unwrap() {
                    Event::ProjectChanged { .. } => panic!("it is the same project"),
                    Event::Identity(identity) if identity.project_name == "Another name" => {
                        return identity;
                    }
                    _ => {}
                }
            }
        };
        let after = bench.drive(SECOND, renamed).await;
        assert_eq!(
            (after.device_name.as_str(), &after.project_id),
            ("Camera B", &before.project_id)
        );
        assert_eq!(uplink.identity().unwrap(), after);
        let waiting = media(&uplink, id).await.state;
        assert!(!waiting.is_resting(), "{waiting}");
        admin.remove_fault(full);
        uplink.nudge();
        bench
            .drive(SECOND, reaches(&uplink, id, MediaState::Delivered))
            .await;
        bench.assert_delivered("clip.mov", &file).await;
        uplink.shutdown().await.unwrap();
    }
}

/// An authorization that ends is announced a day before, once, and named when it has ended; what is queued waits for the next
/// pairing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorization_that_ends_is_announced() {
    let bench = still().await;
    let uplink = bench.uplink().open().await.unwrap();
    let mut events = uplink.events();
    pair_until(&bench, &uplink, Some(27 * HOUR)).await;
    uplink.start().await;
    let date = uplink.identity().unwrap().authorization_expires_at.unwrap();
    let mut announced = Vec::new();
    let mut lost = None;
    for hour in 0..30 {
        bench.pass(HOUR, Duration::from_secs(60)).await;
        while let Ok(event) = events.try_recv() {
            match event {
                Event::AuthorizationExpiring { at, left } => announced.push((hour, at, left)),
                Event::PairAgain { words } => lost = Some((hour, words)),
                _ => {}
            }
        }
    }
    let [(hour, at, left)] = &announced[..] else {
        panic!("{announced:?}");
    };
    assert_eq!(
        (*at == date, (2..=3).contains(hour)),
        (true, true),
        "{hour}: {at}"
    );
    assert!(*left <= 24 * HOUR && *left > 23 * HOUR, "{left:?}");
    let (hour, words) = lost.expect("it ended");
    assert!((26..=28).contains(&hour), "{hour}");
    assert!(
        words.contains("ended at") && words.contains(&date),
        "{words}"
    );
    let file = bench.file("clip.mov", 1000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    bench.pass(HOUR, Duration::from_secs(60)).await;
    assert_eq!(media(&uplink, id).await.state, MediaState::Queued);
    pair_until(&bench, &uplink, None).await;
    bench
        .drive(SECOND, reaches(&uplink, id, MediaState::Delivered))
        .await;
    assert_eq!(uplink.identity().unwrap().authorization_expires_at, None);
    uplink.shutdown().await.unwrap();
}

/// Switched off for longer than the refresh token lives: pair again, and everything that waited goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_days_in_a_drawer_need_a_pairing_and_nothing_else() {
    let bench = still().await;
    let uplink = bench.uplink().open().await.unwrap();
    pair_until(&bench, &uplink, None).await;
    let file = bench.file("clip.mov", 1000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    uplink.shutdown().await.unwrap();
    bench.advance(15 * 24 * HOUR);
    let uplink = bench.uplink().open().await.unwrap();
    uplink.start().await;
    let mut standing = uplink.standing();
    let lost = async {
        while !matches!(standing, Standing::PairAgain { .. }) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            standing = uplink.standing();
        }
    };
    bench.drive(SECOND, lost).await;
    assert_eq!(media(&uplink, id).await.tries, 0, "no fault of the media");
    pair_until(&bench, &uplink, None).await;
    bench
        .drive(SECOND, reaches(&uplink, id, MediaState::Delivered))
        .await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// An idle unit keeps its authorization for as long as it is switched on: three weeks here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_unit_never_needs_a_pairing() {
    let bench = still().await;
    let uplink = bench.uplink().open().await.unwrap();
    pair_until(&bench, &uplink, None).await;
    let mut events = uplink.events();
    uplink.start().await;
    for _ in 0..21 * 24 {
        bench.advance(HOUR);
        let now = bench.sim.clock().now();
        let heard = bench
            .sim
            .admin()
            .wait_until(|sim| sim.devices()[0].last_seen >= now);
        bench.drive(SECOND, heard).await;
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, Event::PairAgain { .. }), "{event:?}");
        }
    }
    let refreshes = bench.sim.admin().stats().refreshes;
    assert!((72..=21 * 24).contains(&refreshes), "{refreshes}");
    let file = bench.file("clip.mov", 1000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    bench
        .drive(SECOND, reaches(&uplink, id, MediaState::Delivered))
        .await;
    uplink.shutdown().await.unwrap();
}

/// Without an id of its own a unit invents one, once: restarts and upgrades keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_keeps_the_id_it_invented() {
    let bench = Bench::start().await;
    let open = async |version: &str, id: Option<String>| {
        bench
            .uplink()
            .client(ClientSettings {
                id,
                secret: bench.sim.client_secret().into(),
            })
            .client_version(version)
            .open()
            .await
    };
    for version in ["1.0.0", "1.0.1", "2.0.0-rc.1"] {
        let uplink = open(version, None).await.unwrap();
        bench.pair(&uplink).await;
        uplink.shutdown().await.unwrap();
    }
    let devices = bench.sim.admin().devices();
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!(devices[0].firmware, "2.0.0-rc.1");
    let id = &devices[0].client_id;
    let groups: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
    for forbidden in [
        "00:1B:44:11:3A:B7",
        "cam 00-1b-44-11-3a-b7",
        "someone@example.com",
    ] {
        let error = open("1.0.0", Some(forbidden.into()))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("serial number or a UUID"), "{error}");
    }
}

/// What the unit was told once it knows before it is at work again, without the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_project_is_known_without_the_network() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    uplink.add([bench.file("clip.mov", 1000, 1)]).await.unwrap();
    idle(&uplink).await;
    uplink.shutdown().await.unwrap();
    bench.sim.admin().clear_requests();
    let uplink = bench.uplink().open().await.unwrap();
    assert_eq!(uplink.identity().unwrap().project_name, "Simulated project");
    assert_eq!(uplink.standing(), Standing::Unconfirmed);
    assert!(bench.sim.admin().requests().is_empty());
    uplink.shutdown().await.unwrap();
}
