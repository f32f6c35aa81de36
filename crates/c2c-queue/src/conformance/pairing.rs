use secrecy::{ExposeSecret, SecretString};

use crate::clock::{BootId, Clock};
use crate::connection::{Airlock, Identity, RefreshState, Tokens};
use crate::error::QueueError;
use crate::history::Event;
use crate::queue::QueueStatus;

use super::kit::{Kit, is_lost, proof, secs};

fn identity(project: &str) -> Identity {
    Identity {
        id: "project-device".to_owned(),
        device_id: "device".to_owned(),
        device_name: "A camera".to_owned(),
        project_id: project.to_owned(),
        project_name: format!("The {project}"),
        status: "online".to_owned(),
        authorization_expires_at: None,
        channels: vec![(0, "Main".to_owned()), (2, "Proxy".to_owned())],
    }
}

fn tokens(name: &str) -> Tokens {
    Tokens {
        access: SecretString::from(format!("access-{name}")),
        refresh: SecretString::from(format!("refresh-{name}")),
        expires_in_ms: 28_800_000,
    }
}

pub(super) async fn the_client_id_stays(kit: Kit) {
    assert_eq!(
        kit.queue.client_id("first".to_owned()).await.unwrap(),
        "first"
    );
    assert_eq!(
        kit.queue.client_id("second".to_owned()).await.unwrap(),
        "first"
    );
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.client_id("third".to_owned()).await.unwrap(),
        "first"
    );
}

pub(super) async fn tokens_are_kept_and_age(kit: Kit) {
    let empty = kit.queue.connection().await.unwrap();
    assert!(empty.identity.is_none() && empty.tokens.is_none() && empty.lost.is_none());
    assert_eq!(empty.refresh, RefreshState::Settled);
    kit.queue.store_tokens(tokens("1")).await.unwrap();
    let wall = kit.clock.wall();
    kit.clock.advance(secs(90));
    kit.clock.jump_wall(-5_000_000);
    let connection = kit.queue.connection().await.unwrap();
    assert_eq!(
        (connection.tokens_age_ms, connection.tokens_stored_at),
        (90_000, Some(wall))
    );
    assert!(!format!("{connection:?}").contains("access-1"));
    let kit = kit.restart(false).await;
    let stored = kit.queue.connection().await.unwrap().tokens.unwrap();
    assert_eq!(stored.access.expose_secret(), "access-1");
    assert_eq!(stored.refresh.expose_secret(), "refresh-1");
    assert_eq!(stored.expires_in_ms, 28_800_000);
}

pub(super) async fn a_refresh_in_flight_is_seen_after_a_crash(kit: Kit) {
    kit.queue.store_tokens(tokens("1")).await.unwrap();
    kit.queue.begin_refresh().await.unwrap();
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.connection().await.unwrap().refresh,
        RefreshState::InFlight
    );
    kit.queue.end_refresh().await.unwrap();
    assert_eq!(
        kit.queue.connection().await.unwrap().refresh,
        RefreshState::Settled
    );
    kit.queue.begin_refresh().await.unwrap();
    kit.queue.store_tokens(tokens("2")).await.unwrap();
    let connection = kit.queue.connection().await.unwrap();
    assert_eq!(connection.refresh, RefreshState::Settled);
    assert_eq!(
        connection.tokens.unwrap().refresh.expose_secret(),
        "refresh-2"
    );
}

