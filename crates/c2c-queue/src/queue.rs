//! The [`Queue`] trait: every arrow of the way of the data, each one transaction.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::{BootId, BootTime, Capture};
use crate::connection::{Airlock, Connection, Identity, Tokens};
use crate::error::QueueError;
use crate::history::{FaultRecord, HistoryLine};
use crate::media::{Chunk, FileFacts, Hold, Media, MediaId, MediaState, NewMedia, Volume};
use crate::receipt::Receipt;
use crate::spool::Spool;

/// Who holds a lease: one run of one program, and the worker in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Names the run of the program; every run has another one.
    pub process: String,
    /// The worker within it, e.g. `transfer-3`.
    pub worker: String,
}

/// What a lease is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// The registration of a media.
    Registration(MediaId),
    /// One chunk of a media.
    Chunk(MediaId, u32),
}

impl Item {
    /// The media concerned.
    pub fn media(self) -> MediaId {
        match self {
            Item::Registration(media) | Item::Chunk(media, _) => media,
        }
    }
}

/// The right to act on an item, until the store says otherwise.
///
/// The token grows with every lease ever given; a report with a token that is not the item's
/// current one is answered with [`QueueError::LeaseLost`] and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is on.
    pub item: Item,
    /// Fencing token.
    pub token: u64,
}

/// How often something was tried, the current try included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of this try within its round, from 1.
    pub number: u32,
    /// Number of the round, from 1.
    pub round: u32,
    /// The one more try after a restart: the next counted fault is the last.
    pub final_try: bool,
}

/// The answer to a request for work.
#[derive(Clone, Debug)]
pub enum Claim<T> {
    /// Work, with its lease; the try is counted already.
    Got(Box<T>),
    /// Nothing now; the first item becomes due after this time.
    Later(Duration),
    /// Nothing at all until something changes.
    Nothing,
}

/// A media to register.
#[derive(Clone, Debug)]
pub struct RegistrationClaim {
    /// The right to do so.
    pub lease: Lease,
    /// The media.
    pub media: Media,
    /// Which try this is.
    pub attempt: Attempt,
}

/// A chunk to send.
#[derive(Clone, Debug)]
pub struct ChunkClaim {
    /// The right to do so.
    pub lease: Lease,
    /// The media it belongs to.
    pub media: Media,
    /// The chunk.
    pub chunk: Chunk,
    /// Where to send it.
    pub url: SecretString,
    /// Time since the URLs were issued, on the store's own time.
    pub url_age: Duration,
    /// Which try this is.
    pub attempt: Attempt,
}

/// A chunk of a new asset.
#[derive(Clone, Debug)]
pub struct NewChunk {
    /// First byte within the file.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where to send it.
    pub url: SecretString,
}

/// An asset as the service created it.
#[derive(Clone, Debug)]
pub struct NewAsset {
    /// The asset.
    pub asset_id: String,
    /// The project it belongs to.
    pub project_id: String,
    /// The offset that was sent, in seconds; `None` when the media is organised by upload date.
    pub offset: Option<u64>,
    /// All chunks, in file order, covering the file exactly once.
    pub chunks: Vec<NewChunk>,
}

/// What proves that a chunk arrived.
#[derive(Clone, Debug)]
pub struct ChunkProof {
    /// The server's ETag, without quotes.
    pub etag: Option<String>,
    /// MD5 of what was sent, hexadecimal.
    pub md5: Option<String>,
    /// CRC-64/NVME of what was sent. The receipt has that of the whole file if every chunk was reported with one.
    pub crc64nvme: Option<u64>,
}

/// A chunk was recorded as sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Chunks of the media that are still to be sent.
    pub left: u32,
    /// The receipt, when this chunk was the last one and delivered the media.
    pub receipt: Option<Box<Receipt>>,
}

