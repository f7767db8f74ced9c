//! The target half of one system: its applier, with the target that its engine asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::chunks::Copying;
use super::desk::Message;
use super::gate::{self, Gate, Lever};
use super::watch::{Half, Notice};
use crate::apply::applier::Applier;
use crate::apply::batch::Routes;
use crate::apply::lanes::Lanes;
use crate::apply::mysql::MyTarget;
use crate::apply::postgres::PgTarget;
use crate::apply::steps::Limits;
use crate::apply::{TableRows, Target, TargetSpec, instance, is_locked};
use crate::capture::mysql::prove_marker;
use crate::change::{ResyncMark, ResyncState};
use crate::config::{Config, Engine};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::journal::Journal;
use crate::marker::{Marker, Unshown};
use crate::normalize::binding::Binding;
use crate::normalize::resolve::Model;
use crate::position::Seq;
use crate::schema::SystemId;
use crate::status::{State, Status, now};
use crate::value::Row;

/// What one applier works with.
pub struct Applying {
    pub config: Arc<Config>,
    pub system: SystemId,
    pub model: Arc<Model>,
    pub journal: Journal,
    /// The journal's head when the agent started.
    pub known: Seq,
    pub status: Arc<Status>,
    pub desk: mpsc::Sender<Message>,
    /// Ends the agent: another one of its id is at work.
    pub refused: mpsc::Sender<Error>,
    pub gate: Lever,
    pub notices: mpsc::Sender<Notice>,
    /// Where the system is only written to: what we write need not be sent back.
    pub unshown: Option<Unshown>,
}

impl Applying {
    /// Runs until `stop`. What needs a person ends the flow into this system alone.
    pub async fn run(self, stop: CancellationToken) {
        let mut gate = self.gate.subscribe();
        while !stop.is_cancelled() {
            let writing = tokio::select! {
                writing = gate::to_write(&self.gate) => writing,
                error = self.held_by_another() => return self.stand(error, &stop).await,
                () = stop.cancelled() => return,
            };
            let halt = stop.child_token();
            let mut applying = Box::pin(self.applied(&halt));
            let ended = tokio::select! {
                ended = &mut applying => ended,
                // It finishes the batch in hand.
                () = shut(&mut gate) => {
                    halt.cancel();
                    applying.await
                }
            };
            drop(writing);
            if let Err(error) = ended {
                return self.stand(error, &stop).await;
            }
            let state = &self.status.systems[self.system.index()].apply.state;
            *state.lock().expect("never held across a panic") = State::Connecting;
        }
    }

    /// Until what it met is mended, and the flows are made anew.
    async fn stand(&self, error: Error, stop: &CancellationToken) {
        let state = &self.status.systems[self.system.index()].apply.state;
        if is_schema(self.config.system(self.system).engine, &error) {
            warn!(error = %error.full(), "apply stands still: the table is not as it was");
            *state.lock().expect("never held across a panic") = State::Retrying(error.full());
            let notice = Notice { system: self.system, half: Half::Apply, unseen: true, error };
            // Without a watch the agent is going down.
            let _ = self.notices.send(notice).await;
            return stop.cancelled().await;
        }
        error!(error = %error.full(), "apply stopped: a person must act");
        *state.lock().expect("never held across a panic") = State::Stopped(error.full());
        if is_locked(&error) {
            // The first refusal is enough.
            let _ = self.refused.try_send(error);
        } else if error.is_lost() {
            self.note_lost(&error).await;
            gate::set(&self.gate, |gate| gate.lost = true);
        }
        stop.cancelled().await;
    }

    /// In the journal: by the time the agent starts again its own head may hide what is seen now.
    async fn note_lost(&self, error: &Error) {
        let (reply, answer) = oneshot::channel();
        let mark = ResyncMark {
            system: self.config.system(self.system).name.clone(),
            state: ResyncState::Needed,
            begun: now(),
            marker: 0,
            head: 0,
            causal: false,
            restored: true,
            delete_extra: false,
            reason: error.full(),
            done: Vec::new(),
        };
        if self.desk.send(Message::Copying(Copying::Resync { mark, reply })).await.is_ok() {
            let _ = answer.await; // or the agent is going down
        }
    }

