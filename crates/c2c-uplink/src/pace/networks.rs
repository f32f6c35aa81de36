//! Which network this unit is in, and what was learned of those it was in.
//!
//! Invariant: nothing here is needed. A file that is missing or damaged costs the time to learn it anew, never more.

use std::path::{Path, PathBuf};

use c2c_queue::WallTime;
use sha2::{Digest, Sha256};

use super::concurrency::{KeptNetwork, Networks, Settled};

/// What was learned of networks, in a file.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    networks: Networks,
}

impl Memory {
    pub(super) fn open(path: &Path, now: WallTime) -> Memory {
        let networks = match std::fs::read(path) {
            Ok(json) => {
                let (networks, trouble) = Networks::from_json(&json, seconds(now));
                if let Some(trouble) = trouble {
                    tracing::info!("{trouble}");
                }
                networks
            }
            Err(_) => Networks::default(),
        };
        Memory {
            path: path.to_owned(),
            networks,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&KeptNetwork> {
        self.networks.get(key)
    }

    pub(super) fn remember(&mut self, key: &str, settled: Settled, now: WallTime) {
        self.networks.remember(key, settled, seconds(now));
        self.store();
    }

    pub(super) fn was_up(&mut self, key: &str, up: f64, now: WallTime) {
        self.networks.was_up(key, up, seconds(now));
        self.store();
    }

    fn store(&self) {
        let written = self
            .networks
            .to_json()
            .map_err(std::io::Error::other)
            .and_then(|json| {
                let fresh = self.path.with_extension("new");
                std::fs::write(&fresh, json)?;
                std::fs::rename(&fresh, &self.path)
            });
        if let Err(error) = written {
            tracing::debug!("what was learned of this network is not stored: {error}");
        }
    }
}

fn seconds(now: WallTime) -> u64 {
    (now.0 / 1000).max(0) as u64
}

/// A name for the network behind these default routes, made of the gateways and, where the system knows them, their hardware
/// addresses. Hashed: it says nothing to whoever reads the file. `None` without a gateway.
pub(crate) fn network_key<'a>(gateways: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut gateways: Vec<&str> = gateways.into_iter().collect();
    gateways.sort_unstable();
    gateways.dedup();
    if gateways.is_empty() {
        return None;
    }
    let mut hasher = Sha256::new();
    for gateway in gateways {
        hasher.update(gateway);
        hasher.update([0]);
    }
    Some(hex::encode(&hasher.finalize()[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime(1_800_000_000_000);

    #[test]
    fn what_was_learned_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("networks.json");
        let settled = Settled {
            transfers: 3,
            goodput: 2_000_000,
        };
        let mut memory = Memory::open(&path, NOW);
        memory.remember("home", settled, NOW);
        memory.was_up("home", 40.0, NOW);
        let again = Memory::open(&path, NOW);
        let home = again.get("home").unwrap();
        assert_eq!(home.settled, Some(settled));
        assert!(home.up_seconds_ema.is_some());
        std::fs::write(&path, b"{ damaged").unwrap();
        assert!(Memory::open(&path, NOW).get("home").is_none());
    }

    #[test]
    fn a_network_is_its_gateways() {
        let key = network_key(["eth0 1", "wlan0 2"]).unwrap();
        assert_eq!(
            network_key(["wlan0 2", "eth0 1", "eth0 1"]),
            Some(key.clone())
        );
        assert_ne!(network_key(["eth0 1"]), Some(key));
        assert_eq!(network_key([]), None);
    }
}
