//! The queue as one would explain it: plain values in plain maps, no index, no transaction, no disk.
//!
//! Everything is found by looking at all there is. Time is handed in.

use std::collections::BTreeMap;
use std::time::Duration;

use c2c_queue::{ByHand, ChunkState, Hold, MediaState, Setback, Verdict};

/// Why the model refuses; the kinds of error that the trait names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    LeaseLost,
    NoSuchMedia,
    IllegalMove,
    Invalid,
    Busy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) token: u64,
    pub(crate) process: String,
    pub(crate) worker: String,
    pub(crate) until: i64,
    pub(crate) round: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct RefChunk {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) state: ChunkState,
    pub(crate) tries: u32,
    pub(crate) tries_total: u32,
    pub(crate) acknowledged: u64,
    pub(crate) not_before: i64,
    pub(crate) lease: Option<Held>,
}

#[derive(Clone, Debug)]
pub(crate) struct RefMedia {
    pub(crate) file: (u8, u64, i64),
    pub(crate) priority: i32,
    pub(crate) position: u64,
    pub(crate) state: MediaState,
    pub(crate) hold: Option<Hold>,
    pub(crate) held_since: i64,
    pub(crate) captured: i64,
    pub(crate) capture_accepted: bool,
    pub(crate) parts: Option<u32>,
    pub(crate) tries: u32,
    pub(crate) rounds: u32,
    pub(crate) tries_total: u64,
    pub(crate) final_try: bool,
    pub(crate) parked_boot: Option<String>,
    pub(crate) not_before: i64,
    pub(crate) lease: Option<Held>,
    pub(crate) urls_at: i64,
    pub(crate) registrations: u32,
    pub(crate) registrations_before: u32,
    pub(crate) possible_duplicates: u32,
    pub(crate) bytes_resent: u64,
    /// Of the current registration; stays as it was at the delivery.
    pub(crate) chunks: Vec<RefChunk>,
    pub(crate) lines: usize,
}

/// What was checked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    Got {
        id: i64,
        chunk: Option<u32>,
        number: u32,
        round: u32,
        final_try: bool,
    },
    Later(i64),
    Nothing,
}

/// Something that returned to the pool: media, chunk, holder, bytes acknowledged.
pub(crate) type Returned = (i64, Option<u32>, String, u64);

#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) now: i64,
    pub(crate) boot: String,
    pub(crate) media: BTreeMap<i64, RefMedia>,
    pub(crate) position: u64,
    pub(crate) project: Option<u8>,
    /// Deliveries, with the project they went to: media and size.
    pub(crate) receipts: BTreeMap<i64, u64>,
}

impl RefMedia {
    fn ready(&self) -> impl Iterator<Item = &RefChunk> {
        self.chunks
            .iter()
            .filter(|chunk| chunk.state == ChunkState::Ready)
    }

    pub(crate) fn ready_count(&self) -> u64 {
        self.ready().count() as u64
    }

    pub(crate) fn sent(&self) -> (u32, u64) {
        let sent = self
            .chunks
            .iter()
            .filter(|chunk| chunk.state == ChunkState::Sent);
        sent.fold((0, 0), |(count, bytes), chunk| {
            (count + 1, bytes + chunk.length)
        })
    }

    /// When there is something to check out, if that comes by itself.
    fn wakes(&self) -> Option<i64> {
        if self.hold.is_some() {
            return None;
        }
        match self.state {
            MediaState::Queued => Some(self.not_before),
            MediaState::Transferring => self
                .ready()
                .map(|chunk| chunk.not_before)
                .min()
                .map(|first| first.max(self.not_before)),
            _ => None,
        }
    }

    fn checked_out(&self) -> bool {
        self.lease.is_some() || self.chunks.iter().any(|chunk| chunk.lease.is_some())
    }

    /// The chunks go; what was sent of them was in vain.
    fn drop_chunks(&mut self) -> u64 {
        let sent = self.sent().1;
        self.void_leases();
        self.bytes_resent += sent;
        self.chunks.clear();
        sent
    }

