//! A system without a log position: stopped until somebody asks for a resync, then given a new
//! one while the others go on.
//!
//! ```text
//! Needed ──asked──▶ Begun ──placed──▶ Placed ──compared──▶ Done
//!   stopped           new position      read, compared       read, applied
//! ```
//!
//! Each step is a record of the journal, and the flows are made anew at the first two, so that no
//! stage works with a position that is none. A kill between any two begins with the last one.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::change::{ResyncMark, ResyncState};
use crate::config::Config;
use crate::error::{Recovery, Result, backoff};
use crate::failpoint;
use crate::journal::{Journal, PositionRecord};
use crate::load::LoadProgress;
use crate::schema::SystemId;
use crate::setup::{self, NewPosition, Operator, Placed};
use crate::status::{State, Status};

/// A step of a resync, to be written while nothing is wired.
#[derive(Debug)]
pub struct Asked {
    pub mark: ResyncMark,
    /// The system has a new position.
    pub new: Option<NewPosition>,
}

impl Asked {
    pub fn write(self, operator: &mut Operator) -> Result<()> {
        let Asked { mut mark, new } = self;
        let before = operator.recovered.resyncs.iter().find(|before| before.system == mark.system);
        // What was known of its tables is still so when it is asked for once more.
        mark.restored |= before.is_some_and(|before| before.restored);
        let Some(new) = new else { return operator.resync(&mark) };
        mark.head = operator.journal.head();
        if mark.causal && operator.journal.oldest() > mark.marker + 1 {
            warn!(system = %mark.system, "the journal has shrunk meanwhile: its position is made once more");
            return operator.resync(&ResyncMark { state: ResyncState::Begun, ..mark });
        }
        failpoint::pass("before-resync-position");
        operator.replace(&mark, &new)?;
        failpoint::pass("after-resync-position");
        Ok(())
    }
}

pub struct Placing {
    pub config: Arc<Config>,
    pub system: SystemId,
    pub status: Arc<Status>,
    pub journal: Journal,
    /// Where its log was read to, when that could be read.
    pub before: PositionRecord,
    pub mark: ResyncMark,
    pub placed: mpsc::Sender<Asked>,
}

impl Placing {
    /// Until the flows are made anew with a position for it.
    pub async fn run(self, stop: CancellationToken) {
        let state = &self.status.systems[self.system.index()].capture.state;
        let set = |new: State| *state.lock().expect("never held across a panic") = new;
        if self.mark.state == ResyncState::Needed {
            set(State::Stopped(self.mark.reason.clone()));
            return stop.cancelled().await;
        }
        set(State::Loading);
        let mut attempt = 0;
        loop {
            let placed = tokio::select! {
                placed = self.place() => placed,
                () = stop.cancelled() => return,
            };
            let error = match placed {
                Ok(placed) => {
                    self.hand_on(placed).await;
                    return stop.cancelled().await;
                }
                Err(error) => error,
            };
            set(State::of(&error));
            if error.recovery != Recovery::Retry {
                error!(error = %error.full(), "no new position: a person must act");
                self.tell("failed", &error.full());
                return stop.cancelled().await;
            }
            let pause = backoff(attempt, rand::random());
            attempt += 1;
            warn!(error = %error.full(), retry_in_ms = pause.as_millis() as u64, "no new position yet, retrying");
            self.tell("retrying", &error.full());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn place(&self) -> Result<Placed> {
        let before = Some(&self.before).filter(|before| !before.identity.is_empty());
        setup::place(&self.config, self.system, &self.journal, before).await
    }

    async fn hand_on(&self, placed: Placed) {
        let Placed { position, causal, restored, done } = placed;
        for done in done {
            info!(done, "placed anew");
        }
        let restored = self.mark.restored || restored;
        info!(position = %position.position, marker = position.base, causal, restored, "a new position");
        let mark = ResyncMark {
            state: ResyncState::Placed,
            marker: position.base,
            causal,
            restored,
            done: Vec::new(),
            ..self.mark.clone()
        };
        // Without a receiver the agent is going down.
        let _ = self.placed.send(Asked { mark, new: Some(position) }).await;
    }

    /// Whoever waits for the command's end hears of it.
    fn tell(&self, state: &str, error: &str) {
        let mut loads = self.status.loads.lock().expect("never held across a panic");
        let waiting = |load: &&mut LoadProgress| *load.from == *self.mark.system && load.state != "done";
        for load in loads.iter_mut().filter(waiting) {
            state.clone_into(&mut load.state);
            load.error = Some(error.to_owned());
        }
    }
}
