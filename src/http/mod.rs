//! The port: whether the agent is well, what it does, and its numbers. Read-only, and no row
//! values: everything here comes from [`Status`]'s counters, so a stuck stage cannot hang it.

mod dashboard;
pub mod health;
mod live;
pub mod metrics;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve as serve_http};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::live::Live;
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

/// Takes the port of the configuration, so that a port in use is known before anything starts.
pub async fn bind(config: &Config) -> Result<TcpListener> {
    let listen = config.agent.listen;
    if !listen.ip().is_loopback() {
        tracing::warn!(%listen, "the port is open to other machines: names of systems and entities, counters and errors can be read there");
    }
    TcpListener::bind(listen).await.map_err(|error| cannot_listen(listen, error))
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
    listener: TcpListener,
    shown: watch::Receiver<Arc<Status>>,
    control: Router,
    token: bool,
    stop: CancellationToken,
) -> Result<()> {
    let live = Live::start(shown.clone(), token, stop.clone());
    serve_http(listener, router(Port { shown, live }).merge(control))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::status::State as Phase;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_port_answers_while_a_system_is_stopped_and_says_which() {
        let status = status::tests::example();
        *status.systems[0].capture.state.lock().unwrap() = Phase::Stopped("slot is gone".into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server =
            tokio::spawn(serve(listener, watch::Sender::new(status).subscribe(), Router::new(), false, stop.clone()));

        let (live, ready) = (get(address, "/live").await, get(address, "/ready").await);
        let (metrics, page) = (get(address, "/metrics").await, get(address, "/").await);
        stop.cancel();

        assert!(live.starts_with("HTTP/1.1 200"));
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("slot is gone"), "{ready}");
        assert!(metrics.contains("anechoic_ready 0\n"));
        assert!(page.contains("<title>anechoic</title>") && page.contains("content-security-policy"), "{page}");
        server.await.unwrap().unwrap();
    }
}
