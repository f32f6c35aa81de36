//! The store's own time: waits, leases and ages run on it.
//!
//! 1. It never goes back, not even over a restart of the system with a dead clock battery.
//! 2. It advances with the time since boot, also while the store is closed, as long as the system does not restart.
//! 3. Over a restart of the system it goes on where it was at the last commit. The time that the system was off counts as
//!    nothing: only the wall clock could tell it, and a wall clock that is wrong by decades would end every lease and age
//!    every URL at once. A wait is sat out a little longer; a URL that did expire is refused by the server.
//! 4. Only a new store asks the wall clock where to begin, so that its times look familiar in the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{Connection as Db, params};

use crate::clock::Clock;
use crate::vault::Vault;

use super::{Done, Numbers, pairing};

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
    /// Goes on from what was stored, or begins.
    fn starting(clock: Arc<dyn Clock>, stored: Option<&Stored>) -> StoreTime {
        let base = match stored {
            Some(stored) => stored
                .reaches(&*clock)
                .max(stored.store_ms.saturating_add(1)),
            // A clock that was never set may show a time before 1970; the time of a store is positive.
            None => clock.wall().0.max(1),
        };
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
        let now = Stored::read(db)?.map_or(0, |stored| stored.reaches(&*self.clock));
        Ok(self.last.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// Wall clock, milliseconds since 1970.
    pub(super) fn wall(&self) -> i64 {
        self.clock.wall().0
    }

    /// Stores the time, and the numbers, with the changes that happen in it.
    pub(super) fn persist(&self, db: &Db, numbers: &Numbers) -> rusqlite::Result<()> {
        let sql =
            "UPDATE store SET store_ms = ?, boot_ms = ?, boot_id = ?, token = ?, position = ?";
        db.prepare_cached(sql)?.execute(params![
            self.now(),
            self.clock.boot().0,
            self.clock.boot_id().map(|id| id.0),
            numbers.token.get(),
            numbers.position.get(),
        ])?;
        Ok(())
    }
}

/// Store time at the last commit.
struct Stored {
    store_ms: i64,
    boot_ms: i64,
    boot_id: Option<String>,
}

impl Stored {
    /// `None` where it never began.
    fn read(db: &Db) -> rusqlite::Result<Option<Stored>> {
        let stored = db
            .prepare_cached("SELECT store_ms, boot_ms, boot_id FROM store")?
            .query_row([], |row| {
                Ok(Stored {
                    store_ms: row.get(0)?,
                    boot_ms: row.get(1)?,
                    boot_id: row.get(2)?,
                })
            })?;
        Ok((stored.store_ms > 0).then_some(stored))
    }

    /// How far store time has come: on with the time since boot in the same boot, no further in another.
    fn reaches(&self, clock: &dyn Clock) -> i64 {
        let passed = match clock.boot_id() {
            Some(boot) if self.boot_id.as_ref() == Some(&boot.0) => {
                clock.boot().0.saturating_sub(self.boot_ms).max(0)
            }
            _ => 0,
        };
        self.store_ms.saturating_add(passed)
    }
}

/// Starts the time of a store that was just opened, and notes that it is open.
pub(super) fn begin(db: &Db, clock: Arc<dyn Clock>, vault: &Vault) -> Done<StoreTime> {
    let stored = Stored::read(db)?;
    let time = StoreTime::starting(clock, stored.as_ref());
    db.execute_batch("BEGIN IMMEDIATE")?;
    db.execute("UPDATE store SET clean = 0", [])?;
    time.persist(db, &Numbers::read(db)?)?;
    pairing::ensure_key_check(db, vault)?;
    db.execute_batch("COMMIT")?;
    Ok(time)
}
