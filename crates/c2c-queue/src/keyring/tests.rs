//! The rules, against `keyring-core`'s own store for tests and against keyrings that fail.

use super::*;
#[cfg(feature = "keyring")]
use std::sync::Arc;

#[test]
fn an_existing_key_outweighs_every_wish() {
    let name = || Some("5b0f3e0c-7a55-4f0e-8a9b-0d8a4f7f1c11".to_owned());
    let kept = Plan::Keyring(name().unwrap());
    let moved = Plan::Move(name().unwrap());
    for store in KeyStore::ALL {
        // A key file is used, whatever else there is.
        for marker in [None, name()] {
            for database in [false, true] {
                assert_eq!(plan(store, true, marker.clone(), database), Plan::File);
            }
        }
        // A key in the keyring is never given up for a new one.
        for database in [false, true] {
            let expected = match store {
                KeyStore::File => &moved,
                _ => &kept,
            };
            assert_eq!(&plan(store, false, name(), database), expected, "{store}");
        }
        // A queue whose key file is lost.
        assert_eq!(plan(store, false, None, true), Plan::File);
    }
    let new = |store| plan(store, false, None, false);
    assert_eq!(new(KeyStore::File), Plan::File);
    assert_eq!(new(KeyStore::Auto), Plan::New { or_file: true });
    assert_eq!(new(KeyStore::Keyring), Plan::New { or_file: false });
}

#[test]
fn names_of_the_places_are_read_as_they_are_written() {
    for store in KeyStore::ALL {
        assert_eq!(store.to_string().parse(), Ok(store));
    }
    assert!("Keychain".parse::<KeyStore>().is_err());
}

#[test]
fn a_silent_keyring_is_not_waited_for() {
    let (hold, held) = mpsc::channel::<()>();
    let answer = ask(Duration::from_millis(20), move || {
        let _ = held.recv();
        Ok(())
    });
    assert!(matches!(answer, Err(KeyringError::Silent(_))));
    drop(hold);
    let broken = ask::<()>(PATIENCE, || panic!("foreign code"));
    assert!(matches!(broken, Err(KeyringError::Failed(_))));
}

/// A keyring that says no.
struct Broken(fn() -> KeyringError);

impl Keyring for Broken {
    fn read(&self, _: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyringError> {
        Err(self.0())
    }

    fn write(&self, _: &str, _: &[u8]) -> Result<(), KeyringError> {
        Err(self.0())
    }

    fn remove(&self, _: &str) -> Result<(), KeyringError> {
        Err(self.0())
    }
}

fn broken(why: fn() -> KeyringError) -> impl Fn() -> Result<Box<dyn Keyring>, KeyringError> {
    move || Ok(Box::new(Broken(why)))
}

fn none() -> Result<Box<dyn Keyring>, KeyringError> {
    Err(KeyringError::Absent("no bus"))
}

#[test]
fn a_new_queue_takes_the_file_where_the_keyring_does_not_serve() {
    let locked = broken(|| KeyringError::Locked);
    let silent = broken(|| KeyringError::Silent(PATIENCE));
    let finds: [&Find; 3] = [&none, &locked, &silent];
    for find in finds {
        let dir = tempfile::tempdir().unwrap();
        let error = open(KeyStore::Keyring, dir.path(), find).unwrap_err();
        assert!(error.to_string().contains("--key-store file"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let sealed = open(KeyStore::Auto, dir.path(), find)
            .unwrap()
            .seal("k", "r", "word")
            .unwrap();
        assert!(dir.path().join("key").exists() && !dir.path().join("key.keyring").exists());
        let again = Vault::key_file(&dir.path().join("key")).unwrap();
        assert!(again.open("k", "r", &sealed).is_ok());
    }
}

#[cfg(feature = "keyring")]
mod with_a_keyring {
    use super::*;
    use keyring_core::api::CredentialStoreApi;
    use keyring_core::mock;

    fn keyring(
        store: &Arc<mock::Store>,
    ) -> impl Fn() -> Result<Box<dyn Keyring>, KeyringError> + use<> {
        let store = store.clone();
        move || system::native::open(Ok(store.clone()))
    }

    fn sealed(vault: &Vault) -> Vec<u8> {
        vault.seal("k", "r", "word").unwrap()
    }

    fn opens(vault: &Vault, sealed: &[u8]) -> bool {
        vault.open("k", "r", sealed).is_ok()
    }

    fn name(dir: &Path) -> String {
        read_marker(&dir.join("key.keyring")).unwrap().unwrap()
    }

    #[test]
    fn the_key_of_a_new_queue_goes_into_the_keyring_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        let word = sealed(&open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap());
        assert!(!dir.path().join("key").exists());
        let marker = dir.path().join("key.keyring");
        assert_eq!(std::fs::metadata(&marker).unwrap().len(), 76);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&marker).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::write(dir.path().join("queue.db"), b"").unwrap();
        for store_wanted in [KeyStore::Auto, KeyStore::Keyring] {
            let vault = open(store_wanted, dir.path(), &keyring(&store)).unwrap();
            assert!(opens(&vault, &word));
        }
    }

    #[test]
    fn a_keyring_that_is_away_later_costs_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        let word = sealed(&open(KeyStore::Keyring, dir.path(), &keyring(&store)).unwrap());
        std::fs::write(dir.path().join("queue.db"), b"").unwrap();

        let locked = broken(|| KeyringError::Locked);
        let empty = keyring(&mock::Store::new().unwrap());
        let finds: [(&Find, &str); 3] = [
            (&none, "there is no keyring here (no bus)"),
            (&locked, "the keyring is locked"),
            (&empty, "does not have it any more"),
        ];
        for wanted in KeyStore::ALL {
            for (find, words) in finds {
                let error = open(wanted, dir.path(), find).unwrap_err().to_string();
                assert!(error.contains(words), "{error}");
                assert!(
                    error.contains("pair again") && error.contains("key.keyring"),
                    "{error}"
                );
                assert!(!dir.path().join("key").exists(), "a new key: {wanted}");
            }
        }
        let back = open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap();
        assert!(opens(&back, &word));
    }

