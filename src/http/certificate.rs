//! What the port shows to who connects, where it speaks TLS.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::sync::watch;

use crate::config::CertificateFiles;
use crate::connect::tls::pair;
use crate::error::{Error, Result};

/// Taken by each connection as it comes, so that another certificate cuts nobody off.
#[derive(Clone)]
pub struct Certificate(watch::Sender<Arc<ServerConfig>>);

impl Certificate {
    pub fn read(files: &CertificateFiles) -> Result<Self> {
        Ok(Certificate(watch::Sender::new(sessions(files)?)))
    }

    /// What the files hold now. The one before stays where they cannot be used.
    pub fn renew(&self, files: &CertificateFiles) -> Result<()> {
        self.0.send_replace(sessions(files)?);
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.borrow().clone()
    }
}

fn sessions(files: &CertificateFiles) -> Result<Arc<ServerConfig>> {
    // Time does not mend it: nothing is tried again by itself.
    let (chain, key) = pair(files, "tls_cert", "tls_key").map_err(|error| {
        let Error { message, hint, source, .. } = error;
        Error { source, ..Error::stop(message, hint) }
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            let CertificateFiles { certificate, key } = files;
            let message = format!("the port cannot use {} with the key in {}", certificate.display(), key.display());
            let hint = "tls_cert begins with the certificate that belongs to tls_key; its authority's come behind it";
            Error::stop(message, hint).because(error)
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
