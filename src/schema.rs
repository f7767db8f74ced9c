//! The canonical side of the configuration: which entities there are, and their fields.
//!
//! Changes are written against a [`Schema`]; the journal stores it once per segment and
//! entries name it by id, so that an entry stays readable after the configuration changed.

use std::sync::Arc;

use crate::change::{Change, ChangeWriter};
use crate::normalize::recast::recast;
use crate::value::{Datum, Kind, Row, key_hash, write_datum};

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
        self.0 & Self::of(system) != 0
    }

    /// Nothing, for a number that is no system's.
    fn of(system: SystemId) -> u64 {
        1u64.checked_shl(system.0.into()).unwrap_or(0)
    }

    #[must_use]
    pub fn with(self, system: SystemId) -> Self {
        SystemSet(self.0 | Self::of(system))
    }

    #[must_use]
    pub fn without(self, system: SystemId) -> Self {
        SystemSet(self.0 & !Self::of(system))
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

/// How rows written under one schema read under another: entities and fields meet by name. A
/// field that was not there is not sent; one whose kind changed is recast, and where a value
/// refuses that it stays what it was, for the target to refuse.
#[derive(Debug, Clone)]
pub struct Translation {
    to: Arc<Schema>,
    /// Per entity of the old schema.
    entities: Vec<Then>,
}

/// What became of an entity of the old schema.
#[derive(Debug, Clone)]
enum Then {
    /// Out of the configuration: nobody has it any more.
    Gone,
    /// Another key: its rows of then are no rows of now.
    Rekeyed,
    Now {
        entity: EntityId,
        /// Per field of now, its place then.
        fields: Vec<Option<Former>>,
        /// A field of the key has another kind, so keys have other hashes.
        rehash: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Former {
    place: usize,
    /// The kind of now, where it is another.
    recast: Option<Kind>,
}

impl Translation {
    /// `None` where both are the same.
    pub fn between(from: &Schema, to: &Arc<Schema>) -> Option<Self> {
        if from.id == to.id {
            return None;
        }
        let translate = |old: &EntitySchema| {
            let Some(entity) = to.find(&old.name) else { return Then::Gone };
            let new = to.entity(entity);
            let key = |e: &EntitySchema| e.fields[..e.key_len].iter().map(|f| f.name.clone()).collect::<Vec<_>>();
            if key(old) != key(new) {
                return Then::Rekeyed;
            }
            let former = |now: &Field| {
                let place = old.field(&now.name)?;
                Some(Former { place, recast: (old.fields[place].kind != now.kind).then_some(now.kind) })
            };
            let fields: Vec<_> = new.fields.iter().map(former).collect();
            let rehash = fields[..new.key_len].iter().flatten().any(|former| former.recast.is_some());
            Then::Now { entity, fields, rehash }
        };
        Some(Translation { to: to.clone(), entities: from.entities.iter().map(translate).collect() })
    }

    /// Changes of the entity, by its old number, can be neither read nor passed over.
    pub fn is_rekeyed(&self, entity: EntityId) -> bool {
        matches!(self.entities.get(entity.index()), Some(Then::Rekeyed))
    }

    /// Appends the change as the new schema has it; `false`: its entity has no translation.
    pub fn translate(&self, change: &Change<'_>, out: &mut ChangeWriter) -> bool {
        let Some(Then::Now { entity, fields, rehash }) = self.entities.get(change.entity.index()) else { return false };
        let mut scratch = Vec::new();
        let mut row = |row: Row<'_>| {
            let mut bytes = Vec::with_capacity(row.0.len());
            for former in fields {
                let datum = former.map_or(Datum::NotSent, |former| row.get(former.place));
                let recast = match (datum, former.and_then(|former| former.recast)) {
                    (Datum::Value(value), Some(kind)) => recast(value, kind, &mut scratch).map_or(datum, Datum::Value),
                    (datum, _) => datum,
                };
                write_datum(&mut bytes, recast);
            }
            bytes
        };
        let (before, after) = (change.before.map(&mut row), change.after.map(&mut row));
        let (before, after) = (before.as_deref().map(Row), after.as_deref().map(Row));
        let schema = self.to.entity(*entity);
        let key_hash = match (rehash, after.or(before)) {
            (true, Some(row)) => key_hash(schema.seed, row.iter().take(schema.key_len), &mut Vec::new()),
            _ => change.key_hash,
        };
        out.push_change(&Change { entity: *entity, key_hash, before, after, ..*change });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Changes, Op};
    use crate::value::Value;

    fn schema(key: &[(&str, Kind)], fields: &[(&str, Kind)]) -> Arc<Schema> {
        let all = key.iter().chain(fields).map(|(name, kind)| Field { name: (*name).into(), kind: *kind });
        Schema::new(vec![EntitySchema::new("contact", all.collect(), key.len())])
    }

    fn written(schema: &Arc<Schema>, datums: &[Datum<'_>]) -> Vec<u8> {
        let mut writer = ChangeWriter::default();
        writer.begin(EntityId(0), Op::Insert);
        writer.end_before();
        datums.iter().for_each(|datum| write_datum(&mut writer.bytes, *datum));
        writer.finish(schema);
        writer.take()
    }

    #[test]
    fn fields_meet_by_name_and_in_their_present_kind() {
        let old = schema(&[("id", Kind::Int)], &[("gone", Kind::Text), ("price", Kind::Int), ("size", Kind::Text)]);
        let new =
            schema(&[("id", Kind::Decimal)], &[("price", Kind::Text), ("fresh", Kind::Text), ("size", Kind::Int)]);
        let int = |n| Datum::Value(Value::Int(n));
        let body = written(&old, &[int(7), Datum::Null, int(5), Datum::Value(Value::Text("large"))]);

        let mut out = ChangeWriter::default();
        let translation = Translation::between(&old, &new).unwrap();
        assert!(translation.translate(&Changes::new(&body).next().unwrap(), &mut out));

        let change = Changes::new(&out.bytes).next().unwrap();
        let id = Datum::Value(Value::Decimal("7"));
        let size = Datum::Value(Value::Text("large")); // for the target to refuse
        let row: Vec<_> = change.after.unwrap().iter().collect();
        assert_eq!(row, [id, Datum::Value(Value::Text("5")), Datum::NotSent, size]);
        let fresh = written(&new, &row);
        assert_eq!(change.key_hash, Changes::new(&fresh).next().unwrap().key_hash, "as if it were written now");
    }

    #[test]
    fn another_key_is_no_key_of_the_same_row() {
        let old = schema(&[("id", Kind::Int)], &[("mail", Kind::Text)]);
        let new = schema(&[("mail", Kind::Text)], &[("id", Kind::Int)]);
        let gone = Schema::new(Vec::new());

        assert!(Translation::between(&old, &new).unwrap().is_rekeyed(EntityId(0)));
        assert!(!Translation::between(&old, &gone).unwrap().is_rekeyed(EntityId(0)));
        assert!(Translation::between(&old, &old).is_none());
    }
}
