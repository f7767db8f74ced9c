//! Runs the steps against a target and the journal: does what they say, tells them what came
//! of it, and keeps the status. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admit::{HeldKey, Rival};
use crate::apply::Target;
use crate::apply::batch::Routes;
use crate::apply::lanes::{Flight, Lanes, SHOW_EVERY};
use crate::apply::steps::{Action, Event, Limits, Opened, Steps};
use crate::change::Quarantined;
use crate::error::{Error, Recovery, Result};
use crate::failpoint;
use crate::journal::{Journal, Reader, SpoolReader};
use crate::position::Seq;
use crate::schema::SystemId;
use crate::status::{self, ApplyStatus, State, Status};

/// Another agent's lock, what is in flight, and the marker's proof have deadlines of their own
/// and take less; an answer that never comes has none.
const OPEN_PATIENCE: Duration = Duration::from_secs(150);
/// Where the log's reader is not sent what is written, it is shown the marker when for so long there was
/// nothing to write.
const SHOW_WHEN_IDLE: Duration = Duration::from_millis(20);
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// What an applier asks of the arbiter. Both are answered after a sync that covers them.
#[derive(Debug)]
pub enum Ask {
    /// What this system holds, and the highest marker that its log has shown.
    Held { system: SystemId, reply: oneshot::Sender<Holding> },
    Quarantine {
        records: Vec<Quarantined>,
        /// What is in the way of some of them.
        rivals: Vec<Rival>,
        reply: oneshot::Sender<Result<()>>,
    },
}

#[derive(Debug)]
pub struct Holding {
    pub keys: Vec<HeldKey>,
    pub seen: Seq,
    /// `Arbiter::applies_from`.
    pub from: Seq,
}

/// One target's applier. `M` is what the arbiter's channel carries.
pub struct Applier<T, M> {
    system: SystemId,
    lanes: Lanes<T>,
    steps: Steps,
    journal: Journal,
    arbiter: mpsc::Sender<M>,
    status: Arc<Status>,
    reader: Option<Reader>,
    sought_again: bool,
    chunks: Option<SpoolReader>,
    durable: watch::Receiver<Seq>,
}

