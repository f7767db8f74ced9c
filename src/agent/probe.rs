//! What the control socket may ask of the running agent.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::copying::Loads;
use super::desk::Message;
use super::gate::{self, Lever};
use super::paused::Paused;
use super::reload;
use crate::alert::{Tried, try_each};
use crate::audit::conflicts::{Conflict, ListSpec, Shown};
use crate::audit::export::{AuditSpec, Page};
use crate::audit::history::{History, HistorySpec};
use crate::audit::keys::KeyIndex;
use crate::audit::resolve::{Choice, Resolved};
use crate::audit::undo::{UndoSpec, Undone};
use crate::capture;
use crate::change::{ConflictId, Quarantined, ResyncMark, ResyncState};
use crate::config::{Config, Engine, nearest};
use crate::control::{Held, HeldSpec, OfHeld, Probe, Treated};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::load::{LoadSpec, ResyncSpec, VerifySpec};
use crate::position::{Position, Seq};
use crate::schema::{Schema, SystemId};
use crate::status::{Status, now};

/// For a batch that is under way when its system is paused.
const REST_PATIENCE: Duration = Duration::from_secs(10);

pub struct AgentProbe {
    pub config: Arc<Config>,
    pub status: Arc<Status>,
    pub stop: CancellationToken,
    pub wiring: Mutex<Arc<Wiring>>,
    pub ask: mpsc::Sender<ResyncMark>,
    pub paused: Arc<Paused>,
    pub reload: mpsc::Sender<reload::Asked>,
}

/// What is made anew with the flows; until then the former one answers.
pub struct Wiring {
    pub journal: Journal,
    /// Per system: the journal has everything up to there.
    pub taken: Vec<watch::Receiver<Position>>,
    /// Per system: whether anything is applied there.
    pub receives: Vec<bool>,
    pub quarantine: watch::Receiver<Vec<Quarantined>>,
    pub gates: Vec<Lever>,
    pub index: KeyIndex,
    pub loads: Loads,
    pub schema: Arc<Schema>,
    pub desk: mpsc::WeakSender<Message>,
}

impl AgentProbe {
    pub fn renew(&self, wiring: Wiring) {
        *self.wiring.lock().expect("never held across a panic") = Arc::new(wiring);
        // Told while it was being made.
        self.pause_as_told();
    }

    /// Moves gates and shown states to what people have said last.
    pub fn pause_as_told(&self) {
        let wiring = self.wiring();
        for (system, gate) in self.config.system_ids().zip(&wiring.gates) {
            let paused = self.paused.contains(&self.config.system(system).name);
            self.status.systems[system.index()].paused.store(paused, Ordering::Relaxed);
            gate::set(gate, |gate| gate.paused = paused);
        }
    }

    pub(super) fn wiring(&self) -> Arc<Wiring> {
        self.wiring.lock().expect("never held across a panic").clone()
    }
}

impl Probe for AgentProbe {
    fn status(&self) -> &Arc<Status> {
        &self.status
    }

    async fn log_end(&self, system: SystemId) -> Result<Position> {
        let config = &self.config.system(system).connect;
        match self.config.system(system).engine {
            Engine::Postgres => {
                let name = format!("anechoic/{} wait", self.config.agent.id);
                let client = crate::connect::postgres::connect(config, &name).await?;
                capture::postgres::log_end(&client).await
            }
            Engine::Mysql => {
                let mut conn = crate::connect::mysql::connect(config).await?;
                let end = capture::mysql::log_end(&mut conn).await;
                // The answer is there; how the session ends does not matter.
                let _ = conn.disconnect().await;
                end
            }
        }
    }

    fn captured(&self, system: SystemId, end: &Position) -> bool {
        self.wiring().taken[system.index()].borrow().reached(end)
    }

    fn head(&self) -> Seq {
        self.wiring().journal.head()
    }

    fn applied(&self, system: SystemId) -> Option<Seq> {
        self.wiring().receives[system.index()].then(|| self.status.systems[system.index()].apply.seq.get())
    }

    fn quarantined(&self) -> Vec<Held> {
        self.wiring().quarantine.borrow().iter().map(Held::from).collect()
    }

    fn verify(&self, spec: VerifySpec) -> Result<()> {
        self.wiring().loads.verify(spec)
    }

    fn load(&self, spec: LoadSpec) -> Result<()> {
        self.wiring().loads.start(spec)
    }

    fn resync(&self, spec: ResyncSpec) -> Result<()> {
        let mark = ResyncMark {
            system: spec.system.into(),
            state: ResyncState::Begun,
            begun: now(),
            marker: 0,
            head: 0,
            causal: false,
            restored: spec.restored,
            delete_extra: spec.delete_extra,
            reason: String::new(),
            done: Vec::new(),
        };
        self.wiring().loads.announce(&mark)?;
        self.ask.try_send(mark).map_err(|_| Error::retry("another resync is just being begun"))
    }

    async fn audit(&self, spec: AuditSpec) -> Result<Page> {
        self.audit_page(spec).await
    }

    async fn history(&self, spec: HistorySpec) -> Result<History> {
        self.tell_history(spec).await
    }

    async fn conflicts(&self, spec: ListSpec) -> Result<Vec<Conflict>> {
        self.list_conflicts(spec).await
    }

    async fn conflict(&self, id: ConflictId) -> Result<Shown> {
        self.show_conflict(id).await
    }

    async fn resolve(&self, choice: Choice) -> Result<Resolved> {
        self.decide_conflict(choice).await
    }

    async fn undo(&self, spec: UndoSpec) -> Result<Undone> {
        self.take_back(spec).await
    }

    async fn pause(&self, system: &str, paused: bool) -> Result<()> {
        known(&self.config, system)?;
        self.paused.set(system, paused)?;
        self.pause_as_told();
        info!(system, "{}", if paused { "paused by a person" } else { "goes on, as a person says" });
        let wiring = self.wiring();
        let index = self.config.systems.iter().position(|known| paused && *known.name == *system);
        let Some(gate) = index.and_then(|index| wiring.gates.get(index)) else { return Ok(()) };
        tokio::time::timeout(REST_PATIENCE, gate::until_at_rest(gate)).await.map_err(|_| {
            Error::retry(format!(
                "{system} is paused, but what is being written there has not ended within {REST_PATIENCE:?}: it is the last, \
                 and anechoic status tells how its server is"
            ))
        })
    }

    async fn set_aside(&self, of: HeldSpec, what: OfHeld) -> Result<Treated> {
        self.treat_held(of, what).await
    }

    async fn alert(&self, only: Option<String>) -> Vec<Tried> {
        try_each(&self.config, only.as_deref()).await
    }

    async fn reload(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let busy = || Error::retry("the file is being read already; try again");
        self.reload.try_send(reply).map_err(|_| busy())?;
        answer.await.map_err(|_| busy())?
    }

    fn stop(&self) {
        self.stop.cancel();
    }
}

fn known(config: &Config, name: &str) -> Result<()> {
    let names = || config.systems.iter().map(|system| &*system.name);
    if names().any(|known| known == name) {
        return Ok(());
    }
    let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
    let known = names().collect::<Vec<_>>().join(", ");
    Err(Error::stop(format!("there is no system {name:?}{near}"), format!("one of: {known}")))
}
