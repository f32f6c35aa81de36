//! What only this store promises, and what can only be seen from inside.

use std::collections::BTreeSet;
use std::sync::Mutex;

use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::*;
use crate::clock::{Capture, CaptureSource, ManualClock, WallTime};
use secrecy::{SecretBox, SecretString};

fn vault() -> Vault {
    Vault::from_key(SecretBox::new(Box::new([7; 32])))
}

fn options(dir: &std::path::Path, clock: ManualClock) -> SqliteOptions {
    SqliteOptions {
        path: dir.join("queue.db"),
        clock: Arc::new(clock),
        vault: vault(),
        process: "run-1".to_owned(),
        command: "test".to_owned(),
        patience: Duration::ZERO,
    }
}

fn open(dir: &std::path::Path) -> SqliteQueue {
    let clock = ManualClock::new(WallTime(1_800_000_000_000));
    SqliteQueue::open(options(dir, clock)).unwrap()
}

fn clip(name: &str, size: u64) -> NewMedia {
    NewMedia {
        path: PathBuf::from(format!("/card/{name}")),
        name: name.to_owned(),
        facts: FileFacts {
            size,
            mtime_ns: 5,
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

#[tokio::test]
async fn the_schema_holds_the_same_life_cycle() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let moves =
        queue
            .write("read", |tx| {
                let mut statement = tx
                    .db
                    .prepare("SELECT from_state, to_state FROM media_move")?;
                let moves = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(moves
                    .collect::<rusqlite::Result<std::collections::BTreeSet<(String, String)>>>()?)
            })
            .await
            .unwrap();
    let expected = MediaState::ALL
        .into_iter()
        .flat_map(|from| MediaState::ALL.into_iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.may_become(*to))
        .map(|(from, to)| (from.as_str().to_owned(), to.as_str().to_owned()))
        .collect();
    assert_eq!(moves, expected);
}

#[tokio::test]
async fn the_schema_refuses_what_the_code_must_not_do() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let id = queue.add(vec![clip("a", 10)]).await.unwrap()[0].id;
    for (sql, words) in [
        (
            "UPDATE media SET state = 'delivered', rested_at = 0, due = NULL, wake_at = NULL",
            "illegal move",
        ),
        (
            "UPDATE media SET state = 'registering', due = NULL, wake_at = NULL",
            "CHECK",
        ),
        (
            "UPDATE media SET hold = 'by_hand', held_at = 0, held_since = 0",
            "CHECK",
        ),
        ("UPDATE media SET chunk_count = 1", "CHECK"),
        (
            "INSERT INTO chunk (media_id, number, start, length, url) VALUES (999, 0, 0, 1, x'00')",
            "FOREIGN KEY",
        ),
        (
            "INSERT INTO chunk (media_id, number, start, length) VALUES (1, 0, 0, 1)",
            "CHECK",
        ),
    ] {
        let error = queue
            .write("break a rule", move |tx| Ok(tx.db.execute(sql, [])?))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{sql}: {error}");
    }
    assert_eq!(
        queue.media(id).await.unwrap().unwrap().state,
        MediaState::Queued
    );
}

#[tokio::test]
async fn a_panic_and_an_error_undo_only_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    // The first operation keeps the writer busy until the others wait behind it, so that they share its group.
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let first = queue.service.write(Haste::Urgent, "wait", move |tx| {
        gate.recv().unwrap();
        rows::change(tx, "UPDATE store SET client_id = 'first'", &[])
    });
    let before = queue.service.write(Haste::Urgent, "add media", |tx| {
        intake::add(tx, vec![clip("before", 1)])
    });
    let panics = queue
        .service
        .write::<(), _>(Haste::Urgent, "explode", |tx| {
            intake::add(tx, vec![clip("never", 1)])?;
            panic!("on purpose");
        });
    let fails = queue.service.write::<(), _>(Haste::Urgent, "fail", |tx| {
        intake::add(tx, vec![clip("never", 1)])?;
        Err(QueueError::Invalid("no".to_owned()).into())
    });
    let after = queue.service.write(Haste::Urgent, "add media", |tx| {
        intake::add(tx, vec![clip("after", 1)])
    });
    go.send(()).unwrap();
    first.unwrap().await.unwrap().unwrap();
    before.unwrap().await.unwrap().unwrap();
    after.unwrap().await.unwrap().unwrap();
    let error = panics.unwrap().await.unwrap().unwrap_err();
    assert!(
        matches!(&error, QueueError::Defect(words) if words.contains("on purpose")),
        "{error}"
    );
    assert!(matches!(
        fails.unwrap().await.unwrap(),
        Err(QueueError::Invalid(_))
    ));
    let names: Vec<_> = queue
        .list(None, None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|media| media.name)
        .collect();
    assert_eq!(names, ["before", "after"]);
    assert_eq!(queue.client_id("other".to_owned()).await.unwrap(), "first");
}

