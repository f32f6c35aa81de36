//! The embedded store: one SQLite file, owned by one process.
//!
//! 1. One process owns the file (a lock beside it); others may look, not touch.
//! 2. One thread writes. What waits for it is committed together, each operation in a savepoint of its own, and
//!    is answered only after the commit is on disk.
//! 3. The life cycle, the leases and the counters are constraints and triggers of the schema: a defect here
//!    turns into an error, not into a wrong row.
//! 4. Nothing is ever counted by reading rows, and nothing is found without an index: claiming costs the same
//!    with a million chunks.

mod check;
mod claim;
mod files;
mod hand;
mod intake;
mod leases;
mod lines;
mod memory;
mod migrate;
mod pairing;
mod reading;
mod register;
mod rows;
mod service;
mod time;
mod transfer;
mod verdict;
mod writer;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection as Db;

use crate::clock::{BootId, BootTime, Capture, Clock};
use crate::connection::{Airlock, Connection, Identity, Tokens};
use crate::error::QueueError;
use crate::history::HistoryLine;
use crate::host;
use crate::media::{Chunk, FileFacts, Hold, Media, MediaId, MediaState, NewMedia, Volume};
use crate::queue::{
    Added, ByHand, ChunkClaim, ChunkProof, Claim, Holder, Lease, NewAsset, Outcome, Queue,
    QueueStatus, Recovered, RegistrationClaim, Selection, Sent, Setback,
};
use crate::receipt::Receipt;
use crate::spool::Spool;
use crate::vault::Vault;

use self::check::{Checked, Findings, Look};
use self::files::LockFile;
use self::service::{Reader, Service};
use self::time::StoreTime;
use self::writer::{Haste, Writer};

/// How to open a [`SqliteQueue`].
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The database, usually `queue.db` in the state directory. Made, with its directory, if it does not exist.
    /// The lock, and before a migration the copy of the database, are put beside it.
    pub path: PathBuf,
    /// All time that the queue reads.
    pub clock: Arc<dyn Clock>,
    /// Seals tokens and upload URLs.
    pub vault: Vault,
    /// Names this run of the program, as in [`Holder::process`]. Where the clock knows no boot id, it also
    /// stands for the restart marker of media that are parked.
    pub process: String,
    /// The command, to be named to a second program that wants the same queue.
    pub command: String,
    /// How long reports of what succeeded, renewals of leases and claims of registrations may wait for other operations to
    /// share their flush of the disk. All other operations go to the disk at once and take along what waits. A few milliseconds halve the flushes that
    /// a small file costs.
    pub patience: Duration,
}

/// What an operation fails with, before it is known what was tried.
#[derive(Debug)]
enum Fault {
    Queue(QueueError),
    Sqlite(rusqlite::Error),
}

impl From<QueueError> for Fault {
    fn from(error: QueueError) -> Fault {
        Fault::Queue(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::Sqlite(error)
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Fault {
        Fault::Queue(QueueError::Defect(format!(
            "a stored record is not readable: {error}"
        )))
    }
}

impl Fault {
    fn during(self, action: &'static str) -> QueueError {
        match self {
            Fault::Queue(error) => error,
            Fault::Sqlite(source) => QueueError::Sqlite { action, source },
        }
    }
}

type Done<T> = Result<T, Fault>;

/// What an operation works with: the open transaction and the time at which it happens.
struct Tx<'a> {
    db: &'a Db,
    /// Store time, milliseconds.
    now: i64,
    /// Wall clock, milliseconds; only ever stored to be shown.
    wall: i64,
    /// Marks the current run of the system.
    boot: &'a str,
    /// Absent in a queue that is only looked at.
    vault: Option<&'a Vault>,
    /// What was given last; stored with the commit.
    numbers: &'a Numbers,
}

/// Numbers that only grow. They are kept at hand because nearly every operation takes one, and stored with each commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbers {
    /// Last fencing token given.
    token: Cell<i64>,
    /// Last position given.
    position: Cell<i64>,
}

