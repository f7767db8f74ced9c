//! Sessions with PostgreSQL: one way to open a stream for SQL (tokio-postgres) and for
//! replication (our own client), and the settings that both depend on.
//!
//! TLS is negotiated here (SSLRequest, one byte, handshake); tokio-postgres gets the finished
//! stream and asks it only for the channel binding. As in libpq, unix sockets carry no TLS.
//!
//! Protocol: PostgreSQL manual, "Frontend/Backend Protocol", SSL session encryption.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_postgres::{Client, NoTls};

use crate::config::{ConnectConfig, TlsMode};
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
    let (stream, password) = (open(config).await?, super::password(&config.password)?);
    let mut session = tokio_postgres::Config::new();
    session
        .user(&config.user)
        .dbname(&config.database)
        .application_name(application_name)
        .options(format!("{TEXT_SETTINGS} {SEARCH_PATH}"));
    if let Some(password) = password {
        session.password(password);
    }
    let login = async {
        let client = if stream.is_tls() {
            session.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
            let (client, connection) = session.connect_raw(stream, Negotiated).await?;
            tokio::spawn(drive(connection));
            client
        } else {
            session.ssl_mode(SslMode::Disable);
            let (client, connection) = session.connect_raw(stream, NoTls).await?;
            tokio::spawn(drive(connection));
            client
        };
        client.batch_execute(NO_LIMITS).await?;
        Ok(client)
    };
    match tokio::time::timeout(config.connect_timeout, login).await {
        Ok(login) => login.map_err(|error: tokio_postgres::Error| {
            self::error(&error).context(format!("cannot log in to database {:?} on {}", config.database, config.host))
        }),
        Err(_) => Err(Error::retry(format!("{} did not answer within {:?}", config.host, config.connect_timeout))),
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

/// A socket to the server, TLS done where wanted and possible.
pub(crate) async fn open(config: &ConnectConfig) -> Result<Stream> {
    if config.host.starts_with('/') || config.host.starts_with('@') {
        let path = format!("{}/.s.PGSQL.{}", config.host.trim_end_matches('/'), config.port);
        let stream = tokio::time::timeout(config.connect_timeout, UnixStream::connect(&path))
            .await
            .map_err(|_| Error::retry(format!("no connection to {path} within {:?}", config.connect_timeout)))?
            .map_err(|error| Error::retry(format!("cannot connect to {path}")).because(error))?;
        return Ok(Stream::Unix(stream));
    }
    let mut stream = super::tcp(config).await?;
    if config.tls.mode == TlsMode::Disable {
        return Ok(Stream::Tcp(stream));
    }
    let answer = tokio::time::timeout(config.connect_timeout, request_tls(&mut stream));
    let offered = answer
        .await
        .map_err(|_| Error::retry(format!("{} did not answer within {:?}", config.host, config.connect_timeout)))??;
    if offered {
        let stream = super::tls_stream(config, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    } else if config.tls.mode == TlsMode::Prefer {
        Ok(Stream::Tcp(stream))
    } else {
        Err(Error::stop(
            format!("{} offers no TLS", config.host),
            "set ssl = on on the server, or sslmode=disable in the system's url",
        ))
    }
}

async fn request_tls(stream: &mut TcpStream) -> Result<bool> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Exactly one byte is read: what comes behind it belongs to the handshake.
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Error::retry("the server answered a TLS request with something else than yes or no")),
    }
}

/// A stream to a server, whatever it runs over.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// The server certificate's hash, for SCRAM-SHA-256-PLUS.
    pub(crate) fn server_end_point(&self) -> Option<Vec<u8>> {
        let Stream::Tls(stream) = self else { return None };
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        super::tls::server_end_point(certificate)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl tokio_postgres::tls::TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match self.server_end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

/// For tokio-postgres: the handshake is done, the stream stays as it is.
struct Negotiated;

impl TlsConnect<Stream> for Negotiated {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(stream))
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
