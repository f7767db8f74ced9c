//! What a TLS session must prove, by `sslmode`.
//!
//! | mode | encrypted | chain | name |
//! |---|---|---|---|
//! | prefer | if the server can | – | – |
//! | require | yes | – | – |
//! | verify-ca | yes | checked | – |
//! | verify-full | yes | checked | checked |
//!
//! Handshake signatures are checked in every mode, with rustls and ring.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::Digest;

use crate::config::{CertificateFiles, ConnectConfig, TlsConfig, TlsMode};
use crate::error::{Error, Result};

/// The client side of a session in the given mode. Trust comes from `ca_file`, else from the
/// system; both are read anew, so that they can be renewed without a restart.
pub fn client_config(tls: &TlsConfig) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let trust = match tls.mode {
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => None,
        TlsMode::VerifyCa => Some(Trust { certificates: trusted(tls)?, check_name: false }),
        TlsMode::VerifyFull => Some(Trust { certificates: trusted(tls)?, check_name: true }),
    };
    let verifier = Verifier { roots: trust.as_ref().map(roots).transpose()?, trust, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::stop("cannot set up TLS", "").because(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match identity(tls)? {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
            Error::retry("the client certificate cannot be used")
                .hint("sslcert and sslkey must belong together")
                .because(error)
        })?,
    };
    Ok(Arc::new(config))
}

/// What we prove ourselves with, where the server asks for a certificate.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) fn identity(tls: &TlsConfig) -> Result<Option<Identity>> {
    tls.client.as_ref().map(|client| pair(client, "sslcert", "sslkey")).transpose()
}

/// What the files hold, which are called like that where they are named.
pub(crate) fn pair(files: &CertificateFiles, certificate: &str, key: &str) -> Result<Identity> {
    let chain = certificates(&files.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_file(super::secret::readable(&files.key)).map_err(|error| {
        Error::retry(format!("cannot read the private key in {}", files.key.display()))
            .hint(format!("{key} must be a PEM file with an unencrypted key that the agent's user can read"))
            .because(std::io::Error::other(error.to_string()))
    })?;
    Ok((chain, key))
}

/// The authorities of the file, else the machine's.
pub(super) fn trusted(tls: &TlsConfig) -> Result<Vec<CertificateDer<'static>>> {
    if let Some(path) = &tls.ca_file {
        return certificates(path, "sslrootcert");
    }
    let native = rustls_native_certs::load_native_certs();
    if native.certs.is_empty() {
        return Err(Error::retry("this machine has no trusted certificate authorities")
            .hint("install ca-certificates, or name the authority's PEM file as sslrootcert in the url"));
    }
    Ok(native.certs)
}

/// Tried again where it cannot be read: certificates are replaced while we run.
fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |what: &str| {
        Error::retry(format!("{what} in {}", path.display()))
            .hint(format!("{parameter} must be a PEM file with certificates that the agent's user can read"))
    };
    let certificates = CertificateDer::pem_file_iter(super::secret::readable(path))
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| wrong("cannot read the certificates").because(std::io::Error::other(error.to_string())))?;
    if certificates.is_empty() {
        return Err(wrong("there is no certificate"));
    }
    Ok(certificates)
}

fn roots(trust: &Trust) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(trust.certificates.iter().cloned());
    if added == 0 {
        return Err(Error::stop("no trusted certificate can be used as an authority", "give another sslrootcert"));
    }
    Ok(roots)
}

#[derive(Debug)]
struct Trust {
    certificates: Vec<CertificateDer<'static>>,
    check_name: bool,
}

