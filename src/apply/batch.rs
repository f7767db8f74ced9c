//! Joins journal entries into one batch for one target: coalesced per key, grouped per table,
//! ordered so that references hold. Pure.
//!
//! Coalescing keeps what a key ends with: the last image wins, a partial image lies over what
//! was there. A deletion is kept (the row may exist in the target), and also where an image
//! follows it that does not carry every column: without the deletion, columns of the old row
//! would live on in the new one, in this target and not in the next.
//!
//! ```text
//! deletes    children first   ┐ one statement's rows have one table
//! upserts    parents first    ┘ and carry the same columns
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use bytes::Bytes;

use crate::apply::{TableRows, Write};
use crate::change::{Change, Op, overlay};
use crate::normalize::binding::{Binding, Role};
use crate::schema::{EntityId, Schema, SystemId, Translation};
use crate::value::{Datum, Row, write_datum};

/// What the target binds, by entity, and in which order its tables are written.
#[derive(Debug, Clone)]
pub struct Routes {
    pub system: SystemId,
    pub name: Arc<str>,
    pub schema: Arc<Schema>,
    bindings: Vec<Option<Arc<Binding>>>,
    /// By entity: parents lower than children.
    levels: Vec<usize>,
    only_changed_columns: bool,
}

impl Routes {
    pub fn new(system: SystemId, name: Arc<str>, schema: Arc<Schema>, bindings: &[Arc<Binding>]) -> Self {
        let mut by_entity = vec![None; schema.entities.len()];
        for binding in bindings {
            by_entity[binding.entity.index()] = Some(binding.clone());
        }
        let levels = levels(&by_entity);
        Routes { system, name, schema, bindings: by_entity, levels, only_changed_columns: false }
    }

    #[doc(hidden)]
    #[must_use]
    pub fn with_bugs(mut self, bugs: crate::admit::Bugs) -> Self {
        self.only_changed_columns = bugs.only_changed_columns;
        self
    }

    /// Where the entity is written; `None` where this system does not receive it.
    pub fn binding(&self, entity: EntityId) -> Option<&Arc<Binding>> {
        self.bindings[entity.index()].as_ref().filter(|b| b.role != Role::Source)
    }

    pub fn translation(&self, schema: &Schema) -> Option<Translation> {
        Translation::between(schema, &self.schema)
    }

    /// Bit i: `row` carries column i of the binding.
    fn carried(binding: &Binding, row: Row<'_>) -> u128 {
        let sent = row.sent();
        let columns = binding.columns.iter().enumerate();
        columns.fold(0, |set, (i, column)| set | (sent >> column.field & 1) << i)
    }

    /// Bit i: `row` carries a difference for column i of the binding.
    fn added(binding: &Binding, row: Row<'_>) -> u128 {
        let added = row.added();
        let columns = binding.columns.iter().enumerate().filter(|_| added != 0);
        columns.fold(0, |set, (i, column)| set | (added >> column.field & 1) << i)
    }

    fn every_column(binding: &Binding) -> u128 {
        u128::MAX >> (128 - binding.columns.len())
    }
}

/// Bit i: field i is sent, and whatever is under it does not matter.
pub(super) fn settled(row: Row<'_>) -> u128 {
    row.sent() & !row.added()
}

/// Parents before children; a cycle is cut where it is met.
fn levels(bindings: &[Option<Arc<Binding>>]) -> Vec<usize> {
    fn visit(
        at: usize,
        bindings: &[Option<Arc<Binding>>],
        levels: &mut [Option<usize>],
        path: &mut Vec<usize>,
    ) -> usize {
        if let Some(level) = levels[at] {
            return level;
        }
        let Some(binding) = &bindings[at] else { return 0 };
        path.push(at);
        let mut level = 0;
        for key in &binding.table.foreign_keys {
            let parents = bindings.iter().enumerate();
            for (parent, _) in parents.filter(|(_, b)| b.as_ref().is_some_and(|b| b.table.name == key.references)) {
                if !path.contains(&parent) {
                    level = level.max(visit(parent, bindings, levels, path) + 1);
                }
            }
        }
        path.pop();
        levels[at] = Some(level);
        level
    }
    let mut found = vec![None; bindings.len()];
    (0..bindings.len()).map(|at| visit(at, bindings, &mut found, &mut Vec::new())).collect()
}

/// Rows of one table for one statement.
#[derive(Debug, Clone)]
pub struct Group {
    pub binding: Arc<Binding>,
    pub write: Write,
    pub rows: Vec<Bytes>,
    pub carried: u128,
    pub added: u128,
    pub fresh: bool,
}

impl Group {
    pub fn rows(&self) -> Vec<Row<'_>> {
        self.rows.iter().map(|bytes| Row(bytes)).collect()
    }

    pub fn table_rows<'a>(&'a self, rows: &'a [Row<'a>]) -> TableRows<'a> {
        let Group { binding, write, carried, added, fresh, .. } = self;
        TableRows { binding, write: *write, rows, carried: *carried, added: *added, fresh: *fresh }
    }
}

/// What a key ends with.
#[derive(Debug)]
struct Merged {
    entity: EntityId,
    /// Some change of it deleted the row: an image that has the key.
    deleted: Option<Bytes>,
    image: Option<Bytes>,
    /// The first change of it inserted the row: most likely it is not there.
    fresh: bool,
}

