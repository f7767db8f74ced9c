//! What of the journal's past is still live: source positions, held keys, prepared transactions,
//! spool files.
//!
//! Kept by the writer record by record and written at the start of each segment. So a restart
//! reads one segment, however long the retention, and a segment may go without taking a live
//! quarantine record or the only position of a quiet system with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::{Decoder, Malformed, Names, put_i64, put_position, put_record, put_schema, put_str, put_u64};
use crate::change::{
    Body, Changes, ConflictId, Conflicted, Entry, LoadMark, Origin, Prepared, Quarantined, Record, ResyncMark,
    ResyncState,
};
use crate::position::{Position, Seq};
use crate::schema::Schema;

/// Where the capture of a system goes on after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionRecord {
    pub position: Position,
    /// The highest marker seen in the system's log up to there.
    pub base: Seq,
    /// The server that the position belongs to; empty until a position record named it.
    pub identity: Arc<str>,
}

/// System, entity, key hash; for entities without a key the held seq tells rows apart.
type HeldKey = (Arc<str>, String, u128, Seq);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub positions: BTreeMap<Arc<str>, PositionRecord>,
    quarantined: BTreeMap<HeldKey, Quarantined>,
    /// By entity and system that is read.
    loads: BTreeMap<(Arc<str>, Arc<str>), LoadMark>,
    /// By system; those that are not over.
    resyncs: BTreeMap<Arc<str>, ResyncMark>,
    /// Those that wait for a person.
    conflicts: BTreeMap<ConflictId, Conflicted>,
    /// Changes quarantined at capture, ever.
    pub refused: u64,
    /// By system and xid.
    prepared: BTreeMap<(Arc<str>, Arc<str>), Prepared>,
    /// Spool file → segment with the entry that refers to it.
    pub spools: BTreeMap<u64, u64>,
}

pub type Schemas = BTreeMap<u64, Arc<Schema>>;

impl State {
    pub fn apply(&mut self, record: &Record, segment: u64) {
        match record {
            Record::Entry(entry) => self.apply_entry(entry, segment),
            Record::Position { system, position, base, identity } => {
                let record = PositionRecord { position: position.clone(), base: *base, identity: identity.clone() };
                self.positions.insert(system.clone(), record);
            }
            Record::Quarantine(held) => {
                // Copied: a slice would keep the whole frame in memory that it was read from.
                let held = Quarantined { change: Bytes::copy_from_slice(&held.change), ..held.clone() };
                self.quarantined.insert(held_key(&held), held);
            }
            Record::Refused(_) => self.refused += 1,
            Record::Released { system, entity, key_hash, by } => self.release(system, entity, *key_hash, *by),
            Record::Prepared(prepared) => {
                self.reach(&prepared.system, &prepared.position, prepared.base);
                let mut prepared = prepared.clone();
                // Copied: a slice would keep the whole frame in memory that it was read from.
                for refused in &mut prepared.refused {
                    refused.change = Bytes::copy_from_slice(&refused.change);
                }
                self.prepared.insert((prepared.system.clone(), prepared.xid.clone()), prepared);
            }
            Record::Load(mark) => {
                // Copied: a slice would keep the whole frame in memory that it was read from.
                let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
                let mark =
                    LoadMark { key: copy(&mark.key), lost: mark.lost.iter().map(copy).collect(), ..mark.clone() };
                self.loads.insert((mark.entity.clone(), mark.system.clone()), mark);
            }
            Record::Resync(mark) if mark.state == ResyncState::Done => drop(self.resyncs.remove(&mark.system)),
            Record::Resync(mark) => drop(self.resyncs.insert(mark.system.clone(), mark.clone())),
            Record::Conflict(conflict) if conflict.waits() => {
                let mut conflict = conflict.clone();
                if let Some(images) = &mut conflict.images {
                    // Copied: a slice would keep the whole frame in memory that it was read from.
                    images.change = Bytes::copy_from_slice(&images.change);
                    images.current = Bytes::copy_from_slice(&images.current);
                }
                self.conflicts.insert(conflict.id, conflict);
            }
            Record::Conflict(_) => {}
            Record::Settled(settled) => drop(self.conflicts.remove(&settled.id)),
            Record::Decided { system, xid, position, base } => {
                self.reach(system, position, *base);
                self.prepared.remove(&(system.clone(), xid.clone()));
            }
        }
    }

