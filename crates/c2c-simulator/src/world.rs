//! Everything the simulated service knows, behind one lock.
//!
//! Invariants: the lock is never held across an await or a file's data; every change bumps a counter that
//! [`crate::Admin::wait_until`] watches; the clock of the world is the only source of time.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::asset::{Asset, Delivered};
use crate::clock::SimClock;
use crate::device::{Device, PauseWindow};
use crate::fault::{EndpointName, FaultBook};
use crate::log::{HostKind, Log};
use crate::pairing::{Authorization, Code, Token};
use crate::presign::Signer;

/// A leaky bucket for one endpoint: `limit` requests may come at once, and as many drain in each `window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The endpoint it guards.
    pub endpoint: EndpointName,
    /// Requests in a window.
    pub limit: u32,
    /// The window (simulated time).
    pub window: Duration,
}

impl Default for RateLimit {
    /// The published limit of asset creation: 5 in 1,000 ms.
    fn default() -> Self {
        Self {
            endpoint: EndpointName::CreateAsset,
            limit: 5,
            window: Duration::from_secs(1),
        }
    }
}

/// What the builder decided.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) client_secret: String,
    pub(crate) auto_approve: bool,
    pub(crate) default_chunk_size: u64,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) poll_interval: Duration,
    pub(crate) strict_slow_down: bool,
    pub(crate) model_name: String,
    pub(crate) asset_type: String,
    pub(crate) timezone: jiff::tz::TimeZone,
    pub(crate) timezone_name: String,
    pub(crate) channels: u32,
    /// Lower-case extension without its dot, to folder.
    pub(crate) folders: HashMap<String, String>,
}

/// A project of the simulated account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its key.
    pub id: String,
    /// What users see; may change.
    pub name: String,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections open now at the API host.
    pub api_open: u64,
    /// Connections ever accepted at the API host.
    pub api_accepted: u64,
    /// Connections open now at the uploads host.
    pub uploads_open: u64,
    /// Connections ever accepted at the uploads host.
    pub uploads_accepted: u64,
    /// Handshakes that failed, be it by a fault or by the client.
    pub tls_failures: u64,
    /// Token pairs issued, by pairing and by refresh.
    pub tokens_issued: u64,
    /// Token pairs issued by refresh alone.
    pub refreshes: u64,
    /// Websockets open now.
    pub websockets_open: u64,
    /// Part uploads at work now.
    pub puts_open: u64,
    /// The largest number of part uploads at work at once.
    pub puts_peak: u64,
}

/// A message for open websockets.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// The unit it is for; `None` is all.
    pub(crate) client_id: Option<String>,
    pub(crate) news: News,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The paused state may have changed.
    Status,
    /// An authorization may have ended.
    Tokens,
}

pub(crate) struct World {
    pub(crate) clock: SimClock,
    pub(crate) settings: Settings,
    pub(crate) signer: Signer,
    pub(crate) root: PathBuf,
    pub(crate) pair_url: String,
    pub(crate) pushes: broadcast::Sender<Push>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    /// Held while a delivered file gets its name.
    pub(crate) placing: Mutex<()>,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) projects: Vec<Project>,
    pub(crate) next_project: Option<String>,
    pub(crate) codes: Vec<Code>,
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) authorizations: Vec<Authorization>,
    pub(crate) tokens: HashMap<String, Token>,
    pub(crate) token_serial: u64,
    pub(crate) pauses: Vec<PauseWindow>,
    pub(crate) assets: HashMap<String, Asset>,
    pub(crate) asset_order: Vec<String>,
    pub(crate) delivered: Vec<Delivered>,
    pub(crate) log: Log,
    pub(crate) faults: FaultBook,
    pub(crate) rng: fastrand::Rng,
    pub(crate) buckets: HashMap<(String, EndpointName), Bucket>,
    pub(crate) stats: Stats,
    pub(crate) connections: u64,
    /// Tokens and codes ever issued.
    pub(crate) secrets: Vec<String>,
}

impl State {
    pub(crate) fn new(projects: Vec<Project>, seed: u64, log_capacity: usize) -> Self {
        Self {
            projects,
            next_project: None,
            codes: Vec::new(),
            devices: BTreeMap::new(),
            authorizations: Vec::new(),
            tokens: HashMap::new(),
            token_serial: 0,
            pauses: Vec::new(),
            assets: HashMap::new(),
            asset_order: Vec::new(),
            delivered: Vec::new(),
            log: Log::new(log_capacity),
            faults: FaultBook::default(),
            rng: fastrand::Rng::with_seed(seed),
            buckets: HashMap::new(),
            stats: Stats::default(),
            connections: 0,
            secrets: Vec::new(),
        }
    }

