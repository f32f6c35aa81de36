//! TLS: which crypto, which roots, and how a failed handshake is named.
//!
//! Invariants: certificates and host names are always verified; HTTP/1.1 is the only protocol offered; one
//! configuration serves the API and the storage alike.

use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig as TlsConfig, RootCertStore};

use crate::config::{ConfigError, Trust};
use crate::error::{Stage, TransportError};

#[cfg(feature = "aws-lc-rs")]
fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("c2c-protocol needs one of the features `aws-lc-rs` and `ring`");

/// Installs the crypto of this build as the process default of rustls, unless there is one already.
///
/// [`crate::Client::new`] does not depend on it; it is for other rustls users in the same process.
pub fn install_crypto_provider() {
    // A second call, or another part of the process that was faster, changes nothing.
    let _ = provider().install_default();
}

pub(crate) fn tls_config(trust: &Trust) -> Result<Arc<TlsConfig>, ConfigError> {
    let provider = Arc::new(provider());
    let builder = TlsConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::Tls)?;
    let platform = |verifier: Result<rustls_platform_verifier::Verifier, rustls::Error>| {
        verifier.map(Arc::new).map_err(ConfigError::SystemRoots)
    };
    let builder = match trust {
        Trust::System => builder
            .dangerous()
            .with_custom_certificate_verifier(platform(rustls_platform_verifier::Verifier::new(
                provider,
            ))?),
        Trust::SystemAnd(extra) => builder
            .dangerous()
            .with_custom_certificate_verifier(platform(
                rustls_platform_verifier::Verifier::new_with_extra_roots(
                    extra.iter().cloned(),
                    provider,
                ),
            )?),
        Trust::Only(roots) => {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root.clone()).map_err(ConfigError::Root)?;
            }
            if store.is_empty() {
                return Err(ConfigError::NoRoots);
            }
            builder.with_root_certificates(store)
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Names a failed handshake: a certificate that cannot be trusted is another matter than a cut.
pub(crate) fn handshake_failed(error: io::Error) -> TransportError {
    let certificate = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|error| {
            matches!(
                error,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    | rustls::Error::UnsupportedNameType
                    | rustls::Error::InvalidCertRevocationList(_)
            )
        });
    TransportError::unsent(
        if certificate {
            Stage::TlsCertificate
        } else {
            Stage::Tls
        },
        error,
    )
}
