//! Secrets stay home: whatever the program writes, at the chattiest level and in trouble, none of the secrets that the service
//! issued is in it.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(unix)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Simulator};
use rustix::process::Signal;
use support::{Place, service, soon};

const CHUNK: u64 = 64 << 10;

/// Something that the program wrote, and where.
struct Trace {
    place: String,
    bytes: Vec<u8>,
}

/// Everything it wrote so far.
#[derive(Default)]
struct Traces(Vec<Trace>);

impl Traces {
    fn said(&mut self, ended: &support::Ended) {
        for (what, bytes) in [
            ("stdout", ended.out.concat()),
            ("stderr", ended.err.clone()),
        ] {
            let place = format!("{what} of `c2c {}`", ended.what);
            self.0.push(Trace {
                place,
                bytes: bytes.into_bytes(),
            });
        }
    }

    /// Every file of the state directory, as it is right now.
    fn left(&mut self, state: &Path, when: &str) {
        for path in files_below(state) {
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(meta.mode() & 0o077, 0, "others may read {}", path.display());
            let place = format!("{} {when}", path.file_name().unwrap().display());
            self.0.push(Trace {
                place,
                bytes: std::fs::read(&path).unwrap(),
            });
        }
    }

    #[track_caller]
    fn lack(&self, secrets: &[Vec<u8>]) {
        let mut found = Vec::new();
        for secret in secrets {
            for trace in &self.0 {
                if contains(&trace.bytes, secret) {
                    found.push(format!(
                        "{:?} is in {}",
                        String::from_utf8_lossy(secret),
                        trace.place
                    ));
                }
            }
        }
        assert!(found.is_empty(), "{found:#?}");
    }
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

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    // The first byte alone rules nearly every place out.
    let Some(first) = wanted.first() else {
        return false;
    };
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| byte == first) {
        if text[from + at..].starts_with(wanted) {
            return true;
        }
        from += at + 1;
    }
    false
}

