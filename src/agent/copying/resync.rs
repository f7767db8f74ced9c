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

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::compare::differing;
use super::judge::{self, Case, Verdict};
use super::pass::{Pass, Read, Receiver, shown};
use super::past::{Image, Past};
use super::{Context, Counted, Loads, load};
use crate::agent::chunks::{Copying, Opened, Outcome, Rows};
use crate::agent::gate::{self, Lever};
use crate::change::{ChangeWriter, Changes, Op, ResyncMark, ResyncState, overlay};
use crate::error::{Error, Recovery, Result, backoff};
use crate::failpoint;
use crate::load::LoadSpec;
use crate::normalize::binding::Role;
use crate::scan::{Page, PageSize, Plan, Scanner};
use crate::schema::{EntityId, SystemId};
use crate::status::now;
use crate::value::Row;

/// Keys that are brought at once.
const KEYS: usize = 500;
/// Between looks at systems that are not read yet.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Another system that holds the entity.
struct Peer {
    system: SystemId,
    name: Arc<str>,
    plan: Plan,
    role: Role,
    scanner: Option<Scanner>,
}

impl Peer {
    async fn scanner(&mut self, context: &Context) -> Result<&mut Scanner> {
        if self.scanner.is_none() {
            self.scanner = Some(Scanner::connect(&context.config, self.system).await?);
        }
        Ok(self.scanner.as_mut().expect("just connected"))
    }

    /// Everything that was read of it is in the journal.
    async fn settle(&mut self, context: &Context) -> Result<()> {
        let system = self.system;
        let scanner = self.scanner(context).await?;
        let high = scanner.finish().await?;
        context.captured(system, scanner, &high).await
    }
}

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
                    info!(system = %name, entity = %counted.entity, rows = counted.read, written = counted.copied, "compared");
                    counted.report(&name, "done", None);
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
        counted.restart();
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
            Some(load) if load.state == "done" => counted.take(&load),
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

/// One entity of the system against its peers.
struct Comparison<'a> {
    context: &'a Context,
    mark: &'a ResyncMark,
    role: Role,
    /// Reads the system's own rows.
    pass: Pass<'a>,
    peers: Vec<Peer>,
    past: &'a mut Past,
    fields: u128,
    /// Keys that a peer's rows are to bring, by peer.
    bring: Vec<Vec<Vec<u8>>>,
    /// Changes that its log would have told.
    written: ChangeWriter,
    system: SystemId,
    entity: EntityId,
}

impl<'a> Comparison<'a> {
    fn new(
        context: &'a Context,
        mark: &'a ResyncMark,
        system: SystemId,
        plan: Plan,
        role: Role,
        peers: Vec<Peer>,
        past: &'a mut Past,
        counted: &'a mut Counted,
    ) -> Self {
        let entity = plan.entity;
        let fields = plan.binding.columns.iter().fold(0, |set, column| set | 1 << column.field);
        let bring = peers.iter().map(|_| Vec::new()).collect();
        let pass = pass(context, system, mark.system.clone(), plan, Vec::new(), mark.begun, counted);
        Comparison {
            context,
            mark,
            role,
            pass,
            peers,
            past,
            fields,
            bring,
            written: ChangeWriter::default(),
            system,
            entity,
        }
    }

