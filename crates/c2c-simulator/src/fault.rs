//! Faults on demand: what goes wrong, where, and how often.
//!
//! Invariants: faults are looked at in the order they were added; a modifier (delay, slow wire) combines with
//! others, of the rest the first that matches decides; a match is counted when the fault acts, and `after`
//! counts down only on matches.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a request is for. `Any` is only meaningful in a [`Target`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointName {
    /// `POST /v2/auth/device/code`
    DeviceCode,
    /// `POST /v2/auth/token` with the device-code grant
    Token,
    /// `POST /v2/auth/token` with the refresh grant
    Refresh,
    /// `POST /v2/auth/revoke`
    Revoke,
    /// `GET /v2/devices/me`
    Me,
    /// `POST /v2/devices/heartbeat`
    Heartbeat,
    /// `GET /health`
    Health,
    /// `POST /v2/devices/assets` and its deprecated twin
    CreateAsset,
    /// `PUT` of one part on the uploads host
    PutChunk,
    /// `POST /v2/devices/assets/{id}/realtime_upload/parts`
    RealtimeParts,
    /// `GET /devices/websocket`
    Websocket,
    /// Everything, known or not.
    #[default]
    Any,
}

/// Which requests a fault is for. Every condition that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// The endpoint; `Any` by default.
    pub endpoint: EndpointName,
    /// Only this part (1-based) of an asset.
    pub part: Option<u32>,
    /// Only requests about the asset with this name.
    pub asset_name: Option<String>,
}

impl Target {
    /// Every request to one endpoint.
    pub fn endpoint(endpoint: EndpointName) -> Self {
        Self {
            endpoint,
            part: None,
            asset_name: None,
        }
    }

    /// Narrows to one part (1-based).
    #[must_use]
    pub fn part(mut self, part: u32) -> Self {
        self.part = Some(part);
        self
    }

    /// Narrows to the asset with this name.
    #[must_use]
    pub fn asset(mut self, name: impl Into<String>) -> Self {
        self.asset_name = Some(name.into());
        self
    }
}

impl From<EndpointName> for Target {
    fn from(endpoint: EndpointName) -> Self {
        Self::endpoint(endpoint)
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which requests.
    #[serde(default)]
    pub on: Target,
    /// What happens to them.
    pub effect: Effect,
    /// How often; `None` is always.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many matching requests are let through first.
    #[serde(default)]
    pub after: u32,
    /// Chance in `0.0..=1.0` that a match acts, drawn from the seeded generator of the builder; `None` is 1.
    #[serde(default)]
    pub probability: Option<f64>,
}

impl Fault {
    /// A fault that acts on every match.
    pub fn new(on: impl Into<Target>, effect: Effect) -> Self {
        Self {
            on: on.into(),
            effect,
            times: None,
            after: 0,
            probability: None,
        }
    }

    /// Acts on `times` matches only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Acts on one match only.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Lets the first `after` matches through.
    #[must_use]
    pub fn after(mut self, after: u32) -> Self {
        self.after = after;
        self
    }

    /// Acts with this chance (`0.0..=1.0`).
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = Some(probability);
        self
    }
}

