//! `status` and `list`: looking at the queue, also while another process works on it.

use std::sync::Arc;

use c2c_queue::{Connection, Identity, Media, MediaState, Queue, QueueStatus};
use serde::Serialize;
use serde_json::json;

use crate::cli::{Global, List};
use crate::deliver::reason;
use crate::error::{Exit, Failure};
use crate::format::{self, Align, Table};
use crate::session;
use crate::terminal::Terminal;

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct StatusDocument {
    state_dir: String,
    paired: bool,
    /// Why the authorization is gone, if it is.
    lost: Option<String>,
    identity: Option<Identity>,
    queue: QueueStatus,
}

/// Shows the connection and the queue in numbers.
pub(crate) async fn status(global: &Global, terminal: &Terminal) -> Result<(), Failure> {
    let (state_dir, queue) = session::look(global).await?;
    let mut document = StatusDocument {
        state_dir: state_dir.display().to_string(),
        paired: false,
        lost: None,
        identity: None,
        queue: QueueStatus::default(),
    };
    if let Some(queue) = queue {
        let connection = queue.connection().await?;
        // The tokens themselves stay sealed for somebody who only looks.
        document.paired = is_paired(&connection);
        document.lost = connection.lost;
        document.identity = connection.identity;
        document.queue = queue.status().await?;
        queue.close().await?;
    }
    terminal.document(&document)?;
    for line in describe(&document, terminal.columns()) {
        terminal.result(&line)?;
    }
    Ok(())
}

/// What every media waits for while nobody has paired this unit, or since its authorization is gone.
pub(crate) const UNPAIRED: &str = "waits for a pairing: run `c2c pair`";

/// Whether there are tokens; they are not opened for it.
pub(crate) fn is_paired(connection: &Connection) -> bool {
    connection.tokens.is_some() || connection.tokens_stored_at.is_some()
}

fn describe(document: &StatusDocument, columns: Option<usize>) -> Vec<String> {
    let mut lines = vec![format!(
        "State directory  {}",
        format::printable(&document.state_dir)
    )];
    lines.push(match (&document.identity, document.paired) {
        (Some(who), true) => format!(
            "Connection       project {} as {} ({})",
            format::printable(&who.project_name),
            format::printable(&who.device_name),
            format::printable(&who.status)
        ),
        (None, true) => "Connection       paired".to_owned(),
        (who, false) => {
            let last = who.as_ref().map(|who| {
                format!(
                    ", last with project {}",
                    format::printable(&who.project_name)
                )
            });
            let why = document
                .lost
                .as_ref()
                .map(|words| format!(": {}", format::printable(words)));
            format!(
                "Connection       not paired{}{}; run `c2c pair`",
                last.unwrap_or_default(),
                why.unwrap_or_default()
            )
        }
    });
    if let Some(ends) = document
        .identity
        .as_ref()
        .filter(|_| document.paired)
        .and_then(|who| who.authorization_expires_at.as_deref())
    {
        let moment = ends
            .parse::<jiff::Timestamp>()
            .map(|at| format::moment(at.as_millisecond()));
        let moment = moment.unwrap_or_else(|_| format::printable(ends).to_string());
        lines.push(format!("Authorized until {moment}"));
    }
    let queue = &document.queue;
    let mut table = Table::new(&[
        ("STATE", Align::Left),
        ("FILES", Align::Right),
        ("SIZE", Align::Right),
        ("SENT", Align::Right),
    ]);
    let mut files = 0;
    for state in MediaState::ALL {
        let tally = queue.of(state);
        files += tally.media;
        if tally.media > 0 {
            table.row([
                state.to_string(),
                tally.media.to_string(),
                format::bytes(tally.bytes),
                format::bytes(tally.bytes_sent),
            ]);
        }
    }
    if files == 0 {
        lines.push("Queue            empty".to_owned());
        return lines;
    }
    lines.push(String::new());
    lines.extend(table.lines(columns));
    if queue.held > 0 {
        lines.push(String::new());
        lines.push(format!(
            "{} held; `c2c list` says why.",
            format::count(queue.held, "file is", "files are")
        ));
    }
    lines
}

/// One media as `list --json` prints it.
#[derive(Debug, Serialize)]
struct ListRow {
    id: i64,
    name: String,
    path: String,
    size: u64,
    filetype: String,
    state: MediaState,
    hold: Option<c2c_queue::Hold>,
    reason: Option<String>,
    fault: Option<c2c_queue::FaultRecord>,
    channel: u32,
    priority: i32,
    tries: u32,
    rounds: u32,
    tries_total: u64,
    due_in_ms: Option<u64>,
    asset_id: Option<String>,
    project_id: Option<String>,
    registrations: u32,
    possible_duplicates: u32,
    chunk_count: u32,
    chunks_sent: u32,
    bytes_sent: u64,
    bytes_resent: u64,
    captured_at_ms: i64,
    added_at_ms: i64,
    rested_at_ms: Option<i64>,
}

