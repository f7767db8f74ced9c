//! A system whose log position was lost comes into step again: what its users wrote unseen is
//! found by comparing, and journaled as if its log had told it.
//!
//! ```text
//! its rows, page by page ─┐                 ┌─▶ written: captured with its marker as base
//! the others' rows ───────┼─▶ judge, by key ┼─▶ brought: copied from another system to it
//! the journal (past) ─────┘                 └─▶ nothing
//! ```
//!
//! Nothing is applied there meanwhile, so its marker stands still and is exactly what its users
//! had seen of the others. Its log is read again from the new position on; what that changes
//! while a page is read is told by it, and left out here. Done twice it writes nothing the second
//! time, so after a kill it begins again with the entity it was at.
//!
//! Where the journal cannot tell what the system had seen, or where another system of the same
//! entity has lost its log as well, only authority is left: a load of filled systems.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use super::past::Past;
use super::reconcile::{Comparison, Peer};
use super::{Context, Counted, Loads, load};
use crate::agent::gate::{self, Lever};
use crate::change::{ResyncMark, ResyncState};
use crate::error::{Error, Recovery, Result, backoff};
use crate::failpoint;
use crate::load::{Counts, LoadSpec};
use crate::schema::{EntityId, SystemId};

/// Between looks at systems that are not read yet.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How an entity can be compared.
enum Way {
    Judged(Vec<Peer>),
    /// With these systems' logs lost as well.
    ByAuthority,
    /// Nobody else has it.
    Alone,
}

/// All of one run: every system that has a new position.
pub struct Resync {
    context: Arc<Context>,
    marks: Vec<ResyncMark>,
    gates: Vec<Lever>,
    /// By system of `marks`: its entities, as the status shows them.
    counted: Vec<Vec<(EntityId, Counted)>>,
}

impl Resync {
    /// In the status its entities wait from now on, so that the agent is not called ready before.
    pub fn new(loads: &Loads, marks: Vec<ResyncMark>, gates: Vec<Lever>) -> Self {
        let counted = marks.iter().map(|mark| loads.waiting(mark)).collect();
        Resync { context: loads.context.clone(), marks, gates, counted }
    }

    pub async fn run(mut self) {
        for at in 0..self.marks.len() {
            if self.of_system(at).await.is_none() {
                return;
            }
        }
    }

    /// `None`: not to its end.
    async fn of_system(&mut self, at: usize) -> Option<()> {
        let context = self.context.clone();
        let name = self.marks[at].system.clone();
        let system = context.config.system_ids().find(|system| context.config.system(*system).name == name)?;
        let entities = std::mem::take(&mut self.counted[at]);
        self.tell_keyless(system);
        let mut past = None;
        for (entity, mut counted) in entities {
            let entity_name: Arc<str> = counted.entity.as_str().into();
            if self.marks[at].done.contains(&entity_name) {
                counted.report(&name, "done", None);
                continue;
            }
            self.entity(at, system, entity, &mut counted, &mut past).await?;
            self.done(at, &entity_name).await.ok()?;
            failpoint::pass("after-resync-entity");
            // Not before the journal has it: who asked for it may be gone the next moment.
            counted.report(&name, "done", None);
        }
        self.marks[at].state = ResyncState::Done;
        context.note(self.marks[at].clone()).await.ok()?;
        info!(system = %name, "compared: it is in step again");
        gate::set(&self.gates[system.index()], |gate| gate.comparing = false);
        Some(())
    }

    /// Their rows cannot be told apart, so nobody can find which of them no log has told.
    fn tell_keyless(&self, system: SystemId) {
        let schema = &self.context.model.schema;
        let keyless = |entity: &EntityId| schema.entity(*entity).key_len == 0;
        for entity in (0..schema.entities.len() as u16).map(EntityId).filter(keyless) {
            if self.context.plan(system, entity).is_some_and(|(_, role)| role.captures()) {
                let (name, entity) = (&self.context.config.system(system).name, &schema.entity(entity).name);
                warn!(system = %name, %entity, "has no key: rows written while the log was lost stay in this system alone; copy them by hand");
            }
        }
    }

    async fn done(&mut self, at: usize, entity: &Arc<str>) -> Result<()> {
        self.marks[at].done.push(entity.clone());
        self.context.note(self.marks[at].clone()).await
    }

    /// One entity, however often it takes; `None`: a person must act, or the agent goes down.
    async fn entity(
        &mut self,
        at: usize,
        system: SystemId,
        entity: EntityId,
        counted: &mut Counted,
        past: &mut Option<Past>,
    ) -> Option<()> {
        let name = self.marks[at].system.clone();
        let mut attempt = 0;
        loop {
            match self.compare(at, system, entity, counted, past).await {
                Ok(()) => {
                    info!(system = %name, entity = %counted.entity, rows = counted.counts.read, written = counted.counts.copied, "compared");
                    return Some(());
                }
                Err(_) if self.context.stop.is_cancelled() => return None,
                Err(error) if error.recovery == Recovery::Retry => {
                    let pause = backoff(attempt, rand::random());
                    attempt += 1;
                    warn!(system = %name, entity = %counted.entity, error = %error.full(), retry_in_ms = pause.as_millis() as u64, "comparing interrupted, retrying");
                    counted.report(&name, "retrying", Some(error.full()));
                    // What was seen of the journal may be half a step.
                    *past = None;
                    self.context.pause(pause).await.ok()?;
                }
                Err(error) => {
                    error!(system = %name, entity = %counted.entity, error = %error.full(), "resync failed: a person must act");
                    counted.report(&name, "failed", Some(error.full()));
                    return None;
                }
            }
        }
    }

