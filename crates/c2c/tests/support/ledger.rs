//! The log of the service held against the books of the unit: what was sent again, and what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use c2c_simulator::{Admin, EndpointName, LoggedRequest};

use super::books::{Books, Key};
use super::{IN_FLIGHT, Place, sha256};

/// What the deaths of a unit cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Media that were accepted and never arrived.
    pub(crate) lost: usize,
    /// Parts that had arrived but were not recorded yet when the unit died; at most the number of transfers per death.
    pub(crate) in_flight: usize,
    /// Bytes of parts that were recorded, and sent again all the same.
    pub(crate) bytes_again: u64,
}

/// One death: the last request before it, and the parts that were recorded by then.
struct Death {
    last: u64,
    finished: BTreeSet<Key>,
}

/// All deaths of one unit.
#[derive(Default)]
pub(crate) struct Ledger {
    deaths: Vec<Death>,
    in_flight: usize,
    /// A rule of the service that this death had to break.
    pub(crate) excused: Option<&'static str>,
}

/// The uploads of parts, in order.
pub(crate) fn puts(admin: &Admin) -> Vec<(LoggedRequest, Key)> {
    let requests = admin.requests().into_iter();
    requests
        .filter(|request| request.endpoint == EndpointName::PutChunk)
        .filter_map(|request| {
            let key = (request.asset_id.clone()?, request.part?);
            Some((request, key))
        })
        .collect()
}

/// The parts that were answered 200.
pub(crate) fn arrived(admin: &Admin) -> BTreeSet<Key> {
    puts(admin)
        .into_iter()
        .filter(|(request, _)| request.status() == Some(200))
        .map(|(_, key)| key)
        .collect()
}

impl Ledger {
    /// The unit is dead; `books` are what it left.
    pub(crate) async fn died(&mut self, admin: &Admin, books: &Books) {
        // What it still had on the wire reaches the log before its end counts.
        let quiet = admin.wait_until_within(Duration::from_secs(30), |now| {
            now.stats().api_open + now.stats().uploads_open == 0
        });
        assert!(
            quiet.await,
            "connections of a dead process stay open: {:?}",
            admin.stats()
        );
        let since = self.deaths.last().map_or(0, |death| death.last);
        let unrecorded: BTreeSet<Key> = puts(admin)
            .into_iter()
            .filter(|(request, _)| request.id > since && request.status() == Some(200))
            .map(|(_, key)| key)
            .filter(|key| !books.finished.contains(key))
            .collect();
        assert!(
            unrecorded.len() <= IN_FLIGHT,
            "more parts arrived unrecorded than can be in flight: {unrecorded:?}"
        );
        self.in_flight += unrecorded.len();
        if let Some(before) = self.deaths.last() {
            let forgotten: Vec<_> = before.finished.difference(&books.finished).collect();
            assert!(
                forgotten.is_empty(),
                "recorded once, and forgotten: {forgotten:?}"
            );
        }
        self.deaths.push(Death {
            last: admin.requests().last().map_or(0, |request| request.id),
            finished: books.finished.clone(),
        });
    }

    /// What the deaths cost so far.
    pub(crate) fn cost(&self, admin: &Admin) -> Cost {
        let again = puts(admin).into_iter().filter(|(request, key)| {
            self.deaths
                .iter()
                .any(|death| request.id > death.last && death.finished.contains(key))
        });
        Cost {
            lost: 0,
            in_flight: self.in_flight,
            bytes_again: again.map(|(request, _)| request.received.max(1)).sum(),
        }
    }

    /// What arrived is where it belongs, once: at the service, in the queue and in the receipts. Returns what it cost, and what
    /// is lost.
    pub(crate) async fn settle(&self, admin: &Admin, place: &Place, names: &[String]) -> Cost {
        let books = Books::read(&place.state()).await;
        // The service joins the parts after it acknowledged the last one.
        admin
            .wait_until_within(Duration::from_secs(30), |now| {
                now.delivered().len() >= names.len()
            })
            .await;
        let mut there = BTreeMap::new();
        for delivered in admin.delivered() {
            let name = delivered.name.clone();
            let twice = there.insert(name, delivered);
            assert!(twice.is_none(), "delivered twice: {twice:?}");
        }
        let strange: Vec<_> = there.keys().filter(|name| !names.contains(name)).collect();
        assert!(
            strange.is_empty(),
            "delivered, and never asked for: {strange:?}"
        );
        let lost = names
            .iter()
            .filter(|name| !there.contains_key(*name))
            .count();
        if lost > 0 {
            let _ = writeln!(
                std::io::stderr(),
                "lost {lost} of {names:?}: {:#?}",
                books.media
            );
            return Cost {
                lost,
                ..self.cost(admin)
            };
        }
        for name in names {
            let (here, delivered) = (place.sha256(name), &there[name]);
            assert_eq!(delivered.sha256, here, "{name}: other bytes");
            assert_eq!(sha256(&delivered.path), here, "{name}: other bytes on disk");
            let receipt = books
                .receipts
                .get(name)
                .unwrap_or_else(|| panic!("no receipt for {name}"));
            assert_eq!(receipt.asset_id, delivered.asset_id, "{name}");
            assert_eq!(receipt.project_id, delivered.project_id, "{name}");
            assert_eq!(receipt.size, delivered.size, "{name}");
            assert_eq!(
                receipt.sha256.as_deref(),
                Some(here.as_str()),
                "{name}: {receipt:?}"
            );
            assert_eq!(receipt.chunks.len(), delivered.parts as usize, "{name}");
            let mut at = 0;
            for chunk in &receipt.chunks {
                assert_eq!(chunk.start, at, "{name}");
                assert_eq!(chunk.verified, Some(true), "{name}");
                at += chunk.length;
            }
            assert_eq!(at, receipt.size, "{name}");
            // An asset without content is only left by a create whose answer was lost, and the receipt says so.
            let assets = admin
                .assets()
                .iter()
                .filter(|asset| &asset.name == name)
                .count();
            assert!(
                assets <= 1 + receipt.possible_duplicates as usize,
                "{name}: {assets} assets, but {} possible duplicates",
                receipt.possible_duplicates
            );
        }
        // Nothing was recorded for an asset that was given up: that would be work thrown away.
        let homes: BTreeSet<&str> = there
            .values()
            .map(|delivered| delivered.asset_id.as_str())
            .collect();
        for death in &self.deaths {
            for (asset, part) in &death.finished {
                assert!(
                    homes.contains(asset.as_str()),
                    "part {part} of {asset} was sent in vain"
                );
            }
        }
        let broken: Vec<_> = admin
            .requests()
            .into_iter()
            .filter(|request| {
                let unknown = |rule: &String| self.excused.is_none_or(|known| known != rule);
                request.violations.iter().any(unknown)
            })
            .collect();
        assert!(
            broken.is_empty(),
            "rules of the service were broken: {broken:#?}"
        );
        self.cost(admin)
    }
}
