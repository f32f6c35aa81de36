use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{Hold, MediaId, MediaState};
use crate::queue::{ByHand, Claim, StateTally, Verdict};

use super::kit::{Kit, LEASE, again, clip, secs};

pub(super) async fn the_queue_in_numbers(kit: Kit) {
    let delivered = kit.registered("a", &[10]).await;
    kit.deliver(delivered).await;
    kit.registered("b", &[3, 3, 1]).await;
    let chunk = kit.chunk().await;
    kit.sent(&chunk.lease).await;
    kit.chunk().await;
    let failed = kit.add("c", 5).await;
    let claim = kit.registration().await;
    assert_eq!(claim.media.id, failed);
    kit.fail(&claim.lease, Verdict::Fail).await;
    kit.add("d", 100).await;
    let held = kit.add("e", 1000).await;
    kit.by_hand(&[held], ByHand::Hold).await;
    let status = kit.queue.status().await.unwrap();
    assert_eq!(
        status.of(MediaState::Delivered),
        StateTally {
            media: 1,
            bytes: 10,
            bytes_sent: 10
        }
    );
    assert_eq!(
        status.of(MediaState::Transferring),
        StateTally {
            media: 1,
            bytes: 7,
            bytes_sent: 3
        }
    );
    assert_eq!(
        status.of(MediaState::Failed),
        StateTally {
            media: 1,
            bytes: 5,
            bytes_sent: 0
        }
    );
    assert_eq!(
        status.of(MediaState::Queued),
        StateTally {
            media: 2,
            bytes: 1100,
            bytes_sent: 0
        }
    );
    assert_eq!(status.of(MediaState::Withheld), StateTally::default());
    assert_eq!(
        (status.held, status.chunks_ready, status.active()),
        (1, 1, 2)
    );
    let kit = kit.restart(false).await;
    assert_eq!(kit.queue.status().await.unwrap(), status);
}

pub(super) async fn pages_by_state(kit: Kit) {
    let mut ids = Vec::new();
    for number in 0..7 {
        ids.push(kit.add(&format!("clip-{number}"), 1).await);
    }
    kit.by_hand(&[ids[1], ids[4]], ByHand::Cancel).await;
    let claim = kit.registration().await;
    kit.fail(&claim.lease, Verdict::Withhold).await;
    let page =
        async |states: Option<Vec<MediaState>>, after: Option<MediaId>, limit| -> Vec<MediaId> {
            kit.queue
                .list(states, after, limit)
                .await
                .unwrap()
                .into_iter()
                .map(|media| media.id)
                .collect()
        };
    assert_eq!(page(None, None, 100).await, ids);
    assert_eq!(page(None, Some(ids[2]), 2).await, ids[3..5]);
    assert_eq!(page(None, None, 0).await, []);
    let aside = || Some(vec![MediaState::Withheld, MediaState::Cancelled]);
    assert_eq!(page(aside(), None, 100).await, [ids[0], ids[1], ids[4]]);
    assert_eq!(page(aside(), None, 2).await, [ids[0], ids[1]]);
    assert_eq!(page(aside(), Some(ids[1]), 2).await, [ids[4]]);
    assert_eq!(
        page(Some(vec![MediaState::Queued]), Some(ids[2]), 2).await,
        [ids[3], ids[5]]
    );
    assert_eq!(page(Some(Vec::new()), None, 100).await, []);
}

pub(super) async fn those_that_are_held(kit: Kit) {
    let page = async |after, limit| -> Vec<MediaId> {
        let held = kit.queue.held(after, limit).await.unwrap();
        held.into_iter().map(|media| media.id).collect()
    };
    let held = async |limit| page(None, limit).await;
    let sending = kit.registered("a", &[1, 1]).await;
    let free = kit.add("b", 1).await;
    let mut away = clip("c", 1);
    away.hold = Some(Hold::VolumeAway);
    away.priority = 5;
    let away = kit.add_new(away).await;
    assert_eq!(held(10).await, [away]);
    kit.by_hand(&[sending], ByHand::Hold).await;
    assert_eq!(held(10).await, [sending, away]);
    assert_eq!(held(1).await, [sending]);
    assert_eq!(held(0).await, []);
    assert_eq!(
        kit.queue.held(None, 2).await.unwrap()[1],
        kit.media(away).await,
        "as they are"
    );
    // What is checked out may be held, too.
    let claim = kit.registration().await;
    assert_eq!(claim.media.id, free);
    kit.by_hand(&[free], ByHand::Hold).await;
    assert_eq!(held(10).await, [sending, free, away]);
    assert_eq!(page(Some(sending), 1).await, [free]);
    assert_eq!(page(Some(free), 10).await, [away]);
    assert_eq!(page(Some(away), 10).await, []);
    // Rest ends a hold.
    kit.by_hand(&[sending], ByHand::Cancel).await;
    kit.queue.unhold_all(Hold::VolumeAway).await.unwrap();
    assert_eq!(held(10).await, [free]);
}

