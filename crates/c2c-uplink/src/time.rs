//! The moment of capture and the offset.
//!
//! The service decides by `offset`, whole seconds between the capture and the request, whether a media was
//! captured in a pause. A wrong offset sends what must not be sent, so:
//!
//! 1. Within one run of the system the offset is measured on the time since boot; the wall clock may jump as it likes.
//! 2. Across a restart it is the difference of two *server* times, each the server's `Date` at a boot plus the time since that boot.
//! 3. Where the run of the capture never met the server, the wall clock is believed only if it now agrees with the server.
//! 4. Otherwise the offset is unknown, and nothing is sent.
//!
//! The offset is never negative, never stored, and computed when the request is sent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use c2c_queue::{BootTime, Capture, CaptureSource, Clock, Queue, QueueError, WallTime};

/// The wall clock is believed when it is no further than this from the server's.
const TOLERANCE_MS: i64 = 120_000;
/// A modification time this far ahead of the clock is still "now" (FAT stores even seconds).
const AHEAD_MS: i64 = 2_000;
/// A wall clock that moved more than this against the time since boot was set by somebody.
const STEP_MS: i64 = 2_000;

/// How long ago something was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offset {
    /// Whole seconds, rounded down.
    Seconds(u64),
    /// It cannot be known, for this reason.
    Unknown(String),
}

/// Server time at the start of this boot: between two bounds, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor {
    low: i64,
    high: i64,
}

impl Anchor {
    fn middle(self) -> i64 {
        self.low + (self.high - self.low) / 2
    }
}

/// A stretch of this boot in which nobody set the wall clock: wall = base + time since boot.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: BootTime,
    base: i64,
}

#[derive(Debug, Default)]
struct Known {
    anchor: Option<Anchor>,
    stored: Option<i64>,
    stretches: Vec<Stretch>,
}

/// What this unit knows about time.
#[derive(Debug)]
pub(crate) struct TimeKeeper {
    clock: Arc<dyn Clock>,
    queue: Arc<dyn Queue>,
    /// No true time is before this one: the server said so in an earlier boot.
    floor: Option<i64>,
    known: Mutex<Known>,
}

impl TimeKeeper {
    /// Takes up what earlier boots learned.
    pub(crate) async fn open(
        clock: Arc<dyn Clock>,
        queue: Arc<dyn Queue>,
    ) -> Result<TimeKeeper, QueueError> {
        let floor = queue.latest_anchor().await?;
        let keeper = TimeKeeper {
            clock,
            queue,
            floor,
            known: Mutex::default(),
        };
        keeper.watch_wall();
        Ok(keeper)
    }

    /// The wall clock is known to be wrong: it contradicts what the server says, or lies before what it said last.
    fn wall_is_wrong(&self) -> bool {
        let now = self.clock.wall().0;
        match self.lock().anchor {
            Some(anchor) => (now - anchor.middle() - self.clock.boot().0).abs() > TOLERANCE_MS,
            None => self.floor.is_some_and(|floor| now < floor - TOLERANCE_MS),
        }
    }

    /// Notices a wall clock that was set. Called now and then; a step between two calls is found by the second.
    pub(crate) fn watch_wall(&self) {
        let boot = self.clock.boot();
        let base = self.clock.wall().0 - boot.0;
        let mut known = self.lock();
        let stepped = known
            .stretches
            .last()
            .is_none_or(|last| (last.base - base).abs() > STEP_MS);
        if stepped {
            known.stretches.push(Stretch { from: boot, base });
        }
    }

