//! Which rows of an echo are not ours: the side effects of applying.
//!
//! A trigger or a referential action in a target writes inside of our own transaction. What is
//! ours in it, the journal tells: the entries behind the previous marker up to this one,
//! addressed as the applier does it. So nothing has to be remembered between the stages, and a
//! restart changes nothing.
//!
//! ```text
//! row of a key that was not applied    side effect: a local change that has seen the marker
//! row of a key that was applied        ours, and its last image as applied: nothing
//!                                      of another image: rewritten; counted, not sent back
//! ```
//!
//! A rewritten row stays where it is, because two systems whose triggers rewrite the same row
//! would answer each other for ever. Two things need more than the key. A deletion that found no
//! row has written nothing: a row that then is inserted is a side effect. And what is for a key
//! that the system holds was written, if at all, by a retry, or before the refusal: of such a key
//! a row is ours only with one of the images that came for it.
//!
//! *Bounded memory*: what is expected is held with its images while it is a batch of joined
//! entries, which the applier bounds. Keys of a large transaction are held a part at a time,
//! with a hash instead of the image; what is not ours by one part is sifted by the next.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::binding::{Binding, Role};
use super::transform::json_eq;
use crate::change::{Address, Body, Change, Changes, Entry, Op, Origin, SpoolRef, overlay};
use crate::error::Result;
use crate::position::Seq;
use crate::schema::{EntityId, Schema, Translation};
use crate::value::number::write_sum;
use crate::value::{Datum, Row, Value, decimal_eq, key_hash, write_datum};

/// Keys of a large transaction that are held at a time: some 20 MB.
const KEYS_MAX: u64 = 1 << 18;
/// Rows whose image is kept to name the field that differs from a hashed one.
const EXAMPLES_MAX: usize = 16;
/// Images of one held key in one transaction: of more, the latest.
const IMAGES_MAX: usize = 4096;

/// What of one system's echoes is to be looked at.
#[derive(Debug)]
pub struct Watch {
    system: Arc<str>,
    schema: Arc<Schema>,
    /// By entity, where the system receives it.
    bindings: Vec<Option<Arc<Binding>>>,
    /// By entity: the columns that the agent writes.
    written: Vec<u128>,
    /// By entity: of these, the ones that the server fills where an insert leaves them out.
    defaulted: Vec<u128>,
    keys_max: u64,
}

impl Watch {
    /// `None` where nothing that is applied can have side effects: then no echo needs a look.
    pub fn new(system: Arc<str>, schema: Arc<Schema>, bindings: &[Arc<Binding>]) -> Option<Watch> {
        let mut watch = Watch {
            system,
            bindings: vec![None; schema.entities.len()],
            written: vec![0; schema.entities.len()],
            defaulted: vec![0; schema.entities.len()],
            schema,
            keys_max: KEYS_MAX,
        };
        for binding in bindings.iter().filter(|binding| binding.role != Role::Source) {
            let entity = binding.entity.index();
            for bound in binding.columns.iter().filter(|bound| !bound.column.generated) {
                watch.written[entity] |= 1 << bound.field;
                watch.defaulted[entity] |= u128::from(bound.column.has_default) << bound.field;
            }
            watch.bindings[binding.entity.index()] = Some(binding.clone());
        }
        watch.bindings.iter().flatten().any(|binding| binding.table.side_effects).then_some(watch)
    }

    /// How many keys of a large transaction are held at a time.
    #[must_use]
    pub fn keys_max(mut self, keys: u64) -> Self {
        self.keys_max = keys;
        self
    }

    fn receives(&self, entity: EntityId) -> Option<&Arc<Binding>> {
        self.bindings[entity.index()].as_ref()
    }

    /// Whether the applier passes over it, as far as can be told without its body.
    fn is_for_others(&self, entry: &Entry) -> bool {
        match &entry.to {
            Address::Only(names) => !names.contains(&self.system),
            Address::Others => {
                entry.decisions.is_empty() && matches!(&entry.origin, Origin::System(name) if *name == self.system)
            }
        }
    }
}

