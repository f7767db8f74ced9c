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

mod archive;
mod chunks;
mod clock;
mod copying;
pub mod decided;
mod desk;
mod gate;
mod herald;
mod look;
mod paused;
mod person;
mod prepare;
mod placing;
mod probe;
mod reload;
mod retained;
mod source;
mod summary;
mod target;
mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use crate::admit::{Arbiter, DiskStore, Topology};
use crate::alert;
use crate::audit::keys::KeyIndex;
use crate::change::{LoadMark, ResyncMark, ResyncState};
use crate::config::{Config, Engine};
use crate::control::{self, Socket, mask};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::feed;
use crate::http;
use crate::journal::{Journal, PositionRecord};
use crate::marker::Unshown;
use crate::normalize::binding::Role;
use crate::normalize::resolve::Model;
use crate::position::Seq;
use crate::schema::SystemId;
use crate::setup::{self, Operator};
use crate::status::{State, Status, SystemStatus};
use copying::{Context, Loads, Resync};
use desk::{Desk, Message, SystemDesk};
use gate::{Gate, Lever};
use paused::Paused;
use placing::{Asked, Placing};
use prepare::Plan;
use probe::AgentProbe;
pub use reload::Reload;
use retained::Retained;
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
    mask::set(&config);
    let mut operator = setup::operator(&config)?;
    if let Some(torn) = &operator.recovered.torn {
        info!(file = %torn.file.display(), offset = torn.offset, "the end of the journal was cut: it was never acknowledged");
    }
    // Both stay over a change of the file: who comes meanwhile waits.
    let socket = Arc::new(Socket::bind(&config.agent.data_dir)?);
    let port = http::bind(&config).await?;
    let certificate = port.certificate();
    if let Some(certificate) = certificate.clone() {
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let warned =
                |trouble: &str| warn!("{trouble}; replace tls_cert and tls_key, then: systemctl reload anechoic");
            certificate.remind(http::REMIND_EVERY, warned).await;
        }));
    }
    let shown = tokio::sync::watch::Sender::new(Status::new(&config));
    let token = config.agent.token_file.is_some();
    let served =
        tokio::spawn(http::serve(port, shown.subscribe(), control::port::routes(&config), token, stop.clone()));
    let asking = reload.asking();
    tokio::spawn(herald::announce(shown.subscribe(), stop.clone()));
    let result = loop {
        let (turn, status) = (stop.child_token(), shown.borrow().clone());
        *status.certificate.lock().expect("never held across a panic") =
            certificate.as_ref().and_then(http::Certificate::validity);
        let journal = tokio::sync::watch::Sender::new(None);
        let alerts = tokio::spawn(alert::run(config.clone(), status.clone(), journal.subscribe(), turn.clone()));
        let mut turning = Box::pin(turn_of(
            config.clone(),
            operator,
            status.clone(),
            socket.clone(),
            turn.clone(),
            stop.clone(),
            asking.clone(),
            journal,
        ));
        let next = tokio::select! {
            ended = &mut turning => {
                turn.cancel();
                let _ = alerts.await; // a panic ends the process
                break ended;
            }
            next = reload.next(&config, &status) => next,
        };
        info!("the file is taken: the flows are made anew by it");
        turn.cancel();
        failpoint::pass("turn-ends");
        let ended = turning.await;
        let _ = alerts.await;
        if let Err(error) = ended {
            break Err(error);
        }
        config = Arc::new(next);
        mask::set(&config);
        if let (Some(certificate), Some(files)) = (&certificate, &config.agent.tls)
            && let Err(error) = certificate.renew(files)
        {
            error!(error = %error.full(), "the port keeps the certificate that it had");
        }
        operator = setup::operator(&config)?;
        shown.send_replace(Status::new(&config));
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
    reload: mpsc::Sender<reload::Asked>,
    journal: tokio::sync::watch::Sender<alert::Current>,
) -> Result<()> {
    status.journal_head.set(operator.journal.head());
    status.journal_bytes.set(operator.journal.bytes());
    copying::recall(&config, &status);
    let prepared = prepare::prepare(&config, &mut operator, &status, &stop).await?;
    let Some((plan, positions)) = prepared else { return Ok(()) };
    let paused = Arc::new(Paused::load(&config));
    let agent = Agent { config, status, stop, leave, known: operator.journal.head(), paused, reload, current: journal };
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
    paused: Arc<Paused>,
    /// Has the file read again.
    reload: mpsc::Sender<reload::Asked>,
    /// The journal that is written to, for those who outlast one wiring.
    current: tokio::sync::watch::Sender<alert::Current>,
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
        let (ask, mut asked) = mpsc::channel(1);
        let mut wiring = self.open(&plan.model, operator, positions)?;
        let probe = Arc::new(AgentProbe {
            config: self.config.clone(),
            status: self.status.clone(),
            stop: self.leave.clone(),
            wiring: Mutex::new(Arc::new(self.probed(&plan.model, &wiring))),
            ask,
            paused: self.paused.clone(),
            reload: self.reload.clone(),
        });
        probe.pause_as_told();
        let answering = tokio::spawn(control::serve(socket, probe.clone(), self.stop.clone()));
        *self.status.state.lock().expect("never held across a panic") = "running";
        info!("running");
        let mut renewal = Renewal { plan, fruitless: 0, lost: None };
        while let Some((mut next, asked_for)) = self.work(wiring, renewal, &mut asked).await? {
            decided::save(&self.config, &next.plan.decided)?;
            self.status.systems.iter().for_each(connecting);
            let mut operator = setup::operator(&self.config)?;
            if let Some(asked_for) = asked_for {
                let anew = asked_for.new.is_some().then(|| asked_for.mark.system.clone());
                asked_for.write(&mut operator)?;
                drop(operator);
                operator = setup::operator(&self.config)?;
                if let Some(system) = anew {
                    next.plan.decided.forget_published(&system);
                    decided::save(&self.config, &next.plan.decided)?;
                }
            }
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
        // Nobody calls a system ready that its applier has not been let into.
        for system in config.system_ids().filter(|system| receives(model, *system)) {
            let state = &self.status.systems[system.index()].apply.state;
            *state.lock().expect("never held across a panic") = State::Connecting;
        }
        let names: Vec<Arc<str>> = config.systems.iter().map(|system| system.name.clone()).collect();
        let systems = config.system_ids().zip(&names).zip(positions);
        let systems =
            systems.map(|((system, name), at)| SystemDesk::new(name.clone(), at, receives(model, system))).collect();
        let topology = Topology::new(names, model.schema.clone(), &model.bindings, &model.rules);
        let data_dir = &config.agent.data_dir;
        let arbiter = || {
            let index = DiskStore::new(data_dir.join("index"))?;
            Ok(Arbiter::new(topology.clone(), Box::new(index)))
        };
        let Operator { writer, journal, recovered } = operator;
        let (marks, unplaced) = (recovered.loads.clone(), recovered.resyncs.clone());
        let desk = Desk::open(
            &arbiter,
            data_dir.join("index.checkpoint"),
            writer,
            journal.clone(),
            model.schema.clone(),
            systems,
            recovered,
            self.status.clone(),
            config.journal.clone(),
        )?;
        let resyncs: Vec<Option<ResyncMark>> = config
            .systems
            .iter()
            .map(|system| unplaced.iter().find(|mark| mark.system == system.name).cloned())
            .collect();
        let absent: Vec<bool> = resyncs.iter().map(|mark| mark.as_ref().is_some_and(is_absent)).collect();
        let comparing = |mark: &ResyncMark| mark.state == ResyncState::Placed && mark.causal;
        let gates: Vec<Lever> = resyncs
            .iter()
            .map(|mark| Gate { comparing: mark.as_ref().is_some_and(comparing), ..Gate::default() })
            .zip(&config.systems)
            .map(|(gate, system)| Lever::new(Gate { paused: self.paused.contains(&system.name), ..gate }))
            .collect();
        let (sender, inbox) = mpsc::channel(INBOX);
        let stop = self.stop.child_token();
        let loads = Loads::new(Context {
            config: config.clone(),
            model: model.clone(),
            status: self.status.clone(),
            desk: sender.downgrade(),
            taken: desk.systems().iter().map(|system| system.taken.subscribe()).collect(),
            quarantine: desk.quarantine(),
            journal: journal.clone(),
            absent,
            gates: gates.iter().map(Lever::subscribe).collect(),
            stop: stop.clone(),
        });
        let index = KeyIndex::open(&config.agent.data_dir, &journal);
        self.current.send_replace(Some((journal.clone(), journal.head())));
        // What the journal asks for comes before what a command may.
        let reserved = loads.reserve();
        Ok(Wiring { journal, desk, sender, inbox, stop, loads, reserved, marks, resyncs, gates, index })
    }

    fn positions(&self, operator: &Operator) -> Result<Vec<PositionRecord>> {
        let of = |system: SystemId| {
            let name = &self.config.system(system).name;
            let lost = || Error::stop(format!("the journal has no position of {name}"), "report this as a bug");
            let found = operator.recovered.positions.get(name).cloned();
            found.or_else(|| prepare::unplaced(&self.config, system, operator)).ok_or_else(lost)
        };
        self.config.system_ids().map(of).collect()
    }

    fn probed(&self, model: &Model, wiring: &Wiring) -> probe::Wiring {
        probe::Wiring {
            journal: wiring.journal.clone(),
            taken: wiring.desk.systems().iter().map(|system| system.taken.subscribe()).collect(),
            receives: self.config.system_ids().map(|system| receives(model, system)).collect(),
            quarantine: wiring.desk.quarantine(),
            gates: wiring.gates.clone(),
            index: wiring.index.clone(),
            loads: wiring.loads.clone(),
            schema: model.schema.clone(),
            desk: wiring.sender.downgrade(),
        }
    }

    /// Runs until `stop`; `Some`: until the tables ask for another model, and everything of this
    /// one has ended.
    async fn work(
        &self,
        wiring: Wiring,
        renewal: Renewal,
        asked: &mut mpsc::Receiver<ResyncMark>,
    ) -> Result<Option<(Renewal, Option<Asked>)>> {
        let Agent { config, status, known, .. } = self;
        let Wiring { journal, desk, sender, inbox, stop, loads, reserved, marks, resyncs, gates, index } = wiring;
        let Renewal { plan, fruitless, .. } = renewal;
        let (now, absent) = (plan.clone(), |system: &SystemId| resyncs[system.index()].as_ref().is_some_and(is_absent));
        let model = plan.model.clone();
        let (notices, noticed) = mpsc::channel(INBOX);
        let (refused, mut refusals) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let hops_from = journal.head();
        let (placed, mut placings) = mpsc::channel(1);
        for (system, mark) in config.system_ids().zip(&resyncs).filter(|(system, _)| absent(system)) {
            let mark = mark.clone().expect("what is absent has a mark");
            let name = mark.system.clone();
            let (config, status, journal) = (config.clone(), status.clone(), journal.clone());
            let before = desk.systems()[system.index()].at.clone();
            let placing = Placing { config, system, status, journal, before, mark, placed: placed.clone() };
            tasks.spawn(placing.run(stop.clone()).instrument(info_span!("resync", system = %name)));
        }
        // Of several connections the one that shows the marker is not the one that has moved it.
        let hides = |system| {
            let there = config.system(system);
            there.engine == Engine::Postgres && there.connections == 1 && model.is_only_written(system)
        };
        let unshown: Vec<Option<Unshown>> =
            config.system_ids().map(|system| hides(system).then(Unshown::default)).collect();
        for system in config.system_ids().filter(|system| receives(&model, *system) && !absent(system)) {
            let applying = Applying {
                config: config.clone(),
                system,
                model: model.clone(),
                journal: journal.clone(),
                known: *known,
                status: status.clone(),
                desk: sender.clone(),
                refused: refused.clone(),
                gate: gates[system.index()].clone(),
                notices: notices.clone(),
                unshown: unshown[system.index()].clone(),
            };
            tasks.spawn(archive::applied(config.clone(), system, status.clone(), journal.clone(), stop.clone()));
            let name = &config.system(system).name;
            tasks.spawn(applying.run(stop.clone()).instrument(info_span!("apply", system = %name)));
        }
        for system in config.system_ids().filter(|system| !absent(system)) {
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
                gate: gates[system.index()].clone(),
                hops_from,
                notices: notices.clone(),
                unshown: unshown[system.index()].clone(),
            };
            tasks.spawn(source.run(stop.clone()).instrument(info_span!("capture", system = %name)));
            let taken = of_desk.taken.subscribe();
            let retained = Retained { config: config.clone(), system, taken, status: status.clone() };
            tasks.spawn(retained.watch(stop.clone()));
            tasks.spawn(clock::watch(config.clone(), system, status.clone(), stop.clone()));
        }
        tasks.spawn(archive::index(index, journal.clone(), stop.clone()));
        tasks.spawn(archive::ledger(config.clone(), journal.clone(), stop.clone()));
        for index in 0..config.notifies.len() {
            let name = &config.notifies[index].name;
            let feed = feed::run(config.clone(), index, journal.clone(), hops_from + 1, status.clone(), stop.clone());
            tasks.spawn(feed.instrument(info_span!("notify", notify = %name)));
        }
        tasks.spawn(summary::tell(status.clone(), stop.clone()));
        tasks.spawn(tick(sender, stop.clone()));
        let due = loads.due(&marks);
        let placed_anew = |mark: &&ResyncMark| mark.state == ResyncState::Placed;
        let comparing: Vec<ResyncMark> = resyncs.iter().flatten().filter(placed_anew).cloned().collect();
        let (resync, first_run) = (Resync::new(&loads, comparing, gates), loads.clone());
        tasks.spawn(async move {
            resync.run().await;
            drop(reserved);
            first_run.first_run(due).await;
        });
        tasks.spawn(loads.by_itself());
        let read = config.system_ids().filter(|system| !absent(system)).collect();
        let watch = Watch::new(config.clone(), status.clone(), plan, fruitless, read);
        let mut watch = Box::pin(watch.run(noticed));
        let mut desk = tokio::task::spawn_blocking(move || desk.run(inbox));

        let verdict = tokio::select! {
            // A desk that has ended by the same signal is no reason to end the process.
            biased;
            () = stop.cancelled() => Ok(None),
            mut renewal = &mut watch => {
                let lost = renewal.lost.take().map(|mark| Asked { mark, new: None });
                Ok(Some((renewal, lost)))
            }
            Some(mark) = asked.recv() => Ok(Some((Renewal { plan: now, fruitless, lost: None }, Some(Asked { mark, new: None })))),
            Some(placed) = placings.recv() => Ok(Some((Renewal { plan: now, fruitless, lost: None }, Some(placed)))),
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
                return Err(Error::stop("the arbiter ended though nobody asked it to", "report this"));
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
    /// No other load begins before it is let go.
    reserved: OwnedMutexGuard<()>,
    /// What the journal knows of loads.
    marks: Vec<LoadMark>,
    /// By system: those whose position was lost.
    resyncs: Vec<Option<ResyncMark>>,
    /// By system: what its applier waits for.
    gates: Vec<Lever>,
    /// Which entries have a key.
    index: KeyIndex,
}

/// Its log has no position: nothing is read or applied there.
fn is_absent(mark: &ResyncMark) -> bool {
    matches!(mark.state, ResyncState::Needed | ResyncState::Begun)
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
