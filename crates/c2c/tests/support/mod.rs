//! What the whole-product tests share: a place for one unit, the program as a process, and the two sets of books (the
//! queue on disk, the log of the service) that every test holds against each other.
//!
//! Invariants:
//! * only processes that a test started are ended, by their id, and none outlives its test;
//! * the queue of a dead process is read from a copy, so that looking repairs nothing.

#![allow(dead_code, reason = "every test program uses the part that it needs")]

pub(crate) mod books;
pub(crate) mod ledger;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use c2c_simulator::{Builder, Simulator};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Chunks in flight at once in every run: the most that a kill may cost.
pub(crate) const TRANSFERS: usize = 4;
/// Chunks without an answer at most: as many as send may wait for theirs.
pub(crate) const IN_FLIGHT: usize = 2 * TRANSFERS;

/// A run that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for what must happen: a hang is a failure with a name.
pub(crate) async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

/// A service for tests: approves codes by itself, lets clients poll as they like, and cuts files into small chunks.
pub(crate) fn service(chunk: u64) -> Builder {
    Simulator::builder()
        .auto_approve(true)
        .poll_interval(Duration::ZERO)
        .default_chunk_size(chunk)
}

/// A place for one unit: its state directory, its media, and how it finds the service.
pub(crate) struct Place {
    root: PathBuf,
    env: Vec<(String, String)>,
    _own: Option<tempfile::TempDir>,
}

impl Place {
    /// A temporary place, removed at the end.
    pub(crate) fn at(simulator: &Simulator) -> Place {
        let own = tempfile::tempdir().unwrap();
        let mut place = Place::within(own.path(), simulator);
        place._own = Some(own);
        place
    }

    /// A place in a directory that belongs to somebody else.
    pub(crate) fn within(root: &Path, simulator: &Simulator) -> Place {
        std::fs::create_dir_all(root.join("media")).unwrap();
        Place {
            root: root.to_owned(),
            env: vec![
                (
                    "C2C_STATE_DIR".into(),
                    root.join("state").display().to_string(),
                ),
                ("C2C_API_URL".into(), simulator.api_url()),
                (
                    "C2C_CA_FILE".into(),
                    simulator.ca_file().display().to_string(),
                ),
                ("C2C_CLIENT_SECRET".into(), simulator.client_secret()),
                ("C2C_TRANSFERS".into(), TRANSFERS.to_string()),
                ("C2C_RECEIPT_SHA256".into(), "on".into()),
            ],
            _own: None,
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(crate) fn media(&self) -> PathBuf {
        self.root.join("media")
    }

    /// Sets a variable for every run from now on.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
    }

    /// Makes a file with bytes that no other file has, on disk when this returns.
    pub(crate) fn file(&self, name: &str, size: usize) {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut state = seed | 1;
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(size);
        let path = self.media().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        std::fs::File::open(self.media())
            .unwrap()
            .sync_all()
            .unwrap();
    }

    /// SHA-256 of a media file as it is here.
    pub(crate) fn sha256(&self, name: &str) -> String {
        sha256(&self.media().join(name))
    }

    fn command(&self, args: &[&str], more: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_c2c"));
        command
            .args(args)
            .env_clear()
            .env("HOME", &self.root)
            .env("LANG", "C.UTF-8")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(more.iter().copied())
            .current_dir(self.media())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program with `--json` to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, &[]).await
    }

    /// [`Place::run`] with further variables.
    pub(crate) async fn run_with(&self, args: &[&str], more: &[(&str, &str)]) -> Ended {
        self.start_with(args, more).end().await
    }

    /// Starts the program with `--json`.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, &[])
    }

    fn start_with(&self, args: &[&str], more: &[(&str, &str)]) -> Running {
        let mut args = args.to_vec();
        args.push("--json");
        Running::of(self.command(&args, more).spawn().unwrap(), args.join(" "))
    }
}

/// SHA-256 of a file, hexadecimal.
pub(crate) fn sha256(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).unwrap()))
}

/// A process that is not known to be over. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    what: String,
    out: Arc<Mutex<Vec<String>>>,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    hung: Arc<AtomicBool>,
    over: Option<mpsc::Sender<()>>,
}

impl Running {
    fn of(mut child: Child, what: String) -> Running {
        let out: Arc<Mutex<Vec<String>>> = Arc::default();
        let err: Arc<Mutex<String>> = Arc::default();
        let (lines, text) = (out.clone(), err.clone());
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let readers = vec![
            std::thread::spawn(move || {
                // A line that the end cut off was never said.
                let mut stdout = BufReader::new(stdout);
                let mut line = String::new();
                while stdout.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                    lines.lock().unwrap().push(std::mem::take(&mut line));
                }
            }),
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stderr.read_to_end(&mut bytes).unwrap();
                *text.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
            }),
        ];
        let hung = Arc::new(AtomicBool::new(false));
        let (over, done) = mpsc::channel();
        let (pid, late) = (pid_of(&child), hung.clone());
        std::thread::spawn(move || {
            if done.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.store(true, Ordering::SeqCst);
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Running {
            child,
            what,
            out,
            err,
            readers,
            hung,
            over: Some(over),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).unwrap();
    }

    /// What it has told on stdout so far, as JSON.
    pub(crate) fn told(&self) -> Vec<Value> {
        parse(&self.out.lock().unwrap())
    }

    /// Waits for the end without asking for it.
    pub(crate) async fn end(self) -> Ended {
        tokio::task::spawn_blocking(move || self.finish())
            .await
            .unwrap()
    }

    fn finish(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        self.over.take();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let ended = Ended {
            what: self.what.clone(),
            status,
            out: std::mem::take(&mut *self.out.lock().unwrap()),
            err: std::mem::take(&mut *self.err.lock().unwrap()),
        };
        assert!(
            !self.hung.load(Ordering::SeqCst),
            "it hung and had to be killed: {ended:#?}"
        );
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Over already in the usual case; then these do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

fn parse(lines: &[String]) -> Vec<Value> {
    let parse = |line: &String| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
    };
    lines.iter().map(parse).collect()
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) what: String,
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<String>,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ended {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    pub(crate) fn told(&self) -> Vec<Value> {
        parse(&self.out)
    }

    /// The one document of commands that print one, whole or in lines.
    pub(crate) fn document(&self) -> Value {
        serde_json::from_str(&self.out.concat()).unwrap()
    }
}