pub(super) async fn lost_tokens_leave_everything_else(kit: Kit) {
    kit.queue.store_tokens(tokens("1")).await.unwrap();
    assert_eq!(
        kit.queue
            .store_identity(identity("project-1"))
            .await
            .unwrap(),
        Airlock::First
    );
    let id = kit.registered("a", &[1]).await;
    kit.queue.begin_refresh().await.unwrap();
    kit.queue
        .forget_tokens("the device was removed from the project".to_owned())
        .await
        .unwrap();
    let connection = kit.queue.connection().await.unwrap();
    assert!(connection.tokens.is_none() && connection.tokens_stored_at.is_none());
    assert_eq!(connection.refresh, RefreshState::Settled);
    assert_eq!(
        connection.lost.as_deref(),
        Some("the device was removed from the project")
    );
    assert_eq!(connection.identity, Some(identity("project-1")));
    assert_eq!(kit.chunk().await.media.id, id);
    kit.queue.store_tokens(tokens("2")).await.unwrap();
    assert_eq!(kit.queue.connection().await.unwrap().lost, None);
    assert_eq!(
        kit.queue
            .store_identity(identity("project-1"))
            .await
            .unwrap(),
        Airlock::SameProject
    );
    assert_eq!(
        kit.queue
            .store_identity(identity("project-1"))
            .await
            .unwrap(),
        Airlock::SameProject
    );
    let events: Vec<_> = kit
        .queue
        .history(None)
        .await
        .unwrap()
        .into_iter()
        .map(|line| line.event)
        .collect();
    let paired = Event::Paired {
        project_id: "project-1".to_owned(),
    };
    let lost = Event::AuthorizationLost {
        words: "the device was removed from the project".to_owned(),
    };
    assert_eq!(events, [paired.clone(), lost, paired]);
}

pub(super) async fn another_project_empties_the_queue(kit: Kit) {
    kit.queue
        .store_identity(identity("project-1"))
        .await
        .unwrap();
    kit.queue.store_tokens(tokens("1")).await.unwrap();
    let delivered = kit.registered("a", &[1]).await;
    kit.deliver(delivered).await;
    let sending = kit.registered("b", &[1, 1]).await;
    let chunk = kit.chunk().await;
    let registering = kit.add("c", 1).await;
    let claim = kit.registration().await;
    let last = kit.add("d", 1).await;
    kit.by_hand(&[last], crate::ByHand::Hold).await;

    let mut renamed = identity("project-1");
    renamed.project_name = "Another name".to_owned();
    assert_eq!(
        kit.queue.store_identity(renamed).await.unwrap(),
        Airlock::SameProject
    );
    assert!(kit.queue.media(last).await.unwrap().is_some());

    assert_eq!(
        kit.queue
            .store_identity(identity("project-2"))
            .await
            .unwrap(),
        Airlock::Changed { cleared: 4 }
    );
    let kit = kit.restart(false).await;
    assert_eq!(kit.queue.status().await.unwrap(), QueueStatus::default());
    assert_eq!(kit.queue.list(None, None, 10).await.unwrap(), []);
    assert_eq!(kit.queue.upcoming(10).await.unwrap(), []);
    for id in [delivered, sending, registering, last] {
        assert_eq!(kit.queue.media(id).await.unwrap(), None);
        assert_eq!(kit.queue.chunks(id).await.unwrap(), []);
        assert_eq!(kit.events(id).await, []);
    }
    is_lost(kit.queue.chunk_sent(&chunk.lease, proof()).await, sending);
    is_lost(
        kit.queue
            .asset_created(&claim.lease, super::kit::asset("c", &[1]))
            .await,
        registering,
    );
    kit.nothing_to_send().await;
    kit.nothing_to_register().await;
    let receipt = kit.queue.receipt(delivered).await.unwrap().unwrap();
    assert_eq!(
        receipt.project_id, "project-1",
        "receipts stay and name their project"
    );
    kit.queue
        .seal_receipt(delivered, Ok("00".repeat(32)))
        .await
        .unwrap();
    let connection = kit.queue.connection().await.unwrap();
    assert_eq!(connection.identity.unwrap().project_id, "project-2");
    assert!(connection.tokens.is_some());
    let events: Vec<_> = kit
        .queue
        .history(None)
        .await
        .unwrap()
        .into_iter()
        .map(|line| line.event)
        .collect();
    let changed = Event::ProjectChanged {
        from: "project-1".to_owned(),
        to: "project-2".to_owned(),
        cleared: 4,
    };
    assert_eq!(events.iter().filter(|event| **event == changed).count(), 1);
    assert!(events.contains(&Event::Paired {
        project_id: "project-2".to_owned()
    }));
    // Ids are never used twice, and the old file is a new media.
    assert!(kit.add("a", 1).await > last);
}

