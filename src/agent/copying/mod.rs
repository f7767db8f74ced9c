//! Loads: rows that no log tells of are copied while everybody goes on writing.
//!
//! One load at a time, entity by entity, parents first. Each entity is read from the system
//! whose rows count, then from every other one that writes it, for rows which only that one has.
//! Where it stands is in the journal, so that a load goes on after a restart.

mod compare;
mod pass;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::chunks::Copying;
use super::desk::Message;
use crate::change::{Changes, LoadMark, LoadState, Quarantined};
use crate::config::{Config, LoadPolicy};
use crate::error::{Error, Recovery, Result, backoff};
use crate::load::{Classes, LoadProgress, LoadSpec, VerifySpec};
use crate::normalize::binding::Role;
use crate::normalize::resolve::Model;
use crate::position::Position;
use crate::scan::{PageSize, Plan, Scanner};
use crate::schema::{EntityId, SystemId};
use crate::status::{Status, now};
use pass::{Pass, Receiver};
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

    /// The systems that hold this key.
    fn held(&self, key_hash: u128) -> Vec<Arc<str>> {
        let quarantine = self.quarantine.borrow();
        let of_key = |record: &&Quarantined| Changes::new(&record.change).any(|change| change.key_hash == key_hash);
        quarantine.iter().filter(of_key).map(|record| record.system.clone()).collect()
    }

    fn plan(&self, system: SystemId, entity: EntityId) -> Option<(Plan, Role)> {
        let binding = self.model.binding(system, entity)?;
        Some((Plan::new(binding.clone(), self.model.schema.clone()), binding.role))
    }
}

/// What one entity's load has counted; shown in the status.
pub struct Counted {
    pub entity: String,
    pub read: u64,
    pub copied: u64,
    pub lost: u64,
    pub refused: u64,
    pub systems: BTreeMap<String, Classes>,
    total: Option<u64>,
    started: Instant,
    told: Instant,
    status: Arc<Status>,
    /// A comparison, not a load.
    verifies: bool,
}

impl Counted {
    fn new(entity: &str, status: Arc<Status>) -> Self {
        let now = Instant::now();
        Counted {
            entity: entity.to_owned(),
            read: 0,
            copied: 0,
            lost: 0,
            refused: 0,
            systems: BTreeMap::new(),
            total: None,
            started: now,
            told: now,
            status,
            verifies: false,
        }
    }

    /// There was nothing to do.
    fn forget(&self) {
        let mut loads = self.status.loads.lock().expect("never held across a panic");
        loads.retain(|load| load.entity != self.entity);
    }

    pub fn report(&mut self, from: &str, state: &str, error: Option<String>) {
        let progress = LoadProgress {
            entity: self.entity.clone(),
            from: from.to_owned(),
            state: state.to_owned(),
            error,
            total: self.total,
            read: self.read,
            copied: self.copied,
            lost: self.lost,
            refused: self.refused,
            seconds: self.started.elapsed().as_secs_f64(),
            systems: self.systems.clone(),
        };
        if self.told.elapsed() >= TOLD_EVERY && state == "running" {
            self.told = Instant::now();
            let rate = progress.rate() as u64;
            let doing = if self.verifies { "comparing" } else { "loading" };
            info!(entity = %self.entity, from, rows = self.read, rows_per_second = rate, "{doing}");
        }
        let shown = if self.verifies { &self.status.verified } else { &self.status.loads };
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
}

impl Loads {
    pub fn new(context: Context) -> Self {
        Loads { context: Arc::new(context), busy: Arc::default() }
    }

