//! How the agent reaches a server: socket, TLS, password, session settings.
//!
//! `tls` is shared; `postgres` and `mysql` each open sessions of their own engine. A session
//! never depends on the settings of role, database or server: what matters is set here.

pub mod mysql;
pub mod postgres;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::{ConnectConfig, PasswordSource};
use crate::error::{Error, Result};

/// The password as it is now: read at every connect, so that it can be rotated without a
/// restart. One newline at the end of a file does not belong to it.
pub fn password(source: &PasswordSource) -> Result<Option<String>> {
    match source {
        PasswordSource::None => Ok(None),
        PasswordSource::Inline(password) => Ok(Some(password.clone())),
        PasswordSource::Env(name) => std::env::var(name).map(Some).map_err(|_| {
            Error::stop(
                format!("cannot read the password: environment variable {name} is not set or not UTF-8"),
                format!("set {name} in the service's environment"),
            )
        }),
        PasswordSource::File(path) => {
            let mut text = std::fs::read_to_string(path).map_err(|error| {
                // Missing for a moment while it is being replaced is no reason to stand still.
                Error::retry(format!("cannot read password file {}", path.display()))
                    .hint("the agent's user must be able to read it")
                    .because(error)
            })?;
            if text.ends_with('\n') {
                text.pop();
                if text.ends_with('\r') {
                    text.pop();
                }
            }
            Ok(Some(text))
        }
    }
}

/// TCP with what a connection needs that may lie idle for days: a peer that vanished without
/// a word is noticed within about a minute.
pub async fn tcp(config: &ConnectConfig) -> Result<TcpStream> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let stream = tokio::time::timeout(config.connect_timeout, TcpStream::connect((host, config.port)))
        .await
        .map_err(|_| {
            Error::retry(format!("no connection to {host}:{} within {:?}", config.port, config.connect_timeout))
        })?
        .map_err(|error| Error::retry(format!("cannot connect to {host}:{}", config.port)).because(error))?;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// What a certificate is checked against: the configured name, else the host.
pub(crate) fn server_name(config: &ConnectConfig) -> Result<rustls_pki_types::ServerName<'static>> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let name = config.tls.server_name.as_deref().unwrap_or(host);
    rustls_pki_types::ServerName::try_from(name.to_owned()).map_err(|error| {
        Error::stop(
            format!("{name:?} cannot be the name in a certificate"),
            "give the name in the server's certificate as tls server_name, or use sslmode=verify-ca",
        )
        .because(error)
    })
}

/// A TLS session over `stream`, checked as `config` says.
pub(crate) async fn tls_stream(
    config: &ConnectConfig,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let client = tls::client_config(&config.tls)?;
    let name = server_name(config)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&client));
    let handshake = tokio::time::timeout(config.connect_timeout, connector.connect(name, stream));
    match handshake.await {
        Err(_) => Err(Error::retry(format!("no TLS session with {} within {:?}", config.host, config.connect_timeout))),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(handshake_error(config, error)),
    }
}

/// A certificate that does not verify needs a person; everything else is a bad connection.
fn handshake_error(config: &ConnectConfig, error: std::io::Error) -> Error {
    let certificate = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)));
    let message = format!("TLS handshake with {} failed", config.host);
    if certificate {
        let hint = "give the authority that signed the server's certificate (sslrootcert / tls ca_file), and the name \
                    in it (tls server_name), or loosen sslmode";
        Error::stop(message, hint).because(error)
    } else {
        Error::retry(message).because(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_password_file_is_not_part_of_it() {
        for (content, expected) in [("s3cret\n", "s3cret"), ("s3cret", "s3cret"), ("a b\n\n", "a b\n"), ("x\r\n", "x")]
        {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let source = PasswordSource::File(file.path().to_owned());

            assert_eq!(password(&source).unwrap().as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_missing_password_file_is_named_and_tried_again() {
        let error = password(&PasswordSource::File("/does/not/exist".into())).unwrap_err();

        assert!(error.message.contains("/does/not/exist"));
        assert_eq!(error.recovery, crate::error::Recovery::Retry);
    }
}