    /// Learns from the `Date` of an answer to a request that was sent at `sent` and answered by now.
    pub(crate) async fn note_date(
        &self,
        date: Option<SystemTime>,
        sent: BootTime,
    ) -> Result<(), QueueError> {
        let Some(date) = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok()) else {
            return Ok(());
        };
        let Some(boot_id) = self.clock.boot_id() else {
            return Ok(());
        };
        self.watch_wall();
        let date = date.as_millis() as i64;
        // The header is cut to whole seconds, and was written somewhere between `sent` and now.
        let fresh = Anchor {
            low: date - self.clock.boot().0,
            high: date + 1000 - sent.0,
        };
        let store = {
            let mut known = self.lock();
            let anchor = match known.anchor {
                Some(old) if old.low.max(fresh.low) <= old.high.min(fresh.high) => Anchor {
                    low: old.low.max(fresh.low),
                    high: old.high.min(fresh.high),
                },
                // First contact, or the server's clock was set: believe what it says now.
                _ => fresh,
            };
            known.anchor = Some(anchor);
            let middle = anchor.middle();
            if known
                .stored
                .is_none_or(|stored| (stored - middle).abs() > 250)
            {
                known.stored = Some(middle);
                Some(middle)
            } else {
                None
            }
        };
        match store {
            Some(epoch) => self.queue.store_anchor(&boot_id, epoch).await,
            None => Ok(()),
        }
    }

    /// The server's time as far as it is known, otherwise the wall clock.
    pub(crate) fn now(&self) -> SystemTime {
        let ms = match self.lock().anchor {
            Some(anchor) => anchor.middle() + self.clock.boot().0,
            None => self.clock.wall().0,
        };
        UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)
    }

    /// How far the wall clock is ahead of the server, in milliseconds, once that is known.
    pub(crate) fn wall_error_ms(&self) -> Option<i64> {
        let anchor = self.lock().anchor?;
        Some(self.clock.wall().0 - (anchor.middle() + self.clock.boot().0))
    }

    /// The capture moment of something created right now.
    pub(crate) fn capture_now(&self) -> Capture {
        let boot_id = self.clock.boot_id();
        let boot = boot_id.is_some().then(|| self.clock.boot());
        Capture {
            wall: self.clock.wall(),
            boot_id,
            boot,
            source: if self.wall_is_wrong() {
                CaptureSource::Doubted
            } else {
                CaptureSource::Given
            },
        }
    }

    /// The capture moment of a file by its modification time, or the reason why it cannot be known.
    pub(crate) fn capture_of_file(&self, mtime_ns: i64) -> (Capture, Option<String>) {
        self.watch_wall();
        let wall = WallTime(mtime_ns.div_euclid(1_000_000));
        let (boot_now, wall_now) = (self.clock.boot(), self.clock.wall());
        let boot_id = self.clock.boot_id();
        let boot = boot_id
            .as_ref()
            .and_then(|_| self.boot_time_of(wall, boot_now));
        let capture = Capture {
            wall,
            boot_id: boot.and(boot_id),
            boot: boot.map(|boot| BootTime(boot.0.min(boot_now.0))),
            source: if self.wall_is_wrong() {
                CaptureSource::Doubted
            } else {
                CaptureSource::FileTime
            },
        };
        let ahead = wall.0 - wall_now.0;
        let unknown = (capture.boot.is_none() && ahead > AHEAD_MS).then(|| {
            format!(
                "the time of the file is {} ahead of this unit's clock",
                crate::format_span(ahead as u64)
            )
        });
        (capture, unknown)
    }

    /// When in this boot the wall clock showed `wall`, looking at every stretch from the newest to the oldest.
    fn boot_time_of(&self, wall: WallTime, boot_now: BootTime) -> Option<BootTime> {
        let known = self.lock();
        let mut until = boot_now.0 + AHEAD_MS;
        for (index, stretch) in known.stretches.iter().enumerate().rev() {
            // What was before this process began is taken to belong to the first stretch it saw.
            let from = if index == 0 { 0 } else { stretch.from.0 };
            let boot = wall.0 - stretch.base;
            if (from..=until).contains(&boot) {
                return Some(BootTime(boot));
            }
            until = stretch.from.0;
        }
        None
    }

    /// How long ago `capture` was, as of now, with the stored server time at the start of its boot at hand.
    fn offset_with(&self, capture: &Capture, captured_epoch: Option<i64>) -> Offset {
        let boot_now = self.clock.boot();
        let same_boot = capture.boot_id.is_some() && capture.boot_id == self.clock.boot_id();
        if let (true, Some(boot)) = (same_boot, capture.boot) {
            return seconds(boot_now.0 - boot.0);
        }
        let anchor = self.lock().anchor;
        if let (Some(epoch), Some(boot), Some(anchor)) = (captured_epoch, capture.boot, anchor) {
            return seconds(anchor.middle() + boot_now.0 - (epoch + boot.0));
        }
        if capture.source == CaptureSource::Doubted {
            return Offset::Unknown(
                "this unit's clock was wrong when it was captured, and Frame.io was not in reach"
                    .into(),
            );
        }
        let wall_now = self.clock.wall();
        let age = wall_now.0 - capture.wall.0;
        if age < -AHEAD_MS {
            return Offset::Unknown("it lies in the future of this unit's clock".into());
        }
        match anchor {
            Some(anchor) => {
                let error = wall_now.0 - (anchor.middle() + boot_now.0);
                if error.abs() > TOLERANCE_MS {
                    return Offset::Unknown(format!(
                        "this unit's clock is {} {} Frame.io's, and was not compared when the media was captured",
                        crate::format_span(error.unsigned_abs()),
                        if error > 0 { "ahead of" } else { "behind" },
                    ));
                }
                seconds(anchor.middle() + boot_now.0 - capture.wall.0)
            }
            None => seconds(age),
        }
    }

    /// Prepares the offset of `capture` so that it can be computed without waiting, when the request is sent.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        capture: &Capture,
    ) -> Result<PreparedOffset, QueueError> {
        let captured_epoch = match (&capture.boot_id, self.clock.boot_id()) {
            (Some(then), Some(now)) if *then != now => self.queue.anchor(then).await?,
            _ => None,
        };
        self.watch_wall();
        Ok(PreparedOffset {
            keeper: self.clone(),
            capture: capture.clone(),
            captured_epoch,
        })
    }

    /// Waits on the clock of this unit.
    pub(crate) async fn pause(&self, wait: Duration) {
        self.clock.sleep(wait).await;
    }

    /// Time since boot, to measure a request with.
    pub(crate) fn boot(&self) -> BootTime {
        self.clock.boot()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An offset that only lacks the present moment.
#[derive(Clone, Debug)]
pub(crate) struct PreparedOffset {
    keeper: Arc<TimeKeeper>,
    capture: Capture,
    captured_epoch: Option<i64>,
}

impl PreparedOffset {
    /// The offset as of now.
    pub(crate) fn now(&self) -> Offset {
        self.keeper.offset_with(&self.capture, self.captured_epoch)
    }

    /// Whether the offset rests on the time since boot and the server's word alone.
    pub(crate) fn is_exact(&self) -> bool {
        let same_boot =
            self.capture.boot_id.is_some() && self.capture.boot_id == self.keeper.clock.boot_id();
        let anchored = self.captured_epoch.is_some() && self.keeper.lock().anchor.is_some();
        self.capture.boot.is_some() && (same_boot || anchored)
    }

    /// Whether a media that was held for its capture time may go on: the offset is exact, or it is known by a wall clock that
    /// agrees with the server, and the capture did not lie in the future when the media was added.
    pub(crate) fn is_sound(&self, added_at: WallTime) -> bool {
        self.is_exact()
            || (self.keeper.lock().anchor.is_some()
                && self.capture.wall.0 <= added_at.0 + AHEAD_MS
                && matches!(self.now(), Offset::Seconds(_)))
    }

    /// The offset if the wall clock is believed, come what may: for media whose capture time a person accepted.
    pub(crate) fn by_wall_clock(&self) -> u64 {
        (self.keeper.clock.wall().0 - self.capture.wall.0).max(0) as u64 / 1000
    }
}

fn seconds(ms: i64) -> Offset {
    Offset::Seconds(ms.max(0) as u64 / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use c2c_queue::{ManualClock, SqliteOptions, SqliteQueue, Vault};

    /// A unit with a clock of its own, beside a server whose clock is right.
    struct Unit {
        dir: tempfile::TempDir,
        clock: Arc<ManualClock>,
        queue: Arc<dyn Queue>,
        time: Arc<TimeKeeper>,
        /// The truth, in milliseconds since 1970.
        truth: i64,
    }

    const START: i64 = 1_780_000_000_000;
    const DAY: i64 = 86_400_000;

    fn open(dir: &tempfile::TempDir, clock: &Arc<ManualClock>) -> Arc<dyn Queue> {
        let queue = SqliteQueue::open(SqliteOptions {
            path: dir.path().join("queue.db"),
            clock: clock.clone(),
            vault: Vault::key_file(&dir.path().join("key")).unwrap(),
            process: "test".into(),
            command: "test".into(),
            patience: Duration::ZERO,
        });
        Arc::new(queue.unwrap())
    }

    impl Unit {
        async fn new(wall_error: i64) -> Unit {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(ManualClock::new(WallTime(START + wall_error)));
            let queue = open(&dir, &clock);
            let time = Arc::new(
                TimeKeeper::open(clock.clone(), queue.clone())
                    .await
                    .unwrap(),
            );
            Unit {
                dir,
                clock,
                queue,
                time,
                truth: START,
            }
        }

        fn pass(&mut self, ms: i64) {
            self.clock.advance(Duration::from_millis(ms as u64));
            self.truth += ms;
        }

        /// The server answers with its `Date`, cut to whole seconds.
        async fn contact(&self) {
            let date = UNIX_EPOCH + Duration::from_secs((self.truth / 1000) as u64);
            self.time
                .note_date(Some(date), self.time.boot())
                .await
                .unwrap();
        }

        /// The system restarts; while it is off, `off` passes, and the clock comes up wrong by `jump` more than before.
        async fn reboot(&mut self, off: i64, jump: i64) {
            self.queue.close().await.unwrap();
            self.truth += off;
            self.clock.reboot();
            self.clock.jump_wall(off + jump);
            self.queue = open(&self.dir, &self.clock);
            let time = TimeKeeper::open(self.clock.clone(), self.queue.clone())
                .await
                .unwrap();
            self.time = Arc::new(time);
        }

        async fn offset(&self, capture: &Capture) -> Offset {
            self.time.prepare(capture).await.unwrap().now()
        }

        #[track_caller]
        fn assert_true(&self, offset: Offset, captured: i64) {
            let age = (self.truth - captured) / 1000;
            let Offset::Seconds(seconds) = offset else {
                panic!("{offset:?}, truly {age} s")
            };
            assert!(
                (seconds as i64 - age).abs() <= 1,
                "{seconds} s, truly {age} s"
            );
        }
    }

    #[tokio::test]
    async fn within_a_boot_no_jump_of_the_wall_clock_matters() {
        let mut unit = Unit::new(0).await;
        let (capture, captured) = (unit.time.capture_now(), unit.truth);
        for jump in [3 * DAY, -9 * DAY, 400 * DAY] {
            unit.pass(61_000);
            unit.clock.jump_wall(jump);
            unit.assert_true(unit.offset(&capture).await, captured);
            unit.contact().await;
            unit.assert_true(unit.offset(&capture).await, captured);
        }
    }

    #[tokio::test]
    async fn across_a_restart_the_servers_time_of_both_boots_counts() {
        for (error, jump) in [
            (0, 5 * DAY),
            (0, -5 * DAY),
            (40 * DAY, -40 * DAY),
            (-3 * DAY, 6 * DAY),
        ] {
            let mut unit = Unit::new(error).await;
            unit.contact().await;
            unit.pass(10_000);
            let (capture, captured) = (unit.time.capture_now(), unit.truth);
            unit.reboot(3_600_000, jump).await;
            unit.contact().await;
            unit.pass(5_000);
            unit.assert_true(unit.offset(&capture).await, captured);
        }
    }

    /// The boot of the capture never met the server. If the clock is right now, it is believed; if not, nobody can know.
    #[tokio::test]
    async fn without_the_server_the_wall_clock_counts_if_it_is_right_now() {
        let mut unit = Unit::new(0).await;
        let (capture, captured) = (unit.time.capture_now(), unit.truth);
        unit.reboot(7_200_000, 0).await;
        unit.contact().await;
        unit.assert_true(unit.offset(&capture).await, captured);
        for jump in [2 * DAY, -2 * DAY] {
            let mut unit = Unit::new(0).await;
            let capture = unit.time.capture_now();
            unit.reboot(7_200_000, jump).await;
            unit.contact().await;
            let offset = unit.offset(&capture).await;
            assert!(matches!(offset, Offset::Unknown(_)), "{offset:?}");
        }
    }

    /// An empty clock battery: the unit comes up in 1970, captures offline, and is right again after the next restart.
    #[tokio::test]
    async fn a_capture_under_a_clock_known_to_be_wrong_is_held() {
        let mut unit = Unit::new(0).await;
        unit.contact().await;
        unit.reboot(DAY, -START).await;
        let captured = unit.truth;
        let capture = unit.time.capture_now();
        assert_eq!(capture.source, CaptureSource::Doubted);
        unit.pass(5_000);
        // Within the boot it is exact all the same.
        unit.assert_true(unit.offset(&capture).await, captured);
        unit.reboot(DAY, START).await;
        unit.contact().await;
        let offset = unit.offset(&capture).await;
        assert!(matches!(offset, Offset::Unknown(_)), "{offset:?}");
    }

    /// A small board without a clock battery: it starts in the past, records, and is set by NTP while the program runs.
    #[tokio::test]
    async fn file_times_from_before_a_step_are_dated_by_the_stretch_they_belong_to() {
        let mut unit = Unit::new(-100 * DAY).await;
        unit.pass(60_000);
        let (mtime, captured) = (unit.clock.wall().0, unit.truth);
        unit.pass(60_000);
        unit.time.watch_wall();
        unit.clock.jump_wall(100 * DAY);
        unit.pass(60_000);
        let (capture, unknown) = unit.time.capture_of_file(mtime * 1_000_000);
        assert_eq!(unknown, None);
        unit.assert_true(unit.offset(&capture).await, captured);
    }

    #[tokio::test]
    async fn a_file_from_the_future_is_unknown_and_a_hair_ahead_is_now() {
        let unit = Unit::new(0).await;
        let (_, unknown) = unit.time.capture_of_file((START + DAY) * 1_000_000);
        assert!(unknown.is_some());
        let (capture, unknown) = unit.time.capture_of_file((START + 1_500) * 1_000_000);
        assert_eq!(unknown, None);
        assert_eq!(unit.offset(&capture).await, Offset::Seconds(0));
    }
}
