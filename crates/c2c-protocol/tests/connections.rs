//! Connections: reuse, death while idle, names, certificates, meters.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use c2c_protocol::{
    Client, ClientConfig, ErrorKind, Meter, Reached, Stage, Trust, UploadUrl, load_ca_file,
};
use support::{
    Authority, Server, Step, answer, body, chain, closed_port, json, reachable, secret, silent,
    stored,
};

const OK: &str = r#"{"status":"ok"}"#;

#[tokio::test]
async fn connections_are_reused() {
    let server = Server::start(vec![stored("x")]).await;
    let client = server.client();
    let url = server.url("/parts/1");
    let mut reused = Vec::new();
    for _ in 0..20 {
        let meter = Arc::new(Meter::default());
        client
            .clone()
            .put_chunk(&url, "x/y", 100_000, body(100_000), &meter)
            .await
            .unwrap();
        reused.push(meter.reused());
        assert_eq!(meter.peer(), Some(server.address));
        // The head and the body, and nothing of the requests before.
        assert!(
            (100_100..101_000).contains(&meter.handed_over()),
            "{}",
            meter.handed_over()
        );
        assert_eq!(
            meter.acknowledged(),
            meter.handed_over(),
            "an answer confirms everything"
        );
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(reused[0], Some(false));
    assert!(reused[1..].iter().all(|reused| *reused == Some(true)));
    client.drop_idle();
    server.until_closed(1).await;
    client
        .put_chunk(&url, "x/y", 1, body(1), &Arc::default())
        .await
        .unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn requests_at_the_same_time_have_connections_of_their_own() {
    let server = Server::start(vec![stored("x")]).await;
    let client = server.client();
    let url = server.url("/parts/1");
    for _ in 0..3 {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (client, url) = (client.clone(), url.clone());
            running.spawn(async move {
                client
                    .put_chunk(&url, "x/y", 3_000_000, body(3_000_000), &Arc::default())
                    .await
                    .unwrap();
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    }
    assert!(server.connections() <= 4, "{}", server.connections());
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.body.len() == 3_000_000)
    );
}

#[tokio::test]
async fn an_idle_connection_to_the_storage_is_not_trusted_for_long() {
    let server = Server::start(vec![stored("x"), stored("x"), json(200, OK)]).await;
    let client = server.client();
    let url = server.url("/parts/1");
    client
        .put_chunk(&url, "x/y", 1, body(1), &Arc::default())
        .await
        .unwrap();
    // Moving the clock is enough; nothing waits here.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    let meter = Arc::new(Meter::default());
    client
        .put_chunk(&url, "x/y", 1, body(1), &meter)
        .await
        .unwrap();
    assert_eq!((meter.reused(), server.connections()), (Some(false), 2));
}

#[tokio::test]
async fn a_connection_that_died_while_idle_fails_nobody() {
    // The server closes after each answer, without saying so in the answer.
    let server = Server::start(vec![Step::AnswerAndClose(answer(200, "", OK))]).await;
    let client = server.client();
    for round in 1..=5 {
        client.health().await.unwrap();
        server.until_closed(round).await;
    }
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_connection_that_dies_with_the_request_is_repeated_only_where_that_is_harmless() {
    let script = || vec![json(200, OK), Step::Close, json(200, OK)];
    // Idempotent: nobody notices.
    let server = Server::start(script()).await;
    let client = server.client();
    client.health().await.unwrap();
    client.health().await.unwrap();
    assert_eq!((server.seen().len(), server.connections()), (3, 2));
    // On a new connection there is no second try.
    let server = Server::start(vec![Step::Close, json(200, OK)]).await;
    let error = server.client().health().await.unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.reused, transport.stage),
        (false, Stage::Answer),
        "{error}"
    );
    // A refresh spends its token: reported, not repeated.
    let server = Server::start(script()).await;
    let client = server.client();
    client.health().await.unwrap();
    let error = client
        .refresh("id", &secret("sec"), &secret("ref"))
        .await
        .unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.reused, transport.reached),
        (true, Reached::Maybe),
        "{error}"
    );
    assert_eq!(server.seen().len(), 2);
    // Neither is a chunk.
    let server = Server::start(vec![stored("x"), Step::Close, stored("x")]).await;
    let (client, url) = (server.client(), server.url("/parts/1"));
    client
        .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
        .await
        .unwrap();
    let error = client
        .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
        .await
        .unwrap_err();
    assert!(error.transport().unwrap().reused, "{error}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn giving_up_closes_the_connection() {
    let server = Server::start(vec![stored("x"), Step::Stall(10), stored("x")]).await;
    let (client, url) = (server.client(), server.url("/parts/1"));
    client
        .put_chunk(&url, "x/y", 3, body(3), &Arc::default())
        .await
        .unwrap();
    let meter = Arc::new(Meter::default());
    {
        let put = client.put_chunk(&url, "x/y", 100_000, body(100_000), &meter);
        tokio::select! {
            outcome = put => panic!("{outcome:?}"),
            () = server.until_seen(2) => {}
        }
    }
    let (handed_over, acknowledged) = (meter.handed_over(), meter.acknowledged());
    assert!(handed_over > 0 && acknowledged <= handed_over);
    let again = Arc::new(Meter::default());
    client
        .put_chunk(&url, "x/y", 3, body(3), &again)
        .await
        .unwrap();
    assert_eq!((again.reused(), server.connections()), (Some(false), 2));
    assert_eq!(
        meter.handed_over(),
        handed_over,
        "the count of a request that ended stays"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_meter_tells_handed_over_from_acknowledged() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let server = Server::start(vec![Step::Stall(10)]).await;
    let (client, url) = (server.client(), server.url("/parts/1"));
    let meter = Arc::new(Meter::default());
    let watch = async {
        // The server reads nothing more: both buffers fill up, and what is in ours is not acknowledged.
        let mut last = 0;
        loop {
            tokio::task::yield_now().await;
            let (acknowledged, handed_over) = (meter.acknowledged(), meter.handed_over());
            assert!(
                acknowledged <= handed_over && handed_over >= last,
                "{acknowledged} of {handed_over}"
            );
            last = handed_over;
            if acknowledged > 0 && acknowledged < handed_over {
                return;
            }
        }
    };
    let put = client.put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &meter);
    let watch = tokio::time::timeout(Duration::from_secs(20), watch);
    tokio::select! {
        outcome = put => panic!("{outcome:?}"),
        seen = watch => seen.unwrap(),
    }
}

