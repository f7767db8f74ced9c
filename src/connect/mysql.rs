//! Connections to MySQL and MariaDB: TLS by mode, and a session in which values are exact.
//!
//! Every session speaks utf8mb4, lives in UTC and is strict, so that what is read and written
//! does not depend on the server's settings or on what a user's role has as default.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, OptsBuilder, SslOpts};

use crate::config::{ConnectConfig, TlsConfig, TlsMode};
use crate::error::{Error, Result};

/// Which of the two families a server belongs to; told by its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Mysql,
    Mariadb,
}

impl Flavour {
    pub fn name(self) -> &'static str {
        match self {
            Flavour::Mysql => "mysql",
            Flavour::Mariadb => "mariadb",
        }
    }
}

/// What every session of ours relies on. NO_AUTO_VALUE_ON_ZERO: a key 0 stays 0.
const SESSION: &str = "SET NAMES utf8mb4, time_zone = '+00:00', \
    sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO', wait_timeout = 86400";

/// A session for statements.
pub async fn connect(config: &ConnectConfig) -> Result<Conn> {
    let mut conn = open(config, |opts| opts).await?;
    conn.query_drop(SESSION).await.map_err(|e| failed(e, "preparing the session"))?;
    Ok(conn)
}

/// A session that will carry the log: rows of any size come through it.
pub async fn connect_for_log(config: &ConnectConfig) -> Result<Conn> {
    let mut conn = open(config, |opts| opts.max_allowed_packet(Some(1 << 30))).await?;
    conn.query_drop(SESSION).await.map_err(|e| failed(e, "preparing the session"))?;
    Ok(conn)
}

/// Family, version as the server writes it, and as numbers.
pub async fn server(conn: &mut Conn) -> Result<(Flavour, String, (u16, u16, u16))> {
    let version: Option<String> = conn.query_first("SELECT VERSION()").await.map_err(error)?;
    let version = version.unwrap_or_default();
    let flavour = if version.to_ascii_lowercase().contains("mariadb") { Flavour::Mariadb } else { Flavour::Mysql };
    let numbers = version_numbers(&version);
    Ok((flavour, version, numbers))
}

fn version_numbers(version: &str) -> (u16, u16, u16) {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

async fn open(config: &ConnectConfig, tune: impl Fn(OptsBuilder) -> OptsBuilder) -> Result<Conn> {
    // The crate takes the process's default provider; a second installation is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let socket = config.host.starts_with('/');
    let password = super::password(&config.password)?;
    let options = |ssl: Option<SslOpts>| {
        let mut opts = OptsBuilder::default()
            .user(Some(config.user.clone()))
            .pass(password.clone())
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(15)))
            .ssl_opts(ssl);
        if !config.database.is_empty() {
            opts = opts.db_name(Some(config.database.clone()));
        }
        opts = if socket {
            opts.socket(Some(config.host.clone()))
        } else {
            opts.ip_or_hostname(config.host.clone()).tcp_port(config.port)
        };
        tune(opts)
    };
    let attempt = async |ssl: Option<SslOpts>| -> Result<Conn, Attempt> {
        match tokio::time::timeout(config.connect_timeout, Conn::new(options(ssl))).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => Err(Attempt::Failed(error)),
            Err(_) => Err(Attempt::TimedOut),
        }
    };
    // A unix socket needs no TLS, and the server's name could not be verified on it.
    let ssl = if socket { None } else { ssl_options(&config.tls)? };
    let result = match attempt(ssl.clone()).await {
        Err(Attempt::Failed(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer)))
            if config.tls.mode == TlsMode::Prefer =>
        {
            attempt(None).await
        }
        // verify-ca: the chain is verified, the name may be any that the certificate itself bears.
        Err(Attempt::Failed(error)) if config.tls.mode == TlsMode::VerifyCa => match (ssl, presented_name(&error)) {
            (Some(ssl), Some(name)) => attempt(Some(ssl.with_danger_tls_hostname_override(Some(name)))).await,
            _ => Err(Attempt::Failed(error)),
        },
        other => other,
    };
    let place = if socket { config.host.clone() } else { format!("{}:{}", config.host, config.port) };
    result.map_err(|attempt| match attempt {
        Attempt::Failed(error) => failed(error, &format!("connecting to {place} as {:?}", config.user)),
        Attempt::TimedOut => {
            Error::retry(format!("no answer from {place} within {} ms", config.connect_timeout.as_millis()))
        }
    })
}

