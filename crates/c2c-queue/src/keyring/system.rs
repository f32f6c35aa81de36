//! The keyring of this operating system.
//!
//! On Linux and the BSDs that is the Secret Service on the D-Bus of the session. It is asked by its own words and not through
//! `keyring-core`, whose store for it unlocks what is locked, which waits for a person at a screen.

use super::{Keyring, KeyringError};

/// The keyring, if there is one that can be asked.
pub(super) fn find() -> Result<Box<dyn Keyring>, KeyringError> {
    #[cfg(not(feature = "keyring"))]
    return Err(KeyringError::Absent(
        "this program was built without support for keyrings",
    ));
    #[cfg(all(feature = "keyring", unix, not(target_vendor = "apple")))]
    return secret_service::find();
    #[cfg(all(feature = "keyring", target_os = "macos"))]
    return native::open(apple_native_keyring_store::keychain::Store::new());
    #[cfg(all(feature = "keyring", windows))]
    return native::open(windows_native_keyring_store::Store::new());
    #[cfg(all(
        feature = "keyring",
        not(any(windows, target_os = "macos", all(unix, not(target_vendor = "apple"))))
    ))]
    return Err(KeyringError::Absent("none is known on this system"));
}

#[cfg(all(feature = "keyring", unix, not(target_vendor = "apple")))]
mod secret_service {
    use std::collections::HashMap;
    use std::future::Future;

    use ::secret_service::{EncryptionType, Error, SecretService};
    use zeroize::Zeroizing;

    use super::super::{Keyring, KeyringError, PATIENCE, ask};

    const LABEL: &str = "c2c-uplink: the key of a queue";

    /// The Secret Service of the session.
    struct Session;

    pub(super) fn find() -> Result<Box<dyn Keyring>, KeyringError> {
        // Without it the library would look in places of its own; a unit without a session has no keyring.
        if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_none_or(|address| address.is_empty()) {
            return Err(KeyringError::Absent("DBUS_SESSION_BUS_ADDRESS is not set"));
        }
        Ok(Box::new(Session))
    }

    impl Keyring for Session {
        fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyringError> {
            let name = name.to_owned();
            converse(async move {
                let service = SecretService::connect(EncryptionType::Dh).await?;
                let found = service.search_items(attributes(&name)).await?;
                match (found.unlocked.first(), found.locked.is_empty()) {
                    (Some(item), _) => Ok(Some(Zeroizing::new(item.get_secret().await?))),
                    (None, true) => Ok(None),
                    (None, false) => Err(Error::Locked),
                }
            })
        }

        fn write(&self, name: &str, secret: &[u8]) -> Result<(), KeyringError> {
            let (name, secret) = (name.to_owned(), Zeroizing::new(secret.to_vec()));
            converse(async move {
                let service = SecretService::connect(EncryptionType::Dh).await?;
                let collection = service.get_default_collection().await?;
                collection.ensure_unlocked().await?;
                let kind = "application/octet-stream";
                collection
                    .create_item(LABEL, attributes(&name), &secret, true, kind)
                    .await?;
                Ok(())
            })
        }

        fn remove(&self, name: &str) -> Result<(), KeyringError> {
            let name = name.to_owned();
            converse(async move {
                let service = SecretService::connect(EncryptionType::Dh).await?;
                let found = service.search_items(attributes(&name)).await?;
                if !found.locked.is_empty() {
                    return Err(Error::Locked);
                }
                for item in &found.unlocked {
                    item.delete().await?;
                }
                Ok(())
            })
        }
    }

    fn attributes(name: &str) -> HashMap<&str, &str> {
        HashMap::from([("application", "c2c-uplink"), ("queue", name)])
    }

    fn converse<T: Send + 'static>(
        talk: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, KeyringError> {
        ask(PATIENCE * 2, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| KeyringError::Failed(Box::new(error)))?;
            runtime.block_on(async {
                match tokio::time::timeout(PATIENCE, talk).await {
                    Ok(answer) => answer.map_err(judge),
                    Err(_) => Err(KeyringError::Silent(PATIENCE)),
                }
            })
        })
    }

    fn judge(error: Error) -> KeyringError {
        const NOBODY: &str = "no Secret Service answers on the D-Bus of the session";
        match error {
            Error::Locked | Error::Prompt => KeyringError::Locked,
            Error::NoResult => KeyringError::Absent("it has no default collection yet"),
            Error::Unavailable => KeyringError::Absent(NOBODY),
            // What the bus itself says; the type of its errors belongs to a crate below.
            unknown if unknown.to_string().contains("DBus.Error.ServiceUnknown") => {
                KeyringError::Absent(NOBODY)
            }
            other => KeyringError::Failed(Box::new(other)),
        }
    }
}

/// Systems whose keyring `keyring-core` knows how to ask without asking a person.
#[cfg(all(feature = "keyring", any(test, windows, target_os = "macos")))]
pub(super) mod native {
    use std::sync::Arc;

    use keyring_core::Error;
    use keyring_core::api::CredentialStoreApi;
    use zeroize::Zeroizing;

    use super::super::{Keyring, KeyringError, PATIENCE, ask};

    const SERVICE: &str = "c2c-uplink";

    type Store = Arc<dyn CredentialStoreApi + Send + Sync>;

    struct Native(Store);

    pub(in super::super) fn open<S: CredentialStoreApi + Send + Sync + 'static>(
        store: keyring_core::Result<Arc<S>>,
    ) -> Result<Box<dyn Keyring>, KeyringError> {
        Ok(Box::new(Native(store.map_err(judge)?)))
    }

    impl Native {
        fn entry<T: Send + 'static>(
            &self,
            name: &str,
            question: impl FnOnce(keyring_core::Entry) -> keyring_core::Result<T> + Send + 'static,
        ) -> Result<T, KeyringError> {
            let (store, name) = (self.0.clone(), name.to_owned());
            ask(PATIENCE, move || {
                store
                    .build(SERVICE, &name, None)
                    .and_then(question)
                    .map_err(judge)
            })
        }
    }

    impl Keyring for Native {
        fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyringError> {
            self.entry(name, |entry| match entry.get_secret() {
                Ok(secret) => Ok(Some(Zeroizing::new(secret))),
                Err(Error::NoEntry) => Ok(None),
                Err(error) => Err(error),
            })
        }

        fn write(&self, name: &str, secret: &[u8]) -> Result<(), KeyringError> {
            let secret = Zeroizing::new(secret.to_vec());
            self.entry(name, move |entry| entry.set_secret(&secret))
        }

        fn remove(&self, name: &str) -> Result<(), KeyringError> {
            self.entry(name, |entry| match entry.delete_credential() {
                Ok(()) | Err(Error::NoEntry) => Ok(()),
                Err(error) => Err(error),
            })
        }
    }

    fn judge(error: Error) -> KeyringError {
        match error {
            Error::NoStorageAccess(_) => KeyringError::Locked,
            // These carry what was stored, which is for no error text.
            Error::BadEncoding(_) | Error::BadDataFormat(..) => KeyringError::NotAKey,
            other => KeyringError::Failed(Box::new(other)),
        }
    }
}
