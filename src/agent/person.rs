//! What commands ask of the journal while the agent runs, and what people decide: read beside the
//! desk, admitted by it.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::desk::{Message, Person, Undo};
use super::probe::{AgentProbe, Wiring};
use crate::audit::conflicts::{self, Conflict, ListSpec, Shown};
use crate::audit::export::{self, AuditSpec, Page};
use crate::audit::history::{self, History, HistorySpec, Progress};
use crate::audit::resolve::{Choice, Resolved};
use crate::audit::undo::{self, UndoSpec, Undone};
use crate::change::{ConflictId, Conflicted, Quarantined};
use crate::control::{HeldSpec, OfHeld, Treated};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::position::Seq;
use crate::status::Status;

/// Plans that others overtake before they are admitted.
const TRIES: usize = 5;

impl AgentProbe {
    pub(super) async fn tell_history(&self, spec: HistorySpec) -> Result<History> {
        let (wiring, config) = (self.wiring(), self.config.clone());
        let progress = Now { status: self.status.clone(), held: wiring.quarantine.borrow().clone() };
        reading(move || history::history(&wiring.journal, &wiring.index, &config, &wiring.schema, &spec, &progress))
            .await
    }

    pub(super) async fn list_conflicts(&self, spec: ListSpec) -> Result<Vec<Conflict>> {
        let (journal, open) = (self.wiring().journal.clone(), self.open_conflicts().await?);
        reading(move || conflicts::list(&journal, &spec, &open)).await
    }

    pub(super) async fn show_conflict(&self, id: ConflictId) -> Result<Shown> {
        let (journal, open) = (self.wiring().journal.clone(), self.open_conflicts().await?);
        reading(move || conflicts::show(&journal, id, open.iter().find(|open| open.id == id))).await
    }

    pub(super) async fn audit_page(&self, spec: AuditSpec) -> Result<Page> {
        let journal = self.wiring().journal.clone();
        reading(move || export::page(&journal, &spec)).await
    }

    async fn open_conflicts(&self) -> Result<Vec<Conflicted>> {
        let (reply, answer) = oneshot::channel();
        self.lay(Person::Conflicts { reply }).await?;
        answer.await.map_err(|_| away())
    }

    pub(super) async fn decide_conflict(&self, choice: Choice) -> Result<Resolved> {
        let id = choice.id.clone();
        let (reply, answer) = oneshot::channel();
        self.lay(Person::Resolve { choice, reply }).await?;
        Ok(Resolved { id, seq: answer.await.map_err(|_| away())?? })
    }

    pub(super) async fn take_back(&self, spec: UndoSpec) -> Result<Undone> {
        for _ in 0..TRIES {
            let wiring = self.wiring();
            let (journal, schema) = (wiring.journal.clone(), wiring.schema.clone());
            let (config, asked, of) = (self.config.clone(), spec.clone(), schema.clone());
            let planning = move || {
                let plan = undo::plan(&journal, &asked, &of, &config);
                failpoint::pass("undo-planned");
                plan
            };
            let plan = reading(planning).await?;
            let mut undone = plan.undone;
            if spec.dry_run || plan.changes == 0 || (undone.changed > 0 && !spec.skip_changed) {
                return Ok(undone);
            }
            let undo = Undo {
                txid: spec.txid(),
                schema,
                body: plan.body,
                changes: plan.changes,
                keys: plan.keys,
                head: plan.head,
            };
            let (reply, answer) = oneshot::channel();
            self.lay(Person::Undo { undo, reply }).await?;
            if let Some(seq) = answer.await.map_err(|_| away())?? {
                undone.seq = seq;
                return Ok(undone);
            }
        }
        Err(Error::retry("the rows are changed faster than they can be taken back; try again"))
    }

    /// Those that fit, as the arbiter holds them when it comes to it.
    pub(super) async fn treat_held(&self, of: HeldSpec, what: OfHeld) -> Result<Treated> {
        let held: Vec<_> = self.wiring().quarantine.borrow().iter().filter(|record| of.fits(record)).cloned().collect();
        if held.is_empty() && !of.all() {
            return Err(Error::stop("nothing like that is in quarantine", "anechoic quarantine"));
        }
        let (reply, answer) = oneshot::channel();
        self.lay(Person::Held { held, what, reply }).await?;
        answer.await.map_err(|_| away())?
    }

    async fn lay(&self, person: Person) -> Result<()> {
        let Wiring { desk, .. } = &*self.wiring();
        let desk: Option<mpsc::Sender<Message>> = desk.upgrade();
        desk.ok_or_else(away)?.send(Message::Person(person)).await.map_err(|_| away())
    }
}

/// How far the systems are, by the counters.
struct Now {
    status: Arc<Status>,
    held: Vec<Quarantined>,
}

impl Progress for Now {
    fn applied(&self, system: &str) -> Seq {
        let found = self.status.systems.iter().find(|status| *status.name == *system);
        found.map_or(0, |status| status.apply.seq.get())
    }

    fn held(&self) -> Vec<Quarantined> {
        self.held.clone()
    }
}

fn away() -> Error {
    Error::retry("the flows are being made anew; try again")
}

/// The journal is read on a thread that may wait for disks.
async fn reading<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::stop(format!("reading the journal failed: {panic}"), "report this as a bug")),
    }
}