/// Keys are hashes already.
#[derive(Debug, Default, Clone, Copy)]
pub struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u128s are hashed");
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// Hashes of keys, each with its place in the batch.
pub type KeySet = HashMap<u128, usize, BuildHasherDefault<Hashed>>;

/// Changes of whole entries (or of one chunk), coalesced.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<Merged>,
    by_key: KeySet,
    /// Changes taken in; those that a later one made unnecessary.
    pub changes: u64,
    pub coalesced: u64,
}

impl Batch {
    /// Room for so many more.
    pub fn reserve(&mut self, changes: usize) {
        self.rows.reserve(changes);
        self.by_key.reserve(changes);
    }

    /// Adds a change that lies in `holder`.
    pub fn add(&mut self, routes: &Routes, holder: &Bytes, change: &Change<'_>) {
        self.changes += 1;
        let fresh = change.op == Op::Insert && change.before.is_none();
        let row = match routes.only_changed_columns {
            true => only_changed(&routes.schema, change),
            false => holder.slice_ref(change.image().0),
        };
        let keyless = routes.schema.entity(change.entity).key_len == 0;
        if keyless {
            return self.rows.push(Merged { entity: change.entity, deleted: None, image: Some(row), fresh });
        }
        let merged = match self.by_key.entry(change.key_hash) {
            Entry::Occupied(at) => {
                self.coalesced += 1;
                &mut self.rows[*at.get()]
            }
            Entry::Vacant(place) => {
                place.insert(self.rows.len());
                self.rows.push(Merged { entity: change.entity, deleted: None, image: None, fresh });
                self.rows.last_mut().expect("just pushed")
            }
        };
        if change.op == Op::Delete {
            merged.image = None;
            merged.deleted = Some(row);
            return;
        }
        if change.op == Op::Insert && change.before.is_some() {
            merged.image = None;
            merged.deleted = Some(row.clone());
        }
        merged.image = Some(match merged.image.take() {
            Some(under) if Row(&under).sent() & !settled(Row(&row)) != 0 => overlay(Row(&under), Row(&row)).into(),
            _ => row,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The keys that it writes, when no more changes are added.
    pub fn take_keys(&mut self) -> KeySet {
        std::mem::take(&mut self.by_key)
    }

    /// The entity of each row that is left, and whether it is to be gone.
    pub fn entities(&self) -> impl Iterator<Item = (usize, bool)> {
        self.rows.iter().map(|merged| (merged.entity.index(), merged.image.is_none()))
    }

    /// The statements, in the order in which they are to be sent.
    pub fn groups(self, routes: &Routes) -> Vec<Group> {
        let mut order: Vec<(Place, Group)> = Vec::new();
        let mut places: HashMap<Place, usize> = HashMap::new();
        let mut last = None;
        let mut put = |place: Place, binding: &Arc<Binding>, write, row, fresh| {
            let at = match last {
                // Mostly they are all alike.
                Some((known, at)) if known == place => at,
                _ => *places.entry(place).or_insert_with(|| {
                    let Place { carried, added, .. } = place;
                    let fresh = binding.filter.is_none() && added == 0;
                    let rows = Vec::new();
                    order.push((place, Group { binding: binding.clone(), write, rows, carried, added, fresh }));
                    order.len() - 1
                }),
            };
            last = Some((place, at));
            order[at].1.rows.push(row);
            order[at].1.fresh &= fresh;
        };
        for merged in self.rows {
            let Some(binding) = routes.binding(merged.entity) else { continue };
            let (entity, level) = (merged.entity.0, routes.levels[merged.entity.index()]);
            let of_image =
                |of: fn(&Binding, Row<'_>) -> u128| merged.image.as_ref().map_or(0, |row| of(binding, Row(row)));
            let (carried, added) = (of_image(Routes::carried), of_image(Routes::added));
            if let Some(row) = merged.deleted.filter(|_| carried & !added != Routes::every_column(binding)) {
                let place = Place { stage: 0, level: usize::MAX - level, entity, carried: 0, added: 0 };
                put(place, binding, Write::Delete, row, false);
            }
            if let Some(row) = merged.image {
                let write = if binding.key_len == 0 { Write::Insert } else { Write::Upsert };
                put(Place { stage: 1, level, entity, carried, added }, binding, write, row, merged.fresh);
            }
        }
        order.sort_by_key(|(place, _)| *place);
        order.into_iter().map(|(_, group)| group).collect()
    }
}

/// Order of statements: deletes, then the rest; tables by level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    stage: u8,
    level: usize,
    entity: u16,
    carried: u128,
    added: u128,
}

/// A planted mistake ([`crate::admit::Bugs`]): what did not change is not written.
fn only_changed(schema: &Schema, change: &Change<'_>) -> Bytes {
    let key_len = schema.entity(change.entity).key_len;
    let mut out = Vec::new();
    for (field, datum) in change.image().iter().enumerate() {
        let same = change.op == Op::Update && change.before.is_some_and(|b| b.get(field) == datum);
        write_datum(&mut out, if same && field >= key_len { Datum::NotSent } else { datum });
    }
    out.into()
}

#[cfg(test)]
mod tests;