impl<T: Target + 'static, M: From<Ask> + Send> Applier<T, M> {
    pub fn new(
        lanes: Lanes<T>,
        routes: Routes,
        limits: Limits,
        journal: Journal,
        arbiter: mpsc::Sender<M>,
        status: Arc<Status>,
    ) -> Self {
        let durable = journal.durable();
        let limits = Limits { connections: lanes.connections(), ..limits };
        Applier {
            system: routes.system,
            lanes,
            steps: Steps::new(routes, limits),
            journal,
            arbiter,
            status,
            reader: None,
            sought_again: false,
            chunks: None,
            durable,
        }
    }

    /// Entries up to `seq` were journaled before the agent started: their changes are counted as
    /// addressed here, later ones where they are admitted.
    #[must_use]
    pub fn known(mut self, seq: Seq) -> Self {
        self.steps = self.steps.known(seq);
        self
    }

    fn state(&self) -> &ApplyStatus {
        &self.status.systems[self.system.index()].apply
    }

    fn set_state(&self, state: State) {
        *self.state().state.lock().expect("nobody panics while holding the state") = state;
    }

    /// Applies until `stop`, finishing the batch in hand. An error needs a person; what time or
    /// a reconnect may mend is retried here.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            if stop.is_cancelled() {
                self.steps.finish();
            }
            let event = match self.steps.next(rand::random()) {
                Action::Stop(None) => return Ok(()),
                Action::Stop(Some(error)) => {
                    // Whatever it stands for, its log goes on; what fails here is shown when it is opened again.
                    if let Some(target) = self.lanes.idle() {
                        let _ = tokio::time::timeout(LEAVE_PATIENCE, target.show()).await;
                    }
                    self.set_state(State::of(&error));
                    return Err(error);
                }
                action => match self.act(action, &stop).await {
                    Ok(event) => event,
                    Err(error) => self.failed(error),
                },
            };
            self.steps.event(event, status::now());
            self.report();
        }
    }

    fn failed(&mut self, error: Error) -> Event {
        if error.recovery != Recovery::Quarantine {
            self.lanes.give_up();
        }
        match error.recovery {
            Recovery::Retry => {
                warn!(error = %error.full(), "connection or statement failed, retrying");
                self.state().retries.add(1);
                self.set_state(State::Retrying(error.full()));
            }
            Recovery::Quarantine => debug!(error = %error, "a row was refused"),
            Recovery::Stop => {}
        }
        Event::Failed(error)
    }

    async fn act(&mut self, action: Action, stop: &CancellationToken) -> Result<Event> {
        Ok(match action {
            Action::Open => self.open().await?,
            Action::Seek(from) => self.seek(from)?,
            Action::Fetch => {
                // Marked before reading: what becomes durable from here on wakes the wait.
                self.durable.borrow_and_update();
                let reader = self.reader.as_mut().expect("the steps seek before they fetch");
                match reader.next() {
                    // It stood at entries for others, and those went: where to go on is asked anew.
                    Err(_) if self.journal.oldest() > reader.seq() + 1 => {
                        return Err(Error::retry("the journal has dropped what was not for this system"));
                    }
                    record => Event::Fetched(record?),
                }
            }
            Action::Wait => {
                let hidden = self.lanes.first().hidden().is_some();
                let waited = tokio::select! {
                    changed = self.durable.changed() => Some(changed.is_err()),
                    () = stop.cancelled() => Some(false),
                    () = tokio::time::sleep(SHOW_WHEN_IDLE), if hidden => None,
                };
                match waited {
                    Some(true) => self.steps.finish(),
                    Some(false) => {}
                    None => self.lanes.first().show().await?,
                }
                Event::Done
            }
            Action::Gather(time) => {
                tokio::select! {
                    changed = self.durable.changed() => drop(changed),
                    () = tokio::time::sleep(time) => {}
                    () = stop.cancelled() => {}
                }
                Event::Done
            }
            Action::Pause(time) => {
                tokio::select! {
                    () = tokio::time::sleep(time) => {}
                    () = stop.cancelled() => {}
                }
                Event::Done
            }
            Action::Submit(marker) => {
                self.lanes.submit(Flight { marker, groups: self.steps.take_groups() });
                Event::Done
            }
            Action::Land => done(self.lanes.land().await)?,
            Action::Begin(marker) => done(self.lanes.first().begin(&marker).await)?,
            Action::Chunk { spool, first } => {
                if first {
                    self.chunks = Some(self.journal.spool_chunks(&spool)?);
                }
                let chunks = self.chunks.as_mut().expect("opened with the first chunk");
                Event::Chunk(chunks.next()?)
            }
            Action::Read => {
                let rows = self.steps.group().rows();
                Event::Rows(self.lanes.first().read(&self.steps.group().binding, &rows).await?)
            }
            Action::Write { alone } => {
                let rows = self.steps.group().rows();
                let rows = self.steps.table_rows(&rows);
                done(match alone {
                    true => self.lanes.first().write_alone(&rows).await,
                    false => self.lanes.first().write(&rows).await,
                })?
            }
            Action::Holder => {
                let (binding, columns, values) = self.steps.sought();
                Event::Holder(self.lanes.first().holder(&binding, columns, values).await?)
            }
            Action::Quarantine(records, rivals) => {
                for record in &records {
                    warn!(seq = record.last_seq, error = %record.reason, "a change was set aside");
                }
                let (reply, answer) = oneshot::channel();
                self.ask(Ask::Quarantine { records, rivals, reply }).await?;
                done(answer.await.map_err(|_| arbiter_gone())?)?
            }
            Action::Commit => {
                failpoint::pass("before-target-commit");
                let target = self.lanes.first();
                let committed = done(target.commit().await)?;
                failpoint::pass("after-target-commit");
                if target.hidden().is_some_and(|since| since > SHOW_EVERY) {
                    target.show().await?;
                }
                committed
            }
            Action::Rollback => done(self.lanes.first().rollback().await)?,
            Action::Stop(_) => unreachable!("handled by the caller"),
        })
    }

    /// Between the arbiter's answer and here the journal may have dropped what is not for this
    /// system: then it is asked once more. What is missing after that is missing.
    fn seek(&mut self, from: Seq) -> Result<Event> {
        let gone = self.journal.oldest() > from;
        match self.journal.reader(from) {
            Ok(reader) => {
                self.reader = Some(reader);
                self.sought_again = false;
                Ok(Event::Done)
            }
            Err(_) if gone && !std::mem::replace(&mut self.sought_again, true) => {
                Err(Error::retry("the journal has dropped what was not for this system"))
            }
            Err(error) => Err(error),
        }
    }

    async fn open(&mut self) -> Result<Event> {
        self.set_state(State::Connecting);
        let opened = tokio::time::timeout(OPEN_PATIENCE, self.lanes.open()).await;
        let marker =
            opened.map_err(|_| Error::retry(format!("the target was not open within {OPEN_PATIENCE:?}")))??;
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Held { system: self.system, reply }).await?;
        let Holding { keys, seen, from } = answer.await.map_err(|_| arbiter_gone())?;
        info!(seq = marker.seq, "applying");
        self.state().found.set(marker.seq);
        self.set_state(State::Streaming);
        let (journal, head) = (self.journal.id(), self.journal.head());
        Ok(Event::Opened(Box::new(Opened { marker, journal, head, seen, from, held: keys })))
    }

    async fn ask(&mut self, ask: Ask) -> Result<()> {
        self.arbiter.send(ask.into()).await.map_err(|_| arbiter_gone())
    }

    fn report(&mut self) {
        let progress = self.steps.take_progress();
        let apply = &self.status.systems[self.system.index()].apply;
        apply.seq.set(self.steps.passed());
        apply.oldest_pending.set(self.steps.oldest_pending().unwrap_or(0));
        if progress.commits == 0 {
            return;
        }
        apply.commits.add(progress.commits);
        apply.transactions.add(progress.transactions);
        apply.addressed.add(progress.backlog);
        apply.changes.add(progress.applied);
        apply.coalesced.add(progress.coalesced);
        apply.held.add(progress.held);
        apply.bytes.add(progress.bytes);
        apply.batches.observe(progress.applied as f64);
        let counters = self.status.entities.iter().zip(&apply.entities);
        for (written, (entity, counter)) in progress.entities.iter().zip(counters) {
            entity.applied.add(written.writes + written.deletes);
            counter.writes.add(written.writes);
            counter.deletes.add(written.deletes);
        }
        let now = status::now();
        progress.committed_at.iter().for_each(|at| apply.latency.observe((now - at) as f64 / 1e6));
        debug!(
            seq = self.steps.passed(),
            rows = progress.applied,
            transactions = progress.transactions,
            "applied transactions"
        );
    }
}

fn done(result: Result<()>) -> Result<Event> {
    result.map(|()| Event::Done)
}

fn arbiter_gone() -> Error {
    Error::retry("the arbiter has stopped")
}
