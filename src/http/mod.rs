//! The port: whether the agent is well, what it does, and its numbers. Read-only, and no row
//! values: everything comes from [`Status`]'s counters, so a stuck stage cannot hang it.

pub mod health;
pub mod metrics;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve as serve_http};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::status::{Status, now};

/// What is shown changes with the configuration.
#[derive(Clone)]
struct Port {
    shown: watch::Receiver<Arc<Status>>,
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

/// Answers until `stop`.
pub async fn serve(listener: TcpListener, shown: watch::Receiver<Arc<Status>>, stop: CancellationToken) -> Result<()> {
    serve_http(listener, router(shown)).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

pub fn router(shown: watch::Receiver<Arc<Status>>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(report))
        .with_state(Port { shown })
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

async fn index(State(port): State<Port>) -> Html<String> {
    // The id is [a-z0-9_], checked with the configuration: nothing to escape.
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>anechoic {id}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:3rem auto;max-width:40rem;padding:0 1rem}}</style>\
         <h1>anechoic <small>{id}</small></h1><ul>\
         <li><a href=\"/status\">/status</a> what each system and entity is doing\
         <li><a href=\"/ready\">/ready</a> whether all is well, and if not, why\
         <li><a href=\"/metrics\">/metrics</a> the numbers, for Prometheus\
         <li><a href=\"/live\">/live</a> whether the process turns</ul>\n",
        id = port.status().agent
    ))
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
        let server = tokio::spawn(serve(listener, watch::Sender::new(status).subscribe(), stop.clone()));

        let (live, ready) = (get(address, "/live").await, get(address, "/ready").await);
        let (metrics, page) = (get(address, "/metrics").await, get(address, "/").await);
        stop.cancel();

        assert!(live.starts_with("HTTP/1.1 200"));
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("slot is gone"), "{ready}");
        assert!(metrics.contains("anechoic_ready 0\n"));
        assert!(page.contains("/status"));
        server.await.unwrap().unwrap();
    }
}
