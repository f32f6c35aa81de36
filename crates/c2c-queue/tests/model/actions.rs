//! What may happen to a queue, and how often.

use std::time::Duration;

use c2c_queue::{ByHand, Hold, MediaState, Verdict};
use proptest::prelude::*;

/// One step. Leases and media are named by a number that is taken modulo what there is, so that every sequence
/// makes sense and shrinks well; old leases and media that are gone are among them on purpose.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Add {
        path: u8,
        size: u64,
        mtime: i64,
        priority: i32,
        hold: Option<Hold>,
        again: bool,
    },
    ClaimRegistration {
        worker: u8,
        lease: Duration,
        ahead: Option<u64>,
    },
    ClaimChunk {
        worker: u8,
        lease: Duration,
    },
    Succeed {
        lease: usize,
        chunks: u64,
    },
    Fail {
        lease: usize,
        verdict: Verdict,
        wasted: u64,
        duplicate: bool,
        drop_parts: bool,
    },
    FileChanged {
        lease: usize,
        size: u64,
        captured: Option<i64>,
    },
    Renew {
        lease: usize,
        acknowledged: u64,
        extend: Duration,
    },
    Release {
        lease: usize,
    },
    RecoverExpired,
    RecoverDead,
    FileGone {
        media: usize,
    },
    Hold {
        media: usize,
        hold: Hold,
    },
    Unhold {
        media: usize,
        hold: Hold,
    },
    UnholdAll {
        hold: Hold,
    },
    GrantRestartTries,
    ByHand {
        selection: Select,
        action: ByHand,
    },
    StoreIdentity {
        project: u8,
    },
    Advance {
        by: Duration,
    },
    JumpWall {
        by_ms: i64,
    },
    Reopen {
        clean: bool,
        /// The system runs on for so long without the program ...
        meanwhile: Duration,
        /// ... and then restarts, with a clock that shows anything.
        reboot: Option<i64>,
    },
}

/// A selection by hand.
#[derive(Clone, Debug)]
pub(crate) enum Select {
    Ids(Vec<usize>),
    State(MediaState),
    Held,
    All,
}

/// Mostly one of the newest, sometimes any.
fn recent() -> impl Strategy<Value = usize> {
    prop_oneof![5 => 0..3usize, 1 => any::<usize>()]
}

/// Which lease: see `World::lease`.
fn lease() -> impl Strategy<Value = usize> {
    0..64usize
}

fn hold() -> impl Strategy<Value = Hold> {
    prop_oneof![
        Just(Hold::ByHand),
        Just(Hold::CaptureTimeUnknown),
        Just(Hold::VolumeAway),
        Just(Hold::FileChanging),
        Just(Hold::ChannelPaused),
    ]
}

fn wait() -> impl Strategy<Value = Duration> {
    prop_oneof![4 => Just(0u64), 2 => Just(1_000), 1 => Just(5_000), 1 => Just(60_000)]
        .prop_map(Duration::from_millis)
}

/// Milliseconds by which the wall clock is suddenly another: seconds, days, decades.
fn jump() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![
        -1_000_000_000_000i64,
        -1_000_000_000,
        -5_000,
        0,
        5_000,
        1_000_000_000,
        1_000_000_000_000,
    ])
}

fn lease_time() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(2_000u64), Just(30_000)].prop_map(Duration::from_millis)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        6 => (wait(), any::<bool>()).prop_map(|(after, counted)| Verdict::Again { after, counted }),
        6 => wait().prop_map(|after| Verdict::NextRound { after }),
        3 => (wait(), any::<bool>()).prop_map(|(after, counted)| Verdict::RegisterAgain { after, counted }),
        2 => hold().prop_map(Verdict::Hold),
        3 => Just(Verdict::Park),
        1 => Just(Verdict::Withhold),
        2 => Just(Verdict::Fail),
        1 => Just(Verdict::Cancel),
    ]
}

fn select() -> impl Strategy<Value = Select> {
    prop_oneof![
        8 => prop::collection::vec(recent(), 0..3).prop_map(Select::Ids),
        2 => prop::sample::select(MediaState::ALL.to_vec()).prop_map(Select::State),
        1 => Just(Select::Held),
        1 => Just(Select::All),
    ]
}

fn by_hand() -> impl Strategy<Value = ByHand> {
    prop_oneof![
        4 => Just(ByHand::Retry),
        1 => Just(ByHand::Cancel),
        1 => (-1..=1i32).prop_map(ByHand::Prioritize),
        1 => Just(ByHand::Hold),
        3 => Just(ByHand::Release),
    ]
}

/// Any step; work is done more often than undone, so that media get far.
pub(crate) fn action() -> impl Strategy<Value = Action> {
    let add = (
        0..4u8,
        0..6u64,
        0..2i64,
        -1..=1i32,
        prop::option::weighted(
            0.1,
            prop_oneof![1 => hold(), 1 => Just(Hold::CaptureTimeUnknown)],
        ),
        prop::bool::weighted(0.3),
    );
    let fail = (
        any::<usize>(),
        verdict(),
        0..3u64,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    prop_oneof![
        10 => add.prop_map(|(path, size, mtime, priority, hold, again)| {
            Action::Add { path, size, mtime, priority, hold, again }
        }),
        16 => (0..3u8, lease_time(), prop::option::weighted(0.2, 0..6u64)).prop_map(|(worker, lease, ahead)| {
            Action::ClaimRegistration { worker, lease, ahead }
        }),
        26 => (0..3u8, lease_time()).prop_map(|(worker, lease)| Action::ClaimChunk { worker, lease }),
        26 => (lease(), 1..4u64).prop_map(|(lease, chunks)| Action::Succeed { lease, chunks }),
        20 => fail.prop_map(|(lease, verdict, wasted, duplicate, drop_parts)| {
            Action::Fail { lease, verdict, wasted, duplicate, drop_parts }
        }),
        3 => (lease(), 0..6u64, prop::option::of(1..100i64)).prop_map(|(lease, size, captured)| {
            Action::FileChanged { lease, size, captured }
        }),
        3 => (lease(), 0..3u64, lease_time()).prop_map(|(lease, acknowledged, extend)| {
            Action::Renew { lease, acknowledged, extend }
        }),
        3 => lease().prop_map(|lease| Action::Release { lease }),
        4 => Just(Action::RecoverExpired),
        4 => Just(Action::RecoverDead),
        1 => any::<usize>().prop_map(|media| Action::FileGone { media }),
        2 => (recent(), hold()).prop_map(|(media, hold)| Action::Hold { media, hold }),
        2 => (recent(), hold()).prop_map(|(media, hold)| Action::Unhold { media, hold }),
        1 => hold().prop_map(|hold| Action::UnholdAll { hold }),
        4 => Just(Action::GrantRestartTries),
        6 => (select(), by_hand()).prop_map(|(selection, action)| Action::ByHand { selection, action }),
        1 => prop_oneof![9 => Just(0u8), 1 => Just(1)].prop_map(|project| Action::StoreIdentity { project }),
        8 => prop_oneof![Just(500u64), Just(2_000), Just(10_000), Just(100_000)]
            .prop_map(|by| Action::Advance { by: Duration::from_millis(by) }),
        2 => jump().prop_map(|by_ms| Action::JumpWall { by_ms }),
        3 => (any::<bool>(), wait(), prop::option::of(jump())).prop_map(|(clean, meanwhile, reboot)| {
            Action::Reopen { clean, meanwhile, reboot }
        }),
    ]
}
