//! A simulator, a state directory, some files, and an uplink that is paired.

use std::path::{Path, PathBuf};
use std::time::Duration;

use c2c_simulator::{Delivered, EndpointName, LoggedRequest, SimClock, Simulator};
use c2c_uplink::queue::{Media, MediaId, MediaState, QueueStatus};
use c2c_uplink::{ClientSettings, PairingStep, Transfers, Uplink, UplinkBuilder};
use sha2::{Digest, Sha256};

use crate::clock::TestClock;

/// Everything but the uplink.
pub(crate) struct Bench {
    pub(crate) sim: Simulator,
    pub(crate) dir: tempfile::TempDir,
    /// The clock of the unit, where it is not that of this machine.
    pub(crate) clock: Option<TestClock>,
}

/// The longest that anything here may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for what must happen: a hang is a failure with a name.
pub(crate) async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

impl Bench {
    pub(crate) async fn start() -> Bench {
        Bench::with(Simulator::builder().poll_interval(Duration::from_millis(100))).await
    }

    pub(crate) async fn with(builder: c2c_simulator::Builder) -> Bench {
        let _ = tracing_subscriber_once();
        Bench {
            sim: builder.start().await.unwrap(),
            dir: tempfile::tempdir().unwrap(),
            clock: None,
        }
    }

    /// Both sides live in a time of their own, `factor` times as fast as that of the room; with `0` it stands still and is
    /// moved by hand.
    pub(crate) async fn paced(builder: c2c_simulator::Builder, factor: f64) -> Bench {
        let start = std::time::SystemTime::now();
        let sim = SimClock::starting_at(start, factor);
        let clock = TestClock::starting_at(start, factor);
        let mut bench = Bench::with(builder.clock(sim)).await;
        bench.clock = Some(clock);
        bench
    }

    /// The clock of the unit.
    pub(crate) fn clock(&self) -> &TestClock {
        self.clock.as_ref().expect("a bench with a clock")
    }

    /// Lets time pass at once, on both sides.
    pub(crate) fn advance(&self, by: Duration) {
        self.sim.clock().advance(by);
        self.clock().advance(by);
    }

    /// Lets time pass in small steps until something is done.
    pub(crate) async fn drive<T>(&self, step: Duration, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        let driven = async {
            loop {
                tokio::select! {
                    biased;
                    value = &mut done => return value,
                    _ = tokio::time::sleep(Duration::from_millis(2)) => self.advance(step),
                }
            }
        };
        tokio::time::timeout(PATIENCE, driven)
            .await
            .expect("done in time")
    }

