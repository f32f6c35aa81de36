//! The one loop behind `upload` and `demo`: let the uplink work, show it, and say how it ended.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use c2c_queue::{Added, Media, MediaId, MediaState, StateTally};
use c2c_uplink::{AddMedia, Event, LinkState, Standing, Uplink};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cli::{AddOptions, Patience};
use crate::error::{Exit, Failure};
use crate::format::{self, Align, Table};
use crate::interrupt::Interrupt;
use crate::progress::{Display, hold_words};
use crate::terminal::Terminal;

/// Adds files and tells which of them were there before.
///
/// # Errors
/// A file that cannot be added; then none is.
pub(crate) async fn add(
    uplink: &Uplink,
    terminal: &Terminal,
    files: &[PathBuf],
    options: &AddOptions,
) -> Result<Vec<Added>, Failure> {
    let named = options.files_from.as_deref().map(List::read).transpose()?;
    let named = named.unwrap_or_default();
    let files = || {
        files
            .iter()
            .map(Cow::Borrowed)
            .chain(named.paths().map(Cow::Owned))
    };
    let media = files().map(|file| {
        let mut media = AddMedia::path(file.into_owned())
            .channel(options.channel)
            .priority(options.priority);
        if let Some(filetype) = &options.filetype {
            media = media.filetype(filetype);
        }
        if let Some(parts) = options.parts {
            media = media.parts(parts);
        }
        if options.again { media.again() } else { media }
    });
    let added = uplink.add(media).await?;
    let mut told = 0;
    for (added, file) in added.iter().zip(files()) {
        let name = file
            .file_name()
            .unwrap_or(file.as_os_str())
            .to_string_lossy();
        terminal.event(&serde_json::json!({
            "event": "added",
            "media": added.id,
            "name": name,
            "already": added.already,
        }))?;
        let name = format::printable(&name);
        told += u64::from(added.already.is_some());
        match added.already {
            Some(_) if told > TOLD => {}
            None => {}
            Some(MediaState::Delivered) => {
                terminal.say(&format!(
                    "{name} was delivered before; --again sends it once more"
                ));
            }
            Some(state) if state.is_resting() => {
                terminal.say(&format!(
                    "{name} is in the queue, {state}; --again adds it once more"
                ));
            }
            Some(state) => terminal.say(&format!("{name} is in the queue already, {state}")),
        }
    }
    if told > TOLD {
        let more = format::count(told - TOLD, "more file", "more files");
        terminal.say(&format!("{more} of those were in the queue already"));
    }
    Ok(added)
}

/// Files that are told to have been there before, one by one.
const TOLD: u64 = 20;

/// A list of files, as it was written: there may be very many.
#[derive(Default)]
struct List {
    text: Vec<u8>,
}

impl List {
    fn read(list: &Path) -> Result<List, Failure> {
        let text = if list == Path::new("-") {
            let mut text = Vec::new();
            std::io::stdin().lock().read_to_end(&mut text).map(|_| text)
        } else {
            std::fs::read(list)
        };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            let words = format!("cannot read the list of files {}: {error}", list.display());
            Failure::because(Exit::Usage, words, error)
        };
        let text = text.map_err(|error| failed(error.into()))?;
        if cfg!(not(unix)) {
            // Elsewhere the bytes of a path have no meaning of their own.
            str::from_utf8(&text).map_err(|error| failed(error.into()))?;
        }
        Ok(List { text })
    }

    /// Names with NUL between them if there is any, as `find -print0` writes them; otherwise one a line.
    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let end = if self.text.contains(&0) { 0 } else { b'\n' };
        self.text
            .split(move |byte| *byte == end)
            .map(move |name| match name {
                [name @ .., b'\r'] if end != 0 => name,
                name => name,
            })
            .filter(|name| !name.is_empty())
            .map(path_of)
    }
}

#[cfg(unix)]
fn path_of(name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(name))
}

#[cfg(not(unix))]
fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(name).into_owned())
}

/// How an upload ended.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Always `summary`: the line among the events.
    event: &'static str,
    /// Media that were asked for and are delivered.
    pub(crate) delivered: u64,
    /// Media that were asked for and are not.
    pub(crate) undelivered: Vec<Undelivered>,
    /// Bytes delivered in this run.
    pub(crate) bytes: u64,
    /// How long this run took.
    pub(crate) seconds: f64,
    /// It was stopped before the end.
    pub(crate) interrupted: bool,
}

/// A media that is not delivered, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Undelivered {
    /// The media.
    pub(crate) media: MediaId,
    /// Its name in Frame.io.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) state: MediaState,
    /// In words.
    pub(crate) reason: Option<String>,
}