/// What happens to a request that a fault matches. Times are seconds of the simulated clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The request is read whole, has no effect, and gets this answer.
    Status {
        /// HTTP status.
        status: u16,
        /// The answer's body.
        #[serde(default)]
        body: BodyKind,
        /// Further header fields, e.g. `retry-after`.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// The request waits this long (simulated time) before anything else happens, then goes on as usual.
    Delay(#[serde(with = "seconds")] Duration),
    /// The connection is reset after this many bytes of the request's body were read.
    CutAfterBytes(u64),
    /// The request takes full effect, then the connection is reset instead of an answer.
    CutBeforeAnswer,
    /// The connection is reset as soon as the request was recognised; it has no effect.
    DropAnswerless,
    /// Reading stops after this many bytes of the body; the connection stays open and silent until the faults
    /// are cleared (then the request goes on) or the client closes it. An orderly close behind bytes that are
    /// not read arrives only when the stall is lifted, as with any peer that stopped reading.
    Stall {
        /// Body bytes read before the stall.
        after_bytes: u64,
    },
    /// The request takes effect, the answer arrives at 64 bytes a second.
    SlowAnswer,
    /// Answered before the body is read, with `Connection: close`; the request has no effect.
    RejectEarly {
        /// HTTP status.
        status: u16,
        /// The answer's body.
        #[serde(default)]
        body: BodyKind,
        /// Further header fields.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A part is stored but the answer carries the ETag of other bytes.
    WrongEtag,
    /// A part is stored but the answer has no ETag.
    NoEtag,
    /// The connection is accepted and closed in the TLS handshake. Matches connections, not requests: `PutChunk`
    /// means the uploads host, `Any` both hosts, every other endpoint the API host.
    TlsAbort,
    /// A hotel's login page with status 200 instead of any effect.
    CaptivePortal,
    /// A 307 to this address instead of any effect.
    Redirect(String),
    /// The request takes effect; the answer's head is whole but its body ends, with the connection, after this
    /// many bytes.
    TruncateAnswer(usize),
    /// The request's body is read at this rate; it then takes effect.
    SlowRead {
        /// Bytes per second of simulated time, at least 1.
        bytes_per_sec: u64,
    },
}

impl Effect {
    /// Modifiers change how a request travels, not what becomes of it, so several may apply at once.
    pub(crate) fn is_modifier(&self) -> bool {
        matches!(
            self,
            Self::Delay(_) | Self::SlowAnswer | Self::SlowRead { .. }
        )
    }
}

/// The body of a made-up answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyKind {
    /// `{"error": …}`, the schema of the auth endpoints.
    Simple(String),
    /// The detailed schema of all other endpoints; `code` and `status` are the HTTP status.
    Detailed {
        /// `errors[0].title` and `message`.
        title: String,
        /// `errors[0].detail`.
        detail: String,
    },
    /// An error page of a machine in between.
    Html,
    /// The XML of S3.
    S3 {
        /// `<Code>`, e.g. `SlowDown`.
        code: String,
        /// `<Message>`.
        message: String,
    },
    /// No body at all.
    #[default]
    Empty,
    /// JSON that is broken by bytes which are no UTF-8.
    NotUtf8,
    /// This text, as `text/plain`.
    Text(String),
}

/// A fault as the simulator holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveFault {
    /// The number that [`crate::Admin::add_fault`] gave.
    pub id: u64,
    /// The fault as it was added.
    pub fault: Fault,
    /// How often it has acted.
    pub hits: u32,
}

/// The faults in force.
#[derive(Default)]
pub(crate) struct FaultBook {
    next_id: u64,
    faults: Vec<Held>,
    /// Bumped by every removal: a stalled request goes on when its fault is gone.
    pub(crate) generation: u64,
}

struct Held {
    shown: ActiveFault,
    to_skip: u32,
}

/// What a request is known to be about when faults are looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) endpoint: EndpointName,
    pub(crate) part: Option<u32>,
    pub(crate) asset_name: Option<&'a str>,
}

/// The outcome of a look-up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Numbers of the faults that act.
    pub(crate) ids: Vec<u64>,
    pub(crate) delay: Option<Duration>,
    pub(crate) slow_answer: bool,
    pub(crate) read_rate: Option<u64>,
    pub(crate) effect: Option<Effect>,
}

impl FaultBook {
    pub(crate) fn add(&mut self, fault: Fault) -> u64 {
        self.next_id += 1;
        let to_skip = fault.after;
        self.faults.push(Held {
            shown: ActiveFault {
                id: self.next_id,
                fault,
                hits: 0,
            },
            to_skip,
        });
        self.next_id
    }

    pub(crate) fn clear(&mut self) {
        self.faults.clear();
        self.generation += 1;
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.faults.len();
        self.faults.retain(|held| held.shown.id != id);
        self.generation += 1;
        self.faults.len() != before
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.faults.iter().any(|held| held.shown.id == id)
    }

    pub(crate) fn list(&self) -> Vec<ActiveFault> {
        self.faults.iter().map(|held| held.shown.clone()).collect()
    }

    /// Decides what goes wrong with one request and counts the faults that act.
    pub(crate) fn plan(&mut self, subject: Subject<'_>, rng: &mut fastrand::Rng) -> Plan {
        let mut plan = Plan::default();
        for held in &mut self.faults {
            let effect = &held.shown.fault.effect;
            let decided = plan.effect.is_some() && !effect.is_modifier();
            if decided
                || matches!(effect, Effect::TlsAbort)
                || !held.shown.fault.on.matches(subject)
                || !held.acts(rng)
            {
                continue;
            }
            plan.ids.push(held.shown.id);
            match &held.shown.fault.effect {
                Effect::Delay(span) => plan.delay = Some(plan.delay.unwrap_or_default() + *span),
                Effect::SlowAnswer => plan.slow_answer = true,
                Effect::SlowRead { bytes_per_sec } => {
                    plan.read_rate = Some((*bytes_per_sec).max(1))
                }
                other => plan.effect = Some(other.clone()),
            }
        }
        plan
    }

    /// Whether the handshake of a new connection to this host is to fail.
    pub(crate) fn aborts_handshake(&mut self, uploads_host: bool, rng: &mut fastrand::Rng) -> bool {
        self.faults.iter_mut().any(|held| {
            let for_host = match held.shown.fault.on.endpoint {
                EndpointName::Any => true,
                EndpointName::PutChunk => uploads_host,
                _ => !uploads_host,
            };
            matches!(held.shown.fault.effect, Effect::TlsAbort) && for_host && held.acts(rng)
        })
    }
}

