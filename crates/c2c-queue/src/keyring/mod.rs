//! Where the key lives that the secrets of a queue are sealed under: the keyring of the system, or a file.
//!
//! 1. A queue that has a key keeps it: a key file outweighs everything, and a key in the keyring is never replaced by a new
//!    one because the keyring is locked or away.
//! 2. The keyring is asked for a bounded time, and never so that it would ask a person: a unit without a screen starts.
//! 3. The key is in the keyring, and read back from it, before anything says that it is there.
//!
//! That a key is in the keyring, and under which name, stands in the file `key.keyring`; it holds no secret.

mod system;

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
#[cfg(any(feature = "keyring", test))]
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::QueueError;
use crate::host;
use crate::vault::{Vault, failed, make_private_file, new_key, vault_of};

/// How long the keyring may take for one answer.
#[cfg(any(feature = "keyring", test))]
const PATIENCE: Duration = Duration::from_secs(5);

/// The first line of the file that says where the key is.
const MARKER_FORMAT: &str = "c2c-queue key in the keyring, format 1";

/// Where the key of a new queue is to be kept. An existing queue keeps the key that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyStore {
    /// The keyring of the system if one answers at once and is unlocked, a key file otherwise.
    Auto,
    /// The keyring of the system, or nothing.
    Keyring,
    /// A file for its owner alone. A key that is in the keyring is moved there.
    #[default]
    File,
}

impl KeyStore {
    /// Every value.
    pub const ALL: [KeyStore; 3] = [KeyStore::Auto, KeyStore::Keyring, KeyStore::File];

    /// Its name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyStore::Auto => "auto",
            KeyStore::Keyring => "keyring",
            KeyStore::File => "file",
        }
    }
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyStore {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyStore, String> {
        let found = KeyStore::ALL
            .into_iter()
            .find(|store| store.as_str() == text);
        found.ok_or_else(|| "the places for the key are auto, keyring and file".to_owned())
    }
}

/// Why the keyring of the system does not keep or give the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// There is none to talk to.
    #[error("there is no keyring here ({0})")]
    Absent(&'static str),
    /// A person must unlock it first.
    #[error("the keyring is locked")]
    Locked,
    /// It does not answer.
    #[error("the keyring did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It answers, but does not have the key.
    #[error("the keyring does not have it any more")]
    Gone,
    /// What it has under the name of the key is none.
    #[error("what the keyring has under its name is not a key")]
    NotAKey,
    /// It failed.
    #[error("the keyring failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A keyring: small secrets by name. Every call may block.
trait Keyring: Send + Sync {
    /// The secret, or `None` if there is none of that name.
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyringError>;
    /// Keeps a secret durably.
    fn write(&self, name: &str, secret: &[u8]) -> Result<(), KeyringError>;
    /// Forgets a secret; one that is not there is no error.
    fn remove(&self, name: &str) -> Result<(), KeyringError>;
}

impl Vault {
    /// The vault of the queue in `dir`: the key that it has, or a new one where `store` says. Files: `key` (the key itself, 32
    /// bytes) or `key.keyring` (its name in the keyring), beside `queue.db`.
    ///
    /// May block for some seconds; needs the feature `keyring` to know of keyrings at all.
    ///
    /// # Errors
    ///
    /// [`QueueError::KeyAway`] if the key of an existing queue is in the keyring and the keyring does not give it;
    /// [`QueueError::KeyNotKept`] if [`KeyStore::Keyring`] was asked for and there is none to keep a new key; those of
    /// [`Vault::key_file`].
    pub fn stored(store: KeyStore, dir: &Path) -> Result<Vault, QueueError> {
        open(store, dir, &system::find)
    }
}

/// What to do about the key, from what is there.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Use the key file, and make one if there is none.
    File,
    /// The keyring has the key under this name.
    Keyring(String),
    /// The keyring has the key under this name, and a file is wanted.
    Move(String),
    /// Make a key for the keyring; if it cannot keep it, and that is allowed, for a file.
    New { or_file: bool },
}

fn plan(store: KeyStore, key_file: bool, in_keyring: Option<String>, database: bool) -> Plan {
    match (key_file, in_keyring, store) {
        (true, _, _) => Plan::File,
        (false, Some(name), KeyStore::File) => Plan::Move(name),
        (false, Some(name), _) => Plan::Keyring(name),
        // The key file of this queue was lost. Pairing again brings it back; where the key is does not change.
        (false, None, _) if database => Plan::File,
        (false, None, KeyStore::File) => Plan::File,
        (false, None, KeyStore::Auto) => Plan::New { or_file: true },
        (false, None, KeyStore::Keyring) => Plan::New { or_file: false },
    }
}

type Find = dyn Fn() -> Result<Box<dyn Keyring>, KeyringError>;

