//! A clock for the unit that runs fast or stands still, is moved by hand, and survives or forgets restarts as it is told.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use c2c_uplink::queue::{BootId, BootTime, Clock, Sleep, WallTime};
use tokio::sync::watch;

/// The time since boot at which a test begins: long enough for files that are a minute old.
const UPTIME: i64 = 86_400_000;

/// Clones show the same time.
#[derive(Clone, Debug)]
pub(crate) struct TestClock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    real: Instant,
    start: i64,
    factor: f64,
    moved: Mutex<Moved>,
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Moved {
    ahead: i64,
    wall: i64,
    boots: u32,
    /// When the running boot began, in [`TestClock::elapsed`].
    booted: i64,
}

impl TestClock {
    pub(crate) fn starting_at(start: SystemTime, factor: f64) -> TestClock {
        let since = start.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        TestClock {
            inner: Arc::new(Inner {
                real: Instant::now(),
                start: since.as_millis() as i64,
                factor,
                moved: Mutex::new(Moved {
                    ahead: 0,
                    wall: 0,
                    boots: 1,
                    booted: -UPTIME,
                }),
                news: watch::Sender::new(0),
            }),
        }
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.inner.moved.lock().unwrap()
    }

    /// Milliseconds since the start of the test, whatever happened to wall and boots.
    pub(crate) fn elapsed(&self) -> i64 {
        let ran = self.inner.real.elapsed().as_secs_f64() * self.inner.factor * 1000.0;
        ran as i64 + self.moved().ahead
    }

    /// Lets time pass at once.
    pub(crate) fn advance(&self, by: Duration) {
        self.moved().ahead += by.as_millis() as i64;
        self.inner.news.send_modify(|count| *count += 1);
    }

    /// Sets the wall clock alone.
    pub(crate) fn jump_wall(&self, by_ms: i64) {
        self.moved().wall += by_ms;
    }

    /// The system restarts: another boot, and its time begins at 0.
    pub(crate) fn reboot(&self) {
        let now = self.elapsed();
        let mut moved = self.moved();
        moved.boots += 1;
        moved.booted = now;
    }

    /// The true time at which the test began.
    pub(crate) fn started(&self) -> SystemTime {
        let since = u64::try_from(self.inner.start).unwrap();
        SystemTime::UNIX_EPOCH + Duration::from_millis(since)
    }
}

impl Clock for TestClock {
    fn wall(&self) -> WallTime {
        let elapsed = self.elapsed();
        WallTime(self.inner.start + elapsed + self.moved().wall)
    }

    fn boot(&self) -> BootTime {
        let elapsed = self.elapsed();
        BootTime(elapsed - self.moved().booted)
    }

    fn boot_id(&self) -> Option<BootId> {
        Some(BootId(format!("boot-{}", self.moved().boots)))
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let clock = self.clone();
        let until = self
            .elapsed()
            .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
        Box::pin(async move {
            let mut news = clock.inner.news.subscribe();
            loop {
                news.mark_unchanged();
                let left = until.saturating_sub(clock.elapsed());
                if left <= 0 {
                    return;
                }
                let real = left as f64 / 1000.0 / clock.inner.factor;
                let ran = async {
                    // A clock that stands still is moved by hand only.
                    match Duration::try_from_secs_f64(real) {
                        Ok(real) => tokio::time::sleep(real).await,
                        Err(_) => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = ran => {}
                    _ = news.changed() => {}
                }
            }
        })
    }
}
