//! Into how many chunks a media is cut.
//!
//! A chunk should last about as long as the link can be trusted: large ones cost fewer requests, small ones lose less when a
//! connection breaks. The service cuts a file into pieces of about 25 MB unless it is asked for a number of parts.

use c2c_protocol::allowed_parts;

/// A chunk shall last this long where nothing is known of interruptions, in seconds.
const LONGEST: f64 = 60.0;
/// Where a link breaks often, chunks are never made shorter than this, in seconds: each costs a request.
const SHORTEST: f64 = 2.0;
/// A break costs half a chunk on average, for each transfer. A tenth of the time between two breaks keeps that at 5 % of
/// what is sent between them.
const SHARE_OF_UPTIME: f64 = 0.1;
/// However fast the line: a process that dies sends at most so many bytes of a chunk again.
const LARGEST: u64 = 256 << 20;
/// Chunks per transfer of a large file, so that all have work to the end.
const ROUNDS: u64 = 4;
/// Nothing below this is cut at all: one request is as good as two.
const UNCUT: u64 = 8 << 20;

/// What is known of the line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Circumstance {
    /// Bytes per second that all transfers together bring.
    pub(crate) goodput: Option<u64>,
    /// How many transfers that takes.
    pub(crate) transfers: u32,
    /// How long the link usually stays up, in seconds.
    pub(crate) up_seconds: Option<f64>,
}

/// The number of parts to ask for; `None` leaves it to the service.
pub(crate) fn choose_parts(size: u64, known: &Circumstance) -> Option<u32> {
    let goodput = known.goodput.filter(|rate| *rate > 0)?;
    let transfers = u64::from(known.transfers.max(1));
    if size <= UNCUT {
        return None;
    }
    let seconds = known.up_seconds.map_or(LONGEST, |up| {
        (up * SHARE_OF_UPTIME).clamp(SHORTEST, LONGEST)
    });
    let each = goodput as f64 / transfers as f64;
    let chunk = ((each * seconds) as u64).clamp(1, LARGEST);
    let wanted = size.div_ceil(chunk);
    // Enough for all transfers, but not at the price of chunks that are hardly worth a request.
    let shared = (transfers * ROUNDS).min(size / UNCUT);
    let allowed = allowed_parts(size);
    let parts = u32::try_from(wanted.max(shared)).unwrap_or(u32::MAX);
    Some(parts.clamp(*allowed.start(), *allowed.end()))
}

#[cfg(test)]
mod tests {
    use c2c_protocol::check_parts;
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;
    const GB: u64 = 1_000 * MB;

    fn on(goodput: u64, transfers: u32, up_seconds: Option<f64>) -> Circumstance {
        Circumstance {
            goodput: Some(goodput),
            transfers,
            up_seconds,
        }
    }

    #[test]
    fn by_circumstance() {
        let lte = 2_500_000;
        let cases = [
            ("nothing is known", 10 * GB, Circumstance::default(), None),
            ("a still", MB, on(lte, 2, None), None),
            // 60 s at 1.25 MB/s each are 75 MB.
            ("LTE, two transfers", 10 * GB, on(lte, 2, None), Some(134)),
            // Four seconds of 2.5 MB/s are 10 MB.
            (
                "LTE that breaks every 40 s",
                GB,
                on(lte, 1, Some(40.0)),
                Some(100),
            ),
            // Two seconds of 250 kB/s would be 500 kB: S3 wants 5 MiB.
            (
                "slow and breaking",
                100 * MB,
                on(250_000, 1, Some(5.0)),
                Some(19),
            ),
            ("a fast line", 100 * GB, on(120 * MB, 4, None), Some(373)),
            (
                "a fast line, all have work",
                GB,
                on(120 * MB, 4, None),
                Some(16),
            ),
            (
                "a very long file on a slow line",
                5_000 * GB,
                on(100_000, 4, None),
                Some(10_000),
            ),
        ];
        for (name, size, known, parts) in cases {
            assert_eq!(choose_parts(size, &known), parts, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_allowed(
            size in 1_u64..5_000_000_000_000,
            goodput in 1_u64..10_000_000_000,
            transfers in 0_u32..100,
            up in proptest::option::of(0.0_f64..100_000.0),
        ) {
            if let Some(parts) = choose_parts(size, &on(goodput, transfers, up)) {
                prop_assert!(check_parts(size, parts).is_ok(), "{parts}");
            }
        }

        #[test]
        fn a_faster_line_never_gets_smaller_chunks(
            size in 1_u64..1_000_000_000_000,
            goodput in 1_u64..1_000_000_000,
            up in proptest::option::of(0.0_f64..1_000.0),
        ) {
            let slower = choose_parts(size, &on(goodput, 4, up));
            let faster = choose_parts(size, &on(goodput * 2, 4, up));
            prop_assert!(faster <= slower);
        }
    }
}
