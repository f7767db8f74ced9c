//! Changes in canonical form, the transactions that hold them, and the journal's entries.
//!
//! A transaction's changes are one byte string, written once by normalize and read again by
//! admit (headers only) and apply. Nothing in it is parsed that nobody asks for.
//!
//! ```text
//! change = total len u32   of everything after this field
//!          op u8, entity u16 (in the schema), key hash u128
//!          before len u32, before row, after row          rows: see `value`
//! ```
//! All numbers little endian. Insert has no before image (len 0), delete no after image.

mod clash;
mod conflict;
mod marks;

use std::sync::Arc;

use bytes::Bytes;

pub use self::clash::{alike, clash_txid, given_way, updated};
pub use self::conflict::{ConflictId, Conflicted, Images, Outcome, Rule, Settled, Settlement};
pub use self::marks::{LoadMark, LoadState, ResyncMark, ResyncState};
use crate::position::{Position, Seq};
use crate::schema::{EntityId, Schema, SystemId, Translation};
use crate::value::number::write_sum;
use crate::value::{Datum, Row, key_hash, write_datum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    Insert = 1,
    Update = 2,
    Delete = 3,
}

impl Op {
    pub const ALL: [Op; 3] = [Op::Insert, Op::Update, Op::Delete];

    pub fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        }
    }
}

/// How many changes there were, by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operations([u64; 3]);

impl Operations {
    pub fn add(&mut self, op: Op) {
        self.0[op as usize - 1] += 1;
    }

    pub fn get(&self, op: Op) -> u64 {
        self.0[op as usize - 1]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// One row change, borrowed from a transaction's body.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub op: Op,
    pub entity: EntityId,
    /// Of the key's canonical form, seeded with the entity; 0 for entities without a key.
    pub key_hash: u128,
    /// Update and delete. With weak images only the key is sent. An insert has one only where a
    /// quarantine folded a delete and an insert together: it replaces the row.
    pub before: Option<Row<'a>>,
    /// Insert and update: every field that the origin binds, changed or not.
    pub after: Option<Row<'a>>,
}

impl<'a> Change<'a> {
    /// The row that holds the key: after, or before for a delete. A key change never is an
    /// update (normalize makes it a delete and an insert), so either would do.
    pub fn image(&self) -> Row<'a> {
        self.after.or(self.before).expect("a change has an image")
    }

    /// The encoded key datums.
    pub fn key(&self, key_len: usize) -> &'a [u8] {
        self.image().prefix(key_len)
    }
}

const HEADER: usize = 4 + 1 + 2 + 16 + 4;

/// Writes changes into a body. One per transaction (or chunk), memory reused.
///
/// `begin`, datums of the before image into `bytes`, `end_before`, datums of the after image,
/// `finish`; or `abandon`, which takes back all of it.
#[derive(Debug, Default)]
pub struct ChangeWriter {
    pub bytes: Vec<u8>,
    pub count: u64,
    start: usize,
    before_len: usize,
    scratch: Vec<u8>,
}

impl ChangeWriter {
    pub fn begin(&mut self, entity: EntityId, op: Op) {
        self.start = self.bytes.len();
        self.before_len = 0;
        self.bytes.extend_from_slice(&[0; HEADER]);
        self.bytes[self.start + 4] = op as u8;
        self.bytes[self.start + 5..self.start + 7].copy_from_slice(&entity.0.to_le_bytes());
    }

    pub fn end_before(&mut self) {
        self.before_len = self.bytes.len() - self.start - HEADER;
    }

    pub fn abandon(&mut self) {
        self.bytes.truncate(self.start);
    }

    /// Completes the header: lengths and the hash of the key.
    pub fn finish(&mut self, schema: &Schema) {
        let (image, header) = (self.start + HEADER, self.start);
        let total = self.bytes.len() - header - 4;
        let entity = u16::from_le_bytes([self.bytes[header + 5], self.bytes[header + 6]]);
        let spec = &schema.entities[usize::from(entity)];
        let row = match self.bytes[header + 4] == Op::Delete as u8 {
            true => &self.bytes[image..image + self.before_len],
            false => &self.bytes[image + self.before_len..],
        };
        let hash = match spec.key_len {
            0 => 0,
            n => key_hash(spec.seed, Row(row).iter().take(n), &mut self.scratch),
        };
        let header = &mut self.bytes[header..header + HEADER];
        header[..4].copy_from_slice(&(total as u32).to_le_bytes());
        header[7..23].copy_from_slice(&hash.to_le_bytes());
        header[23..27].copy_from_slice(&(self.before_len as u32).to_le_bytes());
        self.count += 1;
    }

