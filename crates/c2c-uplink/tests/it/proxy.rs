//! Through a proxy on the way: everything goes through it, and its troubles are named and cost no media a try.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use c2c_uplink::queue::MediaState;
use c2c_uplink::{Event, LinkFault, LinkState, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::bench::{Bench, PATIENCE, media, reaches};

/// A CONNECT proxy that leads where it is asked to, or asks for a login.
struct TestProxy {
    address: SocketAddr,
    asks_login: Arc<AtomicBool>,
    tunnels: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestProxy {
    async fn start() -> TestProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asks_login, tunnels) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (asks, counted) = (asks_login.clone(), tunnels.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                connections.spawn(serve(tcp, asks.clone(), counted.clone()));
            }
        });
        TestProxy {
            address,
            asks_login,
            tunnels,
            task,
        }
    }

    fn url(&self, login: &str) -> Proxy {
        format!("http://{login}{}", self.address).parse().unwrap()
    }
}

async fn serve(
    mut tcp: TcpStream,
    asks_login: Arc<AtomicBool>,
    tunnels: Arc<AtomicUsize>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    if asks_login.load(Ordering::SeqCst) {
        let asks = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
        tcp.write_all(asks).await.ok()?;
        return None;
    }
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let mut there = TcpStream::connect(target).await.ok()?;
    tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await
        .ok()?;
    tunnels.fetch_add(1, Ordering::SeqCst);
    let _ = copy_bidirectional(&mut tcp, &mut there).await;
    None
}

/// API, chunks and presence socket go through the proxy that was chosen, although the service is on this machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_through_the_proxy() {
    let bench = Bench::start().await;
    let proxy = TestProxy::start().await;
    let uplink = bench
        .working_as(bench.uplink().proxy(proxy.url("u:s3cr3t@")))
        .await;
    let file = bench.file("clip.mov", 300_000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    reaches(&uplink, id, MediaState::Delivered).await;
    bench.assert_delivered("clip.mov", &file).await;
    let socket = |sim: &c2c_simulator::Snapshot<'_>| sim.stats().websockets_open == 1;
    assert!(bench.sim.admin().wait_until_within(PATIENCE, socket).await);
    let stats = bench.sim.admin().stats();
    let tunnels = proxy.tunnels.load(Ordering::SeqCst) as u64;
    assert_eq!(
        stats.api_accepted + stats.uploads_accepted,
        tunnels,
        "no way around the proxy"
    );
    bench.assert_no_violations();
    uplink.shutdown().await.unwrap();
}

/// A proxy that suddenly wants a login: the link is offline for that reason, no media loses a try, and all goes on when it lets
/// us through again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_blocks_is_named_and_costs_nothing() {
    let bench = Bench::start().await;
    let proxy = TestProxy::start().await;
    let uplink = bench.uplink().proxy(proxy.url("")).open().await.unwrap();
    bench.pair(&uplink).await;
    uplink.shutdown().await.unwrap();
    proxy.asks_login.store(true, Ordering::SeqCst);
    // A new run has no connection from before.
    let uplink = bench.uplink().proxy(proxy.url("")).open().await.unwrap();
    let mut events = uplink.events();
    let file = bench.file("clip.mov", 1000, 1);
    let id = uplink.add([&file]).await.unwrap()[0].id;
    uplink.start().await;
    let offline = async {
        loop {
            if let Event::Link(LinkState::Offline { fault, words }) = events.recv().await.unwrap() {
                return (fault, words);
            }
        }
    };
    let (fault, words) = tokio::time::timeout(PATIENCE, offline).await.unwrap();
    assert_eq!(fault, LinkFault::Proxy);
    assert!(words.contains("asks for a user name"), "{words}");
    assert!(words.contains(&proxy.address.to_string()), "{words}");
    let waiting = media(&uplink, id).await;
    assert_eq!((waiting.state, waiting.tries), (MediaState::Queued, 0));
    proxy.asks_login.store(false, Ordering::SeqCst);
    reaches(&uplink, id, MediaState::Delivered).await;
    uplink.shutdown().await.unwrap();
}

/// A proxy that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_away_is_named() {
    let bench = Bench::start().await;
    let proxy = TestProxy::start().await;
    let (url, address) = (proxy.url("u:s3cr3t@"), proxy.address);
    drop(proxy);
    let uplink = bench.uplink().proxy(url).open().await.unwrap();
    let mut pairing = uplink.pair();
    let step = tokio::time::timeout(PATIENCE, pairing.next())
        .await
        .unwrap()
        .unwrap();
    let words = format!("{step:?}");
    assert!(
        words.contains(&address.to_string()) && words.contains("cannot be reached"),
        "{words}"
    );
    assert!(!words.contains("s3cr3t"), "{words}");
    // The pairing goes on trying, and the link says why it waits.
    let known = async {
        while !matches!(
            uplink.link(),
            LinkState::Offline {
                fault: LinkFault::Proxy,
                ..
            }
        ) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let known = async {
        tokio::select! {
            () = known => {}
            step = pairing.next() => panic!("{step:?}"),
        }
    };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
    uplink.shutdown().await.unwrap();
}
