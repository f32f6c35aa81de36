//! What every [`Queue`] must do, as a suite that any implementation can run against itself.
//!
//! A behaviour that is not in here is not promised by the trait. Each [`Case`] gets a store of its own, empty at
//! first, and moves its [`ManualClock`]; it panics where the implementation does something else.
//!
//! ```no_run
//! # async fn suite(fresh: impl Fn() -> std::sync::Arc<dyn c2c_queue::conformance::Store>) {
//! for case in c2c_queue::conformance::cases() {
//!     println!("{}", case.name());
//!     case.run(fresh()).await;
//! }
//! # }
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a case that finds something else is to panic"
)]

mod hand;
mod intake;
mod kit;
mod leases;
mod pairing;
mod reading;
mod registration;
mod transfer;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::ManualClock;
use crate::queue::Queue;

use self::kit::Kit;

/// One durable store, opened as often as a case wants.
#[async_trait]
pub trait Store: Send + Sync {
    /// Opens it, for the process with this name. The content is what was durable when the last queue that this
    /// returned was closed or dropped; it is only called when that one is gone.
    async fn open(&self, process: &str) -> Arc<dyn Queue>;
    /// The clock on which the queues run.
    fn clock(&self) -> ManualClock;
}

type Run = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// One behaviour.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    run: Run,
}

impl Case {
    /// What it is about.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it on a fresh store.
    ///
    /// # Panics
    ///
    /// Where the implementation does something else than the trait promises.
    pub async fn run(&self, store: Arc<dyn Store>) {
        (self.run)(store).await;
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

macro_rules! list {
    ($($module:ident: $($case:ident),+;)+) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            run: |store| Box::pin(async move { $module::$case(Kit::open(store).await).await }),
        }),+),+]
    };
}

/// All cases.
pub fn cases() -> Vec<Case> {
    list! {
        intake: added_media_survive_a_crash_as_they_are, the_same_file_is_added_once, again_adds_it_again,
            nonsense_adds_nothing_at_all, any_number_is_added_as_one, a_gone_file_cancels, holds_wait_and_end, a_hold_for_a_person_stays,
            all_holds_of_a_kind_end_together, nobody_holds_what_is_checked_out, a_file_found_elsewhere_moves;
        registration: by_priority_then_position, a_try_is_counted_at_checkout, nothing_then_later_then_work,
            not_too_far_ahead, an_asset_comes_with_all_its_chunks, chunks_must_cover_the_file,
            every_verdict_does_what_it_says, a_used_up_round_falls_behind_everybody, a_fault_is_remembered,
            a_changed_file_goes_on, a_file_taken_anew_has_another_capture,
            a_try_that_succeeded_does_not_count, several_workers_register_in_order, registrations_are_counted_from_a_retry, an_old_lease_is_not_heard;
        transfer: chunks_in_order_and_media_in_order, urls_come_back_and_age, the_last_chunk_delivers, the_checksum_of_a_file_is_made_of_those_of_its_chunks,
            an_empty_file_is_delivered, a_damaged_chunk_is_refused, progress_starts_the_count_again,
            every_verdict_does_what_it_says, a_round_is_used_up_once, rest_voids_every_lease,
            a_held_media_may_finish, a_chunk_cannot_withhold, bytes_in_vain_are_counted,
            one_waiting_media_stops_nobody, two_workers_never_share;
        leases: tokens_only_grow, a_renewed_lease_lives, an_expired_lease_returns_to_the_pool,
            time_alone_takes_nothing, a_released_item_was_never_out, the_dead_are_recovered,
            the_wall_clock_changes_no_wait, store_time_survives_restarts, a_wrong_clock_after_a_restart_changes_nothing,
            time_passes_between_two_programs;
        hand: retry_of_what_rests, retry_of_what_waits, retry_once_is_enough, cancel_at_any_time,
            priority_changes_the_order, hold_and_release, all_or_nothing, delivered_is_delivered,
            one_more_try_after_a_restart, a_final_try_ends_with_progress;
        pairing: the_client_id_stays, tokens_are_kept_and_age, a_refresh_in_flight_is_seen_after_a_crash,
            lost_tokens_leave_everything_else, another_project_empties_the_queue, the_first_pairing_empties_nothing,
            anchors_by_boot, what_was_learned_outlives_the_project;
        reading: the_queue_in_numbers, pages_by_state, those_that_are_held, in_the_order_of_work, receipts_are_sealed_once,
            history_tells_the_life, closed_is_closed;
    }
}
