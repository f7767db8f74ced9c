//! Loads: rows that no log tells of are copied while everybody goes on writing.
//!
//! One load at a time, entity by entity, parents first. Each entity is read from the system
//! whose rows count, then from every other one that writes it, for rows which only that one has.
//! Where it stands is in the journal, so that a load goes on after a restart.

mod abreast;
mod ahead;
mod background;
mod chunk;
mod compare;
mod judge;
mod load;
mod lost;
mod pass;
mod past;
mod reach;
mod reconcile;
mod resync;
mod surplus;
mod verify;

pub use resync::Resync;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::chunks::Copying;
use super::desk::Message;
use super::gate::Gate;
use crate::change::{Changes, LoadMark, LoadState, Quarantined, ResyncMark};
use crate::config::{Config, LoadPolicy};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::load::{Classes, Counts, LoadProgress, LoadSpec, Verdict, VerifySpec};
use crate::normalize::binding::Role;
use crate::normalize::resolve::Model;
use crate::position::Position;
use crate::scan::Plan;
use crate::schema::{EntityId, SystemId};
use crate::status::{Status, now};
use background::Claim;
pub use background::{forget, recall};
use load::load;
use verify::Verification;

/// How often a load in progress is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a load works with.
pub struct Context {
    pub config: Arc<Config>,
    pub model: Arc<Model>,
    pub status: Arc<Status>,
    /// Weak: the desk ends when those who write to it have.
    pub desk: mpsc::WeakSender<Message>,
    /// Per system: what was taken in of its log.
    pub taken: Vec<watch::Receiver<Position>>,
    pub quarantine: watch::Receiver<Vec<Quarantined>>,
    pub journal: Journal,
    /// By system: nothing is read or applied there, until somebody asks for a resync.
    pub absent: Vec<bool>,
    /// By system: what its applier waits for.
    pub gates: Vec<watch::Receiver<Gate>>,
    pub stop: CancellationToken,
}

fn gone() -> Error {
    Error::retry("the agent is going down")
}

impl Context {
    async fn lay(&self, copying: Copying) -> Result<()> {
        let desk = self.desk.upgrade().ok_or_else(gone)?;
        desk.send(Message::Copying(copying)).await.map_err(|_| gone())
    }

    async fn pause(&self, time: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(gone()),
        }
    }

    async fn mark(&self, mark: LoadMark) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.lay(Copying::Mark { mark, reply }).await?;
        answer.await.map_err(|_| gone())
    }

    async fn note(&self, mark: ResyncMark) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.lay(Copying::Resync { mark, reply }).await?;
        answer.await.map_err(|_| gone())
    }

    /// The systems that hold this key.
    fn held(&self, key_hash: u128) -> Vec<Arc<str>> {
        let quarantine = self.quarantine.borrow();
        let of_key = |record: &&Quarantined| Changes::new(&record.change).any(|change| change.key_hash == key_hash);
        quarantine.iter().filter(of_key).map(|record| record.system.clone()).collect()
    }

    /// The systems that bind the entity.
    fn bound(&self, entity: EntityId) -> Vec<Arc<str>> {
        let systems = self.config.system_ids().filter(|system| self.model.binding(*system, entity).is_some());
        systems.map(|system| self.config.system(system).name.clone()).collect()
    }

    fn plan(&self, system: SystemId, entity: EntityId) -> Option<(Plan, Role)> {
        let binding = self.model.binding(system, entity)?;
        Some((Plan::new(binding.clone(), self.model.schema.clone()), binding.role))
    }
}

/// What one entity's load has counted; shown in the status.
pub struct Counted {
    pub entity: String,
    pub counts: Counts,
    /// How far it is, as the journal has it: where it goes on if it is tried again.
    mark: Option<LoadMark>,
    total: Option<u64>,
    started: Instant,
    told: Instant,
    status: Arc<Status>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    Verify,
    /// A comparison that nobody asked for, and nobody looks on.
    Background,
}

impl Counted {
    fn new(entity: &str, status: Arc<Status>) -> Self {
        let now = Instant::now();
        Counted {
            entity: entity.to_owned(),
            counts: Counts::default(),
            mark: None,
            total: None,
            started: now,
            told: now,
            status,
            kind: Kind::Load,
        }
    }

