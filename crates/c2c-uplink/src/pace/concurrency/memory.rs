//! What is remembered of each network.
//!
//! Invariants:
//!
//! 1. At most [`MOST`] networks are kept; the one used least recently goes first.
//! 2. What was not used for [`FORGET_AFTER_SECONDS`] is forgotten.
//! 3. It is a hint: what cannot be read is an empty memory and an error to report, never a reason to stop.

use serde::{Deserialize, Serialize};

use super::Settled;

/// Networks that are kept.
const MOST: usize = 64;
/// Thirty days: a production moves on, and so do the cells it uploaded through.
const FORGET_AFTER_SECONDS: u64 = 30 * 24 * 3600;
/// A file of this version is understood.
const VERSION: u32 = 1;
/// The weight of the newest time up: three or four outages show the habit of a link.
const UPTIME_WEIGHT: f64 = 0.3;
/// Longer keys are not keys; what wrote them is not this program.
const LONGEST_KEY: usize = 256;

/// Why what was remembered could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetworkMemoryError {
    /// It is not what this program writes.
    #[error(
        "what was remembered of networks cannot be read and is learned anew; nothing needs to be done"
    )]
    Unreadable(#[source] serde_json::Error),
    /// Another version of this program wrote it.
    #[error(
        "what was remembered of networks has the unknown format {found} and is learned anew; nothing needs to be done"
    )]
    Version {
        /// The format that was found.
        found: u32,
    },
}

/// What is remembered of one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptNetwork {
    key: String,
    /// The number of transfers that suits it, if it was ever found.
    pub settled: Option<Settled>,
    /// How long the link usually stays up, in seconds; a mean that leans on the newest.
    pub up_seconds_ema: Option<f64>,
    /// When it was used last, seconds since 1970 by the wall clock.
    pub used_at: u64,
}

/// The networks, the one used last at the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks {
    kept: Vec<KeptNetwork>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    networks: &'a [KeptNetwork],
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    networks: Vec<KeptNetwork>,
}

impl Networks {
    /// Reads what [`Networks::to_json`] wrote; `now` is the wall clock, seconds since 1970. If it cannot be read the
    /// memory is empty, and the error says why.
    pub fn from_json(json: &[u8], now: u64) -> (Networks, Option<NetworkMemoryError>) {
        match read(json) {
            Ok(kept) => {
                let mut networks = Networks { kept };
                networks.tidy(now);
                (networks, None)
            }
            Err(error) => (Networks::default(), Some(error)),
        }
    }

    /// All of it, as JSON.
    ///
    /// # Errors
    ///
    /// If serialising fails.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Written {
            version: VERSION,
            networks: &self.kept,
        })
    }

    /// What is remembered of the network with this key.
    pub fn get(&self, key: &str) -> Option<&KeptNetwork> {
        self.kept.iter().find(|network| network.key == key)
    }

    /// How many networks are remembered.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Remembers what suits a network; `now` is the wall clock, seconds since 1970.
    pub fn remember(&mut self, key: &str, settled: Settled, now: u64) {
        if let Some(network) = self.entry(key, now) {
            network.settled = Some(settled);
        }
    }

    /// Remembers that the link was up for `seconds` until it failed.
    pub fn was_up(&mut self, key: &str, seconds: f64, now: u64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        if let Some(network) = self.entry(key, now) {
            network.up_seconds_ema = Some(match network.up_seconds_ema {
                Some(ema) => ema + UPTIME_WEIGHT * (seconds - ema),
                None => seconds,
            });
        }
    }

    /// The entry of `key`, made the one used last.
    fn entry(&mut self, key: &str, now: u64) -> Option<&mut KeptNetwork> {
        if key.len() > LONGEST_KEY {
            return None;
        }
        let mut network = match self.kept.iter().position(|network| network.key == key) {
            Some(at) => self.kept.remove(at),
            None => KeptNetwork {
                key: key.to_owned(),
                settled: None,
                up_seconds_ema: None,
                used_at: now,
            },
        };
        network.used_at = now;
        self.kept.push(network);
        self.tidy(now);
        self.kept.last_mut()
    }

    fn tidy(&mut self, now: u64) {
        for network in &mut self.kept {
            // Used in the future: a clock was wrong. It must not live for ever.
            network.used_at = network.used_at.min(now);
            network.up_seconds_ema = network
                .up_seconds_ema
                .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
            network.settled = network.settled.filter(|settled| settled.transfers > 0);
        }
        self.kept.retain(|network| {
            now - network.used_at <= FORGET_AFTER_SECONDS && network.key.len() <= LONGEST_KEY
        });
        let surplus = self.kept.len().saturating_sub(MOST);
        self.kept.drain(..surplus);
    }
}