    fn void_leases(&mut self) {
        for chunk in &mut self.chunks {
            if chunk.lease.take().is_some() {
                self.bytes_resent += chunk.acknowledged;
                chunk.state = ChunkState::Ready;
            }
        }
    }

    fn fresh_chunk_tries(&mut self) {
        for chunk in self
            .chunks
            .iter_mut()
            .filter(|chunk| chunk.state != ChunkState::Sent)
        {
            chunk.tries = 0;
        }
    }

    fn clear_chunk_waits(&mut self) {
        for chunk in self
            .chunks
            .iter_mut()
            .filter(|chunk| chunk.state == ChunkState::Ready)
        {
            chunk.not_before = 0;
        }
    }

    fn rest(&mut self, to: MediaState, boot: &str) -> Result<(), Refusal> {
        if !self.state.may_become(to) {
            return Err(Refusal::IllegalMove);
        }
        if matches!(to, MediaState::Cancelled | MediaState::Withheld) {
            self.drop_chunks();
            (self.tries, self.rounds, self.final_try) = (0, 0, false);
        }
        self.void_leases();
        self.state = to;
        self.parked_boot = (to == MediaState::Parked).then(|| boot.to_owned());
        (self.lease, self.hold, self.not_before) = (None, None, 0);
        Ok(())
    }

    fn set_hold(&mut self, hold: Hold, now: i64) -> bool {
        let for_a_person = matches!(self.hold, Some(Hold::ByHand | Hold::CaptureTimeUnknown));
        if self.hold == Some(hold) || for_a_person {
            return false;
        }
        (self.hold, self.held_since) = (Some(hold), now);
        true
    }

    fn leave_rest(&mut self, final_try: bool) {
        self.state = if self.chunks.is_empty() {
            MediaState::Queued
        } else {
            MediaState::Transferring
        };
        (
            self.tries,
            self.not_before,
            self.final_try,
            self.parked_boot,
        ) = (0, 0, final_try, None);
        self.fresh_chunk_tries();
        self.clear_chunk_waits();
    }
}

impl Reference {
    fn after(&self, wait: Duration) -> i64 {
        self.now + wait.as_millis() as i64
    }

    /// The id of the twin, or `None` for a new media, which then has the id `id`.
    pub(crate) fn add(
        &mut self,
        id: i64,
        file: (u8, u64, i64),
        priority: i32,
        hold: Option<Hold>,
        again: bool,
    ) -> Option<i64> {
        let twin = self
            .media
            .iter()
            .rev()
            .find(|(_, other)| other.file == file && other.state != MediaState::Cancelled);
        if let (Some((twin, _)), false) = (twin, again) {
            return Some(*twin);
        }
        self.position += 1;
        let media = RefMedia {
            file,
            priority,
            position: self.position,
            state: MediaState::Queued,
            hold,
            held_since: self.now,
            captured: 0,
            capture_accepted: false,
            parts: Some(3),
            tries: 0,
            rounds: 0,
            tries_total: 0,
            final_try: false,
            parked_boot: None,
            not_before: 0,
            lease: None,
            urls_at: 0,
            registrations: 0,
            registrations_before: 0,
            possible_duplicates: 0,
            bytes_resent: 0,
            chunks: Vec::new(),
            lines: 1 + usize::from(hold.is_some()),
        };
        self.media.insert(id, media);
        None
    }

    /// Media of a state in the order of work, with the time at which each wakes.
    fn line(&self, state: MediaState) -> Vec<(i64, i64)> {
        let mut line: Vec<_> = self
            .media
            .iter()
            .filter(|(_, media)| media.state == state)
            .filter_map(|(id, media)| {
                Some((
                    (-media.priority, media.position, *id),
                    (*id, media.wakes()?),
                ))
            })
            .collect();
        line.sort_unstable();
        line.into_iter().map(|(_, waking)| waking).collect()
    }

    fn later(&self, state: MediaState) -> Claimed {
        match self.line(state).into_iter().map(|(_, wakes)| wakes).min() {
            Some(wakes) => Claimed::Later(wakes - self.now),
            None => Claimed::Nothing,
        }
    }