    /// The change that was written last.
    pub fn last(&self) -> Change<'_> {
        Changes::new(&self.bytes[self.start..]).next().expect("asked for behind `finish`")
    }

    /// Takes back the change that was written last.
    pub fn take_back(&mut self) {
        self.bytes.truncate(self.start);
        self.count -= 1;
    }

    /// Appends one change. `before` and `after` yield one datum per field of the entity.
    pub fn push<'d>(
        &mut self,
        schema: &Schema,
        entity: EntityId,
        op: Op,
        before: Option<impl Iterator<Item = Datum<'d>>>,
        after: Option<impl Iterator<Item = Datum<'d>>>,
    ) {
        self.begin(entity, op);
        if let Some(row) = before {
            row.for_each(|datum| write_datum(&mut self.bytes, datum));
        }
        self.end_before();
        if let Some(row) = after {
            row.for_each(|datum| write_datum(&mut self.bytes, datum));
        }
        self.finish(schema);
    }

    /// Appends a change that is already encoded.
    pub fn push_change(&mut self, change: &Change<'_>) {
        self.start = self.bytes.len();
        let before = change.before.map_or(&[][..], |r| r.0);
        let after = change.after.map_or(&[][..], |r| r.0);
        let total = HEADER - 4 + before.len() + after.len();
        self.bytes.extend_from_slice(&(total as u32).to_le_bytes());
        self.bytes.push(change.op as u8);
        self.bytes.extend_from_slice(&change.entity.0.to_le_bytes());
        self.bytes.extend_from_slice(&change.key_hash.to_le_bytes());
        self.bytes.extend_from_slice(&(before.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(before);
        self.bytes.extend_from_slice(after);
        self.count += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the bytes, leaving an empty writer.
    pub fn take(&mut self) -> Vec<u8> {
        self.count = 0;
        std::mem::take(&mut self.bytes)
    }
}

/// Walks the changes of a body (or of one chunk of a spooled body) in source order.
#[derive(Debug, Clone)]
pub struct Changes<'a> {
    rest: &'a [u8],
}

impl<'a> Changes<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Changes { rest: body }
    }

    /// The next change as it is encoded, undecoded.
    pub fn next_encoded(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let total = u32::from_le_bytes(self.rest[..4].try_into().expect("four bytes")) as usize;
        let (this, rest) = self.rest.split_at(4 + total);
        self.rest = rest;
        Some(this)
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        let this = self.next_encoded()?;
        let op = match this[4] {
            1 => Op::Insert,
            2 => Op::Update,
            3 => Op::Delete,
            op => unreachable!("change op {op}: bodies are checksummed and of a known format version"),
        };
        let before_len = u32::from_le_bytes(this[23..27].try_into().expect("four bytes")) as usize;
        let (before, after) = this[HEADER..].split_at(before_len);
        Some(Change {
            op,
            entity: EntityId(u16::from_le_bytes(this[5..7].try_into().expect("two bytes"))),
            key_hash: u128::from_le_bytes(this[7..23].try_into().expect("sixteen bytes")),
            before: (!before.is_empty()).then_some(Row(before)),
            after: (op != Op::Delete).then_some(Row(after)),
        })
    }
}

/// Where a transaction's changes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Inline(Bytes),
    /// Too large to hold: chunks in a file of the journal's spool, each a run of whole changes.
    Spooled(SpoolRef),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolRef {
    pub id: u64,
    pub bytes: u64,
}

/// Microseconds since 1970-01-01 UTC.
pub type Micros = i64;

/// How many side effects may follow from one another, from system to system: more is a circle
/// of triggers that never ends. Nobody's chain of bookings is as long.
pub const HOPS_MAX: u32 = 16;
/// Entries with more hops than this are applied alone: what follows from one is its own then, and
/// not of what it was joined with. Long before the limit, so that no chain is cut that is not there.
pub const HOPS_JOINED: u32 = HOPS_MAX / 2;

/// A committed local transaction as capture and normalize hand it to admission.
#[derive(Debug, Clone)]
pub struct Captured {
    pub system: SystemId,
    /// After this transaction: where a restart goes on.
    pub position: Position,
    /// The highest marker seq seen before it in that system's own log.
    pub base: Seq,
    /// As the database names it: xid, GTID, or file:offset.
    pub txid: Arc<str>,
    pub committed_at: Micros,
    /// See [`Entry::hops`].
    pub hops: u32,
    pub schema: Arc<Schema>,
    pub changes: u64,
    pub body: Body,
    /// Changes that could not be brought into canonical form.
    pub refused: Vec<Refused>,
}

