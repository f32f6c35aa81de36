use crate::clock::{BootId, BootTime, Capture, CaptureSource, WallTime};
use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{FileFacts, Hold, MediaState};
use crate::queue::{Attempt, ByHand, Claim, Item, Selection, Verdict};

use super::kit::{Kit, LEASE, again, asset, clip, is_lost, secs, setback};

pub(super) async fn by_priority_then_position(kit: Kit) {
    let mut ids = Vec::new();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)] {
        let mut media = clip(name, 1);
        media.priority = priority;
        ids.push(kit.add_new(media).await);
    }
    for expected in [1, 4, 0, 2, 3] {
        assert_eq!(kit.registration().await.media.id, ids[expected]);
    }
    kit.nothing_to_register().await;
}

pub(super) async fn a_try_is_counted_at_checkout(kit: Kit) {
    let id = kit.add("a", 1).await;
    let claim = kit.registration().await;
    assert_eq!(claim.lease.item, Item::Registration(id));
    assert_eq!(
        claim.attempt,
        Attempt {
            number: 1,
            round: 1,
            final_try: false
        }
    );
    assert_eq!(
        (claim.media.state, claim.media.tries),
        (MediaState::Registering, 1)
    );
    let media = kit.media(id).await;
    assert_eq!(media, claim.media);
    let event = Event::Try {
        operation: Operation::Register,
        chunk: None,
        number: 1,
        round: 1,
    };
    assert_eq!(kit.events(id).await, [Event::Added, event]);

    // A crash has used the try.
    let kit = kit.restart(false).await;
    kit.nothing_to_register().await;
    kit.queue.recover_dead("run-2").await.unwrap();
    let claim = kit.registration().await;
    assert_eq!(claim.attempt.number, 2);
    assert_eq!(claim.media.tries_total, 2);
}

pub(super) async fn nothing_then_later_then_work(kit: Kit) {
    kit.nothing_to_register().await;
    let id = kit.add("a", 1).await;
    let claim = kit.registration().await;
    kit.nothing_to_register().await;
    let outcome = kit.fail(&claim.lease, again(30)).await;
    assert_eq!((outcome.state, outcome.hold), (MediaState::Queued, None));
    assert_eq!(kit.media(id).await.due_in_ms, Some(30_000));
    kit.register_later(secs(30)).await;
    kit.clock.advance(secs(29));
    kit.register_later(secs(1)).await;
    kit.clock.advance(secs(1));
    assert_eq!(kit.media(id).await.due_in_ms, None);
    assert_eq!(kit.registration().await.attempt.number, 2);
}

pub(super) async fn not_too_far_ahead(kit: Kit) {
    let first = kit.registered("a", &[1, 1, 1]).await;
    kit.add("b", 1).await;
    let holder = kit.holder("register");
    for ahead in [0, 1, 3] {
        let claim = kit
            .queue
            .claim_registration(&holder, LEASE, Some(ahead))
            .await
            .unwrap();
        assert!(
            matches!(claim, Claim::Nothing),
            "3 chunks are ready, {ahead} are enough"
        );
    }
    let claim = kit
        .queue
        .claim_registration(&holder, LEASE, Some(4))
        .await
        .unwrap();
    let Claim::Got(claim) = claim else {
        panic!("3 chunks are less than 4: {claim:?}")
    };
    kit.queue.release(&claim.lease).await.unwrap();
    // What is being sent is not waiting any more.
    let chunk = kit.chunk().await;
    let claim = kit
        .queue
        .claim_registration(&holder, LEASE, Some(3))
        .await
        .unwrap();
    let Claim::Got(claim) = claim else {
        panic!("2 chunks are less than 3: {claim:?}")
    };
    kit.queue.release(&claim.lease).await.unwrap();
    // A media that nobody could work on now stops nobody.
    kit.fail(&chunk.lease, Verdict::NextRound { after: secs(60) })
        .await;
    let claim = kit
        .queue
        .claim_registration(&holder, LEASE, Some(1))
        .await
        .unwrap();
    let Claim::Got(claim) = claim else {
        panic!("all chunks wait: {claim:?}")
    };
    kit.queue.release(&claim.lease).await.unwrap();
    kit.clock.advance(secs(60));
    assert!(matches!(
        kit.queue
            .claim_registration(&holder, LEASE, Some(1))
            .await
            .unwrap(),
        Claim::Nothing
    ));
    kit.queue.hold(first, Hold::VolumeAway).await.unwrap();
    assert!(matches!(
        kit.queue
            .claim_registration(&holder, LEASE, Some(1))
            .await
            .unwrap(),
        Claim::Got(_)
    ));
}

