//! The simulated journal: records in order, of which a crash keeps those that were synced.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anechoic::admit::{Bodies, image_in};
use anechoic::change::{Body, Changes, Entry, Origin, Prepared, Quarantined, Record, SpoolRef};
use anechoic::error::Result;
use anechoic::position::{Position, Seq};
use anechoic::schema::Schema;
use bytes::Bytes;

/// The journal: every record ever appended, how many are synced, how many were dropped.
#[derive(Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub durable: usize,
    pub dropped: usize,
    /// What is told again in place of what was dropped.
    pub snapshot: Vec<Record>,
    /// Index of each entry, by seq − 1.
    pub entries: Vec<usize>,
    pub spool: HashMap<u64, Vec<Bytes>>,
    pub schema: Option<Arc<Schema>>,
    /// That waited.
    pub conflicts: u64,
}

impl Log {
    pub fn append(&mut self, records: Vec<Record>) {
        for record in records {
            self.conflicts += u64::from(matches!(&record, Record::Conflict(conflict) if conflict.waits()));
            if std::env::var("ANECHOIC_TRACE").is_ok() {
                println!("  {}", shown(&record));
            }
            if let Record::Entry(entry) = &record {
                assert_eq!(entry.seq as usize, self.entries.len() + 1, "entries are numbered without a gap");
                self.entries.push(self.records.len());
            }
            self.records.push(record);
        }
    }

    pub fn entry(&self, seq: Seq) -> &Entry {
        match &self.records[self.entries[seq as usize - 1]] {
            Record::Entry(entry) => entry,
            _ => unreachable!("entries holds the places of entries"),
        }
    }

    /// Journaled, and not dropped: the entry that is being made is not there yet.
    pub fn kept(&self, seq: Seq) -> bool {
        self.entries.get(seq as usize - 1).is_some_and(|at| *at >= self.dropped)
    }

    pub fn head(&self) -> Seq {
        self.entries.iter().take_while(|at| **at < self.durable).count() as Seq
    }

    pub fn crash(&mut self) {
        self.records.truncate(self.durable);
        self.entries.retain(|at| *at < self.durable);
    }

    /// Where a reader from entry `from` on begins.
    pub fn place(&self, from: Seq) -> usize {
        if from <= 1 { 0 } else { self.entries[from as usize - 2] + 1 }
    }

    /// The live quarantine records.
    pub fn held(&self) -> Vec<Quarantined> {
        let mut live = BTreeMap::new();
        for record in self.snapshot.iter().chain(&self.records[self.dropped..]) {
            match record {
                Record::Quarantine(q) => {
                    let key = Changes::new(&q.change).next().unwrap().key_hash;
                    live.insert((q.system.clone(), key), q.clone());
                }
                Record::Released { system, key_hash, .. } => drop(live.remove(&(system.clone(), *key_hash))),
                _ => {}
            }
        }
        live.into_values().collect()
    }

    /// Drops what is not needed, as segments are dropped: positions and live quarantine
    /// records are told again.
    pub fn drop_below(&mut self, needed: Seq) {
        let at = self.place(needed.min(self.head() + 1)).min(self.durable);
        if at <= self.dropped {
            return;
        }
        let mut positions: BTreeMap<Arc<str>, Record> = BTreeMap::new();
        let mut live: BTreeMap<(Arc<str>, u128), Record> = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        let mut prepared = BTreeMap::new();
        for record in self.snapshot.iter().chain(&self.records[self.dropped..at]) {
            undecided(&mut prepared, record);
            if let Some((system, position, base)) = place(record) {
                let (name, position) = (system.clone(), position.clone());
                positions.insert(name.clone(), Record::Position { system: name, position, base, identity: "".into() });
            }
            match record {
                Record::Quarantine(q) => {
                    let key = Changes::new(&q.change).next().unwrap().key_hash;
                    live.insert((q.system.clone(), key), record.clone());
                }
                Record::Released { system, key_hash, .. } => drop(live.remove(&(system.clone(), *key_hash))),
                Record::Conflict(conflict) if conflict.waits() => {
                    waiting.insert(conflict.id, record.clone());
                }
                Record::Settled(settled) => drop(waiting.remove(&settled.id)),
                _ => {}
            }
        }
        // What is prepared is told first: its position is not the last one.
        let prepared = prepared.into_values().map(Record::Prepared).chain(positions.into_values());
        self.snapshot = prepared.chain(live.into_values()).chain(waiting.into_values()).collect();
        self.dropped = at;
    }
}

/// How far a record says that a system's log was read.
pub fn place(record: &Record) -> Option<(&Arc<str>, &Position, Seq)> {
    match record {
        Record::Position { system, position, base, .. } | Record::Decided { system, position, base, .. } => {
            Some((system, position, *base))
        }
        Record::Prepared(Prepared { system, position, base, .. }) => Some((system, position, *base)),
        Record::Entry(Entry { origin: Origin::System(system), position: Some(position), base, .. }) => {
            Some((system, position, *base))
        }
        _ => None,
    }
}

/// XA transactions that no record has decided, by system and xid.
pub fn undecided(prepared: &mut BTreeMap<(Arc<str>, Arc<str>), Prepared>, record: &Record) {
    match record {
        Record::Prepared(it) => drop(prepared.insert((it.system.clone(), it.xid.clone()), it.clone())),
        Record::Decided { system, xid, .. } => drop(prepared.remove(&(system.clone(), xid.clone()))),
        Record::Entry(Entry { body: Body::Spooled(spool), .. }) => {
            prepared.retain(|_, it| it.spool.as_ref() != Some(spool));
        }
        _ => {}
    }
}

impl Bodies for Log {
    fn chunks(&self, spool: &SpoolRef, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.spool[&spool.id].iter().try_for_each(|chunk| each(chunk))
    }

    fn committed_at(&self, seq: Seq) -> Result<Option<i64>> {
        Ok(self.kept(seq).then(|| self.entry(seq).committed_at))
    }

    fn image(&self, seq: Seq, key_hash: u128) -> Result<Option<Bytes>> {
        if !self.kept(seq) {
            return Ok(None);
        }
        image_in(self.entry(seq), key_hash, self.schema.as_ref().unwrap(), self)
    }
}

/// A record on one line, for a person who follows a schedule.
pub fn shown(record: &Record) -> String {
    let change = |bytes: &[u8]| {
        let changes = Changes::new(bytes).map(|c| format!("{} {:x} {:?}", c.op.name(), c.key_hash >> 112, c.image()));
        changes.collect::<Vec<_>>().join("; ")
    };
    match record {
        Record::Entry(e) => {
            let body = match &e.body {
                Body::Inline(bytes) => change(bytes),
                Body::Spooled(spool) => format!("spool {}", spool.id),
            };
            format!("entry {} {:?} base {} {:?} [{body}] {:?}", e.seq, e.origin, e.base, e.to, e.decisions)
        }
        Record::Quarantine(q) => {
            format!(
                "quarantine {} {}..{} folded {} [{}]",
                q.system,
                q.held_seq,
                q.last_seq,
                q.folded,
                change(&q.change)
            )
        }
        other => format!("{other:?}"),
    }
}