/// Works until everything is delivered or rests, or a person stops it. `wanted` are the media to report on; without them all are.
///
/// # Errors
/// The authorization is lost, or the queue fails. Media that rest are no error here: see [`Summary`].
pub(crate) async fn deliver(
    uplink: &Uplink,
    terminal: &Terminal,
    interrupt: &Interrupt,
    wanted: Option<&[MediaId]>,
    patience: Patience,
) -> Result<Summary, Failure> {
    if let Standing::PairAgain { words } = uplink.standing() {
        return Err(not_paired(&words));
    }
    let began = Instant::now();
    let mut display = Display::new(terminal);
    let mut events = uplink.events();
    // Counted in the queue, not by events: those may be missed.
    let mut before = uplink.queue().status().await?.of(MediaState::Delivered);
    let mut interrupted = false;
    let mut offline_since = None;
    uplink.start().await;
    {
        let mut idle = pin!(uplink.wait_idle());
        let mut tick = interval(Duration::from_millis(if terminal.interactive() {
            150
        } else {
            500
        }));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Events first: what led to the end is told before the end.
                biased;
                event = events.recv() => match event {
                    Ok(event) => {
                        display.happened(&event)?;
                        match &event {
                            Event::PairAgain { words } => return Err(not_paired(words)),
                            Event::ProjectChanged { .. } => before = StateTally::default(),
                            _ => {}
                        }
                    }
                    // A missed event is a missed line, and nothing more.
                    Err(RecvError::Lagged(_)) => {
                        if let Standing::PairAgain { words } = uplink.standing() {
                            return Err(not_paired(&words));
                        }
                    }
                    Err(RecvError::Closed) => break,
                },
                () = interrupt.wait() => {
                    interrupted = true;
                    break;
                }
                status = &mut idle => {
                    status?;
                    break;
                }
                _ = tick.tick() => {
                    display.tick(&uplink.progress().await?)?;
                    give_up(&uplink.link(), &mut offline_since, patience)?;
                }
            }
        }
    }
    while let Ok(event) = events.try_recv() {
        display.happened(&event)?;
        if matches!(event, Event::ProjectChanged { .. }) {
            before = StateTally::default();
        }
    }
    display.finish();
    let seconds = began.elapsed().as_secs_f64();
    let after = uplink.queue().status().await?.of(MediaState::Delivered);
    let (count, undelivered) = match wanted {
        Some(wanted) => split(uplink, wanted).await?,
        None => (
            after.media.saturating_sub(before.media),
            everything_else(uplink).await?,
        ),
    };
    Ok(Summary {
        event: "summary",
        delivered: count,
        undelivered,
        bytes: after.bytes.saturating_sub(before.bytes),
        seconds,
        interrupted,
    })
}

/// Fails when the link has been down for longer than the patience lasts.
fn give_up(
    link: &LinkState,
    since: &mut Option<Instant>,
    patience: Patience,
) -> Result<(), Failure> {
    let LinkState::Offline { words, .. } = link else {
        *since = None;
        return Ok(());
    };
    let since = *since.get_or_insert_with(Instant::now);
    match patience.limit {
        Some(limit) if since.elapsed() >= limit => Err(Failure::new(
            Exit::Unreachable,
            format!(
                "gave up after {} without the service: {words}; the queue is kept",
                format::duration(limit)
            ),
        )),
        _ => Ok(()),
    }
}

fn not_paired(words: &str) -> Failure {
    Failure::new(
        Exit::NotPaired,
        format!("{words}; the queue is kept: run `c2c pair`, then `c2c upload`"),
    )
}

async fn split(uplink: &Uplink, wanted: &[MediaId]) -> Result<(u64, Vec<Undelivered>), Failure> {
    let mut delivered = 0;
    let mut undelivered = Vec::new();
    // What was added together has neighbouring ids: most pages hold many that are wanted.
    let mut page = BTreeMap::new();
    let mut page_ends = None;
    for id in wanted.iter().copied().collect::<BTreeSet<_>>() {
        if page_ends.is_none_or(|end| id > end) {
            let before = MediaId(id.0 - 1);
            let media = uplink.queue().list(None, Some(before), 500).await?;
            page_ends = Some(media.last().map_or(id, |last| last.id));
            page = media.into_iter().map(|media| (media.id, media)).collect();
        }
        match page.get(&id) {
            Some(media) if media.state == MediaState::Delivered => delivered += 1,
            Some(media) => undelivered.push(Undelivered::of(media)),
            None => undelivered.push(Undelivered {
                media: id,
                name: format!("media {id}"),
                state: MediaState::Cancelled,
                reason: Some("it was taken out of the queue".to_owned()),
            }),
        }
    }
    Ok((delivered, undelivered))
}