fn read(json: &[u8]) -> Result<Vec<KeptNetwork>, NetworkMemoryError> {
    let Versioned { version } =
        serde_json::from_slice(json).map_err(NetworkMemoryError::Unreadable)?;
    if version != VERSION {
        return Err(NetworkMemoryError::Version { found: version });
    }
    let Read { networks } = serde_json::from_slice(json).map_err(NetworkMemoryError::Unreadable)?;
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;
    const NOW: u64 = 1_800_000_000;

    fn settled(transfers: u32) -> Settled {
        Settled {
            transfers,
            goodput: 2_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut networks = Networks::default();
        networks.remember("home", settled(2), NOW);
        networks.remember("cell", settled(12), NOW + 1);
        networks.was_up("cell", 100.0, NOW + 2);
        networks.was_up("cell", 200.0, NOW + 3);
        networks.was_up("cell", f64::NAN, NOW + 3);
        let json = networks.to_json().unwrap();
        let (read, error) = Networks::from_json(&json, NOW + 4);
        assert!(error.is_none());
        assert_eq!(read, networks);
        let cell = read.get("cell").unwrap();
        assert_eq!(cell.settled, Some(settled(12)));
        assert_eq!(cell.up_seconds_ema, Some(130.0));
        assert_eq!(read.get("hotel"), None);
    }

    #[test]
    fn the_least_recently_used_goes() {
        let mut networks = Networks::default();
        for n in 0..MOST {
            networks.remember(&format!("n{n}"), settled(1), NOW);
        }
        networks.remember("n0", settled(3), NOW);
        networks.remember("one more", settled(4), NOW);
        assert_eq!(networks.len(), MOST);
        assert!(networks.get("n1").is_none());
        assert_eq!(networks.get("n0").unwrap().settled, Some(settled(3)));
    }

    #[test]
    fn old_ones_are_forgotten_and_those_of_a_wrong_clock_do_not_live_for_ever() {
        let mut networks = Networks::default();
        networks.remember("old", settled(1), NOW);
        networks.remember("new", settled(2), NOW + 20 * DAY);
        networks.remember("future", settled(3), NOW + 1000 * DAY);
        assert_eq!(networks.len(), 1, "by the clock of that moment");
        networks.remember("old", settled(1), NOW);
        networks.remember("new", settled(2), NOW + 20 * DAY);
        let json = networks.to_json().unwrap();
        let (read, _) = Networks::from_json(&json, NOW + 31 * DAY);
        assert!(read.get("old").is_none());
        assert!(read.get("new").is_some());
        let (read, _) = Networks::from_json(&json, NOW + 60 * DAY);
        assert!(read.is_empty(), "{read:?}");
    }

    #[test]
    fn what_cannot_be_read_is_an_empty_memory_and_an_error() {
        let many: Vec<_> = (0..100)
            .map(|n| {
                format!(r#"{{"key":"{n}","settled":null,"up_seconds_ema":-1.0,"used_at":{NOW}}}"#)
            })
            .collect();
        let many = format!(r#"{{"version":1,"networks":[{}]}}"#, many.join(","));
        let rows: [(&str, usize, bool); 7] = [
            ("", 0, true),
            ("\0\0\0", 0, true),
            (r#"{"version":1,"networks":[{"key":"#, 0, true),
            (r#"{"version":1,"networks":[{"key":7}]}"#, 0, true),
            (r#"{"version":2,"networks":"other"}"#, 0, true),
            (r#"{"version":1,"networks":[]}"#, 0, false),
            (&many, MOST, false),
        ];
        for (json, kept, bad) in rows {
            let (networks, error) = Networks::from_json(json.as_bytes(), NOW);
            assert_eq!(networks.len(), kept, "{json}");
            assert_eq!(error.is_some(), bad, "{json}");
            assert!(networks.kept.iter().all(|n| n.up_seconds_ema.is_none()));
        }
    }
}
