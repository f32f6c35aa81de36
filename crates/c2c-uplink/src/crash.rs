//! Named crash points: every durable boundary of the way of the data.
//!
//! Built only with the feature `crash-points`; otherwise each point is nothing at all. With it, the environment variable
//! `C2C_CRASH=NAME[:N]` makes the process kill itself with SIGKILL when it passes the point NAME for the Nth time.

/// Every point, in the order of the way of the data.
pub const POINTS: [&str; 24] = [
    "add.before",
    "add.after",
    "register.claimed",
    "register.sending",
    "register.answered",
    "register.stored",
    "chunk.claimed",
    "chunk.sending",
    "chunk.answered",
    "chunk.stored",
    "setback.judged",
    "setback.stored",
    "delivered",
    "sealed",
    "pair.answered",
    "pair.stored",
    "refresh.begin",
    "refresh.begun",
    "refresh.answered",
    "refresh.stored",
    "lost.stored",
    "airlock.closing",
    "airlock.stored",
    "shutdown",
];

/// The process dies here, if it was asked to.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "crash-points")]
    imp::point(name);
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}

#[cfg(feature = "crash-points")]
mod imp {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Wanted {
        name: String,
        left: AtomicU32,
    }

    pub(super) fn point(name: &'static str) {
        debug_assert!(super::POINTS.contains(&name), "{name} is not in the census");
        static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
        let wanted = WANTED.get_or_init(|| {
            let text = std::env::var("C2C_CRASH").ok()?;
            let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Wanted {
                name: name.to_owned(),
                left: AtomicU32::new(count.parse().ok()?),
            })
        });
        let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.name == name) else {
            return;
        };
        if wanted.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            // SIGKILL is on its way; nothing may happen after this point.
            loop {
                std::thread::park();
            }
        }
    }
}