/// What the policy decides after a fault. The queue applies it; it never invents one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after a wait. `counted: false` gives the try back.
    Again {
        /// The wait.
        after: Duration,
        /// Whether the try stays counted.
        counted: bool,
    },
    /// The round is used up: tries start again at 0, one round more is used, and the media
    /// falls behind every media that is in the queue now. All of the media waits. Chunks that were checked out in
    /// the same round use it up only once, however many of them report this.
    NextRound {
        /// The wait.
        after: Duration,
    },
    /// The asset is of no use any more: drop its chunks and register again. Bytes that were sent count as sent
    /// in vain.
    RegisterAgain {
        /// The wait.
        after: Duration,
        /// Whether this used up a try of the registration. The try of one that succeeded was given back when it did.
        counted: bool,
    },
    /// Set aside with a reason; goes on by itself or by hand when the reason is gone. The try is given back. Other
    /// chunks that are being sent may finish. A hold that needs a person is not replaced by another one.
    Hold(Hold),
    /// All rounds used: rest until the next restart of the system. Chunks that were sent stay sent.
    Park,
    /// Created in a pause: rest for ever, unless a person says otherwise. Only a registration can end like this.
    Withhold,
    /// Rest until a person acts. Chunks that were sent stay sent.
    Fail,
    /// The media is gone, and its chunks with it.
    Cancel,
}

impl Verdict {
    /// The stable word used in history lines and JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Verdict::Again { counted: true, .. } => "again",
            Verdict::Again { counted: false, .. } => "again_uncounted",
            Verdict::NextRound { .. } => "next_round",
            Verdict::RegisterAgain { .. } => "register_again",
            Verdict::Hold(_) => "hold",
            Verdict::Park => "park",
            Verdict::Withhold => "withhold",
            Verdict::Fail => "fail",
            Verdict::Cancel => "cancel",
        }
    }
}

/// A fault and what the policy decided about it.
#[derive(Clone, Debug)]
pub struct Setback {
    /// What went wrong.
    pub fault: FaultRecord,
    /// What follows.
    pub verdict: Verdict,
    /// The create may have reached the server although no answer came.
    pub possible_duplicate: bool,
    /// Bytes that went over the wire in vain during this try.
    pub bytes_wasted: u64,
    /// The number of chunks is left to the server from now on (`parts` of the media becomes `None`).
    pub drop_parts: bool,
}

/// What became of a media after a setback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The state of the media now.
    pub state: MediaState,
    /// Why it is held, if it is.
    pub hold: Option<Hold>,
}

/// The answer to an add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// The media, new or old.
    pub id: MediaId,
    /// It was in the queue already (same path, volume, size, time and number of the file), in this state.
    pub already: Option<MediaState>,
}

/// An item whose lease ended without a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What returned to the pool.
    pub item: Item,
    /// Who had it.
    pub holder: String,
    /// Bytes the peer had acknowledged when last heard of.
    pub acknowledged: u64,
}

/// Which media a person means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These.
    Ids(Vec<MediaId>),
    /// All in this state.
    State(MediaState),
    /// All that are held.
    Held,
    /// All.
    All,
}

/// What a person wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByHand {
    /// Fresh tries and rounds for a media that rests or waits. Chunks already sent stay sent. Ends the holds
    /// `volume_away` and `file_changing`. A cancelled media whose file is in the queue again stays cancelled.
    Retry,
    /// Never send it (again).
    Cancel,
    /// Give it this priority; higher goes first.
    Prioritize(i32),
    /// Do not work on it until released.
    Hold,
    /// Work on it again. Releasing `capture_time_unknown` accepts the moment of capture as it stands.
    Release,
}

impl ByHand {
    /// The word used in history lines and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            ByHand::Retry => "retry",
            ByHand::Cancel => "cancel",
            ByHand::Prioritize(_) => "prioritize",
            ByHand::Hold => "hold",
            ByHand::Release => "release",
        }
    }
}

/// How much is in one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTally {
    /// Number of media.
    pub media: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of theirs that are acknowledged.
    pub bytes_sent: u64,
}

/// The queue in numbers; reading it costs the same whatever the length of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Per state; states with nothing in them may be absent.
    pub states: std::collections::BTreeMap<MediaState, StateTally>,
    /// Unfinished media that are held.
    pub held: u64,
    /// Chunks that are registered and neither sent nor being sent, of transferring media that are not held.
    pub chunks_ready: u64,
}

