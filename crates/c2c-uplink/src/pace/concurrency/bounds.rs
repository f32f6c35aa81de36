//! How many transfers this machine and its settings allow.

use super::Bounds;
use crate::settings::Transfers;

/// The most transfers of `auto` unless set otherwise. Sixteen loss-based flows bring 40 % of a bad satellite link and
/// thirty-two twice that; nothing measured gains from more, and each costs memory.
pub const DEFAULT_MOST: u32 = 32;

/// Descriptors for everything that is not a transfer: the queue's files, the calls to the API, the presence socket, probes,
/// watched folders, the control socket, standard streams.
const OTHER_DESCRIPTORS: u64 = 64;
/// The file, the connection, and a connection that is being made while the one before it still closes.
const DESCRIPTORS_PER_TRANSFER: u64 = 3;

/// What limits the number of transfers.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// What the settings say.
    pub transfers: Transfers,
    /// The most that `auto` may reach; `None`: [`DEFAULT_MOST`], or two per core if that is more.
    pub most: Option<u32>,
    /// Bytes that all transfers together may take.
    pub memory: u64,
    /// Bytes that one transfer takes.
    pub memory_per_transfer: u64,
    /// File descriptors that this process may have open.
    pub descriptors: u64,
    /// Cores of this machine.
    pub cores: u32,
}

/// The bounds that `allowance` leaves, at least one transfer. Memory and descriptors bound a fixed number, too.
pub fn bounds(allowance: &Allowance) -> Bounds {
    let memory = match allowance.memory_per_transfer {
        0 => u64::MAX,
        each => allowance.memory / each,
    };
    let descriptors =
        allowance.descriptors.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS_PER_TRANSFER;
    let machine = u32::try_from(memory.min(descriptors)).unwrap_or(u32::MAX);
    match allowance.transfers {
        Transfers::Fixed(count) => {
            let count = u32::try_from(count).unwrap_or(u32::MAX).min(machine).max(1);
            Bounds {
                min: count,
                max: count,
            }
        }
        Transfers::Auto => {
            let most = allowance
                .most
                .unwrap_or_else(|| DEFAULT_MOST.max(allowance.cores.saturating_mul(2)));
            Bounds {
                min: 1,
                max: most.min(machine).max(1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_tightest_bound_counts() {
        use Transfers::{Auto, Fixed};
        // (setting, most, memory, each, descriptors, cores) → (min, max)
        let rows = [
            ((Auto, None, 64 * MIB, MIB, 1024, 2), (1, 32)),
            ((Auto, Some(64), 128 * MIB, MIB, 1024, 2), (1, 64)),
            ((Auto, Some(8), 64 * MIB, MIB, 1024, 2), (1, 8)),
            ((Auto, Some(0), 64 * MIB, MIB, 1024, 2), (1, 1)),
            ((Auto, None, 128 * MIB, MIB, 1024, 24), (1, 48)),
            ((Auto, None, 10 * MIB, MIB, 1024, 2), (1, 10)),
            ((Auto, None, MIB / 2, MIB, 1024, 2), (1, 1)),
            ((Auto, None, 64 * MIB, 0, 1024, 2), (1, 32)),
            ((Auto, None, 64 * MIB, MIB, 112, 2), (1, 16)),
            ((Auto, None, 64 * MIB, MIB, 20, 2), (1, 1)),
            ((Auto, None, u64::MAX, 1, u64::MAX, u32::MAX), (1, u32::MAX)),
            ((Fixed(6), None, 64 * MIB, MIB, 1024, 2), (6, 6)),
            ((Fixed(100), None, 128 * MIB, MIB, 1024, 2), (100, 100)),
            ((Fixed(100), Some(8), 64 * MIB, MIB, 1024, 2), (64, 64)),
            ((Fixed(100), None, 640 * MIB, MIB, 256, 2), (64, 64)),
            ((Fixed(0), None, 64 * MIB, MIB, 1024, 2), (1, 1)),
        ];
        for ((transfers, most, memory, each, descriptors, cores), (min, max)) in rows {
            let allowance = Allowance {
                transfers,
                most,
                memory,
                memory_per_transfer: each,
                descriptors,
                cores,
            };
            assert_eq!(bounds(&allowance), Bounds { min, max }, "{allowance:?}");
        }
    }
}
