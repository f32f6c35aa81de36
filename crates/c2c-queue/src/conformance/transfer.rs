use std::collections::HashSet;

use crate::clock::Clock;
use crate::error::QueueError;
use crate::history::{Event, Operation};
use crate::media::{ChunkState, Hold, MediaState};
use crate::queue::{Attempt, ByHand, ChunkProof, Item, Verdict};

use super::kit::{Kit, LEASE, again, clip, is_lost, proof, secs, setback, url};

pub(super) async fn chunks_in_order_and_media_in_order(kit: Kit) {
    let first = kit.registered("a", &[1, 1, 1]).await;
    let mut urgent = clip("b", 2);
    urgent.priority = 1;
    let urgent = kit.add_new(urgent).await;
    kit.register(urgent, &[1, 1]).await;
    for (id, number) in [(urgent, 0), (urgent, 1), (first, 0), (first, 1), (first, 2)] {
        let claim = kit.chunk().await;
        assert_eq!(claim.lease.item, Item::Chunk(id, number));
        assert_eq!(
            (claim.media.id, claim.chunk.number, claim.chunk.state),
            (id, number, ChunkState::Sending)
        );
        assert_eq!(
            claim.attempt,
            Attempt {
                number: 1,
                round: 1,
                final_try: false
            }
        );
    }
    kit.nothing_to_send().await;
    assert!(!kit.events(first).await.iter().any(|event| {
        matches!(
            event,
            Event::Try {
                operation: Operation::Transfer,
                ..
            }
        )
    }));
}

pub(super) async fn urls_come_back_and_age(kit: Kit) {
    kit.registered("a", &[1, 1]).await;
    kit.clock.advance(secs(90));
    let claim = kit.chunk().await;
    assert_eq!(url(&claim), "https://uploads.invalid/a/0?signature=secret");
    assert_eq!(claim.url_age, secs(90));
    assert!(!format!("{claim:?}").contains("signature"));
    let kit = kit.restart(true).await;
    kit.clock.jump_wall(-1_000_000);
    kit.clock.advance(secs(10));
    let claim = kit.chunk().await;
    assert_eq!(url(&claim), "https://uploads.invalid/a/1?signature=secret");
    assert!(
        claim.url_age >= secs(100) && claim.url_age < secs(101),
        "{:?}",
        claim.url_age
    );
}

pub(super) async fn the_last_chunk_delivers(kit: Kit) {
    let id = kit.registered("a", &[4, 4, 2]).await;
    let registered_at = kit.clock.wall();
    let [zero, one, two] = [kit.chunk().await, kit.chunk().await, kit.chunk().await];
    kit.clock.advance(secs(1));
    let sent = kit.sent(&two.lease).await;
    assert_eq!((sent.left, sent.receipt.is_some()), (2, false));
    let media = kit.media(id).await;
    assert_eq!((media.chunks_sent, media.bytes_sent), (1, 2));
    let sent = kit
        .queue
        .chunk_sent(
            &zero.lease,
            ChunkProof {
                etag: Some("\"x-2".to_owned()),
                md5: None,
                crc64nvme: None,
            },
        )
        .await;
    assert_eq!(sent.unwrap().left, 1);
    is_lost(kit.queue.chunk_sent(&zero.lease, proof()).await, id);
    kit.clock.advance(secs(1));
    let sent = kit.sent(&one.lease).await;
    let delivered_at = kit.clock.wall();
    let receipt = *sent.receipt.unwrap();
    assert_eq!(sent.left, 0);

    let kit = kit.restart(false).await;
    let media = kit.media(id).await;
    assert_eq!(
        (media.state, media.rested_at),
        (MediaState::Delivered, Some(delivered_at))
    );
    assert_eq!(
        (media.chunk_count, media.chunks_sent, media.bytes_sent),
        (3, 3, 10)
    );
    assert_eq!(kit.events(id).await.last(), Some(&Event::Delivered));
    assert_eq!(kit.queue.receipt(id).await.unwrap(), Some(receipt.clone()));
    assert_eq!((receipt.version, receipt.media, receipt.size), (1, id, 10));
    assert_eq!(
        (receipt.asset_id.as_str(), receipt.project_id.as_str()),
        ("asset-a", "project-1")
    );
    assert_eq!(
        (receipt.registered_at, receipt.delivered_at),
        (registered_at, delivered_at)
    );
    assert_eq!(
        (receipt.tries, receipt.registrations, receipt.bytes_resent),
        (4, 1, 0)
    );
    assert_eq!(
        (receipt.path.as_str(), receipt.capture),
        (media.path.to_str().unwrap(), media.capture)
    );
    let chunks: Vec<_> = receipt
        .chunks
        .iter()
        .map(|chunk| (chunk.number, chunk.start, chunk.length))
        .collect();
    assert_eq!(chunks, [(0, 0, 4), (1, 4, 4), (2, 8, 2)]);
    let verified: Vec<_> = receipt
        .chunks
        .iter()
        .map(|chunk| (chunk.verified, chunk.tries))
        .collect();
    assert_eq!(verified, [(None, 1), (Some(true), 1), (Some(true), 1)]);
    let chunks = kit.queue.chunks(id).await.unwrap();
    assert!(chunks.len() == 3 && chunks.iter().all(|chunk| chunk.state == ChunkState::Sent));
    assert_eq!(chunks[1].etag, proof().etag);
    kit.nothing_to_send().await;
}

