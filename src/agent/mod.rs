//! Wires captures, arbiter, journal and appliers; restarts one, stops all in order.
//!
//! ```text
//! source crm ─┐                                     ┌─▶ target crm
//! source shop ┼─Collected─▶ desk (one thread) ─▶ JOURNAL ─▶ target shop
//! source erp ─┘    ▲                                └─▶ target erp
//!                  └──────────── quarantine ─────────────┘
//! ```
//!
//! All of it is made from one model of the tables. When these change so that another model is
//! needed ([`watch`]), it is taken down and made anew from the journal, in the same order.
//!
//! Who stops after whom: sources read no further; appliers finish the batch in hand; then the
//! desk, whose senders are gone, syncs what it has and closes the journal.

mod chunks;
mod copying;
pub mod decided;
mod desk;
mod herald;
mod look;
mod prepare;
mod probe;
mod reload;
mod retained;
mod source;
mod target;
mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::admit::{Arbiter, DiskStore, Policy, Topology};
use crate::change::LoadMark;
use crate::config::Config;
use crate::control::{self, Socket};
use crate::error::{Error, Result};
use crate::http;
use crate::journal::{Journal, PositionRecord};
use crate::normalize::binding::Role;
use crate::normalize::resolve::Model;
use crate::position::Seq;
use crate::schema::SystemId;
use crate::setup::{self, Operator};
use crate::status::{State, Status, SystemStatus};
use copying::{Context, Loads};
use desk::{Desk, Message, SystemDesk};
use prepare::Plan;
use probe::AgentProbe;
pub use reload::Reload;
use source::Source;
use target::Applying;
use watch::{Renewal, Watch};

/// Messages that wait for the desk. Each is at most about a MiB.
const INBOX: usize = 8;
const TICK: Duration = Duration::from_millis(250);
/// From the signal to the end, of the 10 s that are promised.
const LEAVE_WITHIN: Duration = Duration::from_secs(8);
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// The service: runs until `stop`, or until the journal cannot be written any more; by another
/// configuration whenever `reload` has one.
pub async fn run(config: Config, mut reload: Reload, stop: CancellationToken) -> Result<()> {
    let mut config = Arc::new(config);
    let mut operator = setup::operator(&config)?;
    if let Some(torn) = &operator.recovered.torn {
        info!(file = %torn.file.display(), offset = torn.offset, "the end of the journal was cut: it was never acknowledged");
    }
    // Both stay over a change of the file: who comes meanwhile waits.
    let socket = Arc::new(Socket::bind(&config.agent.data_dir)?);
    let port = http::bind(&config).await?;
    let shown = tokio::sync::watch::Sender::new(Status::new(&config));
    let served = tokio::spawn(http::serve(port, shown.subscribe(), stop.clone()));
    tokio::spawn(herald::announce(shown.subscribe(), stop.clone()));
    let result = loop {
        let (turn, status) = (stop.child_token(), shown.borrow().clone());
        let mut turning =
            Box::pin(turn_of(config.clone(), operator, status, socket.clone(), turn.clone(), stop.clone()));
        let next = tokio::select! {
            ended = &mut turning => break ended,
            next = reload.next(&config) => next,
        };
        info!("the file is taken: the flows are made anew by it");
        turn.cancel();
        if let Err(error) = turning.await {
            break Err(error);
        }
        config = Arc::new(next);
        operator = setup::operator(&config)?;
        shown.send_replace(Status::new(&config));
        reload.done();
    };
    served.abort();
    result
}

/// By one configuration, until `stop`.
async fn turn_of(
    config: Arc<Config>,
    mut operator: Operator,
    status: Arc<Status>,
    socket: Arc<Socket>,
    stop: CancellationToken,
    leave: CancellationToken,
) -> Result<()> {
    status.journal_head.set(operator.journal.head());
    status.journal_bytes.set(operator.journal.bytes());
    copying::recall(&config, &status);
    let prepared = prepare::prepare(&config, &mut operator, &status, &stop).await?;
    let Some((plan, positions)) = prepared else { return Ok(()) };
    let agent = Agent { config, status, stop, leave, known: operator.journal.head() };
    agent.run(plan, operator, positions, socket).await
}

