//! The port: whether the agent is well, what it does, and its numbers. Read-only, and no row
//! values: everything here comes from [`Status`]'s counters, so a stuck stage cannot hang it.
//!
//! ```text
//! accept ── connections, TLS (certificate) ──▶ guard ── every answer's headers ──▶ routes
//!                 └────────── limits ────────────┘                    here, and control::port
//! ```

mod accept;
mod certificate;
mod dashboard;
mod guard;
pub mod health;
mod limits;
mod live;
pub mod metrics;
mod refusal;
pub mod status;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::accept::Patience;
pub use self::certificate::{Certificate, REMIND_EVERY};
use self::limits::Limits;
pub use self::limits::{Connection, Token};
use self::live::Live;
pub use self::refusal::Refusal;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::status::{Status, now};

/// What is shown changes with the configuration.
#[derive(Clone)]
struct Port {
    shown: watch::Receiver<Arc<Status>>,
    live: Live,
}

impl Port {
    fn status(&self) -> Arc<Status> {
        self.shown.borrow().clone()
    }
}

/// Taken, and nobody is answered yet.
pub struct Door {
    listener: TcpListener,
    certificate: Option<Certificate>,
    /// Only this machine reaches it, and nothing proves its name.
    local_names: bool,
    limits: Arc<Limits>,
    patience: Patience,
}

/// Takes the port of the configuration, so that a port in use, or a certificate that cannot be used, is known before
/// anything starts.
pub async fn bind(config: &Config) -> Result<Door> {
    let listen = config.agent.listen;
    let certificate = config.agent.tls.as_ref().map(Certificate::read).transpose()?;
    let local = listen.ip().is_loopback();
    if !local && certificate.is_none() {
        warn!(%listen, "insecure = true: other machines reach the port without TLS, and whoever is on the way reads along, the token, too");
    }
    let listener = TcpListener::bind(listen).await.map_err(|error| cannot_listen(listen, error))?;
    let local_names = local && certificate.is_none();
    Ok(Door { listener, certificate, local_names, limits: Arc::default(), patience: Patience::default() })
}

impl Door {
    /// To be renewed; `None`: the port speaks no TLS.
    pub fn certificate(&self) -> Option<Certificate> {
        self.certificate.clone()
    }
}

fn cannot_listen(listen: SocketAddr, error: std::io::Error) -> Error {
    Error::stop(
        format!("cannot listen on {listen}: {error}"),
        "free the port, or choose another in [agent]: listen = \"127.0.0.1:PORT\"",
    )
    .because(error)
}

/// Answers until `stop`. `control` are the routes of what can be asked of the agent; `token`:
/// whether something can be changed there.
pub async fn serve(
    door: Door,
    shown: watch::Receiver<Arc<Status>>,
    control: Router,
    token: bool,
    stop: CancellationToken,
) {
    let live = Live::start(shown.clone(), token, stop.clone());
    let Door { listener, certificate, local_names, limits, patience } = door;
    let guarded = router(Port { shown, live }).merge(control).layer(from_fn_with_state(local_names, guard::guard));
    accept::accept(listener, certificate, limits, patience, guarded, stop).await;
}

fn router(port: Port) -> Router {
    Router::new()
        .route("/", get(dashboard::page))
        .route("/events", get(|State(port): State<Port>| async move { port.live.events() }))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(report))
        .with_state(port)
}

async fn ready(State(port): State<Port>) -> Response {
    let status = port.status();
    let readiness = health::readiness(&status::Report::of(&status, now()), status.max_lag);
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness)).into_response()
}

async fn metrics(State(port): State<Port>) -> Response {
    let status = port.status();
    let text = metrics::render(&status, status.max_lag, now());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn report(State(port): State<Port>) -> Json<status::Report> {
    Json(status::Report::of(&port.status(), now()))
}
