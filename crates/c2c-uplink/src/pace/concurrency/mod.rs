//! How many transfers go on at once: the fewest that fill the link.
//!
//! Invariants:
//!
//! 1. The target is always within the [`Bounds`].
//! 2. Nothing is learned from a span in which the link was silent, or in which there was less to send than could be sent, or
//!    from spans further apart than five seconds.
//! 3. A number is judged only after as many transfers really send, and after they had time to find their speed.
//! 4. Fewer are kept only if all that was given up since the last climb costs, as measured, at most 3 % of the goodput.
//! 5. All is pure: no clock, no chance, no I/O; the same samples give the same targets.
//!
//! Where loss, not the link, bounds each flow (CUBIC, Reno), goodput grows with their number: one flow has 17 % of a bad LTE link,
//! four 58 %, eight 95 %; on a bad satellite link sixteen have 40 %. Where BBR sends, one or two are enough and more only lose
//! packets; and where no packet is lost one flow of either kind fills the link, while CUBIC fills its queue, too. No table knows
//! which of these a link is, so the controller tries: a step up is kept if it brings at least an eighth of a proportional gain
//! (two thirds where a queue stands already, for there it only takes from others); a step down is kept if nothing is lost by
//! it. What a number brings counts less what was sent twice, and less a tenth for a second of queue. A failed step is tried again
//! later and later.
//!
//! Two signs tell in which case it is. A *standing queue* (the smoothed round trip over the calmest one seen) means that the
//! link is full: fewer are tried first. Flows that take loss for congestion, lose packets, and still leave no queue are
//! *starving*: more are tried first, and in doubt kept, since the goodput of few lossy flows varies too much to tell quickly.
//!
//! A transfer ends with its chunk, so a step down may take as long as a chunk. In the meantime the base is kept fresh, and a climb
//! that seemed not to pay may still prove itself. When twice in a row the same number brings something else than before, by
//! 30 % and three standard errors, the link is another one and all is tried anew.
//!
//! What the model (`simulated`, near the measured figures within ten points) says of it after three minutes, twenty seeds each,
//! from four transfers and with 32 at most:
//!
//! | link | control | best fixed number, % of the line | auto, % of that (worst seed) | transfers | to 80 %, s |
//! | --- | --- | --- | --- | --- | --- |
//! | LTE 20 Mbit/s, 60 ms, 0.5 % loss | CUBIC | 96 | 98 (95) | 7.8 | 10 |
//! | | BBR | 96 | 99 (98) | 1.1 | 5 |
//! | Wi-Fi 10 Mbit/s, 30±20 ms, 2 % | CUBIC | 96 | 97 (90) | 5.7 | 5 |
//! | | BBR | 96 | 91 (85) | 1.5 | 5 |
//! | satellite 20 Mbit/s, 600 ms, 1 % | CUBIC | 78 | 93 (88) | 31 | 55 |
//! | | BBR | 93 | 98 (94) | 1.1 | 10 |
//! | | BBR, small buffers | 88 | 95 (90) | 2.1 | 10 |
//! | 1 Gbit/s, 20 ms | CUBIC | 97 | 98 (98) | 1.0 | 5 |
//! | | CUBIC, buffers of 256 KiB | 97 | 98 (98) | 9.9 | 10 |
//! | | BBR | 95 | 101 (101) | 1.0 | 5 |
//! | 20 Mbit/s, 60 ms, 1 s of buffer | CUBIC | 96 | 100 (100) | 1.0 | 5 |
//! | 20 Mbit/s, 60 ms, policed | CUBIC | 95 | 92 (85) | 3.9 | 5 |
//! | 1 Mbit/s, 80 ms | either | 97 | 99 (98) | 1.1 | 5 |

mod bounds;
mod controller;
mod memory;
mod why;
mod window;

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod trials;

pub use bounds::{Allowance, DEFAULT_MOST, bounds};
pub use controller::Controller;
pub use memory::{KeptNetwork, NetworkMemoryError, Networks};
pub use why::Why;

use serde::{Deserialize, Serialize};

/// What was seen since the sample before, about every 250 to 500 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, in ms of a monotonic clock.
    pub at_ms: u64,
    /// Bytes that the peers' TCP acknowledged since the sample before, all connections together.
    pub acknowledged: u64,
    /// Bytes that TCP sent since then, those sent again included, where known.
    pub sent: Option<u64>,
    /// Bytes that TCP sent again since then, where known.
    pub retransmitted: Option<u64>,
    /// The smoothed round trip in µs, mean over the busy connections.
    pub srtt_us: Option<u32>,
    /// The smallest round trip ever seen on this path, µs.
    pub min_rtt_us: Option<u32>,
    /// Transfers that had data to send all through the span.
    pub sending: u32,
    /// There was more work than transfers.
    pub waiting_work: bool,
    /// Connections that were reset, timed out or stalled in the span.
    pub faults: u32,
    /// The congestion control takes loss for congestion (CUBIC, Reno); `false` for BBR.
    pub loss_based: bool,
}

/// The least and the most transfers, both at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
}

/// What suits a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The number of transfers.
    pub transfers: u32,
    /// What they brought, bytes per second.
    pub goodput: u64,
}
