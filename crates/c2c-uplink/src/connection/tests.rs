//! What cannot be seen from outside: many workers at one token, and a network that changes under an open socket.

use std::time::Duration;

use c2c_protocol::ExposeSecret;
use c2c_simulator::{Effect, EndpointName, Fault, Simulator};

use super::{Connection, NoToken, Standing, Why};
use crate::{ClientSettings, Uplink};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    sim: Simulator,
    uplink: Uplink,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Bench {
        let sim = Simulator::builder()
            .auto_approve(true)
            .poll_interval(Duration::from_millis(100));
        let sim = sim.start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let client = ClientSettings {
            id: Some("UNIT-1".into()),
            secret: sim.client_secret().into(),
        };
        let uplink = Uplink::builder()
            .state_dir(dir.path())
            .client(client)
            .api_url(sim.api_url())
            .ca_file(sim.ca_file())
            .open()
            .await
            .unwrap();
        let mut pairing = uplink.pair();
        let paired = async { while pairing.next().await.unwrap().is_some() {} };
        tokio::time::timeout(PATIENCE, paired).await.unwrap();
        Bench {
            sim,
            uplink,
            _dir: dir,
        }
    }

    fn connection(&self) -> std::sync::Arc<Connection> {
        self.uplink.engine.connection.clone()
    }

    fn count(&self, endpoint: EndpointName) -> usize {
        let requests = self.sim.admin().requests();
        requests
            .iter()
            .filter(|request| request.endpoint == endpoint)
            .count()
    }
}

/// Thirty-two workers are refused with the same token at once: one refresh, and all go on with its result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_refused_workers_cause_one_refresh() {
    let bench = Bench::start().await;
    let connection = bench.connection();
    let stale = connection.any_access().await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (connection, stale) = (connection.clone(), stale.clone());
        workers.spawn(async move { connection.refresh(&stale, Why::Refused).await });
    }
    let mut fresh = Vec::new();
    while let Some(renewed) = workers.join_next().await {
        fresh.push(renewed.unwrap().unwrap());
    }
    assert_eq!(bench.count(EndpointName::Refresh), 1);
    let current = connection.any_access().await.unwrap();
    assert_ne!(current.expose_secret(), stale.expose_secret());
    for token in fresh {
        assert_eq!(token.expose_secret(), current.expose_secret());
    }
    assert_eq!(connection.standing(), Standing::Paired { paused: false });
    // The pair is durable: another run of the program has the same.
    let stored = connection.queue.connection().await.unwrap().tokens.unwrap();
    assert_eq!(stored.access.expose_secret(), current.expose_secret());
    // A worker that comes late with the old token asks nobody.
    let late = connection.refresh(&stale, Why::Refused).await.unwrap();
    assert_eq!(late.expose_secret(), current.expose_secret());
    assert_eq!(bench.count(EndpointName::Refresh), 1);
    bench.uplink.shutdown().await.unwrap();
}

/// The same while the service is in trouble, or somebody in between answers 401 with a page: the authorization is not given up,
/// and `Retry-After` is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_of_a_refresh_is_no_loss() {
    let bench = Bench::start().await;
    let connection = bench.connection();
    let access = connection.any_access().await.unwrap();
    let answer = |status, body| Effect::Status {
        status,
        body,
        headers: vec![("retry-after".into(), "120".into())],
    };
    use c2c_simulator::BodyKind::{Empty, Html};
    for effect in [
        answer(500, Html),
        answer(503, Empty),
        answer(429, Empty),
        answer(401, Html),
        answer(403, Html),
        Effect::CaptivePortal,
    ] {
        let fault = Fault::new(EndpointName::Refresh, effect.clone()).once();
        bench.sim.admin().add_fault(fault);
        let renewed = connection.refresh(&access, Why::AheadOfNeed).await;
        assert!(matches!(renewed, Err(NoToken::NotNow)), "{effect:?}");
        let kept = connection.any_access().await.unwrap();
        assert_eq!(kept.expose_secret(), access.expose_secret(), "{effect:?}");
        if matches!(effect, Effect::Status { .. }) {
            let next = connection.renew_in().await.unwrap();
            assert!(next > Duration::from_secs(110), "{effect:?}: {next:?}");
        }
    }
    // The token that is still good was never refused, and work goes on with it.
    assert_eq!(connection.standing(), Standing::Paired { paused: false });
    connection.refresh(&access, Why::Refused).await.unwrap();
    bench.uplink.shutdown().await.unwrap();
}

/// Another network: no new pairing, no new token; the socket on the old way is given up and opened anew at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_network_keeps_the_pairing_and_moves_the_socket() {
    let bench = Bench::start().await;
    bench.uplink.start().await;
    let admin = bench.sim.admin();
    let sockets = |count: usize| {
        let admin = admin.clone();
        async move {
            let opened = admin.wait_until_within(PATIENCE, |sim| {
                sim.requests_for(EndpointName::Websocket).count() == count
                    && sim.stats().websockets_open == 1
            });
            assert!(opened.await, "socket {count}");
        }
    };
    sockets(1).await;
    while !bench.uplink.has_presence_socket() {
        tokio::task::yield_now().await;
    }
    bench.uplink.engine.link.network_changed().await;
    sockets(2).await;
    assert_eq!(bench.count(EndpointName::Refresh), 0);
    assert_eq!(bench.count(EndpointName::DeviceCode), 1);
    assert_eq!(bench.uplink.standing(), Standing::Paired { paused: false });
    bench.uplink.shutdown().await.unwrap();
}