/// A captured change that cannot be carried: quarantined at capture, in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub system: Arc<str>,
    pub position: Option<Position>,
    pub txid: Arc<str>,
    pub schema: Arc<Schema>,
    /// One encoded change; the fields that could not be carried are not sent.
    pub change: Bytes,
    pub reason: String,
}

/// Who made an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A local transaction of that system.
    System(Arc<str>),
    /// Rows that the agent read from that system's tables: older than anything in its log.
    Copied(Arc<str>),
    /// The agent itself: a retry of a held key, a row completed, a resolve.
    Agent,
}

impl Origin {
    /// The system whose rows these are, which has them already.
    pub fn system(&self) -> Option<&Arc<str>> {
        match self {
            Origin::System(name) | Origin::Copied(name) => Some(name),
            Origin::Agent => None,
        }
    }
}

/// To which systems the accepted changes of an entry go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// To all systems that bind the entity, except the origin (it is included for changes
    /// whose verdict is everywhere).
    Others,
    /// To these alone.
    Only(Vec<Arc<str>>),
}

/// What admission decided on a run of changes of an entry. Changes that no decision names are
/// journaled for the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Index of the first change in source order, and one past the last.
    pub from: u64,
    pub to: u64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Also back to the origin, which is about to receive an older version.
    Everywhere,
    /// Lost against entry `winner`: kept here with both images, applied nowhere.
    Rejected { winner: Seq },
    /// Another change takes its place (fields lost or completed): one encoded change in
    /// [`Entry::replacements`] at that offset. `winner` is set where fields were lost.
    Replaced { offset: u64, everywhere: bool, winner: Option<Seq> },
    /// The origin gets something else than the others: the change at offset `own`. Differences go to it
    /// where a whole value that it is about to receive would undo them, and nowhere else twice.
    Split { others: Others, own: u64, winner: Option<Seq> },
    /// An insert that lost to deletion `winner`, which goes out once more in its place, everywhere: at
    /// `offset`, as in `Replaced`. It is still of who deleted: `by`, who need not be in what is replayed.
    Redeleted { offset: u64, winner: Seq, by: Origin },
}

/// What becomes of a change for those who did not write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    Nothing,
    /// As it stands in the body.
    Same,
    /// One encoded change in [`Entry::replacements`] at that offset.
    Replaced(u64),
}

/// One committed transaction in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 0 until the journal gives it one.
    pub seq: Seq,
    pub origin: Origin,
    /// Of the origin's log after this transaction; `None` for the agent's own entries.
    pub position: Option<Position>,
    pub base: Seq,
    pub txid: Arc<str>,
    pub committed_at: Micros,
    /// 0 for what people wrote. Of a side effect of applying: one more than the highest among the
    /// entries that were applied with it.
    pub hops: u32,
    pub to: Address,
    pub schema: Arc<Schema>,
    pub changes: u64,
    pub body: Body,
    /// Sorted, disjoint.
    pub decisions: Vec<Decision>,
    pub replacements: Bytes,
}

/// What the applier of one system does with one change of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate<'a> {
    /// As it stands in the body.
    Apply,
    /// This one instead.
    Replace(Encoded<'a>),
    /// Not for this system, or rejected.
    Skip,
}

/// An encoded replacement change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a>(pub &'a [u8]);

/// What the agent's own entries have for a txid.
const RETRY: &str = "retry";

impl Entry {
    /// Tries a held key again, in the system that holds it. `base` names the record that it
    /// carries ([`Quarantined::last_seq`]): where the applier has folded more since, it is stale.
    pub fn retry(seq: Seq, quarantined: &Quarantined, now: Micros) -> Self {
        Entry {
            seq,
            origin: Origin::Agent,
            position: None,
            base: quarantined.last_seq,
            txid: RETRY.into(),
            committed_at: now,
            hops: 0, // known to the desk
            to: Address::Only(vec![quarantined.system.clone()]),
            schema: quarantined.schema.clone(),
            changes: 1,
            body: Body::Inline(quarantined.change.clone()),
            decisions: Vec::new(),
            replacements: Bytes::new(),
        }
    }

