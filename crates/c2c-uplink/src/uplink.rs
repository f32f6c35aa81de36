//! The facade.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use c2c_digest::Digests;
use c2c_protocol::{
    Client, ClientConfig, Congestion, Proxy, ResolveOverride, SecretString, Trust, Tuning,
    load_ca_file,
};
use c2c_queue::{
    Added, Clock, Hold, Identity, KeyStore, MediaState, Queue, QueueStatus, Receipt, SqliteOptions,
    SqliteQueue, SystemClock, Vault,
};
use tokio::sync::{Mutex, Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, Credentials, Pairing, Standing};
use crate::crash;
use crate::engine::Engine;
use crate::error::UplinkError;
use crate::event::Event;
use crate::intake::{self, AddMedia};
use crate::link::{Link, LinkState};
use crate::pace::bucket::Pacer;
use crate::pace::{Helm, Steering};
use crate::progress::{self, Progress};
use crate::settings::{OrganiseBy, RestartSignal, Settings, Transfers};
use crate::supervisor::Supervisor;
use crate::time::TimeKeeper;
use crate::transfer::{Airgate, Slots, Wary};

/// Buffers of a transfer that may wait for their digest: enough for several transfers to be hashed together, few enough for
/// the memory.
const DIGEST_BACKLOG: usize = 3;
/// Milliseconds between two looks whether the queue is idle, at most.
const LOOKS_APART: u64 = 20;

/// Who this unit is to the service.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Names this unit: a serial number or a UUID, never an e-mail or MAC address. Generated once and kept if `None`.
    pub id: Option<String>,
    /// The secret that Frame.io issued for the product.
    pub secret: SecretString,
}

/// Collects the settings of an [`Uplink`].
#[derive(Debug)]
pub struct UplinkBuilder {
    state_dir: Option<PathBuf>,
    client: Option<ClientSettings>,
    api: ClientConfig,
    ca_file: Option<PathBuf>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    key: Option<Vault>,
    key_store: KeyStore,
    seed: Option<u64>,
    pacer: Arc<Pacer>,
}

/// A field-grade uplink to one Frame.io project.
///
/// ```no_run
/// # async fn example() -> Result<(), c2c_uplink::UplinkError> {
/// use c2c_uplink::{ClientSettings, PairingStep, Uplink};
///
/// let uplink = Uplink::builder()
///     .state_dir("/var/lib/camera/c2c")
///     .client(ClientSettings { id: Some("CAM-000123".into()), secret: "issued by Frame.io".to_owned().into() })
///     .client_version("2.16.4")
///     .open()
///     .await?;
/// if uplink.identity().is_none() {
///     let mut pairing = uplink.pair();
///     while let Some(step) = pairing.next().await? {
///         if let PairingStep::Code { user_code, .. } = step {
///             println!("type {user_code} into the project's C2C Connections");
///         }
///     }
/// }
/// uplink.start().await;
/// uplink.add(["/media/A001/A001C003.mov"]).await?; // on disk when this returns
/// uplink.wait_idle().await?; // everything is delivered, or rests with a reason
/// uplink.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Uplink {
    pub(crate) engine: Arc<Engine>,
    supervisor: Mutex<Option<Supervisor>>,
}

impl Uplink {
    /// Begins with the defaults.
    pub fn builder() -> UplinkBuilder {
        UplinkBuilder {
            state_dir: None,
            client: None,
            api: ClientConfig::default(),
            ca_file: None,
            settings: Settings::default(),
            clock: Arc::new(SystemClock),
            key: None,
            key_store: KeyStore::File,
            seed: None,
            pacer: Arc::default(),
        }
    }

    /// Begins to work: registers, sends, and keeps the connection. Without it the queue only fills. Idempotent.
    pub async fn start(&self) {
        let mut supervisor = self.supervisor.lock().await;
        if supervisor.is_none() && !self.engine.stop.is_cancelled() {
            *supervisor = Some(Supervisor::start(self.engine.clone()));
        }
    }

