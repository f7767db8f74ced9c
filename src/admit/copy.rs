//! Rows that were read from a system's tables: they are older than anything live.
//!
//! A chunk is read between two moments of the system's log. From the first, its low watermark,
//! comes its base: the highest marker that the log had shown. A row loses to every version with
//! a higher seq that did not come from that system, and to whatever its own log changed
//! meanwhile; the caller names those keys. Where it is journaled it is entered as a copy, so
//! that a live change that has not seen it wins everywhere.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::decide::{self, Case};
use super::index::NOBODY;
use super::replay::translated;
use super::{Admitted, Arbiter, Bodies, Changed, Counts, Slot, walk};
use crate::change::{Address, Body, Change, ChangeWriter, Changes, Entry, Micros, Op, Origin, Record};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::{EntityId, Schema, SystemId, SystemSet, Translation};
use crate::value::Row;

/// Rows of one chunk, as inserts of one entity; deletes of what others have and it has not.
#[derive(Debug, Clone)]
pub struct Copied {
    pub system: SystemId,
    /// Of the low watermark.
    pub base: Seq,
    /// Names the load in the audit trail.
    pub txid: Arc<str>,
    pub read_at: Micros,
    pub schema: Arc<Schema>,
    /// Encoded changes.
    pub rows: Bytes,
    /// Systems that are to have them; all that bind the entity where absent.
    pub to: Option<Vec<Arc<str>>>,
}

/// What became of a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copies {
    pub admitted: Admitted,
    /// Rows that were journaled.
    pub taken: u64,
    /// Rows that lost to something that is live.
    pub lost: Vec<Lost>,
}

/// A row that lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub key_hash: u128,
    /// What beat it tells every field that the row has, so that nobody misses the row.
    pub told: bool,
}

impl Arbiter {
    /// A chunk of that system is about to be read: what its log has not shown by now stays in the
    /// index until [`close_chunk`](Self::close_chunk). Returns its base.
    pub fn open_chunk(&mut self, system: SystemId) -> Seq {
        let base = self.seen(system);
        self.chunks.push(base);
        base
    }

    pub fn close_chunk(&mut self, base: Seq) {
        if let Some(at) = self.chunks.iter().position(|open| *open == base) {
            self.chunks.swap_remove(at);
        }
    }

    /// Admits the rows of a chunk. `changed`: what the system's own log has told since the low
    /// watermark.
    pub fn copied(&mut self, copied: Copied, changed: &Changed) -> Result<Copies> {
        let Copied { system, base, .. } = copied;
        let name = self.topology.systems[system.index()].clone();
        let seq = self.head + 1;
        let mut out = Copies::default();
        let mut counts = vec![Counts::default(); self.layouts.len()];
        let mut addressed = vec![0; self.systems.len()];
        let mut entered = [Vec::new(), Vec::new()];
        let (mut changes, mut losers, mut newer, mut to) = (0, HashSet::new(), HashMap::new(), SystemSet::EMPTY);
        for (at, change) in Changes::new(&copied.rows).enumerate() {
            changes += 1;
            let since = changed.get(change.key_hash).filter(|_| !self.bugs.copies_are_live);
            let (mut lost, newest) = match since {
                None => (None, None),
                Some(since) if since.tells(&change) => (Some(true), None),
                Some(since) => match since.newest(&change) {
                    None => {
                        let entity = change.entity.index();
                        (Some(since.deleted && self.is_gone(entity, system, base, change.key_hash)?), None)
                    }
                    newest => (None, newest),
                },
            };
            let layout = &self.layouts[change.entity.index()];
            if lost.is_none() && layout.indexed {
                let base = newest.as_ref().map_or(base, |(_, base)| *base);
                let base = self.holds.base(system, change.key_hash, base);
                let case = Case { layout, system, base, bugs: self.bugs };
                match decide::decide_copy(&case, &change, &mut self.store)? {
                    Some(slots) => decide::collect(&mut entered[usize::from(change.op == Op::Delete)], &change, slots),
                    // With one slot every version is a whole row.
                    None => lost = Some(layout.slots.len() == 1),
                }
            }
            if let Some(told) = lost {
                out.lost.push(Lost { key_hash: change.key_hash, told });
                losers.insert(at);
                continue;
            }
            if let Some((row, _)) = newest {
                newer.insert(at, row);
            }
            let receivers = self.receivers_of_copy(change.entity.index(), system, copied.to.as_deref());
            receivers.iter().for_each(|target| addressed[target.index()] += 1);
            to = SystemSet(to.0 | receivers.0);
            counts[change.entity.index()].journaled.add(change.op);
        }
        for (keys, deleted) in entered.into_iter().zip([false, true]) {
            self.store.put_copies(keys, Slot::copy(seq, system, deleted))?;
        }
        out.taken = changes - losers.len() as u64;
        if out.taken > 0 {
            self.head = seq;
            self.address(to, seq);
            let entry = Entry {
                seq,
                origin: Origin::Copied(name),
                position: None,
                base,
                txid: copied.txid,
                committed_at: copied.read_at,
                hops: 0,
                to: copied.to.map_or(Address::Others, Address::Only),
                schema: copied.schema,
                changes: out.taken,
                body: Body::Inline(left(copied.rows, &losers, &newer)),
                decisions: Vec::new(),
                replacements: Bytes::new(),
            };
            out.admitted = Admitted { records: vec![Record::Entry(entry)], counts, addressed };
        }
        Ok(out)
    }

