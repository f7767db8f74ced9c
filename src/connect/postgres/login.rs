//! Startup and authentication, the same for every connection.
//!
//! Trusted, cleartext (never over a network without TLS), MD5 and SCRAM-SHA-256, bound to the TLS
//! session where the server offers it. What else a server may ask for is refused by its name.
//!
//! Protocol: PostgreSQL manual, "Message Flow", start-up; "SASL Authentication".

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::{self, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::server_error;
use super::stream::{Stream, open};
use crate::config::ConnectConfig;
use crate::connect::secret::{self, WRONG_PASSWORD};
use crate::connect::{self, Receives};
use crate::error::{Error, Recovery, Result};

/// A stream whose login is done; what the server sent behind it is in `inbox`.
pub(crate) struct Login {
    pub stream: Stream,
    pub inbox: BytesMut,
}

/// Connects and logs in; `parameters` are those of the startup message, beside user and database.
pub(crate) async fn log_in(config: &ConnectConfig, parameters: &[(&str, &str)], receives: Receives) -> Result<Login> {
    let stream = open(config, receives).await?;
    let mut login = Login { stream, inbox: BytesMut::with_capacity(16 * 1024) };
    let what =
        || format!("logging in to database {:?} on {} as {:?}", config.database, connect::place(config), config.user);
    match tokio::time::timeout(config.connect_timeout, login.run(config, parameters)).await {
        Ok(Ok(())) => Ok(login),
        Ok(Err(error)) => Err(secret::refused(error, &config.password).context(what())),
        Err(_) => Err(connect::late(config).context(what())),
    }
}

impl Login {
    async fn run(&mut self, config: &ConnectConfig, parameters: &[(&str, &str)]) -> Result<()> {
        let own = [("user", config.user.as_str()), ("database", &config.database), ("client_encoding", "UTF8")];
        let mut out = BytesMut::new();
        frontend::startup_message(own.into_iter().chain(parameters.iter().copied()), &mut out)?;
        self.send(&out).await?;
        self.authenticate(config).await
    }

    async fn authenticate(&mut self, config: &ConnectConfig) -> Result<()> {
        let password = connect::password(&config.password)?;
        let needed = || {
            password.as_deref().ok_or_else(|| {
                Error::stop("the server asks for a password, and there is none", "give the system a password_file")
            })
        };
        loop {
            let mut out = BytesMut::new();
            match self.receive().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    if matches!(self.stream, Stream::Tcp(_) | Stream::Near(_)) {
                        return Err(Error::stop(
                            "the server asks for the password in clear text over a connection without TLS",
                            "use scram-sha-256 in pg_hba.conf, or sslmode=verify-full in the url",
                        ));
                    }
                    frontend::password_message(needed()?.as_bytes(), &mut out)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = authentication::md5_hash(config.user.as_bytes(), needed()?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)?;
                }
                Message::AuthenticationSasl(body) => {
                    self.authenticate_sasl(&body, needed()?).await?;
                    continue;
                }
                Message::AuthenticationGss => return Err(unsupported("gss (Kerberos)")),
                Message::AuthenticationSspi => return Err(unsupported("sspi")),
                Message::AuthenticationKerberosV5 => return Err(unsupported("krb5")),
                Message::AuthenticationScmCredential => return Err(unsupported("ident by SCM credentials")),
                Message::ErrorResponse(body) => return Err(refused(&body)),
                Message::NoticeResponse(_) => continue,
                _ => return Err(unsupported("of a kind that is not known here")),
            }
            self.send(&out).await?;
        }
    }

    /// SCRAM, bound to the TLS session where both sides can.
    async fn authenticate_sasl(&mut self, offer: &AuthenticationSaslBody, password: &str) -> Result<()> {
        use fallible_iterator::FallibleIterator;
        let (mut plain, mut plus, mut offered) = (false, false, Vec::new());
        let mut mechanisms = offer.mechanisms();
        while let Some(mechanism) = mechanisms.next()? {
            plain |= mechanism == sasl::SCRAM_SHA_256;
            plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
            offered.push(mechanism.to_owned());
        }
        let (mechanism, binding) = match self.stream.server_end_point() {
            Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)),
            // Tells the server that we could have: nobody between us can have taken its offer away.
            Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
            _ => return Err(unsupported(&offered.join(" or "))),
        };
        let mut scram = sasl::ScramSha256::new(password.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
        self.send(&out).await?;
        let wrong = |error: io::Error| {
            Error::retry("the server did not prove that it knows the password").because(error).hint(WRONG_PASSWORD)
        };
        loop {
            match self.receive().await? {
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data()).map_err(wrong)?;
                    out.clear();
                    frontend::sasl_response(scram.message(), &mut out)?;
                    self.send(&out).await?;
                }
                Message::AuthenticationSaslFinal(body) => return scram.finish(body.data()).map_err(wrong),
                Message::ErrorResponse(body) => return Err(refused(&body)),
                _ => return Err(Error::retry("the server broke off the SCRAM exchange")),
            }
        }
    }

    async fn send(&mut self, out: &[u8]) -> Result<()> {
        self.stream.write_all(out).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.inbox)? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(Error::retry("the server closed the connection"));
            }
        }
    }

    /// The stream as tokio-postgres expects one: it starts up, and is let in at once.
    pub fn resumed(self) -> Resumed {
        let mut said = BytesMut::from(&b"R\0\0\0\x08\0\0\0\0"[..]); // AuthenticationOk
        said.extend_from_slice(&self.inbox);
        Resumed { stream: self.stream, said, begun: false }
    }
}

/// What a server says that does not let us in, with the way out.
fn refused(body: &ErrorResponseBody) -> Error {
    use fallible_iterator::FallibleIterator;
    let (mut code, mut message, mut detail) = (String::new(), String::new(), None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text,
            b'M' => message = text,
            b'D' => detail = Some(text),
            _ => {}
        }
    }
    let mut error = server_error(&code, &format!("the server says: {message}"), detail.as_deref(), hint(&code));
    if error.recovery == Recovery::Quarantine {
        error.recovery = Recovery::Stop; // there is no change to set aside
    }
    error
}

fn hint(code: &str) -> Option<&'static str> {
    match code {
        "28P01" => Some(WRONG_PASSWORD),
        "28000" => Some(
            "let the role in: LOGIN (and REPLICATION), and a line in pg_hba.conf such as \
             \"hostssl DATABASE ROLE ADDRESS scram-sha-256\"",
        ),
        "3D000" => Some("the database of the url does not exist"),
        "53300" => Some("raise max_connections (and max_wal_senders), or the role's CONNECTION LIMIT"),
        _ => None,
    }
}

fn unsupported(method: &str) -> Error {
    Error::stop(
        format!("the server asks for authentication that is not supported: {method}"),
        "use scram-sha-256 (or cert) for this role in pg_hba.conf",
    )
}

/// For tokio-postgres: swallows its startup message, answers it with what the server said after
/// the real one, and is the plain stream from there on.
pub(crate) struct Resumed {
    stream: Stream,
    /// Not handed on yet.
    said: BytesMut,
    /// The first read ends the startup: until then tokio-postgres has nothing else to write.
    begun: bool,
}

impl AsyncRead for Resumed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.begun = true;
        if this.said.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let size = this.said.len().min(buf.remaining());
        buf.put_slice(&this.said[..size]);
        this.said.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.begun {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