pub(super) async fn the_first_pairing_empties_nothing(kit: Kit) {
    let id = kit.add("a", 1).await;
    kit.queue.store_tokens(tokens("1")).await.unwrap();
    assert_eq!(
        kit.queue
            .store_identity(identity("project-1"))
            .await
            .unwrap(),
        Airlock::First
    );
    assert_eq!(kit.registration().await.media.id, id);
    let events: Vec<_> = kit
        .queue
        .history(None)
        .await
        .unwrap()
        .into_iter()
        .map(|line| line.event)
        .collect();
    assert_eq!(
        events,
        [Event::Paired {
            project_id: "project-1".to_owned()
        }]
    );
}

pub(super) async fn anchors_by_boot(kit: Kit) {
    let [one, two] = [BootId("one".to_owned()), BootId("two".to_owned())];
    assert_eq!(kit.queue.anchor(&one).await.unwrap(), None);
    kit.queue
        .store_anchor(&one, 1_700_000_000_000)
        .await
        .unwrap();
    kit.queue.store_anchor(&two, 5).await.unwrap();
    kit.queue.store_anchor(&two, -6).await.unwrap();
    let kit = kit.restart(false).await;
    assert_eq!(
        kit.queue.anchor(&one).await.unwrap(),
        Some(1_700_000_000_000)
    );
    assert_eq!(kit.queue.anchor(&two).await.unwrap(), Some(-6));
}

pub(super) async fn what_was_learned_outlives_the_project(kit: Kit) {
    let recall = async |kit: &Kit, key: &str| kit.queue.recall(key).await.unwrap();
    assert_eq!(recall(&kit, "networks").await, None);
    let large = "x".repeat(64 * 1024);
    for (key, value) in [("networks", "one"), ("large", &large), ("networks", "two")] {
        let value = Some(value.to_owned());
        kit.queue.remember(key, value).await.unwrap();
    }
    kit.queue.store_identity(identity("p-1")).await.unwrap();
    kit.queue.store_identity(identity("p-2")).await.unwrap();
    let kit = kit.restart(false).await;
    assert_eq!(recall(&kit, "networks").await.as_deref(), Some("two"));
    assert_eq!(recall(&kit, "large").await, Some(large.clone()));
    assert_eq!(recall(&kit, "network").await, None);
    let invalid = |result| assert!(matches!(result, Err(QueueError::Invalid(_))), "{result:?}");
    let value = || Some("v".to_owned());
    invalid(kit.queue.remember("", value()).await);
    invalid(kit.queue.remember(&"k".repeat(65), value()).await);
    invalid(kit.queue.remember("large", Some(large.clone() + "x")).await);
    assert_eq!(recall(&kit, "large").await, Some(large));
    kit.queue.remember("large", None).await.unwrap();
    kit.queue.remember("never", None).await.unwrap();
    assert_eq!(recall(&kit, "large").await, None);
    // One key is there; as many as there is room for come, and one of them is written again before the room runs out.
    for number in 0..63 {
        let key = format!("key-{number}");
        kit.queue.remember(&key, value()).await.unwrap();
    }
    kit.queue.remember("networks", value()).await.unwrap();
    kit.queue.remember(&"k".repeat(64), value()).await.unwrap();
    assert_eq!(recall(&kit, "networks").await, value());
    assert_eq!(recall(&kit, "key-0").await, None, "the oldest made room");
    assert_eq!(recall(&kit, "key-1").await, value());
}
