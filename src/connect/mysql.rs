//! Connections to MySQL and MariaDB: TLS by mode, and a session in which values are exact.
//!
//! Every session speaks utf8mb4, lives in UTC and is strict, so that what is read and written
//! does not depend on the server's settings or on what a user's role has as default.

use std::time::Duration;

use mysql_async::Error::Driver;
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, DriverError, OptsBuilder, SslOpts};

use super::tls;

use crate::config::{ConnectConfig, TlsConfig, TlsMode};
use crate::error::{Error, Result};
use crate::telemetry::caught;

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
    sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', wait_timeout = 86400";

/// A session for statements.
pub async fn connect(config: &ConnectConfig) -> Result<Conn> {
    open(config).await
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

/// Connects, logs in and prepares the session, all within the configured time.
async fn open(config: &ConnectConfig) -> Result<Conn> {
    // The crate takes the process's default provider; a second installation is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let opts = options(config)?;
    // A unix socket needs no TLS, and the server's name could not be verified on it.
    let tls = if super::socket(config).is_some() { None } else { tls_options(config)? };
    let attempt = async |tls: Option<SslOpts>| {
        // The plugin for clear text (PAM, LDAP) hands over the password as it is: to a server that has
        // proved itself, or through the kernel alone.
        let proven = matches!(config.tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) && tls.is_some();
        let clear = proven || super::socket(config).is_some();
        let opts: mysql_async::Opts = opts.clone().ssl_opts(tls).enable_cleartext_plugin(clear).into();
        // mysql_common cuts a random nonce of MariaDB's parsec that ends with a zero, and the crate
        // panics over it: one login in 256. The next has another nonce.
        let login = match caught(Conn::new(opts.clone())).await {
            None => caught(Conn::new(opts)).await.unwrap_or(Err(Driver(DriverError::InvalidParsecSalt))),
            Some(login) => login,
        };
        let mut conn = login?;
        conn.query_drop(SESSION).await?;
        Ok::<Conn, mysql_async::Error>(conn)
    };
    let connecting = async {
        match attempt(tls.clone()).await {
            Err(Driver(DriverError::NoClientSslFlagFromServer)) if config.tls.mode == TlsMode::Prefer => {
                attempt(None).await
            }
            Err(error) if config.tls.mode == TlsMode::VerifyCa && tls::only_the_name_is_wrong(&error) => {
                attempt(tls.map(|tls| tls.with_danger_tls_hostname_override(Some(ANY_NAME)))).await
            }
            other => other,
        }
    };
    match tokio::time::timeout(config.connect_timeout, connecting).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(error)) => Err(not_connected(error, config)),
        Err(_) => Err(super::late(config)),
    }
}

/// Makes the crate pass over a name that is not the certificate's, after it has verified the
/// chain. `with_danger_skip_domain_validation` alone does not: the crate looks for the text
/// `NotValidForName` in the error, which rustls writes as a sentence that quotes the name asked for.
const ANY_NAME: &str = "NotValidForName.invalid";

/// The password, read anew, where it can be sent at all.
pub(crate) fn password(config: &ConnectConfig) -> Result<Option<String>> {
    let password = super::password(&config.password)?;
    // The crate cannot encrypt a longer one with a server's key of 2048 bits.
    let long = password.as_ref().is_some_and(|password| password.len() > 200);
    if long && super::socket(config).is_none() && matches!(config.tls.mode, TlsMode::Disable | TlsMode::Prefer) {
        return Err(Error::stop(
            format!("the password of {:?} is longer than 200 bytes, which needs TLS", config.user),
            "use sslmode=verify-full (or require) in the url, or a shorter password",
        ));
    }
    Ok(password)
}

fn options(config: &ConnectConfig) -> Result<OptsBuilder> {
    let password = password(config)?;
    let mut opts = OptsBuilder::default()
        .user(Some(config.user.clone()))
        .pass(password)
        .prefer_socket(false)
        .tcp_keepalive(Some(Duration::from_secs(15)));
    if !config.database.is_empty() {
        opts = opts.db_name(Some(config.database.clone()));
    }
    Ok(match super::socket(config) {
        Some(path) => opts.socket(Some(path)),
        None => opts.ip_or_hostname(config.host.clone()).tcp_port(config.port),
    })
}

