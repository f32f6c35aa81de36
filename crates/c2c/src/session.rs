//! From the command line to an open uplink, or to a queue that is only looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use c2c_queue::{Queue, SqliteQueue, SystemClock};
use c2c_uplink::{ClientSettings, OrganiseBy, Proxy, ResolveOverride, Uplink};
use secrecy::SecretString;

use crate::cli::{Global, Organise};
use crate::error::{Exit, Failure};

/// What the work needs besides the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: the service is not talked to.
    Queue,
    /// The service, and therefore the secret of the product.
    Service,
}

/// Opens the uplink that the options describe. Nothing is sent yet.
///
/// # Errors
/// Options that make no sense, a missing secret, or a queue that cannot be used.
pub(crate) async fn open(global: &Global, need: Need) -> Result<Uplink, Failure> {
    let state_dir = global
        .state_dir()
        .map_err(|words| Failure::new(Exit::Usage, words))?;
    let secret = match (client_secret(global)?, need) {
        (Some(secret), _) => secret,
        (None, Need::Queue) => SecretString::from(""),
        (None, Need::Service) => {
            return Err(Failure::new(
                Exit::Usage,
                "the client secret is missing; set C2C_CLIENT_SECRET, or give --client-secret-file",
            ));
        }
    };
    let mut overrides = Vec::new();
    for text in &global.resolve {
        let parsed: ResolveOverride = text.parse().map_err(|error| {
            Failure::because(
                Exit::Usage,
                format!("--resolve {text} is not HOST:PORT:ADDR"),
                error,
            )
        })?;
        overrides.push(parsed);
    }
    let mut builder = Uplink::builder()
        .state_dir(state_dir)
        .client(ClientSettings {
            id: global.client_id.clone(),
            secret,
        })
        .client_version(env!("CARGO_PKG_VERSION"))
        .api_url(&global.api_url)
        // The protocol refuses plain HTTP to anything but loopback all the same.
        .key_store(global.key_store)
        .allow_plain_loopback(global.api_url.starts_with("http://"))
        .resolve(overrides);
    builder = global.tuning.apply(builder);
    if let Some(file) = &global.ca_file {
        builder = builder.ca_file(file);
    }
    if let Some(proxy) = &global.proxy {
        // The URL may carry a password: the error says what is wrong with it without repeating it.
        let proxy = proxy
            .parse::<Proxy>()
            .map_err(|error| Failure::because(Exit::Usage, "--proxy cannot be used", error))?;
        builder = builder.proxy(proxy);
    }
    builder = builder
        .organise_by(match global.organise_by {
            Organise::CaptureDate => OrganiseBy::CaptureDate,
            Organise::UploadDate => OrganiseBy::UploadDate,
        })
        .volume_patience(Duration::from_secs(
            u64::from(global.volume_patience) * 3600,
        ));
    Ok(builder.open().await?)
}

/// The queue of the state directory to look at, whoever works on it. `None` if there is none yet.
///
/// # Errors
/// A queue that cannot be read.
pub(crate) async fn look(global: &Global) -> Result<(PathBuf, Option<Arc<dyn Queue>>), Failure> {
    let state_dir = global
        .state_dir()
        .map_err(|words| Failure::new(Exit::Usage, words))?;
    let path = state_dir.join("queue.db");
    if !exists(&path)? {
        return Ok((state_dir, None));
    }
    let opened = tokio::task::spawn_blocking(move || {
        SqliteQueue::open_read_only(path, Arc::new(SystemClock))
    });
    let opened = opened
        .await
        .map_err(|error| Failure::because(Exit::Failed, "a fault of this program", error))??;
    Ok((state_dir, Some(Arc::new(opened))))
}

fn exists(path: &Path) -> Result<bool, Failure> {
    path.try_exists().map_err(|error| {
        Failure::because(
            Exit::Queue,
            format!("cannot look at {}", path.display()),
            error,
        )
    })
}

fn client_secret(global: &Global) -> Result<Option<SecretString>, Failure> {
    if let Some(secret) = &global.client_secret {
        return Ok(Some(secret.clone()));
    }
    let Some(file) = &global.client_secret_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::because(
            Exit::Usage,
            format!("cannot read the client secret from {}", file.display()),
            error,
        )
    })?;
    let text = SecretString::from(text);
    match secrecy::ExposeSecret::expose_secret(&text).trim() {
        "" => Err(Failure::new(
            Exit::Usage,
            format!("there is no client secret in {}", file.display()),
        )),
        secret => Ok(Some(SecretString::from(secret))),
    }
}
