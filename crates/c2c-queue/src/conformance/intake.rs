use std::path::PathBuf;

use crate::clock::{BootId, BootTime, Capture, CaptureSource, WallTime};
use crate::error::QueueError;
use crate::history::Event;
use crate::media::{FileId, Hold, MediaId, MediaState, Volume};
use crate::queue::{ByHand, Selection, Verdict};

use super::kit::{Kit, clip, is_lost, secs, setback};

fn card() -> Volume {
    Volume {
        id: "uuid-1".to_owned(),
        mount_point: clip("", 0).path,
        removable: true,
    }
}

pub(super) async fn added_media_survive_a_crash_as_they_are(kit: Kit) {
    let mut full = clip("full", u64::MAX >> 1);
    full.facts.mtime_ns = -5;
    full.facts.file_id = Some(FileId {
        device: u64::MAX,
        file: 1 << 63,
    });
    full.volume = Some(card());
    full.capture = Capture {
        wall: WallTime(-1),
        boot_id: Some(BootId("boot".to_owned())),
        boot: Some(BootTime(77)),
        source: CaptureSource::FileTime,
    };
    full.channel = 3;
    full.priority = -4;
    full.parts = Some(12);
    full.auto_version_id = Some("version".to_owned());
    full.hold = Some(Hold::FileChanging);
    let plain = clip("plain", 0);
    let added = kit
        .queue
        .add(vec![full.clone(), plain.clone()])
        .await
        .unwrap();
    assert_eq!(added.len(), 2);
    assert!(added[0].id < added[1].id && added.iter().all(|added| added.already.is_none()));
    let wall = crate::Clock::wall(&kit.clock);

    let kit = kit.restart(false).await;
    let media = kit.media(added[0].id).await;
    assert_eq!(media.path, full.path);
    assert_eq!(media.name, full.name);
    assert_eq!(media.facts, full.facts);
    assert_eq!(media.volume, full.volume);
    assert_eq!(media.filetype, full.filetype);
    assert_eq!(media.capture, full.capture);
    assert_eq!(
        (media.channel, media.priority, media.parts),
        (3, -4, Some(12))
    );
    assert_eq!(media.auto_version_id, full.auto_version_id);
    assert_eq!((media.hold, media.held_at), (full.hold, Some(wall)));
    assert_eq!(
        (media.state, media.added_at, media.rested_at),
        (MediaState::Queued, wall, None)
    );
    let media = kit.media(added[1].id).await;
    assert_eq!(
        (media.facts.clone(), media.volume, media.hold),
        (plain.facts, None, None)
    );
    assert_eq!(kit.events(media.id).await, [Event::Added]);
    assert_eq!(
        kit.events(added[0].id).await,
        [
            Event::Added,
            Event::Held {
                hold: Hold::FileChanging
            }
        ]
    );
    assert_eq!(
        kit.queue.media(MediaId(added[1].id.0 + 1)).await.unwrap(),
        None
    );
}

