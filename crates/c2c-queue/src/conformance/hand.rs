use crate::error::QueueError;
use crate::history::Event;
use crate::media::{FileId, Hold, MediaId, MediaState, Volume};
use crate::queue::{ByHand, Selection, Verdict};

use super::kit::{Kit, again, clip, is_lost, proof, secs};

fn by_hand(action: &str) -> Event {
    Event::ByHand {
        action: action.to_owned(),
    }
}

pub(super) async fn retry_of_what_rests(kit: Kit) {
    // With chunks it goes on where it was; what was sent stays sent.
    for (number, verdict) in [Verdict::Park, Verdict::Fail].into_iter().enumerate() {
        let id = kit.registered(&format!("clip-{number}"), &[1, 1]).await;
        let zero = kit.chunk().await;
        kit.sent(&zero.lease).await;
        let one = kit.chunk().await;
        kit.fail(&one.lease, Verdict::NextRound { after: secs(900) })
            .await;
        kit.clock.advance(secs(900));
        let one = kit.chunk().await;
        kit.fail(&one.lease, verdict).await;
        kit.nothing_to_send().await;
        assert_eq!(kit.by_hand(&[id], ByHand::Retry).await, [id]);
        let media = kit.media(id).await;
        assert_eq!(
            (media.state, media.rested_at),
            (MediaState::Transferring, None)
        );
        assert_eq!((media.tries, media.rounds, media.chunks_sent), (0, 0, 1));
        assert_eq!(kit.events(id).await.last(), Some(&by_hand("retry")));
        let one = kit.chunk().await;
        assert_eq!(
            (one.chunk.number, one.attempt.number, one.attempt.round),
            (1, 1, 1)
        );
        assert!(kit.sent(&one.lease).await.receipt.is_some());
    }
    // Without, it is registered.
    for (number, verdict) in [
        Verdict::Park,
        Verdict::Fail,
        Verdict::Withhold,
        Verdict::Cancel,
    ]
    .into_iter()
    .enumerate()
    {
        let id = kit.add(&format!("still-{number}"), 1).await;
        let claim = kit.registration().await;
        kit.fail(&claim.lease, verdict).await;
        kit.nothing_to_register().await;
        assert_eq!(kit.by_hand(&[id], ByHand::Retry).await, [id]);
        let claim = kit.registration().await;
        assert_eq!(
            (claim.media.id, claim.attempt.number, claim.attempt.round),
            (id, 1, 1)
        );
        kit.fail(&claim.lease, Verdict::Fail).await;
    }
}

pub(super) async fn retry_of_what_waits(kit: Kit) {
    let id = kit.add("a", 2).await;
    let claim = kit.registration().await;
    kit.fail(&claim.lease, Verdict::NextRound { after: secs(50) })
        .await;
    assert_eq!(kit.by_hand(&[id], ByHand::Retry).await, [id]);
    let media = kit.media(id).await;
    assert_eq!((media.tries, media.rounds, media.due_in_ms), (0, 0, None));
    kit.register(id, &[1, 1]).await;
    let claim = kit.chunk().await;
    kit.fail(&claim.lease, again(50)).await;
    assert_eq!(kit.by_hand(&[id], ByHand::Retry).await, [id]);
    let claim = kit.chunk().await;
    assert_eq!((claim.chunk.number, claim.attempt.number), (0, 1));
    kit.queue.release(&claim.lease).await.unwrap();
    assert_eq!(
        kit.by_hand(&[id], ByHand::Retry).await,
        [],
        "it does not wait for anything"
    );
    for (hold, lifted) in [
        (Hold::VolumeAway, true),
        (Hold::FileChanging, true),
        (Hold::ChannelPaused, false),
        (Hold::ByHand, false),
        (Hold::CaptureTimeUnknown, false),
    ] {
        kit.queue.hold(id, hold).await.unwrap();
        assert_eq!(
            !kit.by_hand(&[id], ByHand::Retry).await.is_empty(),
            lifted,
            "{hold:?}"
        );
        assert_eq!(kit.media(id).await.hold, (!lifted).then_some(hold));
        kit.queue.unhold(id, hold, None).await.unwrap();
    }
}

