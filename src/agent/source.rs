//! The source half of one system: capture and normalize, fed to the desk.
//!
//! A capture that ends is made anew, with backoff, from what the desk has taken in by then.
//! Nothing else is kept over a reconnect: a base or a half transaction of the old connection
//! would be ahead of the log that is read again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::desk::{Message, Resumed};
use super::gate::{self, Lever};
use super::watch::{Half, Notice};
use crate::capture::mysql::MyCapture;
use crate::capture::postgres::PgCapture;
use crate::capture::{Capture, CaptureSpec, is_altered, is_unseen};
use crate::change::Quarantined;
use crate::config::{Config, Engine};
use crate::error::{Error, Recovery, Result, backoff};
use crate::journal::Journal;
use crate::marker::Unshown;
use crate::normalize::resolve::Model;
use crate::normalize::{Collected, Normalizer};
use crate::position::{Position, Seq};
use crate::schema::SystemId;
use crate::status::{State, Status};

/// From the first byte to a log that streams; all that the server is asked meanwhile is small.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// What one source works with.
#[derive(Clone)]
pub struct Source {
    pub config: Arc<Config>,
    pub system: SystemId,
    pub model: Arc<Model>,
    pub journal: Journal,
    pub status: Arc<Status>,
    pub desk: mpsc::Sender<Message>,
    pub acknowledged: watch::Receiver<Position>,
    /// The journal is full: nothing more is read, unless the log may still show markers that
    /// let something go.
    pub full: watch::Receiver<bool>,
    /// Live quarantine records.
    pub quarantine: watch::Receiver<Vec<Quarantined>>,
    /// Highest marker that the log has shown.
    pub seen: watch::Receiver<Seq>,
    /// Of the applier of the same system.
    pub gate: Lever,
    /// The journal's head when the flows were made.
    pub hops_from: Seq,
    pub notices: mpsc::Sender<Notice>,
    /// Where the system is only written to: its log is read without what we write.
    pub unshown: Option<Unshown>,
}