pub(super) async fn an_asset_comes_with_all_its_chunks(kit: Kit) {
    let id = kit.add("a", 10).await;
    let claim = kit.registration().await;
    kit.clock.advance(secs(1));
    kit.queue
        .asset_created(&claim.lease, asset("a", &[4, 4, 2]))
        .await
        .unwrap();
    let wall = crate::Clock::wall(&kit.clock);
    let kit = kit.restart(false).await;
    let media = kit.media(id).await;
    assert_eq!(media.state, MediaState::Transferring);
    assert_eq!(media.asset_id.as_deref(), Some("asset-a"));
    assert_eq!(media.project_id.as_deref(), Some("project-1"));
    assert_eq!(media.registered_at, Some(wall));
    assert_eq!(
        (
            media.registrations,
            media.chunk_count,
            media.chunks_sent,
            media.bytes_sent
        ),
        (1, 3, 0, 0)
    );
    let chunks = kit.queue.chunks(id).await.unwrap();
    let ranges: Vec<_> = chunks
        .iter()
        .map(|chunk| (chunk.number, chunk.start, chunk.length))
        .collect();
    assert_eq!(ranges, [(0, 0, 4), (1, 4, 4), (2, 8, 2)]);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk.state == crate::ChunkState::Ready && chunk.tries == 0)
    );
    assert_eq!(kit.queue.status().await.unwrap().chunks_ready, 3);
    let event = Event::Registered {
        asset_id: "asset-a".to_owned(),
        chunks: 3,
        offset: Some(3),
    };
    assert_eq!(kit.events(id).await.last(), Some(&event));
    is_lost(
        kit.queue
            .asset_created(&claim.lease, asset("a", &[10]))
            .await,
        id,
    );
}

pub(super) async fn chunks_must_cover_the_file(kit: Kit) {
    let id = kit.add("a", 10).await;
    let claim = kit.registration().await;
    let mut gap = asset("a", &[5, 5]);
    gap.chunks[1].start = 6;
    let mut nameless = asset("a", &[10]);
    nameless.asset_id.clear();
    for wrong in [
        gap,
        nameless,
        asset("a", &[5, 4]),
        asset("a", &[5, 6]),
        asset("a", &[]),
        asset("a", &[10, 0]),
    ] {
        let result = kit.queue.asset_created(&claim.lease, wrong).await;
        assert!(matches!(result, Err(QueueError::Invalid(_))), "{result:?}");
    }
    assert_eq!(kit.state(id).await, MediaState::Registering);
    kit.queue
        .asset_created(&claim.lease, asset("a", &[10]))
        .await
        .unwrap();
}

