//! Route and map: table rows become canonical changes, canonical rows become table rows.
//!
//! ```text
//! capture ──rows──▶ Normalizer ──Captured, Passed──▶ admit
//!                       │ more than a MiB
//!                       ▼
//!                     spool
//! ```
//!
//! One [`Normalizer`] per system and connection of its capture. What no binding names never
//! leaves this stage. A transaction is handed on whole, at its commit; its changes are encoded
//! once, here, and go to the journal's spool chunk by chunk when they outgrow memory.
//!
//! A change carries every field that its binding has, changed or not, because a change of
//! single fields would not converge with one of whole rows. A key change is a delete and an
//! insert. A value that cannot be carried exactly sets its row aside, never the flow.
//!
//! Of an echo, what a trigger or a referential action added to it is a local change that has
//! seen the echo's marker ([`echo`]).

pub mod array;
pub mod binding;
pub mod dates;
pub mod echo;
pub mod filter;
pub mod follow;
pub mod format;
pub mod recast;
pub mod resolve;
pub mod transform;
pub mod typed;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::warn;

use crate::capture::{ALTERED, Begin, Commit, RowEvent, Sink};
use crate::change::{
    Body, Captured, Change, ChangeWriter, Changes, HOPS_MAX, Micros, Op, Prepared, Quarantined, Record, Refused,
    SpoolRef,
};
use crate::error::{Error, RESYNC, Result};
use crate::journal::{Journal, Reader, SpoolWriter};
use crate::marker::{Marker, Unshown};
use crate::position::{Position, Seq};
use crate::rules::Rules;
use crate::schema::{EntityId, EntitySchema, Schema, SystemId};
use crate::status::Status;
use crate::value::{Datum, Row, key_hash, write_datum};
use binding::{Binding, Role};
use echo::{Echo, Rewritten, Watch};
use resolve::Model;

/// Changes beyond this go to the spool, in chunks of about this size.
const CHUNK_BYTES: usize = 1 << 20;
/// Finished transactions that wait to be taken: then the capture pauses.
const WAITING_MAX: usize = 4096;
/// Rows of one transaction that cannot be carried. More is no accident of single rows, and
/// would be held in memory.
const REFUSED_MAX: usize = 1000;
/// The same field of the same entity is named in the log this often.
const TELL_REWRITTEN_EVERY: Duration = Duration::from_secs(60);

/// What a capture read, in the order of the log.
#[derive(Debug)]
pub enum Collected {
    Transaction(Captured),
    Prepared(Prepared),
    /// A prepared transaction is committed or rolled back.
    Decided {
        xid: Arc<str>,
        committed: bool,
        txid: Arc<str>,
        committed_at: Micros,
        position: Position,
        base: Seq,
    },
    /// The log was read to here with nothing to journal.
    Passed {
        position: Position,
        base: Seq,
        /// The server waits until this is acknowledged.
        awaited: bool,
    },
}

impl Collected {
    /// How far the log was read.
    pub fn position(&self) -> &Position {
        match self {
            Collected::Transaction(Captured { position, .. })
            | Collected::Prepared(Prepared { position, .. })
            | Collected::Decided { position, .. }
            | Collected::Passed { position, .. } => position,
        }
    }
}

/// The sink of one system's capture. Made anew, with the base of the durable position, each
/// time the capture is: a base kept over a reconnect would be ahead of the log that is read again.
pub struct Normalizer {
    system: SystemId,
    name: Arc<str>,
    schema: Arc<Schema>,
    routes: Vec<Route>,
    /// By entity.
    rules: Vec<Arc<Rules>>,
    status: Arc<Status>,
    journal: Journal,
    /// The highest marker seq seen in this log.
    base: Seq,
    transaction: Transaction,
    /// Where applying can have side effects.
    watch: Option<Watch>,
    /// The echo that is being read, where it may hold some.
    echo: Option<Echo>,
    /// Stands behind the entry of the last marker.
    applied: Option<Reader>,
    /// Hops are counted from behind this entry on.
    hops_from: Seq,
    told: HashMap<Rewritten, Instant>,
    /// Live quarantine records of all systems.
    held: watch::Receiver<Vec<Quarantined>>,
    before: Vec<u8>,
    after: Vec<u8>,
    trimmed: Vec<u8>,
    scratch: Vec<u8>,
    collected: Vec<Collected>,
    collected_bytes: usize,
    tally: Tally,
    unshown: Option<Unshown>,
}