    /// Where the log is lost because another agent of our id is at work, that is what has to be
    /// said: it takes the lock that an applier of ours would have found taken.
    async fn held_by_another(&self) -> Error {
        let mut gate = self.gate.subscribe();
        // We hold a lever ourselves, so it does not go away.
        let _ = gate.wait_for(|gate| gate.lost).await;
        let (system, spec) = (self.config.system(self.system), self.spec());
        loop {
            let alone = match system.engine {
                Engine::Postgres => PgTarget::new(system.connect.clone(), spec.clone()).alone().await,
                Engine::Mysql => MyTarget::new(system.connect.clone(), spec.clone()).alone().await,
            };
            match alone {
                Ok(()) => std::future::pending().await,
                Err(error) if is_locked(&error) => return error,
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// One run of the applier.
    async fn applied(&self, stop: &CancellationToken) -> Result<()> {
        let (system, spec) = (self.config.system(self.system), self.spec());
        let (connect, connections) = (system.connect.clone(), system.connections);
        match system.engine {
            Engine::Postgres => {
                let (synchronous, unshown) = (system.synchronous_commit, self.unshown.clone());
                let make = move |lane| {
                    let target = PgTarget::new(connect.clone(), TargetSpec { lane, ..spec.clone() });
                    target.synchronous(synchronous).unshown(unshown.clone())
                };
                self.apply(Lanes::new(connections, make), stop).await
            }
            Engine::Mysql => {
                let (config, system) = (self.config.clone(), self.system);
                let make = move |lane| {
                    let target = MyTarget::new(connect.clone(), TargetSpec { lane, ..spec.clone() });
                    Proving { target, config: config.clone(), system }
                };
                self.apply(Lanes::new(connections, make), stop).await
            }
        }
    }

    fn spec(&self) -> TargetSpec {
        let system = self.config.system(self.system);
        TargetSpec {
            agent: self.config.agent.id.clone(),
            system: system.name.clone(),
            lane: 0,
            lanes: system.connections as u32,
            marker: system.marker.clone(),
            journal: self.journal.id(),
            instance: instance(),
        }
    }

    async fn apply(&self, lanes: Lanes<impl Target + 'static>, stop: &CancellationToken) -> Result<()> {
        let bindings = &self.model.bindings[self.system.index()];
        let name = self.config.system(self.system).name.clone();
        let routes = Routes::new(self.system, name, self.model.schema.clone(), bindings);
        let (journal, desk, status) = (self.journal.clone(), self.desk.clone(), self.status.clone());
        let changes = failpoint::batch_changes(Limits::default().changes);
        let limits = Limits { changes, ..Limits::default() };
        Applier::new(lanes, routes, limits, journal, desk, status).known(self.known).run(stop.clone()).await
    }
}

async fn shut(gate: &mut watch::Receiver<Gate>) {
    // We hold a lever ourselves, so it does not go away.
    let _ = gate.wait_for(|gate| !gate.is_open()).await;
}

/// The server knows no such table or column, or one of another type: the catalog has changed.
fn is_schema(engine: Engine, error: &Error) -> bool {
    let codes: &[&str] = match engine {
        Engine::Postgres => &["3F000", "42P01", "42703", "42704", "42804", "42883"],
        Engine::Mysql => &["1049", "1054", "1146"],
    };
    error.code.as_deref().is_some_and(|code| codes.contains(&code))
}

/// A MySQL or MariaDB target whose marker proves itself each time it is opened: what raises the
/// epoch must come back in the server's own log. A filter set while we were away is found so.
struct Proving {
    target: MyTarget,
    config: Arc<Config>,
    system: SystemId,
}

impl Target for Proving {
    async fn open(&mut self) -> Result<Marker> {
        let agent = &self.config.agent;
        let mut marker = None;
        let (target, found) = (&mut self.target, &mut marker);
        let write = || async move {
            *found = Some(target.open().await?);
            Ok(())
        };
        let system = self.config.system(self.system);
        prove_marker(&system.connect, &agent.id, &system.marker, write).await?;
        marker.ok_or_else(|| Error::retry("the marker was not written"))
    }

    fn rows(&self) -> Vec<Marker> {
        self.target.rows()
    }

    async fn join(&mut self, rows: Vec<Marker>) -> Result<()> {
        self.target.join(rows).await
    }

    async fn begin(&mut self, next: &Marker) -> Result<()> {
        self.target.begin(next).await
    }

    async fn write(&mut self, rows: &TableRows<'_>) -> Result<()> {
        self.target.write(rows).await
    }

    async fn write_alone(&mut self, rows: &TableRows<'_>) -> Result<()> {
        self.target.write_alone(rows).await
    }

    async fn read(&mut self, binding: &Binding, keys: &[Row<'_>]) -> Result<Vec<Option<Vec<u8>>>> {
        self.target.read(binding, keys).await
    }

    async fn holder(&mut self, binding: &Binding, columns: &[usize], values: Row<'_>) -> Result<Option<Vec<u8>>> {
        self.target.holder(binding, columns, values).await
    }

    async fn flush(&mut self) -> Result<()> {
        self.target.flush().await
    }

    async fn commit(&mut self) -> Result<()> {
        self.target.commit().await
    }

    async fn rollback(&mut self) -> Result<()> {
        self.target.rollback().await
    }
}