pub(super) async fn every_verdict_does_what_it_says(kit: Kit) {
    let soon = secs(0);
    let cases = [
        (
            Verdict::Again {
                after: soon,
                counted: true,
            },
            MediaState::Queued,
            1,
        ),
        (
            Verdict::Again {
                after: soon,
                counted: false,
            },
            MediaState::Queued,
            0,
        ),
        (
            Verdict::RegisterAgain {
                after: soon,
                counted: true,
            },
            MediaState::Queued,
            1,
        ),
        (
            Verdict::RegisterAgain {
                after: soon,
                counted: false,
            },
            MediaState::Queued,
            0,
        ),
        (Verdict::NextRound { after: soon }, MediaState::Queued, 0),
        (
            Verdict::Hold(Hold::CaptureTimeUnknown),
            MediaState::Queued,
            0,
        ),
        (Verdict::Park, MediaState::Parked, 1),
        (Verdict::Withhold, MediaState::Withheld, 0),
        (Verdict::Fail, MediaState::Failed, 1),
        (Verdict::Cancel, MediaState::Cancelled, 0),
    ];
    for (number, (verdict, state, tries)) in cases.into_iter().enumerate() {
        let id = kit.add(&format!("clip-{number}"), 1).await;
        let claim = kit.registration().await;
        assert_eq!(claim.media.id, id);
        let outcome = kit.fail(&claim.lease, verdict.clone()).await;
        let media = kit.media(id).await;
        assert_eq!(
            (outcome.state, outcome.hold),
            (media.state, media.hold),
            "{verdict:?}"
        );
        assert_eq!(
            (media.state, media.tries, media.tries_total),
            (state, tries, 1),
            "{verdict:?}"
        );
        assert_eq!(
            media.rounds,
            u32::from(matches!(verdict, Verdict::NextRound { .. })),
            "{verdict:?}"
        );
        assert_eq!(media.rested_at.is_some(), state.is_resting(), "{verdict:?}");
        assert_eq!(
            media.hold.is_some(),
            matches!(verdict, Verdict::Hold(_)),
            "{verdict:?}"
        );
        is_lost(kit.queue.release(&claim.lease).await, id);
        if !state.is_resting() {
            kit.queue
                .by_hand(Selection::Ids(vec![id]), crate::ByHand::Cancel)
                .await
                .unwrap();
        }
        kit.nothing_to_register().await;
    }
}

pub(super) async fn a_used_up_round_falls_behind_everybody(kit: Kit) {
    let first = kit.add("a", 1).await;
    let second = kit.add("b", 1).await;
    let third = kit.add("c", 1).await;
    let claim = kit.registration().await;
    kit.fail(&claim.lease, Verdict::NextRound { after: secs(0) })
        .await;
    assert!(kit.media(first).await.position > kit.media(third).await.position);
    let fourth = kit.add("d", 1).await;
    for expected in [second, third] {
        assert_eq!(kit.registration().await.media.id, expected);
    }
    let claim = kit.registration().await;
    assert_eq!(
        (claim.media.id, claim.attempt.number, claim.attempt.round),
        (first, 1, 2)
    );
    assert_eq!(
        kit.registration().await.media.id,
        fourth,
        "who came later stays behind"
    );
}

pub(super) async fn a_fault_is_remembered(kit: Kit) {
    let mut media = clip("a", 1);
    media.parts = Some(7);
    let id = kit.add_new(media).await;
    let claim = kit.registration().await;
    let mut setback = setback(again(2));
    setback.possible_duplicate = true;
    setback.bytes_wasted = 11;
    kit.queue
        .registration_failed(&claim.lease, setback.clone())
        .await
        .unwrap();
    let media = kit.media(id).await;
    assert_eq!(media.last_fault, Some(setback.fault.clone()));
    assert_eq!(
        (media.possible_duplicates, media.bytes_resent, media.parts),
        (1, 11, Some(7))
    );
    let events = kit.events(id).await;
    assert!(events.contains(&Event::PossibleDuplicate));
    let fault = Event::Fault {
        operation: Operation::Register,
        chunk: None,
        fault: setback.fault.clone(),
        verdict: "again".to_owned(),
        wait_ms: Some(2_000),
    };
    assert_eq!(events.last(), Some(&fault));
    kit.clock.advance(secs(2));
    let claim = kit.registration().await;
    setback.drop_parts = true;
    setback.possible_duplicate = false;
    kit.queue
        .registration_failed(&claim.lease, setback)
        .await
        .unwrap();
    assert_eq!(kit.media(id).await.parts, None);
}

