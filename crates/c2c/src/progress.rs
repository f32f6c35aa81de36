//! What is seen while files are uploaded: bars on a terminal, lines elsewhere, JSON lines for programs.
//!
//! Invariants:
//! * numbers come from the uplink; nothing here makes up progress;
//! * a setback is shown with its reason, and a link that is down says so once.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use c2c_queue::{Hold, MediaId, MediaState, Scope};
use c2c_uplink::{ActiveMedia, Event, LinkState, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::format;
use crate::terminal::Terminal;

/// Time between two lines about the whole where nothing is drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between two progress events of `--json`.
const EVENT_EVERY: Duration = Duration::from_secs(1);
/// Files with a bar of their own; more would push everything else off the screen.
const MOST_BARS: usize = 8;
/// A speed is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);

/// Shows one upload.
pub(crate) struct Display {
    terminal: Terminal,
    total: ProgressBar,
    files: BTreeMap<MediaId, FileBar>,
    /// Bytes that were there before this run began; they are not this run's progress.
    before: Option<u64>,
    offline: bool,
    last_line: Option<Instant>,
    last_event: Option<Instant>,
}

struct FileBar {
    bar: ProgressBar,
    speed: Speed,
}

impl Display {
    /// A display with nothing on it.
    pub(crate) fn new(terminal: &Terminal) -> Display {
        let total = terminal.bars().add(ProgressBar::new(0));
        total.set_style(style(terminal, "total"));
        Display {
            terminal: terminal.clone(),
            total,
            files: BTreeMap::new(),
            before: None,
            offline: false,
            last_line: None,
            last_event: None,
        }
    }

    /// Shows where everything is now.
    pub(crate) fn tick(&mut self, progress: &Progress) -> io::Result<()> {
        let now = Instant::now();
        let before = *self
            .before
            .get_or_insert(progress.queue.of(MediaState::Delivered).bytes);
        let done = progress.bytes_acknowledged.saturating_sub(before);
        let all = progress.bytes_total.saturating_sub(before);
        if self.terminal.json() {
            if due(&mut self.last_event, now, EVENT_EVERY) {
                self.terminal
                    .event(&json!({"event": "progress", "progress": progress}))?;
            }
            return Ok(());
        }
        let state = speed_words(progress);
        let waiting = progress.queue.active();
        if !self.terminal.interactive() {
            if due(&mut self.last_line, now, LINE_EVERY) && waiting > 0 {
                self.terminal.say(&format!(
                    "total       {} of {}, {}{}, {} to go",
                    format::bytes(done),
                    format::bytes(all),
                    state.join(", "),
                    resent_words(progress),
                    format::count(waiting, "file", "files"),
                ));
            }
            return Ok(());
        }
        self.total.set_length(all);
        self.total.set_position(done);
        let state = if self.offline {
            "offline, waiting".to_owned()
        } else {
            format!("{}{}", state.join("  "), resent_words(progress))
        };
        self.total.set_message(format!(
            "{} of {}  {state}",
            format::bytes(done),
            format::bytes(all)
        ));
        self.draw_files(&progress.active, now);
        Ok(())
    }

    fn draw_files(&mut self, active: &[ActiveMedia], now: Instant) {
        self.files.retain(|id, file| {
            let stays = active.iter().any(|media| media.media == *id);
            if !stays {
                file.bar.finish_and_clear();
            }
            stays
        });
        for media in active.iter() {
            if !self.files.contains_key(&media.media) {
                if self.files.len() >= MOST_BARS {
                    continue;
                }
                let bar = self
                    .terminal
                    .bars()
                    .insert_before(&self.total, ProgressBar::new(media.size));
                bar.set_style(style(&self.terminal, "file"));
                bar.set_prefix(format::printable(&media.name));
                self.files.insert(
                    media.media,
                    FileBar {
                        bar,
                        speed: Speed::default(),
                    },
                );
            }
            let Some(file) = self.files.get_mut(&media.media) else {
                continue;
            };
            let rate = file.speed.note(now, media.acknowledged);
            let left = media.size.saturating_sub(media.acknowledged);
            let eta = (rate >= 1.0).then(|| Duration::from_secs_f64((left as f64 / rate).min(1e9)));
            file.bar.set_position(media.acknowledged);
            file.bar.set_message(format!(
                "{} of {}  {}  {}",
                format::bytes(media.acknowledged),
                format::bytes(media.size),
                format::rate(rate),
                format::eta(eta)
            ));
        }
    }

    /// Tells what happened.
    pub(crate) fn happened(&mut self, event: &Event) -> io::Result<()> {
        if let Some(value) = event_json(event) {
            self.terminal.event(&value)?;
        }
        let line = match event {
            Event::Link(LinkState::Offline { words, .. }) => {
                let news = !self.offline;
                self.offline = true;
                news.then(|| format!("offline     {words}; nothing is lost, waiting for the link"))
            }
            Event::Link(LinkState::Online) => {
                std::mem::take(&mut self.offline).then(|| "online      the link is back".to_owned())
            }
            Event::Registered { name, chunks, .. } if !self.terminal.interactive() => {
                Some(format!(
                    "registered  {name} ({})",
                    format::count(u64::from(*chunks), "chunk", "chunks")
                ))
            }
            event => narrate(event),
        };
        if let Some(line) = line.filter(|_| !self.terminal.json()) {
            self.terminal.say(&format::printable(&line));
        }
        Ok(())
    }

    /// Takes the bars away.
    pub(crate) fn finish(&mut self) {
        for file in std::mem::take(&mut self.files).into_values() {
            file.bar.finish_and_clear();
        }
        self.total.finish_and_clear();
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

/// How fast it goes and how long it may take.
fn speed_words(progress: &Progress) -> [String; 2] {
    let rate = format::rate(progress.rate as f64);
    if progress.stalled {
        return [rate, "stalled".to_owned()];
    }
    let open = progress.bytes_acknowledged < progress.bytes_total;
    [rate, format::eta_range(progress.eta.filter(|_| open))]
}

/// What the line has cost so far, if it has.
fn resent_words(progress: &Progress) -> String {
    match progress.bytes_resent {
        0 => String::new(),
        bytes => format!(", {} sent again", format::bytes(bytes)),
    }
}

fn due(last: &mut Option<Instant>, now: Instant, every: Duration) -> bool {
    let due = last.is_none_or(|last| now.duration_since(last) >= every);
    if due {
        *last = Some(now);
    }
    due
}

/// Narrow terminals get no bar, only names and numbers.
fn style(terminal: &Terminal, kind: &str) -> ProgressStyle {
    let canvas = terminal.canvas();
    let name = match kind {
        "total" => "{prefix}Total".to_owned(),
        _ => "{prefix}".to_owned(),
    };
    let room = match canvas.columns {
        0..60 => 16,
        60..100 => 20,
        _ => 32,
    };
    let name = if kind == "total" {
        format!("{:<room$}", "Total")
    } else {
        name.replace("prefix", &format!("prefix:!{room}"))
    };
    let template = if canvas.columns < 80 {
        format!("  {name} {{percent:>3}}%  {{msg}}")
    } else {
        format!("  {name} {{wide_bar}} {{percent:>3}}%  {{msg:48}}")
    };
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    if canvas.unicode {
        style.progress_chars("█▉▊▋▌▍▎▏ ")
    } else {
        style.progress_chars("#- ")
    }
}

/// The line for an event that a person should read; `None` for what the bars show anyway.
fn narrate(event: &Event) -> Option<String> {
    match event {
        Event::Delivered { receipt } => Some(format!(
            "delivered   {} ({})",
            receipt.name,
            format::bytes(receipt.size)
        )),
        Event::Setback {
            name,
            fault,
            state,
            hold,
            wait,
            ..
        } => {
            let what = match (state, hold, wait) {
                (_, Some(hold), _) => format!(
                    "held        {name}: {} ({})",
                    fault.words,
                    hold_words(*hold)
                ),
                (state, None, _) if state.is_resting() => {
                    format!("{:<11} {name}: {}", state.as_str(), fault.words)
                }
                // A dead link is told once for all, not once for each file.
                _ if fault.scope == Scope::Link => return None,
                (_, None, Some(wait)) if !wait.is_zero() => {
                    format!(
                        "again       {name}: {}; next try in {}",
                        fault.words,
                        wait_words(*wait)
                    )
                }
                _ => format!("again       {name}: {}", fault.words),
            };
            Some(what)
        }
        Event::Cancelled { media, words } => Some(format!("cancelled   media {media}: {words}")),
        Event::ProjectChanged { cleared, .. } => Some(format!(
            "project     another project is connected; {} taken out of the queue",
            format::count(*cleared, "media was", "media were")
        )),
        Event::StoreTrouble { words } => Some(format!(
            "trouble     {words}; work goes on when the queue can be used again"
        )),
        Event::PairAgain { words } => Some(format!("pair again  {words}")),
        Event::AuthorizationExpiring { at, left } => Some(format!(
            "authorized  only until {at}, {} from now; pair again before then",
            format::duration(*left)
        )),
        Event::Paused(true) => Some("paused      the channel is paused in Frame.io".to_owned()),
        Event::Paused(false) => Some("resumed     the channel is no longer paused".to_owned()),
        _ => None,
    }
}

fn wait_words(wait: Duration) -> String {
    if wait < Duration::from_secs(1) {
        "a moment".to_owned()
    } else {
        format::duration(wait)
    }
}

/// Why a media is not worked on, and what a person could do.
pub(crate) fn hold_words(hold: Hold) -> &'static str {
    match hold {
        Hold::ByHand => "held by hand; release it to go on",
        Hold::CaptureTimeUnknown => {
            "the moment of capture is unknown; release it to accept it as it stands"
        }
        Hold::VolumeAway => "its volume is away; goes on when it is back",
        Hold::FileChanging => "the file is still changing; goes on when it is stable",
        Hold::ChannelPaused => "the channel is paused in Frame.io; goes on when it is resumed",
    }
}

/// An event as a line of JSON. The names are stable.
pub(crate) fn event_json(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Added { media, name } => json!({"event": "added", "media": media, "name": name}),
        Event::Registered {
            media,
            name,
            asset_id,
            chunks,
        } => {
            json!({"event": "registered", "media": media, "name": name, "asset_id": asset_id, "chunks": chunks})
        }
        Event::ChunkSent {
            media,
            number,
            left,
        } => {
            json!({"event": "chunk_sent", "media": media, "chunk": number, "left": left})
        }
        Event::Delivered { receipt } => json!({
            "event": "delivered",
            "media": receipt.media,
            "name": receipt.name,
            "asset_id": receipt.asset_id,
            "size": receipt.size,
        }),
        Event::Setback {
            media,
            name,
            operation,
            fault,
            state,
            hold,
            wait,
        } => json!({
            "event": "setback",
            "media": media,
            "name": name,
            "operation": operation,
            "fault": fault,
            "state": state,
            "hold": hold,
            "wait_ms": wait.map(|wait| wait.as_millis() as u64),
        }),
        Event::Cancelled { media, words } => {
            json!({"event": "cancelled", "media": media, "words": words})
        }
        Event::Link(state) => json!({"event": "link", "link": state}),
        Event::Identity(identity) => json!({"event": "identity", "identity": identity}),
        Event::ProjectChanged { from, cleared } => {
            json!({"event": "project_changed", "from": from, "cleared": cleared})
        }
        Event::PairAgain { words } => json!({"event": "pair_again", "words": words}),
        Event::AuthorizationExpiring { at, left } => {
            json!({"event": "authorization_expiring", "at": at, "left_seconds": left.as_secs()})
        }
        Event::Paused(paused) => json!({"event": "paused", "paused": paused}),
        Event::StoreTrouble { words } => json!({"event": "store_trouble", "words": words}),
        Event::Sealed { media } => json!({"event": "sealed", "media": media}),
        _ => return None,
    })
}

