//! The program as people and scripts run it, against a Frame.io on this machine: exit codes, what is on stdout, and that it goes on
//! after every kind of end.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator, Target};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A place of its own for everything the program may touch.
struct Place {
    dir: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        std::fs::create_dir(dir.path().join("media")).unwrap();
        Place {
            dir,
            env: Vec::new(),
        }
    }

    fn at(simulator: &Simulator) -> Place {
        let mut place = Place::new();
        place.env = vec![
            ("C2C_API_URL", simulator.api_url()),
            ("C2C_CA_FILE", simulator.ca_file().display().to_string()),
            ("C2C_CLIENT_SECRET", simulator.client_secret()),
        ];
        place
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("home/.local/state/c2c")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_c2c"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path().join("home"))
            .env("TMPDIR", self.dir.path().join("tmp"))
            .env("LANG", "C.UTF-8")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path().join("media"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    async fn run(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || {
            let child = command.spawn().unwrap();
            let _watchdog = Watchdog::over(&child);
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        Ended {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    async fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        tokio::task::spawn_blocking(move || Running::of(command.spawn().unwrap()))
            .await
            .unwrap()
    }

    fn file(&self, name: &str, size: usize) -> PathBuf {
        let path = self.dir.path().join("media").join(name);
        let seed = name.bytes().fold(7u8, u8::wrapping_add);
        let bytes: Vec<u8> = (0..size)
            .map(|n| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ seed)
            .collect();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn left_in_tmp(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.dir.path().join("tmp"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

/// A run that is not over.
struct Running {
    child: Child,
    _watchdog: Watchdog,
    out: BufReader<ChildStdout>,
    seen: String,
}

impl Running {
    fn of(mut child: Child) -> Running {
        let out = BufReader::new(child.stdout.take().unwrap());
        let watchdog = Watchdog::over(&child);
        Running {
            child,
            _watchdog: watchdog,
            out,
            seen: String::new(),
        }
    }

    /// Reads JSON lines until one is this event.
    async fn until(self, event: &'static str) -> (Running, Value) {
        self.until_line(move |line| {
            let value: Value = serde_json::from_str(line).ok()?;
            (value["event"] == event).then_some(value)
        })
        .await
    }

    async fn until_line<T: Send + 'static>(
        mut self,
        wanted: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> (Running, T) {
        let read = tokio::task::spawn_blocking(move || {
            loop {
                let mut line = String::new();
                if self.out.read_line(&mut line).unwrap() == 0 {
                    let ended = self.finish();
                    panic!("ended without what was waited for: {ended:?}");
                }
                self.seen.push_str(&line);
                if let Some(found) = wanted(&line) {
                    return (self, found);
                }
            }
        });
        read.await.unwrap()
    }

    fn interrupt(&self) {
        kill_process(pid_of(&self.child), Signal::INT).unwrap();
    }

    // The watchdog goes with `self`, when the process is known to be over.
    fn finish(mut self) -> Ended {
        self.out.read_to_string(&mut self.seen).unwrap();
        let mut err = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        Ended {
            code: self.child.wait().unwrap().code(),
            out: self.seen,
            err,
        }
    }

    async fn end(self) -> Ended {
        tokio::task::spawn_blocking(move || self.finish())
            .await
            .unwrap()
    }
}

/// Ends a run that hangs, so that its test fails instead of hanging too.
struct Watchdog {
    _done: mpsc::Sender<()>,
}

impl Watchdog {
    fn over(child: &Child) -> Watchdog {
        let pid = pid_of(child);
        let (done, over) = mpsc::channel();
        std::thread::spawn(move || {
            if over.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Watchdog { _done: done }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

impl Ended {
    #[track_caller]
    fn exits(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    fn document(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("not one JSON document ({error}): {self:#?}"))
    }

    /// Every line of stdout, each of which must be JSON.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        let parse = |line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("not JSON ({error}): {line}\n{self:#?}"))
        };
        self.out.lines().map(parse).collect()
    }

    #[track_caller]
    fn event(&self, name: &str) -> Value {
        self.events()
            .into_iter()
            .find(|value| value["event"] == name)
            .unwrap_or_else(|| panic!("no event {name}: {self:#?}"))
    }
}

async fn simulator() -> Simulator {
    Simulator::builder()
        .auto_approve(true)
        .poll_interval(Duration::from_secs(1))
        .default_chunk_size(5 << 20)
        .start()
        .await
        .unwrap()
}

fn refused_with(status: u16) -> Fault {
    Fault {
        on: Target {
            endpoint: EndpointName::CreateAsset,
            part: None,
            asset_name: None,
        },
        effect: Effect::Status {
            status,
            body: BodyKind::Detailed {
                title: "Invalid".into(),
                detail: "not this one".into(),
            },
            headers: Vec::new(),
        },
        times: None,
        after: 0,
        probability: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_queue_that_is_not_there_shows_an_empty_one_and_makes_nothing() {
    let place = Place::new();
    let status = place.run(&["status", "--json"]).await.exits(0).document();
    assert_eq!(status["paired"], false);
    assert_eq!(status["state_dir"], place.state().to_str().unwrap());
    let text = place.run(&["status"]).await.exits(0);
    assert!(
        text.out.contains("not paired; run `c2c pair`") && text.out.contains("empty"),
        "{text:?}"
    );
    assert_eq!(
        place.run(&["list", "--json"]).await.exits(0).document(),
        serde_json::json!({"media": []})
    );
    assert!(
        place
            .run(&["list"])
            .await
            .exits(0)
            .err
            .contains("The queue is empty.")
    );
    assert!(!place.state().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_are_two_and_say_what_to_do() {
    let place = Place::new();
    for (args, words) in [
        (&["upload", "--transfers", "none"][..], "from 1 to 64"),
        (&["list", "--state", "lost"], "the states are"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["pair"], "set C2C_CLIENT_SECRET"),
        (
            &["pair", "--client-secret-file", "none"],
            "cannot read the client secret from none",
        ),
        (&["status", "--log", "=="], "--log == is not a filter"),
        (
            &["add", "--resolve", "nonsense", "x", "--client-secret", "s"],
            "nonsense",
        ),
    ] {
        let ended = place.run(args).await.exits(2);
        assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
        assert!(ended.out.is_empty(), "{ended:?}");
    }
    let help = place.run(&["--help"]).await.exits(0);
    assert!(help.out.contains("130  interrupted"), "{}", help.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_added_stops_nothing_from_being_said() {
    let place = Place::new();
    place.file("a.mov", 10);
    let ended = place
        .run(&["add", "a.mov", "missing.mov", "--json"])
        .await
        .exits(1);
    assert!(
        ended.err.contains("missing.mov") && ended.err.contains("no such file"),
        "{}",
        ended.err
    );
    assert_eq!(ended.event("error")["exit_code"], 1);
    // All or nothing: the first one is not in the queue either.
    assert_eq!(
        place.run(&["list", "--json"]).await.exits(0).document()["media"],
        serde_json::json!([])
    );
    // Adding needs no secret and no service.
    place.run(&["add", "a.mov"]).await.exits(0);
    let listed = place.run(&["list"]).await.exits(0);
    assert!(
        listed.out.contains("a.mov") && listed.out.contains("queued"),
        "{}",
        listed.out
    );
}

/// More files than are in memory at once, and more than a command line may hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_files_is_added_as_one() {
    let place = Place::new();
    let names: Vec<String> = (0..2_500)
        .map(|number| format!("still-{number}.jpg"))
        .collect();
    for name in &names {
        place.file(name, 1);
    }
    let list = place.file("list", 0);
    std::fs::write(&list, names.join("\n") + "\nmissing.jpg\n").unwrap();
    let ended = place.run(&["add", "--files-from", "list"]).await.exits(1);
    assert!(ended.err.contains("missing.jpg"), "{}", ended.err);
    let status = async || place.run(&["status", "--json"]).await.exits(0).document();
    let queued = |status: &serde_json::Value| status["queue"]["states"]["queued"]["media"].clone();
    assert!(queued(&status().await).is_null(), "none of them is there");

    std::fs::write(&list, names.join("\0")).unwrap();
    let ended = place
        .run(&["add", "list", "--files-from", "list"])
        .await
        .exits(0);
    assert!(ended.out.contains("2501 files added"), "{}", ended.out);
    assert_eq!(queued(&status().await), 2_501);
    let ended = place.run(&["add", "--files-from", "list"]).await.exits(0);
    assert!(ended.out.contains("0 files added"), "{}", ended.out);
    assert!(
        ended.err.contains("2480 more files") && ended.err.lines().count() < 30,
        "{}",
        ended.err
    );
    let ended = place
        .run(&["add", "--files-from", "nowhere"])
        .await
        .exits(2);
    assert!(ended.err.contains("nowhere"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn pair_add_upload_and_look_at_it_without_a_secret_in_any_output() {
    let simulator = simulator().await;
    let mut place = Place::at(&simulator);
    place.env.push(("C2C_LOG", "trace".to_owned()));
    let mut said = String::new();

    let clip = place.file("A001C001.mov", (11 << 20) + 3);
    place.file("STILL \u{202e}\u{fc}.jpg", 70_000);
    let early = place
        .run(&["upload", "A001C001.mov", "--json"])
        .await
        .exits(3);
    assert!(early.err.contains("c2c pair"), "{}", early.err);

    let pairing = place.run(&["pair", "--json"]).await.exits(0);
    assert_eq!(
        pairing.event("code")["user_code"].as_str().unwrap().len(),
        6
    );
    assert!(pairing.event("code")["verification_uri_complete"].is_string());
    assert!(pairing.event("paired")["identity"]["project_id"].is_string());
    assert!(
        pairing.err.contains('▀'),
        "a QR code is drawn: {}",
        pairing.err
    );
    let status = place.run(&["status", "--json"]).await.exits(0).document();
    assert_eq!(status["paired"], true);
    // The clip of the attempt before the pairing is still there.
    assert_eq!(status["queue"]["states"]["queued"]["media"], 1);

    let upload = place
        .run(&[
            "upload",
            "A001C001.mov",
            "STILL \u{202e}\u{fc}.jpg",
            "--json",
        ])
        .await
        .exits(0);
    let summary = upload.event("summary");
    assert_eq!(
        (&summary["delivered"], &summary["undelivered"]),
        (&2.into(), &serde_json::json!([]))
    );
    let arrived = simulator.admin().wait_for_delivered(2).await;
    let there = arrived
        .iter()
        .find(|file| file.name == "A001C001.mov")
        .unwrap();
    assert!(std::fs::read(&there.path).unwrap() == std::fs::read(&clip).unwrap());

    let again = place.run(&["upload", "A001C001.mov"]).await.exits(0);
    assert!(again.err.contains("was delivered before"), "{}", again.err);
    assert!(again.out.contains("1 of 1 file delivered"), "{}", again.out);
    assert_eq!(simulator.admin().delivered().len(), 2);

    let listed = place.run(&["list", "--state", "delivered"]).await.exits(0);
    assert_eq!(listed.out.lines().count(), 3, "{}", listed.out);
    assert!(
        !listed.out.contains('\u{202e}'),
        "names cannot turn the text around"
    );
    let nothing = place.run(&["upload"]).await.exits(0);
    assert!(
        nothing.out.contains("Nothing to upload."),
        "{}",
        nothing.out
    );

    for ended in [&early, &pairing, &upload, &again, &listed, &nothing] {
        said.push_str(&ended.out);
        said.push_str(&ended.err);
    }
    let mut secrets = simulator.admin().issued_secrets();
    secrets.push(simulator.client_secret());
    assert!(secrets.len() > 5);
    for secret in secrets {
        assert!(
            !said.contains(&secret),
            "a secret is in the output: {secret}"
        );
    }
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_goes_on_and_sends_nothing_twice() {
    let simulator = simulator().await;
    let place = Place::at(&simulator);
    place.run(&["pair"]).await.exits(0);
    place.file("A002.mov", (9 << 20) + 1);
    let stall = Fault {
        on: Target {
            endpoint: EndpointName::PutChunk,
            part: Some(2),
            asset_name: None,
        },
        effect: Effect::Stall {
            after_bytes: 1 << 20,
        },
        times: None,
        after: 0,
        probability: None,
    };
    simulator.admin().add_fault(stall);
    let running = place.start(&["upload", "A002.mov", "--json"]).await;
    let (running, _) = running.until("chunk_sent").await;

    // Meanwhile the queue is in use: looking works, adding says who has it.
    let status = place.run(&["status", "--json"]).await.exits(0).document();
    assert_eq!(
        status["queue"]["states"]["transferring"]["media"], 1,
        "{status}"
    );
    let used = place.run(&["add", "A002.mov"]).await.exits(4);
    assert!(
        used.err
            .contains(&format!("process {}", running.child.id())),
        "{}",
        used.err
    );

    running.interrupt();
    let ended = running.end().await.exits(130);
    assert_eq!(ended.event("summary")["interrupted"], true);
    assert!(
        ended.err.contains("1 file stays in the queue"),
        "{}",
        ended.err
    );

    simulator.admin().clear_faults();
    let ended = place.run(&["upload"]).await.exits(0);
    assert!(ended.out.contains("1 of 1 file delivered"), "{}", ended.out);
    let first_parts = simulator
        .admin()
        .requests()
        .into_iter()
        .filter(|request| request.endpoint == EndpointName::PutChunk && request.part == Some(1))
        .count();
    assert_eq!(first_parts, 1, "the part that had arrived was sent again");
    simulator.shutdown().await;
}

/// The authorization is taken away: the queue is kept, everything that waits says what for, and pairing again is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_authorization_is_what_everything_waits_for() {
    let simulator = simulator().await;
    let place = Place::at(&simulator);
    place.run(&["pair"]).await.exits(0);
    place.file("clip.mov", 1000);
    simulator.admin().revoke_all();
    let ended = place.run(&["upload", "clip.mov"]).await.exits(3);
    assert!(ended.err.contains("the queue is kept"), "{}", ended.err);
    let row = &place.run(&["list", "--json"]).await.exits(0).document()["media"][0];
    assert_eq!(row["reason"], "waits for a pairing: run `c2c pair`");
    let told = place.run(&["explain", "1"]).await.exits(0);
    assert!(
        told.out
            .contains("when this unit is paired: run `c2c pair`"),
        "{}",
        told.out
    );
    let status = place.run(&["status"]).await.exits(0);
    assert!(status.out.contains("not paired"), "{}", status.out);
    place.run(&["pair"]).await.exits(0);
    place.run(&["upload"]).await.exits(0);
    let row = &place.run(&["list", "--json"]).await.exits(0).document()["media"][0];
    assert_eq!(
        (&row["state"], &row["reason"]),
        (&"delivered".into(), &Value::Null)
    );
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_is_listed_and_six() {
    let simulator = simulator().await;
    let place = Place::at(&simulator);
    place.run(&["pair"]).await.exits(0);
    place.file("bad.mov", 100);
    simulator.admin().add_fault(refused_with(422));
    let ended = place.run(&["upload", "bad.mov"]).await.exits(6);
    assert!(ended.out.contains("0 of 1 file delivered"), "{}", ended.out);
    assert!(
        ended.out.contains("bad.mov") && ended.out.contains("failed"),
        "{}",
        ended.out
    );
    assert!(
        ended.err.contains("1 file was not delivered"),
        "{}",
        ended.err
    );
    let row = &place.run(&["list", "--json"]).await.exits(0).document()["media"][0];
    assert_eq!(row["state"], "failed");
    assert!(row["reason"].is_string(), "{row}");
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pairing_can_be_cancelled_and_keeps_the_queue_for_itself_until_then() {
    let simulator = Simulator::builder().start().await.unwrap();
    let place = Place::at(&simulator);
    let (running, code) = place.start(&["pair", "--json"]).await.until("code").await;
    assert_eq!(
        simulator.admin().wait_for_code().await.user_code,
        code["user_code"]
    );
    place.file("a.mov", 10);
    place.run(&["add", "a.mov"]).await.exits(4);
    running.interrupt();
    let ended = running.end().await.exits(130);
    assert!(ended.err.contains("pairing cancelled"), "{}", ended.err);
    ended.event("pairing_cancelled");
    assert_eq!(
        place.run(&["status", "--json"]).await.exits(0).document()["paired"],
        false
    );
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_three_and_a_silent_service_five() {
    let simulator = simulator().await;
    let mut place = Place::at(&simulator);
    place.env[2].1 = "wrong".to_owned();
    let ended = place.run(&["pair"]).await.exits(3);
    assert!(
        ended.err.contains("check the client secret"),
        "{}",
        ended.err
    );
    // Nobody listens on port 1.
    place.env[0].1 = "https://127.0.0.1:1".to_owned();
    let ended = place.run(&["pair", "--give-up-after", "1"]).await.exits(5);
    assert!(ended.err.contains("gave up after 1s"), "{}", ended.err);
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_gives_up_on_a_dead_link_and_keeps_the_queue() {
    let simulator = simulator().await;
    let mut place = Place::at(&simulator);
    place.run(&["pair"]).await.exits(0);
    place.file("a.mov", 10);
    place.env[0].1 = "https://127.0.0.1:1".to_owned();
    let ended = place
        .run(&["upload", "a.mov", "--give-up-after", "1"])
        .await
        .exits(5);
    assert!(ended.err.contains("the queue is kept"), "{}", ended.err);
    place.env[0].1 = simulator.api_url();
    place.run(&["upload"]).await.exits(0);
    assert_eq!(simulator.admin().wait_for_delivered(1).await.len(), 1);
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_compares_what_arrived_and_leaves_nothing() {
    let place = Place::new();
    place.file("one.mov", 6 << 20);
    place.file("two.jpg", 1);
    let ended = place
        .run(&["demo", "one.mov", "two.jpg", "--json"])
        .await
        .exits(0);
    let compared = ended.event("compared");
    assert_eq!(compared["identical"], true);
    for file in compared["files"].as_array().unwrap() {
        assert_eq!(file["sent_sha256"], file["arrived_sha256"]);
        assert_eq!(file["sent_sha256"], file["receipt_sha256"]);
    }
    assert_eq!(compared["files"].as_array().unwrap().len(), 2);
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());

    let kept = place.dir.path().join("kept");
    let ended = place
        .run(&["demo", "two.jpg", "--keep", kept.to_str().unwrap()])
        .await
        .exits(0);
    assert!(
        ended.out.contains("1 file arrived byte for byte."),
        "{}",
        ended.out
    );
    assert!(
        files_below(&kept)
            .iter()
            .any(|path| path.file_name().unwrap() == "two.jpg"),
        "{:?}",
        files_below(&kept)
    );
    place
        .run(&["demo", "two.jpg", "--keep", kept.to_str().unwrap()])
        .await
        .exits(2);
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            files.push(path)
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_leaves_no_process_and_no_file() {
    let place = Place::new();
    place.file("one.mov", 6 << 20);
    // In the middle of the pairing, once and for all.
    let (running, _) = place
        .start(&["demo", "one.mov", "--json"])
        .await
        .until("code")
        .await;
    running.interrupt();
    running.end().await.exits(130);
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());

    // While the files are made, impatiently: the second signal ends the process without unwinding.
    let running = place.start(&["demo", "--json"]).await;
    let (running, ()) = tokio::task::spawn_blocking({
        let tmp = place.dir.path().join("tmp");
        move || {
            while !std::fs::read_dir(&tmp)
                .unwrap()
                .any(|entry| entry.unwrap().path().join("media").exists())
            {
                std::thread::yield_now();
            }
            (running, ())
        }
    })
    .await
    .unwrap();
    running.interrupt();
    running.interrupt();
    running.end().await.exits(130);
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_runs_until_it_is_interrupted() {
    let place = Place::new();
    let running = place.start(&["simulator", "--json"]).await;
    let (running, announced) = running
        .until_line(|line| serde_json::from_str::<Value>(line).ok())
        .await;
    for field in [
        "api_url",
        "uploads_url",
        "admin_url",
        "ca_file",
        "client_secret",
        "root",
    ] {
        assert!(announced[field].is_string(), "{field} in {announced}");
    }
    let admin = announced["admin_url"]
        .as_str()
        .unwrap()
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&admin).unwrap();
        write!(
            stream,
            "GET /codes HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("[]"),
        "{answer}"
    );
    running.interrupt();
    running.end().await.exits(0);
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_hands_out_what_another_shell_needs() {
    let place = Place::new();
    let running = place.start(&["simulator", "--auto-approve"]).await;
    let (running, announced) = running
        .until_line(|line| serde_json::from_str::<Value>(line).ok())
        .await;
    running.interrupt();
    let ended = running.end().await.exits(0);
    for (variable, field) in [
        ("C2C_API_URL", "api_url"),
        ("C2C_CA_FILE", "ca_file"),
        ("C2C_CLIENT_SECRET", "client_secret"),
    ] {
        let line = format!("export {variable}={}\n", announced[field].as_str().unwrap());
        assert!(ended.err.contains(&line), "{line} in {ended:?}");
    }
}