/// Counted, but not yet taken: what a connection that breaks leaves behind is read, and counted, again.
#[derive(Default)]
struct Tally {
    transactions: u64,
    changes: u64,
    filtered: u64,
    drift: u64,
    refused: u64,
    echoes: u64,
    side_effects: u64,
    rewritten: HashMap<Rewritten, u64>,
    last_commit: Option<Micros>,
}

/// One wanted table's binding, and per field of its entity the column that holds it.
struct Route {
    binding: Arc<Binding>,
    columns: Vec<Option<usize>>,
}

/// The transaction that is being read.
#[derive(Default)]
struct Transaction {
    txid: String,
    writer: ChangeWriter,
    /// In chunks that the spool has already.
    spooled: u64,
    spooling: Option<SpoolWriter>,
    refused: Vec<Refused>,
    filtered: u64,
    drift: u64,
}

/// What a filter says of a row before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Belongs {
    before: bool,
    after: bool,
}

impl Normalizer {
    /// `base` is the one stored beside the position from which the capture starts.
    /// `hops_from`: the journal's head when the flows were made, from which on the hops of side
    /// effects count. What triggers that were changed since had led to is past then, and a person who
    /// mended them is not asked about it again.
    /// `held`: the live quarantine records, each told before the target transaction that
    /// passes its change commits.
    pub fn new(
        system: SystemId,
        model: &Model,
        journal: Journal,
        base: Seq,
        hops_from: Seq,
        held: watch::Receiver<Vec<Quarantined>>,
        status: Arc<Status>,
    ) -> Self {
        let route = |binding: &Arc<Binding>| {
            let fields = 0..model.schema.entity(binding.entity).fields.len();
            let column = |field| binding.columns.iter().position(|bound| bound.field == field);
            Route { binding: binding.clone(), columns: fields.map(column).collect() }
        };
        let (name, bindings) = (status.systems[system.index()].name.clone(), &model.bindings[system.index()]);
        Normalizer {
            system,
            watch: Watch::new(name.clone(), model.schema.clone(), bindings),
            name,
            schema: model.schema.clone(),
            routes: bindings.iter().map(route).collect(),
            rules: model.rules.clone(),
            status,
            journal,
            base,
            transaction: Transaction::default(),
            echo: None,
            applied: None,
            hops_from,
            told: HashMap::new(),
            held,
            before: Vec::new(),
            after: Vec::new(),
            trimmed: Vec::new(),
            scratch: Vec::new(),
            collected: Vec::new(),
            collected_bytes: 0,
            tally: Tally::default(),
            unshown: None,
        }
    }

