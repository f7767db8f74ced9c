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

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::Digest;

use crate::config::{TlsConfig, TlsMode};
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
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn trusted(tls: &TlsConfig) -> Result<Vec<CertificateDer<'static>>> {
    let Some(path) = &tls.ca_file else {
        let native = rustls_native_certs::load_native_certs();
        if native.certs.is_empty() {
            return Err(Error::stop(
                "this machine has no trusted certificate authorities",
                "install ca-certificates, or name the authority's PEM file (sslrootcert / tls ca_file)",
            ));
        }
        return Ok(native.certs);
    };
    let wrong = |what: &str| {
        Error::stop(format!("{what} in {}", path.display()), "ca_file must be a readable PEM certificate file")
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| wrong("cannot read the certificates").because(std::io::Error::other(error.to_string())))?;
    if certificates.is_empty() {
        return Err(wrong("no certificate"));
    }
    Ok(certificates)
}

fn roots(trust: &Trust) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(trust.certificates.iter().cloned());
    if added == 0 {
        return Err(Error::stop("no trusted certificate can be used as an authority", "give another ca_file"));
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
        let tls = TlsConfig { mode: TlsMode::VerifyCa, ca_file: Some(file.path().to_owned()), server_name: None };

        let error = client_config(&tls).unwrap_err();

        assert!(error.message.contains(&file.path().display().to_string()));
    }
}