    /// Keys of rows that a chunk with that base may have missed, because they are on their way back to its
    /// system. `None`: there are too many, and it has to be read again.
    pub fn missed(&mut self, system: SystemId, entity: EntityId, base: Seq) -> Result<Option<Vec<Bytes>>> {
        let Some(rows) = self.returning.behind(system, entity, base) else { return Ok(None) };
        let rows: Vec<(u128, Bytes)> = rows.map(|row| (row.key_hash, row.key.clone())).collect();
        self.not_gone(system, entity, base, rows).map(Some)
    }

    /// The same, of rows that lost before, and were not there when they were read again.
    pub fn not_gone(
        &mut self,
        system: SystemId,
        entity: EntityId,
        base: Seq,
        absent: Vec<(u128, Bytes)>,
    ) -> Result<Vec<Bytes>> {
        let mut left = Vec::new();
        for (key_hash, key) in absent {
            if !self.is_gone(entity.index(), system, base, key_hash)? {
                left.push(key);
            }
        }
        Ok(left)
    }

    fn is_gone(&mut self, entity: usize, system: SystemId, base: Seq, key_hash: u128) -> Result<bool> {
        let layout = &self.layouts[entity];
        let base = self.holds.base(system, key_hash, base);
        let case = Case { layout, system, base, bugs: self.bugs };
        Ok(!layout.indexed || decide::is_gone(&case, key_hash, &mut self.store)?)
    }

    fn receivers_of_copy(&self, entity: usize, system: SystemId, only: Option<&[Arc<str>]>) -> SystemSet {
        let receivers = self.layouts[entity].receivers.without(system);
        let Some(only) = only else { return receivers };
        let named = |target: &SystemId| only.contains(&self.topology.systems[target.index()]);
        receivers.iter().filter(named).collect()
    }

    pub(super) fn replay_copy(&mut self, entry: &Entry, source: &str, bodies: &dyn Bodies) -> Result<()> {
        let translation = Translation::between(&entry.schema, &self.topology.schema);
        // A system that is gone from the configuration has the lowest authority.
        let system = self.topology.find(source).unwrap_or(NOBODY);
        let only = match &entry.to {
            Address::Others => None,
            Address::Only(names) => Some(names.clone()),
        };
        let (mut to, mut scratch) = (SystemSet::EMPTY, ChangeWriter::default());
        let mut entered = [Vec::new(), Vec::new()];
        walk(&entry.body, bodies, &mut |chunk| {
            for change in Changes::new(chunk) {
                scratch.bytes.clear();
                let Some(change) = translated(change, translation.as_ref(), &mut scratch) else { continue };
                let Some(layout) = self.layouts.get(change.entity.index()) else { continue };
                if layout.indexed {
                    let slots = layout.carried(&change);
                    decide::collect(&mut entered[usize::from(change.op == Op::Delete)], &change, slots);
                }
                to = SystemSet(to.0 | self.receivers_of_copy(change.entity.index(), system, only.as_deref()).0);
            }
            Ok(())
        })?;
        for (keys, deleted) in entered.into_iter().zip([false, true]) {
            self.store.put_copies(keys, Slot::copy(entry.seq, system, deleted))?;
        }
        self.address(to, entry.seq);
        self.forget()
    }
}