fn open(store: KeyStore, dir: &Path, find: &Find) -> Result<Vault, QueueError> {
    let (file, marker, database) = (
        dir.join("key"),
        dir.join("key.keyring"),
        dir.join("queue.db"),
    );
    let there = |path: &Path| path.try_exists().map_err(failed("look for", path));
    let has_file = there(&file)?;
    let has_database = there(&database)?;
    let name = read_marker(&marker)?;
    let away = |source| QueueError::KeyAway {
        marker: marker.clone(),
        source,
    };
    match plan(store, has_file, name, has_database) {
        Plan::File => {
            if store == KeyStore::Keyring {
                tracing::warn!(file = %file.display(), "this queue has a key file; it goes on being used");
            }
            Vault::key_file(&file)
        }
        Plan::Keyring(name) => match find().and_then(|keyring| read_key(&*keyring, &name)) {
            Ok(vault) => Ok(vault),
            // Nothing was ever sealed with it.
            Err(KeyringError::Gone) if !has_database => {
                remove(&marker)?;
                open(store, dir, find)
            }
            Err(error) => Err(away(error)),
        },
        Plan::Move(name) => {
            let keyring = find().map_err(away)?;
            let vault = read_key(&*keyring, &name).map_err(away)?;
            make_private_file(&file, vault.key()).map_err(failed("make the key file", &file))?;
            // From here on the file counts, whatever becomes of the rest.
            remove(&marker)?;
            if let Err(error) = keyring.remove(&name) {
                tracing::warn!("the key was moved to a file, a copy stays in the keyring: {error}");
            }
            Vault::key_file(&file)
        }
        Plan::New { or_file } => {
            host::create_private_dir(dir).map_err(failed("make the state directory", dir))?;
            let kept = match find() {
                Ok(keyring) => make_key(&*keyring, &marker)?,
                Err(error) => Err(error),
            };
            match kept {
                Ok(vault) => Ok(vault),
                Err(error) if or_file => {
                    tracing::info!("the key is kept in a file: {error}");
                    Vault::key_file(&file)
                }
                Err(source) => Err(QueueError::KeyNotKept { source }),
            }
        }
    }
}

fn read_key(keyring: &dyn Keyring, name: &str) -> Result<Vault, KeyringError> {
    let bytes = keyring.read(name)?.ok_or(KeyringError::Gone)?;
    vault_of(&bytes).ok_or(KeyringError::NotAKey)
}

/// Makes a key in the keyring and then the marker. The inner error is the keyring's.
fn make_key(
    keyring: &dyn Keyring,
    marker: &Path,
) -> Result<Result<Vault, KeyringError>, QueueError> {
    let name = uuid::Uuid::new_v4().to_string();
    let key = new_key()?;
    let kept = keyring
        .write(&name, &key[..])
        .and_then(|()| read_key(keyring, &name));
    let vault = match kept {
        Ok(vault) if vault.key() == &*key => vault,
        Ok(_) => return Ok(Err(KeyringError::NotAKey)),
        Err(error) => return Ok(Err(error)),
    };
    make_private_file(marker, format!("{MARKER_FORMAT}\n{name}\n").as_bytes())
        .map_err(failed("make", marker))?;
    match read_marker(marker)? {
        Some(first) if first != name => {
            // Another process was first; its key is that of the queue.
            if let Err(error) = keyring.remove(&name) {
                tracing::warn!("a key that nobody uses stays in the keyring: {error}");
            }
            Ok(read_key(keyring, &first))
        }
        _ => Ok(Ok(vault)),
    }
}

fn read_marker(marker: &Path) -> Result<Option<String>, QueueError> {
    let text = match std::fs::read_to_string(marker) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", marker)(error)),
    };
    match text.lines().collect::<Vec<_>>()[..] {
        [MARKER_FORMAT, name] if uuid::Uuid::parse_str(name).is_ok() => Ok(Some(name.to_owned())),
        _ => {
            let words = "it is not the name of a key; restore it, or remove it and pair again";
            Err(failed("use", marker)(io::Error::new(
                io::ErrorKind::InvalidData,
                words,
            )))
        }
    }
}

fn remove(path: &Path) -> Result<(), QueueError> {
    std::fs::remove_file(path)
        .and_then(|()| host::sync_dir(host::parent(path)))
        .map_err(failed("remove", path))
}

/// Asks on a thread of its own: the answer is not waited for longer than `patience`, and nothing that the keyring does may
/// meet the runtime of the caller.
#[cfg(any(feature = "keyring", test))]
fn ask<T: Send + 'static>(
    patience: Duration,
    question: impl FnOnce() -> Result<T, KeyringError> + Send + 'static,
) -> Result<T, KeyringError> {
    let (answer, answered) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("c2c-keyring".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _ = answer.send(question());
        })
        .map_err(|error| KeyringError::Failed(Box::new(error)))?;
    match answered.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(KeyringError::Silent(patience)),
        // The thread panicked in foreign code.
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(KeyringError::Failed(
            "it broke down while it was asked".into(),
        )),
    }
}

#[cfg(test)]
mod tests;