/// Reads the chunks of a spooled body.
pub type Chunks<'a> = dyn Fn(&SpoolRef, &mut dyn FnMut(Bytes) -> Result<()>) -> Result<()> + 'a;

/// One transaction of ours, as the journal has it.
#[derive(Debug, Default)]
pub struct Echo {
    /// The marker that it writes.
    pub seq: Seq,
    /// Whose tables' writes may go further.
    acting: Vec<EntityId>,
    /// The most that an entry with such writes has behind it.
    hops: u32,
    rows: HashMap<u128, Expected>,
    /// Rows of entities without a key, by their hash: how many are still to come.
    keyless: HashMap<u128, (EntityId, u64)>,
    /// Which fields such rows carry.
    carried: Vec<(EntityId, u128)>,
    /// Bodies too large to hold.
    large: Vec<Entry>,
    part: u64,
    parts: u64,
    differing: HashMap<u128, Difference>,
    /// Keys that the system holds.
    held: HashMap<u128, Seq>,
    /// Of these keys the first rows that were not taken for ours are, after all.
    retracted: HashMap<u128, u32>,
    /// Keyless rows that did not come as they were applied.
    missing: HashMap<EntityId, u64>,
    examples: usize,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Expected {
    image: Image,
    /// Everything that came for a key that is held or tried again; `None` for a deletion.
    images: Vec<Option<Box<[u8]>>>,
    log: Shown,
    /// Rows that were not taken for ours.
    doubts: u32,
}

/// What the log has shown of a key that ends deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// Nobody's row, until a deletion shows it to be ours.
    Inserted,
    Deleted,
}

/// What a key ends with.
#[derive(Debug)]
enum Image {
    Gone,
    Row(Box<[u8]>),
    /// Of the fields that it carries.
    Hash {
        carried: u128,
        hash: u128,
    },
    /// Not to be compared.
    Unknown,
    /// See [`Expected::images`].
    OneOf,
}

/// In what the last image of an applied key differs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Difference {
    Field(EntityId, usize),
    /// In one that was not applied at all.
    Beside(EntityId, usize),
    /// Written where it was deleted, or deleted where it was written.
    Existence(EntityId),
    /// A hash only; the image, while there are few.
    Hash(EntityId, Option<Box<[u8]>>),
}

/// A field, or the row's existence, in which rows end otherwise than they were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rewritten {
    pub entity: EntityId,
    /// `None`: the whole row, or one of many of which the field was not looked up.
    pub field: Option<usize>,
}

impl Echo {
    /// `held`: keys for which the journal has a live quarantine record of this system, and the oldest
    /// entry that it has not received of each, now that
    /// the transaction is in its log.
    pub fn new(seq: Seq, held: HashMap<u128, Seq>) -> Self {
        Echo { seq, held, parts: 1, ..Echo::default() }
    }

    /// Takes in an entry behind the previous marker.
    pub fn expect(&mut self, watch: &Watch, entry: Entry) {
        if watch.is_for_others(&entry) {
            return;
        }
        let Body::Inline(body) = &entry.body else {
            self.hops = self.hops.max(entry.hops);
            self.large.push(entry);
            return;
        };
        if self.expect_chunk(watch, &entry, body, &mut (0, 0), false) {
            self.hops = self.hops.max(entry.hops);
        }
    }

    /// How many side effects in a row led to those of this echo.
    pub fn hops(&self) -> u32 {
        self.hops + 1
    }

    /// What was applied and may have side effects.
    pub fn acting(&self) -> &[EntityId] {
        &self.acting
    }

