//! Why the number of transfers is what it is, for people.

use std::fmt;

/// The reason of the present target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    /// Nothing was measured yet.
    Starting,
    /// The number was set by hand, or the bounds leave no choice.
    Fixed,
    /// The number that suited this network the last time is tried.
    Remembered,
    /// What this number brings is being measured.
    Measuring,
    /// More are tried, or more were tried and brought more.
    Climbing {
        /// The number before.
        from: u32,
        /// The number tried.
        to: u32,
    },
    /// Fewer are tried: perhaps they fill the link as well.
    TryingFewer {
        /// The number before.
        from: u32,
        /// The number tried.
        to: u32,
    },
    /// More brought nothing, or too little.
    MoreBroughtNothing {
        /// How many more were tried.
        more: u32,
        /// What they changed, in percent of the goodput.
        percent: i32,
    },
    /// Fewer lost too much.
    FewerLost {
        /// How many fewer were tried.
        fewer: u32,
        /// How much goodput they lost, in percent.
        percent: i32,
    },
    /// Fewer do as well.
    FewerSuffice {
        /// The number before.
        from: u32,
    },
    /// What was remembered of this network still holds.
    Confirmed,
    /// Neither more nor fewer do better.
    Enough,
    /// There is room, but the bounds allow no more.
    AtMost,
    /// The transfers fill the queue in front of the link.
    Delay {
        /// The round trip without a queue, in ms.
        from_ms: u32,
        /// The round trip now, in ms.
        to_ms: u32,
    },
    /// Too much is sent twice.
    Waste {
        /// Share of what is sent that is sent again, in percent.
        percent: u32,
    },
    /// Connections break, although the link works.
    Faults {
        /// Within the last window.
        count: u32,
    },
    /// The link brings something else than before; everything is measured anew.
    LinkChanged {
        /// The goodput now, in percent of that before.
        percent: u32,
    },
    /// Nobody acknowledges anything: no number would help.
    Silent,
    /// There is less to send than could be sent at once.
    LittleWork,
}

impl Why {
    /// Whether this says why a number stays.
    pub(super) fn holds(&self) -> bool {
        matches!(
            self,
            Why::Fixed
                | Why::MoreBroughtNothing { .. }
                | Why::FewerLost { .. }
                | Why::FewerSuffice { .. }
                | Why::Confirmed
                | Why::Enough
                | Why::AtMost
                | Why::Faults { .. }
        )
    }
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Starting => out.write_str("starting"),
            Why::Fixed => out.write_str("fixed by the settings"),
            Why::Remembered => out.write_str("starting with what suited this network before"),
            Why::Measuring => out.write_str("measuring"),
            Why::Climbing { from, to } => write!(out, "climbing: from {from} to {to}"),
            Why::TryingFewer { from, to } => write!(out, "trying {to} instead of {from}"),
            Why::MoreBroughtNothing { more, percent } if *percent > 0 => {
                write!(out, "holding: {more} more brought only {percent} %")
            }
            Why::MoreBroughtNothing { more, .. } => {
                write!(out, "holding: {more} more brought nothing")
            }
            Why::FewerLost { fewer, percent } => {
                write!(out, "holding: {fewer} fewer lost {percent} %")
            }
            Why::FewerSuffice { from } => write!(out, "holding: as fast as with {from}"),
            Why::Confirmed => out.write_str("holding: what suited this network before"),
            Why::Enough => out.write_str("holding: neither more nor fewer do better"),
            Why::AtMost => out.write_str("holding: as many as the settings and this machine allow"),
            Why::Delay { from_ms, to_ms } => write!(
                out,
                "backing off: the round trip went from {from_ms} to {to_ms} ms"
            ),
            Why::Waste { percent } => {
                write!(out, "backing off: {percent} % of the bytes are sent again")
            }
            Why::Faults { count } => write!(out, "backing off: {count} connections broke"),
            Why::LinkChanged { percent } => {
                write!(out, "measuring anew: the link brings {percent} % of before")
            }
            Why::Silent => out.write_str("holding: nothing is acknowledged"),
            Why::LittleWork => out.write_str("holding: there is not enough to send"),
        }
    }
}
