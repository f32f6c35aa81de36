//! The congestion control of a namespace.
//!
//! Linux lets a namespace have as its default only what every user of the machine may choose. Invariant: that list is as it was
//! when [`set`] is over; while it is not, other processes that would change it this way wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};

use rustix::fs::{FlockOperation, flock};

use super::LinkError;
use super::netns::within;

/// What every user may choose. Only the machine's own network has it, for all others.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

const DEFAULT: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Makes `name` what connections in the namespace begin with.
///
/// # Errors
///
/// When the kernel does not have it, or this process may not allow it.
pub(crate) fn set(namespace: &str, name: &str) -> Result<(), LinkError> {
    let failed = |source| LinkError::Congestion {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let allowed = Allowed::with(name)
        .map_err(LinkError::Setting)
        .map_err(failed)?;
    let done = within(namespace, || fs::write(DEFAULT, name)).map_err(failed);
    drop(allowed);
    done
}

/// The list with one more on it. Dropped, it is as it was.
struct Allowed {
    /// Keeps the lock.
    _file: File,
    before: Option<String>,
}

impl Allowed {
    fn with(name: &str) -> io::Result<Allowed> {
        // Whoever may only read it may still find on it what is wanted.
        let mut file = OpenOptions::new().read(true).write(true).open(ALLOWED);
        if file.is_err() {
            file = File::open(ALLOWED);
        }
        let mut file = file?;
        flock(&file, FlockOperation::LockExclusive)?;
        let mut list = String::new();
        file.read_to_string(&mut list)?;
        if list.split_whitespace().any(|each| each == name) {
            return Ok(Allowed {
                _file: file,
                before: None,
            });
        }
        fs::write(ALLOWED, format!("{} {name}", list.trim()))?;
        Ok(Allowed {
            _file: file,
            before: Some(list),
        })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // What was written a moment ago can be written now.
            let _ = fs::write(ALLOWED, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Network, Profile, available};

    #[test]
    fn what_the_machine_allows_is_as_it_was() {
        if let Err(why) = available() {
            println!("skipped: {why}");
            return;
        }
        let before = fs::read_to_string(ALLOWED).unwrap();
        let known =
            fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        for name in known.split_whitespace() {
            let network = Network::up(&Profile::ALL[0], name).unwrap();
            for end in [network.near(), network.far()] {
                let set = within(end, || fs::read_to_string(DEFAULT)).unwrap();
                assert_eq!(set.trim(), name);
            }
        }
        assert_eq!(fs::read_to_string(ALLOWED).unwrap(), before);

        let refused = Network::up(&Profile::ALL[0], "none-such").unwrap_err();
        assert!(refused.to_string().contains("none-such"), "{refused}");
        assert_eq!(fs::read_to_string(ALLOWED).unwrap(), before);
    }
}
