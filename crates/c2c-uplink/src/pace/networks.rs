//! Which network this unit is in, and what was learned of those it was in.
//!
//! Invariant: nothing here is needed. What is missing or damaged costs the time to learn it anew, never more.

use std::sync::Arc;

use c2c_queue::{Queue, WallTime};
use sha2::{Digest, Sha256};

use super::concurrency::{KeptNetwork, Networks, Settled};

/// What it is remembered under.
const KEY: &str = "networks";

/// What was learned of networks, kept in the queue's memory.
#[derive(Debug)]
pub(super) struct Memory {
    queue: Arc<dyn Queue>,
    networks: Networks,
}

impl Memory {
    pub(super) async fn open(queue: Arc<dyn Queue>, now: WallTime) -> Memory {
        let networks = match queue.recall(KEY).await {
            Ok(Some(json)) => {
                let (networks, trouble) = Networks::from_json(json.as_bytes(), seconds(now));
                if let Some(trouble) = trouble {
                    tracing::info!("{trouble}");
                }
                networks
            }
            Ok(None) => Networks::default(),
            Err(error) => {
                tracing::debug!("what was learned of networks cannot be read: {error}");
                Networks::default()
            }
        };
        Memory { queue, networks }
    }

    pub(super) fn get(&self, key: &str) -> Option<&KeptNetwork> {
        self.networks.get(key)
    }

    pub(super) async fn remember(&mut self, key: &str, settled: Settled, now: WallTime) {
        self.networks.remember(key, settled, seconds(now));
        self.store().await;
    }

    pub(super) async fn was_up(&mut self, key: &str, up: f64, now: WallTime) {
        self.networks.was_up(key, up, seconds(now));
        self.store().await;
    }

    async fn store(&self) {
        let Ok(json) = self.networks.to_json().map(String::from_utf8) else {
            return;
        };
        if let Err(error) = self.queue.remember(KEY, json.ok()).await {
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
    use c2c_queue::{KeyStore, SqliteOptions, SqliteQueue, Vault};

    use super::*;

    const NOW: WallTime = WallTime(1_800_000_000_000);

    #[tokio::test]
    async fn what_was_learned_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let queue = SqliteQueue::open(SqliteOptions {
                path: dir.path().join("queue.db"),
                clock: Arc::new(c2c_queue::SystemClock),
                vault: Vault::stored(KeyStore::File, dir.path()).unwrap(),
                process: "test".into(),
                command: "test".into(),
                patience: std::time::Duration::ZERO,
            });
            Arc::new(queue.unwrap()) as Arc<dyn Queue>
        };
        let settled = Settled {
            transfers: 3,
            goodput: 2_000_000,
        };
        let queue = open();
        let mut memory = Memory::open(queue.clone(), NOW).await;
        memory.remember("home", settled, NOW).await;
        memory.was_up("home", 40.0, NOW).await;
        queue.close().await.unwrap();
        drop((memory, queue));
        let queue = open();
        let again = Memory::open(queue.clone(), NOW).await;
        let home = again.get("home").unwrap();
        assert_eq!(home.settled, Some(settled));
        assert!(home.up_seconds_ema.is_some());
        queue.remember(KEY, Some("{ damaged".into())).await.unwrap();
        assert!(Memory::open(queue, NOW).await.get("home").is_none());
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