struct Agent {
    config: Arc<Config>,
    status: Arc<Status>,
    /// Ends this turn, by this configuration.
    stop: CancellationToken,
    /// Ends the process.
    leave: CancellationToken,
    /// The journal's head when the agent started.
    known: Seq,
}

impl Agent {
    /// One wiring after the other, until one ends for good.
    async fn run(
        self,
        plan: Plan,
        operator: Operator,
        positions: Vec<PositionRecord>,
        socket: Arc<Socket>,
    ) -> Result<()> {
        let mut wiring = self.open(&plan.model, operator, positions)?;
        let probe = Arc::new(AgentProbe {
            config: self.config.clone(),
            status: self.status.clone(),
            stop: self.leave.clone(),
            wiring: Mutex::new(Arc::new(self.probed(&plan.model, &wiring))),
        });
        let answering = tokio::spawn(control::serve(socket, probe.clone(), self.stop.clone()));
        *self.status.state.lock().expect("never held across a panic") = "running";
        info!("running");
        let mut renewal = Renewal { plan, fruitless: 0 };
        while let Some(next) = self.work(wiring, renewal).await? {
            decided::save(&self.config, &next.plan.decided)?;
            self.status.systems.iter().for_each(connecting);
            let operator = setup::operator(&self.config)?;
            let positions = self.positions(&operator)?;
            wiring = self.open(&next.plan.model, operator, positions)?;
            probe.renew(self.probed(&next.plan.model, &wiring));
            renewal = next;
        }
        // It ends by the same signal; what it was asked last is answered.
        let _ = tokio::time::timeout(ANSWER_WITHIN, answering).await;
        Ok(())
    }

    fn open(&self, model: &Arc<Model>, operator: Operator, positions: Vec<PositionRecord>) -> Result<Wiring> {
        let config = &self.config;
        let names: Vec<Arc<str>> = config.systems.iter().map(|system| system.name.clone()).collect();
        let systems = config.system_ids().zip(&names).zip(positions);
        let systems =
            systems.map(|((system, name), at)| SystemDesk::new(name.clone(), at, receives(model, system))).collect();
        let topology = Topology::new(names, model.schema.clone(), &model.bindings, |_| Policy::default());
        let index = DiskStore::new(config.agent.data_dir.join("index"))?;
        let arbiter = Arbiter::new(topology, Box::new(index));
        let Operator { writer, journal, recovered } = operator;
        let desk = Desk::open(
            arbiter,
            writer,
            journal.clone(),
            model.schema.clone(),
            systems,
            recovered.quarantined,
            recovered.prepared,
            self.status.clone(),
            config.journal.clone(),
        )?;
        let (sender, inbox) = mpsc::channel(INBOX);
        let stop = self.stop.child_token();
        let loads = Loads::new(Context {
            config: config.clone(),
            model: model.clone(),
            status: self.status.clone(),
            desk: sender.downgrade(),
            taken: desk.systems().iter().map(|system| system.taken.subscribe()).collect(),
            quarantine: desk.quarantine(),
            stop: stop.clone(),
        });
        Ok(Wiring { journal, desk, sender, inbox, stop, loads, marks: recovered.loads })
    }

    fn positions(&self, operator: &Operator) -> Result<Vec<PositionRecord>> {
        let of = |name: &Arc<str>| {
            let lost = || Error::stop(format!("the journal has no position of {name}"), "report this as a bug");
            operator.recovered.positions.get(name).cloned().ok_or_else(lost)
        };
        self.config.systems.iter().map(|system| of(&system.name)).collect()
    }

    fn probed(&self, model: &Model, wiring: &Wiring) -> probe::Wiring {
        probe::Wiring {
            journal: wiring.journal.clone(),
            taken: wiring.desk.systems().iter().map(|system| system.taken.subscribe()).collect(),
            receives: self.config.system_ids().map(|system| receives(model, system)).collect(),
            quarantine: wiring.desk.quarantine(),
            loads: wiring.loads.clone(),
        }
    }