pub(super) async fn the_same_file_is_added_once(kit: Kit) {
    let first = kit
        .queue
        .add(vec![clip("a", 4), clip("b", 4), clip("a", 4)])
        .await
        .unwrap();
    assert_eq!(first[2].id, first[0].id);
    assert_eq!(first[2].already, Some(MediaState::Queued));
    let id = first[0].id;
    let lines = kit.events(id).await;
    // Another file, in each respect.
    let mut others = vec![clip("a", 5), clip("c", 4), clip("a", 4), clip("a", 4)];
    others[2].facts.mtime_ns += 1;
    others[3].channel = 1;
    for added in kit.queue.add(others).await.unwrap() {
        assert_eq!(added.already, None);
        kit.by_hand(&[added.id], ByHand::Cancel).await;
    }
    // The same file, mounted as another device; then another card in the same place.
    let mut mounted = clip("m", 4);
    for (device, file, volume, known) in [
        (7, Some(2), Some("one"), false),
        (8, Some(2), Some("one"), true),
        (8, Some(2), Some("two"), false),
        (8, Some(3), Some("two"), false),
        // Not every file system has numbers, or a name of its own: what is not known makes no difference.
        (8, None, Some("two"), true),
        (8, Some(3), None, true),
        (8, Some(4), None, false),
    ] {
        mounted.facts.file_id = file.map(|file| FileId { device, file });
        mounted.volume = volume.map(|volume| Volume {
            id: volume.to_owned(),
            ..card()
        });
        let added = kit.queue.add(vec![mounted.clone()]).await.unwrap();
        assert_eq!(
            added[0].already.is_some(),
            known,
            "{device} {file:?} {volume:?}"
        );
    }
    // Nor was it known of the first.
    let mut numbered = clip("a", 4);
    numbered.facts.file_id = Some(FileId { device: 1, file: 2 });
    numbered.volume = Some(card());
    assert_eq!(kit.queue.add(vec![numbered]).await.unwrap()[0].id, id);
    // The same file under other wishes.
    let mut same = clip("a", 4);
    same.priority = 9;
    same.name = "another name".to_owned();
    let again = kit.queue.add(vec![same]).await.unwrap();
    assert_eq!(
        (again[0].id, again[0].already),
        (id, Some(MediaState::Queued))
    );
    let media = kit.media(id).await;
    assert_eq!((media.priority, media.name.as_str()), (0, "a"));
    assert_eq!(kit.events(id).await, lines, "nothing changed");

    // Delivered is there as well; cancelled is not.
    kit.register(id, &[4]).await;
    kit.deliver(id).await;
    let again = kit.queue.add(vec![clip("a", 4)]).await.unwrap();
    assert_eq!(
        (again[0].id, again[0].already),
        (id, Some(MediaState::Delivered))
    );
    kit.by_hand(&[first[1].id], ByHand::Cancel).await;
    let again = kit.queue.add(vec![clip("b", 4)]).await.unwrap();
    assert_eq!(again[0].already, None);
    assert_ne!(again[0].id, first[1].id);
}

pub(super) async fn again_adds_it_again(kit: Kit) {
    let id = kit.registered("a", &[4]).await;
    kit.deliver(id).await;
    let mut again = clip("a", 4);
    again.again = true;
    let second = kit.add_new(again).await;
    assert_ne!(second, id);
    assert_eq!(kit.registration().await.media.id, second);
}

pub(super) async fn nonsense_adds_nothing_at_all(kit: Kit) {
    let mut nonsense = vec![
        clip("n", 1),
        clip("n", 1),
        clip("n", u64::MAX),
        clip("n", 1),
        clip("n", 1),
    ];
    nonsense[0].path = PathBuf::from("not/absolute");
    nonsense[1].name = String::new();
    nonsense[3].capture.boot = Some(BootTime(1));
    nonsense[4].parts = Some(0);
    for media in nonsense {
        let result = kit.queue.add(vec![clip("good", 1), media]).await;
        assert!(matches!(result, Err(QueueError::Invalid(_))), "{result:?}");
    }
    assert_eq!(kit.queue.list(None, None, 10).await.unwrap(), []);
    assert_eq!(kit.queue.add(Vec::new()).await.unwrap(), []);
}

pub(super) async fn a_gone_file_cancels(kit: Kit) {
    let id = kit.registered("a", &[4, 4]).await;
    let chunk = kit.chunk().await;
    let words = || "the file was deleted".to_owned();
    kit.queue.file_gone(id, words()).await.unwrap();
    let media = kit.media(id).await;
    assert_eq!(
        (media.state, media.chunk_count, media.asset_id),
        (MediaState::Cancelled, 0, None)
    );
    assert!(media.rested_at.is_some());
    is_lost(
        kit.queue
            .chunk_sent(&chunk.lease, super::kit::proof())
            .await,
        id,
    );
    assert_eq!(
        kit.events(id).await.last(),
        Some(&Event::FileGone { words: words() })
    );
    kit.queue.file_gone(id, words()).await.unwrap();

    let registering = kit.add("b", 1).await;
    let claim = kit.registration().await;
    kit.queue.file_gone(registering, words()).await.unwrap();
    is_lost(
        kit.queue
            .asset_created(&claim.lease, super::kit::asset("b", &[1]))
            .await,
        registering,
    );

    let id = kit.registered("c", &[1]).await;
    kit.deliver(id).await;
    let result = kit.queue.file_gone(id, words()).await;
    assert!(
        matches!(result, Err(QueueError::IllegalMove { .. })),
        "{result:?}"
    );
    let result = kit.queue.file_gone(MediaId(id.0 + 1), words()).await;
    assert!(
        matches!(result, Err(QueueError::NoSuchMedia(_))),
        "{result:?}"
    );
}

