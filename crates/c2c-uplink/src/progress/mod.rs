//! How far everything is, as numbers that are true.
//!
//! Invariants:
//!
//! - acknowledged ≤ on the wire ≤ read ≤ length, for every chunk, media and in total;
//! - during an attempt none of them falls; a chunk is never counted twice nor missing while its end is being stored;
//! - the queue is asked only after something changed, and at least once a second.

mod board;
mod eta;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use c2c_queue::{MediaId, MediaState, QueueError, QueueStatus};
use serde::Serialize;

use crate::engine::Engine;

pub use board::InFlight;
pub(crate) use board::{Board, Flight, OnBoard};
pub use eta::EtaRange;

/// How far everything is.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    /// The queue in numbers.
    pub queue: QueueStatus,
    /// Media with chunks on the wire.
    pub active: Vec<ActiveMedia>,
    /// Bytes of all media that are to be delivered and those that are.
    pub bytes_total: u64,
    /// Bytes confirmed by the service, plus those that were read and given to a connection.
    pub bytes_read: u64,
    /// Bytes confirmed by the service, plus those that left this unit. As far as the system tells; else as `bytes_read`.
    pub bytes_on_wire: u64,
    /// Bytes confirmed by the service, plus those on the wire that the peer acknowledged.
    pub bytes_acknowledged: u64,
    /// Bytes that were acknowledged and have to be sent again, since this program began.
    pub bytes_resent: u64,
    /// Bytes per second over the last seconds, by what was acknowledged.
    pub rate: u64,
    /// Nothing was acknowledged for ten seconds, although there is work.
    pub stalled: bool,
    /// When everything will be through, by how it went in the last minutes; `None` while nothing is known or nothing moves.
    pub eta: Option<EtaRange>,
    /// The middle of that range in seconds.
    pub eta_seconds: Option<u64>,
}

/// A media with chunks on the wire.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActiveMedia {
    /// The media.
    pub media: MediaId,
    /// Its name in Frame.io.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes confirmed by the service, plus those that were read and given to a connection.
    pub read: u64,
    /// Bytes confirmed by the service, plus those that left this unit.
    pub on_wire: u64,
    /// Bytes confirmed by the service, plus those on the wire that the peer acknowledged.
    pub acknowledged: u64,
    /// Bytes of it that had to be sent again so far, whichever program sent them.
    pub bytes_resent: u64,
    /// Chunks confirmed.
    pub chunks_sent: u32,
    /// All its chunks.
    pub chunk_count: u32,
    /// The chunks on the wire, from 0.
    pub sending: Vec<u32>,
}

/// What the queue said when it was asked last.
#[derive(Debug)]
struct Seen {
    version: u64,
    at: Duration,
    status: QueueStatus,
    /// Those with chunks on the wire at that time.
    media: BTreeMap<MediaId, c2c_queue::Media>,
}

/// The queue may be changed by others, too: what it said is believed no longer than this.
const BELIEVED: Duration = Duration::from_secs(1);
/// How long results that are being stored are waited for. Without end there would be no number while a disk is full.
const STORING: Duration = Duration::from_millis(250);

/// Looks at the queue and at the wire, as of one moment.
pub(crate) async fn look(engine: &Engine) -> Result<Progress, QueueError> {
    let board = &engine.board;
    // Real time: the store does not run on our clock.
    let until = tokio::time::Instant::now() + STORING;
    let (seen, flights) = loop {
        let mut settled = pin!(engine.settled.notified());
        settled.as_mut().enable();
        let last = tokio::time::Instant::now() >= until;
        // A chunk whose end is being stored is still on the board, and may be in the queue, too.
        if engine.reports.load(Ordering::SeqCst) > 0 && !last {
            let _ = tokio::time::timeout_at(until, settled).await;
            continue;
        }
        let version = board.version();
        let seen = ask(engine, version).await?;
        let flights = board.in_flight();
        let same = board.version() == version && engine.reports.load(Ordering::SeqCst) == 0;
        if same || last {
            break (seen, flights);
        }
    };
    Ok(sum_up(engine, &seen, flights))
}

async fn ask(engine: &Engine, version: u64) -> Result<Arc<Seen>, QueueError> {
    let now = boot(engine);
    if let Some(seen) = engine.board.seen()
        && seen.version == version
        && now.saturating_sub(seen.at) < BELIEVED
    {
        return Ok(seen);
    }
    let status = engine.queue.status().await?;
    let mut media = BTreeMap::new();
    for id in engine.board.in_flight().into_keys() {
        if let Some(found) = engine.queue.media(id).await? {
            media.insert(id, found);
        }
    }
    let seen = Arc::new(Seen {
        version,
        at: now,
        status,
        media,
    });
    engine.board.remember(seen.clone());
    Ok(seen)
}

fn sum_up(engine: &Engine, seen: &Seen, flights: BTreeMap<MediaId, InFlight>) -> Progress {
    let status = &seen.status;
    let alive = [
        MediaState::Queued,
        MediaState::Registering,
        MediaState::Transferring,
        MediaState::Delivered,
    ];
    let bytes_total: u64 = alive.iter().map(|state| status.of(*state).bytes).sum();
    let confirmed: u64 = alive.iter().map(|state| status.of(*state).bytes_sent).sum();
    let (mut read, mut on_wire, mut acknowledged) = (confirmed, confirmed, confirmed);
    let mut active = Vec::with_capacity(flights.len());
    for (id, flight) in flights {
        let Some(media) = seen.media.get(&id) else {
            continue;
        };
        // A worker that lost its lease may still be sending what another has sent.
        let room = media.facts.size.saturating_sub(media.bytes_sent);
        let wire = [flight.read, flight.on_wire, flight.acknowledged].map(|bytes| bytes.min(room));
        read += wire[0];
        on_wire += wire[1];
        acknowledged += wire[2];
        active.push(ActiveMedia {
            media: id,
            name: media.name.clone(),
            size: media.facts.size,
            read: media.bytes_sent + wire[0],
            on_wire: media.bytes_sent + wire[1],
            acknowledged: media.bytes_sent + wire[2],
            bytes_resent: media.bytes_resent,
            chunks_sent: media.chunks_sent,
            chunk_count: media.chunk_count,
            sending: flight.chunks,
        });
    }
    let acknowledged = acknowledged.min(bytes_total);
    let working = status.active() > 0 && acknowledged < bytes_total;
    let outlook = engine
        .board
        .outlook(boot(engine), acknowledged, bytes_total, working);
    Progress {
        queue: status.clone(),
        active,
        bytes_total,
        bytes_read: read.min(bytes_total),
        bytes_on_wire: on_wire.min(bytes_total),
        bytes_acknowledged: acknowledged,
        bytes_resent: engine.board.wasted(),
        rate: outlook.rate,
        stalled: working && outlook.stalled,
        eta: outlook.forecast.map(|told| told.range),
        eta_seconds: outlook.forecast.map(|told| told.middle),
    }
}

/// Time since boot.
fn boot(engine: &Engine) -> Duration {
    Duration::from_millis(engine.clock.boot().0.max(0) as u64)
}