impl Source {
    /// Runs until `stop`, or until the system's flow needs a person.
    pub async fn run(self, stop: CancellationToken) {
        let state = &self.status.systems[self.system.index()].capture.state;
        let mut attempt = 0;
        while let Some(reading) = stop.run_until_cancelled(gate::to_read(&self.gate)).await {
            let streamed = tokio::select! {
                // However much there is to read.
                biased;
                // What was read and not handed on is read, and counted, again.
                () = gate::until_paused(&self.gate) => {
                    info!("capture pauses");
                    Ok(())
                }
                streamed = self.stream(&stop, &mut attempt) => streamed,
            };
            drop(reading);
            let error = match streamed {
                // Told to stop, or to pause.
                Ok(()) => continue,
                Err(error) => error.of_system(&self.config.system(self.system).name),
            };
            match error.is_lost() {
                true => gate::set(&self.gate, |gate| gate.lost = true),
                // What is not understood is still in the log.
                false if error.recovery == Recovery::Stop => gate::set(&self.gate, |gate| gate.placed = true),
                false => {}
            }
            if is_unseen(&error) {
                info!(error = %error.message, "the log is ahead of what is known of a table");
                *state.lock().expect("never held across a panic") = State::Retrying(error.full());
                return self.stand(error, &stop).await;
            }
            *state.lock().expect("never held across a panic") = State::of(&error);
            if error.recovery == Recovery::Stop {
                error!(error = %error.full(), "capture stopped: a person must act");
                return self.stand(error, &stop).await;
            }
            let pause = backoff(attempt, rand::random());
            warn!(error = %error.full(), attempt, retry_in_ms = pause.as_millis() as u64, "capture ended, retrying");
            attempt += 1;
            self.status.systems[self.system.index()].capture.retries.add(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Until the flows are made anew, where that may help.
    async fn stand(&self, error: Error, stop: &CancellationToken) {
        let unseen = is_unseen(&error);
        if unseen || is_altered(&error) {
            // Without a watch the agent is going down.
            let _ = self.notices.send(Notice { system: self.system, half: Half::Capture, unseen, error }).await;
        }
        stop.cancelled().await;
    }

    /// One connection, from where the desk is.
    async fn stream(&self, stop: &CancellationToken, attempt: &mut u32) -> Result<()> {
        // The applier, that lets the journal shrink, waits for the first connection.
        if self.gate.borrow().placed {
            self.wait_while_full(stop).await;
        }
        let Resumed { at, prepared } = self.resume().await?;
        let system = self.config.system(self.system);
        let spec = CaptureSpec {
            agent: self.config.agent.id.clone(),
            marker: system.marker.clone(),
            tables: self.model.wanted[self.system.index()].clone(),
            start: at.position.clone(),
            identity: at.identity.clone(),
            prepared,
            without_origins: self.unshown.is_some(),
            acknowledged: self.acknowledged.clone(),
        };
        let connecting = async {
            match system.engine {
                Engine::Postgres => PgCapture::connect(&system.connect, spec).await.map(Box::new).map(Either::Postgres),
                Engine::Mysql => MyCapture::connect(&system.connect, spec).await.map(Box::new).map(Either::Mysql),
            }
        };
        let mut capture = tokio::select! {
            capture = tokio::time::timeout(CONNECT_PATIENCE, connecting) => match capture {
                Ok(capture) => capture?,
                Err(_) => return Err(Error::retry(format!("its log was not to be had within {CONNECT_PATIENCE:?}"))),
            },
            () = stop.cancelled() => return Ok(()),
        };
        info!(position = %at.position, base = at.base, "capture streams");
        // A server of the other kind may refuse its log after it has let us in.
        if system.engine == Engine::Postgres {
            gate::set(&self.gate, |gate| gate.placed = true);
        }
        let status = &self.status.systems[self.system.index()].capture;
        *status.state.lock().expect("never held across a panic") = State::Streaming;
        let mut normalizer = Normalizer::new(
            self.system,
            &self.model,
            self.journal.clone(),
            at.base,
            self.hops_from,
            self.quarantine.clone(),
            self.status.clone(),
        )
        .unshown(self.unshown.clone());
        while !stop.is_cancelled() {
            if self.gate.borrow().lost {
                return Err(Error::lost("its rows are not those that the journal knows", "nothing is read until"));
            }
            if self.must_pause() {
                return Err(Error::retry("the journal is full: nothing is read until a system takes what is in it"));
            }
            match &mut capture {
                Either::Postgres(capture) => capture.read(&mut normalizer).await?,
                Either::Mysql(capture) => capture.read(&mut normalizer).await?,
            }
            if *attempt > 0 || !self.gate.borrow().placed {
                *attempt = 0;
                gate::set(&self.gate, |gate| gate.placed = true);
            }
            let items: Vec<Collected> = normalizer.drain().collect();
            let now = crate::status::now();
            status.heard.set(now);
            let behind = items.iter().any(|item| matches!(item, Collected::Transaction(_) | Collected::Decided { .. }));
            status.lag.set(if behind { now - status.last_commit.get() } else { 0 });
            self.hand_on(items, status).await?;
        }
        debug!("capture ends");
        Ok(())
    }

    async fn hand_on(&self, items: Vec<Collected>, status: &crate::status::CaptureStatus) -> Result<()> {
        let Some(last) = items.last() else { return Ok(()) };
        let position = last.position().to_string();
        *status.position.lock().expect("never held across a panic") = position;
        let message = Message::Collected { system: self.system, items };
        self.desk.send(message).await.map_err(|_| desk_is_gone())
    }

    async fn resume(&self) -> Result<Resumed> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Resume { system: self.system, reply };
        self.desk.send(message).await.map_err(|_| desk_is_gone())?;
        answer.await.map_err(|_| desk_is_gone())
    }

    /// Nothing more may be read, unless the log may still show markers that let something go.
    fn must_pause(&self) -> bool {
        let applied = self.status.systems[self.system.index()].apply.seq.get();
        *self.full.borrow() && *self.seen.borrow() >= applied
    }

    /// Without a connection: a server must be able to shut down meanwhile.
    async fn wait_while_full(&self, stop: &CancellationToken) {
        while self.must_pause() && !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

enum Either {
    Postgres(Box<PgCapture>),
    Mysql(Box<MyCapture>),
}

fn desk_is_gone() -> Error {
    Error::retry("the agent is going down: the journal is closed")
}
