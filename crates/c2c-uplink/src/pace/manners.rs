//! Polite mode: looks at the first hop and at the connections while something is sent, and steps back when others need the line.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::first_hop::FirstHop;
use super::polite::{Look, Polite, PoliteRule};
use crate::engine::Engine;

/// Between two looks. Real time: packets do not run on our clock.
const LOOK: Duration = Duration::from_millis(200);
/// An answer of the first hop that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// While the connections tell as well nobody waits for an answer that stands in the queue itself: each look would come too late.
const GLANCE: Duration = Duration::from_millis(200);
/// A first hop that did not answer is looked for again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// Is polite until the shutdown.
pub(crate) async fn be_polite(engine: Arc<Engine>) {
    let gauge = &engine.helm.gauge;
    let mut network = engine.helm.network.subscribe();
    let mut polite = Polite::new(PoliteRule::default());
    let (mut hop, mut sought) = (None::<FirstHop>, None::<Instant>);
    let begun = Instant::now();
    // Bytes acknowledged, as of the last looks of the last half second.
    let mut seen = std::collections::VecDeque::from([(begun.elapsed(), gauge.acknowledged())]);
    loop {
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            Ok(()) = network.changed() => {
                network.mark_unchanged();
                polite.network_changed();
                (hop, sought) = (None, None);
                continue;
            }
            () = gauge.busy_too() => {}
        }
        if hop.is_none() && sought.is_none_or(|at| at.elapsed() >= AGAIN) {
            sought = Some(Instant::now());
            match FirstHop::find().await {
                Ok(found) => hop = Some(found),
                Err(error) => {
                    tracing::info!("polite mode goes by the connections' own round trips: {error}");
                }
            }
        }
        let patience = match gauge.round_trip() {
            Some(_) => GLANCE,
            None => PATIENCE,
        };
        let first_hop = match &mut hop {
            Some(first) => match first.probe(patience).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!("the first hop: {error}");
                    hop = None;
                    None
                }
            },
            None => None,
        };
        let connections = gauge.round_trip();
        let now = begun.elapsed();
        seen.push_back((now, gauge.acknowledged()));
        while seen.len() > 2 && now - seen[0].0 > Duration::from_millis(600) {
            seen.pop_front();
        }
        let (first, last) = (seen[0], seen[seen.len() - 1]);
        let span = (last.0 - first.0).as_secs_f64();
        let goodput = if span > 0.0 {
            (last.1.saturating_sub(first.1) as f64 / span) as u64
        } else {
            0
        };
        let allowed = polite.look(Look {
            now,
            first_hop,
            connections,
            goodput,
        });
        tracing::trace!(?first_hop, ?connections, goodput, allowed, "polite");
        engine
            .pacer
            .limit_politely(allowed.and_then(NonZeroU64::new));
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