    #[test]
    fn something_else_under_the_name_is_no_key_and_no_secret_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap();
        let entry = store.build("c2c-uplink", &name(dir.path()), None).unwrap();
        entry.set_secret(b"of another kind").unwrap();
        let error = open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap_err();
        assert!(error.to_string().contains("is not a key"), "{error}");
        assert!(!format!("{error:?}").contains("another kind"));
    }

    #[test]
    fn a_file_asked_for_takes_the_key_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        let word = sealed(&open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap());
        std::fs::write(dir.path().join("queue.db"), b"").unwrap();
        let entry = store.build("c2c-uplink", &name(dir.path()), None).unwrap();

        let moved = open(KeyStore::File, dir.path(), &keyring(&store)).unwrap();
        assert!(opens(&moved, &word));
        assert!(!dir.path().join("key.keyring").exists());
        assert!(matches!(
            entry.get_secret(),
            Err(keyring_core::Error::NoEntry)
        ));
        // From now on nobody needs the keyring.
        for wanted in KeyStore::ALL {
            assert!(opens(&open(wanted, dir.path(), &none).unwrap(), &word));
        }
    }

    /// The power went between the key and the database, and then the keyring lost the entry: nothing was sealed with it.
    #[test]
    fn a_first_start_that_was_cut_off_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap();
        let before = name(dir.path());
        let other = mock::Store::new().unwrap();
        let word = sealed(&open(KeyStore::Auto, dir.path(), &keyring(&other)).unwrap());
        assert_ne!(name(dir.path()), before);
        let again = open(KeyStore::Auto, dir.path(), &keyring(&other)).unwrap();
        assert!(opens(&again, &word));
    }

    #[test]
    fn many_first_starts_agree_on_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        let words: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| {
                    let (find, dir) = (keyring(&store), dir.path());
                    scope.spawn(move || sealed(&open(KeyStore::Auto, dir, &find).unwrap()))
                })
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        let vault = open(KeyStore::Auto, dir.path(), &keyring(&store)).unwrap();
        assert!(words.iter().all(|word| opens(&vault, word)));
    }

    #[test]
    fn a_damaged_marker_is_no_reason_for_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = mock::Store::new().unwrap();
        std::fs::write(dir.path().join("key.keyring"), b"").unwrap();
        for wanted in KeyStore::ALL {
            let error = open(wanted, dir.path(), &keyring(&store)).unwrap_err();
            assert!(
                error.to_string().contains("not the name of a key"),
                "{error}"
            );
        }
    }
}
