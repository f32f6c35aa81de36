//! Random lives of a queue, compared with a reference after every step.
//!
//! `actions` says what may happen, `reference` what should come of it, this file runs both and compares. It is
//! written against the trait: another store needs a function like [`sqlite_lives_like_the_reference`] and
//! nothing else. A failure is shrunk, and its seed stored beside this file to be run first the next time.

#![expect(
    clippy::unwrap_used,
    reason = "a model that is out of step is to panic"
)]

mod actions;
mod reference;
#[path = "../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use c2c_queue::conformance::Store;
use c2c_queue::{
    Airlock, Attempt, Capture, CaptureSource, Chunk, ChunkProof, Claim, Clock, FaultRecord,
    FileFacts, Holder, Identity, Item, Lease, ManualClock, Media, MediaId, MediaState, NewAsset,
    NewChunk, NewMedia, Queue, QueueError, Scope, Selection, Setback, WallTime,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use secrecy::SecretString;

use actions::{Action, Select};
use reference::{Claimed, Held, RefMedia, Reference, Refusal};

/// What random lives must come by, so that a change of the odds does not make this test empty.
const MUST_REACH: [&str; 41] = [
    "Changed",
    "First",
    "SamePro",
    "cancel done",
    "cancel refused",
    "chunk again ok",
    "chunk again refused",
    "chunk again_uncounted ok",
    "chunk cancel ok",
    "chunk fail ok",
    "chunk hold ok",
    "chunk next_round ok",
    "chunk park ok",
    "chunk register_again ok",
    "chunk withhold refused",
    "claimed again, round 1, final false",
    "claimed again, round 2, final false",
    "claimed first, round 1, final true",
    "claimed first, round 2, final false",
    "claimed first, round 3, final false",
    "delivered with 1 chunks",
    "delivered with 2 chunks",
    "delivered with 3 chunks",
    "granted 1",
    "hold done",
    "later",
    "nothing",
    "prioritize done",
    "recovered a chunk",
    "recovered a registration",
    "registration hold ok",
    "registration next_round ok",
    "registration park ok",
    "registration withhold ok",
    "release done",
    "retry done",
    "retry after a registration",
    "sent ok",
    "sent on the final try, left",
    "sent refused",
    "taken anew",
];

/// A queue, its reference, and every lease and media there ever was.
struct World {
    store: Arc<dyn Store>,
    queue: Option<Arc<dyn Queue>>,
    clock: ManualClock,
    reference: Reference,
    run: u32,
    leases: Vec<Lease>,
    ids: Vec<i64>,
    last_token: u64,
    /// Store time of the last change that is surely on disk.
    durable: i64,
    /// What happened, to see that a run gets everywhere.
    reached: BTreeSet<String>,
}

fn path(number: u8) -> PathBuf {
    PathBuf::from(if cfg!(windows) {
        format!("C:\\card\\{number}")
    } else {
        format!("/card/{number}")
    })
}

fn refusal(error: &QueueError) -> Refusal {
    match error {
        QueueError::LeaseLost(_) => Refusal::LeaseLost,
        QueueError::NoSuchMedia(_) => Refusal::NoSuchMedia,
        QueueError::IllegalMove { .. } => Refusal::IllegalMove,
        QueueError::Invalid(_) => Refusal::Invalid,
        QueueError::Busy { .. } => Refusal::Busy,
        other => panic!("the store failed: {other}"),
    }
}

fn same<T: std::fmt::Debug + PartialEq>(got: Result<T, QueueError>, expected: Result<T, Refusal>) {
    assert_eq!(got.map_err(|error| refusal(&error)), expected);
}

fn identity(project: u8) -> Identity {
    Identity {
        id: "1".to_owned(),
        device_id: "2".to_owned(),
        device_name: "A camera".to_owned(),
        project_id: format!("project-{project}"),
        project_name: "A film".to_owned(),
        status: "online".to_owned(),
        authorization_expires_at: None,
        channels: Vec::new(),
    }
}

fn capture(at: i64) -> Capture {
    Capture {
        wall: WallTime(at),
        boot_id: None,
        boot: None,
        source: CaptureSource::Given,
    }
}

/// A file of `size` bytes in at most `count` chunks.
fn split(size: u64, count: u64) -> Vec<u64> {
    let count = count.min(size).max(1);
    (0..count)
        .map(|number| size / count + u64::from(number < size % count))
        .collect()
}

impl World {
    async fn new(store: Arc<dyn Store>) -> World {
        let queue = store.open("run-1").await;
        let clock = store.clock();
        let reference = Reference {
            now: queue.store_time().0,
            boot: clock.boot_id().unwrap().0,
            ..Reference::default()
        };
        let durable = reference.now;
        World {
            store,
            queue: Some(queue),
            clock,
            reference,
            run: 1,
            leases: Vec::new(),
            ids: Vec::new(),
            last_token: 0,
            durable,
            reached: BTreeSet::new(),
        }
    }

    fn reached(&mut self, what: String) {
        self.reached.insert(what);
    }

    fn queue(&self) -> Arc<dyn Queue> {
        self.queue.clone().unwrap()
    }

    /// A lease of some time, in parts: media, chunk, token. Mostly one that counts, sometimes any.
    fn lease(&self, number: usize) -> Option<(Lease, i64, Option<u32>, u64)> {
        self.lease_among(number, |_| true)
    }

    fn lease_among(
        &self,
        number: usize,
        wanted: impl Fn(Item) -> bool,
    ) -> Option<(Lease, i64, Option<u32>, u64)> {
        let any = number % 8 == 7;
        let choice: Vec<_> = self
            .leases
            .iter()
            .rev()
            .filter(|lease| wanted(lease.item) && (any || self.counts(lease)))
            .collect();
        let lease = (*choice.get(number / 8 % choice.len().max(1))?).clone();
        let (id, chunk) = match lease.item {
            Item::Registration(id) => (id.0, None),
            Item::Chunk(id, number) => (id.0, Some(number)),
        };
        let token = lease.token;
        Some((lease, id, chunk, token))
    }

    fn counts(&self, lease: &Lease) -> bool {
        let Some(media) = self.reference.media.get(&lease.item.media().0) else {
            return false;
        };
        let held = match lease.item {
            Item::Registration(_) => media.lease.as_ref(),
            Item::Chunk(_, number) => media
                .chunks
                .get(number as usize)
                .and_then(|chunk| chunk.lease.as_ref()),
        };
        held.is_some_and(|held| held.token == lease.token)
    }

    /// A media of some time, or one that never was.
    fn id(&self, number: usize) -> i64 {
        let count = self.ids.len() + 1;
        self.ids
            .iter()
            .rev()
            .nth(number % count)
            .copied()
            .unwrap_or(1_000_000)
    }

    fn holder(&self, worker: u8) -> Holder {
        Holder {
            process: format!("run-{}", self.run),
            worker: format!("w{worker}"),
        }
    }

    fn held(&self, worker: u8, lease: Duration) -> Held {
        let holder = self.holder(worker);
        let until = self.reference.now + lease.as_millis() as i64;
        Held {
            token: 0,
            process: holder.process,
            worker: holder.worker,
            until,
            round: 0,
        }
    }

    /// Compares a claim, and tells the reference its token.
    fn claimed(
        &mut self,
        got: Option<(Lease, Attempt)>,
        later: Option<Duration>,
        expected: Claimed,
    ) {
        match (got, later, expected) {
            (
                Some((lease, attempt)),
                _,
                Claimed::Got {
                    id,
                    chunk,
                    number,
                    round,
                    final_try,
                },
            ) => {
                let item = match chunk {
                    None => Item::Registration(MediaId(id)),
                    Some(number) => Item::Chunk(MediaId(id), number),
                };
                assert_eq!(
                    (lease.item, attempt),
                    (
                        item,
                        Attempt {
                            number,
                            round,
                            final_try
                        }
                    )
                );
                assert!(lease.token > self.last_token, "tokens only grow");
                let again = if number > 1 { "again" } else { "first" };
                self.reached(format!(
                    "claimed {again}, round {}, final {final_try}",
                    round.min(3)
                ));
                self.last_token = lease.token;
                let media = self.reference.media.get_mut(&id).unwrap();
                let held = match chunk {
                    None => media.lease.as_mut(),
                    Some(number) => media.chunks[number as usize].lease.as_mut(),
                };
                held.unwrap().token = lease.token;
                self.leases.push(lease);
            }
            (None, Some(later), Claimed::Later(expected)) => {
                assert_eq!(later.as_millis() as i64, expected);
                self.reached("later".to_owned());
            }
            (None, None, Claimed::Nothing) => self.reached("nothing".to_owned()),
            (got, later, expected) => {
                panic!("claimed {got:?}, later {later:?}; expected {expected:?}")
            }
        }
    }

    async fn step(&mut self, action: Action) {
        let queue = self.queue();
        match action {
            Action::Add {
                path: number,
                size,
                mtime,
                priority,
                hold,
                again,
            } => {
                let media = NewMedia {
                    path: path(number),
                    name: "clip".to_owned(),
                    facts: FileFacts {
                        size,
                        mtime_ns: mtime,
                        file_id: None,
                    },
                    volume: None,
                    filetype: "video/mp4".to_owned(),
                    capture: capture(0),
                    channel: 0,
                    priority,
                    parts: Some(3),
                    auto_version_id: None,
                    hold,
                    again,
                };
                let added = queue.add(vec![media]).await.unwrap()[0];
                let twin =
                    self.reference
                        .add(added.id.0, (number, size, mtime), priority, hold, again);
                assert_eq!(added.already.is_some(), twin.is_some());
                match twin {
                    Some(twin) => {
                        assert_eq!(
                            (added.id.0, added.already),
                            (twin, Some(self.reference.media[&twin].state))
                        );
                    }
                    None => {
                        assert!(
                            self.ids.last().is_none_or(|last| *last < added.id.0),
                            "ids are never used again"
                        );
                        self.ids.push(added.id.0);
                        self.durable = self.reference.now;
                    }
                }
            }
            Action::ClaimRegistration {
                worker,
                lease,
                ahead,
            } => {
                let claim = queue
                    .claim_registration(&self.holder(worker), lease, ahead)
                    .await
                    .unwrap();
                let expected = self
                    .reference
                    .claim_registration(self.held(worker, lease), ahead);
                let (got, later) = match claim {
                    Claim::Got(claim) => (Some((claim.lease, claim.attempt)), None),
                    Claim::Later(later) => (None, Some(later)),
                    Claim::Nothing => (None, None),
                };
                self.claimed(got, later, expected);
            }
            Action::ClaimChunk { worker, lease } => {
                let claim = queue
                    .claim_chunk(&self.holder(worker), lease)
                    .await
                    .unwrap();
                let expected = self.reference.claim_chunk(self.held(worker, lease));
                let (got, later) = match claim {
                    Claim::Got(claim) => {
                        let media = &self.reference.media[&claim.media.id.0];
                        assert_eq!(
                            claim.url_age.as_millis() as i64,
                            self.reference.now - media.urls_at
                        );
                        (Some((claim.lease, claim.attempt)), None)
                    }
                    Claim::Later(later) => (None, Some(later)),
                    Claim::Nothing => (None, None),
                };
                self.claimed(got, later, expected);
            }
            Action::Succeed { lease, chunks } => {
                let Some((lease, id, chunk, token)) = self.lease(lease) else {
                    return;
                };
                match chunk {
                    None => {
                        let lengths = split(self.reference.size(id), chunks);
                        let mut start = 0;
                        let new = lengths.iter().map(|length| {
                            start += length;
                            NewChunk {
                                start: start - length,
                                length: *length,
                                url: SecretString::from("https://u/"),
                            }
                        });
                        let asset = NewAsset {
                            asset_id: "asset".to_owned(),
                            project_id: "project".to_owned(),
                            offset: None,
                            chunks: new.collect(),
                        };
                        let got = queue.asset_created(&lease, asset).await;
                        same(got, self.reference.asset_created(id, token, &lengths));
                    }
                    Some(number) => {
                        let got = queue
                            .chunk_sent(
                                &lease,
                                ChunkProof {
                                    etag: None,
                                    md5: None,
                                    crc64nvme: None,
                                },
                            )
                            .await;
                        let before = self.reference.media.get(&id).cloned();
                        let expected = self.reference.chunk_sent(id, number, token);
                        self.reached(format!("sent {}", got.as_ref().map_or("refused", |_| "ok")));
                        if let Ok(sent) = &got {
                            assert_eq!(sent.receipt.is_some(), sent.left == 0);
                            if sent.left > 0 && before.is_some_and(|media| media.final_try) {
                                self.reached("sent on the final try, left".to_owned());
                            }
                            if let Some(receipt) = &sent.receipt {
                                self.reached(format!(
                                    "delivered with {} chunks",
                                    receipt.chunks.len()
                                ));
                                let media = &self.reference.media[&id];
                                assert_eq!(receipt.tries, media.tries_total);
                                assert_eq!(receipt.bytes_resent, media.bytes_resent);
                                assert_eq!(receipt.registrations, media.registrations);
                                let tries: Vec<_> =
                                    receipt.chunks.iter().map(|chunk| chunk.tries).collect();
                                let expected: Vec<_> =
                                    media.chunks.iter().map(|chunk| chunk.tries_total).collect();
                                assert_eq!(tries, expected);
                            }
                        }
                        same(got.map(|sent| sent.left), expected);
                    }
                }
            }
            Action::Fail {
                lease,
                verdict,
                wasted,
                duplicate,
                drop_parts,
            } => {
                let Some((lease, id, chunk, token)) = self.lease(lease) else {
                    return;
                };
                let setback = Setback {
                    fault: FaultRecord {
                        scope: Scope::Service,
                        code: "code".to_owned(),
                        words: "words".to_owned(),
                        server: None,
                    },
                    verdict,
                    possible_duplicate: duplicate,
                    bytes_wasted: wasted,
                    drop_parts,
                };
                let expected = self.reference.failed(id, chunk, token, &setback);
                let verdict = setback.verdict.as_str();
                let got = match chunk {
                    None => queue.registration_failed(&lease, setback).await,
                    Some(_) => queue.chunk_failed(&lease, setback).await,
                };
                self.reached(format!(
                    "{} {verdict} {}",
                    if chunk.is_some() {
                        "chunk"
                    } else {
                        "registration"
                    },
                    if got.is_ok() { "ok" } else { "refused" }
                ));
                if let Ok(outcome) = &got {
                    let media = &self.reference.media[&id];
                    assert_eq!((outcome.state, outcome.hold), (media.state, media.hold));
                }
                same(got.map(drop), expected);
            }
            Action::FileChanged {
                lease,
                size,
                captured,
            } => {
                let registration = |item| matches!(item, Item::Registration(_));
                let Some((lease, id, _, token)) = self.lease_among(lease, registration) else {
                    return;
                };
                let mtime_ns = self
                    .reference
                    .media
                    .get(&id)
                    .map_or(0, |media| media.file.2 + 100);
                let facts = FileFacts {
                    size,
                    mtime_ns,
                    file_id: None,
                };
                let got = queue
                    .file_changed(
                        &lease,
                        facts,
                        captured.map(capture),
                        "it changed".to_owned(),
                    )
                    .await;
                if got.is_ok() && captured.is_some() {
                    self.reached("taken anew".to_owned());
                }
                same(got, self.reference.file_changed(id, token, size, captured));
            }
            Action::Renew {
                lease,
                acknowledged,
                extend,
            } => {
                let Some((lease, id, chunk, token)) = self.lease(lease) else {
                    return;
                };
                let got = queue.renew(&lease, acknowledged, extend).await;
                same(
                    got,
                    self.reference.renew(id, chunk, token, acknowledged, extend),
                );
            }
            Action::Release { lease } => {
                let Some((lease, id, chunk, token)) = self.lease(lease) else {
                    return;
                };
                same(
                    queue.release(&lease).await,
                    self.reference.release(id, chunk, token),
                );
            }
            Action::RecoverExpired => {
                let now = self.reference.now;
                let expected = self.reference.recover(|held| held.until <= now);
                self.recovered(queue.recover_expired().await.unwrap(), expected);
            }
            Action::RecoverDead => {
                let mine = format!("run-{}", self.run);
                let expected = self.reference.recover(|held| held.process != mine);
                self.recovered(queue.recover_dead(&mine).await.unwrap(), expected);
            }
            Action::FileGone { media } => {
                let id = self.id(media);
                let got = queue.file_gone(MediaId(id), "gone".to_owned()).await;
                same(got, self.reference.file_gone(id));
            }
            Action::Hold { media, hold } => {
                let id = self.id(media);
                same(
                    queue.hold(MediaId(id), hold).await,
                    self.reference.hold(id, hold),
                );
            }
            Action::Unhold { media, hold } => {
                let id = self.id(media);
                same(
                    queue.unhold(MediaId(id), hold, None).await,
                    self.reference.unhold(id, hold),
                );
            }
            Action::UnholdAll { hold } => {
                let ids = queue.unhold_all(hold).await.unwrap();
                let ids: Vec<_> = ids.into_iter().map(|id| id.0).collect();
                assert_eq!(ids, self.reference.unhold_all(hold));
            }
            Action::GrantRestartTries => {
                let granted = queue
                    .grant_restart_tries(&self.reference.boot)
                    .await
                    .unwrap();
                let granted: Vec<_> = granted.into_iter().map(|id| id.0).collect();
                self.reached(format!("granted {}", granted.len().min(1)));
                assert_eq!(granted, self.reference.grant_restart_tries());
            }
            Action::ByHand { selection, action } => {
                let all = || self.reference.media.iter();
                let (ids, selection) = match selection {
                    Select::Ids(numbers) => {
                        let ids: Vec<_> =
                            numbers.into_iter().map(|number| self.id(number)).collect();
                        (
                            ids.clone(),
                            Selection::Ids(ids.into_iter().map(MediaId).collect()),
                        )
                    }
                    Select::State(state) => {
                        let ids = all()
                            .filter(|(_, media)| media.state == state)
                            .map(|(id, _)| *id)
                            .collect();
                        (ids, Selection::State(state))
                    }
                    Select::Held => {
                        let ids = all()
                            .filter(|(_, media)| media.hold.is_some())
                            .map(|(id, _)| *id)
                            .collect();
                        (ids, Selection::Held)
                    }
                    Select::All => (all().map(|(id, _)| *id).collect(), Selection::All),
                };
                let explicit = matches!(selection, Selection::Ids(_));
                let got = queue.by_hand(selection, action).await;
                let got = got.map(|ids| ids.into_iter().map(|id| id.0).collect::<Vec<_>>());
                let done =
                    got.as_ref().map_or(
                        "refused",
                        |ids| if ids.is_empty() { "nothing" } else { "done" },
                    );
                self.reached(format!("{} {done}", action.as_str()));
                let retried = |media: &&RefMedia| media.registrations_before > 0;
                let retries =
                    |media: &BTreeMap<i64, RefMedia>| media.values().filter(retried).count();
                let before = retries(&self.reference.media);
                same(got, self.reference.by_hand(&ids, explicit, action));
                if retries(&self.reference.media) > before {
                    self.reached("retry after a registration".to_owned());
                }
            }
            Action::StoreIdentity { project } => {
                let first = self.reference.project.is_none();
                let expected = match self.reference.store_identity(project) {
                    Some(cleared) => Airlock::Changed { cleared },
                    None if first => Airlock::First,
                    None => Airlock::SameProject,
                };
                assert_eq!(
                    queue.store_identity(identity(project)).await.unwrap(),
                    expected
                );
                self.reached(format!("{expected:?}").chars().take(7).collect());
            }
            Action::Advance { by } => {
                self.clock.advance(by);
                self.reference.now += by.as_millis() as i64;
            }
            Action::JumpWall { by_ms } => self.clock.jump_wall(by_ms),
            Action::Reopen {
                clean,
                meanwhile,
                reboot,
            } => {
                drop(queue);
                self.reopen(clean, meanwhile, reboot).await;
            }
        }
    }

    fn recovered(&mut self, got: Vec<c2c_queue::Recovered>, expected: Vec<reference::Returned>) {
        let mut got: Vec<_> = got
            .into_iter()
            .map(|it| match it.item {
                Item::Registration(id) => (id.0, None, it.holder, it.acknowledged),
                Item::Chunk(id, number) => (id.0, Some(number), it.holder, it.acknowledged),
            })
            .collect();
        got.sort();
        assert_eq!(got, expected);
        for (_, chunk, ..) in got {
            self.reached(format!(
                "recovered a {}",
                if chunk.is_some() {
                    "chunk"
                } else {
                    "registration"
                }
            ));
        }
    }

    async fn reopen(&mut self, clean: bool, meanwhile: Duration, reboot: Option<i64>) {
        let queue = self.queue.take().unwrap();
        if clean {
            queue.close().await.unwrap();
            self.durable = self.reference.now;
        }
        drop(queue);
        self.clock.advance(meanwhile);
        let ran_until = self.reference.now + meanwhile.as_millis() as i64;
        if let Some(jump) = reboot {
            self.clock.reboot();
            self.clock.jump_wall(jump);
            self.reference.boot = self.clock.boot_id().unwrap().0;
        }
        self.run += 1;
        let queue = self.store.open(&format!("run-{}", self.run)).await;
        let now = queue.store_time().0;
        assert!(
            now > self.durable,
            "store time went back from {} to {now}",
            self.durable
        );
        // It may take a step at the start, so that it grows in any case.
        let expected = match (reboot, clean) {
            (None, _) => ran_until..=ran_until + 1,
            (Some(_), true) => self.durable + 1..=self.durable + 1,
            // How much of it was on disk is the store's business.
            (Some(_), false) => self.durable + 1..=self.reference.now + 1,
        };
        assert!(
            expected.contains(&now),
            "store time is {now}, expected {expected:?}"
        );
        (self.reference.now, self.durable) = (now, now);
        self.queue = Some(queue);
    }

    /// Everything that can be seen must be as in the reference.
    async fn compare(&self) {
        let queue = self.queue();
        let reference = &self.reference;
        assert_eq!(queue.store_time().0, reference.now);
        let list = queue.list(None, None, 1000).await.unwrap();
        let ids: Vec<_> = list.iter().map(|media| media.id.0).collect();
        assert_eq!(ids, reference.media.keys().copied().collect::<Vec<_>>());
        let mut by_position: Vec<_> = list
            .iter()
            .map(|media| (media.position, media.id.0))
            .collect();
        by_position.sort_unstable();
        let mut expected: Vec<_> = reference
            .media
            .iter()
            .map(|(id, media)| (media.position, *id))
            .collect();
        expected.sort_unstable();
        let order = |line: &[(i64, i64)]| line.iter().map(|(_, id)| *id).collect::<Vec<_>>();
        let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
        assert_eq!(order(&by_position), expected, "order of positions");
        for media in &list {
            let expected = &reference.media[&media.id.0];
            compare_media(media, expected, reference.now);
            if media.chunk_count > 0 {
                compare_chunks(
                    &queue.chunks(media.id).await.unwrap(),
                    expected,
                    reference.now,
                );
            }
        }
        let held: Vec<_> = list
            .iter()
            .filter(|media| reference.media[&media.id.0].hold.is_some())
            .cloned()
            .collect();
        assert_eq!(queue.held(None, 1000).await.unwrap(), held);
        let mut line: Vec<_> = reference
            .media
            .iter()
            .filter(|(_, media)| !media.state.is_resting())
            .collect();
        line.sort_by_key(|(id, media)| (-media.priority, media.position, **id));
        let upcoming = queue.upcoming(1000).await.unwrap();
        let upcoming: Vec<_> = upcoming.into_iter().map(|media| media.id.0).collect();
        assert_eq!(
            upcoming,
            line.iter().map(|(id, _)| **id).collect::<Vec<_>>()
        );
        self.compare_status().await;
    }

    async fn compare_history(&self) {
        for (id, media) in &self.reference.media {
            let lines = self.queue().history(Some(MediaId(*id))).await.unwrap();
            assert_eq!(lines.len(), media.lines.min(500), "{lines:#?}");
        }
    }

    async fn compare_status(&self) {
        let status = self.queue().status().await.unwrap();
        let media = self.reference.media.values();
        for state in MediaState::ALL {
            let these: Vec<_> = media.clone().filter(|media| media.state == state).collect();
            let tally = status.of(state);
            assert_eq!(tally.media, these.len() as u64, "{state}");
            assert_eq!(
                tally.bytes,
                these.iter().map(|media| media.file.1).sum::<u64>(),
                "{state}"
            );
            assert_eq!(
                tally.bytes_sent,
                these.iter().map(|media| media.sent().1).sum::<u64>(),
                "{state}"
            );
        }
        assert_eq!(
            status.held,
            media.clone().filter(|media| media.hold.is_some()).count() as u64
        );
        let open =
            media.filter(|media| media.state == MediaState::Transferring && media.hold.is_none());
        assert_eq!(
            status.chunks_ready,
            open.map(RefMedia::ready_count).sum::<u64>()
        );
        let unsealed = self.queue().unsealed_receipts(1000).await.unwrap();
        let receipts: BTreeMap<_, _> = unsealed
            .into_iter()
            .map(|receipt| (receipt.media.0, receipt.size))
            .collect();
        assert_eq!(receipts, self.reference.receipts);
    }
}

fn due(not_before: i64, now: i64) -> Option<u64> {
    (not_before > now).then(|| (not_before - now) as u64)
}

fn compare_media(media: &Media, expected: &RefMedia, now: i64) {
    let (chunks_sent, bytes_sent) = expected.sent();
    assert_eq!(
        (media.state, media.hold),
        (expected.state, expected.hold),
        "{media:?}"
    );
    assert_eq!(
        media.held_for_ms,
        expected.hold.map(|_| (now - expected.held_since) as u64),
        "{media:?}"
    );
    assert_eq!(
        (media.tries, media.rounds, media.tries_total),
        (expected.tries, expected.rounds, expected.tries_total),
        "{media:?}"
    );
    assert_eq!(media.final_try, expected.final_try, "{media:?}");
    assert_eq!(media.due_in_ms, due(expected.not_before, now), "{media:?}");
    assert_eq!(
        (media.priority, media.parts),
        (expected.priority, expected.parts)
    );
    assert_eq!(
        (&media.capture, media.capture_accepted),
        (&capture(expected.captured), expected.capture_accepted),
        "{media:?}"
    );
    assert_eq!(
        (media.facts.size, media.facts.mtime_ns),
        (expected.file.1, expected.file.2)
    );
    assert_eq!(
        (media.registrations, media.possible_duplicates),
        (expected.registrations, expected.possible_duplicates)
    );
    assert_eq!(
        media.registrations_since_retry,
        expected.registrations - expected.registrations_before,
        "{media:?}"
    );
    assert_eq!(
        media.chunk_count as usize,
        expected.chunks.len(),
        "{media:?}"
    );
    assert_eq!(
        (media.chunks_sent, media.bytes_sent, media.bytes_resent),
        (chunks_sent, bytes_sent, expected.bytes_resent),
        "{media:?}"
    );
    assert_eq!(media.rested_at.is_some(), media.state.is_resting());
    assert_eq!(media.asset_id.is_some(), !expected.chunks.is_empty());
}

fn compare_chunks(chunks: &[Chunk], expected: &RefMedia, now: i64) {
    assert_eq!(chunks.len(), expected.chunks.len());
    let delivered = expected.state == MediaState::Delivered;
    for (chunk, expected) in chunks.iter().zip(&expected.chunks) {
        assert_eq!(
            (chunk.start, chunk.length, chunk.state),
            (expected.start, expected.length, expected.state)
        );
        assert_eq!(chunk.tries_total, expected.tries_total);
        assert_eq!(chunk.acknowledged, expected.acknowledged);
        assert_eq!(chunk.due_in_ms, due(expected.not_before, now));
        if !delivered {
            assert_eq!(chunk.tries, expected.tries);
        }
    }
}

/// Runs random lives on stores from `fresh`.
fn run(fresh: impl Fn() -> Arc<dyn Store>) {
    let persistence = FileFailurePersistence::WithSource("proptest-regressions");
    let config = Config {
        failure_persistence: Some(Box::new(persistence)),
        source_file: Some(file!()),
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let lives = prop::collection::vec(actions::action(), 1..300);
    let everywhere = config.cases >= 256;
    let reached = RefCell::new(BTreeSet::new());
    let result = TestRunner::new(config).run(&lives, |life| {
        let store = fresh();
        runtime.block_on(async {
            let mut world = World::new(store).await;
            for action in life {
                world.step(action).await;
                world.compare().await;
            }
            world.compare_history().await;
            reached.borrow_mut().extend(world.reached);
        });
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let reached = reached.into_inner();
    if everywhere {
        let missed: Vec<_> = MUST_REACH
            .iter()
            .filter(|what| !reached.contains(**what))
            .collect();
        assert!(
            missed.is_empty(),
            "the lives were too tame, they never saw {missed:?}; they saw {reached:#?}"
        );
    }
}

#[test]
fn sqlite_lives_like_the_reference() {
    run(|| Arc::new(support::SqliteStore::quick()));
}
