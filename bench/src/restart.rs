//! What a client sends again after it was killed in the middle of a large file.
//!
//! Invariants: the client is killed by a signal that it cannot catch, as soon as the sink has seen half of the file; the second run
//! is the same command with what the first left behind; what counts as sent again is what the sink received twice, not what a
//! client says.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Failure;
use crate::measure::{Cost, Task};
use crate::sink::{Counts, Observer};
use crate::table::{Summary, table};

/// How long the sink may take to notice that a client is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// One client, killed and started again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Restarted {
    pub(crate) work: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) title: String,
    pub(crate) round: usize,
    /// Bytes of the file.
    pub(crate) wanted: u64,
    /// What had arrived when the first run was dead.
    pub(crate) killed: Counts,
    pub(crate) first: Cost,
    /// What had arrived when the second had ended.
    pub(crate) ended: Counts,
    pub(crate) second: Cost,
    pub(crate) trouble: Option<String>,
}

impl Restarted {
    /// Bytes of bodies that were under way when the client was killed.
    fn under_way(&self) -> u64 {
        self.killed.bytes.saturating_sub(self.killed.bytes_whole)
    }

    fn resent(&self) -> u64 {
        self.ended.bytes.saturating_sub(self.wanted)
    }
}

/// Kills `task` once half of `wanted` bytes have arrived, and runs it again to its end.
pub(crate) fn restart(
    task: &Task,
    sink: &mut Observer,
    wanted: u64,
) -> Result<(Counts, Cost, Counts, Cost, Option<String>), Failure> {
    let (first, words) = task.run_until(|| Ok(sink.counts()?.bytes >= wanted / 2))?;
    if !first.cut_off {
        let trouble = format!("it ended before it could be killed: {words}");
        let now = sink.counts()?;
        return Ok((now.clone(), first, now, first, Some(trouble)));
    }
    let since = Instant::now();
    let killed = loop {
        let now = sink.counts()?;
        if now.open == 0 || since.elapsed() > PATIENCE {
            break now;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (second, words) = task.run()?;
    let ended = sink.counts()?;
    let complete = second.ended_well && ended.bytes_whole >= wanted;
    Ok((killed, first, ended, second, (!complete).then_some(words)))
}

/// The table of what was killed.
pub(crate) fn tell(all: &[Restarted], missing: &[(String, String)]) -> String {
    let mut peers: Vec<&Restarted> = Vec::new();
    for one in all {
        if !peers.iter().any(|known| known.peer == one.peer) {
            peers.push(one);
        }
    }
    let mut rows: Vec<Vec<String>> = peers
        .iter()
        .map(|peer| {
            let good: Vec<&Restarted> = all
                .iter()
                .filter(|one| one.peer == peer.peer && one.trouble.is_none())
                .collect();
            let column = |value: &dyn Fn(&Restarted) -> u64, decimals: usize| {
                let values: Vec<f64> = good.iter().map(|one| mib(value(one))).collect();
                Summary::of(&values)
                    .map_or_else(|| "failed".to_owned(), |summary| summary.text(decimals))
            };
            let walls: Vec<f64> = good.iter().map(|one| one.second.wall).collect();
            vec![
                peer.title.clone(),
                column(&|one| one.killed.bytes, 0),
                column(&Restarted::under_way, 1),
                column(&Restarted::resent, 1),
                Summary::of(&walls).map_or_else(|| "failed".to_owned(), |wall| wall.text(1)),
            ]
        })
        .collect();
    for (title, why) in missing {
        rows.push(vec![title.clone(), why.clone()]);
    }
    let head = [
        "client",
        "received before the kill, MiB",
        "of it in unfinished bodies, MiB",
        "sent again, MiB",
        "second run, s",
    ];
    table(&head, &rows)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_again_is_what_came_beyond_the_file() {
        let mib = 1 << 20;
        let counts = |bytes, bytes_whole| Counts {
            bytes,
            bytes_whole,
            ..Counts::default()
        };
        let one = Restarted {
            work: "kill",
            peer: "x",
            title: "X".into(),
            round: 0,
            wanted: 100 * mib,
            killed: counts(52 * mib, 45 * mib),
            first: Cost::default(),
            ended: counts(107 * mib, 100 * mib),
            second: Cost {
                wall: 2.0,
                ..Cost::default()
            },
            trouble: None,
        };
        let failed = Restarted {
            peer: "y",
            title: "Y".into(),
            trouble: Some("no".into()),
            ..one.clone()
        };
        let text = tell(&[one, failed], &[("Z".into(), "not installed".into())]);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| X | 52 (52–52) | 7.0 (7.0–7.0) | 7.0 (7.0–7.0) | 2.0 (2.0–2.0) |",
                "| Y | failed | failed | failed | failed |",
                "| Z | not installed |  |  |  |",
            ]
        );
    }
}