    pub(crate) fn claim_registration(&mut self, held: Held, ahead: Option<u64>) -> Claimed {
        let workable = self
            .line(MediaState::Transferring)
            .into_iter()
            .filter(|(_, wakes)| *wakes <= self.now);
        let ready: u64 = workable.map(|(id, _)| self.media[&id].ready_count()).sum();
        if ahead.is_some_and(|ahead| ready >= ahead) {
            return Claimed::Nothing;
        }
        let now = self.now;
        let Some((id, _)) = self
            .line(MediaState::Queued)
            .into_iter()
            .find(|(_, wakes)| *wakes <= now)
        else {
            return self.later(MediaState::Queued);
        };
        let media = self.media.get_mut(&id).unwrap();
        media.state = MediaState::Registering;
        media.tries += 1;
        media.tries_total += 1;
        media.not_before = 0;
        media.lease = Some(held);
        media.lines += 1;
        let (number, round, final_try) = (media.tries, media.rounds + 1, media.final_try);
        Claimed::Got {
            id,
            chunk: None,
            number,
            round,
            final_try,
        }
    }

    pub(crate) fn claim_chunk(&mut self, mut held: Held) -> Claimed {
        let now = self.now;
        let Some((id, _)) = self
            .line(MediaState::Transferring)
            .into_iter()
            .find(|(_, wakes)| *wakes <= now)
        else {
            return self.later(MediaState::Transferring);
        };
        let media = self.media.get_mut(&id).unwrap();
        held.round = media.rounds;
        media.tries_total += 1;
        let (number, chunk) = media
            .chunks
            .iter_mut()
            .enumerate()
            .find(|(_, chunk)| chunk.state == ChunkState::Ready && chunk.not_before <= now)
            .unwrap();
        chunk.state = ChunkState::Sending;
        chunk.tries += 1;
        chunk.tries_total += 1;
        (chunk.acknowledged, chunk.not_before, chunk.lease) = (0, 0, Some(held));
        media.lines += usize::from(chunk.tries_total > 1);
        Claimed::Got {
            id,
            chunk: Some(number as u32),
            number: chunk.tries,
            round: media.rounds + 1,
            final_try: media.final_try,
        }
    }

    fn registering(&mut self, id: i64, token: u64) -> Result<&mut RefMedia, Refusal> {
        let media = self.media.get_mut(&id).ok_or(Refusal::LeaseLost)?;
        if media
            .lease
            .as_ref()
            .is_some_and(|lease| lease.token == token)
        {
            Ok(media)
        } else {
            Err(Refusal::LeaseLost)
        }
    }

    fn sending(&mut self, id: i64, number: u32, token: u64) -> Result<&mut RefMedia, Refusal> {
        let media = self.media.get_mut(&id).ok_or(Refusal::LeaseLost)?;
        let lease = media
            .chunks
            .get(number as usize)
            .and_then(|chunk| chunk.lease.as_ref());
        if lease.is_some_and(|lease| lease.token == token) {
            Ok(media)
        } else {
            Err(Refusal::LeaseLost)
        }
    }

    pub(crate) fn size(&self, id: i64) -> u64 {
        self.media.get(&id).map_or(1, |media| media.file.1)
    }

    pub(crate) fn asset_created(
        &mut self,
        id: i64,
        token: u64,
        lengths: &[u64],
    ) -> Result<(), Refusal> {
        let now = self.now;
        let media = self.registering(id, token)?;
        let mut start = 0;
        media.chunks.clear();
        for length in lengths {
            media.chunks.push(RefChunk {
                start,
                length: *length,
                state: ChunkState::Ready,
                tries: 0,
                tries_total: 0,
                acknowledged: 0,
                not_before: 0,
                lease: None,
            });
            start += length;
        }
        media.state = MediaState::Transferring;
        (media.lease, media.not_before, media.urls_at) = (None, 0, now);
        media.registrations += 1;
        media.tries = media.tries.saturating_sub(1);
        media.lines += 1;
        Ok(())
    }

