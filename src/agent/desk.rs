//! The arbiter's desk: the one thread that decides and writes the journal.
//!
//! Everything that is to be journaled crosses this desk: collected transactions from the
//! sources, quarantine records from the appliers, the clock. What arrived meanwhile is taken
//! together, admitted in order, written and synced once (group commit); only then do followers
//! see it, do sources get it acknowledged, and do appliers hear that their record is safe.
//!
//! ```text
//! sources ──Collected──▶ ┌──────┐ ──append──▶ journal ──sync──▶ followers
//! appliers ────Ask─────▶ │ desk │                        └────▶ acknowledged positions
//! clock ──────Tick─────▶ └──────┘
//! ```

mod checkpoint;
mod copying;
mod person;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use self::checkpoint::{Checkpoints, weight};
use self::person::Told;
pub use self::person::{Person, Undo};
use self::start::{Start, Started};
use super::chunks::{Chunks, Copying, Outcome};
use crate::admit::{Admitted, Arbiter, Bodies, image_in};
use crate::apply::applier::{Ask, Holding};
use crate::change::{
    Address, Body, Captured, ChangeWriter, Changes, Entry, Micros, Prepared, Quarantined, Record, Refused, SpoolRef,
};
use crate::config::JournalConfig;
use crate::control::Treated;
use crate::error::{Error, Recovery, Result};
use crate::failpoint;
use crate::journal::{Journal, PositionRecord, Recovered, Writer};
use crate::normalize::Collected;
use crate::position::{Position, Seq};
use crate::schema::{Schema, SystemId, Translation};
use crate::status::{Status, now};

/// Taken in together before one sync.
const GROUP_BYTES: usize = 4 << 20;
/// A log that only passes echoes or foreign traffic is recorded this often.
const RECORD_ECHOES_EVERY: Duration = Duration::from_secs(1);
const RECORD_IDLE_EVERY: Duration = Duration::from_secs(10);
const RETAIN_EVERY: Duration = Duration::from_secs(30);
/// Between attempts to write to a full disk.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What is laid on the desk.
pub enum Message {
    Collected {
        system: SystemId,
        items: Vec<Collected>,
    },
    /// A source that connects anew asks where to go on. Whatever it sent before is taken in
    /// first, because messages keep their order.
    Resume {
        system: SystemId,
        reply: oneshot::Sender<Resumed>,
    },
    /// An applier's question; answered after the sync that covers it.
    Ask(Ask),
    /// A load's chunk or mark.
    Copying(Copying),
    /// What somebody asks by a command.
    Person(Person),
    Tick,
}

/// Where a capture goes on.
pub struct Resumed {
    pub at: PositionRecord,
    /// Transactions that were prepared before that, and are not decided.
    pub prepared: BTreeSet<Arc<str>>,
}

impl From<Ask> for Message {
    fn from(ask: Ask) -> Self {
        Message::Ask(ask)
    }
}

/// Told after the next sync.
enum Waiting {
    Quarantined(oneshot::Sender<Result<()>>),
    Resumed(oneshot::Sender<Resumed>, Resumed),
    Held { system: SystemId, reply: oneshot::Sender<Holding> },
    Copied(oneshot::Sender<Outcome>, Outcome),
    Marked(oneshot::Sender<()>),
    Resolved(oneshot::Sender<Result<Seq>>, Seq),
    Undone(oneshot::Sender<Result<Option<Seq>>>, Option<Seq>),
    Treated(oneshot::Sender<Result<Treated>>, Treated),
}

/// What the desk keeps of one system.
pub struct SystemDesk {
    pub name: Arc<str>,
    /// Anything is applied there.
    receives: bool,
    /// As taken in: where a capture that connects anew goes on.
    pub at: PositionRecord,
    pub acknowledged: watch::Sender<Position>,
    /// Everything up to here is in the journal, or needs not to be there.
    pub taken: watch::Sender<Position>,
    /// Highest marker seq seen in the system's own log.
    pub seen: watch::Sender<Seq>,
    /// Prepared transactions by xid, until they are decided.
    prepared: BTreeMap<Arc<str>, Prepared>,
    /// As the journal has it, or will with the next sync.
    recorded: (Position, Seq),
    recorded_at: Instant,
    /// The server waits until what was taken in is acknowledged.
    awaited: bool,
    /// Recorded since the last sync.
    unacknowledged: bool,
}