pub(super) async fn a_changed_file_goes_on(kit: Kit) {
    let id = kit.add("a", 10).await;
    let claim = kit.registration().await;
    let facts = FileFacts {
        size: 12,
        mtime_ns: 2_000,
        file_id: None,
    };
    let before = kit.media(id).await;
    kit.queue
        .file_changed(&claim.lease, facts.clone(), None, "it grew".to_owned())
        .await
        .unwrap();
    let media = kit.media(id).await;
    assert_eq!(media.facts, facts);
    assert_eq!(media.capture, before.capture);
    assert_eq!(
        kit.queue
            .status()
            .await
            .unwrap()
            .of(MediaState::Registering)
            .bytes,
        12
    );
    assert_eq!(
        kit.events(id).await.last(),
        Some(&Event::FileChanged {
            words: "it grew".to_owned()
        })
    );
    assert!(
        kit.queue
            .asset_created(&claim.lease, asset("a", &[10]))
            .await
            .is_err()
    );
    kit.queue
        .asset_created(&claim.lease, asset("a", &[12]))
        .await
        .unwrap();
    is_lost(
        kit.queue
            .file_changed(&claim.lease, facts, None, "late".to_owned())
            .await,
        id,
    );
}

pub(super) async fn a_file_taken_anew_has_another_capture(kit: Kit) {
    let mut unsure = clip("a", 10);
    unsure.hold = Some(Hold::CaptureTimeUnknown);
    let id = kit.add_new(unsure.clone()).await;
    kit.by_hand(&[id], ByHand::Release).await;
    assert!(kit.media(id).await.capture_accepted);
    let facts = FileFacts {
        mtime_ns: 2_000,
        ..unsure.facts
    };
    let claim = kit.registration().await;
    kit.queue
        .file_changed(&claim.lease, facts.clone(), None, "touched".to_owned())
        .await
        .unwrap();
    assert!(
        kit.media(id).await.capture_accepted,
        "the moment is the same"
    );
    let mut capture = Capture {
        wall: WallTime(-7),
        boot_id: Some(BootId("another boot".to_owned())),
        boot: None,
        source: CaptureSource::Doubted,
    };
    let before = kit.media(id).await;
    let nonsense = kit
        .queue
        .file_changed(
            &claim.lease,
            unsure.facts,
            Some(capture.clone()),
            "taken anew".to_owned(),
        )
        .await;
    assert!(
        matches!(nonsense, Err(QueueError::Invalid(_))),
        "{nonsense:?}"
    );
    assert_eq!(kit.media(id).await, before);
    capture.boot = Some(BootTime(55));
    let words = "taken anew".to_owned();
    kit.queue
        .file_changed(
            &claim.lease,
            facts.clone(),
            Some(capture.clone()),
            words.clone(),
        )
        .await
        .unwrap();

    let kit = kit.restart(false).await;
    let media = kit.media(id).await;
    assert_eq!((media.capture, media.facts), (capture, facts));
    assert!(!media.capture_accepted, "nobody has seen this moment yet");
    assert_eq!(
        kit.events(id).await.last(),
        Some(&Event::FileChanged { words })
    );
}

pub(super) async fn a_try_that_succeeded_does_not_count(kit: Kit) {
    let again = |counted| Verdict::RegisterAgain {
        after: secs(0),
        counted,
    };
    let id = kit.registered("a", &[1, 1]).await;
    let media = kit.media(id).await;
    assert_eq!((media.tries, media.tries_total), (0, 1));
    // The URLs expire before anything was sent: nobody's fault, however often.
    for _ in 0..3 {
        let chunk = kit.chunk().await;
        kit.fail(&chunk.lease, again(false)).await;
        let claim = kit.registration().await;
        assert_eq!((claim.attempt.number, claim.attempt.round), (1, 1));
        kit.queue
            .asset_created(&claim.lease, asset("a", &[1, 1]))
            .await
            .unwrap();
    }
    // What was counted stays so: the faults of the registration before it succeeded, too.
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, again(true)).await;
    let claim = kit.registration().await;
    assert_eq!(claim.attempt.number, 2);
    kit.fail(&claim.lease, super::kit::again(0)).await;
    let claim = kit.registration().await;
    assert_eq!(claim.attempt.number, 3);
    kit.queue
        .asset_created(&claim.lease, asset("a", &[1, 1]))
        .await
        .unwrap();
    assert_eq!(kit.media(id).await.tries, 2);
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, again(false)).await;
    assert_eq!(kit.registration().await.attempt.number, 3);
}

