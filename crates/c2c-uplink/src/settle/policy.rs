//! The policy: `(attempts, fault, now, jitter) → verdict`.

use std::time::{Duration, SystemTime};

use c2c_queue::{Attempt, Hold, Operation, Verdict};

use super::fault::{Asked, Fault};

/// Tries of one operation within a round.
pub const TRIES: u32 = 10;
/// Rounds of a media before it is parked.
pub const ROUNDS: u32 = 3;
/// Assets that may be created for one media before somebody should look at it.
const REGISTRATIONS: u32 = 4;

const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(60);
const SLOW_CAP: Duration = Duration::from_secs(600);
/// A server that asks for more than this is not believed.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// What the policy knows besides the fault.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// During what.
    pub operation: Operation,
    /// Which try this was.
    pub attempt: Attempt,
    /// How many assets were created for the media since it was added, or since a person asked for a retry.
    pub registrations: u32,
    /// Whether the service can be reached at all, as far as the link knows.
    pub link_up: bool,
    /// The wall clock, corrected by the server where possible; only to read a `Retry-After` date.
    pub now: SystemTime,
    /// From 0 up to, not including, 1.
    pub jitter: f64,
}

/// A verdict, and whether the number of chunks must be left to the server from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What follows for the item.
    pub verdict: Verdict,
    /// `parts` must not be asked for again.
    pub drop_parts: bool,
}

impl From<Verdict> for Judged {
    fn from(verdict: Verdict) -> Judged {
        Judged {
            verdict,
            drop_parts: false,
        }
    }
}

/// Full jitter: a random share of `min(cap, base · 2^(try - 1))`.
pub fn backoff(number: u32, base: Duration, cap: Duration, jitter: f64) -> Duration {
    let ceiling = base
        .saturating_mul(1u32 << number.saturating_sub(1).min(20))
        .min(cap);
    ceiling.mul_f64(jitter.clamp(0.0, 1.0))
}

