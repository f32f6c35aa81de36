//! Links by name: what a unit in the field meets.

use std::str::FromStr;
use std::time::Duration;

/// One direction of a link.
///
/// A packet waits in the queue, is sent at the rate, may be lost (then it has used its airtime), and travels for the delay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    /// Bits per second, IP headers included.
    pub(crate) rate: u64,
    /// From the last bit sent to its arrival.
    pub(crate) delay: Duration,
    /// Added to or taken from the delay, up to this much, drawn anew every 50 ms. Packets stay in order. At most the delay.
    pub(crate) jitter: Duration,
    /// How likely a packet is lost after it was sent, 0 to 1.
    pub(crate) loss: f64,
    /// Bytes that wait at most, the packet that is being sent included; what comes then is dropped.
    pub(crate) queue: usize,
}

/// Times at which nothing goes through, in either direction.
///
/// Each period begins with the link up. What would be on the air when the cut begins, or comes while it lasts, is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// From the end of one cut to the end of the next.
    pub(crate) every: Duration,
    /// How long a cut lasts, less than `every`.
    pub(crate) length: Duration,
}

/// A link: both directions, and its cuts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Profile {
    /// By which [`Profile::from_str`] finds it.
    pub(crate) name: &'static str,
    /// From the client (near) to the server (far).
    pub(crate) up: Line,
    /// From the server to the client.
    pub(crate) down: Line,
    /// When the link is gone, if ever.
    pub(crate) cuts: Option<Cuts>,
}

/// There is no link of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no link {name:?}; there are {}", names())]
pub(crate) struct UnknownProfile {
    name: String,
}

const MBIT: u64 = 1_000_000;

/// `rtt` in ms, `queue` in bytes; without jitter, loss and cuts.
const fn clean(name: &'static str, up: u64, down: u64, rtt: u64, queue: usize) -> Profile {
    let line = Line {
        rate: up * MBIT,
        delay: Duration::from_micros(rtt * 500),
        jitter: Duration::ZERO,
        loss: 0.0,
        queue,
    };
    Profile {
        name,
        up: line,
        down: Line {
            rate: down * MBIT,
            ..line
        },
        cuts: None,
    }
}

impl Profile {
    /// Every link there is.
    ///
    /// Loss is on the way of the data only, so that its number says what the sender meets. Jitter is shared out on both ways.
    pub(crate) const ALL: [Profile; 7] = [
        lossy(clean("lte", 20, 100, 60, 150_000), 0.005),
        clean("lteclean", 20, 100, 60, 150_000),
        clean("ltebloat", 20, 100, 60, 2_500_000),
        jittery(lossy(clean("wifi", 10, 10, 30, 150_000), 0.02), 20),
        lossy(clean("sat", 20, 50, 600, 1_500_000), 0.01),
        clean("gig", 1000, 1000, 20, 2_500_000),
        cut(
            clean("cuts", 10, 10, 60, 150_000),
            Duration::from_secs(20),
            Duration::from_secs(2),
        ),
    ];

    /// Bits per second of the way of the data.
    pub(crate) fn rate(&self) -> u64 {
        self.up.rate
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Profile, UnknownProfile> {
        Profile::ALL
            .into_iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| UnknownProfile {
                name: name.to_owned(),
            })
    }
}

impl Cuts {
    /// How much longer the link stays up, from `now` since the first period began; `None` in a cut.
    pub(crate) fn up_for(&self, now: Duration) -> Option<Duration> {
        (self.every - self.length)
            .checked_sub(self.phase(now))
            .filter(|left| !left.is_zero())
    }

    /// How long the link was up between the begin of the first period and `now`.
    pub(crate) fn time_up(&self, now: Duration) -> Duration {
        let up = self.every - self.length;
        let periods = (now - self.phase(now)).as_nanos() / self.every.as_nanos();
        let full = u32::try_from(periods).unwrap_or(u32::MAX);
        up * full + self.phase(now).min(up)
    }

    fn phase(&self, now: Duration) -> Duration {
        let phase = now.as_nanos() % self.every.as_nanos();
        Duration::from_nanos(u64::try_from(phase).unwrap_or(u64::MAX))
    }
}

const fn lossy(mut profile: Profile, loss: f64) -> Profile {
    profile.up.loss = loss;
    profile
}

const fn jittery(mut profile: Profile, milliseconds: u64) -> Profile {
    let jitter = Duration::from_micros(milliseconds * 500);
    profile.up.jitter = jitter;
    profile.down.jitter = jitter;
    profile
}

const fn cut(mut profile: Profile, every: Duration, length: Duration) -> Profile {
    profile.cuts = Some(Cuts { every, length });
    profile
}

fn names() -> String {
    Profile::ALL.map(|profile| profile.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_name_alone() {
        for profile in Profile::ALL {
            assert_eq!(profile.name.parse(), Ok(profile));
            assert!(profile.up.jitter <= profile.up.delay, "{}", profile.name);
        }
        let refused = "LTE".parse::<Profile>().unwrap_err().to_string();
        assert!(refused.contains("lte, lteclean"), "{refused}");
    }

    #[test]
    fn cuts_end_each_period() {
        let cuts = Cuts {
            every: Duration::from_secs(20),
            length: Duration::from_secs(2),
        };
        // (now, up for, up until then), in ms
        let table = [
            (0, Some(18_000), 0),
            (17_999, Some(1), 17_999),
            (18_000, None, 18_000),
            (19_999, None, 18_000),
            (20_000, Some(18_000), 18_000),
            (45_000, Some(13_000), 41_000),
        ];
        for (now, up_for, up) in table {
            let now = Duration::from_millis(now);
            assert_eq!(
                cuts.up_for(now),
                up_for.map(Duration::from_millis),
                "{now:?}"
            );
            assert_eq!(cuts.time_up(now), Duration::from_millis(up), "{now:?}");
        }
    }
}
