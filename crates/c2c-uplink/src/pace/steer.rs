//! Keeps the number of transfers where the controller wants it, and remembers what suits the network.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::concurrency::{Allowance, Bounds, Controller, bounds};
use super::networks::Memory;
use super::uptimes::Uptimes;
use super::{Circumstance, Gauge};
use crate::engine::Engine;
use crate::link::LinkState;
use crate::settings::Transfers;

/// Between two looks. Real time: bytes do not run on our clock.
const LOOK: Duration = Duration::from_millis(400);
/// A limit that leaves less than the rest of this share unused decides about the rate, and not the number of transfers.
const BINDING: f64 = 0.7;
/// What was learned is stored this often.
const REMEMBER: Duration = Duration::from_secs(60);
/// What transfers may take of memory altogether, and each: two buffers of 256 KiB, those that wait for their digest, and what
/// a task and a connection need.
const MEMORY: u64 = 24 << 20;
const MEMORY_PER_TRANSFER: u64 = 768 << 10;

/// How many transfers run, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steering {
    /// Transfers that may send at once.
    pub transfers: u32,
    /// Why it is this number, in words.
    pub why: String,
}

/// What the pace is made of; shared by all.
#[derive(Debug)]
pub(crate) struct Helm {
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) steering: watch::Sender<Steering>,
    /// The network that this unit is in, by an opaque name.
    pub(crate) network: watch::Sender<Option<String>>,
    /// The service refused a number of parts that we chose.
    pub(crate) parts_refused: AtomicBool,
    circumstance: Mutex<Circumstance>,
}

impl Helm {
    pub(crate) fn new() -> Helm {
        Helm {
            gauge: Arc::default(),
            steering: watch::Sender::default(),
            network: watch::Sender::default(),
            parts_refused: AtomicBool::new(false),
            circumstance: Mutex::default(),
        }
    }

    /// What is known of the line now.
    pub(crate) fn circumstance(&self) -> Circumstance {
        *self
            .circumstance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, circumstance: Circumstance) {
        *self
            .circumstance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = circumstance;
    }
}

/// The bounds of this machine and these settings.
fn allowed(transfers: Transfers) -> Bounds {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(unix)]
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    #[cfg(not(unix))]
    let descriptors = u64::MAX;
    bounds(&Allowance {
        transfers,
        most: None,
        memory: match transfers {
            Transfers::Auto => MEMORY,
            // Whoever says a number means it.
            Transfers::Fixed(_) => u64::MAX,
        },
        memory_per_transfer: MEMORY_PER_TRANSFER,
        descriptors,
        cores: cores as u32,
    })
}

/// Steers until the shutdown.
pub(crate) async fn steer(engine: Arc<Engine>) {
    let helm = &engine.helm;
    let bounds = allowed(engine.settings.transfers);
    let start = (engine.settings.transfers.count() as u32).clamp(bounds.min, bounds.max);
    let begun = Instant::now();
    let mut steered = Steered {
        engine: &engine,
        controller: Controller::new(bounds, start),
        memory: Memory::open(engine.queue.clone(), engine.clock.wall()).await,
        goodput: None,
        begun,
        uptimes: Uptimes::default(),
        key: None,
        fixed: bounds.min == bounds.max,
    };
    steered.show(start);
    let mut network = helm.network.subscribe();
    network.mark_changed();
    let mut link = engine.link.subscribe();
    let mut up_since = engine.link.is_online().then_some(begun);
    if up_since.is_some() {
        steered.uptimes.up(Duration::ZERO);
    }
    let (mut remembered, mut sending) = (begun, 0);
    loop {
        tokio::select! {
            _ = engine.stop.cancelled() => break,
            Ok(()) = network.changed() => {
                let key = network.borrow_and_update().clone();
                steered.enter(key).await;
                // Another line has interruptions of its own.
                steered.uptimes = Uptimes::default();
                up_since = engine.link.is_online().then(Instant::now);
                if up_since.is_some() {
                    steered.uptimes.up(begun.elapsed());
                }
                continue;
            }
            Ok(()) = link.changed() => {
                let online = *link.borrow_and_update() == LinkState::Online;
                match (online, up_since) {
                    (true, None) => {
                        up_since = Some(Instant::now());
                        steered.uptimes.up(begun.elapsed());
                    }
                    (false, Some(since)) => {
                        steered.was_up(since.elapsed()).await;
                        steered.uptimes.down(begun.elapsed());
                        up_since = None;
                    }
                    _ => {}
                }
                continue;
            }
            () = helm.gauge.busy() => {}
        }
        tokio::select! {
            _ = engine.stop.cancelled() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        let before = std::mem::replace(&mut sending, engine.slots.sending());
        steered.look(begun.elapsed(), before.min(sending));
        if remembered.elapsed() >= REMEMBER {
            remembered = Instant::now();
            steered.remember().await;
        }
    }
    steered.remember().await;
}

struct Steered<'a> {
    engine: &'a Engine,
    controller: Controller,
    memory: Memory,
    /// Bytes per second, a mean that leans on the last ten seconds.
    goodput: Option<f64>,
    begun: Instant,
    /// The interruptions of this run, which count for more than what is remembered.
    uptimes: Uptimes,
    key: Option<String>,
    fixed: bool,
}