impl SystemDesk {
    pub fn new(name: Arc<str>, at: PositionRecord, receives: bool) -> Self {
        SystemDesk {
            name,
            receives,
            prepared: BTreeMap::new(),
            acknowledged: watch::Sender::new(at.position.clone()),
            taken: watch::Sender::new(at.position.clone()),
            seen: watch::Sender::new(at.base),
            recorded: (at.position.clone(), at.base),
            recorded_at: Instant::now(),
            awaited: false,
            unacknowledged: false,
            at,
        }
    }

    fn record(&self) -> Record {
        let PositionRecord { position, base, identity } = self.at.clone();
        Record::Position { system: self.name.clone(), position, base, identity }
    }

    /// A log in which nothing of ours moves is recorded now and then only; at once where its server
    /// waits for that, as PostgreSQL does before it shuts down.
    fn is_due(&self) -> bool {
        let pause = if self.at.base == self.recorded.1 { RECORD_IDLE_EVERY } else { RECORD_ECHOES_EVERY };
        self.at.position != self.recorded.0 && (self.awaited || self.recorded_at.elapsed() >= pause)
    }

    fn recorded(&mut self) {
        self.recorded = (self.at.position.clone(), self.at.base);
        self.recorded_at = Instant::now();
        self.awaited = false;
        self.unacknowledged = true;
    }
}

/// The journal as the arbiter reads it: what is on disk, and what is about to be.
struct Archive {
    journal: Journal,
    schema: Arc<Schema>,
    /// Appended since the last sync.
    fresh: Vec<Entry>,
}

impl Archive {
    /// A transaction that was prepared under another configuration, as the present one has it.
    fn recast(&self, prepared: Prepared) -> Result<Prepared> {
        let Some(translation) = Translation::between(&prepared.schema, &self.schema) else { return Ok(prepared) };
        let spool = self.journal.spool();
        let (mut writer, mut out, mut changes) = (spool.create()?, ChangeWriter::default(), 0);
        if let Some(spool) = &prepared.spool {
            self.chunks(spool, &mut |chunk| {
                for change in Changes::new(chunk) {
                    if translation.is_rekeyed(change.entity) {
                        let (xid, entity) = (&prepared.xid, &prepared.schema.entity(change.entity).name);
                        return Err(Error::stop(
                            format!(
                                "XA transaction {xid} of {} was prepared with another key of {entity}",
                                prepared.system
                            ),
                            "start with the former key, let the transaction be decided, then change the key",
                        ));
                    }
                    translation.translate(&change, &mut out);
                }
                changes += std::mem::take(&mut out.count);
                writer.write(&out.bytes)?;
                out.bytes.clear();
                Ok(())
            })?;
        }
        let spool = prepared.spool.is_some().then(|| writer.finish()).transpose()?;
        // Refused ones stay as they were written: they are read with their own schema.
        Ok(Prepared { schema: self.schema.clone(), changes, spool, ..prepared })
    }
}

impl Archive {
    fn hops(&self, seq: Seq) -> Result<u32> {
        if let Some(entry) = self.fresh.iter().find(|entry| entry.seq == seq) {
            return Ok(entry.hops);
        }
        Ok(self.journal.entry(seq)?.map_or(0, |entry| entry.hops))
    }
}

impl Bodies for Archive {
    fn chunks(&self, spool: &SpoolRef, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut chunks = self.journal.spool_chunks(spool)?;
        while let Some(chunk) = chunks.next()? {
            each(&chunk)?;
        }
        Ok(())
    }

    fn committed_at(&self, seq: Seq) -> Result<Option<Micros>> {
        if let Some(entry) = self.fresh.iter().find(|entry| entry.seq == seq) {
            return Ok(Some(entry.committed_at));
        }
        Ok(self.journal.entry(seq)?.map(|entry| entry.committed_at))
    }