pub(super) async fn retry_once_is_enough(kit: Kit) {
    let old = kit.add("a", 1).await;
    kit.by_hand(&[old], ByHand::Cancel).await;
    let new = kit.add("a", 1).await;
    assert_eq!(
        kit.queue
            .by_hand(Selection::State(MediaState::Cancelled), ByHand::Retry)
            .await
            .unwrap(),
        []
    );
    kit.by_hand(&[new], ByHand::Cancel).await;
    assert_eq!(
        kit.by_hand(&[old, new], ByHand::Retry).await,
        [old],
        "one of them is enough"
    );
    // Added again from a card that was mounted again, and from another card in its place.
    let mut media = clip("b", 1);
    let mut known = Vec::new();
    for (device, card) in [(1, "one"), (2, "one"), (2, "two")] {
        media.facts.file_id = Some(FileId { device, file: 9 });
        media.volume = Some(Volume {
            id: card.to_owned(),
            mount_point: clip("", 0).path,
            removable: true,
        });
        let id = kit.add_new(media.clone()).await;
        kit.by_hand(&[id], ByHand::Cancel).await;
        known.push(id);
    }
    assert_eq!(
        kit.by_hand(&known, ByHand::Retry).await,
        [known[0], known[2]]
    );
}

pub(super) async fn cancel_at_any_time(kit: Kit) {
    let sending = kit.registered("a", &[4, 4]).await;
    let zero = kit.chunk().await;
    kit.sent(&zero.lease).await;
    let one = kit.chunk().await;
    let registering = kit.add("b", 1).await;
    let claim = kit.registration().await;
    let queued = kit.add("c", 1).await;
    let all = kit
        .queue
        .by_hand(Selection::All, ByHand::Cancel)
        .await
        .unwrap();
    assert_eq!(all, [sending, registering, queued]);
    for id in all {
        let media = kit.media(id).await;
        assert_eq!(
            (media.state, media.chunk_count, media.bytes_sent),
            (MediaState::Cancelled, 0, 0)
        );
        assert_eq!(kit.events(id).await.last(), Some(&by_hand("cancel")));
    }
    assert_eq!(kit.media(sending).await.bytes_resent, 4);
    is_lost(kit.queue.chunk_sent(&one.lease, proof()).await, sending);
    is_lost(
        kit.queue
            .asset_created(&claim.lease, super::kit::asset("b", &[1]))
            .await,
        registering,
    );
    assert_eq!(
        kit.by_hand(&[sending], ByHand::Cancel).await,
        [],
        "it is cancelled"
    );
    kit.nothing_to_register().await;
    kit.nothing_to_send().await;
    assert_eq!(kit.by_hand(&[sending], ByHand::Retry).await, [sending]);
    assert_eq!(kit.registration().await.media.id, sending);
}

pub(super) async fn priority_changes_the_order(kit: Kit) {
    let [a, b, c] = [
        kit.add("a", 1).await,
        kit.add("b", 1).await,
        kit.add("c", 1).await,
    ];
    assert_eq!(kit.by_hand(&[c, b, c], ByHand::Prioritize(7)).await, [b, c]);
    assert_eq!(kit.media(b).await.priority, 7);
    let upcoming: Vec<_> = kit
        .queue
        .upcoming(10)
        .await
        .unwrap()
        .into_iter()
        .map(|media| media.id)
        .collect();
    assert_eq!(upcoming, [b, c, a]);
    kit.register(b, &[1]).await;
    kit.register(c, &[1]).await;
    kit.by_hand(&[c], ByHand::Prioritize(8)).await;
    assert_eq!(kit.chunk().await.media.id, c);
    kit.by_hand(&[a], ByHand::Cancel).await;
    assert_eq!(kit.by_hand(&[a], ByHand::Prioritize(1)).await, []);
}