impl Steered<'_> {
    fn look(&mut self, now: Duration, sending: usize) {
        let helm = &self.engine.helm;
        let waiting = !self
            .engine
            .idle_transfers
            .load(std::sync::atomic::Ordering::Relaxed);
        let sample = helm.gauge.look(now, sending, waiting);
        if sample.faults > 0 {
            self.uptimes.fault(now);
        }
        // A line that is not filled says nothing of what it can bear.
        if waiting && sending > 0 {
            let rate = sample.acknowledged as f64 / LOOK.as_secs_f64();
            let weight = LOOK.as_secs_f64() / 10.0;
            self.goodput = Some(
                self.goodput
                    .map_or(rate, |known| known + weight * (rate - known)),
            );
        }
        // Nor does one that is held back on purpose, by a person or for others.
        let limit = self
            .engine
            .pacer
            .total()
            .map_or(f64::INFINITY, |rate| rate.get() as f64);
        if self
            .goodput
            .is_some_and(|goodput| goodput >= BINDING * limit)
        {
            return;
        }
        let target = self.controller.sample(&sample);
        self.show(target);
        self.learn(target);
    }

    fn show(&self, target: u32) {
        self.engine.slots.set_target(target as usize);
        let steering = Steering {
            transfers: target,
            why: match self.fixed {
                true => "as it is set".to_owned(),
                false => self.controller.why().to_string(),
            },
        };
        self.engine.helm.steering.send_if_modified(|known| {
            let changed = *known != steering;
            if changed {
                tracing::debug!(transfers = steering.transfers, "{}", steering.why);
                *known = steering;
            }
            changed
        });
    }

    fn learn(&self, target: u32) {
        let seen = self.uptimes.typical(self.begun.elapsed());
        let kept = self.key.as_deref().and_then(|key| self.memory.get(key));
        self.engine.helm.learn(Circumstance {
            goodput: self.goodput.map(|rate| rate as u64),
            transfers: target,
            up_seconds: seen
                .map(|seen| seen.as_secs_f64())
                .or_else(|| kept.and_then(|kept| kept.up_seconds_ema)),
        });
    }

    /// Another network, perhaps one that is known.
    async fn enter(&mut self, key: Option<String>) {
        self.remember().await;
        self.engine.helm.gauge.network_changed();
        self.goodput = None;
        let known = key.as_deref().and_then(|key| self.memory.get(key)?.settled);
        match known {
            Some(settled) => {
                self.goodput = Some(settled.goodput as f64);
                self.controller.resume(settled);
            }
            None => self.controller.network_changed(),
        }
        self.key = key;
        let target = self.controller.target();
        self.show(target);
        self.learn(target);
    }

    async fn was_up(&mut self, up: Duration) {
        if let Some(key) = &self.key {
            let now = self.engine.clock.wall();
            self.memory.was_up(key, up.as_secs_f64(), now).await;
        }
    }

    async fn remember(&mut self) {
        if let (Some(key), Some(settled)) = (&self.key, self.controller.settled()) {
            let now = self.engine.clock.wall();
            self.memory.remember(key, settled, now).await;
        }
    }
}
