//! How many transfers run at once.
//!
//! Invariants:
//!
//! - At most `target` transfers have bytes left to give to their connection, and at most twice as many have not had their
//!   answer yet. So the next chunk begins when the last byte of one is handed over, not when its answer arrives, and a
//!   service that answers slowly cannot pile up chunks without bound.
//! - A smaller target takes nothing away from those that run; it lets fewer begin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The right to transfer, handed out up to a number that may change at any time.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    target: usize,
    sending: usize,
    unanswered: usize,
}

impl State {
    fn has_room(&self) -> bool {
        self.sending < self.target && self.unanswered < 2 * self.target
    }
}

/// One transfer's right to run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    sending: bool,
}

impl Slots {
    /// Begins with `target` transfers, at least one.
    pub(crate) fn new(target: usize) -> Slots {
        Slots {
            state: Mutex::new(State {
                target: target.max(1),
                sending: 0,
                unanswered: 0,
            }),
            freed: Notify::new(),
        }
    }

    /// Waits for a slot. For one waiter at a time.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Slot {
        loop {
            {
                let mut state = self.state();
                if state.has_room() {
                    state.sending += 1;
                    state.unanswered += 1;
                    return Slot {
                        slots: self.clone(),
                        sending: true,
                    };
                }
            }
            // A slot freed in between has left its note.
            self.freed.notified().await;
        }
    }

    pub(crate) fn set_target(&self, target: usize) {
        self.state().target = target.max(1);
        self.freed.notify_one();
    }

    /// Transfers that still have bytes to give to their connection.
    pub(crate) fn sending(&self) -> usize {
        self.state().sending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The connection has every byte: another transfer may begin while this one waits for its answer.
    pub(crate) fn handed_over(&mut self) {
        if std::mem::take(&mut self.sending) {
            self.slots.state().sending -= 1;
            self.slots.freed.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.handed_over();
        self.slots.state().unanswered -= 1;
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now(slots: &Arc<Slots>) -> Option<Slot> {
        slots.acquire().now_or_never()
    }

    #[test]
    fn the_next_begins_at_the_last_byte_and_not_without_bound() {
        let slots = Arc::new(Slots::new(2));
        let mut first = now(&slots).unwrap();
        let mut second = now(&slots).unwrap();
        assert!(now(&slots).is_none(), "two are sending");
        first.handed_over();
        let mut third = now(&slots).unwrap();
        assert!(now(&slots).is_none());
        second.handed_over();
        third.handed_over();
        let fourth = now(&slots).unwrap();
        drop(fourth);
        let mut fourth = now(&slots).unwrap();
        fourth.handed_over();
        assert_eq!(slots.sending(), 0);
        assert!(now(&slots).is_none(), "four wait for their answers");
        drop(first);
        assert!(now(&slots).is_some());
    }

    #[tokio::test]
    async fn a_waiter_hears_of_a_larger_target_and_of_a_freed_slot() {
        let slots = Arc::new(Slots::new(1));
        let first = slots.acquire().await;
        let waiter = tokio::spawn({
            let slots = slots.clone();
            async move { (slots.acquire().await, slots.acquire().await) }
        });
        tokio::task::yield_now().await;
        slots.set_target(2);
        drop(first);
        let (_second, _third) = waiter.await.unwrap();
        slots.set_target(1);
        assert!(now(&slots).is_none(), "a smaller target takes nothing away");
        assert_eq!(slots.sending(), 2);
    }
}