pub(super) async fn an_empty_file_is_delivered(kit: Kit) {
    let id = kit.registered("empty", &[0]).await;
    let claim = kit.chunk().await;
    assert_eq!((claim.chunk.start, claim.chunk.length), (0, 0));
    assert!(kit.sent(&claim.lease).await.receipt.is_some());
    assert_eq!(kit.state(id).await, MediaState::Delivered);
}

pub(super) async fn a_damaged_chunk_is_refused(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    let claim = kit.chunk().await;
    let mut damaged = proof();
    damaged.etag = Some("d41d8cd98f00b204e9800998ecf8427e".to_owned());
    assert!(matches!(
        kit.queue.chunk_sent(&claim.lease, damaged).await,
        Err(QueueError::Invalid(_))
    ));
    assert_eq!(kit.state(id).await, MediaState::Transferring);
    let mut upper = proof();
    upper.etag = upper.etag.map(|etag| etag.to_uppercase());
    kit.queue.chunk_sent(&claim.lease, upper).await.unwrap();
    assert_eq!(kit.state(id).await, MediaState::Delivered);
}

pub(super) async fn progress_starts_the_count_again(kit: Kit) {
    let id = kit.registered("a", &[1, 1, 1]).await;
    let bad = kit.chunk().await;
    kit.fail(&bad.lease, Verdict::NextRound { after: secs(0) })
        .await;
    let bad = kit.chunk().await;
    assert_eq!(
        bad.attempt,
        Attempt {
            number: 1,
            round: 2,
            final_try: false
        }
    );
    kit.fail(&bad.lease, again(60)).await;
    assert_eq!(
        (
            kit.media(id).await.rounds,
            kit.queue.chunks(id).await.unwrap()[0].tries
        ),
        (1, 1)
    );
    let good = kit.chunk().await;
    assert_eq!(good.chunk.number, 1);
    kit.sent(&good.lease).await;
    let media = kit.media(id).await;
    assert_eq!((media.tries, media.rounds), (0, 0));
    kit.clock.advance(secs(60));
    let bad = kit.chunk().await;
    assert_eq!(
        (bad.chunk.number, bad.attempt.number, bad.attempt.round),
        (0, 2, 1),
        "its own tries stay counted"
    );
    let events = kit.events(id).await;
    let second = Event::Try {
        operation: Operation::Transfer,
        chunk: Some(0),
        number: 2,
        round: 1,
    };
    assert_eq!(events.last(), Some(&second));
}