/// Bytes per second over the last seconds.
#[derive(Debug, Default)]
struct Speed {
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn note(&mut self, now: Instant, bytes: u64) -> f64 {
        // A chunk that has to be sent again takes bytes back: start anew.
        if self.samples.back().is_some_and(|(_, last)| bytes < *last) {
            self.samples.clear();
        }
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self
                .samples
                .get(1)
                .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            self.samples.pop_front();
        }
        let Some(&(from, base)) = self.samples.front() else {
            return 0.0;
        };
        let span = now.duration_since(from).as_secs_f64();
        if span < 0.2 {
            0.0
        } else {
            (bytes - base) as f64 / span
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use c2c_queue::{FaultRecord, Operation};

    fn setback(
        scope: Scope,
        state: MediaState,
        hold: Option<Hold>,
        wait: Option<Duration>,
    ) -> Event {
        Event::Setback {
            media: MediaId(3),
            name: "A001.mov".into(),
            operation: Operation::Transfer,
            fault: FaultRecord {
                scope,
                code: "x".into(),
                words: "the words".into(),
                server: None,
            },
            state,
            hold,
            wait,
        }
    }

    #[test]
    fn setbacks_are_told_with_their_reason_and_what_follows() {
        let again = setback(
            Scope::Service,
            MediaState::Transferring,
            None,
            Some(Duration::from_secs(8)),
        );
        assert_eq!(
            narrate(&again).unwrap(),
            "again       A001.mov: the words; next try in 8s"
        );
        let soon = setback(
            Scope::Service,
            MediaState::Transferring,
            None,
            Some(Duration::from_millis(8)),
        );
        assert_eq!(
            narrate(&soon).unwrap(),
            "again       A001.mov: the words; next try in a moment"
        );
        let rest = setback(Scope::Refusal, MediaState::Withheld, None, None);
        assert_eq!(narrate(&rest).unwrap(), "withheld    A001.mov: the words");
        let held = setback(
            Scope::Media,
            MediaState::Queued,
            Some(Hold::VolumeAway),
            None,
        );
        assert!(
            narrate(&held)
                .unwrap()
                .starts_with("held        A001.mov: the words (its volume is away")
        );
        let link = setback(Scope::Link, MediaState::Transferring, None, None);
        assert_eq!(narrate(&link), None);
    }

    fn progress() -> Progress {
        Progress {
            queue: c2c_queue::QueueStatus::default(),
            active: vec![ActiveMedia {
                media: MediaId(3),
                name: "A001.mov".into(),
                size: 400,
                read: 300,
                on_wire: 280,
                acknowledged: 250,
                bytes_resent: 7,
                chunks_sent: 1,
                chunk_count: 4,
                sending: vec![1, 2],
            }],
            bytes_total: 1000,
            bytes_read: 300,
            bytes_on_wire: 280,
            bytes_acknowledged: 250,
            bytes_resent: 0,
            rate: 2_500_000,
            stalled: false,
            eta: Some(c2c_uplink::EtaRange {
                soonest: 180,
                latest: 300,
            }),
            eta_seconds: Some(240),
        }
    }

    #[test]
    fn the_time_left_is_told_as_far_as_it_is_known() {
        let mut progress = progress();
        assert_eq!(speed_words(&progress), ["2.50 MB/s", "3–5 min left"]);
        assert_eq!(resent_words(&progress), "");
        progress.bytes_resent = 12_000_000;
        assert_eq!(resent_words(&progress), ", 12.0 MB sent again");
        progress.eta = None;
        assert_eq!(speed_words(&progress)[1], "– left");
        (progress.stalled, progress.rate) = (true, 0);
        assert_eq!(speed_words(&progress), ["0 B/s", "stalled"]);
    }

    #[test]
    fn progress_in_json_keeps_its_names() {
        assert_eq!(
            serde_json::to_value(progress()).unwrap(),
            json!({
                "queue": {"states": {}, "held": 0, "chunks_ready": 0},
                "active": [{
                    "media": 3, "name": "A001.mov", "size": 400, "read": 300, "on_wire": 280, "acknowledged": 250,
                    "bytes_resent": 7, "chunks_sent": 1, "chunk_count": 4, "sending": [1, 2],
                }],
                "bytes_total": 1000, "bytes_read": 300, "bytes_on_wire": 280, "bytes_acknowledged": 250,
                "bytes_resent": 0, "rate": 2_500_000, "stalled": false,
                "eta": {"soonest": 180, "latest": 300}, "eta_seconds": 240,
            })
        );
    }

    #[test]
    fn json_events_keep_their_names() {
        let value = event_json(&setback(Scope::Service, MediaState::Parked, None, None)).unwrap();
        assert_eq!(
            value,
            json!({
                "event": "setback", "media": 3, "name": "A001.mov", "operation": "transfer",
                "fault": {"scope": "service", "code": "x", "words": "the words", "server": null},
                "state": "parked", "hold": null, "wait_ms": null,
            })
        );
        let sent = event_json(&Event::ChunkSent {
            media: MediaId(1),
            number: 0,
            left: 2,
        })
        .unwrap();
        assert_eq!(
            sent,
            json!({"event": "chunk_sent", "media": 1, "chunk": 0, "left": 2})
        );
    }

    #[test]
    fn the_speed_follows_the_last_seconds_and_survives_a_fall() {
        let mut speed = Speed::default();
        let start = Instant::now();
        let mut rate = 0.0;
        for second in 0..20 {
            rate = speed.note(start + Duration::from_secs(second), second * 1_000);
        }
        assert!((rate - 1_000.0).abs() < 1.0, "{rate}");
        assert_eq!(speed.note(start + Duration::from_secs(20), 5), 0.0);
    }
}
