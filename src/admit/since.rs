//! What a system's log tells of a key while a chunk that holds it is read.
//!
//! Of keys that have lost before, the last change is kept. Its images tell the row as it was when
//! the log was read so far, and nothing of that log is newer: with it in the place of what was read
//! even a row that is written without a pause is copied.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::change::{Body, Captured, Change, ChangeWriter, Changes, Op};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::EntityId;
use crate::value::number::write_sum;
use crate::value::{Datum, Row, write_datum};

use super::Bodies;

/// More keys that change while a chunk is read: it is read again, smaller.
const KEYS_MAX: usize = 1 << 20;

/// Since a chunk's low watermark, by key.
#[derive(Debug, Default)]
pub struct Changed {
    keys: HashMap<u128, Since>,
    /// Keys whose last change is kept.
    watched: HashSet<u128>,
}

#[derive(Debug, Default)]
pub struct Since {
    /// Fields whose values were told.
    told: u128,
    /// The row was deleted, which tells all of it as long as that stands.
    pub deleted: bool,
    /// The last change, encoded, and the base of its transaction; where it was an update.
    last: Option<(Bytes, Seq)>,
}

impl Changed {
    pub fn watching(watched: HashSet<u128>) -> Self {
        Changed { watched, ..Changed::default() }
    }

    pub fn get(&self, key_hash: u128) -> Option<&Since> {
        self.keys.get(&key_hash)
    }

    pub fn is_full(&self) -> bool {
        self.keys.len() >= KEYS_MAX
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A transaction of the system is taken in.
    pub fn note(&mut self, entity: EntityId, captured: &Captured, bodies: &dyn Bodies) -> Result<()> {
        match &captured.body {
            Body::Inline(bytes) => self.note_changes(entity, bytes, captured.base),
            // It will be read again anyway.
            Body::Spooled(_) if self.is_full() => {}
            Body::Spooled(spool) => bodies.chunks(spool, &mut |chunk| {
                self.note_changes(entity, chunk, captured.base);
                Ok(())
            })?,
        }
        for refused in &captured.refused {
            for change in of_entity(entity, &refused.change) {
                // Told to nobody.
                self.keys.entry(change.key_hash).or_default().last = None;
            }
        }
        Ok(())
    }

    /// As [`note`](Self::note), of encoded changes with the base of their transaction.
    pub fn note_changes(&mut self, entity: EntityId, changes: &[u8], base: Seq) {
        for change in of_entity(entity, changes) {
            let since = self.keys.entry(change.key_hash).or_default();
            since.told |= change.after.map_or(0, Row::absolute);
            since.deleted |= change.after.is_none();
            since.last = None;
            if change.op == Op::Update && self.watched.contains(&change.key_hash) {
                let mut writer = ChangeWriter::default();
                writer.push_change(&change);
                since.last = Some((writer.take().into(), base));
            }
        }
    }
}

impl Since {
    /// All that the copied row has was told, whatever became of it.
    pub fn tells(&self, copied: &Change<'_>) -> bool {
        copied.after.is_none_or(|row| row.sent() & !self.told == 0)
    }

    /// The copied row as the last change left it, with its base: what that did not carry stands in
    /// its before image. `None` where the log does not tell all of it.
    pub fn newest(&self, copied: &Change<'_>) -> Option<(Vec<u8>, Seq)> {
        let (last, base) = self.last.as_ref()?;
        let last = Changes::new(last).next()?;
        let (row, after, before) = (copied.after?, last.after?, last.before?);
        let mut out = Vec::with_capacity(row.0.len());
        for (field, read) in row.iter().enumerate() {
            let then = before.get(field);
            match after.get(field) {
                _ if !read.is_sent() => write_datum(&mut out, read),
                Datum::NotSent | Datum::Added(_) if !then.is_sent() => return None,
                Datum::NotSent => write_datum(&mut out, then),
                Datum::Added(difference) => write_sum(&mut out, then, difference),
                now => write_datum(&mut out, now),
            }
        }
        Some((out, *base))
    }
}

fn of_entity(entity: EntityId, changes: &[u8]) -> impl Iterator<Item = Change<'_>> {
    Changes::new(changes).filter(move |change| change.entity == entity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{EntitySchema, Field, Schema};
    use crate::value::{Kind, Value};

    type Image<'a> = [Datum<'a>; 4];

