//! Starts the tasks, watches them, and starts again what dies.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::transfer::BufferPool;
use crate::{network, register, transfer, upkeep};

/// Time that tasks get to finish what they do not want to be interrupted in.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running tasks of one uplink.
#[derive(Debug)]
pub(crate) struct Supervisor {
    engine: Arc<Engine>,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Starts everything.
    pub(crate) fn start(engine: Arc<Engine>) -> Supervisor {
        let mut supervisor = Supervisor {
            engine: engine.clone(),
            tasks: JoinSet::new(),
        };
        let pool = Arc::<BufferPool>::default();
        supervisor.keep("transfer", move |engine| {
            transfer::work(engine, pool.clone())
        });
        supervisor.keep("pace", crate::pace::steer);
        if engine.settings.polite {
            supervisor.keep("manners", crate::pace::be_polite);
        }
        supervisor.keep("register", register::work);
        supervisor.keep("upkeep", upkeep::look_after);
        if engine.settings.receipt_sha256 {
            supervisor.keep("seal", upkeep::seal);
        }
        supervisor.keep("connection", upkeep::keep_connection);
        supervisor.keep("presence", crate::connection::presence::keep);
        supervisor.keep("network", network::watch);
        supervisor.keep("link", |engine| async move {
            engine.link.keep(&engine.stop, || engine.jitter()).await;
        });
        supervisor
    }

    /// Runs a task; if it panics, says so and starts it again after a second.
    fn keep<F, R>(&mut self, name: &'static str, run: F)
    where
        F: Fn(Arc<Engine>) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let engine = self.engine.clone();
        self.tasks.spawn(async move {
            while let Err(error) = tokio::spawn(run(engine.clone())).await {
                if engine.stop.is_cancelled() {
                    return;
                }
                tracing::error!(
                    task = name,
                    "a fault of this program, the task starts again: {error}"
                );
                engine.clock.sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// Ends everything: what is on the wire is given back to the queue.
    pub(crate) async fn stop(mut self) {
        self.engine.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!(
                "some tasks did not end in time; their work returns to the pool at the next start"
            );
        }
    }
}