pub(super) async fn every_verdict_does_what_it_says(kit: Kit) {
    let soon = secs(0);
    let cases = [
        (
            Verdict::Again {
                after: soon,
                counted: true,
            },
            MediaState::Transferring,
            Some(1),
        ),
        (
            Verdict::Again {
                after: soon,
                counted: false,
            },
            MediaState::Transferring,
            Some(0),
        ),
        (
            Verdict::NextRound { after: soon },
            MediaState::Transferring,
            Some(0),
        ),
        (
            Verdict::RegisterAgain {
                after: soon,
                counted: true,
            },
            MediaState::Queued,
            None,
        ),
        (
            Verdict::RegisterAgain {
                after: soon,
                counted: false,
            },
            MediaState::Queued,
            None,
        ),
        (
            Verdict::Hold(Hold::FileChanging),
            MediaState::Transferring,
            Some(0),
        ),
        (Verdict::Park, MediaState::Parked, Some(1)),
        (Verdict::Fail, MediaState::Failed, Some(1)),
        (Verdict::Cancel, MediaState::Cancelled, None),
    ];
    for (number, (verdict, state, tries)) in cases.into_iter().enumerate() {
        let id = kit.registered(&format!("clip-{number}"), &[3, 3]).await;
        let before = kit.media(id).await;
        let chunk = kit.chunk().await;
        let mut what = setback(verdict.clone());
        what.bytes_wasted = 2;
        let outcome = kit.queue.chunk_failed(&chunk.lease, what).await.unwrap();
        let media = kit.media(id).await;
        assert_eq!(
            (outcome.state, outcome.hold),
            (media.state, media.hold),
            "{verdict:?}"
        );
        assert_eq!((media.state, media.bytes_resent), (state, 2), "{verdict:?}");
        assert_eq!(
            media.rounds,
            u32::from(matches!(verdict, Verdict::NextRound { .. })),
            "{verdict:?}"
        );
        assert_eq!(
            media.position > before.position,
            matches!(verdict, Verdict::NextRound { .. }),
            "{verdict:?}"
        );
        assert_eq!(media.rested_at.is_some(), state.is_resting(), "{verdict:?}");
        let registration_tries = match &verdict {
            Verdict::RegisterAgain { counted, .. } => u32::from(*counted),
            _ => 0,
        };
        assert_eq!(media.tries, registration_tries, "{verdict:?}");
        let chunks = kit.queue.chunks(id).await.unwrap();
        match tries {
            Some(tries) => {
                assert_eq!(
                    (chunks.len(), chunks[0].tries, chunks[0].tries_total),
                    (2, tries, 1),
                    "{verdict:?}"
                );
                assert!(
                    chunks.iter().all(|chunk| chunk.state == ChunkState::Ready),
                    "{verdict:?}"
                );
                assert!(media.asset_id.is_some());
            }
            None => assert!(
                chunks.is_empty() && media.asset_id.is_none() && media.chunk_count == 0,
                "{verdict:?}"
            ),
        }
        is_lost(kit.queue.release(&chunk.lease).await, id);
        kit.by_hand(&[id], ByHand::Cancel).await;
        kit.nothing_to_send().await;
    }
}

pub(super) async fn a_round_is_used_up_once(kit: Kit) {
    let id = kit.registered("a", &[1, 1, 1]).await;
    let [zero, one] = [kit.chunk().await, kit.chunk().await];
    kit.fail(&zero.lease, Verdict::NextRound { after: secs(10) })
        .await;
    let position = kit.media(id).await.position;
    kit.fail(&one.lease, Verdict::NextRound { after: secs(20) })
        .await;
    let media = kit.media(id).await;
    assert_eq!(
        (media.rounds, media.position),
        (1, position),
        "both belonged to the first round"
    );
    assert!(
        kit.queue
            .chunks(id)
            .await
            .unwrap()
            .iter()
            .all(|chunk| chunk.tries == 0)
    );
    kit.send_later(secs(20)).await;
    kit.clock.advance(secs(20));
    let claim = kit.chunk().await;
    assert_eq!(
        (
            claim.chunk.number,
            claim.attempt.number,
            claim.attempt.round
        ),
        (0, 1, 2)
    );
    kit.fail(&claim.lease, Verdict::NextRound { after: secs(0) })
        .await;
    assert_eq!(kit.media(id).await.rounds, 2);
}

