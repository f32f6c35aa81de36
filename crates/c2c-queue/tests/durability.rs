//! What survives, and what is refused: real files, damaged, copied, locked and dropped.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot prepare its test is to panic"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use c2c_queue::conformance::Store;
use c2c_queue::{
    Capture, CaptureSource, ChunkProof, Claim, Clock, Event, FileFacts, Holder, Identity, Lease,
    ManualClock, MediaId, MediaState, NewAsset, NewChunk, NewMedia, Queue, QueueError,
    SqliteOptions, SqliteQueue, Tokens, Vault, Volume, WallTime,
};
use rusqlite::Connection as Db;
use secrecy::{ExposeSecret, SecretString};

use support::{SqliteStore, options};

const LEASE: Duration = Duration::from_secs(60);

fn clock() -> ManualClock {
    ManualClock::new(WallTime(1_800_000_000_000))
}

fn open(path: &Path) -> Result<SqliteQueue, QueueError> {
    SqliteQueue::open(options(path, &clock(), "run-1"))
}

fn clip(path: impl Into<PathBuf>, size: u64) -> NewMedia {
    NewMedia {
        path: path.into(),
        name: "clip".to_owned(),
        facts: FileFacts {
            size,
            mtime_ns: 1,
            file_id: None,
        },
        volume: None,
        filetype: "video/mp4".to_owned(),
        capture: Capture {
            wall: WallTime(0),
            boot_id: None,
            boot: None,
            source: CaptureSource::Given,
        },
        channel: 0,
        priority: 0,
        parts: None,
        auto_version_id: None,
        hold: None,
        again: false,
    }
}

fn holder() -> Holder {
    Holder {
        process: "run-1".to_owned(),
        worker: "w".to_owned(),
    }
}

async fn register(queue: &dyn Queue, chunks: u64) -> MediaId {
    let Claim::Got(claim) = queue
        .claim_registration(&holder(), LEASE, None)
        .await
        .unwrap()
    else {
        panic!("nothing to register")
    };
    let length = claim.media.facts.size / chunks;
    let chunk = |number| NewChunk {
        start: number * length,
        length,
        url: SecretString::from(format!(
            "https://uploads.invalid/{number}?X-Amz-Signature=topsecretsignature"
        )),
    };
    let asset = NewAsset {
        asset_id: "asset".to_owned(),
        project_id: "project".to_owned(),
        offset: None,
        chunks: (0..chunks).map(chunk).collect(),
    };
    queue.asset_created(&claim.lease, asset).await.unwrap();
    claim.media.id
}

async fn claim_chunk(queue: &dyn Queue) -> Lease {
    match queue.claim_chunk(&holder(), LEASE).await.unwrap() {
        Claim::Got(claim) => claim.lease,
        other => panic!("nothing to send: {other:?}"),
    }
}

async fn send(queue: &dyn Queue) -> bool {
    let lease = claim_chunk(queue).await;
    let sent = queue
        .chunk_sent(
            &lease,
            ChunkProof {
                etag: None,
                md5: None,
                crc64nvme: None,
            },
        )
        .await
        .unwrap();
    sent.receipt.is_some()
}

fn tokens() -> Tokens {
    Tokens {
        access: SecretString::from("topsecretaccess"),
        refresh: SecretString::from("topsecretrefresh"),
        expires_in_ms: 28_800_000,
    }
}

