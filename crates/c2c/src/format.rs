//! Numbers, times, names and tables as people read them.
//!
//! Invariants:
//! * sizes are decimal, as on the boxes of cards and drives (1 MB is 1,000,000 bytes);
//! * nothing that came from a file name or a server can move the cursor or colour the terminal.

use std::fmt::Write as _;
use std::time::Duration;

use c2c_uplink::EtaRange;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A size with three significant digits, e.g. `1.23 GB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_000.0;
    let mut unit = 0;
    // 999.5 and more would be printed as "1000": it belongs to the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A speed in bytes per second, e.g. `12.3 MB/s`.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    let whole = if bytes_per_second.is_finite() {
        bytes_per_second.max(0.0)
    } else {
        0.0
    };
    format!("{}/s", bytes(whole as u64))
}

/// A length of time in at most two units, e.g. `1m 05s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// How long something took: tenths while they matter, e.g. `1.7s`.
pub(crate) fn elapsed(time: Duration) -> String {
    // 9.95 and more would be printed as "10.0s".
    if time.as_secs_f64() < 9.95 {
        format!("{:.1}s", time.as_secs_f64())
    } else {
        duration(time)
    }
}

/// The time left, or a dash while nobody can know.
pub(crate) fn eta(left: Option<Duration>) -> String {
    left.map_or_else(|| "–".to_owned(), duration)
}