    fn image(&self, seq: Seq, key_hash: u128) -> Result<Option<Bytes>> {
        if let Some(entry) = self.fresh.iter().find(|entry| entry.seq == seq) {
            return image_in(entry, key_hash, &self.schema, self);
        }
        match self.journal.entry(seq)? {
            Some(entry) => image_in(&entry, key_hash, &self.schema, self),
            None => Ok(None),
        }
    }
}

/// The thread's state.
pub struct Desk {
    arbiter: Arbiter,
    writer: Writer,
    archive: Archive,
    systems: Vec<SystemDesk>,
    status: Arc<Status>,
    retention: JournalConfig,
    retained_at: Instant,
    /// Entries below may go. Of when every marker that the arbiter had seen was on disk: a
    /// restart begins at the bases of the journal, and needs all that they have not seen.
    needed_from: Seq,
    checkpoints: Checkpoints,
    waiting: Vec<Waiting>,
    told: Told,
    /// Being read by loads.
    chunks: Chunks,
    appended: bool,
    /// A second has passed.
    ticked: bool,
    /// The first side effect of applying since the flows were made.
    first_hop: Option<Seq>,
    bytes: usize,
    /// Of prepared transactions that were not journaled; they go after the next sync.
    dropped: Vec<SpoolRef>,
    /// Live quarantine records, for those who ask.
    quarantine: watch::Sender<Vec<Quarantined>>,
    /// The journal is full, and nothing may go: sources read no further.
    full: watch::Sender<bool>,
}

impl Desk {
    /// The arbiter knows again what the journal knows: see [`Start`]. `make` makes one that knows nothing;
    /// `checkpoint` is where its index is written now and then.
    pub fn open(
        make: &dyn Fn() -> Result<Arbiter>,
        checkpoint: PathBuf,
        writer: Writer,
        journal: Journal,
        schema: Arc<Schema>,
        mut systems: Vec<SystemDesk>,
        recovered: Recovered,
        status: Arc<Status>,
        retention: JournalConfig,
    ) -> Result<Self> {
        let archive = Archive { journal, schema, fresh: Vec::new() };
        let mut checkpoints = Checkpoints::new(checkpoint);
        let Recovered { quarantined: held, conflicts, prepared, .. } = recovered;
        let start = Start {
            make,
            archive: &archive,
            systems: &systems,
            held: &held,
            conflicts: &conflicts,
            checkpoint: checkpoints.path(),
            every: checkpoints.every,
        };
        let Started { arbiter, told: mut recast, replayed, .. } = start.run()?;
        checkpoints.since = replayed;
        let needed_from = arbiter.needed_from();
        for prepared in prepared {
            let Some(system) = systems.iter_mut().find(|system| system.name == prepared.system) else { continue };
            let xid = prepared.xid.clone();
            let changed = prepared.schema.id != archive.schema.id;
            let prepared = if changed { archive.recast(prepared)? } else { prepared };
            recast.extend(changed.then(|| Record::Prepared(prepared.clone())));
            system.prepared.insert(xid, prepared);
        }
        let chunks = Chunks::new(systems.len());
        let mut desk = Desk {
            arbiter,
            writer,
            archive,
            systems,
            status,
            retention,
            retained_at: Instant::now(),
            needed_from,
            checkpoints,
            waiting: Vec::new(),
            told: Told::default(),
            chunks,
            appended: false,
            ticked: false,
            first_hop: None,
            bytes: 0,
            dropped: Vec::new(),
            quarantine: watch::Sender::new(Vec::new()),
            full: watch::Sender::new(false),
        };
        desk.append(recast)?;
        desk.commit()?;
        desk.show_quarantine();
        desk.show_waiting();
        Ok(desk)
    }

    pub fn systems(&self) -> &[SystemDesk] {
        &self.systems
    }

    pub fn quarantine(&self) -> watch::Receiver<Vec<Quarantined>> {
        self.quarantine.subscribe()
    }