    /// Whether it holds something whose writes may go further.
    fn expect_chunk(
        &mut self,
        watch: &Watch,
        entry: &Entry,
        body: &Bytes,
        place: &mut (u64, usize),
        large: bool,
    ) -> bool {
        let mut acts = false;
        let translation = Translation::between(&entry.schema, &watch.schema);
        let retry = entry.is_retry();
        let (index, cursor) = place;
        entry.each_for(&watch.system, body, translation.as_ref(), index, cursor, &mut |_, encoded| {
            // What cannot be read now was not applied either: the applier stops before it.
            let Ok(encoded) = encoded else { return };
            let change = Changes::new(&encoded).next().expect("one encoded change");
            if let Some(binding) = watch.receives(change.entity) {
                if binding.table.side_effects {
                    acts = true;
                    if self.acting.last() != Some(&change.entity) && !self.acting.contains(&change.entity) {
                        self.acting.push(change.entity);
                    }
                }
                self.expect_change(watch, binding, &change, entry.seq, retry, large);
            }
        });
        acts
    }

    fn expect_change(
        &mut self,
        watch: &Watch,
        binding: &Binding,
        change: &Change<'_>,
        seq: Seq,
        retry: bool,
        large: bool,
    ) {
        let written = watch.written[change.entity.index()];
        let entity = watch.schema.entity(change.entity);
        if entity.key_len == 0 {
            let carried = change.image().sent() & written;
            if !self.carried.contains(&(change.entity, carried)) {
                self.carried.push((change.entity, carried));
            }
            let hash = row_hash(entity.seed, change.image(), carried, &mut self.scratch);
            if !large || self.is_of_part(hash) {
                self.keyless.entry(hash).or_insert((change.entity, 0)).1 += 1;
            }
            return;
        }
        if large && !self.is_of_part(change.key_hash) {
            return;
        }
        let held = self.held.get(&change.key_hash);
        if held.is_some_and(|held| *held < seq) && !retry && !self.rows.contains_key(&change.key_hash) {
            // It waits, and a retry that carries it is still to come. Of the entry that was refused a
            // part may have been written.
            return;
        }
        if retry && !self.rows.contains_key(&change.key_hash) || held.is_some() {
            self.expect_one_of(binding, change, retry);
            return;
        }
        let before = self.rows.get(&change.key_hash).map(|expected| &expected.image);
        let image = match change.after {
            // Overtaken, and never written: the key is not held any more.
            _ if retry => return,
            None => Image::Gone,
            // It may delete the row there, or leave one that is not ours alone.
            Some(_) if binding.filter.is_some() => Image::Unknown,
            Some(row) if large => {
                let carried = comparable(row) & written;
                match before {
                    Some(Image::Hash { carried: earlier, .. }) if earlier & !carried != 0 => Image::Unknown,
                    Some(Image::Row(_) | Image::Unknown) => Image::Unknown,
                    _ => Image::Hash { carried, hash: row_hash(entity.seed, row, carried, &mut self.scratch) },
                }
            }
            Some(row) => match before {
                Some(Image::Row(under)) if !(change.op == Op::Insert && change.before.is_some()) => {
                    Image::Row(overlay(Row(under), row).into())
                }
                Some(Image::Unknown | Image::Hash { .. }) => Image::Unknown,
                _ => Image::Row(row.0.into()),
            },
        };
        self.rows.insert(change.key_hash, Expected { image, images: Vec::new(), log: Shown::Nothing, doubts: 0 });
    }

    fn expect_one_of(&mut self, binding: &Binding, change: &Change<'_>, retry: bool) {
        let new = || Expected { image: Image::OneOf, images: Vec::new(), log: Shown::Nothing, doubts: 0 };
        let expected = self.rows.entry(change.key_hash).or_insert_with(new);
        if expected.images.len() >= IMAGES_MAX {
            expected.images.drain(..IMAGES_MAX / 2);
        }
        let replaces = change.op == Op::Insert && change.before.is_some();
        if change.op == Op::Delete || replaces || binding.filter.is_some() {
            expected.images.push(None);
        }
        let Some(after) = change.after else { return };
        // Alone, and over what came before it in the same statement. Behind a deletion nothing does, and
        // what a retry carries is all that was held.
        let under = expected.images.last().and_then(Option::as_deref);
        let over = under
            .filter(|_| !retry)
            .filter(|under| Row(under).sent() & (!after.sent() | after.added()) != 0)
            .map(|under| overlay(Row(under), after));
        expected.images.push(Some(after.0.into()));
        expected.images.extend(over.map(|image| Some(image.into())));
    }

