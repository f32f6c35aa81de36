//! The store's own time: waits, leases and ages run on it.
//!
//! 1. It never goes back, not even over a restart of the system with a dead clock battery.
//! 2. While the store is open it advances with the time since boot, whatever the wall clock does.
//! 3. It begins at the wall clock or, if that is behind, just after the last stored value; so a machine that
//!    was off does not sit out waits that ended meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{Connection as Db, params};

use crate::clock::Clock;
use crate::vault::Vault;

use super::{Done, pairing};

/// Store time, and the clock it is made of.
#[derive(Clone, Debug)]
pub(super) struct StoreTime {
    clock: Arc<dyn Clock>,
    /// Store time when the time since boot was `boot`.
    base: i64,
    boot: i64,
    last: Arc<AtomicI64>,
    /// Another process runs this time; it is read from what that one stored.
    foreign: bool,
}

impl StoreTime {
    fn starting(clock: Arc<dyn Clock>, stored: i64) -> StoreTime {
        let base = clock.wall().0.max(stored.saturating_add(1));
        let boot = clock.boot().0;
        StoreTime {
            clock,
            base,
            boot,
            last: Arc::new(AtomicI64::new(base)),
            foreign: false,
        }
    }

    /// The time of a store that another process may own.
    pub(super) fn foreign(clock: Arc<dyn Clock>) -> StoreTime {
        StoreTime {
            clock,
            base: 0,
            boot: 0,
            last: Arc::new(AtomicI64::new(0)),
            foreign: true,
        }
    }

    /// Milliseconds of store time.
    pub(super) fn now(&self) -> i64 {
        let now = if self.foreign {
            0
        } else {
            self.base
                .saturating_add(self.clock.boot().0.saturating_sub(self.boot))
        };
        self.last.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// Milliseconds of store time as `db` and the clock tell it.
    pub(super) fn now_in(&self, db: &Db) -> rusqlite::Result<i64> {
        if !self.foreign {
            return Ok(self.now());
        }
        let (stored, boot, boot_id): (i64, i64, Option<String>) =
            db.query_row("SELECT store_ms, boot_ms, boot_id FROM store", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let same_boot = boot_id.is_some() && boot_id == self.clock.boot_id().map(|id| id.0);
        let now = if same_boot {
            stored.saturating_add((self.clock.boot().0 - boot).max(0))
        } else {
            self.clock.wall().0.max(stored)
        };
        Ok(self.last.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// Wall clock, milliseconds since 1970.
    pub(super) fn wall(&self) -> i64 {
        self.clock.wall().0
    }

    /// Stores the time with the changes that happen in it.
    pub(super) fn persist(&self, db: &Db) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE store SET store_ms = ?, boot_ms = ?, boot_id = ?")?
            .execute(params![
                self.now(),
                self.clock.boot().0,
                self.clock.boot_id().map(|id| id.0)
            ])?;
        Ok(())
    }
}

/// Starts the time of a store that was just opened, and notes that it is open.
pub(super) fn begin(db: &Db, clock: Arc<dyn Clock>, vault: &Vault) -> Done<StoreTime> {
    let stored: i64 = db.query_row("SELECT store_ms FROM store", [], |row| row.get(0))?;
    let time = StoreTime::starting(clock, stored);
    db.execute_batch("BEGIN IMMEDIATE")?;
    db.execute("UPDATE store SET clean = 0", [])?;
    time.persist(db)?;
    pairing::ensure_key_check(db, vault)?;
    db.execute_batch("COMMIT")?;
    Ok(time)
}
