//! `/events`: everything that the dashboard shows, once a second, as server-sent events.
//!
//! ```text
//! event: history    {"crm": [[12, 3], …]}    changes a second from and to each system, oldest first
//! event: state      {"report": …, …}         see [`State`]
//! ```
//!
//! Rendered once for everybody who looks, and not at all where nobody does.

mod volumes;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::volumes::{Rates, Rings, Volume};
use super::health::{Readiness, readiness};
use super::status::Report;
use crate::status::{Status, now};

const EVERY: Duration = Duration::from_secs(1);
/// Dashboards open at once; each is a connection that stays.
const VIEWERS_MAX: usize = 64;

/// What a dashboard needs, in one message.
#[derive(Debug, Serialize)]
struct State {
    version: &'static str,
    up_seconds: i64,
    /// Whether there is a token, without which nothing can be changed here.
    token: bool,
    ready: Readiness,
    report: Report,
    /// Changes a second from and to each system.
    rates: BTreeMap<Arc<str>, [f64; 2]>,
    volumes: Vec<Volume>,
    /// Bytes of log that each system keeps for the agent, where that is known.
    retained: BTreeMap<Arc<str>, i64>,
}

/// Shared by the clock that samples and those who look.
#[derive(Clone)]
pub struct Live {
    latest: watch::Receiver<Arc<str>>,
    rates: Arc<Mutex<Rates>>,
    viewers: Arc<Semaphore>,
}

impl Live {
    /// Samples until `stop`; the streams of all who look end with it.
    pub fn start(shown: watch::Receiver<Arc<Status>>, token: bool, stop: CancellationToken) -> Self {
        let (sender, latest) = watch::channel(Arc::from(""));
        let live = Live { latest, rates: Arc::default(), viewers: Arc::new(Semaphore::new(VIEWERS_MAX)) };
        let clock = Clock { shown, token, sender, rates: live.rates.clone(), viewers: live.viewers.clone() };
        tokio::spawn(stop.run_until_cancelled_owned(clock.run()));
        live
    }

    pub fn events(&self) -> Response {
        let Ok(viewer) = self.viewers.clone().try_acquire_owned() else {
            return (axum::http::StatusCode::SERVICE_UNAVAILABLE, "too many dashboards are open\n").into_response();
        };
        let rates = self.rates.lock().expect("never held across a panic");
        let history = serde_json::to_string(&*rates).expect("rates are plain data");
        drop(rates);
        let mut latest = self.latest.clone();
        // Only what is rendered from now on: nothing was while nobody looked.
        latest.mark_unchanged();
        let first = stream::iter([Ok::<_, Infallible>(Event::default().event("history").data(history))]);
        let states = stream::unfold((latest, viewer), |(mut latest, viewer)| async move {
            latest.changed().await.ok()?;
            let event = Event::default().event("state").data(&*latest.borrow_and_update().clone());
            Some((Ok(event), (latest, viewer)))
        });
        Sse::new(futures_util::StreamExt::chain(first, states)).into_response()
    }
}

struct Clock {
    shown: watch::Receiver<Arc<Status>>,
    token: bool,
    sender: watch::Sender<Arc<str>>,
    rates: Arc<Mutex<Rates>>,
    viewers: Arc<Semaphore>,
}

impl Clock {
    async fn run(self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rings = Rings::default();
        let mut status = self.shown.borrow().clone();
        loop {
            ticks.tick().await;
            let current = self.shown.borrow().clone();
            if !Arc::ptr_eq(&current, &status) {
                // Another configuration: its counters begin at nothing.
                rings = Rings::default();
                *self.rates.lock().expect("never held across a panic") = Rates::default();
                status = current;
            }
            let now = now();
            rings.sample(&status, now);
            let rates = {
                let mut rates = self.rates.lock().expect("never held across a panic");
                rates.sample(&status, now);
                rates.latest()
            };
            if self.viewers.available_permits() < VIEWERS_MAX {
                let state = self.state(&status, rates, rings.volumes(&status, now), now);
                let text = serde_json::to_string(&state).expect("a state is plain data");
                self.sender.send_replace(text.into());
            }
        }
    }

    fn state(&self, status: &Status, rates: BTreeMap<Arc<str>, [f64; 2]>, volumes: Vec<Volume>, now: i64) -> State {
        let report = Report::of(status, now);
        let retained = status.systems.iter().map(|system| (system.name.clone(), system.capture.retained_bytes.get()));
        State {
            version: env!("CARGO_PKG_VERSION"),
            up_seconds: (now - status.started) / 1_000_000,
            token: self.token,
            ready: readiness(&report, status.max_lag),
            report,
            rates,
            volumes,
            retained: retained.filter(|(_, bytes)| *bytes >= 0).collect(),
        }
    }
}
