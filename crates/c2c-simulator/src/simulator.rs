//! Starting and stopping a simulator.
//!
//! Invariants: a simulator that was started listens on loopback only and is ready before `start` returns; when
//! it is stopped or dropped, its ports are closed and its own folder is gone.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::admin::Admin;
use crate::clock::SimClock;
use crate::log::HostKind;
use crate::world::{Places, Project, RateLimit, Settings, State, World};
use crate::{admin_http, certs, server, store};

/// Why a simulator could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// A folder or file of the simulator could not be made.
    #[error("cannot write to the simulator's folder {}; check that it exists and is writable", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A port is taken or not allowed.
    #[error("cannot listen on port {port} of 127.0.0.1; choose another port, or 0 for any")]
    Listen {
        /// The port asked for.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the simulator's certificates; check the extra API names")]
    Certificate(#[source] rcgen::Error),
    /// TLS could not be set up.
    #[error("cannot set up TLS for the simulator")]
    Tls(#[source] rustls::Error),
    /// The time zone is not known on this machine.
    #[error("the time zone '{name}' is not known here; use a name like Europe/Paris, or UTC")]
    TimeZone {
        /// The name asked for.
        name: String,
        /// What the time zone database said.
        source: jiff::Error,
    },
}

impl SimulatorError {
    pub(crate) fn certificate(source: rcgen::Error) -> Self {
        Self::Certificate(source)
    }

    pub(crate) fn tls(source: rustls::Error) -> Self {
        Self::Tls(source)
    }
}

/// How a simulator is to be; see [`Simulator::builder`].
#[derive(Clone)]
pub struct Builder {
    root: Option<PathBuf>,
    clock: SimClock,
    settings: Settings,
    timezone: String,
    api_port: u16,
    uploads_port: u16,
    admin_port: u16,
    projects: Vec<Project>,
    extra_api_names: Vec<String>,
    log_capacity: usize,
    seed: u64,
}

pub(crate) fn default_settings() -> Settings {
    Settings {
        client_secret: String::new(),
        auto_approve: false,
        default_chunk_size: 25 << 20,
        rate_limit: None,
        poll_interval: Duration::from_secs(5),
        strict_slow_down: false,
        model_name: "C2C-UPLINK".to_owned(),
        asset_type: "video".to_owned(),
        timezone: jiff::tz::TimeZone::UTC,
        timezone_name: "UTC".to_owned(),
        channels: 1,
        folders: HashMap::new(),
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            root: None,
            clock: SimClock::real(),
            settings: default_settings(),
            timezone: "UTC".to_owned(),
            api_port: 0,
            uploads_port: 0,
            admin_port: 0,
            projects: Vec::new(),
            extra_api_names: Vec::new(),
            log_capacity: 50_000,
            seed: 0,
        }
    }
}

impl Builder {
    /// Where parts, delivered files and `ca.pem` go; kept at shutdown. By default a temporary folder of its own
    /// that is removed at shutdown.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// The clock of the service; [`SimClock::real`] by default.
    #[must_use]
    pub fn clock(mut self, clock: SimClock) -> Self {
        self.clock = clock;
        self
    }

    /// The product secret that units must know; a random one by default.
    #[must_use]
    pub fn client_secret(mut self, secret: impl Into<String>) -> Self {
        self.settings.client_secret = secret.into();
        self
    }

    /// Port of the API; 0 (the default) is any.
    #[must_use]
    pub fn api_port(mut self, port: u16) -> Self {
        self.api_port = port;
        self
    }

    /// Port of the uploads host; 0 (the default) is any.
    #[must_use]
    pub fn uploads_port(mut self, port: u16) -> Self {
        self.uploads_port = port;
        self
    }

    /// Port of the admin API; 0 (the default) is any.
    #[must_use]
    pub fn admin_port(mut self, port: u16) -> Self {
        self.admin_port = port;
        self
    }

    /// Approves every code at its first poll, as if a person had been quick. Off by default.
    #[must_use]
    pub fn auto_approve(mut self, on: bool) -> Self {
        self.settings.auto_approve = on;
        self
    }

    /// Adds a project. Pairings land in the first one unless the person chooses. Without any, there is one
    /// called "Simulated project".
    #[must_use]
    pub fn project(mut self, name: impl Into<String>, id: impl Into<String>) -> Self {
        self.projects.push(Project {
            id: id.into(),
            name: name.into(),
        });
        self
    }

    /// Bytes in a part when the client does not ask for a number of parts; 25 MiB by default, at least 1.
    #[must_use]
    pub fn default_chunk_size(mut self, bytes: u64) -> Self {
        self.settings.default_chunk_size = bytes.max(1);
        self
    }

    /// Enforces a rate limit with 429. By default limits are told in headers but not enforced.
    #[must_use]
    pub fn rate_limit(mut self, limit: Option<RateLimit>) -> Self {
        self.settings.rate_limit = limit;
        self
    }

    /// Least time between two polls of a device code; 5 s by default.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// Every `slow_down` makes the interval of that code 5 s longer for good, as RFC 8628 has it. Off by default.
    #[must_use]
    pub fn strict_slow_down(mut self, on: bool) -> Self {
        self.settings.strict_slow_down = on;
        self
    }

    /// The product's name, first half of every unit's name; `C2C-UPLINK` by default.
    #[must_use]
    pub fn model_name(mut self, name: impl Into<String>) -> Self {
        self.settings.model_name = name.into();
        self
    }

    /// `video` (the default), `audio` or `data`: the kind of asset the product makes.
    #[must_use]
    pub fn asset_type(mut self, kind: impl Into<String>) -> Self {
        self.settings.asset_type = kind.into();
        self
    }

    /// IANA name of the units' time zone, which dates the delivery folders; `UTC` by default.
    #[must_use]
    pub fn timezone(mut self, name: impl Into<String>) -> Self {
        self.timezone = name.into();
        self
    }

    /// Number of channels per unit; 1 by default, at least 1.
    #[must_use]
    pub fn channels(mut self, count: u32) -> Self {
        self.settings.channels = count.max(1);
        self
    }

    /// Delivers files with this extension (without its dot, any case) to a folder of this name instead of
    /// `VIDEO`, `AUDIO` or `DATA`.
    #[must_use]
    pub fn folder_for_extension(mut self, extension: &str, folder: impl Into<String>) -> Self {
        self.settings.folders.insert(
            extension.trim_start_matches('.').to_lowercase(),
            folder.into(),
        );
        self
    }

    /// A further DNS name that the API's certificate is valid for, e.g. for a camera whose DNS is redirected.
    #[must_use]
    pub fn extra_api_name(mut self, name: impl Into<String>) -> Self {
        self.extra_api_names.push(name.into());
        self
    }

    /// How many requests the log keeps; 50,000 by default, at least 1.
    #[must_use]
    pub fn log_capacity(mut self, entries: usize) -> Self {
        self.log_capacity = entries;
        self
    }

    /// Seed of the user codes and of faults with a probability; 0 by default.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts the simulator on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// When a port, the folder, the certificates or the time zone are not to be had.
    pub async fn start(self) -> Result<Simulator, SimulatorError> {
        let (root, own_root) = match self.root.clone() {
            Some(root) => (root, false),
            None => (
                std::env::temp_dir()
                    .join(format!("c2c-simulator-{}", uuid::Uuid::new_v4().simple())),
                true,
            ),
        };
        // Made first, so that a failure further on removes a folder of our own.
        let folder = Folder {
            root: root.clone(),
            own: own_root,
        };
        let cannot_write = |source| SimulatorError::Folder {
            path: root.clone(),
            source,
        };
        store::prepare(&root).map_err(cannot_write)?;
        let root = root.canonicalize().map_err(cannot_write)?;

        let certificates = certs::make(&self.extra_api_names)?;
        let ca_file = root.join("ca.pem");
        fs::write(&ca_file, &certificates.ca_pem).map_err(|source| SimulatorError::Folder {
            path: root.clone(),
            source,
        })?;

        let (api, api_port) = bind(self.api_port).await?;
        let (uploads, uploads_port) = bind(self.uploads_port).await?;
        let (admin, admin_port) = bind(self.admin_port).await?;
        // Names like localhost resolve to both families; where there is no IPv6 the other one is enough.
        let api_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, api_port))
            .await
            .ok();

        let mut settings = self.settings;
        settings.timezone =
            jiff::tz::TimeZone::get(&self.timezone).map_err(|source| SimulatorError::TimeZone {
                name: self.timezone.clone(),
                source,
            })?;
        settings.timezone_name = self.timezone;
        if settings.client_secret.is_empty() {
            settings.client_secret = format!("simulated-{}", uuid::Uuid::new_v4().simple());
        }
        let mut projects = self.projects;
        if projects.is_empty() {
            let id = uuid::Uuid::new_v4().to_string();
            projects.push(Project {
                id,
                name: "Simulated project".to_owned(),
            });
        }
        let places = Places {
            root: root.clone(),
            uploads_authority: format!("127.0.0.1:{uploads_port}"),
            pair_url: format!("http://127.0.0.1:{admin_port}/pair"),
        };
        let state = State::new(projects, self.seed, self.log_capacity);
        let world = World::new(self.clock, settings, places, state);
        for listener in [Some(api), api_v6].into_iter().flatten() {
            let tls = certificates.api.clone();
            world.tasks.spawn(server::listen(
                Arc::clone(&world),
                listener,
                HostKind::Api,
                tls,
            ));
        }
        world.tasks.spawn(server::listen(
            Arc::clone(&world),
            uploads,
            HostKind::Uploads,
            certificates.uploads,
        ));
        let simulator = Simulator {
            admin: Admin::new(Arc::clone(&world)),
            world: Arc::clone(&world),
            api_port,
            uploads_port,
            admin_port,
            ca_file,
            _folder: folder,
        };
        let router = admin_http::router(simulator.admin.clone(), simulator.announcement());
        world
            .tasks
            .spawn(admin_http::listen(Arc::clone(&world), admin, router));
        Ok(simulator)
    }
}