/// The rows that are left, mostly all of them, those in `newer` as they stand there.
fn left(rows: Bytes, losers: &HashSet<usize>, newer: &HashMap<usize, Vec<u8>>) -> Bytes {
    if losers.is_empty() && newer.is_empty() {
        return rows;
    }
    let mut kept = ChangeWriter::default();
    for (at, change) in Changes::new(&rows).enumerate().filter(|(at, _)| !losers.contains(at)) {
        let after = newer.get(&at).map(|row| Row(row)).or(change.after);
        kept.push_change(&Change { after, ..change });
    }
    kept.take().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::{EntityTopology, Member, MemoryStore, Topology};
    use crate::change::{Captured, SpoolRef};
    use crate::normalize::binding::Role;
    use crate::position::Position;
    use crate::rules::{Merge, OnDelete, Rules};
    use crate::schema::{EntitySchema, Field};
    use crate::value::{Datum, Kind, Value};

    const CRM: SystemId = SystemId(0);
    const SHOP: SystemId = SystemId(1);
    const STOCK: EntityId = EntityId(0);
    type Image<'a> = [Datum<'a>; 2];

    struct NoBodies;

    impl Bodies for NoBodies {
        fn chunks(&self, _: &SpoolRef, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            unreachable!("nothing is spooled here")
        }

        fn committed_at(&self, _: Seq) -> Result<Option<Micros>> {
            Ok(None)
        }

        fn image(&self, _: Seq, _: u128) -> Result<Option<Bytes>> {
            Ok(None)
        }
    }

    /// A crm and a shop that keep one sum, and write one row of it. Nobody has told what it is.
    struct World {
        arbiter: Arbiter,
        schema: Arc<Schema>,
        written: u64,
    }

    impl World {
        fn new(on_delete: OnDelete) -> Self {
            let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
            let schema = Schema::new(vec![EntitySchema::new("stock", ["id", "count"].map(field).to_vec(), 1)]);
            let rules = Rules { on_delete: Some(on_delete), merges: vec![(1, Merge::Add)], ..Rules::default() };
            let member = |system| Member { system, role: Role::Both, fields: 0b11, inexact: 0 };
            let entity = EntityTopology { rules: Arc::new(rules), members: vec![member(CRM), member(SHOP)] };
            let systems = ["crm", "shop"].map(Arc::from).to_vec();
            let topology = Topology { systems, schema: schema.clone(), entities: vec![entity] };
            World { arbiter: Arbiter::new(topology, Box::new(MemoryStore::default())), schema, written: 0 }
        }

        fn change(&self, op: Op, before: Option<Image<'_>>, after: Option<Image<'_>>) -> Bytes {
            let mut writer = ChangeWriter::default();
            let [before, after] = [before, after].map(|row| row.map(IntoIterator::into_iter));
            writer.push(&self.schema, STOCK, op, before, after);
            writer.take().into()
        }

        /// Written without having seen anything.
        fn write(&mut self, system: SystemId, rows: Bytes) {
            self.written += 1;
            let captured = Captured {
                system,
                position: Position::Memory { index: self.written },
                base: 0,
                txid: "".into(),
                committed_at: 0,
                hops: 0,
                schema: self.schema.clone(),
                changes: 1,
                body: Body::Inline(rows),
                refused: Vec::new(),
            };
            self.arbiter.captured(captured, &NoBodies).unwrap();
        }

        fn shop_sells(&mut self) {
            let sold = [int(1), Datum::Added("-2")];
            let sold = self.change(Op::Update, Some(ROW), Some(sold));
            self.write(SHOP, sold);
        }

        fn crm_deletes(&mut self) -> Bytes {
            let deleted = self.change(Op::Delete, Some(ROW), None);
            self.write(CRM, deleted.clone());
            deleted
        }

        fn crm_shows(&mut self, base: Seq) {
            self.arbiter.passed(CRM, Position::Memory { index: 9 }, base, "".into()).unwrap();
        }

        fn copied(&self, base: Seq) -> Copied {
            let (schema, rows) = (self.schema.clone(), self.change(Op::Insert, None, Some(ROW)));
            Copied { system: CRM, base, txid: "load".into(), read_at: 0, schema, rows, to: None }
        }

        fn key(&self) -> (u128, Bytes) {
            let row = self.change(Op::Insert, None, Some(ROW));
            let change = Changes::new(&row).next().unwrap();
            (change.key_hash, Bytes::copy_from_slice(change.key(1)))
        }
    }

    fn int(value: i64) -> Datum<'static> {
        Datum::Value(Value::Int(value))
    }

    const ROW: Image<'_> = [Datum::Value(Value::Int(1)), Datum::Value(Value::Int(9))];

    /// A deletion tells all of a row, since everybody has none then. Where it loses the row lives, and only its
    /// system gets back the sum that it had.
    #[test]
    fn a_row_that_is_deleted_while_it_is_read_is_told_if_that_stands() {
        for (on_delete, told) in [(OnDelete::DeleteWins, true), (OnDelete::UpdateWins, false)] {
            let mut world = World::new(on_delete);
            let base = world.arbiter.open_chunk(CRM);
            world.shop_sells();
            let mut changed = Changed::default();
            changed.note_changes(STOCK, &world.crm_deletes(), base);

            let copies = world.arbiter.copied(world.copied(base), &changed).unwrap();

            assert_eq!(copies.lost, [Lost { key_hash: world.key().0, told }], "{on_delete:?}");
        }
    }

    /// It had lost to what was sold, and was deleted before it was read again. What was read then is no row.
    #[test]
    fn a_row_that_lost_and_is_not_there_is_done_with_if_its_deletion_stands() {
        for (on_delete, left) in [(OnDelete::DeleteWins, 0), (OnDelete::UpdateWins, 1)] {
            let mut world = World::new(on_delete);
            world.shop_sells();
            world.crm_deletes();
            let absent = vec![world.key()];

            let again = world.arbiter.not_gone(CRM, STOCK, 0, absent.clone()).unwrap();
            assert_eq!(again.len(), left, "{on_delete:?}");
            // One entry brings what was sold, the other what it had: it has come, or was deleted having seen all.
            assert_eq!(world.arbiter.not_gone(CRM, STOCK, 1, absent.clone()).unwrap().len(), left, "{on_delete:?}");
            assert_eq!(world.arbiter.not_gone(CRM, STOCK, 2, absent).unwrap().len(), 0, "{on_delete:?}");
        }
    }

    /// Deleted before it was read at all, and back behind that: the chunk has not seen it, and knows.
    #[test]
    fn a_chunk_knows_what_it_missed_until_its_system_has_it_back() {
        for (on_delete, missed) in [(OnDelete::DeleteWins, 0), (OnDelete::UpdateWins, 1)] {
            let mut world = World::new(on_delete);
            world.shop_sells();
            world.crm_deletes();
            let base = world.arbiter.open_chunk(CRM);
            world.crm_shows(2);
            let later = world.arbiter.open_chunk(CRM);

            let keys = world.arbiter.missed(CRM, STOCK, base).unwrap().unwrap();
            assert_eq!(keys, vec![world.key().1; missed], "{on_delete:?}");
            assert!(world.arbiter.missed(SHOP, STOCK, base).unwrap().unwrap().is_empty());
            assert!(world.arbiter.missed(CRM, STOCK, later).unwrap().unwrap().is_empty());
        }
    }
}