    async fn compare(
        &mut self,
        at: usize,
        system: SystemId,
        entity: EntityId,
        counted: &mut Counted,
        past: &mut Option<Past>,
    ) -> Result<()> {
        let context = self.context.clone();
        let mark = self.marks[at].clone();
        let way = if mark.causal { self.way(at, system, entity, counted).await? } else { Way::ByAuthority };
        let (plan, role) = context.plan(system, entity).expect("only bound entities are compared");
        let peers = match way {
            Way::Alone => return Ok(()),
            Way::ByAuthority => return self.by_authority(at, entity, counted).await,
            // Nothing that is written there counts.
            Way::Judged(_) if !role.captures() => return Ok(()),
            Way::Judged(peers) => peers,
        };
        let past = match past {
            Some(past) => past,
            none => none.insert(open_past(&context, system, &mark).await?),
        };
        counted.counts = Counts::default();
        info!(system = %mark.system, entity = %counted.entity, marker = mark.marker, "its rows are compared");
        let mut comparison = Comparison::new(&context, &mark, system, plan, role, peers, past, counted);
        comparison.own_rows().await?;
        for peer in 0..comparison.peers.len() {
            comparison.rows_of(peer).await?;
        }
        Ok(())
    }

    /// Waits until it is known which of the others are read.
    async fn way(&self, at: usize, system: SystemId, entity: EntityId, counted: &mut Counted) -> Result<Way> {
        let context = &self.context;
        let name = &self.marks[at].system;
        let others: Vec<SystemId> = context
            .config
            .system_ids()
            .filter(|other| *other != system && context.model.binding(*other, entity).is_some())
            .collect();
        if others.is_empty() {
            return Ok(Way::Alone);
        }
        loop {
            if self.gates[system.index()].borrow().lost {
                return Err(Error::stop(
                    format!("the log of {name} is lost again"),
                    format!("anechoic load --resync {name}"),
                ));
            }
            let (mut peers, mut lost, mut compared, mut unread) = (Vec::new(), Vec::new(), false, None);
            for other in &others {
                let other_name = context.config.system(*other).name.clone();
                let gate = *self.gates[other.index()].borrow();
                if context.absent[other.index()] || gate.lost {
                    lost.push(other_name);
                } else if self.marks.iter().any(|mark| mark.system == other_name) {
                    compared = true;
                } else if gate.placed {
                    let (plan, role) = context.plan(*other, entity).expect("bound");
                    peers.push(Peer { system: *other, name: other_name, plan, role, scanner: None });
                } else {
                    unread = Some(other_name);
                }
            }
            let waits = match (unread, peers.is_empty(), compared) {
                (Some(unread), ..) => format!("waits until the log of {unread} is read"),
                (None, false, _) => return Ok(Way::Judged(peers)),
                (None, true, true) => return Ok(Way::ByAuthority),
                (None, true, false) => {
                    let commands: Vec<_> = lost.iter().map(|lost| format!("anechoic load --resync {lost}")).collect();
                    format!("nobody is left to compare with, until: {}", commands.join(", "))
                }
            };
            counted.report(name, "retrying", Some(waits));
            context.pause(LOOK_EVERY).await?;
        }
    }

    /// As filled systems are loaded; whoever else has lost its log is compared by that as well.
    async fn by_authority(&mut self, at: usize, entity: EntityId, counted: &mut Counted) -> Result<()> {
        let context = self.context.clone();
        let entity_name: Arc<str> = counted.entity.as_str().into();
        let fresh = Counted::new(&entity_name, context.status.clone());
        load(&context, fresh, entity, None, &LoadSpec::default(), None).await;
        let loads = context.status.loads.lock().expect("never held across a panic").clone();
        let over = loads.into_iter().find(|load| load.entity == *entity_name);
        match over {
            Some(load) if load.state == "done" => counted.counts = load.counts(),
            Some(load) => {
                return Err(match load.error {
                    Some(error) => Error::stop(error, "then the same command again"),
                    None => super::gone(),
                });
            }
            None => {}
        }
        for other in (0..self.marks.len()).filter(|other| *other != at) {
            if !self.marks[other].done.contains(&entity_name) {
                self.done(other, &entity_name).await?;
            }
        }
        Ok(())
    }
}

/// A walk through the journal, on a thread that may wait for the disk.
async fn open_past(context: &Context, system: SystemId, mark: &ResyncMark) -> Result<Past> {
    let schema = context.model.schema.clone();
    let entities = (0..schema.entities.len() as u16).map(EntityId);
    let written = |entity| context.plan(system, entity).filter(|(_, role)| role.captures()).map(|(plan, _)| plan);
    let plans = entities.map(written).collect();
    let (mark, journal) = (mark.clone(), context.journal.clone());
    let dir = context.config.agent.data_dir.join(format!("past-{}", mark.system));
    let opened = tokio::task::spawn_blocking(move || Past::open(&mark, plans, schema, journal, dir)).await;
    opened.map_err(|panic| Error::stop(format!("the journal could not be gone through: {panic}"), "report this"))?
}