/// Decides what follows a fault.
pub fn decide(fault: &Fault, at: &Situation) -> Judged {
    let number = at.attempt.number.max(1);
    match fault {
        // Only this request is caught by something on the way: it must not hold up the others for ever.
        Fault::MiddleBox { .. } if at.link_up => counted(at, TRIES, CAP),
        // The link: nobody is charged. While it is down the gate is closed, and when it opens all go on at once; if only
        // this request was caught by something on the way, it should not be repeated too eagerly.
        Fault::Unreachable { .. } | Fault::MiddleBox { .. } | Fault::Untrusted { .. } => {
            let eager = Duration::from_secs(5);
            uncounted(if at.link_up {
                eager + eager.mul_f64(at.jitter)
            } else {
                Duration::ZERO
            })
        }
        Fault::Interrupted { link_up: false, .. } | Fault::Stalled { link_up: false, .. } => {
            uncounted(Duration::ZERO)
        }
        // The whole service is down: no media is to blame for that, whatever the status says.
        Fault::ServerError | Fault::Infrastructure(_) if !at.link_up => uncounted(Duration::ZERO),
        Fault::Storage(asked) if !at.link_up => uncounted(asked_wait(asked, at.now)),
        Fault::Interrupted { link_up: true, .. } | Fault::Stalled { link_up: true, .. } => {
            counted(at, TRIES, CAP)
        }

        // Everybody waits for somebody else: the gate stops further claims, the item keeps its tries.
        Fault::Unauthorized => uncounted(Duration::ZERO),
        Fault::AccountLimit => uncounted(Duration::ZERO),

        Fault::Forbidden => counted(at, TRIES, SLOW_CAP),
        Fault::NotFound => counted(at, TRIES, CAP),
        Fault::ChannelPaused => Verdict::Withhold.into(),
        Fault::PausedNow => Verdict::Hold(Hold::ChannelPaused).into(),
        Fault::SlowDown(asked) => {
            let least = Duration::from_secs(5);
            counted_after(
                at,
                TRIES,
                least.max(asked_wait(asked, at.now)) + backoff(number, BASE, CAP, at.jitter),
            )
        }
        Fault::Conflict if number < 3 => counted(at, TRIES, CAP),
        Fault::Conflict => give_up(at),
        Fault::NotUnderstood { .. } if number < 2 => counted(at, TRIES, CAP),
        Fault::NotUnderstood { .. } => give_up(at),
        Fault::BadRequest => Verdict::Fail.into(),
        Fault::PartsRefused => {
            // Without `parts` it is another request; on a final try, preparing that is not the try itself.
            let again = Verdict::Again {
                after: backoff(1, BASE, CAP, at.jitter),
                counted: !at.attempt.final_try,
            };
            Judged {
                verdict: if number < TRIES {
                    again
                } else {
                    exhausted(at).verdict
                },
                drop_parts: true,
            }
        }
        Fault::RateLimited(asked) => {
            // Not counted, so the number of the try does not grow; the shared pace doubles the wait.
            let least = Duration::from_secs(1).max(asked_wait(asked, at.now));
            uncounted(least + least.mul_f64(at.jitter))
        }
        Fault::ServerError | Fault::Unknown => counted(at, TRIES, CAP),
        Fault::Infrastructure(asked) | Fault::Storage(asked) => {
            let wait = asked_wait(asked, at.now).max(backoff(number, BASE, CAP, at.jitter));
            counted_after(at, TRIES, wait)
        }

        Fault::UrlExpired | Fault::UploadGone | Fault::FileChanged { .. } => register_again(at),
        Fault::SignatureRefused => {
            if number < 2 {
                counted(at, TRIES, CAP)
            } else {
                register_again(at)
            }
        }
        Fault::Malformed => give_up(at),
        Fault::DigestMismatch => counted(at, TRIES, CAP),

        Fault::Unreadable { .. } => {
            const WAITS: [u64; 3] = [1, 5, 25];
            let wait = WAITS[(number as usize - 1).min(WAITS.len() - 1)];
            counted_after(at, WAITS.len() as u32 + 1, Duration::from_secs(wait))
        }
        Fault::FileGone { .. } => Verdict::Cancel.into(),
        Fault::VolumeAway => Verdict::Hold(Hold::VolumeAway).into(),
        Fault::FileChanging => Verdict::Hold(Hold::FileChanging).into(),
        Fault::CaptureTimeUnknown { .. } => Verdict::Hold(Hold::CaptureTimeUnknown).into(),

        Fault::WorkerLost => exhausted(at),
        Fault::Program { .. } => counted(at, 3, CAP),
    }
}

fn uncounted(after: Duration) -> Judged {
    Verdict::Again {
        after,
        counted: false,
    }
    .into()
}

fn counted(at: &Situation, tries: u32, cap: Duration) -> Judged {
    counted_after(
        at,
        tries,
        backoff(at.attempt.number.max(1), BASE, cap, at.jitter),
    )
}

fn counted_after(at: &Situation, tries: u32, after: Duration) -> Judged {
    if at.attempt.final_try {
        Verdict::Fail.into()
    } else if at.attempt.number < tries {
        Verdict::Again {
            after,
            counted: true,
        }
        .into()
    } else {
        exhausted(at)
    }
}

/// The tries of this round are used up.
fn exhausted(at: &Situation) -> Judged {
    if at.attempt.final_try {
        Verdict::Fail.into()
    } else if at.attempt.round < ROUNDS {
        let least = Duration::from_secs(30).saturating_mul(at.attempt.round.max(1));
        Verdict::NextRound {
            after: least + least.mul_f64(at.jitter),
        }
        .into()
    } else {
        Verdict::Park.into()
    }
}

/// Trying the same again cannot help: rest at once.
fn give_up(at: &Situation) -> Judged {
    if at.attempt.final_try {
        Verdict::Fail.into()
    } else {
        Verdict::Park.into()
    }
}

fn register_again(at: &Situation) -> Judged {
    if at.registrations < REGISTRATIONS {
        // A final try stays a final try, whatever it costs to prepare it.
        Verdict::RegisterAgain {
            after: backoff(1, BASE, CAP, at.jitter),
            counted: false,
        }
        .into()
    } else {
        give_up(at)
    }
}

fn asked_wait(asked: &Asked, now: SystemTime) -> Duration {
    let until = asked.until.and_then(|until| until.duration_since(now).ok());
    [asked.delay, until, asked.refill]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or_default()
        .min(LONGEST_ASKED)
}