#[tokio::test]
async fn names_and_ports_that_do_not_answer() {
    let server = Server::start(vec![json(200, OK)]).await;
    let closed = closed_port().await;
    let client = Client::new(ClientConfig {
        api_url: format!("http://{closed}"),
        ..server.config()
    })
    .unwrap();
    let error = client.health().await.unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::Connect, Reached::No)
    );
    assert!(error.to_string().contains("refused"), "{error}");
    let (stage, meter) = (Stage::Connect, Arc::new(Meter::default()));
    let client = server.client();
    let url = UploadUrl::parse(&format!("http://{closed}/x"), true).unwrap();
    let error = client
        .put_chunk(&url, "x/y", 1, body(1), &meter)
        .await
        .unwrap_err();
    assert_eq!(
        (error.transport().unwrap().stage, meter.peer()),
        (stage, None)
    );
    assert_eq!(
        client.probe_tcp(closed).await.unwrap_err().stage,
        Stage::Connect
    );
    client.probe_tcp(server.address).await.unwrap();

    // A name that cannot exist (RFC 6761).
    let client = Client::new(ClientConfig {
        api_url: "https://c2c.invalid".into(),
        ..server.config()
    })
    .unwrap();
    let error = client.health().await.unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::Resolve, Reached::No),
        "{error}"
    );
    assert_eq!(client.probe_dns().await.unwrap_err().stage, Stage::Resolve);
    assert_eq!(client.api_host(), "c2c.invalid");

    // A dead address does not hide a living one.
    let port = server.address.port();
    let mut config = server.config();
    config.api_url = format!("http://localhost:{port}");
    config.resolve = vec![
        format!("localhost:{port}:127.0.0.9,127.0.0.1")
            .parse()
            .unwrap(),
    ];
    let client = Client::new(config).unwrap();
    let addresses = client.probe_dns().await.unwrap();
    assert_eq!(
        addresses
            .iter()
            .map(|address| address.ip())
            .collect::<Vec<IpAddr>>()
            .len(),
        2
    );
    client.health().await.unwrap();
    assert!(reachable(server.address).await);
}