pub(super) async fn holds_wait_and_end(kit: Kit) {
    let id = kit.add("a", 4).await;
    kit.queue.hold(id, Hold::VolumeAway).await.unwrap();
    kit.clock.advance(secs(5));
    let media = kit.media(id).await;
    assert_eq!(
        (media.state, media.hold),
        (MediaState::Queued, Some(Hold::VolumeAway))
    );
    assert_eq!(media.held_for_ms, Some(5_000));
    assert_eq!(kit.queue.status().await.unwrap().held, 1);
    kit.nothing_to_register().await;
    kit.queue.hold(id, Hold::VolumeAway).await.unwrap();
    assert_eq!(
        kit.media(id).await.held_for_ms,
        Some(5_000),
        "the same hold goes on"
    );
    kit.queue
        .unhold(id, Hold::FileChanging, None)
        .await
        .unwrap();
    kit.nothing_to_register().await;
    kit.queue.unhold(id, Hold::VolumeAway, None).await.unwrap();
    let media = kit.media(id).await;
    assert_eq!(
        (media.hold, media.held_at, media.held_for_ms),
        (None, None, None)
    );
    assert_eq!(
        kit.events(id).await,
        [
            Event::Added,
            Event::Held {
                hold: Hold::VolumeAway
            },
            Event::Released {
                hold: Hold::VolumeAway
            }
        ]
    );
    kit.register(id, &[2, 2]).await;
    kit.queue.hold(id, Hold::FileChanging).await.unwrap();
    kit.nothing_to_send().await;
    assert_eq!(kit.queue.status().await.unwrap().chunks_ready, 0);
    // A wait goes on behind a hold.
    kit.queue
        .unhold(id, Hold::FileChanging, None)
        .await
        .unwrap();
    let chunk = kit.chunk().await;
    kit.fail(&chunk.lease, Verdict::NextRound { after: secs(60) })
        .await;
    kit.queue.hold(id, Hold::FileChanging).await.unwrap();
    kit.nothing_to_send().await;
    kit.clock.advance(secs(20));
    kit.queue
        .unhold(id, Hold::FileChanging, None)
        .await
        .unwrap();
    kit.send_later(secs(40)).await;

    let missing = MediaId(id.0 + 1);
    assert!(matches!(
        kit.queue.hold(missing, Hold::VolumeAway).await,
        Err(QueueError::NoSuchMedia(_))
    ));
    assert!(matches!(
        kit.queue.unhold(missing, Hold::VolumeAway, None).await,
        Err(QueueError::NoSuchMedia(_))
    ));
    kit.by_hand(&[id], ByHand::Cancel).await;
    let result = kit.queue.hold(id, Hold::VolumeAway).await;
    assert!(
        matches!(result, Err(QueueError::Invalid(_))),
        "what rests is not held: {result:?}"
    );
}

pub(super) async fn a_hold_for_a_person_stays(kit: Kit) {
    for person in [Hold::ByHand, Hold::CaptureTimeUnknown] {
        let mut media = clip("a", 4);
        media.again = true;
        let id = kit.add_new(media).await;
        kit.queue.hold(id, Hold::ChannelPaused).await.unwrap();
        kit.queue.hold(id, Hold::FileChanging).await.unwrap();
        assert_eq!(
            kit.media(id).await.hold,
            Some(Hold::FileChanging),
            "the newer reason counts"
        );
        kit.queue.hold(id, person).await.unwrap();
        kit.queue.hold(id, Hold::VolumeAway).await.unwrap();
        assert_eq!(kit.media(id).await.hold, Some(person));
        assert_eq!(kit.by_hand(&[id], ByHand::Hold).await, []);
        assert_eq!(kit.media(id).await.hold, Some(person));
        kit.queue.unhold(id, Hold::VolumeAway, None).await.unwrap();
        kit.nothing_to_register().await;
        kit.queue.unhold(id, person, None).await.unwrap();
        let claim = kit.registration().await;
        assert_eq!((claim.media.id, claim.media.capture_accepted), (id, false));
        kit.queue
            .registration_failed(&claim.lease, setback(Verdict::Cancel))
            .await
            .unwrap();
    }
}

