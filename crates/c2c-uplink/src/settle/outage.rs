//! Whose fault it is when the storage answers with 5xx: the media's, or that of the whole host.
//!
//! 1. One media alone never makes an outage out of its own fault: its tries stay bounded.
//! 2. An outage begins with refusals in a row, of different work that has hardly been tried before, and ends with the first
//!    chunk that is stored.
//! 3. In an outage the host is left alone for 1 s, doubling to 60 s; then a few attempts look again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use c2c_queue::{Attempt, MediaId};

use super::policy::backoff;

/// So many different media refused in a row are not to blame.
const MEDIA: usize = 3;
/// Nor are so many different chunks of media that the host took chunks of before.
const CHUNKS: usize = 6;
/// What was tried more often than this may be bad itself, and says nothing of others.
const FRESH: u32 = 3;

const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(60);

/// A chunk that the host refused with a 5xx.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) media: MediaId,
    pub(crate) chunk: u32,
    pub(crate) attempt: Attempt,
    /// Whether another chunk of this media was stored before.
    pub(crate) served_before: bool,
}

/// What is known of each upload host. Times are since boot.
#[derive(Debug)]
pub(crate) struct Outages<H: Ord>(BTreeMap<H, Run>);

/// Refusals since the last stored chunk.
#[derive(Debug, Default)]
struct Run {
    media: BTreeSet<MediaId>,
    chunks: BTreeSet<(MediaId, u32)>,
    /// How often the host was found down; 0 while it is not.
    found_down: u32,
    /// It is left alone until then.
    until: Duration,
}

impl<H: Ord> Default for Outages<H> {
    fn default() -> Self {
        Outages(BTreeMap::new())
    }
}

impl<H: Ord + Clone> Outages<H> {
    /// Takes note of a refusal; `true` if the host, and not the media, is to blame.
    pub(crate) fn refused(&mut self, host: &H, refused: Refused, now: Duration) -> bool {
        let run = self.0.entry(host.clone()).or_default();
        if run.found_down == 0 {
            let Attempt {
                number,
                round,
                final_try,
            } = refused.attempt;
            if number <= FRESH && round <= 1 && !final_try {
                run.media.insert(refused.media);
                if refused.served_before {
                    run.chunks.insert((refused.media, refused.chunk));
                }
            }
            if run.media.len() < MEDIA && run.chunks.len() < CHUNKS {
                return false;
            }
        }
        // Those that were on their way together are one finding.
        if now >= run.until {
            run.found_down += 1;
            run.until = now + backoff(run.found_down, BASE, CAP, 1.0);
        }
        true
    }

    /// A chunk was stored: whatever was, is over.
    pub(crate) fn served(&mut self, host: &H) {
        self.0.remove(host);
    }

    /// A host that is to be left alone now, if there is one.
    pub(crate) fn held(&self, now: Duration) -> Option<&H> {
        let mut held = self
            .0
            .iter()
            .filter(|(_, run)| run.found_down > 0 && now < run.until);
        held.next().map(|(host, _)| host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "storage";

    fn refused(media: i64, chunk: u32, number: u32, round: u32, served_before: bool) -> Refused {
        Refused {
            media: MediaId(media),
            chunk,
            attempt: Attempt {
                number,
                round,
                final_try: false,
            },
            served_before,
        }
    }

    /// Each row: what was refused in a row, and whether the last of it is the host's fault.
    #[test]
    fn whose_fault_a_refusal_is() {
        let one_media = |served| -> Vec<Refused> {
            (0..20)
                .flat_map(|chunk| (1..=3).map(move |number| refused(1, chunk, number, 1, served)))
                .collect()
        };
        let media = |count, number, round| -> Vec<Refused> {
            (0..count)
                .map(|media| refused(media, 0, number, round, false))
                .collect()
        };
        let final_tries = media(20, 1, 3).into_iter().map(|mut one| {
            one.attempt.final_try = true;
            one.attempt.round = 1;
            one
        });
        let table: [(&str, Vec<Refused>, bool); 9] = [
            (
                "one media of many chunks, never stored",
                one_media(false),
                false,
            ),
            ("one media that was being stored", one_media(true), true),
            (
                "one chunk of a media that was being stored",
                (1..=10)
                    .map(|number| refused(1, 7, number, 1, true))
                    .collect(),
                false,
            ),
            ("two media", media(2, 1, 1), false),
            ("three media", media(3, 1, 1), true),
            ("three media, third tries", media(3, 3, 1), true),
            (
                "many media that failed often before",
                media(20, 4, 1),
                false,
            ),
            ("many media in later rounds", media(20, 1, 2), false),
            ("many final tries", final_tries.collect(), false),
        ];
        for (what, refusals, is_host) in table {
            let mut outages = Outages::default();
            let mut found = false;
            for refused in refusals {
                found = outages.refused(&HOST, refused, Duration::ZERO);
            }
            assert_eq!(found, is_host, "{what}");
            assert_eq!(outages.held(Duration::ZERO).is_some(), is_host, "{what}");
        }
    }

    #[test]
    fn a_stored_chunk_between_begins_anew() {
        let mut outages = Outages::default();
        for round in 0..10 {
            for media in 0..2 {
                let refused = refused(round * 2 + media, 0, 1, 1, true);
                assert!(!outages.refused(&HOST, refused, Duration::ZERO));
            }
            outages.served(&HOST);
        }
        // What another host does is another matter.
        assert!(!outages.refused(&HOST, refused(1, 0, 1, 1, false), Duration::ZERO));
        assert!(!outages.refused(&HOST, refused(2, 0, 1, 1, false), Duration::ZERO));
        assert!(!outages.refused(&"other", refused(3, 0, 1, 1, false), Duration::ZERO));
    }

    #[test]
    fn an_outage_is_looked_at_ever_more_rarely_until_it_is_over() {
        let mut outages = Outages::default();
        let mut now = Duration::ZERO;
        for media in 0..3 {
            outages.refused(&HOST, refused(media, 0, 1, 1, false), now);
        }
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            // What was on its way when it was found changes nothing.
            let late = refused(50, 0, 1, 1, false);
            assert!(outages.refused(&HOST, late, now));
            let until = now + Duration::from_secs(wait);
            assert_eq!(outages.held(until - Duration::from_millis(1)), Some(&HOST));
            assert_eq!(outages.held(until), None);
            now = until;
            // In an outage nobody is charged, whatever was tried before.
            assert!(outages.refused(&HOST, refused(9, 0, 10, 3, false), now));
        }
        outages.served(&HOST);
        assert_eq!(outages.held(now), None);
        assert!(!outages.refused(&HOST, refused(9, 0, 10, 3, false), now));
    }
}