    fn is_of_part(&self, hash: u128) -> bool {
        hash % u128::from(self.parts) == u128::from(self.part)
    }

    /// Ends what is expected. `false`: no side effect is possible, its rows need no look.
    pub fn complete(&mut self, watch: &Watch, chunks: &Chunks<'_>) -> Result<bool> {
        if self.acting.is_empty() && self.large.is_empty() {
            return Ok(false);
        }
        let changes: u64 = self.large.iter().map(|entry| entry.changes).sum();
        self.parts = changes.div_ceil(watch.keys_max).max(1);
        self.load_part(watch, chunks)?;
        Ok(true)
    }

    fn load_part(&mut self, watch: &Watch, chunks: &Chunks<'_>) -> Result<()> {
        let large = std::mem::take(&mut self.large);
        for entry in &large {
            let Body::Spooled(spool) = &entry.body else { unreachable!("only spooled bodies are large") };
            let mut place = (0, 0);
            chunks(spool, &mut |chunk| {
                self.expect_chunk(watch, entry, &chunk, &mut place, true);
                Ok(())
            })?;
        }
        self.large = large;
        Ok(())
    }

    /// Ends the part of keys in hand, and what was found of it. `true`: there is another, and
    /// everything that was not ours so far has to be asked about again.
    pub fn next_part(
        &mut self,
        watch: &Watch,
        chunks: &Chunks<'_>,
        found: &mut HashMap<Rewritten, u64>,
    ) -> Result<bool> {
        self.name_differences(watch, chunks)?;
        for difference in std::mem::take(&mut self.differing).into_values() {
            let (entity, field) = match difference {
                Difference::Field(entity, field) | Difference::Beside(entity, field) => (entity, Some(field)),
                Difference::Existence(entity) | Difference::Hash(entity, _) => (entity, None),
            };
            *found.entry(Rewritten { entity, field }).or_default() += 1;
        }
        for (entity, count) in std::mem::take(&mut self.keyless).into_values() {
            *self.missing.entry(entity).or_default() += count;
        }
        self.rows.clear();
        self.part += 1;
        if self.part == self.parts {
            return Ok(false);
        }
        self.load_part(watch, chunks)?;
        Ok(true)
    }

    /// Whether [`is_ours_after_all`](Self::is_ours_after_all) has to be asked.
    pub fn has_doubts(&self) -> bool {
        self.retracted.values().any(|rows| *rows > 0) || self.missing.values().any(|missing| *missing > 0)
    }

    /// Whether a row that is not ours so far was deleted by us later, or has no key and stands
    /// for one that was rewritten. Asked for each, in order, when all parts are done.
    pub fn is_ours_after_all(&mut self, change: &Change<'_>, found: &mut HashMap<Rewritten, u64>) -> bool {
        if change.key_hash != 0 {
            let Some(rows) = self.retracted.get_mut(&change.key_hash).filter(|rows| **rows > 0) else { return false };
            *rows -= 1;
            return true;
        }
        let Some(missing) = self.missing.get_mut(&change.entity).filter(|missing| **missing > 0) else { return false };
        *missing -= 1;
        *found.entry(Rewritten { entity: change.entity, field: None }).or_default() += 1;
        true
    }