pub(super) async fn rest_voids_every_lease(kit: Kit) {
    for (number, verdict) in [
        Verdict::Park,
        Verdict::Fail,
        Verdict::Cancel,
        Verdict::RegisterAgain {
            after: secs(0),
            counted: false,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let id = kit.registered(&format!("clip-{number}"), &[4, 4, 4]).await;
        let [zero, one] = [kit.chunk().await, kit.chunk().await];
        kit.queue.renew(&one.lease, 3, LEASE).await.unwrap();
        kit.fail(&zero.lease, verdict.clone()).await;
        is_lost(kit.queue.chunk_sent(&one.lease, proof()).await, id);
        is_lost(kit.queue.renew(&one.lease, 4, LEASE).await, id);
        is_lost(
            kit.queue.chunk_failed(&one.lease, setback(again(0))).await,
            id,
        );
        let media = kit.media(id).await;
        assert_eq!(
            (media.chunks_sent, media.bytes_resent),
            (0, 3),
            "{verdict:?}"
        );
        assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
        kit.by_hand(&[id], ByHand::Cancel).await;
    }
}

pub(super) async fn a_held_media_may_finish(kit: Kit) {
    let id = kit.registered("a", &[1, 1]).await;
    let [zero, one] = [kit.chunk().await, kit.chunk().await];
    let outcome = kit.fail(&zero.lease, Verdict::Hold(Hold::VolumeAway)).await;
    assert_eq!(
        (outcome.state, outcome.hold),
        (MediaState::Transferring, Some(Hold::VolumeAway))
    );
    assert_eq!(kit.sent(&one.lease).await.left, 1);
    kit.nothing_to_send().await;
    kit.queue.unhold(id, Hold::VolumeAway, None).await.unwrap();
    let zero = kit.chunk().await;
    assert_eq!(zero.attempt.number, 1, "the try was given back");
    assert_eq!(kit.by_hand(&[id], ByHand::Hold).await, [id]);
    assert!(kit.sent(&zero.lease).await.receipt.is_some());
    let media = kit.media(id).await;
    assert_eq!((media.state, media.hold), (MediaState::Delivered, None));
    assert_eq!(kit.queue.status().await.unwrap().held, 0);
}

pub(super) async fn a_chunk_cannot_withhold(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    let before = kit.media(id).await;
    let claim = kit.chunk().await;
    let result = kit
        .queue
        .chunk_failed(&claim.lease, setback(Verdict::Withhold))
        .await;
    assert!(
        matches!(result, Err(QueueError::IllegalMove { .. })),
        "{result:?}"
    );
    let media = kit.media(id).await;
    assert_eq!(
        (media.state, media.last_fault),
        (MediaState::Transferring, None),
        "nothing was changed"
    );
    assert_eq!(media.tries_total, before.tries_total + 1);
    kit.sent(&claim.lease).await;
}

pub(super) async fn bytes_in_vain_are_counted(kit: Kit) {
    let id = kit.registered("a", &[4, 4]).await;
    let zero = kit.chunk().await;
    kit.sent(&zero.lease).await;
    let one = kit.chunk().await;
    kit.clock.advance(secs(5));
    kit.fail(
        &one.lease,
        Verdict::RegisterAgain {
            after: secs(7),
            counted: true,
        },
    )
    .await;
    let media = kit.media(id).await;
    assert_eq!(
        (media.state, media.bytes_sent, media.bytes_resent),
        (MediaState::Queued, 0, 4)
    );
    assert_eq!(
        (media.tries, media.registrations),
        (1, 1),
        "progress had started the count again"
    );
    assert_eq!(
        kit.events(id).await.last(),
        Some(&Event::RegisteredAnew { bytes_lost: 4 })
    );
    assert_eq!(kit.queue.status().await.unwrap().chunks_ready, 0);
    kit.register_later(secs(7)).await;
    kit.clock.advance(secs(7));
    let claim = kit.registration().await;
    assert_eq!(claim.attempt.number, 2);
    kit.queue
        .asset_created(&claim.lease, super::kit::asset("a", &[8]))
        .await
        .unwrap();
    let claim = kit.chunk().await;
    assert_eq!(claim.url_age, secs(0));
    let receipt = kit.sent(&claim.lease).await.receipt.unwrap();
    assert_eq!(
        (receipt.registrations, receipt.bytes_resent, receipt.tries),
        (2, 4, 5)
    );
}

pub(super) async fn one_waiting_media_stops_nobody(kit: Kit) {
    let first = kit.registered("a", &[1, 1]).await;
    let second = kit.registered("b", &[1]).await;
    let claim = kit.chunk().await;
    assert_eq!(claim.media.id, first);
    kit.fail(&claim.lease, again(10)).await;
    // The other chunk of the same media is not concerned.
    let claim = kit.chunk().await;
    assert_eq!(claim.lease.item, Item::Chunk(first, 1));
    kit.fail(&claim.lease, again(20)).await;
    let claim = kit.chunk().await;
    assert_eq!(claim.media.id, second);
    kit.fail(&claim.lease, again(30)).await;
    for (wait, item) in [
        (10, Item::Chunk(first, 0)),
        (10, Item::Chunk(first, 1)),
        (10, Item::Chunk(second, 0)),
    ] {
        kit.send_later(secs(wait)).await;
        kit.clock.advance(secs(wait));
        let claim = kit.chunk().await;
        assert_eq!(claim.lease.item, item);
    }
    kit.nothing_to_send().await;
}

pub(super) async fn two_workers_never_share(kit: Kit) {
    for number in 0..4 {
        kit.registered(&format!("clip-{number}"), &[1; 8]).await;
    }
    let mut tasks = Vec::new();
    for worker in 0..8 {
        let queue = kit.queue.clone();
        let holder = kit.holder(&format!("transfer-{worker}"));
        tasks.push(async move {
            let mut items = Vec::new();
            while let crate::Claim::Got(claim) = queue.claim_chunk(&holder, LEASE).await.unwrap() {
                items.push((claim.lease.item, claim.lease.token));
            }
            items
        });
    }
    let mut set = tokio::task::JoinSet::new();
    for task in tasks {
        set.spawn(task);
    }
    let claimed: Vec<_> = set.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 32);
    assert_eq!(
        claimed
            .iter()
            .map(|(item, _)| *item)
            .collect::<HashSet<_>>()
            .len(),
        32
    );
    assert_eq!(
        claimed
            .iter()
            .map(|(_, token)| *token)
            .collect::<HashSet<_>>()
            .len(),
        32
    );
}