    pub(crate) fn file_changed(
        &mut self,
        id: i64,
        token: u64,
        size: u64,
        captured: Option<i64>,
    ) -> Result<(), Refusal> {
        let media = self.registering(id, token)?;
        if let Some(captured) = captured {
            (media.captured, media.capture_accepted) = (captured, false);
        }
        (media.file.1, media.file.2) = (size, media.file.2 + 100);
        media.lines += 1;
        Ok(())
    }

    /// How many chunks are left; 0 delivers.
    pub(crate) fn chunk_sent(&mut self, id: i64, number: u32, token: u64) -> Result<u32, Refusal> {
        let media = self.sending(id, number, token)?;
        let chunk = &mut media.chunks[number as usize];
        (
            chunk.state,
            chunk.lease,
            chunk.not_before,
            chunk.acknowledged,
        ) = (ChunkState::Sent, None, 0, chunk.length);
        (media.tries, media.rounds, media.final_try) = (0, 0, false);
        let left = media
            .chunks
            .iter()
            .filter(|chunk| chunk.state != ChunkState::Sent)
            .count() as u32;
        if left == 0 {
            media.state = MediaState::Delivered;
            (media.hold, media.not_before) = (None, 0);
            media.lines += 1;
            let size = media.file.1;
            self.receipts.insert(id, size);
        }
        Ok(left)
    }

    pub(crate) fn failed(
        &mut self,
        id: i64,
        chunk: Option<u32>,
        token: u64,
        setback: &Setback,
    ) -> Result<(), Refusal> {
        let (now, boot, position) = (self.now, self.boot.clone(), self.position + 1);
        let (verdict, duplicate) = (&setback.verdict, setback.possible_duplicate);
        let wait = match verdict {
            Verdict::Again { after, .. }
            | Verdict::NextRound { after }
            | Verdict::RegisterAgain { after, .. } => self.after(*after),
            _ => 0,
        };
        match chunk {
            None => self.registering(id, token)?,
            Some(number) => self.sending(id, number, token)?,
        };
        // On a copy: an error changes nothing.
        let mut media = self.media[&id].clone();
        media.lines += 1 + usize::from(duplicate);
        media.possible_duplicates += u32::from(duplicate);
        media.bytes_resent += setback.bytes_wasted;
        if setback.drop_parts {
            media.parts = None;
        }
        let mut first_of_round = true;
        if let Some(number) = chunk {
            let chunk = &mut media.chunks[number as usize];
            first_of_round = chunk.lease.take().unwrap().round == media.rounds;
            chunk.state = ChunkState::Ready;
            chunk.not_before = 0;
            match verdict {
                Verdict::Again { counted, .. } => {
                    chunk.not_before = wait;
                    chunk.tries = chunk.tries.saturating_sub(u32::from(!counted));
                }
                Verdict::NextRound { .. } => (chunk.not_before, chunk.tries) = (wait, 0),
                Verdict::Hold(_) => chunk.tries = chunk.tries.saturating_sub(1),
                _ => {}
            }
        }
        match (verdict, chunk) {
            (Verdict::Again { counted, .. } | Verdict::RegisterAgain { counted, .. }, None) => {
                (media.state, media.lease, media.not_before) = (MediaState::Queued, None, wait);
                media.tries = media.tries.saturating_sub(u32::from(!counted));
            }
            (Verdict::Again { .. }, Some(_)) => {}
            (Verdict::NextRound { .. }, _) => {
                if chunk.is_none() {
                    (media.state, media.lease) = (MediaState::Queued, None);
                }
                if first_of_round {
                    media.rounds += 1;
                    (media.tries, media.position, media.not_before) = (0, position, wait);
                    media.fresh_chunk_tries();
                } else {
                    media.not_before = media.not_before.max(wait);
                }
            }
            (Verdict::RegisterAgain { counted, .. }, Some(_)) => {
                let lost = media.drop_chunks();
                (media.state, media.not_before) = (MediaState::Queued, wait);
                media.tries += u32::from(*counted);
                media.lines += usize::from(lost > 0);
            }
            (Verdict::Hold(hold), _) => {
                if chunk.is_none() {
                    (media.state, media.lease) = (MediaState::Queued, None);
                    media.tries = media.tries.saturating_sub(1);
                }
                media.lines += usize::from(media.set_hold(*hold, now));
            }
            (Verdict::Park, _) => media.rest(MediaState::Parked, &boot)?,
            (Verdict::Withhold, _) => media.rest(MediaState::Withheld, &boot)?,
            (Verdict::Fail, _) => media.rest(MediaState::Failed, &boot)?,
            (Verdict::Cancel, _) => media.rest(MediaState::Cancelled, &boot)?,
        }
        self.position = self.position.max(media.position);
        self.media.insert(id, media);
        Ok(())
    }

