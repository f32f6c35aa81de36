//! `explain` and `receipt`: the life of one media, and the proof of its delivery.

use std::sync::Arc;

use c2c_queue::{
    Chunk, ChunkState, Event, Hold, Media, MediaId, MediaState, Operation, Queue, Receipt,
};
use serde_json::json;
use std::time::Duration;

use crate::cli::{Global, One};
use crate::commands::look::is_paired;
use crate::error::{Exit, Failure};
use crate::format;
use crate::progress::hold_words;
use crate::session;
use crate::terminal::Terminal;

/// Prints the life of a media: each try, fault, verdict and wait, and what happens next and when.
pub(crate) async fn explain(
    global: &Global,
    terminal: &Terminal,
    args: &One,
) -> Result<(), Failure> {
    let (queue, id) = open(global, args).await?;
    let media = queue.media(id).await?.ok_or_else(|| no_such(id))?;
    let chunks = queue.chunks(id).await?;
    let history = queue.history(Some(id)).await?;
    let paired = is_paired(&queue.connection().await?);
    queue.close().await?;
    let next = next(&media, &chunks, paired);
    terminal.document(&json!({
        "media": media,
        "chunks": chunks,
        "history": history,
        "next": next,
    }))?;
    if terminal.json() {
        return Ok(());
    }
    for line in head(&media) {
        terminal.result(&line)?;
    }
    terminal.result("")?;
    for line in &history {
        let words = format::printable(&words_of(&line.event));
        terminal.result(&format!("{}  {words}", format::moment(line.at.0)))?;
    }
    terminal.result("")?;
    terminal.result(&format!("Next: {next}"))?;
    Ok(())
}

/// Prints the receipt of a delivered media as JSON.
pub(crate) async fn receipt(
    global: &Global,
    terminal: &Terminal,
    args: &One,
) -> Result<(), Failure> {
    let (queue, id) = open(global, args).await?;
    let receipt = queue.receipt(id).await?;
    let media = queue.media(id).await?;
    queue.close().await?;
    let receipt: Receipt = match (receipt, media) {
        (Some(receipt), _) => receipt,
        (None, Some(media)) => {
            let words = format!(
                "media {id} is {} and has no receipt yet; `c2c explain {id}` tells why",
                media.state
            );
            return Err(Failure::new(Exit::Undelivered, words));
        }
        (None, None) => return Err(no_such(id)),
    };
    // A receipt is a document for machines and archives; it has one form.
    terminal.always_document(&receipt)?;
    Ok(())
}

async fn open(global: &Global, args: &One) -> Result<(Arc<dyn Queue>, MediaId), Failure> {
    let id = MediaId(args.id);
    let (_, queue) = session::look(global).await?;
    Ok((queue.ok_or_else(|| no_such(id))?, id))
}

fn no_such(id: MediaId) -> Failure {
    let words = format!("there is no media {id} in the queue; `c2c list` shows what there is");
    Failure::new(Exit::Usage, words)
}

fn head(media: &Media) -> Vec<String> {
    let mut lines = vec![
        format!(
            "Media {}: {} ({}, {})",
            media.id,
            format::printable(&media.name),
            format::bytes(media.facts.size),
            format::printable(&media.filetype)
        ),
        format!(
            "File      {}",
            format::printable(&media.path.display().to_string())
        ),
        format!("Captured  {}", format::moment(media.capture.wall.0)),
    ];
    let held = media
        .hold
        .map(|hold| format!(", held: {}", hold_words(hold)));
    lines.push(format!(
        "State     {}{}",
        media.state,
        held.unwrap_or_default()
    ));
    if media.chunk_count > 0 {
        lines.push(format!(
            "Sent      {} of {} chunks, {} of {}",
            media.chunks_sent,
            media.chunk_count,
            format::bytes(media.bytes_sent),
            format::bytes(media.facts.size)
        ));
    }
    if let Some(asset) = &media.asset_id {
        lines.push(format!("Asset     {}", format::printable(asset)));
    }
    lines.push(format!(
        "Tries     {} in all, {} of 3 rounds used{}",
        media.tries_total,
        media.rounds,
        if media.final_try {
            ", on its one more try after a restart"
        } else {
            ""
        }
    ));
    if media.bytes_resent > 0 {
        lines.push(format!(
            "Sent twice or in vain  {}",
            format::bytes(media.bytes_resent)
        ));
    }
    if media.possible_duplicates > 0 {
        lines.push(format!(
            "Possible duplicates  {}: the answer to a registration was lost, so the project may show an empty asset",
            media.possible_duplicates
        ));
    }
    lines
}

fn wait(ms: u64) -> String {
    format::duration(Duration::from_millis(ms).max(Duration::from_secs(1)))
}

