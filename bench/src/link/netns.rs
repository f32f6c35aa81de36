//! Two network namespaces, a third if one is wanted, and their end.
//!
//! Invariant: whatever ends this process, the namespaces end, and with them their devices and the processes in them. A guard,
//! a process of its own, waits for the end of a pipe that only this process holds, and then clears up.

use std::fs::File;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::LinkError;

/// Waits for the end of its input. Terminals send their signals to all that run in them: not to this one.
const GUARD: &str = r#"
trap '' INT TERM HUP QUIT
read -r _
for name in "$@"; do
    pids=$(ip netns pids "$name" 2>/dev/null)
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null
    ip netns delete "$name" 2>/dev/null
done
exit 0
"#;

/// The namespaces, which end when this is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// That of the client.
    pub(crate) near: String,
    /// That of the server.
    pub(crate) far: String,
    /// That of a client behind a router, once it is made.
    pub(crate) home: String,
    guard: Child,
}

impl Namespaces {
    /// Makes both, with names that no other has.
    ///
    /// # Errors
    ///
    /// When iproute2 is missing or refuses.
    pub(crate) fn make() -> Result<Namespaces, LinkError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let near = format!("c2c-near-{unique}");
        let far = format!("c2c-far-{unique}");
        let home = format!("c2c-home-{unique}");
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &near, &far, &home])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| LinkError::Command {
                command: "sh".to_owned(),
                said: source.to_string(),
            })?;
        let namespaces = Namespaces {
            near,
            far,
            home,
            guard,
        };
        add(&namespaces.near)?;
        add(&namespaces.far)?;
        Ok(namespaces)
    }
}

/// Makes one of them.
///
/// # Errors
///
/// When iproute2 refuses.
pub(crate) fn add(name: &str) -> Result<(), LinkError> {
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It ends by itself; there is nothing to do about one that is gone already.
        let _ = self.guard.wait();
    }
}

/// Runs `work` in a thread of its own in a namespace, so that files of `/proc/sys/net`, sockets and devices are those of it.
///
/// # Errors
///
/// When there is no such namespace, or `work` fails or panics.
pub(crate) fn within<T: Send>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, LinkError> {
    let enter = || {
        let namespace = File::open(format!("/run/netns/{name}"))?;
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )?;
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        .map_err(|source| LinkError::Namespace {
            name: name.to_owned(),
            source,
        })
}

/// Runs `ip` with these arguments.
///
/// # Errors
///
/// When iproute2 is missing or refuses.
pub(crate) fn ip(args: &[&str]) -> Result<(), LinkError> {
    let failed = |said: String| LinkError::Command {
        command: format!("ip {}", args.join(" ")),
        said,
    };
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| failed(source.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}