    fn int(v: i64) -> Datum<'static> {
        Datum::Value(Value::Int(v))
    }

    fn text(v: &str) -> Datum<'_> {
        Datum::Value(Value::Text(v))
    }

    fn change(op: Op, before: Option<Image<'_>>, after: Option<Image<'_>>) -> (u128, Vec<u8>) {
        let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
        let entity = EntitySchema::new("item", ["id", "name", "stock", "note"].map(field).to_vec(), 1);
        let mut writer = ChangeWriter::default();
        let rows = [before, after].map(|row| row.map(IntoIterator::into_iter));
        let [before, after] = rows;
        writer.push(&Schema::new(vec![entity]), EntityId(0), op, before, after);
        let bytes = writer.take();
        (Changes::new(&bytes).next().unwrap().key_hash, bytes)
    }

    const READ: Image<'_> =
        [Datum::Value(Value::Int(1)), Datum::Value(Value::Text("bolt")), Datum::Value(Value::Int(5)), Datum::NotSent];

    fn row(datums: &[Datum<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        datums.iter().for_each(|datum| write_datum(&mut out, *datum));
        out
    }

    #[test]
    fn a_row_is_told_by_whatever_told_its_fields_together() {
        let (key, named) = change(Op::Update, Some(READ), Some([int(1), text("nut"), Datum::NotSent, Datum::NotSent]));
        let (_, sold) =
            change(Op::Update, Some(READ), Some([int(1), Datum::NotSent, Datum::Added("-2"), Datum::NotSent]));
        let (_, counted) = change(Op::Update, Some(READ), Some([int(1), Datum::NotSent, int(9), Datum::NotSent]));
        let (_, copied) = change(Op::Insert, None, Some(READ));
        let copied = Changes::new(&copied).next().unwrap();
        let mut changed = Changed::default();

        for (bytes, told) in [(&named, false), (&sold, false), (&counted, true)] {
            changed.note_changes(EntityId(0), bytes, 1);
            assert_eq!(changed.get(key).unwrap().tells(&copied), told);
        }
        let (_, gone) = change(Op::Delete, Some(READ), None);
        let mut changed = Changed::default();
        changed.note_changes(EntityId(0), &gone, 1);
        let since = changed.get(key).unwrap();
        assert!(since.deleted && !since.tells(&copied), "whether that stands is for the arbiter to say");
        changed.note_changes(EntityId(0), &change(Op::Insert, None, Some(READ)).1, 1);
        assert!(changed.get(key).unwrap().tells(&copied));
    }

    #[test]
    fn a_watched_row_is_what_its_last_change_left() {
        let before = [int(1), text("screw"), int(7), text("new")];
        let (key, sold) =
            change(Op::Update, Some(before), Some([int(1), Datum::NotSent, Datum::Added("-2"), Datum::NotSent]));
        let (_, copied) = change(Op::Insert, None, Some(READ));
        let copied = Changes::new(&copied).next().unwrap();
        let mut watched = Changed::watching(HashSet::from([key]));
        let mut others = Changed::default();
        for changed in [&mut watched, &mut others] {
            changed.note_changes(EntityId(0), &sold, 7);
        }

        let newest = watched.get(key).unwrap().newest(&copied);

        assert_eq!(newest, Some((row(&[int(1), text("screw"), int(5), Datum::NotSent]), 7)));
        assert_eq!(others.get(key).unwrap().newest(&copied), None);
        // Without a whole before image the rest of the row is not known.
        let torn = [int(1), Datum::NotSent, int(7), text("new")];
        let (_, sold) =
            change(Op::Update, Some(torn), Some([int(1), Datum::NotSent, Datum::Added("-2"), Datum::NotSent]));
        watched.note_changes(EntityId(0), &sold, 8);
        assert_eq!(watched.get(key).unwrap().newest(&copied), None);
    }
}