    /// Runs until `stop`; `Some`: until the tables ask for another model, and everything of this
    /// one has ended.
    async fn work(&self, wiring: Wiring, renewal: Renewal) -> Result<Option<Renewal>> {
        let Agent { config, status, known, .. } = self;
        let Wiring { journal, desk, sender, inbox, stop, loads, marks } = wiring;
        let Renewal { plan, fruitless } = renewal;
        let model = plan.model.clone();
        let (notices, noticed) = mpsc::channel(INBOX);
        let (refused, mut refusals) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        for system in config.system_ids().filter(|system| receives(&model, *system)) {
            let applying = Applying {
                config: config.clone(),
                system,
                model: model.clone(),
                journal: journal.clone(),
                known: *known,
                status: status.clone(),
                desk: sender.clone(),
                refused: refused.clone(),
                notices: notices.clone(),
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
                quarantine: desk.quarantine(),
                seen: of_desk.seen.subscribe(),
                notices: notices.clone(),
            };
            tasks.spawn(source.run(stop.clone()).instrument(info_span!("capture", system = %name)));
            tasks.spawn(retained::watch(config.clone(), system, status.clone(), stop.clone()));
        }
        tasks.spawn(tick(sender, stop.clone()));
        let due = loads.due(&marks);
        tasks.spawn(loads.clone().first_run(due));
        tasks.spawn(loads.by_itself());
        let watch = Watch::new(config.clone(), status.clone(), plan, fruitless);
        let mut watch = Box::pin(watch.run(noticed));
        let mut desk = tokio::task::spawn_blocking(move || desk.run(inbox));

        let verdict = tokio::select! {
            () = stop.cancelled() => Ok(None),
            renewal = &mut watch => Ok(Some(renewal)),
            // Two agents must not share an id, so this one ends, whole.
            Some(error) = refusals.recv() => {
                self.leave.cancel();
                Err(error)
            }
            ended = &mut desk => {
                // Without the journal nothing may go on; what was acknowledged is on disk.
                self.leave.cancel();
                let _ = tokio::time::timeout(LEAVE_WITHIN, tasks.join_all()).await;
                ended.map_err(|panic| Error::stop(format!("the arbiter failed: {panic}"), "report this"))??;
                return Ok(None);
            }
        };
        drop(notices);
        // What comes after it in this process needs the journal.
        let goes_on = !self.leave.is_cancelled();
        if !goes_on {
            *status.state.lock().expect("never held across a panic") = "stopping";
        }
        stop.cancel();
        let deadline = Instant::now() + LEAVE_WITHIN;
        let left = tokio::time::timeout_at(deadline, async { while tasks.join_next().await.is_some() {} }).await;
        if left.is_err() {
            warn!("a database did not answer in time: left without waiting; the marker tells what it has");
            if !goes_on {
                return verdict;
            }
            // What of it is in flight is fenced off by the next one.
            tasks.shutdown().await;
        }
        let ended = match goes_on {
            true => desk.await,
            false => match tokio::time::timeout_at(deadline, desk).await {
                Ok(ended) => ended,
                Err(_) => return verdict,
            },
        };
        ended.map_err(|panic| Error::stop(format!("the arbiter failed: {panic}"), "report this"))??;
        verdict
    }
}

/// The desk with the journal that it writes, made from one model.
struct Wiring {
    journal: Journal,
    desk: Desk,
    sender: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    /// Ends what was wired with it.
    stop: CancellationToken,
    loads: Loads,
    /// What the journal knows of loads.
    marks: Vec<LoadMark>,
}

/// Anything is applied there.
fn receives(model: &Model, system: SystemId) -> bool {
    model.bindings[system.index()].iter().any(|binding| binding.role != Role::Source)
}

/// What stood still is tried anew.
fn connecting(system: &SystemStatus) {
    for state in [&system.capture.state, &system.apply.state] {
        let mut state = state.lock().expect("never held across a panic");
        if *state != State::Unused {
            *state = State::Connecting;
        }
    }
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
