//! Time as the product needs it: wall time to show and to date media, time since boot to measure.
//!
//! The two are different types because the wall clock of a camera jumps (a dead battery, an NTP
//! answer, a person), while the time since boot does not.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::host;

/// Milliseconds since 1970-01-01T00:00:00Z, as a wall clock said it. May jump in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub i64);

/// Time since the system started, time asleep included. Comparable only within one [`BootId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(
    /// Milliseconds since the boot.
    pub i64,
);

/// Names one run of the operating system; another value means that the system restarted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the moment of capture became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureSource {
    /// The embedder said so (usually: now).
    Given,
    /// Taken from the modification time of the file.
    FileTime,
    /// The wall clock was known to be wrong at the capture: only the time since boot counts.
    Doubted,
}

/// The moment a media was created, in every clock that was there to witness it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// What the wall clock of this unit said, or would have said, at the capture.
    pub wall: WallTime,
    /// The run of the system in which the media was captured, when that is known.
    pub boot_id: Option<BootId>,
    /// Time since that boot at the capture; set exactly when `boot_id` is.
    pub boot: Option<BootTime>,
    /// Where the moment comes from.
    pub source: CaptureSource,
}

/// A future that ends when a clock says so.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All time that the product reads. Tests move it by hand or run it fast.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The wall clock of this unit, uncorrected.
    fn wall(&self) -> WallTime;
    /// Time since the system started.
    fn boot(&self) -> BootTime;
    /// The current run of the system, or `None` where the platform does not tell.
    fn boot_id(&self) -> Option<BootId>;
    /// Waits for `duration` on this clock.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// The clocks of this machine.