impl Numbers {
    fn read(db: &Db) -> Done<Numbers> {
        let sql = "SELECT token, position FROM store";
        Ok(db.query_row(sql, [], |row| {
            Ok(Numbers {
                token: Cell::new(row.get(0)?),
                position: Cell::new(row.get(1)?),
            })
        })?)
    }

    /// Back to what they were, with the change that took them.
    fn restore(&self, before: &Numbers) {
        self.token.set(before.token.get());
        self.position.set(before.position.get());
    }
}

impl Tx<'_> {
    /// Store time after a wait from now.
    fn after(&self, wait: Duration) -> i64 {
        self.now.saturating_add(crate::clock::millis(wait))
    }

    /// The fencing token of a new lease.
    fn spend_token(&self) -> i64 {
        let next = self.numbers.token.get() + 1;
        self.numbers.token.set(next);
        next
    }

    /// A position behind every media.
    fn next_position(&self) -> i64 {
        let next = self.numbers.position.get() + 1;
        self.numbers.position.set(next);
        next
    }

    fn vault(&self) -> Done<&Vault> {
        self.vault.ok_or_else(|| {
            QueueError::Sealed {
                what: "there is no key",
            }
            .into()
        })
    }
}

/// The durable queue in one SQLite file.
///
/// Open it with [`SqliteQueue::open`], and [`Queue::close`] it at the end. Dropped without that it is as after
/// a power cut: nothing accepted is lost, and the next start checks the file first.
pub struct SqliteQueue {
    path: PathBuf,
    /// First, so that it ends first: it reads the file.
    look: Option<Look>,
    findings: Arc<Findings>,
    service: Service,
    time: StoreTime,
    closed: AtomicBool,
    commits: Arc<AtomicU64>,
}

impl SqliteQueue {
    /// Opens the queue, making or migrating it as needed. Blocks on the disk.
    ///
    /// A queue that was not closed is looked at first, page by page. One of more than 64 MiB is looked at while it is at work
    /// already: should it turn out to be damaged, every operation from then on fails with [`QueueError::Unusable`].
    ///
    /// # Errors
    ///
    /// [`QueueError::InUse`] names the process that has it open, [`QueueError::TooNew`] a file of a newer
    /// program, [`QueueError::Unusable`] a damaged file or one of another program, [`QueueError::Io`] what the
    /// file system refuses.
    pub fn open(options: SqliteOptions) -> Result<SqliteQueue, QueueError> {
        let SqliteOptions {
            path,
            clock,
            vault,
            process,
            command,
            patience,
        } = options;
        files::create(&path)?;
        let lock = LockFile::take(&path, &process, &command)?;
        let mut db = files::connect(&path)?;
        let checked = migrate::to_newest(&mut db, &path)?;
        let boot = clock
            .boot_id()
            .map_or_else(|| process.clone(), |BootId(id)| id);
        let time = files::unusable(&path, "start", time::begin(&db, clock, &vault))?;
        let numbers = files::unusable(&path, "start", Numbers::read(&db))?;
        let (findings, look) = match checked {
            Checked::Whole => (Findings::whole(), None),
            Checked::Later => {
                let findings = Arc::new(Findings::default());
                let look = Look::start(files::connect_reader(&path)?, findings.clone());
                let look = look.map_err(|source| no_thread(&path, source))?;
                (findings, Some(look))
            }
        };
        let commits = Arc::new(AtomicU64::new(0));
        let reader = Reader::start(
            files::connect_reader(&path)?,
            time.clone(),
            Some(vault.clone()),
        );
        let reader = reader.map_err(|source| no_thread(&path, source))?;
        let writer = Writer {
            db,
            time: time.clone(),
            boot,
            vault,
            numbers,
            commits: commits.clone(),
            patience,
            findings: findings.clone(),
            lock,
        };
        let service = Service::start(writer, reader).map_err(|source| no_thread(&path, source))?;
        Ok(SqliteQueue {
            path,
            service,
            time,
            closed: AtomicBool::new(false),
            commits,
            findings,
            look,
        })
    }