    pub(crate) fn project(&self, id: &str) -> Option<&Project> {
        self.projects.iter().find(|project| project.id == id)
    }
}

/// Fixed facts of a world that is about to start.
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    pub(crate) uploads_authority: String,
    pub(crate) pair_url: String,
}

impl World {
    pub(crate) fn new(
        clock: SimClock,
        settings: Settings,
        places: Places,
        state: State,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            settings,
            signer: Signer::new(places.uploads_authority),
            root: places.root,
            pair_url: places.pair_url,
            pushes: broadcast::Sender::new(64),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            placing: Mutex::new(()),
            changed: watch::Sender::new(0),
            state: Mutex::new(state),
        })
    }

    /// Looks without changing anything.
    pub(crate) fn read<T>(&self, act: impl FnOnce(&State) -> T) -> T {
        act(&self.lock())
    }

    /// Changes the state and wakes whoever waits for a change.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn push(&self, client_id: Option<&str>, news: News) {
        // Nobody may be listening; that is no error.
        let _ = self.pushes.send(Push {
            client_id: client_id.map(str::to_owned),
            news,
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection and gives it its number; the guard counts it out again.
    pub(crate) fn connection_opened(self: &Arc<Self>, host: HostKind) -> (u64, impl Drop + use<>) {
        let number = self.change(|state| {
            state.connections += 1;
            match host {
                HostKind::Api => (state.stats.api_open += 1, state.stats.api_accepted += 1),
                HostKind::Uploads => (
                    state.stats.uploads_open += 1,
                    state.stats.uploads_accepted += 1,
                ),
            };
            state.connections
        });
        let guard = self.counted(move |stats| match host {
            HostKind::Api => stats.api_open -= 1,
            HostKind::Uploads => stats.uploads_open -= 1,
        });
        (number, guard)
    }

    /// A guard that changes the counters when it is dropped.
    pub(crate) fn counted(
        self: &Arc<Self>,
        at_end: impl FnOnce(&mut Stats) + Send + 'static,
    ) -> Counted {
        Counted {
            world: Arc::clone(self),
            at_end: Some(Box::new(at_end)),
        }
    }

    /// Draws one request from the bucket of a client and endpoint.
    pub(crate) fn draw(&self, client: &str, endpoint: EndpointName) -> Allowance {
        let enforced = self
            .settings
            .rate_limit
            .filter(|limit| limit.endpoint == endpoint);
        let limit = enforced.unwrap_or(match endpoint {
            EndpointName::CreateAsset => RateLimit::default(),
            other => RateLimit {
                endpoint: other,
                limit: 100,
                window: Duration::from_secs(60),
            },
        });
        let now = self.clock.now();
        self.change(|state| {
            let fresh = || Bucket {
                level: 0.0,
                at: now,
            };
            let bucket = state
                .buckets
                .entry((client.to_owned(), endpoint))
                .or_insert_with(fresh);
            bucket.drain(now, limit);
            let full = bucket.level + 1.0 > f64::from(limit.limit) + 1e-9;
            if !full {
                bucket.level += 1.0;
            }
            let remaining = (f64::from(limit.limit) - bucket.level).max(0.0);
            Allowance {
                limit,
                remaining: remaining as u32,
                refused: full && enforced.is_some(),
            }
        })
    }
}

type AtEnd = Box<dyn FnOnce(&mut Stats) + Send>;

/// See [`World::counted`].
pub(crate) struct Counted {
    world: Arc<World>,
    at_end: Option<AtEnd>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(at_end) = self.at_end.take() {
            self.world.change(|state| at_end(&mut state.stats));
        }
    }
}

/// The level of a leaky bucket.
pub(crate) struct Bucket {
    level: f64,
    at: SystemTime,
}

impl Bucket {
    fn drain(&mut self, now: SystemTime, limit: RateLimit) {
        let passed = now
            .duration_since(self.at)
            .unwrap_or_default()
            .as_secs_f64();
        let window = limit.window.as_secs_f64().max(0.001);
        self.level = (self.level - passed * f64::from(limit.limit) / window).max(0.0);
        self.at = now;
    }
}

/// What the rate-limit headers say, and whether the request is refused.
#[derive(Clone, Copy)]
pub(crate) struct Allowance {
    pub(crate) limit: RateLimit,
    pub(crate) remaining: u32,
    pub(crate) refused: bool,
}