#[tokio::test]
async fn a_group_whose_commit_fails_changes_nothing_and_tells_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let first = queue.service.write(Haste::Urgent, "wait", move |tx| {
        gate.recv().unwrap();
        // A foreign key that is checked only at the commit makes the commit itself fail.
        tx.db.execute_batch("PRAGMA defer_foreign_keys = ON")?;
        rows::change(
            tx,
            "INSERT INTO history (media_id, line, at, event) VALUES (999, 1, 0, '')",
            &[],
        )
    });
    let second = queue.service.write(Haste::Urgent, "add media", |tx| {
        intake::add(tx, vec![clip("a", 1)])
    });
    go.send(()).unwrap();
    for error in [
        first.unwrap().await.unwrap().unwrap_err(),
        second.unwrap().await.unwrap().unwrap_err(),
    ] {
        assert!(matches!(error, QueueError::Sqlite { .. }), "{error}");
    }
    assert_eq!(queue.status().await.unwrap(), QueueStatus::default());
    queue.add(vec![clip("a", 1)]).await.unwrap();
    assert_eq!(
        queue.status().await.unwrap().of(MediaState::Queued).media,
        1,
        "and the queue goes on"
    );
}

/// Every statement that a watched store has run.
static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

thread_local! {
    /// Whether what this thread opens is watched.
    static WATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Notes what a connection runs from now on, if it is to be watched.
pub(super) fn watch(db: &mut Db) {
    if !WATCHES.get() {
        return;
    }
    let note = |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(statement, _) = event {
            SEEN.lock().unwrap().insert(statement.sql().into_owned());
        }
    };
    db.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note))
        .unwrap();
}

/// A store for the suite.
struct Watched {
    dir: tempfile::TempDir,
    clock: ManualClock,
}

#[async_trait]
impl crate::conformance::Store for Watched {
    async fn open(&self, process: &str) -> Arc<dyn Queue> {
        let mut options = options(self.dir.path(), self.clock.clone());
        options.process = process.to_owned();
        WATCHES.set(true);
        let opened = SqliteQueue::open(options);
        WATCHES.set(false);
        Arc::new(opened.unwrap())
    }

    fn clock(&self) -> ManualClock {
        self.clock.clone()
    }
}

/// These concern all media: another project, and what a person wants of everything.
const OF_ALL: [&str; 3] = [
    "DELETE FROM chunk",
    "DELETE FROM media",
    "SELECT id FROM media ORDER BY id",
];
/// These sort, but only what is leased or the few rows of the memory.
const OF_FEW: [&str; 2] = ["chunk INDEXED BY chunk_leased", "FROM memory ORDER BY turn"];

