//! Sessions with PostgreSQL, for SQL (tokio-postgres) and for replication (our own client), and
//! the settings that both depend on.
//!
//! Both begin the same way: `stream` opens the socket and does TLS, `login` starts up and
//! authenticates. tokio-postgres is then given a stream on which that is done already, because
//! it would send a password in clear text to whoever asks for it.

mod login;
mod near;
mod stream;

use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

pub(crate) use self::login::{Login, log_in};
pub(crate) use self::stream::Stream;
use crate::config::ConnectConfig;
use crate::error::{Error, Recovery, Result};

/// Values as text must mean the same whatever role, database and server are set to.
pub(crate) const TEXT_SETTINGS: &str = "-c DateStyle=ISO -c IntervalStyle=iso_8601 -c TimeZone=UTC \
     -c extra_float_digits=3 -c bytea_output=hex";

/// pg_catalog first, so that no table's owner can put functions of theirs before the built-in
/// ones; public at all, so that users' triggers with unqualified names work in our sessions.
const SEARCH_PATH: &str = "-c search_path=pg_catalog,public";

/// Time limits of the role or database must not end a session that waits for the next batch.
/// By `pg_settings`, because a server that does not know a name refuses the connection.
const NO_LIMITS: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN \
     ('statement_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')";

/// A session for SQL. Its connection task ends with the client.
pub async fn connect(config: &ConnectConfig, application_name: &str) -> Result<Client> {
    let options = format!("{TEXT_SETTINGS} {SEARCH_PATH}");
    let login =
        log_in(config, &[("application_name", application_name), ("options", &options)], super::Receives::Answers)
            .await?;
    let begin = async {
        let mut session = tokio_postgres::Config::new();
        session.user(&config.user).ssl_mode(SslMode::Disable);
        let (client, connection) = session.connect_raw(login.resumed(), NoTls).await?;
        tokio::spawn(drive(connection));
        client.batch_execute(NO_LIMITS).await?;
        Ok(client)
    };
    let what = || format!("beginning a session with {}", super::place(config));
    match tokio::time::timeout(config.connect_timeout, begin).await {
        Ok(begun) => begun.map_err(|error: tokio_postgres::Error| self::error(&error).context(what())),
        Err(_) => Err(super::late(config).context(what())),
    }
}

async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    // Whoever uses the client gets the error as well, and handles it.
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}

/// What a server's error means for the flow; message with its detail, SQLSTATE as code.
pub fn error(error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        let message = match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        return Error::retry(message);
    };
    // The detail of a data error quotes the row; it belongs to the quarantine, not to the log.
    let detail = db.detail().filter(|_| !is_data(db.code().code()));
    server_error(db.code().code(), db.message(), detail, db.hint())
}

/// By SQLSTATE: data errors set one change aside, trouble that passes is retried, the rest
/// needs a person.
pub(crate) fn server_error(code: &str, message: &str, detail: Option<&str>, hint: Option<&str>) -> Error {
    let mut text = message.to_owned();
    if let Some(detail) = detail {
        text = format!("{text} ({detail})");
    }
    Error::new(recovery(code), text).code(code).hint(hint.unwrap_or_default())
}

fn is_data(code: &str) -> bool {
    matches!(code.get(..2), Some("22" | "23"))
}

fn recovery(code: &str) -> Recovery {
    let passes = [
        SqlState::OBJECT_IN_USE.code(),
        SqlState::LOCK_NOT_AVAILABLE.code(),
        // A password may be rotated on the server a moment before its file is.
        SqlState::INVALID_PASSWORD.code(),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION.code(),
        // Read-only for the time of a switchover.
        SqlState::READ_ONLY_SQL_TRANSACTION.code(),
    ];
    match code.get(..2) {
        _ if passes.contains(&code) => Recovery::Retry,
        // Connection, rollback (deadlock, serialization), resources, operator, system.
        Some("08" | "40" | "53" | "57" | "58") => Recovery::Retry,
        _ if is_data(code) => Recovery::Quarantine,
        _ => Recovery::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_error_knows_its_recovery_by_sqlstate() {
        for (code, expected) in [
            ("40P01", Recovery::Retry),
            ("57P01", Recovery::Retry),
            ("53300", Recovery::Retry),
            ("28P01", Recovery::Retry),
            ("22003", Recovery::Quarantine),
            ("23505", Recovery::Quarantine),
            ("42703", Recovery::Stop),
            ("42501", Recovery::Stop),
        ] {
            assert_eq!(recovery(code), expected, "{code}");
        }
    }
}
