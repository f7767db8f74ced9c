//! Records as bytes: compact, written by hand, of one format version (see `marker::FORMAT`).
//!
//! ```text
//! record = len u32 (of what follows), tag u8, fields
//! number = LEB128; signed numbers zigzag; text and bytes: length, bytes
//! ```
//!
//! An entry's seq is not written: it is one more than that of the entry before it, and the
//! frame says where to begin. Schemas are named by id. Frames are checksummed, so malformed
//! bytes mean a fault of ours or of the disk; they are an error, never a panic.

mod conflict;
mod marks;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{
    Address, Body, Decision, Entry, Origin, Others, Prepared, Quarantined, Record, Refused, SpoolRef, Verdict,
};
use crate::position::{BinlogPosition, GtidSet, GtidSource, Lsn, MariadbGtid, Position, Seq};
use crate::schema::{EntitySchema, Field, Schema};
use crate::value::Kind;

const ENTRY: u8 = 1;
const POSITION: u8 = 2;
const QUARANTINE: u8 = 3;
const REFUSED: u8 = 4;
const RELEASED: u8 = 5;
const PREPARED: u8 = 6;
const DECIDED: u8 = 7;
const LOAD: u8 = 8;
const RESYNC: u8 = 9;
/// An entry that is a side effect: how many hops it is away from what people wrote stands first.
const HOPPED: u8 = 10;
const CONFLICT: u8 = 11;
const SETTLED: u8 = 12;

/// Why bytes could not be read as a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The record needs this schema, which the reader has not met.
    Schema(u64),
    Content(&'static str),
}

type Decoded<T> = Result<T, Malformed>;

