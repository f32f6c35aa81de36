//! Stores for the tests.

#![expect(clippy::unwrap_used, reason = "a test without its store is to panic")]
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use c2c_queue::conformance::Store;
use c2c_queue::{ManualClock, Queue, SqliteOptions, SqliteQueue, Vault, WallTime};
use secrecy::SecretBox;

/// A SQLite store in a directory of its own.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    dir: tempfile::TempDir,
    clock: ManualClock,
}

impl SqliteStore {
    pub(crate) fn new() -> SqliteStore {
        SqliteStore::at(tempfile::tempdir().unwrap())
    }

    /// On a file system without a disk where there is one: for tests of very many steps, of which none is about
    /// the disk.
    pub(crate) fn quick() -> SqliteStore {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        SqliteStore::at(dir.unwrap())
    }

    fn at(dir: tempfile::TempDir) -> SqliteStore {
        SqliteStore {
            dir,
            clock: ManualClock::new(WallTime(1_800_000_000_000)),
        }
    }
}

pub(crate) fn vault() -> Vault {
    Vault::from_key(SecretBox::new(Box::new([42; 32])))
}

pub(crate) fn options(path: &Path, clock: &ManualClock, process: &str) -> SqliteOptions {
    SqliteOptions {
        path: PathBuf::from(path),
        clock: Arc::new(clock.clone()),
        vault: vault(),
        process: process.to_owned(),
        command: "the test".to_owned(),
        patience: Duration::ZERO,
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn open(&self, process: &str) -> Arc<dyn Queue> {
        Arc::new(
            SqliteQueue::open(options(
                &self.dir.path().join("queue.db"),
                &self.clock,
                process,
            ))
            .unwrap(),
        )
    }

    fn clock(&self) -> ManualClock {
        self.clock.clone()
    }
}