    /// The log of a system was read to here.
    fn reach(&mut self, system: &Arc<str>, position: &Position, base: Seq) {
        match self.positions.get_mut(system) {
            Some(record) => {
                record.position.clone_from(position);
                record.base = base;
            }
            None => {
                let record = PositionRecord { position: position.clone(), base, identity: "".into() };
                self.positions.insert(system.clone(), record);
            }
        }
    }

    fn apply_entry(&mut self, entry: &Entry, segment: u64) {
        if let (Origin::System(system), Some(position)) = (&entry.origin, &entry.position) {
            self.reach(system, position, entry.base);
        }
        if let Body::Spooled(spool) = &entry.body {
            self.prepared.retain(|_, prepared| prepared.spool.as_ref() != Some(spool));
            self.spools.insert(spool.id, segment);
        }
    }

    fn release(&mut self, system: &Arc<str>, entity: &str, key_hash: u128, by: Seq) {
        let last = if key_hash == 0 { by } else { 0 };
        let range =
            (system.clone(), entity.to_owned(), key_hash, 0)..=(system.clone(), entity.to_owned(), key_hash, last);
        let gone: Vec<HeldKey> = self.quarantined.range(range).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.quarantined.remove(&key);
        }
    }

    pub fn loads(&self) -> impl Iterator<Item = &LoadMark> {
        self.loads.values()
    }

    /// Systems that have no log position, or whose rows are being compared behind a new one.
    pub fn resyncs(&self) -> impl Iterator<Item = &ResyncMark> {
        self.resyncs.values()
    }

    pub fn quarantined(&self) -> impl Iterator<Item = &Quarantined> {
        self.quarantined.values()
    }

    /// Conflicts that wait for a person, the oldest first.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflicted> {
        self.conflicts.values()
    }

    /// Prepared and not yet decided.
    pub fn prepared(&self) -> impl Iterator<Item = &Prepared> {
        self.prepared.values()
    }

    /// The spool files that something refers to.
    pub fn live_spools(&self) -> BTreeMap<u64, u64> {
        let prepared = self.prepared().filter_map(|prepared| prepared.spool.as_ref());
        self.spools.iter().map(|(id, segment)| (*id, *segment)).chain(prepared.map(|spool| (spool.id, 0))).collect()
    }

    /// Forgets the spool files of segments before `segment`, and says which they were.
    pub fn drop_spools_before(&mut self, segment: u64) -> Vec<u64> {
        let gone: Vec<u64> = self.spools.iter().filter(|(_, s)| **s < segment).map(|(id, _)| *id).collect();
        for id in &gone {
            self.spools.remove(id);
        }
        gone
    }

    /// The schemas that the checkpoint carries, so that its records can be read.
    pub fn schemas(&self) -> Schemas {
        let held = self.quarantined.values().map(|held| &held.schema);
        let prepared = self.prepared.values().map(|prepared| &prepared.schema);
        let loaded = self.loads.values().map(|mark| &mark.schema);
        let waiting = self.conflicts.values().filter_map(|conflict| conflict.images.as_ref());
        let waiting = waiting.map(|images| &images.schema);
        held.chain(prepared).chain(loaded).chain(waiting).map(|schema| (schema.id, schema.clone())).collect()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let schemas = self.schemas();
        put_u64(&mut out, schemas.len() as u64);
        schemas.values().for_each(|schema| put_schema(&mut out, schema));
        put_u64(&mut out, self.positions.len() as u64);
        for (system, record) in &self.positions {
            put_str(&mut out, system);
            put_position(&mut out, &record.position);
            put_u64(&mut out, record.base);
            put_str(&mut out, &record.identity);
        }
        put_u64(&mut out, self.quarantined.len() as u64);
        self.quarantined.values().for_each(|held| put_record(&mut out, &Record::Quarantine(held.clone())));
        put_u64(&mut out, self.prepared.len() as u64);
        self.prepared.values().for_each(|prepared| put_record(&mut out, &Record::Prepared(prepared.clone())));
        put_u64(&mut out, self.loads.len() as u64);
        self.loads.values().for_each(|mark| put_record(&mut out, &Record::Load(mark.clone())));
        put_u64(&mut out, self.refused);
        put_u64(&mut out, self.spools.len() as u64);
        let (mut last_id, mut last_segment) = (0, 0);
        for (id, segment) in &self.spools {
            put_u64(&mut out, id - last_id);
            put_i64(&mut out, *segment as i64 - last_segment);
            (last_id, last_segment) = (*id, *segment as i64);
        }
        put_u64(&mut out, self.resyncs.len() as u64);
        self.resyncs.values().for_each(|mark| put_record(&mut out, &Record::Resync(mark.clone())));
        put_u64(&mut out, self.conflicts.len() as u64);
        self.conflicts.values().for_each(|conflict| put_record(&mut out, &Record::Conflict(conflict.clone())));
        out
    }

    /// Also the schemas that came with it.
    pub fn decode(bytes: &Bytes) -> Result<(State, Schemas), Malformed> {
        let mut state = State::default();
        let mut names = Names::default();
        let mut schemas = Schemas::new();
        let mut decoder = Decoder::new(bytes, 0, &mut names, &|_| None);
        for _ in 0..decoder.count()? {
            let schema = decoder.schema()?;
            schemas.insert(schema.id, schema);
        }
        let at = decoder.at();
        let known = |id| schemas.get(&id).cloned();
        let mut decoder = Decoder::new(bytes, at, &mut names, &known);
        for _ in 0..decoder.count()? {
            let system = decoder.name()?;
            let record =
                PositionRecord { position: decoder.position()?, base: decoder.u64()?, identity: decoder.name()? };
            state.positions.insert(system, record);
        }
        for _ in 0..decoder.count()? {
            let record = decoder.record(0)?;
            state.apply(&record, 0);
        }
        // As they are, not applied: the positions above are younger than theirs.
        for _ in 0..decoder.count()? {
            let Record::Prepared(prepared) = decoder.record(0)? else {
                return Err(Malformed::Content("is not of a prepared transaction"));
            };
            state.prepared.insert((prepared.system.clone(), prepared.xid.clone()), prepared);
        }
        for _ in 0..decoder.count()? {
            let record = decoder.record(0)?;
            state.apply(&record, 0);
        }
        state.refused = decoder.u64()?;
        let (mut id, mut segment) = (0, 0);
        for _ in 0..decoder.count()? {
            id += decoder.u64()?;
            segment += decoder.i64()?;
            state.spools.insert(id, segment as u64);
        }
        // A checkpoint of an older version ends before resyncs, or before conflicts.
        for _ in 0..2 {
            let records = if decoder.is_at_end() { 0 } else { decoder.count()? };
            for _ in 0..records {
                let record = decoder.record(0)?;
                state.apply(&record, 0);
            }
        }
        Ok((state, schemas))
    }
}

fn held_key(held: &Quarantined) -> HeldKey {
    let change = Changes::new(&held.change).next();
    let (entity, key_hash) =
        change.map_or((String::new(), 0), |change| (held.schema.entity(change.entity).name.clone(), change.key_hash));
    (held.system.clone(), entity, key_hash, if key_hash == 0 { held.held_seq } else { 0 })
}