    /// What was collected since the last call, in the order of the log.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Collected> {
        self.collected_bytes = 0;
        self.count();
        if let Some(last) = self.collected.last() {
            let shown = &self.status.systems[self.system.index()].capture.position;
            *shown.lock().expect("nobody panics while holding a status text") = last.position().to_string();
        }
        self.collected.drain(..)
    }

    fn count(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        let capture = &self.status.systems[self.system.index()].capture;
        capture.transactions.add(tally.transactions);
        capture.changes.add(tally.changes);
        capture.filtered.add(tally.filtered);
        capture.drift.add(tally.drift);
        capture.refused.add(tally.refused);
        capture.echoes.add(tally.echoes);
        capture.side_effects.add(tally.side_effects);
        for (rewritten, rows) in tally.rewritten {
            capture.rewritten.add(rows);
            self.status.entities[rewritten.entity.index()].rewritten.add(rows);
        }
        if let Some(at) = tally.last_commit {
            capture.last_commit.set(at);
        }
    }

    /// The system's log is read without what we write.
    #[must_use]
    pub fn unshown(mut self, unshown: Option<Unshown>) -> Self {
        self.unshown = unshown;
        self
    }

    /// A place that foreign traffic has reached, where the base is known.
    fn pass_over(&mut self, position: Position, awaited: bool) {
        if self.unshown.as_ref().is_none_or(|unshown| unshown.ends_at(self.base)) {
            self.pass(position, awaited);
        }
    }

    fn pass(&mut self, position: Position, awaited: bool) {
        let base = self.base;
        match self.collected.last_mut() {
            Some(Collected::Passed { position: last, base: of_last, awaited: already }) => {
                (*last, *of_last) = (position, base);
                *already |= awaited;
            }
            _ => self.collected.push(Collected::Passed { position, base, awaited }),
        }
    }

    /// Encodes both images and decides what becomes of them.
    fn change(&mut self, event: &RowEvent<'_>) -> Result<()> {
        let route = &self.routes[event.table];
        let entity = self.schema.entity(route.binding.entity);
        if entity.key_len == 0 && event.op != Op::Insert {
            return Err(only_inserts(entity, &route.binding, event.op));
        }
        self.before.clear();
        self.after.clear();
        let mut refused = event.refused.map(str::to_owned);
        let mut key_intact = true;
        if let Some(datums) = event.before {
            // Only the old key has to be whole: a row that is being mended may go on.
            let (lost, reason) = route.encode(datums, &mut self.before)?;
            key_intact = lost.is_none_or(|field| field >= entity.key_len);
            refused = refused.or(reason.filter(|_| !key_intact || event.op == Op::Delete));
        }
        if let Some(datums) = event.after {
            let (_, reason) = route.encode(datums, &mut self.after)?;
            refused = refused.or(reason);
        }
        if refused.is_none() {
            self.check_keys(event, entity)?;
        }
        let moved = event.op == Op::Update
            && !self.before.is_empty()
            && key_intact
            && !same_key(entity, Row(&self.before), Row(&self.after), &mut self.scratch);
        if self.echo.is_some() && event.op == Op::Update && self.before == self.after {
            // Of no entity's business: a table can be bound by several, and one of them was applied.
            return Ok(());
        }
        let belongs = self.belongs(event);
        self.route(event, moved, belongs, refused)
    }

    fn check_keys(&self, event: &RowEvent<'_>, entity: &EntitySchema) -> Result<()> {
        for image in [&self.before, &self.after].into_iter().filter(|image| !image.is_empty()) {
            if Row(image).iter().take(entity.key_len).any(|datum| !datum.is_sent()) {
                let table = &self.routes[event.table].binding.table.name;
                return Err(Error::stop(
                    format!("the log of table {table} does not carry the key of {} in every image", entity.name),
                    "PostgreSQL: ALTER TABLE … REPLICA IDENTITY FULL; MySQL and MariaDB: binlog_row_image = FULL",
                ));
            }
        }
        Ok(())
    }

    fn belongs(&self, event: &RowEvent<'_>) -> Belongs {
        let Some(filter) = &self.routes[event.table].binding.filter else {
            return Belongs { before: true, after: true };
        };
        let belongs = |image: &[u8]| {
            let mut row = [Datum::NotSent; 128];
            let count = row.iter_mut().zip(Row(image).iter()).map(|(slot, datum)| *slot = datum).count();
            // What cannot be told belongs: it is seen then, not lost.
            filter.fields().iter().any(|&field| !row[field].is_sent()) || filter.matches(&row[..count]) == Some(true)
        };
        Belongs {
            // Without an old image nothing says that the row was outside.
            before: self.before.is_empty() || belongs(&self.before),
            after: !self.after.is_empty() && belongs(&self.after),
        }
    }

    fn route(&mut self, event: &RowEvent<'_>, moved: bool, belongs: Belongs, refused: Option<String>) -> Result<()> {
        let stays = self.routes[event.table].binding.role == Role::Both;
        let op = match (event.op, belongs.before, belongs.after) {
            (Op::Insert, _, true) | (Op::Update, false, true) => Some(Op::Insert),
            (Op::Delete, true, _) => Some(Op::Delete),
            (Op::Update, true, true) => Some(Op::Update),
            // Leaves the own filter: gone for a source; in a table that is also written, the edit it is.
            (Op::Update, true, false) => Some(if stays { Op::Update } else { Op::Delete }),
            (Op::Insert, ..) | (Op::Delete, ..) | (Op::Update, false, false) => None,
        };
        let Some(op) = op else {
            // What the agent itself wrote is in no books.
            self.transaction.filtered += u64::from(self.echo.is_none());
            return Ok(());
        };
        if op == Op::Delete && event.op == Op::Update && self.before.is_empty() {
            std::mem::swap(&mut self.before, &mut self.after); // the new image has the key
        }
        match (moved && op == Op::Update, refused) {
            (false, None) => self.write(event.table, op),
            (false, Some(reason)) => self.refuse(event.table, op, reason),
            (true, refused) => {
                self.write(event.table, Op::Delete)?;
                // Of a row that is new to the others everything is needed.
                let lacking = refused.or_else(|| self.lacking(event.table));
                match lacking {
                    None => self.write(event.table, Op::Insert),
                    Some(reason) => self.refuse(event.table, Op::Insert, reason),
                }
            }
        }
    }

    /// Why the new image is not a whole row.
    fn lacking(&self, table: usize) -> Option<String> {
        let route = &self.routes[table];
        let entity = self.schema.entity(route.binding.entity);
        let missing =
            |(field, datum): (usize, Datum<'_>)| (route.columns[field].is_some() && !datum.is_sent()).then_some(field);
        let field = Row(&self.after).iter().enumerate().find_map(missing)?;
        Some(format!(
            "the log does not carry field {:?} of {}, unchanged while the key changed (REPLICA IDENTITY FULL would)",
            entity.fields[field].name, entity.name
        ))
    }

    fn write(&mut self, table: usize, op: Op) -> Result<()> {
        let entity = self.routes[table].binding.entity;
        let (before, after) = images(op, &self.before, &self.after);
        write_change(&mut self.transaction.writer, &self.schema, entity, op, before, after);
        if let (Some(echo), Some(watch)) = (&mut self.echo, &self.watch)
            && echo.is_ours(watch, &self.transaction.writer.last())
        {
            self.transaction.writer.take_back();
        } else if self.rules[entity.index()].trims(op) && !before.is_empty() {
            self.trim(entity);
        }
        if self.transaction.writer.bytes.len() >= CHUNK_BYTES { self.spool_chunk() } else { Ok(()) }
    }

    /// Leaves of the update that was written last what the entity's rules have it carry.
    fn trim(&mut self, entity: EntityId) {
        let rules = &self.rules[entity.index()];
        let key_len = self.schema.entity(entity).key_len;
        self.transaction.writer.take_back();
        self.trimmed.clear();
        if !rules.write_carried(key_len, Row(&self.before), Row(&self.after), &mut self.trimmed) {
            // Nobody has to hear of what changed nothing; what the agent itself wrote is in no books.
            self.transaction.filtered += u64::from(self.echo.is_none());
            return;
        }
        let writer = &mut self.transaction.writer;
        write_change(writer, &self.schema, entity, Op::Update, &self.before, &self.trimmed);
    }

    fn refuse(&mut self, table: usize, op: Op, reason: String) -> Result<()> {
        let binding = &self.routes[table].binding;
        let (before, after) = images(op, &self.before, &self.after);
        let mut writer = ChangeWriter::default();
        write_change(&mut writer, &self.schema, binding.entity, op, before, after);
        if let (Some(echo), Some(watch)) = (&mut self.echo, &self.watch)
            && echo.is_ours(watch, &writer.last())
        {
            return Ok(());
        }
        if self.transaction.refused.len() == REFUSED_MAX {
            return Err(Error::stop(
                format!(
                    "more than {REFUSED_MAX} rows of transaction {} cannot be carried: {reason}",
                    self.transaction.txid
                ),
                format!("mend the binding of table {} in the configuration", binding.table.name),
            ));
        }
        self.transaction.refused.push(Refused {
            system: self.name.clone(),
            position: None, // known at the commit
            txid: Arc::from(self.transaction.txid.as_str()),
            schema: self.schema.clone(),
            change: writer.take().into(),
            reason,
        });
        Ok(())
    }

    fn spool_chunk(&mut self) -> Result<()> {
        let transaction = &mut self.transaction;
        let spooling = match &mut transaction.spooling {
            Some(spooling) => spooling,
            none => none.insert(self.journal.spool().create()?),
        };
        spooling.write(&transaction.writer.bytes)?;
        transaction.spooled += transaction.writer.count;
        transaction.writer.bytes.clear();
        transaction.writer.count = 0;
        Ok(())
    }

    fn body(&mut self) -> Result<Body> {
        if self.transaction.spooling.is_some() && !self.transaction.writer.is_empty() {
            self.spool_chunk()?;
        }
        match self.transaction.spooling.take() {
            Some(spooling) => spooling.finish().map(Body::Spooled),
            None => Ok(Body::Inline(Bytes::copy_from_slice(&self.transaction.writer.bytes))),
        }
    }

    /// What an echo with this marker applied, from the journal. `None`: it has no side effects.
    fn expected(&mut self, watch: &Watch, marker: &Marker) -> Result<Option<Echo>> {
        // Of the entry behind it a part was applied, where the marker says so.
        let to = marker.seq + u64::from(marker.part > 0);
        if to <= self.base {
            return Ok(None);
        }
        let held = |record: &&Quarantined| record.system == self.name;
        let key = |record: &Quarantined| (first(&record.change).key_hash, record.held_seq);
        let held = self.held.borrow().iter().filter(held).map(key).collect();
        let mut echo = Echo::new(marker.seq, held);
        let mut reader = match self.applied.take().filter(|reader| reader.seq() == self.base) {
            Some(reader) => reader,
            // What is older was for others.
            None => self.journal.reader((self.base + 1).max(self.journal.oldest()))?,
        };
        while reader.seq() < to {
            match reader.next()? {
                Some(Record::Entry(mut entry)) => {
                    if entry.seq <= self.hops_from {
                        entry.hops = 0;
                    }
                    echo.expect(watch, entry);
                }
                Some(_) => {}
                None => {
                    let head = self.journal.head();
                    return Err(self.ahead(to, head));
                }
            }
        }
        self.applied = Some(reader);
        Ok(echo.complete(watch, &chunks(&self.journal))?.then_some(echo))
    }

    fn ahead(&self, seq: Seq, head: Seq) -> Error {
        Error::lost(
            format!("the log of {} holds a marker at seq {seq}, beyond the journal's head {head}", self.name),
            "the journal or the system is from a backup",
        )
        .of_system(&self.name)
    }

    /// Leaves of what an echo's rows became only the side effects. How many of them in a row these are.
    fn sift(&mut self, mut echo: Echo) -> Result<u32> {
        let Some(watch) = self.watch.take() else { return Ok(0) };
        let mut found = HashMap::new();
        while echo.next_part(&watch, &chunks(&self.journal), &mut found)? {
            self.retain(&mut |change| !echo.is_ours(&watch, change))?;
        }
        if echo.has_doubts() {
            self.retain(&mut |change| !echo.is_ours_after_all(change, &mut found))?;
        }
        self.watch = Some(watch);
        for (rewritten, rows) in found {
            self.tell_rewritten(rewritten, rows);
            *self.tally.rewritten.entry(rewritten).or_default() += rows;
        }
        self.tally.side_effects +=
            self.transaction.spooled + self.transaction.writer.count + self.transaction.refused.len() as u64;
        self.base = self.base.max(echo.seq);
        self.tally.echoes += 1;
        match self.goes_on().filter(|_| echo.hops() > HOPS_MAX) {
            Some(into) => Err(self.endless(&echo, into)),
            None => Ok(echo.hops()),
        }
    }

    /// A table whose rows of the transaction in hand are for the others.
    fn goes_on(&self) -> Option<&Binding> {
        let large = self.transaction.spooled > 0;
        let mut bindings = self.routes.iter().map(|route| &*route.binding).filter(|b| b.role != Role::Target);
        let written = |binding: &&Binding| {
            large || Changes::new(&self.transaction.writer.bytes).any(|change| change.entity == binding.entity)
        };
        bindings.find(written)
    }

    /// Triggers that answer each other: on new rows each time, so that nothing but a count tells.
    fn endless(&self, echo: &Echo, into: &Binding) -> Error {
        let tables = echo.acting().iter().filter_map(|entity| {
            let table = &self.routes.iter().find(|route| route.binding.entity == *entity)?.binding.table;
            let triggers: Vec<&str> = table.named_triggers.iter().map(|trigger| trigger.name.as_str()).collect();
            Some(match triggers.is_empty() {
                true => table.name.to_string(),
                false => format!("{} ({})", table.name, triggers.join(", ")),
            })
        });
        let tables: Vec<String> = tables.collect();
        Error::stop(
            format!(
                "triggers answer each other: what those on {} wrote into {} of {} while changes were applied is the end \
                 of more than {HOPS_MAX} side effects in a row",
                tables.join(", "),
                into.table.name,
                self.name
            ),
            "let one of the triggers stand aside for the agent. PostgreSQL: IF current_setting('anechoic.applying', true) \
             = 'on' THEN RETURN NEW; END IF; MySQL, MariaDB: IF @anechoic_applying IS NULL THEN … END IF; the flow \
             goes on, with everything written so far, when a trigger of a bound table has changed, or by a restart",
        )
        .code(ALTERED)
    }

    /// Keeps of the transaction in hand what `keep` says, in order.
    fn retain(&mut self, keep: &mut dyn FnMut(&Change<'_>) -> bool) -> Result<()> {
        self.transaction.refused.retain(|refused| keep(&first(&refused.change)));
        if self.transaction.writer.is_empty() && self.transaction.spooled == 0 {
            return Ok(());
        }
        let body = self.body()?;
        self.transaction.spooled = 0;
        self.transaction.writer.take();
        match body {
            Body::Inline(bytes) => self.retain_of(&bytes, keep),
            Body::Spooled(spool) => {
                let journal = self.journal.clone();
                chunks(&journal)(&spool, &mut |chunk| self.retain_of(&chunk, keep))?;
                journal.spool().discard(&spool)
            }
        }
    }

    fn retain_of(&mut self, chunk: &[u8], keep: &mut dyn FnMut(&Change<'_>) -> bool) -> Result<()> {
        for change in Changes::new(chunk) {
            if keep(&change) {
                self.transaction.writer.push_change(&change);
                if self.transaction.writer.bytes.len() >= CHUNK_BYTES {
                    self.spool_chunk()?;
                }
            }
        }
        Ok(())
    }

    fn tell_rewritten(&mut self, rewritten: Rewritten, rows: u64) {
        let now = Instant::now();
        let before = self.told.get(&rewritten);
        if before.is_some_and(|before| now.duration_since(*before) < TELL_REWRITTEN_EVERY) {
            return;
        }
        self.told.insert(rewritten, now);
        let entity = self.schema.entity(rewritten.entity);
        let routes = self.routes.iter();
        let table = routes.map(|route| &route.binding).find(|binding| binding.entity == rewritten.entity);
        warn!(
            entity = entity.name,
            table = table.map(|binding| tracing::field::display(&binding.table.name)),
            field = rewritten.field.map(|field| entity.fields[field].name.as_str()),
            rows,
            "rewritten here while it was applied, by a trigger or an action: not sent back, so this system differs"
        );
    }
}

fn first(encoded: &[u8]) -> Change<'_> {
    Changes::new(encoded).next().expect("one encoded change")
}

fn chunks(journal: &Journal) -> impl Fn(&SpoolRef, &mut dyn FnMut(Bytes) -> Result<()>) -> Result<()> {
    |spool, each| {
        let mut chunks = journal.spool_chunks(spool)?;
        while let Some(chunk) = chunks.next()? {
            each(chunk)?;
        }
        Ok(())
    }
}

/// Byte for byte, or as numbers where decimals are written differently.
fn same_key(entity: &EntitySchema, before: Row<'_>, after: Row<'_>, scratch: &mut Vec<u8>) -> bool {
    let mut hash = |row: Row<'_>| key_hash(entity.seed, row.iter().take(entity.key_len), scratch);
    before.prefix(entity.key_len) == after.prefix(entity.key_len) || hash(before) == hash(after)
}

/// The images that a change of this kind has.
fn write_change(writer: &mut ChangeWriter, schema: &Schema, entity: EntityId, op: Op, before: &[u8], after: &[u8]) {
    writer.begin(entity, op);
    writer.bytes.extend_from_slice(before);
    writer.end_before();
    writer.bytes.extend_from_slice(after);
    writer.finish(schema);
}

fn images<'i>(op: Op, before: &'i [u8], after: &'i [u8]) -> (&'i [u8], &'i [u8]) {
    match op {
        Op::Insert => (&[], after),
        Op::Update => (before, after),
        Op::Delete => (before, &[]),
    }
}