pub(super) async fn hold_and_release(kit: Kit) {
    let queued = kit.add("a", 1).await;
    let sending = kit.add("b", 2).await;
    kit.by_hand(&[queued], ByHand::Hold).await;
    kit.register(sending, &[1, 1]).await;
    let zero = kit.chunk().await;
    assert_eq!(
        kit.queue
            .by_hand(Selection::All, ByHand::Hold)
            .await
            .unwrap(),
        [sending]
    );
    assert_eq!(kit.queue.status().await.unwrap().held, 2);
    assert_eq!(kit.queue.status().await.unwrap().active(), 0);
    kit.nothing_to_send().await;
    kit.sent(&zero.lease).await;
    kit.nothing_to_send().await;
    kit.nothing_to_register().await;
    let mut unsure = clip("c", 1);
    unsure.hold = Some(Hold::CaptureTimeUnknown);
    let unsure = kit.add_new(unsure).await;
    assert_eq!(
        kit.queue
            .by_hand(Selection::Held, ByHand::Release)
            .await
            .unwrap(),
        [queued, sending, unsure]
    );
    assert_eq!(
        kit.queue
            .by_hand(Selection::All, ByHand::Release)
            .await
            .unwrap(),
        []
    );
    assert!(kit.media(unsure).await.capture_accepted);
    assert!(!kit.media(queued).await.capture_accepted);
    assert_eq!(kit.chunk().await.chunk.number, 1);
    assert_eq!(kit.registration().await.media.id, queued);
    // A person's hold is no rest: registering goes on, then it waits.
    let claim = kit.registration().await;
    kit.by_hand(&[unsure], ByHand::Hold).await;
    kit.queue
        .asset_created(&claim.lease, super::kit::asset("c", &[1]))
        .await
        .unwrap();
    let media = kit.media(unsure).await;
    assert_eq!(
        (media.state, media.hold),
        (MediaState::Transferring, Some(Hold::ByHand))
    );
    kit.nothing_to_send().await;
    // Rest ends a hold.
    kit.by_hand(&[unsure], ByHand::Cancel).await;
    assert_eq!(kit.media(unsure).await.hold, None);
    assert_eq!(kit.by_hand(&[unsure], ByHand::Hold).await, []);
}

pub(super) async fn all_or_nothing(kit: Kit) {
    let id = kit.add("a", 1).await;
    let before = (kit.media(id).await, kit.events(id).await);
    let missing = MediaId(id.0 + 100);
    for action in [
        ByHand::Cancel,
        ByHand::Retry,
        ByHand::Prioritize(1),
        ByHand::Hold,
        ByHand::Release,
    ] {
        let result = kit
            .queue
            .by_hand(Selection::Ids(vec![id, missing]), action)
            .await;
        assert!(
            matches!(result, Err(QueueError::NoSuchMedia(lost)) if lost == missing),
            "{action:?}"
        );
        assert_eq!((kit.media(id).await, kit.events(id).await), before);
    }
    assert_eq!(kit.by_hand(&[], ByHand::Cancel).await, []);
}

pub(super) async fn delivered_is_delivered(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    kit.deliver(id).await;
    let other = kit.add("b", 1).await;
    for action in [ByHand::Retry, ByHand::Cancel] {
        let result = kit
            .queue
            .by_hand(Selection::Ids(vec![other, id]), action)
            .await;
        assert!(
            matches!(result, Err(QueueError::IllegalMove { media, .. }) if media == id),
            "{action:?} {result:?}"
        );
        assert_eq!(kit.state(other).await, MediaState::Queued, "all or nothing");
    }
    for action in [ByHand::Prioritize(1), ByHand::Hold, ByHand::Release] {
        assert_eq!(kit.by_hand(&[id], action).await, [], "{action:?}");
    }
    assert_eq!(
        kit.queue
            .by_hand(Selection::State(MediaState::Delivered), ByHand::Retry)
            .await
            .unwrap(),
        []
    );
    assert_eq!(
        kit.queue
            .by_hand(Selection::All, ByHand::Cancel)
            .await
            .unwrap(),
        [other]
    );
    assert_eq!(kit.state(id).await, MediaState::Delivered);
}