enum Attempt {
    Failed(mysql_async::Error),
    TimedOut,
}

fn ssl_options(tls: &TlsConfig) -> Result<Option<SslOpts>> {
    let options = match tls.mode {
        TlsMode::Disable => return Ok(None),
        // Encrypted, not verified, as libpq has it. The crate's own roots stay in: it refuses
        // an empty set even where it is not asked.
        TlsMode::Prefer | TlsMode::Require => SslOpts::default().with_danger_accept_invalid_certs(true),
        TlsMode::VerifyCa | TlsMode::VerifyFull => trusting(tls)?,
    };
    Ok(Some(options.with_danger_tls_hostname_override(tls.server_name.clone())))
}

/// The authorities of the file, else the system's.
fn trusting(tls: &TlsConfig) -> Result<SslOpts> {
    let options = SslOpts::default().with_disable_built_in_roots(true);
    if let Some(path) = &tls.ca_file {
        return Ok(options.with_root_certs(vec![path.clone().into()]));
    }
    let mut usable = rustls::RootCertStore::empty();
    let mut certificates = Vec::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        if usable.add(certificate.clone()).is_ok() {
            certificates.push(certificate.as_ref().to_vec().into());
        }
    }
    if certificates.is_empty() {
        return Err(Error::stop(
            "this machine has no trusted certificate authorities",
            "name a sslrootcert in the url",
        ));
    }
    Ok(options.with_root_certs(certificates))
}

/// A name that the server's certificate bears, where the one we asked for was not among them.
fn presented_name(error: &mysql_async::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| {
            error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()).and_then(|inner| inner.downcast_ref())
        });
        if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext {
            presented,
            ..
        })) = tls
        {
            return presented.iter().find_map(|name| plain_name(name));
        }
        cause = error.source();
    }
    None
}

/// `DnsName("*.example.com")` → a name that it covers.
fn plain_name(presented: &str) -> Option<String> {
    let name = presented.split_once('"').map_or(presented, |(_, rest)| rest.trim_end_matches(['"', ')']));
    let name = name.strip_prefix("*.").map_or_else(|| name.to_owned(), |domain| format!("any.{domain}"));
    rustls_pki_types::ServerName::try_from(name.clone()).is_ok().then_some(name)
}

/// An error of a statement or connection, with the recovery that its code asks for.
pub fn error(error: mysql_async::Error) -> Error {
    match &error {
        mysql_async::Error::Server(server) => {
            let mut said = Error::retry(format!("the server says: {}", server.message)).code(server.code.to_string());
            if let Some(hint) = hint(server.code) {
                said = said.hint(hint);
            }
            if stops(server.code) {
                said.recovery = crate::error::Recovery::Stop;
            }
            said.because(error)
        }
        _ => Error::retry("the connection failed").because(error),
    }
}

/// [`error`], saying what was being done.
pub fn failed(error: mysql_async::Error, doing: &str) -> Error {
    self::error(error).context(doing)
}

/// Time does not mend these: syntax, missing objects, missing privileges.
fn stops(code: u16) -> bool {
    matches!(code, 1044 | 1049 | 1054 | 1064 | 1142 | 1143 | 1146 | 1193 | 1227 | 1305)
}

fn hint(code: u16) -> Option<&'static str> {
    match code {
        1045 | 1698 => Some("check user and password; the password is read again at the next attempt"),
        1044 | 1142 | 1143 | 1227 => Some("grant what `anechoic check` lists"),
        1040 => Some("raise max_connections"),
        1049 => Some("the database of the url does not exist"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_numbers() {
        assert_eq!(version_numbers("10.11.19-MariaDB-0+deb12u1-log"), (10, 11, 19));
        assert_eq!(version_numbers("9.7.4-2"), (9, 7, 4));
        assert_eq!(version_numbers(""), (0, 0, 0));
    }

    #[test]
    fn a_certificates_own_names_serve_where_only_its_chain_counts() {
        assert_eq!(plain_name("DnsName(\"*.example.com\")").as_deref(), Some("any.example.com"));
        assert_eq!(plain_name("localhost").as_deref(), Some("localhost"));
        assert_eq!(plain_name("DnsName(\"\")"), None);
    }
}