    /// There was nothing to do.
    fn forget(&self) {
        let mut loads = self.status.loads.lock().expect("never held across a panic");
        loads.retain(|load| load.entity != self.entity);
    }

    pub fn report(&mut self, from: &str, state: &str, error: Option<String>) {
        let Counts { read, copied, lost, refused, deleted, systems } = self.counts.clone();
        let progress = LoadProgress {
            entity: self.entity.clone(),
            from: from.to_owned(),
            state: state.to_owned(),
            error,
            total: self.total,
            read,
            copied,
            lost,
            refused,
            deleted,
            seconds: self.started.elapsed().as_secs_f64(),
            systems,
        };
        if self.told.elapsed() >= TOLD_EVERY && state == "running" {
            self.told = Instant::now();
            let rate = progress.rate() as u64;
            let doing = if self.kind == Kind::Load { "loading" } else { "comparing" };
            info!(entity = %self.entity, from, rows = read, rows_per_second = rate, "{doing}");
        }
        let shown = match self.kind {
            Kind::Load => &self.status.loads,
            Kind::Verify => &self.status.verified,
            Kind::Background => return,
        };
        let mut loads = shown.lock().expect("never held across a panic");
        match loads.iter_mut().find(|load| load.entity == progress.entity) {
            Some(load) => *load = progress,
            None => loads.push(progress),
        }
    }
}

/// The loads of a running agent.
#[derive(Clone)]
pub struct Loads {
    context: Arc<Context>,
    /// One at a time.
    busy: Arc<Mutex<()>>,
    /// Ends a comparison that runs by itself.
    background: Arc<std::sync::Mutex<Option<CancellationToken>>>,
}

impl Loads {
    pub fn new(context: Context) -> Self {
        Loads { context: Arc::new(context), busy: Arc::default(), background: Arc::default() }
    }

    /// Begins a load; how it goes stands in the status.
    pub fn start(&self, spec: LoadSpec) -> Result<()> {
        let entities = self.entities(&spec.entities)?;
        let source = spec.from.as_deref().map(|name| self.system(name)).transpose()?;
        let claim = self.claim().ok_or_else(under_way)?;
        self.context.status.loads.lock().expect("never held across a panic").clear();
        let mut waiting: Vec<(Counted, EntityId)> = Vec::new();
        for entity in entities {
            let name = &self.context.model.schema.entity(entity).name;
            let mut counted = Counted::new(name, self.context.status.clone());
            counted.report("", "waiting", None);
            waiting.push((counted, entity));
        }
        let context = self.context.clone();
        tokio::spawn(async move {
            let place = Claim::place(claim).await;
            for (counted, entity) in waiting {
                let name = counted.entity.clone();
                let span = info_span!("load", entity = %name);
                load(&context, counted, entity, source, &spec, None).instrument(span).await;
            }
            drop(place);
        });
        Ok(())
    }

    /// Shows what a resync is about to compare, before anything of it is begun.
    pub fn waiting(&self, mark: &ResyncMark) -> Vec<(EntityId, Counted)> {
        let Ok(system) = self.system(&mark.system) else { return Vec::new() };
        let bound = |entity: &EntityId| self.context.model.binding(system, *entity).is_some();
        let mut waiting = Vec::new();
        for entity in self.entities(&[]).unwrap_or_default().into_iter().filter(bound) {
            let name = &self.context.model.schema.entity(entity).name;
            let mut counted = Counted::new(name, self.context.status.clone());
            counted.report(&mark.system, "waiting", None);
            waiting.push((entity, counted));
        }
        waiting
    }

    /// A resync was asked for: whoever looks at the status sees it from now on.
    pub fn announce(&self, mark: &ResyncMark) -> Result<()> {
        self.system(&mark.system).map_err(|error| Error { hint: error.hint.replace("--from", "--resync"), ..error })?;
        self.context.status.loads.lock().expect("never held across a panic").clear();
        self.waiting(mark);
        Ok(())
    }

    /// No load begins before it is let go.
    pub fn reserve(&self) -> OwnedMutexGuard<()> {
        self.busy.clone().try_lock_owned().expect("nobody has asked for a load yet")
    }

