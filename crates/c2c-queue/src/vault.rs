//! Sealing of the secrets that the queue keeps.
//!
//! 1. Nothing secret is stored in the clear: tokens and upload URLs are sealed with XChaCha20-Poly1305 under a
//!    key that lives outside the database.
//! 2. Every sealed value is bound to its kind and to its row: moved to another row it does not open.
//! 3. The key never prints, and is wiped from memory when the last vault goes away.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use zeroize::{Zeroize, Zeroizing};

use crate::error::QueueError;
use crate::host;

pub(crate) const KEY_LENGTH: usize = 32;
const NONCE_LENGTH: usize = 24;

/// Seals and opens the secrets of a queue. Clones share one key.
#[derive(Clone)]
pub struct Vault {
    key: Arc<SecretBox<[u8; KEY_LENGTH]>>,
}

impl Vault {
    /// A vault with a key from elsewhere: a key store of the system, a hardware module.
    pub fn from_key(key: SecretBox<[u8; KEY_LENGTH]>) -> Vault {
        Vault { key: Arc::new(key) }
    }

    /// A vault with the key in the file at `path`: 32 bytes, for its owner alone. A file that does not exist is
    /// made with a random key, whole and durable or not at all.
    ///
    /// # Errors
    ///
    /// [`QueueError::Io`] if the file cannot be made or read, if it has another length, or if others than its
    /// owner may read it: such a key may be known already, so that is for a person to judge and not repaired
    /// silently (`chmod 600` is the remedy).
    pub fn key_file(path: &Path) -> Result<Vault, QueueError> {
        match read_key(path) {
            Err(QueueError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make_key(path)?;
                // Another process may have made it first; what is in the file counts.
                read_key(path)
            }
            other => other,
        }
    }

    /// The key itself, to keep it in another place.
    pub(crate) fn key(&self) -> &[u8; KEY_LENGTH] {
        self.key.expose_secret()
    }

    /// Seals `secret` for the row `row` of the kind `kind`.
    pub(crate) fn seal(
        &self,
        kind: &'static str,
        row: &str,
        secret: &str,
    ) -> Result<Vec<u8>, QueueError> {
        let nonce = XNonce::try_generate()
            .map_err(|_| QueueError::Defect("the system gives no random numbers".to_owned()))?;
        let aad = associated(kind, row);
        let sealed = self
            .cipher()
            .encrypt(
                &nonce,
                Payload {
                    msg: secret.as_bytes(),
                    aad: aad.as_bytes(),
                },
            )
            .map_err(|_| QueueError::Defect(format!("{kind} is too long to be sealed")))?;
        let mut whole = Vec::with_capacity(NONCE_LENGTH + sealed.len());
        whole.extend_from_slice(&nonce);
        whole.extend_from_slice(&sealed);
        Ok(whole)
    }

    /// Opens what was sealed for this very kind and row.
    pub(crate) fn open(
        &self,
        kind: &'static str,
        row: &str,
        sealed: &[u8],
    ) -> Result<SecretString, QueueError> {
        let lost = || QueueError::Sealed { what: kind };
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LENGTH).ok_or_else(lost)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| lost())?;
        let aad = associated(kind, row);
        let open = self
            .cipher()
            .decrypt(
                &nonce,
                Payload {
                    msg: sealed,
                    aad: aad.as_bytes(),
                },
            )
            .map_err(|_| lost())?;
        match String::from_utf8(open) {
            Ok(secret) => Ok(SecretString::from(secret)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(lost())
            }
        }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.key.expose_secret()))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(..)")
    }
}