#[tokio::test]
async fn a_full_backlog_is_a_connect_timeout() {
    // Nobody accepts here, and the queue holds one connection: the next one is left without an answer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(100),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        held.push(stream);
    }
    let config = ClientConfig {
        api_url: format!("http://{address}"),
        allow_plain_loopback: true,
        connect_timeout: Duration::from_millis(100),
        trust: Trust::Only(vec![Authority::new().root()]),
        ..ClientConfig::default()
    };
    let error = Client::new(config).unwrap().health().await.unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(
        (transport.stage, transport.reached),
        (Stage::ConnectTimeout, Reached::No),
        "{error}"
    );
}

fn secure(server: &Server, host: &str, trust: Trust) -> Client {
    with_api_at(server, host, server.address.port(), trust)
}

/// The API at another port than the server, so that chunks may go to the server.
fn with_api_at(server: &Server, host: &str, api_port: u16, trust: Trust) -> Client {
    let port = server.address.port();
    Client::new(ClientConfig {
        api_url: format!("https://{host}:{api_port}"),
        resolve: vec![format!("{host}:{port}:127.0.0.1").parse().unwrap()],
        trust,
        ..ClientConfig::default()
    })
    .unwrap()
}

#[tokio::test]
async fn certificates_are_verified() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server =
        Server::start_with(vec![json(200, OK)], Some(ours.acceptor("api.frame.test"))).await;
    let good = secure(
        &server,
        "api.frame.test",
        Trust::Only(vec![theirs.root(), ours.root()]),
    );
    good.health().await.unwrap();
    good.health().await.unwrap();
    good.probe_tls(server.address).await.unwrap();
    good.probe_host("api.frame.test", server.address.port())
        .await
        .unwrap();
    let wrong = [
        (
            "an authority we do not know",
            secure(&server, "api.frame.test", Trust::Only(vec![theirs.root()])),
            Trust::Only(vec![theirs.root()]),
        ),
        (
            "another name",
            secure(&server, "api.frame.example", Trust::Only(vec![ours.root()])),
            Trust::Only(vec![ours.root()]),
        ),
    ];
    for (what, client, trust) in wrong {
        let error = client.me(&secret("tok")).await.unwrap_err();
        let transport = error.transport().unwrap();
        assert_eq!(
            (transport.stage, transport.reached),
            (Stage::TlsCertificate, Reached::No),
            "{what}: {error}"
        );
        assert_eq!(
            client.probe_tls(server.address).await.unwrap_err().stage,
            Stage::TlsCertificate,
            "{what}"
        );
        let url = format!(
            "https://{}:{}/x?X-Amz-Signature=leak",
            client.api_host(),
            server.address.port()
        );
        let url = UploadUrl::parse(&url, false).unwrap();
        let error = with_api_at(&server, client.api_host(), 1, trust)
            .put_chunk(&url, "x/y", 1, body(1), &Arc::default())
            .await
            .unwrap_err();
        assert_eq!(
            error.transport().unwrap().stage,
            Stage::TlsCertificate,
            "{what}: {error}"
        );
        assert!(!chain(&error).contains("leak"));
    }
    let seen = server.seen();
    assert_eq!(
        seen.len(),
        2,
        "nothing was sent where the certificate was wrong"
    );
    assert_eq!(seen[0].connection, seen[1].connection);
    assert_eq!(
        seen[0].header("host"),
        Some(format!("api.frame.test:{}", server.address.port()).as_str())
    );
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls() {
    let plain = Server::start(vec![json(200, OK)]).await;
    let client = secure(
        &plain,
        "api.frame.test",
        Trust::Only(vec![Authority::new().root()]),
    );
    let (address, listener) = silent().await;
    let cut = tokio::spawn(async move {
        // Takes the first bytes of the handshake and closes.
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16])
            .await
            .unwrap();
    });
    let error = client.probe_tls(address).await.unwrap_err();
    cut.await.unwrap();
    assert_eq!(
        (error.stage, error.reached),
        (Stage::Tls, Reached::No),
        "{error}"
    );
}