#[derive(Debug)]
struct Verifier {
    /// `None`: whoever answers is believed.
    trust: Option<Trust>,
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify_chain(
        &self,
        trust: &Trust,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // A self-signed server certificate that is itself listed as trusted: webpki takes no
        // authority as an end entity, OpenSSL and libpq do.
        if trust.certificates.iter().any(|trusted| trusted == end_entity) {
            return Ok(());
        }
        let Some(roots) = &self.roots else {
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        self.verify_chain(trust, end_entity, intermediates, now)?;
        if trust.check_name {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What TLS itself said, wherever it stands in the causes of a connection's error.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = || error.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>();
        if let Some(found) = error.downcast_ref::<rustls::Error>().or_else(inner) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Whether all is well with the certificate but its name.
pub(super) fn only_the_name_is_wrong(error: &(dyn StdError + 'static)) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(cause(error), Some(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })))
}

/// Why there is no TLS session, and the way out; `None` where the reason is not TLS. All of it is
/// mended on the server or in a file that is read again, so it is tried again.
pub(super) fn refusal(error: &(dyn StdError + 'static), config: &ConnectConfig) -> Option<Error> {
    let place = super::place(config);
    let (what, hint) = match cause(error)? {
        rustls::Error::InvalidCertificate(why) => certificate_refused(why, config, &place),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => (
            format!("{place} asks for a client certificate"),
            "give one that it trusts as sslcert and sslkey in the url".to_owned(),
        ),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure),
        ) if config.tls.client.is_some() => (
            format!("{place} refuses our client certificate ({alert:?})"),
            "give one that it trusts as sslcert and sslkey in the url".to_owned(),
        ),
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon,
        ) => (
            format!("{place} and we have no TLS version or cipher in common"),
            "let the server offer TLS 1.2 or 1.3 with AES-GCM or ChaCha20".to_owned(),
        ),
        other => (format!("the TLS handshake with {place} failed: {other}"), String::new()),
    };
    Some(Error::retry(what).hint(hint))
}

fn certificate_refused(why: &CertificateError, config: &ConnectConfig, place: &str) -> (String, String) {
    use CertificateError as Why;
    let tls = &config.tls;
    let trusted = match &tls.ca_file {
        Some(path) => format!("in {}", path.display()),
        None => "that this machine trusts".to_owned(),
    };
    match why {
        Why::UnknownIssuer | Why::UnknownRevocationStatus => (
            format!("the certificate of {place} is signed by no authority {trusted}"),
            "name the PEM file of the authority that signed it at the end of the url: &sslrootcert=/etc/anechoic/ca.pem"
                .to_owned(),
        ),
        Why::Expired | Why::ExpiredContext { .. } => {
            let when = match why {
                Why::ExpiredContext { not_after, .. } => format!(" on {}", date(not_after)),
                _ => String::new(),
            };
            (
                format!("the certificate of {place} expired{when}"),
                "renew it on the server, or set this machine's clock, if that is wrong".to_owned(),
            )
        }
        Why::NotValidYet | Why::NotValidYetContext { .. } => {
            let when = match why {
                Why::NotValidYetContext { not_before, .. } => format!(" before {}", date(not_before)),
                _ => " yet".to_owned(),
            };
            (format!("the certificate of {place} is not valid{when}"), "set the clock that is wrong".to_owned())
        }
        Why::NotValidForNameContext { expected, presented } if presented.is_empty() => (
            format!(
                "the certificate of {place} bears no host name (subjectAltName), so it does not prove to be {:?}'s; \
                 those that MySQL makes for itself bear none",
                expected.to_str()
            ),
            "sslmode=verify-ca checks its authority alone; or give the server a certificate with its name".to_owned(),
        ),
        Why::NotValidForNameContext { expected, presented } => (
            format!(
                "the certificate of {place} is not for {:?}, but for {}",
                expected.to_str(),
                presented.iter().map(|name| plain_name(name)).collect::<Vec<_>>().join(", ")
            ),
            "use that name as host, or as sslservername in the url if the server is the right one; or give the server a \
             certificate with its name"
                .to_owned(),
        ),
        Why::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
            format!("the certificate of {place} is that of an authority, not of a server"),
            "have a certificate for the server signed by that authority (basicConstraints CA:FALSE)".to_owned(),
        ),
        other => (
            format!("the certificate of {place} is not acceptable: {other}"),
            "give the server another certificate".to_owned(),
        ),
    }
}

/// `DnsName("db.example.com")` as rustls has it.
fn plain_name(presented: &str) -> &str {
    presented.split_once('"').map_or(presented, |(_, rest)| rest.trim_end_matches(['"', ')']))
}

fn date(time: &UnixTime) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time).to_string()
}

/// `tls-server-end-point` (RFC 5929): the certificate's hash, by the hash of its own signature,
/// where that is MD5 or SHA-1 by SHA-256. `None` where that is not known: then no binding.
pub(crate) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let signed_with_rsa = |last: u8| [&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01][..], &[last]].concat();
    let signed_with_ecdsa = |last: u8| [&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03][..], &[last]].concat();
    let oid = signature_algorithm(certificate)?;
    if [4, 5, 11].iter().any(|&n| oid == signed_with_rsa(n))
        || oid == signed_with_ecdsa(2)
        || oid == [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
    {
        Some(sha2::Sha256::digest(certificate).to_vec())
    } else if oid == signed_with_rsa(12) || oid == signed_with_ecdsa(3) {
        Some(sha2::Sha384::digest(certificate).to_vec())
    } else if oid == signed_with_rsa(13) || oid == signed_with_ecdsa(4) {
        Some(sha2::Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}

/// Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (0x30, body, _) = der(certificate)? else { return None };
    let (0x30, _, rest) = der(body)? else { return None };
    let (0x30, algorithm, _) = der(rest)? else { return None };
    let (0x06, oid, _) = der(algorithm)? else { return None };
    Some(oid)
}

/// Tag, content and what follows of one DER element.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEQUENCE { SEQUENCE {}, SEQUENCE { OID sha384WithRSAEncryption }, … }
    #[test]
    fn the_end_point_is_hashed_as_the_certificate_is_signed() {
        let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
        let certificate = |last: u8| [&[0x30, 15, 0x30, 0, 0x30, 11, 0x06, 9][..], &oid, &[last]].concat();

        assert_eq!(server_end_point(&certificate(11)).map(|hash| hash.len()), Some(32));
        assert_eq!(server_end_point(&certificate(12)).map(|hash| hash.len()), Some(48));
        assert_eq!(server_end_point(&certificate(13)).map(|hash| hash.len()), Some(64));
        assert_eq!(server_end_point(&certificate(10)), None, "RSA-PSS keeps its hash elsewhere");
    }

    #[test]
    fn a_broken_certificate_has_no_end_point() {
        for bytes in [&b""[..], b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x02\x30\x05", b"\x30\xff"] {
            assert_eq!(server_end_point(bytes), None);
        }
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tls = TlsConfig { ca_file: Some(file.path().to_owned()), ..TlsConfig::new(TlsMode::VerifyCa) };

        let error = client_config(&tls).unwrap_err();

        assert!(error.message.contains(&file.path().display().to_string()));
    }
}