pub fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_i64(out: &mut Vec<u8>, value: i64) {
    put_u64(out, (value << 1 ^ value >> 63) as u64);
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_str(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

/// The schema that must be readable before this record is.
pub fn schema_of(record: &Record) -> Option<&Arc<Schema>> {
    match record {
        Record::Entry(entry) => Some(&entry.schema),
        Record::Quarantine(held) => Some(&held.schema),
        Record::Refused(refused) => Some(&refused.schema),
        Record::Prepared(prepared) => Some(&prepared.schema),
        Record::Load(mark) => Some(&mark.schema),
        Record::Conflict(conflict) => conflict.images.as_ref().map(|images| &images.schema),
        Record::Position { .. }
        | Record::Released { .. }
        | Record::Decided { .. }
        | Record::Resync(_)
        | Record::Settled(_) => None,
    }
}

/// Appends one record with its length.
pub fn put_record(out: &mut Vec<u8>, record: &Record) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match record {
        Record::Entry(entry) => put_entry(out, entry),
        Record::Position { system, position, base, identity } => {
            out.push(POSITION);
            put_str(out, system);
            put_position(out, position);
            put_u64(out, *base);
            put_str(out, identity);
        }
        Record::Quarantine(held) => put_quarantined(out, held),
        Record::Refused(refused) => put_refused(out, refused),
        Record::Released { system, entity, key_hash, by } => {
            out.push(RELEASED);
            put_str(out, system);
            put_str(out, entity);
            out.extend_from_slice(&key_hash.to_le_bytes());
            put_u64(out, *by);
        }
        Record::Prepared(prepared) => put_prepared(out, prepared),
        Record::Decided { system, xid, position, base } => {
            out.push(DECIDED);
            put_str(out, system);
            put_str(out, xid);
            put_position(out, position);
            put_u64(out, *base);
        }
        Record::Load(mark) => marks::put_load(out, mark),
        Record::Resync(mark) => marks::put_resync(out, mark),
        Record::Conflict(conflict) => conflict::put_conflict(out, conflict),
        Record::Settled(settled) => conflict::put_settled(out, settled),
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry.hops {
        0 => out.push(ENTRY),
        hops => {
            out.push(HOPPED);
            put_u64(out, u64::from(hops));
        }
    }
    put_origin(out, &entry.origin);
    put_optional_position(out, entry.position.as_ref());
    put_u64(out, entry.base);
    put_str(out, &entry.txid);
    put_i64(out, entry.committed_at);
    match &entry.to {
        Address::Others => out.push(0),
        Address::Only(names) => {
            out.push(1);
            put_names(out, names);
        }
    }
    out.extend_from_slice(&entry.schema.id.to_le_bytes());
    put_u64(out, entry.changes);
    put_body(out, &entry.body);
    put_decisions(out, &entry.decisions);
    put_bytes(out, &entry.replacements);
}

fn put_origin(out: &mut Vec<u8>, origin: &Origin) {
    match origin {
        Origin::Agent => out.push(0),
        Origin::System(name) => {
            out.push(1);
            put_str(out, name);
        }
        Origin::Copied(name) => {
            out.push(2);
            put_str(out, name);
        }
    }
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Inline(bytes) => {
            out.push(0);
            put_bytes(out, bytes);
        }
        Body::Spooled(spool) => {
            out.push(1);
            put_u64(out, spool.id);
            put_u64(out, spool.bytes);
        }
    }
}

fn put_decisions(out: &mut Vec<u8>, decisions: &[Decision]) {
    put_u64(out, decisions.len() as u64);
    let mut previous = 0u64;
    for decision in decisions {
        put_u64(out, decision.from.wrapping_sub(previous));
        put_u64(out, decision.to.wrapping_sub(decision.from));
        previous = decision.to;
        match &decision.verdict {
            Verdict::Everywhere => out.push(0),
            Verdict::Rejected { winner } => {
                out.push(1);
                put_u64(out, *winner);
            }
            Verdict::Replaced { offset, everywhere, winner } => {
                out.push(2 + u8::from(*everywhere) + 2 * u8::from(winner.is_some()));
                put_u64(out, *offset);
                winner.iter().for_each(|seq| put_u64(out, *seq));
            }
            Verdict::Split { others, own, winner } => {
                let (kind, offset) = match others {
                    Others::Nothing => (0, 0),
                    Others::Same => (1, 0),
                    Others::Replaced(offset) => (2, *offset),
                };
                out.push(6 + kind + 3 * u8::from(winner.is_some()));
                put_u64(out, offset);
                put_u64(out, *own);
                winner.iter().for_each(|seq| put_u64(out, *seq));
            }
            Verdict::Redeleted { offset, winner, by } => {
                out.push(12);
                put_u64(out, *offset);
                put_u64(out, *winner);
                put_origin(out, by);
            }
        }
    }
}

fn put_quarantined(out: &mut Vec<u8>, held: &Quarantined) {
    out.push(QUARANTINE);
    put_str(out, &held.system);
    out.extend_from_slice(&held.schema.id.to_le_bytes());
    put_u64(out, held.held_seq);
    put_u64(out, held.last_seq);
    put_bytes(out, &held.change);
    put_str(out, &held.reason);
    put_str(out, &held.code);
    put_u64(out, u64::from(held.attempts));
    put_i64(out, held.at);
    out.push(u8::from(held.folded));
}

/// Its refused changes are of its own schema and transaction: only what they alone have.
fn put_prepared(out: &mut Vec<u8>, prepared: &Prepared) {
    out.push(PREPARED);
    put_str(out, &prepared.system);
    put_str(out, &prepared.xid);
    put_position(out, &prepared.position);
    put_u64(out, prepared.base);
    out.extend_from_slice(&prepared.schema.id.to_le_bytes());
    put_u64(out, prepared.changes);
    out.push(u8::from(prepared.spool.is_some()));
    if let Some(spool) = &prepared.spool {
        put_u64(out, spool.id);
        put_u64(out, spool.bytes);
    }
    put_u64(out, prepared.refused.len() as u64);
    for refused in &prepared.refused {
        put_str(out, &refused.txid);
        put_bytes(out, &refused.change);
        put_str(out, &refused.reason);
    }
}

fn put_refused(out: &mut Vec<u8>, refused: &Refused) {
    out.push(REFUSED);
    put_str(out, &refused.system);
    put_optional_position(out, refused.position.as_ref());
    put_str(out, &refused.txid);
    out.extend_from_slice(&refused.schema.id.to_le_bytes());
    put_bytes(out, &refused.change);
    put_str(out, &refused.reason);
}

fn put_names(out: &mut Vec<u8>, names: &[Arc<str>]) {
    put_u64(out, names.len() as u64);
    names.iter().for_each(|name| put_str(out, name));
}

fn put_optional_position(out: &mut Vec<u8>, position: Option<&Position>) {
    match position {
        None => out.push(0),
        Some(position) => put_position(out, position),
    }
}

/// Tags 1–4; 0 is no position.
pub fn put_position(out: &mut Vec<u8>, position: &Position) {
    match position {
        Position::Postgres { lsn } => {
            out.push(1);
            put_u64(out, lsn.0);
        }
        Position::Mysql { gtids, binlog, server_uuid } => {
            out.push(5);
            put_gtids(out, gtids);
            put_binlog(out, binlog);
            put_str(out, server_uuid);
        }
        Position::Mariadb { domains, binlog } => {
            out.push(6);
            put_u64(out, domains.len() as u64);
            for (domain, gtid) in domains {
                put_u64(out, u64::from(*domain));
                put_u64(out, u64::from(gtid.server_id));
                put_u64(out, gtid.sequence);
            }
            put_binlog(out, binlog);
        }
        Position::Memory { index } => {
            out.push(4);
            put_u64(out, *index);
        }
    }
}

fn put_gtids(out: &mut Vec<u8>, gtids: &GtidSet) {
    put_u64(out, gtids.intervals.len() as u64);
    for (source, intervals) in &gtids.intervals {
        out.extend_from_slice(&source.uuid);
        put_str(out, &source.tag);
        put_u64(out, intervals.len() as u64);
        for (start, end) in intervals {
            put_u64(out, *start);
            put_u64(out, *end);
        }
    }
}

fn put_binlog(out: &mut Vec<u8>, binlog: &BinlogPosition) {
    put_str(out, &binlog.file);
    put_u64(out, binlog.offset);
    put_u64(out, u64::from(binlog.begun));
}

pub fn put_schema(out: &mut Vec<u8>, schema: &Schema) {
    out.extend_from_slice(&schema.id.to_le_bytes());
    put_u64(out, schema.entities.len() as u64);
    for entity in &schema.entities {
        put_str(out, &entity.name);
        out.extend_from_slice(&entity.seed.to_le_bytes());
        put_u64(out, entity.key_len as u64);
        put_u64(out, entity.fields.len() as u64);
        for field in &entity.fields {
            put_str(out, &field.name);
            put_str(out, field.kind.name());
        }
    }
}

/// Names of systems and entities recur in every record; one allocation each.
#[derive(Debug, Default)]
pub struct Names(Vec<Arc<str>>);

impl Names {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.0.iter().find(|name| ***name == *text) {
            return name.clone();
        }
        let name: Arc<str> = text.into();
        if self.0.len() < 256 {
            self.0.push(name.clone());
        }
        name
    }
}