    /// Every row that the system has.
    async fn own_rows(&mut self) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let opened = self.pass.open().await?;
            let chunk = opened.chunk;
            let read = self.own_page(&opened, after.as_deref()).await;
            let page = match read {
                Ok(page) => page,
                Err(error) => {
                    self.context.lay(Copying::Drop { chunk }).await?;
                    return Err(error);
                }
            };
            if !self.hand_in(chunk, page.running.clone()).await? {
                self.bring.iter_mut().for_each(Vec::clear);
                self.pass.size = self.pass.size.at_most(self.pass.size.rows() / 2);
                continue;
            }
            self.set_aside(&page).await?;
            self.bring_now().await?;
            self.pass.size.learn(&page);
            self.pass.counted.read += page.seen;
            after = page.last.or(after);
            self.pass.counted.report(&self.mark.system, "running", None);
            failpoint::pass("after-resync-page");
            if page.end {
                return Ok(());
            }
        }
    }

    /// Reads a page of it, what the others have for the same keys, and judges.
    async fn own_page(&mut self, opened: &Opened, after: Option<&[u8]>) -> Result<Page> {
        let page = self.pass.read(&opened.position, &Read::Behind(after)).await?;
        let key_len = self.pass.plan.binding.key_len;
        let keys: Vec<Row<'_>> = Changes::new(&page.rows).map(|change| Row(change.key(key_len))).collect();
        let found = self.look_up(&keys).await?;
        self.past.follow()?;
        for change in Changes::new(&page.rows) {
            self.judge(change.key_hash, change.key(key_len), change.after, found.get(&change.key_hash))?;
        }
        Ok(page)
    }

    /// Rows of a peer that the system has not.
    async fn rows_of(&mut self, peer: usize) -> Result<()> {
        if !self.peers[peer].role.captures() {
            return Ok(());
        }
        let (mut after, mut size): (Option<Vec<u8>>, _) = (None, PageSize::default());
        loop {
            let Peer { plan, system, .. } = &self.peers[peer];
            let (plan, low) = (plan.clone(), self.context.taken[system.index()].borrow().clone());
            let scanner = self.peers[peer].scanner(self.context).await?;
            self.context.begin(scanner, &low).await?;
            let page = scanner.page(&plan, after.as_deref(), size.rows()).await?;
            self.peers[peer].settle(self.context).await?;
            size.learn(&page);
            let mut missing = self.missing(&page).await?;
            while missing.is_none() {
                missing = self.missing(&page).await?;
            }
            self.bring_now().await?;
            after = page.last.clone().or(after);
            self.pass.counted.report(&self.peers[peer].name.clone(), "running", None);
            if page.end {
                return Ok(());
            }
        }
    }

    /// Judges those rows of a peer's page that the system has not. `None`: once more.
    async fn missing(&mut self, page: &Page) -> Result<Option<()>> {
        if page.rows.is_empty() {
            return Ok(Some(()));
        }
        let key_len = self.pass.plan.binding.key_len;
        let keys: Vec<Vec<u8>> = Changes::new(&page.rows).map(|change| change.key(key_len).to_vec()).collect();
        let opened = self.pass.open().await?;
        let chunk = opened.chunk;
        let running = match self.judge_missing(&opened, page, &keys).await {
            Ok(running) => running,
            Err(error) => {
                self.context.lay(Copying::Drop { chunk }).await?;
                return Err(error);
            }
        };
        let handed_in = self.hand_in(chunk, running).await?;
        if !handed_in {
            self.bring.iter_mut().for_each(Vec::clear);
        }
        Ok(handed_in.then_some(()))
    }

    async fn judge_missing(&mut self, opened: &Opened, page: &Page, keys: &[Vec<u8>]) -> Result<Vec<u32>> {
        let here = self.pass.read(&opened.position, &Read::Keys(keys)).await?;
        let known: BTreeSet<u128> = Changes::new(&here.rows).map(|change| change.key_hash).collect();
        let key_len = self.pass.plan.binding.key_len;
        let plan = self.pass.plan.clone();
        let missing = |change: &crate::change::Change<'_>| {
            !known.contains(&change.key_hash) && change.after.is_some_and(|row| plan.belongs(row))
        };
        let rows: Vec<Row<'_>> =
            Changes::new(&page.rows).filter(missing).map(|change| Row(change.key(key_len))).collect();
        if !rows.is_empty() {
            // As they are now: the page may be older than what the journal tells.
            let found = self.look_up(&rows).await?;
            self.past.follow()?;
            for change in Changes::new(&page.rows).filter(missing) {
                self.judge(change.key_hash, change.key(key_len), None, found.get(&change.key_hash))?;
            }
        }
        Ok(here.running)
    }

    /// What the peers have for these keys, each field from the first that has it; and of whom the
    /// row is. All of it is in the journal, or was before.
    async fn look_up(&mut self, keys: &[Row<'_>]) -> Result<HashMap<u128, (usize, Vec<u8>)>> {
        let writers = self.peers.iter().any(|peer| peer.role.captures());
        let mut found: HashMap<u128, (usize, Vec<u8>)> = HashMap::new();
        for (at, peer) in self.peers.iter_mut().enumerate() {
            // Where nobody else writes it, what the targets have is all there is.
            if keys.is_empty() || writers && !peer.role.captures() {
                continue;
            }
            let plan = peer.plan.clone();
            let page = peer.scanner(self.context).await?.by_keys(&plan, keys).await?;
            peer.settle(self.context).await?;
            for change in Changes::new(&page.rows) {
                let Some(row) = change.after else { continue };
                let of_peer = || (at, row.0.to_vec());
                found
                    .entry(change.key_hash)
                    .and_modify(|(_, known)| *known = overlay(row, Row(known)))
                    .or_insert_with(of_peer);
            }
        }
        Ok(found)
    }

    fn judge(
        &mut self,
        key_hash: u128,
        key: &[u8],
        here: Option<Row<'_>>,
        there: Option<&(usize, Vec<u8>)>,
    ) -> Result<()> {
        let known = self.past.known(key_hash)?;
        let plan = &self.pass.plan;
        let same = |elsewhere: Row<'_>, here: Row<'_>| differing(elsewhere, here, plan) == 0;
        let case = Case {
            here,
            there: there.map(|(_, row)| Row(row)),
            known: known.as_ref(),
            held: self.held(key_hash),
            delete_extra: self.mark.delete_extra,
            receives: self.role.receives(),
            restored: self.mark.restored,
            same: &same,
        };
        // Nobody who should have it has it, and it was told before or belongs to nobody else.
        if there.is_none()
            && known.is_none()
            && here.is_some_and(|row| !self.peers.iter().any(|peer| peer.plan.belongs(row)))
        {
            return Ok(());
        }
        let expected = case.expected();
        let verdict = case.judge(&expected);
        let class = match verdict {
            Verdict::Nothing => return Ok(()),
            Verdict::Bring => {
                let writer = || self.peers.iter().position(|peer| peer.role.captures());
                let from = there.map(|(at, _)| *at).filter(|at| self.peers[*at].role.captures()).or_else(writer);
                if let Some(from) = from {
                    self.bring[from].push(key.to_vec());
                }
                "missing"
            }
            Verdict::Written(op) => {
                judge::write(&mut self.written, self.entity, key_hash, op, here, &expected, self.fields);
                if op == Op::Update { "different" } else { "extra" }
            }
        };
        let counts = self.pass.counted.systems.entry(self.mark.system.to_string()).or_default();
        match class {
            "missing" => counts.missing += 1,
            "different" => counts.different += 1,
            _ => counts.extra += 1,
        }
        counts.sample(class, || shown(Row(key)));
        Ok(())
    }

    /// A key that the system holds was never applied there.
    fn held(&self, key_hash: u128) -> Option<Image> {
        let quarantine = self.context.quarantine.borrow();
        quarantine.iter().filter(|record| record.system == self.mark.system).find_map(|record| {
            let change = Changes::new(&record.change).find(|change| change.key_hash == key_hash)?;
            Some(match (change.op, change.before) {
                (_, Some(before)) => Image::Row(before.0.to_vec()),
                (Op::Insert, None) => Image::Absent,
                _ => Image::Unknown,
            })
        })
    }

    /// `false`: what was read may miss something, or too much has changed: once more.
    async fn hand_in(&mut self, chunk: u64, running: Vec<u32>) -> Result<bool> {
        let changes: Bytes = self.written.take().into();
        let (reply, answer) = oneshot::channel();
        let txid = format!("resync {}", self.mark.begun).into();
        self.context.lay(Copying::Written { chunk, txid, changes, running, reply }).await?;
        match answer.await.map_err(|_| super::gone())? {
            Outcome::Taken { taken, .. } => {
                self.pass.counted.copied += taken;
                Ok(true)
            }
            Outcome::Again => Ok(false),
        }
    }

    /// Rows without canonical form: noted, as where their log tells of them.
    async fn set_aside(&mut self, page: &Page) -> Result<()> {
        if page.refused.is_empty() {
            return Ok(());
        }
        let chunk = self.pass.open().await?.chunk;
        let rows = Rows {
            txid: format!("resync {}", self.mark.begun).into(),
            read_at: now(),
            refused: page.refused.clone(),
            ..Rows::default()
        };
        let (reply, answer) = oneshot::channel();
        self.context.lay(Copying::Rows { chunk, rows, reply }).await?;
        self.pass.counted.refused += page.refused.len() as u64;
        answer.await.map(drop).map_err(|_| super::gone())
    }

    /// The peers' rows for what the system lacks, to it alone.
    async fn bring_now(&mut self) -> Result<()> {
        for peer in 0..self.peers.len() {
            let keys = std::mem::take(&mut self.bring[peer]);
            if keys.is_empty() {
                continue;
            }
            let Peer { system, name, plan, .. } = &self.peers[peer];
            let receiver = Receiver::new(self.system, self.mark.system.clone(), self.pass.plan.clone(), false, false);
            let before = self.pass.counted.systems.clone();
            let mut pass = pass(
                self.context,
                *system,
                name.clone(),
                plan.clone(),
                vec![receiver],
                self.mark.begun,
                self.pass.counted,
            );
            for keys in keys.chunks(KEYS) {
                pass.repair(keys).await?;
            }
            // What that looked up was counted when it was judged.
            self.pass.counted.systems = before;
        }
        Ok(())
    }
}

fn pass<'a>(
    context: &'a Context,
    source: SystemId,
    name: Arc<str>,
    plan: Plan,
    receivers: Vec<Receiver>,
    begun: i64,
    counted: &'a mut Counted,
) -> Pass<'a> {
    Pass {
        context,
        source,
        authority: name.clone(),
        name,
        plan,
        receivers,
        only_missing: false,
        delete_extra: false,
        bound: Vec::new(),
        settled: Vec::new(),
        dry_run: false,
        fresh: false,
        next: None,
        max_rate: None,
        begun,
        word: "resync",
        counted,
        scanner: None,
        size: PageSize::default(),
        ahead: Default::default(),
        lost: Default::default(),
        started: Instant::now(),
    }
}
