//! The constants. Percentages are of the goodput that the best fixed number reaches in the model (see `trials`), unless they
//! are said to be measured.

/// A window lasts this many round trips...
pub(super) const WINDOW_ROUND_TRIPS: f64 = 8.0;
/// ...and so long at least and at most, in ms. With one second LTE under CUBIC is at 80 % after 5 s and not after 10, but three
/// samples are too few to know how sure a figure is: 1 Gbit/s ends at 96 % and not at 98.
pub(super) const WINDOW_MS: (f64, f64) = (2000.0, 8000.0);
/// An undecided comparison goes on for this many windows, and twice as many when it is about giving something up.
pub(super) const WINDOWS_AT_MOST: u64 = 3;
/// More transfers must bring this share of a proportional gain to be kept. With a third, CUBIC on bad Wi-Fi stays at 94 % and
/// not at 97; as measured there, the second four flows add 17 % to 80 % of the line, which is less than a third of 100 %.
pub(super) const GAIN: f64 = 1.0 / 8.0;
/// ...and this share where the queue stands already: there they take it from others.
pub(super) const GAIN_FROM_OTHERS: f64 = 2.0 / 3.0;
/// ...which is a queue this many times as long as one that merely stands.
pub(super) const OTHERS: f64 = 1.5;
/// A climb that brings this share of a proportional gain goes on in doublings.
pub(super) const STEEP: f64 = 0.6;
/// Fewer transfers are kept as long as they, with all that were given up before, keep this share of the goodput. A full link shows
/// no difference at all; with 94 %, the worst seed on Wi-Fi ends at 86 % and not at 90.
pub(super) const KEEP: f64 = 0.97;
/// Of more than this many...
pub(super) const MANY: u32 = 8;
/// ...half are given up at once where the goodput varies so little that the link must be what bounds it. From a remembered 32 on a
/// clean link, 8 are reached after 47 s; by quarters it took 230 s.
pub(super) const EVEN: f64 = 0.02;
/// A second of queue costs as much as this share of the goodput: enough to prefer BBR's one flow with 2 ms to four with 60, too
/// little to give up goodput where CUBIC fills whatever queue there is with any number.
pub(super) const QUEUE_COST: f64 = 0.1;
/// New flows take this many round trips, and one for each doubling up to their share. Where packets are lost at random, slow
/// start shoots over what the loss allows, and CUBIC needs three or four losses to come down to it: with six round trips, the
/// worst seed on the satellite takes the overshoot of eight flows for what they bring, and ends at 46 % and not at 88.
pub(super) const RAMP_ROUND_TRIPS: f64 = 14.0;
/// Until nothing is known: slow start and the mess that it leaves take about this many round trips.
pub(super) const FIRST_RAMP_ROUND_TRIPS: f64 = 16.0;
/// Loss-based flows that lose this share of their packets and leave no queue are short of flows, not of link. LTE loses five times
/// as much, clean links a tenth of it.
pub(super) const STARVING_LOSS: f64 = 0.001;
/// Where a round trip takes longer than this, in ms, those who starve double without a comparison: it would take a quarter of a
/// minute each time, and on the satellite two minutes were over before a number was reached that fills it.
pub(super) const LONG_WAY_MS: f64 = 250.0;
/// On such a way so many flows of BBR are neither too few nor too many. Measured over a satellite: one brings 50 to 67 % of the
/// line, four 83, and sixteen lose 15 % of their packets for one point more; and looking for fewer or more costs a quarter of a
/// minute each time: with it, two minutes came to 67 to 78 %.
pub(super) const ENOUGH_FAR_AWAY: u32 = 4;
/// What they double by is looked at for this many round trips after they began, to see whether they starve still...
pub(super) const FAITH_ROUND_TRIPS: f64 = 8.0;
/// ...and for this many round trips.
pub(super) const FAITH_WINDOW_ROUND_TRIPS: f64 = 3.0;
/// More that leave less than this share of the goodput end it.
pub(super) const FAITH_KEEPS: f64 = 0.6;
/// A comparison is decided when it is this many standard errors clear of its threshold.
pub(super) const CLEAR: f64 = 0.7;
/// The goodput of an unchanged number may vary by this share...
pub(super) const CHANGE: f64 = 0.3;
/// ...and by this many standard errors, twice in a row, before the link counts as another one.
pub(super) const CHANGE_ERRORS: f64 = 3.0;
/// A step that failed is tried again after this many times its own length...
pub(super) const PATIENCE: f64 = 4.0;
/// ...in ms at least...
pub(super) const PATIENCE_MS: f64 = 10_000.0;
/// ...twice as late each time, up to this many times as late.
pub(super) const PATIENCE_AT_MOST: f64 = 16.0;
/// Where the queue of loss-based flows stands the link is full: more are tried only this many times as late. A newcomer's slow
/// start makes the queue overflow, and beside four flows of others each look is a chance to be wrong about what is taken from them.
pub(super) const FULL_PATIENCE: f64 = 8.0;
/// ...and those who starve are not kept waiting: looking up costs them nothing. With the full patience, LTE under CUBIC ends at 94 %
/// and not at 98, its worst seed at 81 and not at 95.
pub(super) const STARVING_PATIENCE: f64 = 2.0;
/// What is left after a step down may take so long to fill the link: CUBIC needs 14 s to mend one loss on 1 Gbit/s, BBR
/// 8 round trips for each quarter.
pub(super) const RECOVERY_MS: f64 = 15_000.0;
/// ...and this many round trips. Without waiting for it, BBR over the satellite ends at 95 % and not at 98, its worst seed at 84
/// and not at 94.
pub(super) const RECOVERY_ROUND_TRIPS: f64 = 25.0;
/// It still recovers if a window brings this much more than the one before.
pub(super) const RISING: f64 = 1.04;
/// Samples further apart belong to two different times, ms.
pub(super) const GAP_MS: u64 = 5000;
/// Assumed until a round trip is known, ms.
pub(super) const UNKNOWN_RTT_MS: f64 = 100.0;
/// Weight of a sample in the round trip that is compared: with jitter of ±20 ms the luckiest single sample would make any other
/// look like a queue.
pub(super) const EVENING: f64 = 0.3;
/// A sender that begins: ten segments.
pub(super) const FIRST_WINDOW: f64 = 14_480.0;
