//! Through proxies: CONNECT and SOCKS5, with and without a login, and what goes wrong with each. The proxies are small,
//! the sockets real; `api.example` exists behind them only.
#![allow(clippy::unwrap_used, reason = "a test that fails here fails")]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use c2c_protocol::{
    Client, ClientConfig, Error, Meter, Proxy, ResolveOverride, Stage, Trust, UploadUrl,
};
use support::{Authority, Server, Step, answer, body, chain, closed_port, json, silent, stored};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// How a proxy behaves.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// CONNECT; asks for `user:s3cr3t` if told to.
    Connect { login: bool },
    /// CONNECT, answered with this.
    Refuses(&'static str),
    /// SOCKS5; asks for `user` and `s3cr3t` if told to.
    Socks { login: bool },
    /// SOCKS5 whose connections fail with this code.
    SocksRefuses(u8),
}

/// A proxy that leads every connection to one server, and remembers where it should have led.
struct TestProxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestProxy {
    async fn start(kind: Kind, server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let noted = Arc::clone(&noted);
                connections.spawn(async move {
                    let mut tcp = tcp;
                    let let_through = match kind {
                        Kind::Connect { .. } | Kind::Refuses(_) => {
                            http(&mut tcp, kind, &noted).await
                        }
                        Kind::Socks { .. } | Kind::SocksRefuses(_) => {
                            socks(&mut tcp, kind, &noted).await
                        }
                    };
                    if let_through == Some(()) {
                        let mut there = TcpStream::connect(server).await.unwrap();
                        let _ = copy_bidirectional(&mut tcp, &mut there).await;
                    }
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn url(&self, scheme: &str, login: &str) -> Proxy {
        format!("{scheme}://{login}{}", self.address)
            .parse()
            .unwrap()
    }
}

async fn http(tcp: &mut TcpStream, kind: Kind, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").unwrap();
    asked
        .lock()
        .unwrap()
        .push(target.split(' ').next().unwrap().to_owned());
    // "user:s3cr3t"
    let knows = head.contains("\r\nProxy-Authorization: Basic dXNlcjpzM2NyM3Q=\r\n");
    let reply = match kind {
        Kind::Refuses(reply) => reply,
        Kind::Connect { login: true } if !knows => {
            "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        }
        _ => "HTTP/1.1 200 Connection established\r\n\r\n",
    };
    tcp.write_all(reply.as_bytes()).await.ok()?;
    reply.contains(" 200 Connection").then_some(())
}

async fn socks(tcp: &mut TcpStream, kind: Kind, asked: &Mutex<Vec<String>>) -> Option<()> {
    assert_eq!(tcp.read_u8().await.ok()?, 5);
    let mut methods = vec![0; usize::from(tcp.read_u8().await.ok()?)];
    tcp.read_exact(&mut methods).await.ok()?;
    if kind == (Kind::Socks { login: true }) {
        if !methods.contains(&2) {
            tcp.write_all(&[5, 0xff]).await.ok()?;
            return None;
        }
        tcp.write_all(&[5, 2]).await.ok()?;
        assert_eq!(tcp.read_u8().await.ok()?, 1);
        let mut texts = Vec::new();
        for _ in 0..2 {
            let mut text = vec![0; usize::from(tcp.read_u8().await.ok()?)];
            tcp.read_exact(&mut text).await.ok()?;
            texts.push(text);
        }
        let good = texts == [b"user".to_vec(), b"s3cr3t".to_vec()];
        tcp.write_all(&[1, u8::from(!good)]).await.ok()?;
        if !good {
            return None;
        }
    } else {
        tcp.write_all(&[5, 0]).await.ok()?;
    }
    let mut request = [0; 4];
    tcp.read_exact(&mut request).await.ok()?;
    assert_eq!(request[..3], [5, 1, 0]);
    let host = match request[3] {
        1 => {
            let mut octets = [0; 4];
            tcp.read_exact(&mut octets).await.ok()?;
            std::net::Ipv4Addr::from(octets).to_string()
        }
        4 => {
            let mut octets = [0; 16];
            tcp.read_exact(&mut octets).await.ok()?;
            format!("[{}]", std::net::Ipv6Addr::from(octets))
        }
        3 => {
            let mut name = vec![0; usize::from(tcp.read_u8().await.ok()?)];
            tcp.read_exact(&mut name).await.ok()?;
            String::from_utf8(name).unwrap()
        }
        other => panic!("address of kind {other}"),
    };
    let port = tcp.read_u16().await.ok()?;
    asked.lock().unwrap().push(format!("{host}:{port}"));
    if let Kind::SocksRefuses(code) = kind {
        tcp.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .ok()?;
        return None;
    }
    // The proxy's own name, the longest of the three forms.
    tcp.write_all(b"\x05\0\0\x03\x05proxy\0\x01").await.ok()?;
    Some(())
}

fn healthy() -> Step {
    json(200, r#"{"status":"ok"}"#)
}

fn client(authority: &Authority, proxy: Proxy) -> Client {
    Client::new(config(authority, proxy)).unwrap()
}

fn config(authority: &Authority, proxy: Proxy) -> ClientConfig {
    ClientConfig {
        api_url: "https://api.example".into(),
        client_version: "2.16.4".into(),
        trust: Trust::Only(vec![authority.root()]),
        connect_timeout: std::time::Duration::from_secs(5),
        proxy,
        ..ClientConfig::default()
    }
}

async fn refused(client: &Client) -> (Error, String) {
    let error = client.health().await.unwrap_err();
    let transport = error.transport().unwrap();
    assert_eq!(transport.stage, Stage::Proxy, "{error}");
    assert_eq!(transport.reached, c2c_protocol::Reached::No, "{error}");
    let words = chain(&error);
    assert!(
        !words.contains("s3cr3t") && !words.contains("dXNlcj"),
        "{words}"
    );
    let sentence = error.to_string();
    (error, sentence)
}

#[tokio::test]
async fn every_kind_of_proxy_leads_to_the_api_and_tls_ends_behind_it() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("api.example");
    let server = Server::start_with(vec![healthy()], Some(acceptor)).await;
    for (kind, scheme, login) in [
        (Kind::Connect { login: false }, "http", ""),
        (Kind::Connect { login: false }, "http", "user:s3cr3t@"),
        (Kind::Connect { login: true }, "http", "user:s3cr3t@"),
        (Kind::Socks { login: false }, "socks5h", ""),
        (Kind::Socks { login: true }, "socks5h", "user:s3cr3t@"),
    ] {
        let proxy = TestProxy::start(kind, server.address).await;
        let client = client(&authority, proxy.url(scheme, login));
        client.health().await.unwrap();
        client.health().await.unwrap();
        // One tunnel served both, and the name was resolved by nobody but the proxy.
        assert_eq!(proxy.asked(), ["api.example:443"], "{scheme} {login}");
        assert_eq!(client.api_proxy(), Some(proxy.address.to_string()));
    }
    for seen in server.seen() {
        assert_eq!(
            seen.header("proxy-authorization"),
            None,
            "for the proxy alone"
        );
    }
}

#[tokio::test]
async fn chunks_take_the_proxy_too_and_addresses_of_ones_own_count() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("s3.example");
    let server = Server::start_with(vec![stored("e")], Some(acceptor)).await;
    let proxy = TestProxy::start(Kind::Socks { login: false }, server.address).await;
    let url = UploadUrl::parse("https://s3.example:8443/part?X-Amz-Signature=abc", false).unwrap();
    // socks5 without the h: resolved here, by the override.
    let client = Client::new(ClientConfig {
        resolve: vec![
            "s3.example:8443:192.0.2.7"
                .parse::<ResolveOverride>()
                .unwrap(),
        ],
        ..config(&authority, proxy.url("socks5", ""))
    })
    .unwrap();
    let meter = Arc::new(Meter::default());
    let sent = client
        .put_chunk(&url, "video/quicktime", 9, body(9), &meter)
        .await
        .unwrap();
    assert_eq!(sent.etag.as_deref(), Some("e"));
    assert_eq!(proxy.asked(), ["192.0.2.7:8443"]);
    assert_eq!(server.only().body.len(), 9);
}

#[tokio::test]
async fn a_proxy_that_wants_a_login_is_named() {
    let authority = Authority::new();
    let nowhere = closed_port().await;
    for (kind, scheme) in [
        (Kind::Connect { login: true }, "http"),
        (Kind::Socks { login: true }, "socks5h"),
    ] {
        let proxy = TestProxy::start(kind, nowhere).await;
        let (_, words) = refused(&client(&authority, proxy.url(scheme, ""))).await;
        assert!(words.contains("asks for a user name"), "{words}");
        assert!(words.contains(&proxy.address.to_string()), "{words}");
        let (_, words) = refused(&client(&authority, proxy.url(scheme, "user:wrong@"))).await;
        assert!(words.contains("does not accept the user name"), "{words}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_none_is_named() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>Welcome</html>";
    let authority = Authority::new();
    let nowhere = closed_port().await;
    for (kind, scheme, expected) in [
        (
            Kind::Refuses("HTTP/1.1 502 Bad Gateway\r\n\r\n"),
            "http",
            "status 502",
        ),
        (
            Kind::Refuses("HTTP/1.0 403 Forbidden\r\n\r\n"),
            "http",
            "status 403",
        ),
        (
            Kind::Refuses("HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n"),
            "http",
            "not as a proxy",
        ),
        (Kind::Refuses(PAGE), "http", "not as a proxy"),
        (
            Kind::Refuses("SSH-2.0-OpenSSH_9.6\r\n\r\n"),
            "http",
            "not as a proxy",
        ),
        (Kind::SocksRefuses(2), "socks5h", "its rules forbid it"),
        (Kind::SocksRefuses(4), "socks5h", "not reachable from there"),
    ] {
        let proxy = TestProxy::start(kind, nowhere).await;
        let (_, words) = refused(&client(&authority, proxy.url(scheme, ""))).await;
        assert!(words.contains(expected), "{expected}: {words}");
        assert!(words.contains(&proxy.address.to_string()), "{words}");
    }
    // A proxy of the other kind.
    let web = Server::start(vec![Step::Answer(answer(400, "", "no"))]).await;
    let socks: Proxy = format!("socks5h://{}", web.address).parse().unwrap();
    let mut config = config(&authority, socks);
    config.connect_timeout = std::time::Duration::from_millis(300);
    let (_, words) = refused(&Client::new(config).unwrap()).await;
    assert!(words.contains("did not answer within 0.3 s"), "{words}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_or_says_nothing_is_named() {
    let authority = Authority::new();
    let closed: Proxy = format!("http://user:s3cr3t@{}", closed_port().await)
        .parse()
        .unwrap();
    let (_, words) = refused(&client(&authority, closed)).await;
    assert!(words.contains("cannot be reached"), "{words}");
    let (address, _listener) = silent().await;
    let mut config = config(&authority, format!("http://{address}").parse().unwrap());
    config.connect_timeout = std::time::Duration::from_millis(200);
    let (_, words) = refused(&Client::new(config).unwrap()).await;
    assert!(words.contains("did not answer within 0.2 s"), "{words}");
}

/// The child of the next test: asks for the health of `api.example` (or of the server itself) as its environment says.
#[tokio::test]
#[ignore = "runs only as the child of another test"]
async fn child_in_an_environment() {
    // Nobody's child: there is nothing to ask.
    let (Ok(url), Ok(ca)) = (std::env::var("C2C_TEST_URL"), std::env::var("C2C_TEST_CA")) else {
        return;
    };
    let roots = c2c_protocol::load_ca_file(ca).unwrap();
    let config = ClientConfig {
        api_url: url,
        trust: Trust::Only(roots),
        ..ClientConfig::default()
    };
    let client = Client::new(config).unwrap();
    println!("PROXY={:?}", client.api_proxy());
    match client.health().await {
        Ok(_) => println!("HEALTH=ok"),
        Err(error) => println!("HEALTH={:?}", error.transport().unwrap().stage),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_chooses_as_it_does_for_curl() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("api.example");
    let server = Server::start_with(vec![healthy()], Some(acceptor)).await;
    let http = TestProxy::start(Kind::Connect { login: true }, server.address).await;
    let socks = TestProxy::start(Kind::Socks { login: false }, server.address).await;
    let local = Server::start_with(vec![healthy()], Some(authority.acceptor("localhost"))).await;
    let ca = std::env::temp_dir().join(format!("c2c-proxies-{}.pem", std::process::id()));
    std::fs::write(&ca, authority.pem()).unwrap();
    let ca_file = ca.clone();
    let ask = |url: &str, variables: Vec<(&'static str, String)>| {
        let (url, ca) = (url.to_owned(), ca_file.clone());
        tokio::task::spawn_blocking(move || {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args([
                "--exact",
                "child_in_an_environment",
                "--ignored",
                "--nocapture",
            ]);
            for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"] {
                child.env_remove(name).env_remove(name.to_lowercase());
            }
            child
                .env("C2C_TEST_URL", url)
                .env("C2C_TEST_CA", ca)
                .envs(variables);
            let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
            let line = |name: &str| {
                let found = output.lines().find_map(|line| line.strip_prefix(name));
                found.unwrap_or_else(|| panic!("{output}")).to_owned()
            };
            (line("PROXY="), line("HEALTH="))
        })
    };
    let with_login = format!("http://user:s3cr3t@{}", http.address);
    let through_http = (format!("Some(\"{}\")", http.address), "ok".to_owned());
    let through_socks = (format!("Some(\"{}\")", socks.address), "ok".to_owned());
    let api = "https://api.example";
    let found = ask(api, vec![("HTTPS_PROXY", with_login.clone())]).await;
    assert_eq!(found.unwrap(), through_http);
    let found = ask(api, vec![("https_proxy", with_login.clone())]).await;
    assert_eq!(found.unwrap(), through_http);
    let all = format!("socks5h://{}", socks.address);
    assert_eq!(
        ask(api, vec![("ALL_PROXY", all.clone())]).await.unwrap(),
        through_socks
    );
    assert_eq!(
        ask(api, vec![("all_proxy", all.clone())]).await.unwrap(),
        through_socks
    );
    // Without a proxy the name does not exist.
    let direct = ("None".to_owned(), "Resolve".to_owned());
    for no in ["api.example", ".example", "*", "other.example, example"] {
        let variables = vec![
            ("HTTPS_PROXY", with_login.clone()),
            ("no_proxy", no.to_owned()),
        ];
        assert_eq!(ask(api, variables).await.unwrap(), direct, "{no}");
    }
    let unusable = ask(api, vec![("HTTPS_PROXY", "https://p.example".to_owned())]).await;
    assert_eq!(unusable.unwrap().1, "Proxy");
    let here = format!("https://localhost:{}", local.address.port());
    let found = ask(&here, vec![("HTTPS_PROXY", with_login), ("ALL_PROXY", all)]).await;
    assert_eq!(
        found.unwrap(),
        ("None".to_owned(), "ok".to_owned()),
        "this machine is no matter of a proxy"
    );
    std::fs::remove_file(ca).unwrap();
}

#[tokio::test]
async fn upload_urls_that_lead_into_the_api_are_refused() {
    let asset = |host: &str| {
        format!(
            r#"{{"id":"a1","name":"a.mov","upload_urls":["http://{host}/p?X-Amz-Signature=sig"]}}"#
        )
    };
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let into = server.local_addr().unwrap().to_string();
    let text = String::from_utf8(answer(
        200,
        "Content-Type: application/json\r\n",
        asset(&into),
    ))
    .unwrap();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = server.accept().await.unwrap();
        let mut block = [0; 4096];
        let _ = tcp.read(&mut block).await.unwrap();
        tcp.write_all(text.as_bytes()).await.unwrap();
        // Nothing else may come.
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(300), server.accept())
                .await
                .is_err()
        );
    });
    let client = Client::new(ClientConfig {
        api_url: format!("http://{into}"),
        allow_plain_loopback: true,
        trust: Trust::Only(vec![Authority::new().root()]),
        ..ClientConfig::default()
    })
    .unwrap();
    let create = c2c_protocol::CreateAsset {
        name: "a.mov".into(),
        filetype: "video/quicktime".into(),
        filesize: 9,
        offset: Some(0),
        channel: None,
        parts: None,
        auto_version_id: None,
    };
    let error = client
        .create_asset(&support::secret("token"), &create)
        .await
        .unwrap_err();
    let words = chain(&error);
    assert!(words.contains("points to the API at 127.0.0.1"), "{words}");
    assert!(!words.contains("sig\""), "{words}");
    // And one that comes from elsewhere, e.g. an old database.
    let url = UploadUrl::parse(&format!("http://{into}/p?X-Amz-Signature=sig"), true).unwrap();
    let put = client
        .put_chunk(
            &url,
            "video/quicktime",
            9,
            body(9),
            &Arc::new(Meter::default()),
        )
        .await;
    let words = put.unwrap_err().to_string();
    assert!(words.contains("points to the API"), "{words}");
    serving.await.unwrap();
}
