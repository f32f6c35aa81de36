//! The SQLite store against the suite for every store.

mod support;

use std::sync::Arc;

use support::SqliteStore;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_does_what_every_queue_does() {
    let mut wrong = Vec::new();
    for case in c2c_queue::conformance::cases() {
        let run = tokio::spawn(async move { case.run(Arc::new(SqliteStore::new())).await });
        match run.await {
            Ok(()) => println!("{} ... ok", case.name()),
            Err(_) => wrong.push(case.name()),
        }
    }
    assert!(wrong.is_empty(), "these cases failed: {wrong:#?}");
}