    /// Pairs this unit with a project. Poll it with [`Pairing::next`]; drop it to cancel.
    pub fn pair(&self) -> Pairing {
        let Engine {
            connection,
            client,
            clock,
            link,
            ..
        } = &*self.engine;
        Pairing::new(
            connection.clone(),
            client.clone(),
            clock.clone(),
            link.clone(),
        )
    }

    /// Gives the authorization back to the service and forgets it here. Queue and history stay.
    ///
    /// # Errors
    ///
    /// The service could not be told; it is forgotten here all the same.
    pub async fn unpair(&self) -> Result<(), UplinkError> {
        self.engine.connection.revoke().await
    }

    /// Accepts media: all of them are on disk when this returns, or none is. However many they are, a thousand are in memory at
    /// a time, besides what is given and answered.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is no regular file, or has a name that Frame.io cannot take.
    pub async fn add<M>(
        &self,
        media: impl IntoIterator<Item = M>,
    ) -> Result<Vec<Added>, UplinkError>
    where
        M: Into<AddMedia>,
    {
        let media = media.into_iter().map(Into::into);
        let (added, names) = intake::accept(&*self.engine.queue, &self.engine.time, media).await?;
        crash::point("add.after");
        for (added, name) in added.iter().zip(names.iter()) {
            if added.already.is_none() {
                self.engine.emit(Event::Added {
                    media: added.id,
                    name: name.to_owned(),
                });
            }
        }
        self.engine.changed();
        Ok(added)
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.engine.events.subscribe()
    }

