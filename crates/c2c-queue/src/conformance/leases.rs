use crate::history::Event;
use crate::media::{ChunkState, MediaState};
use crate::queue::{Item, Recovered};

use super::kit::{Kit, LEASE, again, asset, is_lost, proof, secs};

pub(super) async fn tokens_only_grow(kit: Kit) {
    let id = kit.registered("a", &[1, 1]).await;
    let mut last = 0;
    let mut kit = kit;
    for _ in 0..3 {
        let claim = kit.chunk().await;
        assert!(claim.lease.token > last);
        last = claim.lease.token;
        kit.queue.release(&claim.lease).await.unwrap();
        is_lost(kit.queue.release(&claim.lease).await, id);
        kit = kit.restart(false).await;
    }
}

pub(super) async fn a_renewed_lease_lives(kit: Kit) {
    let id = kit.registered("a", &[100]).await;
    let claim = kit.chunk().await;
    for step in 1..=3u64 {
        kit.clock.advance(secs(50));
        kit.queue
            .renew(&claim.lease, step * 10, LEASE)
            .await
            .unwrap();
        assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
        assert_eq!(
            kit.queue.chunks(id).await.unwrap()[0].acknowledged,
            step * 10
        );
    }
    kit.clock.advance(LEASE);
    let recovered = kit.queue.recover_expired().await.unwrap();
    let expected = Recovered {
        item: Item::Chunk(id, 0),
        holder: "run-1/transfer".to_owned(),
        acknowledged: 30,
    };
    assert_eq!(recovered, [expected]);
    assert_eq!(
        kit.media(id).await.bytes_resent,
        30,
        "what was acknowledged will be sent again"
    );

    let other = kit.add("b", 1).await;
    let claim = kit.registration().await;
    kit.clock.advance(secs(59));
    kit.queue.renew(&claim.lease, 0, LEASE).await.unwrap();
    kit.clock.advance(secs(59));
    assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
    kit.clock.advance(secs(1));
    assert_eq!(
        kit.queue.recover_expired().await.unwrap()[0].item,
        Item::Registration(other)
    );
}

pub(super) async fn an_expired_lease_returns_to_the_pool(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    let old = kit.chunk().await;
    let other = kit.add("b", 1).await;
    let registration = kit.registration().await;
    kit.clock.advance(LEASE);
    let recovered = kit.queue.recover_expired().await.unwrap();
    let items: Vec<_> = recovered.iter().map(|recovered| recovered.item).collect();
    assert_eq!(items, [Item::Registration(other), Item::Chunk(id, 0)]);
    assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
    is_lost(kit.queue.chunk_sent(&old.lease, proof()).await, id);
    is_lost(
        kit.queue
            .asset_created(&registration.lease, asset("b", &[1]))
            .await,
        other,
    );
    assert_eq!(
        kit.media(other).await.possible_duplicates,
        1,
        "the create may have been sent"
    );
    assert_eq!(kit.media(id).await.possible_duplicates, 0);
    let lost = Event::LeaseLost {
        chunk: Some(0),
        holder: "run-1/transfer".to_owned(),
    };
    assert_eq!(kit.events(id).await.last(), Some(&lost));
    let events = kit.events(other).await;
    let lost = Event::LeaseLost {
        chunk: None,
        holder: "run-1/register".to_owned(),
    };
    assert!(events.contains(&lost) && events.contains(&Event::PossibleDuplicate));
    assert_eq!(kit.chunk().await.attempt.number, 2, "the try stays counted");
    assert_eq!(kit.registration().await.attempt.number, 2);
}

pub(super) async fn time_alone_takes_nothing(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    let claim = kit.chunk().await;
    kit.clock.advance(LEASE * 10);
    kit.nothing_to_send().await;
    assert!(
        kit.sent(&claim.lease).await.receipt.is_some(),
        "nobody else had it"
    );
    assert_eq!(kit.state(id).await, MediaState::Delivered);
}

pub(super) async fn a_released_item_was_never_out(kit: Kit) {
    let id = kit.add("a", 2).await;
    let before = kit.media(id).await;
    let claim = kit.registration().await;
    kit.queue.release(&claim.lease).await.unwrap();
    assert_eq!(kit.media(id).await, before);
    kit.register(id, &[1, 1]).await;
    let (media, chunks) = (kit.media(id).await, kit.queue.chunks(id).await.unwrap());
    let claim = kit.chunk().await;
    kit.queue.release(&claim.lease).await.unwrap();
    assert_eq!(kit.media(id).await, media);
    assert_eq!(kit.queue.chunks(id).await.unwrap(), chunks);
    let claim = kit.chunk().await;
    assert_eq!((claim.chunk.number, claim.attempt.number), (0, 1));
    kit.fail(&claim.lease, again(0)).await;
    let claim = kit.chunk().await;
    kit.queue.release(&claim.lease).await.unwrap();
    assert_eq!(kit.chunk().await.attempt.number, 2);
}

