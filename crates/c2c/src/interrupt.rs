//! Ctrl-C: the first one asks to stop, the second one stops.
//!
//! Invariants:
//! * after the first request every command ends by itself, and the queue keeps what it has;
//! * after the second one the process ends at once, yet no temporary directory stays behind.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Exit;
use crate::terminal::Terminal;

/// Directories to remove when the process ends without unwinding.
static DOOMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Knows whether the program was asked to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    asked: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens for Ctrl-C, and on Unix for SIGTERM and SIGHUP, from now on.
    ///
    /// # Errors
    /// The system does not let this process listen.
    pub(crate) fn listen(terminal: Terminal) -> std::io::Result<Interrupt> {
        let (ask, asked) = watch::channel(false);
        let mut signals = Signals::new()?;
        tokio::spawn(async move {
            signals.next().await;
            let _ = ask.send(true);
            terminal.say("Stopping. Press Ctrl-C again to stop at once.");
            signals.next().await;
            clean_up();
            std::process::exit(Exit::Interrupted as i32);
        });
        Ok(Interrupt { asked })
    }

    /// Whether the program was asked to stop.
    pub(crate) fn asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Ends when the program is asked to stop.
    pub(crate) async fn wait(&self) {
        let mut asked = self.asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            // Nobody listens any more, so nobody can ask.
            std::future::pending::<()>().await;
        }
    }
}

struct Signals {
    #[cfg(unix)]
    streams: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let kinds = [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ];
            let [interrupt, terminate, hangup] = kinds.map(signal);
            Ok(Signals {
                streams: [interrupt?, terminate?, hangup?],
            })
        }
        #[cfg(not(unix))]
        Ok(Signals {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        {
            let [interrupt, terminate, hangup] = &mut self.streams;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn clean_up() {
    let doomed = std::mem::take(&mut *DOOMED.lock().unwrap_or_else(PoisonError::into_inner));
    for path in doomed {
        // A worker may still be writing into it: what it adds in between is taken by the next round.
        for _ in 0..5 {
            if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                break;
            }
        }
    }
}

/// A temporary directory that goes away however the program ends, short of a kill.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// A new, empty directory that only this user can read.
    ///
    /// # Errors
    /// The system's directory for temporary files cannot be used.
    pub(crate) fn new() -> std::io::Result<Scratch> {
        let dir = tempfile::Builder::new().prefix("c2c-").tempdir()?;
        let path = dir.path().to_owned();
        DOOMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path.clone());
        Ok(Scratch {
            dir: Some(dir),
            path,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Removed first, forgotten second: a second Ctrl-C in between finds it in the list.
        drop(self.dir.take());
        DOOMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|path| *path != self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_is_removed_with_what_is_in_it() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::fs::write(path.join("a/b/c"), b"x").unwrap();
        assert!(DOOMED.lock().unwrap().contains(&path));
        drop(scratch);
        assert!(!path.exists());
        assert!(!DOOMED.lock().unwrap().contains(&path));
    }
}