/// Everything in the queue that is neither delivered nor cancelled.
async fn everything_else(uplink: &Uplink) -> Result<Vec<Undelivered>, Failure> {
    let states: Vec<MediaState> = MediaState::ALL
        .into_iter()
        .filter(|state| !matches!(state, MediaState::Delivered | MediaState::Cancelled))
        .collect();
    let mut rest = Vec::new();
    let mut after = None;
    loop {
        let page = uplink
            .queue()
            .list(Some(states.clone()), after, 500)
            .await?;
        let Some(last) = page.last() else {
            return Ok(rest);
        };
        after = Some(last.id);
        rest.extend(page.iter().map(Undelivered::of));
    }
}

impl Undelivered {
    fn of(media: &Media) -> Undelivered {
        Undelivered {
            media: media.id,
            name: media.name.clone(),
            state: media.state,
            reason: reason(media),
        }
    }
}

/// Why a media is where it is, if there is anything to say.
pub(crate) fn reason(media: &Media) -> Option<String> {
    match media.hold {
        Some(hold) if !media.state.is_resting() => Some(hold_words(hold).to_owned()),
        _ if media.state == MediaState::Delivered => None,
        _ => media.last_fault.as_ref().map(|fault| fault.words.clone()),
    }
}

impl Summary {
    /// Writes the summary as the result.
    ///
    /// # Errors
    /// Stdout is gone.
    pub(crate) fn print(&self, terminal: &Terminal) -> std::io::Result<()> {
        terminal.event(self)?;
        let all = self.delivered + self.undelivered.len() as u64;
        if all == 0 {
            return terminal.result("Nothing to upload.");
        }
        let time = Duration::from_secs_f64(self.seconds);
        let speed = if self.bytes > 0 && self.seconds > 0.0 {
            format!(
                ", {} in {} ({})",
                format::bytes(self.bytes),
                format::elapsed(time),
                format::rate(self.bytes as f64 / self.seconds)
            )
        } else {
            String::new()
        };
        terminal.result(&format!(
            "{} of {} delivered{speed}.",
            self.delivered,
            format::count(all, "file", "files")
        ))?;
        if self.undelivered.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&[
            ("ID", Align::Right),
            ("NAME", Align::Elastic),
            ("STATE", Align::Left),
            ("REASON", Align::Elastic),
        ]);
        for media in &self.undelivered {
            table.row([
                media.media.to_string(),
                media.name.clone(),
                media.state.to_string(),
                media.reason.clone().unwrap_or_default(),
            ]);
        }
        for line in table.lines(terminal.columns()) {
            terminal.result(&line)?;
        }
        Ok(())
    }

    /// What the shell is told.
    pub(crate) fn outcome(&self) -> Result<(), Failure> {
        let left = self.undelivered.len() as u64;
        if self.interrupted {
            return Err(Failure::interrupted(if left == 0 {
                "stopped".to_owned()
            } else {
                format!(
                    "stopped; {} in the queue, `c2c upload` goes on with {}",
                    format::count(left, "file stays", "files stay"),
                    if left == 1 { "it" } else { "them" }
                )
            }));
        }
        if left > 0 {
            return Err(Failure::new(
                Exit::Undelivered,
                format!(
                    "{} not delivered",
                    format::count(left, "file was", "files were")
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(undelivered: u32, interrupted: bool) -> Summary {
        let rest = (0..undelivered).map(|n| Undelivered {
            media: MediaId(i64::from(n)),
            name: format!("{n}.mov"),
            state: MediaState::Parked,
            reason: None,
        });
        Summary {
            event: "summary",
            delivered: 2,
            undelivered: rest.collect(),
            bytes: 1,
            seconds: 1.0,
            interrupted,
        }
    }

    #[test]
    fn a_list_names_files() {
        let names = |text: &[u8]| {
            let text = text.to_vec();
            List { text }.paths().collect::<Vec<_>>()
        };
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            names(b"/a b\n\nc\r\n /d"),
            paths(&["/a b", "c", " /d"]),
            "lines"
        );
        assert_eq!(names(b"/a\nb\0c\r\0"), paths(&["/a\nb", "c\r"]), "NUL");
        assert!(names(b"\n").is_empty());
    }

    #[test]
    fn the_outcome_tells_the_shell_the_truth() {
        assert!(summary(0, false).outcome().is_ok());
        let rest = summary(1, false).outcome().unwrap_err();
        assert_eq!(
            (rest.exit(), rest.story().as_str()),
            (Exit::Undelivered, "1 file was not delivered")
        );
        let stopped = summary(2, true).outcome().unwrap_err();
        assert_eq!(stopped.exit(), Exit::Interrupted);
        assert!(
            stopped
                .story()
                .contains("2 files stay in the queue, `c2c upload` goes on with them")
        );
        assert_eq!(
            summary(0, true).outcome().unwrap_err().exit(),
            Exit::Interrupted
        );
    }
}