    /// How far everything is, now. Costs the same whatever the length of the queue; meant to be asked several times a second.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn progress(&self) -> Result<Progress, UplinkError> {
        Ok(progress::look(&self.engine).await?)
    }

    /// Waits until every media is delivered or rests with a reason. The events that led there were sent by then.
    ///
    /// A unit that is not paired, a link that is down or a paused channel are waits, not rests: this goes on waiting.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or the uplink is shutting down.
    pub async fn wait_idle(&self) -> Result<QueueStatus, UplinkError> {
        // Another project empties the queue; that shows in the standing alone.
        let mut standing = self.engine.connection.watch_standing();
        loop {
            let mut settled = pin!(self.engine.settled.notified());
            settled.as_mut().enable();
            standing.mark_unchanged();
            let status = self.engine.queue.status().await?;
            if status.active() == 0
                && (status.held == 0 || !self.waits_by_itself().await?)
                && self.engine.reports.load(Ordering::SeqCst) == 0
            {
                return Ok(status);
            }
            tokio::select! {
                _ = settled => {}
                _ = standing.changed() => {}
                _ = self.engine.stop.cancelled() => return Err(UplinkError::ShuttingDown),
            }
            // A thousand stills are not counted a thousand times: the more there are left, the later the next look.
            let left = Duration::from_millis(status.active().min(LOOKS_APART));
            tokio::select! {
                _ = tokio::time::sleep(left) => {}
                _ = self.engine.stop.cancelled() => return Err(UplinkError::ShuttingDown),
            }
        }
    }

    /// Whether a held media goes on by itself in a moment, or has just gone on.
    async fn waits_by_itself(&self) -> Result<bool, UplinkError> {
        // A card that came back while nobody ran is noticed by the first look.
        if !self
            .engine
            .looked
            .load(std::sync::atomic::Ordering::Acquire)
        {
            return Ok(true);
        }
        let unfinished = vec![
            MediaState::Queued,
            MediaState::Registering,
            MediaState::Transferring,
        ];
        let mut after = None;
        loop {
            let page = self
                .engine
                .queue
                .list(Some(unfinished.clone()), after, 500)
                .await?;
            let Some(last) = page.last() else {
                return Ok(false);
            };
            after = Some(last.id);
            // Without a hold it was released since the queue was counted.
            if page.iter().any(|media| {
                matches!(
                    media.hold,
                    None | Some(Hold::FileChanging | Hold::ChannelPaused)
                )
            }) {
                return Ok(true);
            }
        }
    }

    /// Waits until every receipt so far has its SHA-256; returns at once unless [`UplinkBuilder::receipt_sha256`] is on.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or the uplink is shutting down.
    pub async fn wait_sealed(&self) -> Result<(), UplinkError> {
        if !self.engine.settings.receipt_sha256 {
            return Ok(());
        }
        loop {
            let mut settled = pin!(self.engine.settled.notified());
            settled.as_mut().enable();
            if self.engine.queue.unsealed_receipts(1).await?.is_empty() {
                return Ok(());
            }
            tokio::select! {
                _ = settled => {}
                _ = self.engine.stop.cancelled() => return Err(UplinkError::ShuttingDown),
            }
        }
    }

    /// The receipt of a delivered media.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn receipt(&self, media: c2c_queue::MediaId) -> Result<Option<Receipt>, UplinkError> {
        Ok(self.engine.queue.receipt(media).await?)
    }

    /// Who this unit is, as far as it was ever told.
    pub fn identity(&self) -> Option<Identity> {
        self.engine.connection.identity()
    }

    /// Whether this unit may talk to its project.
    pub fn standing(&self) -> Standing {
        self.engine.connection.standing()
    }

    /// Whether the presence socket is open: pauses are heard at once then, and otherwise within two minutes.
    pub fn has_presence_socket(&self) -> bool {
        self.engine.connection.has_socket()
    }

    /// Whether the service can be reached.
    pub fn link(&self) -> LinkState {
        self.engine.link.state()
    }

    /// The limits in bytes per second; they can be changed at any time and hold at once.
    pub fn pacer(&self) -> &Pacer {
        &self.engine.pacer
    }

    /// How many transfers run now, and why so many.
    pub fn steering(&self) -> Steering {
        self.engine.helm.steering.borrow().clone()
    }

    /// How far this unit's wall clock is ahead of the service's, in milliseconds, once that is known.
    pub fn clock_error_ms(&self) -> Option<i64> {
        self.engine.time.wall_error_ms()
    }

    /// The durable queue itself: lists, histories, receipts and everything a person may do by hand.
    ///
    /// After an operation by hand call [`Uplink::nudge`], so that waiting workers look again.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.engine.queue
    }

    /// Makes waiting workers look at the queue again.
    pub fn nudge(&self) {
        self.engine.nudged.notify_waiters();
        self.engine.changed();
    }

    /// Stops working and closes the queue. What is on the wire is given back; nothing is lost.
    ///
    /// # Errors
    ///
    /// The store cannot be closed cleanly. The next start puts it right.
    pub async fn shutdown(&self) -> Result<(), UplinkError> {
        self.engine.stop.cancel();
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            supervisor.stop().await;
        }
        crash::point("shutdown");
        Ok(self.engine.queue.close().await?)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.engine.stop.cancel();
    }
}