/// Whatever the queue is asked, no answer is found by reading a table that grows, or by sorting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_has_its_index() {
    for case in crate::conformance::cases() {
        let store = Watched {
            dir: tempfile::tempdir().unwrap(),
            clock: ManualClock::new(WallTime(1_800_000_000_000)),
        };
        case.run(Arc::new(store)).await;
    }
    let seen = SEEN.lock().unwrap().clone();
    let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    let data: Vec<String> = seen
        .into_iter()
        .filter(|sql| verbs.iter().any(|verb| sql.starts_with(verb)))
        .filter(|sql| !sql.contains("sqlite_schema"))
        .filter(|sql| !OF_ALL.contains(&sql.as_str()))
        .filter(|sql| !OF_FEW.iter().any(|few| sql.contains(few)))
        .collect();
    assert!(data.len() > 80, "{} statements were seen", data.len());
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let mut slow = Vec::new();
    for sql in data {
        let explained = format!("EXPLAIN QUERY PLAN {sql}");
        let plan = queue
            .read("explain", move |tx| {
                let mut statement = tx.db.prepare(&explained)?;
                let steps = statement.raw_query().mapped(|row| row.get::<_, String>(3));
                Ok(steps.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await
            .unwrap();
        for step in plan {
            let reads_all = ["media", "chunk", "history", "receipt"]
                .iter()
                .any(|table| step == format!("SCAN {table}"));
            if reads_all || step.contains("TEMP B-TREE") {
                slow.push(format!("{sql}\n  {step}"));
            }
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}

#[tokio::test]
async fn history_keeps_how_it_began_and_how_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let id = queue.add(vec![clip("a", 1)]).await.unwrap()[0].id;
    queue
        .write("write history", move |tx| {
            for number in 2..=1000u32 {
                let event = crate::history::Event::Registered {
                    asset_id: String::new(),
                    chunks: number,
                    offset: None,
                };
                lines::write(tx, Some(id), &event)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let lines = queue.history(Some(id)).await.unwrap();
    assert_eq!(lines.len(), 500);
    let number = |line: &HistoryLine| match line.event {
        crate::history::Event::Registered { chunks, .. } => chunks,
        _ => 1,
    };
    let numbers: Vec<u32> = lines.iter().map(number).collect();
    let expected: Vec<u32> = (1..=50).chain(551..=1000).collect();
    assert_eq!(numbers, expected);
    assert!(lines.windows(2).all(|pair| pair[0].id < pair[1].id));
}

#[tokio::test]
async fn a_new_key_costs_urls_and_tokens_but_no_media() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let holder = Holder {
        process: "run-1".to_owned(),
        worker: "w".to_owned(),
    };
    let lease = Duration::from_secs(60);
    queue.add(vec![clip("a", 2)]).await.unwrap();
    let Claim::Got(claim) = queue
        .claim_registration(&holder, lease, None)
        .await
        .unwrap()
    else {
        panic!("no work")
    };
    let chunk = |start| crate::queue::NewChunk {
        start,
        length: 1,
        url: SecretString::from("https://s3/x"),
    };
    let asset = NewAsset {
        asset_id: "asset".to_owned(),
        project_id: "project".to_owned(),
        offset: None,
        chunks: vec![chunk(0), chunk(1)],
    };
    queue.asset_created(&claim.lease, asset).await.unwrap();
    let tokens = || Tokens {
        access: SecretString::from("access"),
        refresh: SecretString::from("refresh"),
        expires_in_ms: 1000,
    };
    queue.store_tokens(tokens()).await.unwrap();
    queue.close().await.unwrap();

    let options = SqliteOptions {
        path: dir.path().join("queue.db"),
        clock: Arc::new(ManualClock::new(WallTime(1_800_000_000_000))),
        vault: Vault::from_key(SecretBox::new(Box::new([8; 32]))),
        process: "run-2".to_owned(),
        command: "test".to_owned(),
        patience: Duration::ZERO,
    };
    let queue = SqliteQueue::open(options).unwrap();
    assert!(matches!(
        queue.connection().await,
        Err(QueueError::Sealed { .. })
    ));
    assert!(matches!(
        queue.claim_chunk(&holder, lease).await,
        Err(QueueError::Sealed { .. })
    ));
    queue.store_tokens(tokens()).await.unwrap();
    assert!(queue.connection().await.unwrap().tokens.is_some());
    let media = queue.media(claim.media.id).await.unwrap().unwrap();
    assert_eq!((media.state, media.registrations), (MediaState::Queued, 1));
    assert!(matches!(
        queue
            .claim_registration(&holder, lease, None)
            .await
            .unwrap(),
        Claim::Got(_)
    ));
    queue.store_tokens(tokens()).await.unwrap();
    assert_eq!(
        queue.media(media.id).await.unwrap().unwrap().state,
        MediaState::Registering
    );
}

#[tokio::test]
async fn a_full_disk_refuses_and_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let limit = async |pages: i64| {
        let set = move |tx: &Tx<'_>| {
            let used: i64 = tx.db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let sql = format!("PRAGMA max_page_count = {}", used + pages);
            Ok(tx.db.query_row(&sql, [], |row| row.get::<_, i64>(0))?)
        };
        queue.write("limit the file", set).await.unwrap();
    };
    limit(20).await;
    let mut accepted = 0;
    let error = loop {
        let media = (0..50)
            .map(|number| clip(&format!("{accepted}-{number}"), 1))
            .collect();
        match queue.add(media).await {
            Ok(_) => accepted += 50,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, QueueError::Sqlite { .. }), "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(
        queue.status().await.unwrap().of(MediaState::Queued).media,
        accepted,
        "all of an add, or nothing"
    );
    limit(1_000).await;
    queue.add(vec![clip("after", 1)]).await.unwrap();
    assert_eq!(
        queue.list(None, None, 100_000).await.unwrap().len() as u64,
        accepted + 1
    );
    queue.close().await.unwrap();
}

/// A file of format 1 with a media of which one chunk is sent and one is not, and with a receipt.
fn format_1(path: &std::path::Path) {
    files::create(path).unwrap();
    let db = files::connect(path).unwrap();
    db.execute_batch(include_str!("migrations/001_initial.sql"))
        .unwrap();
    let url = vault()
        .seal(
            claim::URL,
            &claim::url_row(MediaId(1), 1),
            "https://uploads.invalid/1",
        )
        .unwrap();
    db.execute_batch(
        "INSERT INTO media (path, name, size, mtime_ns, filetype, capture_wall, capture_source, channel, priority, \
            position, added_at) VALUES ('/card/clip', 'clip', 9, 1, 'video/mp4', 0, 'given', 0, 0, 1, 5);
        UPDATE media SET state = 'registering', lease_token = 1, lease_process = 'p', lease_worker = 'w', lease_until = 1;
        INSERT INTO chunk (media_id, number, start, length, url) VALUES (1, 0, 0, 4, x'00'), (1, 1, 4, 5, x'00');
        UPDATE media SET state = 'transferring', asset_id = 'asset', project_id = 'project', registered_at = 6, \
            urls_at = 1, registrations = 1, chunk_count = 2, chunks_ready = 2, wake_at = 0, due = 1, \
            lease_token = NULL, lease_process = NULL, lease_worker = NULL, lease_until = NULL;
        UPDATE chunk SET state = 'sending', lease_token = 2, lease_process = 'p', lease_worker = 'w', lease_until = 1, \
            lease_round = 0 WHERE number = 0;
        UPDATE chunk SET state = 'sent', sent_at = 7, etag = 'e', url = NULL, lease_token = NULL, lease_process = NULL, \
            lease_worker = NULL, lease_until = NULL, lease_round = NULL WHERE number = 0;
        UPDATE store SET clean = 1, store_ms = 1;",
    )
    .unwrap();
    db.execute("UPDATE chunk SET url = ? WHERE number = 1", [url])
        .unwrap();
    let body = r#"{"version":1,"media":7,"name":"old","path":"/card/old","filetype":"video/mp4","size":1,
        "asset_id":"a","project_id":"p","capture":{"wall":0,"boot_id":null,"boot":null,"source":"given"},
        "added_at":1,"registered_at":2,"delivered_at":3,"tries":2,"registrations":1,"possible_duplicates":0,
        "bytes_resent":0,"chunks":[],"sha256":null,"unsealed":null}"#;
    db.execute(
        "INSERT INTO receipt (media_id, project_id, delivered_at, body) VALUES (7, 'p', 3, ?)",
        [body],
    )
    .unwrap();
    db.pragma_update(None, "application_id", files::APPLICATION_ID)
        .unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
}

#[tokio::test]
async fn a_queue_of_format_1_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    format_1(&dir.path().join("queue.db"));
    let queue = open(dir.path());
    assert_eq!(
        queue.receipt(MediaId(7)).await.unwrap().unwrap().name,
        "old"
    );
    let status = queue.status().await.unwrap();
    assert_eq!(status.of(MediaState::Transferring).bytes_sent, 4);
    let holder = Holder {
        process: "run".to_owned(),
        worker: "w".to_owned(),
    };
    let claim = queue
        .claim_chunk(&holder, Duration::from_secs(60))
        .await
        .unwrap();
    let Claim::Got(claim) = claim else {
        panic!("the second chunk waits");
    };
    assert_eq!(
        secrecy::ExposeSecret::expose_secret(&claim.url),
        "https://uploads.invalid/1"
    );
    let proof = ChunkProof {
        etag: None,
        md5: None,
        crc64nvme: Some(1),
    };
    let sent = queue.chunk_sent(&claim.lease, proof).await.unwrap();
    let receipt = sent.receipt.unwrap();
    assert_eq!((receipt.chunks.len(), receipt.crc64nvme), (2, None));
    queue
        .remember("networks", Some("known".to_owned()))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_patient_shares_the_next_flush() {
    let dir = tempfile::tempdir().unwrap();
    let queue = SqliteQueue::open(SqliteOptions {
        path: dir.path().join("queue.db"),
        clock: Arc::new(ManualClock::new(WallTime(1_800_000_000_000))),
        vault: vault(),
        process: "run-1".to_owned(),
        command: "test".to_owned(),
        // Nothing comes back by itself within this test.
        patience: Duration::from_secs(3_600),
    })
    .unwrap();
    let holder = Holder {
        process: "run-1".to_owned(),
        worker: "w".to_owned(),
    };
    queue.add(vec![clip("a", 1)]).await.unwrap();
    let claim = queue.claim_registration(&holder, Duration::from_secs(60), None);
    let (claim, _) = tokio::join!(claim, queue.recover_expired());
    let Claim::Got(claim) = claim.unwrap() else {
        panic!("nothing to register");
    };
    let asset = NewAsset {
        asset_id: "asset".to_owned(),
        project_id: "project".to_owned(),
        offset: None,
        chunks: vec![crate::NewChunk {
            start: 0,
            length: 1,
            url: SecretString::from("https://uploads.invalid/"),
        }],
    };
    let before = queue.commits();
    let mut patient = std::pin::pin!(queue.asset_created(&claim.lease, asset));
    let first = std::future::poll_fn(|context| {
        std::task::Poll::Ready(patient.as_mut().poll(context).is_pending())
    });
    assert!(first.await, "it is handed over, and waits");
    let urgent = queue.claim_chunk(&holder, Duration::from_secs(60));
    let (created, claim) = tokio::join!(patient, urgent);
    created.unwrap();
    assert!(
        matches!(claim.unwrap(), Claim::Got(_)),
        "what waited is done first"
    );
    assert_eq!(queue.commits(), before + 1, "one flush for both");
    // A close waits for nobody.
    let Claim::Nothing = queue
        .claim_chunk(&holder, Duration::from_secs(60))
        .await
        .unwrap()
    else {
        panic!("there is one chunk");
    };
    let lease = Lease {
        item: crate::Item::Chunk(MediaId(1), 0),
        token: 2,
    };
    let renewal = queue.renew(&lease, 0, Duration::from_secs(60));
    let (renewed, closed) = tokio::join!(renewal, queue.close());
    renewed.unwrap();
    closed.unwrap();
}

#[tokio::test]
async fn a_look_beside_the_work_finds_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let queue = open(dir.path());
    let clips = (0..500).map(|number| clip(&format!("clip-{number}"), 1));
    queue.add(clips.collect()).await.unwrap();
    queue.close().await.unwrap();

    let findings = Arc::new(Findings::default());
    let look = Look::start(files::connect_reader(&path).unwrap(), findings.clone()).unwrap();
    while !findings.are_good() {
        std::thread::yield_now();
    }
    look.end();
    findings.tell(&path).unwrap();

    // A page in the middle is overwritten.
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let findings = Arc::new(Findings::default());
    let mut queue = open(dir.path());
    queue.look =
        Some(Look::start(files::connect_reader(&path).unwrap(), findings.clone()).unwrap());
    queue.findings = findings.clone();
    while findings.tell(&path).is_ok() {
        std::thread::yield_now();
    }
    let error = queue.status().await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(!findings.are_good());
    queue.close().await.unwrap();
}

#[tokio::test]
async fn a_look_that_was_not_finished_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    open(dir.path()).close().await.unwrap();
    let clean = || {
        let db = files::connect_reader(&path).unwrap();
        db.query_row("SELECT clean FROM store", [], |row| row.get::<_, bool>(0))
            .unwrap()
    };
    assert!(clean());
    let lock = LockFile::take(&path, "run-2", "test").unwrap();
    let db = files::connect(&path).unwrap();
    let time = StoreTime::foreign(Arc::new(ManualClock::new(WallTime(1_800_000_000_000))));
    let numbers = Numbers::read(&db).unwrap();
    let writer = Writer {
        db,
        time,
        boot: "boot".to_owned(),
        vault: vault(),
        numbers,
        commits: Arc::default(),
        patience: Duration::ZERO,
        findings: Arc::default(),
        lock,
    };
    let (close, inbox) = std::sync::mpsc::channel();
    let (reply, closed) = tokio::sync::oneshot::channel();
    close.send(writer::Message::Close(reply)).unwrap();
    writer.run(&inbox);
    closed.await.unwrap().unwrap();
    assert!(!clean(), "nobody knows whether it is whole");
}