async fn bind(port: u16) -> Result<(TcpListener, u16), SimulatorError> {
    let cannot_listen = |source| SimulatorError::Listen { port, source };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(cannot_listen)?;
    let port = listener.local_addr().map_err(cannot_listen)?.port();
    Ok((listener, port))
}

/// Removes a folder of our own at the very end.
struct Folder {
    root: PathBuf,
    own: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = fs::remove_dir_all(&self.root)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.root.display(), "the simulator's folder could not be removed");
        }
    }
}

/// A running simulator. Dropping it stops everything; [`Simulator::shutdown`] also waits for it.
pub struct Simulator {
    world: Arc<World>,
    admin: Admin,
    api_port: u16,
    uploads_port: u16,
    admin_port: u16,
    ca_file: PathBuf,
    _folder: Folder,
}

impl Simulator {
    /// Starts to describe a simulator.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `https://localhost:…`
    pub fn api_url(&self) -> String {
        format!("https://localhost:{}", self.api_port)
    }

    /// `https://127.0.0.1:…`, another host name and port than the API.
    pub fn uploads_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.uploads_port)
    }

    /// `http://127.0.0.1:…`
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// The PEM file of the authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    /// The product secret.
    pub fn client_secret(&self) -> String {
        self.world.settings.client_secret.clone()
    }

    /// The controls.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The clock of the service.
    pub fn clock(&self) -> &SimClock {
        &self.world.clock
    }

    /// The folder; delivered files are under `delivered/`.
    pub fn root(&self) -> &Path {
        &self.world.root
    }

    /// What a person or script needs to know, as JSON: `api_url`, `uploads_url`, `admin_url`, `ca_file`,
    /// `client_secret`, `root`.
    pub fn announcement(&self) -> Value {
        json!({
            "api_url": self.api_url(), "uploads_url": self.uploads_url(), "admin_url": self.admin_url(),
            "ca_file": self.ca_file, "client_secret": self.client_secret(), "root": self.root(),
        })
    }

    /// Runs until `stop` resolves, then shuts down. What a foreground command needs.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        stop.await;
        self.shutdown().await;
    }

    /// Stops everything and waits until it has stopped.
    pub async fn shutdown(self) {
        self.world.shutdown.cancel();
        self.world.tasks.close();
        self.world.tasks.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.world.shutdown.cancel();
        self.world.tasks.close();
    }
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator")
            .field("api_url", &self.api_url())
            .field("uploads_url", &self.uploads_url())
            .field("admin_url", &self.admin_url())
            .finish_non_exhaustive()
    }
}