    /// Begins a comparison of all systems; how it goes, and what it found, stands in the status.
    pub fn verify(&self, spec: VerifySpec) -> Result<()> {
        let entities = self.entities(&spec.entities)?;
        let claim = self.claim().ok_or_else(under_way)?;
        self.context.status.verified.lock().expect("never held across a panic").clear();
        let mut waiting: Vec<(Counted, EntityId)> = Vec::new();
        for entity in entities {
            let name = &self.context.model.schema.entity(entity).name;
            let mut counted = Counted::new(name, self.context.status.clone());
            counted.kind = Kind::Verify;
            counted.report("", "waiting", None);
            waiting.push((counted, entity));
        }
        let context = self.context.clone();
        tokio::spawn(async move {
            let place = Claim::place(claim).await;
            for (counted, entity) in waiting {
                let span = info_span!("verify", entity = %counted.entity);
                verify(&context, &spec, entity, counted).instrument(span).await;
            }
            drop(place);
        });
        Ok(())
    }

    fn system(&self, name: &str) -> Result<SystemId> {
        let config = &self.context.config;
        let found = config.system_ids().find(|system| &*config.system(*system).name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = config.systems.iter().map(|system| &*system.name).collect();
            Error::stop(format!("there is no system {name:?}"), format!("--from one of {}", names.join(", ")))
        })
    }

    /// Parents before children, as far as the source's own references tell.
    fn entities(&self, names: &[String]) -> Result<Vec<EntityId>> {
        let schema = &self.context.model.schema;
        let mut found = Vec::new();
        for name in names {
            let entity = schema.find(name).ok_or_else(|| {
                let names: Vec<&str> = schema.entities.iter().map(|entity| entity.name.as_str()).collect();
                Error::stop(format!("there is no entity {name:?}"), format!("one of {}", names.join(", ")))
            })?;
            if schema.entity(entity).key_len == 0 {
                return Err(Error::stop(
                    format!("entity {name:?} has no key, so its rows cannot be told apart"),
                    "entities without a key are only streamed: copy what was there before by hand, or give the entity a key",
                ));
            }
            found.push(entity);
        }
        if found.is_empty() {
            let keyed = (0..schema.entities.len() as u16).map(EntityId);
            found = keyed.filter(|entity| schema.entity(*entity).key_len > 0).collect();
        }
        let levels = levels(&self.context.model, schema.entities.len());
        found.sort_by_key(|entity| levels[entity.index()]);
        Ok(found)
    }

    /// What the first start of the agent, one with a system or entity that was added, or one
    /// behind a load that was interrupted, has to load. In the status they wait from now on, so
    /// that the agent is not called ready before.
    pub fn due(&self, marks: &[LoadMark]) -> Due {
        let mut due = Due { forgotten: self.forgotten(marks), loads: Vec::new() };
        // Where a system is not read it waits.
        let read = |entity: &EntityId| {
            let absent = |system: &SystemId| self.context.absent[system.index()];
            let mut absent = self.context.config.system_ids().filter(absent);
            absent.all(|system| self.context.model.binding(system, *entity).is_none())
        };
        for entity in self.entities(&[]).unwrap_or_default().into_iter().filter(read) {
            let spec = self.context.model.schema.entity(entity);
            let config = self.context.config.entities.iter().find(|config| config.name == spec.name);
            let policy = config.map_or(LoadPolicy::Never, |config| config.load);
            let own = || marks.iter().filter(|mark| *mark.entity == *spec.name);
            let resumed = own().find(|mark| mark.state == LoadState::Running).cloned();
            let bound = self.context.bound(entity);
            let mut settled = LoadMark::newest(own()).map(|mark| mark.settled.clone()).unwrap_or_default();
            settled.retain(|system| bound.contains(system));
            let covered = bound.iter().all(|system| settled.contains(system));
            if resumed.is_none() && (policy == LoadPolicy::Never || covered) {
                continue;
            }
            let mut counted = Counted::new(&spec.name, self.context.status.clone());
            counted.report("", "waiting", None);
            let source = resumed.as_ref().and_then(|mark| self.system(&mark.authority).ok());
            due.loads.push(DueLoad { entity, counted, source, first: First { policy, resumed, settled } });
        }
        due
    }

    /// An entity that is taken out of the file, or out of one system, and comes back was not
    /// followed there meanwhile: it counts as new then. (A whole system that comes back finds its
    /// log and the journal, or stops.)
    fn forgotten(&self, marks: &[LoadMark]) -> Vec<LoadMark> {
        let schema = &self.context.model.schema;
        let mut names: Vec<&Arc<str>> = marks.iter().map(|mark| &mark.entity).collect();
        names.dedup();
        let less = |name: &Arc<str>| {
            let newest = LoadMark::newest(marks.iter().filter(|mark| mark.entity == *name))?;
            let bound = schema.find(name).map(|entity| self.context.bound(entity)).unwrap_or_default();
            let holds = |system: &&Arc<str>| bound.contains(system) || self.system(system).is_err();
            let settled: Vec<_> = newest.settled.iter().filter(holds).cloned().collect();
            let state = LoadState::Skipped;
            (settled.len() < newest.settled.len()).then(|| LoadMark {
                bound,
                settled,
                state,
                begun: now(),
                ..newest.clone()
            })
        };
        names.into_iter().filter_map(less).collect()
    }

    pub async fn first_run(self, due: Due) {
        let busy = self.busy.clone().lock_owned().await;
        for mark in due.forgotten {
            if self.context.mark(mark).await.is_err() {
                return;
            }
        }
        for DueLoad { entity, counted, source, first } in due.loads {
            let span = info_span!("load", entity = %counted.entity);
            load(&self.context, counted, entity, source, &LoadSpec::default(), Some(first)).instrument(span).await;
        }
        drop(busy);
    }
}

