//! The canonical side of the configuration: which entities there are, and their fields.
//!
//! Changes are written against a [`Schema`]; the journal stores it once per segment and
//! entries name it by id, so that an entry stays readable after the configuration changed.

use std::sync::Arc;

use crate::change::{Change, ChangeWriter};
use crate::value::{Datum, Kind, Row, write_datum};

/// A system by its place in the configuration: 0 is the primary, lower is higher authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SystemId(pub u8);

impl SystemId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// At most 64 systems: a set of them is one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct SystemSet(pub u64);

impl SystemSet {
    pub const EMPTY: SystemSet = SystemSet(0);

    pub fn contains(self, system: SystemId) -> bool {
        self.0 >> system.0 & 1 == 1
    }

    #[must_use]
    pub fn with(self, system: SystemId) -> Self {
        SystemSet(self.0 | 1 << system.0)
    }

    #[must_use]
    pub fn without(self, system: SystemId) -> Self {
        SystemSet(self.0 & !(1 << system.0))
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = SystemId> {
        (0..64).map(SystemId).filter(move |s| self.contains(*s))
    }
}

impl FromIterator<SystemId> for SystemSet {
    fn from_iter<I: IntoIterator<Item = SystemId>>(systems: I) -> Self {
        systems.into_iter().fold(SystemSet::EMPTY, SystemSet::with)
    }
}

/// Number of an entity within one [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityId(pub u16);

impl EntityId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntitySchema {
    pub name: String,
    /// Key fields first, in the order of the configured key; then the others.
    pub fields: Vec<Field>,
    /// `fields[..key_len]` is the key; 0 for entities without one (inserts only).
    pub key_len: usize,
    /// Separates the key hashes of entities; from the name, so it survives reordering.
    pub seed: u64,
}

impl EntitySchema {
    pub fn new(name: impl Into<String>, fields: Vec<Field>, key_len: usize) -> Self {
        let name = name.into();
        EntitySchema { seed: xxhash_rust::xxh3::xxh3_64(name.as_bytes()), name, fields, key_len }
    }
}

impl EntitySchema {
    pub fn field(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|f| f.name == name)
    }
}

/// All entities of one configuration. Shared, immutable, identified by its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema {
    /// Hash of names, kinds and keys.
    pub id: u64,
    pub entities: Vec<EntitySchema>,
}

impl Schema {
    pub fn new(entities: Vec<EntitySchema>) -> Arc<Self> {
        let mut text = String::new();
        for entity in &entities {
            text.push_str(&format!("{}\u{1}{}\u{1}", entity.name, entity.key_len));
            for field in &entity.fields {
                text.push_str(&format!("{}\u{2}{}\u{2}", field.name, field.kind.name()));
            }
            text.push('\u{3}');
        }
        Arc::new(Schema { id: xxhash_rust::xxh3::xxh3_64(text.as_bytes()), entities })
    }

    pub fn entity(&self, id: EntityId) -> &EntitySchema {
        &self.entities[id.index()]
    }

    pub fn find(&self, name: &str) -> Option<EntityId> {
        self.entities.iter().position(|e| e.name == name).map(|i| EntityId(i as u16))
    }
}

/// How rows written under one schema read under another: entities and fields meet by name.
#[derive(Debug, Clone)]
pub struct Translation {
    to: Arc<Schema>,
    /// Per entity of the old schema: its number now, and per field of now its place then.
    entities: Vec<Option<(EntityId, Vec<Option<usize>>)>>,
}

impl Translation {
    /// `None` where both are the same. An entity that is gone, or whose key differs, has none.
    pub fn between(from: &Schema, to: &Arc<Schema>) -> Option<Self> {
        if from.id == to.id {
            return None;
        }
        let translate = |old: &EntitySchema| {
            let id = to.find(&old.name)?;
            let new = to.entity(id);
            let key = |e: &EntitySchema| e.fields[..e.key_len].iter().map(|f| f.name.clone()).collect::<Vec<_>>();
            (key(old) == key(new)).then(|| (id, new.fields.iter().map(|f| old.field(&f.name)).collect()))
        };
        Some(Translation { to: to.clone(), entities: from.entities.iter().map(translate).collect() })
    }

    /// Appends the change as the new schema has it; `false`: its entity has no translation.
    pub fn translate(&self, change: &Change<'_>, out: &mut ChangeWriter) -> bool {
        let Some(Some((entity, fields))) = self.entities.get(change.entity.index()) else { return false };
        let row = |row: Row<'_>| {
            let mut bytes = Vec::with_capacity(row.0.len());
            for from in fields {
                write_datum(&mut bytes, from.map_or(Datum::NotSent, |i| row.get(i)));
            }
            bytes
        };
        let (before, after) = (change.before.map(row), change.after.map(row));
        let (before, after) = (before.as_deref().map(Row), after.as_deref().map(Row));
        out.push_change(&Change { entity: *entity, before, after, ..*change });
        debug_assert!(entity.index() < self.to.entities.len(), "translated into the schema it was made for");
        true
    }
}