/// Reads what the `put_` functions wrote. Changes are slices of `bytes`, not copies.
pub struct Decoder<'a> {
    bytes: &'a Bytes,
    at: usize,
    names: &'a mut Names,
    schemas: &'a dyn Fn(u64) -> Option<Arc<Schema>>,
}

impl<'a> Decoder<'a> {
    pub fn new(
        bytes: &'a Bytes,
        at: usize,
        names: &'a mut Names,
        schemas: &'a dyn Fn(u64) -> Option<Arc<Schema>>,
    ) -> Self {
        Decoder { bytes, at, names, schemas }
    }

    /// Everything is read.
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn at(&self) -> usize {
        self.at
    }

    fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Malformed::Content("ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take returns what was asked for"))
    }

    fn u8(&mut self) -> Decoded<u8> {
        Ok(self.take(1)?[0])
    }

    fn bool(&mut self) -> Decoded<bool> {
        Ok(self.u8()? != 0)
    }

    pub fn u64(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Content("has a number that is too long"))
    }

    fn u32(&mut self) -> Decoded<u32> {
        u32::try_from(self.u64()?).map_err(|_| Malformed::Content("has a number that is too large"))
    }

    pub fn i64(&mut self) -> Decoded<i64> {
        let value = self.u64()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number of things that take at least one byte each.
    pub fn count(&mut self) -> Decoded<usize> {
        let count = self.u64()?;
        match count <= (self.bytes.len() - self.at) as u64 {
            true => Ok(count as usize),
            false => Err(Malformed::Content("counts more than it holds")),
        }
    }

    fn sized(&mut self) -> Decoded<&'a [u8]> {
        let len = self.count()?;
        self.take(len)
    }

    fn slice(&mut self) -> Decoded<Bytes> {
        let taken = self.sized()?;
        Ok(self.bytes.slice_ref(taken))
    }

    pub fn str(&mut self) -> Decoded<&'a str> {
        std::str::from_utf8(self.sized()?).map_err(|_| Malformed::Content("has text that is not UTF-8"))
    }

    pub fn name(&mut self) -> Decoded<Arc<str>> {
        let text = self.str()?;
        Ok(self.names.get(text))
    }

    fn schema_ref(&mut self) -> Decoded<Arc<Schema>> {
        let id = u64::from_le_bytes(self.array()?);
        (self.schemas)(id).ok_or(Malformed::Schema(id))
    }

    /// The length of the next record without reading it, its own four bytes included.
    pub fn record_len(&mut self) -> Decoded<usize> {
        let len = u32::from_le_bytes(self.array()?);
        self.at -= 4;
        Ok(len as usize + 4)
    }

    /// Whether the next record is an entry; says nothing about the rest of it.
    pub fn is_entry(&self) -> bool {
        matches!(self.bytes.get(self.at + 4), Some(&(ENTRY | HOPPED)))
    }

    /// `seq` is the number of the record, if it is an entry.
    pub fn record(&mut self, seq: Seq) -> Decoded<Record> {
        let end = self.at + self.record_len()?;
        self.at += 4;
        let record = match self.u8()? {
            ENTRY => Record::Entry(self.entry(seq)?),
            HOPPED => {
                let hops = self.u32()?;
                Record::Entry(Entry { hops, ..self.entry(seq)? })
            }
            POSITION => Record::Position {
                system: self.name()?,
                position: self.position()?,
                base: self.u64()?,
                identity: self.name()?,
            },
            QUARANTINE => Record::Quarantine(self.quarantined()?),
            REFUSED => Record::Refused(self.refused()?),
            RELEASED => Record::Released {
                system: self.name()?,
                entity: self.name()?,
                key_hash: u128::from_le_bytes(self.array()?),
                by: self.u64()?,
            },
            PREPARED => Record::Prepared(self.prepared()?),
            DECIDED => Record::Decided {
                system: self.name()?,
                xid: self.str()?.into(),
                position: self.position()?,
                base: self.u64()?,
            },
            LOAD => Record::Load(self.load()?),
            RESYNC => Record::Resync(self.resync()?),
            CONFLICT => Record::Conflict(self.conflict()?),
            SETTLED => Record::Settled(self.settled()?),
            _ => return Err(Malformed::Content("is of an unknown kind")),
        };
        match self.at == end {
            true => Ok(record),
            false => Err(Malformed::Content("is not as long as it says")),
        }
    }

    fn prepared(&mut self) -> Decoded<Prepared> {
        let mut prepared = Prepared {
            system: self.name()?,
            xid: self.str()?.into(),
            position: self.position()?,
            base: self.u64()?,
            schema: self.schema_ref()?,
            changes: self.u64()?,
            spool: match self.bool()? {
                false => None,
                true => Some(SpoolRef { id: self.u64()?, bytes: self.u64()? }),
            },
            refused: Vec::new(),
        };
        for _ in 0..self.count()? {
            prepared.refused.push(Refused {
                system: prepared.system.clone(),
                position: Some(prepared.position.clone()),
                txid: self.str()?.into(),
                schema: prepared.schema.clone(),
                change: self.slice()?,
                reason: self.str()?.to_owned(),
            });
        }
        Ok(prepared)
    }

    fn entry(&mut self, seq: Seq) -> Decoded<Entry> {
        Ok(Entry {
            seq,
            origin: self.origin()?,
            position: self.optional_position()?,
            base: self.u64()?,
            txid: self.str()?.into(),
            committed_at: self.i64()?,
            hops: 0,
            to: self.address()?,
            schema: self.schema_ref()?,
            changes: self.u64()?,
            body: self.body()?,
            decisions: self.decisions()?,
            replacements: self.slice()?,
        })
    }

    fn address(&mut self) -> Decoded<Address> {
        if !self.bool()? {
            return Ok(Address::Others);
        }
        self.names().map(Address::Only)
    }

    fn names(&mut self) -> Decoded<Vec<Arc<str>>> {
        let count = self.count()?;
        (0..count).map(|_| self.name()).collect()
    }

    fn body(&mut self) -> Decoded<Body> {
        match self.bool()? {
            false => Ok(Body::Inline(self.slice()?)),
            true => Ok(Body::Spooled(SpoolRef { id: self.u64()?, bytes: self.u64()? })),
        }
    }

    fn origin(&mut self) -> Decoded<Origin> {
        match self.u8()? {
            0 => Ok(Origin::Agent),
            1 => Ok(Origin::System(self.name()?)),
            2 => Ok(Origin::Copied(self.name()?)),
            _ => Err(Malformed::Content("has an origin of an unknown kind")),
        }
    }

    fn decisions(&mut self) -> Decoded<Vec<Decision>> {
        let count = self.count()?;
        let mut decisions = Vec::with_capacity(count);
        let mut previous = 0u64;
        for _ in 0..count {
            let from = previous.wrapping_add(self.u64()?);
            let to = from.wrapping_add(self.u64()?);
            previous = to;
            let verdict = match self.u8()? {
                0 => Verdict::Everywhere,
                1 => Verdict::Rejected { winner: self.u64()? },
                tag @ 2..=5 => {
                    let flags = tag - 2;
                    let offset = self.u64()?;
                    let winner = if flags & 2 != 0 { Some(self.u64()?) } else { None };
                    Verdict::Replaced { offset, everywhere: flags & 1 != 0, winner }
                }
                tag @ 6..=11 => {
                    let (offset, own) = (self.u64()?, self.u64()?);
                    let winner = if tag >= 9 { Some(self.u64()?) } else { None };
                    let others = match (tag - 6) % 3 {
                        0 => Others::Nothing,
                        1 => Others::Same,
                        _ => Others::Replaced(offset),
                    };
                    Verdict::Split { others, own, winner }
                }
                12 => Verdict::Redeleted { offset: self.u64()?, winner: self.u64()?, by: self.origin()? },
                _ => return Err(Malformed::Content("has an unknown verdict")),
            };
            decisions.push(Decision { from, to, verdict });
        }
        Ok(decisions)
    }

    fn quarantined(&mut self) -> Decoded<Quarantined> {
        Ok(Quarantined {
            system: self.name()?,
            schema: self.schema_ref()?,
            held_seq: self.u64()?,
            last_seq: self.u64()?,
            change: self.slice()?,
            reason: self.str()?.to_owned(),
            code: self.str()?.to_owned(),
            attempts: self.u32()?,
            at: self.i64()?,
            folded: self.bool()?,
        })
    }

    fn refused(&mut self) -> Decoded<Refused> {
        Ok(Refused {
            system: self.name()?,
            position: self.optional_position()?,
            txid: self.str()?.into(),
            schema: self.schema_ref()?,
            change: self.slice()?,
            reason: self.str()?.to_owned(),
        })
    }

    pub fn position(&mut self) -> Decoded<Position> {
        self.optional_position()?.ok_or(Malformed::Content("lacks its position"))
    }

    fn optional_position(&mut self) -> Decoded<Option<Position>> {
        Ok(Some(match self.u8()? {
            0 => return Ok(None),
            1 => Position::Postgres { lsn: Lsn(self.u64()?) },
            4 => Position::Memory { index: self.u64()? },
            // 2 and 3: of before it was known when a file was begun.
            kind @ (2 | 5) => {
                let (gtids, binlog) = (self.gtids()?, self.binlog(kind == 5)?);
                Position::Mysql { gtids, binlog, server_uuid: self.str()?.to_owned() }
            }
            kind @ (3 | 6) => Position::Mariadb { domains: self.domains()?, binlog: self.binlog(kind == 6)? },
            _ => return Err(Malformed::Content("has a position of an unknown kind")),
        }))
    }

    fn gtids(&mut self) -> Decoded<GtidSet> {
        let sources = self.count()?;
        let mut intervals = BTreeMap::new();
        for _ in 0..sources {
            let source = GtidSource { uuid: self.array()?, tag: self.str()?.to_owned() };
            let count = self.count()?;
            let ranges = (0..count).map(|_| Ok((self.u64()?, self.u64()?))).collect::<Decoded<_>>()?;
            intervals.insert(source, ranges);
        }
        Ok(GtidSet { intervals })
    }

    fn domains(&mut self) -> Decoded<BTreeMap<u32, MariadbGtid>> {
        let count = self.count()?;
        let domain = |this: &mut Self| Ok((this.u32()?, MariadbGtid { server_id: this.u32()?, sequence: this.u64()? }));
        (0..count).map(|_| domain(self)).collect()
    }

    fn binlog(&mut self, dated: bool) -> Decoded<BinlogPosition> {
        let (file, offset) = (self.str()?.to_owned(), self.u64()?);
        Ok(BinlogPosition { file, offset, begun: if dated { self.u32()? } else { 0 } })
    }

    pub fn schema(&mut self) -> Decoded<Arc<Schema>> {
        let id = u64::from_le_bytes(self.array()?);
        let count = self.count()?;
        let entities = (0..count).map(|_| self.entity_schema()).collect::<Decoded<_>>()?;
        Ok(Arc::new(Schema { id, entities }))
    }

    fn entity_schema(&mut self) -> Decoded<EntitySchema> {
        let name = self.str()?.to_owned();
        let seed = u64::from_le_bytes(self.array()?);
        let key_len = self.count()?;
        let count = self.count()?;
        let field = |this: &mut Self| {
            let name = this.str()?.to_owned();
            let kind = Kind::from_name(this.str()?).ok_or(Malformed::Content("has a field of an unknown kind"))?;
            Ok(Field { name, kind })
        };
        let fields = (0..count).map(|_| field(self)).collect::<Decoded<Vec<_>>>()?;
        match key_len <= fields.len() {
            true => Ok(EntitySchema { name, fields, key_len, seed }),
            false => Err(Malformed::Content("has a key longer than its fields")),
        }
    }
}
