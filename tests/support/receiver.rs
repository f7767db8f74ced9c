//! Whoever takes webhooks: away for a while, in trouble at random, and exact about what it was sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::free_port;

/// What it asks for, in seconds, with 429.
const PATIENCE: &str = "300";

/// A request, and what was answered.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub answer: u16,
    /// It counts as taken here, whatever was answered.
    pub taken: bool,
}

impl Request {
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Signed with the secret, as the specification says.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{}.{}.", self.id(), self.headers["webhook-timestamp"]).as_bytes());
        mac.update(&self.body);
        let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
        self.headers.get("webhook-signature") == Some(&expected)
    }
}

struct Inner {
    requests: Mutex<Vec<Request>>,
    random: Mutex<StdRng>,
    /// Of a hundred requests so many are not taken, and as many taken and answered with trouble.
    trouble: AtomicU32,
    /// Answered to everything; 0: what happens to be.
    always: AtomicU16,
}

pub struct Receiver {
    pub port: u16,
    inner: Arc<Inner>,
    serving: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Nobody listens yet.
    pub fn new(seed: u64) -> Receiver {
        let inner = Inner {
            requests: Mutex::default(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            trouble: AtomicU32::new(0),
            always: AtomicU16::new(0),
        };
        Receiver { port: free_port(), inner: Arc::new(inner), serving: None }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn up(&mut self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.inner.always.store(0, Ordering::SeqCst);
        let router = Router::new().fallback(take).with_state(self.inner.clone());
        self.serving = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    /// Who connects is refused; a connection that is still open takes nothing more.
    pub async fn down(&mut self) {
        self.inner.always.store(503, Ordering::SeqCst);
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await; // then the port is free
        }
    }

    pub fn trouble(&self, percent: u32) {
        self.inner.trouble.store(percent, Ordering::SeqCst);
    }

    pub fn always(&self, code: u16) {
        self.inner.always.store(code, Ordering::SeqCst);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.inner.requests.lock().unwrap().clone()
    }

    /// What it has taken at that path, each message once, in the order of its first coming; one that
    /// came again must have been the same.
    pub fn taken(&self, path: &str) -> Vec<Request> {
        let mut taken: Vec<Request> = Vec::new();
        for request in self.requests().into_iter().filter(|request| request.path == path) {
            assert_eq!(request.headers["webhook-id"], request.headers["idempotency-key"]);
            match taken.iter().find(|known| known.id() == request.id()) {
                Some(known) => assert_eq!(known.body, request.body, "one id, two messages"),
                None if request.taken => taken.push(request),
                None => {}
            }
        }
        taken
    }
}

async fn take(State(inner): State<Arc<Inner>>, uri: Uri, headers: HeaderMap, body: Bytes) -> (StatusCode, HeaderMap) {
    let trouble = inner.trouble.load(Ordering::SeqCst);
    let dice = inner.random.lock().unwrap().random_range(0..100);
    let (answer, taken) = match inner.always.load(Ordering::SeqCst) {
        0 if dice < trouble => (500, false),
        0 if dice < 2 * trouble => (500, true),
        0 => (204, true),
        code => (code, false),
    };
    let headers =
        headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let (path, headers) = (uri.to_string(), headers.collect());
    inner.requests.lock().unwrap().push(Request { path, headers, body: body.to_vec(), answer, taken });
    let mut asks = HeaderMap::new();
    if answer == 429 {
        asks.insert(RETRY_AFTER, HeaderValue::from_static(PATIENCE));
    }
    (StatusCode::from_u16(answer).unwrap(), asks)
}