pub(super) async fn one_more_try_after_a_restart(kit: Kit) {
    let boot = |kit: &Kit| crate::Clock::boot_id(&kit.clock).map(|id| id.0).unwrap();
    let with_chunks = kit.registered("a", &[1, 1]).await;
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, Verdict::Park).await;
    let without = kit.add("b", 1).await;
    let claim = kit.registration().await;
    kit.fail(&claim.lease, Verdict::Park).await;
    let now = boot(&kit);
    assert_eq!(
        kit.queue.grant_restart_tries(&now).await.unwrap(),
        [],
        "the system did not restart"
    );
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        [],
        "only the program did"
    );
    kit.clock.reboot();
    let kit = kit.restart(true).await;
    let now = boot(&kit);
    assert_eq!(
        kit.queue.grant_restart_tries(&now).await.unwrap(),
        [with_chunks, without]
    );
    assert_eq!(kit.queue.grant_restart_tries(&now).await.unwrap(), []);
    assert_eq!(kit.events(without).await.last(), Some(&Event::RestartTry));
    let chunk = kit.chunk().await;
    assert_eq!(
        (
            chunk.media.id,
            chunk.attempt.number,
            chunk.attempt.final_try
        ),
        (with_chunks, 1, true)
    );
    let claim = kit.registration().await;
    assert_eq!(
        (
            claim.media.id,
            claim.attempt.number,
            claim.attempt.final_try
        ),
        (without, 1, true)
    );
    // It was the last.
    kit.fail(&chunk.lease, Verdict::Park).await;
    kit.fail(&claim.lease, Verdict::Park).await;
    kit.clock.reboot();
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        [],
        "exactly one"
    );
    // A person's retry starts all over.
    assert_eq!(kit.by_hand(&[without], ByHand::Retry).await, [without]);
    let claim = kit.registration().await;
    assert!(!claim.attempt.final_try);
    kit.fail(&claim.lease, Verdict::Park).await;
    kit.clock.reboot();
    let kit = kit.restart(true).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        [without]
    );
}

pub(super) async fn a_final_try_ends_with_progress(kit: Kit) {
    let boot = |kit: &Kit| crate::Clock::boot_id(&kit.clock).map(|id| id.0).unwrap();
    let expired = Verdict::RegisterAgain {
        after: secs(0),
        counted: false,
    };
    let id = kit.registered("a", &[1, 1, 1]).await;
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, Verdict::Park).await;
    kit.clock.reboot();
    let kit = kit.restart(true).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        [id]
    );
    // URLs that expired are no try, and no progress.
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, expired).await;
    let claim = kit.registration().await;
    assert_eq!((claim.attempt.number, claim.attempt.final_try), (1, true));
    kit.queue
        .asset_created(&claim.lease, super::kit::asset("a", &[1, 1, 1]))
        .await
        .unwrap();
    let zero = kit.chunk().await;
    assert!(zero.attempt.final_try);
    kit.sent(&zero.lease).await;
    assert!(!kit.media(id).await.final_try);
    let one = kit.chunk().await;
    assert!(!one.attempt.final_try, "it is a media like any other");
    kit.fail(&one.lease, Verdict::Park).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        []
    );
    kit.clock.reboot();
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.grant_restart_tries(&boot(&kit)).await.unwrap(),
        [id]
    );
    assert!(kit.chunk().await.attempt.final_try);
}