pub(super) async fn registrations_are_counted_from_a_retry(kit: Kit) {
    let expired = Verdict::RegisterAgain {
        after: secs(0),
        counted: false,
    };
    let counts = async |kit: &Kit, id| {
        let media = kit.media(id).await;
        (media.registrations, media.registrations_since_retry)
    };
    let id = kit.registered("a", &[1, 1]).await;
    assert_eq!(counts(&kit, id).await, (1, 1));
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, expired.clone()).await;
    kit.register(id, &[1, 1]).await;
    assert_eq!(counts(&kit, id).await, (2, 2));
    // Progress does not forgive them, a person does.
    let chunk = kit.chunk().await;
    kit.sent(&chunk.lease).await;
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, Verdict::Fail).await;
    assert_eq!(counts(&kit, id).await, (2, 2));
    assert_eq!(kit.by_hand(&[id], ByHand::Retry).await, [id]);
    assert_eq!(counts(&kit, id).await, (2, 0));
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, expired).await;
    kit.register(id, &[2]).await;
    let kit = kit.restart(false).await;
    assert_eq!(counts(&kit, id).await, (3, 1));
    let chunk = kit.chunk().await;
    let receipt = kit.sent(&chunk.lease).await.receipt.unwrap();
    assert_eq!(receipt.registrations, 3);
}

pub(super) async fn an_old_lease_is_not_heard(kit: Kit) {
    let id = kit.add("a", 1).await;
    let old = kit.registration().await.lease;
    kit.queue.release(&old).await.unwrap();
    let new = kit.registration().await.lease;
    assert!(new.token > old.token);
    is_lost(kit.queue.asset_created(&old, asset("a", &[1])).await, id);
    is_lost(
        kit.queue
            .registration_failed(&old, setback(Verdict::Fail))
            .await,
        id,
    );
    is_lost(kit.queue.renew(&old, 0, LEASE).await, id);
    is_lost(kit.queue.release(&old).await, id);
    assert_eq!(kit.state(id).await, MediaState::Registering);
    assert_eq!(kit.media(id).await.last_fault, None);
    kit.queue
        .asset_created(&new, asset("a", &[1]))
        .await
        .unwrap();
}

pub(super) async fn several_workers_register_in_order(kit: Kit) {
    let mut expected = Vec::new();
    for number in 0..8 {
        expected.push(kit.add(&format!("clip-{number}"), 1).await);
    }
    let mut urgent = clip("urgent", 1);
    urgent.priority = 1;
    expected.insert(0, kit.add_new(urgent).await);
    // Four at once, twice: together they have the first eight, nobody has what another one has.
    for four in expected.chunks_exact(4) {
        let workers = (0..4).map(|worker| {
            let (queue, holder) = (kit.queue.clone(), kit.holder(&format!("register-{worker}")));
            tokio::spawn(async move { queue.claim_registration(&holder, LEASE, None).await })
        });
        let mut got = Vec::new();
        for worker in workers.collect::<Vec<_>>() {
            match worker.await.unwrap().unwrap() {
                Claim::Got(claim) => got.push((claim.lease.token, claim.media.id)),
                other => panic!("there is enough for everybody: {other:?}"),
            }
        }
        got.sort_unstable();
        let ids: Vec<_> = got.iter().map(|(_, id)| *id).collect();
        assert_eq!(ids, four, "in the order of the leases");
    }
}