/// Loads that nobody asked for by a command, and marks that no longer hold.
pub struct Due {
    forgotten: Vec<LoadMark>,
    loads: Vec<DueLoad>,
}

struct DueLoad {
    entity: EntityId,
    counted: Counted,
    source: Option<SystemId>,
    first: First,
}

/// One that nobody asked for, or that goes on where it was.
struct First {
    policy: LoadPolicy,
    resumed: Option<LoadMark>,
    /// Systems whose rows need none; empty where the entity is new.
    settled: Vec<Arc<str>>,
}

/// What was found of each system; `None` where the comparison did not come to its end.
async fn verify(
    context: &Arc<Context>,
    spec: &VerifySpec,
    entity: EntityId,
    mut counted: Counted,
) -> Option<BTreeMap<String, Classes>> {
    let outcome = match Verification::open(context, spec, entity, &mut counted).await {
        Ok(mut verification) => {
            let authority = verification.authority();
            verification.run().await.map(|()| authority)
        }
        Err(error) => Err(error),
    };
    let mut verdict = Verdict {
        entity: counted.entity.clone(),
        ended: now(),
        seconds: counted.started.elapsed().as_secs_f64(),
        ..Verdict::default()
    };
    let found = match outcome {
        Ok(authority) => {
            let differences: u64 = counted.counts.systems.values().map(Classes::differences).sum();
            info!(rows = counted.counts.read, differences, "compared");
            counted.report(&authority, "done", None);
            verdict.outcome = match (differences, spec.repair) {
                (0, _) => "same",
                (_, true) => "repaired",
                (_, false) => "different",
            }
            .to_owned();
            verdict.against = authority.to_string();
            verdict.systems = counted.counts.systems.clone();
            Some(counted.counts.systems)
        }
        Err(_) if context.stop.is_cancelled() => return None,
        Err(error) => {
            warn!(error = %error.full(), "the comparison failed");
            counted.report("", "failed", Some(error.full()));
            verdict.outcome = "failed".to_owned();
            verdict.error = Some(error.full());
            None
        }
    };
    // A sample tells nothing of the others.
    if spec.sample_percent.is_none() {
        context.judged(verdict);
    }
    found
}

fn under_way() -> Error {
    Error::stop("a load or a comparison is under way", "anechoic status shows it; wait until it is over")
}

/// By entity: how deep its tables refer to others, in whatever system they do most.
fn levels(model: &Model, entities: usize) -> Vec<usize> {
    let mut levels = vec![0; entities];
    // As many rounds as a chain can be long; a cycle ends there.
    for _ in 0..entities {
        for bindings in &model.bindings {
            for binding in bindings {
                let parents = binding.table.foreign_keys.iter().filter_map(|key| {
                    bindings.iter().find(|other| other.table.name == key.references && other.entity != binding.entity)
                });
                let deepest = parents.map(|parent| levels[parent.entity.index()] + 1).max().unwrap_or(0);
                let level = &mut levels[binding.entity.index()];
                *level = (*level).max(deepest.min(entities));
            }
        }
    }
    levels
}