/// The time left as a range in one unit, e.g. `3–5 min left`; a dash while nobody can know.
pub(crate) fn eta_range(range: Option<EtaRange>) -> String {
    let Some(EtaRange { soonest, latest }) = range else {
        return "– left".to_owned();
    };
    // Seconds are guessed in steps of five, and no unit gets more than two digits that matter.
    let (unit, length) = match latest {
        0..=90 => ("s", if latest <= 10 { 1 } else { 5 }),
        91..=5_400 => ("min", 60),
        5_401..=172_800 => ("h", 3_600),
        _ => ("days", 86_400),
    };
    let shown = if unit == "s" { 1 } else { length };
    let from = soonest / length * (length / shown);
    let to = latest.div_ceil(length) * (length / shown);
    if from == to {
        format!("{to} {unit} left")
    } else if from == 0 {
        format!("up to {to} {unit} left")
    } else {
        format!("{from}–{to} {unit} left")
    }
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A wall clock reading in the time zone of this machine, e.g. `2026-11-22 17:03:09`.
pub(crate) fn moment(unix_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(unix_ms) {
        Ok(at) => at
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// Text from outside without anything that controls a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            // Bidirectional overrides would let a name look like another one.
            let steers =
                matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            if c.is_control() || steers {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Columns that `text` takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// At most `columns` wide; what is too long loses its middle, because names differ at both ends.
pub(crate) fn shorten(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    let (head_room, tail_room) = ((columns - 1).div_ceil(2), (columns - 1) / 2);
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let mut taken = Vec::new();
        for c in chars {
            used += c.width().unwrap_or(0);
            if used > room {
                break;
            }
            taken.push(c);
        }
        taken
    };
    let head: String = take(&mut text.chars(), head_room).into_iter().collect();
    let tail: String = take(&mut text.chars().rev(), tail_room)
        .into_iter()
        .rev()
        .collect();
    format!("{head}…{tail}")
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
    /// Words that are shortened first when the table is too wide.
    Elastic,
}

/// A table of text, as wide as its content or the terminal.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these headings.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// The lines of the table; at most `limit` columns wide where the elastic columns allow it.
    pub(crate) fn lines(&self, limit: Option<usize>) -> Vec<String> {
        const GAP: usize = 2;
        const NARROWEST: usize = 8;
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|(heading, _)| width(heading))
            .collect();
        for row in &self.rows {
            for (index, cell) in row.iter().enumerate() {
                widths[index] = widths[index].max(width(cell));
            }
        }
        if let Some(limit) = limit {
            let mut over = (widths.iter().sum::<usize>() + GAP * (widths.len().max(1) - 1))
                .saturating_sub(limit);
            while over > 0 {
                let widest = (0..widths.len())
                    .filter(|&index| {
                        self.columns[index].1 == Align::Elastic && widths[index] > NARROWEST
                    })
                    .max_by_key(|&index| widths[index]);
                let Some(widest) = widest else { break };
                widths[widest] -= 1;
                over -= 1;
            }
        }
        let headings: Vec<String> = self
            .columns
            .iter()
            .map(|(heading, _)| (*heading).to_owned())
            .collect();
        std::iter::once(&headings)
            .chain(&self.rows)
            .map(|row| {
                let mut line = String::new();
                for (index, cell) in row.iter().enumerate() {
                    let cell = shorten(cell, widths[index]);
                    let fill = widths[index] - width(&cell);
                    if index > 0 {
                        line.push_str(&" ".repeat(GAP));
                    }
                    match self.columns[index].1 {
                        Align::Right => {
                            let _ = write!(line, "{}{cell}", " ".repeat(fill));
                        }
                        Align::Left | Align::Elastic => {
                            let _ = write!(line, "{cell}{}", " ".repeat(fill));
                        }
                    }
                }
                line.truncate(line.trim_end().len());
                line
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_with_three_digits() {
        for (number, words) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_999, "10.0 kB"),
            (99_949, "99.9 kB"),
            (99_999, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (21_136_250, "21.1 MB"),
            (5_497_558_138_880, "5.50 TB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), words);
        }
        assert_eq!(rate(12_345_678.9), "12.3 MB/s");
        assert_eq!(rate(f64::NAN), "0 B/s");
        assert_eq!(rate(-1.0), "0 B/s");
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, words) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 00s"),
            (65, "1m 05s"),
            (3_600, "1h 00m"),
            (86_399, "23h 59m"),
            (90_000, "1d 01h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), words);
        }
        assert_eq!(eta(None), "–");
        for (millis, words) in [
            (0, "0.0s"),
            (1_740, "1.7s"),
            (9_949, "9.9s"),
            (10_400, "10s"),
            (65_000, "1m 05s"),
        ] {
            assert_eq!(elapsed(Duration::from_millis(millis)), words);
        }
    }

    #[test]
    fn the_time_left_is_a_range_in_one_unit() {
        for (soonest, latest, words) in [
            (0, 0, "0 s left"),
            (0, 3, "up to 3 s left"),
            (4, 7, "4–7 s left"),
            (22, 34, "20–35 s left"),
            (80, 90, "80–90 s left"),
            (80, 91, "1–2 min left"),
            (30, 100, "up to 2 min left"),
            (180, 300, "3–5 min left"),
            (180, 180, "3 min left"),
            (3_500, 5_401, "up to 2 h left"),
            (7_300, 10_000, "2–3 h left"),
            (90_000, 300_000, "1–4 days left"),
        ] {
            let range = EtaRange { soonest, latest };
            assert_eq!(eta_range(Some(range)), words);
        }
        assert_eq!(eta_range(None), "– left");
        let far = EtaRange {
            soonest: u64::MAX,
            latest: u64::MAX,
        };
        assert!(eta_range(Some(far)).ends_with(" days left"));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let text = printable("a\x1b[2Jb\r\u{202e}c\u{7f}");
        assert!(!text.chars().any(char::is_control));
        assert_eq!(text, "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}");
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("A001C003_0117_R2.mov", 9), "A001….mov");
        assert_eq!(shorten("short", 9), "short");
        for room in 0..12 {
            assert!(width(&shorten("第1巻第2巻第3巻第4巻", room)) <= room);
        }
    }

    #[test]
    fn a_table_fits_and_aligns() {
        let mut table = Table::new(&[
            ("ID", Align::Right),
            ("NAME", Align::Elastic),
            ("STATE", Align::Left),
        ]);
        table.row(["7".into(), "A001C001.mov".into(), "delivered".into()]);
        table.row([
            "120".into(),
            "a-very-long-name-that-does-not-fit.mov".into(),
            "queued".into(),
        ]);
        let free = table.lines(None);
        assert_eq!(
            free[0],
            " ID  NAME                                    STATE"
        );
        assert_eq!(
            free[1],
            "  7  A001C001.mov                            delivered"
        );
        for line in table.lines(Some(40)) {
            assert!(width(&line) <= 40, "{line}");
        }
        // Nothing to shorten any more: the table stays readable rather than fitting.
        assert!(table.lines(Some(5))[2].contains("queued"));
    }
}