    /// Rows read from a system's tables.
    pub fn is_copy(&self) -> bool {
        matches!(self.origin, Origin::Copied(_))
    }

    pub fn is_retry(&self) -> bool {
        self.origin == Origin::Agent && matches!(self.to, Address::Only(_)) && &*self.txid == RETRY
    }

    /// The fate of change number `index` in system `system`. Bindings and roles are the
    /// caller's business; decisions are looked up by a cursor that only moves forward.
    pub fn fate(&self, index: u64, system: &str, cursor: &mut usize) -> Fate<'_> {
        let is_origin = self.origin.system().is_some_and(|name| &**name == system);
        if let Address::Only(names) = &self.to
            && !names.iter().any(|n| &**n == system)
        {
            return Fate::Skip;
        }
        while self.decisions.get(*cursor).is_some_and(|d| d.to <= index) {
            *cursor += 1;
        }
        let verdict = self.decisions.get(*cursor).filter(|d| d.from <= index).map(|d| &d.verdict);
        match verdict {
            None if is_origin => Fate::Skip,
            None | Some(Verdict::Everywhere) => Fate::Apply,
            Some(Verdict::Rejected { .. }) => Fate::Skip,
            Some(Verdict::Replaced { everywhere: false, .. }) if is_origin => Fate::Skip,
            Some(Verdict::Replaced { offset, .. } | Verdict::Redeleted { offset, .. }) => self.replacement(*offset),
            Some(Verdict::Split { own, .. }) if is_origin => self.replacement(*own),
            Some(Verdict::Split { others, .. }) => match others {
                Others::Nothing => Fate::Skip,
                Others::Same => Fate::Apply,
                Others::Replaced(offset) => self.replacement(*offset),
            },
        }
    }

    fn replacement(&self, offset: u64) -> Fate<'_> {
        Fate::Replace(Encoded(&self.replacements[offset as usize..]))
    }

    /// The changes of the body, or of one chunk of it, that `system` is to have, with their
    /// numbers, encoded in the schema of `translation`. Bindings and roles are the caller's
    /// business. `index` and `cursor` go on from chunk to chunk. `Err`: the entity (of the entry's
    /// schema) that has no translation.
    pub fn each_for(
        &self,
        system: &str,
        body: &Bytes,
        translation: Option<&Translation>,
        index: &mut u64,
        cursor: &mut usize,
        found: &mut dyn FnMut(u64, Result<Bytes, EntityId>),
    ) {
        let mut changes = Changes::new(body);
        while let Some(encoded) = changes.next_encoded() {
            let number = *index;
            *index += 1;
            let encoded = match self.fate(number, system, cursor) {
                Fate::Skip => continue,
                Fate::Apply => body.slice_ref(encoded),
                Fate::Replace(with) => {
                    let with = Changes::new(with.0).next_encoded().expect("a replacement is one encoded change");
                    self.replacements.slice_ref(with)
                }
            };
            let encoded = match translation {
                None => encoded,
                Some(translation) => {
                    let mut out = ChangeWriter::default();
                    let change = Changes::new(&encoded).next().expect("one encoded change");
                    if !translation.translate(&change, &mut out) {
                        found(number, Err(change.entity));
                        continue;
                    }
                    out.take().into()
                }
            };
            found(number, Ok(encoded));
        }
    }
}

impl<'a> Encoded<'a> {
    pub fn change(self) -> Change<'a> {
        Changes::new(self.0).next().expect("a replacement is one encoded change")
    }
}

/// A change that a target refused, set aside with its reason. At most one is live per system
/// and key: what comes later for that key is folded onto it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub system: Arc<str>,
    pub schema: Arc<Schema>,
    /// The oldest seq of this key that the system has not received.
    pub held_seq: Seq,
    /// The newest entry folded into it.
    pub last_seq: Seq,
    /// One encoded change: what is to be tried next.
    pub change: Bytes,
    /// What the server or the mapping said.
    pub reason: String,
    /// SQLSTATE or error number.
    pub code: String,
    pub attempts: u32,
    pub at: Micros,
    /// Folded with something newer: due for another try at once.
    pub folded: bool,
}

/// A transaction that its system has prepared (XA), and not yet decided. Its log has shown the
/// rows, and is not read again from before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub system: Arc<str>,
    /// As the database writes it: `X'6162',X'',1`.
    pub xid: Arc<str>,
    /// Of the log behind the rows, and the base there.
    pub position: Position,
    pub base: Seq,
    pub schema: Arc<Schema>,
    pub changes: u64,
    /// `None`: it wrote nothing of ours. It is known nevertheless, so that its commit is.
    pub spool: Option<SpoolRef>,
    /// Changes that could not be brought into canonical form.
    pub refused: Vec<Refused>,
}