pub(super) async fn the_dead_are_recovered(kit: Kit) {
    let id = kit.registered("a", &[5, 5]).await;
    let zero = kit.chunk().await;
    kit.queue.renew(&zero.lease, 2, LEASE).await.unwrap();
    let other = kit.add("b", 1).await;
    kit.registration().await;
    let kit = kit.restart(false).await;
    let mine = kit.chunk().await;
    let recovered = kit.queue.recover_dead("run-2").await.unwrap();
    let items: Vec<_> = recovered
        .iter()
        .map(|it| (it.item, it.holder.as_str(), it.acknowledged))
        .collect();
    assert_eq!(
        items,
        [
            (Item::Registration(other), "run-1/register", 0),
            (Item::Chunk(id, 0), "run-1/transfer", 2)
        ]
    );
    assert_eq!(kit.queue.recover_dead("run-2").await.unwrap(), []);
    let chunks = kit.queue.chunks(id).await.unwrap();
    assert_eq!((chunks[0].state, chunks[0].tries), (ChunkState::Ready, 1));
    assert_eq!(
        chunks[1].state,
        ChunkState::Sending,
        "the living keep theirs"
    );
    assert_eq!(kit.state(other).await, MediaState::Queued);
    assert_eq!(kit.media(other).await.possible_duplicates, 1);
    kit.sent(&mine.lease).await;
    is_lost(kit.queue.chunk_sent(&zero.lease, proof()).await, id);
    assert_eq!(kit.chunk().await.attempt.number, 2);
}

pub(super) async fn the_wall_clock_changes_no_wait(kit: Kit) {
    let id = kit.registered("a", &[1, 1]).await;
    let claim = kit.chunk().await;
    kit.fail(&claim.lease, again(100)).await;
    let held = kit.chunk().await;
    for jump in [10_000_000_000, -20_000_000_000] {
        kit.clock.jump_wall(jump);
        assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
        kit.send_later(secs(100)).await;
        assert_eq!(
            kit.queue.chunks(id).await.unwrap()[0].due_in_ms,
            Some(100_000)
        );
    }
    kit.clock.advance(LEASE);
    assert_eq!(kit.queue.recover_expired().await.unwrap().len(), 1);
    is_lost(kit.queue.release(&held.lease).await, id);
}

pub(super) async fn store_time_survives_restarts(kit: Kit) {
    let id = kit.registered("a", &[1]).await;
    let claim = kit.chunk().await;
    kit.fail(&claim.lease, again(100)).await;
    let before = kit.queue.store_time();
    // The system restarts with a dead clock battery.
    let kit = kit
        .restart_after(false, |clock| {
            clock.set_wall(crate::WallTime(0));
            clock.reboot();
        })
        .await;
    let now = kit.queue.store_time();
    assert!(now > before && now.0 <= before.0 + 1_000, "{now:?}");
    let due = kit.queue.chunks(id).await.unwrap()[0].due_in_ms.unwrap();
    assert!((99_000..=100_000).contains(&due), "{due}");
    kit.clock.advance(secs(100));
    kit.chunk().await;
}

pub(super) async fn a_wrong_clock_after_a_restart_changes_nothing(kit: Kit) {
    const DECADES: i64 = 30 * 365 * 24 * 3_600_000;
    let id = kit.registered("a", &[1, 1]).await;
    kit.clock.advance(secs(10));
    let zero = kit.chunk().await;
    kit.fail(&zero.lease, again(100)).await;
    let one = kit.chunk().await;
    let before = kit.queue.store_time().0;
    let mut kit = kit;
    for (clean, jump) in [(true, DECADES), (false, DECADES), (true, -3 * DECADES)] {
        // An hour without power, and then a clock that is wrong.
        kit = kit
            .restart_after(clean, |clock| {
                clock.advance(secs(3_600));
                clock.reboot();
                clock.jump_wall(jump);
            })
            .await;
        let passed = kit.queue.store_time().0 - before;
        assert!((1..=1_000).contains(&passed), "{passed}");
        let due = kit.queue.chunks(id).await.unwrap()[0].due_in_ms.unwrap();
        assert!((99_000..=100_000).contains(&due), "{due}");
        assert_eq!(kit.queue.recover_expired().await.unwrap(), []);
    }
    kit.queue.release(&one.lease).await.unwrap();
    let one = kit.chunk().await;
    assert!(
        one.url_age >= secs(10) && one.url_age < secs(11),
        "{:?}",
        one.url_age
    );
}

pub(super) async fn time_passes_between_two_programs(kit: Kit) {
    let id = kit.registered("a", &[1, 1]).await;
    let zero = kit.chunk().await;
    kit.fail(&zero.lease, again(100)).await;
    let one = kit.chunk().await;
    let before = kit.queue.store_time().0;
    // The system runs on, whatever its clock shows.
    let mut kit = kit;
    for clean in [true, false] {
        kit = kit
            .restart_after(clean, |clock| {
                clock.advance(secs(45));
                clock.jump_wall(-1_000_000_000);
            })
            .await;
    }
    assert_eq!(kit.queue.store_time().0, before + 90_000);
    assert_eq!(
        kit.queue.chunks(id).await.unwrap()[0].due_in_ms,
        Some(10_000)
    );
    let recovered = kit.queue.recover_expired().await.unwrap();
    assert_eq!(recovered[0].item, one.lease.item);
    let one = kit.chunk().await;
    assert_eq!((one.chunk.number, one.url_age), (1, secs(90)));
}