fn associated(kind: &str, row: &str) -> String {
    format!("c2c-queue/1/{kind}/{row}")
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError {
    move |source| QueueError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A vault with the key in `bytes`; `None` if they are not a key.
pub(crate) fn vault_of(bytes: &[u8]) -> Option<Vault> {
    if bytes.len() != KEY_LENGTH {
        return None;
    }
    let key = SecretBox::init_with_mut(|key: &mut [u8; KEY_LENGTH]| key.copy_from_slice(bytes));
    Some(Vault::from_key(key))
}

/// A key that nobody has.
pub(crate) fn new_key() -> Result<Zeroizing<[u8; KEY_LENGTH]>, QueueError> {
    let key = <[u8; KEY_LENGTH]>::try_generate()
        .map_err(|_| QueueError::Defect("the system gives no random numbers".to_owned()))?;
    Ok(Zeroizing::new(key))
}

/// Makes a file for its owner alone, whole and durable or not at all. A file that is there already stays as it is.
pub(crate) fn make_private_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let write = || {
        let mut file = host::private().write(true).create_new(true).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        // A link, not a rename: it never replaces what another process made meanwhile.
        match std::fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Some card file systems have no links. A rename is as atomic; the race is that of two first starts.
            Err(_) if !path.exists() => std::fs::rename(&draft, path),
            other => other,
        }?;
        host::sync_dir(host::parent(path))
    };
    let written = write();
    if let Err(error) = std::fs::remove_file(&draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %draft.display(), %error, "a draft of a file stays behind");
    }
    written
}

fn read_key(path: &Path) -> Result<Vault, QueueError> {
    let file = std::fs::File::open(path).map_err(failed("read the key file", path))?;
    if host::open_to_others(&file).map_err(failed("read the key file", path))? {
        let words =
            "others than its owner may read it; make sure that nobody did, then `chmod 600` it";
        return Err(failed("trust the key file", path)(io::Error::new(
            io::ErrorKind::PermissionDenied,
            words,
        )));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LENGTH + 1));
    file.take(KEY_LENGTH as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read the key file", path))?;
    vault_of(&bytes).ok_or_else(|| {
        let words = "it is not a key of 32 bytes; restore it, or move it away and pair again";
        failed("use the key file", path)(io::Error::new(io::ErrorKind::InvalidData, words))
    })
}

fn make_key(path: &Path) -> Result<(), QueueError> {
    host::create_private_dir(host::parent(path))
        .map_err(failed("make the directory of the key file", path))?;
    make_private_file(path, &new_key()?[..]).map_err(failed("make the key file", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(byte: u8) -> Vault {
        Vault::from_key(SecretBox::new(Box::new([byte; KEY_LENGTH])))
    }

    #[test]
    fn opens_only_in_the_same_place_with_the_same_key() {
        let sealed = vault(1).seal("url", "7/3", "https://secret").unwrap();
        assert_eq!(
            vault(1)
                .open("url", "7/3", &sealed)
                .unwrap()
                .expose_secret(),
            "https://secret"
        );
        assert!(matches!(
            vault(1).open("url", "7/4", &sealed),
            Err(QueueError::Sealed { what: "url" })
        ));
        assert!(vault(1).open("token", "7/3", &sealed).is_err());
        assert!(vault(2).open("url", "7/3", &sealed).is_err());
        for cut in 0..sealed.len() {
            assert!(vault(1).open("url", "7/3", &sealed[..cut]).is_err());
        }
        let again = vault(1).seal("url", "7/3", "https://secret").unwrap();
        assert_ne!(sealed, again, "the nonce is another one each time");
        assert_eq!(format!("{:?}", vault(1)), "Vault(..)");
    }

    #[test]
    fn key_file_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("queue.key");
        let sealed = Vault::key_file(&path)
            .unwrap()
            .seal("k", "r", "word")
            .unwrap();
        assert_eq!(
            Vault::key_file(&path)
                .unwrap()
                .open("k", "r", &sealed)
                .unwrap()
                .expose_secret(),
            "word"
        );
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no draft stays behind");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 32);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            let error = Vault::key_file(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::fs::write(&path, b"short").unwrap();
        assert!(
            Vault::key_file(&path)
                .unwrap_err()
                .to_string()
                .contains("32 bytes")
        );
    }

    #[test]
    fn many_first_starts_agree_on_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.key");
        let sealed: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        Vault::key_file(&path)
                            .unwrap()
                            .seal("k", "r", "word")
                            .unwrap()
                    })
                })
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        let vault = Vault::key_file(&path).unwrap();
        assert!(
            sealed
                .iter()
                .all(|sealed| vault.open("k", "r", sealed).is_ok())
        );
    }
}