impl Held {
    fn acts(&mut self, rng: &mut fastrand::Rng) -> bool {
        if self
            .shown
            .fault
            .times
            .is_some_and(|times| self.shown.hits >= times)
        {
            return false;
        }
        if self.to_skip > 0 {
            self.to_skip -= 1;
            return false;
        }
        if self
            .shown
            .fault
            .probability
            .is_some_and(|chance| rng.f64() >= chance)
        {
            return false;
        }
        self.shown.hits += 1;
        true
    }
}

impl Target {
    fn matches(&self, subject: Subject<'_>) -> bool {
        (self.endpoint == EndpointName::Any || self.endpoint == subject.endpoint)
            && self.part.is_none_or(|part| subject.part == Some(part))
            && self
                .asset_name
                .as_deref()
                .is_none_or(|name| subject.asset_name == Some(name))
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(span.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(endpoint: EndpointName, part: Option<u32>, asset_name: Option<&str>) -> Subject<'_> {
        Subject {
            endpoint,
            part,
            asset_name,
        }
    }

    #[test]
    fn skips_counts_and_ends() {
        let (mut book, mut rng) = (FaultBook::default(), fastrand::Rng::with_seed(1));
        let id = book.add(
            Fault::new(EndpointName::Me, Effect::CutBeforeAnswer)
                .after(1)
                .times(2),
        );
        let me = subject(EndpointName::Me, None, None);
        let acted: Vec<bool> = (0..5)
            .map(|_| book.plan(me, &mut rng).effect.is_some())
            .collect();
        assert_eq!(acted, [false, true, true, false, false]);
        assert_eq!(book.list()[0].hits, 2);
        assert!(
            book.plan(subject(EndpointName::Health, None, None), &mut rng)
                .effect
                .is_none()
        );
        assert!(book.remove(id) && !book.remove(id));
    }

    #[test]
    fn part_and_name_narrow_and_modifiers_combine() {
        let (mut book, mut rng) = (FaultBook::default(), fastrand::Rng::with_seed(1));
        let on = Target::endpoint(EndpointName::PutChunk)
            .part(2)
            .asset("a.mov");
        book.add(Fault::new(on, Effect::NoEtag));
        book.add(Fault::new(Target::default(), Effect::WrongEtag));
        book.add(Fault::new(
            Target::default(),
            Effect::Delay(Duration::from_secs(2)),
        ));
        let hit = book.plan(
            subject(EndpointName::PutChunk, Some(2), Some("a.mov")),
            &mut rng,
        );
        assert_eq!(
            (hit.effect, hit.delay),
            (Some(Effect::NoEtag), Some(Duration::from_secs(2)))
        );
        for other in [
            (Some(1), Some("a.mov")),
            (Some(2), Some("b.mov")),
            (None, None),
        ] {
            let miss = book.plan(subject(EndpointName::PutChunk, other.0, other.1), &mut rng);
            assert_eq!(miss.effect, Some(Effect::WrongEtag));
        }
    }

    #[test]
    fn chance_is_seeded() {
        let draw = || {
            let (mut book, mut rng) = (FaultBook::default(), fastrand::Rng::with_seed(7));
            book.add(Fault::new(EndpointName::Me, Effect::NoEtag).probability(0.5));
            (0..64)
                .map(|_| {
                    book.plan(subject(EndpointName::Me, None, None), &mut rng)
                        .effect
                        .is_some()
                })
                .collect()
        };
        let (first, second): (Vec<bool>, Vec<bool>) = (draw(), draw());
        assert_eq!(first, second);
        assert!(first.contains(&true) && first.contains(&false));
    }

    #[test]
    fn reads_and_writes_json() {
        let text = r#"{"on":{"endpoint":"put_chunk","part":2},"effect":{"status":{"status":503,
            "body":{"s3":{"code":"SlowDown","message":"Please reduce your request rate."}}}},"times":1}"#;
        let fault: Fault = serde_json::from_str(text).unwrap();
        assert_eq!(fault.on.part, Some(2));
        let again: Fault = serde_json::from_str(&serde_json::to_string(&fault).unwrap()).unwrap();
        assert_eq!(fault, again);
        let short: Fault = serde_json::from_str(r#"{"effect":"cut_before_answer"}"#).unwrap();
        assert_eq!(
            short,
            Fault::new(Target::default(), Effect::CutBeforeAnswer)
        );
        let delay: Fault = serde_json::from_str(r#"{"effect":{"delay":1.5}}"#).unwrap();
        assert_eq!(delay.effect, Effect::Delay(Duration::from_millis(1500)));
    }
}
