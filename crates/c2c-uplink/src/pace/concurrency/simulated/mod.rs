//! A model of TCP over one bottleneck, to try the controller on: in steps of a tenth of the round trip, with a
//! first-in-first-out queue that drops its tail, random loss, jitter, changes in mid-flight and flows of others.
//!
//! It is calibrated by measurements of real kernels over emulated links; `trials` asserts that it stays near them.

mod flow;
mod world;

use flow::Algorithm;
pub(super) use world::{Outcome, Policy, World};

/// The way between the sender and the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// Payload that the bottleneck passes, bytes per second.
    pub(super) rate: f64,
    /// Round trip without any queue, seconds.
    pub(super) rtt: f64,
    /// The round trip varies by up to this much either way, seconds.
    pub(super) jitter: f64,
    /// The bottleneck's queue, bytes.
    pub(super) queue: f64,
    /// Share of packets lost beside those that the queue drops.
    pub(super) loss: f64,
}

/// What happens on the way at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// The rate becomes this, bytes per second.
    Rate(f64),
    /// Nothing passes for so many seconds.
    Cut(f64),
    /// So many flows of others share the bottleneck from now on.
    Others(u32),
    /// So many of our transfers have something to send at most; `None`: as many as wanted.
    Work(Option<u32>),
}

/// A path, what happens on it, and how our side behaves.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub(super) path: Path,
    algorithm: Algorithm,
    /// (second, what), in order.
    pub(super) turns: Vec<(f64, Turn)>,
    /// Bytes of a chunk. A transfer that is no longer wanted ends with its chunk.
    pub(super) chunk: f64,
    /// The most that one flow may have under way, bytes: the buffers at both ends.
    pub(super) buffers: f64,
    /// The answer to a chunk is awaited before the next.
    pub(super) handover: bool,
}

/// Mbit/s of the line in bytes of payload per second, of which 1500-byte packets leave 96.5 %.
pub(super) fn mbit(rate: f64) -> f64 {
    rate * 1e6 / 8.0 * 0.965
}

pub(super) const LTE: Path = Path {
    rate: 20.0,
    rtt: 0.060,
    jitter: 0.0,
    queue: 150e3,
    loss: 0.005,
};
pub(super) const WIFI: Path = Path {
    rate: 10.0,
    rtt: 0.030,
    jitter: 0.020,
    queue: 150e3,
    loss: 0.02,
};
pub(super) const SATELLITE: Path = Path {
    rate: 20.0,
    rtt: 0.600,
    jitter: 0.0,
    queue: 1.5e6,
    loss: 0.01,
};
pub(super) const FAT: Path = Path {
    rate: 1000.0,
    rtt: 0.020,
    jitter: 0.0,
    queue: 2.5e6,
    loss: 0.0,
};
pub(super) const THIN: Path = Path {
    rate: 1.0,
    rtt: 0.080,
    jitter: 0.005,
    queue: 30e3,
    loss: 0.0,
};
pub(super) const BLOATED: Path = Path {
    rate: 20.0,
    rtt: 0.060,
    jitter: 0.0,
    queue: 2.5e6,
    loss: 0.0,
};
pub(super) const CLEAN: Path = Path {
    rate: 20.0,
    rtt: 0.060,
    jitter: 0.0,
    queue: 150e3,
    loss: 0.0,
};

impl Profile {
    /// Over this path; `cubic` or BBR.
    pub(super) fn new(path: Path, loss_based: bool) -> Profile {
        Profile {
            path: Path {
                rate: mbit(path.rate),
                ..path
            },
            algorithm: if loss_based {
                Algorithm::Cubic
            } else {
                Algorithm::Bbr
            },
            turns: Vec::new(),
            chunk: 25.0 * 1024.0 * 1024.0,
            buffers: 3e6,
            handover: false,
        }
    }

    pub(super) fn reno(mut self) -> Profile {
        self.algorithm = Algorithm::Reno;
        self
    }

    pub(super) fn handover(mut self) -> Profile {
        self.handover = true;
        self
    }

    pub(super) fn buffers(mut self, bytes: f64) -> Profile {
        self.buffers = bytes;
        self
    }

    pub(super) fn chunk(mut self, bytes: f64) -> Profile {
        self.chunk = bytes;
        self
    }

    pub(super) fn turn(mut self, at: f64, turn: Turn) -> Profile {
        self.turns.push((at, turn));
        self
    }

    pub(super) fn loss_based(&self) -> bool {
        self.algorithm != Algorithm::Bbr
    }
}
