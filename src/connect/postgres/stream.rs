//! The socket to a PostgreSQL server: TCP, TCP with TLS, or a unix socket.
//!
//! TLS is negotiated here (SSLRequest, one byte, handshake). As in libpq, unix sockets carry none.
//!
//! Protocol: PostgreSQL manual, "Frontend/Backend Protocol", SSL session encryption.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{ConnectConfig, TlsMode};
use crate::connect;
use crate::error::{Error, Result};

/// A socket to the server, TLS done where wanted and possible.
pub(super) async fn open(config: &ConnectConfig) -> Result<Stream> {
    if let Some(directory) = connect::socket(config) {
        let path = format!("{}/.s.PGSQL.{}", directory.trim_end_matches('/'), config.port);
        let connecting = tokio::time::timeout(config.connect_timeout, UnixStream::connect(&path));
        let stream = connecting
            .await
            .map_err(|_| connect::late(config))?
            .map_err(|error| connect::unreachable(config, error))?;
        return Ok(Stream::Unix(stream));
    }
    let mut stream = connect::tcp(config).await?;
    if config.tls.mode == TlsMode::Disable {
        return Ok(Stream::Tcp(stream));
    }
    let offered = tokio::time::timeout(config.connect_timeout, request_tls(&mut stream));
    let offered = offered.await.map_err(|_| connect::late(config))?;
    if offered.map_err(|error| error.context(format!("asking {} for TLS", connect::place(config))))? {
        let stream = connect::tls_stream(config, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    } else if config.tls.mode == TlsMode::Prefer {
        Ok(Stream::Tcp(stream))
    } else {
        Err(connect::no_tls(config, "set ssl = on on the server"))
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
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket that the bytes go through; `None` for a unix socket.
    pub(crate) fn tcp(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Stream::Tcp(stream) => Some(stream.as_fd()),
            Stream::Tls(stream) => Some(stream.get_ref().0.as_fd()),
            Stream::Unix(_) => None,
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