pub(super) async fn in_the_order_of_work(kit: Kit) {
    let sending = kit.registered("a", &[1, 1]).await;
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, Verdict::NextRound { after: secs(5) })
        .await;
    let queued = kit.add("b", 1).await;
    let mut urgent = clip("c", 1);
    urgent.priority = 2;
    let urgent = kit.add_new(urgent).await;
    let cancelled = kit.add("d", 1).await;
    kit.by_hand(&[cancelled], ByHand::Cancel).await;
    let upcoming = kit.queue.upcoming(10).await.unwrap();
    let order: Vec<_> = upcoming.iter().map(|media| media.id).collect();
    assert_eq!(order, [urgent, sending, queued]);
    assert_eq!(kit.queue.upcoming(1).await.unwrap(), upcoming[..1]);
}

pub(super) async fn receipts_are_sealed_once(kit: Kit) {
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = kit.registered(&format!("clip-{number}"), &[1]).await;
        kit.deliver(id).await;
        ids.push(id);
    }
    let unsealed = kit.queue.unsealed_receipts(2).await.unwrap();
    assert_eq!(
        unsealed
            .iter()
            .map(|receipt| receipt.media)
            .collect::<Vec<_>>(),
        ids[..2]
    );
    let digest = "ab".repeat(32);
    kit.queue
        .seal_receipt(ids[0], Ok(digest.clone()))
        .await
        .unwrap();
    kit.queue
        .seal_receipt(ids[1], Err("the card is gone".to_owned()))
        .await
        .unwrap();
    let kit = kit.restart(false).await;
    let unsealed = kit.queue.unsealed_receipts(10).await.unwrap();
    assert_eq!(
        unsealed
            .iter()
            .map(|receipt| receipt.media)
            .collect::<Vec<_>>(),
        ids[2..]
    );
    let receipt = kit.queue.receipt(ids[0]).await.unwrap().unwrap();
    assert_eq!(
        (receipt.sha256.as_ref(), receipt.unsealed),
        (Some(&digest), None)
    );
    let receipt = kit.queue.receipt(ids[1]).await.unwrap().unwrap();
    assert_eq!(
        (receipt.sha256, receipt.unsealed.as_deref()),
        (None, Some("the card is gone"))
    );
    assert_eq!(kit.events(ids[0]).await.last(), Some(&Event::ReceiptSealed));
    // The card came back; and what is known is not forgotten.
    kit.queue
        .seal_receipt(ids[1], Ok(digest.clone()))
        .await
        .unwrap();
    kit.queue
        .seal_receipt(ids[1], Err("gone again".to_owned()))
        .await
        .unwrap();
    let receipt = kit.queue.receipt(ids[1]).await.unwrap().unwrap();
    assert_eq!((receipt.sha256, receipt.unsealed), (Some(digest), None));
    let other = kit.add("other", 1).await;
    assert_eq!(kit.queue.receipt(other).await.unwrap(), None);
    let result = kit.queue.seal_receipt(other, Ok(String::new())).await;
    assert!(
        matches!(result, Err(QueueError::NoSuchMedia(_))),
        "{result:?}"
    );
}

pub(super) async fn history_tells_the_life(kit: Kit) {
    let id = kit.add("a", 1).await;
    let claim = kit.registration().await;
    kit.fail(&claim.lease, again(1)).await;
    kit.clock.advance(secs(1));
    kit.register(id, &[1]).await;
    kit.clock.advance(secs(1));
    kit.deliver(id).await;
    let lines = kit.queue.history(Some(id)).await.unwrap();
    let kinds: Vec<_> = lines
        .iter()
        .map(|line| match &line.event {
            Event::Added => "added",
            Event::Try {
                operation: Operation::Register,
                ..
            } => "try",
            Event::Fault { .. } => "fault",
            Event::Registered { .. } => "registered",
            Event::Delivered => "delivered",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        ["added", "try", "fault", "try", "registered", "delivered"]
    );
    assert!(
        lines
            .windows(2)
            .all(|pair| pair[0].id < pair[1].id && pair[0].at <= pair[1].at)
    );
    assert!(lines.iter().all(|line| line.media == Some(id)));
    assert_eq!(lines[5].at.0 - lines[0].at.0, 2_000);
    assert_eq!(kit.queue.history(None).await.unwrap(), []);
}

pub(super) async fn closed_is_closed(kit: Kit) {
    let id = kit.add("a", 1).await;
    let claim = kit.registration().await;
    kit.queue.close().await.unwrap();
    kit.queue.close().await.unwrap();
    let closed = |error: QueueError| assert!(matches!(error, QueueError::Closed), "{error}");
    closed(kit.queue.add(vec![clip("b", 1)]).await.unwrap_err());
    closed(kit.queue.media(id).await.unwrap_err());
    closed(kit.queue.release(&claim.lease).await.unwrap_err());
    closed(kit.queue.status().await.unwrap_err());
    let kit = kit.restart(true).await;
    let claim = kit
        .queue
        .claim_registration(&kit.holder("w"), LEASE, None)
        .await
        .unwrap();
    assert!(
        matches!(claim, Claim::Nothing),
        "the lease outlives the process"
    );
    assert_eq!(kit.state(id).await, MediaState::Registering);
}