impl QueueStatus {
    /// How much is in `state`.
    pub fn of(&self, state: MediaState) -> StateTally {
        self.states.get(&state).copied().unwrap_or_default()
    }

    /// Media that will still move by themselves: neither resting nor held.
    pub fn active(&self) -> u64 {
        let unfinished: u64 = [
            MediaState::Queued,
            MediaState::Registering,
            MediaState::Transferring,
        ]
        .into_iter()
        .map(|state| self.of(state).media)
        .sum();
        unfinished.saturating_sub(self.held)
    }
}

/// What is remembered between two instants of the power supply.
///
/// Every method is one transaction and returns after it is durable. Durations are measured on the
/// store's own time, which never goes back: it runs while the system runs, whether or not the program does, stands still
/// while the system is off, and asks the wall clock only once, for where to begin in a new store. All methods may fail with
/// a storage error.
#[async_trait]
pub trait Queue: Send + Sync + std::fmt::Debug + 'static {
    // Intake.

    /// Accepts media. Answers one [`Added`] per media, in order, after all of them are on disk.
    ///
    /// A media is already there if one with the same path, size, modification time and channel exists in any state but
    /// `cancelled`; then nothing changes unless `again` is set. Two numbers of the file, or two volumes, that are known and
    /// differ make another media. The number of the device does not: it changes with every mount. If one of them makes no sense (a path that is not absolute, no name, 0 parts) none
    /// is accepted: [`QueueError::Invalid`].
    async fn add(&self, media: Vec<NewMedia>) -> Result<Vec<Added>, QueueError>;
    /// A place for more media than should be in memory at once, for [`Queue::add_spooled`].
    async fn spool(&self) -> Result<Spool, QueueError>;
    /// Accepts media as [`Queue::add`] does, however many they are: in one transaction, so that all of them are on disk when
    /// this returns, or none is. Memory is needed for the answer alone. Whatever else is to be stored waits meanwhile: about a
    /// second for 50,000 media.
    async fn add_spooled(&self, media: Spool) -> Result<Vec<Added>, QueueError>;

    // Registration.

    /// Checks out the next media to register: highest priority, then lowest position, among queued media that are due and not held.
    /// With `ahead: Some(n)` nothing is given while `n` or more chunks are ready and waiting, in media that could be worked on
    /// now: those that are held or that wait for their next try keep nobody else from being registered.
    async fn claim_registration(
        &self,
        holder: &Holder,
        lease: Duration,
        ahead: Option<u64>,
    ) -> Result<Claim<RegistrationClaim>, QueueError>;
    /// The asset exists: stores it with all its chunks; the media is `transferring`. The try that succeeded does not stay
    /// counted. Earlier tries and rounds are not reset: only bytes that arrive are progress. So how often a media is registered
    /// is bounded by its caller, through [`Media::registrations_since_retry`]. Chunks that do not cover the file exactly once
    /// are [`QueueError::Invalid`].
    async fn asset_created(&self, lease: &Lease, asset: NewAsset) -> Result<(), QueueError>;
    /// The registration did not succeed.
    async fn registration_failed(
        &self,
        lease: &Lease,
        setback: Setback,
    ) -> Result<Outcome, QueueError>;
    /// The file differs from what was added: stores what it is now (size, time, identity), so that the registration under
    /// this lease goes on with it. With `capture`, the moment of capture is another one, too, and not accepted by anybody; one
    /// with a boot but no time since it, or the reverse, is [`QueueError::Invalid`].
    async fn file_changed(
        &self,
        lease: &Lease,
        facts: FileFacts,
        capture: Option<Capture>,
        words: String,
    ) -> Result<(), QueueError>;

    // Transfer.

    /// Checks out the next chunk to send: media by priority, then position; chunks in file order; due and not held.
    async fn claim_chunk(
        &self,
        holder: &Holder,
        lease: Duration,
    ) -> Result<Claim<ChunkClaim>, QueueError>;
    /// A 2xx with its proof arrived. The last chunk delivers the media in the same transaction.
    ///
    /// Tries and rounds of the media start again at 0, and a final try ends: it made progress, and is a media like any other
    /// again. The tries of its other chunks stay as they are. Media that are held meanwhile are delivered all the same. A proof whose ETag has the form of an MD5 and differs
    /// from `md5` must not be reported here ([`QueueError::Invalid`]); it is a fault of the chunk.
    async fn chunk_sent(&self, lease: &Lease, proof: ChunkProof) -> Result<Sent, QueueError>;
    /// The chunk did not arrive. A verdict that rests the media or registers it again voids the leases of its other chunks;
    /// what was acknowledged of those counts as sent in vain.
    async fn chunk_failed(&self, lease: &Lease, setback: Setback) -> Result<Outcome, QueueError>;

    // Leases.

    /// Keeps the lease for `extend` more from now and stores how many bytes of the chunk the peer acknowledged.
    async fn renew(
        &self,
        lease: &Lease,
        acknowledged: u64,
        extend: Duration,
    ) -> Result<(), QueueError>;
    /// Gives the item back as if it had never been checked out: the try is given back. What [`Queue::renew`] reported as
    /// acknowledged counts as sent in vain.
    async fn release(&self, lease: &Lease) -> Result<(), QueueError>;
    /// Returns items to the pool whose lease ended by time. Their tries stay counted. A registration that is recovered
    /// (here or by [`Queue::recover_dead`]) may have reached the server: `possible_duplicates` grows, with a history line.
    async fn recover_expired(&self) -> Result<Vec<Recovered>, QueueError>;
    /// Returns items to the pool that are held by any other process of this machine than `process`: they are dead, because
    /// the store belongs to one process (per machine). Their tries stay counted.
    async fn recover_dead(&self, process: &str) -> Result<Vec<Recovered>, QueueError>;

    // What disappears, waits and comes back.

    /// Cancels a media whose file is gone for good, whether unfinished or at rest; one that is cancelled stays so. A delivered
    /// media is [`QueueError::IllegalMove`].
    async fn file_gone(&self, media: MediaId, words: String) -> Result<(), QueueError>;
    /// Holds an unfinished media that nobody has checked out (otherwise: [`QueueError::Invalid`], [`QueueError::Busy`]). A hold
    /// that needs a person (`by_hand`, `capture_time_unknown`) is not replaced, any other is. Rest ends every hold.
    async fn hold(&self, media: MediaId, hold: Hold) -> Result<(), QueueError>;
    /// Ends a hold of this kind (another kind stays); `path` and `volume` are stored if the file was found elsewhere.
    async fn unhold(
        &self,
        media: MediaId,
        hold: Hold,
        found: Option<(std::path::PathBuf, Volume)>,
    ) -> Result<(), QueueError>;
    /// Ends every hold of this kind, e.g. when the channel is resumed.
    async fn unhold_all(&self, hold: Hold) -> Result<Vec<MediaId>, QueueError>;
    /// Gives parked media, parked under another boot marker than `boot`, exactly one more try. The marker is the clock's boot
    /// id, or the name of the process where the clock has none. Only progress or a retry by hand ends the final try: media that
    /// are parked on it are not given another one.
    async fn grant_restart_tries(&self, boot: &str) -> Result<Vec<MediaId>, QueueError>;

    // By hand.

    /// Does what a person asked, to each selected media that it applies to, with a history line each. Returns the media it was
    /// done to, in order of id. An id that does not exist is [`QueueError::NoSuchMedia`], an explicit id of a delivered media
    /// to retry or cancel is [`QueueError::IllegalMove`], and then nothing is done at all.
    async fn by_hand(
        &self,
        selection: Selection,
        action: ByHand,
    ) -> Result<Vec<MediaId>, QueueError>;

    // The connection.

    /// What is stored of the connection.
    async fn connection(&self) -> Result<Connection, QueueError>;
    /// The client id of this installation; stores `proposed` the first time, and keeps it for ever.
    async fn client_id(&self, proposed: String) -> Result<String, QueueError>;
    /// Stores a new token pair, durable before its first use, and ends a refresh that is under way.
    async fn store_tokens(&self, tokens: Tokens) -> Result<(), QueueError>;
    /// Notes that the refresh token is about to be spent.
    async fn begin_refresh(&self) -> Result<(), QueueError>;
    /// Notes that a refresh ended without spending the token.
    async fn end_refresh(&self) -> Result<(), QueueError>;
    /// Forgets the tokens; queue, history and identity stay.
    async fn forget_tokens(&self, words: String) -> Result<(), QueueError>;
    /// Stores who we are. If the project differs from the stored one, every media, chunk and lease is removed in the same
    /// transaction, and one history line tells it. Receipts stay: they name their project.
    async fn store_identity(&self, identity: Identity) -> Result<Airlock, QueueError>;

    // Time.

    /// Stores the server time at the start of `boot` in milliseconds since 1970, as learned from the server's `Date`.
    async fn store_anchor(&self, boot: &BootId, server_epoch_ms: i64) -> Result<(), QueueError>;
    /// The latest server time that is stored for the start of any boot: the true time is never before it.
    async fn latest_anchor(&self) -> Result<Option<i64>, QueueError>;
    /// The stored server time at the start of `boot`.
    async fn anchor(&self, boot: &BootId) -> Result<Option<i64>, QueueError>;

    // A memory that belongs to no project.

    /// What was last remembered under `key`.
    async fn recall(&self, key: &str) -> Result<Option<String>, QueueError>;
    /// Remembers `value` under `key` (1 to 64 bytes), in the place of what was there; `None` forgets it. Another project
    /// leaves it alone. For a few things that can be learned anew, not for secrets: there is room for 64 keys with values of
    /// up to 64 KiB each, and the one that was written longest ago makes room for another. A key or a value that is too long is
    /// [`QueueError::Invalid`].
    async fn remember(&self, key: &str, value: Option<String>) -> Result<(), QueueError>;

    // Reading.

    /// The queue in numbers.
    async fn status(&self) -> Result<QueueStatus, QueueError>;
    /// One media.
    async fn media(&self, id: MediaId) -> Result<Option<Media>, QueueError>;
    /// Media in order of id, after `after`, at most `limit`, optionally of some states only.
    async fn list(
        &self,
        states: Option<Vec<MediaState>>,
        after: Option<MediaId>,
        limit: u32,
    ) -> Result<Vec<Media>, QueueError>;
    /// The media that are held, in order of id, after `after`, at most `limit`. Costs nothing for those that are not.
    async fn held(&self, after: Option<MediaId>, limit: u32) -> Result<Vec<Media>, QueueError>;
    /// The media that are next in line: unfinished, in the order in which they are worked on, at most `limit`.
    async fn upcoming(&self, limit: u32) -> Result<Vec<Media>, QueueError>;
    /// The chunks of the current registration of a media; of a delivered one as its receipt tells them.
    async fn chunks(&self, id: MediaId) -> Result<Vec<Chunk>, QueueError>;
    /// The history of a media, or of the queue itself, oldest first. Bounded: of a long life the first 50 and the newest 450
    /// lines are kept.
    async fn history(&self, id: Option<MediaId>) -> Result<Vec<HistoryLine>, QueueError>;
    /// The receipt of a delivered media. Also after the queue was emptied for another project.
    async fn receipt(&self, id: MediaId) -> Result<Option<Receipt>, QueueError>;
    /// Receipts without a digest and without a reason for that, oldest first.
    async fn unsealed_receipts(&self, limit: u32) -> Result<Vec<Receipt>, QueueError>;
    /// Adds the digest of the whole file, or the reason why there is none. A digest may still follow a reason; a reason does
    /// not replace a digest. [`QueueError::NoSuchMedia`] if there is no receipt.
    async fn seal_receipt(
        &self,
        id: MediaId,
        sha256: Result<String, String>,
    ) -> Result<(), QueueError>;

    /// Stops accepting operations, finishes those accepted and closes the store. Idempotent.
    async fn close(&self) -> Result<(), QueueError>;

    /// Not used by programs: the store's own time in milliseconds, for tests of it.
    fn store_time(&self) -> BootTime;
}
