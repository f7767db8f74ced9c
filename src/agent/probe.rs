//! What the control socket may ask of the running agent.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::copying::Loads;
use super::desk::Message;
use crate::audit::conflicts::{Conflict, ListSpec, Shown};
use crate::audit::resolve::{Choice, Resolved};
use crate::audit::undo::{UndoSpec, Undone};
use crate::capture;
use crate::change::{ConflictId, Quarantined, ResyncMark, ResyncState};
use crate::config::{Config, Engine};
use crate::control::{Held, Probe};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::load::{LoadSpec, ResyncSpec, VerifySpec};
use crate::position::{Position, Seq};
use crate::schema::{Schema, SystemId};
use crate::status::{Status, now};

pub struct AgentProbe {
    pub config: Arc<Config>,
    pub status: Arc<Status>,
    pub stop: CancellationToken,
    pub wiring: Mutex<Arc<Wiring>>,
    pub ask: mpsc::Sender<ResyncMark>,
}

/// What is made anew with the flows; until then the former one answers.
pub struct Wiring {
    pub journal: Journal,
    /// Per system: the journal has everything up to there.
    pub taken: Vec<watch::Receiver<Position>>,
    /// Per system: whether anything is applied there.
    pub receives: Vec<bool>,
    pub quarantine: watch::Receiver<Vec<Quarantined>>,
    pub loads: Loads,
    pub schema: Arc<Schema>,
    pub desk: mpsc::WeakSender<Message>,
}

impl AgentProbe {
    pub fn renew(&self, wiring: Wiring) {
        *self.wiring.lock().expect("never held across a panic") = Arc::new(wiring);
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

    fn stop(&self) {
        self.stop.cancel();
    }
}