/// The mode in the crate's words. Files are read here, so that both engines say alike what is
/// wrong with them.
fn tls_options(config: &ConnectConfig) -> Result<Option<SslOpts>> {
    let tls = &config.tls;
    let options = match tls.mode {
        TlsMode::Disable => return Ok(None),
        // Encrypted, not verified, as libpq has it. The crate's own roots stay in: it refuses
        // an empty set even where it is not asked.
        TlsMode::Prefer | TlsMode::Require => SslOpts::default().with_danger_accept_invalid_certs(true),
        TlsMode::VerifyCa => trusting(tls)?.with_danger_skip_domain_validation(true),
        TlsMode::VerifyFull => trusting(tls)?,
    };
    let name = super::server_name(config)?.to_str().into_owned();
    tls::identity(tls)?;
    let identity = tls.client.clone().map(|client| {
        let key = super::secret::readable(&client.key);
        ClientIdentity::new(client.certificate.into(), key.into())
    });
    Ok(Some(options.with_danger_tls_hostname_override(Some(name)).with_client_identity(identity)))
}

/// The authorities of the file, else the machine's.
fn trusting(tls: &TlsConfig) -> Result<SslOpts> {
    let mut usable = rustls::RootCertStore::empty();
    let mut certificates = tls::trusted(tls)?;
    certificates.retain(|certificate| usable.add(certificate.clone()).is_ok());
    if certificates.is_empty() {
        return Err(Error::retry("no trusted certificate can be used as an authority").hint("give another sslrootcert"));
    }
    let roots = certificates.iter().map(|certificate| certificate.as_ref().to_vec().into()).collect();
    Ok(SslOpts::default().with_disable_built_in_roots(true).with_root_certs(roots))
}

/// Why there is no session, in terms of place, user and what a person can change.
pub(crate) fn not_connected(error: mysql_async::Error, config: &ConnectConfig) -> Error {
    if let Some(refusal) = tls::refusal(&error, config) {
        return refusal;
    }
    let error = match error {
        mysql_async::Error::Io(mysql_async::IoError::Io(error)) => return super::unreachable(config, error),
        Driver(DriverError::NoClientSslFlagFromServer) => {
            return super::no_tls(config, "give the server ssl_cert and ssl_key");
        }
        Driver(driver) => refused_to_log_in(driver),
        other => super::secret::refused(self::error(other), &config.password),
    };
    error.context(format!("logging in to {} as {:?}", super::place(config), config.user))
}

/// What this side will not do.
fn refused_to_log_in(error: DriverError) -> Error {
    const OTHERS: &str = "ALTER USER … IDENTIFIED WITH caching_sha2_password (MySQL), VIA ed25519 or mysql_native_password \
                          (MariaDB)";
    match error {
        DriverError::UnknownAuthPlugin { name } => {
            Error::stop(format!("the user's authentication plugin {name:?} is not supported"), OTHERS)
        }
        DriverError::CleartextPluginDisabled => Error::stop(
            "the server asks for the password in clear text, and has not proved that it is the right one",
            format!("use sslmode=verify-full or a unix socket in the url, or {OTHERS}"),
        ),
        DriverError::MysqlOldPasswordDisabled => {
            Error::stop("the user's password is stored in the format of before MySQL 4.1", OTHERS)
        }
        other => Error::retry("the login failed").because(mysql_async::Error::from(other)),
    }
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
        1045 | 1698 => Some(super::secret::WRONG_PASSWORD),
        1130 => Some("create the user for the host that the agent connects from: 'name'@'%'"),
        1129 => Some("FLUSH HOSTS (mysqladmin flush-hosts), after mending what made the connections fail"),
        1044 | 1142 | 1143 | 1227 => Some("grant what `anechoic check` lists"),
        1040 | 1203 | 1226 => Some("raise max_connections, or the user's own limits"),
        1049 => Some("the database of the url does not exist"),
        1862 | 1820 => Some("ALTER USER … PASSWORD EXPIRE NEVER: a service cannot renew its password"),
        3118 | 4151 => Some("ALTER USER … ACCOUNT UNLOCK"),
        3159 | 4150 => Some("use sslmode=verify-full (or require) in the url"),
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
}
