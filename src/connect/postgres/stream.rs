//! The socket to a PostgreSQL server: TCP, TCP with TLS, or a unix socket.
//!
//! TLS is negotiated here (SSLRequest, one byte, handshake). As in libpq, unix sockets carry none.
//!
//! Protocol: PostgreSQL manual, "Frontend/Backend Protocol", SSL session encryption.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::near::Near;
use crate::config::{ConnectConfig, TlsMode};
use crate::connect::{self, Receives};
use crate::error::{Error, Result};

/// A socket to the server, TLS done where wanted and possible.
pub(super) async fn open(config: &ConnectConfig, receives: Receives) -> Result<Stream> {
    if let Some(directory) = connect::socket(config) {
        let path = format!("{}/.s.PGSQL.{}", directory.trim_end_matches('/'), config.port);
        let connecting = tokio::time::timeout(config.connect_timeout, UnixStream::connect(&path));
        let stream = connecting
            .await
            .map_err(|_| connect::late(config))?
            .map_err(|error| connect::unreachable(config, error))?;
        return Ok(Stream::Unix(stream));
    }
    let mut stream = connect::tcp(config, receives).await?;
    if config.tls.mode == TlsMode::Disable {
        return plain(stream, receives);
    }
    let offered = tokio::time::timeout(config.connect_timeout, request_tls(&mut stream));
    let offered = offered.await.map_err(|_| connect::late(config))?;
    if offered.map_err(|error| error.context(format!("asking {} for TLS", connect::place(config))))? {
        connect::widen(&stream)?;
        let stream = connect::tls_stream(config, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    } else if config.tls.mode == TlsMode::Prefer {
        plain(stream, receives)
    } else {
        Err(connect::no_tls(config, "set ssl = on on the server"))
    }
}

fn plain(stream: TcpStream, receives: Receives) -> Result<Stream> {
    match receives == Receives::Log && connect::is_here(stream.peer_addr()?) {
        true => Ok(Stream::Near(Near::new(stream)?)),
        false => Ok(Stream::Tcp(stream)),
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
        _ => Err(Error::retry("the answer is neither yes nor no").hint("is that a PostgreSQL server, and its port?")),
    }
}

/// A stream to a server, whatever it runs over.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// A log from this machine, without TLS.
    Near(Near),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket that the bytes go through, where the runtime watches it and it is TCP.
    pub(crate) fn watched(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Stream::Tcp(stream) => Some(stream.as_fd()),
            Stream::Tls(stream) => Some(stream.get_ref().0.as_fd()),
            Stream::Near(_) | Stream::Unix(_) => None,
        }
    }

    /// The server certificate's hash, for SCRAM-SHA-256-PLUS.
    pub(super) fn server_end_point(&self) -> Option<Vec<u8>> {
        let Stream::Tls(stream) = self else { return None };
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        connect::tls::server_end_point(certificate)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Near(stream) => stream.poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Near(stream) => stream.poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Near(_) => Poll::Ready(Ok(())),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Near(stream) => Poll::Ready(stream.socket().shutdown(Shutdown::Write)),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
