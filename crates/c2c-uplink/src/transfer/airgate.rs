//! The gate that every worker passes with each item, so that the airlock can be emptied.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;

/// Workers are inside with a [`Pass`]; closing tells them to leave and waits until all have.
#[derive(Debug)]
pub(crate) struct Airgate {
    inside: Arc<RwLock<()>>,
    leave: Mutex<CancellationToken>,
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

    /// Tells everybody inside to leave and waits until they have. The gate stays closed while the answer lives.
    pub(crate) async fn close(self: &Arc<Self>) -> Closed {
        // Opens again also if whoever closes it is dropped while they wait.
        let mut closed = Closed {
            gate: self.clone(),
            inside: None,
        };
        self.leave().cancel();
        closed.inside = Some(self.inside.clone().write_owned().await);
        closed
    }

    fn leave(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.leave.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate is closed, and nobody is inside.
#[derive(Debug)]
pub(crate) struct Closed {
    gate: Arc<Airgate>,
    inside: Option<OwnedRwLockWriteGuard<()>>,
}

impl Drop for Closed {
    fn drop(&mut self) {
        *self.gate.leave() = self.gate.stop.child_token();
        self.inside.take();
    }
}
