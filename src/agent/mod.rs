//! Wires captures, arbiter, journal and appliers; restarts one, stops all in order.
//!
//! ```text
//! source crm ─┐                                     ┌─▶ target crm
//! source shop ┼─Collected─▶ desk (one thread) ─▶ JOURNAL ─▶ target shop
//! source erp ─┘    ▲                                └─▶ target erp
//!                  └──────────── quarantine ─────────────┘
//! ```
//!
//! Who stops after whom: sources read no further; appliers finish the batch in hand; then the
//! desk, whose senders are gone, syncs what it has and closes the journal.

mod desk;
mod prepare;
mod probe;
mod retained;
mod source;
mod target;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::admit::{Arbiter, DiskStore, Policy, Topology};
use crate::config::Config;
use crate::control::{self, Socket};
use crate::error::{Error, Result};
use crate::http;
use crate::normalize::binding::Role;
use crate::normalize::resolve::Model;
use crate::schema::SystemId;
use crate::setup::{self, Operator};
use crate::status::Status;
use desk::{Desk, Message, SystemDesk};
use probe::AgentProbe;
use source::Source;
use target::Applying;

/// Messages that wait for the desk. Each is at most about a MiB.
const INBOX: usize = 8;
const TICK: Duration = Duration::from_millis(250);
/// From the signal to the end, of the 10 s that are promised.
const LEAVE_WITHIN: Duration = Duration::from_secs(8);

/// The service: runs until `stop`, or until the journal cannot be written any more.
pub async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let config = Arc::new(config);
    let mut operator = setup::operator(&config)?;
    if let Some(torn) = &operator.recovered.torn {
        info!(file = %torn.file.display(), offset = torn.offset, "the end of the journal was cut: it was never acknowledged");
    }
    let status = Status::new(&config);
    status.journal_head.set(operator.journal.head());
    status.journal_bytes.set(operator.journal.bytes());
    let socket = Socket::bind(&config.agent.data_dir)?;
    let port = http::bind(&config).await?;
    let served = tokio::spawn(http::serve(port, status.clone(), config.agent.max_lag, stop.clone()));

    let prepared = prepare::prepare(&config, &mut operator, &status, &stop).await?;
    let Some((model, positions)) = prepared else { return Ok(()) };
    let agent = Agent::open(config, Arc::new(model), operator, positions, status, socket, stop)?;
    let result = agent.work().await;
    served.abort();
    result
}

struct Agent {
    config: Arc<Config>,
    model: Arc<Model>,
    status: Arc<Status>,
    journal: crate::journal::Journal,
    desk: Desk,
    socket: Socket,
    stop: CancellationToken,
}

impl Agent {
    fn open(
        config: Arc<Config>,
        model: Arc<Model>,
        operator: Operator,
        positions: Vec<crate::journal::PositionRecord>,
        status: Arc<Status>,
        socket: Socket,
        stop: CancellationToken,
    ) -> Result<Self> {
        let names: Vec<Arc<str>> = config.systems.iter().map(|system| system.name.clone()).collect();
        let systems = config.system_ids().zip(&names).zip(positions);
        let systems =
            systems.map(|((system, name), at)| SystemDesk::new(name.clone(), at, receives(&model, system))).collect();
        let topology = Topology::new(names, model.schema.clone(), &model.bindings, |_| Policy::default());
        let index = DiskStore::new(config.agent.data_dir.join("index"))?;
        let arbiter = Arbiter::new(topology, Box::new(index));
        let Operator { writer, journal, recovered } = operator;
        let retention = config.journal.clone();
        let desk = Desk::open(
            arbiter,
            writer,
            journal.clone(),
            model.schema.clone(),
            systems,
            recovered.quarantined,
            status.clone(),
            retention,
        )?;
        Ok(Agent { config, model, status, journal, desk, socket, stop })
    }

    async fn work(self) -> Result<()> {
        let Agent { config, model, status, journal, desk, socket, stop } = self;
        let (sender, inbox) = mpsc::channel(INBOX);
        let (refused, mut refusals) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let known = journal.head();
        for system in config.system_ids().filter(|system| receives(&model, *system)) {
            let applying = Applying {
                config: config.clone(),
                system,
                model: model.clone(),
                journal: journal.clone(),
                known,
                status: status.clone(),
                desk: sender.clone(),
                refused: refused.clone(),
            };
            let name = &config.system(system).name;
            tasks.spawn(applying.run(stop.clone()).instrument(info_span!("apply", system = %name)));
        }
        for system in config.system_ids() {
            let name = config.system(system).name.clone();
            let of_desk = &desk.systems()[system.index()];
            let source = Source {
                config: config.clone(),
                system,
                model: model.clone(),
                journal: journal.clone(),
                status: status.clone(),
                desk: sender.clone(),
                acknowledged: of_desk.acknowledged.subscribe(),
                full: desk.full(),
                seen: of_desk.seen.subscribe(),
            };
            tasks.spawn(source.run(stop.clone()).instrument(info_span!("capture", system = %name)));
            tasks.spawn(retained::watch(config.clone(), system, status.clone(), stop.clone()));
        }
        tasks.spawn(tick(sender, stop.clone()));
        let probe = AgentProbe {
            taken: desk.systems().iter().map(|system| system.taken.subscribe()).collect(),
            receives: config.system_ids().map(|system| receives(&model, system)).collect(),
            quarantine: desk.quarantine(),
            config,
            status: status.clone(),
            journal,
            stop: stop.clone(),
        };
        let answering = tokio::spawn(control::serve(socket, Arc::new(probe), stop.clone()));
        let mut desk = tokio::task::spawn_blocking(move || desk.run(inbox));
        *status.state.lock().expect("never held across a panic") = "running";
        info!("running");

        let verdict = tokio::select! {
            () = stop.cancelled() => Ok(()),
            // Two agents must not share an id, so this one ends, whole.
            Some(error) = refusals.recv() => {
                stop.cancel();
                Err(error)
            }
            ended = &mut desk => {
                // Without the journal nothing may go on; what was acknowledged is on disk.
                stop.cancel();
                let _ = tokio::time::timeout(LEAVE_WITHIN, tasks.join_all()).await;
                return ended.map_err(|panic| Error::stop(format!("the arbiter failed: {panic}"), "report this"))?;
            }
        };
        *status.state.lock().expect("never held across a panic") = "stopping";
        let left = tokio::time::timeout(LEAVE_WITHIN, async {
            tasks.join_all().await;
            let _ = answering.await;
            desk.await
        });
        let left = match left.await {
            Ok(ended) => ended.map_err(|panic| Error::stop(format!("the arbiter failed: {panic}"), "report this"))?,
            Err(_) => {
                warn!("a database did not answer in time: left without waiting; the marker tells what it has");
                Ok(())
            }
        };
        verdict.and(left)
    }
}

/// Anything is applied there.
fn receives(model: &Model, system: SystemId) -> bool {
    model.bindings[system.index()].iter().any(|binding| binding.role != Role::Source)
}

async fn tick(desk: mpsc::Sender<Message>, stop: CancellationToken) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = interval.tick() => if desk.send(Message::Tick).await.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