pub(super) async fn all_holds_of_a_kind_end_together(kit: Kit) {
    let mut held = Vec::new();
    for (name, hold) in [
        ("a", Some(Hold::ChannelPaused)),
        ("b", Some(Hold::VolumeAway)),
        ("c", Some(Hold::ChannelPaused)),
        ("d", None),
    ] {
        let mut media = clip(name, 1);
        media.hold = hold;
        held.push(kit.add_new(media).await);
    }
    assert_eq!(kit.queue.status().await.unwrap().held, 3);
    assert_eq!(
        kit.queue.unhold_all(Hold::ChannelPaused).await.unwrap(),
        [held[0], held[2]]
    );
    assert_eq!(kit.queue.unhold_all(Hold::ChannelPaused).await.unwrap(), []);
    assert_eq!(kit.media(held[1]).await.hold, Some(Hold::VolumeAway));
    assert_eq!(
        kit.events(held[0]).await.last(),
        Some(&Event::Released {
            hold: Hold::ChannelPaused
        })
    );
    assert_eq!(kit.registration().await.media.id, held[0]);
    assert_eq!(kit.registration().await.media.id, held[2]);
    assert_eq!(kit.registration().await.media.id, held[3]);
    kit.nothing_to_register().await;
}

pub(super) async fn nobody_holds_what_is_checked_out(kit: Kit) {
    let id = kit.add("a", 4).await;
    let claim = kit.registration().await;
    let result = kit.queue.hold(id, Hold::VolumeAway).await;
    assert!(
        matches!(&result, Err(QueueError::Busy { media, holder }) if *media == id && holder == "run-1/register")
    );
    kit.queue
        .asset_created(&claim.lease, super::kit::asset("a", &[4]))
        .await
        .unwrap();
    let chunk = kit.chunk().await;
    assert!(matches!(
        kit.queue.hold(id, Hold::VolumeAway).await,
        Err(QueueError::Busy { .. })
    ));
    kit.queue.release(&chunk.lease).await.unwrap();
    kit.queue.hold(id, Hold::VolumeAway).await.unwrap();
    assert_eq!(
        kit.queue
            .by_hand(Selection::Held, ByHand::Release)
            .await
            .unwrap(),
        [id]
    );
}

pub(super) async fn a_file_found_elsewhere_moves(kit: Kit) {
    let mut media = clip("a", 4);
    media.volume = Some(card());
    media.hold = Some(Hold::VolumeAway);
    let id = kit.add_new(media).await;
    let path = clip("elsewhere", 4).path;
    let volume = Volume {
        mount_point: clip("else", 0).path,
        ..card()
    };
    kit.queue
        .unhold(id, Hold::VolumeAway, Some((path.clone(), volume.clone())))
        .await
        .unwrap();
    let media = kit.media(id).await;
    assert_eq!(
        (media.path, media.volume, media.hold),
        (path, Some(volume), None)
    );
    // There it is the same file.
    let again = kit.queue.add(vec![clip("elsewhere", 4)]).await.unwrap();
    assert_eq!(again[0].id, id);
}

pub(super) async fn any_number_is_added_as_one(kit: Kit) {
    let before = kit.add("clip-7", 1).await;
    let mut spool = kit.queue.spool().await.unwrap();
    for number in 0..2_500 {
        spool.push(&clip(&format!("clip-{number}"), 1)).unwrap();
    }
    let mut nonsense = kit.queue.spool().await.unwrap();
    nonsense.push(&clip("fine", 1)).unwrap();
    nonsense.push(&clip("", 1)).unwrap();
    let refused = kit.queue.add_spooled(nonsense).await;
    assert!(
        matches!(refused, Err(QueueError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(
        kit.queue
            .status()
            .await
            .unwrap()
            .of(MediaState::Queued)
            .media,
        1
    );

    let added = kit.queue.add_spooled(spool).await.unwrap();
    assert_eq!(added.len(), 2_500);
    let kit = kit.restart(false).await;
    let queued = kit.queue.status().await.unwrap().of(MediaState::Queued);
    assert_eq!((queued.media, queued.bytes), (2_500, 2_500));
    for (number, added) in added.iter().enumerate() {
        let already = (number == 7).then_some(MediaState::Queued);
        assert_eq!(added.already, already);
        if number == 7 {
            assert_eq!(added.id, before);
        } else if number % 500 == 0 {
            let media = kit.media(added.id).await;
            assert_eq!(media.name, format!("clip-{number}"));
            assert_eq!(kit.events(added.id).await, [Event::Added]);
        }
    }
    let none = kit.queue.spool().await.unwrap();
    assert_eq!(kit.queue.add_spooled(none).await.unwrap(), []);
}