impl UplinkBuilder {
    /// Where the queue and the key live; created if missing, readable by the owner only. Required.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> UplinkBuilder {
        self.state_dir = Some(dir.into());
        self
    }

    /// Who this unit is. Required.
    pub fn client(mut self, client: ClientSettings) -> UplinkBuilder {
        self.client = Some(client);
        self
    }

    /// The version of the embedding product, a semantic version such as `2.16.4`. The service picks the device model by it.
    pub fn client_version(mut self, version: impl Into<String>) -> UplinkBuilder {
        self.api.client_version = version.into();
        self
    }

    /// The service; `https://api.frame.io` by default.
    pub fn api_url(mut self, url: impl Into<String>) -> UplinkBuilder {
        self.api.api_url = url.into();
        self
    }

    /// A PEM file with CA certificates to trust beside those of the operating system.
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> UplinkBuilder {
        self.ca_file = Some(file.into());
        self
    }

    /// Addresses for hosts, like `--resolve` of curl: for services in the house.
    pub fn resolve(mut self, overrides: Vec<ResolveOverride>) -> UplinkBuilder {
        self.api.resolve = overrides;
        self
    }

    /// The proxy on the way to the service and the storage; by default that of the environment (`HTTPS_PROXY`,
    /// `ALL_PROXY`, `NO_PROXY`).
    pub fn proxy(mut self, proxy: Proxy) -> UplinkBuilder {
        self.api.proxy = proxy;
        self
    }

    /// How many chunks are sent at once.
    pub fn transfers(mut self, transfers: Transfers) -> UplinkBuilder {
        self.settings.transfers = transfers;
        self
    }

    /// Which congestion control the connections use, where the system lets a program choose.
    pub fn congestion(mut self, congestion: Congestion) -> UplinkBuilder {
        self.api.tuning.congestion = congestion;
        self
    }

    /// How the connections are tuned; replaces what [`UplinkBuilder::congestion`] said.
    pub fn tuning(mut self, tuning: Tuning) -> UplinkBuilder {
        self.api.tuning = tuning;
        self
    }

    /// Which day's folder media appear in. [`OrganiseBy::UploadDate`] gives up the protection by pauses.
    pub fn organise_by(mut self, organise_by: OrganiseBy) -> UplinkBuilder {
        self.settings.organise_by = organise_by;
        self
    }

    /// What counts as a restart of the system where the platform has no boot id.
    pub fn restart_signal(mut self, restart: RestartSignal) -> UplinkBuilder {
        self.settings.restart = restart;
        self
    }

    /// A worker that is silent for longer loses its work to another; 30 minutes by default.
    pub fn lease(mut self, lease: Duration) -> UplinkBuilder {
        self.settings.lease = lease;
        self
    }

    /// A transfer of which the peer accepts no byte for this long is tried again on a new connection; 60 seconds by default.
    pub fn stall(mut self, stall: Duration) -> UplinkBuilder {
        self.settings.stall = stall;
        self
    }

    /// The longest that one attempt at a chunk may take; 30 minutes by default. A chunk too large for that on a slow but steady
    /// line gets the time that its bytes need at 25 kbit/s.
    pub fn attempt_limit(mut self, limit: Duration) -> UplinkBuilder {
        self.settings.attempt_limit = limit;
        self
    }

    /// How long the media of a removed volume wait for it; 72 hours by default.
    pub fn volume_patience(mut self, patience: Duration) -> UplinkBuilder {
        self.settings.volume_patience = patience;
        self
    }

    /// Registrations per second at most; five by default, as the service documents. `None` for no limit but the server's.
    pub fn creates_per_second(mut self, rate: Option<f64>) -> UplinkBuilder {
        self.settings.creates_per_second = rate;
        self
    }

    /// Compares the MD5 of each chunk with the server's ETag; on by default.
    pub fn verify(mut self, verify: bool) -> UplinkBuilder {
        self.settings.verify = verify;
        self
    }

    /// At most so many bytes per second in total, 0 for no limit. [`Uplink::pacer`] changes it later, and limits interfaces and
    /// connections.
    pub fn limit_rate(self, bytes_per_second: u64) -> UplinkBuilder {
        self.pacer.limit_total(NonZeroU64::new(bytes_per_second));
        self
    }

    /// Steps back within a second when others need the line, and takes it again when they are done. Off by default: a clip that
    /// is late costs more than a slow web page, but that is for the user to say.
    pub fn polite(mut self, polite: bool) -> UplinkBuilder {
        self.settings.polite = polite;
        self
    }

    /// Sends through this network interface only, e.g. `wwan0` (Linux).
    pub fn interface(mut self, name: impl Into<String>) -> UplinkBuilder {
        let name = name.into();
        self.api.interface = Some(name.clone());
        self.settings.interface = Some(name);
        self
    }

    /// Chooses the size of chunks by the goodput and the interruptions that were seen; on by default. Off, the service's own
    /// size is used. A media that was added with a number of parts keeps it either way.
    pub fn adapt_parts(mut self, adapt: bool) -> UplinkBuilder {
        self.settings.adapt_parts = adapt;
        self
    }

    /// Puts the SHA-256 of each file into its receipt. Off by default: the file is read a second time for it, which costs more
    /// than its upload did.
    pub fn receipt_sha256(mut self, wanted: bool) -> UplinkBuilder {
        self.settings.receipt_sha256 = wanted;
        self
    }

    /// Accepts plain HTTP upload URLs, and a plain HTTP service, on loopback only. For test benches.
    pub fn allow_plain_loopback(mut self, allow: bool) -> UplinkBuilder {
        self.settings.allow_plain_loopback = allow;
        self.api.allow_plain_loopback = allow;
        self
    }

    /// The clock; the system's by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> UplinkBuilder {
        self.clock = clock;
        self
    }

    /// The key that secrets are stored under, if the embedder keeps it; otherwise [`UplinkBuilder::key_store`] counts.
    pub fn key(mut self, key: Vault) -> UplinkBuilder {
        self.key = Some(key);
        self
    }

    /// Where the key is kept if the embedder does not hand it over; a file in the state directory by default. The keyring needs
    /// the feature `keyring`, see [`Vault::stored`].
    pub fn key_store(mut self, store: KeyStore) -> UplinkBuilder {
        self.key_store = store;
        self
    }

    /// Makes the jitter of waits repeatable, for tests.
    pub fn seed(mut self, seed: u64) -> UplinkBuilder {
        self.seed = Some(seed);
        self
    }

    /// Opens the queue and takes up what an earlier run left. Nothing is sent before [`Uplink::start`].
    ///
    /// # Errors
    ///
    /// Settings that make no sense; a queue that is in use, newer than this program, or damaged.
    pub async fn open(self) -> Result<Uplink, UplinkError> {
        let UplinkBuilder {
            state_dir,
            client,
            mut api,
            ca_file,
            settings,
            clock,
            key,
            key_store,
            seed,
            pacer,
        } = self;
        let state_dir = state_dir.ok_or_else(|| missing("a state directory"))?;
        let ClientSettings { id, secret } =
            client.ok_or_else(|| missing("a client id and secret"))?;
        if let Some(id) = &id {
            check_client_id(id)?;
        }
        if let Some(file) = ca_file {
            let certificates =
                load_ca_file(&file).map_err(|error| unusable(error.to_string(), error))?;
            api.trust = Trust::SystemAnd(certificates);
        }
        c2c_protocol::install_crypto_provider();
        let client = Client::new(api).map_err(|error| unusable(error.to_string(), error))?;
        let process = format!("{}-{}", std::process::id(), uuid_like());
        let store_clock = clock.clone();
        let queue_process = process.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let vault = match key {
                Some(vault) => vault,
                None => Vault::stored(key_store, &state_dir)?,
            };
            SqliteQueue::open(SqliteOptions {
                path: state_dir.join("queue.db"),
                clock: store_clock,
                vault,
                process: queue_process,
                command: command_line(),
                patience: Duration::from_millis(2),
            })
        });
        let opened = opened
            .await
            .map_err(|error| unusable("a fault of this program".into(), error))??;
        let queue: Arc<dyn Queue> = Arc::new(opened);
        let recovered = queue.recover_dead(&process).await?;
        if !recovered.is_empty() {
            tracing::info!(
                items = recovered.len(),
                "taken over from an earlier run that ended without saying so"
            );
        }
        let boot = match (clock.boot_id(), settings.restart) {
            (Some(boot), _) => Some(boot.0),
            (None, RestartSignal::ProcessStart) => Some(process.clone()),
            (None, RestartSignal::BootId) => None,
        };
        if let Some(boot) = boot {
            let granted = queue.grant_restart_tries(&boot).await?;
            if !granted.is_empty() {
                tracing::info!(
                    media = granted.len(),
                    "one more try after the restart of the system"
                );
            }
        }
        let client_id = match id {
            Some(id) => id,
            None => queue.client_id(uuid::Uuid::new_v4().to_string()).await?,
        };
        let (events, _) = broadcast::channel(1024);
        let stop = CancellationToken::new();
        let time = Arc::new(TimeKeeper::open(clock.clone(), queue.clone()).await?);
        let link = Arc::new(Link::new(client.clone(), clock.clone(), events.clone()));
        let airgate = Arc::new(Airgate::new(stop.clone()));
        let connection = Connection::open(
            queue.clone(),
            client.clone(),
            Credentials {
                client_id,
                client_secret: secret,
            },
            time.clone(),
            link.clone(),
            airgate.clone(),
            events.clone(),
        );
        let connection = Arc::new(connection.await?);
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let engine = Engine {
            slots: Arc::new(Slots::new(settings.transfers.count())),
            settings,
            queue,
            client,
            clock,
            time,
            link,
            connection,
            airgate,
            board: Arc::default(),
            wary: Wary::default(),
            digests: Digests::new(DIGEST_BACKLOG),
            pacer,
            helm: Helm::new(),
            idle_transfers: AtomicBool::new(true),
            events,
            wake: Notify::new(),
            nudged: Notify::new(),
            settled: Notify::new(),
            reports: AtomicUsize::new(0),
            stop,
            process,
            account_limit: AtomicBool::new(false),
            looked: AtomicBool::new(false),
            hung: Default::default(),
            addresses_lost: tokio::sync::watch::Sender::default(),
            jitter: std::sync::Mutex::new(fastrand::Rng::with_seed(seed)),
        };
        Ok(Uplink {
            engine: Arc::new(engine),
            supervisor: Mutex::default(),
        })
    }
}