    pub(crate) fn renew(
        &mut self,
        id: i64,
        chunk: Option<u32>,
        token: u64,
        acknowledged: u64,
        extend: Duration,
    ) -> Result<(), Refusal> {
        let until = self.after(extend);
        match chunk {
            None => self.registering(id, token)?.lease.as_mut().unwrap().until = until,
            Some(number) => {
                let chunk = &mut self.sending(id, number, token)?.chunks[number as usize];
                chunk.acknowledged = acknowledged;
                chunk.lease.as_mut().unwrap().until = until;
            }
        }
        Ok(())
    }

    pub(crate) fn release(
        &mut self,
        id: i64,
        chunk: Option<u32>,
        token: u64,
    ) -> Result<(), Refusal> {
        let media = match chunk {
            None => {
                let media = self.registering(id, token)?;
                (media.state, media.lease) = (MediaState::Queued, None);
                media.tries = media.tries.saturating_sub(1);
                media
            }
            Some(number) => {
                let media = self.sending(id, number, token)?;
                let chunk = &mut media.chunks[number as usize];
                (chunk.state, chunk.lease) = (ChunkState::Ready, None);
                chunk.tries = chunk.tries.saturating_sub(1);
                chunk.tries_total -= 1;
                media.bytes_resent += chunk.acknowledged;
                media
            }
        };
        media.tries_total -= 1;
        Ok(())
    }

    pub(crate) fn recover(&mut self, is_over: impl Fn(&Held) -> bool) -> Vec<Returned> {
        let mut returned = Vec::new();
        for (id, media) in &mut self.media {
            if media.lease.as_ref().is_some_and(&is_over) {
                let lease = media.lease.take().unwrap();
                (media.state, media.not_before) = (MediaState::Queued, 0);
                media.possible_duplicates += 1;
                media.lines += 2;
                returned.push((*id, None, format!("{}/{}", lease.process, lease.worker), 0));
            }
            for (number, chunk) in media.chunks.iter_mut().enumerate() {
                if chunk.lease.as_ref().is_some_and(&is_over) {
                    let lease = chunk.lease.take().unwrap();
                    (chunk.state, chunk.not_before) = (ChunkState::Ready, 0);
                    media.bytes_resent += chunk.acknowledged;
                    media.lines += 1;
                    let holder = format!("{}/{}", lease.process, lease.worker);
                    returned.push((*id, Some(number as u32), holder, chunk.acknowledged));
                }
            }
        }
        returned.sort();
        returned
    }

    pub(crate) fn file_gone(&mut self, id: i64) -> Result<(), Refusal> {
        let boot = self.boot.clone();
        let media = self.media.get_mut(&id).ok_or(Refusal::NoSuchMedia)?;
        if media.state != MediaState::Cancelled {
            media.rest(MediaState::Cancelled, &boot)?;
            media.lines += 1;
        }
        Ok(())
    }

    pub(crate) fn hold(&mut self, id: i64, hold: Hold) -> Result<(), Refusal> {
        let now = self.now;
        let media = self.media.get_mut(&id).ok_or(Refusal::NoSuchMedia)?;
        if media.state.is_resting() {
            return Err(Refusal::Invalid);
        }
        if media.checked_out() {
            return Err(Refusal::Busy);
        }
        media.lines += usize::from(media.set_hold(hold, now));
        Ok(())
    }

    pub(crate) fn unhold(&mut self, id: i64, hold: Hold) -> Result<(), Refusal> {
        let media = self.media.get_mut(&id).ok_or(Refusal::NoSuchMedia)?;
        if media.hold == Some(hold) {
            media.hold = None;
            media.lines += 1;
        }
        Ok(())
    }