#[tokio::test]
async fn a_ca_file_adds_trust() {
    let authority = Authority::new();
    let server = Server::start_with(
        vec![json(200, OK)],
        Some(authority.acceptor("api.frame.test")),
    )
    .await;
    let file = std::env::temp_dir().join(format!("c2c-protocol-trust-{}.pem", std::process::id()));
    std::fs::write(&file, authority.pem()).unwrap();
    let roots = load_ca_file(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(roots, [authority.root()]);
    secure(&server, "api.frame.test", Trust::SystemAnd(roots))
        .health()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_large_chunk_goes_over_tls_whole() {
    const LENGTH: usize = 12_345_678;
    let authority = Authority::new();
    let server =
        Server::start_with(vec![stored("x")], Some(authority.acceptor("s3.frame.test"))).await;
    let client = with_api_at(
        &server,
        "s3.frame.test",
        1,
        Trust::Only(vec![authority.root()]),
    );
    let url = format!("https://s3.frame.test:{}/parts/1", server.address.port());
    let url = UploadUrl::parse(&url, false).unwrap();
    let meter = Arc::new(Meter::default());
    client
        .put_chunk(&url, "x/y", LENGTH as u64, body(LENGTH), &meter)
        .await
        .unwrap();
    assert_eq!(server.only().body, vec![7; LENGTH]);
    let overhead = meter.handed_over() - LENGTH as u64;
    assert!((1..LENGTH as u64 / 100).contains(&overhead), "{overhead}");
}

#[tokio::test]
async fn settings_that_do_not_work_say_why() {
    let error = Client::new(ClientConfig {
        trust: Trust::Only(Vec::new()),
        ..ClientConfig::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("no CA certificate"), "{error}");
    let error = Client::new(ClientConfig {
        client_version: "1.x".into(),
        ..ClientConfig::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("semantic version"), "{error}");
    let error = Client::new(ClientConfig {
        api_url: "http://api.frame.io".into(),
        ..ClientConfig::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("not https"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_is_no_answer() {
    let client = {
        let server = Server::start(vec![json(200, OK)]).await;
        server.client()
    };
    let error = client.health().await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Transport(_)), "{error}");
}

#[tokio::test]
async fn a_connection_at_work_during_drop_idle_is_not_kept() {
    let server = Server::start(vec![stored("x"), stored("x")]).await;
    let (client, url) = (server.client(), server.url("/parts/1"));
    let meter = Arc::new(Meter::default());
    let put = client.put_chunk(&url, "x/y", 3_000_000, body(3_000_000), &meter);
    let drop_in_the_middle = async {
        while meter.handed_over() == 0 {
            tokio::task::yield_now().await;
        }
        client.drop_idle();
    };
    tokio::join!(async { put.await.unwrap() }, drop_in_the_middle);
    server.until_closed(1).await;
    let meter = Arc::new(Meter::default());
    client
        .put_chunk(&url, "x/y", 3, body(3), &meter)
        .await
        .unwrap();
    assert_eq!(meter.reused(), Some(false));
}