fn only_inserts(entity: &EntitySchema, binding: &Binding, op: Op) -> Error {
    Error::stop(
        format!(
            "{} of a row of {}, whose entity {:?} has no key: only inserts can be carried",
            op.name(),
            binding.table.name,
            entity.name
        ),
        format!("give the entity a key: key = [\"…\"], or take {:?} out of the configuration", entity.name),
    )
}

impl Route {
    /// Appends the canonical row. A value that cannot be carried is left out (not sent); the
    /// first such field and the reason are returned.
    fn encode(&self, datums: &[Datum<'_>], out: &mut Vec<u8>) -> Result<(Option<usize>, Option<String>)> {
        let mut refused = (None, None);
        for (field, column) in self.columns.iter().enumerate() {
            let Some(column) = *column else {
                write_datum(out, Datum::NotSent);
                continue;
            };
            let datum = datums.get(column).copied().unwrap_or(Datum::NotSent);
            if let Err(error) = self.binding.columns[column].to_canonical(datum, out) {
                if error.recovery != crate::error::Recovery::Quarantine {
                    return Err(error);
                }
                write_datum(out, Datum::NotSent);
                if refused.0.is_none() {
                    refused = (Some(field), Some(error.message));
                }
            }
        }
        Ok(refused)
    }
}

impl Sink for Normalizer {
    fn begin(&mut self, begin: Begin<'_>) -> Result<()> {
        let transaction = &mut self.transaction;
        transaction.txid.clear();
        transaction.txid.push_str(begin.txid);
        transaction.writer.bytes.clear();
        transaction.writer.count = 0;
        transaction.spooled = 0;
        transaction.spooling = None;
        transaction.refused.clear();
        transaction.filtered = 0;
        transaction.drift = 0;
        Ok(())
    }

    fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
        // Side effects in such a table are drift, too: the arbiter counts them.
        if self.routes[row.table].binding.role == Role::Target && self.echo.is_none() {
            self.transaction.drift += 1;
            self.transaction.filtered += 1;
            return Ok(());
        }
        self.change(&row)
    }

    fn truncate(&mut self, table: usize) -> Result<()> {
        let binding = &self.routes[table].binding;
        if binding.role == Role::Target {
            self.transaction.drift += 1;
            self.transaction.filtered += 1;
            return Ok(());
        }
        Err(Error::stop(
            format!("TRUNCATE of {}: it names no rows, and the other systems would keep theirs", binding.table.name),
            format!(
                "its rows come back from the others, or with --delete-extra vanish there, too, as DELETE would have \
                 had it, by: {RESYNC} {}",
                self.name
            ),
        ))
    }

    fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        let echo = self.echo.take();
        let of_echo = echo.is_some();
        let hops = match echo {
            Some(echo) => self.sift(echo)?,
            None => 0,
        };
        let (filtered, drift) = (self.transaction.filtered, self.transaction.drift);
        let changes = self.transaction.spooled + self.transaction.writer.count;
        let refused = self.transaction.refused.len() as u64;
        if changes == 0 && refused == 0 {
            self.pass_over(commit.position, false);
        } else {
            let body = self.body()?;
            let mut refused = std::mem::take(&mut self.transaction.refused);
            refused.iter_mut().for_each(|refused| refused.position = Some(commit.position.clone()));
            if let Body::Inline(bytes) = &body {
                self.collected_bytes += bytes.len();
            }
            self.collected.push(Collected::Transaction(Captured {
                system: self.system,
                position: commit.position,
                base: self.base,
                txid: Arc::from(commit.txid),
                committed_at: commit.committed_at,
                hops,
                schema: self.schema.clone(),
                changes,
                body,
                refused,
            }));
            self.tally.transactions += 1;
        }
        self.tally.changes += changes + refused + filtered;
        self.tally.filtered += filtered;
        self.tally.drift += drift;
        self.tally.refused += refused;
        if !of_echo {
            self.tally.last_commit = Some(commit.committed_at);
        }
        Ok(())
    }

    /// Its changes count when they are decided.
    fn prepare(&mut self, xid: &str, position: Position) -> Result<()> {
        let changes = self.transaction.spooled + self.transaction.writer.count;
        let mut refused = std::mem::take(&mut self.transaction.refused);
        refused.iter_mut().for_each(|refused| refused.position = Some(position.clone()));
        // On disk, however small it is: the log is not read again from before it.
        let spool = match changes == 0 && refused.is_empty() {
            true => None,
            false => {
                if !self.transaction.writer.is_empty() || self.transaction.spooling.is_none() {
                    self.spool_chunk()?;
                }
                self.transaction.spooling.take().map(SpoolWriter::finish).transpose()?
            }
        };
        self.collected.push(Collected::Prepared(Prepared {
            system: self.name.clone(),
            xid: xid.into(),
            position,
            base: self.base,
            schema: self.schema.clone(),
            changes,
            spool,
            refused,
        }));
        self.tally.changes += self.transaction.filtered;
        self.tally.filtered += self.transaction.filtered;
        self.tally.drift += self.transaction.drift;
        Ok(())
    }

    fn decide(&mut self, xid: &str, committed: bool, commit: Commit<'_>) -> Result<()> {
        self.collected.push(Collected::Decided {
            xid: xid.into(),
            committed,
            txid: commit.txid.into(),
            committed_at: commit.committed_at,
            position: commit.position,
            base: self.base,
        });
        self.tally.last_commit = Some(commit.committed_at);
        Ok(())
    }

    fn wants_echo(&mut self, marker: &Marker) -> Result<bool> {
        let Some(watch) = self.watch.take() else { return Ok(false) };
        // One of another journal stops the flow when it ends.
        let expected = match marker.journal == self.journal.id() {
            true => self.expected(&watch, marker),
            false => Ok(None),
        };
        self.watch = Some(watch);
        self.echo = expected?;
        Ok(self.echo.is_some())
    }

    fn echo(&mut self, marker: &Marker, position: Position) -> Result<()> {
        self.echo = None;
        if marker.journal != self.journal.id() {
            return Err(Error::lost(
                format!(
                    "the log of {} holds a marker of agent {:?} that another journal wrote",
                    self.name, marker.agent
                ),
                "two agents use one id: give each installation its own; or the journal or the system is from a backup",
            )
            .of_system(&self.name)
            .at(position));
        }
        // What is in a target was durable in the journal before: this one is older.
        if marker.seq > self.journal.head() {
            return Err(self.ahead(marker.seq, self.journal.head()).at(position));
        }
        self.base = self.base.max(marker.seq);
        self.tally.echoes += 1;
        self.pass(position, false);
        Ok(())
    }

    fn passed(&mut self, position: Position) -> Result<()> {
        self.pass_over(position, false);
        Ok(())
    }

    fn awaited(&mut self, position: Position) -> Result<()> {
        self.pass_over(position, true);
        Ok(())
    }

    fn full(&self) -> bool {
        self.collected_bytes >= CHUNK_BYTES || self.collected.len() >= WAITING_MAX
    }
}

#[cfg(test)]
mod tests;
