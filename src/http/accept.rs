//! Connections to the port: each by itself, so that one that stands still stops no other.
//!
//! Not axum's own server: that waits for no client with a watch in its hand, so who sends one byte
//! an hour would keep its place for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::certificate::Certificate;
use super::limits::{Connection, Limits};
use crate::connect::watch_over;

/// Of what a connection has sent and nobody has read, and of a request without its body.
const BUFFER: usize = 32 << 10;
/// Out of file descriptors, most likely: others end meanwhile.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub handshake: Duration,
    /// For a whole request without its body, and between two of them.
    pub request: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { handshake: Duration::from_secs(10), request: Duration::from_secs(30) }
    }
}

/// Until `stop`, and until all that was asked by then is answered.
pub async fn accept(
    listener: TcpListener,
    certificate: Option<Certificate>,
    limits: Arc<Limits>,
    patience: Patience,
    router: Router,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match limits.connect(from.ip(), certificate.is_some(), Instant::now()) {
                Some(connection) => {
                    let certificate = certificate.clone();
                    let (router, stop) = (router.clone(), stop.clone());
                    connections.spawn(converse(stream, from, certificate, connection, patience, router, stop));
                }
                None => debug!(%from, "a connection to the port is refused: there are too many"),
            },
            Err(error) => {
                warn!(%error, "no connection to the port can be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn converse(
    stream: TcpStream,
    from: SocketAddr,
    certificate: Option<Certificate>,
    connection: Connection,
    patience: Patience,
    router: Router,
    stop: CancellationToken,
) {
    // Who is gone already needs no answer.
    if watch_over(&stream).is_err() {
        return;
    }
    let Some(certificate) = certificate else { return answer(stream, from, connection, patience, router, stop).await };
    let handshake = TlsAcceptor::from(certificate.current()).accept(stream);
    let handshake = stop.run_until_cancelled(tokio::time::timeout(patience.handshake, handshake));
    match handshake.await {
        Some(Ok(Ok(stream))) => answer(stream, from, connection, patience, router, stop).await,
        Some(Ok(Err(error))) => debug!(%from, %error, "no TLS session on the port"),
        Some(Err(_)) => debug!(%from, "no TLS session on the port: the handshake takes too long"),
        None => {}
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    connection: Connection,
    patience: Patience,
    router: Router,
    stop: CancellationToken,
) {
    let (router, connection) = (TowerToHyperService::new(router), Arc::new(connection));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        router.call(request.map(Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.request)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%from, %error, "a connection to the port ended early");
    }
}
