//! The certificate authority that every simulator makes for itself.
//!
//! Invariants: the authority's key exists in memory only and is gone when the start-up is over; its certificate
//! may vouch for the simulator's own names and nothing else, so a machine that trusts it risks little.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    SanType, date_time_ymd,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use crate::SimulatorError;

/// What the listeners need to speak TLS.
pub(crate) struct Certificates {
    pub(crate) ca_pem: String,
    pub(crate) api: TlsAcceptor,
    pub(crate) uploads: TlsAcceptor,
}

/// Makes an authority and one certificate for each host. The API is `localhost` and `extra_api_names`, the
/// uploads host is `127.0.0.1`: neither certificate is valid for the other host.
pub(crate) fn make(extra_api_names: &[String]) -> Result<Certificates, SimulatorError> {
    let authority = authority(extra_api_names)?;
    let mut api_names = vec![dns("localhost")?];
    for name in extra_api_names {
        api_names.push(dns(name)?);
    }
    let uploads_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    Ok(Certificates {
        ca_pem: authority.pem(),
        api: acceptor(&authority, "api", api_names)?,
        uploads: acceptor(&authority, "uploads", uploads_names)?,
    })
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(extra_api_names: &[String]) -> Result<Authority, SimulatorError> {
    let mut params = dated(CertificateParams::default());
    params.distinguished_name = named("C2C simulator (this run only)");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut permitted = vec![
        GeneralSubtree::DnsName("localhost".to_owned()),
        GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            32,
        )),
        GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            128,
        )),
    ];
    permitted.extend(extra_api_names.iter().cloned().map(GeneralSubtree::DnsName));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate().map_err(SimulatorError::certificate)?;
    CertifiedIssuer::self_signed(params, key).map_err(SimulatorError::certificate)
}

fn acceptor(
    authority: &Authority,
    name: &str,
    names: Vec<SanType>,
) -> Result<TlsAcceptor, SimulatorError> {
    let mut params = dated(CertificateParams::default());
    params.distinguished_name = named(&format!("C2C simulator {name}"));
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(SimulatorError::certificate)?;
    let certificate = params
        .signed_by(&key, authority)
        .map_err(SimulatorError::certificate)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
        })
        .map_err(SimulatorError::tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn dns(name: &str) -> Result<SanType, SimulatorError> {
    let name = name.try_into().map_err(SimulatorError::certificate)?;
    Ok(SanType::DnsName(name))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid in every year a simulated clock may stand at: clients check against their own clock.
fn dated(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params
}
