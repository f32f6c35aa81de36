//! The gate that every worker passes with each item, so that the airlock can be emptied.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;

/// Workers are inside with a [`Pass`]; closing tells them to leave and waits until all have.
#[derive(Debug)]
pub(crate) struct Airgate {
    inside: Arc<RwLock<()>>,
    leave: Mutex<CancellationToken>,
    closed: Mutex<Option<OwnedRwLockWriteGuard<()>>>,
    stop: CancellationToken,
}

/// The right to be at work. Nothing of another project can begin while it exists.
#[derive(Debug)]
pub(crate) struct Pass {
    leave: CancellationToken,
    _inside: OwnedRwLockReadGuard<()>,
}

impl Pass {
    /// Ends when the worker must drop what it does.
    pub(crate) async fn cancelled(&self) {
        self.leave.cancelled().await;
    }
}

impl Airgate {
    pub(crate) fn new(stop: CancellationToken) -> Airgate {
        Airgate {
            inside: Arc::default(),
            leave: Mutex::new(stop.child_token()),
            closed: Mutex::default(),
            stop,
        }
    }

    /// Waits while the gate is closed. `None` if it was closed again at once, or at the shutdown.
    pub(crate) async fn enter(&self) -> Option<Pass> {
        let inside = tokio::select! {
            _ = self.stop.cancelled() => return None,
            inside = self.inside.clone().read_owned() => inside,
        };
        let leave = self
            .leave
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        (!leave.is_cancelled()).then_some(Pass {
            leave,
            _inside: inside,
        })
    }

    /// Tells everybody inside to leave, waits until they have, and keeps the gate closed.
    pub(crate) async fn close(&self) {
        self.leave
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
        let guard = self.inside.clone().write_owned().await;
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    /// Lets workers in again.
    pub(crate) fn open(&self) {
        *self.leave.lock().unwrap_or_else(PoisonError::into_inner) = self.stop.child_token();
        self.closed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}
