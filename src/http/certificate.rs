//! What the port shows to who connects, where it speaks TLS.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::sync::watch;

use crate::config::CertificateFiles;
use crate::connect::tls::pair;
use crate::error::{Error, Result};
use crate::status::{Validity, now};

/// How often it is said that the certificate is, or nearly is, of no use.
pub const REMIND_EVERY: Duration = Duration::from_secs(86_400);

/// Taken by each connection as it comes, so that another certificate cuts nobody off.
#[derive(Clone)]
pub struct Certificate(watch::Sender<Shown>);

#[derive(Clone)]
struct Shown {
    sessions: Arc<ServerConfig>,
    validity: Option<Validity>,
}

impl Certificate {
    pub fn read(files: &CertificateFiles) -> Result<Self> {
        Ok(Certificate(watch::Sender::new(shown(files)?)))
    }

    /// What the files hold now. The one before stays where they cannot be used.
    pub fn renew(&self, files: &CertificateFiles) -> Result<()> {
        self.0.send_replace(shown(files)?);
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.borrow().sessions.clone()
    }

    pub fn validity(&self) -> Option<Validity> {
        self.0.borrow().validity
    }

    /// What is the matter with it, of old, at each change and then every so often. Never ends.
    pub async fn remind(&self, every: Duration, mut tell: impl FnMut(&str)) {
        let mut shown = self.0.subscribe();
        loop {
            let trouble = shown.borrow_and_update().validity.and_then(|validity| validity.trouble(now()));
            if let Some(trouble) = trouble {
                tell(&trouble);
            }
            // We hold a sender: it does not end before us.
            let _ = tokio::time::timeout(every, shown.changed()).await;
        }
    }
}

fn shown(files: &CertificateFiles) -> Result<Shown> {
    // Time does not mend it: nothing is tried again by itself.
    let (chain, key) = pair(files, "tls_cert", "tls_key").map_err(|error| {
        let Error { message, hint, source, .. } = error;
        Error { source, ..Error::stop(message, hint) }
    })?;
    let validity = chain.first().and_then(Validity::of);
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
    Ok(Shown { sessions: Arc::new(config), validity })
}