    /// Whether a row of the log is one that was applied, as far as the part in hand tells.
    pub fn is_ours(&mut self, watch: &Watch, change: &Change<'_>) -> bool {
        let entity = watch.schema.entity(change.entity);
        if entity.key_len == 0 {
            return self.is_expected_keyless(entity.seed, change);
        }
        let Some(expected) = self.rows.get_mut(&change.key_hash) else { return false };
        let written = watch.written[change.entity.index()];
        if matches!(expected.image, Image::OneOf) {
            let ours = expected.images.iter().any(|image| match (image, change.after) {
                (None, None) => true,
                (Some(row), Some(seen)) => {
                    let applied = summed(Row(row), change);
                    first_difference(Row(&applied), seen, written).is_none()
                        && written_beside(change, written & !Row(row).sent(), 0).is_none()
                }
                _ => false,
            });
            match ours {
                // What came before it was on the way.
                true => drop(self.retracted.insert(change.key_hash, expected.doubts)),
                false => expected.doubts += 1,
            }
            return ours;
        }
        match (&expected.image, change.op) {
            (_, Op::Delete) => {
                let before = std::mem::replace(&mut expected.log, Shown::Deleted);
                if before == Shown::Inserted {
                    self.retracted.insert(change.key_hash, expected.doubts);
                }
            }
            // Its deletion found nothing, or is still to come.
            (Image::Gone, Op::Insert) if expected.log == Shown::Nothing => {
                (expected.log, expected.doubts) = (Shown::Inserted, 1);
                return false;
            }
            _ if expected.log == Shown::Inserted => {
                expected.doubts += 1;
                return false;
            }
            _ => {}
        }
        let defaulted = watch.defaulted[change.entity.index()];
        let beside = |change: &Change<'_>, fields: u128| {
            written_beside(change, fields, defaulted).map(|field| Difference::Beside(change.entity, field))
        };
        let difference = match (&expected.image, change.after) {
            (Image::Unknown | Image::OneOf, _) | (Image::Gone, None) => None,
            (Image::Gone, Some(_)) | (_, None) => Some(Difference::Existence(change.entity)),
            (Image::Row(row), Some(seen)) => first_difference(Row(row), seen, written)
                .map(|field| Difference::Field(change.entity, field))
                .or_else(|| beside(change, written & !Row(row).sent())),
            (Image::Hash { carried, hash }, Some(seen)) => {
                let told = carried & !seen.sent() == 0;
                if told && row_hash(entity.seed, seen, *carried, &mut self.scratch) != *hash {
                    let example = self.examples < EXAMPLES_MAX;
                    self.examples += usize::from(example);
                    Some(Difference::Hash(change.entity, example.then(|| seen.0.into())))
                } else {
                    None
                }
            }
        };
        // The last image counts: a deletion before an insert, or an earlier chunk, is on its way.
        match difference {
            Some(difference) => drop(self.differing.insert(change.key_hash, difference)),
            None if matches!(self.differing.get(&change.key_hash), Some(Difference::Beside(..))) => {}
            None => drop(self.differing.remove(&change.key_hash)),
        }
        true
    }

    fn is_expected_keyless(&mut self, seed: u64, change: &Change<'_>) -> bool {
        for (entity, carried) in &self.carried {
            if *entity != change.entity {
                continue;
            }
            let hash = row_hash(seed, change.image(), *carried, &mut self.scratch);
            if let Some((_, left)) = self.keyless.get_mut(&hash).filter(|(_, left)| *left > 0) {
                *left -= 1;
                return true;
            }
        }
        false
    }

    /// Looks up, for the examples, in which field a row differs from what was applied.
    fn name_differences(&mut self, watch: &Watch, chunks: &Chunks<'_>) -> Result<()> {
        let named = |difference: &Difference| matches!(difference, Difference::Hash(_, Some(_)));
        if !self.differing.values().any(named) {
            return Ok(());
        }
        let mut applied: HashMap<u128, Bytes> = HashMap::new();
        for entry in &self.large {
            let Body::Spooled(spool) = &entry.body else { continue };
            let translation = Translation::between(&entry.schema, &watch.schema);
            let (mut index, mut cursor) = (0, 0);
            chunks(spool, &mut |chunk| {
                entry.each_for(
                    &watch.system,
                    &chunk,
                    translation.as_ref(),
                    &mut index,
                    &mut cursor,
                    &mut |_, encoded| {
                        let Ok(encoded) = encoded else { return };
                        let change = Changes::new(&encoded).next().expect("one encoded change");
                        if self.differing.get(&change.key_hash).is_some_and(named) {
                            applied.insert(change.key_hash, Bytes::copy_from_slice(change.image().0));
                        }
                    },
                );
                Ok(())
            })?;
        }
        for (key, difference) in &mut self.differing {
            if let (Difference::Hash(entity, Some(seen)), Some(row)) = (&*difference, applied.get(key))
                && let Some(field) = first_difference(Row(row), Row(seen), watch.written[entity.index()])
            {
                *difference = Difference::Field(*entity, field);
            }
        }
        Ok(())
    }
}