/// One durable record of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Entry(Entry),
    /// The log of `system` was read to here with nothing to journal since the last record.
    Position {
        system: Arc<str>,
        position: Position,
        base: Seq,
        identity: Arc<str>,
    },
    Quarantine(Quarantined),
    Refused(Refused),
    /// The key is no longer held in that system: replaced by entry `by`, or given up by a person
    /// up to that one.
    Released {
        system: Arc<str>,
        entity: Arc<str>,
        key_hash: u128,
        by: Seq,
    },
    /// Also says, like `Position`, how far the log was read.
    Prepared(Prepared),
    /// A prepared transaction was rolled back, or had nothing to journal. Where it had, the entry
    /// that refers to its spool says so. Also says how far the log was read.
    Decided {
        system: Arc<str>,
        xid: Arc<str>,
        position: Position,
        base: Seq,
    },
    Load(LoadMark),
    Resync(ResyncMark),
    Conflict(Conflicted),
    Settled(Settled),
}

/// `over` where it is sent, else `under`; a difference is added to what is under it.
pub fn overlay(under: Row<'_>, over: Row<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(under.0.len().max(over.0.len()));
    let mut below = under.iter();
    for datum in over.iter() {
        let under = below.next().unwrap_or(Datum::NotSent);
        match datum {
            Datum::NotSent => write_datum(&mut out, under),
            Datum::Added(difference) => write_sum(&mut out, under, difference),
            datum => write_datum(&mut out, datum),
        }
    }
    out
}

/// Folds a later change of a key onto an earlier one: what is to be tried next in place of
/// both. Both are encoded changes of one schema; the before image is the earlier one's.
pub fn fold(earlier: &[u8], later: &Change<'_>) -> Bytes {
    let first = Changes::new(earlier).next().expect("one encoded change");
    let mut out = ChangeWriter::default();
    let merged = first.after.zip(later.after).map(|(under, over)| overlay(under, over));
    let after = merged.as_deref().map(Row).or(later.after);
    let gone = first.before.or(first.after).or(later.before);
    let (op, before) = match (first.op, later.op) {
        (_, Op::Delete) => (Op::Delete, gone),
        // The row starts anew: fields that are not carried must not survive.
        (Op::Delete, _) => (Op::Insert, gone),
        (Op::Insert, _) => (Op::Insert, first.before),
        (Op::Update, Op::Insert) => (Op::Insert, later.before),
        (Op::Update, Op::Update) => (Op::Update, gone),
    };
    out.push_change(&Change { op, before, after, ..*later });
    out.take().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{EntitySchema, Field};
    use crate::value::{Kind, Value};

    fn schema() -> Arc<Schema> {
        let field = |name: &str, kind| Field { name: name.into(), kind };
        Schema::new(vec![EntitySchema::new("contact", vec![field("id", Kind::Int), field("name", Kind::Text)], 1)])
    }

    #[test]
    fn changes_read_back_in_order() {
        let schema = schema();
        let mut writer = ChangeWriter::default();
        let row = |name: &'static str| [Datum::Value(Value::Int(7)), Datum::Value(Value::Text(name))].into_iter();
        let none = None::<std::array::IntoIter<Datum<'_>, 2>>;
        writer.push(&schema, EntityId(0), Op::Insert, none.clone(), Some(row("Ada")));
        writer.push(&schema, EntityId(0), Op::Update, Some(row("Ada")), Some(row("Bob")));
        writer.push(&schema, EntityId(0), Op::Delete, Some(row("Bob")), none);
        let mut copy = ChangeWriter::default();
        let body = writer.take();
        Changes::new(&body).for_each(|c| copy.push_change(&c));

        let changes: Vec<_> = Changes::new(&body).collect();
        assert_eq!(changes.iter().map(|c| c.op).collect::<Vec<_>>(), [Op::Insert, Op::Update, Op::Delete]);
        assert!(changes.iter().all(|c| c.key_hash == changes[0].key_hash && c.key_hash != 0));
        assert_eq!(changes[1].before.expect("before").get(1), Datum::Value(Value::Text("Ada")));
        assert_eq!(changes[1].key(1), changes[2].key(1));
        assert_eq!(copy.take(), body);
    }
}