    pub(crate) fn unhold_all(&mut self, hold: Hold) -> Vec<i64> {
        let held: Vec<i64> = self
            .media
            .iter()
            .filter(|(_, media)| media.hold == Some(hold))
            .map(|(id, _)| *id)
            .collect();
        for id in &held {
            self.unhold(*id, hold).unwrap();
        }
        held
    }

    pub(crate) fn grant_restart_tries(&mut self) -> Vec<i64> {
        let boot = self.boot.clone();
        let mut granted = Vec::new();
        for (id, media) in &mut self.media {
            let earlier = media
                .parked_boot
                .as_ref()
                .is_some_and(|parked| *parked != boot);
            if media.state == MediaState::Parked && earlier && !media.final_try {
                media.leave_rest(true);
                media.lines += 1;
                granted.push(*id);
            }
        }
        granted
    }

    /// The ids that are meant.
    pub(crate) fn by_hand(
        &mut self,
        ids: &[i64],
        explicit: bool,
        action: ByHand,
    ) -> Result<Vec<i64>, Refusal> {
        let before = self.media.clone();
        let mut done = Vec::new();
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            match self.one_by_hand(id, explicit, action) {
                Ok(true) => done.push(id),
                Ok(false) => {}
                Err(refusal) => {
                    self.media = before;
                    return Err(refusal);
                }
            }
        }
        Ok(done)
    }

    fn one_by_hand(&mut self, id: i64, explicit: bool, action: ByHand) -> Result<bool, Refusal> {
        let (now, boot) = (self.now, self.boot.clone());
        let file = self.media.get(&id).ok_or(Refusal::NoSuchMedia)?.file;
        let has_twin = self.media.iter().any(|(other, twin)| {
            *other != id && twin.file == file && twin.state != MediaState::Cancelled
        });
        let media = self.media.get_mut(&id).unwrap();
        let delivered = media.state == MediaState::Delivered;
        let done = match action {
            ByHand::Retry | ByHand::Cancel if delivered && explicit => {
                return Err(Refusal::IllegalMove);
            }
            ByHand::Retry => {
                let lifted = matches!(media.hold, Some(Hold::VolumeAway | Hold::FileChanging));
                let applies = match media.state {
                    MediaState::Delivered => false,
                    MediaState::Cancelled => !has_twin,
                    state if state.is_resting() => true,
                    _ => {
                        media.not_before > now
                            || lifted
                            || media.ready().any(|chunk| chunk.not_before > now)
                    }
                };
                if applies {
                    if media.state.is_resting() {
                        media.leave_rest(false);
                    }
                    (media.tries, media.rounds, media.final_try, media.not_before) =
                        (0, 0, false, 0);
                    media.registrations_before = media.registrations;
                    media.fresh_chunk_tries();
                    media.clear_chunk_waits();
                    if lifted {
                        media.hold = None;
                    }
                }
                applies
            }
            ByHand::Cancel if delivered || media.state == MediaState::Cancelled => false,
            ByHand::Cancel => {
                media.rest(MediaState::Cancelled, &boot)?;
                true
            }
            ByHand::Prioritize(priority) => {
                let applies = !delivered && media.state != MediaState::Cancelled;
                if applies {
                    media.priority = priority;
                }
                applies
            }
            ByHand::Hold => !media.state.is_resting() && media.set_hold(Hold::ByHand, now),
            ByHand::Release => {
                let hold = media.hold.take();
                media.capture_accepted |= hold == Some(Hold::CaptureTimeUnknown);
                hold.is_some()
            }
        };
        media.lines += usize::from(done);
        Ok(done)
    }

    /// How many media were removed, if the project is another one.
    pub(crate) fn store_identity(&mut self, project: u8) -> Option<u64> {
        let before = self.project.replace(project);
        if before.is_none_or(|before| before == project) {
            return None;
        }
        let cleared = self.media.len() as u64;
        self.media.clear();
        Some(cleared)
    }
}