    /// Opens a queue to look at it, while another process may own it. Every operation that would change
    /// something answers [`QueueError::InUse`] naming that process. The tokens stay sealed:
    /// [`Connection::tokens`] is `None`, and [`Connection::tokens_stored_at`] tells whether there are any.
    ///
    /// # Errors
    ///
    /// As [`SqliteQueue::open`], and [`QueueError::Io`] if there is no queue at `path`.
    pub fn open_read_only(path: PathBuf, clock: Arc<dyn Clock>) -> Result<SqliteQueue, QueueError> {
        files::exists(&path)?;
        let db = files::connect_reader(&path)?;
        migrate::check_readable(&db, &path)?;
        let time = StoreTime::foreign(clock);
        let reader =
            Reader::start(db, time.clone(), None).map_err(|source| no_thread(&path, source))?;
        let service = Service::look_only(reader);
        Ok(SqliteQueue {
            path,
            service,
            time,
            closed: AtomicBool::new(false),
            commits: Arc::default(),
            findings: Findings::whole(),
            look: None,
        })
    }

    /// Commits made so far, each of them one flush of the disk; concurrent operations share them.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Tx<'_>) -> Done<T> + Send + 'static,
    ) -> Result<T, QueueError> {
        self.write_with(Haste::Urgent, action, work).await
    }

    async fn write_with<T: Send + 'static>(
        &self,
        haste: Haste,
        action: &'static str,
        work: impl FnOnce(&Tx<'_>) -> Done<T> + Send + 'static,
    ) -> Result<T, QueueError> {
        self.still_open()?;
        match self.service.write(haste, action, work) {
            Some(answer) => answer.await.unwrap_or(Err(QueueError::Closed)),
            None => Err(QueueError::InUse {
                path: self.path.clone(),
                owner: files::owner(&self.path),
            }),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Tx<'_>) -> Done<T> + Send + 'static,
    ) -> Result<T, QueueError> {
        self.still_open()?;
        self.service
            .read(action, work)
            .await
            .unwrap_or(Err(QueueError::Closed))
    }

    fn still_open(&self) -> Result<(), QueueError> {
        if self.closed.load(Ordering::Acquire) {
            Err(QueueError::Closed)
        } else {
            self.findings.tell(&self.path)
        }
    }
}

fn no_thread(path: &std::path::Path, source: std::io::Error) -> QueueError {
    QueueError::Io {
        action: "start a thread for the queue at",
        path: path.to_owned(),
        source,
    }
}