    pub fn full(&self) -> watch::Receiver<bool> {
        self.full.subscribe()
    }

    /// Runs until every sender is gone; then syncs what is left and closes the journal. An
    /// error means that nothing may be written any more: the process must end.
    pub fn run(mut self, mut inbox: mpsc::Receiver<Message>) -> Result<()> {
        self.status.desk_works.store(true, Ordering::Relaxed);
        let result = self.work(&mut inbox);
        self.status.desk_works.store(false, Ordering::Relaxed);
        if let Err(error) = &result {
            error!(error = %error.full(), "the journal cannot go on");
        }
        result?;
        self.checkpoint_at_the_end()?;
        self.writer.close().map(drop)
    }

    fn work(&mut self, inbox: &mut mpsc::Receiver<Message>) -> Result<()> {
        while let Some(first) = inbox.blocking_recv() {
            failpoint::pass("desk-turn");
            self.status.desk_turns.add(1);
            self.take(first)?;
            while self.bytes < GROUP_BYTES {
                match inbox.try_recv() {
                    Ok(message) => self.take(message)?,
                    Err(_) => break,
                }
            }
            self.decide_clashes()?;
            self.record_positions(false)?;
            self.commit()?;
            if std::mem::take(&mut self.ticked) {
                self.checkpoint_if_due()?;
            }
        }
        self.record_positions(true)?;
        self.commit()
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Collected { system, items } => items.into_iter().try_for_each(|item| match item {
                Collected::Transaction(captured) => self.captured(system, captured, None),
                Collected::Prepared(prepared) => self.prepared(system, prepared),
                Collected::Decided { xid, committed, txid, committed_at, position, base } => {
                    self.decided(system, &xid, committed, txid, committed_at, position, base)
                }
                Collected::Passed { position, base, awaited } => {
                    self.systems[system.index()].awaited |= awaited;
                    self.passed(system, position, base)
                }
            }),
            Message::Resume { system, reply } => {
                let SystemDesk { at, prepared, recorded, .. } = &self.systems[system.index()];
                let resumed = Resumed { at: at.clone(), prepared: prepared.keys().cloned().collect() };
                // Where it begins is acknowledged: the journal has it before.
                if (&at.position, at.base) != (&recorded.0, recorded.1) {
                    self.append(vec![self.systems[system.index()].record()])?;
                    self.systems[system.index()].recorded();
                }
                self.waiting.push(Waiting::Resumed(reply, resumed));
                Ok(())
            }
            Message::Ask(Ask::Quarantine { records, rivals, reply }) => {
                let system = records.first().map(|record| record.system.clone());
                for record in records {
                    let records = self.arbiter.quarantined(&record, now())?;
                    self.append(records)?;
                }
                for rival in system.iter().flat_map(|system| rivals.iter().map(move |rival| (system, rival))) {
                    self.arbiter.clashed(rival.0, rival.1);
                }
                self.waiting.push(Waiting::Quarantined(reply));
                Ok(())
            }
            Message::Ask(Ask::Held { system, reply }) => {
                self.waiting.push(Waiting::Held { system, reply });
                Ok(())
            }
            Message::Copying(copying) => self.copying(copying),
            Message::Person(person) => self.person(person),
            Message::Tick => {
                for (index, system) in self.status.systems.iter().enumerate() {
                    self.arbiter.set_clock(SystemId(index as u8), system.capture.clock_ahead.get());
                }
                let records = self.arbiter.tick(now());
                self.append(records)?;
                self.ticked = true;
                self.status.journal_bytes.set(self.archive.journal.bytes());
                self.retain()
            }
        }
    }

    /// Records that are in each other's way in some system.
    fn decide_clashes(&mut self) -> Result<()> {
        let at = now();
        for admitted in self.arbiter.decide_clashes(at, &self.archive)? {
            self.by_agent(admitted, at)?;
        }
        Ok(())
    }

    /// Kept until it is decided: from here on the log is not read again from before it.
    fn prepared(&mut self, system: SystemId, prepared: Prepared) -> Result<()> {
        self.passed(system, prepared.position.clone(), prepared.base)?;
        self.append(vec![Record::Prepared(prepared.clone())])?;
        let desk = &mut self.systems[system.index()];
        desk.recorded();
        let replaced = desk.prepared.insert(prepared.xid.clone(), prepared);
        self.dropped.extend(replaced.and_then(|replaced| replaced.spool));
        Ok(())
    }

    /// A committed one takes its place in the order now, with the base of now.
    fn decided(
        &mut self,
        system: SystemId,
        xid: &Arc<str>,
        committed: bool,
        txid: Arc<str>,
        committed_at: Micros,
        position: Position,
        base: Seq,
    ) -> Result<()> {
        let desk = &mut self.systems[system.index()];
        let Some(prepared) = desk.prepared.remove(xid) else { return self.passed(system, position, base) };
        if let Some(spool) = prepared.spool.clone().filter(|_| committed) {
            let capture = &self.status.systems[system.index()].capture;
            let refused = prepared.refused.len() as u64;
            capture.transactions.add(1);
            capture.changes.add(prepared.changes + refused);
            capture.refused.add(refused);
            let captured = Captured {
                system,
                position,
                base,
                txid,
                committed_at,
                hops: 0,
                schema: prepared.schema.clone(),
                changes: prepared.changes,
                body: Body::Spooled(spool),
                refused: prepared.refused.clone(),
            };
            return self.captured(system, captured, Some(&prepared));
        }
        self.passed(system, position, base)?;
        self.drop_prepared(system, &prepared)
    }

    fn drop_prepared(&mut self, system: SystemId, prepared: &Prepared) -> Result<()> {
        let PositionRecord { position, base, .. } = self.systems[system.index()].at.clone();
        let (system_name, xid) = (prepared.system.clone(), prepared.xid.clone());
        self.append(vec![Record::Decided { system: system_name, xid, position, base }])?;
        self.systems[system.index()].recorded();
        self.dropped.extend(prepared.spool.clone());
        Ok(())
    }

    fn captured(&mut self, system: SystemId, captured: Captured, prepared: Option<&Prepared>) -> Result<()> {
        self.chunks.captured(&captured, &self.archive)?;
        let at = &mut self.systems[system.index()].at;
        at.position = captured.position.clone();
        at.base = captured.base;
        let capture = &self.status.systems[system.index()].capture;
        self.bytes += match &captured.body {
            Body::Inline(bytes) => {
                capture.bytes.add(bytes.len() as u64);
                bytes.len() + 256
            }
            Body::Spooled(spool) => {
                capture.bytes.add(spool.bytes);
                256
            }
        };
        let (base, committed_at) = (captured.base, captured.committed_at);
        let mut admitted = self.arbiter.captured(captured, &self.archive)?;
        self.count(system, &admitted, committed_at);
        let journaled = admitted.records.iter().any(|record| matches!(record, Record::Entry(_)));
        let left_over = prepared.filter(|_| !journaled);
        if left_over.is_some() {
            admitted.records.retain(|record| !matches!(record, Record::Position { .. }));
        }
        self.append(admitted.records)?;
        if let Some(prepared) = left_over {
            self.drop_prepared(system, prepared)?;
        }
        let desk = &mut self.systems[system.index()];
        desk.seen.send_if_modified(|seen| std::mem::replace(seen, base) != base);
        desk.recorded();
        Ok(())
    }

    /// The arbiter hears of every marker at once; the journal only when it is due.
    fn passed(&mut self, system: SystemId, position: Position, base: Seq) -> Result<()> {
        let desk = &mut self.systems[system.index()];
        desk.at.position = position.clone();
        let moved = std::mem::replace(&mut desk.at.base, base) != base;
        if !moved {
            return Ok(());
        }
        desk.seen.send_replace(base);
        let identity = desk.at.identity.clone();
        let mut records = self.arbiter.passed(system, position, base, identity)?.records;
        records.retain(|record| !matches!(record, Record::Position { .. }));
        self.append(records)
    }

    /// Position records for logs that moved without an entry: before anything of them is
    /// acknowledged, together with a sync that happens anyway, or when it is time.
    fn record_positions(&mut self, now: bool) -> Result<()> {
        for index in 0..self.systems.len() {
            let desk = &mut self.systems[index];
            let moved = desk.at.position != desk.recorded.0 || desk.at.base != desk.recorded.1;
            let joins = now || self.appended && desk.at.base != desk.recorded.1;
            if moved && (joins || desk.is_due()) {
                desk.recorded();
                let record = desk.record();
                self.append(vec![record])?;
            }
        }
        Ok(())
    }

    fn append(&mut self, records: Vec<Record>) -> Result<()> {
        let (mut held, mut waiting) = (false, false);
        for mut record in records {
            if let Record::Entry(entry) = &mut record {
                // A retry goes on where what it carries had come to.
                if entry.is_retry() && self.first_hop.is_some_and(|first| entry.base >= first) {
                    entry.hops = self.archive.hops(entry.base)?;
                }
                if entry.hops > 0 {
                    self.first_hop.get_or_insert(entry.seq);
                }
            }
            held |= matches!(record, Record::Quarantine(_) | Record::Released { .. });
            if let Record::Refused(refused) = &record {
                let Refused { system, txid, reason, .. } = refused;
                warn!(%system, %txid, error = %reason, "a captured row cannot be carried and was set aside");
            }
            self.patiently(|writer| writer.append(&record))?;
            self.appended = true;
            self.checkpoints.since += weight(&record);
            match &record {
                Record::Conflict(conflict) => {
                    if failpoint::kills_at("conflict-written") {
                        self.patiently(|writer| writer.sync().map(drop))?;
                        failpoint::pass("conflict-written");
                    }
                    self.count_conflict(conflict);
                    waiting |= conflict.waits();
                }
                Record::Settled(_) => waiting = true,
                _ => {}
            }
            if let Record::Entry(entry) = record {
                self.count_retry(&entry);
                self.archive.fresh.push(entry);
            }
        }
        if held {
            self.show_quarantine();
        }
        if waiting {
            self.show_waiting();
        }
        Ok(())
    }

    fn show_quarantine(&self) {
        self.quarantine.send_replace(self.arbiter.quarantine().cloned().collect());
        for system in &self.status.systems {
            let held = self.arbiter.quarantine().filter(|record| record.system == system.name);
            system.apply.quarantined.set(held.count() as i64);
        }
        for entity in &self.status.entities {
            entity.quarantined.set(self.arbiter.held_of(&entity.name) as i64);
        }
    }

    /// A full disk is waited for: nobody reads a log meanwhile, so capture pauses.
    fn patiently(&mut self, mut work: impl FnMut(&mut Writer) -> Result<()>) -> Result<()> {
        let mut told = false;
        loop {
            match work(&mut self.writer) {
                Err(error) if error.recovery == Recovery::Retry => {
                    if !std::mem::replace(&mut told, true) {
                        error!(error = %error.full(), "the journal cannot be written; capture pauses");
                    }
                    *self.status.journal_error.lock().expect("never held across a panic") = Some(error.full());
                    std::thread::sleep(FULL_PAUSE);
                    self.status.desk_turns.add(1);
                    self.retained_at = Instant::now() - RETAIN_EVERY;
                    self.drop_old()?;
                }
                result => {
                    if told {
                        info!("the journal is written again");
                        *self.status.journal_error.lock().expect("never held across a panic") = None;
                    }
                    return result;
                }
            }
        }
    }

    /// One sync for all that was taken in; then everybody hears of it.
    fn commit(&mut self) -> Result<()> {
        if std::mem::take(&mut self.appended) {
            let began = Instant::now();
            self.patiently(|writer| writer.sync().map(drop))?;
            self.status.journal_syncs.observe(began.elapsed().as_secs_f64());
        }
        if self.systems.iter().all(|desk| desk.at.base == desk.recorded.1) {
            self.needed_from = self.arbiter.needed_from();
        }
        for spool in self.dropped.drain(..) {
            // A file that stays is removed when the journal is opened again.
            if let Err(error) = self.archive.journal.spool().discard(&spool) {
                warn!(error = %error.full(), "a spool file could not be removed");
            }
        }
        self.archive.fresh.clear();
        self.bytes = 0;
        self.status.journal_head.set(self.writer.head());
        for desk in &mut self.systems {
            if std::mem::take(&mut desk.unacknowledged) {
                desk.acknowledged.send_replace(desk.recorded.0.clone());
            }
            if *desk.taken.borrow() != desk.at.position {
                desk.taken.send_replace(desk.at.position.clone());
            }
        }
        for waiting in self.waiting.drain(..) {
            // An applier that went away meanwhile finds the record when it opens again.
            match waiting {
                Waiting::Quarantined(reply) => drop(reply.send(Ok(()))),
                // A source that went away meanwhile does not need the answer.
                Waiting::Resumed(reply, resumed) => drop(reply.send(resumed)),
                Waiting::Held { system, reply } => {
                    let holding = Holding {
                        keys: self.arbiter.held(system),
                        seen: self.arbiter.seen(system),
                        from: self.arbiter.applies_from(system),
                    };
                    drop(reply.send(holding));
                }
                Waiting::Copied(reply, outcome) => drop(reply.send(outcome)),
                Waiting::Marked(reply) => drop(reply.send(())),
                Waiting::Resolved(reply, seq) => drop(reply.send(Ok(seq))),
                Waiting::Undone(reply, seq) => drop(reply.send(Ok(seq))),
                Waiting::Treated(reply, treated) => drop(reply.send(Ok(treated))),
            }
        }
        Ok(())
    }

    fn count(&self, system: SystemId, admitted: &Admitted, committed_at: i64) {
        let capture = &self.status.systems[system.index()].capture;
        let entities = self.status.entities.iter().zip(&capture.entities);
        for (counts, (entity, operations)) in admitted.counts.iter().zip(entities) {
            let journaled = counts.journaled.total();
            capture.journaled.add(journaled);
            operations.add(&counts.journaled);
            capture.rejected.add(counts.rejected);
            capture.drift.add(counts.drift);
            capture.filtered.add(counts.drift);
            entity.conflicts.add(counts.conflicts);
            entity.rejected.add(counts.rejected);
            if journaled > 0 {
                entity.last_change.set(committed_at.max(entity.last_change.get()));
            }
        }
        for (target, changes) in self.status.systems.iter().zip(&admitted.addressed) {
            target.apply.addressed.add(*changes);
        }
    }

    fn count_retry(&self, entry: &Entry) {
        let Address::Only(names) = &entry.to else { return };
        for system in self.status.systems.iter().filter(|system| names.contains(&system.name)) {
            system.apply.addressed.add(entry.changes);
        }
    }

    fn retain(&mut self) -> Result<()> {
        if self.retained_at.elapsed() < RETAIN_EVERY {
            return Ok(());
        }
        self.record_positions(true)?;
        self.commit()?;
        self.drop_old()
    }

    /// What others are still to be told of.
    fn wanted_from(&self) -> Seq {
        self.status.notifies.iter().map(|notify| notify.kept_from.get()).min().unwrap_or(Seq::MAX)
    }

    /// Drops what nobody needs; waits while the journal is full and nothing may go.
    fn drop_old(&mut self) -> Result<()> {
        self.retained_at = Instant::now();
        let retained = self.writer.retain(self.needed_from, self.wanted_from(), now(), self.retention.retention)?;
        self.status.journal_bytes.set(self.archive.journal.bytes());
        if retained.freed > 0 {
            info!(bytes = retained.freed, "old journal segments dropped");
        }
        if retained.full != self.full.send_replace(retained.full) {
            let error = retained.full.then(|| {
                let head = self.archive.journal.head();
                let needed = self.needed_from;
                format!("the journal is full, and entries {needed} to {head} are still needed; capture pauses")
            });
            match &error {
                Some(error) => warn!(max_size = self.retention.max_size, error, "capture pauses"),
                None => info!("the journal has space again"),
            }
            *self.status.journal_error.lock().expect("never held across a panic") = error;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