/// The secrets, and of long ones also a piece from the middle: a token that is cut short is no less a secret.
fn wanted(simulator: &Simulator) -> Vec<Vec<u8>> {
    let mut secrets = simulator.admin().issued_secrets();
    secrets.push(simulator.client_secret());
    let mut wanted: Vec<Vec<u8>> = Vec::new();
    for secret in secrets {
        let bytes = secret.as_bytes();
        assert!(bytes.len() >= 16, "too short to look for: {secret}");
        if !secret.starts_with("http") && bytes.len() >= 32 {
            wanted.push(bytes[bytes.len() - 20..].to_vec());
        }
        wanted.push(bytes.to_vec());
        wanted.push(hex::encode(bytes).into_bytes());
    }
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_anything_that_the_program_writes() {
    let simulator = service(CHUNK).start().await.unwrap();
    let admin = simulator.admin();
    let mut place = Place::at(&simulator);
    place.set("C2C_LOG", "trace");
    place.set("RUST_BACKTRACE", "full");
    let mut traces = Traces::default();

    // Pairing, also with trouble on the way, and with a secret that is refused.
    admin.add_fault(Fault::new(EndpointName::Token, Effect::TruncateAnswer(20)).once());
    traces.said(&place.run(&["pair"]).await.exits(0));
    let wrong = "a-wrong-secret-of-somebody-4711";
    let refused = place
        .run_with(&["pair"], &[("C2C_CLIENT_SECRET", wrong)])
        .await
        .exits(3);
    traces.said(&refused);
    traces.left(&place.state(), "after the pairing");

    // An upload through every kind of trouble whose words could carry a URL or a token.
    place.file("A001.mov", 10 * CHUNK as usize);
    place.file("A002.mov", 3 * CHUNK as usize);
    let refusal = |status, code: &str| Effect::Status {
        status,
        body: BodyKind::S3 {
            code: code.into(),
            message: "Not like this.".into(),
        },
        headers: Vec::new(),
    };
    for fault in [
        Fault::new(EndpointName::PutChunk, refusal(503, "SlowDown"))
            .once()
            .after(1),
        Fault::new(
            EndpointName::PutChunk,
            refusal(403, "SignatureDoesNotMatch"),
        )
        .once()
        .after(2),
        Fault::new(EndpointName::PutChunk, Effect::CutAfterBytes(5_000))
            .once()
            .after(3),
        Fault::new(
            EndpointName::PutChunk,
            Effect::Redirect("https://example.invalid/login".into()),
        )
        .once()
        .after(4),
        Fault::new(EndpointName::PutChunk, Effect::CaptivePortal)
            .once()
            .after(5),
        Fault::new(EndpointName::PutChunk, Effect::WrongEtag)
            .once()
            .after(6),
        Fault::new(EndpointName::CreateAsset, Effect::TruncateAnswer(300)).once(),
        Fault::new(EndpointName::Me, Effect::TruncateAnswer(50)).once(),
        Fault::new(EndpointName::Refresh, refusal(503, "x")).once(),
    ] {
        admin.add_fault(fault);
    }
    simulator
        .clock()
        .advance(Duration::from_secs(8 * 3600 + 60));
    traces.said(&place.run(&["add", "A001.mov"]).await.exits(0));
    traces.said(&place.run(&["upload", "A001.mov"]).await.exits(0));

    // A death in the middle leaves the log of the database, with upload URLs in it, as it is.
    admin.clear_faults();
    admin.add_fault(Fault::new(
        EndpointName::PutChunk,
        Effect::Stall { after_bytes: 100 },
    ));
    let running = place.start(&["upload", "A002.mov"]);
    let met = admin.wait_until_within(Duration::from_secs(60), |now| {
        now.requests_for(EndpointName::PutChunk)
            .filter(|put| put.asset_name.as_deref() == Some("A002.mov"))
            .count()
            >= 3
    });
    assert!(met.await, "the second clip was never sent");
    traces.left(&place.state(), "while it runs");
    traces.said(&place.run(&["add", "A001.mov"]).await.exits(4));
    running.signal(Signal::KILL);
    let killed = running.end().await;
    assert!(killed.was_killed(), "{killed:?}");
    traces.said(&killed);
    traces.left(&place.state(), "after kill -9");
    admin.clear_faults();

    // Looking at it, and finding the authorization gone.
    traces.said(&place.run(&["status"]).await.exits(0));
    traces.said(&place.run(&["list"]).await.exits(0));
    traces.said(&place.run(&["receipt", "1"]).await.exits(0));
    traces.said(&place.run(&["explain", "2"]).await.exits(0));
    admin.revoke_all();
    traces.said(&place.run(&["upload"]).await.exits(3));
    traces.said(&place.run(&["status"]).await.exits(0));
    traces.said(&place.run(&["pair"]).await.exits(0));
    traces.said(&place.run(&["upload"]).await.exits(0));
    traces.left(&place.state(), "at the end");
    assert_eq!(soon(admin.wait_for_delivered(2)).await.len(), 2);

    let secrets = wanted(&simulator);
    // Two pairings, a refresh and thirteen chunks are behind it.
    assert!(secrets.len() > 50, "{}", secrets.len());
    traces.lack(&secrets);
    traces.lack(&[wrong.as_bytes().to_vec()]);

    // The search finds what is there: the names of the files are in the database and in the log.
    for needle in ["A001.mov", "A002.mov"] {
        let hits = traces
            .0
            .iter()
            .filter(|trace| contains(&trace.bytes, needle.as_bytes()));
        assert!(
            hits.clone()
                .any(|trace| trace.place.starts_with("queue.db")),
            "{needle}"
        );
        assert!(
            hits.clone().any(|trace| trace.place.starts_with("stderr")),
            "{needle}"
        );
    }
    let mut log = traces
        .0
        .iter()
        .filter(|trace| trace.place.starts_with("stderr"));
    assert!(
        log.any(|trace| contains(&trace.bytes, b"TRACE")),
        "the log was not at its chattiest"
    );
    simulator.shutdown().await;
}