    /// Begins a load; how it goes stands in the status.
    pub fn start(&self, spec: LoadSpec) -> Result<()> {
        let entities = self.entities(&spec.entities)?;
        let source = spec.from.as_deref().map(|name| self.system(name)).transpose()?;
        let Ok(busy) = self.busy.clone().try_lock_owned() else {
            return Err(Error::stop("a load is under way", "anechoic status shows it; wait until it is over"));
        };
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
            for (counted, entity) in waiting {
                let name = counted.entity.clone();
                let span = info_span!("load", entity = %name);
                load(&context, counted, entity, source, &spec, None).instrument(span).await;
            }
            drop(busy);
        });
        Ok(())
    }

    /// Begins a comparison of all systems; how it goes, and what it found, stands in the status.
    pub fn verify(&self, spec: VerifySpec) -> Result<()> {
        let entities = self.entities(&spec.entities)?;
        let Ok(busy) = self.busy.clone().try_lock_owned() else {
            return Err(Error::stop(
                "a load or a comparison is under way",
                "anechoic status shows it; wait until it is over",
            ));
        };
        self.context.status.verified.lock().expect("never held across a panic").clear();
        let mut waiting: Vec<(Counted, EntityId)> = Vec::new();
        for entity in entities {
            let name = &self.context.model.schema.entity(entity).name;
            let mut counted = Counted::new(name, self.context.status.clone());
            counted.verifies = true;
            counted.report("", "waiting", None);
            waiting.push((counted, entity));
        }
        let context = self.context.clone();
        tokio::spawn(async move {
            for (counted, entity) in waiting {
                let span = info_span!("verify", entity = %counted.entity);
                verify(&context, &spec, entity, counted).instrument(span).await;
            }
            drop(busy);
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
                    "copy them by hand, or give the entity a key",
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

    /// What the first start of the agent, or one behind a load that was interrupted, has to load.
    /// In the status they wait from now on, so that the agent is not called ready before.
    pub fn due(&self, marks: &[LoadMark]) -> Vec<Due> {
        let mut due = Vec::new();
        for entity in self.entities(&[]).unwrap_or_default() {
            let spec = self.context.model.schema.entity(entity);
            let config = self.context.config.entities.iter().find(|config| config.name == spec.name);
            let policy = config.map_or(LoadPolicy::Never, |config| config.load);
            let own: Vec<&LoadMark> = marks.iter().filter(|mark| *mark.entity == *spec.name).collect();
            let resumed = own.iter().find(|mark| mark.state == LoadState::Running).map(|mark| (*mark).clone());
            if resumed.is_none() && (policy == LoadPolicy::Never || !own.is_empty()) {
                continue;
            }
            let mut counted = Counted::new(&spec.name, self.context.status.clone());
            counted.report("", "waiting", None);
            let source = resumed.as_ref().and_then(|mark| self.system(&mark.authority).ok());
            due.push(Due { entity, counted, source, first: First { policy, resumed } });
        }
        due
    }

    pub async fn first_run(self, due: Vec<Due>) {
        let busy = self.busy.clone().lock_owned().await;
        for Due { entity, counted, source, first } in due {
            let span = info_span!("load", entity = %counted.entity);
            load(&self.context, counted, entity, source, &LoadSpec::default(), Some(first)).instrument(span).await;
        }
        drop(busy);
    }
}

/// A load that nobody asked for by a command.
pub struct Due {
    entity: EntityId,
    counted: Counted,
    source: Option<SystemId>,
    first: First,
}

struct First {
    policy: LoadPolicy,
    resumed: Option<LoadMark>,
}

/// Loads one entity, to its end or until a person must act.
async fn load(
    context: &Context,
    mut counted: Counted,
    entity: EntityId,
    source: Option<SystemId>,
    spec: &LoadSpec,
    first: Option<First>,
) {
    let mut attempt = 0;
    let outcome = loop {
        match load_entity(context, &mut counted, entity, source, spec, first.as_ref()).await {
            Err(error) if error.recovery == Recovery::Retry && !context.stop.is_cancelled() => {
                let pause = backoff(attempt, rand::random());
                attempt += 1;
                warn!(error = %error.full(), retry_in_ms = pause.as_millis() as u64, "load cannot begin, retrying");
                counted.report("", "retrying", Some(error.full()));
                if context.pause(pause).await.is_err() {
                    return;
                }
            }
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(Some(from)) => {
            info!(rows = counted.read, copied = counted.copied, "loaded");
            counted.report(&from, "done", None);
        }
        Ok(None) => counted.forget(),
        Err(_) if context.stop.is_cancelled() => {}
        Err(error) => {
            error!(error = %error.full(), "load failed: a person must act");
            counted.report("", "failed", Some(error.full()));
        }
    }
}

async fn verify(context: &Context, spec: &VerifySpec, entity: EntityId, mut counted: Counted) {
    let outcome = match Verification::open(context, spec, entity, &mut counted).await {
        Ok(mut verification) => {
            let authority = verification.authority();
            verification.run().await.map(|()| authority)
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(authority) => {
            let differences: u64 = counted.systems.values().map(Classes::differences).sum();
            info!(rows = counted.read, differences, "compared");
            counted.report(&authority, "done", None);
        }
        Err(_) if context.stop.is_cancelled() => {}
        Err(error) => {
            warn!(error = %error.full(), "the comparison failed");
            counted.report("", "failed", Some(error.full()));
        }
    }
}

/// `None`: there was nothing to do, or it was decided against.
async fn load_entity(
    context: &Context,
    counted: &mut Counted,
    entity: EntityId,
    source: Option<SystemId>,
    spec: &LoadSpec,
    first: Option<&First>,
) -> Result<Option<String>> {
    let mut order: Vec<SystemId> = context.config.system_ids().collect();
    if let Some(source) = source {
        order.retain(|system| *system != source);
        order.insert(0, source);
    }
    let captures = |system: &SystemId| context.plan(*system, entity).is_some_and(|(_, role)| role.captures());
    let sources: Vec<SystemId> = order.iter().copied().filter(captures).collect();
    let Some(authority) = sources.first().copied().filter(|s| source.is_none_or(|source| source == *s)) else {
        return Err(Error::stop(
            format!("entity {:?} is not read from that system", counted.entity),
            "--from a system that binds it with role both or source",
        ));
    };
    let resumed = first.and_then(|first| first.resumed.as_ref());
    let mut empty = BTreeMap::new();
    for system in &order {
        if let Some((plan, role)) = context.plan(*system, entity).filter(|_| resumed.is_none()) {
            let is_empty = Scanner::connect(&context.config, *system).await?.is_empty(&plan.binding.table.name).await?;
            empty.insert(*system, (is_empty, role));
        }
    }
    let filled = |wanted: &dyn Fn(SystemId, Role) -> bool| {
        empty.iter().any(|(system, (is_empty, role))| !is_empty && wanted(*system, *role))
    };
    if let Some(first) = first.filter(|first| first.resumed.is_none()) {
        let others = filled(&|system, role| system != authority && role.receives());
        let unasked = first.policy == LoadPolicy::IfEmpty && others;
        if unasked || !filled(&|_, _| true) {
            if unasked {
                let way_out = format!("anechoic load --dry-run {}", counted.entity);
                warn!(way_out, "rows were there before, in more than one system: they are not compared");
            }
            context.mark(skipped(context, counted, authority)).await?;
            return Ok(None);
        }
    }
    let begun = resumed.map_or_else(now, |mark| mark.begun);
    let fresh = resumed.map_or_else(|| !filled(&|system, _| system != authority), |mark| mark.fresh);
    let name = |system: SystemId| context.config.system(system).name.clone();
    let sources: Vec<SystemId> = sources.into_iter().filter(|system| *system == authority || !fresh).collect();
    let mut done = Vec::new();
    let mut resumes = resumed;
    for (at, system) in sources.iter().copied().enumerate() {
        let after = match resumes {
            // Finished before the restart.
            Some(mark) if *mark.system != *name(system) => {
                done.push(system);
                continue;
            }
            Some(mark) if mark.schema.id == context.model.schema.id && !mark.key.is_empty() => Some(mark.key.to_vec()),
            _ => None,
        };
        resumes = None;
        let (plan, _) = context.plan(system, entity).expect("only bound systems are sources");
        let receivers = order.iter().filter(|other| **other != system).filter_map(|other| {
            let (plan, role) = context.plan(*other, entity)?;
            let is_empty = fresh || empty.get(other).is_some_and(|(is_empty, _)| *is_empty);
            // Of a system that receives nothing only whether it has a row matters.
            let higher = done.contains(other);
            (role.receives() || higher).then(|| Receiver::new(*other, name(*other), plan, is_empty, higher))
        });
        let mut scanner = Scanner::connect(&context.config, system).await?;
        if system == authority {
            counted.total = scanner.estimate(&plan).await?;
        }
        info!(from = %name(system), "load begins");
        let mut pass = Pass {
            context,
            source: system,
            name: name(system),
            plan,
            receivers: receivers.collect(),
            only_missing: resumed.map_or(spec.only_missing, |mark| mark.only_missing),
            authority: name(authority),
            next: sources.get(at + 1).map(|next| name(*next)),
            dry_run: spec.dry_run,
            fresh,
            max_rate: spec.max_rate,
            begun,
            word: "load",
            counted,
            scanner: Some(scanner),
            size: PageSize::default(),
            ahead: Default::default(),
            lost: Default::default(),
            started: Instant::now(),
        };
        pass.run(after).await?;
        done.push(system);
    }
    Ok(Some(name(authority).to_string()))
}

fn skipped(context: &Context, counted: &Counted, authority: SystemId) -> LoadMark {
    LoadMark {
        entity: counted.entity.as_str().into(),
        system: context.config.system(authority).name.clone(),
        authority: context.config.system(authority).name.clone(),
        only_missing: false,
        fresh: false,
        state: LoadState::Skipped,
        begun: now(),
        schema: context.model.schema.clone(),
        key: bytes::Bytes::new(),
        read: 0,
        copied: 0,
    }
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