///
/// On Linux the time since boot counts time asleep (`CLOCK_BOOTTIME`) and the boot id is the kernel's. Where
/// the platform tells no boot id there is none, and every start of the program counts as a restart.
#[derive(Clone, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The clocks of this machine.
    pub fn new() -> SystemClock {
        SystemClock
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> WallTime {
        WallTime(wall_ms())
    }

    fn boot(&self) -> BootTime {
        BootTime(host::boot_ms())
    }

    fn boot_id(&self) -> Option<BootId> {
        host::boot_id().map(BootId)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that stands still until somebody moves it. Clones show the same time.
///
/// For tests and simulations: waits end exactly when the clock is moved past them.
#[derive(Clone)]
pub struct ManualClock {
    inner: Arc<Mutex<Manual>>,
}

struct Manual {
    wall: i64,
    boot: i64,
    boots: u64,
    sleepers: Vec<(i64, oneshot::Sender<()>)>,
}

impl Manual {
    fn wake(&mut self) {
        let boot = self.boot;
        let (due, asleep) = std::mem::take(&mut self.sleepers)
            .into_iter()
            .filter(|(_, sleeper)| !sleeper.is_closed())
            .partition(|(until, _)| *until <= boot);
        self.sleepers = asleep;
        let due: Vec<_> = due;
        for (_, sleeper) in due {
            // A sleeper that went away in this instant needs no call.
            let _ = sleeper.send(());
        }
    }
}

impl ManualClock {
    /// A clock that shows `wall`, one minute after a boot.
    pub fn new(wall: WallTime) -> ManualClock {
        let manual = Manual {
            wall: wall.0,
            boot: 60_000,
            boots: 1,
            sleepers: Vec::new(),
        };
        ManualClock {
            inner: Arc::new(Mutex::new(manual)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Manual> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass: wall clock and time since boot alike. Wakes who slept until then.
    pub fn advance(&self, by: Duration) {
        let by = millis(by);
        let mut manual = self.lock();
        manual.wall = manual.wall.saturating_add(by);
        manual.boot = manual.boot.saturating_add(by);
        manual.wake();
    }

    /// Sets the wall clock alone.
    pub fn set_wall(&self, wall: WallTime) {
        self.lock().wall = wall.0;
    }

    /// Moves the wall clock alone, by milliseconds in either direction.
    pub fn jump_wall(&self, by_ms: i64) {
        let mut manual = self.lock();
        manual.wall = manual.wall.saturating_add(by_ms);
    }

    /// Restarts the system: another boot id, time since boot `0`; the wall clock stays. Who slept is woken,
    /// because no program survives this.
    pub fn reboot(&self) {
        let mut manual = self.lock();
        manual.boots += 1;
        manual.boot = i64::MAX;
        manual.wake();
        manual.boot = 0;
    }

    /// Time until the next sleeper wakes, if anybody sleeps: for tests that move from event to event.
    pub fn next_wake(&self) -> Option<Duration> {
        let manual = self.lock();
        let asleep = manual
            .sleepers
            .iter()
            .filter(|(_, sleeper)| !sleeper.is_closed());
        let until = asleep.map(|(until, _)| *until).min()?;
        Some(Duration::from_millis(
            u64::try_from(until - manual.boot).unwrap_or(0),
        ))
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manual = self.lock();
        f.debug_struct("ManualClock")
            .field("wall", &manual.wall)
            .field("boot", &manual.boot)
            .field("boots", &manual.boots)
            .finish_non_exhaustive()
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> WallTime {
        WallTime(self.lock().wall)
    }

    fn boot(&self) -> BootTime {
        BootTime(self.lock().boot)
    }

    fn boot_id(&self) -> Option<BootId> {
        Some(BootId(format!("boot-{}", self.lock().boots)))
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let mut manual = self.lock();
        let (sleeper, woken) = oneshot::channel();
        let until = manual.boot.saturating_add(millis(duration));
        manual.sleepers.push((until, sleeper));
        manual.wake();
        Box::pin(async move {
            // The clock itself went away: nobody can move it any more, so the wait is over.
            let _ = woken.await;
        })
    }
}

/// The clocks of this machine run faster (or slower): one real second is `factor` seconds here.
///
/// For demonstrations and tests of long waits over real sockets. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ScaledClock {
    factor: f64,
    start: Instant,
    wall: i64,
    boot: i64,
    jumped: Arc<AtomicI64>,
}

impl ScaledClock {
    /// Starts at the time of this machine and runs `factor` times as fast. A factor that is not a positive
    /// number counts as `1`.
    pub fn new(factor: f64) -> ScaledClock {
        ScaledClock {
            factor: if factor.is_finite() && factor > 0.0 {
                factor
            } else {
                1.0
            },
            start: Instant::now(),
            wall: wall_ms(),
            boot: host::boot_ms(),
            jumped: Arc::new(AtomicI64::new(0)),
        }
    }

    /// Moves the wall clock alone, by milliseconds in either direction.
    pub fn jump_wall(&self, by_ms: i64) {
        self.jumped.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn elapsed(&self) -> i64 {
        // Saturates; a test does not run for centuries.
        (self.start.elapsed().as_secs_f64() * self.factor * 1000.0) as i64
    }
}

impl Clock for ScaledClock {
    fn wall(&self) -> WallTime {
        WallTime(self.wall + self.elapsed() + self.jumped.load(Ordering::Relaxed))
    }

    fn boot(&self) -> BootTime {
        BootTime(self.boot + self.elapsed())
    }

    fn boot_id(&self) -> Option<BootId> {
        host::boot_id().map(BootId)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let real = Duration::try_from_secs_f64(duration.as_secs_f64() / self.factor)
            .unwrap_or(Duration::MAX);
        Box::pin(tokio::time::sleep(real))
    }
}

fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        // A camera whose clock was never set may well show a time before 1970.
        Err(before) => -millis(before.duration()),
    }
}

/// Milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn manual_clock_wakes_exactly_when_it_is_moved_past() {
        let clock = ManualClock::new(WallTime(1_000));
        let first = clock.sleep(Duration::from_millis(10));
        let second = clock.sleep(Duration::from_millis(20));
        assert_eq!(clock.next_wake(), Some(Duration::from_millis(10)));
        clock.advance(Duration::from_millis(10));
        first.await;
        assert_eq!(clock.next_wake(), Some(Duration::from_millis(10)));
        let mut second = second;
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(pending);
        clock.advance(Duration::from_millis(10));
        second.await;
        assert_eq!(clock.next_wake(), None);
        clock.sleep(Duration::ZERO).await;
        assert_eq!(
            (clock.wall(), clock.boot()),
            (WallTime(1_020), BootTime(60_020))
        );
    }

    #[tokio::test]
    async fn manual_clock_reboots_and_jumps() {
        let clock = ManualClock::new(WallTime(1_000));
        let before = clock.boot_id();
        let asleep = clock.sleep(Duration::from_secs(3600));
        clock.reboot();
        asleep.await;
        assert_ne!(clock.boot_id(), before);
        assert_eq!(clock.boot(), BootTime(0));
        clock.jump_wall(-5_000);
        assert_eq!(clock.wall(), WallTime(-4_000));
        assert_eq!(clock.boot(), BootTime(0));
    }

    #[tokio::test]
    async fn scaled_clock_runs_fast_and_sleeps_short() {
        let clock = ScaledClock::new(1000.0);
        let real = Instant::now();
        let boot = clock.boot();
        clock.sleep(Duration::from_secs(10)).await;
        assert!(
            clock.boot().0 - boot.0 >= 10_000,
            "ten seconds passed on the clock"
        );
        assert!(
            real.elapsed() < Duration::from_secs(5),
            "and much less in the room"
        );
        let wall = clock.wall();
        clock.jump_wall(-3_600_000);
        assert!(clock.wall() < wall);
    }

    #[test]
    fn system_clock_never_goes_back_and_knows_its_boot() {
        let clock = SystemClock::new();
        let first = clock.boot();
        assert!(first.0 > 0);
        assert!(clock.boot() >= first);
        assert_eq!(clock.boot_id(), clock.boot_id());
        assert!(clock.boot_id().is_some() || !cfg!(target_os = "linux"));
    }
}
