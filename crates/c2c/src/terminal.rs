//! The two streams of the program: results on stdout, everything else on stderr.
//!
//! Invariants:
//! * stdout carries results only: text for people, or JSON and nothing but JSON with `--json`;
//! * progress bars, messages and log lines share stderr without writing over each other.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use crate::code::Canvas;

/// Where a command writes to.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    json: bool,
    bars: MultiProgress,
    stderr_is_terminal: bool,
}

impl Terminal {
    /// The streams of this process.
    pub(crate) fn new(json: bool) -> Terminal {
        let stderr_is_terminal = io::stderr().is_terminal();
        let target = if stderr_is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Terminal {
            json,
            bars: MultiProgress::with_draw_target(target),
            stderr_is_terminal,
        }
    }

    /// Results are wanted as JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// A person looks at stderr.
    pub(crate) fn interactive(&self) -> bool {
        self.stderr_is_terminal
    }

    /// The bars that live at the bottom of stderr; hidden where stderr is no terminal.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// A line of text for the result, unless the result is JSON.
    pub(crate) fn result(&self, line: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        self.aside(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")
        })
    }

    /// A whole JSON document for the result, unless the result is text.
    pub(crate) fn document<T: Serialize>(&self, document: &T) -> io::Result<()> {
        self.emit(|out| {
            serde_json::to_writer_pretty(&mut *out, document)?;
            writeln!(out)
        })
    }

    /// A JSON document that is the result whatever form was asked for.
    pub(crate) fn always_document<T: Serialize>(&self, document: &T) -> io::Result<()> {
        let text = serde_json::to_string_pretty(document)?;
        if self.json {
            return self.document(document);
        }
        text.lines().try_for_each(|line| self.result(line))
    }

    /// One line of JSON for something that happened, unless the result is text.
    pub(crate) fn event<T: Serialize>(&self, event: &T) -> io::Result<()> {
        self.emit(|out| {
            serde_json::to_writer(&mut *out, event)?;
            writeln!(out)
        })
    }

    fn emit(
        &self,
        write: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        self.aside(|| {
            let mut out = io::stdout().lock();
            write(&mut out)?;
            // Who reads the lines through a pipe acts on them now.
            out.flush()
        })
    }

    /// A message on stderr. That nobody can read it is no reason to stop working.
    pub(crate) fn say(&self, line: &str) {
        let _ = self.aside(|| writeln!(io::stderr().lock(), "{line}"));
    }

    /// Runs `write` while the bars are out of the way.
    fn aside<R>(&self, write: impl FnOnce() -> R) -> R {
        if self.stderr_is_terminal {
            self.bars.suspend(write)
        } else {
            write()
        }
    }

    /// What can be drawn on stderr.
    pub(crate) fn canvas(&self) -> Canvas {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(std::env::var_os)
            .find(|value| !value.is_empty())
            .map(|value| value.to_string_lossy().to_ascii_lowercase());
        let unicode = cfg!(not(unix))
            || locale.is_some_and(|name| name.contains("utf-8") || name.contains("utf8"));
        Canvas {
            columns: columns_of_stderr().unwrap_or(80),
            unicode,
            color: self.stderr_is_terminal
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Columns for a table on stdout; `None` when it goes to a file or a pipe.
    pub(crate) fn columns(&self) -> Option<usize> {
        io::stdout().is_terminal().then(columns_of_stdout).flatten()
    }
}

#[cfg(unix)]
fn columns_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    rustix::termios::tcgetwinsize(stream)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|&columns| columns > 0)
}

fn columns_of_stderr() -> Option<usize> {
    #[cfg(unix)]
    return columns_of(io::stderr());
    #[cfg(not(unix))]
    None
}

fn columns_of_stdout() -> Option<usize> {
    #[cfg(unix)]
    return columns_of(io::stdout());
    #[cfg(not(unix))]
    None
}

/// Writes log lines to stderr, above the bars.
impl<'a> MakeWriter<'a> for Terminal {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine {
            terminal: self,
            line: Vec::new(),
        }
    }
}

/// One log line, written whole when it is complete.
#[derive(Debug)]
pub(crate) struct LogLine<'a> {
    terminal: &'a Terminal,
    line: Vec<u8>,
}

impl Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine<'_> {
    fn drop(&mut self) {
        let _ = self
            .terminal
            .aside(|| io::stderr().lock().write_all(&self.line));
    }
}
