//! Certificates of a test, and servers that show them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::servers::{Kind, Server};

/// An authority that signs certificates, and the file of its own one.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    pub file: PathBuf,
}

/// As PEM.
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    /// A few seconds from when it is made: MySQL loads no certificate that has expired.
    Moments,
    Future,
}

impl Authority {
    /// Written down in `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let file = dir.join(format!("{name}.pem"));
        std::fs::write(&file, &pem).unwrap();
        Authority { issuer: Issuer::new(params, key), pem, file }
    }

    /// For these names and addresses; none: it bears no subjectAltName.
    pub fn certify(&self, names: &[&str], valid: Valid) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
        let now = rcgen::date_time_ymd(1970, 1, 1) + std::time::UNIX_EPOCH.elapsed().unwrap();
        params.not_before = rcgen::date_time_ymd(if valid == Valid::Future { 2080 } else { 2020 }, 1, 1);
        params.not_after = match valid {
            Valid::Moments => now + Duration::from_secs(8),
            _ => rcgen::date_time_ymd(2090, 1, 1),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificate { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Certificate {
    /// Files of it in `dir`: the chain's and the key's.
    pub fn files(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (chain, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&chain, &self.chain).unwrap();
        super::agent::write_secret(&key, &self.key);
        (chain, key)
    }

    /// For a TLS server of the test's own.
    pub fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        use rustls_pki_types::pem::PemObject;
        use rustls_pki_types::{CertificateDer, PrivateKeyDer};
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

/// Has a private server show that certificate from now on, and trust `clients` to sign its
/// clients' ones. PostgreSQL takes a moment.
pub async fn show(server: &Server, certificate: &Certificate, clients: &Authority) {
    let tls = server.dir.join("tls");
    for (name, text) in [("server.pem", &certificate.chain), ("server.key", &certificate.key), ("ca.pem", &clients.pem)]
    {
        std::fs::write(tls.join(name), text).unwrap(); // in place: owner and mode stay
    }
    let mut admin = server.admin().await;
    match server.kind {
        Kind::Mysql => admin.execute("ALTER INSTANCE RELOAD TLS").await,
        Kind::Mariadb | Kind::Mariadb11 => admin.execute("FLUSH SSL").await,
        _ => {
            let ca = tls.join("ca.pem");
            admin.execute(&format!("ALTER SYSTEM SET ssl_ca_file = '{}'", ca.display())).await;
            admin.execute("SELECT pg_reload_conf()").await;
        }
    }
}