pub(super) async fn the_checksum_of_a_file_is_made_of_those_of_its_chunks(kit: Kit) {
    let proof = |crc64nvme| ChunkProof {
        etag: None,
        md5: None,
        crc64nvme,
    };
    // "123456789" in three pieces, of which the last arrives first.
    let pieces = [
        0x29f5_dbe7_e2ff_71d4,
        0x8600_2263_feea_9258,
        0x2106_f432_5fb4_ab3d,
    ];
    let whole = kit.registered("a", &[4, 3, 2]).await;
    let mut claims = [kit.chunk().await, kit.chunk().await, kit.chunk().await];
    claims.reverse();
    for (claim, crc) in claims.iter().zip(pieces.iter().rev()) {
        let sent = kit.queue.chunk_sent(&claim.lease, proof(Some(*crc))).await;
        sent.unwrap();
    }
    let holed = kit.registered("b", &[4, 3]).await;
    for crc in [None, Some(pieces[1])] {
        let claim = kit.chunk().await;
        kit.queue
            .chunk_sent(&claim.lease, proof(crc))
            .await
            .unwrap();
    }
    let kit = kit.restart(false).await;
    let receipt = async |id| kit.queue.receipt(id).await.unwrap().unwrap();
    assert_eq!(
        receipt(whole).await.crc64nvme.as_deref(),
        Some("rosUhgp5mIg=")
    );
    assert_eq!(receipt(holed).await.crc64nvme, None);
}