    /// Lets `span` pass in small steps, so that everything that runs by itself has its turn.
    pub(crate) async fn pass(&self, span: Duration, step: Duration) {
        let until = self.clock().elapsed() + span.as_millis() as i64;
        let passed = async {
            while self.clock().elapsed() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.drive(step, passed).await;
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn uplink(&self) -> UplinkBuilder {
        let builder = match &self.clock {
            Some(clock) => Uplink::builder().clock(std::sync::Arc::new(clock.clone())),
            None => Uplink::builder(),
        };
        builder
            .state_dir(self.state())
            .client(ClientSettings {
                id: Some("UNIT-1".into()),
                secret: self.sim.client_secret().into(),
            })
            .client_version("1.2.3")
            .api_url(self.sim.api_url())
            .ca_file(self.sim.ca_file())
            .receipt_sha256(true)
            .adapt_parts(false)
            .transfers(Transfers::Fixed(4))
            .creates_per_second(None)
            .seed(7)
    }

    /// An uplink that is open, paired and at work.
    pub(crate) async fn working(&self) -> Uplink {
        self.working_as(self.uplink()).await
    }

    pub(crate) async fn working_as(&self, builder: UplinkBuilder) -> Uplink {
        let uplink = builder.open().await.unwrap();
        self.pair(&uplink).await;
        uplink.start().await;
        uplink
    }

    pub(crate) async fn pair(&self, uplink: &Uplink) {
        let mut pairing = uplink.pair();
        let paired = async {
            while let Some(step) = pairing.next().await.unwrap() {
                if let PairingStep::Code { user_code, .. } = step {
                    self.sim.admin().approve(&user_code, None, None).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, paired)
            .await
            .expect("paired in time");
    }

    /// A file of `size` bytes that no other seed gives.
    pub(crate) fn file(&self, name: &str, size: u64, seed: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes(size, seed)).unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        path
    }

    /// The one delivery of this name.
    pub(crate) async fn delivered(&self, name: &str) -> Delivered {
        // The service joins the chunks after it has acknowledged the last one.
        let there = |snapshot: &c2c_simulator::Snapshot<'_>| {
            snapshot
                .delivered()
                .iter()
                .any(|delivered| delivered.name == name)
        };
        self.sim.admin().wait_until_within(PATIENCE, there).await;
        let mut found: Vec<Delivered> = self
            .sim
            .admin()
            .delivered()
            .into_iter()
            .filter(|d| d.name == name)
            .collect();
        assert_eq!(found.len(), 1, "deliveries of {name}");
        found.remove(0)
    }

    /// The bytes that arrived under this name are those of the file.
    pub(crate) async fn assert_delivered(&self, name: &str, file: &Path) {
        let delivered = self.delivered(name).await;
        assert_eq!(delivered.sha256, sha256(file), "{name}");
        assert_eq!(sha256(&delivered.path), sha256(file), "{name} on disk");
    }

    /// The bytes that arrived for this asset are those of the file.
    pub(crate) async fn assert_asset_delivered(&self, asset_id: &str, file: &Path) {
        let there = |snapshot: &c2c_simulator::Snapshot<'_>| {
            snapshot
                .delivered()
                .iter()
                .any(|delivered| delivered.asset_id == asset_id)
        };
        assert!(
            self.sim.admin().wait_until_within(PATIENCE, there).await,
            "asset {asset_id} never arrived"
        );
        let all = self.sim.admin().delivered();
        let delivered = all
            .iter()
            .find(|delivered| delivered.asset_id == asset_id)
            .unwrap();
        assert_eq!(delivered.sha256, sha256(file));
    }

    /// No request broke a rule of the service.
    pub(crate) fn assert_no_violations(&self) {
        for request in self.sim.admin().requests() {
            assert!(request.violations.is_empty(), "{request:?}");
        }
    }

    /// The requests to one endpoint, oldest first.
    pub(crate) fn requests(&self, endpoint: EndpointName) -> Vec<LoggedRequest> {
        let mut requests = self.sim.admin().requests();
        requests.retain(|request| request.endpoint == endpoint);
        requests
    }

    /// How many assets were asked for under this name.
    pub(crate) fn creates(&self, name: &str) -> usize {
        self.requests(EndpointName::CreateAsset)
            .iter()
            .filter(|request| {
                let create = request.create.as_ref();
                create.and_then(|create| create.name.as_deref()) == Some(name)
            })
            .count()
    }

    /// How many PUTs of each part (from 1) of an asset were answered with 200.
    pub(crate) fn puts(&self, asset_id: &str) -> std::collections::BTreeMap<u32, usize> {
        let mut puts = std::collections::BTreeMap::new();
        for request in self.sim.admin().requests() {
            if request.method == "PUT"
                && request.asset_id.as_deref() == Some(asset_id)
                && request.status() == Some(200)
            {
                *puts.entry(request.part.unwrap()).or_default() += 1;
            }
        }
        puts
    }
}

pub(crate) async fn idle(uplink: &Uplink) -> QueueStatus {
    tokio::time::timeout(PATIENCE, uplink.wait_idle())
        .await
        .expect("idle in time")
        .unwrap()
}

pub(crate) async fn media(uplink: &Uplink, id: MediaId) -> Media {
    uplink
        .queue()
        .media(id)
        .await
        .unwrap()
        .expect("the media exists")
}

/// Waits until the media is in this state.
pub(crate) async fn reaches(uplink: &Uplink, id: MediaId, state: MediaState) -> Media {
    let mut events = uplink.events();
    let reached = async {
        loop {
            let now = media(uplink, id).await;
            if now.state == state {
                return now;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap_or_else(|_| panic!("media {id} never became {state}"))
}

/// The faults in the history of a media, by their codes.
pub(crate) async fn fault_codes(uplink: &Uplink, id: MediaId) -> Vec<String> {
    let history = uplink.queue().history(Some(id)).await.unwrap();
    let codes = history.into_iter().filter_map(|line| match line.event {
        c2c_uplink::queue::Event::Fault { fault, .. } => Some(fault.code),
        _ => None,
    });
    codes.collect()
}

pub(crate) fn bytes(size: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(size as usize + 8);
    while out.len() < size as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(size as usize);
    out
}

pub(crate) fn sha256(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer).unwrap();
        if read == 0 {
            return hex::encode(hasher.finalize());
        }
        hasher.update(&buffer[..read]);
    }
}

/// Logs of a failed test, with `C2C_LOG` set.
fn tracing_subscriber_once() -> Option<()> {
    let filter = std::env::var("C2C_LOG").ok()?;
    let filter = tracing_subscriber::EnvFilter::new(filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init()
        .ok()
}
