//! The key of the stored secrets in a real keyring: gnome-keyring on a D-Bus of its own, which nothing else is on.
//!
//! Needs dbus-daemon, dbus-send and gnome-keyring-daemon; where they are missing it says so and proves nothing.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(target_os = "linux")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Ended, Place, service};

const CHUNK: u64 = 64 << 10;
const BUS: &str = "DBUS_SESSION_BUS_ADDRESS";
const PASSWORD: &[u8] = b"of the login";
const LOGIN: &str = "/org/freedesktop/secrets/collection/login";
/// Nobody needs that long; more is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session with a bus, where nothing starts by itself.
struct Session {
    dir: tempfile::TempDir,
    bus: Child,
    address: String,
    keyring: Option<Child>,
}

impl Session {
    fn new() -> Result<Session, String> {
        for program in ["dbus-daemon", "dbus-send", "gnome-keyring-daemon"] {
            let there = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            there.map_err(|error| format!("{program}: {error}"))?;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:dir={}</listen><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
             </policy></busconfig>",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        assert!(address.starts_with("unix:"), "{address:?}");
        Ok(Session {
            dir,
            bus,
            address: address.trim().to_owned(),
            keyring: None,
        })
    }

    /// Starts the keyring, unlocked as a login does it or not at all, and waits until it is on the bus.
    fn start_keyring(&mut self, unlock: bool) {
        let mut command = Command::new("gnome-keyring-daemon");
        command
            .args(["--foreground", "--components=secrets"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env(BUS, &self.address)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(self.dir.path().join("keyring.log")).unwrap());
        if unlock {
            command.arg("--unlock");
        }
        let mut keyring = command.spawn().unwrap();
        let mut stdin = keyring.stdin.take().unwrap();
        if unlock {
            stdin.write_all(PASSWORD).unwrap();
        }
        drop(stdin);
        self.keyring = Some(keyring);
        let began = Instant::now();
        while !self.ask("NameHasOwner", "string:org.freedesktop.secrets") {
            assert!(
                began.elapsed() < PATIENCE,
                "the keyring does not come: {}",
                std::fs::read_to_string(self.dir.path().join("keyring.log")).unwrap()
            );
            std::thread::yield_now();
        }
    }

    fn stop_keyring(&mut self) {
        if let Some(mut keyring) = self.keyring.take() {
            keyring.kill().unwrap();
            keyring.wait().unwrap();
        }
        let began = Instant::now();
        while self.ask("NameHasOwner", "string:org.freedesktop.secrets") {
            assert!(began.elapsed() < PATIENCE, "the keyring does not go");
            std::thread::yield_now();
        }
    }

    fn ask(&self, method: &str, argument: &str) -> bool {
        let method = format!("org.freedesktop.DBus.{method}");
        let said = self.send(&[
            "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            &method,
            argument,
        ]);
        said.contains("true")
    }

    /// What the screen lock of a desktop may do.
    fn lock(&self) {
        let said = self.send(&[
            "--dest=org.freedesktop.secrets",
            "/org/freedesktop/secrets",
            "org.freedesktop.Secret.Service.Lock",
            &format!("array:objpath:{LOGIN}"),
        ]);
        assert!(said.contains(LOGIN), "{said}");
    }

    fn send(&self, args: &[&str]) -> String {
        let output = Command::new("dbus-send")
            .args(["--session", "--print-reply"])
            .args(args)
            .env(BUS, &self.address)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for process in self.keyring.iter_mut().chain([&mut self.bus]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn key_files(place: &Place) -> (bool, bool) {
    let there = |name: &str| place.state().join(name).exists();
    (there("key"), there("key.keyring"))
}

#[track_caller]
fn refused(ended: Ended, words: &[&str]) {
    let ended = ended.exits(4);
    for words in words {
        assert!(ended.err.contains(words), "{words} in {ended:#?}");
    }
}

/// Every file below `dir`, as bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}

/// From the first start at a desktop, over days with a locked or absent keyring, to a unit without any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_lives_in_the_keyring_until_a_file_is_asked_for() {
    let mut session = match Session::new() {
        Ok(session) => session,
        Err(words) => return println!("skipped: {words}"),
    };
    session.start_keyring(true);
    let simulator = service(CHUNK).start().await.unwrap();
    let mut place = Place::at(&simulator);
    place.set(BUS, session.address.clone());
    place.run(&["pair"]).await.exits(0);
    assert_eq!(key_files(&place), (false, true));

    // Another process finds it there.
    place.file("one.mov", 100_000);
    place.run(&["upload", "one.mov"]).await.exits(0);
    place.file("two.mov", 100_000);
    place.file("three.mov", 100_000);

    session.lock();
    let locked = place.run(&["upload", "two.mov"]).await;
    refused(locked, &["is locked", "key.keyring", "pair again"]);
    let absent = place.run_with(&["upload", "two.mov"], &[(BUS, "")]).await;
    refused(absent, &["DBUS_SESSION_BUS_ADDRESS is not set"]);
    let stale = [(BUS, "unix:path=/nonexistent/bus")];
    let stale = place.run_with(&["upload", "two.mov"], &stale).await;
    refused(stale, &["Failed to connect"]);
    session.stop_keyring();
    let gone = place.run(&["upload", "two.mov"]).await;
    refused(gone, &["no Secret Service answers"]);
    assert_eq!(key_files(&place), (false, true));
    // Looking needs no key.
    place.run(&["status"]).await.exits(0);

    // After the next login it is there again.
    session.start_keyring(true);
    place.run(&["upload", "two.mov"]).await.exits(0);

    let moved = ["add", "three.mov", "--key-store", "file"];
    place.run(&moved).await.exits(0);
    assert_eq!(key_files(&place), (true, false));
    let key = std::fs::read(place.state().join("key")).unwrap();
    assert_eq!(key.len(), 32);
    session.stop_keyring();
    place.run_with(&["upload"], &[(BUS, "")]).await.exits(0);
    for name in ["one.mov", "two.mov", "three.mov"] {
        let delivered = simulator.admin().delivered();
        let count = delivered.iter().filter(|media| media.name == name).count();
        assert_eq!(count, 1, "{name}");
    }
    assert_eq!(simulator.admin().stats().tokens_issued, 1, "paired once");
    for (path, bytes) in contents(session.dir.path()) {
        let found = bytes.windows(32).any(|window| window == key);
        assert!(!found, "the key is in the clear in {}", path.display());
    }
}

/// The first start of a unit without a person: whatever the keyring does, the unit starts, and with a file from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_does_not_wait_for_a_keyring() {
    let mut session = match Session::new() {
        Ok(session) => session,
        Err(words) => return println!("skipped: {words}"),
    };
    let simulator = service(CHUNK).start().await.unwrap();
    for keyring in [false, true] {
        if keyring {
            // Made, and locked since: with a default collection that nobody can open.
            session.start_keyring(true);
            session.lock();
        }
        let mut place = Place::at(&simulator);
        place.set(BUS, session.address.clone());
        let wanted = place.run(&["pair", "--key-store", "keyring"]).await;
        refused(wanted, &["cannot keep the key", "--key-store file"]);
        assert_eq!(key_files(&place), (false, false));
        place.run(&["pair"]).await.exits(0);
        assert_eq!(key_files(&place), (true, false));
        place.file("clip.mov", 100_000);
        place.run(&["upload", "clip.mov"]).await.exits(0);
        // Whoever has a key file keeps it, when a keyring comes.
        let wished = ["status", "--key-store", "keyring"];
        place.run(&wished).await.exits(0);
        assert_eq!(key_files(&place), (true, false));
    }
}
