//! Moves packets from one device to the other, as the model of the direction decides.
//!
//! One thread for each direction. A busy one looks every 100 µs for what has come and what is due, as a network card that gathers
//! interrupts does; one whose packets come apart sleeps until one comes or is due. The model reckons with the rate, not with when the
//! thread runs, so that this changes when packets come by a tenth of a millisecond, and nothing else.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::queue::{Fate, Model, Tally};
use super::tun::{MTU, Tun};

/// Between two looks of a busy direction.
const TICK: Duration = Duration::from_micros(100);

/// After this long an idle thread sees that it is to end.
const IDLE: Duration = Duration::from_millis(20);

/// Packets read before those that are due go out.
const BATCH: usize = 256;

/// Packets that wait for use at most, per direction.
const SPARE: usize = 4096;

/// One direction at work.
#[derive(Debug)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    end: AtomicBool,
}

/// How well this machine kept up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strain {
    /// Packets that the kernel did not take.
    pub(crate) refused: u64,
    /// Packets handed over, and by how much later than they were due, added up and at most.
    pub(crate) handed_over: u64,
    pub(crate) late: Duration,
    pub(crate) latest: Duration,
}

#[derive(Debug)]
struct State {
    model: Model,
    /// The zero of the model's time.
    epoch: Instant,
    strain: Strain,
    /// Processor time of the thread, and where it was when the model began.
    cpu: Duration,
    cpu_before: Duration,
    /// The model was changed for another: what is on its way belongs to the one before.
    renewed: bool,
}

impl Forwarder {
    /// Starts to move packets.
    ///
    /// # Errors
    ///
    /// When the system has no thread left.
    pub(crate) fn start(
        name: &str,
        from: Tun,
        to: Tun,
        model: Model,
        epoch: Instant,
    ) -> io::Result<Forwarder> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                model,
                epoch,
                strain: Strain::default(),
                cpu: Duration::ZERO,
                cpu_before: Duration::ZERO,
                renewed: false,
            }),
            end: AtomicBool::new(false),
        });
        let thread = thread::Builder::new().name(name.to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || run(&shared, &from, &to)
        })?;
        Ok(Forwarder {
            shared,
            thread: Some(thread),
        })
    }

    /// What was done so far, how well, and the processor time that it took.
    pub(crate) fn counts(&self) -> (Tally, Strain, Duration) {
        let state = self.shared.lock();
        (
            state.model.tally(),
            state.strain,
            state.cpu.saturating_sub(state.cpu_before),
        )
    }

    /// Begins anew with this model; what is on its way is gone.
    pub(crate) fn renew(&self, model: Model, epoch: Instant) {
        let mut state = self.shared.lock();
        state.model = model;
        state.epoch = epoch;
        state.strain = Strain::default();
        state.cpu_before = state.cpu;
        state.renewed = true;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, from: &Tun, to: &Tun) {
    // All this only makes the link keep better time; where it is refused it still works, and the counts say how well.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    if !run_before_others() {
        let _ = rustix::process::nice(-15);
    }
    let mut flight: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut last_came = None;
    while !shared.end.load(Ordering::Relaxed) {
        let mut state = shared.lock();
        if mem::take(&mut state.renewed) {
            flight.clear();
            last_came = None;
        }
        let epoch = state.epoch;
        let now = epoch.elapsed();
        let mut came = 0;
        while came < BATCH {
            let mut packet = spare.pop().unwrap_or_else(|| vec![0; MTU]);
            packet.resize(MTU, 0);
            // A device that is gone says so by an error; then the end is near.
            let Ok(Some(count)) = from.receive(&mut packet) else {
                spare.push(packet);
                break;
            };
            came += 1;
            packet.truncate(count);
            match state.model.offer(now, count) {
                Fate::Arrives(at) => flight.push_back((at, packet)),
                Fate::Lost | Fate::Dropped | Fate::Cut => spare.push(packet),
            }
        }
        let strain = &mut state.strain;
        let due = flight.partition_point(|(at, _)| *at <= now);
        for (at, packet) in flight.drain(..due) {
            strain.refused += u64::from(to.send(&packet).is_err());
            strain.handed_over += 1;
            strain.late += now - at;
            strain.latest = strain.latest.max(now - at);
            if spare.len() < SPARE {
                spare.push(packet);
            }
        }
        state.cpu = processor_time();
        drop(state);
        let busy = came > 0 && last_came.is_some_and(|last| now < last + 2 * TICK);
        if came > 0 {
            last_came = Some(now);
        }
        if came == BATCH {
            continue;
        }
        if busy {
            thread::sleep(TICK);
        } else {
            let wait = flight
                .front()
                .map_or(IDLE, |(at, _)| at.saturating_sub(epoch.elapsed()));
            await_packet(from, wait.min(IDLE));
        }
    }
}

/// Lets this thread run as soon as it can, whatever else wants to. A nice value would not do: the kernel compares that only with what
/// runs in the same session, and compilers and the clients themselves run in others.
#[expect(unsafe_code, reason = "no safe wrapper sets a scheduling class")]
fn run_before_others() -> bool {
    // SAFETY: all of `sched_param` is integers, for which zeros are values.
    let mut how: libc::sched_param = unsafe { mem::zeroed() };
    how.sched_priority = 1;
    // SAFETY: 0 is the calling thread, and `how` lives for the call, which reads it.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const how) == 0 }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Until a packet comes, `wait` is over, or a signal comes.
fn await_packet(from: &Tun, wait: Duration) {
    let wait = Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(0),
        tv_nsec: wait.subsec_nanos().into(),
    };
    // Whatever it says, the next look at the device is what counts.
    let _ = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait));
}