/// The sent fields whose equality a hash can tell: not documents and arrays, which servers spell anew,
/// nor differences.
fn comparable(row: Row<'_>) -> u128 {
    let told = |datum: Datum<'_>| match datum {
        Datum::NotSent | Datum::Added(_) => false,
        datum => !matches!(datum, Datum::Value(Value::Json(_) | Value::Array(_))),
    };
    row.iter().enumerate().filter(|(_, datum)| told(*datum)).fold(0, |set, (i, _)| set | 1 << i)
}

fn row_hash(seed: u64, row: Row<'_>, fields: u128, scratch: &mut Vec<u8>) -> u128 {
    let of_fields = row.iter().enumerate().filter(|(field, _)| fields >> field & 1 == 1).map(|(_, datum)| datum);
    key_hash(seed, of_fields, scratch)
}

/// The first of `fields` in which both rows tell something, and not the same.
fn first_difference(applied: Row<'_>, seen: Row<'_>, fields: u128) -> Option<usize> {
    if applied == seen {
        return None;
    }
    let pairs = applied.iter().zip(seen.iter()).enumerate().filter(|(field, _)| fields >> field & 1 == 1);
    pairs.filter(|(_, (a, b))| a.is_sent() && b.is_sent()).find(|(_, (a, b))| !same(*a, *b)).map(|(field, _)| field)
}

/// What was applied, with its differences added to what the log says was there.
fn summed(applied: Row<'_>, change: &Change<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(applied.0.len());
    for (field, datum) in applied.iter().enumerate() {
        let Datum::Added(difference) = datum else {
            write_datum(&mut out, datum);
            continue;
        };
        match change.before.map_or(Datum::Null, |before| before.get(field)) {
            Datum::NotSent => write_datum(&mut out, datum),
            then => write_sum(&mut out, then, difference),
        }
    }
    out
}

/// The first of `fields`, which the applied change did not carry, that the row of the log has
/// another value for than before; in a new row any that is not a default.
fn written_beside(change: &Change<'_>, fields: u128, defaulted: u128) -> Option<usize> {
    let after = change.after?;
    (0..128).take_while(|field| fields >> field != 0).filter(|field| fields >> field & 1 == 1).find(|field| {
        let (now, then) = (after.get(*field), change.before.map(|before| before.get(*field)));
        match (now, then) {
            (Datum::NotSent, _) | (_, Some(Datum::NotSent)) => false,
            (now, Some(then)) => !same(then, now),
            (Datum::Null, None) => false,
            (_, None) => change.op == Op::Insert && defaulted >> field & 1 == 0,
        }
    })
}

fn same(a: Datum<'_>, b: Datum<'_>) -> bool {
    match (a, b) {
        // What it was added to is not known here.
        (Datum::Added(_), _) | (_, Datum::Added(_)) => true,
        (Datum::Value(Value::Decimal(a)), Datum::Value(Value::Decimal(b))) => a == b || decimal_eq(a, b),
        (Datum::Value(Value::Json(a)), Datum::Value(Value::Json(b))) => a == b || json_eq(a, b),
        (a, b) => {
            // Bit by bit, or a NaN would never be itself.
            let (mut left, mut right) = (Vec::new(), Vec::new());
            write_datum(&mut left, a);
            write_datum(&mut right, b);
            a == b || left == right
        }
    }
}

#[cfg(test)]
mod tests;
