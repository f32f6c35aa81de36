//! Links that are dead, captive or intercepted: named, waited for by one probe on behalf of everybody, and free of charge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use c2c_simulator::{Effect, EndpointName, Fault, Simulator};
use c2c_uplink::queue::{ChunkState, Clock, Event as Line, MediaId, MediaState};
use c2c_uplink::{Event, LinkFault, LinkState, Transfers, Uplink, UplinkBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::bench::{Bench, PATIENCE, idle, media, reaches};

const CHUNK: u64 = 64 * 1024;

fn sim() -> c2c_simulator::Builder {
    Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(CHUNK)
}

fn port_of(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// What stands between the unit and the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Bytes pass.
    Open,
    /// Nobody listens; what was connected is reset.
    Refused,
    /// The bytes go to another host.
    To(SocketAddr),
}

/// A way that can be closed, in front of one port of the simulator.
struct Front {
    way: watch::Sender<Way>,
    _task: AbortOnDropHandle<()>,
}

impl Front {
    /// Listens on `127.0.0.2`, on the same port as the service behind it.
    async fn before(port: u16) -> Front {
        let way = watch::Sender::new(Way::Open);
        let listener = Front::listener(port).await;
        let task = tokio::spawn(Front::keep(port, way.clone(), Some(listener)));
        Front {
            way,
            _task: AbortOnDropHandle::new(task),
        }
    }

    async fn listener(port: u16) -> TcpListener {
        TcpListener::bind(("127.0.0.2", port)).await.unwrap()
    }

    async fn keep(port: u16, way: watch::Sender<Way>, mut listener: Option<TcpListener>) {
        let mut changes = way.subscribe();
        loop {
            let now = *changes.borrow_and_update();
            let to = match now {
                Way::Refused => {
                    listener = None;
                    if changes.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Way::Open => SocketAddr::from(([127, 0, 0, 1], port)),
                Way::To(to) => to,
            };
            let listening = match &listener {
                Some(listening) => listening,
                None => listener.insert(Front::listener(port).await),
            };
            let accepted = tokio::select! {
                accepted = listening.accept() => accepted,
                _ = changes.changed() => continue,
            };
            let Ok((unit, _)) = accepted else { continue };
            let mut changes = way.subscribe();
            changes.mark_unchanged();
            tokio::spawn(async move {
                let Ok(service) = TcpStream::connect(to).await else {
                    return;
                };
                let (mut unit, mut service) = (unit, service);
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut unit, &mut service) => {}
                    _ = changes.changed() => {
                        let _ = unit.set_zero_linger();
                    }
                }
            });
        }
    }

    fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// The whole way to the service, for the API and for uploads.
struct Cable {
    api: Front,
    uploads: Front,
}

impl Cable {
    async fn of(bench: &Bench) -> Cable {
        Cable {
            api: Front::before(port_of(&bench.sim.api_url())).await,
            uploads: Front::before(port_of(&bench.sim.uploads_url())).await,
        }
    }

    fn set(&self, way: Way) {
        self.api.set(way);
        self.uploads.set(way);
    }

    /// An uplink that goes through this cable.
    fn uplink(bench: &Bench) -> UplinkBuilder {
        let api = format!("localhost:{}:127.0.0.2", port_of(&bench.sim.api_url()));
        let uploads = format!("127.0.0.1:{}:127.0.0.2", port_of(&bench.sim.uploads_url()));
        let ways = [api, uploads].map(|way| way.parse().unwrap());
        bench.uplink().resolve(ways.to_vec())
    }
}

async fn offline(events: &mut tokio::sync::broadcast::Receiver<Event>) -> (LinkFault, String) {
    let heard = async {
        loop {
            match events.recv().await {
                Ok(Event::Link(LinkState::Offline { fault, words })) => return (fault, words),
                Ok(_) => {}
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("offline in time")
}

/// No fault was charged to anybody, and what waits has no try on its account but the one that registered it.
async fn assert_nobody_was_charged(uplink: &Uplink, ids: &[MediaId]) {
    for id in ids {
        for line in uplink.queue().history(Some(*id)).await.unwrap() {
            if let Line::Fault { verdict, .. } = &line.event {
                assert_eq!(verdict, "again_uncounted", "{line:?}");
            }
        }
        let now = media(uplink, *id).await;
        let most = match now.state {
            MediaState::Registering | MediaState::Transferring => 1,
            _ => 0,
        };
        assert!(now.tries <= most && now.rounds == 0, "{now:?}");
        for chunk in uplink.queue().chunks(*id).await.unwrap() {
            if chunk.state == ChunkState::Ready {
                assert_eq!(chunk.tries, 0, "{chunk:?} of {now:?}");
            }
        }
    }
}

/// The cable is out for an hour in the middle of the work: nobody is charged, and everything arrives when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_dead_for_an_hour_costs_nobody_a_try() {
    let bench = Bench::paced(sim(), 400.0).await;
    let cable = Cable::of(&bench).await;
    let uplink = bench.working_as(Cable::uplink(&bench)).await;
    let files: Vec<_> = (0..40)
        .map(|n| (format!("{n}.mov"), 3 * CHUNK + n, n + 1))
        .map(|(name, size, seed)| (bench.file(&name, size, seed), name))
        .collect();
    let mut events = uplink.events();
    let first = uplink
        .add(files[..30].iter().map(|(file, _)| file))
        .await
        .unwrap();
    let some = |snapshot: &c2c_simulator::Snapshot<'_>| snapshot.delivered().len() >= 3;
    assert!(bench.sim.admin().wait_until_within(PATIENCE, some).await);
    cable.set(Way::Refused);
    let (fault, words) = offline(&mut events).await;
    // The first probe may meet the reset of its own connection.
    assert!(
        matches!(fault, LinkFault::Connect | LinkFault::Tls),
        "{fault:?}: {words}"
    );
    let more = uplink
        .add(files[30..].iter().map(|(file, _)| file))
        .await
        .unwrap();
    bench.clock().sleep(Duration::from_secs(3600)).await;
    let ids: Vec<MediaId> = first.iter().chain(&more).map(|added| added.id).collect();
    assert!(!matches!(uplink.link(), LinkState::Online));
    assert_nobody_was_charged(&uplink, &ids).await;
    assert!(uplink.queue().status().await.unwrap().active() > 10);

    cable.set(Way::Open);
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, 40);
    for (file, name) in &files {
        bench.assert_delivered(name, file).await;
    }
    uplink.shutdown().await.unwrap();
}

/// Each way in which a link can be broken, with its name and words for a person.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_link_is_named() {
    let bench = Bench::paced(sim(), 20.0).await;
    let cable = Cable::of(&bench).await;
    let stranger = sim().start().await.unwrap();
    let stranger = SocketAddr::from(([127, 0, 0, 1], port_of(&stranger.api_url())));
    let uplink = bench.working_as(Cable::uplink(&bench)).await;
    let any = |effect| Some(Fault::new(EndpointName::Any, effect));
    let table: [(&str, Way, Option<Fault>, LinkFault, &str); 5] = [
        (
            "refused",
            Way::Refused,
            None,
            LinkFault::Connect,
            "no connection to localhost",
        ),
        (
            "foreign",
            Way::To(stranger),
            None,
            LinkFault::Untrusted,
            "certificate",
        ),
        (
            "aborted",
            Way::Open,
            any(Effect::TlsAbort),
            LinkFault::Tls,
            "no secure connection",
        ),
        (
            "page",
            Way::Open,
            any(Effect::CaptivePortal),
            LinkFault::Captive,
            "sign in",
        ),
        (
            "redirect",
            Way::Open,
            any(Effect::Redirect("https://login.hotel.example/".into())),
            LinkFault::Captive,
            "sign in",
        ),
    ];
    for (n, (name, way, fault, expected, expected_words)) in table.into_iter().enumerate() {
        // Idle connections would carry the first requests past what was broken for new ones.
        cable.set(Way::Refused);
        cable.set(way);
        let fault = fault.map(|fault| bench.sim.admin().add_fault(fault));
        let name = format!("{name}.mov");
        let file = bench.file(&name, 2 * CHUNK, n as u64 + 1);
        let id = uplink.add([&file]).await.unwrap()[0].id;
        let named = async {
            let mut link = uplink.link();
            loop {
                match &link {
                    LinkState::Offline { fault, words } if *fault == expected => {
                        return words.clone();
                    }
                    _ => tokio::task::yield_now().await,
                }
                link = uplink.link();
            }
        };
        let words = tokio::time::timeout(PATIENCE, named)
            .await
            .unwrap_or_else(|_| panic!("{name}: {:?} instead of {expected:?}", uplink.link()));
        assert!(words.contains(expected_words), "{name}: {words}");
        assert_nobody_was_charged(&uplink, &[id]).await;
        cable.set(Way::Open);
        if let Some(fault) = fault {
            bench.sim.admin().remove_fault(fault);
        }
        reaches(&uplink, id, MediaState::Delivered).await;
        bench.assert_delivered(&name, &file).await;
    }
    uplink.shutdown().await.unwrap();
}

/// A name that does not resolve: said so, and nothing is lost until another start finds the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_does_not_resolve_is_named() {
    let bench = Bench::with(sim()).await;
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let file = bench.file("clip.mov", CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    uplink.shutdown().await.unwrap();
    let nowhere = bench.uplink().api_url("https://frame.invalid:4443");
    let uplink = nowhere.open().await.unwrap();
    let mut events = uplink.events();
    uplink.start().await;
    let (fault, words) = offline(&mut events).await;
    assert_eq!(fault, LinkFault::Dns);
    assert!(words.contains("frame.invalid"), "{words}");
    assert_nobody_was_charged(&uplink, &[id]).await;
    uplink.shutdown().await.unwrap();
    let uplink = bench.uplink().open().await.unwrap();
    uplink.start().await;
    reaches(&uplink, id, MediaState::Delivered).await;
    uplink.shutdown().await.unwrap();
}

/// The API answers, the host for uploads does not: that is what is said, and nobody is charged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_host_that_is_out_of_reach_is_named() {
    let bench = Bench::paced(sim(), 100.0).await;
    let cable = Cable::of(&bench).await;
    let uplink = bench.working_as(Cable::uplink(&bench)).await;
    cable.uploads.set(Way::Refused);
    let mut events = uplink.events();
    let file = bench.file("clip.mov", 3 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    let (fault, words) = offline(&mut events).await;
    assert_eq!(fault, LinkFault::Uploads, "{words}");
    bench.clock().sleep(Duration::from_secs(600)).await;
    assert_nobody_was_charged(&uplink, &[id]).await;
    cable.uploads.set(Way::Open);
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// While the link is down one probe looks, ever more rarely; when it is back everybody goes on at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_probe_looks_and_all_go_on_at_once() {
    let bench = Bench::paced(sim(), 400.0).await;
    let uplink = bench
        .working_as(bench.uplink().transfers(Transfers::Fixed(4)))
        .await;
    let mut events = uplink.events();
    let portal = Fault::new(EndpointName::Any, Effect::CaptivePortal);
    let portal = bench.sim.admin().add_fault(portal);
    let files: Vec<_> = (0..12)
        .map(|n| bench.file(&format!("{n}.mov"), 2 * CHUNK, n + 1))
        .collect();
    uplink.add(&files).await.unwrap();
    offline(&mut events).await;
    bench.sim.admin().clear_requests();
    bench.clock().sleep(Duration::from_secs(3600)).await;
    let mut waited = bench.sim.admin().requests();
    // What was on its way when the link went down is no waiting: several registrations are under way at once, and a tenth of a
    // second here is 40 s there.
    let begun = waited[0].at + Duration::from_secs(40);
    waited.retain(|request| request.endpoint == EndpointName::Health || request.at > begun);
    assert!(
        waited
            .iter()
            .all(|request| request.endpoint == EndpointName::Health),
        "{waited:?}"
    );
    // 1, 2, 4 … 60 s, each at least half of that: from 60 to 127 in an hour, fewer where the room is slow.
    assert!(
        (20..=127).contains(&waited.len()),
        "{} probes",
        waited.len()
    );
    for pair in waited.windows(2) {
        let finished = pair[0].finished_at.unwrap();
        assert!(finished <= pair[1].at, "two probes at once: {pair:?}");
    }
    // Each chunk takes a minute now, so that all transfers are seen at work together: four that send, and four more that
    // begin while those wait for their answers.
    let slow = Fault::new(
        EndpointName::PutChunk,
        Effect::Delay(Duration::from_secs(60)),
    );
    bench.sim.admin().add_fault(slow.times(8));
    bench.sim.admin().remove_fault(portal);
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, 12);
    assert_eq!(bench.sim.admin().stats().puts_peak, 8);
    for (n, file) in files.iter().enumerate() {
        bench.assert_delivered(&format!("{n}.mov"), file).await;
    }
    uplink.shutdown().await.unwrap();
}

/// Everybody fails at the same moment: one probe answers for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_failures_asks_once() {
    let bench = Bench::with(sim()).await;
    let uplink = Arc::new(bench.working().await);
    // Four transfers are in the middle of a chunk when the connections break; the service is fine.
    let stall = Fault::new(EndpointName::PutChunk, Effect::CutAfterBytes(30_000));
    bench.sim.admin().add_fault(stall.times(4));
    let file = bench.file("clip.mov", 12 * CHUNK, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    idle(&uplink).await;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    let probes = bench.requests(EndpointName::Health);
    assert!((1..=4).contains(&probes.len()), "{} probes", probes.len());
    for pair in probes.windows(2) {
        assert!(pair[0].finished_at.unwrap() <= pair[1].at, "{pair:?}");
    }
    uplink.shutdown().await.unwrap();
}