/// What happens next, and when; or what a person could do.
fn next(media: &Media, chunks: &[Chunk], paired: bool) -> String {
    let id = media.id;
    if let (Some(hold), false) = (media.hold, media.state.is_resting()) {
        return match hold {
            Hold::ByHand => format!("nothing until it is released: `c2c release {id}`"),
            Hold::CaptureTimeUnknown => format!(
                "nothing until a person decides: `c2c release {id}` if it was not captured during a pause, else `c2c cancel {id}`"
            ),
            Hold::VolumeAway => "it goes on by itself when its volume is mounted again".into(),
            Hold::FileChanging => "it goes on by itself when the file is stable".into(),
            Hold::ChannelPaused => {
                "it goes on by itself when the channel is resumed in Frame.io".into()
            }
        };
    }
    if !paired && !media.state.is_resting() {
        return "it goes on when this unit is paired: run `c2c pair`, then `c2c upload`".into();
    }
    match media.state {
        MediaState::Queued => match media.due_in_ms {
            Some(ms) => format!("registered again in {}", wait(ms)),
            None => "registered as soon as its turn comes, while `c2c upload` runs".into(),
        },
        MediaState::Registering => "Frame.io is being asked to create the asset".into(),
        MediaState::Transferring => {
            let open = |chunk: &&Chunk| chunk.state == ChunkState::Ready;
            let sending = chunks
                .iter()
                .filter(|chunk| chunk.state == ChunkState::Sending)
                .count();
            let due = chunks
                .iter()
                .filter(open)
                .filter(|chunk| chunk.due_in_ms.is_none())
                .count();
            let first = chunks
                .iter()
                .filter(open)
                .filter_map(|chunk| chunk.due_in_ms)
                .min();
            match (sending, due, first) {
                (0, 0, Some(ms)) => format!("its next chunk is tried again in {}", wait(ms)),
                (0, _, _) => {
                    "its chunks are sent as soon as their turn comes, while `c2c upload` runs"
                        .into()
                }
                (sending, _, _) => format!(
                    "{} on the wire",
                    format::count(sending as u64, "chunk is", "chunks are")
                ),
            }
        }
        MediaState::Delivered => {
            format!("nothing: it is delivered; `c2c receipt {id}` is the proof")
        }
        MediaState::Withheld => {
            format!("nothing: it was captured during a pause; `c2c retry {id}` asks Frame.io again")
        }
        MediaState::Parked => format!(
            "one more try after the next restart of this system, or now with `c2c retry {id}`"
        ),
        MediaState::Failed => {
            format!("nothing by itself; put the cause right, then `c2c retry {id}`")
        }
        MediaState::Cancelled => {
            format!("nothing: it is cancelled; `c2c retry {id}` takes it up again")
        }
    }
}

fn act(operation: Operation, chunk: Option<u32>) -> String {
    match (operation, chunk) {
        (Operation::Register, _) => "registration".into(),
        (Operation::Transfer, Some(chunk)) => format!("chunk {}", chunk + 1),
        (Operation::Transfer, None) => "transfer".into(),
    }
}

fn words_of(event: &Event) -> String {
    match event {
        Event::Added => "added to the queue".into(),
        Event::Try {
            operation,
            chunk,
            number,
            round,
        } => {
            format!("{}: try {number} of round {round}", act(*operation, *chunk))
        }
        Event::Registered {
            asset_id,
            chunks,
            offset,
        } => {
            let offset = offset.map_or_else(
                || "organised by upload date".into(),
                |s| format!("offset {s} s"),
            );
            let chunks = format::count(u64::from(*chunks), "chunk", "chunks");
            format!("registered as asset {asset_id} with {chunks}, {offset}")
        }
        Event::Fault {
            operation,
            chunk,
            fault,
            verdict,
            wait_ms,
        } => {
            let mut words = format!(
                "{}: {} [{}]",
                act(*operation, *chunk),
                fault.words,
                fault.code
            );
            if let Some(server) = &fault.server {
                words.push_str(&format!(" - the server said: {server}"));
            }
            words.push_str(&format!("; verdict: {}", verdict.replace('_', " ")));
            if let Some(ms) = wait_ms.filter(|ms| *ms > 0) {
                words.push_str(&format!(", after {}", wait(ms)));
            }
            words
        }
        Event::RegisteredAnew { bytes_lost } => {
            format!(
                "its chunks were dropped to register again; {} had been sent in vain",
                format::bytes(*bytes_lost)
            )
        }
        Event::PossibleDuplicate => {
            "the answer to a registration was lost: an empty asset may be in the project".into()
        }
        Event::LeaseLost { chunk, holder } => match chunk {
            Some(chunk) => format!(
                "chunk {}: its worker ({holder}) went silent; back to the pool",
                chunk + 1
            ),
            None => format!("registration: its worker ({holder}) went silent; back to the pool"),
        },
        Event::Delivered => "delivered".into(),
        Event::RestartTry => "one more try after the restart of the system".into(),
        Event::Held { hold } => format!("held: {}", hold_words(*hold)),
        Event::Released { hold } => format!("released; was held: {}", hold_words(*hold)),
        Event::FileChanged { words } => format!("the file changed: {words}"),
        Event::FileGone { words } => words.clone(),
        Event::ByHand { action } => format!("by hand: {action}"),
        Event::ReceiptSealed => "the SHA-256 of the whole file was added to the receipt".into(),
        Event::ProjectChanged { from, to, cleared } => {
            format!("project {from} gave way to {to}; {cleared} media were removed")
        }
        Event::Paired { project_id } => format!("paired with project {project_id}"),
        Event::AuthorizationLost { words } => format!("the authorization was lost: {words}"),
    }
}