fn missing(what: &str) -> UplinkError {
    UplinkError::Settings {
        words: format!("{what} must be given"),
        source: None,
    }
}

fn unusable(
    words: String,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> UplinkError {
    UplinkError::Settings {
        words,
        source: Some(source.into()),
    }
}

/// The service forbids personal data and, to software, MAC addresses as the id of a unit.
fn check_client_id(id: &str) -> Result<(), UplinkError> {
    let words = if id.is_empty() || id.len() > 255 || id.chars().any(char::is_control) {
        "the client id must have 1 to 255 printable characters"
    } else if id.contains('@') {
        "the client id looks like an e-mail address, which the service forbids; use a serial number or a UUID"
    } else if looks_like_mac(id) {
        "the client id looks like a MAC address, which the service forbids; use a serial number or a UUID"
    } else {
        return Ok(());
    };
    Err(UplinkError::Settings {
        words: words.into(),
        source: None,
    })
}

/// A MAC address alone or among other text, written in any of the usual ways.
fn looks_like_mac(id: &str) -> bool {
    let written = |separator: char, count: usize, width: usize| {
        let runs = id.split(|c: char| !c.is_ascii_hexdigit() && c != separator);
        runs.into_iter().any(|run| {
            let groups: Vec<&str> = run.split(separator).collect();
            let mut rows = groups.windows(count);
            rows.any(|row| row.iter().all(|group| group.len() == width))
        })
    };
    written(':', 6, 2) || written('-', 6, 2) || written('.', 3, 4)
}

/// Tells two runs with the same process id apart.
fn uuid_like() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn command_line() -> String {
    std::env::args_os()
        .next()
        .map(|arg| arg.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_that_the_service_forbids_are_refused() {
        for id in [
            "a@example.com",
            "00:1B:44:11:3A:B7",
            "00-1b-44-11-3a-b7",
            "001b.4411.3ab7",
            "CAM-00:1B:44:11:3A:B7",
            "unit 00-1b-44-11-3a-b7",
            "",
            "a\nb",
        ] {
            assert!(check_client_id(id).is_err(), "{id:?}");
        }
        for id in [
            "CAM-000123",
            "5b0f3e0c-7a55-4f0e-8a9b-0d8a4f7f1c11",
            "FUJIFILM-X100VI-4CA00368",
        ] {
            assert!(check_client_id(id).is_ok(), "{id:?}");
        }
    }
}