impl ListRow {
    fn of(media: Media, paired: bool) -> ListRow {
        let unpaired = !paired && !media.state.is_resting() && media.hold.is_none();
        ListRow {
            reason: match unpaired {
                true => Some(UNPAIRED.to_owned()),
                false => reason(&media),
            },
            id: media.id.0,
            name: media.name,
            // JSON has no way to write a path that is not Unicode; the id names the media all the same.
            path: media.path.to_string_lossy().into_owned(),
            size: media.facts.size,
            filetype: media.filetype,
            state: media.state,
            hold: media.hold,
            fault: media.last_fault,
            channel: media.channel,
            priority: media.priority,
            tries: media.tries,
            rounds: media.rounds,
            tries_total: media.tries_total,
            due_in_ms: media.due_in_ms,
            asset_id: media.asset_id,
            project_id: media.project_id,
            registrations: media.registrations,
            possible_duplicates: media.possible_duplicates,
            chunk_count: media.chunk_count,
            chunks_sent: media.chunks_sent,
            bytes_sent: media.bytes_sent,
            bytes_resent: media.bytes_resent,
            captured_at_ms: media.capture.wall.0,
            added_at_ms: media.added_at.0,
            rested_at_ms: media.rested_at.map(|at| at.0),
        }
    }
}

/// Lists the media in the queue.
pub(crate) async fn list(global: &Global, terminal: &Terminal, args: &List) -> Result<(), Failure> {
    let (_, queue) = session::look(global).await?;
    let rows = match queue {
        Some(queue) => {
            let rows = rows(&queue, &args.states).await?;
            queue.close().await?;
            rows
        }
        None => Vec::new(),
    };
    terminal.document(&json!({ "media": rows }))?;
    if terminal.json() {
        return Ok(());
    }
    if rows.is_empty() {
        terminal.say(if args.states.is_empty() {
            "The queue is empty."
        } else {
            "No media in this state."
        });
        return Ok(());
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("NAME", Align::Elastic),
        ("SIZE", Align::Right),
        ("STATE", Align::Left),
        ("SENT", Align::Right),
        ("ADDED", Align::Left),
        ("REASON", Align::Elastic),
    ]);
    for row in rows {
        table.row([
            row.id.to_string(),
            row.name,
            format::bytes(row.size),
            row.state.to_string(),
            percent(row.bytes_sent, row.size, row.state),
            format::moment(row.added_at_ms),
            row.reason.unwrap_or_default(),
        ]);
    }
    for line in table.lines(terminal.columns()) {
        terminal.result(&line)?;
    }
    Ok(())
}

async fn rows(queue: &Arc<dyn Queue>, states: &[MediaState]) -> Result<Vec<ListRow>, Failure> {
    let states = (!states.is_empty()).then(|| states.to_vec());
    let paired = is_paired(&queue.connection().await?);
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = queue.list(states.clone(), after, 1_000).await?;
        let Some(last) = page.last() else {
            return Ok(rows);
        };
        if after == Some(last.id) {
            return Err(Failure::new(
                Exit::Queue,
                "the queue does not move on while it is listed; it may be damaged",
            ));
        }
        after = Some(last.id);
        rows.extend(page.into_iter().map(|media| ListRow::of(media, paired)));
    }
}

/// Rounded down: 100% is said only of what is delivered.
fn percent(sent: u64, size: u64, state: MediaState) -> String {
    if state == MediaState::Delivered {
        return "100%".to_owned();
    }
    let share = (u128::from(sent) * 100)
        .checked_div(u128::from(size))
        .unwrap_or(0)
        .min(99);
    format!("{share}%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use c2c_queue::StateTally;

    #[test]
    fn a_hundred_percent_is_said_of_delivered_media_only() {
        assert_eq!(percent(10, 10, MediaState::Transferring), "99%");
        assert_eq!(percent(0, 0, MediaState::Queued), "0%");
        assert_eq!(percent(0, 0, MediaState::Delivered), "100%");
        assert_eq!(
            percent(u64::MAX / 2, u64::MAX, MediaState::Transferring),
            "49%"
        );
    }

    #[test]
    fn the_status_says_what_to_do_when_not_paired() {
        let mut document = StatusDocument {
            state_dir: "/s".into(),
            paired: false,
            lost: Some("revoked in Frame.io".into()),
            identity: None,
            queue: QueueStatus::default(),
        };
        let text = describe(&document, None).join("\n");
        assert!(
            text.contains("not paired: revoked in Frame.io; run `c2c pair`"),
            "{text}"
        );
        assert!(text.contains("empty"), "{text}");
        let tally = StateTally {
            media: 2,
            bytes: 3_000_000,
            bytes_sent: 1_000_000,
        };
        document
            .queue
            .states
            .insert(MediaState::Transferring, tally);
        document.queue.held = 1;
        let text = describe(&document, None).join("\n");
        assert!(
            text.contains("transferring      2  3.00 MB  1.00 MB"),
            "{text}"
        );
        assert!(text.contains("1 file is held"), "{text}");
    }
}