impl std::fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteQueue")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn add(&self, media: Vec<NewMedia>) -> Result<Vec<Added>, QueueError> {
        self.write("add media", move |tx| intake::add(tx, media))
            .await
    }

    async fn spool(&self) -> Result<Spool, QueueError> {
        Spool::in_dir(host::parent(&self.path))
    }

    async fn add_spooled(&self, media: Spool) -> Result<Vec<Added>, QueueError> {
        self.write("add media", move |tx| intake::add_spooled(tx, media))
            .await
    }

    async fn claim_registration(
        &self,
        holder: &Holder,
        lease: Duration,
        ahead: Option<u64>,
    ) -> Result<Claim<RegistrationClaim>, QueueError> {
        let holder = holder.clone();
        // They run ahead of the senders: a moment of company costs nothing.
        self.write_with(Haste::Patient, "check out a registration", move |tx| {
            claim::registration(tx, &holder, lease, ahead)
        })
        .await
    }

    async fn asset_created(&self, lease: &Lease, asset: NewAsset) -> Result<(), QueueError> {
        let lease = lease.clone();
        self.write_with(Haste::Patient, "store an asset", move |tx| {
            register::asset_created(tx, &lease, &asset)
        })
        .await
    }

    async fn registration_failed(
        &self,
        lease: &Lease,
        setback: Setback,
    ) -> Result<Outcome, QueueError> {
        let lease = lease.clone();
        self.write("store a fault", move |tx| {
            register::failed(tx, &lease, &setback)
        })
        .await
    }

    async fn file_changed(
        &self,
        lease: &Lease,
        facts: FileFacts,
        capture: Option<Capture>,
        words: String,
    ) -> Result<(), QueueError> {
        let lease = lease.clone();
        self.write("store a changed file", move |tx| {
            register::file_changed(tx, &lease, &facts, capture.as_ref(), words)
        })
        .await
    }

    async fn claim_chunk(
        &self,
        holder: &Holder,
        lease: Duration,
    ) -> Result<Claim<ChunkClaim>, QueueError> {
        let holder = holder.clone();
        self.write("check out a chunk", move |tx| {
            claim::chunk(tx, &holder, lease)
        })
        .await
    }

    async fn chunk_sent(&self, lease: &Lease, proof: ChunkProof) -> Result<Sent, QueueError> {
        let lease = lease.clone();
        self.write_with(Haste::Patient, "store a sent chunk", move |tx| {
            transfer::sent(tx, &lease, &proof)
        })
        .await
    }

    async fn chunk_failed(&self, lease: &Lease, setback: Setback) -> Result<Outcome, QueueError> {
        let lease = lease.clone();
        self.write("store a fault", move |tx| {
            transfer::failed(tx, &lease, &setback)
        })
        .await
    }

    async fn renew(
        &self,
        lease: &Lease,
        acknowledged: u64,
        extend: Duration,
    ) -> Result<(), QueueError> {
        let lease = lease.clone();
        self.write_with(Haste::Patient, "renew a lease", move |tx| {
            leases::renew(tx, &lease, acknowledged, extend)
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), QueueError> {
        let lease = lease.clone();
        self.write("release a lease", move |tx| leases::release(tx, &lease))
            .await
    }

    async fn recover_expired(&self) -> Result<Vec<Recovered>, QueueError> {
        self.write("recover expired leases", leases::recover_expired)
            .await
    }

    async fn recover_dead(&self, process: &str) -> Result<Vec<Recovered>, QueueError> {
        let process = process.to_owned();
        self.write("recover leases of dead processes", move |tx| {
            leases::recover_dead(tx, &process)
        })
        .await
    }

    async fn file_gone(&self, media: MediaId, words: String) -> Result<(), QueueError> {
        self.write("cancel a media", move |tx| {
            intake::file_gone(tx, media, words)
        })
        .await
    }

    async fn hold(&self, media: MediaId, hold: Hold) -> Result<(), QueueError> {
        self.write("hold a media", move |tx| intake::hold(tx, media, hold))
            .await
    }

    async fn unhold(
        &self,
        media: MediaId,
        hold: Hold,
        found: Option<(PathBuf, Volume)>,
    ) -> Result<(), QueueError> {
        self.write("release a media", move |tx| {
            intake::unhold(tx, media, hold, found)
        })
        .await
    }

    async fn unhold_all(&self, hold: Hold) -> Result<Vec<MediaId>, QueueError> {
        self.write("release media", move |tx| intake::unhold_all(tx, hold))
            .await
    }

    async fn grant_restart_tries(&self, boot: &str) -> Result<Vec<MediaId>, QueueError> {
        let boot = boot.to_owned();
        self.write("grant tries after a restart", move |tx| {
            hand::grant_restart_tries(tx, &boot)
        })
        .await
    }

    async fn by_hand(
        &self,
        selection: Selection,
        action: ByHand,
    ) -> Result<Vec<MediaId>, QueueError> {
        self.write("do what was asked", move |tx| {
            hand::by_hand(tx, &selection, action)
        })
        .await
    }

    async fn connection(&self) -> Result<Connection, QueueError> {
        self.read("read the connection", pairing::connection).await
    }

    async fn client_id(&self, proposed: String) -> Result<String, QueueError> {
        self.write("store the client id", move |tx| {
            pairing::client_id(tx, proposed)
        })
        .await
    }

    async fn store_tokens(&self, tokens: Tokens) -> Result<(), QueueError> {
        self.write("store tokens", move |tx| pairing::store_tokens(tx, &tokens))
            .await
    }

    async fn begin_refresh(&self) -> Result<(), QueueError> {
        self.write("note a refresh", |tx| pairing::set_refreshing(tx, true))
            .await
    }

    async fn end_refresh(&self) -> Result<(), QueueError> {
        self.write("note the end of a refresh", |tx| {
            pairing::set_refreshing(tx, false)
        })
        .await
    }

    async fn forget_tokens(&self, words: String) -> Result<(), QueueError> {
        self.write("forget tokens", move |tx| pairing::forget_tokens(tx, words))
            .await
    }

    async fn store_identity(&self, identity: Identity) -> Result<Airlock, QueueError> {
        self.write("store the identity", move |tx| {
            pairing::store_identity(tx, &identity)
        })
        .await
    }

    async fn store_anchor(&self, boot: &BootId, server_epoch_ms: i64) -> Result<(), QueueError> {
        let boot = boot.clone();
        self.write("store server time", move |tx| {
            pairing::store_anchor(tx, &boot, server_epoch_ms)
        })
        .await
    }

    async fn latest_anchor(&self) -> Result<Option<i64>, QueueError> {
        self.read("read server time", pairing::latest_anchor).await
    }

    async fn anchor(&self, boot: &BootId) -> Result<Option<i64>, QueueError> {
        let boot = boot.clone();
        self.read("read server time", move |tx| pairing::anchor(tx, &boot))
            .await
    }

    async fn recall(&self, key: &str) -> Result<Option<String>, QueueError> {
        let key = key.to_owned();
        self.read("recall something", move |tx| memory::recall(tx, &key))
            .await
    }

    async fn remember(&self, key: &str, value: Option<String>) -> Result<(), QueueError> {
        let key = key.to_owned();
        self.write("remember something", move |tx| {
            memory::remember(tx, &key, value.as_deref())
        })
        .await
    }

    async fn status(&self) -> Result<QueueStatus, QueueError> {
        self.read("read its status", reading::status).await
    }

    async fn media(&self, id: MediaId) -> Result<Option<Media>, QueueError> {
        self.read("read a media", move |tx| rows::find_media(tx, id))
            .await
    }

    async fn list(
        &self,
        states: Option<Vec<MediaState>>,
        after: Option<MediaId>,
        limit: u32,
    ) -> Result<Vec<Media>, QueueError> {
        self.read("list media", move |tx| {
            reading::list(tx, states, after, limit)
        })
        .await
    }

    async fn held(&self, after: Option<MediaId>, limit: u32) -> Result<Vec<Media>, QueueError> {
        self.read("list held media", move |tx| reading::held(tx, after, limit))
            .await
    }

    async fn upcoming(&self, limit: u32) -> Result<Vec<Media>, QueueError> {
        self.read("list media in line", move |tx| reading::upcoming(tx, limit))
            .await
    }

    async fn chunks(&self, id: MediaId) -> Result<Vec<Chunk>, QueueError> {
        self.read("read chunks", move |tx| reading::chunks(tx, id))
            .await
    }

    async fn history(&self, id: Option<MediaId>) -> Result<Vec<HistoryLine>, QueueError> {
        self.read("read history", move |tx| lines::read(tx, id))
            .await
    }

    async fn receipt(&self, id: MediaId) -> Result<Option<Receipt>, QueueError> {
        self.read("read a receipt", move |tx| reading::receipt(tx, id))
            .await
    }

    async fn unsealed_receipts(&self, limit: u32) -> Result<Vec<Receipt>, QueueError> {
        self.read("read receipts", move |tx| {
            reading::unsealed_receipts(tx, limit)
        })
        .await
    }

    async fn seal_receipt(
        &self,
        id: MediaId,
        sha256: Result<String, String>,
    ) -> Result<(), QueueError> {
        self.write("seal a receipt", move |tx| {
            transfer::seal_receipt(tx, id, sha256)
        })
        .await
    }

    async fn close(&self) -> Result<(), QueueError> {
        self.closed.store(true, Ordering::Release);
        if let Some(look) = &self.look {
            look.end();
        }
        self.service.close().await
    }

    fn store_time(&self) -> BootTime {
        BootTime(self.time.now())
    }
}

#[cfg(test)]
mod tests;