#[tokio::test]
async fn a_newer_file_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    open(&path).unwrap().close().await.unwrap();
    Db::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(
        matches!(error, QueueError::TooNew { found: 99, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("newer program"), "{error}");
    let error = SqliteQueue::open_read_only(path.clone(), Arc::new(clock())).unwrap_err();
    assert!(matches!(error, QueueError::TooNew { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn another_programs_database_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    for (name, application) in [("plain.db", 0), ("marked.db", 77)] {
        let path = dir.path().join(name);
        let db = Db::open(&path).unwrap();
        db.execute_batch("CREATE TABLE photos (name TEXT); INSERT INTO photos VALUES ('a')")
            .unwrap();
        db.pragma_update(None, "application_id", application)
            .unwrap();
        drop(db);
        let before = std::fs::read(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, QueueError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains("another program"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[tokio::test]
async fn a_second_opener_learns_who_was_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let first = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    let QueueError::InUse { owner, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (owner.pid, owner.command.as_deref()),
        (Some(std::process::id()), Some("the test"))
    );
    assert!(
        error
            .to_string()
            .contains(&format!("process {} (the test)", std::process::id())),
        "{error}"
    );
    first.add(vec![clip("/a", 1)]).await.unwrap();
    first.close().await.unwrap();
    // The file stays, the lock does not.
    assert!(path.with_extension("lock").exists());
    open(&path).unwrap();
}

#[test]
fn the_lock_of_a_dead_process_is_none() {
    // The child is this very test program, told to take the queue and to die without any ceremony.
    const TAKE: &str = "C2C_QUEUE_TEST_TAKE";
    if let Some(path) = std::env::var_os(TAKE) {
        let queue = open(Path::new(&path)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(queue.add(vec![clip("/a", 1)])).unwrap();
        std::process::abort();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_lock_of_a_dead_process_is_none"])
        .env(TAKE, &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let left = std::fs::read_to_string(path.with_extension("lock")).unwrap();
    assert!(
        left.starts_with(&format!("{pid}\n")),
        "the dead one is still named: {left}"
    );
    let queue = open(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let list = runtime.block_on(queue.list(None, None, 10)).unwrap();
    assert_eq!(list.len(), 1, "what was accepted before the death is there");
}

#[tokio::test]
async fn others_may_look_but_not_touch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let looking = clock();
    let missing = SqliteQueue::open_read_only(path.clone(), Arc::new(looking.clone()));
    assert!(
        matches!(missing, Err(QueueError::Io { .. })),
        "there is nothing to look at"
    );
    assert!(!path.exists());

    let owner = SqliteQueue::open(options(&path, &looking, "run-1")).unwrap();
    owner.store_tokens(tokens()).await.unwrap();
    let id = owner.add(vec![clip("/a", 2)]).await.unwrap()[0].id;
    let viewer = SqliteQueue::open_read_only(path.clone(), Arc::new(looking.clone())).unwrap();
    assert_eq!(
        viewer.status().await.unwrap(),
        owner.status().await.unwrap()
    );
    register(&owner, 2).await;
    assert_eq!(
        viewer.media(id).await.unwrap(),
        owner.media(id).await.unwrap(),
        "it sees what happens"
    );
    looking.advance(Duration::from_secs(5));
    let connection = viewer.connection().await.unwrap();
    assert!(connection.tokens.is_none() && connection.tokens_stored_at.is_some());
    assert_eq!(
        connection.tokens_age_ms, 5_000,
        "it knows the time of the store"
    );

    let error = viewer.add(vec![clip("/b", 1)]).await.unwrap_err();
    assert!(
        matches!(&error, QueueError::InUse { owner, .. } if owner.pid == Some(std::process::id())),
        "{error}"
    );
    for refused in [
        viewer
            .release(&claim_chunk(&owner).await)
            .await
            .unwrap_err(),
        viewer.store_tokens(tokens()).await.unwrap_err(),
        viewer
            .by_hand(c2c_queue::Selection::All, c2c_queue::ByHand::Cancel)
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(refused, QueueError::InUse { .. }), "{refused}");
    }
    owner.close().await.unwrap();
    assert_eq!(
        viewer.media(id).await.unwrap().unwrap().state,
        MediaState::Transferring
    );
    viewer.close().await.unwrap();
    assert!(matches!(viewer.status().await, Err(QueueError::Closed)));
    // With nobody there, too.
    let viewer = SqliteQueue::open_read_only(path.clone(), Arc::new(looking)).unwrap();
    assert_eq!(viewer.list(None, None, 10).await.unwrap().len(), 1);
    open(&path).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_said_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let queue = open(&path).unwrap();
    for number in 0..300 {
        queue
            .add(vec![clip(format!("/clip-{number}"), 1)])
            .await
            .unwrap();
    }
    queue.close().await.unwrap();
    let good = std::fs::read(&path).unwrap();

    let mut dirty = good.clone();
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(
            matches!(&error, QueueError::Unusable { .. }),
            "{what}: {error}"
        );
        assert!(
            error.to_string().contains("damaged") && error.to_string().contains("move it away"),
            "{error}"
        );
    };
    refused(&b"this is no database at all; ".repeat(1000), "garbage");
    refused(&good[..good.len() / 2], "half of it");
    refused(&good[..good.len() - 4096], "all but a page");
    // Marked as not closed, every page is looked at.
    std::fs::write(&path, &good).unwrap();
    {
        let db = Db::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", "delete").unwrap();
        db.execute("UPDATE store SET clean = 0", []).unwrap();
    }
    dirty.clear();
    dirty.extend(std::fs::read(&path).unwrap());
    let middle = dirty.len() / 2 / 4096 * 4096;
    dirty[middle..middle + 64].fill(0xAA);
    refused(&dirty, "a page in the middle");
    std::fs::write(&path, &good).unwrap();
    assert_eq!(
        open(&path)
            .unwrap()
            .list(None, None, 1000)
            .await
            .unwrap()
            .len(),
        300
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_adds_share_few_commits() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Arc::new(open(&dir.path().join("queue.db")).unwrap());
    let before = queue.commits();
    let mut adds = tokio::task::JoinSet::new();
    for number in 0..100 {
        let queue = queue.clone();
        adds.spawn(async move {
            queue
                .add(vec![clip(format!("/clip-{number}"), 1)])
                .await
                .unwrap()[0]
                .id
        });
    }
    let mut ids = adds.join_all().await;
    let commits = queue.commits() - before;
    assert!(commits < 60, "100 adds took {commits} commits");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    assert_eq!(
        queue.status().await.unwrap().of(MediaState::Queued).media,
        100
    );
    let before = queue.commits();
    let nothing = queue.claim_chunk(&holder(), LEASE).await.unwrap();
    assert!(matches!(nothing, Claim::Nothing));
    assert_eq!(queue.commits(), before, "asking in vain costs no flush");
}

#[tokio::test]
async fn a_dropped_future_changes_everything_or_nothing() {
    let store = SqliteStore::new();
    let queue = store.open("run-1").await;
    for number in 0..50 {
        let mut add = queue.add(vec![
            clip(format!("/a-{number}"), 1),
            clip(format!("/b-{number}"), 1),
        ]);
        // Polled once: accepted, and perhaps not done yet when it is dropped.
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(add.as_mut().poll(cx).is_ready()))
                .await;
        drop(add);
        let _ = polled;
    }
    drop(queue.add(vec![clip("/never", 1)]));
    queue.close().await.unwrap();
    drop(queue);
    let queue = store.open("run-2").await;
    assert_eq!(
        queue.list(None, None, 1000).await.unwrap().len(),
        100,
        "whole pairs, and all that were accepted"
    );
}

/// Everything that SQLite would find after a power cut at this instant.
fn cut(from: &Path, to: &Path) {
    for name in ["queue.db", "queue.db-wal"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[tokio::test]
async fn a_power_cut_between_any_two_operations_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let queue = SqliteQueue::open(options(&dir.path().join("queue.db"), &clock, "run-1")).unwrap();
    let id = queue.add(vec![clip("/a", 40)]).await.unwrap()[0].id;
    register(&queue, 10).await;
    for sent in 0..10u32 {
        let copy = tempfile::tempdir().unwrap();
        cut(dir.path(), copy.path());
        let after =
            SqliteQueue::open(options(&copy.path().join("queue.db"), &clock, "run-2")).unwrap();
        let media = after.media(id).await.unwrap().unwrap();
        assert_eq!(
            (media.state, media.chunks_sent),
            (MediaState::Transferring, sent)
        );
        assert_eq!(media, queue.media(id).await.unwrap().unwrap());
        // The cut one goes on to the end by itself.
        let mut last = false;
        for _ in sent..10 {
            last = send(&after).await;
        }
        assert!(last);
        after.close().await.unwrap();
        send(&queue).await;
    }
    assert_eq!(
        queue.media(id).await.unwrap().unwrap().state,
        MediaState::Delivered
    );
}

#[tokio::test]
async fn a_torn_write_at_the_end_of_the_log_loses_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir.path().join("queue.db")).unwrap();
    queue.add(vec![clip("/first", 1)]).await.unwrap();
    let whole = std::fs::metadata(dir.path().join("queue.db-wal"))
        .unwrap()
        .len();
    queue.add(vec![clip("/second", 1)]).await.unwrap();
    let longer = std::fs::metadata(dir.path().join("queue.db-wal"))
        .unwrap()
        .len();
    assert!(longer > whole);
    for length in (whole..longer).step_by(1031) {
        let copy = tempfile::tempdir().unwrap();
        cut(dir.path(), copy.path());
        let log = std::fs::OpenOptions::new()
            .write(true)
            .open(copy.path().join("queue.db-wal"))
            .unwrap();
        log.set_len(length).unwrap();
        let after = open(&copy.path().join("queue.db")).unwrap();
        let list = after.list(None, None, 10).await.unwrap();
        assert_eq!(
            list.len(),
            1,
            "what was answered is there, what was torn is not"
        );
        assert_eq!(
            after.add(vec![clip("/second", 1)]).await.unwrap()[0].already,
            None
        );
    }
}

#[tokio::test]
async fn no_secret_is_in_any_file_or_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let queue = open(&path).unwrap();
    queue.store_tokens(tokens()).await.unwrap();
    queue.add(vec![clip("/a", 4)]).await.unwrap();
    register(&queue, 2).await;
    let seen = |when: &str| {
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let bytes = std::fs::read(entry.path()).unwrap();
            let found = bytes.windows(9).any(|window| window == b"topsecret");
            assert!(!found, "{when}: {} holds a secret", entry.path().display());
        }
    };
    seen("open");
    let Claim::Got(claim) = queue.claim_chunk(&holder(), LEASE).await.unwrap() else {
        panic!("nothing to send")
    };
    assert!(claim.url.expose_secret().contains("topsecret"));
    let connection = queue.connection().await.unwrap();
    assert_eq!(
        connection.tokens.as_ref().unwrap().access.expose_secret(),
        "topsecretaccess"
    );
    assert!(!format!("{claim:?} {connection:?} {queue:?}").contains("topsecret"));
    queue.close().await.unwrap();
    seen("closed");

    // Moved to another row, a sealed URL does not open.
    let db = Db::open(&path).unwrap();
    db.execute_batch(
        "UPDATE chunk SET state = 'ready', lease_token = NULL, lease_process = NULL, lease_worker = NULL,
            lease_until = NULL, lease_round = NULL;
         UPDATE media SET due = 1, wake_at = 0;
         UPDATE chunk SET url = (SELECT other.url FROM chunk AS other WHERE other.number = 1 - chunk.number)
            WHERE number = 0;",
    )
    .unwrap();
    drop(db);
    let queue = open(&path).unwrap();
    let error = queue.claim_chunk(&holder(), LEASE).await.unwrap_err();
    assert!(matches!(error, QueueError::Sealed { .. }), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state/of/c2c");
    let path = state.join("queue.db");
    let queue = open(&path).unwrap();
    queue.add(vec![clip("/a", 1)]).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        ["queue.db", "queue.db-shm", "queue.db-wal", "queue.lock"]
    );
    queue.close().await.unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _queue = open(&path).unwrap();
    assert_eq!(mode(&path), 0o600, "loosened rights are tightened");
}

#[cfg(unix)]
#[tokio::test]
async fn paths_that_are_not_unicode_stay_what_they_are() {
    use std::os::unix::ffi::OsStrExt;
    let store = SqliteStore::new();
    let queue = store.open("run-1").await;
    let strange = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    let mut media = clip(strange(b"/card/\xff\xfe clip.mov"), 1);
    media.volume = Some(Volume {
        id: "v".to_owned(),
        mount_point: strange(b"/card/\x80"),
        removable: true,
    });
    let other = clip(strange(b"/card/\xff\xfd clip.mov"), 1);
    let added = queue
        .add(vec![media.clone(), other, media.clone()])
        .await
        .unwrap();
    assert_ne!(added[0].id, added[1].id);
    assert_eq!(
        (added[2].id, added[2].already),
        (added[0].id, Some(MediaState::Queued))
    );
    drop(queue);
    let queue = store.open("run-2").await;
    let stored = queue.media(added[0].id).await.unwrap().unwrap();
    assert_eq!(
        (stored.path.clone(), stored.volume.clone()),
        (media.path, media.volume)
    );
    let json = serde_json::to_string(&stored).unwrap();
    assert!(json.contains("/card/\u{fffd}\u{fffd} clip.mov"), "{json}");
    register(&*queue, 1).await;
    assert!(send(&*queue).await);
    let receipt = queue.receipt(added[0].id).await.unwrap().unwrap();
    assert_eq!(receipt.path, "/card/\u{fffd}\u{fffd} clip.mov");
}

#[tokio::test]
async fn the_queue_itself_has_a_bounded_history() {
    let store = SqliteStore::new();
    let queue = store.open("run-1").await;
    for number in 0..300u32 {
        let identity = Identity {
            id: "1".to_owned(),
            device_id: "2".to_owned(),
            device_name: "A camera".to_owned(),
            project_id: format!("project-{number}"),
            project_name: "A film".to_owned(),
            status: "online".to_owned(),
            authorization_expires_at: None,
            channels: Vec::new(),
        };
        queue.store_identity(identity).await.unwrap();
    }
    let lines = queue.history(None).await.unwrap();
    assert_eq!(lines.len(), 500);
    assert_eq!(
        lines[0].event,
        Event::Paired {
            project_id: "project-0".to_owned()
        }
    );
    assert_eq!(
        lines[499].event,
        Event::Paired {
            project_id: "project-299".to_owned()
        }
    );
}

#[tokio::test]
async fn a_system_without_boot_ids_counts_every_start() {
    /// A clock on a platform that does not tell.
    #[derive(Debug)]
    struct Silent(ManualClock);
    impl Clock for Silent {
        fn wall(&self) -> WallTime {
            self.0.wall()
        }
        fn boot(&self) -> c2c_queue::BootTime {
            self.0.boot()
        }
        fn boot_id(&self) -> Option<c2c_queue::BootId> {
            None
        }
        fn sleep(&self, duration: Duration) -> c2c_queue::Sleep {
            self.0.sleep(duration)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let later = clock();
    let open = |process: &str| {
        let options = SqliteOptions {
            path: dir.path().join("queue.db"),
            clock: Arc::new(Silent(later.clone())),
            vault: Vault::key_file(&dir.path().join("queue.key")).unwrap(),
            process: process.to_owned(),
            command: "the test".to_owned(),
            patience: Duration::ZERO,
        };
        SqliteQueue::open(options).unwrap()
    };
    let queue = open("run-1");
    let id = queue.add(vec![clip("/a", 1)]).await.unwrap()[0].id;
    let Claim::Got(claim) = queue
        .claim_registration(&holder(), LEASE, None)
        .await
        .unwrap()
    else {
        panic!("no work")
    };
    let setback = c2c_queue::Setback {
        fault: c2c_queue::FaultRecord {
            scope: c2c_queue::Scope::Media,
            code: "unreadable".to_owned(),
            words: "the file cannot be read".to_owned(),
            server: None,
        },
        verdict: c2c_queue::Verdict::Park,
        possible_duplicate: false,
        bytes_wasted: 0,
        drop_parts: false,
    };
    queue
        .registration_failed(&claim.lease, setback)
        .await
        .unwrap();
    assert_eq!(queue.grant_restart_tries("run-1").await.unwrap(), []);
    let before = queue.store_time().0;
    queue.close().await.unwrap();
    later.advance(Duration::from_secs(3_600));
    let queue = open("run-2");
    assert_eq!(queue.store_time().0, before + 1, "no time is counted");
    assert_eq!(queue.grant_restart_tries("run-2").await.unwrap(), [id]);
}

#[tokio::test]
async fn only_a_new_store_begins_at_the_wall_clock() {
    for wall in [1_800_000_000_000, 77, 0, -1_000_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.db");
        let clock = ManualClock::new(WallTime(wall));
        let queue = SqliteQueue::open(options(&path, &clock, "run-1")).unwrap();
        let begun = queue.store_time().0;
        assert_eq!(begun, wall.max(1));
        // Before 1970, too, what is new is due.
        queue.add(vec![clip("/a", 2)]).await.unwrap();
        register(&queue, 2).await;
        drop(queue);
        clock.set_wall(WallTime(4_000_000_000_000));
        let queue = SqliteQueue::open(options(&path, &clock, "run-2")).unwrap();
        assert_eq!(queue.store_time().0, begun + 1, "from {wall}");
        queue.close().await.unwrap();
        clock.reboot();
        let queue = SqliteQueue::open(options(&path, &clock, "run-3")).unwrap();
        assert_eq!(queue.store_time().0, begun + 2, "from {wall}");
    }
}

#[tokio::test]
async fn who_only_looks_sees_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let clock = clock();
    let owner = SqliteQueue::open(options(&path, &clock, "run-1")).unwrap();
    owner.store_tokens(tokens()).await.unwrap();
    drop(owner);
    let age = async || {
        let viewer = SqliteQueue::open_read_only(path.clone(), Arc::new(clock.clone())).unwrap();
        viewer.connection().await.unwrap().tokens_age_ms
    };
    clock.advance(Duration::from_secs(5));
    clock.jump_wall(1_000_000_000_000);
    assert_eq!(age().await, 5_000);
    // It is not known how long the system was off, and nobody guesses.
    clock.reboot();
    clock.advance(Duration::from_secs(5));
    assert_eq!(age().await, 0);
    let owner = SqliteQueue::open(options(&path, &clock, "run-2")).unwrap();
    let age = owner.connection().await.unwrap().tokens_age_ms;
    assert_eq!(age, 1);
}
